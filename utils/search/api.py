"""Maximum inner product search: exact by faiss or by torch, approximate by any faiss index.

The passages come in blocks, so that a collection takes no more memory than a block; an index other than Flat
needs all of them at once. Ties break by passage order, whatever the backend.
"""

from __future__ import annotations

import numpy as np

from utils.errors import UserError
from utils.search.exact_torch import torch_top_k
from utils.search.faiss_backend import faiss_index_top_k, faiss_top_k
from utils.search.faiss_index import (
    reason_of,
)
from utils.search.norms import problem_of
from utils.search.options import GpuSearchFailed, SearchOptions, with_search_device
from utils.search.source import ROWS_AT_ONCE, Advance, Passages, no_progress, rows_in


def search(
    queries_QD: np.ndarray,
    passages: Passages,
    k: int,
    options: SearchOptions,
    advance: Advance = no_progress,
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
