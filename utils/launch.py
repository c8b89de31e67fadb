"""Start a program on several processes of this machine, with the exit codes and messages it has on one.

    python -m utils.launch --processes 4 drivers.run_ann FLAGS...

torchrun alone ends with exit code 1 whatever went wrong, and with a traceback of its own below the message. Here the
program first checks its flags and inputs once (--dry_run), so that most mistakes end in one line before any worker
starts. Then torchrun runs in this process: a signal sent to it reaches the workers, which lead sessions of their own,
and the exit code is that of the first worker that failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from utils.errors import EXIT_CODE_FILE, UserError, run_program

# torchrun passes these on to its workers; Slurm's --signal may be any of them.
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"


def check(words: list[str]) -> None:
    """The program's own preflight, in a single process; ends this one where it fails."""
    code = subprocess.run([sys.executable, "-m", *words, "--dry_run"], stdout=subprocess.DEVNULL).returncode
    if code != 0:
        sys.exit(as_exit_code(code))


def as_exit_code(code: int) -> int:
    """Of a process that a signal ended, what a shell would say: -9 becomes 137."""
    return 128 - code if code < 0 else code


def run_workers(processes: int, words: list[str], code_file: Path) -> int:
    """torchrun's work; the exit code of the first worker that failed, or of the signal that ended them all."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[EXIT_CODE_FILE] = str(code_file)
    options = ["--standalone", "--nproc_per_node", str(processes), "--signals_to_handle", SIGNALS]
    try:
        torchrun.run(torchrun.parse_args([*options, "-m", *words]))
    except ChildFailedError as error:
        code = as_exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        code = 128 + error.sigval
    else:
        return 0
    finally:
        del os.environ[EXIT_CODE_FILE]
    said = code_file.read_text() if code_file.exists() else ""
    return int(said or code)


def main() -> None:
    parser = argparse.ArgumentParser("python -m utils.launch", allow_abbrev=False)
    parser.add_argument("--processes", type=int, required=True, help="how many, one for each GPU")
    parser.add_argument("module", help="the program, such as drivers.run_ann")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="its flags")
    given = parser.parse_args()
    if given.processes < 1:
        raise UserError(f"--processes is {given.processes}, expected 1 or more")
    words = [given.module, *given.flags]
    check(words)
    with tempfile.TemporaryDirectory(prefix="launch-") as directory:
        code = run_workers(given.processes, words, Path(directory) / "exit_code")
    sys.exit(code)


if __name__ == "__main__":
    run_program("launch", main)
