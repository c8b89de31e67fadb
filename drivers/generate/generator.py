"""The generator: which checkpoint the next refresh is made from, until the trainer is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data.mining.candidates import read_bm25
from data.mining.select import make_selection
from data.mining.strategy import resolve_strategy
from drivers.cli import GenerateFlags
from drivers.embeddings import store
from drivers.embeddings.distributed_search import check_index_fits_model, search_settings
from drivers.embeddings.text_lengths import check_made_with, lengths_of_process0, with_lengths
from drivers.generate.checks import check_generator
from drivers.generate.encode_corpus import Job, RefreshRequest, embeddings_dir
from drivers.generate.refresh import one_refresh
from drivers.job.disk_budget import UNKNOWN_REFRESHES
from drivers.job.encoder_setup import check_model_directory
from drivers.job.model_identity import identity_of
from drivers.job.preflight import Preflight, say_dev_split
from drivers.job.resume import dev_split_record
from drivers.job.run_config import (
    COMMON,
    SAME_FLAGS,
    check_agreement,
    check_common,
    check_in_dry_run,
    join_run,
    provenance,
    run_config,
)
from drivers.job.session import Session, open_session
from drivers.job.setup import (
    check_compute_flags,
    check_output_dirs,
    check_refresh_flags,
    open_collection,
    start_program,
)
from model.kernels.precision import name_of
from utils import distributed
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.checkpoints import Checkpoint, model_sha256, newest_checkpoint, read_initial_checkpoint
from utils.exchange.layout import CHECKPOINT_PATTERN, JobLayout
from utils.exchange.lease import LeaseTimeouts
from utils.exchange.markers import read_done, read_run
from utils.exchange.negatives import next_refresh_number, read_records
from utils.exchange.peers import Peer, watch_peer
from utils.exchange.stop import StopRequested
from utils.exchange.wait import wait_for
from utils.run_log import RunLog, say

OWN_SERIES = "give each series of negatives an --output_dir of its own"
LOOK_EVERY_SECONDS = 2.0  # at the trainer, while encoding


def preflight(flags: GenerateFlags) -> Job:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    flags = with_lengths(flags)
    strategy, strategy_from = resolve_strategy(
        flags.negative_strategy, flags.ann_measure_topk_mrr, flags.bottom_neg, flags.bottom_only
    )
    dtype = check_compute_flags(flags)
    check_refresh_flags(flags)
    if flags.inference and flags.load_gen:
        raise UserError("--inference writes embeddings and --load_gen reads them; give one of the two")
    search = search_settings(flags, distributed.own_device(flags.no_cuda))
    if not Path(flags.init_model_dir).is_dir():
        raise UserError(f"--init_model_dir {flags.init_model_dir} is not a directory, expected the warmup checkpoint")
    check_model_directory(flags, flags.init_model_dir)
    check_last_checkpoint(flags)
    check_output_dirs(flags.output_dir)
    check_same_file_system(Path(flags.output_dir))
    collection = open_collection(flags, flags.tokenizer_name or flags.init_model_dir)
    collection.dev_split(flags.dev_split)
    passages = len(collection.passages)
    check_index_fits_model(search, passages, flags.init_model_dir, flags.model_type, flags.config_name)
    if flags.load_gen:
        stored = store.newest_embeddings(JobLayout(Path(flags.output_dir)).embeddings)
        check_made_with(flags, stored, store.read_embeddings_record(stored, collection))
    selection = make_selection(strategy, flags, passages)
    if not len(collection.qrels("train").queries_with_positive()):
        raise UserError(f"{flags.data_dir}: no train query has a positive, expected some; check its qrels")
    bm25 = read_bm25(flags.bm25_dir, collection) if selection.strategy.needs_bm25 else None
    job = Job(flags, collection, selection, strategy_from, dtype, search, bm25)
    if flags.dry_run:
        check_in_dry_run(job.ann_dir, flags, partial(science_of_job, job), OWN_SERIES, "encoded_in")
    return job


def science_of_job(job: Job) -> dict[str, Any]:
    return run_config(
        job.flags,
        job.collection,
        strategy=job.strategy,
        encoded_in=name_of(job.dtype),
        **({"bm25_sha256": job.bm25.sha256} if job.bm25 is not None else {}),
        **dev_split_record(job.dev_split),
        **identity_of(job.flags.init_model_dir, job.flags.model_type, job.flags.config_name),
    )


def check_same_file_system(ann_dir: Path) -> None:
    """UserError where the embeddings have been put on another disk: they are renamed from the lease's staging."""
    embeddings = JobLayout(ann_dir).embeddings
    if embeddings.exists() and embeddings.stat().st_dev != ann_dir.stat().st_dev:
        raise UserError(
            f"{embeddings} is on another file system than {ann_dir}, expected the same one: put both on the larger disk"
        )


def resolved_of(job: Job) -> dict[str, str]:
    """What the header and a --dry_run say next to the flags."""
    return {"resolved_strategy": job.strategy, "strategy_from": job.strategy_from}


def generate(job: Job) -> None:
    """Make refreshes until the trainer is done, or as many as the flags say."""
    world, run_id = start_program("run_ann_data_gen", job.flags, **resolved_of(job))
    job = replace(job, flags=lengths_of_process0(world, job.flags))
    flags = job.flags
    check_generator(Preflight(world), job, refreshes_planned(job))
    if world.is_first:
        say(f"negatives: {job.strategy} ({job.strategy_from})")
        say_dev_split(job.dev_split)
        say_coverage(job)
        if flags.last_checkpoint_dir and step_said_used(flags) is None:
            say(f"--last_checkpoint_dir {flags.last_checkpoint_dir} is not in --training_dir: none counts as used")
    timeouts = LeaseTimeouts(flags.heartbeat_seconds, flags.lease_seconds)
    with open_session(world, job.ann_dir, "generator", timeouts, run_id) as session:
        science = science_of_job(job)
        run = join_run(session, job.ann_dir, run_id, science, OWN_SERIES)
        peer = watch_peer(
            job.training_dir,
            "trainer",
            flags.lease_seconds,
            partial(check_common, science, f"the run in {job.training_dir}"),
        )
        files = JobLayout(job.ann_dir)
        log = distributed.on_process0(world, partial(RunLog, files.metrics, files.tensorboard))
        try:
            made = make_refreshes(job, session, peer, provenance(run, science), log)
        except StopRequested:
            raise session.stopped("between two refreshes, or in one whose finished embeddings are kept") from None
        if world.is_first:
            say(f"finished refreshes={made}")
    distributed.stop(world)


def make_refreshes(job: Job, session: Session, peer: Peer, ours: dict[str, Any], log: RunLog | None) -> int:
    """One refresh after the other; returns how many were published."""
    flags, made = job.flags, 0
    leave = leaving(job, session, peer)
    while (request := next_work(job, session, peer, ours)) is not None:
        if not one_refresh(job, session, request, ours, log, leave):
            # A stop, or the trainer gone; where it is done `next_work` says so; else the refresh is begun again.
            session.decide_on_process0(partial(read_done, job.training_dir), peer)
            continue
        made += 1
        if flags.inference or flags.load_gen or made >= flags.limit_total_number:
            break
        if 0 <= flags.end_output_num <= request.refresh:
            break
    return made


def leaving(job: Job, session: Session, peer: Peer, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """Asked between two batches: whether this refresh is to be left unfinished. Every process looks for itself.

    A stop, a lost lease, and now and then the trainer: nobody will train on this where it is gone or done.
    """
    looked = clock()

    def leave() -> bool:
        nonlocal looked
        if session.stop.requested() or (session.lease is not None and session.lease.lost):
            return True
        if job.flags.inference or job.flags.load_gen or clock() - looked < LOOK_EVERY_SECONDS:
            return False
        looked = clock()
        try:
            peer.check(is_needed=False)
        except UserError:
            return True
        return job.flags.end_output_num < 0 and read_done(job.training_dir) is not None

    return leave


def say_coverage(job: Job) -> None:
    """Queries without a positive are neither encoded nor searched; how many there are."""
    collection = job.collection
    for split in ("train", job.dev_split):
        held, judged = len(collection.queries(split)), len(collection.qrels(split).queries_with_positive())
        say(f"{split}: {held:,} queries, {judged:,} with a positive in the collection, {held - judged:,} left out")


def next_work(job: Job, session: Session, peer: Peer, ours: dict[str, Any]) -> RefreshRequest | None:
    """The next refresh, waited for; None once the trainer is done."""
    session.set_status(doing=f"waiting for a new checkpoint in {job.training_dir}")

    def look() -> dict[str, Any] | None:
        found = session.decide_on_process0(partial(look_for_work, job, ours), peer)
        return None if found is None else dict(found)

    what = f"a new checkpoint in {job.training_dir}"
    answer = wait_for(look, what, quiet=not session.world.is_first, hurry=session.stop.requested)
    if "done" in answer and session.world.is_first:
        say(f"no more refreshes: {answer['done']}")
    return None if "done" in answer else RefreshRequest(**answer["work"])


def look_for_work(job: Job, ours: dict[str, Any]) -> dict[str, Any] | None:
    """Process 0's decision: the work, the end, or None for "not yet". Disagreement where the trainer's flags differ."""
    flags, ann_dir = job.flags, job.ann_dir
    refresh = next_refresh_number(ann_dir)
    if flags.inference:
        return as_work(refresh, newest_checkpoint(job.training_dir) or initial_model(job))
    if 0 <= flags.end_output_num < refresh:
        return {"done": f"refresh {flags.end_output_num} exists"}
    if flags.load_gen:
        stored = store.read_embeddings_record(store.newest_embeddings(embeddings_dir(job)), job.collection)
        return {"work": vars(RefreshRequest(refresh, stored["checkpoint"], stored["step"], stored["model_sha256"]))}
    if read_done(job.training_dir) is not None:
        return {"done": "the trainer is done"}
    if flags.refresh_mode == "lockstep" and refresh > last_refresh_needed(job):
        return {"done": f"refresh {refresh} would serve no step of the trainer"}
    checkpoint = lockstep_checkpoint(job, refresh) if flags.refresh_mode == "lockstep" else async_checkpoint(job)
    if checkpoint is not None and not checkpoint.manifest.get("final"):
        if checkpoint.path != Path(flags.init_model_dir):
            check_agreement(ours, checkpoint.manifest, checkpoint.path.name, SAME_FLAGS, COMMON)
        try:
            return as_work(refresh, checkpoint)
        except (OSError, UserError):
            if not atomic.is_gone(checkpoint.path):
                raise  # else the trainer has removed it meanwhile: there are newer ones
    return None


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


def as_work(refresh: int, checkpoint: Checkpoint) -> dict[str, Any]:
    request = RefreshRequest(refresh, str(checkpoint.path), checkpoint.step, model_sha256(checkpoint.path))
    return {"work": vars(request)}


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
