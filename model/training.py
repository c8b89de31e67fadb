"""The training step and the state that a checkpoint holds."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.attribution import RankTally, measure_in_batch, measure_pairwise
from model.kernels.precision import autocast
from model.lamb import Lamb
from model.losses import in_batch_nll, pairwise_nll
from model.passes import cached_backward, encode_in_passes
from utils.distributed import World, average_gradients, collective, gather_rows, gather_with_gradient, mean_over_ranks
from utils.errors import UserError, one_line
from utils.exchange.layout import TRAINER_STATE
from utils.json_text import json_text

RNG_STATES = "rng_states.safetensors"
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
SMALLEST_SCALE = 1e-4  # of fp16's loss, as fairseq has it: from the first one it takes 30 skipped steps
GPU_PASS_TOKENS = 2**14  # enough to keep a GPU busy, where a batch's texts are padded to the longest of a pass
INSTALL_APEX = (
    "--optimizer apex_fused_lamb needs NVIDIA apex, which is not installed: build it from github.com/NVIDIA/apex "
    "with --cpp_ext and --cuda_ext (PyPI's package called apex is another program), or use --optimizer lamb"
)


class TrainingStep(nn.Module):
    """Batch in, loss out: the queries' tokens once and the passages' tokens once through the encoder."""

    def __init__(self, encoder: Any, loss: str, tally: RankTally | None = None) -> None:
        super().__init__()
        self.encoder, self.loss, self.tally = encoder, loss, tally

    def forward(
        self,
        query_ids_BL: torch.Tensor,
        query_lengths_B: torch.Tensor,
        passage_ids_ML: torch.Tensor,
        passage_lengths_M: torch.Tensor,
        **rows: torch.Tensor,
    ) -> torch.Tensor:
        """The names are those of data.training.batches.Batch; ``rows`` are those that `loss_of` takes."""
        budget_tokens = self.budget_tokens(query_ids_BL.device)
        queries_BD = encode_in_passes(self.encoder, query_ids_BL, query_lengths_B, budget_tokens)
        passages_MD = encode_in_passes(self.encoder, passage_ids_ML, passage_lengths_M, budget_tokens)
        return self.loss_of(queries_BD, passages_MD, **rows)

    def budget_tokens(self, device: torch.device) -> int | None:
        """Of a pass; None is a single one: packed texts on a GPU."""
        if device.type == "cpu":
            return int(self.encoder.cpu_batch_tokens)
        return None if self.encoder.is_packed else GPU_PASS_TOKENS

    def loss_of(
        self,
        queries_BD: torch.Tensor,
        passages_MD: torch.Tensor,
        query_index_T: torch.Tensor,
        positive_index_T: torch.Tensor,
        negative_index_T: torch.Tensor,
        allowed_TG: torch.Tensor | None = None,
        target_T: torch.Tensor | None = None,
        negative_rank_T: torch.Tensor | None = None,
    ) -> torch.Tensor:
        triple = queries_BD[query_index_T], passages_MD[positive_index_T], passages_MD[negative_index_T]
        tally = self.tally
        if self.loss == "pairwise":
            if tally is not None and negative_rank_T is not None:
                tally.add(negative_rank_T, measure_pairwise(*triple))
            return pairwise_nll(*triple)
        assert allowed_TG is not None and target_T is not None, "the batch was not made for the in-batch loss"
        others = gather_with_gradient(passages_MD), allowed_TG, target_T
        if tally is not None and negative_rank_T is not None:
            tally.add(negative_rank_T, measure_in_batch(*triple, *others))
        return in_batch_nll(triple[0], *others)


def tensors_of(batch: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """A dataclass of numpy arrays as the keyword arguments of `TrainingStep`."""
    arrays = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {
        name: torch.from_numpy(array).to(device, non_blocking=True)
        for name, array in arrays.items()
        if array is not None
    }


def named_groups(encoder: nn.Module) -> dict[str, list[nn.Parameter]]:
    """ANCE's layer-wise groups: the embeddings, each transformer layer, and the rest."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if "embeddings." in name:
            group = "embeddings"
        elif ".encoder.layer." in name:
            group = "layer_" + name.split(".encoder.layer.")[1].split(".")[0]
        else:
            group = "head"
        groups.setdefault(group, []).append(parameter)
    return groups


def parameter_groups(encoder: nn.Module) -> list[dict[str, Any]]:
    return [{"params": parameters} for parameters in named_groups(encoder).values()]


def layer_gradient_norms(encoder: nn.Module) -> dict[str, float]:
    """The norm of each group's gradient (the ANCE paper's figure 4)."""
    gradients = {
        name: [parameter.grad for parameter in parameters if parameter.grad is not None]
        for name, parameters in named_groups(encoder).items()
    }
    return {name: float(torch.nn.utils.get_total_norm(found)) for name, found in gradients.items() if found}


def make_optimizer(
    name: str, encoder: nn.Module, learning_rate: float, epsilon: float, weight_decay: float
) -> torch.optim.Optimizer:
    """lamb (ANCE's default), adamW, or NVIDIA's fused LAMB; UserError where apex is not installed."""
    groups = parameter_groups(encoder)
    if name == "lamb":
        return Lamb(groups, lr=learning_rate, eps=epsilon, weight_decay=weight_decay)
    if name == "adamW":
        # Fused: one pass over the memory in place of one for each operation.
        return torch.optim.AdamW(groups, lr=learning_rate, eps=epsilon, weight_decay=weight_decay, fused=True)
    try:
        from apex.optimizers import FusedLAMB
    except ImportError:
        raise UserError(INSTALL_APEX) from None
    # use_nvlamb: the trust ratio also where weight decay is 0, as ours and ANCE's. Clipping is the trainer's.
    return FusedLAMB(
        groups,
        lr=learning_rate,
        eps=epsilon,
        weight_decay=weight_decay,
        bias_correction=False,
        use_nvlamb=True,
        max_grad_norm=1e9,
    )


def linear_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Up from 0 in ``warmup_steps``, then linearly down to 0 at ``total_steps``."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@dataclass
class TrainingState:
    """All that training changes. ``module`` is the step, wrapped for several ranks where there are several."""

    encoder: Any
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    world: World
    dtype: torch.dtype | None
    max_grad_norm: float
    tally: RankTally
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
    encoder: Any,
    loss: str,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    world: World,
    dtype: torch.dtype | None,
    max_grad_norm: float,
    grad_cache_tokens: int = 0,
) -> TrainingState:
    """``grad_cache_tokens`` above 0: passes of so many tokens with GradCache, for batches beyond memory."""
    tally = RankTally(world.device)
    module: nn.Module = TrainingStep(encoder, loss, tally)
    if world.size > 1 and not grad_cache_tokens:  # which adds the ranks' gradients up by itself
        with collective(world):
            module = DistributedDataParallel(module, device_ids=[world.device] if world.device.type == "cuda" else None)
    scaler = torch.amp.GradScaler(world.device.type, enabled=dtype is torch.float16)
    return TrainingState(
        encoder, module, optimizer, scheduler, scaler, world, dtype, max_grad_norm, tally, grad_cache_tokens
    )


def train_step(state: TrainingState, micro_batches: list[Any], measures_layers: bool = False) -> float:
    """One optimiser step over the micro-batches; returns the loss, averaged over them and over the ranks.

    With ``measures_layers`` the gradient's norm in each of ANCE's layer groups is kept, as it was before clipping.
    UserError where the loss or the gradient is not finite: going on would only destroy the model. In fp16 such a step
    is skipped, and its loss returned as it is; UserError once that has happened again and again.
    """
    state.module.train()
    sums_B4 = state.tally.sums_B4.clone() if state.scaler.is_enabled() else state.tally.sums_B4
    make_autocast = partial(autocast, state.world.device, state.dtype)
    losses = []
    for number, batch in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        # Ranks exchange gradients once per step, with the last micro-batch.
        quiet = isinstance(state.module, DistributedDataParallel) and not last
        with state.module.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            arrays = tensors_of(batch, state.world.device)
            losses.append(
                backward(
                    state.module, arrays, make_autocast, state.scaler.scale, len(micro_batches), state.grad_cache_tokens
                )
            )
    if state.grad_cache_tokens:
        average_gradients(state.world, list(state.encoder.parameters()))
    total = mean_over_ranks(state.world, sum((loss.double() for loss in losses), torch.zeros(())))
    # What one rank cannot go on with, all of them stop at.
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
    batch: dict[str, torch.Tensor],
    make_autocast: Callable[[], Any],
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
    micro_batches: int = 1,
    grad_cache_tokens: int = 0,
) -> torch.Tensor:
    """Add a micro-batch's gradients up; its part of the step's loss. ``scale`` is the gradient scaler's."""
    if not grad_cache_tokens:
        with make_autocast():
            loss: torch.Tensor = module(**batch) / micro_batches
        scale(loss).backward()
        return loss.detach()
    assert isinstance(module, TrainingStep)
    loss_of, rows = module.loss_of, dict(batch)
    queries = (rows.pop("query_ids_BL"), rows.pop("query_lengths_B"))
    passages = (rows.pop("passage_ids_ML"), rows.pop("passage_lengths_M"))
    return cached_backward(
        module.encoder,
        [queries, passages],
        lambda *embeddings: loss_of(*embeddings, **rows) / micro_batches,
        grad_cache_tokens,
        make_autocast,
        scale,
    )


def rng_states(world: World) -> dict[str, torch.Tensor]:
    """The state of every rank's random generators, on all ranks: ``cpu.RANK`` and ``cuda.RANK``, uint8."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    found = {}
    for kind, state in states.items():
        for rank, row in enumerate(gather_rows(world, state.numpy()[None])):
            found[f"{kind}.{rank}"] = torch.from_numpy(row[0].copy())
    return found


def save_state(
    state: TrainingState,
    staging: Path,
    tokenizer: list[Path],
    trainer_state: dict[str, Any],
    rng: dict[str, torch.Tensor],
) -> None:
    """Write everything a checkpoint holds into ``staging``: weights, the tokenizer's files, all `load_state` needs."""
    state.encoder.save_pretrained(staging)
    for path in tokenizer:
        shutil.copyfile(path, staging / path.name)
    torch.save(state.optimizer.state_dict(), staging / OPTIMIZER)
    torch.save({"scheduler": state.scheduler.state_dict(), "scaler": state.scaler.state_dict()}, staging / SCHEDULER)
    save_file(rng, staging / RNG_STATES)
    (staging / TRAINER_STATE).write_text(json_text({"step": state.step, **trainer_state}, indent=1))


def load_optimizer_scheduler(state: TrainingState, checkpoint: Path) -> None:
    """ANCE's --load_optimizer_scheduler; UserError where the checkpoint has neither or they do not fit."""
    for name in (OPTIMIZER, SCHEDULER):
        if not (checkpoint / name).is_file():
            raise UserError(f"{checkpoint / name} is missing, --load_optimizer_scheduler needs it; leave the flag out")
    try:  # from the CPU: the optimiser moves what belongs on the GPU, and its step counters do not
        state.optimizer.load_state_dict(torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True))
        stored = torch.load(checkpoint / SCHEDULER, map_location="cpu", weights_only=True)
        state.scheduler.load_state_dict(stored.get("scheduler", stored))
        if "scaler" in stored:
            state.scaler.load_state_dict(stored["scaler"])
    except Exception as error:  # torch raises many types for a file that is damaged or of something else
        raise UserError(
            f"{checkpoint}: its optimiser does not fit this model and --optimizer, or is damaged "
            f"({one_line(error)[:200]}); leave --load_optimizer_scheduler out"
        ) from None


def load_state(state: TrainingState, checkpoint: Path, step: int) -> None:
    """Optimiser, schedule, scaler and this rank's random state as `save_state` left them at ``step``.

    A rank that the earlier job did not have keeps the state it has. The weights are the encoder's already. The
    schedule must have been made anew with the values it had then.
    """
    load_optimizer_scheduler(state, checkpoint)
    rng = load_file(checkpoint / RNG_STATES)
    rank = state.world.rank
    if f"cpu.{rank}" in rng:
        torch.set_rng_state(rng[f"cpu.{rank}"])
    if state.world.device.type == "cuda" and f"cuda.{rank}" in rng:
        torch.cuda.set_rng_state(rng[f"cuda.{rank}"], state.world.device)
    state.step = step
