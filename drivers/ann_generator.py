"""The generator: which checkpoint is next, and one refresh made from it."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.negatives import Candidates, chunk_of_queries, describe_selection, resolve_strategy, select_negatives
from data.preprocessed import Preprocessed
from data.training_data import write_negative_lists
from drivers import retrieval
from drivers.flags import GenerateFlags
from drivers.shared import (
    COMMON,
    agree,
    check_agreement,
    check_compute_flags,
    check_model_directory,
    check_output_dirs,
    check_refresh_flags,
    open_collection,
    open_encoder,
    provenance,
    start_program,
)
from utils import distributed, exchange, publishing
from utils.distributed import World
from utils.errors import UserError
from utils.flags import check_positive
from utils.metrics import evaluate
from utils.run_log import RunLog, say
from utils.search import SearchOptions, choose_backend

EMBEDDINGS = "embeddings"  # in --output_dir
DEV_CANDIDATES = 100  # enough for recall@100 and everything at 10


@dataclass(frozen=True)
class Job:
    """What preflight resolved."""

    flags: GenerateFlags
    collection: Preprocessed
    strategy: str
    strategy_from: str
    dtype: torch.dtype | None
    backend: str

    @property
    def ann_dir(self) -> Path:
        return Path(self.flags.output_dir)

    @property
    def training_dir(self) -> Path:
        return Path(self.flags.training_dir)


@dataclass(frozen=True)
class Work:
    """One refresh to make: its number and the checkpoint it is made from."""

    refresh: int
    checkpoint: str
    step: int
    model_sha256: str


@dataclass(frozen=True)
class Vectors:
    """The embeddings a refresh needs: queries whole, passages by shares."""

    dev_QD: np.ndarray
    train_rows_Q: np.ndarray
    train_QD: np.ndarray
    share: retrieval.PassageShare


def preflight(flags: GenerateFlags) -> Job:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    strategy, strategy_from = resolve_strategy(
        flags.negative_strategy, flags.ann_measure_topk_mrr, flags.bottom_neg, flags.bottom_only
    )
    dtype = check_compute_flags(flags)
    check_positive(flags, "topk_training", "negative_sample", "limit_total_number")
    check_refresh_flags(flags)
    if flags.inference and flags.load_gen:
        raise UserError("--inference writes embeddings and --load_gen reads them; give one of the two")
    backend = choose_backend(flags.search_backend, flags.faiss_index, torch.cuda.is_available() and not flags.no_cuda)
    if not Path(flags.init_model_dir).is_dir():
        raise UserError(f"--init_model_dir {flags.init_model_dir} is not a directory, expected the warmup checkpoint")
    check_model_directory(flags, flags.init_model_dir)
    check_output_dirs(flags.output_dir)
    collection = open_collection(flags, flags.tokenizer_name or flags.init_model_dir)
    passages = len(collection.passages)
    retrieval.check_index_fits_model(flags, passages, flags.init_model_dir)
    if flags.load_gen:
        retrieval.read_embeddings_record(retrieval.newest_embeddings(Path(flags.output_dir) / EMBEDDINGS), collection)
    if flags.topk_training > passages:
        raise UserError(f"--topk_training is {flags.topk_training}, the collection has {passages} passages; pass less")
    if flags.negative_sample > flags.topk_training:
        raise UserError(f"--negative_sample {flags.negative_sample} exceeds --topk_training {flags.topk_training}")
    if not len(collection.qrels("train").queries_with_positive()):
        raise UserError(f"{flags.data_dir}: no train query has a positive, expected some; check its qrels")
    return Job(flags, collection, strategy, strategy_from, dtype, backend)


def generate(job: Job, resolved_flags: str) -> None:
    """Make refreshes until the trainer is done, or as many as the flags say."""
    flags = job.flags
    world, run_id = start_program("run_ann_data_gen", resolved_flags, flags.no_cuda)
    if world.is_first:
        publishing.check_writable(job.ann_dir)
        say(f"negatives: {job.strategy} ({job.strategy_from})")
        say_coverage(job.collection)
    with exchange.role_held(job.ann_dir, "generator") if world.is_first else nullcontext():
        peer = exchange.watch_peer(job.training_dir)
        ours = provenance(run_id, flags, job.collection) | selection_flags(job)
        agree(world, partial(check_series, job, ours))
        log = RunLog(job.ann_dir, job.ann_dir / "tensorboard") if world.is_first else None
        made = 0
        while True:
            work = next_work(job, world, peer, ours)
            if work is None:
                break
            one_refresh(job, world, work, ours, log)
            made += 1
            if flags.inference or flags.load_gen or made >= flags.limit_total_number:
                break
            if 0 <= flags.end_output_num <= work.refresh:
                break
        if world.is_first:
            say(f"finished refreshes={made}")
    distributed.stop(world)


def selection_flags(job: Job) -> dict[str, Any]:
    """What makes one series of negatives, beside the model and the data."""
    flags = job.flags
    return {
        "strategy": job.strategy,
        "topk_training": flags.topk_training,
        "negative_sample": flags.negative_sample,
        "ann_chunk_factor": flags.ann_chunk_factor,
    }


def check_series(job: Job, ours: dict[str, Any]) -> None:
    """Disagreement where --output_dir already holds refreshes of another strategy, seed or schedule."""
    for record in exchange.read_records(job.ann_dir)[-1:]:
        what = f"refresh {record['refresh']} in {job.ann_dir}"
        check_agreement(ours, record, what, (*COMMON, *selection_flags(job), "seed"))


def say_coverage(collection: Preprocessed) -> None:
    """Queries without a positive are neither encoded nor searched; how many there are."""
    for split in ("train", "dev"):
        held, judged = len(collection.queries(split)), len(collection.qrels(split).queries_with_positive())
        say(f"{split}: {held:,} queries, {judged:,} with a positive in the collection, {held - judged:,} left out")


def next_work(job: Job, world: World, peer: exchange.Peer, ours: dict[str, Any]) -> Work | None:
    """The next refresh, waited for; None once the trainer is done."""

    def look() -> dict[str, Any] | None:
        return agree(world, partial(look_for_work, job, ours), peer)

    answer = exchange.wait_for(look, f"a new checkpoint in {job.training_dir}", quiet=not world.is_first)
    return None if "done" in answer else Work(**answer["work"])


def look_for_work(job: Job, ours: dict[str, Any]) -> dict[str, Any] | None:
    """Rank 0's decision: the work, the end, or None for "not yet". Disagreement where the trainer's flags differ."""
    flags, ann_dir = job.flags, job.ann_dir
    refresh = exchange.next_refresh_number(ann_dir)
    if flags.inference:
        return as_work(refresh, exchange.newest_checkpoint(job.training_dir) or initial_model(job))
    if 0 <= flags.end_output_num < refresh:
        return {"done": f"refresh {flags.end_output_num} exists"}
    if flags.load_gen:
        stored = retrieval.read_embeddings_record(retrieval.newest_embeddings(embeddings_dir(job)), job.collection)
        return {"work": vars(Work(refresh, stored["checkpoint"], stored["step"], stored["model_sha256"]))}
    done = exchange.read_done(job.training_dir) is not None
    checkpoint = lockstep_checkpoint(job, refresh) if flags.refresh_mode == "lockstep" else async_checkpoint(job)
    if checkpoint is not None and not checkpoint.manifest.get("final"):
        if checkpoint.path != Path(flags.init_model_dir):
            check_agreement(ours, checkpoint.manifest, checkpoint.path.name)
        return as_work(refresh, checkpoint)
    return {"done": "the trainer is done"} if done else None


def as_work(refresh: int, checkpoint: exchange.Checkpoint) -> dict[str, Any]:
    work = Work(refresh, str(checkpoint.path), checkpoint.step, exchange.model_sha256(checkpoint.path))
    return {"work": vars(work)}


def initial_model(job: Job) -> exchange.Checkpoint:
    """--init_model_dir, which counts as step 0 of this run."""
    return exchange.read_checkpoint(Path(job.flags.init_model_dir), 0, of_this_run=False)


def lockstep_checkpoint(job: Job, refresh: int) -> exchange.Checkpoint | None:
    """Refresh N is always made from step N * steps_per_refresh."""
    if refresh == 0:
        return initial_model(job)
    return exchange.newest_checkpoint(job.training_dir, refresh * job.flags.steps_per_refresh)


def async_checkpoint(job: Job) -> exchange.Checkpoint | None:
    """The newest checkpoint that no refresh was made from yet; the initial model where there is nothing at all."""
    used = [record["step"] for record in exchange.read_records(job.ann_dir)]
    named = exchange.CHECKPOINT_PATTERN.fullmatch(Path(job.flags.last_checkpoint_dir).name)
    used += [int(named[1])] if named else []
    newest = exchange.newest_checkpoint(job.training_dir, above=max(used, default=-1))
    return initial_model(job) if newest is None and not used else newest


def one_refresh(job: Job, world: World, work: Work, ours: dict[str, Any], log: RunLog | None) -> None:
    """Encode, search, evaluate, select, publish."""
    started = time.monotonic()
    flags = job.flags
    if world.is_first:
        say(f"refresh {work.refresh}: from {work.checkpoint} (step {work.step})")
    encoding_started = time.monotonic()
    vectors = load_vectors(job, world, work) if flags.load_gen else encode_all(job, world, work, ours)
    if flags.inference:
        return
    searching_started = time.monotonic()
    candidates, dev_passages_QK = search_all(job, world, vectors)
    selecting_started = time.monotonic()
    if world.is_first:
        collection = job.collection
        dev_queries_Q = collection.qrels("dev").queries_with_positive()
        metrics = evaluate(collection.qrels("dev").as_dict(), dev_queries_Q, dev_passages_QK)
        depth = dev_passages_QK.shape[1]  # a cut-off below it cannot be measured
        metrics = {name: value for name, value in metrics.items() if int(name.split("@")[1]) <= max(depth, 10)}
        say(f" --- ANN NDCG@10:{metrics['ndcg@10']}")
        say(f" --- ANN MRR:{metrics['mrr@10']}")
        timings = {
            "encode_seconds": searching_started - encoding_started,
            "search_seconds": selecting_started - searching_started,
        }
        publish(job, work, candidates, metrics, timings, ours)
        seconds = time.monotonic() - started
        assert log is not None
        # 'ndcg@10' -> 'dev_ndcg_10': TensorBoard has no @ in its names
        log.record(work.step, **{f"dev_{k.replace('@', '_')}": v for k, v in metrics.items()}, **timings)
        say(f"refresh {work.refresh}: published in {seconds:.1f} s ({', '.join(in_words(timings))})")
        if flags.only_keep_latest_embedding_file:
            remove_other_embeddings(job, work.step)
    distributed.barrier(world)


def in_words(timings: dict[str, float]) -> list[str]:
    return [f"{name.removesuffix('_seconds')} {seconds:.1f} s" for name, seconds in timings.items()]


def embeddings_dir(job: Job) -> Path:
    return job.ann_dir / EMBEDDINGS


def train_rows(job: Job, refresh: int) -> np.ndarray:
    """This refresh's chunk of the train queries that have a positive."""
    flags = job.flags
    with_positive = job.collection.qrels("train").queries_with_positive()
    # --inference keeps all queries: a later --load_gen takes its chunk of them.
    chunk_factor = 1 if flags.inference else flags.ann_chunk_factor
    return chunk_of_queries(with_positive, chunk_factor, refresh, flags.seed)


def encode_all(job: Job, world: World, work: Work, ours: dict[str, Any]) -> Vectors:
    """Encode dev queries, the chunk of train queries, and the passages; keep them on disk."""
    flags, collection = job.flags, job.collection
    exchange.wait_until_visible(Path(work.checkpoint) / "config.json")
    encoder = open_encoder(flags, work.checkpoint, collection).to(world.device)
    retrieval.check_index_fits(flags, len(collection.passages), encoder.dims)
    settings = retrieval.encoding_settings(flags, collection, job.dtype)
    directory = embeddings_dir(job) / f"step-{work.step}"
    if world.is_first:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    distributed.barrier(world)
    dev_rows_Q, rows_Q = collection.qrels("dev").queries_with_positive(), train_rows(job, work.refresh)
    dev_QD = retrieval.encode_queries(world, encoder, collection.queries("dev"), dev_rows_Q, settings)
    train_QD = retrieval.encode_queries(world, encoder, collection.queries("train"), rows_Q, settings)
    share = retrieval.encode_passages(world, encoder, collection.passages, settings, directory)
    distributed.barrier(world)
    if world.is_first:
        retrieval.save_queries(directory, "dev-query", dev_rows_Q, dev_QD)
        retrieval.save_queries(directory, "train-query", rows_Q, train_QD)
        record = {**ours, "step": work.step, "checkpoint": work.checkpoint, "model_sha256": work.model_sha256}
        retrieval.commit_embeddings(directory, len(collection.passages), encoder.dims, record)
    distributed.barrier(world)
    return Vectors(dev_QD, rows_Q, train_QD, share)


def load_vectors(job: Job, world: World, work: Work) -> Vectors:
    """The embeddings on disk, with this refresh's chunk of the train queries."""
    directory = embeddings_dir(job) / f"step-{work.step}"
    dims = retrieval.read_embeddings_record(directory, job.collection)["dims"]
    retrieval.check_index_fits(job.flags, len(job.collection.passages), dims)
    dev_rows_Q, dev_QD = retrieval.load_queries(directory, "dev-query")
    stored_rows_Q, stored_QD = retrieval.load_queries(directory, "train-query")
    expected = job.collection.qrels("dev").queries_with_positive()
    rows_Q = train_rows(job, work.refresh)
    if not np.array_equal(dev_rows_Q, expected) or not np.isin(rows_Q, stored_rows_Q).all():
        raise UserError(f"{directory} holds other queries than --data_dir; run with --inference again")
    share = retrieval.load_passages(world, directory, len(job.collection.passages))
    return Vectors(dev_QD, rows_Q, stored_QD[np.searchsorted(stored_rows_Q, rows_Q)], share)


def search_all(job: Job, world: World, vectors: Vectors) -> tuple[Candidates, np.ndarray]:
    """Candidates of the train queries, and the dev queries' lists."""
    flags = job.flags
    options = SearchOptions(job.backend, flags.faiss_index, flags.nprobe, world.device)
    k = max(flags.topk_training, DEV_CANDIDATES)
    queries_QD = np.concatenate([vectors.dev_QD, vectors.train_QD])
    scores_QK, passages_QK = retrieval.retrieve(
        world, queries_QD, vectors.share, len(job.collection.passages), k, options
    )
    first = len(vectors.dev_QD)
    wanted = flags.topk_training
    return (
        Candidates(vectors.train_rows_Q, passages_QK[first:, :wanted], scores_QK[first:, :wanted]),
        passages_QK[:first],
    )


def publish(
    job: Job,
    work: Work,
    candidates: Candidates,
    metrics: dict[str, float],
    timings: dict[str, float],
    ours: dict[str, Any],
) -> None:
    """Select by the strategy and publish ``ann_training_data_N`` with its record."""
    flags = job.flags
    positives = job.collection.qrels("train").positives()
    lists = select_negatives(candidates, positives, job.strategy, flags.negative_sample, flags.seed, work.refresh)
    say(describe_selection(lists, job.strategy, flags.topk_training, flags.negative_sample, work.refresh, work.step))
    lists = lists.with_negatives()
    record = {
        "ndcg": metrics["ndcg@10"],
        "checkpoint": work.checkpoint,
        "mrr": metrics["mrr@10"],
        "metrics": metrics,
        "step": work.step,
        "model_sha256": work.model_sha256,
        "queries": len(lists.query_Q),
        "triples": lists.triples,
        **{name: round(seconds, 3) for name, seconds in timings.items()},
        **ours,
    }

    def write(path: Path) -> None:
        write_negative_lists(path, lists, positives)

    exchange.publish_negatives(job.ann_dir, work.refresh, write, record)


def remove_other_embeddings(job: Job, step: int) -> None:
    for directory in embeddings_dir(job).glob("step-*"):
        if directory.name != f"step-{step}":
            shutil.rmtree(directory, ignore_errors=True)
