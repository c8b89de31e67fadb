"""The ways a program ends, and the one place that turns an exception into an exit code.

0 done · 2 bad flags or input · 3 the jobs disagree · 4 the peer is gone · 75 stopped on request, state saved.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something a user can cause and mend. The message is one line: found, expected, what to do."""

    exit_code = 2


class Disagreement(UserError):
    """Two jobs that meet in a directory were started with different science."""

    exit_code = 3


class PeerGone(UserError):
    """The job this one waits for has failed or left."""

    exit_code = 4


class Stopped(UserError):
    """Stopped on request with the state saved; the scheduler may requeue the job."""

    exit_code = 75


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
    return f"{where}: {error.strerror or error}"


def complain(program: str, message: str) -> None:
    sys.stderr.write(f"{program}: {message}\n")
    sys.stderr.flush()


def exit_code_of(program: str, main: Callable[[], None]) -> int:
    """Run ``main`` and return the exit code; a user's error is reported in one line on stderr."""
    try:
        main()
    except UserError as error:
        complain(program, f"error: {one_line(error)}")
        return error.exit_code
    except OSError as error:
        if error.errno is None:
            raise
        complain(program, f"error: {one_line(describe_os_error(error))}")
        return 2
    except KeyboardInterrupt:
        complain(program, "interrupted")
        return 130
    return 0


def run_program(program: str, main: Callable[[], None]) -> None:
    """The last line of every program: ``run_program("run_ann", main)``."""
    sys.exit(exit_code_of(program, main))
