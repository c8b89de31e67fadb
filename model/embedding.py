"""Encoding many texts: batches by a token budget over length-sorted blocks, results in collection order.

The plan of batches depends on the texts' lengths alone, not on the number of processes, and a process
encodes whole blocks. So one process and several compute the same batches, and the same numbers. What is in
memory is a block at a time, however large the collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from model.precision import autocast
from utils.errors import UserError

LARGEST_BLOCK, SMALLEST_BLOCK, WANTED_BLOCKS = 8192, 32, 64

Gather = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # rows_B -> (ids_BL, lengths_B)


@dataclass(frozen=True)
class Texts:
    """What is to be encoded: ``count`` texts by row, ``lengths(start, stop)`` int [stop - start] in tokens."""

    count: int
    lengths: Callable[[int, int], np.ndarray]
    gather: Gather


def block_size(count: int) -> int:
    """Texts sorted together: large enough for little padding, small enough to share out."""
    return min(max(count // WANTED_BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)


def share_of(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """The rank's contiguous part [start, stop) of ``count`` things that are not divided."""
    return count * rank // ranks, count * (rank + 1) // ranks


def plan_blocks(count: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The blocks [first, last) of the rows from ``start``, the first row of one, to ``stop``."""
    size = block_size(count)
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def plan_batches(lengths_M: np.ndarray, first: int, budget_tokens: int) -> Iterator[np.ndarray]:
    """Rows of a block's batches: the longest first, rows times the longest within the budget."""
    order = np.argsort(-lengths_M, kind="stable")
    at = 0
    while at < len(order):
        count = max(1, budget_tokens // max(1, int(lengths_M[order[at]])))
        yield first + order[at : at + count]
        at += count


def attention_mask(ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """1 for tokens, 0 for padding: int64 [B, L]."""
    return (torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]).to(torch.int64)


def encode_blocks(
    encoder: Any,
    texts: Texts,
    rows: tuple[int, int],
    budget_tokens: int,
    device: torch.device,
    dtype: torch.dtype | None,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[np.ndarray]:
    """The embeddings of rows [start, stop), whole blocks, a block at a time: float32 [M, D].

    ``advance`` is told the texts of each batch; an exception that it raises ends the work.
    UserError where an embedding is not finite: searching such numbers would train on noise in silence.
    """
    encoder.eval()
    for first, last in plan_blocks(texts.count, *rows):
        out_MD = np.empty((last - first, encoder.dims), np.float32)
        for batch in plan_batches(texts.lengths(first, last), first, budget_tokens):
            ids_BL, lengths_B = (torch.from_numpy(array).to(device, non_blocking=True) for array in texts.gather(batch))
            with torch.inference_mode(), autocast(device, dtype):
                embeddings_BD = encoder(ids_BL, attention_mask(ids_BL, lengths_B)).float()
            found = embeddings_BD.cpu().numpy()
            if not np.isfinite(found).all():
                raise UserError("the model's embeddings are not finite; take an older checkpoint, or compute in --bf16")
            out_MD[batch - first] = found
            advance(len(batch))
        yield out_MD
