"""One process in which a fault happens at its N-th file operation; the program itself holds no hooks.

    python -m tests.faults.victim --root DIRECTORY --at N --what kill|stop|term|nospace PROGRAM FLAGS...

Counted are the calls that change files below the roots: rename, replace, link, unlink, rmdir, mkdir, fsync and opening
for writing. pathlib, shutil and our code reach the disk through them; safetensors and torch.save write for themselves,
into staged files that our code then syncs.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PUBLISHING = ("rename", "replace", "link")
WRITING = (*PUBLISHING, "mkdir", "open", "fsync")  # what a full disk refuses
PATH_OPERATIONS = (*PUBLISHING, "unlink", "rmdir", "mkdir")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
INJECTED, SUCCEEDED = "injected", "succeeded"  # kinds of lines that tell of the operation above them


@dataclass(frozen=True)
class Plan:
    """``what`` happens before (or ``after``) the ``at``-th operation, from 1, of ``kinds`` (none: of any kind).

    ``thread`` says whose operations count: the main thread's, or the others' (the heartbeat). ``log`` is a file that
    gets a line for every operation of any thread.
    """

    roots: tuple[str, ...] = ()
    what: str = "count"
    at: int = 0
    after: bool = False
    kinds: tuple[str, ...] = ()
    thread: str = "main"
    log: str = ""


@dataclass(frozen=True)
class Operation:
    """A line of the log. ``at`` counts the operations of its thread, from 1; 0 for what is only noted.

    ``unsynced`` (of rename, replace, link): files that change place without having been synced as they are.
    """

    at: int
    thread: str
    kind: str
    path: str
    target: str = ""
    unsynced: tuple[str, ...] = ()


def read_log(path: Path) -> list[Operation]:
    if not path.exists():
        return []
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [Operation(*fields[:-1], unsynced=tuple(fields[-1])) for fields in lines]


class Injector:
    """Counts, logs, and does what the plan says. It uses the functions as they were before they were wrapped."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.roots = tuple(str(Path(root).absolute()) + "/" for root in plan.roots)
        self.counts = {"main": 0, "other": 0}
        self.synced: dict[tuple[int, int], tuple[int, int]] = {}
        self.lock = threading.Lock()
        self.write, self.fsync = os.write, os.fsync
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.log = os.open(plan.log, flags, 0o666) if plan.log else None

    def is_ours(self, path: str) -> bool:
        return (path + "/").startswith(self.roots)

    def note(self, *fields: Any) -> None:
        if self.log is not None:
            self.write(self.log, (json.dumps(fields) + "\n").encode())

    def unsynced_below(self, path: str) -> list[str]:
        """Files at or below ``path`` that were written to after they were last synced, or never were."""
        files = [path] if Path(path).is_file() else [str(file) for file in Path(path).rglob("*") if file.is_file()]
        return [file for file in files if self.synced.get(identity(file)) != state(file)]

    def around(self, kind: str, path: str, target: str, call: Callable[[], Any]) -> Any:
        """The operation, with the plan's fault before or after it."""
        thread = "main" if threading.current_thread() is threading.main_thread() else "other"
        due = False
        with self.lock:
            if not self.plan.kinds or kind in self.plan.kinds:
                self.counts[thread] += 1
                due = thread == self.plan.thread and self.counts[thread] == self.plan.at
            unsynced = self.unsynced_below(path) if kind in PUBLISHING else []
            self.note(self.counts[thread], thread, kind, path, target, unsynced)
            if due:
                self.note(0, thread, INJECTED, path, target, [])
        if due and not self.plan.after:
            self.strike(path)
        result = call()
        if kind == "fsync" and Path(path).is_file():
            self.synced[identity(path)] = state(path)
        if kind in PUBLISHING:
            self.note(0, thread, SUCCEEDED, path, target, [])
        if due and self.plan.after:
            self.strike(path)
        return result

    def strike(self, path: str) -> None:
        if self.plan.what == "nospace":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self.plan.what in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.plan.what])


def identity(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def state(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_size, found.st_mtime_ns


def absolute(path: Any, directory: int | None = None) -> str:
    """The path of a call, which may be relative to an open directory."""
    name = Path(os.fsdecode(path))
    if directory is not None:
        name = Path(f"/proc/self/fd/{directory}").readlink() / name
    return os.path.abspath(name)  # noqa: PTH100 - links are left alone


def install(plan: Plan) -> Injector:
    """Wrap the operations of this process, for good."""
    injector = Injector(plan)
    for kind in PATH_OPERATIONS:
        setattr(os, kind, wrapped(injector, kind, getattr(os, kind)))
    os.fsync = wrapped_fsync(injector, os.fsync)  # type: ignore[assignment]
    os.open = wrapped_os_open(injector, os.open)
    io.open = builtins.open = wrapped_open(injector, io.open)  # type: ignore[assignment]
    return injector


def wrapped(injector: Injector, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def operation(path: Any, *rest: Any, **names: Any) -> Any:
        first = absolute(path, names.get("dir_fd", names.get("src_dir_fd")))
        target = absolute(rest[0], names.get("dst_dir_fd")) if kind in PUBLISHING else ""
        if not injector.is_ours(target or first):
            return original(path, *rest, **names)
        return injector.around(kind, first, target, lambda: original(path, *rest, **names))

    return operation


def wrapped_fsync(injector: Injector, original: Callable[[int], None]) -> Callable[[Any], None]:
    def fsync(file: Any) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if injector.is_ours(path):
            injector.around("fsync", path, "", lambda: original(descriptor))
        else:
            original(descriptor)

    return fsync


def wrapped_os_open(injector: Injector, original: Callable[..., int]) -> Callable[..., int]:
    def os_open(path: Any, flags: int, *rest: Any, **names: Any) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes or not injector.is_ours(first := absolute(path, names.get("dir_fd"))):
            return original(path, flags, *rest, **names)
        return int(injector.around("open", first, "", lambda: original(path, flags, *rest, **names)))

    return os_open


def wrapped_open(injector: Injector, original: Callable[..., Any]) -> Callable[..., Any]:
    def open(file: Any, mode: str = "r", *rest: Any, **names: Any) -> Any:
        writes = set(mode) & set("wax+") and not isinstance(file, int)
        if not writes or not injector.is_ours(first := absolute(file)):
            return original(file, mode, *rest, **names)
        return injector.around("open", first, "", lambda: original(file, mode, *rest, **names))

    return open


def run_program(words: list[str]) -> None:
    """A module with its flags, as ``python -m`` runs it."""
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.faults.victim", allow_abbrev=False)
    parser.add_argument("--root", action="append", required=True, help="operations below it count; may be repeated")
    parser.add_argument("--at", type=int, default=0)
    parser.add_argument("--what", choices=("count", "nospace", *SIGNALS), default="count")
    parser.add_argument("--after", action="store_true", help="after the operation, not before it")
    parser.add_argument("--kind", action="append", default=[], help="count only such operations; may be repeated")
    parser.add_argument("--log", default="", help="a line for every operation")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="PROGRAM FLAGS...")
    given = parser.parse_args()
    plan = Plan(tuple(given.root), given.what, given.at, given.after, tuple(given.kind), log=given.log)
    install(plan)
    run_program(given.words)


if __name__ == "__main__":
    main()
