"""What a checkpoint holds of training: weights, optimiser, schedule, the state of every process's generators."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.encoders.base import Encoder
from model.train.step import TrainingState
from utils.distributed.collectives import gather_rows
from utils.distributed.world import World
from utils.errors import UserError, one_line
from utils.exchange.layout import SCHEDULER, TRAINER_STATE
from utils.json_text import json_text

RNG_STATES = "rng_states.safetensors"
OPTIMIZER = "optimizer.pt"


def rng_states(world: World) -> dict[str, torch.Tensor]:
    """The state of every process's random generators, on all of them: ``cpu.PROCESS`` and ``cuda.PROCESS``, uint8."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    found = {}
    for kind, state in states.items():
        for process, row in enumerate(gather_rows(world, state.numpy()[None])):
            found[f"{kind}.{process}"] = torch.from_numpy(row[0].copy())
    return found


def save_encoder(encoder: Encoder, directory: Path) -> None:
    """Its weights; of one with adapters, these alone."""
    if encoder.adapter_base is None:
        encoder.save_pretrained(directory)
        return
    from model.encoders.lora import save_adapters

    save_adapters(encoder, directory)


def save_state(
    state: TrainingState,
    staging: Path,
    tokenizer: list[Path],
    trainer_state: Mapping[str, object],
    rng: dict[str, torch.Tensor],
) -> None:
    """Write everything a checkpoint holds: weights, the tokenizer's files, all that `load_state` needs.

    Args:
        state: of training.
        staging: the directory, which is published afterwards.
        tokenizer: its files.
        trainer_state: what trainer_state.json says next to the step.
        rng: see `rng_states`.
    """
    save_encoder(state.encoder, staging)
    for path in tokenizer:
        shutil.copyfile(path, staging / path.name)
    torch.save(state.optimizer.state_dict(), staging / OPTIMIZER)
    torch.save({"scheduler": state.scheduler.state_dict(), "scaler": state.scaler.state_dict()}, staging / SCHEDULER)
    save_file(rng, staging / RNG_STATES)
    (staging / TRAINER_STATE).write_text(json_text({"step": state.step, **trainer_state}, indent=1))


def check_has_optimizer(checkpoint: Path) -> None:
    """UserError where a checkpoint has not what --load_optimizer_scheduler loads."""
    for name in (OPTIMIZER, SCHEDULER):
        if not (checkpoint / name).is_file():
            raise UserError(f"{checkpoint / name} is missing, --load_optimizer_scheduler needs it; omit the flag")


def load_optimizer_scheduler(state: TrainingState, checkpoint: Path) -> None:
    """ANCE's --load_optimizer_scheduler; UserError where the checkpoint has neither or they do not fit."""
    check_has_optimizer(checkpoint)
    try:  # from the CPU: the optimiser moves what belongs on the GPU, and its step counters do not
        state.optimizer.load_state_dict(torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True))
        stored = torch.load(checkpoint / SCHEDULER, map_location="cpu", weights_only=True)
        state.scheduler.load_state_dict(stored.get("scheduler", stored))
        if "scaler" in stored:
            state.scaler.load_state_dict(stored["scaler"])
    except Exception as error:  # torch raises many types for a file that is damaged or of something else
        raise UserError(
            f"{checkpoint}: its optimiser does not fit this model and --optimizer, or is damaged "
            f"({one_line(error)[:200]}); omit --load_optimizer_scheduler"
        ) from None


def load_state(state: TrainingState, checkpoint: Path, step: int) -> None:
    """Optimiser, schedule, scaler and this process's random state as `save_state` left them at ``step``.

    A process that the earlier job did not have keeps the state it has. The weights are the encoder's already. The
    schedule must have been made again with the values it had then.
    """
    load_optimizer_scheduler(state, checkpoint)
    rng = load_file(checkpoint / RNG_STATES)
    process = state.world.process
    if f"cpu.{process}" in rng:
        torch.set_rng_state(rng[f"cpu.{process}"])
    if state.world.device.type == "cuda" and f"cuda.{process}" in rng:
        torch.cuda.set_rng_state(rng[f"cuda.{process}"], state.world.device)
    state.step = step
