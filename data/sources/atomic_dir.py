"""A directory written whole or not at all: files are made in a hidden directory inside it and moved up at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.errors import UserError
from utils.exchange.atomic import held_lock, replace_synced, sync

UNFINISHED = ".unfinished"
LOCK = "lock"


def check_can_write(directory: Path) -> None:
    """UserError where ``directory`` cannot be made or written in; makes nothing."""
    for parent in (directory, *directory.absolute().parents):
        if parent.exists():
            if not parent.is_dir():
                raise UserError(f"{parent} is a file, expected a directory to write {directory} in; choose another")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise UserError(f"{parent} is not writable for this user; choose another directory, or ask its owner")
            return


@contextlib.contextmanager
def staged_directory(directory: Path) -> Iterator[Path]:
    """An empty directory inside ``directory`` to write in, removed at the end with what was not moved out.

    What a killed run left there is removed first. On failure ``directory`` goes too, where it was made here.
    UserError where another process is at work in ``directory``, or it cannot be written.
    """
    check_can_write(directory)
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        with contextlib.ExitStack() as stack:
            staged = directory / UNFINISHED
            staged.mkdir(parents=True, exist_ok=True)
            busy = f"another process is writing {directory}; wait for it, or choose another directory"
            stack.enter_context(held_lock(staged / LOCK, busy))
            stack.callback(shutil.rmtree, staged, ignore_errors=True)
            _remove_contents(staged)
            stack.callback(_remove_contents, staged)  # while the lock is held: it may take a while
            yield staged
    except BaseException as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(directory)  # a failed write does not know its file
        raise


def _remove_contents(staged: Path) -> None:
    for path in staged.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def publish(staged: Path, directory: Path, names: Iterable[str]) -> None:
    """Move the files ``names`` from ``staged`` up into ``directory``, synced, in this order; also in folders of it.

    The last is the one whose presence says that all are there.
    """
    *names, last = names
    folders = {(directory / name).parent for name in names} - {directory}
    for folder in folders:
        folder.mkdir(exist_ok=True)
    for name in names:
        replace_synced(staged / name, directory / name)
    for folder in (*folders, directory):
        sync(folder)
    replace_synced(staged / last, directory / last)
    sync(directory)
