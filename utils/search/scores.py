"""Scores without an index: of given passages, and summed over all; a passage's score is that of its best row."""

from __future__ import annotations

import numpy as np

from utils.search.source import ROWS_AT_ONCE, Passages

SCORES_AT_ONCE = 2**24  # of queries and rows


def scores_of(queries_QD: np.ndarray, passages: Passages, passages_QK: np.ndarray) -> np.ndarray:
    """Scores of given lists: float32 [Q, K], -inf where a number of ``passages_QK`` is no passage here."""
    scores_QK = np.full(passages_QK.shape, -np.inf, np.float32)
    first_QK, stop_QK = passages.rows_of(passages_QK)
    most_rows = int((stop_QK - first_QK).max(initial=0))
    start = 0
    for block_MD in passages.blocks(ROWS_AT_ONCE):
        for row_QK in (first_QK + nth for nth in range(most_rows)):
            held_QK = (row_QK >= start) & (row_QK < np.minimum(stop_QK, start + len(block_MD)))
            for query in np.flatnonzero(held_QK.any(1)):
                held = np.flatnonzero(held_QK[query])
                row_scores = block_MD[row_QK[query, held] - start] @ queries_QD[query]
                scores_QK[query, held] = np.maximum(scores_QK[query, held], row_scores)
        start += len(block_MD)
    return scores_QK


def sum_of_rows(passages: Passages) -> np.ndarray:
    """float64 [D]: a query's product with it is the sum of its scores, where a row is a passage."""
    sum_D = np.zeros(passages.embedding_dim)
    for block_MD in passages.blocks(ROWS_AT_ONCE):
        sum_D += block_MD.sum(axis=0, dtype=np.float64)
    return sum_D


def sum_of_scores(queries_QD: np.ndarray, passages: Passages) -> np.ndarray:
    """Each query's score summed over the passages, where these may have several rows: float64 [Q]."""
    row_to_passage, sum_Q = passages.row_to_passage, np.zeros(len(queries_QD))
    assert row_to_passage is not None, "else `sum_of_rows` has it for nothing"
    best_QP, owner_P, first = np.empty((len(queries_QD), 0), np.float32), np.empty(0, np.int64), 0
    for block_MD in passages.blocks(max(1, SCORES_AT_ONCE // max(1, len(queries_QD)))):
        # The last passage of the block before may have more rows in this one: it is counted when it is whole.
        scores_QM = np.concatenate([best_QP[:, -1:], queries_QD @ block_MD.T], axis=1)
        owner_M = np.concatenate([owner_P[-1:], row_to_passage[first : first + len(block_MD)]])
        starts_P = np.flatnonzero(np.diff(owner_M, prepend=-1))
        best_QP, owner_P = np.maximum.reduceat(scores_QM, starts_P, axis=1), owner_M[starts_P]
        sum_Q += best_QP[:, :-1].sum(axis=1, dtype=np.float64)
        first += len(block_MD)
    return sum_Q + best_QP[:, -1:].sum(axis=1)
