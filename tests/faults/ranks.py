"""A rank killed or frozen: the job of two gloo ranks ends non-zero within the collective timeout and a minute."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.fork_server import ENVIRONMENT, ForkServer
from tests.faults.programs import GENERATOR, ROLES, TRAINER, Run, words_of
from tests.faults.runs import PAIR, Lab, Miss, Outcome, Play, steps_logged
from tests.faults.stacks import processes_in

COLLECTIVE_SECONDS, MINUTE = 5, 60
START_SECONDS = 120.0
RANKS = 2
MANY_STEPS = 100_000  # it never ends by itself


@dataclass(frozen=True)
class Loss:
    role: str
    rank: int
    signal: signal.Signals
    seconds: float

    def __str__(self) -> str:
        return f"{self.signal.name} of rank {self.rank} of the {self.role}"


def launch(lab: Lab, run: Run, role: str) -> subprocess.Popen[bytes]:
    words = [
        *words_of(role, lab.inputs, run),
        *("--collective_timeout_seconds", str(COLLECTIVE_SECONDS)),
        *(("--max_steps", str(MANY_STEPS)) if role != GENERATOR else ()),
        *(("--save_steps", "1000") if role != GENERATOR else ()),
    ]
    command = [sys.executable, "-m", "utils.launch", "--processes", str(RANKS), *words]
    with run.out(role).open("ab") as out, run.err(role).open("ab") as err:
        return subprocess.Popen(
            command, cwd=lab.repo, env={**os.environ, **ENVIRONMENT}, stdout=out, stderr=err, start_new_session=True
        )


def worker_of(run: Run, rank: int) -> int | None:
    """The process of a rank that works in the run's directory."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            environment = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment and any(
            word.startswith(bytes(run.directory) + b"/") for word in words
        ):
            return int(directory.name)
    return None


def is_at_work(run: Run, role: str) -> bool:
    """Whether all processes are in their loop: after a step, or while the generator waits for a checkpoint."""
    if role == GENERATOR:
        return "refresh 0: published" in (run.out(role).read_text() if run.out(role).exists() else "")
    return bool(steps_logged(run, role))


def inject(lab: Lab, server: ForkServer, loss: Loss) -> None:
    run = lab.new_run()
    play = Play(lab, server, run, PAIR, limit_seconds=START_SECONDS + COLLECTIVE_SECONDS + MINUTE)
    job = launch(lab, run, loss.role)
    try:
        if loss.role == TRAINER:
            play.start(GENERATOR)
        ended = lambda: job.poll() is not None  # noqa: E731
        play.watch_until(lambda: is_at_work(run, loss.role) or ended(), "it did not begin to work")
        due = time.monotonic() + loss.seconds
        play.watch_until(lambda: time.monotonic() > due, "the instant did not come")
        pid = worker_of(run, loss.rank)
        if ended() or pid is None:
            raise Miss(f"never injected: the job ended with {job.poll()}: {play.last_error(loss.role)}")
        os.kill(pid, loss.signal)
        struck = time.monotonic()
        while not ended() and time.monotonic() < struck + COLLECTIVE_SECONDS + MINUTE:
            time.sleep(0.1)
        code, seconds = job.poll(), time.monotonic() - struck
        if code is None:
            play.end_with_stacks()
        check_end(run, code, seconds)
    finally:
        play.stop_all()
        for pid in processes_in(run.directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.wait()
    play.discard()


def check_end(run: Run, code: int | None, seconds: float) -> None:
    if code is None:
        raise Miss(f"the job still runs after {seconds:.0f} s; stacks and logs are in {run.directory}")
    if code == 0:
        raise Miss("the job ended with 0")
    if left := processes_in(run.directory):
        raise Miss(f"{len(left)} of its processes still run")


def run(lab: Lab, count: int, rng: random.Random) -> list[Outcome]:
    signals = (signal.SIGKILL, signal.SIGSTOP)
    every = [(role, rank, number) for number in signals for rank in range(RANKS) for role in ROLES]
    rng.shuffle(every)
    cases = [Loss(*every[number % len(every)], rng.uniform(0, 1)) for number in range(count)]
    return lab.each(cases, inject)
