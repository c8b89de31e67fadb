"""Flags of the jobs that share a run directory: signs of life, resuming, when negatives are refreshed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from utils.exchange.lease.record import DEFAULT_TIMEOUTS
from utils.flag_groups.common import seconds_flag
from utils.flag_values import LARGEST_INTEGER, Group, flag


@dataclass(frozen=True, kw_only=True)
class ExchangeFlags:
    """How a job shows that it lives, and resumes where an earlier one stopped."""

    GROUP: ClassVar[Group] = "job"

    resume: Literal["auto", "never"] = flag(
        "auto",
        "auto: resume where the directory holds a run of the same flags; never: refuse such a directory",
        decides="nothing",
    )
    heartbeat_seconds: float = seconds_flag(DEFAULT_TIMEOUTS.heartbeat_seconds, "between two signs of life of a job")
    lease_seconds: float = seconds_flag(
        DEFAULT_TIMEOUTS.lease_seconds,
        "a job silent for so long counts as dead; keep it above the minute that network file systems may cache",
    )


@dataclass(frozen=True, kw_only=True)
class RefreshFlags(ExchangeFlags):
    """Which checkpoint a refresh is made from; trainer and generator must be given the same."""

    GROUP: ClassVar[Group] = "refresh"

    refresh_mode: Literal["async", "lockstep"] = flag(
        "async", "async: the newest wins (ANCE); lockstep: refresh N is made from step N*steps_per_refresh"
    )
    steps_per_refresh: int = flag(
        0, "lockstep: trainer steps between two refreshes", at_least=0, at_most=LARGEST_INTEGER
    )
    refresh_lag: Literal[0, 1] = flag(0, "lockstep: 0 the trainer waits for each refresh, 1 both work at once")
