"""The embeddings of a refresh: encoded with its checkpoint into shards on disk, or read from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.mining.candidates import Bm25Source
from data.mining.select import Selection, chunk_of_queries
from data.sources.qrels import query_name
from data.tokens.collection import PASSAGES, Preprocessed
from drivers.embeddings import store
from drivers.embeddings.distributed_search import check_index_fits
from drivers.embeddings.encode import PassageShare, encode_to_shards, stored_share, texts_of, unfinished
from drivers.embeddings.shards import Shards
from drivers.embeddings.store import EmbeddingSpec
from drivers.job.encoder_setup import EncoderSettings, load_to_encode, prepare_encoder
from drivers.job.progress import Monitor, StopEncoding
from model.encoders.base import Encoder
from model.kernels.precision import name_of
from utils.distributed import agreement, collectives
from utils.distributed.world import World
from utils.errors import Stopped, UserError
from utils.exchange.atomic import Stage, is_gone
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import EMBEDDINGS_RECORD, JobLayout
from utils.exchange.model_files import CONFIG, body_directory
from utils.exchange.wait import wait_until_visible
from utils.run_log import say
from utils.search.settings import SearchSettings


@dataclass(frozen=True)
class RefreshSettings:
    """How a refresh is made, the same for every one of a run.

    Args:
        ann_dir: negatives and embeddings are published there.
        dev_split: the split whose queries are searched to measure the checkpoint.
        bm25: what the strategy ``bm25`` takes from; None where the selection has no need of it.
        topk_training: candidates per train query.
        chunk_factor: a refresh serves one of so many parts of the train queries, see `chunk_of_queries`.
        embedding_dtype: a word of `drivers.embeddings.shards.DTYPES`, for the embeddings on disk.
        only_encodes: it ends with the embeddings on disk.
        loads_embeddings: it begins with them, without a model.
        only_latest_embeddings: those of earlier refreshes are removed.
    """

    collection: Preprocessed
    ann_dir: Path
    dev_split: str
    encoder: EncoderSettings
    search: SearchSettings
    selection: Selection
    bm25: Bm25Source | None
    seed: int
    topk_training: int
    chunk_factor: int
    embedding_dtype: str
    only_encodes: bool = False
    loads_embeddings: bool = False
    keeps_candidates: bool = False
    only_latest_embeddings: bool = False

    @property
    def embeddings_dir(self) -> Path:
        return JobLayout(self.ann_dir).embeddings


@dataclass(frozen=True)
class RefreshRequest:
    """One refresh to make: its number and the checkpoint it is made from."""

    refresh: int
    checkpoint: str
    step: int
    model_sha256: str


@dataclass(frozen=True)
class RefreshEmbeddings:
    """The embeddings a refresh needs: queries whole, passages by shares on disk, in ``directory``.

    ``dev_QD`` are of the dev queries with a positive, ``train_QD`` of the train queries ``train_rows_Q``.
    """

    directory: Path
    dev_QD: np.ndarray
    train_rows_Q: np.ndarray
    train_QD: np.ndarray
    share: PassageShare


def train_rows(settings: RefreshSettings, refresh: int) -> np.ndarray:
    """This refresh's chunk of the train queries that have a positive."""
    with_positive = settings.collection.qrels(TRAIN).queries_with_positive()
    return chunk_of_queries(with_positive, settings.chunk_factor, refresh, settings.seed)


def dev_rows(settings: RefreshSettings) -> np.ndarray:
    """The dev queries that a refresh measures: those with a positive."""
    return settings.collection.qrels(settings.dev_split).queries_with_positive()


def query_rows(settings: RefreshSettings, refresh: int) -> dict[str, np.ndarray]:
    """The queries that a refresh embeds, by the name of their embeddings: the dev split's, and its train queries.

    Of the dev split all, as an evaluation ranks them, also those that the refresh does not measure.
    """
    dev_Q = np.arange(len(settings.collection.queries(settings.dev_split)))
    return {query_name(settings.dev_split): dev_Q, query_name(TRAIN): train_rows(settings, refresh)}


def encode_all(
    settings: RefreshSettings,
    world: World,
    request: RefreshRequest,
    ours: Mapping[str, object],
    monitor: Monitor,
    stage: Stage,
) -> RefreshEmbeddings | None:
    """Encode dev queries, the chunk of train queries, and the passages, into shards on disk.

    Args:
        settings: how every refresh of the run is made.
        world: all processes together.
        request: the refresh, and the checkpoint that it is made from.
        ours: where the run comes from; recorded with the embeddings.
        monitor: told how far it is; it may stop the work.
        stage: gives a place for a file that is being written; may raise `Stopped`.

    Returns:
        What it has encoded, or an earlier process had finished, which is verified and used again. None on all processes
        where one was told to stop, or the checkpoint is gone: the shards finished so far stay.
    """
    encoder = open_checkpoint(settings, world, request)
    if encoder is None:
        return None
    check_index_fits(settings.search, len(settings.collection.passages), encoder.spec.text_shape("passage"))
    spec = embedding_spec(settings, world, request, encoder)
    directory = store.directory_of(settings.embeddings_dir, request.step, spec)
    agreement.on_process0(world, partial(directory.mkdir, parents=True, exist_ok=True))
    rows = query_rows(settings, request.refresh)
    queries = [spec.query_shards(directory, name, rows_Q) for name, rows_Q in rows.items()]
    shards = [*queries, spec.passage_shards(directory)]
    if not encode_shards(settings, world, encoder, shards, rows, monitor, stage):
        return None
    record = {**ours, "step": request.step, "checkpoint": request.checkpoint}
    agreement.on_process0(world, partial(store.commit, directory, shards, rows, record, stage))
    return open_embeddings(settings, world, directory, rows, rows[query_name(TRAIN)])


def open_checkpoint(settings: RefreshSettings, world: World, request: RefreshRequest) -> Encoder | None:
    """The model, on this process's device; None on all processes where its directory is gone, as process 0 sees it.

    A trainer keeps its last checkpoints only: one that was the newest may have to go before it is read.
    """
    path = Path(request.checkpoint)
    encoder: Encoder | None = None
    fault: Exception | None = None
    is_there = agreement.decide_on_process0(world, lambda: not is_gone(path))
    if is_there:
        try:
            if not world.is_first:  # process 0 has seen it
                wait_until_visible(body_directory(path) / CONFIG)
            encoder = load_to_encode(settings.encoder, request.checkpoint, settings.collection, world)
        except Exception as error:  # readers of weights have errors of their own for files that vanish
            fault = error
        if collectives.any_process(world, fault is not None):
            is_there = agreement.decide_on_process0(world, lambda: not is_gone(path))
            if is_there:
                agreement.on_every_process(world, partial(raise_fault, fault))
    if not is_there and world.is_first:
        say(f"refresh {request.refresh}: {path} is gone, its trainer keeps newer ones; looking for one of them")
    # The processes agree on how they encode: not before all of them have it.
    if encoder is None or not is_there:
        return None
    return prepare_encoder(encoder, settings.encoder.encoding.dtype, world, settings.encoder.compiled)


def raise_fault(fault: Exception | None) -> None:
    if fault is not None:
        raise fault


def embedding_spec(settings: RefreshSettings, world: World, request: RefreshRequest, encoder: Encoder) -> EmbeddingSpec:
    """What decides the numbers of this refresh's embeddings.

    Args:
        settings: which collection, how texts are encoded, and how embeddings are stored.
        world: the processes; the kind of their devices counts.
        request: the checkpoint that they are made from.
        encoder: that checkpoint's.
    """
    manifest, encoding = settings.collection.manifest, settings.encoder.encoding
    return EmbeddingSpec(
        model_sha256=request.model_sha256,
        config=encoder.config_dict(),
        collection_fingerprint=manifest["collection_fingerprint"],
        tokenizer_fingerprint=manifest["tokenizer"]["fingerprint"],
        passages=len(settings.collection.passages),
        embedding_dim=encoder.spec.embedding_dim,
        max_seq_length=encoding.max_seq_length,
        max_query_length=encoding.max_query_length,
        budget_tokens=encoding.budget_tokens,
        compute=name_of(encoding.dtype),
        storage=settings.embedding_dtype,
        device=world.device.type,
        rows_per_passage=encoder.spec.rows_per_passage,
    )


def encode_shards(
    settings: RefreshSettings,
    world: World,
    encoder: Encoder,
    all_shards: list[Shards],
    rows: dict[str, np.ndarray],
    monitor: Monitor,
    stage: Stage,
) -> bool:
    """Encode the shards that are not there yet.

    Args:
        settings: how every refresh of the run is made.
        world: all processes together.
        encoder: on this process's device.
        all_shards: of the queries and of the passages.
        rows: which queries, by the name of their shards.
        monitor, stage: as of `encode_all`.

    Returns:
        False on all processes where one was told to stop.
    """
    collection, encoding = settings.collection, settings.encoder.encoding
    caches = {
        PASSAGES: collection.passages,
        **{query_name(split): collection.queries(split) for split in (settings.dev_split, TRAIN)},
    }
    missing = {shards.name: unfinished(world, shards, monitor) for shards in all_shards}
    there = sum(len(shards) - len(missing[shards.name]) for shards in all_shards)
    if world.is_first and there:
        total = sum(len(shards) for shards in all_shards)
        say(f"embeddings: {there} of {total} shards in {all_shards[0].directory} are finished and used again")
    left = False
    try:
        for shards in all_shards:
            texts = texts_of(caches[shards.name], encoding, rows.get(shards.name))
            encode_to_shards(world, encoder, texts, shards, missing[shards.name], encoding, monitor, stage)
    except (StopEncoding, Stopped):
        left = True
    return not collectives.any_process(world, left)


def load_embeddings(settings: RefreshSettings, world: World, request: RefreshRequest) -> RefreshEmbeddings:
    """The embeddings on disk, with this refresh's chunk of the train queries."""
    newest = agreement.decide_on_process0(world, lambda: str(store.newest_embeddings(settings.embeddings_dir)))
    directory = Path(newest)
    record = store.read_embeddings_record(directory, settings.collection)
    check_index_fits(settings.search, len(settings.collection.passages), store.text_shape_of(record))
    stored = {name: store.read_query_rows(directory, name) for name in map(query_name, (settings.dev_split, TRAIN))}
    rows_Q = train_rows(settings, request.refresh)
    needed = {query_name(settings.dev_split): dev_rows(settings), query_name(TRAIN): rows_Q}
    if not all(np.isin(needed[name], stored_Q).all() for name, stored_Q in stored.items()):
        raise UserError(f"{directory} holds other queries than --data_dir; run with --inference again")
    agreement.on_every_process(world, partial(store.check_all_shards, world.process, world.size, directory))
    return open_embeddings(settings, world, directory, stored, rows_Q)


def open_embeddings(
    settings: RefreshSettings, world: World, directory: Path, stored: Mapping[str, np.ndarray], rows_Q: np.ndarray
) -> RefreshEmbeddings:
    """Complete embeddings: the queries read, this process's share of the passages to be read while searching.

    Args:
        settings: of the refresh.
        world: for this process's share.
        directory: theirs.
        stored: by the name of their embeddings, the queries that they are of, ascending offsets.
        rows_Q: the train queries that the refresh needs, some of those.
    """
    wait_until_visible(directory / EMBEDDINGS_RECORD)
    dev, train = query_name(settings.dev_split), query_name(TRAIN)
    dev_QD = store.read_queries(directory, dev)[np.searchsorted(stored[dev], dev_rows(settings))]
    train_QD = store.read_queries(directory, train)
    if not np.array_equal(stored[train], rows_Q):
        train_QD = train_QD[np.searchsorted(stored[train], rows_Q)]
    return RefreshEmbeddings(directory, dev_QD, rows_Q, train_QD, stored_share(world, directory))
