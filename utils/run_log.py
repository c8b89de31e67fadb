"""What a program says: the `.out` header, the JSON lines that scripts match, progress, metrics.jsonl, TensorBoard.

Only the process that speaks (process 0) makes a `RunLog`; the same numbers go to every place.
"""

from __future__ import annotations

import contextlib
import json
import platform
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from utils.json_text import json_text

VERSIONS_SHOWN = ("torch", "transformers", "tokenizers", "numpy", "faiss-cpu", "faiss-gpu", "bm25s")
REPOSITORY = Path(__file__).resolve().parent.parent


def say(text: str, stream: TextIO | None = None) -> None:
    """One line to the log, at once."""
    stream = sys.stdout if stream is None else stream
    stream.write(text + "\n")
    stream.flush()


class Progress:
    """Rate and ETA of long work: a line every ``every_seconds``, a tqdm bar on a terminal.

    Shorter work than ``every_seconds`` says nothing at all.
    """

    def __init__(
        self,
        total: int | None,
        what: str,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.what, self.every_seconds, self.clock = total, what, every_seconds, clock
        self.stream = sys.stderr if stream is None else stream
        self.done = 0
        self.started = self.reported = clock()
        self.bar: Any = None
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, file=self.stream, unit_scale=True)

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            return
        now = self.clock()
        if now - self.reported >= self.every_seconds:
            self.reported = now
            say(progress_line(self.what, self.done, self.total, now - self.started), self.stream)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def progress_line(what: str, done: int, total: int | None, seconds: float) -> str:
    """How far a loop is, its rate, and when it will have ended.

    Args:
        what: stands before the number: what is counted.
        done: how many so far.
        total: how many there will be; None where that is not known.
        seconds: since it started.
    """
    rate = done / seconds if seconds > 0 else 0.0
    text = f"{what} {done:,}"
    if total:
        text += f"/{total:,} ({100 * done / total:.0f}%)"
    text += f", {rate:,.1f}/s"
    if total and rate > 0:
        text += f", ETA {timedelta(seconds=round((total - done) / rate))}"
    return text


def git_state(repository: Path = REPOSITORY) -> dict[str, Any]:
    """The commit this code is, and whether the tree differs from it; None where git cannot tell."""

    def git(*argv: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(repository), *argv], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def installed_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in VERSIONS_SHOWN:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def header(program: str, run_id: str, flags_as_json: str, devices: list[str]) -> list[str]:
    """The first lines of every `.out`: enough to say later what ran where.

    Args:
        program: its name, such as run_ann.
        run_id: this process's run.
        flags_as_json: the resolved flags.
        devices: the name of each process's.
    """
    git = git_state()
    return [
        f"program {program} run {run_id} host {socket.gethostname()} devices {', '.join(devices)}",
        f"versions {json.dumps(installed_versions())} git {json.dumps(git)}",
        f"flags {flags_as_json}",
    ]


def cut(path: Path, size: int) -> None:
    """Leave the first ``size`` bytes, in a new file: a job that lost its lease may still write to the old one."""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(size)
        staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        staged.write_bytes(head)
        staged.replace(path)


class EventFile:
    """What tensorboardX writes through. A disk that is full is told once, by whom it stops; here it costs a curve.

    tensorboardX writes from a thread and at exit, where an error would be a traceback below the program's own line.
    """

    def __init__(self, path: str) -> None:
        self.file: Any = Path(path).open("wb")  # noqa: SIM115 - tensorboardX closes it

    def write(self, data: bytes) -> None:
        self.attempt(lambda: self.file.write(data))

    def flush(self) -> None:
        self.attempt(lambda: self.file.flush())

    def close(self) -> None:
        self.attempt(lambda: self.file.close())

    def attempt(self, action: Callable[[], object]) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed by an error already
            action()


class EventFiles:
    """A factory of tensorboardX's for paths that begin with ``PREFIX:``."""

    PREFIX = "events"

    @classmethod
    def directory_check(cls, path: str) -> None:
        Path(path.removeprefix(f"{cls.PREFIX}:")).mkdir(parents=True, exist_ok=True)

    @classmethod
    def open(cls, path: str) -> EventFile:
        return EventFile(path.removeprefix(f"{cls.PREFIX}:"))


def open_tensorboard(directory: Path, purge_step: int | None) -> Any:
    """A SummaryWriter; what an earlier job wrote from ``purge_step`` on is not shown."""
    from tensorboardX import SummaryWriter
    from tensorboardX.record_writer import REGISTERED_FACTORIES, register_writer_factory

    if EventFiles.PREFIX not in REGISTERED_FACTORIES:
        register_writer_factory(EventFiles.PREFIX, EventFiles)
    return SummaryWriter(f"{EventFiles.PREFIX}:{directory}", purge_step=purge_step)


class RunLog:
    """The log of one training or generating process.

    Writes to stdout, ``path`` (a job's metrics.jsonl) and, where ``tensorboard_dir`` is given, TensorBoard.
    """

    def __init__(
        self,
        path: Path,
        tensorboard_dir: Path | None,
        clock: Callable[[], float] = time.time,
        resumes_at: tuple[int, int] | None = None,
    ) -> None:
        """``resumes_at`` (step, bytes of metrics.jsonl): what an earlier job wrote after that is written again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.clock = clock
        if resumes_at is not None:
            cut(path, resumes_at[1])
        self.file = path.open("a", encoding="utf-8")
        self.writer: Any = None
        if tensorboard_dir is not None:
            self.writer = open_tensorboard(tensorboard_dir, resumes_at[0] if resumes_at else None)

    @property
    def bytes(self) -> int:
        """How much of metrics.jsonl is written."""
        return self.file.tell()

    def record(self, step: int, **values: float | int | str) -> None:
        """Numbers of one step to metrics.jsonl and TensorBoard, nothing to stdout."""
        self.file.write(json_text({"step": step, **values, "time": round(self.clock(), 3)}) + "\n")
        self.file.flush()
        if self.writer is not None:
            for name, value in values.items():
                if not isinstance(value, str):
                    self.writer.add_scalar(name, value, step)

    def training(self, step: int, learning_rate: float, loss: float, **values: float) -> None:
        """ANCE's bare JSON line; scripts in the wild match its keys and their order, and NaN as Python spells it."""
        say(json.dumps({"learning_rate": learning_rate, "loss": loss, "step": step}))
        self.record(step, learning_rate=learning_rate, loss=loss, **values)

    def dev_ndcg(self, value: float, step: int) -> None:
        """ANCE's line when new negatives arrive; the step is the one of the checkpoint they were made from."""
        say(f"dev_ndcg {value} {step}")
        self.record(step, dev_ndcg=value)

    def close(self) -> None:
        self.file.close()
        if self.writer is not None:
            self.writer.close()
