"""A role that this process holds: where it stages what it publishes, and the heartbeat by which others see it alive."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import Fenced
from utils.exchange import atomic
from utils.exchange.layout import JobLayout
from utils.exchange.lease.record import RUNNING, LeaseRecord
from utils.json_text import json_text


@dataclass
class Lease:
    """A role held by this process. ``status`` is what the next heartbeat tells."""

    directory: Path
    holder: LeaseRecord
    count: int = 0
    status: dict[str, Any] = field(default_factory=dict)
    previous: dict[str, Any] = field(default_factory=dict)  # the last heartbeat of the holder before
    lost: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)
    ending: threading.Event = field(default_factory=threading.Event)

    @property
    def staging(self) -> Path:
        return JobLayout(self.directory).staging / self.holder.staging

    def stage(self, directory: Path, name: str) -> contextlib.AbstractContextManager[Path]:
        """A place for a file that is being written: Fenced at the end of the block where another job has the role."""
        return atomic.staging_path(directory, name, self.staging)

    def set_status(self, **values: Any) -> None:
        """What the next heartbeat says of the work: step, refresh, doing, rate, …"""
        self.status = {**self.status, **values}

    def check(self) -> None:
        """Fenced once another job has the role."""
        if self.lost:
            raise self.fenced()

    def fenced(self) -> Fenced:
        return Fenced(
            f"another {self.holder.role} works in {self.directory} now; this one was silent too long and ends"
        )

    def beat(self, state: str = RUNNING, **values: Any) -> None:
        """Publish a sign of life. Errors of the disk pass: the next one may come through."""
        with self.guard:
            self.count += 1
            record = {"epoch": self.holder.epoch, "count": self.count, "state": state, **self.status, **values}
            path = JobLayout(self.directory).heartbeat(self.holder.role, self.holder.epoch)
            staged = self.staging / f"beat-{self.count}"
            try:
                staged.write_text(json_text({**record, "time": round(time.time(), 3)}, default=str) + "\n")
                staged.replace(path)
            except OSError:
                self.lost = self.lost or atomic.is_gone(self.staging)
                with contextlib.suppress(OSError):
                    staged.unlink()

    def keep_beating(self) -> None:
        """The thread's work. Nothing may end it: a job without a heartbeat is taken over while it works."""
        while not self.ending.wait(self.holder.heartbeat_seconds) and not self.lost:
            self.beat()


@contextlib.contextmanager
def beating(lease: Lease) -> Iterator[None]:
    """Signs of life for the block, by a thread of their own."""
    thread = threading.Thread(target=lease.keep_beating, name=f"heartbeat of the {lease.holder.role}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        lease.ending.set()
        thread.join()
