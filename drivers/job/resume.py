"""What of a job's flags may differ from those of the run that it resumes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from drivers.cli.generate import GenerateFlags
from drivers.cli.train import AnnFlags, WarmupFlags
from utils.declared.losses import LOSSES
from utils.errors import Disagreement
from utils.exchange.evaluations import DEV
from utils.exchange.wait import log_once
from utils.flag_groups.training import TrainingFlags
from utils.flag_values import names_deciding

DECIDE_BYTES = frozenset[str]().union(
    *(names_deciding(program, "bytes") for program in (AnnFlags, GenerateFlags, WarmupFlags))
)
# How a step's triples are divided; `processes` is no flag, but the launcher's.
DIVIDE_STEP = names_deciding(TrainingFlags, "step") | {"processes"}
# As ``dev_split`` of a warmup that has evaluated nothing: one that measures any split may resume it.
NOTHING_MEASURED = ""
# What a record means that does not say it: earlier versions knew nothing else, and theirs is known by its hash.
UNRECORDED: dict[str, object] = {
    "dev_split": DEV,
    "freeze": None,
    "initial_query_config_sha256": "",
    "initial_query_model_sha256": "",
    "lora_r": 0,
    "temperature": None,
    "tied": False,
}


def differing_flags(
    ours: Mapping[str, object], theirs: Mapping[str, object], what: str, names: tuple[str, ...] | None = None
) -> dict[str, str]:
    """What two jobs do not have in common.

    Args:
        ours: this job's `run_config`.
        theirs: that of the job which made ``what``.
        what: for the log, where an earlier version wrote it.
        names: those that are compared; all by default. One that either does not know is passed over.

    Returns:
        {name: both values in words}
    """
    shared = [name for name in names or tuple(ours) if name in ours and name in theirs]
    if is_model_unknown(theirs) and "initial_model_sha256" in shared:
        log_once(f"{what} does not say which model it began from (an earlier version wrote it): not compared")
        shared.remove("initial_model_sha256")
    return {name: f"{name} {theirs[name]} there, {ours[name]} here" for name in shared if theirs[name] != ours[name]}


def is_model_unknown(record: Mapping[str, object], name: str = "initial_model_sha256") -> bool:
    """Whether it is of a version that left models blank which were not one file in a directory.

    Those versions recorded no ``initial_config_sha256``; in a record of ours a blank is no model's. ``name`` of the
    model in question.
    """
    return record.get(name) == "" and "initial_config_sha256" not in record


def as_earlier_version(record: Mapping[str, object]) -> dict[str, object]:
    """What such a version would have recorded of the same."""
    return {name: value for name, value in record.items() if name != "initial_config_sha256"}


def check_resumes(ours: Mapping[str, object], theirs: Mapping[str, object], what: str, remedy: str) -> str:
    """Whether a job may resume what another has begun.

    Args:
        ours: this job's `run_config`.
        theirs: that of the job which began ``what``.
        what: for the message.
        remedy: the message's end.

    Returns:
        What differs but does not decide the result, in words: from here on the bytes may be others. "" for nothing.

    Raises:
        Disagreement: exit code 3, with all that differs and both values.
    """
    differing = differing_flags({**UNRECORDED, **ours}, {**UNRECORDED, **theirs}, what)
    if NOTHING_MEASURED in (ours.get("dev_split"), theirs.get("dev_split")):
        differing.pop("dev_split", None)
    refusal = step_refusal(ours, theirs) if DIVIDE_STEP & differing.keys() else ""
    allowed = DECIDE_BYTES if refusal else DECIDE_BYTES | DIVIDE_STEP
    if refused := [words for name, words in differing.items() if name not in allowed]:
        reason = f" ({refusal})" if refusal else ""
        raise Disagreement(f"{what} was made with other flags: {'; '.join(refused)}{reason}; {remedy}")
    return "; ".join(differing.values())


def record_of_resumed(ours: Mapping[str, object], theirs: Mapping[str, object]) -> dict[str, object]:
    """``theirs``, once ``ours`` resumes it: the first job that measures decides the split for those that follow."""
    if theirs.get("dev_split") != NOTHING_MEASURED:
        return dict(theirs)
    others = {name: value for name, value in theirs.items() if name != "dev_split"}
    return others | {name: value for name, value in ours.items() if name == "dev_split"}


def dev_split_record(split: str) -> dict[str, str]:
    """The split that is measured while training, as a run records it: see `UNRECORDED`, `NOTHING_MEASURED`."""
    return {} if split == DEV else {"dev_split": split}


def step_refusal(ours: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    """Why a step of ``ours`` is not one of ``theirs``, divided in another way; "" where it is.

    A loss that is a mean over the step's triples, as a run's position is so many of them, lets only the product of
    DIVIDE_STEP count. One over the batch takes a triple's negatives from its own micro-batch, of all processes.
    """
    loss = LOSSES.get(str(ours.get("loss")))
    if loss is None or loss.is_over_batch:
        return f"with --loss {ours.get('loss')} a micro-batch decides its negatives"
    there, here = triples_of_step({**ours, **theirs}), triples_of_step(ours)
    # A --dry_run without a launcher does not know the number of processes.
    if here == there or ("processes" not in ours and there % here == 0):
        return ""
    return (
        f"a step is of {there} triples there, of {here} here: give batch x micro-batches x processes the same product"
    )


def triples_of_step(record: Mapping[str, object]) -> int:
    """As far as ``record`` has it: what it does not say counts once."""
    return math.prod(int(str(record[name])) for name in DIVIDE_STEP if name in record)


def resumed_otherwise(what: str, differing: str) -> str:
    """The line that says so."""
    return f"resuming {what} with {differing}: the same mathematics, but bytes may differ from here"
