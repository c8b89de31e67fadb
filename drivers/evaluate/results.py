"""What an evaluation writes: TREC runs, tables by query and by rank, and metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drivers.evaluate.coverage import Coverage
from drivers.evaluate.measure import Ranking
from drivers.evaluate.splits import RankedSplit
from utils.exchange.atomic import read_json, write_json, write_text
from utils.exchange.evaluations import write_metrics
from utils.exchange.layout import EMBEDDINGS_RECORD, TRAINER_STATE, EvaluationLayout
from utils.ir.metrics import format_metrics, metrics_record
from utils.ir.trec import write_run
from utils.run_log import say


@dataclass(frozen=True)
class ResultSettings:
    """Where an evaluation's results are written, and what they are of.

    Args:
        directory: where.
        source: a model, embeddings on disk, or a run.
        is_of_embeddings: it is embeddings.
    """

    directory: Path
    source: Path
    is_of_embeddings: bool


@dataclass(frozen=True)
class SplitResult:
    """What was found of a split; ``by_rank`` is that of `describe_ranks`, ``overlap`` that of `overlap_with`,
    ``coverage`` that of its answers, if they are given."""

    split: RankedSplit
    ranking: Ranking
    reranking: Ranking | None
    by_rank: Mapping[str, object]
    overlap: Mapping[str, float]
    coverage: Coverage | None


def write_results(
    settings: ResultSettings, passage_ids: Sequence[str], results: Sequence[SplitResult], seconds: float
) -> None:
    """The run files first; metrics.json last, so that its presence says that all is there.

    Args:
        settings: where they are written, and what they are of.
        passage_ids: the collection's own.
        results: of each split; the keys of metrics.json itself are those of the first.
        seconds: that the evaluation took.
    """
    files, written = EvaluationLayout(settings.directory), []
    for result in results:
        written += write_ranking(files, passage_ids, result)
    write_record(settings, results, written, seconds)


def write_record(
    settings: ResultSettings, results: Sequence[SplitResult], written: Sequence[Path], seconds: float
) -> None:
    """metrics.json, and a line of each split in the log.

    Args:
        settings: where it is written, and what it is of.
        results: of each split.
        written: the files that it vouches for.
        seconds: that the evaluation took.
    """
    files, by_split = EvaluationLayout(settings.directory), {}
    for result in results:
        name, ranking, reranking = result.split.name, result.ranking, result.reranking
        found: dict[str, object] = {"metrics": ranking.metrics, "queries": len(ranking.by_query)}
        found["relevance_level"] = result.split.choice.relevance_level
        found["pooled"] = {**ranking.pooled, **result.overlap}
        if result.coverage is not None:
            found["coverage"] = result.coverage.record()
            say(f"answers {name}: {result.coverage.describe()}")
        say(f"full ranking {name}: {describe_metrics(ranking)}")
        if reranking is not None:
            found["rerank_metrics"] = reranking.metrics
            say(f"reranking {name}: {describe_metrics(reranking)}")
        by_split[name] = found
    first = results[0]
    queries = len(first.ranking.by_query)
    record = metrics_record(first.ranking.metrics, queries, str(settings.source), step_of_source(settings), seconds)
    record |= {**by_split[first.split.name], "split": first.split.name, "splits": by_split}
    write_metrics(files.root, record, [path.name for path in written])
    say(f"finished {files.metrics}")


def describe_metrics(ranking: Ranking) -> str:
    """For a log line."""
    return format_metrics(ranking.metrics) if ranking.by_query else "no metric: nobody has judged this split"


def step_of_source(settings: ResultSettings) -> int | None:
    """The trainer's, where the model or the embeddings record it."""
    state = settings.source / (EMBEDDINGS_RECORD if settings.is_of_embeddings else TRAINER_STATE)
    return read_json(state).get("step") if state.is_file() else None


def write_ranking(files: EvaluationLayout, passage_ids: Sequence[str], result: SplitResult) -> list[Path]:
    """The run of the full ranking, the metrics of each query, what is at each rank, and the run of the reranking.

    Args:
        files: where they go.
        passage_ids: the collection's own.
        result: of a split.

    Returns:
        The files.
    """
    split, reranking = result.split, result.reranking
    paths = [files.ranking(split.name), files.per_query(split.name), files.by_rank(split.name)]
    write_lists(paths[0], passage_ids, split, result.ranking, "ance")
    write_per_query(paths[1], split, result.ranking.by_query)
    write_json(paths[2], result.by_rank)
    if reranking is not None:
        paths.append(files.reranking(split.name))
        write_lists(paths[-1], passage_ids, split, reranking, "ance-rerank")
    return paths + write_coverage(files, result)


def write_coverage(files: EvaluationLayout, result: SplitResult) -> list[Path]:
    """A line for each question: its id, and the rank of the first passage with an answer. No file without answers."""
    if result.coverage is None:
        return []
    path, ranks = files.answers(result.split.name), result.coverage.first_hit_Q.tolist()
    lines = [f"{query_id}\t{rank}\n" for query_id, rank in zip(result.split.query_ids, ranks, strict=True)]
    write_text(path, "".join(["query_id\tfirst_answer\n", *lines]))
    return [path]


def write_lists(path: Path, passage_ids: Sequence[str], split: RankedSplit, ranking: Ranking, tag: str) -> None:
    """A TREC run in the collection's own ids.

    Args:
        path: The file to write.
        passage_ids: Of all passages.
        split: Whose queries are ranked.
        ranking: Of these queries.
        tag: The run's name, in its last column.
    """
    write_run(path, split.query_ids, passage_ids, ranking.passages_QK, ranking.scores_QK, tag)


def write_per_query(path: Path, split: RankedSplit, by_query: dict[int, dict[str, float]]) -> None:
    """A line for each query of the qrels: its id and metrics, named in the first line; their means are the metrics."""
    query_ids = split.collection.queries(split.name).original_ids()
    names = [*next(iter(by_query.values()), {})]
    lines = ["\t".join(["query_id", *names])]
    for query, row in by_query.items():
        lines.append("\t".join([query_ids[query], *(f"{row[name]:.9g}" for name in names)]))
    write_text(path, "\n".join(lines) + "\n")
