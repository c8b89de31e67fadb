"""Exact search on a GPU against NumPy: ties, rounding, several blocks, the memory it takes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.gpu import CUDA, needs_cuda
from tests.utils.search.test_search import search
from utils.search.settings import GpuSearchFailed, SearchSettings

pytestmark = needs_cuda
MIB = 2**20


def on_gpu(memory_mib: int = 0) -> SearchSettings:
    return SearchSettings("torch", device=CUDA, memory_bytes=memory_mib * MIB)


def sorted_by_numpy(products_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows by score descending, ties by row."""
    rows_QK = np.argsort(-products_QN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products_QN, rows_QK, 1), rows_QK


@pytest.mark.parametrize("memory_mib", [0, 16], ids=["one block", "many blocks"])
@pytest.mark.parametrize("k", [1, 200, 3000])
def test_ties_are_in_passage_order(k: int, memory_mib: int) -> None:
    """Vectors of small integers: every product is exact, and a list's places are nearly all tied."""
    rng = np.random.default_rng(1)
    queries_QD, passages_ND = (rng.integers(-2, 3, (n, 8)).astype(np.float32) for n in (1500, 20_000))
    scores_QK, rows_QK = search(queries_QD, passages_ND, k, on_gpu(memory_mib))
    expected_scores_QK, expected_rows_QK = sorted_by_numpy(queries_QD @ passages_ND.T, k)
    np.testing.assert_array_equal(rows_QK, expected_rows_QK)
    np.testing.assert_array_equal(scores_QK, expected_scores_QK)


def test_scores_are_float32_s_and_no_better_passage_is_missing() -> None:
    """Products in tf32, which a GPU offers for float32, would be off by a thousandth."""
    rng = np.random.default_rng(2)
    queries_QD, passages_ND = (rng.standard_normal((n, 768)).astype(np.float32) for n in (300, 50_000))
    scores_QK, rows_QK = search(queries_QD, passages_ND, 100, on_gpu(64))
    products_QN = queries_QD.astype(np.float64) @ passages_ND.T.astype(np.float64)
    exact_QK, _ = sorted_by_numpy(products_QN, 100)
    within = 2e-6 * 768  # float32's rounding of a sum of so many products of about 1
    assert np.abs(scores_QK - np.take_along_axis(products_QN, rows_QK, 1)).max() < within
    assert np.abs(scores_QK - exact_QK).max() < within
    assert all(len(set(rows_K)) == 100 for rows_K in rows_QK.tolist())
    assert ((np.diff(scores_QK) < 0) | (np.diff(rows_QK) > 0)).all()


@pytest.mark.parametrize("memory_mib", [64, 512])
def test_a_search_stays_within_its_memory(memory_mib: int) -> None:
    """Next to queries and lists, which are in memory once for those so far and once for what is made of them."""
    rng = np.random.default_rng(3)
    queries_QD, passages_ND = (rng.standard_normal((n, 256)).astype(np.float32) for n in (4000, 200_000))
    search(queries_QD[:9], passages_ND[:999], 200, on_gpu(memory_mib))  # cuBLAS has its workspace
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(CUDA)
    torch.cuda.reset_peak_memory_stats(CUDA)
    search(queries_QD, passages_ND, 200, on_gpu(memory_mib))
    taken = torch.cuda.max_memory_allocated(CUDA) - before
    assert taken < queries_QD.nbytes + 2 * 8 * 4000 * 200 + memory_mib * MIB
    assert torch.cuda.memory_allocated(CUDA) == before


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(CUDA) + 32 * MIB) / total, CUDA)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    torch.cuda.empty_cache()


def test_memory_that_runs_out_is_told(little_memory: None) -> None:
    vectors_ND = np.ones((100_000, 256), np.float32)
    with pytest.raises(GpuSearchFailed, match=r"^cuda:0 cannot \(.*out of memory"):
        search(vectors_ND, vectors_ND, 10, on_gpu())
