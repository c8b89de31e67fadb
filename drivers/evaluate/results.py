"""What an evaluation writes: TREC runs, tables by query and by rank, and metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.mining.negative_lists import NegativeLists
from data.tokens.collection import Preprocessed
from drivers.evaluate.ranking import Ranking, Reranking
from drivers.evaluate.score_curves import as_json, grades_by_rank, overlap, score_curves
from utils.exchange.atomic import read_json, write_json, write_text
from utils.exchange.evaluations import write_metrics
from utils.exchange.layout import EMBEDDINGS_RECORD, TRAINER_STATE, EvaluationLayout
from utils.ir.metrics import format_metrics, metrics_record
from utils.ir.trec import write_run
from utils.run_log import say


def describe_ranks(
    collection: Preprocessed,
    split: str,
    ranking: Ranking,
    mean_score_Q: np.ndarray,
    negatives: tuple[int, NegativeLists] | None,
) -> dict[str, object]:
    """What SPLIT.by_rank.json holds.

    Args:
        collection, split: whose qrels and queries.
        ranking: of the whole collection.
        mean_score_Q: float64, each query's mean score over the collection.
        negatives: the refresh that the model was trained on last and its lists, if known.
    """
    qrels, lists_QK = collection.qrels(split), ranking.passages_QK
    curves = score_curves(ranking.query_Q, lists_QK, ranking.scores_QK, mean_score_Q)
    by_grade = grades_by_rank(qrels, ranking.query_Q, lists_QK)
    query_ids = collection.queries(split).original_ids()
    found = as_json(curves, qrels, by_grade, query_ids, len(ranking.query_Q))
    if negatives is not None:
        refresh, lists = negatives
        shares = overlap(lists_QK, lists.negative_QN, len(collection.passages))
        found["training_negatives"] = {"refresh": refresh, **shares}
    return found


@dataclass(frozen=True)
class ResultSettings:
    """Where an evaluation's results are written, and what they are of: a model, or embeddings on disk."""

    directory: Path
    split: str
    source: Path
    is_of_embeddings: bool


class OriginalIds(NamedTuple):
    """The collection's own, by offset: read once, for they are as many as the passages."""

    queries: list[str]
    passages: list[str]


def write_results(
    settings: ResultSettings,
    collection: Preprocessed,
    ranking: Ranking,
    reranking: Reranking | None,
    by_rank: Mapping[str, object],
    seconds: float,
) -> None:
    """The run files first; metrics.json last, so that its presence says that all is there.

    Args:
        settings: where they are written, and what they are of.
        collection: for the ids.
        ranking, reranking: what was found; None where nothing was reranked.
        by_rank: see `describe_ranks`.
        seconds: that the evaluation took.
    """
    files, split = EvaluationLayout(settings.directory), settings.split
    ids = OriginalIds(collection.queries(split).original_ids(), collection.passages.original_ids())
    written = write_ranking(files, split, ids, ranking)
    write_json(files.by_rank(split), by_rank)
    written.append(files.by_rank(split))
    record = metrics_record(
        ranking.metrics, len(ranking.by_query), str(settings.source), step_of_source(settings), seconds
    )
    say(f"full ranking {split}: {format_metrics(ranking.metrics)}")
    if reranking is not None:
        lists = (reranking.scores_QK, reranking.passages_QK)
        write_lists(files.reranking(split), ids, ranking.query_Q, lists, "ance-rerank")
        written.append(files.reranking(split))
        record["rerank_metrics"] = reranking.metrics
        say(f"reranking {split}: {format_metrics(reranking.metrics)}")
    write_metrics(files.root, record, [path.name for path in written])
    say(f"finished {files.metrics}")


def step_of_source(settings: ResultSettings) -> int | None:
    """The trainer's, where the model or the embeddings record it."""
    state = settings.source / (EMBEDDINGS_RECORD if settings.is_of_embeddings else TRAINER_STATE)
    return read_json(state).get("step") if state.is_file() else None


def write_ranking(files: EvaluationLayout, split: str, ids: OriginalIds, ranking: Ranking) -> list[Path]:
    """The run of the full ranking, and the metrics of each query.

    Args:
        files: where they go.
        split: of the queries.
        ids: of the split's queries, and of all passages.
        ranking: of the whole collection.

    Returns:
        The files.
    """
    lists = (ranking.scores_QK, ranking.passages_QK)
    write_lists(files.ranking(split), ids, ranking.query_Q, lists, "ance")
    write_per_query(files.per_query(split), ids.queries, ranking.by_query)
    return [files.ranking(split), files.per_query(split)]


def write_lists(
    path: Path, ids: OriginalIds, query_Q: np.ndarray, lists: tuple[np.ndarray, np.ndarray], tag: str
) -> None:
    """A TREC run of ``lists``, (scores_QK, passages_QK), in the collection's own ids.

    Args:
        path: The file to write.
        ids: Of the split's queries, and of all passages.
        query_Q: Whose lists they are, by offset.
        lists: float [Q, K] and int [Q, K].
        tag: The run's name, in its last column.
    """
    scores_QK, passages_QK = lists
    query_ids = [ids.queries[query] for query in query_Q]
    write_run(path, query_ids, ids.passages, passages_QK, scores_QK, tag)


def write_per_query(path: Path, query_ids: Sequence[str], by_query: dict[int, dict[str, float]]) -> None:
    """A line for each query of the qrels: its id and metrics, named in the first line; their means are the metrics."""
    names = [*next(iter(by_query.values()))]
    lines = ["\t".join(["query_id", *names])]
    for query, row in by_query.items():
        lines.append("\t".join([query_ids[query], *(f"{row[name]:.9g}" for name in names)]))
    write_text(path, "\n".join(lines) + "\n")
