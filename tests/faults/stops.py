"""SIGTERM, SIGINT and stop files at random steps: the state is saved there, and nothing is done twice."""

from __future__ import annotations

import random
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.fork_server import Child, ForkServer
from tests.faults.kills import due_after, roles_beside
from tests.faults.programs import GENERATOR, REFRESHES, ROLES, STEPS, Run
from tests.faults.runs import Lab, Miss, Outcome, Play, steps_logged

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
OWN_FILE, JOB_FILE = "STOP", "ANCE_STOP_FILE"
WAYS = (*SIGNALS, OWN_FILE, JOB_FILE)
SAVED = 75
AT_START = (143, 130, -signal.SIGTERM, -signal.SIGINT)  # a signal before there is a state to save
ATTEMPTS = 10  # each with the instant a little sooner: the machine may be quicker now than when it was chosen


@dataclass(frozen=True)
class Stop:
    """A trainer or warmup is stopped once ``step`` is logged, a generator ``seconds`` after its start."""

    role: str
    way: str
    step: int
    seconds: float

    def __str__(self) -> str:
        when = f"after {self.seconds:.3f} s" if self.role == GENERATOR else f"at step {self.step}"
        return f"{self.way} for the {self.role} {when}"


def job_file(run: Run) -> Path:
    return run.directory / "stop-requested"


def inject(lab: Lab, server: ForkServer, stop: Stop) -> None:
    for attempt in range(ATTEMPTS):
        play = Play(lab, server, lab.new_run(), roles_beside(stop.role))
        try:
            was_stopped = ask(play, stop, 0.7**attempt)
            if was_stopped:
                play.to_the_end()
        finally:
            play.stop_all()
        if was_stopped:
            play.check_end(repeated=0)
            check_refreshes(play.run, play.roles)
        play.discard()
        if was_stopped:
            return
    raise Miss(f"never injected: the {stop.role} had ended each time")


def ask(play: Play, stop: Stop, share: float) -> bool:
    """Start the programs, stop one, and check what it leaves; False where it ended before, or had not begun."""
    for role in play.roles:
        environment = {"ANCE_STOP_FILE": str(job_file(play.run))} if role == stop.role else {}
        play.start(role, environment=environment)
    child = play.children[stop.role]
    if stop.role == GENERATOR:
        play.watch_until(lambda: is_at_work(play, child), "the generator did not begin")
        play.watch_until(due_after(stop.seconds * share, child), "the instant did not come")
    else:
        step = max(1, round(stop.step * share))
        while child.poll() is None and step not in steps_logged(play.run, stop.role):
            play.step()
            time.sleep(0.001)
    if stop.way in SIGNALS:
        child.send(SIGNALS[stop.way])
    else:
        path = play.run.own_directory(stop.role) / "STOP" if stop.way == OWN_FILE else job_file(play.run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    play.watch_until(lambda: child.poll() is not None or play.step(), f"the {stop.role} did not stop")
    if child.code == 0 or (stop.role == GENERATOR and child.code in AT_START):
        return False
    if child.code != SAVED:
        raise Miss(f"the {stop.role} ended with {child.code}, expected {SAVED}: {play.last_error(stop.role)}")
    check_stopped(play, stop)
    return True


def is_at_work(play: Play, child: Child) -> bool:
    """Whether the generator has begun its first refresh, or ended."""
    log = play.run.out(GENERATOR)
    return child.poll() is not None or (log.exists() and "refresh 0: from" in log.read_text())


def check_stopped(play: Play, stop: Stop) -> None:
    """The state of the last step is there, the files that asked are gone, and one line says what happened."""
    run = play.run
    if stop.role != GENERATOR:
        steps = steps_logged(run, stop.role)
        saved = run.own_directory(stop.role) / f"checkpoint-{steps[-1]}"
        if not saved.is_dir():
            raise Miss(f"stopped after step {steps[-1]}, but {saved.name} is not there")
    if (run.own_directory(stop.role) / "STOP").exists():
        raise Miss("STOP is still there: the next job would stop at once")
    if stop.way == JOB_FILE and (job_file(run).exists() or not Path(f"{job_file(run)}.taken").exists()):
        raise Miss("the stop file was not renamed to .taken")
    errors = run.err(stop.role).read_text().splitlines()
    if len(errors) != 1:
        raise Miss(f"{len(errors)} lines on stderr, expected one: {errors[:3]}")


def check_refreshes(run: Run, roles: tuple[str, ...]) -> None:
    """No refresh was made twice."""
    if GENERATOR not in roles:
        return
    published = re.findall(r"^refresh (\d+): published", run.out(GENERATOR).read_text(), re.MULTILINE)
    if published != [str(number) for number in range(REFRESHES)]:
        raise Miss(f"the generator published the refreshes {published}, expected 0 to {REFRESHES - 1} once each")


def run(lab: Lab, count: int, rng: random.Random) -> list[Outcome]:
    cases = []
    for number in range(count):
        step, seconds = rng.randint(1, STEPS - 1), rng.uniform(0, lab.seconds[GENERATOR])
        cases.append(Stop(rng.choice(ROLES), WAYS[number % len(WAYS)], step, seconds))
    return lab.each(cases, inject)
