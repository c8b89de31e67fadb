"""The generator at work: one refresh after the other, under its lease, until the trainer is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from data.mining.candidates import write_candidates
from data.mining.negative_lists import write_negative_lists
from drivers.embeddings.text_lengths import lengths_of_process0
from drivers.generate.checks import check_generator
from drivers.generate.encode_corpus import Job, RefreshRequest
from drivers.generate.next_checkpoint import find_request, refreshes_planned, step_said_used
from drivers.generate.preflight import OWN_SERIES, config_of_job, resolved_of
from drivers.generate.refresh import Found, conclude, format_timings, make_embeddings, search_all
from drivers.job.fencing import fence_of
from drivers.job.preflight import Preflight, say_dev_split
from drivers.job.progress import Monitor
from drivers.job.run_config import check_common, join_run, provenance
from drivers.job.session import Session, open_session
from drivers.job.setup import start_program
from utils.distributed import agreement, process_group
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.layout import JobLayout
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.markers import read_done
from utils.exchange.negatives import publish_negatives
from utils.exchange.peers import Peer, watch_peer
from utils.exchange.retention import remove_other_embeddings
from utils.exchange.stop import StopRequested
from utils.exchange.wait import now_and_then, wait_for
from utils.run_log import RunLog, say


def generate(job: Job) -> None:
    """Make refreshes until the trainer is done, or as many as the flags say."""
    world, run_id = start_program("run_ann_data_gen", job.flags, **resolved_of(job))
    job = replace(job, flags=lengths_of_process0(world, job.flags))
    check_generator(Preflight(world), job, refreshes_planned(job))
    if world.is_first:
        announce(job)
    timeouts = LeaseTimeouts(job.flags.heartbeat_seconds, job.flags.lease_seconds)
    with open_session(world, job.ann_dir, "generator", timeouts, run_id) as session:
        made = run_session(job, session, run_id)
        if world.is_first:
            say(f"finished refreshes={made}")
    process_group.stop(world)


def announce(job: Job) -> None:
    """What is said before the first refresh. Queries without a positive are neither encoded nor searched."""
    collection, flags = job.collection, job.flags
    say(f"negatives: {job.strategy} ({job.strategy_from})")
    say_dev_split(job.dev_split)
    for split in ("train", job.dev_split):
        held, judged = len(collection.queries(split)), len(collection.qrels(split).queries_with_positive())
        say(f"{split}: {held:,} queries, {judged:,} with a positive in the collection, {held - judged:,} left out")
    if flags.last_checkpoint_dir and step_said_used(flags) is None:
        say(f"--last_checkpoint_dir {flags.last_checkpoint_dir} is not in --training_dir: none counts as used")


@dataclass(frozen=True)
class GeneratorRun:
    """A generator in the middle of its run.

    Arguments:
        job: what preflight resolved.
        session: its processes, its lease and what asks it to stop.
        trainer: the job that trains on what it publishes.
        provenance: what each record says of this run.
        log: of process 0.
    """

    job: Job
    session: Session
    trainer: Peer
    provenance: dict[str, Any]
    log: RunLog | None

    @property
    def world(self) -> World:
        return self.session.world


def run_session(job: Job, session: Session, run_id: str) -> int:
    """Begin or resume the directory's run and make its refreshes; how many. `Stopped` where it was asked to stop."""
    config = config_of_job(job)
    joined = join_run(session, job.ann_dir, run_id, config, OWN_SERIES)
    same_flags = partial(check_common, config, f"the run in {job.training_dir}")
    trainer = watch_peer(job.training_dir, "trainer", job.flags.lease_seconds, same_flags)
    files = JobLayout(job.ann_dir)
    log = agreement.on_process0(session.world, partial(RunLog, files.metrics, files.tensorboard))
    try:
        return make_refreshes(GeneratorRun(job, session, trainer, provenance(joined, config), log))
    except StopRequested:
        raise session.stopped("between two refreshes, or in one whose finished embeddings are kept") from None


def make_refreshes(run: GeneratorRun) -> int:
    """One refresh after the other; returns how many were published."""
    flags, made = run.job.flags, 0
    should_stop = stop_needed(run)
    while (request := next_request(run)) is not None:
        if not one_refresh(run, request, should_stop):
            # A stop, or the trainer gone; where it is done `next_request` says so; else the refresh is begun again.
            run.session.decide_on_process0(partial(read_done, run.job.training_dir), run.trainer)
            continue
        made += 1
        if flags.inference or flags.load_gen or made >= flags.limit_total_number:
            break
        if 0 <= flags.end_output_num <= request.refresh:
            break
    return made


def next_request(run: GeneratorRun) -> RefreshRequest | None:
    """The next refresh, waited for; None once the trainer is done."""
    job, session = run.job, run.session
    what = f"a new checkpoint in {job.training_dir}"
    session.set_status(doing=f"waiting for {what}")

    def look() -> dict[str, Any] | None:
        found = session.decide_on_process0(partial(find_request, job, run.provenance), run.trainer)
        return None if found is None else dict(found)

    answer = wait_for(look, what, quiet=not run.world.is_first, wake_early=session.stop.requested)
    if "done" in answer and run.world.is_first:
        say(f"no more refreshes: {answer['done']}")
    return None if "done" in answer else RefreshRequest(**answer["request"])


def stop_needed(run: GeneratorRun, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """Asked between two batches: whether this refresh is to be left unfinished. Every process looks for itself.

    A stop, a lost lease, and now and then the trainer: nobody will train on this where it is gone or done.
    """
    flags, session = run.job.flags, run.session

    def trainer_left() -> bool:
        if flags.inference or flags.load_gen:
            return False
        try:
            run.trainer.check(is_needed=False)
        except UserError:
            return True
        return flags.end_output_num < 0 and read_done(run.job.training_dir) is not None

    has_left = now_and_then(trainer_left, clock)

    def should_stop() -> bool:
        is_lost = session.lease is not None and session.lease.lost
        return bool(session.stop.requested()) or is_lost or has_left()

    return should_stop


def one_refresh(run: GeneratorRun, request: RefreshRequest, should_stop: Callable[[], bool]) -> bool:
    """Encode, search, evaluate and select (`drivers.generate.refresh`), and publish under the lease.

    False, on all processes, where it was left before the end: ``should_stop``, asked between two batches, said so on
    one of them, or the checkpoint is gone. Fenced on all of them where one sees that another job has the lease.
    """
    started, job, session, world = time.monotonic(), run.job, run.session, run.world
    if world.is_first:
        say(f"refresh {request.refresh}: from {request.checkpoint} (step {request.step})")
    session.set_status(refresh=request.refresh, step=request.step, doing="encoding")
    session.check_stop()
    fence = fence_of(session)
    monitor = Monitor(fence.should_stop(should_stop), lambda doing: session.set_status(doing=doing))
    encoding_started = time.monotonic()
    embeddings = make_embeddings(job, world, request, run.provenance, monitor, fence.stage)
    encode_seconds = time.monotonic() - encoding_started
    if embeddings is not None and job.flags.inference:
        return True
    found = None if embeddings is None else search_all(job, world, embeddings, monitor, encode_seconds)
    if found is None:
        fence.check()
        return False
    session.set_status(doing="selecting")
    agreement.on_process0(world, partial(publish, run, request, found, started))
    if world.is_first and world.size > 1:
        say(f"refresh {request.refresh}: {world.waits}")
    return True


def publish(run: GeneratorRun, request: RefreshRequest, found: Found, started: float) -> None:
    """Process 0's part of the end: select from what was ``found``, publish, and log.

    Arguments:
        run: the generator.
        request: the refresh, and the checkpoint that it is made from.
        found: what was searched.
        started: when the refresh began, in seconds of `time.monotonic`.

    Raises:
        UserError: the refresh is there already.
        Fenced: another job has the lease.
    """
    job, lease = run.job, run.session.lease
    assert run.log is not None and lease is not None
    result = conclude(job, request, found, {**run.provenance, "processes": run.world.size})
    positives = job.collection.qrels("train").positives()
    write = partial(write_negative_lists, lists=result.lists, positives=positives)
    kept = partial(write_candidates, candidates=found.candidates) if job.flags.keep_candidates else None
    publish_negatives(lease, request.refresh, write, result.record, kept)
    run.log.record(request.step, **result.logged)
    seconds = time.monotonic() - started
    say(f"refresh {request.refresh}: published in {seconds:.1f} s ({', '.join(format_timings(found.timings))})")
    if job.flags.only_keep_latest_embedding_file:
        remove_other_embeddings(lease, found.embeddings)
