"""Files that appear under their name whole or not at all, on a local disk, NFS or Lustre.

What is being written is staged under ``.staging/`` in the same directory, a name no reader matches, and synced
before it is renamed or linked to its final name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError, describe_os_error

STAGING = ".staging"
PROBE_BYTES = 2**20


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """fsync a file or a directory, so that what is renamed next cannot outrun its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staging_path(directory: Path, name: str) -> Iterator[Path]:
    """A path of our own under ``directory/.staging``; what is still there at the end is removed.

    An OSError that does not say where it happened (``write`` does not) leaves with ``directory`` as its file name.
    """
    staging = directory / STAGING
    own = make_own_directory(staging, f"{name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield own / name
    except OSError as error:
        error.filename = error.filename or str(directory)
        raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
        with contextlib.suppress(OSError):
            staging.rmdir()


def make_own_directory(staging: Path, name: str) -> Path:
    """``staging/name``, made again where another process has just removed the empty ``staging``."""
    while True:
        try:
            staging.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # it was there, and gone before mkdir could see that it is a directory
            if staging.exists() and not staging.is_dir():
                raise
        with contextlib.suppress(FileNotFoundError):
            (staging / name).mkdir()
            return staging / name


def write_json(path: Path, value: Any) -> None:
    """Publish a small JSON file whole, replacing an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with staging_path(path.parent, path.name) as staged:
        staged.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        sync(staged)
        staged.replace(path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """UserError where the file is not there or holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing, expected a JSON file there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}): it is damaged; write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, expected an object: it is damaged")
    return value


def check_space(directory: Path) -> None:
    """OSError where a small file no longer fits: torch and safetensors hide the disk's own error."""
    probe = directory / "probe"
    probe.write_bytes(bytes(PROBE_BYTES))
    sync(probe)
    probe.unlink()


def check_writable(directory: Path) -> None:
    """Try what publishing does: stage, sync, rename, link, remove. UserError where the directory cannot do it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with staging_path(directory, "probe") as staged, staging_path(directory, "probe-link") as link:
            staged.write_bytes(b"probe")
            sync(staged)
            os.link(staged, link)
            renamed = staged.with_name(staged.name + ".renamed")
            staged.rename(renamed)
            renamed.unlink()
    except OSError as error:
        raise UserError(f"cannot publish in {directory}: {describe_os_error(error)}") from None


@contextlib.contextmanager
def held_lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold an flock on ``path`` for the block; UserError with ``refusal`` where another process has it.

    Without effect where the file system knows no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise UserError(refusal) from None
        yield
    finally:
        os.close(descriptor)
