"""Waiting for what another job publishes: quick polls first, a word in the log now and then, never a busy loop."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, TypeVar

from utils.errors import UserError
from utils.exchange import atomic
from utils.run_log import say

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 10.0
LONGEST_SLEEP_SECONDS = 0.5  # a signal that only leaves a note must not have to wait for the next poll
FIRST_WORD_SECONDS, SAY_EVERY_SECONDS = 5.0, 60.0
LOOK_EVERY_SECONDS = 2.0  # at what seldom changes, while working
VISIBLE_WITHIN_SECONDS = 120.0  # attribute caches of network file systems hide new names for up to a minute

Found = TypeVar("Found")


@functools.cache
def log_once(text: str, stream: TextIO | None = None) -> None:
    """What is found again at every look is said at the first."""
    say(text, stream)


def wait_for(
    look: Callable[[], Found | None],
    what: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    limit_seconds: float = math.inf,
    quiet: bool = False,
    wake_early: Callable[[], object] = lambda: False,
) -> Found:
    """Look until there is something: soon, then every ten seconds; the log says each minute that we wait.

    Args:
        look: gives what is found, None as long as there is nothing.
        what: is waited for, in the log's words.
        sleep, clock: in seconds.
        limit_seconds: after which nothing is a UserError.
        quiet: say nothing.
        wake_early: asked twice a second while sleeping; where it is true, the next look follows at once.
    """
    started = clock()
    next_word = started + FIRST_WORD_SECONDS
    pause_seconds = FIRST_POLL_SECONDS
    while True:
        found = look()
        if found is not None:
            return found
        now = clock()
        if now - started > limit_seconds:
            raise UserError(
                f"{what} did not appear within {limit_seconds:.0f} s; is the directory shared with this host?"
            )
        if now >= next_word and not quiet:
            next_word = now + SAY_EVERY_SECONDS
            say(f"waiting for {what} since {now - started:.0f} s")
        left_seconds = pause_seconds
        while left_seconds > 0 and not wake_early():
            sleep(min(left_seconds, LONGEST_SLEEP_SECONDS))
            left_seconds -= LONGEST_SLEEP_SECONDS
        pause_seconds = min(pause_seconds * 1.3, LONGEST_POLL_SECONDS)


def wait_until_visible(path: Path) -> None:
    """A name that another host has just published may be hidden by an attribute cache for a while."""
    wait_for(lambda: atomic.exists(path) or None, str(path), limit_seconds=VISIBLE_WITHIN_SECONDS)


def now_and_then(look: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """``look``, called every LOOK_EVERY_SECONDS at most: False until it has said True once, True from then on."""
    looked, found = clock(), False

    def is_found() -> bool:
        nonlocal looked, found
        if not found and clock() - looked >= LOOK_EVERY_SECONDS:
            looked, found = clock(), look()
        return found

    return is_found
