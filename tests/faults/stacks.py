"""What a process waits for: where each of its threads is, in Python and in the kernel.

Every program here runs under PYTHONFAULTHANDLER=1: SIGABRT ends it with the stacks of all its threads on stderr,
also where no Python code can run any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

ENVIRONMENT = {"PYTHONFAULTHANDLER": "1"}


def kernel_waits(pid: int) -> str:
    """A line for each thread: its name and state, the kernel's function it sleeps in, and the system call."""
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        with contextlib.suppress(OSError):  # it has ended: nothing waits in it
            name, _, fields = (task / "stat").read_text().rpartition(")")
            state, wait, call = fields.split()[0], (task / "wchan").read_text(), (task / "syscall").read_text().strip()
            lines.append(f"thread {name}) {state}: {wait} {call}\n")
    return "".join(lines)


def processes_in(directory: Path) -> list[int]:
    """Those that were started with a path below the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if bytes(directory) + b"/" in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def end_with_stacks(pids: Iterable[int], waits: Path) -> None:
    """End the processes with their Python stacks on their stderr; ``waits`` gets the kernel's view of them."""
    with waits.open("a") as file:
        for pid in pids:
            file.write(f"process {pid}\n{kernel_waits(pid)}")
            for number in (signal.SIGABRT, signal.SIGCONT):  # one that is stopped ends when it continues
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
