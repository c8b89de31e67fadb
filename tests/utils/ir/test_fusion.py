"""utils.ir.fusion against dictionaries, Pyserini's formula written out, and a case by hand."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.ir.fusion import fuse_runs
from utils.ir.runs import read_entries
from utils.ir.trec import write_run

Lists = dict[str, dict[str, float]]  # the scores of each query's passages

PASSAGE_IDS = ["D9", "D10", "d", "ü", "Z", "zz", "1", "10", "2"]
SCORES = st.sampled_from([0.0, -0.0, 1.0, 0.99, -3.5, 16777217.0, 1e-30, 1e39, -1e39]) | st.floats(-20, 90, width=16)
RUNS = st.dictionaries(
    st.sampled_from(["q9", "1048585", "ü"]),
    st.dictionaries(st.sampled_from(PASSAGE_IDS), SCORES, min_size=1),
    min_size=1,
)
WEIGHTS = st.sampled_from([0.0, 1.0, 1.1, 1e6]) | st.floats(0, 100)
LARGEST = float(np.finfo(np.float32).max)


def write_lines(path: Path, lists: Lists, shuffled: int) -> None:
    """Ranks that say nothing, lines of all queries mixed."""
    lines = [f"{query} Q0 {name} 1 {score!r} t\n" for query, found in lists.items() for name, score in found.items()]
    random.Random(shuffled).shuffle(lines)
    path.write_text("".join(lines), encoding="utf-8")


def hybrid(sparse: dict[str, float], dense: dict[str, float], weight: float) -> dict[str, float]:
    """As Pyserini's HybridSearcher with its weight on the dense score."""
    lowest_sparse, lowest_dense = min(sparse.values(), default=0.0), min(dense.values(), default=0.0)
    return {
        name: sparse.get(name, lowest_sparse) + weight * dense.get(name, lowest_dense) for name in {*sparse, *dense}
    }


def as_read(scores: dict[str, float]) -> dict[str, float]:
    """As float32, those too large for it as the largest."""
    with np.errstate(over="ignore"):
        return {name: min(max(float(np.float32(score)), -LARGEST), LARGEST) for name, score in scores.items()}


def fused_lines(directory: Path, weight: float, topk: int) -> list[list[str]]:
    """The columns of what is written of one.trec and two.trec."""
    fused = fuse_runs(*(read_entries(directory / f"{name}.trec") for name in ("one", "two")), weight, topk)
    path = directory / "fused.trec"
    write_run(path, fused.query_ids, fused.passage_ids, fused.passages_QK, fused.scores_QK, "t")
    return [line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()]


@settings(max_examples=60, deadline=None)
@given(one=RUNS, two=RUNS, weight=WEIGHTS, topk=st.integers(1, 20), seed=st.integers(0, 99))
def test_as_dictionaries_have_it(
    one: Lists, two: Lists, weight: float, topk: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ties, passages and queries of one run alone, the largest scores; and as trec_eval ranks what is written."""
    directory = tmp_path_factory.mktemp("fusion")
    write_lines(directory / "one.trec", one, seed)
    write_lines(directory / "two.trec", two, seed + 1)
    lines = fused_lines(directory, weight, topk)
    assert {line[0] for line in lines} == {*one, *two}
    with (directory / "fused.trec").open(encoding="utf-8") as file:
        by_trec_eval = pytrec_eval.parse_run(file)
    for query in {*one, *two}:
        expected = hybrid(as_read(one.get(query, {})), as_read(two.get(query, {})), weight)
        ranked = sorted(expected, key=lambda name: (expected[name], name.encode()), reverse=True)[:topk]
        found = [line for line in lines if line[0] == query]
        assert [(name, rank) for _, _, name, rank, _, _ in found] == [(n, str(r)) for r, n in enumerate(ranked, 1)]
        scores = by_trec_eval[query]
        assert sorted(scores, key=lambda name: np.float32(scores[name]), reverse=True) == ranked
        assert len({np.float32(score) for score in scores.values()}) == len(ranked), "no two are equal"


def test_by_hand(tmp_path: Path) -> None:
    """b is not in the dense list and counts its lowest, 0.5; c not in BM25's, and counts 2."""
    (tmp_path / "one.trec").write_text("q1 Q0 a 1 3 t\nq1 Q0 b 2 2 t\nq3 Q0 y 1 1 t\nq3 Q0 x 2 2 t\n")
    (tmp_path / "two.trec").write_text("q2 Q0 b 1 2 t\nq1 Q0 c 1 0.75 t\nq1 Q0 a 2 0.5 t\n")
    found = [(line[0], line[2], float(line[4])) for line in fused_lines(tmp_path, 2.0, 10)]
    q1 = [("q1", "a", 4.0), ("q1", "c", 3.5), ("q1", "b", 3.0)]
    assert found == [*q1, ("q3", "x", 2.0), ("q3", "y", 1.0), ("q2", "b", 4.0)]
