"""ANN training: which negatives are in use, and what is done next to the steps when there are newer ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.mining.negative_lists import NegativeLists, check_offsets, read_negative_lists
from data.training.batches import Batch, batches_from_lists
from data.training.triple_order import TRIPLE_ORDER
from drivers.cli import AnnFlags
from drivers.embeddings.text_lengths import describe_lengths, with_lengths
from drivers.job.disk_budget import checkpoints_at_once, publishing_steps
from drivers.job.encoder_setup import check_model_directory, encoder_settings, open_encoder
from drivers.job.model_identity import check_checkpoint, identity_of
from drivers.job.preflight import Preflight, check_collection, check_publishing
from drivers.job.resume import resumed_otherwise
from drivers.job.run_config import (
    OWN_RUN,
    check_common,
    check_holds_no_other_run,
    check_in_dry_run,
    run_config,
)
from drivers.job.setup import check_output_dirs, check_refresh_flags, open_collection, seed_everything, start_program
from drivers.train import loop
from drivers.train.checks import check_training_flags
from drivers.train.loop import Hooks, TrainingProgram
from drivers.train.refresh_schedule import (
    Job,
    RefreshUse,
    TrainingHistory,
    check_new_run,
    check_origin,
    check_replayed,
    check_replayed_order,
    check_staleness,
    history_from,
    read_journal,
    refresh_for_step,
    sha256_of_negatives,
    write_journal,
)
from drivers.train.settings import training_settings
from drivers.train.trainer import Trainer
from model.encoders.base import Encoder
from model.kernels.precision import name_of
from utils.distributed import agreement, process_group
from utils.distributed.world import World, processes_of_launcher
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.checkpoints import Checkpoint, model_sha256
from utils.exchange.layout import JobLayout
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.negatives import Refresh, read_records, read_visible_refresh
from utils.exchange.peers import Peer, watch_peer
from utils.exchange.retention import remove_old_checkpoints
from utils.run_log import say
from utils.seen import SeenQueries


@dataclass
class ActiveNegatives:
    """The negatives being trained on, where in them the next batch is, and the queries of the batches before it."""

    refresh: Refresh
    lists: NegativeLists
    batches: Iterator[Batch]
    seen: SeenQueries | None  # None: they are not noted


def preflight(flags: AnnFlags) -> Job:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    flags = with_lengths(flags)
    dtype = check_training_flags(flags)
    check_refresh_flags(flags)
    if flags.refresh_mode == "lockstep" and flags.max_steps % flags.steps_per_refresh:
        raise UserError(
            f"--max_steps {flags.max_steps} is not a multiple of --steps_per_refresh {flags.steps_per_refresh}; "
            "in lockstep a run is made of whole windows"
        )
    oldest_steps = flags.steps_per_refresh * (1 + flags.refresh_lag)
    if flags.refresh_mode == "lockstep" and 0 < flags.max_staleness_steps < oldest_steps:
        raise UserError(
            f"--max_staleness_steps is {flags.max_staleness_steps}, in this lockstep negatives serve until they are "
            f"{oldest_steps} steps old; give more, or leave it out"
        )
    if not flags.model_name_or_path:
        raise UserError(
            "--model_name_or_path is missing, expected the warmup checkpoint that the generator starts from"
        )
    check_model_directory(flags, flags.model_name_or_path)
    check_output_dirs(flags.output_dir)
    check_holds_no_other_run(Path(flags.output_dir), flags)
    collection = open_collection(flags, flags.tokenizer_name or flags.model_name_or_path)
    job = Job(flags, collection, dtype, read_journal(Path(flags.replay)) if flags.replay else None)
    check_replayed_order(job)
    if flags.dry_run:
        check_own_run(job)
    return job


def science_of_job(job: Job, processes: int) -> dict[str, Any]:
    flags = job.flags
    return run_config(
        flags,
        job.collection,
        processes=processes,
        trained_in=name_of(job.dtype),
        **identity_of(flags.model_name_or_path, flags.model_type, flags.config_name),
        replayed_journal_sha256=atomic.sha256_of(Path(flags.replay)) if flags.replay else "",
    )


def check_own_run(job: Job) -> None:
    """A --dry_run's look at what the start would compare this job with. Disagreement as there."""
    make_science = partial(science_of_job, job, processes_of_launcher())
    is_resumed = check_in_dry_run(job.output_dir, job.flags, make_science, OWN_RUN, "trained_in", "fp32")
    if not is_resumed and read_records(job.ann_dir):
        check_new_run(job, make_science())


def train(job: Job) -> None:
    """Train to --max_steps, from the start or from where an earlier job stopped; then say so to the generator."""
    flags = job.flags
    world, run_id = start_program("run_ann", flags)
    checks = Preflight(world)
    inputs = check_collection(job.collection, flags.tokenizer_name or flags.model_name_or_path, ("train",))
    checks.on_process0(partial(check_checkpoint, flags, flags.model_name_or_path), *inputs)
    checks.on_process0(partial(describe_lengths, flags, job.collection), partial(check_publishing, job.output_dir))
    loop.train(program_of(job), world, run_id, checks)
    process_group.stop(world)


def program_of(job: Job) -> TrainingProgram:
    """In lockstep a checkpoint is published wherever a refresh is made from, too."""
    flags = job.flags
    publish_every = (flags.save_steps, *([flags.steps_per_refresh] if flags.refresh_mode == "lockstep" else []))
    return TrainingProgram(
        role="trainer",
        timeouts=LeaseTimeouts(flags.heartbeat_seconds, flags.lease_seconds),
        overwrites=flags.overwrite_output_dir,
        settings=training_settings(flags, job.dtype, publish_every),
        collection=job.collection,
        run_config=partial(config_of_run, job),
        check_new_run=lambda session, config: session.decide_on_process0(partial(check_new_run, job, config)),
        open_encoder=partial(encoder_at, job),
        checkpoints_kept=lambda total_steps: checkpoints_kept(flags),
        begin=partial(begin, job),
    )


def config_of_run(job: Job, world: World) -> dict[str, Any]:
    """Disagreement where --replay's run was of other flags; what may differ is said."""
    config = science_of_job(job, world.size)
    if (differing := check_replayed(job, config)) and world.is_first:
        say(resumed_otherwise(f"the run of {job.flags.replay}", differing))
    return config


def encoder_at(job: Job, world: World, start: Checkpoint | None) -> Encoder:
    """The encoder of a checkpoint of this run, or the warmup's."""
    seed_everything(job.flags.seed, world.process, start.step if start else 0)
    model_dir = str(start.path) if start else job.flags.model_name_or_path
    settings = encoder_settings(job.flags, job.dtype)
    return open_encoder(settings, model_dir, job.collection, resumes=start is not None)


def begin(job: Job, trainer: Trainer, config: dict[str, Any], start: Checkpoint | None) -> Hooks:
    """At the position of the earlier job, or before the first negatives."""
    history = history_from(job, trainer.session, start, config["initial_model_sha256"])
    agrees = partial(check_common, config, f"the negatives in {job.ann_dir}")
    peer = watch_peer(job.ann_dir, "generator", job.flags.lease_seconds, agrees)
    training = AnnTraining(job, trainer, history, peer, in_use_before(job, trainer, history))
    write_journal(trainer.session, history)
    return Hooks(
        batches=training.batches,
        stored=history.stored,
        after_publishing=training.after_publishing,
        after_steps=training.log_seen,
        finished=training.finished,
    )


@dataclass
class AnnTraining:
    """The negatives that training is on, and what it does when there are newer ones; see `drivers.train.loop.Hooks`."""

    job: Job
    trainer: Trainer
    history: TrainingHistory
    peer: Peer
    in_use: ActiveNegatives | None

    def batches(self) -> Iterator[Batch]:
        """Of the negatives that the next step is trained on, waited for where they must be."""
        job, trainer, history, in_use = self.job, self.trainer, self.history, self.in_use
        session, step = trainer.session, trainer.state.step
        refresh = refresh_for_step(job, session, history, self.peer, step, in_use.refresh if in_use else None)
        if in_use is None or refresh.number != in_use.refresh.number:
            session.decide_on_process0(partial(check_origin, job, trainer.record, refresh, history.model_of_step))
            self.log_seen()
            self.in_use = in_use = switch_to(job, trainer, history, refresh)
        check_staleness(job, session, step, in_use.refresh)
        return in_use.batches

    def log_seen(self) -> None:
        """What was trained on of a refresh that has served its last step."""
        log, in_use = self.trainer.log, self.in_use

        def write() -> None:
            if log is not None and in_use is not None and in_use.seen is not None:
                log.record(self.trainer.state.step, **in_use.seen.of_refresh(in_use.refresh.number).logged())

        agreement.on_process0(self.trainer.session.world, write)

    def after_publishing(self) -> None:
        """What process 0 alone keeps: the model of each step, and the checkpoints still needed."""
        job, step, lease = self.job, self.trainer.state.step, self.trainer.session.lease

        def keep() -> None:
            assert lease is not None
            self.history.model_of_step[step] = model_sha256(JobLayout(job.output_dir).checkpoint(step))
            remove_old_checkpoints(lease, job.ann_dir, job.flags.refresh_mode == "lockstep")

        agreement.on_process0(self.trainer.session.world, keep)

    def finished(self) -> dict[str, Any]:
        """The journal, as DONE.json has it."""
        taken = [entry.told() for entry in self.history.taken]
        return {"refreshes": len(taken), "taken": taken}


def in_use_before(job: Job, trainer: Trainer, history: TrainingHistory) -> ActiveNegatives | None:
    """The negatives that the earlier job was training on, at the position it had reached; None at the beginning."""
    if not history.taken:
        return None
    taken, flags = history.taken[-1], job.flags
    refresh = read_visible_refresh(job.ann_dir, taken.refresh)
    trainer.session.decide_on_process0(partial(check_unchanged, refresh, taken))
    batches_done = (trainer.state.step - taken.taken_at_step) * flags.gradient_accumulation_steps
    if trainer.log is not None:
        say(f"refresh {taken.refresh}, taken up at step {taken.taken_at_step}: {batches_done} batches are done")
    trainer.session.set_status(refresh=taken.refresh, made_from_step=taken.made_from_step, step=trainer.state.step)
    return open_negatives(job, trainer, refresh, batches_done)


def check_unchanged(refresh: Refresh, taken: RefreshUse) -> None:
    """UserError where the file is not what the earlier job trained on."""
    if atomic.sha256_of(refresh.path) != taken.sha256:
        raise UserError(f"{refresh.path} has changed since this run trained on it; start again in another --output_dir")


def open_negatives(job: Job, trainer: Trainer, refresh: Refresh, batches_done: int) -> ActiveNegatives:
    collection, world = job.collection, trainer.state.world
    lists = read_negative_lists(refresh.path)
    check_offsets(lists, len(collection.queries("train")), len(collection.passages), refresh.path)
    is_noted = trainer.log is not None and not trainer.resumes_other_order(lists, job.flags.group_size)
    seen = SeenQueries() if is_noted else None
    batches = batches_from_lists(trainer.settings.batch, collection, world, lists, refresh.number, batches_done, seen)
    return ActiveNegatives(refresh, lists, batches, seen)


def checkpoints_kept(flags: AnnFlags) -> int:
    """How many checkpoints lie there at once; in lockstep also those between the newest refresh and the trainer."""
    if flags.refresh_mode == "async":
        return checkpoints_at_once(publishing_steps(flags.max_steps, flags.save_steps))
    in_a_window = publishing_steps(flags.steps_per_refresh, flags.save_steps)
    published = publishing_steps(flags.max_steps, flags.save_steps, flags.steps_per_refresh)
    return checkpoints_at_once(published, unused=in_a_window * (1 + flags.refresh_lag))


def switch_to(job: Job, trainer: Trainer, history: TrainingHistory, refresh: Refresh) -> ActiveNegatives:
    """Read the negatives, say so, note it in the journal, and start their batches."""
    flags, state = job.flags, trainer.state
    trainer.triple_order = TRIPLE_ORDER
    in_use = open_negatives(job, trainer, refresh, batches_done=0)
    record, lists = refresh.record, in_use.lists
    sha256 = sha256_of_negatives(refresh)
    history.taken.append(RefreshUse(refresh.number, refresh.step, state.step, sha256, record.get("model_sha256", "")))
    write_journal(trainer.session, history)
    trainer.session.set_status(refresh=refresh.number, made_from_step=refresh.step, step=state.step)
    if trainer.log is not None:
        say(
            f"refresh {refresh.number} from step {refresh.step}: {len(lists.query_Q):,} lists, {lists.triples:,} "
            f"triples, {record.get('strategy', 'unknown strategy')}, taken up at step {state.step}"
        )
    agreement.on_process0(state.world, partial(log_dev_ndcg, trainer, refresh))
    resumes_schedule = flags.load_optimizer_scheduler and state.step == 0
    if not flags.single_warmup and not resumes_schedule:
        # Down to zero only at the end of the run: nobody knows how long these negatives will have to serve.
        state.restart_schedule(flags.learning_rate, flags.warmup_steps, flags.max_steps - state.step)
        history.schedule_from = state.step
    return in_use


def log_dev_ndcg(trainer: Trainer, refresh: Refresh) -> None:
    assert trainer.log is not None
    trainer.log.dev_ndcg(refresh.record["ndcg"], refresh.step)
