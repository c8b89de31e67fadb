"""An evaluation from its flags to its metrics: load, rank, rerank, and hand over to what is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.mining.negative_lists import NegativeLists
from data.tokens.collection import Preprocessed
from data.tokens.text_agreement import check_texts
from drivers.cli.evaluate import TOPK, EvalFlags
from drivers.embeddings.distributed_search import check_index_fits, check_index_fits_model
from drivers.embeddings.store import describe_embeddings, read_embeddings_record, text_shape_of
from drivers.evaluate.checks import check_candidates, ranking_item
from drivers.evaluate.coverage import AnswerSettings, answer_settings, describe_answers, measure_coverage
from drivers.evaluate.measure import Ranking
from drivers.evaluate.ranking import (
    SplitEmbeddings,
    encode_splits,
    load_splits,
    parts_of,
    rank_splits,
    rerank_split,
)
from drivers.evaluate.results import ResultSettings, SplitResult, write_results
from drivers.evaluate.score_curves import describe_ranks, mean_scores
from drivers.evaluate.splits import (
    RankedSplit,
    check_run,
    check_same_queries,
    describe_splits,
    read_candidates_of,
    read_run_of,
    splits_asked,
)
from drivers.evaluate.trained_on import last_negatives
from drivers.job.disk_budget import check_space
from drivers.job.encoder_setup import check_model_directory, open_to_encode
from drivers.job.model_identity import ModelSettings, check_checkpoint
from drivers.job.preflight import Check, Preflight, check_collection, check_publishing
from drivers.job.sanity_batch import check_encoding
from drivers.job.settings import (
    ModelJob,
    compute_settings,
    lengths_of,
    model_job,
    model_settings,
    places_of_model,
    search_settings,
)
from drivers.job.setup import check_output_dirs, open_collection, start_program
from drivers.job.text_lengths import TextLengths, check_made_with, describe_lengths
from utils.declared.model_types import MODEL_TYPES
from utils.distributed import agreement, process_group
from utils.distributed.world import World
from utils.errors import UserError
from utils.flags import flags_json
from utils.ir.pooled import overlap_with
from utils.search.settings import SearchSettings


@dataclass(frozen=True)
class Evaluation(ModelJob):
    """What preflight resolved.

    Args:
        collection: what is ranked.
        splits: whose queries are ranked, all in one search, and what is measured of each.
        search: how the collection is searched.
        results: where its files are written, and what they are of.
        topk: passages returned per query.
        rerank_file: candidates to rerank, or None.
        overlap_run: a run, BM25's mostly, that the lists are compared with, or None.
        ann_dir: the output of a generator whose negatives are compared, or None.
        answers: to the questions, and where the passages' texts are, or None.
    """

    collection: Preprocessed
    splits: list[RankedSplit]
    search: SearchSettings
    results: ResultSettings
    topk: int
    rerank_file: Path | None
    overlap_run: Path | None
    ann_dir: Path | None
    answers: AnswerSettings | None


def places_of_lengths(flags: EvalFlags) -> list[str]:
    return [flags.embedding_dir] if flags.embedding_dir else places_of_model(flags)


def preflight(flags: EvalFlags) -> Evaluation:
    """Find what would fail later. UserError for anything that would."""
    check_model_type(flags)
    lengths = lengths_of(flags, places_of_lengths(flags))
    model = model_settings(flags, flags.model_name_or_path)
    common = model_job(flags, lengths, model, compute_settings(flags))
    check_what_is_given(flags, model)
    search = search_settings(flags, common.compute.device)
    check_output_dirs(flags.output_dir)
    collection = open_collection(flags.data_dir, lengths, model.tokenizer, flags.dry_run)
    check_texts(collection, common.texts)
    embedding_dir = Path(flags.embedding_dir) if flags.embedding_dir else None
    splits = splits_asked(collection, flags.split, flags.metrics, flags.relevance_level)
    if flags.rerank_file or flags.overlap_run:
        check_same_queries(splits)
    check_search(search, lengths, embedding_dir, model, collection)
    source = Path(flags.model_name_or_path or flags.embedding_dir)
    return Evaluation(
        **vars(common),
        collection=collection,
        splits=splits,
        search=search,
        results=ResultSettings(Path(flags.output_dir), source, embedding_dir is not None),
        topk=flags.topk or TOPK,
        rerank_file=Path(flags.rerank_file) if flags.rerank_file else None,
        overlap_run=Path(flags.overlap_run) if flags.overlap_run else None,
        ann_dir=Path(flags.ann_dir) if flags.ann_dir else None,
        answers=answer_settings(collection, splits, flags.raw_data_dir, flags.answer_match),
    )


def check_model_type(flags: EvalFlags) -> None:
    """UserError where there is none: of --run alone nothing is encoded."""
    if not flags.model_type:
        raise UserError(f"--model_type is missing, expected one of {', '.join(MODEL_TYPES)}; or --run, a run's file")


def check_what_is_given(flags: EvalFlags, model: ModelSettings) -> None:
    """A model or embeddings of one, and perhaps candidates to rerank."""
    if bool(flags.model_name_or_path) == bool(flags.embedding_dir):
        raise UserError(
            "give --model_name_or_path (a checkpoint) or --embedding_dir (embeddings on disk), one of the two"
        )
    if flags.model_name_or_path:
        check_model_directory(model, flags.dry_run)
    if flags.rerank_file:
        check_candidates(Path(flags.rerank_file))
    if flags.overlap_run:
        check_run(Path(flags.overlap_run), "--overlap_run")


def check_search(
    search: SearchSettings,
    lengths: TextLengths,
    embedding_dir: Path | None,
    model: ModelSettings,
    collection: Preprocessed,
) -> None:
    """Whether the index fits the model's embeddings, or those on disk.

    Args:
        search: which index, and its options.
        lengths: of texts, with which the embeddings on disk must have been made.
        embedding_dir: where they are, None where the model encodes.
        model: what encodes, where nothing is on disk.
        collection: what is searched.

    Raises:
        UserError: they do not fit.
    """
    if embedding_dir is not None:
        stored = read_embeddings_record(embedding_dir, collection)
        check_made_with(lengths, embedding_dir, stored)
        check_index_fits(search, stored["passages"], text_shape_of(stored))
    else:
        check_index_fits_model(search, len(collection.passages), model)


def run(job: Evaluation) -> None:
    """Load, rank, write."""
    collection, started = job.collection, time.monotonic()
    world, _ = start_program("run_eval", job.compute, flags_json(job.flag_values))
    negatives = None
    if job.ann_dir is not None:
        model = job.model.name_or_path
        negatives = agreement.on_process0(world, partial(last_negatives, job.ann_dir, model, collection))
    checks = Preflight(world)
    checks.on_process0(*checks_of(job))
    given = read_given(job, world)
    embeddings = embed(job, checks)
    rankings = rank_splits(world, job.splits, embeddings, job.topk, job.search)
    assert rankings is not None, "nobody is told to leave"
    rerankings = rerank_splits(job, world, embeddings, given)
    mean_score_Q = mean_scores(world, embeddings.queries_QD, embeddings.share, len(collection.passages))
    found = Found(rankings, rerankings, parts_of(mean_score_Q, job.splits))
    agreement.on_process0(world, partial(write, job, found, given, negatives, started))
    process_group.stop(world)


@dataclass(frozen=True)
class GivenLists:
    """What files have for the queries of each split, int64 [Q, K]: candidates to rerank; on process 0, which alone
    needs it, a run to compare with."""

    candidates: list[np.ndarray] | None
    compared: list[np.ndarray] | None


def read_given(job: Evaluation, world: World) -> GivenLists:
    """UserError for a line that cannot be read."""
    candidates, passage_ids, splits = None, job.collection.passages.stored_ids(), job.splits
    if job.rerank_file is not None:
        candidates = read_candidates_of(job.rerank_file, splits, passage_ids)
    overlap_run = job.overlap_run
    if overlap_run is None:
        return GivenLists(candidates, None)
    compared = agreement.on_process0(world, lambda: read_run_of(overlap_run, splits, passage_ids, {})[1])
    return GivenLists(candidates, None if compared is None else [lists for lists, _ in compared])


@dataclass(frozen=True)
class Found:
    """Of each split: its ranking, its reranking, and each query's mean score over the collection, float64."""

    rankings: list[Ranking]
    rerankings: list[Ranking | None]
    mean_scores_Q: list[np.ndarray]


def rerank_splits(
    job: Evaluation, world: World, embeddings: SplitEmbeddings, given: GivenLists
) -> list[Ranking | None]:
    """The candidates of each split in the order of their scores; None of a split that has none.

    Args:
        job: what is evaluated.
        world: all its processes call this.
        embeddings: of all splits' queries.
        given: the candidates.
    """
    if given.candidates is None:
        return [None] * len(job.splits)
    of_splits = zip(job.splits, embeddings.by_split(job.splits), given.candidates, strict=True)
    found: list[Ranking | None] = []
    for split, of_split, candidates_QK in of_splits:
        has_some = bool((candidates_QK >= 0).any())
        found.append(rerank_split(world, split, of_split, candidates_QK) if has_some else None)
    return found


def write(
    job: Evaluation, found: Found, given: GivenLists, negatives: tuple[int, NegativeLists] | None, started: float
) -> None:
    """All files of the evaluation, on process 0.

    Args:
        job: what was evaluated.
        found: what was measured.
        given: the run that it is compared with.
        negatives: the refresh that the model was trained on last and its lists, if known.
        started: when the work began, by `time.monotonic`, in seconds.
    """
    results, coverages = [], measure_coverage(job.answers, [*zip(job.splits, found.rankings, strict=True)])
    for number, split in enumerate(job.splits):
        ranking = found.rankings[number]
        by_rank = describe_ranks(split, ranking, found.mean_scores_Q[number], negatives)
        overlap = dict[str, float]()
        if given.compared is not None:
            overlap = overlap_with(split.judgements, split.query_Q, ranking.passages_QK, given.compared[number])
        results.append(SplitResult(split, ranking, found.rerankings[number], by_rank, overlap, coverages[number]))
    passage_ids = job.collection.passages.stored_ids()
    write_results(job.results, passage_ids, results, time.monotonic() - started)


def checks_of(job: Evaluation) -> list[Check]:
    """All that process 0 looks at."""
    collection, results = job.collection, job.results
    judged = [split.name for split in job.splits if collection.has_qrels(split.name)]
    on_disk, a_model = partial(describe_embeddings, results.source), partial(check_checkpoint, job.model)
    return [
        on_disk if results.is_of_embeddings else a_model,
        *check_collection(collection, job.model.tokenizer, judged),
        partial(describe_splits, job.splits),
        *([partial(describe_answers, job.answers)] if job.answers is not None else []),
        partial(describe_lengths, job.lengths, collection),
        partial(check_texts, collection, job.texts),
        partial(check_publishing, results.directory),
        partial(check_space, results.directory, [ranking_item(split, job.topk) for split in job.splits]),
    ]


def embed(job: Evaluation, checks: Preflight) -> SplitEmbeddings:
    """The splits' queries and this process's passages: from disk, or encoded. Ends the checks."""
    collection, splits, world, encoding = job.collection, job.splits, checks.world, job.encoder.encoding
    if job.results.is_of_embeddings:
        checks.end()
        return load_splits(world, job.results.source, splits)
    encoder = open_to_encode(job.encoder, job.model.name_or_path, collection, world)
    check_index_fits(job.search, len(collection.passages), encoder.spec.text_shape("passage"))
    checks.on_every_process(partial(check_encoding, encoder, collection, splits[0].name, encoding, world.device))
    checks.end()
    embeddings = encode_splits(world, encoder, splits, encoding)
    assert embeddings is not None, "nobody is told to leave"
    return embeddings
