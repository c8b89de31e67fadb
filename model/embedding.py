"""Encoding many texts: batches by a token budget over length-sorted blocks, results in collection order.

The plan of batches depends on the texts' lengths alone, not on the number of processes, and a process
encodes whole blocks. So one process and several compute the same batches, and the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from model.precision import autocast
from utils.errors import UserError

LARGEST_BLOCK, SMALLEST_BLOCK, WANTED_BLOCKS = 8192, 32, 64

Gather = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # rows_B -> (ids_BL, lengths_B)


def block_size(count: int) -> int:
    """Texts sorted together: large enough for little padding, small enough to share out."""
    return min(max(count // WANTED_BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)


def share_of(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """The rank's contiguous rows [start, stop), in whole blocks."""
    size = block_size(count)
    blocks = -(-count // size)
    return min(blocks * rank // ranks * size, count), min(blocks * (rank + 1) // ranks * size, count)


def plan_batches(lengths_N: np.ndarray, start: int, stop: int, budget_tokens: int) -> Iterator[np.ndarray]:
    """Rows of each batch: within a block the longest first, rows times the longest within the budget."""
    size = block_size(len(lengths_N))
    for first in range(start, stop, size):
        block_lengths = lengths_N[first : min(first + size, stop)]
        order = np.argsort(-block_lengths, kind="stable")
        at = 0
        while at < len(order):
            count = max(1, budget_tokens // max(1, int(block_lengths[order[at]])))
            yield first + order[at : at + count]
            at += count


def attention_mask(ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """1 for tokens, 0 for padding: int64 [B, L]."""
    return (torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]).to(torch.int64)


def encode(
    encoder: Any,
    lengths_N: np.ndarray,
    gather: Gather,
    rows: tuple[int, int],
    out_MD: np.ndarray,
    budget_tokens: int,
    device: torch.device,
    dtype: torch.dtype | None,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write the embeddings of rows [start, stop) into ``out_MD`` (float32, M = stop - start).

    UserError where an embedding is not finite: searching such numbers would train on noise in silence.
    """
    start, stop = rows
    encoder.eval()
    for batch in plan_batches(lengths_N, start, stop, budget_tokens):
        ids_BL, lengths_B = (torch.from_numpy(array).to(device, non_blocking=True) for array in gather(batch))
        with torch.inference_mode(), autocast(device, dtype):
            embeddings_BD = encoder(ids_BL, attention_mask(ids_BL, lengths_B)).float()
        found = embeddings_BD.cpu().numpy()
        if not np.isfinite(found).all():
            raise UserError("the model's embeddings are not finite; take an older checkpoint, or compute in --bf16")
        out_MD[batch - start] = found
        advance(len(batch))
