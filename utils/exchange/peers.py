"""Watching the other job: whether it lives, has ended or failed, and whether it was started with the same flags."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import PeerGone
from utils.exchange.lease.record import ENDED, FAILED_STATE, RUNNING, STOPPED, parse_beat
from utils.exchange.lease.watch import Watch
from utils.exchange.markers import read_failed, read_run
from utils.exchange.wait import log_once

# A job whose heartbeat stood still when we first looked may have been requeued; it has so many of its lease's lives.
ABSENT_LIVES = 10
NEVER_CAME_SECONDS = 24 * 3600.0  # a job may wait so long in a queue before it begins


@dataclass
class Peer:
    """The other job's directory and role, and what lay there when we first looked: an earlier job's."""

    directory: Path
    role: str
    watch: Watch
    old_failure: dict[str, Any] | None
    check_run: Callable[[dict[str, Any]], None]  # given the peer's RUN.json, once
    run_checked: bool = False

    def check(self, is_needed: bool = True) -> None:
        """PeerGone once the peer has failed or is silent for longer than its lease lives.

        ``is_needed``: this job waits for it, and does not wait for ever for one that never began.
        Disagreement where it was started with other flags than this job.
        """
        if not self.run_checked and (run := read_run(self.directory)) is not None:
            self.check_run(run)
            self.run_checked = True
        failed = read_failed(self.directory)
        if failed is not None and failed != self.old_failure:
            role, reason = failed.get("role", "other job"), failed.get("reason", "no reason given")
            raise PeerGone(f"the {role} has failed ({reason}): fix it and start both again")
        state = self.watch.look()
        if state == STOPPED:
            log_once(f"the {self.role} ({self.watch.holder}) has stopped with its state saved: waiting for its restart")
        if state in (RUNNING, STOPPED, FAILED_STATE):
            self.check_absence(state)
        elif is_needed and not self.watch.seen_alive and self.watch.silent_seconds > NEVER_CAME_SECONDS:
            raise PeerGone(
                f"no {self.role} has begun to work in {self.directory} for a day; start it, and this one again"
            )

    def check_absence(self, state: str) -> None:
        """A job that we saw at work may be silent for one life of its lease, one that may come back for ten."""
        watch = self.watch
        lease_seconds = watch.holder.lease_seconds if watch.holder else watch.lease_seconds
        again = "see its log, and start both again with the same flags to resume"
        if state == FAILED_STATE and watch.seen_alive:
            # Without FAILED.json: its peer was gone, or its disk.
            reason = parse_beat(watch.text).get("error") or "see its log"
            raise PeerGone(f"the {self.role} has failed ({reason}): fix it and start both again")
        lives = 1 if state == RUNNING and watch.seen_alive else ABSENT_LIVES
        if watch.silent_seconds > lives * lease_seconds:
            raise PeerGone(
                f"the {self.role} ({watch.holder}) has given no sign of life for {watch.silent_seconds:.0f} s: {again}"
            )

    def has_ended(self) -> bool:
        """Whether a job that was at work since our first look has ended properly: nothing will come any more.

        Ask before looking for what it publishes: it may do so and end in between.
        """
        return self.watch.look() == ENDED and self.watch.seen_alive


def watch_peer(
    directory: Path,
    role: str,
    lease_seconds: float,
    check_run: Callable[[dict[str, Any]], None] = lambda run: None,
    clock: Callable[[], float] = time.monotonic,
) -> Peer:
    """The first look: failures and silences from before it are an earlier job's.

    Args:
        directory, role: the other job's.
        lease_seconds: of silence, after which it counts as dead where its lease cannot be read.
        check_run: given its RUN.json, once; raises Disagreement where it was started with other flags.
        clock: seconds of this host.
    """
    watch = Watch(directory, role, lease_seconds, clock)
    watch.look()
    return Peer(directory, role, watch, read_failed(directory), check_run)
