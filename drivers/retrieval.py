"""Encode and search: every rank holds its share of the passages and searches all queries in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.preprocessed import Preprocessed
from data.token_cache import TokenCache
from drivers.shared import gather_from
from model.embedding import encode, share_of
from utils import distributed
from utils.distributed import World
from utils.errors import UserError
from utils.publishing import read_json, write_json
from utils.run_log import Progress, say
from utils.search import SearchOptions, merge_top_k, search

EMBEDDINGS = "embeddings.json"
QUERIES_PER_EXCHANGE = 65536  # lists merged between ranks at a time


@dataclass(frozen=True)
class EncodingSettings:
    """How texts become vectors; ``dtype`` is the type to autocast to, or None."""

    max_seq_length: int
    max_query_length: int
    pad_id: int
    budget_tokens: int
    dtype: torch.dtype | None


@dataclass(frozen=True)
class PassageShare:
    """This rank's passages: ``embeddings_MD`` are those of offsets [start, start + M)."""

    embeddings_MD: np.ndarray
    start: int


def encoding_settings(flags: Any, collection: Preprocessed, dtype: torch.dtype | None) -> EncodingSettings:
    return EncodingSettings(
        max_seq_length=flags.max_seq_length,
        max_query_length=flags.max_query_length,
        pad_id=collection.manifest["pad_token_id"],
        budget_tokens=flags.per_gpu_eval_batch_size * flags.max_seq_length,
        dtype=dtype,
    )


def encode_passages(
    world: World, encoder: Any, cache: TokenCache, settings: EncodingSettings, directory: Path | None
) -> PassageShare:
    """Encode this rank's share, into ``directory`` as a memory-mapped .npy file, or in memory where it is None."""
    start, stop = share_of(len(cache), world.rank, world.size)
    shape = (stop - start, encoder.dims)
    if directory is None:
        embeddings_MD = np.empty(shape, np.float32)
    else:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"passages-{start:010d}.npy"
        embeddings_MD = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    encode_with_progress(world, encoder, cache, None, settings, (start, stop), embeddings_MD, "passages encoded")
    if isinstance(embeddings_MD, np.memmap):
        embeddings_MD.flush()
    return PassageShare(embeddings_MD, start)


def encode_queries(
    world: World, encoder: Any, cache: TokenCache, rows_Q: np.ndarray, settings: EncodingSettings
) -> np.ndarray:
    """float32 [Q, D] of the cache's ``rows_Q`` on every rank; each encodes its share."""
    start, stop = share_of(len(rows_Q), world.rank, world.size)
    mine = np.empty((stop - start, encoder.dims), np.float32)
    encode_with_progress(world, encoder, cache, rows_Q, settings, (start, stop), mine, "queries encoded")
    return np.concatenate(distributed.gather_rows(world, mine))


def encode_with_progress(
    world: World,
    encoder: Any,
    cache: TokenCache,
    rows: np.ndarray | None,
    settings: EncodingSettings,
    share: tuple[int, int],
    out_MD: np.ndarray,
    what: str,
) -> None:
    """Encode the share of the cache (``rows`` None: passages) or of a selection of its rows (queries)."""
    limit = settings.max_seq_length if rows is None else settings.max_query_length
    lengths = cache.lengths(limit)
    progress = Progress(share[1] - share[0], what) if world.is_first else None
    encode(
        encoder,
        lengths if rows is None else lengths[rows],
        gather_from(cache, limit, settings.pad_id, rows),
        share,
        out_MD,
        settings.budget_tokens,
        world.device,
        settings.dtype,
        progress.advance if progress else lambda count: None,
    )
    if progress:
        progress.close()


def retrieve(
    world: World, queries_QD: np.ndarray, share: PassageShare, passages: int, k: int, options: SearchOptions
) -> tuple[np.ndarray, np.ndarray]:
    """The k best passages of each query over the whole collection: scores_QK and offsets_QK, on every rank."""
    k = min(k, passages)
    scores_parts, offset_parts = [], []
    progress = Progress(len(queries_QD), "queries searched") if world.is_first else None
    for first in range(0, max(len(queries_QD), 1), QUERIES_PER_EXCHANGE):
        block_QD = queries_QD[first : first + QUERIES_PER_EXCHANGE]
        scores_QK, rows_QK = search(block_QD, share.embeddings_MD, k, options)
        offsets_QK = np.where(rows_QK >= 0, rows_QK + share.start, -1)
        missing = k - offsets_QK.shape[1]  # a share may hold fewer than k passages
        scores_QK = np.pad(scores_QK, ((0, 0), (0, missing)), constant_values=-np.inf)
        offsets_QK = np.pad(offsets_QK, ((0, 0), (0, missing)), constant_values=-1)
        merged = merge_top_k(distributed.gather_rows(world, scores_QK), distributed.gather_rows(world, offsets_QK), k)
        scores_parts.append(merged[0])
        offset_parts.append(merged[1])
        if progress:
            progress.advance(len(block_QD))
    if progress:
        progress.close()
    return np.concatenate(scores_parts), np.concatenate(offset_parts)


def score_candidates(world: World, queries_QD: np.ndarray, share: PassageShare, passages_QK: np.ndarray) -> np.ndarray:
    """Scores of given candidate lists: float32 [Q, K], -inf where ``passages_QK`` is -1; for reranking."""
    stop = share.start + len(share.embeddings_MD)
    scores_QK = np.full(passages_QK.shape, -np.inf, np.float32)
    for row, passages_K in enumerate(passages_QK):
        held = np.flatnonzero((passages_K >= share.start) & (passages_K < stop))
        scores_QK[row, held] = share.embeddings_MD[passages_K[held] - share.start] @ queries_QD[row]
    return np.maximum.reduce(distributed.gather_rows(world, scores_QK))


def rerank(scores_QK: np.ndarray, passages_QK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The candidate lists by score descending, ties by passage order."""
    return merge_top_k([scores_QK], [passages_QK], passages_QK.shape[1])


# Embeddings on disk: --inference writes them, --load_gen reads them


def save_queries(directory: Path, name: str, rows_Q: np.ndarray, queries_QD: np.ndarray) -> None:
    np.save(directory / f"{name}.npy", queries_QD)
    np.save(directory / f"{name}.rows.npy", rows_Q)


def load_queries(directory: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and embeddings of a split's queries, memory-mapped."""
    paths = (directory / f"{name}.rows.npy", directory / f"{name}.npy")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing, expected embeddings; run with --inference first")
    rows_Q, queries_QD = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
    return np.asarray(rows_Q), queries_QD


def commit_embeddings(directory: Path, passages: int, dims: int, record: dict[str, Any]) -> None:
    """Written last: a directory with this file is whole."""
    write_json(directory / EMBEDDINGS, {**record, "passages": passages, "dims": dims})
    say(f"embeddings of {passages:,} passages in {directory}")


def load_passages(world: World, directory: Path, passages: int) -> PassageShare:
    """This rank's share from the shards of any earlier number of ranks.

    UserError where shards are missing or another collection's.
    """
    record = read_json(directory / EMBEDDINGS)
    if record["passages"] != passages:
        raise UserError(f"{directory} embeds {record['passages']} passages, the collection has {passages}")
    start, stop = share_of(passages, world.rank, world.size)
    parts = []
    covered = start
    for path in sorted(directory.glob("passages-*.npy")):
        first = int(path.stem.removeprefix("passages-"))
        shard_MD = np.load(path, mmap_mode="r", allow_pickle=False)
        if first <= covered < min(first + len(shard_MD), stop):
            parts.append(shard_MD[covered - first : stop - first])
            covered += len(parts[-1])
    if covered < stop:
        raise UserError(f"{directory} lacks the embeddings of passage {covered}; run with --inference again")
    embeddings_MD = (
        parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty((0, record["dims"]), np.float32)])
    )
    return PassageShare(embeddings_MD, start)


def newest_embeddings(directory: Path) -> Path:
    """The complete embeddings of the highest step under ``directory``."""
    found = {}
    for path in directory.glob(f"step-*/{EMBEDDINGS}"):
        found[json.loads(path.read_text())["step"]] = path.parent
    if not found:
        raise UserError(f"{directory} holds no complete embeddings, --load_gen needs them; run with --inference first")
    return found[max(found)]
