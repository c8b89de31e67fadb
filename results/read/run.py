"""What a finished run left in its directory, read once and checked: the numbers a report is made of.

The layout is the quickstart's: ``preprocessed/``, ``bm25/``, ``warmup/``, ``arms/STRATEGY/``, and ``runs/NAME/`` of
runs that were given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.read.arm import Arm, DevPoint
from results.read.evaluation import HEADINGS, REPORTED, Evaluation, number, read_evaluation, read_object
from results.read.seen import other_queries, read_seen
from results.read_log import TrainingPoint, read_log
from utils.declared.strategies import FORK_STRATEGIES
from utils.errors import UserError
from utils.exchange.evaluations import measured_split
from utils.exchange.layout import (
    CHECKPOINTS,
    COLLECTION_MANIFEST,
    DONE,
    EVALUATION_RECORD,
    PLAN,
    WARMUP,
    ArmLayout,
    RunLayout,
)
from utils.exchange.markers import read_done, read_failed
from utils.exchange.negatives import read_records

PASSAGES, QUERIES = "passages", "-query"  # what a manifest counts: passages, and the queries of SPLIT as SPLIT-query


@dataclass(frozen=True)
class Run:
    """``collection`` has how many "passages" and, for each split, "SPLIT_queries" there are."""

    name: str
    directory: Path
    collection: dict[str, int]
    bm25: Evaluation
    warmup: Evaluation
    given: dict[str, Evaluation]  # by the name of a run that was evaluated without a model
    arms: tuple[Arm, ...]
    unfinished: dict[str, str]  # arm: what is missing
    warnings: tuple[str, ...]

    @property
    def start_name(self) -> str:
        """What the model that all arms start from is called: a warmup, or what was given with a collection of one's
        own."""
        is_planned, is_warmup = (self.directory / PLAN).is_file(), Path(self.warmup.model).parent.name == WARMUP
        return "start" if is_planned and not is_warmup else "warmup"

    @property
    def split(self) -> str:
        """What every arm was measured on."""
        return self.arms[0].split


class Unfinished(Exception):
    """An arm that cannot be reported yet; the message says why and what to do."""


def read_collection(directory: Path) -> dict[str, int]:
    """How many passages, and queries of each split, the run's collection has."""
    path = directory / COLLECTION_MANIFEST
    counts = read_object(path, "run data.msmarco_data (commands/quickstart.sh does), then the report").get("counts")
    if not isinstance(counts, dict):
        raise UserError(f"{path}: no counts in it, expected passages and queries: run data.msmarco_data again")
    keys = {PASSAGES: PASSAGES}
    keys |= {f"{key.removesuffix(QUERIES)}_queries": key for key in counts if key.endswith(QUERIES)}
    return {ours: int(number(counts.get(key), path, f"counts {key}")) for ours, key in keys.items()}


def dev_points(directory: Path, records: Sequence[Mapping[str, object]]) -> tuple[DevPoint, ...]:
    """One point for each refresh, by step.

    A checkpoint outside the arm's own trainer directory is the warmup's, whatever step it counts: the arm's step 0.
    """
    points = []
    for record in records:
        path = directory / f"the record of refresh {record['refresh']}"
        checkpoint = record.get("checkpoint")
        ours = checkpoint is None or Path(str(checkpoint)).parent.name == CHECKPOINTS
        mrr = record.get("mrr")
        points.append(
            DevPoint(
                refresh=int(number(record["refresh"], path, "refresh")),
                step=int(number(record.get("step", 0), path, "step")) if ours else 0,
                ndcg=number(record.get("ndcg"), path, "ndcg"),
                mrr=None if mrr is None else number(mrr, path, "mrr"),
            )
        )
    return tuple(sorted(points, key=lambda point: (point.step, point.refresh)))


def training_points(arm: ArmLayout) -> tuple[TrainingPoint, ...]:
    """The logged losses by step. Where a resumed job trained a step again, the later line counts.

    metrics.jsonl comes first: a restarted job adds to it, while its `.out` may have been started again.
    """
    for path in (arm.checkpoints.metrics, arm.output("trainer")):
        if path.is_file():
            by_step = {point.step: point for point in read_log(path).training}
            if by_step:
                return tuple(by_step[step] for step in sorted(by_step))
    return ()


def read_final(arm: ArmLayout, steps: int, split: str) -> Evaluation:
    """The evaluation of the last checkpoint. Unfinished where it is missing, or of another step or split."""
    path = arm.evaluation.metrics
    name = path.relative_to(arm.root)
    if not path.is_file():
        raise Unfinished(f"no {name}: run drivers.run_eval on its last checkpoint")
    evaluation = read_evaluation(path, "run drivers.run_eval on the arm's last checkpoint", split)
    if evaluation.step not in (None, steps):
        raise Unfinished(f"{name} is of step {evaluation.step}, the trainer ended at {steps}: evaluate again")
    if (other := other_arm(evaluation.model, arm)) is not None:
        raise Unfinished(f"{name} is of a model of the arm {other} ({evaluation.model}): evaluate again")
    if evaluation.split not in ("", split):
        raise Unfinished(
            f"{name} is of the split {evaluation.split}, training was measured on {split}: evaluate again with "
            f"--split {split}"
        )
    return evaluation


def other_arm(model: str, arm: ArmLayout) -> str | None:
    """The arm whose checkpoint a model is, by its path, where that is another one than ``arm``."""
    theirs, ours = Path(model).parts[-4:-1], (arm.root.parent.name, arm.root.name, CHECKPOINTS)
    is_of_an_arm = len(theirs) == 3 and (theirs[0], theirs[2]) == (ours[0], ours[2])
    return theirs[1] if is_of_an_arm and theirs[1] != ours[1] else None


def read_end(arm: ArmLayout) -> Mapping[str, object]:
    """What the trainer said at its end. Unfinished where it has not ended."""
    done = read_done(arm.checkpoints.root)
    if done is not None:
        return done
    failed = read_failed(arm.checkpoints.root) or read_failed(arm.ann_data.root)
    if failed:
        raise Unfinished(f"the {failed.get('role', 'job')} failed ({failed.get('reason', 'no reason given')})")
    raise Unfinished(f"no {DONE} in {CHECKPOINTS}/: the trainer has not ended; start it again and it resumes")


def read_arm(directory: Path) -> Arm:
    """Raises Unfinished where the arm has not ended or was not evaluated, UserError where a file is damaged."""
    layout = ArmLayout(directory)
    done = read_end(layout)
    steps = int(number(done.get("step"), layout.checkpoints.done, "step"))
    records = read_records(layout.ann_data.root)
    newest = records[-1] if records else {}
    split = measured_split(newest)
    return Arm(
        name=directory.name,
        directory=directory,
        evaluation=read_final(layout, steps, split),
        steps=steps,
        refreshes=int(number(done.get("refreshes"), layout.checkpoints.done, "refreshes")),
        seconds=number(done.get("seconds"), layout.checkpoints.done, "seconds"),
        strategy=str(newest.get("strategy", "")),
        seed=newest.get("seed"),
        split=split,
        dev=dev_points(layout.ann_data.root, records),
        training=training_points(layout),
        seen=read_seen(layout.checkpoints.root),
    )


def arm_order(directory: Path) -> tuple[int, str]:
    known = FORK_STRATEGIES.index(directory.name) if directory.name in FORK_STRATEGIES else len(FORK_STRATEGIES)
    return known, directory.name


def read_arms(directory: Path) -> tuple[tuple[Arm, ...], dict[str, str]]:
    """The finished arms in the order of FORK_STRATEGIES, others after them by name, and why each other one is omitted.

    UserError where no arm is finished.
    """
    entries = list(directory.iterdir()) if directory.is_dir() else []
    found = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
    if not found:
        raise UserError(
            f"{directory}: no arm in it, expected {'/, '.join(FORK_STRATEGIES)}/: run commands/quickstart.sh"
        )
    arms, unfinished = [], {}
    for path in sorted(found, key=arm_order):
        try:
            arms.append(read_arm(path))
        except Unfinished as reason:
            unfinished[path.name] = str(reason)
    if not arms:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unfinished.items())
        raise UserError(f"{directory}: no finished arm, expected at least one ({reasons})")
    return tuple(arms), unfinished


def read_given(directory: Path, split: str) -> dict[str, Evaluation]:
    """What run_eval --run has left in ``directory``, by name. UserError where one is damaged."""
    paths = sorted(directory.glob(f"*/{EVALUATION_RECORD}"))
    return {path.parent.name: read_evaluation(path, "run drivers.run_eval --run again", split) for path in paths}


def given_row(name: str) -> str:
    """What a given run is called next to BM25, the warmup and the arms: one may be named as these are."""
    return f"run {name}"


def find_confounds(evaluations: Mapping[str, Evaluation], arms: tuple[Arm, ...]) -> tuple[str, ...]:
    """Differences that make a comparison of these numbers unfair, one sentence each.

    ``evaluations`` are those of BM25, the warmup and given runs.
    """
    warnings = [
        f"The arm {arm.name} was run with --negative_strategy {arm.strategy}: its name misleads."
        for arm in arms
        if arm.name in FORK_STRATEGIES and arm.strategy and arm.strategy != arm.name
    ]
    for what, values in (
        ("trained for different numbers of steps", {arm.name: arm.steps for arm in arms}),
        ("used different numbers of refreshes", {arm.name: arm.refreshes for arm in arms}),
        ("had different seeds", {arm.name: arm.seed for arm in arms}),
    ):
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            warnings.append(f"The arms {what} ({listed}): they do not differ in the strategy alone.")
    warnings += other_queries(arms)
    evaluations = {**evaluations, **{arm.name: arm.evaluation for arm in arms}}
    split, levels = arms[0].split, {name: evaluation.relevance_level for name, evaluation in evaluations.items()}
    if len(set(levels.values())) > 1:
        listed = ", ".join(f"{name} {level}" for name, level in levels.items())
        warnings.append(f"Not all evaluations call the same grades relevant ({listed}): evaluate again.")
    if other := [f"{name} {found.split}" for name, found in evaluations.items() if found.split not in ("", split)]:
        warnings.append(f"Not all evaluations are of the split {split} ({', '.join(other)}): evaluate again.")
    queries = {name: evaluation.queries for name, evaluation in evaluations.items() if evaluation.queries is not None}
    if len(set(queries.values())) > 1:
        listed = ", ".join(f"{name} {value}" for name, value in queries.items())
        warnings.append(f"The evaluations are over different numbers of {split} queries ({listed}): evaluate again.")
    for name, evaluation in evaluations.items():
        if missing := [HEADINGS[metric] for metric in REPORTED if metric not in evaluation.metrics]:
            warnings.append(f"The lists of {name} were too short for {', '.join(missing)}: evaluate with longer ones.")
    return tuple(warnings)


def read_run(directory: Path, name: str) -> Run:
    """Everything a report needs from one run directory.

    UserError where it is no run directory, a part before the arms is missing, no arm is finished, or arms are measured
    on different splits.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory, expected a run directory: run commands/quickstart.sh")
    quickstart = "run commands/quickstart.sh with this --run_dir, then the report"
    layout = RunLayout(directory)
    collection = read_collection(layout.preprocessed)
    bm25 = read_evaluation(layout.bm25.metrics, quickstart)
    warmup = read_evaluation(layout.warmup_evaluation.metrics, quickstart)
    arms, unfinished = read_arms(layout.arms)
    if len({arm.split for arm in arms}) > 1:
        listed = ", ".join(f"{arm.name} {arm.split}" for arm in arms)
        raise UserError(f"{layout.arms}: arms are measured on different splits ({listed}), expected one: report each")
    given = read_given(layout.given_runs, arms[0].split)
    given_rows = {given_row(name): evaluation for name, evaluation in given.items()}
    confounds = find_confounds({"bm25": bm25, "warmup": warmup, **given_rows}, arms)
    return Run(name, directory, collection, bm25, warmup, given, arms, unfinished, confounds)
