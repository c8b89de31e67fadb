"""Retrieval metrics over *all* queries of the qrels; a query that got no answer counts as zero.

Most of the measures are pytrec_eval's. It breaks ties by document name, which depends on how passages are
called; here the order of the given list is the ranking, and scores descend with the position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError


@dataclass(frozen=True)
class Metric:
    """One metric. ``name`` is its key in metrics.json, ``label`` what tables and pictures call it.

    Its value is pytrec_eval's of ``trec_eval``, or what ``compute`` makes of a query's first passages, as many as the
    cut-off says, and of its judgements {passage: relevance}.
    """

    name: str
    label: str
    description: str
    source: str
    trec_eval: str = ""  # the measure, as pytrec_eval is asked for it
    compute: Callable[[Sequence[int], Mapping[int, int]], float] | None = None
    in_report: bool = False  # a column of a report's tables

    @property
    def cutoff(self) -> int:
        """The ranks that it looks at."""
        return int(self.name.partition("@")[2])


def hole_rate(top: Sequence[int], judged: Mapping[int, int]) -> float:
    """Share of the returned passages nobody has judged (ANCE's evaluation notebook)."""
    return sum(p not in judged for p in top) / len(top) if top else 0.0


def reciprocal_rank(top: Sequence[int], judged: Mapping[int, int]) -> float:
    """One over the rank of the first relevant passage; 0 where none is (MS MARCO's ms_marco_eval.py)."""
    return next((1 / rank for rank, passage in enumerate(top, 1) if judged.get(passage, 0) >= 1), 0.0)


TREC_EVAL = "trec_eval"
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "ndcg@10",
            "nDCG@10",
            "discounted gain of the first 10, gains are grades, over that of the ideal ranking",
            f"Järvelin and Kekäläinen 2002, as {TREC_EVAL}'s ndcg_cut.10",
            "ndcg_cut.10",
            in_report=True,
        ),
        Metric(
            "mrr@10",
            "MRR@10",
            "one over the rank of the first relevant passage, 0 where none is among 10",
            f"MS MARCO's measure (arXiv 1611.09268); {TREC_EVAL}'s recip_rank, cut at 10",
            compute=reciprocal_rank,
            in_report=True,
        ),
        Metric(
            "map@10",
            "MAP@10",
            "precision at the relevant passages among the first 10, over all that are relevant",
            f"{TREC_EVAL}'s map_cut.10",
            "map_cut.10",
            in_report=True,
        ),
        *(
            Metric(
                f"recall@{k}",
                f"recall@{k}",
                f"share of the relevant passages that are among the first {k}",
                f"{TREC_EVAL}'s recall.{k}",
                f"recall.{k}",
                in_report=k == 100,
            )
            for k in (20, 100, 1000)
        ),
        Metric(
            "hole_rate@10",
            "hole rate@10",
            "share of the first 10 that nobody has judged",
            "ANCE's evaluation notebook (arXiv 2007.00808)",
            compute=hole_rate,
        ),
    )
}
HEADLINE = MRR, NDCG = "mrr@10", "ndcg@10"  # measured at every refresh, drawn over training, compared between arms
QUERIES_PER_BLOCK = 512  # pytrec_eval wants dicts; blocks keep them small
LARGEST_GRADE = 1000  # either way of 0. TREC's go from -2 to 12; pytrec_eval has a table as long as the largest


def reach(asked: int, passages: int) -> float:
    """How deep a cut-off may be in lists of the best ``asked`` of so many ``passages``: any, where all are listed."""
    return asked if asked < passages else math.inf


def metrics_to(depth: float) -> tuple[str, ...]:
    """Those of METRICS whose cut-off lists of this depth reach: of shorter lists recall@1000 is something else."""
    return tuple(metric.name for metric in METRICS.values() if metric.cutoff <= depth)


def per_query_metrics(
    qrels: Mapping[int, Mapping[int, int]], queries_Q: np.ndarray, passages_QK: np.ndarray, depth: float
) -> dict[int, dict[str, float]]:
    """Metrics of each query that was answered and judged; one without judgements is omitted.

    Args:
        qrels: ``qrels[query][passage]`` is a grade: 1 and above is relevant, below 0 counts as 0.
        queries_Q: int64, the queries that were answered.
        passages_QK: int64, the ranking of ``queries_Q[i]`` in row i, best first, -1 after the end of a short list.
        depth: `reach` of the length that was asked for; the metrics are those of `metrics_to` it.

    Returns:
        ``[query][metric]``, each from 0 to 1.

    Source:
        trec_eval by pytrec_eval (Van Gysel and de Rijke 2018), and each metric's own in `METRICS`.
    """
    import pytrec_eval

    rows: dict[int, dict[str, float]] = {}
    measures = {metric.trec_eval for metric in METRICS.values() if metric.trec_eval}
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
            rows[query] = dict.fromkeys(METRICS, 0.0) | computed(ranking, qrels[query])
        evaluator = pytrec_eval.RelevanceEvaluator(judgements, measures)
        for query_name, values in evaluator.evaluate(run).items():
            rows[int(query_name)] |= renamed(values)
    return {query: {name: row[name] for name in metrics_to(depth)} for query, row in rows.items()}


def renamed(values: Mapping[str, float]) -> dict[str, float]:
    """trec_eval's names to ours: what was asked for as recall.20 is returned as recall_20."""
    asked = (metric for metric in METRICS.values() if metric.trec_eval)
    return {metric.name: values[metric.trec_eval.replace(".", "_")] for metric in asked}


def computed(ranking: Sequence[int], judged: Mapping[int, int]) -> dict[str, float]:
    """The metrics of one query that are not trec_eval's."""
    ours = ((metric, metric.compute) for metric in METRICS.values())
    return {metric.name: compute(ranking[: metric.cutoff], judged) for metric, compute in ours if compute is not None}


def evaluate(
    qrels: Mapping[int, Mapping[int, int]], queries_Q: np.ndarray, passages_QK: np.ndarray, depth: float
) -> dict[str, float]:
    """Means over all queries of the qrels; one that was not answered counts as 0.

    Args: those of `per_query_metrics`.

    Raises:
        UserError: the qrels are empty.
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
) -> dict[str, object]:
    """The contents of every metrics.json.

    Args:
        metrics: means, by name.
        queries: how many the means are over.
        model: the checkpoint's directory, or the name of what ranked.
        step: the checkpoint's; None where it has none.
        seconds: how long the evaluation took.
    """
    return {"metrics": dict(metrics), "queries": queries, "model": model, "step": step, "seconds": round(seconds, 3)}


def format_metrics(metrics: Mapping[str, float]) -> str:
    """For a log line."""
    message = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return message or "no metric: every cut-off is deeper than the lists"
