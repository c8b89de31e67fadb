"""The trainer: which negatives are in use, and the loop of steps over them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data.preprocessed import Preprocessed
from data.training_data import Batch, NegativeLists, check_offsets, read_negative_lists
from drivers.agreement import (
    COMMON,
    SAME_FLAGS,
    Session,
    agree,
    check_agreement,
    check_common,
    check_holds_no_other_run,
    enter_run,
    provenance,
    science_of,
    session,
)
from drivers.flags import AnnFlags
from drivers.preflight import Preflight, check_collection, check_publishing, check_trainer
from drivers.shared import (
    batches_from_lists,
    check_model_directory,
    check_output_dirs,
    check_refresh_flags,
    check_training_flags,
    open_collection,
    open_encoder,
    seed_everything,
    start_program,
)
from drivers.space import checkpoints_at_once, publishing_steps
from drivers.trainer import STOPPING, Trainer, make_trainer, read_trainer_state, start_point
from utils import distributed, exchange, publishing
from utils.errors import Disagreement, PeerGone, UserError
from utils.exchange import Refresh
from utils.flags import check_positive
from utils.peers import Peer, watch_peer
from utils.run_log import say
from utils.waiting import wait_for


@dataclass(frozen=True)
class Job:
    """What preflight resolved."""

    flags: AnnFlags
    collection: Preprocessed
    dtype: torch.dtype | None
    journal: list[Taken] | None  # to replay

    @property
    def ann_dir(self) -> Path:
        return Path(self.flags.ann_dir)

    @property
    def output_dir(self) -> Path:
        return Path(self.flags.output_dir)


@dataclass(frozen=True)
class Taken:
    """A line of the journal: from ``taken_at_step`` on, training is on these negatives."""

    refresh: int
    made_from_step: int
    taken_at_step: int
    sha256: str
    model_sha256: str


@dataclass
class InUse:
    """The negatives being trained on, and where in them the next batch is."""

    refresh: Refresh
    lists: NegativeLists
    batches: Iterator[Batch]


@dataclass
class Course:
    """What the loop knows beside the trainer's state; all of it is stored with every checkpoint.

    ``model_of_step``: sha256 of the weights that negatives may have been made from, this run's own.
    ``schedule_from``: the step at which the learning-rate schedule in use began.
    """

    model_of_step: dict[int, str]
    taken: list[Taken] = field(default_factory=list)
    schedule_from: int = 0

    def stored(self) -> dict[str, Any]:
        return {
            "refresh": self.taken[-1].refresh if self.taken else None,
            "taken": [asdict(entry) for entry in self.taken],
            "models": {str(step): sha256 for step, sha256 in self.model_of_step.items()},
            "schedule_from": self.schedule_from,
        }


def preflight(flags: AnnFlags) -> Job:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    dtype = check_training_flags(flags)
    check_refresh_flags(flags)
    check_positive(flags, "max_steps")
    if flags.refresh_mode == "lockstep" and flags.max_steps % flags.steps_per_refresh:
        raise UserError(
            f"--max_steps {flags.max_steps} is not a multiple of --steps_per_refresh {flags.steps_per_refresh}; "
            "in lockstep a run is made of whole windows"
        )
    if not flags.model_name_or_path:
        raise UserError(
            "--model_name_or_path is missing, expected the warmup checkpoint that the generator starts from"
        )
    check_model_directory(flags, flags.model_name_or_path)
    check_output_dirs(flags.output_dir)
    check_holds_no_other_run(Path(flags.output_dir), flags)
    collection = open_collection(flags, flags.tokenizer_name or flags.model_name_or_path)
    return Job(flags, collection, dtype, read_journal(Path(flags.replay)) if flags.replay else None)


def read_journal(path: Path) -> list[Taken]:
    """The lines of an earlier run's journal. UserError where there are none, or one is not of it."""
    if not path.is_file():
        raise UserError(f"{path} is missing, expected the journal.jsonl of the run to replay, in its --output_dir")
    try:
        entries = [Taken(**json.loads(line)) for line in path.read_text().splitlines()]
    except (ValueError, TypeError):
        raise UserError(f"{path} is not a journal: each line names a refresh and the step it was taken at") from None
    if not entries or entries[0].taken_at_step != 0:
        raise UserError(f"{path} does not begin at step 0: expected the journal of a whole run")
    return entries


def train(job: Job, resolved_flags: str) -> None:
    """Train to --max_steps, from the start or from where an earlier job stopped; then say so to the generator."""
    flags = job.flags
    world, run_id = start_program("run_ann", resolved_flags, flags)
    checks = Preflight(world)
    inputs = check_collection(job.collection, flags.tokenizer_name or flags.model_name_or_path, ("train",))
    checks.first(*inputs, partial(check_publishing, job.output_dir))
    with session(world, job.output_dir, "trainer", flags, run_id) as here:
        initial_model = exchange.model_sha256(Path(flags.model_name_or_path))
        science = science_of(flags, job.collection, processes=world.size, initial_model_sha256=initial_model)
        check_replayed(job, science)
        run_id = enter_run(here, job.output_dir, flags, run_id, science)
        start = start_point(here, job.output_dir)
        seed_everything(flags.seed, world.rank)
        model_dir = str(start.path) if start else flags.model_name_or_path
        encoder = open_encoder(flags, model_dir, job.collection, goes_on=start is not None)
        record = {**provenance(run_id, science), "max_steps": flags.max_steps}
        trainer = make_trainer(flags, here, encoder, job.dtype, flags.max_steps, record, start)
        check_trainer(checks, job.collection, trainer, job.dtype, checkpoints_kept(flags))
        course = course_from(start, initial_model)
        peer = watch_peer(
            job.ann_dir,
            "generator",
            flags.lease_seconds,
            partial(check_common, science, f"the negatives in {job.ann_dir}"),
        )
        run_steps(job, trainer, course, peer)
        finish(job, trainer, course)
    distributed.stop(world)


def check_replayed(job: Job, science: dict[str, Any]) -> None:
    """Disagreement where --replay's run was of other flags than this one."""
    replayed = exchange.read_run(Path(job.flags.replay).parent) if job.flags.replay else None
    if replayed is not None:
        check_agreement(science, replayed.get("science", {}), f"the run of {job.flags.replay}", SAME_FLAGS)


def course_from(start: exchange.Checkpoint | None, initial_model: str) -> Course:
    if start is None:
        return Course({0: initial_model})
    stored = read_trainer_state(start)
    models = {int(step): sha256 for step, sha256 in stored["models"].items()}
    models[start.step] = exchange.model_sha256(start.path)
    return Course(models, [Taken(**entry) for entry in stored["taken"]], stored["schedule_from"])


def finish(job: Job, trainer: Trainer, course: Course) -> None:
    """DONE.json, and the last line of the log."""
    here, steps, refreshes = trainer.session, trainer.state.step, len(course.taken)
    if here.lease is None:
        return
    if exchange.read_done(job.output_dir) is None:
        taken = [
            {name: getattr(entry, name) for name in ("refresh", "made_from_step", "taken_at_step")}
            for entry in course.taken
        ]
        seconds = round(trainer.seconds, 3)
        exchange.mark_done(here.lease, step=steps, seconds=seconds, refreshes=refreshes, taken=taken)
    say(f"{here.world.waits}")
    say(f"finished step={steps} refreshes={refreshes} seconds={trainer.seconds:.1f}")


def run_steps(job: Job, trainer: Trainer, course: Course, peer: Peer) -> None:
    """The loop. A stop, or the generator's end, is taken between two steps with the state saved."""
    flags, state, here = job.flags, trainer.state, trainer.session
    in_use = in_use_before(job, trainer, course)
    write_journal(here, course)
    try:
        while state.step < flags.max_steps:
            refresh = refresh_for_step(job, here, peer, state.step, in_use.refresh if in_use else None)
            if in_use is None or refresh.number != in_use.refresh.number:
                agree(here, partial(check_origin, job, trainer.record, refresh, course.model_of_step))
                in_use = take_up(job, trainer, course, refresh)
            check_staleness(job, trainer, in_use.refresh)
            here.check_stop()
            trainer.step(list(islice(in_use.batches, flags.gradient_accumulation_steps)))
            if is_publishing_step(flags, state.step):
                trainer.publish(**course.stored())
                after_publishing(job, here, course, state.step)
    except STOPPING as reason:
        trainer.save_and_stop(reason, course.stored())


def after_publishing(job: Job, here: Session, course: Course, step: int) -> None:
    if here.lease is not None:
        course.model_of_step[step] = exchange.model_sha256(exchange.checkpoint_path(job.output_dir, step))
        exchange.remove_old_checkpoints(here.lease, job.ann_dir, job.flags.refresh_mode == "lockstep")


def in_use_before(job: Job, trainer: Trainer, course: Course) -> InUse | None:
    """The negatives that the earlier job was training on, at the position it had reached; None at the beginning."""
    if not course.taken:
        return None
    taken, flags = course.taken[-1], job.flags
    refresh = exchange.read_visible_refresh(job.ann_dir, taken.refresh)
    if refresh.record.get("sha256", taken.sha256) != taken.sha256:
        raise UserError(f"{refresh.path} has changed since this run trained on it; start anew in another --output_dir")
    batches_done = (trainer.state.step - taken.taken_at_step) * flags.gradient_accumulation_steps
    if trainer.log is not None:
        say(f"refresh {taken.refresh}, taken up at step {taken.taken_at_step}: {batches_done} batches are done")
    trainer.session.tell(refresh=taken.refresh, made_from_step=taken.made_from_step, step=trainer.state.step)
    return open_negatives(job, trainer, refresh, batches_done)


def open_negatives(job: Job, trainer: Trainer, refresh: Refresh, batches_done: int) -> InUse:
    collection, world = job.collection, trainer.state.world
    lists = read_negative_lists(refresh.path)
    check_offsets(lists, len(collection.queries("train")), len(collection.passages), refresh.path)
    batches = batches_from_lists(job.flags, collection, world, lists, refresh.number, batches_done)
    return InUse(refresh, lists, batches)


def write_journal(here: Session, course: Course) -> None:
    """journal.jsonl: which negatives served which steps, for --replay."""
    if here.lease is not None:
        text = "".join(json.dumps(asdict(entry)) + "\n" for entry in course.taken)
        publishing.write_text(here.lease.directory / exchange.JOURNAL, text, here.lease.staging)


def check_staleness(job: Job, trainer: Trainer, refresh: Refresh) -> None:
    """Warn at half of --max_staleness_steps; PeerGone, with the state saved, beyond it."""
    limit, step = job.flags.max_staleness_steps, trainer.state.step
    age_steps = step - refresh.step
    if limit <= 0 or job.journal is not None:
        return
    if age_steps > limit:
        raise PeerGone(
            f"the negatives of refresh {refresh.number} are of the model of {age_steps} steps ago, "
            f"--max_staleness_steps is {limit}: see the generator's log, and start both again to go on"
        )
    if age_steps == limit // 2 + 1 and trainer.log is not None:
        say(f"warning: refresh {refresh.number} is {age_steps} steps old; training stops at {limit}")


def is_publishing_step(flags: AnnFlags, step: int) -> bool:
    """Every --save_steps, at the end, and in lockstep wherever a refresh is made from."""
    if step % flags.save_steps == 0 or step == flags.max_steps:
        return True
    return flags.refresh_mode == "lockstep" and step % flags.steps_per_refresh == 0


def checkpoints_kept(flags: AnnFlags) -> int:
    """How many checkpoints lie there at once; in lockstep also those between the newest refresh and the trainer."""
    if flags.refresh_mode == "async":
        return checkpoints_at_once(publishing_steps(flags.max_steps, flags.save_steps))
    in_a_window = publishing_steps(flags.steps_per_refresh, flags.save_steps)
    published = publishing_steps(flags.max_steps, flags.save_steps, flags.steps_per_refresh)
    return checkpoints_at_once(published, unused=in_a_window * (1 + flags.refresh_lag))


def refresh_for_step(job: Job, here: Session, peer: Peer, step: int, current: Refresh | None) -> Refresh:
    """The negatives that the step after ``step`` is trained on, waited for where they must be."""
    flags = job.flags
    if job.journal is not None:
        return replayed_refresh(job, step, current)
    if flags.refresh_mode == "lockstep":
        needed = max(step // flags.steps_per_refresh - flags.refresh_lag, 0)
        if current is not None and current.number == needed:
            return current
        return wait_for_refresh(job, here, peer, number=needed)
    if current is None:
        return wait_for_refresh(job, here, peer)
    if step % flags.logging_steps:
        return current
    number = agree(here, partial(newest_number, job, current.number), peer, is_needed=False)
    return current if number is None else exchange.read_visible_refresh(job.ann_dir, number)


def replayed_refresh(job: Job, step: int, current: Refresh | None) -> Refresh:
    """What the journal says was trained on after ``step``, the same bytes."""
    assert job.journal is not None
    entry = [entry for entry in job.journal if entry.taken_at_step <= step][-1]
    if current is not None and current.number == entry.refresh:
        return current
    refresh = exchange.read_refresh(job.ann_dir, entry.refresh)
    if refresh.record.get("sha256") != entry.sha256:
        raise Disagreement(
            f"{refresh.path} is not what {job.flags.replay} was written about: its sha256 is "
            f"{refresh.record.get('sha256')}, expected {entry.sha256}; give that run's --ann_dir"
        )
    return refresh


def newest_number(job: Job, above: int = -1, number: int | None = None) -> int | None:
    """Rank 0's look at the directory: the newest valid refresh, or the one of ``number``."""
    refresh = exchange.newest_refresh(job.ann_dir, number, above)
    return None if refresh is None else refresh.number


def wait_for_refresh(job: Job, here: Session, peer: Peer, number: int | None = None) -> Refresh:
    what = f"negatives{'' if number is None else f' of refresh {number}'} in {job.ann_dir}"
    here.tell(doing=f"waiting for {what}", rate=None, eta_seconds=None)

    def look() -> int | None:
        found = agree(here, partial(newest_number, job, -1, number), peer)
        return None if found is None else int(found)

    found = wait_for(look, what, quiet=not here.world.is_first, hurry=here.stop.requested)
    return exchange.read_visible_refresh(job.ann_dir, found)


def check_origin(job: Job, ours: dict[str, Any], refresh: Refresh, model_of_step: dict[int, str]) -> None:
    """Disagreement (exit 3) where the negatives are another run's, or made on another schedule."""
    flags, record = job.flags, refresh.record
    if job.journal is not None:
        return  # its sha256 says that it is what the replayed run was trained on
    check_agreement(ours, record, f"refresh {refresh.number}", SAME_FLAGS, COMMON)
    expected_step = refresh.number * flags.steps_per_refresh
    if flags.refresh_mode == "lockstep" and refresh.step != expected_step:
        raise Disagreement(
            f"refresh {refresh.number} was made from step {refresh.step}, in lockstep it is of step {expected_step}; "
            "start the generator with the same --steps_per_refresh"
        )
    made_by = record.get("model_sha256")
    if made_by and made_by != model_of_step.get(refresh.step):
        raise Disagreement(
            f"refresh {refresh.number} in {job.ann_dir} was not made from this run's model of step {refresh.step}: "
            "another run left it; give both programs an empty --ann_dir and generate the initial data again"
        )


def take_up(job: Job, trainer: Trainer, course: Course, refresh: Refresh) -> InUse:
    """Read the negatives, say so, note it in the journal, and start their batches."""
    flags, state = job.flags, trainer.state
    in_use = open_negatives(job, trainer, refresh, batches_done=0)
    record, lists = refresh.record, in_use.lists
    sha256 = record.get("sha256") or publishing.sha256_of(refresh.path)
    course.taken.append(Taken(refresh.number, refresh.step, state.step, sha256, record.get("model_sha256", "")))
    write_journal(trainer.session, course)
    trainer.session.tell(refresh=refresh.number, made_from_step=refresh.step, step=state.step)
    if trainer.log is not None:
        say(
            f"refresh {refresh.number} from step {refresh.step}: {len(lists.query_Q):,} lists, {lists.triples:,} "
            f"triples, {record.get('strategy', 'unknown strategy')}, taken up at step {state.step}"
        )
        trainer.log.dev_ndcg(record["ndcg"], refresh.step)
    goes_on = flags.load_optimizer_scheduler and state.step == 0
    if not flags.single_warmup and not goes_on:
        # Down to zero only at the end of the run: nobody knows how long these negatives will have to serve.
        state.restart_schedule(flags.learning_rate, flags.warmup_steps, flags.max_steps - state.step)
        course.schedule_from = state.step
    return in_use
