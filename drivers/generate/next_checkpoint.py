"""Which checkpoint the next refresh is made from, and whether there is one to make at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from drivers.cli import GenerateFlags
from drivers.embeddings import store
from drivers.generate.encode_corpus import Job, RefreshRequest, embeddings_dir
from drivers.job.disk_budget import UNKNOWN_REFRESHES
from drivers.job.run_config import COMMON, SAME_FLAGS, check_agreement
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.checkpoints import Checkpoint, model_sha256, newest_checkpoint, read_initial_checkpoint
from utils.exchange.layout import CHECKPOINT_PATTERN
from utils.exchange.markers import read_done, read_run
from utils.exchange.negatives import next_refresh_number, read_records


def find_request(job: Job, ours: dict[str, Any]) -> dict[str, Any] | None:
    """Process 0's decision, as JSON: ``{"request": …}``, ``{"done": why}``, or None where there is nothing to do yet.

    Arguments:
        job: what preflight resolved.
        ours: `drivers.job.run_config.provenance` of this run, which a trainer's checkpoint must agree with.

    Raises:
        Disagreement: the trainer was started with other flags.
        UserError: a checkpoint, or stored embeddings, are damaged.
    """
    flags, refresh = job.flags, next_refresh_number(job.ann_dir)
    if flags.inference:
        return request_from(refresh, newest_checkpoint(job.training_dir) or initial_model(job))
    if 0 <= flags.end_output_num < refresh:
        return {"done": f"refresh {flags.end_output_num} exists"}
    if flags.load_gen:
        return request_from_stored(job, refresh)
    if read_done(job.training_dir) is not None:
        return {"done": "the trainer is done"}
    if flags.refresh_mode == "lockstep" and refresh > last_refresh_needed(job):
        return {"done": f"refresh {refresh} would serve no step of the trainer"}
    checkpoint = lockstep_checkpoint(job, refresh) if flags.refresh_mode == "lockstep" else async_checkpoint(job)
    if checkpoint is None or checkpoint.manifest.get("final"):
        return None
    if checkpoint.path != Path(flags.init_model_dir):
        check_agreement(ours, checkpoint.manifest, checkpoint.path.name, SAME_FLAGS, COMMON)
    try:
        return request_from(refresh, checkpoint)
    except (OSError, UserError):
        if not atomic.is_gone(checkpoint.path):
            raise
        return None  # the trainer has removed it meanwhile: there are newer ones


def request_from(refresh: int, checkpoint: Checkpoint) -> dict[str, Any]:
    request = RefreshRequest(refresh, str(checkpoint.path), checkpoint.step, model_sha256(checkpoint.path))
    return {"request": vars(request)}


def request_from_stored(job: Job, refresh: int) -> dict[str, Any]:
    """Of --load_gen: the checkpoint that the newest embeddings on disk were made with."""
    stored = store.read_embeddings_record(store.newest_embeddings(embeddings_dir(job)), job.collection)
    return {"request": vars(RefreshRequest(refresh, stored["checkpoint"], stored["step"], stored["model_sha256"]))}


def last_refresh_needed(job: Job) -> float:
    """In lockstep, of the trainer's whole run; infinite as long as no trainer has said how long that is."""
    run = read_run(job.training_dir)
    max_steps = (run or {}).get("science", {}).get("max_steps")
    if max_steps is None:
        return math.inf
    return float(max(0, (int(max_steps) - 1) // job.flags.steps_per_refresh - job.flags.refresh_lag))


def refreshes_planned(job: Job) -> int:
    """How many are still to be made, as far as it is known."""
    flags = job.flags
    if flags.inference or flags.load_gen:
        return 1
    last = last_refresh_needed(job) if flags.refresh_mode == "lockstep" else math.inf
    last = min(last, flags.end_output_num) if flags.end_output_num >= 0 else last
    left = max(0, last + 1 - next_refresh_number(job.ann_dir))
    return int(min(left if math.isfinite(left) else UNKNOWN_REFRESHES, flags.limit_total_number))


def initial_model(job: Job) -> Checkpoint:
    """--init_model_dir, which counts as step 0 of this run."""
    return read_initial_checkpoint(Path(job.flags.init_model_dir))


def lockstep_checkpoint(job: Job, refresh: int) -> Checkpoint | None:
    """Refresh N is always made from step N * steps_per_refresh."""
    if refresh == 0:
        return initial_model(job)
    return newest_checkpoint(job.training_dir, refresh * job.flags.steps_per_refresh)


def async_checkpoint(job: Job) -> Checkpoint | None:
    """The newest checkpoint that no refresh was made from yet; the initial model where there is nothing at all."""
    used = [record["step"] for record in read_records(job.ann_dir)]
    said_used = step_said_used(job.flags)
    used += [said_used] if said_used is not None else []
    newest = newest_checkpoint(job.training_dir, above=max(used, default=-1))
    return initial_model(job) if newest is None and not used else newest


def check_last_checkpoint(flags: GenerateFlags) -> None:
    """UserError where --last_checkpoint_dir is a name in --training_dir that no checkpoint has."""
    last = Path(flags.last_checkpoint_dir).resolve()
    is_initial = last == Path(flags.init_model_dir).resolve()
    if is_in_training_dir(flags) and not is_initial and step_said_used(flags) is None:
        raise UserError(
            f"--last_checkpoint_dir {flags.last_checkpoint_dir} is in --training_dir, expected a checkpoint's name "
            "there: checkpoint-STEP, without leading zeros"
        )


def is_in_training_dir(flags: GenerateFlags) -> bool:
    return (
        bool(flags.last_checkpoint_dir)
        and Path(flags.last_checkpoint_dir).resolve().parent == Path(flags.training_dir).resolve()
    )


def step_said_used(flags: GenerateFlags) -> int | None:
    """The step of --last_checkpoint_dir; None of a checkpoint outside --training_dir, and without the flag.

    ANCE's commands name the initial model there: its name may say 150000, but the trainer counts from 0. Nothing is
    read from it, the initial model is --init_model_dir.
    """
    named = CHECKPOINT_PATTERN.fullmatch(Path(flags.last_checkpoint_dir).resolve().name)
    return int(named[1]) if named and is_in_training_dir(flags) else None
