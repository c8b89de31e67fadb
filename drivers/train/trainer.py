"""The bookkeeping around training steps: logs, checkpoints, and resuming exactly where an earlier job stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from data.mining.negative_lists import NegativeLists
from data.tokens.tokenizer import local_tokenizer
from data.training.batches import Batch
from data.training.triple_order import TRIPLE_ORDER, is_as_in_version_1
from drivers.job.encoder_setup import prepare_encoder
from drivers.job.session import Session
from drivers.train.settings import TrainingSettings
from drivers.train.trainer_state import TrainerState, read_trainer_state, write_model_card
from model.encoders.base import CheckpointsGradients, Encoder
from model.train.checkpoint import load_optimizer_scheduler, load_state, rng_states, save_state
from model.train.optim import linear_schedule, make_optimizer
from model.train.rank_stats import means_by_rank
from model.train.step import TrainingState, make_state, train_step
from utils.distributed import agreement, collectives
from utils.distributed.world import World, is_of_a_collective, process_gone
from utils.errors import PeerGone
from utils.exchange.checkpoints import Checkpoint, latest_resumable_checkpoint, publish_checkpoint
from utils.exchange.layout import MANIFEST, TOKENIZER, JobLayout
from utils.exchange.markers import mark_done, read_done
from utils.exchange.model_files import LENGTHS
from utils.exchange.stop import StopRequested
from utils.exchange.wait import wait_until_visible
from utils.run_log import RunLog, progress_line, say

STOPPING = (StopRequested, PeerGone)  # ends a training loop with its state saved


@dataclass
class Trainer:
    """The bookkeeping around training steps. ``log`` is None except on process 0."""

    settings: TrainingSettings
    session: Session
    state: TrainingState
    total_steps: int
    tokenizer: list[Path]
    record: Mapping[str, object]
    log: RunLog | None
    clock: Callable[[], float] = time.monotonic
    losses: list[float] = field(default_factory=list)  # since the last line
    started: float | None = None  # when this job's first step began: waiting for the first negatives is not training
    started_step: int = 0
    earlier_seconds: float = 0.0  # of the jobs that this one resumes
    stored: TrainerState = field(default_factory=TrainerState)  # what the earlier job left next to its weights
    saved_step: int = 0  # of the newest checkpoint; step 0 is what the job was given
    triple_order: int = TRIPLE_ORDER  # the version in which training began on the negatives in use

    def step(self, micro_batches: Sequence[Batch]) -> None:
        """One optimiser step; at logging steps write the line."""
        if self.started is None:
            self.started, self.started_step = self.clock(), self.state.step
        try:
            loss = train_step(self.state, micro_batches, self.is_logged(self.state.step + 1))
        except RuntimeError as error:
            if self.state.world.size > 1 and is_of_a_collective(error):
                raise process_gone(self.state.world, error) from None
            raise
        if math.isfinite(loss):  # else fp16's scaler has skipped the step
            self.losses.append(loss)
        step = self.state.step
        rate = (step - self.started_step) / max(self.clock() - self.started, 1e-9)
        self.session.set_status(
            step=step,
            total_steps=self.total_steps,
            doing="training",
            rate=round(rate, 3),
            eta_seconds=round((self.total_steps - step) / rate),
        )
        if self.is_logged(step):
            self.log_line(rate)

    def log_line(self, rate: float) -> None:
        """What has been measured since the last line, by all processes; then it starts from 0."""
        by_rank = means_by_rank(collectives.sum_rows(self.state.world, self.state.tally.state()))
        losses, skipped = self.losses.copy(), self.state.skipped
        self.losses.clear()
        self.state.tally.clear()
        self.state.skipped = 0
        agreement.on_process0(self.state.world, partial(self.write_line, rate, losses, skipped, by_rank))

    def write_line(self, rate: float, losses: list[float], skipped: int, by_rank: dict[str, float]) -> None:
        """The line of a logging step.

        Args:
            rate: in steps per second.
            losses: of each step since the last line that was not skipped.
            skipped: how many were, in fp16.
            by_rank: means since the last line, by `metrics.jsonl`'s keys.
        """
        assert self.log is not None
        step = self.state.step
        if skipped:
            say(f"skipped {skipped} of the steps since the last line: loss or gradient not finite in fp16")
        if losses:
            measured = self.state.layer_norms.items()  # not finite in a step that fp16's scaler skipped
            norms = {f"gradient_{name}": norm for name, norm in measured if math.isfinite(norm)}
            mean = sum(losses) / len(losses)
            self.log.training(step, self.state.learning_rate, mean, steps_per_second=rate, **norms, **by_rank)
        done = step - self.started_step
        eta = progress_line("step", done, self.total_steps - self.started_step, done / rate).partition(", ")[2]
        say(f"step {step:,}/{self.total_steps:,} ({100 * step / self.total_steps:.0f}%), {eta}")

    def is_logged(self, step: int) -> bool:
        return step % self.settings.logging_steps == 0 or step == self.total_steps

    @property
    def seconds(self) -> float:
        """Of training, the earlier jobs' included."""
        return self.earlier_seconds + (0.0 if self.started is None else self.clock() - self.started)

    def publish(self, **trainer_state: object) -> None:
        """Publish the state as ``checkpoint-<step>``; the processes continue together, or all fail."""
        rng = rng_states(self.state.world)
        by_rank = collectives.sum_rows(self.state.world, self.state.tally.state())

        def save() -> None:
            assert self.session.lease is not None
            record = {**self.record, "final": self.state.step == self.total_steps}
            kept = {
                "run_id": self.record["run_id"],
                "losses": self.losses,
                "by_rank": by_rank,
                "skipped": self.state.skipped,
                "triple_order": self.triple_order,
                "seconds": round(self.seconds, 3),
                "metrics_bytes": self.log.bytes if self.log is not None else 0,
                **trainer_state,
            }
            with publish_checkpoint(self.session.lease, self.state.step, record) as staging:
                save_state(self.state, staging, self.tokenizer, kept, rng)
                write_model_card(staging, self.settings, self.state, {**self.record, **trainer_state})
            say(f"published {JobLayout(self.session.lease.directory).checkpoint(self.state.step)}")

        agreement.on_process0(self.state.world, save)
        self.saved_step = self.state.step

    def restore(self, stored: TrainerState, step: int) -> None:
        """What `publish` stored at ``step``; an earlier version's lacks some of it."""
        self.stored, self.saved_step = stored, step
        self.losses = list(stored["losses"])
        self.state.skipped = stored.get("skipped", 0)
        self.triple_order = stored.get("triple_order", 1)
        if self.session.world.is_first:  # all processes' sums
            self.state.tally.load(stored.get("by_rank", []))
        self.earlier_seconds = stored["seconds"]

    def resumes_other_order(self, lists: NegativeLists, group_size: int) -> bool:
        """Whether an earlier version began on these lists in another order, which is said; this one continues its own.

        The position is so many triples of either.
        """
        if self.triple_order == TRIPLE_ORDER or is_as_in_version_1(lists, group_size):
            return False
        if self.session.world.is_first:
            say(
                f"warning: an earlier version began on these negatives, with another order of triples at --group_size "
                f"{group_size} for lists of other lengths: from here the order is this version's, so some "
                "triples come twice and others not"
            )
        return True

    def finish(self, counts: Mapping[str, int], **more: object) -> None:
        """Process 0's part of the end: DONE.json, and the last line of the log; ``more`` is for DONE.json alone."""
        lease, counted = self.session.lease, {"step": self.state.step, **counts}
        assert lease is not None
        if read_done(lease.directory) is None:
            mark_done(lease, **counted, seconds=round(self.seconds, 3), **more)
        if self.session.world.size > 1:
            say(f"{self.session.world.waits}")
        numbers = " ".join(f"{name}={number}" for name, number in counted.items())
        say(f"finished {numbers} seconds={self.seconds:.1f}")

    def save_and_stop(self, reason: Exception, trainer_state: Mapping[str, object]) -> NoReturn:
        """Publish this step's state unless that is done already; then `Stopped`, or the peer's absence."""
        if self.saved_step != self.state.step:
            self.publish(**trainer_state)
        if isinstance(reason, StopRequested):
            step = self.state.step
            saved_as = f"saved as checkpoint-{step}" if step else "with nothing to save"
            raise self.session.stopped(f"at step {step}, {saved_as}") from None
        raise reason


def start_point(session: Session, directory: Path) -> Checkpoint | None:
    """The newest valid checkpoint of the run that the directory holds; newer damaged ones are moved aside."""

    def look() -> int:
        assert session.lease is not None
        found = latest_resumable_checkpoint(session.lease)
        return -1 if found is None else found.step

    step = session.decide_on_process0(look)
    if step < 0:
        return None
    path = JobLayout(directory).checkpoint(step)
    wait_until_visible(path / MANIFEST)
    return Checkpoint(path, step, {})


def make_trainer(
    settings: TrainingSettings,
    session: Session,
    encoder: Encoder,
    total_steps: int,
    record: Mapping[str, object],
    start: Checkpoint | None,
) -> Trainer:
    """Optimiser, schedule, logs and the tokenizer's files around an encoder. All processes together.

    Args:
        settings: what training is made of.
        session: holds the trainer's role.
        encoder: with the weights of ``start``.
        total_steps: the last step.
        record: what each checkpoint's manifest says of the run.
        start: the checkpoint that is resumed; None for a run that begins.
    """
    world = session.world
    prepare_to_train(settings, world, encoder)
    stored = read_trainer_state(start) if start else TrainerState()
    state = state_at(settings, world, encoder, total_steps - stored.get("schedule_from", 0), start)
    log = agreement.on_process0(world, partial(open_log, settings, start, stored))
    stored_in = settings.output_dir / TOKENIZER
    tokenizer = agreement.on_process0(world, partial(local_tokenizer, settings.tokenizer, stored_in)) or []
    trainer = Trainer(settings, session, state, total_steps, tokenizer, record, log)
    if start:
        trainer.restore(stored, start.step)
    return trainer


def prepare_to_train(settings: TrainingSettings, world: World, encoder: Encoder) -> None:
    """Who opens a checkpoint finds its texts' lengths and profile there; the encoder is as fast as it can be."""
    encoder.record({name: getattr(settings.batch, name) for name in LENGTHS} | dict(settings.texts))
    if settings.gradient_checkpointing:
        assert isinstance(encoder, CheckpointsGradients), "preflight has looked"
        encoder.enable_gradient_checkpointing()
    prepare_encoder(encoder.to(world.device), settings.dtype, world, settings.compile, trains=True)


def state_at(
    settings: TrainingSettings, world: World, encoder: Encoder, schedule_steps: int, start: Checkpoint | None
) -> TrainingState:
    """As ``start`` left it; or new, or with the optimiser of ``settings.optimizer_from``.

    Args:
        settings: of optimiser, loss and mixed precision.
        world: the processes.
        encoder: on this process's device.
        schedule_steps: after how many the learning rate reaches zero.
        start: the checkpoint that is resumed, None for a new run.
    """
    chosen = settings.optimizer
    optimizer = make_optimizer(chosen.name, encoder, chosen.learning_rate, chosen.epsilon, chosen.weight_decay)
    scheduler = linear_schedule(optimizer, chosen.warmup_steps, schedule_steps)
    state = make_state(
        encoder,
        settings.loss,
        optimizer,
        scheduler,
        world,
        settings.dtype,
        chosen.max_grad_norm,
        settings.grad_cache_tokens,
        settings.temperature,
    )
    if start:
        load_state(state, start.path, start.step)
    elif settings.optimizer_from is not None:
        load_optimizer_scheduler(state, settings.optimizer_from)
    return state


def open_log(settings: TrainingSettings, start: Checkpoint | None, stored: TrainerState) -> RunLog:
    """The run's log, cut back to what it held at ``start``, whose trainer_state.json is ``stored``."""
    resumes_at = (start.step, stored["metrics_bytes"]) if start else (0, 0)
    log = RunLog(JobLayout(settings.output_dir).metrics, settings.tensorboard_dir, resumes_at=resumes_at)
    if start:
        say(f"resuming from {start.path.name} of run {stored['run_id']}")
    return log
