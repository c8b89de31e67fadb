"""One refresh: encode with one checkpoint, search, evaluate, select by the strategy, publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.negatives import Candidates, chunk_of_queries, describe_selection, select_negatives
from data.preprocessed import Preprocessed
from data.training_data import write_negative_lists
from drivers import retrieval, stored_embeddings
from drivers.agreement import Session
from drivers.embedding_shards import Shards
from drivers.flags import GenerateFlags
from drivers.retrieval import PassageShare, Watch
from drivers.shared import open_encoder
from drivers.stored_embeddings import DEV_QUERY, PASSAGES, TRAIN_QUERY, Recipe
from utils import distributed, exchange
from utils.distributed import World
from utils.errors import UserError
from utils.lease import Lease
from utils.metrics import evaluate
from utils.run_log import RunLog, say
from utils.search import SearchOptions

EMBEDDINGS = "embeddings"  # in --output_dir
Leave = Callable[[], bool]  # asked between two batches: whether to leave the refresh unfinished
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
    """The embeddings a refresh needs: queries whole, passages by shares on disk, in ``directory``."""

    directory: Path
    dev_QD: np.ndarray
    train_rows_Q: np.ndarray
    train_QD: np.ndarray
    share: PassageShare


def one_refresh(job: Job, here: Session, work: Work, ours: dict[str, Any], log: RunLog | None, leave: Leave) -> bool:
    """Encode, search, evaluate, select, publish. False where ``leave`` said so before the end, on all ranks."""
    started = time.monotonic()
    flags, world = job.flags, here.world
    if world.is_first:
        say(f"refresh {work.refresh}: from {work.checkpoint} (step {work.step})")
    here.tell(refresh=work.refresh, step=work.step, doing="encoding")
    encoding_started = time.monotonic()
    if flags.load_gen:
        vectors: Vectors | None = load_vectors(job, here, work)
    else:
        vectors = encode_all(job, world, work, ours, leave, lambda doing: here.tell(doing=doing))
    if vectors is None or flags.inference:
        return vectors is not None
    searching_started = time.monotonic()
    here.tell(doing="searching")
    found = search_all(job, world, vectors, leave, lambda doing: here.tell(doing=doing))
    if found is None:
        return False
    candidates, dev_passages_QK = found
    selecting_started = time.monotonic()
    here.tell(doing="selecting")
    if here.lease is not None:
        assert log is not None
        timings = {
            "encode_seconds": searching_started - encoding_started,
            "search_seconds": selecting_started - searching_started,
        }
        metrics = dev_metrics(job, dev_passages_QK)
        publish(job, here.lease, work, candidates, metrics, timings, ours)
        seconds = time.monotonic() - started
        # 'ndcg@10' -> 'dev_ndcg_10': TensorBoard has no @ in its names
        log.record(work.step, **{f"dev_{k.replace('@', '_')}": v for k, v in metrics.items()}, **timings)
        say(f"refresh {work.refresh}: published in {seconds:.1f} s ({', '.join(in_words(timings))})")
        if flags.only_keep_latest_embedding_file:
            stored_embeddings.remove_others(vectors.directory)
    distributed.barrier(world)
    if world.is_first and world.size > 1:
        say(f"refresh {work.refresh}: {world.waits}")
    return True


def dev_metrics(job: Job, dev_passages_QK: np.ndarray) -> dict[str, float]:
    """All that can be measured at the depth of the lists, also said in ANCE's words."""
    collection = job.collection
    dev_queries_Q = collection.qrels("dev").queries_with_positive()
    metrics = evaluate(collection.qrels("dev").as_dict(), dev_queries_Q, dev_passages_QK)
    depth = dev_passages_QK.shape[1]  # a cut-off below it cannot be measured
    metrics = {name: value for name, value in metrics.items() if int(name.split("@")[1]) <= max(depth, 10)}
    say(f" --- ANN NDCG@10:{metrics['ndcg@10']}")
    say(f" --- ANN MRR:{metrics['mrr@10']}")
    return metrics


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


def never() -> bool:
    return False


def silent(text: str) -> None:
    """For who does not ask what is being done."""


def encode_all(
    job: Job,
    world: World,
    work: Work,
    ours: dict[str, Any],
    leave: Callable[[], bool] = never,
    doing: Callable[[str], None] = silent,
) -> Vectors | None:
    """Encode dev queries, the chunk of train queries, and the passages, into shards on disk.

    What an earlier process has finished is verified and used again. None on all ranks where ``leave`` told one of
    them to: the shards finished so far stay.
    """
    flags, collection = job.flags, job.collection
    exchange.wait_until_visible(Path(work.checkpoint) / "config.json")
    encoder = open_encoder(flags, work.checkpoint, collection).to(world.device)
    retrieval.check_index_fits(flags, len(collection.passages), encoder.dims)
    recipe = recipe_of(job, world, work, encoder)
    directory = stored_embeddings.directory_of(embeddings_dir(job), work.step, recipe)
    if world.is_first:
        stored_embeddings.prepare_directory(directory)
    distributed.barrier(world)
    rows = {DEV_QUERY: collection.qrels("dev").queries_with_positive(), TRAIN_QUERY: train_rows(job, work.refresh)}
    shards = [
        *(recipe.query_shards(directory, name, rows_Q) for name, rows_Q in rows.items()),
        recipe.passage_shards(directory),
    ]
    if not encode_shards(job, world, encoder, shards, rows, Watch(leave, doing)):
        return None
    if world.is_first:
        record = {**ours, "step": work.step, "checkpoint": work.checkpoint}
        stored_embeddings.commit(directory, shards, rows, record)
    distributed.barrier(world)
    return open_vectors(world, directory, rows[TRAIN_QUERY], rows[TRAIN_QUERY])


def recipe_of(job: Job, world: World, work: Work, encoder: Any) -> Recipe:
    """What decides the numbers of this refresh's embeddings."""
    flags, manifest = job.flags, job.collection.manifest
    settings = retrieval.encoding_settings(flags, job.collection, job.dtype)
    return Recipe(
        model_sha256=work.model_sha256,
        config=encoder.config if isinstance(encoder.config, dict) else encoder.config.to_dict(),
        collection_fingerprint=manifest["collection_fingerprint"],
        tokenizer_fingerprint=manifest["tokenizer"]["fingerprint"],
        passages=len(job.collection.passages),
        dims=encoder.dims,
        max_seq_length=settings.max_seq_length,
        max_query_length=settings.max_query_length,
        budget_tokens=settings.budget_tokens,
        compute=str(settings.dtype or torch.float32).removeprefix("torch."),
        storage=flags.embedding_dtype,
        device=world.device.type,
    )


def encode_shards(
    job: Job, world: World, encoder: Any, all_shards: list[Shards], rows: dict[str, np.ndarray], watch: Watch
) -> bool:
    """Encode the shards that are not there yet; False on all ranks where one was told to leave."""
    settings = retrieval.encoding_settings(job.flags, job.collection, job.dtype)
    caches = {
        PASSAGES: job.collection.passages,
        DEV_QUERY: job.collection.queries("dev"),
        TRAIN_QUERY: job.collection.queries("train"),
    }
    missing = {shards.name: retrieval.unfinished(world, shards, watch) for shards in all_shards}
    there = sum(len(shards) - len(missing[shards.name]) for shards in all_shards)
    if world.is_first and there:
        total = sum(len(shards) for shards in all_shards)
        say(f"embeddings: {there} of {total} shards in {all_shards[0].directory} are finished and used again")
    left = False
    try:
        for shards in all_shards:
            texts = retrieval.texts_of(caches[shards.name], settings, rows.get(shards.name))
            retrieval.encode_to_shards(world, encoder, texts, shards, missing[shards.name], settings, watch)
    except retrieval.Left:
        left = True
    return not distributed.any_rank(world, left)


def load_vectors(job: Job, here: Session, work: Work) -> Vectors:
    """The embeddings on disk, with this refresh's chunk of the train queries."""
    world = here.world
    newest = str(stored_embeddings.newest_embeddings(embeddings_dir(job))) if world.is_first else None
    directory = Path(distributed.broadcast_json(world, newest))
    record = stored_embeddings.read_embeddings_record(directory, job.collection)
    retrieval.check_index_fits(job.flags, len(job.collection.passages), record["dims"])
    dev_rows_Q = stored_embeddings.read_query_rows(directory, DEV_QUERY)
    stored_rows_Q = stored_embeddings.read_query_rows(directory, TRAIN_QUERY)
    expected = job.collection.qrels("dev").queries_with_positive()
    rows_Q = train_rows(job, work.refresh)
    if not np.array_equal(dev_rows_Q, expected) or not np.isin(rows_Q, stored_rows_Q).all():
        raise UserError(f"{directory} holds other queries than --data_dir; run with --inference again")
    stored_embeddings.check_all_shards(world.rank, world.size, directory)
    return open_vectors(world, directory, stored_rows_Q, rows_Q)


def open_vectors(world: World, directory: Path, stored_rows_Q: np.ndarray, rows_Q: np.ndarray) -> Vectors:
    """Complete embeddings: the queries read, this rank's share of the passages to be read while searching."""
    exchange.wait_until_visible(directory / stored_embeddings.EMBEDDINGS)
    dev_QD, train_QD = (stored_embeddings.read_queries(directory, name) for name in (DEV_QUERY, TRAIN_QUERY))
    if not np.array_equal(stored_rows_Q, rows_Q):
        train_QD = train_QD[np.searchsorted(stored_rows_Q, rows_Q)]
    return Vectors(directory, dev_QD, rows_Q, train_QD, retrieval.stored_share(world, directory))


def search_all(
    job: Job,
    world: World,
    vectors: Vectors,
    leave: Callable[[], bool] = never,
    doing: Callable[[str], None] = silent,
) -> tuple[Candidates, np.ndarray] | None:
    """Candidates of the train queries, and the dev queries' lists; None on all ranks where one was told to leave."""
    flags = job.flags
    options = SearchOptions(job.backend, flags.faiss_index, flags.nprobe, world.device)
    k = max(flags.topk_training, DEV_CANDIDATES)
    queries_QD = np.concatenate([vectors.dev_QD, vectors.train_QD])
    passages = len(job.collection.passages)
    found = retrieval.retrieve(world, queries_QD, vectors.share, passages, k, options, Watch(leave, doing))
    if found is None:
        return None
    scores_QK, passages_QK = found
    first = len(vectors.dev_QD)
    wanted = flags.topk_training
    return (
        Candidates(vectors.train_rows_Q, passages_QK[first:, :wanted], scores_QK[first:, :wanted]),
        passages_QK[:first],
    )


def publish(
    job: Job,
    lease: Lease,
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

    exchange.publish_negatives(lease, work.refresh, write, record)
