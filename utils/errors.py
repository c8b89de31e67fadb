"""The ways a program ends, and the one place that turns an exception into an exit code.

0 done · 2 bad flags or input · 3 the jobs disagree · 4 the peer is gone · 75 stopped on request with the state saved,
or fenced: another job has this one's role now · 130, 143 stopped by SIGINT, SIGTERM before there was a state to save.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# Names the file in which the processes that utils.launch started leave the exit code of the first that failed.
EXIT_CODE_FILE = "ANCE_EXIT_CODE_FILE"


def collective_mark(code_file: Path, process: int) -> Path:
    """Next to EXIT_CODE_FILE: a byte that is 1 while this process is in a collective."""
    return code_file.with_name(f"in_collective.{process}")


class UserError(Exception):
    """Something a user can cause and fix. The message is one line: found, expected, what to do."""

    exit_code = 2


class Disagreement(UserError):
    """Two jobs that meet in a directory were started with flags, data or models that differ."""

    exit_code = 3


class PeerGone(UserError):
    """The job this one waits for has failed, or ended without what is waited for."""

    exit_code = 4


class ProcessGone(UserError):
    """Another process of this job is gone, or did not answer in time: nothing can be saved together any more."""

    exit_code = 4


class ProcessFailed(UserError):
    """Another process of this job has failed, by no fault of the user's: its own traceback says more."""

    exit_code = 1


class Stopped(UserError):
    """Stopped on request, the state is saved: start again with the same flags to resume."""

    exit_code = 75


class Fenced(Stopped):
    """Another job has taken this one's role over, after a silence: nothing more may be published."""


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def describe_os_error(error: OSError) -> str:
    """The disk's own errors in words that say what to do."""
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left writing {where} ({os.strerror(error.errno)}): free some, or choose another directory"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}: {os.strerror(error.errno)}: give a directory this user may write and files it may read"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{where}: {os.strerror(error.errno)}: a file is where a directory should be; choose another directory"
    name = errno.errorcode.get(error.errno or 0)
    return f"{where}: {error.strerror or error}" + (f" ({name})" if name else "")


# What an error of one process is on the others, by its exit code.
KINDS = {kind.exit_code: kind for kind in (ProcessFailed, UserError, Disagreement, PeerGone, Fenced)}


def failure_of(error: Exception) -> dict[str, object]:
    """An error as JSON, in which it travels to the other processes of the job; `error_of` makes it one again."""
    if isinstance(error, UserError):
        return {"code": error.exit_code, "message": str(error)}
    if isinstance(error, OSError) and error.errno is not None:
        where = None if error.filename is None else str(error.filename)
        return {"code": UserError.exit_code, "os_error": [error.errno, error.strerror, where]}
    return {"code": ProcessFailed.exit_code, "message": f"another process has failed: {described(error)}"}


def error_of(failure: dict[str, Any]) -> Exception:
    """What the other processes raise: the same kind of UserError, the same OSError, else ProcessFailed."""
    if "os_error" in failure:
        number, reason, where = failure["os_error"]
        return OSError(number, reason) if where is None else OSError(number, reason, where)
    return KINDS[failure["code"]](failure["message"])


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def write_error(program: str, message: str) -> None:
    sys.stderr.write(f"{program}: {message}\n")
    sys.stderr.flush()


def is_first_to_fail(code: int) -> bool:
    """Leave ``code`` in EXIT_CODE_FILE unless another process of the program was quicker; alone, always True."""
    path = os.environ.get(EXIT_CODE_FILE)
    if path is None:
        return True
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    except OSError:
        return True
    with os.fdopen(descriptor, "w") as file, contextlib.suppress(OSError):
        file.write(str(code))
    return True


def report_exit(program: str, code: int, message: str) -> int:
    """Say why in one line, of several processes only in the first that fails; returns ``code``."""
    if is_first_to_fail(code):
        write_error(program, message)
    return code


def exit_on_signal(signal_number: int, _frame: FrameType | None) -> NoReturn:
    """Handler of SIGTERM until the work begins: unwinds the stack, so that what is half-written is removed.

    A second one changes nothing. While there is a state to save, utils/exchange/stop.py listens in its place.
    """
    signal.signal(signal_number, signal.SIG_IGN)
    raise SystemExit(128 + signal_number)


@contextlib.contextmanager
def exits_on_sigterm() -> Iterator[None]:
    try:
        before = signal.signal(signal.SIGTERM, exit_on_signal)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code_of(program: str, main: Callable[[], None]) -> int:
    """Run ``main`` and return the exit code; a user's error is reported in one line on stderr.

    SIGTERM becomes SystemExit(143). That is not left in EXIT_CODE_FILE: torchrun stops by it those that did not fail.
    """
    try:
        with exits_on_sigterm():
            main()
    except Stopped as stop:
        return report_exit(program, stop.exit_code, one_line(stop))
    except UserError as error:
        return report_exit(program, error.exit_code, f"error: {one_line(error)}")
    except OSError as error:
        if error.errno is None:
            is_first_to_fail(1)
            raise
        return report_exit(program, 2, f"error: {one_line(describe_os_error(error))}")
    except KeyboardInterrupt:
        return report_exit(program, 130, "interrupted")
    except Exception:
        is_first_to_fail(1)  # the others, which will miss this process, have not failed by themselves
        raise
    return 0


def escape_unprintable() -> None:
    """Print what stdout's encoding lacks (PYTHONIOENCODING=ascii) as ``\\xfc``, as stderr does: it ends no program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_program(program: str, main: Callable[[], None]) -> None:
    """The last line of every program: ``run_program("run_ann", main)``."""
    escape_unprintable()
    sys.exit(exit_code_of(program, main))
