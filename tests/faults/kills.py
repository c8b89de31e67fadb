"""SIGKILL at every publication boundary and at random instants; the killed are started again, the others continue."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.faults.fork_server import Child, ForkServer
from tests.faults.programs import ROLES, SAVE_STEPS, WARMUP
from tests.faults.runs import PAIR, Lab, Miss, Outcome, Play, count_plan, pick
from tests.faults.victim import INJECTED, read_log

HEARTBEAT_OPERATIONS = 12  # of the heartbeat's thread, at most: how many there are is a matter of time
EVERY_BOUNDARY, INSTANTS = 400, 100
ATTEMPTS = 8  # a role may have ended before its instant came: each time it comes in half the time


@dataclass(frozen=True)
class Kill:
    """SIGKILL of a role's process before the ``at``-th operation of a thread, or ``seconds`` after its start."""

    role: str
    at: int = 0
    thread: str = "main"
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.at:
            return f"SIGKILL of the {self.role} before operation {self.at} of the {self.thread} thread"
        return f"SIGKILL of the {self.role} after {self.seconds:.3f} s"


def roles_beside(role: str) -> tuple[str, ...]:
    return (WARMUP,) if role == WARMUP else PAIR


def boundaries(lab: Lab) -> list[Kill]:
    """Before every operation of the undisturbed run's programs, and before the heartbeat's first ones."""
    assert lab.finished is not None
    found = []
    for role in ROLES:
        log = read_log(lab.finished.directory / f"{role}.log")
        last = max(operation.at for operation in log if operation.thread == "main")
        found += [Kill(role, at) for at in range(1, last + 1)]
        beats = [operation.at for operation in log if operation.thread != "main"]
        sure = min(HEARTBEAT_OPERATIONS, max(beats, default=0) // 2)  # a run on a quieter machine has fewer
        found += [Kill(role, at, "other") for at in range(1, sure + 1)]
    return found


def instants(lab: Lab, rng: random.Random, count: int) -> list[Kill]:
    roles = [rng.choice(ROLES) for _ in range(count)]
    return [Kill(role, seconds=rng.uniform(0, lab.seconds[role])) for role in roles]


def inject(lab: Lab, server: ForkServer, kill: Kill) -> None:
    for attempt in range(ATTEMPTS):
        play = Play(lab, server, lab.new_run(), roles_beside(kill.role))
        try:
            was_killed = strike(play, kill, 0.5**attempt)
            play.to_the_end()
        finally:
            play.stop_all()
        play.check_end(repeated=SAVE_STEPS if was_killed else 0)
        play.discard()
        if was_killed:
            return
    raise Miss(f"never injected: the {kill.role} had ended each time")


def strike(play: Play, kill: Kill, share: float) -> bool:
    """Start the programs, and wait until one was killed (True) or had ended before."""
    plan = replace(count_plan(play.run, kill.role), what="kill", at=kill.at, thread=kill.thread)
    victim = play.start(kill.role, plan if kill.at else None)
    for role in play.roles:
        if role not in play.children:
            play.start(role)
    if not kill.at:
        play.watch_until(due_after(kill.seconds * share, victim), "the instant did not come")
        victim.send(signal.SIGKILL)
    play.watch_until(lambda: victim.poll() is not None or play.step(), f"the {kill.role} did not end")
    if kill.at:
        log = read_log(play.run.directory / f"{kill.role}.log")
        return any(operation.kind == INJECTED for operation in log)
    return victim.code == -signal.SIGKILL


def due_after(seconds: float, child: Child) -> Callable[[], bool]:
    due = time.monotonic() + seconds
    return lambda: time.monotonic() >= due or child.poll() is not None


def run(lab: Lab, count: int, rng: random.Random) -> list[Outcome]:
    """Half of ``count`` are boundaries, or all of them where ``count`` is EVERY_BOUNDARY; the rest random instants."""
    every = boundaries(lab)
    if count < EVERY_BOUNDARY:
        return lab.each([*pick(rng, every, (count + 1) // 2), *instants(lab, rng, count // 2)], inject)
    return lab.each([*every, *instants(lab, rng, max(INSTANTS, count - len(every)))], inject)
