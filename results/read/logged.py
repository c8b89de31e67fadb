"""What an arm left next to its metrics: what was logged by rank, layer and refresh, and what its model returns.

Of a run that logged less, what is missing is empty.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np

from results.read.arm import Arm
from results.read.evaluation import read_object
from results.read.seen import LogRow, logged_rows
from utils.errors import UserError
from utils.exchange.evaluations import check_as_published
from utils.exchange.markers import read_done, read_run
from utils.exchange.negatives import read_records
from utils.ir.rank_buckets import MEASURED, NAMES, TRIPLES, logged_name
from utils.run_log import say

ByBucket = dict[str, float]  # by the names of utils/ir/rank_buckets.py
LAYER = "gradient_"  # and a layer's name, in metrics.jsonl


@dataclass(frozen=True)
class RefreshMeasures:
    """One refresh. None is what was not recorded.

    ``searched`` counts the queries, those left without negatives included; ``dropped`` is {filter: {bucket:
    candidates}}. The shares are of the negatives of the refresh that last searched the same queries.
    """

    step: int
    searched: int
    topk: int
    encode_seconds: float | None
    search_seconds: float | None
    processes: int | None
    dropped: dict[str, dict[str, int]]
    rank_retention: ByBucket
    jaccard: ByBucket

    @property
    def process_seconds(self) -> float | None:
        if self.encode_seconds is None or self.search_seconds is None or self.processes is None:
            return None
        return (self.encode_seconds + self.search_seconds) * self.processes


class ByRankJson(TypedDict):
    """SPLIT.by_rank.json, as drivers/evaluate/score_curves.py writes it; numbers that are not finite are null."""

    score_over_corpus_mean: list[float | None]
    examples: dict[str, list[float | None]]
    grades: list[int]
    passages_by_grade: dict[str, dict[str, int]]
    training_negatives: NotRequired[dict[str, float]]


@dataclass(frozen=True)
class Returned:
    """What the last model returns for the queries of the arm's split.

    ``curve_K`` float64: scores over the corpus's mean by rank; ``example_EK`` those of single queries;
    ``grades`` are those above 0 that the qrels have; ``by_grade`` {"retrieved" or a grade: {bucket: passages}}, grade 0
    being judged irrelevant; ``trained_on`` the overlap with the last refresh's negatives at a depth, and with negatives
    spread evenly (drivers/evaluate/score_curves.py).
    """

    curve_K: np.ndarray
    example_EK: np.ndarray
    grades: list[int]
    by_grade: dict[str, dict[str, int]]
    trained_on: dict[str, float]


@dataclass(frozen=True)
class Measures:
    """``by_rank`` {bucket: {"triples", "loss", "gradient", "satisfied"}}, ``layers`` {layer: [(step, gradient norm)]}.

    ``ages`` are the mean and the largest number of steps by which the negatives in use were behind the trainer.
    """

    by_rank: dict[str, ByBucket]
    layers: dict[str, list[tuple[int, float]]]
    losses: list[tuple[int, float]]
    steps_per_second: float | None
    processes: int | None
    ages: tuple[float, int] | None
    refreshes: tuple[RefreshMeasures, ...]
    returned: Returned | None

    def process_hours(self, trainer_seconds: float) -> float | None:
        """The trainer's, waiting included, and the generator's at work; None where it is not known."""
        made = [refresh.process_seconds for refresh in self.refreshes]
        if self.processes is None or None in made:
            return None
        return (trainer_seconds * self.processes + sum(seconds for seconds in made if seconds is not None)) / 3600


def read_logged(path: Path) -> list[LogRow]:
    """The rows of `logged_rows`; what is cut short is passed over, and said, as is an empty file."""
    rows, passed_over = logged_rows(path)
    if passed_over:
        say(f"warning: {path}: {passed_over} lines are no rows of a log; passed over", sys.stderr)
    elif not rows and path.is_file():
        say(f"warning: {path} is empty: nothing of the training can be shown", sys.stderr)
    return rows


def by_rank_of(rows: Iterable[LogRow]) -> dict[str, ByBucket]:
    """How many triples of the whole run each bucket had, where it had any, and the means over them."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        for bucket in NAMES:
            triples = float(row.get(logged_name(bucket, TRIPLES), 0))
            if triples:
                sums[bucket][TRIPLES] += triples
                for what in MEASURED:
                    sums[bucket][what] += triples * float(row[logged_name(bucket, what)])
    return {
        bucket: {TRIPLES: found[TRIPLES], **{what: found[what] / found[TRIPLES] for what in MEASURED}}
        for bucket, found in sums.items()
    }


def layers_of(rows: Iterable[LogRow]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, norm in row.items():
            if name.startswith(LAYER):
                found.setdefault(name.removeprefix(LAYER), []).append((int(row["step"]), float(norm)))
    return found


def ages_of(taken: list[dict[str, int]], steps: int) -> tuple[float, int] | None:
    """Mean and largest age of the negatives over the trainer's steps, in steps since the model they were made with."""
    if not taken or not steps:
        return None
    starts = [*(entry["taken_at_step"] for entry in taken), steps]
    total, largest = 0, 0
    for entry, (first, last) in zip(taken, pairwise(starts), strict=True):
        if last > first:  # step s + 1 trains on negatives that are s - made_from_step old
            total += sum(range(first - entry["made_from_step"], last - entry["made_from_step"]))
            largest = max(largest, last - 1 - entry["made_from_step"])
    return total / steps, largest


def read_refreshes(ann_dir: Path) -> tuple[RefreshMeasures, ...]:
    found = []
    for record in read_records(ann_dir):
        selection, churn = record.get("selection", {}), record.get("churn", {})
        omitted = selection.get("skipped", 0) + selection.get("empty", 0)
        found.append(
            RefreshMeasures(
                step=int(record.get("step", 0)),
                searched=int(record.get("queries", 0)) + omitted,
                topk=int(record.get("topk_training", 0)),
                encode_seconds=record.get("encode_seconds"),
                search_seconds=record.get("search_seconds"),
                processes=record.get("processes"),
                dropped=selection.get("dropped", {}),
                rank_retention=churn.get("still_there", {}),
                jaccard=churn.get("jaccard", {}),
            )
        )
    return tuple(found)


def read_returned(path: Path) -> Returned | None:
    """None where an older evaluation has not written it. UserError where it is damaged."""
    if not path.is_file():
        return None
    remedy = "run drivers.run_eval on the arm's last checkpoint again"
    check_as_published(path)
    value = cast(ByRankJson, read_object(path, remedy))
    try:
        curve_K = np.array(value["score_over_corpus_mean"], np.float64)  # null is NaN
        example_EK = np.array(list(value["examples"].values()), np.float64)
        trained_on = value.get("training_negatives", {})
        return Returned(curve_K, example_EK, value["grades"], value["passages_by_grade"], trained_on)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is not what an evaluation writes: {remedy}") from None


def read_measures(arm: Arm) -> Measures:
    trainer, generator = arm.layout.checkpoints.root, arm.layout.ann_data.root
    rows, done, run = read_logged(arm.layout.checkpoints.metrics), read_done(trainer) or {}, read_run(trainer) or {}
    rates = [float(row["steps_per_second"]) for row in rows if "steps_per_second" in row]
    return Measures(
        by_rank=by_rank_of(rows),
        layers=layers_of(rows),
        losses=[(int(row["step"]), float(row["loss"])) for row in rows if "loss" in row],
        steps_per_second=rates[-1] if rates else None,  # each is the mean since the job began
        processes=run.get("science", {}).get("processes"),
        ages=ages_of(done.get("taken", []), arm.steps),
        refreshes=read_refreshes(generator),
        returned=read_returned(arm.layout.evaluation.by_rank(arm.split)),
    )
