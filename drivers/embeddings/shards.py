"""Shards of embeddings on disk: each is finished, with a record that vouches for it, or not there.

A shard is a .npy file of a fixed number of texts. Next to it stands its record, published after it: its size, its
sha256, and a key of all that decides its numbers. Where passages may have several rows, a file published before it says
how many each has; they stand one after the other. Which texts are in which shard depends on how many there are and
on the size of their embeddings alone. So a generator that was killed finds what it had finished, on any number of
processes, and continues from there to the same bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.encode import block_size, present_rows
from utils.errors import UserError
from utils.exchange.atomic import (
    Stage,
    dump_with_checksum,
    load_with_checksum,
    replace_synced,
    sha256_of,
    staging_path,
    sync,
)
from utils.exchange.layout import ROWS_END
from utils.exchange.verify import Expected, Words, verify_files

SHARD_BYTES = 128 * 2**20  # as float32; a float16 shard takes half of it
# A small collection is divided all the same: many processes share it, and little is lost when one is killed.
PASSAGE_SHARDS, QUERY_SHARDS = 32, 8
DTYPES: dict[str, np.dtype] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}
LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
WORDS = Words(
    missing="{path} is missing, its record is there",
    sha256="{path}: its sha256 differs from its record's: it is damaged",
)


@dataclass(frozen=True)
class Shards:
    """The embeddings of ``count`` texts, ``rows`` of them in a shard (fewer in the last).

    ``storage`` is a word of DTYPES; ``key`` is a sha256 over all that decides the numbers. A text has
    ``rows_per_text`` rows of numbers at most.
    """

    directory: Path
    name: str
    count: int
    embedding_dim: int
    rows: int
    storage: str
    key: str
    model_sha256: str
    rows_per_text: int = 1

    def __len__(self) -> int:
        return -(-self.count // self.rows)

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.storage]

    def bounds(self, number: int) -> tuple[int, int]:
        """The texts [start, stop) of a shard."""
        return min(number * self.rows, self.count), min((number + 1) * self.rows, self.count)

    def path(self, number: int) -> Path:
        return self.directory / f"{self.name}-{number * self.rows:010d}.npy"

    def counts_path(self, number: int) -> Path:
        """int32 [texts]: how many rows each has, where ``rows_per_text`` is above 1."""
        return self.path(number).with_suffix(ROWS_END)

    def counts(self, number: int) -> np.ndarray:
        """The same; UserError where the file is not there, or not of these texts."""
        start, stop = self.bounds(number)
        if self.rows_per_text == 1:
            return np.ones(stop - start, np.int32)
        try:
            counts_M: np.ndarray = np.load(self.counts_path(number), allow_pickle=False)
        except (FileNotFoundError, ValueError, EOFError):
            raise UserError(f"{self.counts_path(number)} is missing or damaged; start again") from None
        if counts_M.shape != (stop - start,) or counts_M.min(initial=1) < 1:
            raise UserError(f"{self.counts_path(number)} is of other texts, or damaged; start again")
        return counts_M

    def record_path(self, number: int) -> Path:
        return self.path(number).with_suffix(".json")

    def identity(self, number: int) -> dict[str, Any]:
        """What the record says of a shard next to its size and sha256."""
        return {"key": self.key, "model_sha256": self.model_sha256, "texts": list(self.bounds(number))}


def row_map(counts_M: np.ndarray) -> np.ndarray:
    """Whose each row is, of texts with so many rows: int64 [N], 0, 0, 1, 2 …"""
    return np.arange(len(counts_M)).repeat(counts_M)


def rows_of_shard(count: int, numbers_per_text: int, wanted: int) -> int:
    """Texts in a shard: whole blocks of `model.encode`, for at least ``wanted`` shards where there are enough.

    ``numbers_per_text``: what a text has at most, in all its rows.
    """
    block = block_size(count)
    by_number = -(-count // block) // wanted
    by_bytes = SHARD_BYTES // (4 * numbers_per_text * block)
    return block * max(1, min(by_number, by_bytes))


# Writing


def publish_shard(shards: Shards, number: int, blocks: Iterable[np.ndarray], stage: Stage = staging_path) -> None:
    """Write a shard; it gets its name when it is whole and on the disk.

    Args:
        shards, number: which one.
        blocks: of `model.encode.encode_blocks`; whatever they raise leaves nothing behind.
        stage: gives a place for a file that is being written.

    Raises:
        UserError: a number does not fit float16.
    """
    path, record_path = shards.path(number), shards.record_path(number)
    try:
        with stage(shards.directory, path.name) as staged:
            record = write_array(staged, shards, number, blocks)
            staged_record = staged.with_name(record_path.name)
            staged_record.write_text(dump_with_checksum(record), encoding="utf-8")
            sync(staged_record)
            if shards.rows_per_text > 1:
                counts_path = shards.counts_path(number)
                replace_synced(staged.with_name(counts_path.name), counts_path)
            replace_synced(staged, path)
            replace_synced(staged_record, record_path)
            sync(shards.directory)
    except OSError as error:
        error.filename = str(path)  # the staged file, which is gone now, would tell a user nothing
        raise


def write_array(path: Path, shards: Shards, number: int, blocks: Iterable[np.ndarray]) -> dict[str, Any]:
    """The .npy file of a shard.

    Args:
        path: of the file, which is written here.
        shards, number: which shard it is.
        blocks: its texts in their order, [M, D], or [M, R, D] with NaN for rows that are not there.

    Returns:
        The shard's record.

    Raises:
        UserError: a number does not fit float16.
    """
    start, stop = shards.bounds(number)
    if shards.rows_per_text > 1:
        return write_rows(path, shards, number, blocks)
    header = npy_header((stop - start, shards.embedding_dim), shards.dtype)
    digest, texts = hashlib.sha256(header), 0
    with path.open("wb") as file:
        file.write(header)
        for block_MD in blocks:
            data = stored(block_MD, shards.dtype).data.cast("B")
            digest.update(data)
            file.write(data)
            texts += len(block_MD)
    assert texts == stop - start, f"{path.name} has {texts} texts, expected {stop - start}"
    return {**shards.identity(number), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def write_rows(path: Path, shards: Shards, number: int, blocks: Iterable[np.ndarray]) -> dict[str, Any]:
    """The .npy file of a shard whose texts have several rows; in a second file next to it how many each has.

    Args: those of `write_array`.
    """
    start, stop = shards.bounds(number)
    counts: list[np.ndarray] = []
    with path.open("wb") as file:
        file.write(npy_header((0, shards.embedding_dim), shards.dtype))
        for block in blocks:
            rows_ND, counts_M = present_rows(block)
            file.write(stored(rows_ND, shards.dtype).data.cast("B"))
            counts.append(counts_M)
        counts_M = np.concatenate(counts)
        file.seek(0)
        file.write(npy_header((int(counts_M.sum()), shards.embedding_dim), shards.dtype))  # numpy keeps it of one size
    assert len(counts_M) == stop - start, f"{path.name} has {len(counts_M)} texts, expected {stop - start}"
    counts_path = path.with_name(shards.counts_path(number).name)
    np.save(counts_path, counts_M)
    identity = shards.identity(number)
    return {**identity, "bytes": path.stat().st_size, "sha256": sha256_of(path), "rows_sha256": sha256_of(counts_path)}


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def stored(embeddings_MD: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The numbers as they are stored. UserError where one is too large for float16."""
    if dtype == np.float16:
        largest = float(np.abs(embeddings_MD).max(initial=0))
        if largest >= LARGEST_FLOAT16 + 16:  # what rounds to infinity
            raise UserError(
                f"an embedding holds {largest:,.0f}, --embedding_dtype fp16 goes up to {LARGEST_FLOAT16:,.0f}; "
                "store them in fp32"
            )
    return np.ascontiguousarray(embeddings_MD, dtype=dtype)


# Finding what is there


def fault_of(shards: Shards, number: int) -> str | None:
    """None for a finished shard, "" where there is none of this key, else what is wrong with it. Reads all of it."""
    path, record_path = shards.path(number), shards.record_path(number)
    if not record_path.exists():
        return ""
    try:
        record = load_with_checksum(record_path)
    except UserError as error:
        return str(error)
    if record | shards.identity(number) != record:
        return ""
    try:
        files = {path: Expected(record["bytes"], record["sha256"])}
        if shards.rows_per_text > 1:
            files[shards.counts_path(number)] = Expected(None, record["rows_sha256"])
        verify_files(files, WORDS)
    except UserError as error:
        return str(error)
    return None
