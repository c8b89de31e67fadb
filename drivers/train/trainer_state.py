"""trainer_state.json, which every checkpoint of a trainer holds next to its weights."""

from __future__ import annotations

import json
from typing import Any, TypedDict

from utils.exchange.checkpoints import Checkpoint
from utils.exchange.layout import TRAINER_STATE


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
    # Of the warmup, where a stop came before the evaluation.
    evaluation_due: bool


def read_trainer_state(checkpoint: Checkpoint) -> TrainerState:
    """The position that `drivers.train.trainer.Trainer.publish` stored next to the weights."""
    value: TrainerState = json.loads((checkpoint.path / TRAINER_STATE).read_text())
    return value
