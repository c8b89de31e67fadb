"""One training step, from micro-batches to changed weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.encoders.base import Encoder
from model.kernels.precision import autocast
from model.similarity import at_temperature, best_rows, temperature_of
from model.train.grad_cache import Autocast, cached_backward, encode_in_micro_batches
from model.train.micro_batch import BatchArrays, MicroBatch, TripleRows, to_device
from model.train.objectives import OBJECTIVES, EncodedBatch
from model.train.optim import layer_gradient_norms, linear_schedule
from model.train.rank_stats import PerRankStats
from utils.declared.losses import LOSSES
from utils.distributed.collectives import average_gradients, gather_with_gradient, mean_over_processes
from utils.distributed.world import World, collective
from utils.errors import UserError
from utils.ir.rank_buckets import MEASURED

SMALLEST_SCALE = 1e-4  # of fp16's loss, as fairseq has it: from the first one it takes 30 skipped steps
GPU_MICRO_BATCH_TOKENS = 2**14  # enough to keep a GPU busy, where texts are padded to the longest of their micro-batch


class TrainingStep(nn.Module):
    """Batch in, loss out: the queries' tokens once and the passages' tokens once through the encoder.

    ``loss`` is a word of --loss; ``temperature`` divides the scores that it sees, None for the encoder's default.
    """

    def __init__(
        self, encoder: Encoder, loss: str, tally: PerRankStats | None = None, temperature: float | None = None
    ) -> None:
        super().__init__()
        self.temperature = temperature_of(encoder.spec.is_normalized, temperature)
        self.encoder, self.tally = encoder, tally
        self.objective, self.is_over_batch = OBJECTIVES[loss], LOSSES[loss].is_over_batch

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        budget_tokens = self.budget_tokens(batch.queries.tokens_T.device)
        queries_BD = encode_in_micro_batches(self.encoder, batch.queries, "query", budget_tokens)
        passages_MD = encode_in_micro_batches(self.encoder, batch.passages, "passage", budget_tokens)
        return self.loss_of(queries_BD, passages_MD, batch.triples)

    def budget_tokens(self, device: torch.device) -> int | None:
        """Of a micro-batch of `grad_cache`; None is a single one: on a GPU, where nothing is padded."""
        if device.type == "cpu":
            return self.encoder.cpu_batch_tokens
        return GPU_MICRO_BATCH_TOKENS if self.encoder.padding_costs else None

    def loss_of(self, queries_BD: torch.Tensor, passages_MD: torch.Tensor, triples: TripleRows) -> torch.Tensor:
        queries_BD, passages_MD = (at_temperature(rows, self.temperature) for rows in (queries_BD, passages_MD))
        query_TD = queries_BD[triples.query_index_T]
        batch = EncodedBatch(
            query_TD,
            best_rows(query_TD, passages_MD[triples.positive_index_T]),
            best_rows(query_TD, passages_MD[triples.negative_index_T]),
            gather_with_gradient(passages_MD) if self.is_over_batch else None,
            triples.allowed_TG,
            triples.target_T,
        )
        if self.tally is not None and triples.negative_rank_T is not None:
            measured_T3 = self.objective.measure(batch)
            # Of the rows as they are encoded, which the chain rule divides by what divided them.
            measured_T3[:, MEASURED.index("gradient")] *= self.temperature**-0.5
            self.tally.add(triples.negative_rank_T, measured_T3)
        return self.objective.loss(batch)


@dataclass
class TrainingState:
    """All that training changes. ``module`` is the step, wrapped for several processes where there are several."""

    encoder: Encoder
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    world: World
    dtype: torch.dtype | None
    max_grad_norm: float
    tally: PerRankStats
    grad_cache_tokens: int = 0
    step: int = 0
    skipped: int = 0  # of the steps made so far, those that fp16's scaler has skipped since somebody set it to 0
    layer_norms: dict[str, float] = field(default_factory=dict)  # of the newest step that measured them

    def restart_schedule(self, learning_rate: float, warmup_steps: int, total_steps: int) -> None:
        """A new warmup and decay from here (ANCE without --single_warmup, when new negatives arrive)."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = learning_rate
        self.scheduler = linear_schedule(self.optimizer, warmup_steps, total_steps)

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def make_state(
    encoder: Encoder,
    loss: str,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    world: World,
    dtype: torch.dtype | None,
    max_grad_norm: float,
    grad_cache_tokens: int = 0,
    temperature: float | None = None,
) -> TrainingState:
    """The state before the first step, wrapped for several processes where there are several.

    Args:
        encoder: on the process's device.
        loss: a word of --loss.
        optimizer: of the encoder's weights.
        scheduler: of the optimizer's learning rate, called once a step.
        world: the processes, whose gradients become their mean.
        dtype: the type to autocast to, None for float32; float16 has its loss scaled.
        max_grad_norm: the gradient is clipped to it; 0 for no clipping.
        grad_cache_tokens: above 0, micro-batches of so many tokens with GradCache, for batches beyond memory.
        temperature: of the loss, `TrainingStep`'s.
    """
    tally = PerRankStats(world.device)
    module: nn.Module = TrainingStep(encoder, loss, tally, temperature)
    if world.size > 1 and not grad_cache_tokens:  # which adds the processes' gradients up by itself
        with collective(world):
            module = DistributedDataParallel(module, device_ids=[world.device] if world.device.type == "cuda" else None)
    scaler = torch.amp.GradScaler(world.device.type, enabled=dtype is torch.float16)
    return TrainingState(
        encoder, module, optimizer, scheduler, scaler, world, dtype, max_grad_norm, tally, grad_cache_tokens
    )


def train_step(state: TrainingState, micro_batches: Sequence[BatchArrays], measures_layers: bool = False) -> float:
    """One optimiser step over the micro-batches; returns the loss, averaged over them and over the processes.

    With ``measures_layers`` the gradient's norm in each of ANCE's layer groups is kept, as it was before clipping.
    UserError where the loss or the gradient is not finite: another step would only destroy the model. In fp16 such a
    step is skipped, and its loss returned as it is; UserError once that has happened again and again.
    """
    state.module.train()
    sums_B4 = state.tally.sums_B4.clone() if state.scaler.is_enabled() else state.tally.sums_B4
    total = accumulate_gradients(state, micro_batches)
    # What one process cannot continue from, all of them stop at.
    if not math.isfinite(total):
        if not state.scaler.is_enabled():
            raise UserError(f"the loss is {total} at step {state.step + 1}; lower --learning_rate, or use --bf16")
        spoil_gradients(state.encoder)
        state.tally.sums_B4.copy_(sums_B4)
    state.scaler.unscale_(state.optimizer)
    if measures_layers:
        state.layer_norms = layer_gradient_norms(state.encoder)
    largest = state.max_grad_norm if state.max_grad_norm > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(state.encoder.parameters(), largest)
    # In fp16 the scaler skips such a step.
    if not state.scaler.is_enabled() and not torch.isfinite(norm):
        raise UserError(f"the gradient is not finite at step {state.step + 1}; lower --learning_rate")
    step_with_scale(state)
    state.scheduler.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return total


def accumulate_gradients(state: TrainingState, micro_batches: Sequence[BatchArrays]) -> float:
    """Add up the gradients of all micro-batches, and of all processes; the loss, averaged over both."""
    make_autocast = partial(autocast, state.world.device, state.dtype)
    losses = []
    for number, batch in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        # Processes exchange gradients once per step, with the last micro-batch.
        quiet = isinstance(state.module, DistributedDataParallel) and not last
        with state.module.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            losses.append(
                backward(
                    state.module,
                    to_device(batch, state.world.device),
                    make_autocast,
                    state.scaler.scale,
                    len(micro_batches),
                    state.grad_cache_tokens,
                )
            )
    if state.grad_cache_tokens:
        average_gradients(state.world, [p for p in state.encoder.parameters() if p.requires_grad])
    return mean_over_processes(state.world, sum((loss.double() for loss in losses), torch.zeros(())))


def spoil_gradients(encoder: nn.Module) -> None:
    """Whatever gradients a loss has that is not finite: fp16's scaler is to skip the step."""
    for parameter in encoder.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(math.nan)


def step_with_scale(state: TrainingState) -> None:
    """The optimiser's step, unless fp16's scaler skips it; UserError where its scale has sunk too far by that."""
    before = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    scale = state.scaler.get_scale()
    if scale >= before:
        return
    state.skipped += 1
    if scale < SMALLEST_SCALE:
        raise UserError(
            f"loss or gradient has not been finite in fp16 again and again, at step {state.step + 1} the loss scale is "
            f"{scale:.1g}; lower --learning_rate, or use --bf16"
        )


def backward(
    module: nn.Module,
    batch: MicroBatch,
    make_autocast: Autocast,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
    micro_batches: int = 1,
    grad_cache_tokens: int = 0,
) -> torch.Tensor:
    """Add a micro-batch's gradients up.

    Args:
        module: the `TrainingStep`, wrapped for several processes where there are several.
        batch: on the module's device.
        make_autocast: makes the context in which all of it is computed, again for each use.
        scale: the gradient scaler's.
        micro_batches: of the step, over which the loss is averaged.
        grad_cache_tokens: above 0, of a micro-batch of GradCache's.

    Returns:
        Its part of the step's loss, without a graph.
    """
    if not grad_cache_tokens:
        with make_autocast():
            loss: torch.Tensor = module(batch) / micro_batches
        scale(loss).backward()
        return loss.detach()
    assert isinstance(module, TrainingStep)
    return cached_backward(
        module.encoder,
        [(batch.queries, "query"), (batch.passages, "passage")],
        lambda queries_BD, passages_MD: module.loss_of(queries_BD, passages_MD, batch.triples) / micro_batches,
        grad_cache_tokens,
        make_autocast,
        scale,
    )
