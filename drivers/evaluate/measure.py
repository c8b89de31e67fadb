"""A ranking of a split's queries, and what is measured of it, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drivers.evaluate.splits import RankedSplit
from utils.ir.metrics import mean_metrics, per_query_metrics
from utils.ir.pooled import pooled_hole_rates


@dataclass(frozen=True)
class Ranking:
    """Lists of passages for the queries of a split, and metrics.

    ``query_Q`` int64 are the queries' offsets; ``passages_QK`` int64 and ``scores_QK`` float32 their lists, best first,
    -1 and -inf after a list's end. ``metrics`` are means over all queries of the qrels, ``by_query`` has each one's by
    its offset; ``pooled`` is that of `pooled_hole_rates`.
    """

    query_Q: np.ndarray
    passages_QK: np.ndarray
    scores_QK: np.ndarray
    metrics: dict[str, float]
    by_query: dict[int, dict[str, float]]
    pooled: dict[str, float]


def measure_lists(split: RankedSplit, passages_QK: np.ndarray, scores_QK: np.ndarray, depth: float) -> Ranking:
    """The metrics that lists of this ``depth`` reach; none of a split that nobody has judged.

    Args:
        split: whose queries they are of, and what is measured.
        passages_QK: int64, best first, -1 after a list's end.
        scores_QK: float, of these passages.
        depth: how deep a metric may look.
    """
    judgements, query_Q, choice = split.judgements, split.query_Q, split.choice
    if not judgements:
        return Ranking(query_Q, passages_QK, scores_QK, {}, {}, {})
    rows = per_query_metrics(judgements, query_Q, passages_QK, depth, choice)
    metrics = mean_metrics(judgements, rows, depth, choice)
    by_query = {query: rows.get(query, dict.fromkeys(metrics, 0.0)) for query in sorted(judgements)}
    pooled = pooled_hole_rates(judgements, query_Q, passages_QK, depth)
    return Ranking(query_Q, passages_QK, scores_QK, metrics, by_query, pooled)
