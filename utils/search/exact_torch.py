"""Exact search by torch: a matrix product a block, and one number for a score and its row, so that nothing is tied."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import numpy as np
import torch

from utils.search.base import Backend, RowIndex
from utils.search.settings import GpuSearchFailed, SearchSettings
from utils.search.source import Advance, Passages, no_progress, rows_in

BYTES_PER_SCORE = 64  # where every score of a block passes for a candidate; 4 where none does
QUERIES_PER_BLOCK = 1024
SMALLEST_BLOCK = 1024  # passages
OUT_OF_MEMORY = re.compile("out of memory|ALLOC_FAILED")  # of torch, CUDA and cuBLAS


class TorchBackend(Backend):
    """Exact, on the CPU or a GPU."""

    def build(self, passages: Passages, settings: SearchSettings, advance: Advance) -> RowIndex:
        return TorchIndex(passages, settings)

    def searches_on(self, device: torch.device) -> bool:
        return device.type in ("cpu", "cuda")


class TorchIndex:
    """Goes through the passages in each search, a block at a time."""

    def __init__(self, passages: Passages, settings: SearchSettings) -> None:
        self.passages, self.settings = passages, settings

    def search(self, queries_QD: np.ndarray, k: int, advance: Advance = no_progress) -> tuple[np.ndarray, np.ndarray]:
        return torch_top_k(queries_QD, self.passages, k, self.settings, advance)

    def close(self) -> None:
        """It holds nothing."""


@contextlib.contextmanager
def memory_failures_on(device: torch.device) -> Iterator[None]:
    """GpuSearchFailed where a GPU's memory runs out. Any other error on it is a fault, which no CPU should hide."""
    try:
        yield
    except RuntimeError as error:  # torch has a type for what its own allocator lacks, CUDA's libraries have others
        reason = str(error).partition(". GPU ")[0].partition("\n")[0]
        if device.type == "cpu" or not OUT_OF_MEMORY.search(reason):
            raise
        raise GpuSearchFailed(f"{device} cannot ({reason})") from None


def torch_top_k(
    queries_QD: np.ndarray, passages: Passages, k: int, settings: SearchSettings, advance: Advance = no_progress
) -> tuple[np.ndarray, np.ndarray]:
    """Exact top-k by matrix product. The collection is gone through once.

    Args:
        queries_QD: float, one at least.
        passages: less than 2**32 rows.
        k: from 1 to the number of rows.
        settings: ``device``, and the memory next to queries and lists.
        advance: told the pairs of a query and a row that are done; what it raises ends the search.

    Returns:
        scores_QK float32 and rows_QK int64, best first, ties by row.

    Raises:
        GpuSearchFailed: where a GPU's memory runs out.
    """
    device, scores = settings.device, max(1, working_bytes(settings) // BYTES_PER_SCORE)
    at_once = min(QUERIES_PER_BLOCK, max(1, scores // max(k, SMALLEST_BLOCK)))
    with memory_failures_on(device):
        blocks = [
            to_device(queries_QD[start : start + at_once], device) for start in range(0, len(queries_QD), at_once)
        ]
        best = [torch.empty((len(block_QD), 0), dtype=torch.int64, device=device) for block_QD in blocks]
        for first, rows_MD in growing_blocks(passages, settings, k, widest=max(k, scores // at_once)):
            passages_MD = to_device(rows_MD, device)
            for number, block_QD in enumerate(blocks):
                best[number] = best_keys(best[number], block_QD @ passages_MD.T, first, k)
                advance(len(block_QD) * len(passages_MD))
        return lists_of_keys(best)


def growing_blocks(
    passages: Passages, settings: SearchSettings, k: int, widest: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of passages that grow, as fewer of their scores reach a list's last place.

    Args:
        passages: what is searched.
        settings: how much memory a block may take.
        k: how long the lists are.
        widest: the most rows of a block.

    Returns:
        The number of a block's first row, and its rows, float [M, D].
    """
    first = 0
    for held_MD in passages.blocks(rows_in(settings.passages_bytes, passages.embedding_dim)):
        at = 0
        while at < len(held_MD):
            width = min(widest, max(k, first // 2, SMALLEST_BLOCK))
            block_MD = held_MD[at : at + width]
            yield first, block_MD
            at, first = at + len(block_MD), first + len(block_MD)


def working_bytes(settings: SearchSettings) -> int:
    """Of what is made next to a block of passages."""
    return settings.budget_bytes // 2


def lists_of_keys(best: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted scores_QK and rows_QK of the keys of several blocks of queries, which are given up one by one."""
    shape = sum(map(len, best)), best[0].shape[1]
    scores_QK, rows_QK, start = np.empty(shape, np.float32), np.empty(shape, np.int64), 0
    while best:
        scores_MK, rows_MK = from_keys(torch.sort(best.pop(0), dim=1, descending=True).values)
        part = slice(start, start + len(rows_MK))
        scores_QK[part], rows_QK[part] = scores_MK.cpu().numpy(), rows_MK.cpu().numpy()
        start = part.stop
    return scores_QK, rows_QK


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """float32; on the CPU the array's own memory where it is writable (torch accepts no other)."""
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"])).to(device)


def best_keys(keys_QK: torch.Tensor, scores_QM: torch.Tensor, first: int, k: int) -> torch.Tensor:
    """The k largest keys of those so far and of a block's.

    Args:
        keys_QK: int64, of `to_keys`, in any order; fewer than k in a row while fewer rows have been seen.
        scores_QM: float32, of the block, whose rows come behind all that have keys.
        first: the block's first row.
        k: how many are kept.

    Returns:
        The same of all rows so far, in any order.
    """
    if keys_QK.shape[1] < k:
        rows_M = torch.arange(first, first + scores_QM.shape[1], device=scores_QM.device)
        pool_QP = torch.cat([keys_QK, to_keys(scores_QM, rows_M)], 1)
        return torch.topk(pool_QP, min(k, pool_QP.shape[1]), dim=1, sorted=False).values
    last_Q1, _ = from_keys(keys_QK.min(1, keepdim=True).values)
    # A later passage of the same score stands behind the list's last: only larger scores can enter.
    query_H, column_H = torch.nonzero(scores_QM > last_Q1, as_tuple=True)
    hits_Q = torch.bincount(query_H, minlength=len(keys_QK))
    most = int(hits_Q.max())
    if not most:
        return keys_QK
    place_H = torch.arange(len(query_H), device=query_H.device) - (torch.cumsum(hits_Q, 0) - hits_Q)[query_H]
    pool_QP = keys_QK.new_full((len(keys_QK), k + most), torch.iinfo(torch.int64).min)
    pool_QP[:, :k] = keys_QK
    pool_QP[query_H, k + place_H] = to_keys(scores_QM[query_H, column_H], column_H + first)
    return torch.topk(pool_QP, k, dim=1, sorted=False).values


def to_keys(scores_X: torch.Tensor, rows_X: torch.Tensor) -> torch.Tensor:
    """One int64 for a score and its row, larger for a higher score, and for an earlier row of the same score.

    The upper half is the float32's bits with the lower 31 of a negative number turned over, which
    orders them as integers; the lower half counts rows backwards. No two keys are equal, so no tie is left
    to the backend. -0.0 becomes 0.0, its equal.
    """
    bits_X = ordered_bits((scores_X + 0.0).view(torch.int32))
    return (bits_X.to(torch.int64) << 32) | (0xFFFFFFFF - rows_X)


def from_keys(keys_X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and rows, back from `to_keys`."""
    bits_X = ordered_bits((keys_X >> 32).to(torch.int32))
    return bits_X.view(torch.float32), 0xFFFFFFFF - (keys_X & 0xFFFFFFFF)


def ordered_bits(bits_X: torch.Tensor) -> torch.Tensor:
    """Between a float32's bits and integers of the same order; its own inverse."""
    return bits_X ^ ((bits_X >> 31) & 0x7FFFFFFF)
