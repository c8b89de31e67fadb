"""Taking a role in a directory, and keeping everybody else from publishing in it.

A role (trainer, generator, warmup) in a directory belongs to the lease of the highest epoch,
``.leases/ROLE-E.json``. Epochs are taken with link(2), which only one job can win. The holder stages everything
it publishes under the staging directory its lease names. Who takes over makes its own epoch first and moves that
directory away next, and only then looks at what has been published: from then on every rename and link of the old
holder fails, however long it was paused and wherever it continues.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from utils.errors import Stopped, UserError, one_line
from utils.exchange import atomic
from utils.exchange.layout import JobLayout
from utils.exchange.lease.held import Lease, beating
from utils.exchange.lease.record import ENDED, FAILED_STATE, STOPPED, LeaseRecord, LeaseTimeouts, parse_beat
from utils.exchange.lease.watch import Watch
from utils.exchange.wait import log_once

LOOK_SECONDS = 0.1
SWEEPS = 100
KEEP_BEATS = 2


def boot_id() -> str:
    """Names this run of this kernel: a process of another boot is not seen from here."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def acquire(
    directory: Path,
    role: str,
    timeouts: LeaseTimeouts,
    run_id: str,
    lock: int | None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Take the role, over from a dead holder where there is one; then nobody else's staging is left.

    Args:
        directory: the job's.
        role: trainer, generator, …: one lease of a directory for each.
        timeouts: of the new lease; also when the holder before counts as dead, where its own cannot be read.
        run_id: this job's.
        lock: the descriptor of the role's flock, where this process has it.
        clock, sleep: seconds of this host alone.

    Raises:
        UserError: the holder lives.
    """
    JobLayout(directory).leases.mkdir(parents=True, exist_ok=True)
    watch = Watch(directory, role, timeouts.lease_seconds, clock)
    while (lease := take_if_free(watch, timeouts, run_id, lock)) is None:
        sleep(LOOK_SECONDS)
    lease.previous = parse_beat(watch.text)
    try:
        fence_others(directory, role, lease)
    except BaseException:
        shutil.rmtree(lease.staging, ignore_errors=True)
        raise
    lease.beat()
    return lease


def take_if_free(watch: Watch, timeouts: LeaseTimeouts, run_id: str, lock: int | None) -> Lease | None:
    """One look at the holder: the next epoch where it has ended or is dead, None where that is not known yet.

    Args:
        watch: of the role's holder.
        timeouts: of the new lease.
        run_id: this job's.
        lock: the descriptor of the role's flock, where this process has it.

    Raises:
        UserError: the holder lives.
    """
    directory, role, state = watch.directory, watch.role, watch.look()
    has_ended = state in ("", ENDED, STOPPED, FAILED_STATE)
    if has_ended or watch.is_silent or holder_died_on_this_host(watch.holder, lock):
        return try_epoch(directory, role, watch.epoch + 1, timeouts, run_id, lock is not None)
    if watch.changes > 1:  # the first may be an attribute cache that let go of what the dead one said last
        raise UserError(
            f"another {role} works in {directory} ({watch.holder}); wait for it, "
            "or give this one a directory of its own"
        )
    log_once(f"{directory} has a {role} ({watch.holder}): looking whether it lives")
    return None


def holder_died_on_this_host(holder: LeaseRecord | None, lock: int | None) -> bool:
    """Its kernel is this one and gave us the lock that it held."""
    return holder is not None and holder.locked and lock is not None and holder.boot_id == boot_id()


def try_epoch(
    directory: Path, role: str, epoch: int, timeouts: LeaseTimeouts, run_id: str, locked: bool
) -> Lease | None:
    """The lease of ``epoch``, or None where another job was quicker.

    The staging directory is there before the lease: whoever comes after us finds it and can move it away.

    Args:
        directory: the job's.
        role: trainer, generator, …
        epoch: the lease's number, from 1.
        timeouts: of the new lease.
        run_id: this job's.
        locked: this process has the role's flock.
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
        heartbeat_seconds=timeouts.heartbeat_seconds,
        lease_seconds=timeouts.lease_seconds,
        locked=locked,
        staging=staging.name,
        time=round(time.time(), 3),
    )
    try:
        is_ours = publish_lease(directory, holder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if not is_ours:
        shutil.rmtree(staging, ignore_errors=True)
        return None
    return Lease(directory, holder)


def publish_lease(directory: Path, holder: LeaseRecord) -> bool:
    """Link the record where everybody looks; False where another job was quicker."""
    path = JobLayout(directory).lease(holder.role, holder.epoch)
    staged = JobLayout(directory).staging / holder.staging / "lease"
    try:
        staged.write_text(atomic.dump_with_checksum(asdict(holder)), encoding="utf-8")
        atomic.sync(staged)
        os.link(staged, path)
    except (FileExistsError, FileNotFoundError):  # taken; or swept away by the one that took it
        if not atomic.is_same_file(staged, path):
            return False
    atomic.sync(JobLayout(directory).leases)
    staged.unlink(missing_ok=True)
    return True


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
    directory: Path, role: str, timeouts: LeaseTimeouts, run_id: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[Lease]:
    """Be the one ``role`` of ``directory`` for the block, giving signs of life, and leave a last word.

    The block ends "ended", "stopped" (`Stopped`, a signal) or "failed" (any other exception, whose text is told).

    Args: those of `acquire`.

    Raises:
        UserError: a living job has the role.
        Fenced: another took it over and this one had not noticed yet.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with flock_if_free(JobLayout(directory).role_lock(role)) as lock:
        lease = acquire(directory, role, timeouts, run_id, lock, clock)
        state, error_text = FAILED_STATE, ""
        try:
            with beating(lease):
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
            lease.beat(state, error=error_text)
            shutil.rmtree(lease.staging, ignore_errors=True)
            with contextlib.suppress(OSError):
                JobLayout(directory).staging.rmdir()
        if lease.lost:  # noticed only by the last word
            raise lease.fenced()
