"""No space: an error at every write, limits on a file's size, and a small tmpfs. What was published stays valid."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.fork_server import ForkServer
from tests.faults.kills import roles_beside
from tests.faults.programs import ROLES, STEPS
from tests.faults.runs import ATTEMPTS, Lab, Miss, NeverInjected, Outcome, Play, count_plan, injected, pick
from tests.faults.victim import INJECTED, WRITING, read_log

NO_SPACE = 2
# Preflight has to find enough; then a ballast leaves a multiple of the step.
DISK_BYTES, STEP_BYTES, STEPS_OF_SPACE = 8 * 2**20, 24 * 1024, 12
PREFLIGHT_OVER = "preflight: all well"
CONTINUE_EVERY = 4  # of the refused writes, one in so many continues to the end of the run


@dataclass(frozen=True)
class Shortage:
    """ENOSPC ``at`` an operation, or files of at most ``file_bytes``, or a disk that soon has ``free_bytes`` left."""

    role: str
    at: int = 0
    file_bytes: int | None = None
    free_bytes: int | None = None

    def __str__(self) -> str:
        if self.at:
            return f"ENOSPC at write {self.at} of the {self.role}"
        if self.file_bytes is not None:
            return f"files of at most {self.file_bytes} bytes for the {self.role}"
        return f"a disk with {self.free_bytes} bytes left for the {self.role}"


def every_write(lab: Lab) -> list[Shortage]:
    """Each operation of the undisturbed run that a full disk may refuse."""
    assert lab.finished is not None
    found = []
    for role in ROLES:
        log = read_log(lab.finished.directory / f"{role}.log")
        last = sum(operation.kind in WRITING and operation.thread == "main" for operation in log)
        found += [Shortage(role, at=at) for at in range(1, last + 1)]
    return found


def every_size(lab: Lab) -> list[Shortage]:
    """One byte less than each file of the undisturbed run, from the smallest that is no log."""
    assert lab.finished is not None
    found = []
    for role in ROLES:
        sizes = {path.stat().st_size for path in lab.finished.own_directory(role).rglob("*") if path.is_file()}
        found += [Shortage(role, file_bytes=size - 1) for size in sorted(sizes) if size > 1]
    return found


def every_disk(_lab: Lab) -> list[Shortage]:
    sizes = [STEP_BYTES * number for number in range(STEPS_OF_SPACE)]
    return [Shortage(role, free_bytes=size) for role in ROLES for size in sizes]


@contextlib.contextmanager
def small_disk(directory: Path, size: int) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    subprocess.run(["mount", *options], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True, capture_output=True)


def can_mount(directory: Path) -> bool:
    try:
        with small_disk(directory / "probe", 2**16):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def inject(lab: Lab, server: ForkServer, shortage: Shortage) -> None:
    injected(lambda: run_short(lab, server, shortage))


def run_short(lab: Lab, server: ForkServer, shortage: Shortage) -> None:
    """One run; of a small disk several, each with half of the last one's space, until it is full before the end."""
    for attempt in range(ATTEMPTS):
        run = lab.new_run()
        play = Play(lab, server, run, roles_beside(shortage.role), limit_seconds=60)
        on_disk = shortage.free_bytes is not None
        with small_disk(run.own_directory(shortage.role), DISK_BYTES) if on_disk else contextlib.nullcontext():
            less = shortage.free_bytes // 2**attempt if shortage.free_bytes is not None else None
            has_failed = starve(play, replace(shortage, free_bytes=less))
        play.discard()
        if has_failed or not on_disk:
            return
    raise Miss("never injected: it had ended before the disk was full each time")


def starve(play: Play, shortage: Shortage) -> bool:
    """Start the programs, one of them short of space, and check what it leaves. Whether it failed at all."""
    role = shortage.role
    ballast = play.run.own_directory(role) / "ballast"
    try:
        changes = {"file_bytes_limit": shortage.file_bytes} if shortage.file_bytes is not None else {}
        plan = replace(count_plan(play.run, role), what="nospace", at=shortage.at, kinds=WRITING)
        child = play.start(role, plan if shortage.at else None, **changes)
        for other in set(play.roles) - {role}:
            play.start(other)
        if shortage.free_bytes is not None:
            fill(play, role, ballast, shortage.free_bytes)
        play.watch_until(lambda: child.poll() is not None, f"the {role} did not end")
        if shortage.at and not any(each.kind == INJECTED for each in read_log(play.run.directory / f"{role}.log")):
            raise NeverInjected(f"never injected: the {role} ended with {child.code}")
        # Where nothing failed but a sign of life, it may have gone on to its end.
        if child.code != 0:
            check_failed(play, role, child.code)
            del play.children[role]
            if shortage.at % CONTINUE_EVERY:
                return True
        ballast.unlink(missing_ok=True)
        play.to_the_end()
    finally:
        play.stop_all()
    play.check_end(repeated=STEPS)
    return child.code != 0


def fill(play: Play, role: str, ballast: Path, free_bytes: int) -> None:
    """Once the role's preflight has found enough space, leave so much of it."""
    log, child = play.run.out(role), play.children[role]
    play.watch_until(
        lambda: child.poll() is not None or (log.exists() and PREFLIGHT_OVER in log.read_text()),
        "preflight did not end",
    )
    left = shutil.disk_usage(ballast.parent).free - free_bytes
    with contextlib.suppress(OSError), ballast.open("wb") as file:  # the program may be quicker with the last bytes
        os.posix_fallocate(file.fileno(), 0, max(1, left))


def check_failed(play: Play, role: str, code: int | None) -> None:
    """Exit code 2 and one line; nothing half-written is left, and everything published is whole (`Published`)."""
    if code != NO_SPACE:
        raise Miss(f"the {role} ended with {code}, expected {NO_SPACE}: {play.last_error(role)}")
    lines = play.run.err(role).read_text().splitlines()
    if len(lines) != 1:
        raise Miss(f"{len(lines)} lines on stderr, expected one: {lines[:2]} … {lines[-1:]}")
    if "no space left writing" not in lines[0]:
        raise Miss(f"stderr says {lines[0]!r}")
    staging = play.run.own_directory(role) / ".staging"
    left = [path.name for path in staging.rglob("*")] if staging.is_dir() else []
    if left:
        raise Miss(f"staging still holds {', '.join(left)}")


def run(lab: Lab, count: int, rng: random.Random) -> list[Outcome]:
    """Every write, every size and every disk where ``count`` allows, else a sample of each."""
    writes, sizes = every_write(lab), every_size(lab)
    disks = every_disk(lab) if can_mount(lab.directory) else []
    if not disks:
        sys.stdout.write("space: no small disks: this user cannot mount a tmpfs\n")
    cases = [*pick(rng, writes, max(1, count // 2)), *pick(rng, sizes, max(1, count // 4))]
    cases += pick(rng, disks, max(1, count // 4))
    return lab.each(cases, inject)
