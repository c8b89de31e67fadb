"""Retrieval metrics over *all* queries of the qrels; a query that got no answer counts as zero.

The measures are pytrec_eval's. It breaks ties by document name, which depends on how passages are
called; here the order of the given list is the ranking, and scores descend with the position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from utils.errors import UserError

METRICS = ("ndcg@10", "mrr@10", "map@10", "recall@20", "recall@100", "recall@1000", "hole_rate@10")
QUERIES_PER_BLOCK = 512  # pytrec_eval wants dicts; blocks keep them small
LARGEST_GRADE = 1000  # either way of 0. TREC's go from -2 to 12; pytrec_eval has a table as long as the largest


def reach(asked: int, passages: int) -> float:
    """How deep a cut-off may be in lists of the best ``asked`` of so many ``passages``: any, where all are listed."""
    return asked if asked < passages else math.inf


def metrics_to(depth: float) -> tuple[str, ...]:
    """Those of METRICS whose cut-off lists of this depth reach: of shorter lists recall@1000 is something else."""
    return tuple(name for name in METRICS if int(name.partition("@")[2]) <= depth)


def per_query_metrics(
    qrels: Mapping[int, Mapping[int, int]], queries_Q: np.ndarray, passages_QK: np.ndarray, depth: float
) -> dict[int, dict[str, float]]:
    """Metrics of each query that was answered and judged, those of `metrics_to` the ``depth``.

    ``qrels[query][passage]`` is a relevance (1 and above is relevant, below 0 counts as 0), ``passages_QK`` int64
    holds the ranking of ``queries_Q[i]`` in row i, best first, -1 after the end of a short list. ``depth`` is `reach`
    of the length that was asked for. A query of ``queries_Q`` without judgements is left out.
    """
    import pytrec_eval

    rows: dict[int, dict[str, float]] = {}
    judged = [i for i, query in enumerate(queries_Q.tolist()) if query in qrels]
    for start in range(0, len(judged), QUERIES_PER_BLOCK):
        block = judged[start : start + QUERIES_PER_BLOCK]
        run, judgements = {}, {}
        for i in block:
            query = int(queries_Q[i])
            ranking = [p for p in passages_QK[i].tolist() if p >= 0]
            run[str(query)] = {str(p): float(-rank) for rank, p in enumerate(ranking)}
            # trec_eval counts below 0 as 0, and reads outside its table where a query has no other.
            judgements[str(query)] = {str(p): max(int(r), 0) for p, r in qrels[query].items()}
            rows[query] = dict.fromkeys(METRICS, 0.0) | {"hole_rate@10": hole_rate(ranking[:10], qrels[query])}
        evaluator = pytrec_eval.RelevanceEvaluator(judgements, {"ndcg_cut.10", "map_cut.10", "recip_rank", "recall"})
        for query_name, values in evaluator.evaluate(run).items():
            rows[int(query_name)] |= renamed(values)
    return {query: {name: row[name] for name in metrics_to(depth)} for query, row in rows.items()}


def renamed(values: Mapping[str, float]) -> dict[str, float]:
    """trec_eval's names to ours; a reciprocal rank below 1/10 is outside the ten."""
    reciprocal = values["recip_rank"]
    return {
        "ndcg@10": values["ndcg_cut_10"],
        "mrr@10": reciprocal if reciprocal > 1 / 10.5 else 0.0,
        "map@10": values["map_cut_10"],
        **{f"recall@{k}": values[f"recall_{k}"] for k in (20, 100, 1000)},
    }


def hole_rate(top: list[int], judged: Mapping[int, int]) -> float:
    """Share of the returned passages nobody has judged (ANCE's evaluation notebook)."""
    return sum(p not in judged for p in top) / len(top) if top else 0.0


def evaluate(
    qrels: Mapping[int, Mapping[int, int]], queries_Q: np.ndarray, passages_QK: np.ndarray, depth: float
) -> dict[str, float]:
    """Means over all queries of ``qrels``; see `per_query_metrics` for the arguments.

    Raises UserError where the qrels are empty.
    """
    return mean_metrics(qrels, per_query_metrics(qrels, queries_Q, passages_QK, depth), depth)


def mean_metrics(
    qrels: Mapping[int, Mapping[int, int]], rows: Mapping[int, Mapping[str, float]], depth: float
) -> dict[str, float]:
    """From the rows of `per_query_metrics`. Raises UserError where the qrels are empty."""
    if not qrels:
        raise UserError("the qrels name no query, expected at least one; check the split's qrels file")
    return {name: sum(row[name] for row in rows.values()) / len(qrels) for name in metrics_to(depth)}


def metrics_record(
    metrics: Mapping[str, float], queries: int, model: str, step: int | None, seconds: float
) -> dict[str, Any]:
    """The contents of every metrics.json. ``queries`` is the number of those that the means are over."""
    return {"metrics": dict(metrics), "queries": queries, "model": model, "step": step, "seconds": round(seconds, 3)}


def format_metrics(metrics: Mapping[str, float]) -> str:
    """For a log line."""
    told = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return told or "no metric: every cut-off is deeper than the lists"
