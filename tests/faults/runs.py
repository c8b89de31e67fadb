"""Carrying runs through faults: starting, watching and restarting their programs, and holding the end against a run
that nothing disturbed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.faults.fork_server import REPO, Child, ForkServer, Request
from tests.faults.programs import (
    GENERATOR,
    REFRESHES,
    STEPS,
    TRAINER,
    WARMUP,
    Inputs,
    Run,
    make_inputs,
    words_of,
)
from tests.faults.stacks import end_with_stacks, processes_in
from tests.faults.victim import Plan

LIMIT_SECONDS = 90.0  # of one run with everything that is done to it; an undisturbed one takes two
LOOK_SECONDS = 0.02
STACKS_SECONDS = 10.0  # to write them
ATTEMPTS = 3  # a program that finds its peer silent, on a loaded machine, ends before its instant
RESTARTS = 8
RESTARTED = (4, 75, -signal.SIGKILL)  # the peer is gone, stopped, killed
# The tempo of a small run: polls that a run of days makes every ten seconds.
TEMPO = {
    "utils.exchange.wait.FIRST_POLL_SECONDS": 0.02,
    "utils.exchange.wait.LONGEST_POLL_SECONDS": 0.2,
    "utils.exchange.stop.LOOK_EVERY_SECONDS": 0.02,
}
PAIR = (TRAINER, GENERATOR)
Case = TypeVar("Case")


class Miss(Exception):
    """A fault that was not survived, in one line."""


class NeverInjected(Miss):
    """The program had ended before its instant came: nothing is known about the fault."""


@dataclass(frozen=True)
class Outcome:
    """One injected fault; ``problem`` is empty where it was survived."""

    fault: str
    problem: str = ""


# Watching what is published


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Published:
    """Looks at a run's published names again and again. Miss where bytes of a name change, or a version is torn.

    ``seen`` is every published name and the sha256 of its files; what retention removes stays in it.
    """

    run: Run
    seen: dict[str, str] = field(default_factory=dict)
    known: dict[Path, tuple[tuple[int, ...], str]] = field(default_factory=dict)

    def look(self) -> None:
        for directory in (self.run.checkpoints, self.run.warmup):
            for path in directory.glob("checkpoint-*"):
                self.keep(path, self.checkpoint)
        for record in self.run.ann_data.glob("ann_ndcg_*"):
            self.keep(record, self.refresh)
        for directory in (self.run.checkpoints, self.run.ann_data, self.run.warmup):
            for path in (*directory.glob("*.json"), *directory.glob(".leases/*.json")):
                if path.name != "FAILED.json":  # which the next job takes back
                    self.keep(path, self.digest)
        for path in (*self.run.ann_data.glob("embeddings/*/*.npy"), *self.run.ann_data.glob("embeddings/*/*.json")):
            self.keep(path, self.digest)

    def keep(self, path: Path, read: Callable[[Path], str]) -> None:
        name = str(path.relative_to(self.run.directory))
        try:
            digest = read(path)
        except (OSError, Miss, ValueError, KeyError) as error:
            if not path.exists():  # retention took it away meanwhile
                return
            raise Miss(f"{name} is torn: {error}") from None
        if self.seen.setdefault(name, digest) != digest:
            raise Miss(f"{name} has changed after it was published")

    def digest(self, path: Path) -> str:
        """sha256 of a file, read again where its inode, size or time has changed."""
        found = path.stat()
        state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if self.known.get(path, ((), ""))[0] != state:
            self.known[path] = (state, sha256_of(path))
        return self.known[path][1]

    def checkpoint(self, path: Path) -> str:
        """One digest of everything in it; Miss where a file is not as its manifest says."""
        manifest = json.loads((path / "MANIFEST.json").read_text())
        for name, entry in manifest["files"].items():
            if self.digest(path / name) != entry["sha256"]:
                raise Miss(f"{name} is not what MANIFEST.json says")
        files = sorted(file for file in path.rglob("*") if file.is_file())
        if {str(file.relative_to(path)) for file in files} - {"MANIFEST.json"} != set(manifest["files"]):
            raise Miss("it holds other files than MANIFEST.json says")
        return "".join(self.digest(file) for file in files)

    def refresh(self, record: Path) -> str:
        data = record.with_name(record.name.replace("ann_ndcg_", "ann_training_data_"))
        digest = self.digest(data)
        if digest != json.loads(record.read_text())["sha256"]:
            raise Miss(f"{data.name} is not what its record says")
        return digest + self.digest(record)


def steps_logged(run: Run, role: str = TRAINER) -> list[int]:
    """The steps of the JSON lines of an ``.out``, in its order; every step is logged."""
    path = run.out(role)
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.startswith('{"learning_rate"') and line.endswith("}")]


def results_of(run: Run, roles: Iterable[str]) -> dict[str, str]:
    """sha256 of what a run is for: the final weights, and every refresh's negatives."""
    found = {}
    for role in {TRAINER, WARMUP} & set(roles):
        path = run.own_directory(role) / f"checkpoint-{STEPS}" / "model.safetensors"
        found[f"{role} weights"] = sha256_of(path) if path.exists() else "missing"
    if GENERATOR in roles:
        for number in range(REFRESHES):
            path = run.ann_data / f"ann_training_data_{number}"
            found[f"negatives {number}"] = sha256_of(path) if path.exists() else "missing"
    return found


# Running


@dataclass
class Lab:
    """The place of all runs. ``reference`` is the results of runs that nothing disturbed, by the roles in them."""

    directory: Path
    inputs: Inputs
    repo: Path
    servers: queue.SimpleQueue[ForkServer]
    workers: int
    reference: dict[str, str] = field(default_factory=dict)
    finished: Run | None = None  # the undisturbed run
    seconds: dict[str, float] = field(default_factory=dict)  # how long a role worked in it
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))
    mutant: str = ""  # which the programs are

    def new_run(self) -> Run:
        """The parent of both directories is there: which program would make it is a matter of time, and so would be
        how many operations each of them does."""
        run = Run(self.directory / f"run-{next(self.numbers)}")
        run.checkpoints.parent.mkdir(parents=True)
        return run

    def each(self, cases: Iterable[Case], inject: Callable[[Lab, ForkServer, Case], None]) -> list[Outcome]:
        """``inject`` every case, as many at a time as there are fork servers; a case's words are its name."""
        waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
        outcomes: list[Outcome] = []
        for case in cases:
            waiting.put(case)

        def work() -> None:
            server = self.servers.get()
            try:
                while True:
                    try:
                        case = waiting.get_nowait()
                    except queue.Empty:
                        return
                    outcomes.append(outcome_of(case, lambda: inject(self, server, case)))  # noqa: B023
            finally:
                self.servers.put(server)

        threads = [threading.Thread(target=work) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes


def outcome_of(case: object, inject: Callable[[], None]) -> Outcome:
    try:
        inject()
    except Miss as miss:
        return Outcome(str(case), str(miss))
    except Exception as error:  # a fault of the harness is no survival
        return Outcome(str(case), f"{type(error).__name__}: {error}")
    return Outcome(str(case))


@contextlib.contextmanager
def laboratory(directory: Path, repo: Path = REPO, workers: int = 2) -> Iterator[Lab]:
    """Inputs, fork servers, and the undisturbed runs of all three programs, which must agree with each other."""
    servers: queue.SimpleQueue[ForkServer] = queue.SimpleQueue()
    made = [ForkServer(repo) for _ in range(workers)]
    for server in made:
        servers.put(server)
    try:
        lab = Lab(directory, make_inputs(directory / "inputs"), repo, servers, workers)
        for server in made:
            server.wait_until_ready()
        undisturbed(lab, made[0])
        yield lab
    finally:
        for server in made:
            server.close()


def undisturbed(lab: Lab, server: ForkServer) -> None:
    """A run that nothing disturbs, with every operation logged in ROLE.log."""
    run = lab.finished = lab.new_run()
    for roles in (PAIR, (WARMUP,)):
        started = time.monotonic()
        play = Play(lab, server, run, roles)
        plans = {role: count_plan(run, role) for role in roles}
        play.to_the_end(plans)
        lab.seconds |= dict.fromkeys(roles, time.monotonic() - started)
        if any(play.restarts.values()):
            raise Miss(f"an undisturbed run restarted {play.restarts}")
        lab.reference |= results_of(run, roles)
    if "missing" in lab.reference.values():
        raise Miss(f"an undisturbed run lacks results: {lab.reference}")


def count_plan(run: Run, role: str, **changes: Any) -> Plan:
    """Counts the operations in the role's own directory and logs them in ROLE.log."""
    return Plan(**{"roots": (str(run.own_directory(role)),), "log": str(run.directory / f"{role}.log"), **changes})


@dataclass
class Play:
    """One run and the programs that work in it now."""

    lab: Lab
    server: ForkServer
    run: Run
    roles: tuple[str, ...] = PAIR
    children: dict[str, Child] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    limit_seconds: float = LIMIT_SECONDS

    def __post_init__(self) -> None:
        self.published = Published(self.run)
        self.deadline = time.monotonic() + self.limit_seconds

    def start(self, role: str, plan: Plan | None = None, more: tuple[str, ...] = (), **changes: Any) -> Child:
        """Start the role's program; ``more`` flags come last, ``changes`` are fields of the `Request`."""
        words = (*words_of(role, self.lab.inputs, self.run), *more)
        out, err = str(self.run.out(role)), str(self.run.err(role))
        request = Request(words, out, err, plan, mutant=self.lab.mutant, **{"settings": TEMPO, **changes})
        child = self.children[role] = self.server.start(request)
        return child

    def stop_all(self) -> None:
        for child in self.children.values():
            child.end()

    def last_error(self, role: str) -> str:
        lines = self.run.err(role).read_text().splitlines() if self.run.err(role).exists() else []
        return lines[-1] if lines else "nothing on stderr"

    def watch_until(self, is_over: Callable[[], bool], what: str) -> None:
        """Look at what is published until ``is_over``; Miss at the deadline."""
        while not is_over():
            self.published.look()
            if time.monotonic() > self.deadline:
                states = self.states()
                self.end_with_stacks()
                limit = f"{self.limit_seconds:.0f} s"
                raise Miss(f"hangs: {what} within {limit} ({states}); stacks and logs are in {self.run.directory}")
            time.sleep(LOOK_SECONDS)
        self.published.look()

    def end_with_stacks(self) -> None:
        """Every program that still runs ends, leaving the stacks of its threads in its ``.err``."""
        running = [child for child in self.children.values() if child.poll() is None]
        pids = [*(child.pid for child in running), *processes_in(self.run.directory)]
        end_with_stacks(pids, self.run.directory / "waits")
        for child in running:
            child.wait(STACKS_SECONDS)

    def states(self) -> str:
        codes = {role: child.poll() for role, child in self.children.items()}
        return ", ".join(f"{role} {'runs' if code is None else f'ended {code}'}" for role, code in codes.items())

    def wait_for(self, role: str) -> int:
        """The exit code of the role's program."""
        child = self.children[role]
        self.watch_until(lambda: child.poll() is not None, f"the {role} did not end")
        assert child.code is not None
        return child.code

    def to_the_end(self, plans: dict[str, Plan] | None = None) -> None:
        """Start what does not run, restart what was killed, stopped or left alone, until every role ends with 0."""
        plans = dict(plans or {})
        try:
            for role in self.roles:
                if role not in self.children:
                    self.start(role, plans.pop(role, None))
            self.watch_until(self.step, f"{' and '.join(self.roles)} did not end")
        finally:
            self.stop_all()

    def step(self) -> bool:
        """Restart who has to be; whether all are done."""
        codes = {role: self.children[role].poll() for role in self.roles}
        for role, code in codes.items():
            if code in (None, 0):
                continue
            if code not in RESTARTED:
                raise Miss(f"the {role} ended with {code}: {self.last_error(role)}")
            self.restarts[role] = self.restarts.get(role, 0) + 1
            if self.restarts[role] > RESTARTS:
                raise Miss(f"the {role} ended with {code} again and again: {self.last_error(role)}")
            self.start(role)
        return all(code == 0 for code in codes.values())

    def check_end(self, repeated: int) -> None:
        """Miss where the results differ from the undisturbed run's, or more steps than allowed were repeated."""
        found = results_of(self.run, self.roles)
        for name, digest in found.items():
            if digest != self.lab.reference[name]:
                raise Miss(f"{name}: {digest[:12]}, undisturbed {self.lab.reference[name][:12]}")
        for role in {TRAINER, WARMUP} & set(self.roles):
            check_steps(self.run, role, repeated)
        for role in self.roles:
            check_clean(self.run, role)

    def discard(self) -> None:
        """A run that went well leaves nothing on the disk."""
        shutil.rmtree(self.run.directory)


def check_steps(run: Run, role: str, repeated: int) -> None:
    steps = steps_logged(run, role)
    if set(steps) != set(range(1, STEPS + 1)):
        raise Miss(f"the {role} logged the steps {sorted(set(steps))}, expected all of 1 to {STEPS}")
    if len(steps) - STEPS > repeated:
        raise Miss(f"the {role} repeated {len(steps) - STEPS} steps, expected at most {repeated}")


def check_clean(run: Run, role: str) -> None:
    """Nothing is left in staging, no log tells of damage or holds a traceback.

    A few bytes of a probe may be left, which a job makes before it has a lease to name its staging.
    """
    staging = run.own_directory(role) / ".staging"
    left = (
        sorted(path.name for path in staging.iterdir() if not path.name.startswith("probe")) if staging.is_dir() else []
    )
    if left:
        raise Miss(f"{staging.relative_to(run.directory)} still holds {', '.join(left)}")
    said = run.out(role).read_text() + run.err(role).read_text()
    for word in ("Traceback", "damaged", "passed over"):
        if word in said:
            line = next(line for line in said.splitlines() if word in line)
            raise Miss(f"the {role} says: {line}")


def injected(inject: Callable[[], None]) -> None:
    """Try again where the program had ended before its instant came; NeverInjected where it has each time."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(NeverInjected):
            return inject()
    return inject()


def pick(rng: random.Random, cases: list[Case], count: int) -> list[Case]:
    """``count`` of the cases, all different; all of them where there are not more."""
    return cases if count >= len(cases) else rng.sample(cases, count)
