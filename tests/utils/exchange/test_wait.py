"""utils.exchange.wait: patient, but neither silent nor deaf."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.exchanging import FakeTime
from utils.errors import UserError
from utils.exchange import wait
from utils.exchange.wait import log_once, wait_for, wait_until_visible


def test_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    """Quick looks at first, one every ten seconds later, a line soon and then each minute, and the answer as it is."""
    time, looks = FakeTime(), []

    def look() -> str | None:
        looks.append(time.now)
        return "it" if time.now > 1400 else None

    assert wait_for(look, "a thing", time.sleep, time.clock) == "it"
    pauses = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert pauses[0] == pytest.approx(0.1) and pauses[-1] == pytest.approx(10.0)
    assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(pauses))
    assert max(time.pauses) <= 0.5, "a signal that leaves a note is not kept waiting"
    assert looks[-1] <= 1411
    said = capsys.readouterr().out.splitlines()
    assert [bool(re.fullmatch(r"waiting for a thing since \d+ s", line)) for line in said] == [True] * len(said)
    assert len(said) == 7 and said[0] in ("waiting for a thing since 5 s", "waiting for a thing since 6 s")


def test_waiting_takes_what_is_there_at_once_and_zero_is_an_answer() -> None:
    time = FakeTime()
    assert wait_for(lambda: 0, "a number", time.sleep, time.clock) == 0
    assert time.pauses == []


@given(st.floats(0, 1000))
def test_waiting_has_a_limit(limit_seconds: float) -> None:
    """It looks until then, and hardly longer."""
    time = FakeTime()
    with pytest.raises(UserError, match=f"a thing did not appear within {limit_seconds:.0f} s"):
        wait_for(lambda: None, "a thing", time.sleep, time.clock, limit_seconds=limit_seconds, quiet=True)
    assert limit_seconds < time.now - 1000 <= limit_seconds + 10.5


def test_quiet_waiting_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    time = FakeTime()
    wait_for(lambda: time.now > 1500 or None, "a thing", time.sleep, time.clock, quiet=True)
    assert capsys.readouterr().out == ""


@given(st.floats(0, 300))
def test_who_is_in_a_hurry_looks_within_half_a_second(at: float) -> None:
    time = FakeTime()

    def look() -> float | None:
        return time.now if time.now >= 1000 + at else None

    found = wait_for(look, "a stop", time.sleep, time.clock, quiet=True, wake_early=lambda: time.now >= 1000 + at)
    assert 1000 + at <= found <= 1000 + at + 0.5 + 1e-6


def test_an_error_of_the_look_ends_the_waiting() -> None:
    time = FakeTime()

    def look() -> None:
        if time.now > 1003:
            raise KeyError("gone")

    with pytest.raises(KeyError):
        wait_for(look, "a thing", time.sleep, time.clock)
    assert time.now < 1005


def test_a_name_that_a_cache_hides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until_visible(tmp_path)
    monkeypatch.setattr(wait, "VISIBLE_WITHIN_SECONDS", 0.05)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'x'} did not appear within")):
        wait_until_visible(tmp_path / "x")


def test_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    log_once.cache_clear()
    for text in ("passed over a", "passed over b", "passed over a"):
        log_once(text)
    assert capsys.readouterr().out == "passed over a\npassed over b\n"
