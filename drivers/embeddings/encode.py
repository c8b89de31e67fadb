"""Texts to embeddings on several processes, each its share: in memory, or as shards on disk."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.tokens.token_cache import TokenCache, gather_from
from drivers.embeddings.read_shards import stored_passages
from drivers.embeddings.shards import (
    PASSAGE_SHARDS,
    QUERY_SHARDS,
    Shards,
    fault_of,
    publish_shard,
    row_map,
    rows_of_shard,
)
from drivers.embeddings.store import PASSAGES, open_shards, wait_for_shards
from drivers.job.progress import UNMONITORED, Monitor, StopEncoding
from model.encode import EncodingSettings, TextSource, encode_blocks, present_rows, share_of
from model.encoders.base import Encoder
from model.encoders.spec import Side
from utils.distributed import collectives
from utils.distributed.world import World
from utils.exchange.atomic import Stage, staging_path
from utils.run_log import say
from utils.search.source import Passages, in_memory


@dataclass(frozen=True)
class PassageShare:
    """This process's passages: those of offsets [start, start + passages.count)."""

    passages: Passages
    start: int


# Encoding


def texts_of(cache: TokenCache, settings: EncodingSettings, rows: np.ndarray | None = None) -> TextSource:
    """The passages of the cache, or the queries ``rows`` of it."""
    if rows is not None:
        return chosen_texts(cache, rows, settings.max_query_length, "query")
    limit = settings.max_seq_length
    return TextSource(
        len(cache), lambda start, stop: cache.lengths(limit, start, stop), gather_from(cache, limit), "passage"
    )


def chosen_texts(cache: TokenCache, rows_M: np.ndarray, max_length: int, side: Side) -> TextSource:
    """Some texts of a cache.

    Args:
        cache: of passages, or of a split's queries.
        rows_M: int64, which of them, in this order.
        max_length: in tokens; what is longer is cut.
        side: which of both they are.
    """
    lengths_M = cache.lengths(max_length)[rows_M]
    gather = gather_from(cache, max_length, rows_M)
    return TextSource(len(rows_M), lambda start, stop: lengths_M[start:stop], gather, side)


def share_of_texts(count: int, rows: int, process: int, processes: int) -> tuple[int, int]:
    """The texts of one process, which are whole shards.

    Args:
        count: of all texts.
        rows: of a shard, in texts.
        process: the process's number, from 0.
        processes: how many share the texts.

    Returns:
        Its first text, and the first that is no longer its own.
    """
    first, last = share_of(-(-count // rows), process, processes)
    return min(first * rows, count), min(last * rows, count)


def encode_in_memory(
    world: World,
    encoder: Encoder,
    texts: TextSource,
    settings: EncodingSettings,
    wanted_shards: int,
    what: str,
    monitor: Monitor,
) -> tuple[int, np.ndarray] | None:
    """This process's share of some texts' embeddings, in memory.

    Args:
        world, encoder: the processes, and the encoder on this one's device.
        texts: of all processes together.
        settings: how large batches are, and the type to compute in.
        wanted_shards: how finely the texts are shared out.
        what: passages or queries, for the log.
        monitor: told of the progress, and asked whether to stop.

    Returns:
        The first text of the share, and the embeddings as `model.encode.encode_blocks` gives them; None on all
        processes where ``monitor`` has told one to stop.
    """
    text_shape = encoder.spec.text_shape(texts.side)
    rows = rows_of_shard(texts.count, math.prod(text_shape), wanted_shards)
    start, stop = share_of_texts(texts.count, rows, world.process, world.size)
    embeddings_MD, filled, is_stopped = np.empty((stop - start, *text_shape), np.float32), 0, True
    watched = monitor.over(world, stop - start, f"encoding {what}", f"{what} encoded")
    with contextlib.suppress(StopEncoding), watched as advance:
        for block_MD in encode_blocks(
            encoder, texts, (start, stop), settings.budget_tokens, world.device, settings.dtype, advance
        ):
            embeddings_MD[filled : filled + len(block_MD)] = block_MD
            filled += len(block_MD)
        is_stopped = False
    return None if collectives.any_process(world, is_stopped) else (start, embeddings_MD)


def encode_passages(
    world: World, encoder: Encoder, cache: TokenCache, settings: EncodingSettings, monitor: Monitor = UNMONITORED
) -> PassageShare | None:
    """This process's share of the passages, in memory.

    Args:
        world, encoder, settings, monitor: `encode_in_memory`'s.
        cache: the passages.

    Returns:
        The share, or None on all processes where one was told to stop.
    """
    texts = texts_of(cache, settings)
    encoded = encode_in_memory(world, encoder, texts, settings, PASSAGE_SHARDS, "passages", monitor)
    if encoded is None:
        return None
    start, embeddings = encoded
    rows_ND, counts_M = present_rows(embeddings)
    return PassageShare(in_memory(rows_ND, None if embeddings.ndim == 2 else row_map(counts_M)), start)


def encode_queries(
    world: World,
    encoder: Encoder,
    cache: TokenCache,
    rows_Q: np.ndarray,
    settings: EncodingSettings,
    monitor: Monitor = UNMONITORED,
) -> np.ndarray | None:
    """The embeddings of some queries on every process, each having encoded its share.

    Args:
        world, encoder, settings, monitor: `encode_in_memory`'s.
        cache: a split's queries.
        rows_Q: which of them.

    Returns:
        float32 [Q, D], or None on all processes where one was told to stop.
    """
    texts = texts_of(cache, settings, rows_Q)
    encoded = encode_in_memory(world, encoder, texts, settings, QUERY_SHARDS, "queries", monitor)
    return None if encoded is None else np.concatenate(collectives.gather_rows(world, encoded[1]))


# Encoding to disk


def unfinished(world: World, shards: Shards, monitor: Monitor) -> np.ndarray:
    """int64: the numbers of the shards that are missing or damaged, the same on every process; each verifies its share.

    Damaged ones are named. A process that was told to stop counts those it has not looked at as missing.
    """
    first, last = share_of(len(shards), world.process, world.size)
    missing = np.ones(last - first, np.uint8)
    for number in range(first, last):
        if monitor.should_stop():
            break
        fault = fault_of(shards, number)
        if fault:
            say(f"{fault}; it is encoded again")
        missing[number - first] = fault is not None
    return np.flatnonzero(np.concatenate(collectives.gather_rows(world, missing)))


def encode_to_shards(
    world: World,
    encoder: Encoder,
    texts: TextSource,
    shards: Shards,
    numbers: np.ndarray,
    settings: EncodingSettings,
    monitor: Monitor,
    stage: Stage = staging_path,
) -> None:
    """Encode this process's part of some shards, and publish each when it is whole.

    Args:
        world, encoder: the processes, and the encoder on this one's device.
        texts: of all the shards.
        shards, numbers: which of them are to be encoded, by all processes together.
        settings: how large batches are, and the type to compute in.
        monitor: told of the progress, and asked whether to stop.
        stage: gives a place for a shard that is being written.

    Raises:
        StopEncoding: ``monitor`` said so.
    """
    first, last = share_of(len(numbers), world.process, world.size)
    mine = [int(number) for number in numbers[first:last]]
    total = sum(stop - start for start, stop in map(shards.bounds, mine))
    what = "passages" if shards.name == PASSAGES else "queries"
    with monitor.over(world, total, f"encoding {what}", f"{what} encoded") as advance:
        for number in mine:
            bounds = shards.bounds(number)
            blocks = encode_blocks(
                encoder, texts, bounds, settings.budget_tokens, world.device, settings.dtype, advance
            )
            publish_shard(shards, number, blocks, stage)


def stored_share(world: World, directory: Path) -> PassageShare:
    """This process's share of complete embeddings on disk, written by any number of processes."""
    shards = open_shards(directory, PASSAGES)
    first, last = share_of(len(shards), world.process, world.size)
    wait_for_shards(shards, first, last)
    return PassageShare(stored_passages(shards, first, last), shards.bounds(first)[0])
