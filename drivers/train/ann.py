"""ANN training as a program: from its flags to what it trains on, and what it compares with the jobs around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.tokens.collection import Preprocessed
from data.tokens.text_agreement import check_texts, text_record
from drivers.cli.train import AnnFlags
from drivers.job.disk_budget import checkpoints_at_once, publishing_steps
from drivers.job.encoder_setup import check_model_directory, open_encoder
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
from drivers.job.settings import ModelJob, check_refresh_flags, lease_timeouts, places_of_model
from drivers.job.setup import check_output_dirs, open_collection, seed_everything, start_program
from drivers.job.text_lengths import describe_lengths
from drivers.train import loop
from drivers.train.active_negatives import AnnTraining, in_use_before
from drivers.train.journal import read_journal, write_journal
from drivers.train.loop import Hooks, TrainingProgram
from drivers.train.refresh_schedule import (
    ScheduleSettings,
    check_new_run,
    check_replayed,
    check_replayed_order,
    history_from,
)
from drivers.train.settings import TrainingSettings, check_first_encoder, training_job, training_settings
from drivers.train.trainer import Trainer
from model.encoders.base import Encoder
from model.kernels.precision import name_of
from model.train.trained_parts import choose_trained
from utils.distributed import process_group
from utils.distributed.world import World, processes_of_launcher
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.checkpoints import Checkpoint
from utils.exchange.evaluations import TRAIN
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.negatives import read_records
from utils.exchange.peers import watch_peer
from utils.flags import flags_json
from utils.run_log import say


@dataclass(frozen=True)
class TrainerJob(ModelJob):
    """What preflight resolved.

    Args:
        collection: what is trained on.
        training: how it trains.
        schedule: on which negatives.
        timeouts: of its lease, and of the generator's.
        overwrites: it removes the run that another job has left in its directory.
        checkpoints_kept: how many lie on the disk at once.
    """

    collection: Preprocessed
    training: TrainingSettings
    schedule: ScheduleSettings
    timeouts: LeaseTimeouts
    overwrites: bool
    checkpoints_kept: int

    @property
    def ann_dir(self) -> Path:
        return self.schedule.ann_dir

    @property
    def output_dir(self) -> Path:
        return self.training.output_dir


def preflight(flags: AnnFlags) -> TrainerJob:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    common = training_job(flags, places_of_model(flags))
    check_flags(flags)
    check_model_directory(common.model, flags.dry_run)
    check_output_dirs(flags.output_dir)
    check_holds_no_other_run(Path(flags.output_dir), flags.resume, flags.overwrite_output_dir)
    collection = open_collection(flags.data_dir, common.lengths, common.model.tokenizer, flags.dry_run)
    check_first_encoder(flags, common, collection, dict(common.encoder.changes), new_head=False)
    check_texts(collection, common.texts)
    job = TrainerJob(
        **vars(common),
        collection=collection,
        training=training_settings(flags, common, text_record(collection, common.texts), publish_every(flags)),
        schedule=schedule_settings(flags),
        timeouts=lease_timeouts(flags),
        overwrites=flags.overwrite_output_dir,
        checkpoints_kept=checkpoints_kept(flags),
    )
    check_replayed_order(job.schedule, flags.group_size)
    if flags.dry_run:
        check_own_run(job)
    return job


def check_flags(flags: AnnFlags) -> None:
    """UserError for flags that do not fit together."""
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
            f"{oldest_steps} steps old; give more, or omit it"
        )
    if not flags.model_name_or_path:
        raise UserError(
            "--model_name_or_path is missing, expected the warmup checkpoint that the generator starts from"
        )


def publish_every(flags: AnnFlags) -> tuple[int, ...]:
    """In lockstep a checkpoint is published wherever a refresh is made from, too."""
    return (flags.save_steps, *([flags.steps_per_refresh] if flags.refresh_mode == "lockstep" else []))


def schedule_settings(flags: AnnFlags) -> ScheduleSettings:
    replay = Path(flags.replay) if flags.replay else None
    return ScheduleSettings(
        ann_dir=Path(flags.ann_dir),
        is_lockstep=flags.refresh_mode == "lockstep",
        steps_per_refresh=flags.steps_per_refresh,
        refresh_lag=flags.refresh_lag,
        max_steps=flags.max_steps,
        looks_every=flags.logging_steps,
        max_staleness_steps=flags.max_staleness_steps,
        replay=replay,
        journal=read_journal(replay) if replay else None,
        restarts_schedule=not flags.single_warmup,
    )


def config_of_job(job: TrainerJob, processes: int) -> dict[str, object]:
    replay = job.schedule.replay
    return run_config(
        job.deciding_values,
        job.collection,
        processes=processes,
        trained_in=name_of(job.compute.dtype),
        **identity_of(job.model),
        **job.training.parts.record(),
        **job.training.loss_record,
        replayed_journal_sha256=atomic.sha256_of(replay) if replay is not None else "",
    )


def check_own_run(job: TrainerJob) -> None:
    """A --dry_run's look at what the start would compare this job with. Disagreement as there."""
    make_config = partial(config_of_job, job, processes_of_launcher())
    unknown = ["trained_in"] if job.compute.is_dtype_automatic else []
    is_resumed = check_in_dry_run(job.output_dir, make_config, OWN_RUN, unknown, job.overwrites)
    if not is_resumed and read_records(job.ann_dir):
        check_new_run(job.schedule, make_config())


def train(job: TrainerJob) -> None:
    """Train to --max_steps, from the start or from where an earlier job stopped; then say so to the generator."""
    world, run_id = start_program("run_ann", job.compute, flags_json(job.flag_values))
    checks = Preflight(world)
    inputs = check_collection(job.collection, job.model.tokenizer, (TRAIN,))
    checks.on_process0(partial(check_checkpoint, job.model), *inputs)
    describe = partial(describe_lengths, job.lengths, job.collection)
    checks.on_process0(describe, partial(check_texts, job.collection, job.texts))
    checks.on_process0(partial(check_publishing, job.output_dir))
    loop.train(program_of(job), world, run_id, checks)
    process_group.stop(world)


def program_of(job: TrainerJob) -> TrainingProgram:
    return TrainingProgram(
        role="trainer",
        timeouts=job.timeouts,
        overwrites=job.overwrites,
        settings=job.training,
        collection=job.collection,
        run_config=partial(config_of_run, job),
        check_new_run=lambda session, config: session.decide_on_process0(partial(check_new_run, job.schedule, config)),
        open_encoder=partial(encoder_at, job),
        checkpoints_kept=lambda total_steps: job.checkpoints_kept,
        begin=partial(begin, job),
    )


def config_of_run(job: TrainerJob, world: World) -> dict[str, object]:
    """Disagreement where --replay's run was of other flags; what may differ is said."""
    config = config_of_job(job, world.size)
    if (differing := check_replayed(job.schedule, config)) and world.is_first:
        say(resumed_otherwise(f"the run of {job.schedule.replay}", differing))
    return config


def encoder_at(job: TrainerJob, world: World, start: Checkpoint | None) -> Encoder:
    """The encoder of a checkpoint of this run, or the warmup's."""
    seed_everything(job.training.batch.seed, world.process, start.step if start else 0)
    model_dir = str(start.path) if start else job.model.name_or_path
    encoder = open_encoder(job.encoder, model_dir, job.collection, resumes=start is not None)
    return choose_trained(encoder, job.training.parts, model_dir, job.training.batch.seed)


def begin(job: TrainerJob, trainer: Trainer, config: Mapping[str, object], start: Checkpoint | None) -> Hooks:
    """The training at the position of the earlier job, or before the first negatives.

    Args:
        job: the program's, with its schedule and collection.
        trainer: at the step of ``start``.
        config: the `run_config`, in which the generator must agree.
        start: the checkpoint that is resumed, None for a new run.
    """
    history = history_from(job.schedule, trainer.session, start, str(config["initial_model_sha256"]))
    agrees = partial(check_common, config, f"the negatives in {job.ann_dir}")
    peer = watch_peer(job.ann_dir, "generator", job.timeouts.lease_seconds, agrees)
    in_use = in_use_before(job.schedule, job.collection, trainer, history)
    training = AnnTraining(job.schedule, job.collection, trainer, history, peer, in_use)
    write_journal(trainer.session, history)
    return Hooks(
        batches=training.batches,
        stored=training.stored,
        after_publishing=training.after_publishing,
        after_steps=training.log_seen,
        counts=training.counts,
        finished=training.finished,
    )


def checkpoints_kept(flags: AnnFlags) -> int:
    """How many checkpoints lie there at once; in lockstep also those between the newest refresh and the trainer."""
    if flags.refresh_mode == "async":
        return checkpoints_at_once(publishing_steps(flags.max_steps, flags.save_steps))
    in_a_window = publishing_steps(flags.steps_per_refresh, flags.save_steps)
    published = publishing_steps(flags.max_steps, flags.save_steps, flags.steps_per_refresh)
    return checkpoints_at_once(published, unused=in_a_window * (1 + flags.refresh_lag))
