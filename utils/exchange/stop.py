"""Stopping on request: SIGTERM, SIGINT or a stop file, taken at the next step or batch with the state saved.

The handlers only note the signal. Whoever works asks `Stop.requested` between two steps, agrees with the other
processes, saves, calls `Stop.taken` and ends with exit code 75.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.layout import TAKEN, JobLayout

STOP_FILE = "ANCE_STOP_FILE"  # names the stop file of a job script
LOOK_EVERY_SECONDS = 1.0


class StopRequested(UserError):
    """Raised on all processes together where a stop is taken; programs save their state and turn it into `Stopped`."""


class Stop:
    """Whether this process has been asked to stop, and by what."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory_file = JobLayout(directory).stop
        given = os.environ.get(STOP_FILE)
        self.job_file = Path(given) if given else None
        self.clock = clock
        self.signal_name = ""
        self.file_name = ""
        self.looked = -LOOK_EVERY_SECONDS

    def requested(self) -> str:
        """The signal or the file that asks to stop; empty where nothing does. Files are looked at once a second."""
        if self.signal_name or self.file_name:
            return self.signal_name or self.file_name
        now = self.clock()
        if now - self.looked >= LOOK_EVERY_SECONDS:
            self.looked = now
            for path in (self.directory_file, self.job_file):
                if path is not None and atomic.exists(path):
                    self.file_name = str(path)
        return self.file_name

    def reason(self) -> str:
        """What asked, once all processes know that one was: looked at again, another may have seen the file first."""
        self.looked = -math.inf
        return self.requested() or "another process"

    def taken(self) -> None:
        """The state is saved: say so to the job script, and let the next job not stop at the same files."""
        self.directory_file.unlink(missing_ok=True)
        if self.job_file is not None:
            self.job_file.with_name(self.job_file.name + TAKEN).touch()
            self.job_file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note SIGTERM and SIGINT instead of ending; a second SIGINT interrupts at once, for people at a terminal."""

        def note(number: int, _frame: Any) -> None:
            if number == signal.SIGINT and self.signal_name == "SIGINT":
                raise KeyboardInterrupt
            self.signal_name = signal.Signals(number).name

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
