"""What is searched: embeddings of passages, which come in blocks of rows and need not be in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 2**14  # that are read without a search
Advance = Callable[[int], None]  # told the pairs of a query and a row done since the last time


def no_progress(pairs: int) -> None:
    """An `Advance` for those who show no progress."""


@dataclass(frozen=True)
class Passages:
    """The embeddings of passages in N rows, which need not be in memory at once.

    ``blocks(rows)`` goes through them in passage order, from the first one each time, at most so many rows at once.
    A block is float [M, D]; it may be overwritten when the next one is asked for.
    ``row_to_passage`` int64 [N] says whose each row is: 0, 0, 0, 1, 2, 2 …, every passage with one row at least. None
    where a row is a passage. ValueError where it is not so.
    """

    rows: int
    embedding_dim: int
    blocks: Callable[[int], Iterator[np.ndarray]]
    row_to_passage: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.row_to_passage is not None:
            steps = np.diff(self.row_to_passage, prepend=-1)
            if len(steps) != self.rows or not ((steps == 0) | (steps == 1)).all() or (self.rows and steps[0] != 1):
                raise ValueError(f"row_to_passage of {len(steps)} rows, expected {self.rows} that count 0, 0, 1, 2 …")

    @property
    def has_row_each(self) -> bool:
        """Whether a row is a passage."""
        return self.row_to_passage is None

    @property
    def count(self) -> int:
        """Of passages."""
        if self.row_to_passage is None or not self.rows:
            return self.rows
        return int(self.row_to_passage[-1]) + 1

    def rows_of(self, passages_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows [first_X, stop_X) of passages; none of a number that is no passage here."""
        if self.row_to_passage is None:
            return passages_X, passages_X + ((passages_X >= 0) & (passages_X < self.rows))
        first_X, stop_X = (np.searchsorted(self.row_to_passage, passages_X, side) for side in ("left", "right"))
        return first_X, stop_X

    def largest_counts(self, passages: int) -> int:
        """How many rows the passages with the most have together."""
        if self.row_to_passage is None or not passages:
            return passages
        counts = np.bincount(self.row_to_passage)
        return int(np.partition(counts, len(counts) - passages)[len(counts) - passages :].sum())


def in_memory(rows_ND: np.ndarray, row_to_passage: np.ndarray | None = None) -> Passages:
    def blocks(rows: int) -> Iterator[np.ndarray]:
        return (rows_ND[first : first + rows] for first in range(0, len(rows_ND), rows))

    return Passages(len(rows_ND), rows_ND.shape[1], blocks, row_to_passage)


def rows_in(size_bytes: int, embedding_dim: int) -> int:
    """float32 rows that fit in, at least one."""
    return max(1, size_bytes // (4 * embedding_dim))


def all_at_once(passages: Passages, rows: int = ROWS_AT_ONCE) -> np.ndarray:
    """float32 [N, D]"""
    rows_ND = np.empty((passages.rows, passages.embedding_dim), np.float32)
    first = 0
    for block_MD in passages.blocks(rows):
        rows_ND[first : first + len(block_MD)] = block_MD
        first += len(block_MD)
    return rows_ND
