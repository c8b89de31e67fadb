"""The rows that are searched: embeddings that come in blocks and need not be in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 2**14  # of passages that are read without a search
Advance = Callable[[int], None]  # told the query-passage pairs done since the last time


def no_progress(pairs: int) -> None:
    """An `Advance` for those who show no progress."""


@dataclass(frozen=True)
class Passages:
    """The embeddings of N passages, which need not be in memory at once.

    ``blocks(rows)`` goes through them in passage order, from the first one each time, at most so many at once.
    A block is float [M, D]; it may be overwritten when the next one is asked for.
    """

    count: int
    dims: int
    blocks: Callable[[int], Iterator[np.ndarray]]


def in_memory(passages_ND: np.ndarray) -> Passages:
    def blocks(rows: int) -> Iterator[np.ndarray]:
        return (passages_ND[first : first + rows] for first in range(0, len(passages_ND), rows))

    return Passages(len(passages_ND), passages_ND.shape[1], blocks)


def rows_in(size_bytes: int, dims: int) -> int:
    """float32 passages that fit in, at least one."""
    return max(1, size_bytes // (4 * dims))


def all_at_once(passages: Passages, rows: int = ROWS_AT_ONCE) -> np.ndarray:
    """float32 [N, D]"""
    passages_ND = np.empty((passages.count, passages.dims), np.float32)
    first = 0
    for block_MD in passages.blocks(rows):
        passages_ND[first : first + len(block_MD)] = block_MD
        first += len(block_MD)
    return passages_ND
