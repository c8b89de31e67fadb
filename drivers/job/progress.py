"""How far long work is, who is told, and who may end it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from utils.distributed.world import World
from utils.run_log import Progress, progress_line


class StopEncoding(Exception):
    """This process has been asked to stop in the middle of its work; the processes then agree that all of them do."""


@dataclass(frozen=True)
class Monitor:
    """Who looks on while a process works.

    ``should_stop`` is asked after each batch and each block searched whether to stop: it must be cheap, and is
    this process's own affair. ``set_status`` is told as often, in words.
    """

    should_stop: Callable[[], bool] = lambda: False
    set_status: Callable[[str], None] = lambda text: None

    @contextlib.contextmanager
    def over(self, world: World, total: int, doing: str, done: str) -> Iterator[Callable[[int], None]]:
        """What to tell the work's progress to, in a ``with`` statement.

        Args:
            world: the processes; the first one logs.
            total: the amount of this process's work.
            doing: what is done, for the status.
            done: what has been done, for the log.

        Raises:
            StopEncoding: of the function that it gives, when it is time to stop.
        """
        progress = Progress(total, done) if world.is_first else None
        so_far, started = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal so_far
            so_far += count
            if progress is not None:
                progress.advance(count)
            self.set_status(progress_line(doing, so_far, total, time.monotonic() - started))
            if self.should_stop():
                raise StopEncoding

        try:
            yield advance
        finally:
            if progress is not None:
                progress.close()


UNMONITORED = Monitor()
