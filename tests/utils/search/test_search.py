"""utils.search against a brute-force loop over every query and passage, exact ties included."""

from __future__ import annotations

import contextlib
import importlib.util
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.processes_as_threads import CPU
from utils.errors import UserError
from utils.search import exact_torch, faiss_backend
from utils.search.exact_torch import BYTES_PER_SCORE, from_keys, to_keys
from utils.search.faiss_index import check_index
from utils.search.index import Index
from utils.search.ranked_lists import in_passage_order, merge_top_k
from utils.search.registry import BACKENDS, choose_backend
from utils.search.settings import SMALLEST_MEMORY_BYTES, SearchSettings
from utils.search.source import Passages, in_memory

EXACT = [*BACKENDS]
if torch.cuda.is_available():
    EXACT.append("cuda")


def search(
    queries_QD: np.ndarray, passages: np.ndarray | Passages, k: int, options: SearchSettings, *more: Any
) -> tuple[np.ndarray, np.ndarray]:
    source = passages if isinstance(passages, Passages) else in_memory(passages)
    with contextlib.closing(Index(source, options)) as index:
        return index.search(queries_QD, k, *more)


def options_of(backend: str, **values: Any) -> SearchSettings:
    if backend == "cuda":
        return SearchSettings("torch", device=torch.device("cuda"), **values)
    return SearchSettings(backend, **values)


def brute_force(queries_QD: np.ndarray, passages_ND: np.ndarray, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """Every product in Python numbers; by score descending, then passage ascending."""
    scores, rows = [], []
    for query in queries_QD.tolist():
        products = [sum(a * b for a, b in zip(query, passage, strict=True)) for passage in passages_ND.tolist()]
        order = sorted(range(len(products)), key=lambda row: (-products[row], row))[:k]
        rows.append(order)
        scores.append([products[row] for row in order])
    return scores, rows


def assert_exact(queries_QD: np.ndarray, passages_ND: np.ndarray, k: int, options: SearchSettings) -> None:
    scores_QK, rows_QK = search(queries_QD, passages_ND, k, options)
    expected_scores, expected_rows = brute_force(queries_QD, passages_ND, k)
    assert rows_QK.tolist() == expected_rows
    assert scores_QK.tolist() == expected_scores
    assert (scores_QK.dtype, rows_QK.dtype) == (np.float32, np.int64)


@st.composite
def integer_problem(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Vectors of the integers -2..2: float32 has every product exactly, and most scores are tied."""
    dims, queries, passages = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 25))
    numbers = st.integers(-2, 2).map(float)
    queries_QD = draw(hnp.arrays(np.float32, (queries, dims), elements=numbers))
    passages_ND = draw(hnp.arrays(np.float32, (passages, dims), elements=numbers))
    return queries_QD, passages_ND, draw(st.integers(1, 30))


@pytest.mark.parametrize("backend", EXACT)
@settings(max_examples=60, deadline=None)
@given(problem=integer_problem())
def test_exact_with_ties(backend: str, problem: tuple[np.ndarray, np.ndarray, int]) -> None:
    assert_exact(*problem, options_of(backend))


@pytest.mark.parametrize("backend", EXACT)
@settings(max_examples=40, deadline=None)
@given(
    problem=integer_problem(),
    block_rows=st.integers(1, 9),
    index_rows=st.integers(1, 9),
    queries_per_block=st.integers(1, 3),
)
def test_blocks_do_not_show(
    backend: str,
    problem: tuple[np.ndarray, np.ndarray, int],
    block_rows: int,
    index_rows: int,
    queries_per_block: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_torch, "QUERIES_PER_BLOCK", queries_per_block)
        patch.setattr(exact_torch, "SMALLEST_BLOCK", 1)
        patch.setattr(faiss_backend, "QUERIES_PER_FAISS_CALL", queries_per_block)
        block_bytes = BYTES_PER_SCORE * queries_per_block * block_rows
        patch.setattr(exact_torch, "working_bytes", lambda settings: block_bytes)
        patch.setattr(SearchSettings, "passages_bytes", 4 * problem[1].shape[1] * block_rows)
        patch.setattr(faiss_backend, "cpu_block_bytes", lambda settings: 4 * problem[1].shape[1] * index_rows)
        assert_exact(*problem, options_of(backend))


@settings(max_examples=60, deadline=None)
@given(problem=integer_problem(), data=st.data())
def test_merging_shares_is_one_search(problem: tuple[np.ndarray, np.ndarray, int], data: st.DataObject) -> None:
    """Shares of any size, some smaller than k and padded with -1, one with nothing in it."""
    queries_QD, passages_ND, k = problem
    k = min(k, len(passages_ND))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(passages_ND)), max_size=4)))
    scores_parts, rows_parts = [], []
    for start, stop in zip([0, *cuts], [*cuts, len(passages_ND)], strict=True):
        scores_QK, rows_QK = search(queries_QD, passages_ND[start:stop], k, SearchSettings("torch"))
        missing = ((0, 0), (0, k - rows_QK.shape[1]))
        scores_parts.append(np.pad(scores_QK, missing, constant_values=-np.inf))
        rows_parts.append(np.pad(rows_QK + start, missing, constant_values=-1))
    merged_scores, merged_rows = merge_top_k(scores_parts, rows_parts, k)
    expected_scores, expected_rows = brute_force(queries_QD, passages_ND, k)
    assert merged_rows.tolist() == expected_rows
    assert merged_scores.tolist() == expected_scores


@pytest.mark.parametrize("backend", EXACT)
def test_more_asked_than_there_are_passages(backend: str) -> None:
    rng = np.random.default_rng(1)
    assert_exact(
        rng.integers(-3, 4, (3, 5)).astype(np.float32),
        rng.integers(-3, 4, (4, 5)).astype(np.float32),
        9,
        options_of(backend),
    )


@pytest.mark.parametrize("backend", EXACT)
def test_one_passage(backend: str) -> None:
    scores_QK, rows_QK = search(np.ones((2, 3), np.float32), np.full((1, 3), 2, np.float32), 5, options_of(backend))
    assert rows_QK.tolist() == [[0], [0]]
    assert scores_QK.tolist() == [[6.0], [6.0]]


@pytest.mark.parametrize("backend", EXACT)
def test_no_passages_and_no_queries(backend: str) -> None:
    passages_ND = np.ones((4, 3), np.float32)
    for queries, passages, shape in ((2, 0, (2, 0)), (0, 4, (0, 3)), (0, 0, (0, 0))):
        scores_QK, rows_QK = search(passages_ND[:queries], passages_ND[:passages], 3, options_of(backend))
        assert scores_QK.shape == rows_QK.shape == shape
        assert (scores_QK.dtype, rows_QK.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("k", [1, 7, 300])
def test_identical_embeddings_come_in_passage_order(backend: str, k: int) -> None:
    queries_QD, passages_ND = np.ones((3, 8), np.float32), np.ones((300, 8), np.float32)
    _, rows_QK = search(queries_QD, passages_ND, k, options_of(backend))
    assert rows_QK.tolist() == [list(range(k))] * 3


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("direction", [1, -1])
def test_lists_that_every_passage_enters_or_none(backend: str, direction: int) -> None:
    """Scores that rise with every passage of several blocks, three passages of each score; and that fall."""
    steps_N = (np.arange(9000) // 3 * direction).astype(np.float32)
    _, rows_QK = search(np.ones((2, 1), np.float32), steps_N[:, None], 50, options_of(backend))
    assert rows_QK.tolist() == [sorted(range(9000), key=lambda row: (-steps_N[row], row))[:50]] * 2


@given(
    first=st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 2**32 - 1)),
    second=st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 2**32 - 1)),
)
def test_keys_order_as_score_then_row(first: tuple[float, int], second: tuple[float, int]) -> None:
    scores_2 = torch.tensor([first[0], second[0]], dtype=torch.float32)
    rows_2 = torch.tensor([first[1], second[1]])
    keys_2 = to_keys(scores_2, rows_2)
    assert (keys_2[0] > keys_2[1]).item() == ((first[0], -first[1]) > (second[0], -second[1]))
    found_scores, found_rows = from_keys(keys_2)
    assert torch.equal(found_scores, scores_2) and torch.equal(found_rows, rows_2)


def test_torch_goes_through_the_collection_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    to_device = exact_torch.to_device

    def counted(array: np.ndarray, device: torch.device) -> torch.Tensor:
        moved.append(len(array))
        return to_device(array, device)

    monkeypatch.setattr(exact_torch, "to_device", counted)
    rng = np.random.default_rng(6)
    queries_QD, passages_ND = (rng.standard_normal((n, 4)).astype(np.float32) for n in (3000, 5000))
    search(queries_QD, passages_ND, 10, SearchSettings("torch"))
    assert sum(moved) == 3000 + 5000


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("sizes", [[500], [1] * 500, [3, 250, 1, 246], [200, 300]])
def test_blocks_in_one_buffer_are_one_search(backend: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of any size that overwrite each other, as a reader of files gives them; some of fewer than k passages."""
    monkeypatch.setattr(faiss_backend, "cpu_block_bytes", lambda settings: 4 * 6 * 150)
    rng = np.random.default_rng(8)
    queries_QD, passages_ND = (rng.integers(-3, 4, (n, 6)).astype(np.float32) for n in (15, 500))

    def blocks(rows: int) -> Any:
        buffer_MD = np.empty((max(sizes), 6), np.float32)
        for first, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            buffer_MD[:size] = passages_ND[first : first + size]
            yield buffer_MD[:size]

    scores_QK, rows_QK = search(queries_QD, Passages(500, 6, blocks), 40, options_of(backend))
    expected_scores, expected_rows = brute_force(queries_QD, passages_ND, 40)
    assert rows_QK.tolist() == expected_rows
    assert scores_QK.tolist() == expected_scores


@pytest.mark.parametrize(
    ("options", "last"),
    [(SearchSettings("torch"), 10), (SearchSettings("faiss"), 11), (SearchSettings("faiss", "HNSW8"), 11)],
)
def test_a_search_can_be_left(options: SearchSettings, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After as little as one block of ten; in faiss's second pass, over tied lists, as well."""
    monkeypatch.setattr(SearchSettings, "passages_bytes", 4 * 2 * 10)
    monkeypatch.setattr(faiss_backend, "cpu_block_bytes", lambda settings: 4 * 2 * 10)
    told: list[int] = []

    def leave(pairs: int) -> None:
        told.append(pairs)
        if len(told) == stop_at:
            raise ZeroDivisionError

    vectors_ND = np.ones((100, 2), np.float32)  # all tied: faiss's lists are searched again
    for stop_at in (1, last):
        told.clear()
        with pytest.raises(ZeroDivisionError):
            search(vectors_ND, vectors_ND, 5, options, leave)
        if options.faiss_index == "Flat":
            assert sum(told) <= 100 * 100
        assert len(told) == stop_at


def test_torch_copies_only_what_it_must(tmp_path: Any) -> None:
    mapped_ND = np.lib.format.open_memmap(tmp_path / "new.npy", mode="w+", dtype=np.float32, shape=(4, 3))
    found = exact_torch.to_device(mapped_ND[1:3], torch.device("cpu"))
    assert np.shares_memory(found.numpy(), mapped_ND)
    for array in (np.load(tmp_path / "new.npy", mmap_mode="r"), np.zeros((4, 3)), mapped_ND[:, ::2]):
        assert not np.shares_memory(exact_torch.to_device(array, torch.device("cpu")).numpy(), array)


@pytest.mark.parametrize(
    "options", [SearchSettings("torch"), SearchSettings("faiss"), SearchSettings("faiss", "IVF4,Flat", nprobe=4)]
)
def test_progress_adds_up(options: SearchSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_backend, "QUERIES_PER_FAISS_CALL", 100)
    told: list[int] = []
    rng = np.random.default_rng(7)
    queries_QD, passages_ND = (rng.standard_normal((n, 4)).astype(np.float32) for n in (250, 5000))
    search(queries_QD, passages_ND, 10, options, told.append)
    assert sum(told) == 250 * 5000 and len(told) > 1


def test_more_than_a_gpu_index_can_return_is_searched_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    monkeypatch.setattr(faiss, "StandardGpuResources", None, raising=False)
    asked: list[Any] = []

    def top_k(queries_QD: Any, passages: Any, k: int, options: SearchSettings, advance: Any) -> Any:
        asked.append((options.device, k))
        return np.zeros((1, k), np.float32), np.zeros((1, k), np.int64)

    monkeypatch.setattr(faiss_backend, "torch_top_k", top_k)
    options = SearchSettings("faiss", device=torch.device("cuda", 0))
    search(np.ones((1, 2), np.float32), np.ones((3000, 2), np.float32), 2048, options)
    assert asked == [(torch.device("cuda", 0), 2048)]


def test_backends_agree_on_real_vectors_and_mapped_files(tmp_path: Any) -> None:
    """Real numbers, read-only memory map, float64 queries: the same passages, scores to float32's precision."""
    rng = np.random.default_rng(2)
    np.save(tmp_path / "passages.npy", rng.standard_normal((500, 16)).astype(np.float32))
    passages_ND = np.load(tmp_path / "passages.npy", mmap_mode="r")
    queries_QD = rng.standard_normal((20, 16))
    products_QN = queries_QD @ np.asarray(passages_ND, np.float64).T
    expected_QK = np.argsort(-products_QN, axis=1)[:, :50]
    for backend in EXACT:
        scores_QK, rows_QK = search(queries_QD, passages_ND, 50, options_of(backend))
        assert np.array_equal(rows_QK, expected_QK), backend
        assert np.allclose(scores_QK, np.take_along_axis(products_QN, expected_QK, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_model_is_named(backend: str, bad: float) -> None:
    good_ND = np.ones((4, 3), np.float32)
    bad_ND = good_ND.copy()
    bad_ND[2, 1] = bad
    with pytest.raises(UserError, match="diverged"):  # passages are looked at where they are encoded
        search(bad_ND, good_ND, 2, options_of(backend))


def test_an_ivf_index_that_visits_all_cells_is_exact() -> None:
    rng = np.random.default_rng(3)
    passages_ND, queries_QD = (rng.integers(-4, 5, (n, 6)).astype(np.float32) for n in (400, 10))
    scores_QK, rows_QK = search(queries_QD, passages_ND, 20, SearchSettings("faiss", "IVF8,Flat", nprobe=8))
    expected_scores, _ = brute_force(queries_QD, passages_ND, 20)
    assert scores_QK.tolist() == expected_scores
    for scores_K, rows_K, query_D in zip(scores_QK, rows_QK, queries_QD, strict=True):
        assert len(set(rows_K.tolist())) == 20
        assert (passages_ND[rows_K] @ query_D).tolist() == scores_K.tolist()
        assert list(zip(-scores_K, rows_K, strict=True)) == sorted(zip(-scores_K, rows_K, strict=True))


def test_fewer_cells_find_less_and_never_other_scores() -> None:
    """An approximate index may miss; what it returns is scored exactly, and what it lacks is -1 with -inf."""
    rng = np.random.default_rng(4)
    passages_ND, queries_QD = (rng.standard_normal((n, 4)).astype(np.float32) for n in (400, 10))
    scores_QK, rows_QK = search(queries_QD, passages_ND, 300, SearchSettings("faiss", "IVF8,Flat", nprobe=1))
    assert (rows_QK < 0).any()
    assert np.array_equal(rows_QK < 0, np.isneginf(scores_QK))
    for scores_K, rows_K, query_D in zip(scores_QK, rows_QK, queries_QD, strict=True):
        found = rows_K >= 0
        assert not (np.diff(found.astype(int)) > 0).any(), "missing entries stand last"
        assert np.allclose(passages_ND[rows_K[found]] @ query_D, scores_K[found], atol=1e-5)


def test_order_of_missing_entries_and_of_signed_zeros() -> None:
    scores_QK, rows_QK = in_passage_order(
        np.array([[-np.inf, 0.0, -0.0, 1.0, -np.inf]], np.float32), np.array([[-1, 9, 2, 5, 7]])
    )
    assert rows_QK.tolist() == [[5, 2, 9, 7, -1]]
    assert scores_QK.tolist() == [[1.0, 0.0, 0.0, -np.inf, -np.inf]]


MANY = 10_000  # rows, more than any index here is trained on


@pytest.mark.parametrize("index", ["bogus", "", "IVF", "IVF4,PQ3"])
def test_an_index_string_that_faiss_cannot_read(index: str) -> None:
    with pytest.raises(UserError, match=f"--faiss_index {index}") as caught:
        check_index(index, 8, 0, MANY)
    assert "\n" not in str(caught.value) and ".cpp" not in str(caught.value)


def test_nprobe_needs_cells() -> None:
    check_index("IVF4,Flat", 8, 3, MANY)
    check_index("Flat", 8, 0, MANY)
    with pytest.raises(UserError, match="--nprobe 3"):
        check_index("HNSW8", 8, 3, MANY)
    with pytest.raises(UserError, match=r"--nprobe 3 .* --faiss_index is Flat"):
        check_index("Flat", 8, 3, MANY)


@pytest.mark.parametrize("index", ["IVF50,Flat", "PQ4", "PCA9,Flat", "IVF0,Flat", "IDMap,Flat"])
def test_an_index_that_cannot_be_made_of_these_passages(index: str) -> None:
    passages_ND = np.random.default_rng(5).standard_normal((20, 8)).astype(np.float32)
    with pytest.raises(UserError, match=f"--faiss_index {index} over 20 embeddings") as caught:
        search(passages_ND[:2], passages_ND, 3, SearchSettings("faiss", index))
    assert "\n" not in str(caught.value) and ".cpp" not in str(caught.value)


@pytest.mark.parametrize("index", ["IVF50,Flat", "PCA4,IVF50,PQ2x4", "IDMap,IVF50,Flat"])
def test_more_cells_than_passages_are_found_before_encoding(index: str) -> None:
    check_index(index, 8, 0, 50)
    check_index(index, 8, 0, MANY)
    with pytest.raises(UserError, match="has 50 cells, one process holds 49 embeddings"):
        check_index(index, 8, 0, 49)
    check_index("HNSW8", 8, 0, 1)


def chosen(backend: str, faiss_index: str = "Flat", nprobe: int = 0, device: torch.device = CPU) -> str:
    return choose_backend(SearchSettings(backend, faiss_index, nprobe, device)).backend


def test_choosing_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A faiss without GPU support would leave the GPU idle: an exact search is torch's then."""
    import faiss

    def described(backend: str, faiss_index: str = "Flat", nprobe: int = 0) -> str:
        settings = SearchSettings(backend, faiss_index, nprobe, gpu)
        return Index(in_memory(np.ones((4, 3), np.float32)), settings).describe(1)

    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    gpu = torch.device("cuda", 1)
    assert chosen("auto", device=gpu) == "torch"
    assert chosen("auto", "IVF4,Flat", device=gpu) == "faiss"
    assert chosen("faiss", device=gpu) == "faiss"
    assert described("faiss", "IVF4,Flat", 2) == "faiss, IVF4,Flat, nprobe 2, on cpu"
    monkeypatch.setattr(faiss, "StandardGpuResources", None, raising=False)
    assert chosen("auto", device=gpu) == "faiss"
    assert described("faiss") == "faiss, exact, on cuda:1"
    assert described("torch") == "torch, exact, on cuda:1"


def test_choosing_with_faiss() -> None:
    assert chosen("auto") == "faiss"
    assert chosen("faiss", "IVF4,Flat", 2) == "faiss"
    assert chosen("torch") == "torch"
    with pytest.raises(UserError, match="--faiss_index IVF4,Flat needs faiss, but --search_backend is torch"):
        chosen("torch", "IVF4,Flat")
    with pytest.raises(UserError, match="--nprobe 3 needs faiss, but --search_backend is torch"):
        chosen("torch", nprobe=3)
    assert chosen("auto", nprobe=3) == "faiss", "which says that Flat has no cells"


def test_choosing_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else find_spec(name))
    assert chosen("auto") == "torch"
    assert chosen("torch") == "torch"
    for wanted, faiss_index in (("faiss", "Flat"), ("auto", "IVF4,Flat")):
        with pytest.raises(UserError, match="faiss is not installed"):
            chosen(wanted, faiss_index)
    with pytest.raises(UserError, match="--faiss_index IVF4,Flat needs faiss, but --search_backend is torch"):
        chosen("torch", "IVF4,Flat")


@pytest.mark.parametrize("backend", EXACT)
def test_scores_that_overflow_are_refused(backend: str) -> None:
    """Of embeddings as large as may be no score is infinite; of larger ones on disk it is found in the lists."""
    rows_XD = np.random.default_rng(5).standard_normal((30, 64))
    unit_XD = rows_XD / np.linalg.norm(rows_XD, axis=1, keepdims=True)
    allowed_XD = (unit_XD * 0.999e18).astype(np.float32)
    scores_QK, rows_QK = search(allowed_XD[:5], allowed_XD, 7, options_of(backend))
    expected_QK = np.sort(allowed_XD[:5].astype(np.float64) @ allowed_XD.T.astype(np.float64))[:, ::-1][:, :7]
    assert np.isfinite(scores_QK).all() and rows_QK[:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(scores_QK, expected_QK, rtol=1e-4, atol=1e30)
    with pytest.raises(UserError, match=r"embeddings of queries have norms of up to 1e\+20"):
        search((unit_XD[:5] * 1e20).astype(np.float32), allowed_XD, 7, options_of(backend))
    with pytest.raises(UserError, match="scores are not finite"):
        search(allowed_XD[:5], (unit_XD * 1e37).astype(np.float32), 7, options_of(backend))


def test_lists_are_looked_at_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a million queries with 500 candidates each have lists of 3 GB: no copy or mask of them fits the budget."""
    queries, k = 20_000, 200
    scores_QK, rows_QK = np.ones((queries, k), np.float32), np.zeros((queries, k), np.int64)
    scores_QK[7, 150:], rows_QK[7, 150:] = -np.inf, -1  # an approximate index found fewer
    given = SimpleNamespace(search=lambda *arguments: (scores_QK, rows_QK), close=lambda: None)
    monkeypatch.setattr(exact_torch, "TorchIndex", lambda *arguments: given)
    options = SearchSettings("torch", memory_bytes=SMALLEST_MEMORY_BYTES)
    queries_QD, passages_ND = np.ones((queries, 2), np.float32), np.ones((k, 2), np.float32)
    tracemalloc.start()
    search(queries_QD, passages_ND, k, options)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < options.passages_bytes < scores_QK.nbytes // 4
    scores_QK[-1, -1] = np.inf
    with pytest.raises(UserError, match="scores are not finite"):
        search(queries_QD, passages_ND, k, options)


@pytest.mark.parametrize(
    ("options", "blocks", "lists"),
    [
        (SearchSettings("faiss"), 1, 1),
        (SearchSettings("faiss"), 2, 2),
        (SearchSettings("faiss", "IVF2,Flat", 2), 1, 1),
    ],
)
def test_lists_are_in_memory_as_often_as_it_says(
    options: SearchSettings, blocks: int, lists: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_backend, "QUERIES_PER_FAISS_CALL", 1000)
    queries, k, passages = 8_000, 200, 600
    options = replace(options, memory_bytes=SMALLEST_MEMORY_BYTES)
    rng = np.random.default_rng(11)
    queries_QD, passages_ND = (rng.integers(-999, 1000, (n, 4)).astype(np.float32) for n in (queries, passages))
    rows = passages // blocks
    source = Passages(passages, 4, lambda _: (passages_ND[start : start + rows] for start in range(0, passages, rows)))
    search(queries_QD[:9], source, k, options)  # libraries are loaded
    tracemalloc.start()
    scores_QK, rows_QK = search(queries_QD, source, k, options)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < lists * 12 * queries * (k + 1) + options.memory_bytes // 2
    products_QN = queries_QD @ passages_ND.T
    assert (np.diff(scores_QK) <= 0).all()
    np.testing.assert_array_equal(scores_QK, np.take_along_axis(products_QN, rows_QK, 1))
    assert ((np.diff(scores_QK) < 0) | (np.diff(rows_QK) > 0)).all(), "ties are in passage order"
