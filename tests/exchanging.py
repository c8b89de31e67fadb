"""What the tests of the exchange share: a clock of their own, leases without a program around them, small versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.exchange.atomic import STAGING
from utils.exchange.checkpoints import publish_checkpoint
from utils.exchange.layout import LEASES, JobLayout
from utils.exchange.lease.acquire import acquire
from utils.exchange.lease.held import Lease
from utils.exchange.lease.record import (
    LeaseRecord,
    LeaseTimeouts,
    newest_epoch,
    parse_beat,
    read_beat_text,
    read_holder,
)
from utils.exchange.negatives import Refresh, publish_negatives

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where syncing many small files takes no time
LIFE = LeaseTimeouts(heartbeat_seconds=10, lease_seconds=60)
HELD: dict[tuple[Path, str], Lease] = {}


class FakeTime:
    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def take(directory: Path, role: str = "trainer", time: FakeTime | None = None, lock: int | None = None) -> Lease:
    """The role, as a job on another host would take it: where a silent one holds it, after its life on a fake clock."""
    time = time or FakeTime()
    return acquire(directory, role, LIFE, "run", lock, time.clock, time.sleep)


def lease_of(directory: Path, role: str = "trainer") -> Lease:
    """The lease that this test took before, or one taken now."""
    held = HELD.get((directory, role))
    if held is None or not held.staging.exists():
        held = HELD[directory, role] = take(directory, role)
    return held


def read_lease(directory: Path, role: str) -> LeaseRecord | None:
    """The lease of the highest epoch."""
    epoch = newest_epoch(directory, role)
    return read_holder(directory, role, epoch) if epoch else None


def read_beat(directory: Path, role: str) -> dict[str, Any] | None:
    """The newest sign of life of the role, None where nobody ever had it."""
    epoch = newest_epoch(directory, role)
    return parse_beat(read_beat_text(directory, role, epoch)) if epoch else None


def put_checkpoint(directory: Path, step: int, weights: bytes = b"weights", **record: Any) -> Path:
    with publish_checkpoint(lease_of(directory), step, record) as staging:
        (staging / "model.safetensors").write_bytes(weights)
        (staging / "config.json").write_text("{}")
    return JobLayout(directory).checkpoint(step)


def put_negatives(directory: Path, refresh: int, text: str = "1\t2\t3\n", **record: Any) -> Refresh:
    record = {"ndcg": 0.5, "step": 100 * refresh, "checkpoint": f"checkpoint-{100 * refresh}", **record}
    lease = lease_of(directory, "generator")
    return publish_negatives(lease, refresh, lambda path: path.write_text(text) and None, record)


def names(directory: Path) -> list[str]:
    """What readers and people see: all but leases and staging."""
    return sorted(path.name for path in directory.iterdir() if path.name not in (LEASES, STAGING))


def staged(directory: Path) -> list[str]:
    """What lies in the staging directories, whose own names are not shown."""
    return sorted("/".join(path.relative_to(directory).parts[2:]) for path in directory.glob(f"{STAGING}/*/**/*"))


def flip_byte(path: Path, place: int = 0) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 0x10
    path.write_bytes(damaged)
