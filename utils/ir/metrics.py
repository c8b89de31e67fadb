"""Retrieval metrics over *all* queries of the qrels; a query that got no answer counts as zero.

Most of the measures are ir_measures' (utils/ir/notation.py). Evaluators break ties by document name, which depends on
how passages are called; here the order of the given list is the ranking, and scores descend with the position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.errors import UserError
from utils.ir.notation import MEASURES, canonical, cutoff_of, parse, values_by_query


@dataclass(frozen=True)
class Metric:
    """One metric. ``name`` is its key in metrics.json, ``label`` what tables and pictures call it.

    Its value is ir_measures' of ``notation``, or what ``compute`` makes of a query's first passages, as many as the
    cut-off says, and of its judgements {passage: relevance}.
    """

    name: str
    label: str
    description: str
    source: str
    notation: str = ""
    compute: Callable[[Sequence[int], Mapping[int, int]], float] | None = None
    in_report: bool = False  # a column of a report's tables
    of_documents: bool = False  # measured where a collection is of documents; elsewhere where it is asked for

    @property
    def cutoff(self) -> int:
        """The ranks that it looks at; 0 for all of a list."""
        return cutoff_of(self.notation) if self.notation else int(self.name.partition("@")[2])


def hole_rate(top: Sequence[int], judged: Mapping[int, int]) -> float:
    """Share of the returned passages nobody has judged (ANCE's evaluation notebook)."""
    return sum(p not in judged for p in top) / len(top) if top else 0.0


TREC_EVAL, MS_MARCO = "trec_eval", "MS MARCO's measure (arXiv 1611.09268)"
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "ndcg@10",
            "nDCG@10",
            "discounted gain of the first 10, gains are grades, over that of the ideal ranking",
            f"Järvelin and Kekäläinen 2002, as {TREC_EVAL}'s ndcg_cut.10",
            "nDCG@10",
            in_report=True,
        ),
        *(
            Metric(
                f"mrr@{k}",
                f"MRR@{k}",
                f"one over the rank of the first relevant passage, 0 where none is among {k}",
                f"{MS_MARCO}{of}; {TREC_EVAL}'s recip_rank, cut at {k}",
                f"RR@{k}",
                in_report=k == 10,
                of_documents=k == 100,
            )
            for k, of in ((10, ""), (100, " of documents"))
        ),
        Metric(
            "map@10",
            "MAP@10",
            "precision at the relevant passages among the first 10, over all that are relevant",
            f"{TREC_EVAL}'s map_cut.10",
            "AP@10",
            in_report=True,
        ),
        *(
            Metric(
                f"recall@{k}",
                f"recall@{k}",
                f"share of the relevant passages that are among the first {k}",
                f"{TREC_EVAL}'s recall.{k}",
                f"R@{k}",
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
DEPTH_OF_RECORD = 10  # of ANCE's ndcg and mrr in ann_ndcg_N
HEADLINE = MRR, NDCG = "mrr@10", "ndcg@10"  # measured at every refresh, drawn over training, compared between arms
QUERIES_PER_BLOCK = 512  # ir_measures wants dicts; blocks keep them small


@dataclass(frozen=True)
class MetricChoice:
    """What is measured; the metrics call passages of ``relevance_level`` and above relevant, where they do not say."""

    metrics: tuple[Metric, ...]
    relevance_level: int = 1

    def names(self, depth: float) -> tuple[str, ...]:
        """Those whose cut-off lists of this depth reach: of shorter lists recall@1000 is something else."""
        return tuple(metric.name for metric in self.metrics if metric.cutoff <= depth)


def always_measured(relevance_level: int = 1) -> MetricChoice:
    """What training measures, whatever the collection."""
    return choose_metrics("", relevance_level, is_of_documents=False)


def choose_metrics(asked: str, relevance_level: int, is_of_documents: bool) -> MetricChoice:
    """What is always measured, what documents have, and the measures of ``asked`` that are none of these.

    Args:
        asked: measures in ir_measures' notation, with blanks between them.
        relevance_level: the lowest grade that is relevant.
        is_of_documents: whether the collection is.

    Raises:
        UserError: one is not in the notation, or not measured here.
    """
    ours = {name: at_level(metric, relevance_level) for name, metric in METRICS.items()}
    by_notation = {metric.notation: metric for metric in ours.values() if metric.notation}
    found = {name: metric for name, metric in ours.items() if is_of_documents or not metric.of_documents}
    for text in asked.split():
        notation = canonical(text, relevance_level)
        metric = by_notation.get(notation) or named_by_notation(notation)
        found.setdefault(metric.name, metric)
    return MetricChoice(tuple(found.values()), relevance_level)


def at_level(metric: Metric, relevance_level: int) -> Metric:
    """The metric with what it calls relevant from ``relevance_level`` on."""
    return replace(metric, notation=canonical(metric.notation, relevance_level)) if metric.notation else metric


def named_by_notation(notation: str) -> Metric:
    """A measure that has no name but ir_measures' own."""
    word = MEASURES[str(parse(notation).NAME)]
    return Metric(notation, notation, word.description, "ir_measures", notation)


def deepest_cutoff(asked: int, passages: int) -> float:
    """How deep a cut-off may be in lists of the best ``asked`` of so many ``passages``: any, where all are listed."""
    return asked if asked < passages else math.inf


def per_query_metrics(
    qrels: Mapping[int, Mapping[int, int]],
    queries_Q: np.ndarray,
    passages_QK: np.ndarray,
    depth: float,
    choice: MetricChoice | None = None,
) -> dict[int, dict[str, float]]:
    """Metrics of each query that was answered and judged; one without judgements is omitted.

    Args:
        qrels: ``qrels[query][passage]`` is a grade; one below 0 counts as 0.
        queries_Q: int64, the queries that were answered.
        passages_QK: int64, the ranking of ``queries_Q[i]`` in row i, best first, -1 after the end of a short list.
        depth: `deepest_cutoff` of the length that was asked for; the metrics are those whose cut-off is no deeper.
        choice: what is measured; None for `always_measured`.

    Returns:
        ``[query][metric]``, each from 0 to 1; with gains of one's own above that.

    Source:
        each metric's own in `METRICS`.
    """
    choice = choice or always_measured()
    measured = [metric for metric in choice.metrics if metric.cutoff <= depth]
    rows: dict[int, dict[str, float]] = {}
    judged = [i for i, query in enumerate(queries_Q.tolist()) if query in qrels]
    for start in range(0, len(judged), QUERIES_PER_BLOCK):
        block = judged[start : start + QUERIES_PER_BLOCK]
        rankings = {int(queries_Q[i]): [p for p in passages_QK[i].tolist() if p >= 0] for i in block}
        columns = {metric.name: column_of(metric, qrels, rankings) for metric in measured}
        rows |= {query: {name: column[query] for name, column in columns.items()} for query in rankings}
    return rows


def column_of(
    metric: Metric, qrels: Mapping[int, Mapping[int, int]], rankings: Mapping[int, Sequence[int]]
) -> dict[int, float]:
    """A metric of each query of some ``rankings``, {query: passages}, all of which ``qrels`` have."""
    if metric.compute is not None:
        return {query: metric.compute(found[: metric.cutoff], qrels[query]) for query, found in rankings.items()}
    # trec_eval counts below 0 as 0, and reads outside its table where a query has no other.
    judgements = {str(query): {str(p): max(int(grade), 0) for p, grade in qrels[query].items()} for query in rankings}
    runs = {str(query): [*map(str, found)] for query, found in rankings.items()}
    values = values_by_query(metric.notation, judgements, runs)
    return {query: values.get(str(query), 0.0) for query in rankings}


def evaluate(
    qrels: Mapping[int, Mapping[int, int]],
    queries_Q: np.ndarray,
    passages_QK: np.ndarray,
    depth: float,
    choice: MetricChoice | None = None,
) -> dict[str, float]:
    """Means over all queries of the qrels; one that was not answered counts as 0.

    Args:
        qrels, queries_Q, passages_QK, depth, choice: those of `per_query_metrics`.

    Raises:
        UserError: the qrels are empty.
    """
    return mean_metrics(qrels, per_query_metrics(qrels, queries_Q, passages_QK, depth, choice), depth, choice)


def mean_metrics(
    qrels: Mapping[int, Mapping[int, int]],
    rows: Mapping[int, Mapping[str, float]],
    depth: float,
    choice: MetricChoice | None = None,
) -> dict[str, float]:
    """Means over all queries of the qrels.

    Args:
        qrels: those of `per_query_metrics`.
        rows: what that returned.
        depth, choice: that it was given.

    Raises:
        UserError: the qrels are empty.
    """
    if not qrels:
        raise UserError("the qrels name no query, expected at least one; check the split's qrels file")
    names = (choice or always_measured()).names(depth)
    return {name: sum(row[name] for row in rows.values()) / len(qrels) for name in names}


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
