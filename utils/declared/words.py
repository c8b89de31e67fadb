"""Help of a flag that takes one of several declared words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Described(Protocol):
    @property
    def description(self) -> str: ...


def words_help(words: Mapping[str, Described]) -> str:
    """For --help: each word with its description."""
    return "; ".join(f"{word}: {declared.description}" for word, declared in words.items())
