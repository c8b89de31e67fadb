"""Encode and search: every rank holds its share of the passages and searches all queries in it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.preprocessed import Preprocessed
from data.token_cache import TokenCache
from drivers.shared import gather_from
from model.embedding import encode, share_of
from model.encoder import dims_of_config, read_config
from utils import distributed
from utils.distributed import World
from utils.errors import UserError
from utils.publishing import read_json, write_json
from utils.run_log import Progress, say
from utils.search import SearchOptions, check_index, describe_search, merge_top_k, search

EMBEDDINGS = "embeddings.json"
RECORDED = {"step": int, "checkpoint": str, "model_sha256": str, "passages": int, "dims": int}  # in it, at least
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


def check_index_fits(flags: Any, passages: int, dims: int) -> None:
    """UserError where --faiss_index cannot be built over each process's share of the passages; before encoding them."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    sizes = [stop - start for start, stop in (share_of(passages, rank, ranks) for rank in range(ranks))]
    # A process without passages searches nothing.
    check_index(flags.faiss_index, dims, flags.nprobe, min(size for size in sizes if size))


def check_index_fits_model(flags: Any, passages: int, model_dir: str) -> None:
    """The same from the config of a model that is not loaded yet. One under a hub name says nothing so early."""
    if Path(model_dir).is_dir() or flags.config_name:
        check_index_fits(flags, passages, dims_of_config(read_config(model_dir, flags.model_type, flags.config_name)))


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
    """Encode this rank's share, into ``directory`` as a memory-mapped .npy file, or in memory where it is None.

    A rank without passages makes no file: it would have another rank's name.
    """
    share = start, stop = share_of(len(cache), world.rank, world.size)
    shape = (stop - start, encoder.dims)
    with contextlib.ExitStack() as stack:
        if directory is None or start == stop:
            embeddings_MD = np.empty(shape, np.float32)
        else:
            path = directory / f"passages-{start:010d}.npy"
            embeddings_MD = stack.enter_context(new_array(path, shape, np.float32))
        encode_with_progress(world, encoder, cache, None, settings, share, embeddings_MD, "passages encoded")
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
    progress = None
    if world.is_first:
        say(f"search: {describe_search(options)}; {len(queries_QD):,} queries, {passages:,} passages, top {k}")
        progress = Progress(len(queries_QD) * len(share.embeddings_MD), "query-passage pairs searched")
    advance = progress.advance if progress else lambda pairs: None
    found = search(queries_QD, share.embeddings_MD, k, options, advance)
    if progress:
        progress.close()
    merged = []
    for first in range(0, max(len(queries_QD), 1), QUERIES_PER_EXCHANGE):
        scores_QK, rows_QK = (lists[first : first + QUERIES_PER_EXCHANGE] for lists in found)
        merged.append(merge_shares(world, share, scores_QK, rows_QK, k))
    return np.concatenate([scores for scores, _ in merged]), np.concatenate([offsets for _, offsets in merged])


def merge_shares(
    world: World, share: PassageShare, scores_QK: np.ndarray, rows_QK: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """One list of all ranks' lists: scores_QK and offsets_QK from this rank's scores and rows of its share."""
    offsets_QK = np.where(rows_QK >= 0, rows_QK + share.start, -1)
    missing = ((0, 0), (0, k - offsets_QK.shape[1]))  # a share may hold fewer than k passages
    scores_QK = np.pad(scores_QK, missing, constant_values=-np.inf)
    offsets_QK = np.pad(offsets_QK, missing, constant_values=-1)
    return merge_top_k(distributed.gather_rows(world, scores_QK), distributed.gather_rows(world, offsets_QK), k)


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


@contextlib.contextmanager
def new_array(path: Path, shape: tuple[int, ...], dtype: type) -> Iterator[np.ndarray]:
    """A memory-mapped .npy file to fill; it is removed where that fails.

    Its space is set aside first: on a disk that is full, filling a sparse file would kill the process without a word.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        set_space_aside(path)
        yield array
        array.flush()
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def set_space_aside(path: Path) -> None:
    """OSError where the disk has no space for all of a sparse file."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            if shutil.disk_usage(path.parent).free < size:  # the file system cannot promise: the best there is
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None


def open_array(path: Path, shape: tuple[int | None, ...], dtype: type) -> np.ndarray:
    """A .npy file, memory-mapped. UserError where it is missing, damaged, or of another type or shape (None: any)."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing, expected embeddings; run with --inference first") from None
    except OSError:
        raise
    except Exception as error:  # numpy raises many types for a header that is damaged
        raise UserError(f"{path} is damaged ({error}); run with --inference again") from None
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        expected = f"{np.dtype(dtype)} [{', '.join('any' if size is None else str(size) for size in shape)}]"
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, expected {expected}; run --inference again")
    return array


def save_queries(directory: Path, name: str, rows_Q: np.ndarray, queries_QD: np.ndarray) -> None:
    for path, array in ((directory / f"{name}.npy", queries_QD), (directory / f"{name}.rows.npy", rows_Q)):
        with new_array(path, array.shape, array.dtype.type) as file:
            file[:] = array


def load_queries(directory: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and embeddings of a split's queries, memory-mapped. UserError where they are missing or damaged."""
    dims = read_embeddings_record(directory)["dims"]
    rows_Q = open_array(directory / f"{name}.rows.npy", (None,), np.int64)
    return np.asarray(rows_Q), open_array(directory / f"{name}.npy", (len(rows_Q), dims), np.float32)


def commit_embeddings(directory: Path, passages: int, dims: int, record: dict[str, Any]) -> None:
    """Written last: a directory with this file is whole.

    ``record`` says what the embeddings were made of: RECORDED's keys, and the fingerprints of the collection.
    """
    write_json(directory / EMBEDDINGS, {**record, "passages": passages, "dims": dims})
    say(f"embeddings of {passages:,} passages in {directory}")


def read_embeddings_record(directory: Path, collection: Preprocessed | None = None) -> dict[str, Any]:
    """What `commit_embeddings` recorded.

    UserError where there are no complete embeddings, or not those of ``collection``.
    """
    path = directory / EMBEDDINGS
    if not path.is_file():
        raise UserError(f"{directory} holds no complete embeddings ({EMBEDDINGS} is missing); run with --inference")
    record = read_json(path)
    for key, kind in RECORDED.items():
        if not isinstance(record.get(key), kind):
            raise UserError(f"{path}: {key} is {record.get(key)!r}: it is damaged; run with --inference again")
    if collection is not None:
        check_same_collection(directory, record, collection)
    return record


def check_same_collection(directory: Path, record: dict[str, Any], collection: Preprocessed) -> None:
    manifest = collection.manifest
    held = {
        "passages": len(collection.passages),
        "collection_fingerprint": manifest["collection_fingerprint"],
        "tokenizer_fingerprint": manifest["tokenizer"]["fingerprint"],
    }
    for key, value in held.items():
        found = record.get(key)
        if found != value:
            raise UserError(
                f"{directory} embeds another collection than {collection.directory}: its {key} is {str(found)[:12]}, "
                f"expected {str(value)[:12]}; run with --inference again, or give its --data_dir"
            )


def load_passages(world: World, directory: Path, passages: int) -> PassageShare:
    """This rank's share from the shards of any earlier number of ranks.

    UserError where shards are missing, damaged or another collection's.
    """
    record = read_embeddings_record(directory)
    if record["passages"] != passages:
        raise UserError(f"{directory} embeds {record['passages']} passages, the collection has {passages}")
    start, stop = share_of(passages, world.rank, world.size)
    parts = []
    covered = start
    for path in sorted(directory.glob(f"passages-{'[0-9]' * 10}.npy")):
        first = int(path.stem.removeprefix("passages-"))
        if first > covered or covered >= stop:
            break
        shard_MD = open_array(path, (None, record["dims"]), np.float32)
        if covered < first + len(shard_MD):
            parts.append(shard_MD[covered - first : stop - first])
            covered += len(parts[-1])
    if covered < stop:
        raise UserError(f"{directory} lacks the embeddings of passage {covered}; run with --inference again")
    embeddings_MD = (
        parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty((0, record["dims"]), np.float32)])
    )
    return PassageShare(embeddings_MD, start)


def newest_embeddings(directory: Path) -> Path:
    """The complete embeddings of the highest step under ``directory``. UserError where there are none, or damaged."""
    found = {
        read_embeddings_record(path.parent)["step"]: path.parent for path in directory.glob(f"step-*/{EMBEDDINGS}")
    }
    if not found:
        raise UserError(f"{directory} holds no complete embeddings, --load_gen needs them; run with --inference first")
    return found[max(found)]
