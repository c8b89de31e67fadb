"""Flags, and kinds of flags, that groups of several files have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from utils.flag_values import LARGEST_INTEGER, LONGEST_SECONDS, Group, flag


def seconds_flag(default: float, help_text: str) -> float:
    """How long: it decides nothing."""
    return flag(default, help_text, above=0, at_most=LONGEST_SECONDS, decides="nothing")


@dataclass(frozen=True, kw_only=True)
class SeedFlags:
    GROUP: ClassVar[Group] = "job"

    seed: int = flag(42, "seed of every random choice", at_least=0, at_most=LARGEST_INTEGER)
