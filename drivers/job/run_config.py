"""What a run is known by, and whether a job may join it: its jobs must agree, and so must one that resumes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.tokens.collection import Preprocessed
from data.training.triple_order import TRIPLE_ORDER
from drivers.job.resume import as_earlier_version, check_resumes, differing_flags, record_of_resumed, resumed_otherwise
from drivers.job.session import Session
from utils.declared.strategies import FILTERS
from utils.distributed.world import has_launcher
from utils.errors import Disagreement, UserError
from utils.exchange import atomic
from utils.exchange.atomic import numbered
from utils.exchange.layout import CHECKPOINT_PATTERN, RUN, JobLayout
from utils.exchange.markers import mark_run, newest_run_config_sha256, read_done, read_run
from utils.exchange.retention import remove_run
from utils.run_log import git_state, say

# What trainer and generator of one run must have in common.
COMMON = (
    "collection_fingerprint",
    "tokenizer_fingerprint",
    "initial_model_sha256",
    "initial_config_sha256",
    "model_type",
    "max_seq_length",
    "max_query_length",
    "refresh_mode",
    "steps_per_refresh",
    "refresh_lag",
)


def run_config(deciding: Mapping[str, object], collection: Preprocessed, **resolved: object) -> dict[str, object]:
    """All that decides what a run computes, by name: the flags that do, the data, and ``resolved``."""
    return {
        **deciding,
        "collection_fingerprint": collection.manifest["collection_fingerprint"],
        "tokenizer_fingerprint": collection.manifest["tokenizer"]["fingerprint"],
        **resolved,
    }


def run_config_sha256(config: Mapping[str, object]) -> str:
    return atomic.sha256_of_json(config)


@dataclass(frozen=True)
class Run:
    """The run of a directory. ``config_sha256`` is of the `run_config` it was begun with, whatever resumes it."""

    run_id: str
    config_sha256: str

    def record(self) -> dict[str, str]:
        """As RUN.json and every published version have it."""
        return {"run_id": self.run_id, "science_sha256": self.config_sha256}


def provenance(run: Run, config: Mapping[str, object]) -> dict[str, object]:
    """What every published version says of where it comes from."""
    named = (*COMMON, "seed", "strategy", *OF_A_SELECTION, "ann_chunk_factor", "bm25_sha256", "dev_split")
    return {
        **run.record(),
        **{name: config[name] for name in named if name in config},
        "git": git_state(),
    }


def check_agreement(
    ours: Mapping[str, object],
    theirs: Mapping[str, object],
    what: str,
    remedy: str,
    names: tuple[str, ...] | None = None,
) -> None:
    """Whether this job and an earlier one are of the same flags.

    Args:
        ours: this job's `run_config`.
        theirs: what the earlier job recorded.
        what: that job has made, for the message.
        remedy: the message's end.
        names: those that are compared; all by default. One that either does not know is passed over.

    Raises:
        Disagreement: exit code 3, with all that differs and both values.
    """
    if differing := differing_flags(ours, theirs, what, names):
        raise Disagreement(f"{what} was made with other flags: {'; '.join(differing.values())}; {remedy}")


def earlier_forms(config: Mapping[str, object]) -> list[dict[str, object]]:
    """What versions without ``initial_config_sha256`` would have recorded of the same run; the model perhaps blank."""
    earlier = as_earlier_version(config)
    return [earlier, {**earlier, "initial_model_sha256": ""}]


OF_A_SELECTION = ("topk_training", "negative_sample", *FILTERS, "on_shortage")
SAME_FLAGS = "start both with the same flags, in directories of their own"
OWN_RUN = "give the flags it was begun with, choose another --output_dir, or --overwrite_output_dir to remove it"


# Runs


def join_run(
    session: Session, directory: Path, run_id: str, config: Mapping[str, object], remedy: str, **more: object
) -> Run:
    """The directory's run, which this job resumes, or begins.

    Args:
        session: holds the directory's role.
        directory: the run's.
        run_id: this job's own, of a run that it begins.
        config: its `run_config`.
        remedy: the end of the message where it may not resume the run.
        **more: what else RUN.json says of a run that it begins.

    Raises:
        Disagreement: names the flags in which this job differs from that run.
    """
    own = Run(run_id, run_config_sha256(config))

    def look() -> dict[str, str]:
        assert session.lease is not None
        run = read_run(directory)
        if run is None:
            is_new = check_without_run(directory, config, remedy)
            mark_run(
                session.lease,
                science=config,
                **own.record(),
                job=os.environ.get("SLURM_JOB_ID", ""),
                git=git_state(),
                **(more if is_new else {}),  # an earlier version may have begun it
            )
            return own.record()
        what = f"the run in {directory}"
        begun = run.get("science", {})
        if differing := check_resumes(config, begun, what, remedy):
            say(resumed_otherwise(what, differing))
        if (resumed := record_of_resumed(config, begun)) != begun:
            mark_run(session.lease, **{**run, "science": resumed})
        return {name: run.get(name, value) for name, value in own.record().items()}

    found = session.decide_on_process0(look)
    return Run(found["run_id"], found["science_sha256"])


def check_in_dry_run(
    directory: Path,
    make_config: Callable[[], Mapping[str, object]],
    remedy: str,
    unknown: Sequence[str],
    overwrites: bool = False,
) -> bool:
    """Whether the directory holds a run that the job would resume; nothing is written.

    Args:
        directory: the run's.
        make_config: called where there is a run: it reads the initial model, which may have to come from the hub.
        remedy: the end of the message.
        unknown: names that may be different in the job, and are not compared; without a launcher the number of
            processes is not, either.
        overwrites: the run of another job will have been removed.

    Raises:
        Disagreement: where the start would refuse to resume it.
    """
    run = read_run(directory)
    if run is None or begins_run(directory, overwrites):
        return False
    omitted = {*unknown, *([] if has_launcher() else ["processes"])}
    known = {name: value for name, value in make_config().items() if name not in omitted}
    check_resumes(known, run.get("science", {}), f"the run in {directory}", remedy)
    return True


def begins_run(directory: Path, overwrites: bool) -> bool:
    """Whether a job that trains there begins a run; ``overwrites``: it removes that of another job."""
    run = read_run(directory)
    return run is None or (overwrites and not is_of_this_job(run))


def check_without_run(directory: Path, config: Mapping[str, object], remedy: str) -> bool:
    """Whether the directory holds no version of a run yet.

    Where RUN.json is damaged, the versions still tell the hash of the flags they are of: Disagreement if not ours.
    """
    found = newest_run_config_sha256(directory)
    if found is not None and found not in map(run_config_sha256, [config, *earlier_forms(config)]):
        raise Disagreement(
            f"{JobLayout(directory).run} cannot be read, and the newest version there was made with other flags than "
            f"this job's (science_sha256 {found[:12]} there, {run_config_sha256(config)[:12]} here); {remedy}"
        )
    return found is None


def enter_run(session: Session, directory: Path, run_id: str, config: Mapping[str, object], overwrites: bool) -> Run:
    """`join_run` of a program that trains.

    Args:
        session, directory, run_id, config: `join_run`'s.
        overwrites: the run of another job is removed before.

    Raises:
        Disagreement: names the flags in which this job differs from that run.
    """
    if overwrites:
        session.decide_on_process0(partial(remove_other_run, session, directory))
    return join_run(session, directory, run_id, config, OWN_RUN, triple_order=TRIPLE_ORDER)


def check_common(ours: Mapping[str, object], what: str, run: Mapping[str, Any]) -> None:
    """Disagreement where the peer's RUN.json differs in what both jobs must have in common."""
    check_agreement(ours, run.get("science", {}), what, SAME_FLAGS, COMMON)


def holds_run(directory: Path) -> bool:
    """Whether a trainer has published there."""
    return bool(numbered(directory, CHECKPOINT_PATTERN)) or read_done(directory) is not None


def is_of_this_job(run: Mapping[str, object]) -> bool:
    """Whether this very Slurm job began the run, before it was requeued."""
    return bool(run.get("job")) and run["job"] == os.environ.get("SLURM_JOB_ID")


def check_holds_no_other_run(directory: Path, resume: str, overwrites: bool) -> None:
    """UserError where the directory holds a run that this job must not, or cannot, resume; ``resume``: as the flag."""
    if not holds_run(directory) or overwrites:
        return
    run = read_run(directory)
    if run is not None and (resume == "auto" or is_of_this_job(run)):
        return
    steps = numbered(directory, CHECKPOINT_PATTERN)
    reason = "--resume never is given" if resume == "never" else f"no {RUN} says how to resume it"
    raise UserError(
        f"{directory} holds a run already ({len(steps)} checkpoints, the last of step {max(steps, default=0)}) and "
        f"{reason}; choose another --output_dir, or --overwrite_output_dir to remove it"
    )


def remove_other_run(session: Session, directory: Path) -> None:
    """--overwrite_output_dir: remove the run that the directory holds, unless it is what this Slurm job began itself
    before it was requeued."""
    run = read_run(directory)
    if run is not None and is_of_this_job(run):
        say(f"--overwrite_output_dir: {directory} holds what job {run['job']} began, and is resumed")
        return
    assert session.lease is not None
    remove_run(session.lease)
