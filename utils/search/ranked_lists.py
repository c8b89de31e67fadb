"""Ranked lists of queries: put in order, ties by passage order, and merged."""

from __future__ import annotations

import numpy as np

ORDERING_BYTES = 33  # what `in_passage_order` makes of each place


def order_lists(scores_QK: np.ndarray, rows_QK: np.ndarray, size_bytes: int) -> None:
    """`in_passage_order` in place, some queries at a time in so much memory; what is missing (-1) becomes -inf."""
    at_once = max(1, size_bytes // (ORDERING_BYTES * scores_QK.shape[1]))
    for start in range(0, len(scores_QK), at_once):
        scores_MK, rows_MK = scores_QK[start : start + at_once], rows_QK[start : start + at_once]
        scores_MK[rows_MK < 0] = -np.inf
        mixed_M = ~(scores_MK[:, 1:] < scores_MK[:, :-1]).all(1)  # elsewhere the scores decide
        scores_MK[mixed_M], rows_MK[mixed_M] = in_passage_order(scores_MK[mixed_M], rows_MK[mixed_M])


def in_passage_order(scores_QK: np.ndarray, rows_QK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same lists, by score descending, ties by row ascending, missing entries (-1) last."""
    rows_for_order = np.where(rows_QK < 0, np.iinfo(np.int64).max, rows_QK)
    order = np.lexsort((rows_for_order, -scores_QK), axis=1)
    return np.take_along_axis(scores_QK, order, 1), np.take_along_axis(rows_QK, order, 1)


def merge_top_k(scores_parts: list[np.ndarray], rows_parts: list[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """One list of k from the lists of several shares of the collection (rows already global)."""
    scores_QK, rows_QK = in_passage_order(np.concatenate(scores_parts, 1), np.concatenate(rows_parts, 1))
    return scores_QK[:, :k], rows_QK[:, :k]
