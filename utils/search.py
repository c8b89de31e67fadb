"""Maximum inner product search: exact by faiss or by torch, approximate by any faiss index.

The passages come in blocks, so that a collection takes no more memory than a block; an index other than Flat
needs all of them at once.

Ties break by passage order, whatever the backend. `torch_top_k` makes one number of a score and its passage,
so that none are tied. faiss does not promise an order: a list of its whose last place is tied with a passage
left out is searched again by `torch_top_k`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from utils.errors import UserError
from utils.faiss_index import (
    LARGEST_GPU_K,
    faiss_has_gpu_support,
    faiss_refusal,
    gpu_refusal,
    make_index,
    on_gpu,
    reason_of,
)
from utils.norms import problem_of
from utils.ranked_lists import order_lists

MEMORY_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}  # of a search next to queries and lists, where nobody says
SMALLEST_MEMORY_BYTES = 16 * 2**20
ROWS_AT_ONCE = 2**14  # of passages that are read without a search
BYTES_PER_SCORE = 64  # where every score of a block passes for a candidate; 4 where none does
QUERIES_PER_BLOCK = 1024
SMALLEST_BLOCK = 1024  # passages
QUERIES_PER_FAISS_CALL = 16384  # at most; faiss's own blocks are of 4,096; between calls progress is told
FAISS_BYTES_PER_QUERY = 4096  # the scores of faiss's own blocks, of 1,024 passages
FAISS_BYTES_PER_PLACE = 36  # a call's list, and faiss's reservoir of twice its length

Advance = Callable[[int], None]  # told the query-passage pairs done since the last time


def ignore(pairs: int) -> None:
    """An `Advance` for those who show no progress."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search. ``backend`` is ``faiss`` or ``torch``; ``device`` is where it searches, if it can."""

    backend: str
    faiss_index: str = "Flat"
    nprobe: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    memory_bytes: int = 0  # next to the queries and their lists; 0: as much as MEMORY_BYTES has for the device

    @property
    def budget_bytes(self) -> int:
        """The same in numbers."""
        return self.memory_bytes or MEMORY_BYTES[self.device.type]

    @property
    def faiss_bytes(self) -> int:
        """Of a block of passages for faiss on the CPU; each block costs a merge of all lists."""
        return self.budget_bytes * 3 // 4

    @property
    def passages_bytes(self) -> int:
        """Of a block of passages for torch, or for faiss on a GPU."""
        return self.budget_bytes // 8

    @property
    def working_bytes(self) -> int:
        """Of what torch makes next to the block."""
        return self.budget_bytes // 2

    @property
    def lists_bytes(self) -> int:
        """Of what faiss makes next to the block."""
        return self.budget_bytes // 4


class GpuSearchFailed(Exception):
    """faiss has failed on a GPU, for the reason in the message. The CPU can search in its place."""


@dataclass(frozen=True)
class Passages:
    """The embeddings of N passages, which need not be in memory at once.

    ``blocks(rows)`` goes through them in passage order, from the first one each time, at most so many at once.
    A block is float [M, D]; it may be overwritten when the next one is asked for.
    """

    count: int
    dims: int
    blocks: Callable[[int], Iterator[np.ndarray]]


def in_memory(passages_ND: np.ndarray) -> Passages:
    def blocks(rows: int) -> Iterator[np.ndarray]:
        return (passages_ND[first : first + rows] for first in range(0, len(passages_ND), rows))

    return Passages(len(passages_ND), passages_ND.shape[1], blocks)


def rows_in(size_bytes: int, dims: int) -> int:
    """float32 passages that fit in, at least one."""
    return max(1, size_bytes // (4 * dims))


def choose_backend(wanted: str, faiss_index: str, use_cuda: bool = False) -> str:
    """``auto`` takes faiss where it is installed, but torch for an exact search on a GPU that this faiss cannot use.

    UserError where what is asked for is not there.
    """
    has_faiss = importlib.util.find_spec("faiss") is not None
    if not has_faiss and (wanted == "faiss" or faiss_index != "Flat"):
        raise UserError("faiss is not installed, expected it for this search; pip install -r requirements.txt")
    if wanted == "torch" and faiss_index != "Flat":
        raise UserError(f"--faiss_index {faiss_index} needs faiss, but --search_backend is torch; leave one out")
    if wanted != "auto":
        return wanted
    return "faiss" if has_faiss and (faiss_index != "Flat" or not use_cuda or faiss_has_gpu_support()) else "torch"


def describe_search(options: SearchOptions, dims: int = 0, k: int = 1) -> str:
    """What searches where, for the log; ``dims`` and ``k`` where they are known."""
    if options.backend == "torch":
        return f"torch, exact, on {options.device}"
    kind = "exact" if options.faiss_index == "Flat" else options.faiss_index
    probing = f", nprobe {options.nprobe}" if options.nprobe else ""
    return f"faiss, {kind}{probing}, on {with_search_device(options, dims, k).device}"


def search(
    queries_QD: np.ndarray,
    passages: Passages,
    k: int,
    options: SearchOptions,
    advance: Advance = ignore,
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages of largest inner product of each query, best first.

    Returns scores_QK float32 and rows_QK int64 (rows of ``passages``; -1 and -inf where an
    approximate index found fewer than k). K is k, or N where the collection is smaller.
    In memory at a time: the queries, the lists (twice where faiss takes several blocks, or searches tied lists again),
    and what ``options.budget_bytes`` says; all passages for an index other than Flat.
    An exception that ``advance`` raises ends the search. GpuSearchFailed where faiss fails on a GPU: who searches on
    several processes has them all use the CPU, which takes many times as long.
    All numbers are finite: else no order is defined, and each backend makes up its own. Who encodes passages or stores
    them sees to theirs, since a look at all of them takes a twentieth of a search. UserError where a query's are not.
    """
    for start in range(0, len(queries_QD), ROWS_AT_ONCE):
        if problem := problem_of(queries_QD[start : start + ROWS_AT_ONCE]):
            raise UserError(
                f"embeddings of queries {problem}: the model has diverged; go on from an earlier checkpoint"
            )
    k = min(k, passages.count)
    if k == 0 or not len(queries_QD):
        return np.zeros((len(queries_QD), k), np.float32), np.zeros((len(queries_QD), k), np.int64)
    scores_QK, rows_QK = top_k(queries_QD, passages, k, options, advance)
    check_scores(scores_QK, rows_QK, rows_in(options.passages_bytes, k))
    return scores_QK, rows_QK


def check_scores(scores_QK: np.ndarray, rows_QK: np.ndarray, queries_at_once: int) -> None:
    """UserError where a score that has a row is not finite. A mask of all lists would be gigabytes."""
    for start in range(0, len(scores_QK), queries_at_once):
        part = slice(start, start + queries_at_once)
        if not (np.isfinite(scores_QK[part]) | (rows_QK[part] < 0)).all():
            raise UserError(
                "scores are not finite: the embeddings are too large, or damaged; encode the collection again"
            )


def top_k(
    queries_QD: np.ndarray, passages: Passages, k: int, options: SearchOptions, advance: Advance
) -> tuple[np.ndarray, np.ndarray]:
    """The same by the backend that the options name."""
    if options.backend == "torch":
        return torch_top_k(queries_QD, passages, k, options, advance)
    options = with_search_device(options, passages.dims, k)  # asked once: a GPU's memory may have room later, or none
    search_by_faiss = faiss_top_k if options.faiss_index == "Flat" else faiss_index_top_k
    if options.device.type == "cpu":
        return search_by_faiss(queries_QD, passages, k, options, advance)
    try:
        return search_by_faiss(queries_QD, passages, k, options, advance)
    except RuntimeError as error:  # faiss has no type for memory that ran out, nor for what its GPU index lacks
        raise GpuSearchFailed(f"{options.device} cannot ({reason_of(error)})") from None


def with_search_device(options: SearchOptions, dims: int = 0, k: int = 1) -> SearchOptions:
    """The same with the device that will search: the CPU where faiss cannot on the GPU; see `is_on_gpu`."""
    return options if options.backend == "torch" or is_on_gpu(options, dims, k) else on_cpu(options)


def on_cpu(options: SearchOptions) -> SearchOptions:
    return replace(options, device=torch.device("cpu"))


# By torch


def torch_top_k(
    queries_QD: np.ndarray, passages: Passages, k: int, options: SearchOptions, advance: Advance = ignore
) -> tuple[np.ndarray, np.ndarray]:
    """Exact top-k by matrix product; `search` says what comes back. A share has less than 2**32 passages.

    The collection is gone through once, in blocks that grow as fewer of their scores reach a list's last place.
    """
    device, scores = options.device, max(1, options.working_bytes // BYTES_PER_SCORE)
    rows = min(QUERIES_PER_BLOCK, max(1, scores // max(k, SMALLEST_BLOCK)))
    widest = max(k, scores // rows)
    blocks = [to_device(queries_QD[start : start + rows], device) for start in range(0, len(queries_QD), rows)]
    best = [torch.empty((len(block_QD), 0), dtype=torch.int64, device=device) for block_QD in blocks]
    first = 0
    for held_MD in passages.blocks(rows_in(options.passages_bytes, passages.dims)):
        at = 0
        while at < len(held_MD):
            width = min(widest, max(k, first // 2, SMALLEST_BLOCK))
            passages_MD = to_device(held_MD[at : at + width], device)
            for number, block_QD in enumerate(blocks):
                best[number] = best_keys(best[number], block_QD @ passages_MD.T, first, k)
                advance(len(block_QD) * len(passages_MD))
            at, first = at + len(passages_MD), first + len(passages_MD)
    return lists_of_keys(best)


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
    """The k largest keys, in any order, of those so far and of a block's, whose first row is ``first``."""
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


# By faiss


def faiss_top_k(
    queries_QD: np.ndarray, passages: Passages, k: int, options: SearchOptions, advance: Advance = ignore
) -> tuple[np.ndarray, np.ndarray]:
    """Exact top-k by faiss; one place more is searched, to see whether the last place is tied."""
    wanted = min(k + 1, passages.count)
    if options.device.type == "cuda" and wanted > LARGEST_GPU_K:
        return torch_top_k(queries_QD, passages, k, options, advance)
    scores_QW, rows_QW = faiss_flat_lists(queries_QD, passages, wanted, options, advance)
    tied_Q = scores_QW[:, k - 1] == scores_QW[:, k] if wanted > k else np.zeros(len(scores_QW), bool)
    scores_QK, rows_QK = scores_QW[:, :k], rows_QW[:, :k]
    order_lists(scores_QK, rows_QK, options.passages_bytes)
    if tied_Q.any():
        again = torch_top_k(queries_QD[tied_Q], passages, k, options, lambda pairs: advance(0))
        scores_QK[tied_Q], rows_QK[tied_Q] = again
    return scores_QK, rows_QK


def faiss_flat_lists(
    queries_QD: np.ndarray, passages: Passages, k: int, options: SearchOptions, advance: Advance
) -> tuple[np.ndarray, np.ndarray]:
    """The k best by score descending, in faiss's order of ties: of a block after the other, merged."""
    import faiss

    index = None
    if options.device.type == "cuda":
        index = on_gpu(faiss.IndexFlatIP(passages.dims), options.device, options.lists_bytes)
    block_bytes = options.faiss_bytes if index is None else options.passages_bytes
    queries_at_once = options.lists_bytes // (FAISS_BYTES_PER_QUERY + FAISS_BYTES_PER_PLACE * k)
    merged, first = None, 0
    for held_MD in passages.blocks(rows_in(block_bytes, passages.dims)):
        block_MD = np.ascontiguousarray(held_MD, dtype=np.float32)
        search_block = searcher(index, block_MD, min(k, len(block_MD)))
        scores_QK, rows_QK = search_in_blocks(
            search_block, queries_QD, min(k, len(block_MD)), len(block_MD), advance, queries_at_once
        )
        if len(block_MD) == passages.count:
            return scores_QK, rows_QK
        rows_QK += first
        merged = merged or faiss.ResultHeap(len(queries_QD), k, keep_max=True)
        merged.add_result(scores_QK, rows_QK)
        del scores_QK, rows_QK  # before there are the next block's
        first += len(block_MD)
    assert merged is not None, "there are passages"
    merged.finalize()
    return merged.D, merged.I


def searcher(index, block_MD: np.ndarray, k: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:  # type: ignore[no-untyped-def]
    """Exact search of one block by the GPU's index, or (None) where the block is: an index would copy it first."""
    import faiss

    if index is None:
        return lambda queries_QD: faiss.knn(queries_QD, block_MD, k, metric=faiss.METRIC_INNER_PRODUCT)
    index.reset()
    index.add(block_MD)
    return partial(index.search, k=k)


def faiss_index_top_k(
    queries_QD: np.ndarray, passages: Passages, k: int, options: SearchOptions, advance: Advance = ignore
) -> tuple[np.ndarray, np.ndarray]:
    """Top-k by a faiss index built by ``options.faiss_index``, trained on the passages themselves.

    Such an index is made of all passages of the share, and holds them (or their codes) in memory.
    UserError where faiss refuses on the CPU, such as more cells than passages to train them on; on a GPU its own error.
    """
    if options.device.type == "cuda":
        scores_QK, rows_QK = lists_of_index(queries_QD, passages, k, options, advance)
    else:
        with faiss_refusal(f"{options.faiss_index} over {passages.count} passages"):
            scores_QK, rows_QK = lists_of_index(queries_QD, passages, k, options, advance)
    order_lists(scores_QK, rows_QK, options.passages_bytes)
    return scores_QK, rows_QK


def lists_of_index(
    queries_QD: np.ndarray, passages: Passages, k: int, options: SearchOptions, advance: Advance
) -> tuple[np.ndarray, np.ndarray]:
    """The lists in faiss's order of ties."""
    rows = rows_in(options.passages_bytes, passages.dims)
    index = make_index(options.faiss_index, passages.dims, options.nprobe)
    if options.device.type == "cuda":
        index = on_gpu(index, options.device, options.lists_bytes)
    if not index.is_trained:
        index.train(all_at_once(passages, rows))
    for block_MD in passages.blocks(rows):
        index.add(np.ascontiguousarray(block_MD, dtype=np.float32))
        advance(0)
    return search_in_blocks(partial(index.search, k=k), queries_QD, k, index.ntotal, advance)


def all_at_once(passages: Passages, rows: int = ROWS_AT_ONCE) -> np.ndarray:
    """float32 [N, D]"""
    passages_ND = np.empty((passages.count, passages.dims), np.float32)
    first = 0
    for block_MD in passages.blocks(rows):
        passages_ND[first : first + len(block_MD)] = block_MD
        first += len(block_MD)
    return passages_ND


def is_on_gpu(options: SearchOptions, dims: int = 0, k: int = 1) -> bool:
    """Whether faiss searches on a GPU: one is in use, and this faiss can; with ``dims``, this index and k too."""
    if options.device.type != "cuda" or options.backend != "faiss" or not faiss_has_gpu_support():
        return False
    if not dims or options.faiss_index == "Flat":
        return True
    return k <= LARGEST_GPU_K and not gpu_refusal(options.faiss_index, dims, options.nprobe, options.device)


def search_in_blocks(
    search_block: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    queries_QD: np.ndarray,
    k: int,
    passages: int,
    advance: Advance,
    at_once: int = QUERIES_PER_FAISS_CALL,
) -> tuple[np.ndarray, np.ndarray]:
    """The lists that faiss gives for some queries at a time: scores_QK float32 and rows_QK int64."""
    scores_QK, rows_QK = np.empty((len(queries_QD), k), np.float32), np.empty((len(queries_QD), k), np.int64)
    at_once = max(1, min(at_once, QUERIES_PER_FAISS_CALL))
    for start in range(0, len(queries_QD), at_once):
        block_QD = np.ascontiguousarray(queries_QD[start : start + at_once], dtype=np.float32)
        stop = start + len(block_QD)
        scores_QK[start:stop], rows_QK[start:stop] = search_block(block_QD)
        advance(len(block_QD) * passages)
    return scores_QK, rows_QK
