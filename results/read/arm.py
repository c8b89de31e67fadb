"""A finished arm of a run, as what is reported of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from results.read.evaluation import Evaluation
from results.read_log import TrainingPoint
from utils.exchange.layout import ArmLayout
from utils.ir.metrics import MRR, NDCG
from utils.seen import SeenRefresh


@dataclass(frozen=True)
class DevPoint:
    """Metrics of one checkpoint on the arm's split, as a refresh measured them. ``step`` 0 is the warmup checkpoint."""

    refresh: int
    step: int
    ndcg: float
    mrr: float | None

    def value_of(self, metric: str) -> float | None:
        """Of one of HEADLINE."""
        return {NDCG: self.ndcg, MRR: self.mrr}[metric]


@dataclass(frozen=True)
class Arm:
    """A finished arm. ``seconds`` is the trainer's wall time, ``split`` what it was measured and evaluated on."""

    name: str
    directory: Path
    evaluation: Evaluation
    steps: int
    refreshes: int
    seconds: float
    strategy: str
    seed: int | None
    split: str
    dev: tuple[DevPoint, ...]  # by step
    training: tuple[TrainingPoint, ...]  # by step
    seen: tuple[SeenRefresh, ...]  # in the order of training; empty where the run did not note it

    @property
    def layout(self) -> ArmLayout:
        return ArmLayout(self.directory)

    @property
    def ann_dir(self) -> Path:
        return self.layout.ann_data.root
