"""The embeddings of finished shards, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from io import BufferedReader

import numpy as np

from drivers.embeddings.shards import Shards, npy_header, row_map
from utils.errors import UserError
from utils.search.source import Passages

READ_ROWS = 4096  # converted from float16 at a time


def stored_passages(shards: Shards, first: int, last: int) -> Passages:
    """The texts of the shards [first, last), read a block at a time; pages of a mapped file would count as memory."""
    start, stop = shards.bounds(first)[0], shards.bounds(last)[0]
    if shards.rows_per_text == 1:
        return Passages(
            stop - start, shards.embedding_dim, partial(read_blocks, shards, range(first, last), stop - start)
        )
    counts = [shards.counts(number) for number in range(first, last)]
    map_N = row_map(np.concatenate(counts) if counts else np.empty(0, np.int32))
    return Passages(
        len(map_N), shards.embedding_dim, partial(read_blocks, shards, range(first, last), len(map_N)), map_N
    )


def read_blocks(shards: Shards, numbers: range, count: int, rows_at_once: int) -> Iterator[np.ndarray]:
    """The rows of some shards, a block at a time.

    Args:
        shards: whose files are read.
        numbers: of the shards, in the order to read them.
        count: the rows that they have together.
        rows_at_once: the most rows of a block.

    Yields:
        float32 [M, D]; each block in the memory of the one before.

    Raises:
        UserError: a file is missing or of another size.
    """
    buffer_MD = np.empty((min(rows_at_once, count), shards.embedding_dim), np.float32)
    filled = 0
    for number in numbers:
        start, stop = 0, int(shards.counts(number).sum())
        with open_shard(shards, number, stop) as file:
            while start < stop:
                rows = min(stop - start, len(buffer_MD) - filled)
                read_rows(file, buffer_MD[filled : filled + rows], shards.dtype)
                start, filled = start + rows, filled + rows
                if filled == len(buffer_MD):
                    yield buffer_MD
                    filled = 0
    if filled:
        yield buffer_MD[:filled]


def open_shard(shards: Shards, number: int, rows: int) -> BufferedReader:
    """The file, of so many ``rows``, at its first number. UserError where it is not the shard."""
    path, (start, stop) = shards.path(number), shards.bounds(number)
    header = npy_header((rows, shards.embedding_dim), shards.dtype)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path} is missing, expected embeddings; start again to encode it again") from None
    if file.read(len(header)) != header:
        file.close()
        raise UserError(f"{path} is not a shard of {stop - start} texts: it is damaged; remove it and start again")
    return file


def read_rows(file: BufferedReader, out_MD: np.ndarray, dtype: np.dtype) -> None:
    """Fill ``out_MD`` (float32) with the next rows."""
    step = len(out_MD) if dtype == out_MD.dtype else READ_ROWS
    for first in range(0, len(out_MD), step):
        part_MD = out_MD[first : first + step]
        held_MD = part_MD if dtype == out_MD.dtype else np.empty(part_MD.shape, dtype)
        if file.readinto(held_MD.data.cast("B")) != held_MD.nbytes:
            raise UserError(f"{file.name} ends too early: it is damaged; remove it and start again")
        if held_MD is not part_MD:
            part_MD[:] = held_MD
