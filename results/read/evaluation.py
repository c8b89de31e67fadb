"""One metrics.json, and what any reader of a run's JSON needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.evaluations import ranked_split, read_metrics
from utils.ir.metrics import METRICS

HEADINGS = {metric.name: metric.label for metric in METRICS.values() if metric.in_report}
REPORTED = tuple(HEADINGS)
HEADINGS_OF_DOCUMENTS = {metric.name: metric.label for metric in METRICS.values() if metric.of_documents}


@dataclass(frozen=True)
class Evaluation:
    """One metrics.json. ``metrics`` has those of REPORTED that its lists reach, and of documents theirs.

    ``step`` is None for no checkpoint.

    ``split`` is "" where an older version has not said it; ``relevance_level`` is from where binary metrics count.
    """

    metrics: dict[str, float]
    model: str
    step: int | None
    queries: int | None
    split: str
    relevance_level: int = 1


def number(value: object, path: Path, key: str) -> float:
    """``value`` where it is a finite number, else UserError naming the file and the key."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: {key} is {value!r}, expected a number: write it again with the program that made it")
    return float(value)


def read_object(
    path: Path, remedy: str, read: Callable[[Path], dict[str, object]] = atomic.read_json
) -> dict[str, object]:
    """The JSON object of a file; UserError with ``remedy`` where it is missing, or ``read`` finds it damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}")
    try:
        return read(path)
    except UserError as error:
        raise UserError(f"{error}: {remedy}") from None


def read_evaluation(path: Path, remedy: str, split: str = "") -> Evaluation:
    """Of ``split`` where the file is of several and has it, else of the first. UserError as `read_object`."""
    value = read_object(path, remedy, read_metrics)
    splits = value.get("splits")
    of_split = splits.get(split) if isinstance(splits, dict) else None
    found = of_split if isinstance(of_split, dict) else value
    metrics, queries, step = found.get("metrics"), found.get("queries"), value.get("step")
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: no metrics in it, expected {', '.join(REPORTED)}: {remedy}")
    reported = (*REPORTED, *HEADINGS_OF_DOCUMENTS)
    return Evaluation(
        metrics={name: number(metrics[name], path, name) for name in reported if name in metrics},
        model=str(value.get("model", "")),
        step=None if step is None else int(number(step, path, "step")),
        queries=None if queries is None else int(number(queries, path, "queries")),
        split=split if of_split is not None else ranked_split(value),
        relevance_level=int(number({**value, **found}.get("relevance_level", 1), path, "relevance_level")),
    )
