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


def without_own(
    passages_QK: np.ndarray, scores_QK: np.ndarray, own_Q: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each list without the passage that is the query itself; what follows it moves up.

    Args:
        passages_QK: int64, best first, -1 after a list's end.
        scores_QK: float, of these passages.
        own_Q: int64, each query's own passage, -1 where there is none.
        k: how many passages are kept; lists of one more lose none but their own.

    Returns:
        passages_QK and scores_QK, -1 and -inf after a list's end.
    """
    is_own_QK = (passages_QK == own_Q[:, None]) & (own_Q[:, None] >= 0)
    passages_QK, scores_QK = without(passages_QK, scores_QK, is_own_QK)
    return passages_QK[:, :k], scores_QK[:, :k]


def without(passages_QK: np.ndarray, scores_QK: np.ndarray, dropped_QK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists without some of their places (bool); what follows these moves up, and -1 and -inf fill the end."""
    order_QK = np.argsort(dropped_QK, axis=1, kind="stable")
    passages_QK = np.where(dropped_QK, -1, passages_QK)
    scores_QK = np.where(dropped_QK, -np.inf, scores_QK).astype(scores_QK.dtype)
    return np.take_along_axis(passages_QK, order_QK, 1), np.take_along_axis(scores_QK, order_QK, 1)
