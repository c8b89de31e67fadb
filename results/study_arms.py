"""What commands/study.sh left of each arm and seed, read once and checked: arms that may be compared."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from results.run_directory import GENERATOR_DIRECTORY, TRAINER_DIRECTORY, Arm, Unfinished, read_arm
from utils.errors import UserError
from utils.exchange import METRICS, negatives_path, read_run

COMPARED = ("mrr@10", "ndcg@10")
MEASURED = ("loss", "gradient", "satisfied")  # by rank bucket, in a trainer's metrics.jsonl
MAY_DIFFER = {"seed", "strategy", "bm25_sha256"}  # between the arms of a study
SAME_OVERLAP = 0.95  # of two arms' first negatives: they are one arm under two names


@dataclass(frozen=True)
class ArmRun:
    """One arm of one seed. ``by_query`` has one value for each dev query, in the same order in all arms."""

    name: str
    seed: int
    arm: Arm
    by_query: dict[str, np.ndarray]
    science: dict[str, Any]
    first_negatives: frozenset[tuple[str, str]]
    by_rank: dict[str, dict[str, float]]  # {bucket: {"gradient", "loss", "satisfied"}}, means over the triples trained


@dataclass(frozen=True)
class Study:
    seeds: list[int]
    arms: dict[str, list[ArmRun]]  # by seed, in the order of ``seeds``
    warnings: list[str]

    def finals(self, name: str, metric: str) -> np.ndarray:
        return np.array([run.arm.evaluation.metrics[metric] for run in self.arms[name]])

    @property
    def strategies(self) -> dict[str, str]:
        return {name: runs[0].arm.strategy for name, runs in self.arms.items()}

    def by_rank(self, name: str) -> dict[str, dict[str, float]]:
        """{bucket: {"loss", "gradient", "satisfied"}} of an arm, means over its seeds."""
        runs = self.arms[name]
        buckets = dict.fromkeys(bucket for run in runs for bucket in run.by_rank)
        return {
            bucket: {
                what: float(np.mean([run.by_rank[bucket][what] for run in runs if bucket in run.by_rank]))
                for what in MEASURED
            }
            for bucket in buckets
        }


def read_by_query(path: Path) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The query ids, and each compared metric's values in their order."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run drivers.run_eval on the arm's last checkpoint again")
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    columns = {metric: lines[0].index(metric) for metric in COMPARED if metric in lines[0]}
    if len(columns) < len(COMPARED):
        raise UserError(f"{path} has the columns {', '.join(lines[0])}, expected {', '.join(COMPARED)}: evaluate again")
    values = {metric: np.array([float(line[column]) for line in lines[1:]]) for metric, column in columns.items()}
    return tuple(line[0] for line in lines[1:]), values


def read_first_negatives(ann_dir: Path) -> frozenset[tuple[str, str]]:
    """(query, negative) of refresh 0, which all arms make from the same model."""
    rows = (line.split("\t")[:3] for line in negatives_path(ann_dir, 0).read_text(encoding="ascii").splitlines())
    return frozenset((query, negative) for query, _, negatives in rows for negative in negatives.split(",") if negative)


def read_by_rank(path: Path) -> dict[str, dict[str, float]]:
    """Of a trainer's metrics.jsonl: what it attributed to each rank bucket, over the whole run."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name, triples in row.items():
            if name.startswith("rank_") and name.endswith("_triples"):
                bucket = name.removeprefix("rank_").removesuffix("_triples")
                sums[bucket]["triples"] += triples
                for what in MEASURED:
                    sums[bucket][what] += triples * row[f"rank_{bucket}_{what}"]
    return {
        bucket: {what: total / found["triples"] for what, total in found.items() if what != "triples"}
        for bucket, found in sums.items()
    }


def read_science(directory: Path) -> dict[str, Any]:
    """What decides both programs' work, each name with its program."""
    science = {}
    for role, place in (("trainer", TRAINER_DIRECTORY), ("generator", GENERATOR_DIRECTORY)):
        stored = read_run(directory / place)
        if stored is None:
            raise UserError(f"{directory / place} has no RUN.json, expected what the {role} was given: train it again")
        science.update({(role, name): value for name, value in stored["science"].items()})
    return {f"{name} of the {role}": value for (role, name), value in science.items() if name not in MAY_DIFFER}


def read_arm_run(directory: Path, name: str, seed: int) -> tuple[tuple[str, ...], ArmRun]:
    try:
        arm = read_arm(directory)
    except Unfinished as reason:
        raise UserError(f"{directory}: {reason}") from None
    query_ids, by_query = read_by_query(directory / "eval" / "dev.per_query.tsv")
    science = {**read_science(directory), "steps": arm.steps, "refreshes taken up": arm.refreshes}
    first = read_first_negatives(directory / GENERATOR_DIRECTORY)
    by_rank = read_by_rank(directory / TRAINER_DIRECTORY / METRICS)
    return query_ids, ArmRun(name, seed, arm, by_query, science, first, by_rank)


def read_study(run_dir: Path, seeds: list[int], names: list[str]) -> Study:
    """UserError where an arm is missing or unfinished, or arms differ in more than strategy and seed."""
    arms: dict[str, list[ArmRun]] = {name: [] for name in names}
    first_ids: tuple[str, ...] | None = None
    for name, seed in itertools.product(names, seeds):
        query_ids, run = read_arm_run(run_dir / f"seed-{seed}" / name, name, seed)
        first_ids = first_ids or query_ids
        if query_ids != first_ids:
            raise UserError(f"{name} of seed {seed} was evaluated on other dev queries than {names[0]}: evaluate again")
        arms[name].append(run)
    check_fair([run for runs in arms.values() for run in runs])
    return Study(seeds, arms, same_in_fact(arms))


def check_fair(runs: list[ArmRun]) -> None:
    """UserError names all in which an arm differs from the first, but for strategy and seed."""
    first = runs[0]
    for run in runs[1:]:
        names = sorted({*first.science, *run.science})
        differing = [
            f"{name} {first.science.get(name)} in {first.name}, {run.science.get(name)} in {run.name}"
            for name in names
            if first.science.get(name) != run.science.get(name)
        ]
        if differing:
            raise UserError(
                f"{first.name} of seed {first.seed} and {run.name} of seed {run.seed} differ in more than strategy and "
                f"seed: {'; '.join(differing)}; train them with the same flags"
            )


def same_in_fact(arms: dict[str, list[ArmRun]]) -> list[str]:
    """One sentence for each pair of arms that trained on (nearly) the same negatives from the start."""
    told = []
    for first, second in itertools.combinations(arms, 2):
        pairs = zip(arms[first], arms[second], strict=True)
        overlaps = [
            len(a.first_negatives & b.first_negatives) / max(1, len(a.first_negatives | b.first_negatives))
            for a, b in pairs
        ]
        if max(overlaps) > SAME_OVERLAP:
            told.append(
                f"The arms {first} and {second} share {100 * max(overlaps):.0f}% of their first negatives: "
                "they are one arm under two names."
            )
    return told
