"""Search by faiss, exact or by any of its indexes.

faiss does not promise an order of ties: a list of its whose last place is tied with a passage that is not in it is
searched again by `torch_top_k`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from utils.search.base import Backend, RowIndex
from utils.search.exact_torch import torch_top_k
from utils.search.faiss_index import (
    FLAT,
    LARGEST_GPU_K,
    check_index,
    faiss_has_gpu_support,
    faiss_refusal,
    gpu_refusal,
    make_index,
    on_gpu,
    reason_of,
)
from utils.search.ranked_lists import order_lists
from utils.search.settings import GpuSearchFailed, SearchSettings
from utils.search.source import Advance, Passages, all_at_once, no_progress, rows_in

QUERIES_PER_FAISS_CALL = 16384  # at most; faiss's own blocks are of 4,096; between calls progress is told
FAISS_BYTES_PER_QUERY = 4096  # the scores of faiss's own blocks, of 1,024 passages
FAISS_BYTES_PER_PLACE = 36  # a call's list, and faiss's reservoir of twice its length


class FaissBackend(Backend):
    """What --faiss_index asks for; on a GPU what faiss's GPU build has of it."""

    package = "faiss"
    options = ("faiss_index", "nprobe")

    def build(self, passages: Passages, settings: SearchSettings, advance: Advance) -> RowIndex:
        if settings.faiss_index == FLAT:
            return FlatIndex(passages, settings)
        return FactoryIndex(passages, settings, advance)

    def check(self, settings: SearchSettings, embedding_dim: int, rows: int) -> None:
        check_index(settings.faiss_index, embedding_dim, settings.nprobe, rows)

    def searches_on(self, device: torch.device) -> bool:
        return device.type == "cpu" or (device.type == "cuda" and faiss_has_gpu_support())

    def refusal(self, settings: SearchSettings, embedding_dim: int) -> str:
        faiss_index, device = settings.faiss_index, settings.device
        if device.type == "cpu" or faiss_index == FLAT:
            return ""
        reason = gpu_refusal(faiss_index, embedding_dim, settings.nprobe, device)
        return f"faiss has no {faiss_index} on {device} ({reason})" if reason else ""

    def largest_depth(self, settings: SearchSettings) -> int:
        """An exact search on a GPU goes deeper by torch."""
        is_bounded = settings.device.type == "cuda" and settings.faiss_index != FLAT
        return LARGEST_GPU_K if is_bounded else super().largest_depth(settings)

    def kind(self, settings: SearchSettings) -> str:
        if settings.faiss_index == FLAT:
            return super().kind(settings)
        return settings.faiss_index + (f", nprobe {settings.nprobe}" if settings.nprobe else "")


def cpu_block_bytes(settings: SearchSettings) -> int:
    """Of a block of passages on the CPU; each block costs a merge of all lists. On a GPU: ``passages_bytes``."""
    return settings.budget_bytes * 3 // 4


def lists_bytes(settings: SearchSettings) -> int:
    """Of what faiss makes next to the block."""
    return settings.budget_bytes // 4


@contextlib.contextmanager
def failures_on(device: torch.device) -> Iterator[None]:
    """GpuSearchFailed for faiss's errors on a GPU."""
    try:
        yield
    except RuntimeError as error:  # faiss has no type for memory that ran out, nor for what its GPU index lacks
        if device.type == "cpu":
            raise
        raise GpuSearchFailed(f"{device} cannot ({reason_of(error)})") from None


class FlatIndex:
    """Exact: goes through the passages in each search, a block at a time; on a GPU one index takes each block."""

    def __init__(self, passages: Passages, settings: SearchSettings) -> None:
        self.passages, self.settings, self.gpu_index = passages, settings, None

    def search(self, queries_QD: np.ndarray, k: int, advance: Advance = no_progress) -> tuple[np.ndarray, np.ndarray]:
        """One place more is searched, to see whether the last place is tied."""
        with failures_on(self.settings.device):
            return self.top_k(queries_QD, k, advance)

    def top_k(self, queries_QD: np.ndarray, k: int, advance: Advance) -> tuple[np.ndarray, np.ndarray]:
        settings, passages = self.settings, self.passages
        wanted = min(k + 1, passages.rows)
        if settings.device.type == "cuda" and wanted > LARGEST_GPU_K:
            return torch_top_k(queries_QD, passages, k, settings, advance)
        scores_QW, rows_QW = self.lists(queries_QD, wanted, advance)
        tied_Q = scores_QW[:, k - 1] == scores_QW[:, k] if wanted > k else np.zeros(len(scores_QW), bool)
        scores_QK, rows_QK = scores_QW[:, :k], rows_QW[:, :k]
        order_lists(scores_QK, rows_QK, settings.passages_bytes)
        if tied_Q.any():
            again = torch_top_k(queries_QD[tied_Q], passages, k, settings, lambda pairs: advance(0))
            scores_QK[tied_Q], rows_QK[tied_Q] = again
        return scores_QK, rows_QK

    def lists(self, queries_QD: np.ndarray, k: int, advance: Advance) -> tuple[np.ndarray, np.ndarray]:
        """The k best by score descending, in faiss's order of ties: of a block after the other, merged."""
        import faiss

        settings, passages = self.settings, self.passages
        if settings.device.type == "cuda" and self.gpu_index is None:
            self.gpu_index = on_gpu(faiss.IndexFlatIP(passages.embedding_dim), settings.device, lists_bytes(settings))
        block_bytes = cpu_block_bytes(settings) if self.gpu_index is None else settings.passages_bytes
        queries_at_once = lists_bytes(settings) // (FAISS_BYTES_PER_QUERY + FAISS_BYTES_PER_PLACE * k)
        merged, first = None, 0
        for held_MD in passages.blocks(rows_in(block_bytes, passages.embedding_dim)):
            block_MD = np.ascontiguousarray(held_MD, dtype=np.float32)
            search_block = searcher(self.gpu_index, block_MD, min(k, len(block_MD)))
            scores_QK, rows_QK = search_in_blocks(
                search_block, queries_QD, min(k, len(block_MD)), len(block_MD), advance, queries_at_once
            )
            if len(block_MD) == passages.rows:
                return scores_QK, rows_QK
            rows_QK += first
            merged = merged or faiss.ResultHeap(len(queries_QD), k, keep_max=True)
            merged.add_result(scores_QK, rows_QK)
            del scores_QK, rows_QK  # before there are the next block's
            first += len(block_MD)
        assert merged is not None, "there are passages"
        merged.finalize()
        return merged.D, merged.I

    def close(self) -> None:
        self.gpu_index = None


def searcher(index, block_MD: np.ndarray, k: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:  # type: ignore[no-untyped-def]
    """Exact search of one block by the GPU's index, or (None) where the block is: an index would copy it first."""
    import faiss

    if index is None:
        return lambda queries_QD: faiss.knn(queries_QD, block_MD, k, metric=faiss.METRIC_INNER_PRODUCT)
    index.reset()
    index.add(block_MD)
    return partial(index.search, k=k)


class FactoryIndex:
    """What faiss builds by ``settings.faiss_index``, trained on the rows themselves.

    Such an index is made of all rows of the share, and holds them (or their codes) in memory.
    UserError where faiss refuses on the CPU, such as more cells than passages to train them on; GpuSearchFailed on a
    GPU.
    """

    def __init__(self, passages: Passages, settings: SearchSettings, advance: Advance = no_progress) -> None:
        self.passages, self.settings = passages, settings
        with self.refusals():
            self.index = filled_index(passages, settings, advance)

    def refusals(self) -> contextlib.AbstractContextManager[None]:
        if self.settings.device.type == "cuda":
            return failures_on(self.settings.device)
        return faiss_refusal(f"{self.settings.faiss_index} over {self.passages.rows} embeddings")

    def search(self, queries_QD: np.ndarray, k: int, advance: Advance = no_progress) -> tuple[np.ndarray, np.ndarray]:
        with self.refusals():
            found = search_in_blocks(partial(self.index.search, k=k), queries_QD, k, self.index.ntotal, advance)
        order_lists(*found, self.settings.passages_bytes)
        return found

    def close(self) -> None:
        self.index = None


def filled_index(passages: Passages, settings: SearchSettings, advance: Advance):  # type: ignore[no-untyped-def]
    """faiss's index, trained, with all rows in it."""
    rows = rows_in(settings.passages_bytes, passages.embedding_dim)
    index = make_index(settings.faiss_index, passages.embedding_dim, settings.nprobe)
    if settings.device.type == "cuda":
        index = on_gpu(index, settings.device, lists_bytes(settings))
    if not index.is_trained:
        index.train(all_at_once(passages, rows))
    for block_MD in passages.blocks(rows):
        index.add(np.ascontiguousarray(block_MD, dtype=np.float32))
        advance(0)
    return index


def search_in_blocks(
    search_block: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    queries_QD: np.ndarray,
    k: int,
    rows: int,
    advance: Advance,
    at_once: int = QUERIES_PER_FAISS_CALL,
) -> tuple[np.ndarray, np.ndarray]:
    """The lists that faiss gives for some queries at a time.

    Args:
        search_block: faiss's own search of float32 queries [M, D].
        queries_QD: float.
        k: the length of its lists.
        rows: how many are searched, for ``advance``.
        advance: told the pairs done after each call.
        at_once: queries of a call, at most QUERIES_PER_FAISS_CALL.

    Returns:
        scores_QK float32 and rows_QK int64, as faiss orders them.
    """
    scores_QK, rows_QK = np.empty((len(queries_QD), k), np.float32), np.empty((len(queries_QD), k), np.int64)
    at_once = max(1, min(at_once, QUERIES_PER_FAISS_CALL))
    for start in range(0, len(queries_QD), at_once):
        block_QD = np.ascontiguousarray(queries_QD[start : start + at_once], dtype=np.float32)
        stop = start + len(block_QD)
        scores_QK[start:stop], rows_QK[start:stop] = search_block(block_QD)
        advance(len(block_QD) * rows)
    return scores_QK, rows_QK
