"""What arms left under several seeds, read once and checked: whether they may be compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from results.read.arm import Arm
from results.read.logged import Measures, read_measures
from results.read.run import Unfinished, read_arm
from results.read.seen import negatives_by_query, other_queries
from utils.errors import UserError
from utils.exchange.evaluations import check_as_published
from utils.exchange.layout import ArmLayout
from utils.exchange.markers import read_done, read_run
from utils.ir.metrics import HEADLINE
from utils.text_files import read_lines

MAY_DIFFER = {"seed", "strategy", "bm25_sha256"}  # between the arms of a study
LATER = {"initial_config_sha256"}  # runs of earlier versions do not say it
SAMPLED_QUERIES = 5000  # whose negatives are compared: the same ones, where arms searched the same queries
MEANS_AGREE = 1e-6  # values by query are written with nine digits
SAME_OVERLAP = 0.95  # of two arms' negatives: above it they are one arm under two names


@dataclass(frozen=True)
class ArmRun:
    """One arm of one seed. ``by_query`` has one value for each query of its split, in the same order in all arms."""

    name: str
    seed: int
    arm: Arm
    by_query: dict[str, np.ndarray]
    config: dict[tuple[str, str], object]  # (flag, program): value
    own_seed: int  # that its programs were given
    negatives: tuple[np.ndarray, np.ndarray]  # of the first refresh and of the last that was used
    measures: Measures
    commits: frozenset[str]  # that trainer and generator were of


@dataclass(frozen=True)
class Study:
    seeds: list[int]
    arms: dict[str, list[ArmRun]]  # by seed, in the order of ``seeds``
    warnings: list[str]

    def finals(self, name: str, metric: str) -> np.ndarray:
        return np.array([run.arm.evaluation.metrics[metric] for run in self.arms[name]])

    @property
    def split(self) -> str:
        """What every arm was measured on."""
        return next(iter(self.arms.values()))[0].arm.split

    @property
    def strategies(self) -> dict[str, str]:
        return {name: runs[0].arm.strategy for name, runs in self.arms.items()}

    @property
    def by_arm(self) -> dict[str, list[Arm]]:
        return {name: [run.arm for run in runs] for name, runs in self.arms.items()}

    @property
    def measures(self) -> dict[str, list[Measures]]:
        return {name: [run.measures for run in runs] for name, runs in self.arms.items()}

    @property
    def commits(self) -> list[str]:
        return sorted({commit for runs in self.arms.values() for run in runs for commit in run.commits})


def read_by_query(path: Path, metrics: Sequence[str] = HEADLINE) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The query ids, and each of these metrics' values in their order. UserError where the file has not all."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run drivers.run_eval on the arm's last checkpoint again")
    check_as_published(path)
    heading, *lines = [line.split("\t") for line in read_lines(path)]
    try:
        columns = {metric: heading.index(metric) for metric in metrics}
        values = {metric: np.array([float(line[column]) for line in lines]) for metric, column in columns.items()}
    except (ValueError, IndexError):
        raise UserError(f"{path} is not a table of {', '.join(metrics)} by query: evaluate again") from None
    return tuple(line[0] for line in lines), values


def check_means(run: ArmRun) -> None:
    """UserError where the metrics are not the means of the queries' own: they are of another evaluation."""
    files = run.arm.layout.evaluation
    for metric, values_Q in run.by_query.items():
        stated, found = run.arm.evaluation.metrics.get(metric), values_Q.mean() if len(values_Q) else math.nan
        if stated is None or not abs(stated - found) < MEANS_AGREE:
            raise UserError(
                f"{files.root}: {metric} is {stated} in {files.metrics.name}, {found:.6g} in the mean of "
                f"{files.per_query(run.arm.split).name}, expected the same: evaluate again"
            )


def read_negatives(path: Path) -> np.ndarray:
    """(query, negative) of one refresh as one number each: int64 [P], sorted, of the first SAMPLED_QUERIES queries."""
    rows = sorted(negatives_by_query(path))[:SAMPLED_QUERIES]
    try:
        pairs = [np.array(negatives.split(","), np.int64) + (query << 32) for query, negatives in rows if negatives]
    except (ValueError, OverflowError):
        raise UserError(f"{path} is not a file of negatives, expected query, positive and negatives a line") from None
    return np.unique(np.concatenate(pairs)) if pairs else np.zeros(0, np.int64)


def read_config(directory: Path) -> tuple[dict[tuple[str, str], object], int, frozenset[str]]:
    """What decides both programs' work, each name with its program; their seed; and the commits they were of."""
    config, commits = {}, set()
    arm = ArmLayout(directory)
    for role, job in (("trainer", arm.checkpoints), ("generator", arm.ann_data)):
        stored = read_run(job.root)
        if stored is None:
            raise UserError(f"{job.root} has no {job.run.name}, expected what the {role} was given: train it again")
        config.update({(role, name): value for name, value in stored["science"].items()})
        commits.add(str(stored.get("git", {}).get("commit") or "unknown"))
    seeds = {config["trainer", "seed"], config["generator", "seed"]}
    if len(seeds) > 1:
        raise UserError(
            f"{directory}: trainer and generator had different seeds ({seeds}), expected one: train it again"
        )
    shared = {(name, role): value for (role, name), value in config.items() if name not in MAY_DIFFER}
    return shared, int(seeds.pop()), frozenset(commits)


def read_arm_run(directory: Path, name: str, seed: int) -> tuple[tuple[str, ...], ArmRun]:
    try:
        arm, files = read_arm(directory), ArmLayout(directory)
    except Unfinished as reason:
        raise UserError(f"{directory}: {reason}") from None
    query_ids, by_query = read_by_query(files.evaluation.per_query(arm.split))
    shared, own_seed, commits = read_config(directory)
    done = read_done(files.checkpoints.root) or {}
    taken = [entry["refresh"] for entry in done.get("taken", [])] or [0, arm.refreshes - 1]
    config = {**shared, ("steps", "trainer"): arm.steps}
    if shared.get(("refresh_mode", "trainer")) != "async":  # whose jobs' speed decides it
        config["refreshes used", "trainer"] = arm.refreshes
    first, last = (read_negatives(files.ann_data.negatives(refresh)) for refresh in (taken[0], taken[-1]))
    return query_ids, ArmRun(name, seed, arm, by_query, config, own_seed, (first, last), read_measures(arm), commits)


def read_study(places: dict[int, Path], names: list[str]) -> Study:
    """``places`` has the directory of each seed's arms.

    UserError where an arm is missing or unfinished, or arms differ in more than strategy and seed.
    """
    arms: dict[str, list[ArmRun]] = {name: [] for name in names}
    first_ids: tuple[str, ...] | None = None
    for name, (seed, directory) in itertools.product(names, places.items()):
        query_ids, run = read_arm_run(directory / name, name, seed)
        first_ids = first_ids or query_ids
        if query_ids != first_ids:
            raise UserError(
                f"{name} of seed {seed} was evaluated on other {run.arm.split} queries than {names[0]}: evaluate again"
            )
        check_means(run)
        arms[name].append(run)
    for runs in arms.values():
        check_one_arm(runs)
    check_fair([run for runs in arms.values() for run in runs])
    warnings = [*other_queries(run.arm for runs in arms.values() for run in runs), *find_duplicate_arms(arms)]
    return Study([*places], arms, warnings)


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
        of_both, of_either = first.config.keys() & run.config.keys(), first.config.keys() | run.config.keys()
        names = sorted(key for key in of_either if key in of_both or key[0] not in LATER)
        differing = [
            f"{name} of the {program} {first.config.get((name, program))} in {first.name}, "
            f"{run.config.get((name, program))} in {run.name}"
            for name, program in names
            if first.config.get((name, program)) != run.config.get((name, program))
        ]
        if differing:
            raise UserError(
                f"{first.name} of seed {first.seed} and {run.name} of seed {run.seed} differ in more than strategy and "
                f"seed: {'; '.join(differing)}; train them with the same flags"
            )


def find_duplicate_arms(arms: dict[str, list[ArmRun]]) -> list[str]:
    """One sentence for each pair of arms that had (nearly) the same negatives at first and at last, in every seed."""
    warnings = []
    for first, second in itertools.combinations(arms, 2):
        smallest = 1.0
        for a, b in zip(arms[first], arms[second], strict=True):
            smallest = min(smallest, *map(overlap, a.negatives, b.negatives))
            if smallest <= SAME_OVERLAP:
                break
        else:
            warnings.append(
                f"The arms {first} and {second} share {100 * smallest:.0f}% of their negatives, at first and at last: "
                "they are one arm under two names."
            )
    return warnings


def overlap(mine: np.ndarray, theirs: np.ndarray) -> float:
    """What both have of what either has; each has everything once."""
    both = len(np.intersect1d(mine, theirs, assume_unique=True))
    return both / max(1, len(mine) + len(theirs) - both)
