"""The index by length goes through the programs, which know nothing of it, and finds what faiss finds."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings

from data.mining.candidates import read_candidates
from data.sources.qrels import query_name
from drivers.embeddings.read_shards import stored_passages
from drivers.embeddings.store import PASSAGES, open_shards, read_queries, read_query_rows
from tests.fingerprint import loop
from tests.toys_loop.toy_loop import toy_loop, write_triples
from tests.utils.search.test_fold import assert_best, brute_force, owners, problem
from utils.search.index import Index
from utils.search.registry import BACKENDS, BackendWord
from utils.search.settings import SearchSettings
from utils.search.source import all_at_once, in_memory

with patch.dict(BACKENDS):  # afterwards only our own are registered again
    from tests.toys.by_norm import NormIndex

SEARCH = ("--search_backend", "by_norm")


def test_short_rows_are_not_looked_at() -> None:
    """Of rows that get shorter, those that can be in a list are few; ties stand in row order."""
    rng = np.random.default_rng(2)
    rows_ND = rng.integers(-3, 4, (2000, 4)).astype(np.float32)
    rows_ND[::7] *= 9
    queries_QD = rng.integers(-3, 4, (20, 4)).astype(np.float32)
    told: list[int] = []
    index = NormIndex(in_memory(rows_ND), told.append)
    scores_QK, rows_QK = index.search(queries_QD, 30, told.append)
    for query, products_N in enumerate(queries_QD @ rows_ND.T):
        best = sorted(range(2000), key=lambda row: (-products_N[row], row))[:30]
        assert rows_QK[query].tolist() == best and scores_QK[query].tolist() == products_N[best].tolist()
    assert sum(told) == 20 * 2000 and told[-1] > 20 * 1000, "half of the rows were passed over"


@settings(max_examples=60, deadline=None)
@given(problem=problem())
def test_it_owes_what_every_backend_owes(problem: tuple[np.ndarray, np.ndarray, np.ndarray, int]) -> None:
    """With the rows of passages folded, as `tests.utils.search.test_fold` asks of our own."""
    queries_QD, rows_ND, counts_P, k = problem
    with patch.dict(BACKENDS, by_norm=BackendWord("toy", "tests.toys.by_norm:NormBackend")):
        index = Index(in_memory(rows_ND, owners(counts_P)), SearchSettings("by_norm"))
    assert_best(index.search(queries_QD, k), brute_force(queries_QD, rows_ND, counts_P), k)


@pytest.mark.slow
def test_an_index_of_ones_own_goes_through_the_loop(
    shared_collection: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    arm = tmp_path / "arms" / "top"
    made = toy_loop("by_norm", tmp_path, shared_collection, tiny_tokenizer, "--data_type", 1)
    learning = ("--optimizer", "adamW", "--learning_rate", "3e-2", "--config_name", loop.write_static_config(made))
    loop.warm_up(made, "warmup", "static", *learning, *SEARCH, source=("--triples", write_triples(tmp_path)))
    loop.train_and_generate(made, "top", "static", "warmup", *loop.batch(1), negatives=(*SEARCH, "--keep_candidates"))
    last = arm / "checkpoints" / f"checkpoint-{loop.STEPS}"
    model = ("--model_name_or_path", last, "--output_dir", tmp_path / "eval", "--topk", 100)
    made.run("by_norm", "drivers.run_eval", *loop.common(made, "static"), *model, *SEARCH)
    outputs = [tmp_path / name for name in ("warmup/warmup.out", "arms/top/generator.out", "by_norm.out")]
    assert all("search: by_norm, exact, on cpu; " in path.read_text() for path in outputs)
    assert "search: faiss, exact, on cpu; " in (arm / "eval.out").read_text()
    by_norm, by_faiss = (ranked(directory / "dev.trec") for directory in (tmp_path / "eval", arm / "eval"))
    assert len(by_norm) == len(by_faiss) == 20 * 100
    assert np.mean([one[:3] == other[:3] for one, other in zip(by_norm, by_faiss, strict=True)]) > 0.99
    np.testing.assert_allclose([row[3] for row in by_norm], [row[3] for row in by_faiss], rtol=1e-4, atol=1e-4)
    check_candidates(arm / "ann_data")


def ranked(path: Path) -> list[tuple[str, int, str, float]]:
    """Query, rank, passage, score."""
    rows = (line.split() for line in path.read_text().splitlines())
    return [(query, int(rank), passage, float(score)) for query, _, passage, rank, score, _ in rows]


def check_candidates(ann_dir: Path) -> None:
    """The last refresh's are the best of its embeddings by a sort of all products."""
    candidates = read_candidates(ann_dir / "ann_candidates_2.npz")
    directory = max((ann_dir / "embeddings").glob("step-8-*"))
    rows_Q, queries_QD = read_query_rows(directory, query_name("train")), read_queries(directory, query_name("train"))
    shards = open_shards(directory, PASSAGES)
    products_QN = queries_QD @ all_at_once(stored_passages(shards, 0, len(shards))).T
    assert candidates.query_Q.tolist() == rows_Q.tolist()
    expected_QK = np.argsort(-products_QN, axis=1, kind="stable")[:, : candidates.passage_QK.shape[1]]
    assert (candidates.passage_QK == expected_QK).mean() > 0.99
    np.testing.assert_allclose(candidates.score_QK, np.take_along_axis(products_QN, expected_QK, 1), rtol=1e-4)
