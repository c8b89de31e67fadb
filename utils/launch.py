"""Start a program on several processes of this machine, with the exit codes and messages it has on one.

    python -m utils.launch --processes 4 drivers.run_ann FLAGS...

torchrun alone ends with exit code 1 whatever went wrong, and with a traceback of its own below the message. Here the
program first checks its flags and inputs once (--dry_run), so that most mistakes end in one line before any worker
starts. Then torchrun runs in this process, and the exit code is that of the first worker that failed. SIGTERM, SIGINT
and SIGUSR2 become a stop file, at which the workers save their state and end together: torchrun would kill them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from utils.errors import EXIT_CODE_FILE, ProcessGone, collective_mark, run_program, write_error
from utils.exchange.stop import STOP_FILE
from utils.flag_values import OneLineParser, whole_number

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# torchrun ends its workers on these; on those of STOP_SIGNALS they stop by themselves.
SIGNALS = "SIGHUP,SIGQUIT,SIGUSR1"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
LOOK_SECONDS = 0.2


@contextlib.contextmanager
def signals_as_stop_file(directory: Path) -> Iterator[None]:
    """While the block runs, a stop signal makes the file that ANCE_STOP_FILE names; a second SIGINT interrupts."""
    path = Path(os.environ.get(STOP_FILE) or directory / "stop")
    os.environ[STOP_FILE] = str(path)
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in noted:
            raise KeyboardInterrupt
        noted.append(number)  # a handler does nothing more: the thread below makes the file

    def make_file() -> None:
        while not ended.wait(LOOK_SECONDS):
            if noted:
                path.touch()
                return

    ended = threading.Event()
    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    thread = threading.Thread(target=make_file, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def check(argv: list[str], processes: int) -> None:
    """The program's own preflight, in a single process that knows how many there will be; ends this one if it fails."""
    environment = {**os.environ, "WORLD_SIZE": str(processes)}
    command = [sys.executable, "-m", *argv, "--dry_run"]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment).returncode
    if code != 0:
        sys.exit(as_exit_code(code))


def as_exit_code(code: int) -> int:
    """Of a process that a signal ended, what a shell would say: -9 becomes 137."""
    return 128 - code if code < 0 else code


def code_of_first(error: ChildFailedError, code_file: Path) -> int:
    """The exit code of the first worker that failed.

    A worker that aborts in a collective was ended by a thread of nccl's or gloo's, which do so where they miss another.
    """
    process, failure = error.get_first_failure()
    mark = collective_mark(code_file, process)
    if failure.exitcode != -signal.SIGABRT or not mark.exists() or mark.read_bytes() != b"\1":
        return as_exit_code(failure.exitcode)
    write_error(
        "launch", f"error: process {process} was aborted in a collective: another process is gone; see its messages"
    )
    return ProcessGone.exit_code


def run_workers(processes: int, argv: list[str], code_file: Path) -> int:
    """torchrun's work; the exit code of the first worker that failed, or of the signal that ended them all."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[EXIT_CODE_FILE] = str(code_file)
    options = ["--standalone", "--nproc_per_node", str(processes), "--signals_to_handle", SIGNALS]
    try:
        torchrun.run(torchrun.parse_args([*options, "-m", *argv]))
    except ChildFailedError as error:
        code = code_of_first(error, code_file)
    except SignalException as error:
        code = 128 + error.sigval
    else:
        return 0
    finally:
        del os.environ[EXIT_CODE_FILE]
    recorded = code_file.read_text() if code_file.exists() else ""
    return int(recorded or code)


def main() -> None:
    parser = OneLineParser("python -m utils.launch", allow_abbrev=False)
    parser.add_argument("--processes", type=whole_number, required=True, help="how many, one for each GPU")
    parser.add_argument("module", help="the program, such as drivers.run_ann")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="its flags")
    given = parser.parse_args()
    argv = [given.module, *given.flags]
    check(argv, given.processes)
    with tempfile.TemporaryDirectory(prefix="launch-") as directory, signals_as_stop_file(Path(directory)):
        code = run_workers(given.processes, argv, Path(directory) / "exit_code")
    sys.exit(code)


if __name__ == "__main__":
    run_program("launch", main)
