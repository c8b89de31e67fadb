"""One refresh: encode with one checkpoint, search, evaluate, select by the strategy, publish."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.negatives import Candidates, chunk_of_queries, describe_selection, select_negatives
from data.preprocessed import Preprocessed
from data.training_data import write_negative_lists
from drivers import retrieval
from drivers.flags import GenerateFlags
from drivers.shared import open_encoder
from utils import distributed, exchange
from utils.distributed import World
from utils.errors import UserError
from utils.metrics import evaluate
from utils.run_log import RunLog, say
from utils.search import SearchOptions

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
