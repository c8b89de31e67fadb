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
from utils.ranks import MEASURED, NAMES, TRIPLES, logged_name

COMPARED = ("mrr@10", "ndcg@10")
MAY_DIFFER = {"seed", "strategy", "bm25_sha256"}  # between the arms of a study
SAME_OVERLAP = 0.95  # of two arms' negatives: above it they are one arm under two names


@dataclass(frozen=True)
class ArmRun:
    """One arm of one seed. ``by_query`` has one value for each dev query, in the same order in all arms."""

    name: str
    seed: int
    arm: Arm
    by_query: dict[str, np.ndarray]
    science: dict[str, Any]
    own_seed: int  # that its programs were given
    negatives: tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]  # of the first refresh and of the last
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
    """The query ids, and each compared metric's values in their order. UserError where the file has not both."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run drivers.run_eval on the arm's last checkpoint again")
    heading, *lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()] or [[""]]
    try:
        columns = {metric: heading.index(metric) for metric in COMPARED}
        values = {metric: np.array([float(line[column]) for line in lines]) for metric, column in columns.items()}
    except (ValueError, IndexError):
        raise UserError(f"{path} is not a table of {', '.join(COMPARED)} by query: evaluate again") from None
    return tuple(line[0] for line in lines), values


def read_negatives(path: Path) -> frozenset[tuple[str, str]]:
    """(query, negative) of one refresh."""
    rows = (line.split("\t")[:3] for line in path.read_text(encoding="ascii").splitlines())
    return frozenset((query, negative) for query, _, negatives in rows for negative in negatives.split(",") if negative)


def read_by_rank(path: Path) -> dict[str, dict[str, float]]:
    """Of a trainer's metrics.jsonl: what it attributed to each rank bucket, over the whole run."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise UserError(f"{path} has a line that is not JSON ({line[:60]!r}): train the arm again") from None
        for bucket in NAMES:
            triples = row.get(logged_name(bucket, TRIPLES), 0)
            if triples:
                sums[bucket][TRIPLES] += triples
                for what in MEASURED:
                    sums[bucket][what] += triples * row[logged_name(bucket, what)]
    return {bucket: {what: found[what] / found[TRIPLES] for what in MEASURED} for bucket, found in sums.items()}


def read_science(directory: Path) -> tuple[dict[str, Any], int]:
    """What decides both programs' work, each name with its program; and their seed."""
    science = {}
    for role, place in (("trainer", TRAINER_DIRECTORY), ("generator", GENERATOR_DIRECTORY)):
        stored = read_run(directory / place)
        if stored is None:
            raise UserError(f"{directory / place} has no RUN.json, expected what the {role} was given: train it again")
        science.update({(role, name): value for name, value in stored["science"].items()})
    seeds = {science["trainer", "seed"], science["generator", "seed"]}
    if len(seeds) > 1:
        raise UserError(
            f"{directory}: trainer and generator had different seeds ({seeds}), expected one: train it again"
        )
    shared = {f"{name} of the {role}": value for (role, name), value in science.items() if name not in MAY_DIFFER}
    return shared, int(seeds.pop())


def read_arm_run(directory: Path, name: str, seed: int) -> tuple[tuple[str, ...], ArmRun]:
    try:
        arm = read_arm(directory)
    except Unfinished as reason:
        raise UserError(f"{directory}: {reason}") from None
    query_ids, by_query = read_by_query(directory / "eval" / "dev.per_query.tsv")
    shared, own_seed = read_science(directory)
    science = {**shared, "steps": arm.steps, "refreshes taken up": arm.refreshes}
    ann_dir = directory / GENERATOR_DIRECTORY
    first, last = (read_negatives(negatives_path(ann_dir, refresh)) for refresh in (0, arm.refreshes - 1))
    by_rank = read_by_rank(directory / TRAINER_DIRECTORY / METRICS)
    return query_ids, ArmRun(name, seed, arm, by_query, science, own_seed, (first, last), by_rank)


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
    for runs in arms.values():
        check_one_arm(runs)
    check_fair([run for runs in arms.values() for run in runs])
    return Study(seeds, arms, same_in_fact(arms))


def check_one_arm(runs: list[ArmRun]) -> None:
    """UserError where an arm is not one: of another strategy in another seed, or not always as far from its seed."""
    strategies = {run.arm.strategy for run in runs}
    offsets = {run.own_seed - run.seed for run in runs}
    if len(strategies) > 1 or len(offsets) > 1:
        what = (
            f"strategies {', '.join(sorted(strategies))}" if len(strategies) > 1 else f"seeds off by {sorted(offsets)}"
        )
        raise UserError(f"the arm {runs[0].name} has {what} over its seeds, expected one: train it again")


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
    """One sentence for each pair of arms that had (nearly) the same negatives at first and at last, in every seed."""
    told = []
    for first, second in itertools.combinations(arms, 2):
        overlap = min(
            len(mine & theirs) / max(1, len(mine | theirs))
            for a, b in zip(arms[first], arms[second], strict=True)
            for mine, theirs in zip(a.negatives, b.negatives, strict=True)
        )
        if overlap > SAME_OVERLAP:
            told.append(
                f"The arms {first} and {second} share {100 * overlap:.0f}% of their negatives, at first and at last: "
                "they are one arm under two names."
            )
    return told
