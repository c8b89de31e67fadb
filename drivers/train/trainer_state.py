"""What every checkpoint of a trainer holds of its training next to its weights: trainer_state.json, and README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from drivers.train.settings import TrainingSettings
from model.formats.card import write_card
from model.train.step import TrainingState
from utils.exchange.checkpoints import Checkpoint
from utils.exchange.layout import TRAINER_STATE
from utils.hub import is_path


class TrainerState(TypedDict, total=False):
    """What trainer_state.json holds: the position in the run, next to the weights. An earlier version's lacks some.

    ``losses``, ``by_rank`` and ``skipped`` are of the steps since the last line of the log.
    """

    step: int
    run_id: str
    losses: list[float]
    by_rank: list[list[float | None]]
    skipped: int
    triple_order: int
    seconds: float
    metrics_bytes: int
    # Of ANN training, see `drivers.train.journal.TrainingHistory`.
    refresh: int | None
    taken: list[dict[str, Any]]
    models: dict[str, str]
    schedule_from: int
    strategy: str | None
    # Of the warmup, where a stop came before the evaluation.
    evaluation_due: bool


def read_trainer_state(checkpoint: Checkpoint) -> TrainerState:
    """The position that `drivers.train.trainer.Trainer.publish` stored next to the weights."""
    value: TrainerState = json.loads((checkpoint.path / TRAINER_STATE).read_text())
    return value


def write_model_card(
    directory: Path, settings: TrainingSettings, state: TrainingState, record: Mapping[str, object]
) -> None:
    """Write the card of a checkpoint.

    Args:
        directory: of the checkpoint.
        settings: how it is trained.
        state: with its encoder.
        record: what its manifest and trainer_state.json say.
    """
    git, base = record.get("git"), settings.initial_model
    described = {
        **record,
        "step": state.step,
        "loss": settings.loss,
        "optimizer": settings.optimizer.name,
        "learning_rate": settings.optimizer.learning_rate,
        "triples": settings.batch.triples * settings.micro_batches * state.world.size,
        "base": Path(base).name if is_path(base) else base,  # a path is of this machine alone
        "commit": git.get("commit") if isinstance(git, dict) else None,
    }
    write_card(directory, state.encoder.config_dict(), described)
