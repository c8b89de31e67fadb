"""A program at work in its directory: its processes, the lease, and what may ask it to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from utils.distributed import agreement, collectives
from utils.distributed.world import World
from utils.errors import Fenced, PeerGone, Stopped
from utils.exchange import markers
from utils.exchange.lease.held import Lease
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.peers import Peer
from utils.exchange.stop import Stop, StopRequested
from utils.exchange.wait import VISIBLE_WITHIN_SECONDS

Answer = TypeVar("Answer")

# Processes


@dataclass(frozen=True)
class Session:
    """A program at work in its directory: its processes, on process 0 the lease, and what may ask it to stop."""

    world: World
    stop: Stop
    lease: Lease | None

    def set_status(self, **values: object) -> None:
        """What the heartbeat says of the work from now on."""
        if self.lease is not None:
            self.lease.set_status(**values)

    def check_stop(self) -> None:
        """StopRequested on all processes together once one was asked to stop; Fenced where the lease is lost."""
        lost = self.lease is not None and self.lease.lost
        asked = collectives.sum_over_processes(self.world, 1000.0 * lost + bool(self.stop.requested()))
        if lost:
            assert self.lease is not None
            self.lease.check()
        if asked >= 1000:
            raise Fenced("another job has taken this one's role over; it ends")
        if asked:
            raise StopRequested(self.stop.reason())

    def stopped(self, where: str) -> Stopped:
        """The state is saved: what to raise. ``where`` says at which step, and as what it was saved."""
        by = self.stop.reason()
        if self.world.is_first:
            self.stop.taken()
        return Stopped(f"stopped by {by} {where}; start again with the same flags to resume")

    def decide_on_process0(
        self, look: Callable[[], Answer], peer: Peer | None = None, is_needed: bool = True
    ) -> Answer:
        """Process 0 looks, all processes get its answer or its error; PeerGone on all of them where the peer is gone.

        The answer is what JSON holds.

        ``is_needed``: this job cannot continue without what it looks for, so that a peer that has ended properly is
        gone too.

        The others never wait long in a collective: each look is one short exchange, waiting is done between them.
        """
        self.check_stop()

        def decide() -> Answer:
            has_ended = is_needed and peer is not None and peer.has_ended()
            found = look()
            if found is None and peer is not None:
                peer.check(is_needed)
                # What it published last may still be hidden by a cache.
                if has_ended and peer.watch.silent_seconds > VISIBLE_WITHIN_SECONDS:
                    raise PeerGone(f"the {peer.role} has ended, and what this job waits for will not come; see its log")
            return found

        answer: Answer = agreement.decide_on_process0(self.world, decide)
        return answer


@contextlib.contextmanager
def open_session(world: World, directory: Path, role: str, timeouts: LeaseTimeouts, run_id: str) -> Iterator[Session]:
    """Hold a role for the block; requests to stop are noted from here on instead of ending the program.

    Args:
        world: all processes together.
        directory: where the role is held.
        role: trainer, generator or warmup.
        timeouts: of the lease.
        run_id: this job's own.
    """
    stop = Stop(directory)
    with contextlib.ExitStack() as stack:
        working = markers.working(directory, role, timeouts, run_id)
        lease = agreement.on_process0(world, partial(stack.enter_context, working))
        stack.enter_context(stop.listening())
        session = Session(world, stop, lease)
        try:
            yield session
        except StopRequested:
            raise session.stopped("before its work began, with nothing to save") from None
