"""drivers.evaluate.score_curves against loops over queries and ranks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from data.sources.qrels import sorted_qrels
from drivers.embeddings.encode import PassageShare
from drivers.evaluate.score_curves import as_json, grades_by_rank, mean_scores, overlap, score_curves
from tests.processes_as_threads import on_processes
from utils.distributed.world import World
from utils.search import scores
from utils.search.source import in_memory

QUERIES, PASSAGES, DIMS, DEPTH = 23, 400, 8, 230


@pytest.fixture(name="found")
def fixture_found() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of queries and passages, and the best DEPTH of each query, some lists shorter."""
    rng = np.random.default_rng(3)
    queries_QD = rng.normal(size=(QUERIES, DIMS)).astype(np.float32)
    passages_ND = (rng.normal(size=(PASSAGES, DIMS)) + 1).astype(np.float32)
    scores_QN = queries_QD @ passages_ND.T
    passages_QK = np.argsort(-scores_QN, axis=1)[:, :DEPTH]
    scores_QK = np.take_along_axis(scores_QN, passages_QK, 1)
    for row in range(4):
        passages_QK[row, 150 + row :] = -1
        scores_QK[row, 150 + row :] = -np.inf
    return queries_QD, passages_ND, passages_QK, scores_QK


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_mean_score_is_that_of_all_passages(
    found: tuple[np.ndarray, ...], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries_QD, passages_ND, *_ = found
    expected_Q = (queries_QD.astype(np.float64) @ passages_ND.T.astype(np.float64)).mean(1)

    def one_process(world: World) -> np.ndarray:
        first, last = PASSAGES * world.process // ranks, PASSAGES * (world.process + 1) // ranks
        return mean_scores(world, queries_QD, PassageShare(in_memory(passages_ND[first:last]), first), PASSAGES)

    for mean_Q in on_processes(ranks, one_process, monkeypatch):
        assert mean_Q == pytest.approx(expected_Q, abs=1e-6)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("scores_at_once", [2**24, QUERIES * 5, 1])
def test_the_mean_score_of_passages_of_several_rows_is_that_of_their_best(
    found: tuple[np.ndarray, ...], processes: int, scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks that cut passages in two; a share without any has nothing to add."""
    queries_QD, rows_ND, *_ = found
    counts_P = np.random.default_rng(4).integers(1, 8, 90)
    starts = np.cumsum([0, *counts_P])
    rows_ND = rows_ND[: starts[-1]]
    scores_QN = queries_QD.astype(np.float64) @ rows_ND.T.astype(np.float64)
    expected_Q = np.mean([scores_QN[:, a:b].max(1) for a, b in pairwise(starts)], axis=0)
    monkeypatch.setattr(scores, "SCORES_AT_ONCE", scores_at_once)
    cuts = [0, 90] if processes == 1 else [0, 37, 37, 90]

    def one_process(world: World) -> np.ndarray:
        first, last = cuts[world.process : world.process + 2]
        owners = np.repeat(np.arange(last - first), counts_P[first:last])
        share = PassageShare(in_memory(rows_ND[starts[first] : starts[last]], owners), first)
        return mean_scores(world, queries_QD, share, 90)

    for mean_Q in on_processes(processes, one_process, monkeypatch):
        assert mean_Q == pytest.approx(expected_Q, abs=1e-6)


def test_curves_against_a_loop(found: tuple[np.ndarray, ...]) -> None:
    queries_QD, passages_ND, passages_QK, scores_QK = found
    query_Q = np.arange(100, 100 + QUERIES)
    mean_Q = (queries_QD @ passages_ND.T).mean(1).astype(np.float64)
    qrels = sorted_qrels(np.array([(100, 1, 3), (101, 5, 0), (102, 7, 1), (103, 2, 3)]))
    curves = score_curves(query_Q, passages_QK, scores_QK, mean_Q)
    told = as_json(curves, qrels, {}, [f"id{i}" for i in range(200)], QUERIES)
    assert told["queries"] == QUERIES
    assert told["grades"] == [1, 3]
    curve = told["score_over_corpus_mean"]
    assert len(curve) == 200
    for rank in (1, 2, 100, 152, 200):
        over = [
            float(scores_QK[row, rank - 1]) - mean_Q[row] for row in range(QUERIES) if passages_QK[row, rank - 1] >= 0
        ]
        assert curve[rank - 1] == pytest.approx(sum(over) / len(over), abs=1e-5)
    examples = [*told["examples"]]
    assert len(examples) == 10 and (examples[0], examples[-1]) == ("id100", "id122")
    first = told["examples"]["id100"]
    assert first[149] == pytest.approx(float(scores_QK[0, 149]) - mean_Q[0], abs=1e-5) and first[150] is None
    assert not any(value is not None and math.isnan(value) for value in curve)


def test_grades_against_a_loop(found: tuple[np.ndarray, ...]) -> None:
    *_, passages_QK, _ = found
    rng = np.random.default_rng(5)
    query_Q = np.arange(QUERIES) * 3
    rows = {
        (int(query), int(passage)): int(rng.integers(-1, 4))
        for query in query_Q
        for passage in rng.choice(PASSAGES, 60, replace=False)
    }
    qrels = sorted_qrels(np.array([(*pair, grade) for pair, grade in rows.items()]))
    expected: dict[str, dict[str, int]] = {"retrieved": {}}
    for row, query in enumerate(query_Q.tolist()):
        for rank, passage in enumerate(passages_QK[row].tolist(), 1):
            if passage < 0:
                continue
            bucket = next(name for name, last in BUCKETS if rank <= last)
            names = ["retrieved"] + ([str(max(0, rows[query, passage]))] if (query, passage) in rows else [])
            for name in names:
                counts = expected.setdefault(name, {})
                counts[bucket] = counts.get(bucket, 0) + 1
    assert grades_by_rank(qrels, query_Q, passages_QK) == expected and set(expected) == {"retrieved", *"0123"}


BUCKETS = [("1-5", 5), ("6-20", 20), ("21-50", 50), ("51-100", 100), ("101-200", 200), ("201-500", 500)]


def test_overlap_against_a_loop(found: tuple[np.ndarray, ...]) -> None:
    *_, passages_QK, _ = found
    negative_QN = np.random.default_rng(9).integers(-1, PASSAGES, (40, 3))
    shares = overlap(passages_QK, negative_QN, PASSAGES)
    negatives = [passage for passage in negative_QN.ravel().tolist() if passage >= 0]
    for depth in (10, 100):
        returned = [passage for row in passages_QK for passage in row[:depth].tolist()]
        expected = uniform = 0.0
        for passage in range(PASSAGES):
            share = returned.count(passage) / len(returned)
            expected += min(share, negatives.count(passage) / len(negatives))
            uniform += min(share, 1 / PASSAGES)
        assert (shares[f"at_{depth}"], shares[f"uniform_at_{depth}"]) == pytest.approx((expected, uniform))
    everything = np.arange(PASSAGES)[None]
    assert [*overlap(everything[:, :99], everything, PASSAGES)] == ["at_10", "uniform_at_10"]
    assert overlap(everything, everything, PASSAGES)["at_10"] == pytest.approx(10 / PASSAGES)
    assert overlap(everything[:, :10], everything[:, 10:], PASSAGES)["at_10"] == 0
