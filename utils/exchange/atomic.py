"""Files that appear under their name whole or not at all, on a local disk, NFS or Lustre.

What is being written is staged under ``.staging/`` in the same directory, a name no reader matches, and synced
before it is renamed or linked to its final name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import Fenced, UserError, describe_os_error
from utils.exchange.layout import STAGING
from utils.json_text import finite, json_text
from utils.run_log import say

SEAL = "sealed"
PROBE_BYTES = 2**20

Written = TypeVar("Written")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sync(path: Path) -> None:
    """fsync a file or a directory, so that what is renamed next cannot outrun its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_contents(directory: Path) -> list[Path]:
    """fsync all that is in a directory, readable by whom the directory is; its files, sorted."""
    found = sorted(directory.rglob("*"))
    files = [path for path in found if path.is_file()]
    for file in files:
        file.chmod(directory.stat().st_mode & 0o666)  # safetensors makes files for their owner alone
        sync(file)
    for folder in (path for path in reversed(found) if path.is_dir()):  # after what it holds
        sync(folder)
    return files


def listing(directory: Path) -> list[str]:
    """The names in a directory; none where it is not there. All looking for versions goes through this and `exists`."""
    try:
        return os.listdir(directory)  # noqa: PTH208 - names, not paths
    except (FileNotFoundError, NotADirectoryError):
        return []


def numbered(directory: Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers of the directory's entries whose whole name matches, ascending."""
    matches = (pattern.fullmatch(name) for name in listing(directory))
    return sorted(int(match[1]) for match in matches if match)


def exists(path: Path) -> bool:
    return os.path.lexists(path)


def is_gone(path: Path) -> bool:
    """Whether there is certainly nothing: an error of the disk is no answer."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def staging_path(directory: Path, name: str, lease_staging_dir: Path | None = None) -> Iterator[Path]:
    """A path of our own under ``directory/.staging``; what is still there at the end is removed.

    With ``lease_staging_dir`` under that. Whoever takes the lease over moves it away, so that a late rename out of it
    fails: Fenced. An OSError that does not say where it happened (``write`` does not) leaves
    with ``directory`` as its file name.
    """
    token = f"{os.getpid()}.{secrets.token_hex(4)}"
    own = lease_staging_dir / token if lease_staging_dir is not None else directory / STAGING / f"{name}.{token}"
    try:
        if lease_staging_dir is not None:
            own.mkdir()
        else:
            make_own_directory(own.parent, own.name)
        yield own / name
    except Exception as error:
        if lease_staging_dir is not None and is_gone(lease_staging_dir):
            raise Fenced(f"another job works in {directory} now; this one was silent too long and ends") from None
        if isinstance(error, OSError):
            error.filename = error.filename or str(directory)
        raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
        if lease_staging_dir is None:
            with contextlib.suppress(OSError):
                own.parent.rmdir()


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


def replace_synced(staged: Path, path: Path) -> None:
    """Give ``staged`` its name once its bytes are on the disk; whoever needs the name there too syncs the directory."""
    sync(staged)
    staged.replace(path)


# Gives a place for a file that is being written: `staging_path`, or a lease's own, which raises Stopped at the end of
# the block where nothing may be published any more.
Stage = Callable[[Path, str], contextlib.AbstractContextManager[Path]]


def publish_file(path: Path, write: Callable[[Path], Written], stage: Stage = staging_path) -> Written:
    """Make a file that appears under its name whole or not at all, replacing an older one; what ``write`` returns.

    ``write(staged)`` makes it in a place that ``stage`` gives: under a lease, one that whoever takes it over removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with stage(path.parent, path.name) as staged:
        written = write(staged)
        replace_synced(staged, path)
    sync(path.parent)
    return written


def publish_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Make a directory that appears under its name whole or not at all: ``write(staged)`` fills it.

    UserError where the name is taken.
    """
    if exists(path):
        raise UserError(f"{path} exists already, expected a new name; choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    with staging_path(path.parent, path.name) as staged:
        staged.mkdir()
        write(staged)
        sync_contents(staged)
        sync(staged)
        staged.rename(path)
    sync(path.parent)


def is_same_file(one: Path, other: Path) -> bool:
    """Whether a link that "failed" is there: a network file system may repeat a request whose answer was lost."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def write_json(path: Path, value: Any) -> None:
    """Publish a small JSON file whole, replacing an older one."""
    write_text(path, json_text(value, indent=1) + "\n")


def write_text(path: Path, text: str, stage: Stage = staging_path) -> None:
    """Publish a small file whole, replacing an older one; ``stage`` as in `publish_file`."""
    publish_file(path, lambda staged: staged.write_text(text, encoding="utf-8"), stage)


def read_json(path: Path) -> dict[str, Any]:
    """UserError where the file is not there or holds no JSON object."""
    return parse_object(path, read_bytes(path))


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing, expected a JSON file there") from None


def parse_object(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"))
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise UserError(f"{path} is not JSON ({error}): it is damaged; write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, expected an object: it is damaged")
    return value


def dump_with_checksum(value: dict[str, Any]) -> str:
    """The text of a JSON object whose last key is the sha256 of the rest: a reader finds out any changed byte."""
    return _with_seal(finite(value))


def _with_seal(value: dict[str, Any]) -> str:
    text = json.dumps(value, indent=1) + "\n"
    return json.dumps({**value, SEAL: hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n"


def load_with_checksum(path: Path, is_required: bool = True) -> dict[str, Any]:
    """What `dump_with_checksum` wrote, without the seal. UserError where the file is missing or any byte of it differs.

    Where it is not ``is_required``, an object without a seal is taken as it is: older versions wrote some so.
    """
    text = read_bytes(path)
    value = parse_object(path, text)
    if SEAL not in value and not is_required:
        return value
    if value.pop(SEAL, None) is None or text != _with_seal(value).encode():
        raise UserError(f"{path}: its sha256 differs from what it says: it is damaged")
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

    Where the file system knows no locks, a warning.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        except OSError as error:
            say(f"warning: no lock on {path}, continuing without ({error.strerror})", sys.stderr)
        yield
    finally:
        os.close(descriptor)
