"""How far long work is, who is told, and who may end it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from utils.distributed import World
from utils.run_log import Progress, progress_line


class Left(Exception):
    """This rank has been asked to stop in the middle of its work; the ranks then agree that all of them do."""


@dataclass(frozen=True)
class Watch:
    """Who looks on while a rank works.

    ``leave`` is asked after each batch and each block searched whether to stop: it must be cheap, and is
    this rank's own affair. ``doing`` is told as often, in words.
    """

    leave: Callable[[], bool] = lambda: False
    doing: Callable[[str], None] = lambda text: None

    @contextlib.contextmanager
    def over(self, world: World, total: int, doing: str, done: str) -> Iterator[Callable[[int], None]]:
        """What to tell the work's progress to: it raises `Left` when it is time to leave."""
        progress = Progress(total, done) if world.is_first else None
        so_far, started = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal so_far
            so_far += count
            if progress is not None:
                progress.advance(count)
            self.doing(progress_line(doing, so_far, total, time.monotonic() - started))
            if self.leave():
                raise Left

        try:
            yield advance
        finally:
            if progress is not None:
                progress.close()


UNWATCHED = Watch()
