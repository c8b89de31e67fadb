"""What the filters against false negatives drop, before a strategy takes any; utils/declared/strategies.py has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from data.mining.candidates import Candidates
from utils.declared.strategies import FILTERS
from utils.flag_values import Number
from utils.ir.rank_buckets import counted


def filtered(
    candidates: Candidates, usable_QK: np.ndarray, positive_rank_Q: np.ndarray, values: Mapping[str, Number]
) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    """Apply the filters.

    Args:
        candidates: What the search returned.
        usable_QK: bool [Q, K], what may be taken so far.
        positive_rank_Q: int64 [Q], the rank of the query's positive, K + 1 where it was not retrieved.
        values: {filter: its value}; at ``off`` of its declaration, and where it is not there, it drops nothing.
    Returns:
        What is left, bool [Q, K]; and {filter: {rank bucket: candidates it dropped}}.
    """
    rank_QK = np.broadcast_to(np.arange(1, usable_QK.shape[1] + 1), usable_QK.shape)
    dropped = {}
    for name, drop in DROPPED_BY.items():
        value = values.get(name, FILTERS[name].off)
        if value == FILTERS[name].off:
            continue
        drop_QK = drop(candidates, positive_rank_Q, value)
        dropped[name] = counted(rank_QK[usable_QK & drop_QK])
        usable_QK = usable_QK & ~drop_QK
    return usable_QK, dropped


def first_rank(values: Mapping[str, Number]) -> int:
    """The best rank that these filters leave in every list: a strategy's window must reach it."""
    return int(values.get("min_rank", FILTERS["min_rank"].off))


def ranked_above(candidates: Candidates, positive_rank_Q: np.ndarray, min_rank: float) -> np.ndarray:
    """bool [Q, K]: ranks above ``min_rank``."""
    shape = candidates.passage_QK.shape
    return np.broadcast_to(np.arange(1, shape[1] + 1) < min_rank, shape)


def likely_positive(candidates: Candidates, positive_rank_Q: np.ndarray, ratio: float) -> np.ndarray:
    """bool [Q, K]: scores above ``ratio`` of the positive's margin over the list's mean.

    After NV-Retriever's TopK-PercPos (Moreira et al. 2024, section 4), which takes a share of the score itself and so
    means the opposite where scores are negative. Here the threshold is never above the positive's score, and stays
    where it is when a constant is added to all scores. A positive that was not retrieved has a score below all of the
    list's, which are then all above the threshold.
    """
    score_QK = candidates.score_QK.astype(np.float64)
    held_QK = candidates.passage_QK >= 0
    mean_Q = np.where(held_QK, score_QK, 0).sum(1) / np.maximum(held_QK.sum(1), 1)
    width = score_QK.shape[1]
    at_Q = np.minimum(positive_rank_Q, width) - 1
    is_retrieved_Q = positive_rank_Q <= width
    positive_Q = np.where(is_retrieved_Q, score_QK[np.arange(len(score_QK)), at_Q], 0)
    threshold_Q = positive_Q - (1 - ratio) * abs(positive_Q - mean_Q)
    threshold_Q = np.where(is_retrieved_Q, threshold_Q, -np.inf)
    return held_QK & (score_QK > threshold_Q[:, None])


DROPPED_BY: dict[str, Callable[[Candidates, np.ndarray, float], np.ndarray]] = {
    "min_rank": ranked_above,
    "max_positive_ratio": likely_positive,
}
