"""Search on several processes: each searches all queries in its share of the passages, and the lists are merged."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import torch

from drivers.embeddings.encode import PassageShare, share_of_texts
from drivers.embeddings.shards import (
    PASSAGE_SHARDS,
    rows_of_shard,
)
from drivers.job.model_identity import ModelSettings
from drivers.job.progress import UNMONITORED, Monitor, StopEncoding
from model.encoders.registry import read_spec
from utils.distributed import agreement, collectives
from utils.distributed.agreement import Notice
from utils.distributed.world import World, has_launcher, processes_of_launcher
from utils.exchange.wait import log_once
from utils.run_log import say
from utils.search.index import Index
from utils.search.ranked_lists import merge_top_k
from utils.search.registry import backend_of
from utils.search.scores import scores_of
from utils.search.settings import GpuSearchFailed, SearchSettings
from utils.search.source import Advance

EXCHANGE_BYTES = 256 * 2**20  # lists of all processes held for merging at a time
BYTES_OF_PLACE = 12  # a score and an offset


def check_index_fits(settings: SearchSettings, passages: int, text_shape: tuple[int, ...]) -> None:
    """UserError where the index cannot be built over each process's share of the passages; before encoding them.

    ``text_shape`` is that of a passage, [D], or [R, D] where it has up to R rows: what could be built of so many is not
    refused. Where the backend lacks the index on a GPU, process 0 of a job says so, once: the CPU will search.
    """
    backend, embedding_dim, rows_per_passage = backend_of(settings.backend), text_shape[-1], math.prod(text_shape[:-1])
    processes = processes_of_launcher()
    texts = rows_of_shard(passages, math.prod(text_shape), PASSAGE_SHARDS)
    shares = [share_of_texts(passages, texts, process, processes) for process in range(processes)]
    smallest = min(stop - start for start, stop in shares if stop > start)  # who has no passages builds nothing
    backend.check(settings, embedding_dim, smallest * rows_per_passage)
    says = not has_launcher() or os.environ.get("RANK") == "0"  # a launcher's --dry_run leaves it to these
    if says and backend.searches_on(settings.device) and (refusal := backend.refusal(settings, embedding_dim)):
        log_once(f"search: {refusal}: the CPU will search", sys.stderr)


def check_index_fits_model(settings: SearchSettings, passages: int, model: ModelSettings) -> None:
    """The same from the config of a model that is not loaded yet. One under a hub name says nothing so early."""
    if Path(model.name_or_path).is_dir() or model.config_name:
        spec = read_spec(model.name_or_path, model.model_type, model.config_name)
        check_index_fits(settings, passages, spec.text_shape("passage"))


# Searching


class NotNeeded(Exception):
    """Another process has no lists: this one's would be thrown away."""


class Unfinished(Enum):
    """Why a process has no lists of its share; the processes then agree on what all do."""

    LEFT = "told to leave"
    GPU_FAILED = "the GPU failed"
    OTHERS = "another process has ended its own for such a reason, or by an error"


class ShardedIndex:
    """The collection's index: each process has that of its share. Built once, searched many times, closed by `close`.

    Made and searched by all processes. Where the GPU of one cannot search, all search on the CPU from then on: of two
    such searches one may take hours longer, and who waits in a collective so long ends the job. Shares are of nearly
    one size, so that all end at nearly one time.
    """

    def __init__(self, world: World, share: PassageShare, passages: int, settings: SearchSettings) -> None:
        """``passages``: how many the whole collection has."""
        self.world, self.share, self.passages = world, share, passages
        self.index = Index(share.passages, settings)

    def close(self) -> None:
        self.index.close()

    def use_cpu(self) -> None:
        self.index.close()
        self.index = Index(self.share.passages, replace(self.index.settings, device=torch.device("cpu")))

    def search(
        self, queries_QD: np.ndarray, k: int, monitor: Monitor = UNMONITORED
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The k best passages of each query over the whole collection: scores_QK and offsets_QK, on every process.

        None on all of them where ``monitor`` has told one to leave. What the search of one raises, all raise.
        """
        world, k = self.world, min(k, self.passages)
        is_on_cpu = self.index.device_for(k).type == "cpu"
        if collectives.any_process(world, is_on_cpu) and self.index.settings.device.type != "cpu":
            self.use_cpu()
        while True:
            if world.is_first:
                sizes = f"{len(queries_QD):,} queries, {self.passages:,} passages, top {k}"
                say(f"search: {self.index.describe(k)}; {sizes}")
            searching = partial(search_share, world, self.index, queries_QD, k, monitor, Notice(world))
            found = agreement.on_every_process(world, searching)
            if collectives.any_process(world, found is Unfinished.LEFT):
                return None
            if not collectives.any_process(world, found is Unfinished.GPU_FAILED):
                break
            del found  # lists of gigabytes where this process's GPU could
            self.use_cpu()
        assert isinstance(found, tuple)
        return merge_shares(world, self.share.start, *found, k)


def retrieve(
    world: World,
    queries_QD: np.ndarray,
    share: PassageShare,
    passages: int,
    k: int,
    settings: SearchSettings,
    monitor: Monitor = UNMONITORED,
) -> tuple[np.ndarray, np.ndarray] | None:
    """One search of a `ShardedIndex`, of which nothing stays.

    Args:
        world: all its processes call this.
        queries_QD: float, the same on every process.
        share: this process's passages.
        passages: how many the whole collection has.
        k: how many are looked for.
        settings: the index, and where it is searched.
        monitor: is told of the progress, and may say that the work shall end.

    Returns:
        scores_QK float32 and offsets_QK int64 as `ShardedIndex.search` gives them, or None.
    """
    with contextlib.closing(ShardedIndex(world, share, passages, settings)) as index:
        return index.search(queries_QD, k, monitor)


def search_share(
    world: World, index: Index, queries_QD: np.ndarray, k: int, monitor: Monitor, notice: Notice
) -> tuple[np.ndarray, np.ndarray] | Unfinished:
    """This process's part of a search.

    Args:
        world: for its progress in the log.
        index: of this process's share.
        queries_QD: float, all of them.
        k: how many passages.
        monitor: is told of the progress, and may say that the work shall end.
        notice: tells the others that there are no lists of this share, so that they leave theirs; and this process.

    Returns:
        scores_QK and passages_QK of the share, or why there are none.
    """
    pairs = len(queries_QD) * index.passages.rows
    watched = monitor.over(world, pairs, "searching pairs", "query-passage pairs searched")
    try:
        with watched as advance:
            return index.search(queries_QD, k, partial(advance_if_needed, advance, notice))
    except NotNeeded:
        return Unfinished.OTHERS
    except Exception as error:
        notice.give()
        if isinstance(error, StopEncoding):
            return Unfinished.LEFT
        if not isinstance(error, GpuSearchFailed):
            raise
        say(f"search: {error}; the CPU searches in its place")
        return Unfinished.GPU_FAILED


def advance_if_needed(advance: Advance, notice: Notice, pairs: int) -> None:
    advance(pairs)
    if notice.is_given():
        raise NotNeeded


def merge_shares(
    world: World, start: int, scores_QK: np.ndarray, passages_QK: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """One list of all processes' lists, some queries at a time: EXCHANGE_BYTES of the lists of others are held.

    Args:
        world: all its processes call this.
        start: the offset of this process's first passage.
        scores_QK: float32, of this process's share; written into.
        passages_QK: int64 numbers in the share, -1 after a list's end; written into.
        k: how many passages a list shall have; a share may hold fewer.

    Returns:
        scores_QK and offsets_QK, the same on every process.
    """
    offsets_QK = np.add(passages_QK, start, out=passages_QK, where=passages_QK >= 0)
    missing = ((0, 0), (0, k - offsets_QK.shape[1]))
    if missing[1][1]:
        scores_QK = np.pad(scores_QK, missing, constant_values=-np.inf)
        offsets_QK = np.pad(offsets_QK, missing, constant_values=-1)
    at_once = max(1, EXCHANGE_BYTES // (BYTES_OF_PLACE * k * world.size))
    for first in range(0, len(scores_QK) if world.size > 1 else 0, at_once):
        part = slice(first, first + at_once)
        scores_parts, offsets_parts = (collectives.gather_rows(world, lists[part]) for lists in (scores_QK, offsets_QK))
        scores_QK[part], offsets_QK[part] = merge_top_k(scores_parts, offsets_parts, k)
    return scores_QK, offsets_QK


def score_candidates(world: World, queries_QD: np.ndarray, share: PassageShare, passages_QK: np.ndarray) -> np.ndarray:
    """Scores of given candidate lists, for reranking.

    Args:
        world: all its processes call this, each scores the candidates that it holds.
        queries_QD: float32, the same on every process.
        share: this process's passages.
        passages_QK: int64 offsets in the whole collection, -1 after a list's end.

    Returns:
        float32 [Q, K] on every process, -inf after a list's end.
    """
    own_QK = scores_of(queries_QD, share.passages, passages_QK - share.start)
    return np.maximum.reduce(collectives.gather_rows(world, own_QK))


def rerank(scores_QK: np.ndarray, passages_QK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The candidate lists by score descending, ties by passage order."""
    return merge_top_k([scores_QK], [passages_QK], passages_QK.shape[1])
