"""What an undisturbed run syncs, and when: every byte before its name appears, the directory before the next name."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults.programs import ROLES, STEPS
from tests.faults.runs import Lab, Outcome
from tests.faults.victim import PUBLISHING, Operation, read_log


def is_published(operation: Operation) -> bool:
    """Heartbeats are no publications: they may be lost with the power, and are not synced."""
    target = Path(operation.target)
    return operation.kind in PUBLISHING and ".staging" not in target.parts and target.suffix != ".beat"


def problem_of(publication: Operation, later: list[Operation]) -> str:
    """What was not synced in time; empty where all was. ``later`` is what the same thread did after it."""
    if publication.unsynced:
        return f"{len(publication.unsynced)} files were not synced before, {Path(publication.unsynced[0]).name} first"
    parent = str(Path(publication.target).parent)
    # A shard whose record outlives it in a power cut is found out by its sha256, and made again.
    is_embedding = "embeddings" in Path(parent).parts
    for operation in later:
        if operation.kind == "fsync" and operation.path == parent:
            return ""
        if is_published(operation) and not is_embedding:
            return f"its directory was not synced before {Path(operation.target).name} appeared"
    return "its directory was never synced"


def writes_in_place(operation: Operation) -> bool:
    """Whether a file is opened for writing that is neither staged, nor a log, nor a lock."""
    path = Path(operation.path)
    is_log = path.name == "metrics.jsonl" or "tensorboard" in path.parts or path.suffix == ".lock"
    return operation.kind == "open" and ".staging" not in path.parts and not is_log


def comes_too_early(publication: Operation, earlier: set[str]) -> str:
    """The name that had to be there before; empty where all was. ``earlier`` is the names published before it."""
    name = Path(publication.target).name
    needed = ""
    if name.startswith("ann_ndcg_"):
        needed = name.replace("ann_ndcg_", "ann_training_data_")
    elif name == "DONE.json":
        needed = f"checkpoint-{STEPS}"
    return needed if needed not in {"", *earlier} else ""


def run(lab: Lab, _count: int, _rng: random.Random) -> list[Outcome]:
    """Every publication of the undisturbed run."""
    assert lab.finished is not None
    return [
        outcome for role in ROLES for outcome in outcomes_of(role, read_log(lab.finished.directory / f"{role}.log"))
    ]


def outcomes_of(role: str, log: list[Operation]) -> list[Outcome]:
    outcomes, earlier = [], set()
    for number, operation in enumerate(log):
        if writes_in_place(operation):
            outcomes.append(Outcome(f"opening {operation.path} by the {role}", "it is written in place, not staged"))
        if not is_published(operation):
            continue
        later = [each for each in log[number + 1 :] if each.thread == operation.thread]
        problem, missing = problem_of(operation, later), comes_too_early(operation, earlier)
        earlier.add(Path(operation.target).name)
        name = f"{operation.kind} of {Path(operation.target).name} by the {role}"
        outcomes.append(Outcome(name, f"{missing} was not there before" if missing else problem))
    return outcomes
