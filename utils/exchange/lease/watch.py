"""Whether a holder lives: its heartbeat file's text has to change, measured by the reader's own clock.

No file times and no other host's clock count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.exchange.lease.record import RUNNING, LeaseRecord, newest_epoch, parse_beat, read_beat_text, read_holder


@dataclass
class Watch:
    """Looks at a role's heartbeat again and again, and knows for how long it has been silent.

    ``changes``: how often the heartbeat has changed, or a new epoch begun, since the first look.
    """

    directory: Path
    role: str
    lease_seconds: float  # where the lease itself cannot be read
    clock: Callable[[], float] = time.monotonic
    epoch: int = -1
    text: bytes = b""
    changed: float = 0.0
    changes: int = 0
    holder: LeaseRecord | None = None

    def look(self) -> str:
        """The state of the newest epoch: '' where there is none."""
        now, epoch = self.clock(), newest_epoch(self.directory, self.role)
        text = read_beat_text(self.directory, self.role, epoch) if epoch else b""
        if (epoch, text) != (self.epoch, self.text):
            self.changes += self.epoch >= 0  # the first look is no change
            if epoch != self.epoch:
                self.holder = read_holder(self.directory, self.role, epoch) if epoch else None
            self.epoch, self.text, self.changed = epoch, text, now
        if not epoch:
            return ""
        return str(parse_beat(text).get("state", RUNNING))

    @property
    def seen_alive(self) -> bool:
        return self.changes > 0

    @property
    def silent_seconds(self) -> float:
        return self.clock() - self.changed

    @property
    def is_silent(self) -> bool:
        """For longer than its lease lives."""
        return self.silent_seconds > (self.holder.lease_seconds if self.holder else self.lease_seconds)
