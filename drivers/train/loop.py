"""What every training is: a run is begun or resumed, steps are made, checkpoints are published, until the last step.

`train` and `run_steps` read from top to bottom. What ANN training and warmup do next to that are the callables of a
`TrainingProgram` and its `Hooks`: drivers/train/ann.py and drivers/train/warmup.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

from data.tokens.collection import Preprocessed
from data.training.batches import Batch
from drivers.job.preflight import Preflight
from drivers.job.run_config import begins_run, enter_run, provenance
from drivers.job.session import Session, open_session
from drivers.train.checks import check_trainer
from drivers.train.settings import TrainingSettings
from drivers.train.trainer import STOPPING, Trainer, make_trainer, start_point
from model.encoders.base import Encoder
from model.train.trained_parts import describe_trained
from utils.distributed import agreement
from utils.distributed.world import World
from utils.exchange.checkpoints import Checkpoint
from utils.exchange.lease.record import LeaseTimeouts
from utils.run_log import say


def nothing(*given: object) -> None:
    """What a program does that does nothing there."""


@dataclass(frozen=True)
class Hooks:
    """What a program does next to the steps. All processes call each together.

    Args:
        batches: those of the next step, endlessly: an iterator that continues from step to step, or another one from
            here on. May wait, and may raise one of `STOPPING`.
        stored: what the program itself needs to resume, for trainer_state.json of every checkpoint.
        stored_by_stop: and what more of one that a stop saves.
        before_steps, after_step, after_steps: may raise one of `STOPPING`.
        after_publishing: after a checkpoint, but for one that a stop saves.
        counts: what the end of the log and DONE.json count, next to the steps.
        finished: what else DONE.json says of the run.
    """

    batches: Callable[[], Iterator[Batch]]
    stored: Callable[[], dict[str, object]] = dict
    stored_by_stop: Callable[[], dict[str, object]] = dict
    before_steps: Callable[[], None] = nothing
    after_step: Callable[[], None] = nothing
    after_publishing: Callable[[], None] = nothing
    after_steps: Callable[[], None] = nothing
    counts: Callable[[], dict[str, int]] = dict
    finished: Callable[[], dict[str, object]] = dict


@dataclass(frozen=True)
class TrainingProgram:
    """What a program has of its own. All processes call each together, once, in the order of `train`.

    Args:
        role: whose lease it holds in its output directory.
        overwrites: it removes the run that another job has left there.
        run_config: all that decides what the run computes, with its last step, ``max_steps``.
        check_new_run: raises where a run that only begins must not; before anything says that it has begun.
        open_encoder: with the weights of a checkpoint or, for a run that begins, its initial ones; it leaves torch's
            generator as training begins with it.
        checkpoints_kept: how many lie on the disk at once, of the run's last step.
        begin: what is to be opened before the first step.
    """

    role: str
    timeouts: LeaseTimeouts
    overwrites: bool
    settings: TrainingSettings
    collection: Preprocessed
    run_config: Callable[[World], Mapping[str, object]]
    open_encoder: Callable[[World, Checkpoint | None], Encoder]
    checkpoints_kept: Callable[[int], int]
    begin: Callable[[Trainer, Mapping[str, object], Checkpoint | None], Hooks]
    check_new_run: Callable[[Session, Mapping[str, object]], None] = nothing


def train(program: TrainingProgram, world: World, run_id: str, checks: Preflight) -> None:
    """Train to the last step, from the start or from where an earlier job stopped, publishing checkpoints.

    Args:
        program: what is trained, on what, and where to.
        world: the processes; all call this.
        run_id: this job's own, of a run that it begins.
        checks: what is still to be checked before the first step.

    Raises:
        Disagreement: the directory holds a run of other flags.
        UserError: a check fails.
    """
    settings, directory = program.settings, program.settings.output_dir
    with open_session(world, directory, program.role, program.timeouts, run_id) as session:
        config = program.run_config(world)
        if session.decide_on_process0(partial(begins_run, directory, program.overwrites)):
            program.check_new_run(session, config)
        run = enter_run(session, directory, run_id, config, program.overwrites)
        start = start_point(session, directory)
        encoder = program.open_encoder(world, start)
        total_steps = config["max_steps"]
        assert isinstance(total_steps, int)
        record = {**provenance(run, config), "max_steps": total_steps}
        trainer = make_trainer(settings, session, encoder, total_steps, record, start)
        if world.is_first and (trained := describe_trained(encoder)):
            say(trained)
        check_trainer(checks, program.collection, trainer, program.checkpoints_kept(total_steps))
        hooks = program.begin(trainer, config, start)
        run_steps(trainer, hooks)
        agreement.on_process0(world, partial(trainer.finish, hooks.counts(), **hooks.finished()))


def run_steps(trainer: Trainer, hooks: Hooks) -> None:
    """From the step reached to the last. What ends training is taken between two steps, with the state saved."""
    settings, state = trainer.settings, trainer.state
    try:
        hooks.before_steps()
        while state.step < trainer.total_steps:
            batches = hooks.batches()
            trainer.session.check_stop()
            trainer.step(list(islice(batches, settings.micro_batches)))
            hooks.after_step()
            if state.step == trainer.total_steps or any(state.step % steps == 0 for steps in settings.publish_every):
                trainer.publish(**hooks.stored())
                hooks.after_publishing()
        hooks.after_steps()
    except STOPPING as reason:
        trainer.save_and_stop(reason, hooks.stored() | hooks.stored_by_stop())
