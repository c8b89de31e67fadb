"""Which checkpoint the next refresh is made from, and whether there is one to make at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.tokens.collection import Preprocessed
from drivers.embeddings import store
from drivers.generate.encode_corpus import RefreshRequest
from drivers.job.disk_budget import UNKNOWN_REFRESHES
from drivers.job.run_config import COMMON, SAME_FLAGS, check_agreement
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.checkpoints import Checkpoint, model_sha256, newest_checkpoint, read_initial_checkpoint
from utils.exchange.layout import CHECKPOINT_PATTERN, JobLayout
from utils.exchange.markers import read_done, read_run
from utils.exchange.negatives import next_refresh_number, read_records


@dataclass(frozen=True)
class RequestSettings:
    """Which refreshes a generator makes, and of which checkpoints.

    Args:
        ann_dir: where the refreshes so far are.
        training_dir: the trainer's checkpoints.
        init_model_dir: the model of refresh 0, which counts as step 0.
        is_lockstep: refresh N is made from step N * ``steps_per_refresh``, and serves ``refresh_lag`` windows later;
            else from the newest checkpoint that no refresh was made from.
        most_refreshes: how many it makes at most.
        last_refresh: the number of the last; None without an end.
        step_used: the step of a checkpoint that counts as used already.
        only_encodes: one refresh's embeddings, of the newest checkpoint, and nothing more.
        loads_embeddings: one refresh, of the newest embeddings on disk.
    """

    ann_dir: Path
    training_dir: Path
    init_model_dir: Path
    is_lockstep: bool
    steps_per_refresh: int
    refresh_lag: int
    most_refreshes: int
    last_refresh: int | None = None
    step_used: int | None = None
    only_encodes: bool = False
    loads_embeddings: bool = False


def find_request(
    settings: RequestSettings, collection: Preprocessed, ours: Mapping[str, object]
) -> dict[str, Any] | None:
    """Process 0's decision, as JSON: ``{"request": …}``, ``{"done": why}``, or None where there is nothing to do yet.

    Args:
        settings: which refreshes this generator makes.
        collection: what stored embeddings must be of.
        ours: `drivers.job.run_config.provenance` of this run, which a trainer's checkpoint must agree with.

    Raises:
        Disagreement: the trainer was started with other flags.
        UserError: a checkpoint, or stored embeddings, are damaged.
    """
    refresh = next_refresh_number(settings.ann_dir)
    if settings.only_encodes:
        return request_from(refresh, newest_checkpoint(settings.training_dir) or initial_model(settings))
    if settings.last_refresh is not None and settings.last_refresh < refresh:
        return {"done": f"refresh {settings.last_refresh} exists"}
    if settings.loads_embeddings:
        return request_from_stored(settings, collection, refresh)
    if read_done(settings.training_dir) is not None:
        return {"done": "the trainer is done"}
    if settings.is_lockstep and refresh > last_refresh_needed(settings):
        return {"done": f"refresh {refresh} would serve no step of the trainer"}
    checkpoint = lockstep_checkpoint(settings, refresh) if settings.is_lockstep else async_checkpoint(settings)
    if checkpoint is None or checkpoint.manifest.get("final"):
        return None
    if checkpoint.path != settings.init_model_dir:
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


def request_from_stored(settings: RequestSettings, collection: Preprocessed, refresh: int) -> dict[str, Any]:
    """The checkpoint that the newest embeddings on disk were made with."""
    stored = store.read_embeddings_record(store.newest_embeddings(JobLayout(settings.ann_dir).embeddings), collection)
    return {"request": vars(RefreshRequest(refresh, stored["checkpoint"], stored["step"], stored["model_sha256"]))}


def last_refresh_needed(settings: RequestSettings) -> float:
    """In lockstep, of the trainer's whole run; infinite as long as no trainer has said how long that is."""
    run = read_run(settings.training_dir)
    max_steps = (run or {}).get("science", {}).get("max_steps")
    if max_steps is None:
        return math.inf
    return float(max(0, (int(max_steps) - 1) // settings.steps_per_refresh - settings.refresh_lag))


def refreshes_planned(settings: RequestSettings) -> int:
    """How many are still to be made, as far as it is known."""
    if settings.only_encodes or settings.loads_embeddings:
        return 1
    last = last_refresh_needed(settings) if settings.is_lockstep else math.inf
    last = min(last, settings.last_refresh) if settings.last_refresh is not None else last
    left = max(0, last + 1 - next_refresh_number(settings.ann_dir))
    return int(min(left if math.isfinite(left) else UNKNOWN_REFRESHES, settings.most_refreshes))


def initial_model(settings: RequestSettings) -> Checkpoint:
    return read_initial_checkpoint(settings.init_model_dir)


def lockstep_checkpoint(settings: RequestSettings, refresh: int) -> Checkpoint | None:
    """Refresh N is always made from step N * steps_per_refresh."""
    if refresh == 0:
        return initial_model(settings)
    return newest_checkpoint(settings.training_dir, refresh * settings.steps_per_refresh)


def async_checkpoint(settings: RequestSettings) -> Checkpoint | None:
    """The newest checkpoint that no refresh was made from yet; the initial model where there is nothing at all."""
    used = [record["step"] for record in read_records(settings.ann_dir)]
    used += [settings.step_used] if settings.step_used is not None else []
    newest = newest_checkpoint(settings.training_dir, above=max(used, default=-1))
    return initial_model(settings) if newest is None and not used else newest


def check_last_checkpoint(last_checkpoint_dir: str, training_dir: Path, init_model_dir: Path) -> None:
    """UserError where --last_checkpoint_dir is a name in --training_dir that no checkpoint has."""
    is_initial = Path(last_checkpoint_dir).resolve() == init_model_dir.resolve()
    is_there = is_in_training_dir(last_checkpoint_dir, training_dir)
    if is_there and not is_initial and step_said_used(last_checkpoint_dir, training_dir) is None:
        raise UserError(
            f"--last_checkpoint_dir {last_checkpoint_dir} is in --training_dir, expected a checkpoint's name "
            "there: checkpoint-STEP, without leading zeros"
        )


def is_in_training_dir(last_checkpoint_dir: str, training_dir: Path) -> bool:
    return bool(last_checkpoint_dir) and Path(last_checkpoint_dir).resolve().parent == training_dir.resolve()


def step_said_used(last_checkpoint_dir: str, training_dir: Path) -> int | None:
    """The step of --last_checkpoint_dir; None of a checkpoint outside --training_dir, and without the flag.

    ANCE's commands name the initial model there: its name may say 150000, but the trainer counts from 0. Nothing is
    read from it, the initial model is --init_model_dir.
    """
    named = CHECKPOINT_PATTERN.fullmatch(Path(last_checkpoint_dir).resolve().name)
    return int(named[1]) if named and is_in_training_dir(last_checkpoint_dir, training_dir) else None
