"""Encoding many texts: batches by a token budget over length-sorted blocks, results in collection order.

The plan of batches depends on the texts' lengths alone, not on the number of processes, and a process
encodes whole blocks. So one process and several compute the same batches, and the same numbers. What is in
memory is a block at a time, however large the collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from model.encoders.base import Encoder
from model.encoders.spec import Side
from model.kernels.precision import autocast
from model.token_batch import TokenBatch
from utils.errors import UserError
from utils.prefetch import prefetched
from utils.search.norms import problem_of

LARGEST_BLOCK, SMALLEST_BLOCK, WANTED_BLOCKS = 8192, 32, 64

Gather = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # rows_B -> (tokens_T, offsets_B1)


@dataclass(frozen=True)
class TextSource:
    """What is to be encoded: ``count`` texts of a side, ``lengths(start, stop)`` int [stop - start] in tokens."""

    count: int
    lengths: Callable[[int, int], np.ndarray]
    gather: Gather
    side: Side


def block_size(count: int) -> int:
    """Texts sorted together: large enough for little padding, small enough to share out."""
    return min(max(count // WANTED_BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)


def share_of(count: int, process: int, processes: int) -> tuple[int, int]:
    """The process's contiguous part [start, stop) of ``count`` things that are not divided."""
    return count * process // processes, count * (process + 1) // processes


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


@dataclass(frozen=True)
class BlockBatch:
    """A batch's texts ``rows_B``, and the block [first, last) of which it is a part."""

    first: int
    last: int
    rows_B: torch.Tensor
    tokens: TokenBatch


def gather_batches(texts: TextSource, rows: tuple[int, int], budget_tokens: int, pin: bool) -> Iterator[BlockBatch]:
    """The batches of some texts, block after block.

    Args:
        texts: what is to be encoded.
        rows: start and stop of the texts.
        budget_tokens: the most in a batch, padding included.
        pin: put them where a GPU copies from by itself.
    """
    for first, last in plan_blocks(texts.count, *rows):
        for rows_B in plan_batches(texts.lengths(first, last), first, budget_tokens):
            places_B, tokens = torch.from_numpy(rows_B), TokenBatch.of(*texts.gather(rows_B))
            if pin:
                places_B, tokens = places_B.pin_memory(), tokens.pin_memory()
            yield BlockBatch(first, last, places_B, tokens)


def encode_batch(
    encoder: Encoder, tokens: TokenBatch, side: Side, device: torch.device, dtype: torch.dtype | None
) -> torch.Tensor:
    """The rows of a batch of texts.

    Args:
        encoder: on ``device``.
        tokens: of B texts, anywhere.
        side: what the texts are.
        device, dtype: where, and the type to autocast to or None.

    Returns:
        float32 [B, D], or [B, R, D] with NaN for rows that are not there; on the device.
    """
    with torch.inference_mode(), autocast(device, dtype):
        return encoder.encode(tokens.to(device), side).marked()


def encode_blocks(
    encoder: Encoder,
    texts: TextSource,
    rows: tuple[int, int],
    budget_tokens: int,
    device: torch.device,
    dtype: torch.dtype | None,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[np.ndarray]:
    """The embeddings of texts, a block at a time; the next are gathered in a thread while the device computes.

    Args:
        encoder, texts: which is switched to evaluation, and what it encodes.
        rows: start and stop of the texts, which are whole blocks.
        budget_tokens: the most in a batch, padding included; on a CPU ``encoder.cpu_batch_tokens`` at most.
        device, dtype: where, and the type to autocast to or None.
        advance: told how many texts each batch has; what it raises ends the work.

    Returns:
        float32 [M, D]; where a passage may have several rows [M, R, D], which `present_rows` takes apart.

    Raises:
        UserError: an embedding is not finite. Searching such numbers would train on noise in silence.
    """
    encoder.eval()
    if device.type == "cpu":
        budget_tokens = min(budget_tokens, encoder.cpu_batch_tokens)
    text_shape, filled, block_MD = encoder.spec.text_shape(texts.side), 0, torch.empty(0)
    with closing(prefetched(gather_batches(texts, rows, budget_tokens, pin=device.type == "cuda"))) as batches:
        for batch in batches:
            if filled == 0:
                block_MD = torch.empty((batch.last - batch.first, *text_shape), device=device)
            places_B = batch.rows_B.to(device, non_blocking=True) - batch.first
            block_MD[places_B] = encode_batch(encoder, batch.tokens, texts.side, device, dtype)
            filled += len(batch.rows_B)
            advance(len(batch.rows_B))
            if filled == len(block_MD):
                yield check_finite(block_MD.cpu().numpy())
                filled = 0


def present_rows(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows [N, D] of M texts, one text's after the other's, and how many each has: int32 [M].

    ``texts`` are [M, D], or [M, R, D] where a row that is not there is NaN, and the first of each text is there.
    """
    if texts.ndim == 2:
        return texts, np.ones(len(texts), np.int32)
    is_there_MR = ~np.isnan(texts[:, :, 0])
    is_there_MR[:, 0] = True  # else that is found where its numbers are looked at
    return texts[is_there_MR], is_there_MR.sum(1, dtype=np.int32)


def check_finite(embeddings_MD: np.ndarray, of_what: str = "") -> np.ndarray:
    """The embeddings; UserError, which names them by ``of_what``, where a row that is there cannot be searched."""
    if problem := problem_of(present_rows(embeddings_MD)[0]):
        raise UserError(f"the model's embeddings{of_what} {problem}; take an older checkpoint, or compute in --bf16")
    return embeddings_MD


@dataclass(frozen=True)
class EncodingSettings:
    """How texts become embeddings; ``dtype`` is the type to autocast to, or None."""

    max_seq_length: int
    max_query_length: int
    budget_tokens: int
    dtype: torch.dtype | None
