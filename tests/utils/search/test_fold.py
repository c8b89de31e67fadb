"""utils.search.fold: passages of several rows, against a ranking of every passage by the best of its rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drivers.embeddings.distributed_search import retrieve, score_candidates
from drivers.embeddings.encode import PassageShare
from tests.processes_as_threads import on_processes
from utils.distributed.world import World
from utils.search import exact_torch, faiss_backend, scores
from utils.search.exact_torch import TorchIndex
from utils.search.faiss_backend import FlatIndex
from utils.search.fold import first_depth, sure_depth
from utils.search.index import Index
from utils.search.registry import BACKENDS
from utils.search.settings import SearchSettings
from utils.search.source import Passages, in_memory

NUMBERS = st.integers(-2, 2).map(float)  # float32 has every product exactly, and most scores are tied


@st.composite
def problem(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Queries, rows, how many of them each passage has, and k, which may be more than there are passages."""
    counts_P = np.array(draw(st.lists(st.integers(1, 6), min_size=1, max_size=14)))
    dim, queries = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    queries_QD = draw(hnp.arrays(np.float32, (queries, dim), elements=NUMBERS))
    rows_ND = draw(hnp.arrays(np.float32, (int(counts_P.sum()), dim), elements=NUMBERS))
    return queries_QD, rows_ND, counts_P, draw(st.integers(1, 17))


def brute_force(queries_QD: np.ndarray, rows_ND: np.ndarray, counts_P: np.ndarray) -> np.ndarray:
    """Each passage's score, by a loop over queries, passages and rows: [Q, P]."""
    scores_QP, starts = [], np.cumsum([0, *counts_P])
    for query in queries_QD.tolist():
        products = [sum(a * b for a, b in zip(query, row, strict=True)) for row in rows_ND.tolist()]
        scores_QP.append([max(products[start:stop]) for start, stop in pairwise(starts)])
    return np.array(scores_QP)


def best(scores_P: list[float], k: int) -> list[int]:
    return sorted(range(len(scores_P)), key=lambda passage: (-scores_P[passage], passage))[:k]


def assert_best(found: Any, scores_QP: np.ndarray, k: int) -> None:
    scores_QK, passages_QK = found
    expected = [best(scores_P, k) for scores_P in scores_QP.tolist()]
    assert passages_QK.tolist() == expected
    assert scores_QK.tolist() == np.take_along_axis(scores_QP, np.array(expected), 1).tolist()
    assert (scores_QK.dtype, passages_QK.dtype) == (np.float32, np.int64)


def owners(counts_P: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(counts_P)), counts_P)


@pytest.mark.parametrize("backend", [*BACKENDS])
@settings(max_examples=150, deadline=None)
@given(problem=problem(), block_rows=st.integers(1, 9))
def test_a_passage_stands_once_by_its_best_row(
    backend: str, problem: tuple[np.ndarray, np.ndarray, np.ndarray, int], block_rows: int
) -> None:
    queries_QD, rows_ND, counts_P, k = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_torch, "SMALLEST_BLOCK", 1)
        block_bytes = 4 * rows_ND.shape[1] * block_rows
        patch.setattr(SearchSettings, "passages_bytes", block_bytes)
        patch.setattr(faiss_backend, "cpu_block_bytes", lambda settings: block_bytes)
        index = Index(in_memory(rows_ND, owners(counts_P)), SearchSettings(backend))
        found = index.search(queries_QD, k)
    assert_best(found, brute_force(queries_QD, rows_ND, counts_P), k)


@pytest.mark.parametrize("backend", [*BACKENDS])
@settings(max_examples=40, deadline=None)
@given(problem=problem(), data=st.data())
def test_shares_of_passages_are_one_collection(
    backend: str, problem: tuple[np.ndarray, np.ndarray, np.ndarray, int], data: st.DataObject
) -> None:
    """One to four processes; shares of any size, some smaller than k, some with nothing in them."""
    queries_QD, rows_ND, counts_P, k = problem
    passages, starts = len(counts_P), np.cumsum([0, *counts_P])
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, passages), max_size=3))), passages]
    wanted_QK = data.draw(hnp.arrays(np.int64, (len(queries_QD), 5), elements=st.integers(-1, passages - 1)))

    def work(world: World) -> Any:
        first, stop = cuts[world.process : world.process + 2]
        held = in_memory(rows_ND[starts[first] : starts[stop]], owners(counts_P[first:stop]))
        share = PassageShare(held, first)
        found = retrieve(world, queries_QD, share, passages, k, SearchSettings(backend))
        return found, score_candidates(world, queries_QD, share, wanted_QK)

    scores_QP = brute_force(queries_QD, rows_ND, counts_P)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "ROWS_AT_ONCE", 4)
        results = on_processes(len(cuts) - 1, work, patch)
    expected_QK = np.where(wanted_QK < 0, -np.inf, np.take_along_axis(scores_QP, np.maximum(wanted_QK, 0), 1))
    for found, candidate_scores_QK in results:
        assert_best(found, scores_QP, k)
        assert candidate_scores_QK.tolist() == expected_QK.tolist()


@pytest.mark.parametrize("backend", [*BACKENDS])
def test_only_the_queries_that_lack_passages_are_searched_deeper(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A passage of a hundred rows next to fifty of one: its rows are all that the first query finds at first."""
    counts_P = np.array([1] * 25 + [100] + [1] * 25)
    rows_ND = np.zeros((150, 2), np.float32)
    rows_ND[:, 1] = np.arange(150) % 7
    rows_ND[25:125, 0] = 9
    queries_QD = np.array([[1, 0], [-1, 1], [0, 1]], np.float32)
    asked: list[tuple[int, int]] = []
    kind: Any = TorchIndex if backend == "torch" else FlatIndex
    search = kind.search

    def recorded(index: Any, queries_QD: np.ndarray, k: int, *others: Any) -> Any:
        asked.append((len(queries_QD), k))
        return search(index, queries_QD, k, *others)

    monkeypatch.setattr(kind, "search", recorded)
    told: list[int] = []
    found = Index(in_memory(rows_ND, owners(counts_P)), SearchSettings(backend)).search(queries_QD, 10, told.append)
    assert_best(found, brute_force(queries_QD, rows_ND, counts_P), 10)
    assert asked[0] == (3, 30) and asked[-1][1] <= 109, "150 rows of 51 passages; 100 + 8 + 1 rows are sure"
    assert [queries for queries, _ in asked] == sorted((queries for queries, _ in asked), reverse=True)
    assert asked[-1][0] < 3
    assert sum(told) == 3 * 150, "deeper searches are no further progress"


def test_as_many_rows_each_are_one_search() -> None:
    passages = in_memory(np.zeros((300, 1), np.float32), owners(np.full(100, 3)))
    assert first_depth(passages, 20) == sure_depth(passages, 20) == 3 * 19 + 1
    assert sure_depth(passages, 1) == 1 and sure_depth(passages, 100) == 298
    alone = in_memory(np.zeros((300, 1), np.float32))
    assert first_depth(alone, 20) == 20


def test_an_approximate_index_gives_the_passages_that_it_found() -> None:
    """With all cells visited it is exact; with one, a list may end early, and what is in it is scored as it is."""
    rng = np.random.default_rng(3)
    counts_P = rng.integers(1, 5, 120)
    rows_ND = rng.integers(-9, 10, (int(counts_P.sum()), 4)).astype(np.float32)
    queries_QD = rng.integers(-9, 10, (9, 4)).astype(np.float32)
    scores_QP = brute_force(queries_QD, rows_ND, counts_P)
    passages = in_memory(rows_ND, owners(counts_P))
    scores_QK, passages_QK = Index(passages, SearchSettings("faiss", "IVF8,Flat", nprobe=8)).search(queries_QD, 30)
    assert scores_QK.tolist() == (-np.sort(-scores_QP, 1)[:, :30]).tolist()
    assert all(len(set(passages_K)) == 30 for passages_K in passages_QK.tolist())
    scores_QK, passages_QK = Index(passages, SearchSettings("faiss", "IVF8,Flat", nprobe=1)).search(queries_QD, 90)
    assert (passages_QK < 0).any() and np.array_equal(passages_QK < 0, np.isneginf(scores_QK))
    for query, passages_K in enumerate(passages_QK):
        held = passages_K[passages_K >= 0]
        assert len(set(held)) == len(held)
        assert (scores_QK[query, : len(held)] <= scores_QP[query, held]).all(), "a row may have been missed"


@pytest.mark.parametrize("row_to_passage", [[0, 0, 2], [1, 1, 2], [0, 1, 0], [0, 1]])
def test_rows_that_are_not_passages_in_order_are_refused(row_to_passage: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 3 that count"):
        in_memory(np.zeros((3, 2), np.float32), np.array(row_to_passage))


def test_rows_of_passages() -> None:
    passages = in_memory(np.zeros((6, 1), np.float32), np.array([0, 0, 0, 1, 2, 2]))
    assert passages.count == 3
    first, stop = passages.rows_of(np.array([0, 1, 2, 3, -1]))
    assert list(zip(first, stop, strict=True))[:3] == [(0, 3), (3, 4), (4, 6)]
    assert (first == stop).tolist() == [False, False, False, True, True]
    empty = Passages(0, 1, lambda rows: iter(()), np.empty(0, np.int64))
    assert empty.count == 0
