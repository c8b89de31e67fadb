"""An evaluation from its flags to its metrics: load, rank, rerank, and hand over to what is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.mining.negative_lists import NegativeLists, check_offsets, read_negative_lists
from data.tokens.collection import Preprocessed
from drivers.cli.evaluate import EvalFlags
from drivers.embeddings.distributed_search import check_index_fits, check_index_fits_model
from drivers.embeddings.store import describe_embeddings, read_embeddings_record, text_shape_of
from drivers.evaluate.checks import check_candidates, ranking_item
from drivers.evaluate.ranking import (
    Ranking,
    Reranking,
    SplitEmbeddings,
    encode_split,
    load_split,
    rank_split,
    rerank_lists,
    rerank_split,
)
from drivers.evaluate.results import ResultSettings, describe_ranks, write_results
from drivers.evaluate.score_curves import mean_scores
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
from utils.distributed import agreement, process_group
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import JobLayout
from utils.exchange.markers import read_done
from utils.exchange.negatives import Refresh, newest_refresh, read_refresh
from utils.flags import flags_json
from utils.search.settings import SearchSettings


@dataclass(frozen=True)
class Evaluation(ModelJob):
    """What preflight resolved.

    Args:
        collection: what is ranked.
        search: how the collection is searched.
        results: where its files are written, and what they are of.
        topk: passages returned per query.
        rerank_file: candidates to rerank, or None.
        ann_dir: the output of a generator whose negatives are compared, or None.
    """

    collection: Preprocessed
    search: SearchSettings
    results: ResultSettings
    topk: int
    rerank_file: Path | None
    ann_dir: Path | None


def places_of_lengths(flags: EvalFlags) -> list[str]:
    return [flags.embedding_dir] if flags.embedding_dir else places_of_model(flags)


def preflight(flags: EvalFlags) -> Evaluation:
    """Find what would fail later. UserError for anything that would."""
    lengths = lengths_of(flags, places_of_lengths(flags))
    model = model_settings(flags, flags.model_name_or_path)
    common = model_job(flags, lengths, model, compute_settings(flags))
    check_what_is_given(flags, model)
    search = search_settings(flags, common.compute.device)
    check_output_dirs(flags.output_dir)
    collection = open_collection(flags.data_dir, lengths, model.tokenizer, flags.dry_run)
    collection.check_split(flags.split)
    embedding_dir = Path(flags.embedding_dir) if flags.embedding_dir else None
    check_search(search, lengths, embedding_dir, model, collection)
    source = Path(flags.model_name_or_path or flags.embedding_dir)
    return Evaluation(
        **vars(common),
        collection=collection,
        search=search,
        results=ResultSettings(Path(flags.output_dir), flags.split, source, embedding_dir is not None),
        topk=flags.topk,
        rerank_file=Path(flags.rerank_file) if flags.rerank_file else None,
        ann_dir=Path(flags.ann_dir) if flags.ann_dir else None,
    )


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


@dataclass(frozen=True)
class Measured:
    """What is written; ``mean_score_Q`` float64 is each query's mean score over the collection."""

    ranking: Ranking
    reranking: Reranking | None
    mean_score_Q: np.ndarray


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
    candidates_QK = None
    if job.rerank_file is not None:
        candidates_QK = rerank_lists(job.rerank_file, collection, job.results.split)
    found = measure(job, world, embed(job, checks), candidates_QK)
    agreement.on_process0(world, partial(write, job, found, negatives, started))
    process_group.stop(world)


def measure(job: Evaluation, world: World, embeddings: SplitEmbeddings, candidates_QK: np.ndarray | None) -> Measured:
    """Rank the collection, and the candidates where there are some; all processes call this.

    Args:
        job: what is evaluated.
        world: the processes.
        embeddings: of the split's queries [Q, D], and of this process's share of the passages.
        candidates_QK: offsets of the passages to rerank for each query, or None.
    """
    collection, split = job.collection, job.results.split
    ranking = rank_split(world, collection, split, embeddings, job.topk, job.search)
    assert ranking is not None, "nobody is told to leave"
    reranking = None
    if candidates_QK is not None:
        reranking = rerank_split(world, collection, split, embeddings, candidates_QK)
    mean_score_Q = mean_scores(world, embeddings.queries_QD, embeddings.share, len(collection.passages))
    return Measured(ranking, reranking, mean_score_Q)


def write(job: Evaluation, found: Measured, negatives: tuple[int, NegativeLists] | None, started: float) -> None:
    """All files of the evaluation, on process 0.

    Args:
        job: what was evaluated.
        found: what was measured.
        negatives: the refresh that the model was trained on last and its lists, if known.
        started: when the work began, by `time.monotonic`, in seconds.
    """
    by_rank = describe_ranks(job.collection, job.results.split, found.ranking, found.mean_score_Q, negatives)
    write_results(job.results, job.collection, found.ranking, found.reranking, by_rank, time.monotonic() - started)


def checks_of(job: Evaluation) -> list[Check]:
    """All that process 0 looks at."""
    collection, results = job.collection, job.results
    on_disk, a_model = partial(describe_embeddings, results.source), partial(check_checkpoint, job.model)
    return [
        on_disk if results.is_of_embeddings else a_model,
        *check_collection(collection, job.model.tokenizer, (results.split,)),
        partial(describe_lengths, job.lengths, collection),
        partial(check_publishing, results.directory),
        partial(check_space, results.directory, [ranking_item(collection, results.split, job.topk)]),
    ]


def embed(job: Evaluation, checks: Preflight) -> SplitEmbeddings:
    """The split's judged queries and this process's passages: from disk, or encoded. Ends the checks."""
    collection, split, world, encoding = job.collection, job.results.split, checks.world, job.encoder.encoding
    if job.results.is_of_embeddings:
        checks.end()
        return load_split(world, job.results.source, collection, split)
    encoder = open_to_encode(job.encoder, job.model.name_or_path, collection, world)
    check_index_fits(job.search, len(collection.passages), encoder.spec.text_shape("passage"))
    checks.on_every_process(partial(check_encoding, encoder, collection, split, encoding, world.device))
    checks.end()
    embeddings = encode_split(world, encoder, collection, split, encoding)
    assert embeddings is not None, "nobody is told to leave"
    return embeddings


def last_negatives(ann_dir: Path, model: str, collection: Preprocessed) -> tuple[int, NegativeLists]:
    """Number and lists of the last refresh that the model's trainer switched to; the newest where that is not known.

    Args:
        ann_dir: a generator's output.
        model: a checkpoint, or "" for embeddings, which do not say who trained it.
        collection: what the negatives must be of.

    Raises:
        UserError: there is none, the one that was in use is damaged, or it is of another collection.
    """
    refresh = last_refresh(ann_dir, model)
    theirs, ours = refresh.record.get("collection_fingerprint"), collection.manifest["collection_fingerprint"]
    if theirs not in (None, ours):
        raise UserError(f"{refresh.path} is of another collection than --data_dir {collection.directory}; give its own")
    lists = read_negative_lists(refresh.path)
    check_offsets(lists, len(collection.queries(TRAIN)), len(collection.passages), refresh.path)
    return refresh.number, lists


def last_refresh(ann_dir: Path, model: str) -> Refresh:
    """The same before it is read."""
    done = read_done(Path(model).parent) if model else None
    taken = (done or {}).get("taken") or [{}]
    number = taken[-1].get("refresh")
    is_known = number is not None and JobLayout(ann_dir).record(number).exists()
    refresh = read_refresh(ann_dir, number) if is_known else newest_refresh(ann_dir, number)
    if refresh is not None:
        return refresh
    if number is None:
        raise UserError(f"--ann_dir {ann_dir} has no negatives, expected a generator's output; or omit it")
    raise UserError(
        f"--ann_dir {ann_dir} has no refresh {number}, which {JobLayout(Path(model).parent).done} says was "
        "the last in use; give the output of that run's generator, or omit it"
    )
