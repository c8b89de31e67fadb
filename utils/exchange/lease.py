"""Who works in a directory: leases with fencing, heartbeats, and the watch over the other job.

A role (trainer, generator, warmup) in a directory belongs to the lease of the highest epoch,
``.leases/ROLE-E.json``. Epochs are taken with link(2), which only one job can win. The holder stages everything
it publishes under the staging directory its lease names. Who takes over makes its own epoch first and moves that
directory away next, and only then looks at what has been published: from then on every rename and link of the old
holder fails, however long it was paused and wherever it continues.

Whether a holder lives is judged by its heartbeat file: its text has to change within the lease's life, measured by the
reader's own clock. No file times and no other host's clock count.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import Fenced, Stopped, UserError, one_line
from utils.exchange import atomic
from utils.exchange.layout import JobLayout
from utils.exchange.wait import log_once
from utils.json_text import json_text

RUNNING, ENDED, STOPPED, FAILED_STATE = "running", "ended", "stopped", "failed"
LOOK_SECONDS = 0.1
SWEEPS = 100
KEEP_BEATS = 2


@dataclass(frozen=True)
class LeaseTimeouts:
    """How often a holder gives a sign of life, and after what silence it counts as dead."""

    heartbeat_seconds: float
    lease_seconds: float


@dataclass(frozen=True)
class LeaseRecord:
    """A lease as it is published. ``locked``: its holder has the flock, which its kernel gives back when it dies."""

    role: str
    epoch: int
    host: str
    boot_id: str
    pid: int
    run_id: str
    job: str
    heartbeat_seconds: float
    lease_seconds: float
    locked: bool
    staging: str
    time: float

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}" + (f", job {self.job}" if self.job else "")


def boot_id() -> str:
    """Names this run of this kernel: a process of another boot is not seen from here."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def newest_epoch(directory: Path, role: str) -> int:
    """0 where nobody ever had the role."""
    pattern = re.compile(rf"{re.escape(role)}-([1-9][0-9]*)\.json")
    matches = (pattern.fullmatch(name) for name in atomic.listing(JobLayout(directory).leases))
    return max((int(match[1]) for match in matches if match), default=0)


def read_holder(directory: Path, role: str, epoch: int) -> LeaseRecord | None:
    """The lease of an epoch; None where it is not there or damaged: then only its heartbeat tells."""
    try:
        return LeaseRecord(**atomic.load_with_checksum(JobLayout(directory).lease(role, epoch)))
    except (UserError, OSError, TypeError):
        return None


def read_beat_text(directory: Path, role: str, epoch: int) -> bytes:
    """Empty where there is none yet."""
    try:
        return JobLayout(directory).heartbeat(role, epoch).read_bytes()
    except OSError:
        return b""


def parse_beat(text: bytes) -> dict[str, Any]:
    """A beat that cannot be read says nothing: it still counts as a change."""
    try:
        value = json.loads(text)
    except (ValueError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


# Watching


@dataclass
class Watch:
    """Looks at a role's heartbeat again and again, and knows for how long it has been silent.

    ``changes``: how often the heartbeat has changed, or a new epoch begun, since the first look.
    """

    directory: Path
    role: str
    lease_seconds: float  # where the lease itself cannot be read
    clock: Callable[[], float] = time.monotonic
    epoch: int = -1
    text: bytes = b""
    changed: float = 0.0
    changes: int = 0
    holder: LeaseRecord | None = None

    def look(self) -> str:
        """The state of the newest epoch: '' where there is none."""
        now, epoch = self.clock(), newest_epoch(self.directory, self.role)
        text = read_beat_text(self.directory, self.role, epoch) if epoch else b""
        if (epoch, text) != (self.epoch, self.text):
            self.changes += self.epoch >= 0  # the first look is no change
            if epoch != self.epoch:
                self.holder = read_holder(self.directory, self.role, epoch) if epoch else None
            self.epoch, self.text, self.changed = epoch, text, now
        if not epoch:
            return ""
        return str(parse_beat(text).get("state", RUNNING))

    @property
    def seen_alive(self) -> bool:
        return self.changes > 0

    @property
    def silent_seconds(self) -> float:
        return self.clock() - self.changed

    @property
    def is_silent(self) -> bool:
        """For longer than its lease lives."""
        return self.silent_seconds > (self.holder.lease_seconds if self.holder else self.lease_seconds)


# Holding


@dataclass
class Lease:
    """A role held by this process. ``status`` is what the next heartbeat tells."""

    directory: Path
    holder: LeaseRecord
    count: int = 0
    status: dict[str, Any] = field(default_factory=dict)
    previous: dict[str, Any] = field(default_factory=dict)  # the last heartbeat of the holder before
    lost: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)
    ending: threading.Event = field(default_factory=threading.Event)

    @property
    def staging(self) -> Path:
        return JobLayout(self.directory).staging / self.holder.staging

    def stage(self, directory: Path, name: str) -> contextlib.AbstractContextManager[Path]:
        """A place for a file that is being written: Fenced at the end of the block where another job has the role."""
        return atomic.staging_path(directory, name, self.staging)

    def set_status(self, **values: Any) -> None:
        """What the next heartbeat says of the work: step, refresh, doing, rate, …"""
        self.status = {**self.status, **values}

    def check(self) -> None:
        """Fenced once another job has the role."""
        if self.lost:
            raise self.fenced()

    def fenced(self) -> Fenced:
        return Fenced(
            f"another {self.holder.role} works in {self.directory} now; this one was silent too long and ends"
        )

    def beat(self, state: str = RUNNING, **values: Any) -> None:
        """Publish a sign of life. Errors of the disk pass: the next one may come through."""
        with self.guard:
            self.count += 1
            told = {"epoch": self.holder.epoch, "count": self.count, "state": state, **self.status, **values}
            path = JobLayout(self.directory).heartbeat(self.holder.role, self.holder.epoch)
            staged = self.staging / f"beat-{self.count}"
            try:
                staged.write_text(json_text({**told, "time": round(time.time(), 3)}, default=str) + "\n")
                staged.replace(path)
            except OSError:
                self.lost = self.lost or atomic.is_gone(self.staging)
                with contextlib.suppress(OSError):
                    staged.unlink()

    def keep_beating(self) -> None:
        """The thread's work. Nothing may end it: a job without a heartbeat is taken over while it works."""
        while not self.ending.wait(self.holder.heartbeat_seconds) and not self.lost:
            self.beat()


def acquire(
    directory: Path,
    role: str,
    life: LeaseTimeouts,
    run_id: str,
    lock: int | None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Take the role, over from a dead holder where there is one; then nobody else's staging is left.

    ``lock`` is the descriptor of the role's flock where this process has it. UserError where the holder lives.
    """
    JobLayout(directory).leases.mkdir(parents=True, exist_ok=True)
    watch = Watch(directory, role, life.lease_seconds, clock)
    while True:
        state = watch.look()
        if (
            state in ("", ENDED, STOPPED, FAILED_STATE)
            or watch.is_silent
            or holder_died_on_this_host(watch.holder, lock)
        ):
            lease = try_epoch(directory, role, watch.epoch + 1, life, run_id, lock is not None)
            if lease is not None:
                break
        elif watch.changes > 1:  # the first may be an attribute cache that let go of what the dead one said last
            raise UserError(
                f"another {role} works in {directory} ({watch.holder}); wait for it, "
                "or give this one a directory of its own"
            )
        else:
            log_once(f"{directory} has a {role} ({watch.holder}): looking whether it lives")
        sleep(LOOK_SECONDS)
    lease.previous = parse_beat(watch.text)
    try:
        fence_others(directory, role, lease)
    except BaseException:
        shutil.rmtree(lease.staging, ignore_errors=True)
        raise
    lease.beat()
    return lease


def holder_died_on_this_host(holder: LeaseRecord | None, lock: int | None) -> bool:
    """Its kernel is this one and gave us the lock that it held."""
    return holder is not None and holder.locked and lock is not None and holder.boot_id == boot_id()


def try_epoch(directory: Path, role: str, epoch: int, life: LeaseTimeouts, run_id: str, locked: bool) -> Lease | None:
    """The lease of ``epoch``, or None where another job was quicker.

    The staging directory is there before the lease: whoever comes after us finds it and can move it away.
    """
    staging = atomic.make_own_directory(JobLayout(directory).staging, f"{role}-{epoch}-{secrets.token_hex(4)}")
    holder = LeaseRecord(
        role=role,
        epoch=epoch,
        host=socket.gethostname(),
        boot_id=boot_id(),
        pid=os.getpid(),
        run_id=run_id,
        job=os.environ.get("SLURM_JOB_ID", ""),
        heartbeat_seconds=life.heartbeat_seconds,
        lease_seconds=life.lease_seconds,
        locked=locked,
        staging=staging.name,
        time=round(time.time(), 3),
    )
    staged = staging / "lease"
    try:
        try:
            staged.write_text(atomic.dump_with_checksum(asdict(holder)), encoding="utf-8")
            atomic.sync(staged)
            os.link(staged, JobLayout(directory).lease(role, epoch))
        except (FileExistsError, FileNotFoundError):  # taken; or swept away by the one that took it
            if not atomic.is_same_file(staged, JobLayout(directory).lease(role, epoch)):
                shutil.rmtree(staging, ignore_errors=True)
                return None
        atomic.sync(JobLayout(directory).leases)
        staged.unlink(missing_ok=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Lease(directory, holder)


def fence_others(directory: Path, role: str, lease: Lease) -> None:
    """Move away what earlier holders have staged, name by name (a network file system may still know the directory
    by its old handle), and remove it with their heartbeats. After this nothing of theirs can be published.

    Leases stay: who looked long ago, or into an old listing, must not get an epoch that has been.
    """
    staging = JobLayout(directory).staging
    pattern = re.compile(rf"{re.escape(role)}-([1-9][0-9]*)-[0-9a-f]+")
    for name in atomic.listing(staging):
        match = pattern.fullmatch(name)
        is_left_over = name.startswith(f"gone-{role}-")
        if is_left_over or (match and int(match[1]) <= lease.holder.epoch and name != lease.holder.staging):
            move_away(staging / name, staging / f"gone-{role}-{secrets.token_hex(4)}")
    for epoch in range(lease.holder.epoch - KEEP_BEATS, 0, -1):
        if not atomic.exists(JobLayout(directory).heartbeat(role, epoch)):
            break
        JobLayout(directory).heartbeat(role, epoch).unlink(missing_ok=True)


def move_away(path: Path, gone: Path) -> None:
    """Take away the name, then the names in it, then all there is: again where the old holder still adds to it."""
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
    for _ in range(SWEEPS):
        for token in atomic.listing(gone):
            for inner in atomic.listing(gone / token):
                with contextlib.suppress(OSError):
                    (gone / token / inner).rename(gone / token / "gone")
        shutil.rmtree(gone, ignore_errors=True)
        if not atomic.exists(gone):
            return
    raise UserError(f"{gone}, of an earlier job, cannot be removed: end that job, remove the directory, start again")


@contextlib.contextmanager
def flock_if_free(path: Path) -> Iterator[int | None]:
    """The descriptor of an flock on ``path``; None where another process has it or the file system knows no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            is_held = False
        yield descriptor if is_held else None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def role_held(
    directory: Path, role: str, life: LeaseTimeouts, run_id: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[Lease]:
    """Be the one ``role`` of ``directory`` for the block, giving signs of life, and leave a last word.

    The block ends "ended", "stopped" (`Stopped`, a signal) or "failed" (any other exception, whose text is told).
    UserError where a living job has the role; Fenced where another took it over and this one had not noticed yet.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with flock_if_free(JobLayout(directory).role_lock(role)) as lock:
        lease = acquire(directory, role, life, run_id, lock, clock)
        thread = threading.Thread(target=lease.keep_beating, name=f"heartbeat of the {role}", daemon=True)
        thread.start()
        state, error_text = FAILED_STATE, ""
        try:
            yield lease
            lease.check()
            state = ENDED
        except (Stopped, SystemExit, KeyboardInterrupt):  # asked to: it may be started again
            state = STOPPED
            raise
        except BaseException as error:
            if atomic.is_gone(lease.staging):  # whatever it failed at: what it was writing has been moved away
                lease.lost, state = True, STOPPED
                raise lease.fenced() from None
            error_text = one_line(error) or type(error).__name__
            raise
        finally:
            lease.ending.set()
            thread.join()
            lease.beat(state, error=error_text)
            shutil.rmtree(lease.staging, ignore_errors=True)
            with contextlib.suppress(OSError):
                JobLayout(directory).staging.rmdir()
        if lease.lost:  # noticed only by the last word
            raise lease.fenced()
