"""What a lease and a heartbeat say, and reading them: ``.leases/ROLE-E.json`` and the file that its holder rewrites."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.layout import JobLayout

RUNNING, ENDED, STOPPED, FAILED_STATE = "running", "ended", "stopped", "failed"


@dataclass(frozen=True)
class LeaseTimeouts:
    """How often a holder gives a sign of life, and after what silence it counts as dead."""

    heartbeat_seconds: float
    lease_seconds: float


DEFAULT_TIMEOUTS = LeaseTimeouts(10.0, 180.0)  # above the minute that network file systems may cache


@dataclass(frozen=True)
class LeaseRecord:
    """A lease as it is published. ``locked``: its holder has the flock, which its kernel gives back when it dies."""

    role: str
    epoch: int
    host: str
    boot_id: str
    pid: int
    run_id: str
    job: str
    heartbeat_seconds: float
    lease_seconds: float
    locked: bool
    staging: str
    time: float

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}" + (f", job {self.job}" if self.job else "")


def newest_epoch(directory: Path, role: str) -> int:
    """0 where nobody ever had the role."""
    pattern = re.compile(rf"{re.escape(role)}-([1-9][0-9]*)\.json")
    matches = (pattern.fullmatch(name) for name in atomic.listing(JobLayout(directory).leases))
    return max((int(match[1]) for match in matches if match), default=0)


def read_holder(directory: Path, role: str, epoch: int) -> LeaseRecord | None:
    """The lease of an epoch; None where it is not there or damaged: then only its heartbeat tells."""
    try:
        return LeaseRecord(**atomic.load_with_checksum(JobLayout(directory).lease(role, epoch)))
    except (UserError, OSError, TypeError):
        return None


def read_beat_text(directory: Path, role: str, epoch: int) -> bytes:
    """Empty where there is none yet."""
    try:
        return JobLayout(directory).heartbeat(role, epoch).read_bytes()
    except OSError:
        return b""


def parse_beat(text: bytes) -> dict[str, Any]:
    """A beat that cannot be read says nothing: it still counts as a change."""
    try:
        value = json.loads(text)
    except (ValueError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
