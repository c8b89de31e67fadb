"""Long work that another job may take over: every process sees it for itself, stops, and can publish nothing more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from drivers.job.session import Session
from utils.distributed import collectives
from utils.distributed.world import World
from utils.errors import Fenced
from utils.exchange.atomic import is_gone, staging_path
from utils.exchange.wait import now_and_then


@dataclass(frozen=True)
class Fence:
    """Stands as long as the staging directory of the lease does, which process 0 holds: who takes over removes it."""

    world: World
    staging: Path

    def stage(self, directory: Path, name: str) -> contextlib.AbstractContextManager[Path]:
        """A place for a file that is being written: Fenced where another job has taken over."""
        return staging_path(directory, name, self.staging)

    def check(self) -> None:
        """Fenced on all processes where one of them sees that another job has taken this one's role over."""
        if collectives.any_process(self.world, is_gone(self.staging)):
            raise Fenced("another job has taken this one's role over; it ends")

    def should_stop(self, asked: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
        """``asked``, and now and then a look at the fence.

        Else the other processes would encode for hours more after process 0, which alone holds the lease, has ended.
        """
        is_fenced = now_and_then(partial(is_gone, self.staging), clock)
        return lambda: is_fenced() or asked()


def fence_of(session: Session) -> Fence:
    """All processes together."""
    staging = str(session.lease.staging) if session.lease is not None else None
    return Fence(session.world, Path(collectives.broadcast_json(session.world, staging)))
