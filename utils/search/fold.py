"""From rows to passages: a passage stands in a list once, by its best row.

The best rows of a query, ties by row, name their passages in the passages' own order: each by the first of its rows,
ties by passage, since rows ascend with passages. So a list of rows that names k passages has the k best of them.
Where it names fewer, the search goes deeper: a list as long as the rows of the k - 1 longest passages, and one more,
is sure to name k.
"""

from __future__ import annotations

import numpy as np

from utils.search.base import RowIndex
from utils.search.source import Advance, Passages

FOLDING_BYTES = 60  # what `fold_lists` makes of each place of a list of rows


def sure_depth(passages: Passages, k: int) -> int:
    """So many best rows are of k passages at least; ``k`` is at most as many as there are."""
    return passages.largest_counts(k - 1) + 1


def first_depth(passages: Passages, k: int) -> int:
    """How many rows are looked for at first: as many as k passages have on the average, or fewer that are sure."""
    return min(sure_depth(passages, k), -(-k * passages.rows // passages.count))


def search_passages(
    index: RowIndex,
    queries_QD: np.ndarray,
    passages: Passages,
    k: int,
    deepest: int,
    size_bytes: int,
    advance: Advance,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best passages of each query, by lists of rows; twice as deep again for queries whose rows were of fewer.

    Args:
        index: of the rows.
        queries_QD: float, all finite and at least one.
        passages: whose rows they are.
        k: from 1 to the number of passages.
        deepest: at most so many rows are asked for.
        size_bytes: what is made at a time next to lists of rows as deep as the search.
        advance: told the pairs of a query and a row that are done, those of deeper searches not again.

    Returns:
        scores_QK float32 and passages_QK int64, -inf and -1 where fewer were found.
    """
    deepest = min(deepest, sure_depth(passages, k))
    depth = min(deepest, first_depth(passages, k))
    scores_QR, rows_QR = index.search(queries_QD, depth, advance)
    scores_QK, passages_QK, is_sure_Q = fold_lists(scores_QR, rows_QR, passages, k, size_bytes)
    del scores_QR, rows_QR  # before there are deeper ones
    while depth < deepest and not is_sure_Q.all():
        depth, again_A = min(2 * depth, deepest), np.flatnonzero(~is_sure_Q)
        lists = index.search(queries_QD[again_A], depth, lambda pairs: advance(0))  # all pairs have been told
        found = fold_lists(*lists, passages, k, size_bytes)
        scores_QK[again_A], passages_QK[again_A], is_sure_Q[again_A] = found
    return scores_QK, passages_QK


def fold_lists(
    scores_QR: np.ndarray, rows_QR: np.ndarray, passages: Passages, k: int, size_bytes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first k passages of lists of rows.

    Args:
        scores_QR: float32, best first, ties by row.
        rows_QR: int64, -1 after a list's end.
        passages: whose rows they are.
        k: how many passages.
        size_bytes: what is made of some queries' lists at a time.

    Returns:
        scores_QK float32 and passages_QK int64, -inf and -1 where there are fewer; and whether a list is sure: bool
        [Q], that it has k passages, or that there are no more rows.
    """
    row_to_passage = passages.row_to_passage
    assert row_to_passage is not None, "else a row is a passage"
    queries = len(rows_QR)
    scores_QK, passages_QK = np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)
    is_sure_Q = np.empty(queries, bool)
    at_once = max(1, size_bytes // (FOLDING_BYTES * rows_QR.shape[1]))
    for start in range(0, queries, at_once):
        part = slice(start, start + at_once)
        rows_MR = rows_QR[part]
        passages_MR = np.where(rows_MR < 0, -1, row_to_passage[rows_MR])
        is_first_MR = first_of_each(passages_MR) & (rows_MR >= 0)
        place_MR = np.cumsum(is_first_MR, axis=1) - 1
        query_H, column_H = np.nonzero(is_first_MR & (place_MR < k))
        place_H = place_MR[query_H, column_H]
        scores_QK[part][query_H, place_H] = scores_QR[part][query_H, column_H]
        passages_QK[part][query_H, place_H] = passages_MR[query_H, column_H]
        is_sure_Q[part] = (place_MR[:, -1] >= k - 1) | (rows_MR < 0).any(1)
    return scores_QK, passages_QK, is_sure_Q


def first_of_each(values_MR: np.ndarray) -> np.ndarray:
    """Whether a value has not stood in its row before: bool [M, R]."""
    order_MR = np.argsort(values_MR, axis=1, kind="stable")
    sorted_MR = np.take_along_axis(values_MR, order_MR, 1)
    is_first_MR = np.ones(values_MR.shape, bool)
    np.put_along_axis(is_first_MR, order_MR[:, 1:], sorted_MR[:, 1:] != sorted_MR[:, :-1], 1)
    return is_first_MR
