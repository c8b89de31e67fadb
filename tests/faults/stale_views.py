"""Trainers and generators of several hosts, killed, paused and doubled, over directories seen up to 60 s late.

The jobs here are the loops of the drivers without the work: they hold roles, publish, look, wait and read through
utils.exchange as it is. Time is simulated, one job runs at a time, and another's turn may come before every change of a
file. What a job publishes names the job, so that two of them never have the same bytes; on a real cluster the rounding
of a GPU may do that.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from drivers.generate.encode_corpus import RefreshRequest
from drivers.generate.next_checkpoint import RequestSettings, find_request
from drivers.job.run_config import join_run
from drivers.job.session import Session
from drivers.train.journal import TrainingHistory
from drivers.train.refresh_schedule import ScheduleSettings, newest_number
from drivers.train.trainer import start_point
from tests.faults.runs import Lab, Miss, Outcome
from tests.faults.stale_files import Files, Host, content_of, installed
from utils.distributed.world import World
from utils.errors import Fenced, PeerGone, Stopped, UserError
from utils.exchange import peers, wait
from utils.exchange.checkpoints import publish_checkpoint
from utils.exchange.layout import DONE, JobLayout
from utils.exchange.lease import acquire
from utils.exchange.lease.held import Lease
from utils.exchange.lease.record import DEFAULT_TIMEOUTS, LeaseTimeouts
from utils.exchange.markers import mark_done, read_done, working
from utils.exchange.negatives import publish_negatives, read_visible_refresh
from utils.exchange.retention import remove_old_checkpoints
from utils.exchange.stop import Stop, StopRequested

HOSTS = 3
WINDOWS, WINDOW = 3, 10
HEARTBEAT_SECONDS, LEASE_SECONDS = DEFAULT_TIMEOUTS.heartbeat_seconds, DEFAULT_TIMEOUTS.lease_seconds
WORK_SECONDS = 40.0  # of a window or a refresh
LONGEST_SECONDS = 20_000.0
TURN_SHARE, TURN_SECONDS = 0.2, 4.0  # how often another's turn comes within an operation, and for how long at most
TRAINER, GENERATOR = "trainer", "generator"
ROLES = (TRAINER, GENERATOR)
REFUSED = "works in"
MEMORY = Path("/dev/shm")


class Killed(BaseException):
    """SIGKILL: nothing of the job's own cleaning up reaches the disk any more."""


@dataclass(frozen=True)
class Fault:
    """What befalls a role's job before its ``at``-th change of a file: it is killed, stopped, or paused so long.

    A paused job gets a rival some time after; a killed or stopped one is started again, on any host.
    """

    role: str
    at: int
    pause_seconds: float
    kind: str


FAULTS = st.builds(
    Fault,
    role=st.sampled_from((TRAINER, GENERATOR)),
    at=st.integers(1, 60),
    pause_seconds=st.floats(100, 600),
    kind=st.sampled_from(("killed", "stopped", "paused", "paused")),
)


@dataclass
class Actor:
    """A thread that runs when its turn has come; of a job, the work or the heartbeat."""

    job: Job
    wake: float
    is_heart: bool = False
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: bool = False


@dataclass
class Job:
    """A process on a host. ``epoch`` is of its lease, 0 before it has one."""

    name: str
    role: str
    host: Host
    epoch: int = 0
    is_dead: bool = False
    is_over: bool = False
    is_asked_to_stop: bool = False
    paused_until: float = 0.0


class Simulation:
    """The clock, whose turn it is, and what has been published."""

    def __init__(self, root: Path, faults: list[Fault], number: int) -> None:
        self.rng = random.Random(number)
        self.training, self.ann = root / "checkpoints", root / "ann_data"
        self.now = 0.0
        self.hosts = [Host(f"host{number}") for number in range(HOSTS)]
        self.faults = {role: sorted((f for f in faults if f.role == role), key=lambda f: f.at) for role in ROLES}
        self.changes = dict.fromkeys(ROLES, 0)
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.back = threading.Semaphore(0)
        self.published: dict[str, bytes] = {}
        self.begun: dict[str, set[int]] = {role: set() for role in ROLES}  # epochs whose holders work, or have
        self.struck = dict.fromkeys(ROLES, False)
        self.delays: list[str] = []
        self.problem = ""
        self.jobs = 0
        self.files = Files(
            str(root), self.rng, self.clock, self.host, self.before_change, self.after_change, self.hosts
        )

    def clock(self) -> float:
        return self.now

    def host(self) -> Host | None:
        return self.current.job.host if self.current else None

    # Turns

    def start(self, role: str, delay_seconds: float) -> None:
        self.jobs += 1
        job = Job(f"{role}-job-{self.jobs}", role, self.rng.choice(self.hosts))
        self.act(job, delay_seconds, functools.partial(work, self, job))

    def act(self, job: Job, delay_seconds: float, run: Callable[[], None], is_heart: bool = False) -> None:
        actor = Actor(job, self.now + delay_seconds, is_heart)

        def whole() -> None:
            actor.turn.acquire()
            try:
                self.check_alive(job)
                run()
            except Killed:
                pass
            except BaseException as error:
                self.problem = self.problem or f"{job.name}: {type(error).__name__}: {error}"
            actor.done = True
            self.back.release()

        self.actors.append(actor)
        threading.Thread(target=whole, daemon=True).start()

    def check_alive(self, job: Job) -> None:
        if job.is_dead:
            raise Killed

    def sleep(self, seconds: float) -> None:
        """Another's turn, until so much time has passed."""
        actor = self.current
        assert actor is not None
        actor.wake = self.now + seconds
        self.back.release()
        actor.turn.acquire()
        self.check_alive(actor.job)

    def run(self) -> None:
        """Give turns until every job has ended; ``problem`` says what went wrong."""
        for role in ROLES:
            self.start(role, self.rng.uniform(0, 30))
        while not self.problem:
            waiting_actors = [actor for actor in self.actors if not actor.done]
            if not waiting_actors:
                break
            self.current = min(waiting_actors, key=lambda each: max(each.wake, each.job.paused_until))
            self.now = max(self.now, self.current.wake, self.current.job.paused_until)
            if self.now > LONGEST_SECONDS:
                self.problem = f"hangs: {self.current.job.name} still works after {LONGEST_SECONDS:.0f} s"
                break
            self.current.turn.release()
            self.back.acquire()
        self.end()

    def end(self) -> None:
        """No thread is left behind, whatever happened."""
        for actor in self.actors:
            actor.job.is_dead = True
        for actor in self.actors:
            if not actor.done:
                self.current = actor
                actor.turn.release()
                self.back.acquire()
        self.current = None

    # Faults and checks, at every change of a file

    def before_change(self) -> None:
        assert self.current is not None
        job = self.current.job
        self.check_alive(job)
        if self.current.is_heart:  # it holds a lock that the work may wait for
            return
        self.changes[job.role] += 1
        due = self.faults[job.role]
        if due and self.changes[job.role] >= due[0].at:
            self.strike(job, due.pop(0))
        if self.rng.random() < TURN_SHARE:
            self.sleep(self.rng.uniform(0, TURN_SECONDS))

    def strike(self, job: Job, fault: Fault) -> None:
        self.struck[job.role] = True
        if fault.kind == "stopped":
            job.is_asked_to_stop = True
            return
        self.start(job.role, self.rng.uniform(0, 300))
        if fault.kind == "killed":
            job.is_dead = True
            raise Killed
        job.paused_until = self.now + fault.pause_seconds
        self.sleep(0)

    def begin(self, job: Job, epoch: int) -> None:
        """The job has the role; Miss where another has had the same epoch. One that is late has an old epoch."""
        if epoch in self.begun[job.role]:
            raise Miss(f"it has epoch {epoch}, which another job has had")
        self.begun[job.role].add(epoch)
        job.epoch = epoch

    def after_change(self, kind: str, path: str) -> None:
        """Published names get their bytes once and for all, from the owner of the role's newest epoch."""
        assert self.current is not None
        job, target = self.current.job, Path(path)
        is_version = target.name.startswith("checkpoint-") or target.name.startswith("ann_ndcg_")
        if kind not in ("rename", "replace", "link") or ".staging" in target.parts or not is_version:
            return
        if target.parent not in (self.training, self.ann):
            return
        newest = max(self.begun[job.role], default=0)
        if job.epoch < newest:
            self.problem = f"{job.name} of epoch {job.epoch} published {target.name} after epoch {newest} had begun"
        paths = [target] if target.is_dir() else [target, JobLayout(self.ann).negatives(number_of(target))]
        for each in paths:
            content = content_of(each)
            if self.published.setdefault(each.name, content) != content:
                self.problem = f"{each.name} was published again by {job.name}, with other bytes"

    def requests(self) -> RequestSettings:
        """What a generator is asked for, in lockstep."""
        model = self.training.parent / "model"
        return RequestSettings(self.ann, self.training, model, True, WINDOW, refresh_lag=0, most_refreshes=10**6)

    def schedule(self) -> ScheduleSettings:
        """Which negatives a trainer waits for."""
        return ScheduleSettings(self.ann, True, WINDOW, refresh_lag=0, max_steps=WINDOWS * WINDOW, looks_every=WINDOW)

    def expect(self, path: Path) -> None:
        """Miss where a reader was given what was never published, or not as it was."""
        if self.published.get(path.name) != content_of(path):
            raise Miss(f"{path.name} was read, but is not what was published")


def number_of(path: Path) -> int:
    return int(path.name.rpartition("_")[2])


# The jobs


class Asked(Stop):
    """A program's stop, asked by a fault in place of a signal or a file."""

    def __init__(self, sim: Simulation, job: Job) -> None:
        super().__init__(sim.training if job.role == TRAINER else sim.ann, sim.clock)
        self.job = job

    def requested(self) -> str:
        return "a fault" if self.job.is_asked_to_stop else ""

    def taken(self) -> None:
        self.job.is_asked_to_stop = False


def work(sim: Simulation, job: Job) -> None:
    """One job from its start to its end; what its exit code means for who starts it again."""
    directory = sim.training if job.role == TRAINER else sim.ann
    again = None
    try:
        with working(directory, job.role, LeaseTimeouts(10**9, LEASE_SECONDS), job.name) as held:
            sim.begin(job, held.holder.epoch)
            sim.act(job, HEARTBEAT_SECONDS, functools.partial(keep_beating, sim, job, held), is_heart=True)
            session = Session(World(0, 1, torch.device("cpu")), Asked(sim, job), held)
            try:
                (train if job.role == TRAINER else generate)(sim, job, session)
            except StopRequested:
                raise session.stopped("between two steps") from None
            finally:
                job.is_over = True
    except Fenced:
        pass
    except Stopped:
        again = sim.rng.uniform(0, 30)
    except PeerGone as error:
        # Its peer was silent for too long, or has ended because this job was.
        if not any(sim.struck.values()):
            raise
        sim.delays.append(str(error))
        again = sim.rng.uniform(0, 60)
    except UserError as error:
        if REFUSED not in str(error):
            raise
    if again is not None:
        sim.start(job.role, again)


def keep_beating(sim: Simulation, job: Job, held: Lease) -> None:
    while not job.is_over and not held.lost:
        held.beat()
        sim.sleep(HEARTBEAT_SECONDS)


def train(sim: Simulation, job: Job, session: Session) -> None:
    """drivers.train.ann in lockstep: wait for the window's negatives, train, publish, and remove old checkpoints."""
    assert session.lease is not None
    join_run(session, sim.training, job.name, {"max_steps": WINDOWS * WINDOW}, "")
    peer = peers.watch_peer(sim.ann, GENERATOR, LEASE_SECONDS, clock=sim.clock)
    start = start_point(session, sim.training)
    if start is not None:
        sim.expect(start.path)
    step = start.step if start else 0
    while step < WINDOWS * WINDOW:
        number = step // WINDOW
        look = functools.partial(newest_number, sim.schedule(), TrainingHistory({}), -1, number)
        wait.wait_for(lambda: session.decide_on_process0(look, peer), "negatives", sim.sleep, sim.clock)  # noqa: B023
        refresh = read_visible_refresh(sim.ann, number)
        sim.expect(refresh.path)
        session.check_stop()
        sim.sleep(sim.rng.uniform(0, WORK_SECONDS))
        step += WINDOW
        with publish_checkpoint(session.lease, step, {"final": step == WINDOWS * WINDOW}) as staging:
            (staging / "model.safetensors").write_text(f"step {step} by {job.name}")
            (staging / "scheduler.pt").touch()
        remove_old_checkpoints(session.lease, sim.ann, keep_unused=True)
    if read_done(sim.training) is None:
        mark_done(session.lease, step=step)


def generate(sim: Simulation, job: Job, session: Session) -> None:
    """drivers.generate.next_checkpoint: what to make next, of which checkpoint, until the trainer is done."""
    assert session.lease is not None
    join_run(session, sim.ann, job.name, {}, "")
    peer = peers.watch_peer(sim.training, TRAINER, LEASE_SECONDS, clock=sim.clock)
    while True:
        look = functools.partial(find_request, sim.requests(), None, {})
        answer = wait.wait_for(lambda: session.decide_on_process0(look, peer), "work", sim.sleep, sim.clock)  # noqa: B023
        if "done" in answer:
            return
        made = RefreshRequest(**answer["request"])
        if made.refresh:
            sim.expect(Path(made.checkpoint))
        sim.sleep(sim.rng.uniform(0, WORK_SECONDS))
        session.check_stop()
        text = f"refresh {made.refresh} by {job.name}"
        record = {"ndcg": 0.5, "step": made.step, "model_sha256": made.model_sha256, "checkpoint": made.checkpoint}
        publish_negatives(session.lease, made.refresh, lambda path: path.write_text(text) and None, record)  # noqa: B023


# Runs


@contextlib.contextmanager
def simulated(sim: Simulation) -> Iterator[None]:
    """The product's waiting and leases on the simulation's clock, over its files."""
    real_acquire, real_wait_for = acquire.acquire, wait.wait_for

    def acquire_simulated(
        directory: Path, role: str, life: LeaseTimeouts, run_id: str, lock: int | None, _clock: Any
    ) -> Lease:
        return real_acquire(directory, role, life, run_id, lock, sim.clock, sim.sleep)

    def wait_for(look: Any, what: str, *_clock: Any, **more: Any) -> Any:
        return real_wait_for(look, what, sim.sleep, sim.clock, **more)

    def boot_id() -> str:
        host = sim.host()
        return host.name if host else ""

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(acquire, "acquire", acquire_simulated))
        stack.enter_context(mock.patch.object(acquire, "boot_id", boot_id))
        stack.enter_context(mock.patch("drivers.job.run_config.git_state", dict))  # processes take real time
        for module in ("wait", "checkpoints", "negatives"):
            stack.enter_context(mock.patch(f"utils.exchange.{module}.wait_for", wait_for))
        stack.enter_context(installed(sim.files))
        yield


def simulate(faults: list[Fault], number: int) -> Simulation:
    """One run to its end. Miss where something went wrong."""
    with tempfile.TemporaryDirectory(prefix="views-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        root = Path(name) / "run"
        for part in ("checkpoints", "ann_data", "model"):
            (root / part).mkdir(parents=True)
        (root / "model" / "model.safetensors").write_text("initial")
        sim = Simulation(root, faults, number)
        with simulated(sim), contextlib.redirect_stdout(io.StringIO()):
            sim.run()
        if not sim.problem and not (sim.training / DONE).exists():
            sim.problem = "all jobs have ended, but the run is not done"
        if sim.problem:
            raise Miss(f"{sim.problem} ({faults}, number {number})")
        return sim


def run(_lab: Lab | None, count: int, rng: random.Random) -> list[Outcome]:
    """``count`` runs that hypothesis thinks of; it makes the faults of a miss as few as it can."""
    outcomes: list[Outcome] = []

    @seed(rng.randrange(2**32))
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(FAULTS, max_size=4), st.integers(0, 2**32))
    def survives(faults: list[Fault], number: int) -> None:
        outcomes.append(Outcome(f"{len(faults)} faults"))
        simulate(faults, number)

    try:
        survives()
    except Miss as miss:
        return [*outcomes[: count - 1], Outcome("stale views", str(miss))]
    return outcomes
