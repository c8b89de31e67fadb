"""A file system as several hosts see it through caches: listings and missing names may be 60 seconds old.

`installed` puts it under everything in this process that reaches the disk below a directory. What one host changes is
there for itself at once, and on the server: link and rename are atomic, and a file that a host can see has its newest
content. Another host may keep listing a directory as it was, may keep missing a name that it missed before, and
may keep using a directory by its handle after it was moved.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.victim import absolute

STALE_SECONDS = 60.0
FRESH_SHARE = 0.3  # of the looks at which a host asks the server although it need not
MOVING = ("rename", "replace")


@dataclass
class View:
    """The names of a directory as a host last heard of them."""

    fetched: float
    names: set[str]


@dataclass
class Host:
    """What a host believes. ``moved``: directories it knows by a handle, by their old path: (new path, until when)."""

    name: str
    views: dict[str, View] = field(default_factory=dict)
    moved: dict[str, tuple[str, float]] = field(default_factory=dict)


@dataclass
class Files:
    """The server and its hosts. ``current`` is the host that works now; ``before`` is called before each change, and
    ``after`` after it with the operation's kind and its last path."""

    root: str
    rng: random.Random
    clock: Callable[[], float]
    current: Callable[[], Host | None]
    before: Callable[[], None]
    after: Callable[[str, str], None]
    hosts: list[Host]
    listdir: Callable[[str], list[str]] = os.listdir

    def is_ours(self, path: str) -> bool:
        return path.startswith(self.root + "/") and self.current() is not None

    def names(self, host: Host, directory: str) -> set[str]:
        """The directory as the host sees it now."""
        view, now = host.views.get(directory), self.clock()
        old = view is None or now - view.fetched > STALE_SECONDS or self.rng.random() < FRESH_SHARE
        if old:
            view = host.views[directory] = View(now, set(self.listdir(directory)))
        assert view is not None
        return view.names

    def by_handle(self, path: str) -> str:
        """Where the host's call really ends up: in a directory that another host has moved meanwhile, perhaps."""
        host = self.current()
        assert host is not None
        for old, (new, until) in host.moved.items():
            if path.startswith(old + "/") and self.clock() < until:
                return new + path[len(old) :]
        return path

    def look_up(self, path: str) -> str:
        """The path to ask the server for; FileNotFoundError where the host believes that there is no such name."""
        path, host = self.by_handle(path), self.current()
        assert host is not None
        directory = self.root
        for name in path[len(self.root) + 1 :].split("/"):
            try:
                is_known = name in self.names(host, directory)
            except (FileNotFoundError, NotADirectoryError):
                break  # the server will say so
            if not is_known:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            directory = f"{directory}/{name}"
        return path

    def changed(self, kind: str, paths: list[str]) -> None:
        """The host that made a change knows it; the others learn of it later."""
        host = self.current()
        assert host is not None
        source, target = paths[0], paths[-1]
        is_gone = kind in (*MOVING, "unlink", "rmdir")
        if is_gone:
            self.forget(host, source)
        if kind not in ("unlink", "rmdir"):
            self.learn(host, target)
        if kind in MOVING:
            until = self.clock() + STALE_SECONDS
            for other in self.hosts:
                if other is not host and source in other.views and self.rng.random() < 0.5:
                    other.moved[source] = (target, until)

    def answered(self, path: str) -> None:
        """The server has just said that the name is there: no cache says otherwise any more."""
        host = self.current()
        assert host is not None
        host.views.pop(path.rpartition("/")[0], None)

    def learn(self, host: Host, path: str) -> None:
        directory, _, name = path.rpartition("/")
        if directory in host.views:
            host.views[directory].names.add(name)
        for known in [known for known in host.views if known.startswith(path + "/") or known == path]:
            del host.views[known]

    def forget(self, host: Host, path: str) -> None:
        directory, _, name = path.rpartition("/")
        if directory in host.views:
            host.views[directory].names.discard(name)
        for known in [known for known in host.views if known.startswith(path + "/") or known == path]:
            del host.views[known]


@contextlib.contextmanager
def installed(files: Files) -> Iterator[None]:
    """Wrap the functions of os and open for the block; calls outside the root, or by no host, are left alone."""
    with contextlib.ExitStack() as stack:
        for kind in ("stat", "lstat", "listdir", "scandir"):
            stack.enter_context(mock.patch.object(os, kind, looking(files, kind, getattr(os, kind))))
        for kind in ("rename", "replace", "link", "unlink", "rmdir", "mkdir"):
            stack.enter_context(mock.patch.object(os, kind, changing(files, kind, getattr(os, kind))))
        opened = opening(files, io.open)
        stack.enter_context(mock.patch.object(io, "open", opened))
        stack.enter_context(mock.patch.object(builtins, "open", opened))
        stack.enter_context(mock.patch.object(os, "open", opening_descriptor(files, os.open)))
        stack.enter_context(mock.patch.object(os, "fsync", lambda _descriptor: None))  # nothing loses its power here
        yield


def looking(files: Files, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def look(path: Any = ".", *rest: Any, **names: Any) -> Any:
        if isinstance(path, int) or names.get("dir_fd") is not None or not files.is_ours(absolute(path)):
            return original(path, *rest, **names)
        found = files.look_up(absolute(path))
        if kind != "listdir":
            return original(found, *rest, **names)
        original(found)  # an error is the server's
        host = files.current()
        assert host is not None
        return sorted(files.names(host, found))

    return look


def changing(files: Files, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def change(*arguments: Any, **names: Any) -> Any:
        count = 2 if kind in (*MOVING, "link") else 1
        given = [absolute(each, names.get("dir_fd")) for each in arguments[:count]]
        if not files.is_ours(given[-1]):
            return original(*arguments, **names)
        files.before()
        paths = [files.by_handle(each) for each in given]
        if names.get("dir_fd") is None:
            arguments = (*paths, *arguments[count:])
        try:
            result = original(*arguments, **names)
        except FileExistsError:
            files.answered(paths[-1])
            raise
        files.changed(kind, paths)
        files.after(kind, paths[-1])
        return result

    return change


def opening(files: Files, original: Callable[..., Any]) -> Callable[..., Any]:
    def open(file: Any, mode: str = "r", *rest: Any, **names: Any) -> Any:
        if isinstance(file, int) or not files.is_ours(path := absolute(file)):
            return original(file, mode, *rest, **names)
        if not set(mode) & set("wax+"):
            return original(files.look_up(path), mode, *rest, **names)
        files.before()
        path = files.by_handle(path)
        result = original(path, mode, *rest, **names)
        files.changed("open", [path])
        return result

    return open


def opening_descriptor(files: Files, original: Callable[..., int]) -> Callable[..., int]:
    def open(path: Any, flags: int, *rest: Any, **names: Any) -> int:
        if names.get("dir_fd") is not None or not files.is_ours(given := absolute(path)):
            return original(path, flags, *rest, **names)
        if not flags & os.O_CREAT:
            return original(files.look_up(given), flags, *rest, **names)
        files.before()
        given = files.by_handle(given)
        result = original(given, flags, *rest, **names)
        files.changed("open", [given])
        return result

    return open


def content_of(path: Path) -> bytes:
    """A published file, or all files of a published directory, one after the other."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return b"".join(each.read_bytes() for each in files)
