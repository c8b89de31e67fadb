"""The generator when the trainer is done, or gone: it ends within two polls, or within the heartbeat's limit."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass

from tests.faults.fork_server import Child, ForkServer
from tests.faults.programs import GENERATOR, LEASE_SECONDS, STEPS, TRAINER, WINDOW
from tests.faults.runs import PAIR, TEMPO, Lab, Miss, Outcome, Play, steps_logged

POLL_SECONDS = 0.5
POLLS = {
    "utils.exchange.wait.FIRST_POLL_SECONDS": POLL_SECONDS,
    "utils.exchange.wait.LONGEST_POLL_SECONDS": POLL_SECONDS,
}
GRACE_SECONDS = 1.5  # for a loaded machine to end a process
SLOW_MICRO_BATCHES = 60
# Soon after the last of these: a trainer that has come to the last refresh's checkpoint leaves nothing to wait for.
LAST_STEP = STEPS - WINDOW - 3
# In lockstep the generator knows which refresh is the last; in async it waits for checkpoints until DONE.json.
ASYNC = ("--refresh_mode", "async")


@dataclass(frozen=True)
class Ending:
    """The trainer finishes (``step`` None), or gets a signal once ``step`` is logged and some time has passed."""

    step: int | None
    signal: signal.Signals
    seconds: float

    def __str__(self) -> str:
        return (
            "the trainer is done" if self.step is None else f"{self.signal.name} of the trainer after step {self.step}"
        )


def seconds_to_end(play: Play, child: Child, limit_seconds: float) -> float:
    started = time.monotonic()
    play.watch_until(
        lambda: child.poll() is not None or time.monotonic() > started + limit_seconds, "the generator did not end"
    )
    return time.monotonic() - started


def inject(lab: Lab, server: ForkServer, ending: Ending) -> None:
    play = Play(lab, server, lab.new_run())
    expected, limit_seconds = 0, 2 * POLL_SECONDS + GRACE_SECONDS
    try:
        for role in PAIR:
            slow = ("--gradient_accumulation_steps", str(SLOW_MICRO_BATCHES)) if role == TRAINER else ()
            more = (*slow, *(ASYNC if ending.step is None else ()))
            play.start(role, more=more, settings={**TEMPO, **(POLLS if role == GENERATOR else {})})
        trainer, generator = (play.children[role] for role in PAIR)
        if ending.step is None:
            play.watch_until(lambda: (play.run.checkpoints / "DONE.json").exists(), "there was no DONE.json")
        else:
            play.watch_until(lambda: ending.step in steps_logged(play.run), f"step {ending.step} was not logged")
            due = time.monotonic() + ending.seconds
            play.watch_until(lambda: time.monotonic() > due, "the instant did not come")
            trainer.send(ending.signal)
            expected, limit_seconds = 4, LEASE_SECONDS + 2 * POLL_SECONDS + GRACE_SECONDS
        seconds = seconds_to_end(play, generator, limit_seconds)
    finally:
        play.stop_all()
    if generator.code != expected or seconds > limit_seconds:
        raise Miss(
            f"the generator ended with {generator.code} after {seconds:.1f} s, expected {expected} within "
            f"{limit_seconds:.1f} s: {play.last_error(GENERATOR)}"
        )
    play.discard()


def run(lab: Lab, count: int, rng: random.Random) -> list[Outcome]:
    """Half of each; those that go are killed or frozen."""
    cases = []
    for number in range(count):
        step = None if number % 2 else rng.randint(2, LAST_STEP)
        how = signal.SIGKILL if number % 4 else signal.SIGSTOP
        cases.append(Ending(step, how, rng.uniform(0, 0.2)))
    return lab.each(cases, inject)
