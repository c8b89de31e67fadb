"""The generator at work: one refresh after the other, under its lease, until the trainer is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from data.mining.candidates import write_candidates
from data.mining.negative_lists import write_negative_lists
from data.tokens.text_agreement import check_texts
from drivers.generate.checks import check_refreshes
from drivers.generate.encode_corpus import RefreshRequest, RefreshSettings, encode_all, load_embeddings
from drivers.generate.next_checkpoint import RequestSettings, find_request, refreshes_planned
from drivers.generate.preflight import OWN_SERIES, GeneratorJob, config_of_job, resolved_of
from drivers.generate.refresh import Found, conclude, format_timings, search_all
from drivers.job.fencing import fence_of
from drivers.job.model_identity import check_checkpoint
from drivers.job.preflight import Preflight, check_collection, check_publishing, say_dev_split
from drivers.job.progress import Monitor
from drivers.job.run_config import check_common, join_run, provenance
from drivers.job.session import Session, open_session
from drivers.job.setup import start_program
from drivers.job.text_lengths import describe_lengths, lengths_of_process0
from utils.distributed import agreement, process_group
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import JobLayout
from utils.exchange.markers import read_done
from utils.exchange.negatives import publish_negatives
from utils.exchange.peers import Peer, watch_peer
from utils.exchange.retention import remove_other_embeddings
from utils.exchange.stop import StopRequested
from utils.exchange.wait import now_and_then, wait_for
from utils.flags import flags_json
from utils.run_log import RunLog, say


def generate(job: GeneratorJob) -> None:
    """Make refreshes until the trainer is done, or as many as the flags say."""
    header = flags_json(job.flag_values, **resolved_of(job))
    world, run_id = start_program("run_ann_data_gen", job.compute, header)
    job = job.at(lengths_of_process0(world, job.lengths))
    check_all(Preflight(world), job)
    if world.is_first:
        announce(job)
    with open_session(world, job.refresh.ann_dir, "generator", job.timeouts, run_id) as session:
        made = run_session(job, session, run_id)
        if world.is_first:
            say(f"finished refreshes={made}")
    process_group.stop(world)


def check_all(checks: Preflight, job: GeneratorJob) -> None:
    """All checks, those of the refreshes last."""
    refresh, collection = job.refresh, job.collection
    inputs = check_collection(collection, job.model.tokenizer, (TRAIN, refresh.dev_split))
    describe = partial(describe_lengths, job.lengths, collection)
    texts = partial(check_texts, collection, job.texts)
    publishing = partial(check_publishing, refresh.ann_dir)
    checks.on_process0(partial(check_checkpoint, job.model), *inputs, describe, texts, publishing)
    check_refreshes(checks, refresh, job.model.name_or_path, refreshes_planned(job.requests))


def announce(job: GeneratorJob) -> None:
    """What is said before the first refresh. Queries without a positive are not searched."""
    collection, dev_split = job.collection, job.refresh.dev_split
    say(f"negatives: {job.strategy} ({job.strategy_from})")
    say_dev_split(collection, dev_split)
    for split in (TRAIN, dev_split):
        held, judged = len(collection.queries(split)), len(collection.qrels(split).queries_with_positive())
        say(f"{split}: {held:,} queries, {judged:,} with a positive in the collection, {held - judged:,} omitted")
    if job.last_checkpoint_dir and job.requests.step_used is None:
        say(f"--last_checkpoint_dir {job.last_checkpoint_dir} is not in --training_dir: none counts as used")


@dataclass(frozen=True)
class GeneratorRun:
    """A generator in the middle of its run.

    Args:
        refresh: how each refresh is made.
        requests: which refreshes, and of which checkpoints.
        session: its processes, its lease and what asks it to stop.
        trainer: the job that trains on what it publishes.
        provenance: what each record says of this run.
        log: of process 0.
    """

    refresh: RefreshSettings
    requests: RequestSettings
    session: Session
    trainer: Peer
    provenance: Mapping[str, object]
    log: RunLog | None

    @property
    def world(self) -> World:
        return self.session.world


def run_session(job: GeneratorJob, session: Session, run_id: str) -> int:
    """Begin or resume the directory's run and make its refreshes; how many. `Stopped` where it was asked to stop."""
    config, ann_dir, training_dir = config_of_job(job), job.refresh.ann_dir, job.requests.training_dir
    joined = join_run(session, ann_dir, run_id, config, OWN_SERIES)
    same_flags = partial(check_common, config, f"the run in {training_dir}")
    trainer = watch_peer(training_dir, "trainer", job.timeouts.lease_seconds, same_flags)
    files = JobLayout(ann_dir)
    log = agreement.on_process0(session.world, partial(RunLog, files.metrics, files.tensorboard))
    try:
        return make_refreshes(
            GeneratorRun(job.refresh, job.requests, session, trainer, provenance(joined, config), log)
        )
    except StopRequested:
        raise session.stopped("between two refreshes, or in one whose finished embeddings are kept") from None


def make_refreshes(run: GeneratorRun) -> int:
    """One refresh after the other; returns how many were published."""
    requests, refresh, made = run.requests, run.refresh, 0
    while (request := next_request(run)) is not None:
        if not one_refresh(run, request, stop_needed(run)):
            # A stop, or the trainer gone; where it is done `next_request` says so; else the refresh is begun again.
            run.session.decide_on_process0(partial(read_done, requests.training_dir), run.trainer)
            continue
        made += 1
        if refresh.only_encodes or refresh.loads_embeddings or made >= requests.most_refreshes:
            break
        if requests.last_refresh is not None and requests.last_refresh <= request.refresh:
            break
    return made


def next_request(run: GeneratorRun) -> RefreshRequest | None:
    """The next refresh, waited for; None once the trainer is done."""
    session, requests = run.session, run.requests
    what = f"a new checkpoint in {requests.training_dir}"
    session.set_status(doing=f"waiting for {what}")

    find = partial(find_request, requests, run.refresh.collection, run.provenance)
    look = partial(session.decide_on_process0, find, run.trainer)
    answer = wait_for(look, what, quiet=not run.world.is_first, wake_early=session.stop.requested)
    if "done" in answer and run.world.is_first:
        say(f"no more refreshes: {answer['done']}")
    return None if "done" in answer else RefreshRequest(**answer["request"])


def stop_needed(run: GeneratorRun, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """Asked between two batches: whether this refresh is not to be finished. Every process looks for itself.

    Made again for each refresh: what it has said once holds for the one that was left, and a trainer may come back.

    A stop, a lost lease, and now and then the trainer: nobody will train on this where it is gone or done.
    """
    requests, session = run.requests, run.session

    def trainer_left() -> bool:
        if run.refresh.only_encodes or run.refresh.loads_embeddings:
            return False
        try:
            run.trainer.check(is_needed=False)
        except UserError:
            return True
        return requests.last_refresh is None and read_done(requests.training_dir) is not None

    has_left = now_and_then(trainer_left, clock)

    def should_stop() -> bool:
        is_lost = session.lease is not None and session.lease.lost
        return bool(session.stop.requested()) or is_lost or has_left()

    return should_stop


def one_refresh(run: GeneratorRun, request: RefreshRequest, should_stop: Callable[[], bool]) -> bool:
    """Encode, search, evaluate and select (`drivers.generate.refresh`), and publish under the lease.

    False, on all processes, where it was not finished: ``should_stop``, asked between two batches, said so on
    one of them, or the checkpoint is gone. Fenced on all of them where one sees that another job has the lease.
    """
    started, settings, session, world = time.monotonic(), run.refresh, run.session, run.world
    if world.is_first:
        say(f"refresh {request.refresh}: from {request.checkpoint} (step {request.step})")
    session.set_status(refresh=request.refresh, step=request.step, doing="encoding")
    session.check_stop()
    fence = fence_of(session)
    monitor = Monitor(fence.should_stop(should_stop), lambda doing: session.set_status(doing=doing))
    encoding_started = time.monotonic()
    embeddings = (
        load_embeddings(settings, world, request)
        if settings.loads_embeddings
        else encode_all(settings, world, request, run.provenance, monitor, fence.stage)
    )
    encode_seconds = time.monotonic() - encoding_started
    if embeddings is not None and settings.only_encodes:
        return True
    found = None if embeddings is None else search_all(settings, world, embeddings, monitor, encode_seconds)
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

    Args:
        run: the generator.
        request: the refresh, and the checkpoint that it is made from.
        found: what was searched.
        started: when the refresh began, in seconds of `time.monotonic`.

    Raises:
        UserError: the refresh is there already.
        Fenced: another job has the lease.
    """
    settings, lease = run.refresh, run.session.lease
    assert run.log is not None and lease is not None
    result = conclude(settings, request, found, {**run.provenance, "processes": run.world.size})
    write = partial(write_negative_lists, lists=result.lists, excluded=settings.collection.excluded_pairs())
    kept = partial(write_candidates, candidates=found.candidates) if settings.keeps_candidates else None
    publish_negatives(lease, request.refresh, write, result.record, kept)
    run.log.record(request.step, **result.logged)
    seconds = time.monotonic() - started
    say(f"refresh {request.refresh}: published in {seconds:.1f} s ({', '.join(format_timings(found.timings))})")
    if settings.only_latest_embeddings:
        remove_other_embeddings(lease, found.embeddings)
