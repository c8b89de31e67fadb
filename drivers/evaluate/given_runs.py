"""Evaluate anyone's runs without a model: lists from files, measured as the lists of a model are."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from data.sources.atomic_dir import check_can_write
from data.tokens.collection import open_preprocessed
from data.tokens.verify import check_inputs
from drivers.cli.evaluate import EvalFlags
from drivers.evaluate.coverage import AnswerSettings, answer_settings, describe_answers, measure_coverage
from drivers.evaluate.measure import measure_lists
from drivers.evaluate.results import ResultSettings, SplitResult, write_coverage, write_per_query, write_record
from drivers.evaluate.splits import (
    RankedSplit,
    check_run,
    check_same_queries,
    describe_splits,
    read_run_of,
    splits_asked,
)
from utils.errors import UserError
from utils.exchange.layout import EvaluationLayout, run_name
from utils.flag_values import LARGEST_INTEGER
from utils.flags import flags_json, ignored_flags
from utils.ir.metrics import deepest_cutoff
from utils.ir.pooled import overlap_with
from utils.ir.runs import GivenRun
from utils.run_log import header, say
from utils.search.ranked_lists import without_own

OF_A_MODEL = ("model_name_or_path", "embedding_dir", "rerank_file", "ann_dir")
OF_A_RUN = (
    *("run", "data_dir", "output_dir", "split", "metrics", "relevance_level", "topk", "overlap_run"),
    *("raw_data_dir", "answer_match", "dry_run"),
)


@dataclass(frozen=True)
class RunsJob:
    """What preflight resolved.

    Args:
        flag_values: the flags by name, for the log and a --dry_run.
        splits: whose queries are wanted, and what is measured of each.
        runs: the files, by where their results are written.
        topk: passages of each list that are measured, the first; None for all.
        overlap_run: a run that each is compared with, or None.
        answers: to the questions, and where the passages' texts are, or None.
        unused: the flags that were given and have no effect.
    """

    flag_values: Mapping[str, object]
    splits: list[RankedSplit]
    runs: Mapping[Path, Path]
    topk: int | None
    overlap_run: Path | None
    answers: AnswerSettings | None
    unused: Sequence[str]


def preflight(flags: EvalFlags) -> RunsJob:
    """Find what would fail later. UserError for anything that would."""
    if of_a_model := [f"--{name}" for name in OF_A_MODEL if getattr(flags, name)]:
        raise UserError(
            f"--run is given with {', '.join(of_a_model)}, expected a run or a model; evaluate each by itself"
        )
    files = [Path(path) for path in flags.run or []]
    for path in files:
        check_run(path, "--run")
    overlap_run = Path(flags.overlap_run) if flags.overlap_run else None
    if overlap_run is not None:
        check_run(overlap_run, "--overlap_run")
    runs = {Path(flags.output_dir) / run_name(path): path for path in files}
    if len(runs) < len(files):
        raise UserError(f"--run has two files of one name ({', '.join(map(str, files))}); evaluate each by itself")
    for directory in runs:
        check_can_write(directory)
    collection = open_preprocessed(flags.data_dir, max_seq_length=1, max_query_length=1)
    check_inputs(collection)
    splits = splits_asked(collection, flags.split, flags.metrics, flags.relevance_level)
    check_same_queries(splits)
    answers = answer_settings(collection, splits, flags.raw_data_dir, flags.answer_match)
    return RunsJob(asdict(flags), splits, runs, flags.topk, overlap_run, answers, unused_flags(flags))


def unused_flags(flags: EvalFlags) -> list[str]:
    """Those given, with another value than their default, that say how a model encodes or is searched with."""
    told_already = ignored_flags(EvalFlags)
    others = [field for field in fields(flags) if field.name not in (*OF_A_RUN, *told_already)]
    return [f"--{field.name}" for field in others if getattr(flags, field.name) != field.default]


def run(job: RunsJob) -> None:
    """Read and measure all runs, then write."""
    started = time.monotonic()
    for line in header("run_eval", secrets.token_hex(6), flags_json(job.flag_values), ["cpu"]):
        say(line)
    say(f"preflight: {describe_splits(job.splits)}")
    if job.answers is not None:
        say(f"preflight: {describe_answers(job.answers)}")
    if job.unused:
        say(f"warning: without effect on --run, of which nothing is encoded or searched: {', '.join(job.unused)}")
    passage_ids = job.splits[0].collection.passages.stored_ids()
    compared, unknown_ids = None, dict[str, int]()
    if job.overlap_run is not None:
        compared = read_run_of(job.overlap_run, job.splits, passage_ids, unknown_ids)[1]
    found = {}
    for directory, path in job.runs.items():
        given, lists = read_run_of(path, job.splits, passage_ids, unknown_ids)
        say(describe_run(path, given, job.topk))
        deepest = min(job.topk or LARGEST_INTEGER, given.passages_QK.shape[1])
        depth, results = deepest_cutoff(deepest, len(passage_ids)), []
        for number, (split, (passages_QK, scores_QK)) in enumerate(zip(job.splits, lists, strict=True)):
            kept = without_own(passages_QK, scores_QK, split.own_passage_Q, deepest)
            ranking = measure_lists(split, *kept, depth)
            overlap = dict[str, float]()
            if compared is not None:
                overlap = overlap_with(split.judgements, split.query_Q, ranking.passages_QK, compared[number][0])
            results.append(SplitResult(split, ranking, None, {}, overlap, None))
        found[directory] = results
    ranked = [(result.split, result.ranking) for results in found.values() for result in results]
    coverages = iter(measure_coverage(job.answers, ranked))
    for directory, results in found.items():
        results = [replace(result, coverage=next(coverages)) for result in results]
        write(directory, job, results, time.monotonic() - started)


def describe_run(path: Path, given: GivenRun, topk: int | None) -> str:
    """What a run holds that the collection has not, how it is ordered, and what of it is not measured.

    Args:
        path, given: the run.
        topk: passages of each list that are measured; None for all.
    """
    length_Q = (given.passages_QK >= 0).sum(axis=1)
    parts = [f"{path}: lists for {int((length_Q > 0).sum()):,} of {len(length_Q):,} queries"]
    if topk is not None and (longer := int((length_Q > topk).sum())):
        parts.append(f"{longer:,} of them are longer than {topk}, the first {topk} passages are measured (--topk)")
    return "; ".join([*parts, *given.remarks(", and count as not judged")])


def write(directory: Path, job: RunsJob, results: list[SplitResult], seconds: float) -> None:
    """The results of one run.

    Args:
        directory: where.
        job: what was asked for.
        results: of each split.
        seconds: since the program began.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = [EvaluationLayout(directory).per_query(result.split.name) for result in results]
    for path, result in zip(paths, results, strict=True):
        write_per_query(path, result.split, result.ranking.by_query)
    for result in results:
        paths += write_coverage(EvaluationLayout(directory), result)
    settings = ResultSettings(directory, job.runs[directory], False)
    write_record(settings, results, paths, seconds)
