"""What an evaluation writes: TREC runs, tables by query and by rank, and metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.mining.negative_lists import NegativeLists
from data.tokens.collection import Preprocessed
from drivers.cli import EvalFlags
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
) -> dict[str, Any]:
    """What SPLIT.by_rank.json holds."""
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


def write_results(
    flags: EvalFlags,
    collection: Preprocessed,
    ranking: Ranking,
    reranking: Reranking | None,
    by_rank: dict[str, Any],
    seconds: float,
) -> None:
    """The run files first; metrics.json last, so that its presence says that all is there."""
    files, model = EvaluationLayout(Path(flags.output_dir)), Path(flags.model_name_or_path or flags.embedding_dir)
    all_ids, passage_ids = collection.queries(flags.split).original_ids(), collection.passages.original_ids()
    query_ids = [all_ids[query] for query in ranking.query_Q]
    written = [files.ranking(flags.split), files.per_query(flags.split), files.by_rank(flags.split)]
    write_run(written[0], query_ids, passage_ids, ranking.passages_QK, ranking.scores_QK, "ance")
    write_per_query(written[1], all_ids, ranking.by_query)
    write_json(written[2], by_rank)
    state = model / (EMBEDDINGS_RECORD if flags.embedding_dir else TRAINER_STATE)
    step = read_json(state).get("step") if state.is_file() else None
    record = metrics_record(ranking.metrics, len(ranking.by_query), str(model), step, seconds)
    say(f"full ranking {flags.split}: {format_metrics(ranking.metrics)}")
    if reranking is not None:
        written.append(files.reranking(flags.split))
        write_run(written[-1], query_ids, passage_ids, reranking.passages_QK, reranking.scores_QK, "ance-rerank")
        record["rerank_metrics"] = reranking.metrics
        say(f"reranking {flags.split}: {format_metrics(reranking.metrics)}")
    write_metrics(files.root, record, [path.name for path in written])
    say(f"finished {files.metrics}")


def write_per_query(path: Path, query_ids: Sequence[str], by_query: dict[int, dict[str, float]]) -> None:
    """A line for each query of the qrels: its id and metrics, named in the first line; their means are the metrics."""
    names = [*next(iter(by_query.values()))]
    lines = ["\t".join(["query_id", *names])]
    for query, row in by_query.items():
        lines.append("\t".join([query_ids[query], *(f"{row[name]:.9g}" for name in names)]))
    write_text(path, "\n".join(lines) + "\n")
