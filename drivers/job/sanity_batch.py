"""The model's first two batches, before the work begins: do they fit into memory, are the numbers finite?

Each check answers with the line it says, or raises the UserError that ends the program. Nothing here changes what
the program computes afterwards: no random state, no gradient, no weight.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from data.tokens.collection import Preprocessed
from data.tokens.token_cache import TokenCache, gather_from
from data.training.batches import Batch
from drivers.job.disk_budget import optimiser_bytes
from model.encode import EncodingSettings, check_finite, encode_batch
from model.encoders.base import Encoder
from model.encoders.spec import Side
from model.kernels.precision import autocast, name_of
from model.token_batch import TokenBatch
from model.train.micro_batch import to_device
from model.train.step import TrainingStep, backward
from utils.declared.losses import DEFAULT_LOSS, LOSSES
from utils.distributed.world import World
from utils.errors import UserError, one_line
from utils.exchange.evaluations import TRAIN
from utils.system import in_bytes

CPU_TEXTS = 4  # of a batch on the CPU, where it is the minute that runs out, not the memory


@contextlib.contextmanager
def memory_explained(batch_flag: str) -> Iterator[None]:
    """UserError in place of CUDA's own page on memory that ran out, and of the compiler's on what it cannot do."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"a first batch does not fit into the GPU's memory: lower --{batch_flag}") from None
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(f"--compile does not work here ({one_line(error)[:200]}); omit it") from None


@contextlib.contextmanager
def undisturbed(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """After the block random states, gradients and the model's mode are as before, and its memory is given back."""
    training = encoder.training
    gradients = [parameter.grad for parameter in encoder.parameters()]
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.random.fork_rng([device] if cuda else []):
            yield
    finally:
        encoder.train(training)
        for parameter, gradient in zip(encoder.parameters(), gradients, strict=True):
            parameter.grad = gradient
        if cuda:
            torch.cuda.empty_cache()


def longest_rows(cache: TokenCache, max_length: int, count: int) -> np.ndarray:
    """The rows of the ``count`` longest texts, the longest first; fewer where there are fewer."""
    lengths = cache.lengths(max_length)
    count = min(count, len(lengths))
    if count < len(lengths):
        rows = np.argpartition(-lengths, count)[:count]
        return rows[np.argsort(-lengths[rows], kind="stable")]
    return np.argsort(-lengths, kind="stable")


def peak_memory(device: torch.device, batch_flag: str, to_come: int = 0) -> str:
    """What a pass took of the GPU's memory, where there is one; ``to_come`` bytes of optimiser states are not in it."""
    if device.type != "cuda":
        return ""
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    more = f" and {in_bytes(to_come)} for the optimiser" if to_come else ""
    if peak + to_come > total:
        raise UserError(f"the model needs {in_bytes(peak)}{more}, the GPU has {in_bytes(total)}: lower --{batch_flag}")
    return f", {in_bytes(peak)}{more} of the GPU's {in_bytes(total)}"


def check_encoding(
    encoder: Encoder, collection: Preprocessed, split: str, settings: EncodingSettings, device: torch.device
) -> str:
    """Encode a batch of the longest passages and one of the longest queries, each of the size the program will use.

    Args:
        encoder: on ``device``; it stays as it is.
        collection, split: whose passages, and which split's queries.
        settings: how long texts may be, and how large batches.
        device: where it computes.

    Returns:
        What was encoded, in words.

    Raises:
        UserError: an embedding is not finite, or the GPU's memory does not suffice.
    """
    encoded = []
    sides: list[tuple[Side, str, TokenCache, int]] = [
        ("passage", "passages", collection.passages, settings.max_seq_length),
        ("query", f"{split} queries", collection.queries(split), settings.max_query_length),
    ]
    with undisturbed(encoder, device), memory_explained("per_gpu_eval_batch_size"):
        for side, what, cache, limit in sides:
            longest = int(cache.lengths(limit).max(initial=1))
            count = max(1, settings.budget_tokens // max(longest, 1))
            rows = longest_rows(cache, limit, count if device.type == "cuda" else min(count, CPU_TEXTS))
            encoder.eval()
            tokens = TokenBatch.of(*gather_from(cache, limit)(rows))
            check_finite(encode_batch(encoder, tokens, side, device, settings.dtype).cpu().numpy(), f" of {what}")
            encoded.append(f"{len(rows)} {what} of up to {longest} tokens")
        memory = peak_memory(device, "per_gpu_eval_batch_size")
    numbers = f"{encoder.spec.embedding_dim} finite dimensions in {name_of(settings.dtype)}"
    return f"model: {' and '.join(encoded)} encode to {numbers}{memory}"


@dataclass(frozen=True)
class TrialSize:
    """The size of a process's training batch, and how long its texts may be."""

    triples: int
    max_seq_length: int
    max_query_length: int
    grad_cache_tokens: int = 0


def trial_batch(collection: Preprocessed, size: TrialSize, is_over_batch: bool, longest: bool) -> Batch:
    """A batch of as many different texts as a batch can have.

    Triple t is (query t, passage t, passage T + t), not real judgements; texts repeat where there are too few.

    Args:
        collection: whose train queries and passages.
        size: triples, and the lengths of texts in tokens.
        is_over_batch: whether the loss is over all of the batch's passages.
        longest: the longest texts, or the first.
    """
    count, queries, passages = size.triples, collection.queries(TRAIN), collection.passages
    if longest:
        query_R = longest_rows(queries, size.max_query_length, count)
        passage_R = longest_rows(passages, size.max_seq_length, 2 * count)
    else:
        query_R, passage_R = np.arange(min(count, len(queries))), np.arange(min(2 * count, len(passages)))
    place_T = np.arange(count)
    return Batch(
        *gather_from(queries, size.max_query_length)(np.resize(query_R, count)),
        *gather_from(passages, size.max_seq_length)(np.resize(passage_R, 2 * count)),
        query_index_T=place_T,
        positive_index_T=place_T,
        negative_index_T=place_T + count,
        allowed_TG=np.ones((count, 2 * count), bool) if is_over_batch else None,
        target_T=place_T if is_over_batch else None,
    )


def check_training(
    encoder: Encoder,
    collection: Preprocessed,
    loss: str,
    size: TrialSize,
    world: World,
    dtype: torch.dtype | None,
    temperature: float | None = None,
) -> str:
    """Forward and backward through two batches, one of them of the longest texts; no optimiser step.

    Args:
        encoder: on its device; it stays as it is.
        collection: whose texts the batches have.
        loss: a word of `utils.declared.losses.LOSSES`.
        size: of a batch.
        world: the processes; there is no collective.
        dtype: of mixed precision, None for float32.
        temperature: of the loss, None for the encoder's default.

    Returns:
        Both losses and the memory used, in words.

    Raises:
        UserError: loss or gradient is not finite, or the GPU's memory does not suffice.
    """
    device, losses = world.device, []
    if device.type == "cpu":
        size = replace(size, triples=min(size.triples, CPU_TEXTS))
    if world.size > 1 and LOSSES[loss].is_over_batch:  # it would gather; the default takes as much, but for the scores
        loss = DEFAULT_LOSS
    step = TrainingStep(encoder, loss, temperature=temperature)
    with undisturbed(encoder, device), memory_explained("per_gpu_train_batch_size"):
        encoder.train()
        for longest in (True, False):
            encoder.zero_grad(set_to_none=True)
            batch = trial_batch(collection, size, LOSSES[loss].is_over_batch, longest)
            make_autocast = partial(autocast, device, dtype)
            loss_here = backward(
                step, to_device(batch, device), make_autocast, grad_cache_tokens=size.grad_cache_tokens
            )
            losses.append(float(loss_here))
            check_trial(losses[-1], encoder, dtype)
        memory = peak_memory(device, "per_gpu_train_batch_size", optimiser_bytes(encoder))
    values = f"losses {losses[0]:.4g} (longest texts) and {losses[1]:.4g} in {name_of(dtype)}{memory}"
    return f"model: two batches of {size.triples} triples, {values}"


def check_trial(loss: float, encoder: Encoder, dtype: torch.dtype | None) -> None:
    """UserError as in `model.train.step.train_step`, before the first step in place of at it."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of a first batch is {loss}; take another checkpoint, or compute in --bf16")
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    # In fp16 the scaler finds the factor at which gradients are finite.
    if dtype is not torch.float16 and not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise UserError("the gradient of a first batch is not finite; take another checkpoint, or compute in --bf16")
