"""The programs for a test: each is a process of its own, forked from one that has imported them, so that a start takes
milliseconds where an interpreter's takes seconds.

Exit codes, signals, output and files are those of any process. What a start itself does - an interpreter, a launcher of
several processes, a script - has tests that start it: test_launch, test_slurm, test_arms, and the first of test_loop.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.fork_server import Child, ForkServer, Request
from tests.fingerprint.programs import process_environments

TIMEOUT_SECONDS = 200
LEFT_ALONE_SECONDS = 20  # of a process whose peer has failed
LOOK_SECONDS = 0.2
BEFORE_TESTS = dict(os.environ)  # no test has set a variable for itself yet


@functools.cache
def fork_server() -> ForkServer:
    """What the programs are forked from: one for all tests of this process."""
    server = ForkServer(environment=BEFORE_TESTS)
    atexit.register(server.close)
    return server


def start(log: Path, program: str, *flags: str | Path, **environment: str) -> Child:
    """Begin ``program``, its output and errors at the end of ``log``, with the variables that the test has set."""
    changed = {name: value for name, value in os.environ.items() if BEFORE_TESTS.get(name) != value}
    words = (program, *map(str, flags))
    return fork_server().start(Request(words, str(log), str(log), environment={**changed, **environment}))


def ends_of(children: list[Child], code: int = 0) -> list[int | None]:
    """Their exit codes; None of one killed, soon after another had ended but not with ``code``."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while any(child.poll() is None for child in children) and time.monotonic() < deadline:
            if any(child.code not in (None, code) for child in children):
                deadline = min(deadline, time.monotonic() + LEFT_ALONE_SECONDS)
            next(child for child in children if child.code is None).wait(LOOK_SECONDS)
        return [child.code for child in children]
    finally:
        for child in children:
            child.end()


def run(program: str, *flags: str | Path, processes: int = 1, code: int = 0) -> str:
    """Run a program to its end, as so many processes that meet; what all of them print.

    Each exit code must be ``code``.
    """
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        codes = ends_of([start(log, program, *flags, **meeting) for meeting in process_environments(processes)], code)
        output = log.read_text()
    assert codes == [code] * processes, output[-4000:]
    return output


def spawn(function: Callable[..., None], *arguments: str | Path, processes: int) -> None:
    """Call a module's function in so many processes, as `torch.multiprocessing.spawn` does: its number comes first."""
    words = (__name__, function.__module__, function.__name__)
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        codes = ends_of([start(log, *words, str(process), *arguments) for process in range(processes)])
        assert codes == [0] * processes, log.read_text()[-4000:]


if __name__ == "__main__":  # of a process of `spawn`
    module, name, process, *arguments = sys.argv[1:]
    getattr(importlib.import_module(module), name)(int(process), *arguments)
