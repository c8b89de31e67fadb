"""utils.exchange.peers: when the other job is gone, and when to keep waiting for it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.exchanging import LIFE, MEMORY, FakeTime, lease_of, take
from utils.errors import Disagreement, Fenced, PeerGone, Stopped
from utils.exchange.markers import mark_failed, mark_run, read_failed, working
from utils.exchange.peers import ABSENT_LIVES, Peer, watch_peer
from utils.exchange.wait import log_once


@pytest.fixture(autouse=True)
def fresh() -> None:
    log_once.cache_clear()


def watched(directory: Path, time: FakeTime) -> Peer:
    return watch_peer(directory, "generator", LIFE.lease_seconds, clock=time.clock)


def gone_after(peer: Peer, time: FakeTime, limit_seconds: float, step_seconds: float = 1.0) -> float | None:
    """When it is found gone, in seconds from now; None where it is not within the limit."""
    started = time.now
    while time.now - started <= limit_seconds:
        try:
            peer.check()
        except PeerGone as error:
            assert error.exit_code == 4
            return time.now - started
        time.now += step_seconds
    return None


# Silence


def test_a_peer_seen_alive_that_falls_silent(tmp_path: Path) -> None:
    held, time = take(tmp_path, "generator"), FakeTime()
    peer = watched(tmp_path, time)
    for _ in range(50):
        time.now += 50
        held.beat()
        peer.check()
    assert gone_after(peer, time, 1000) == pytest.approx(61)
    with pytest.raises(PeerGone, match=r"the generator \(host .*, process \d+\) has given no sign of life for 61 s: "):
        peer.check()
    held.beat()  # it was only slow
    peer.check()


def test_a_peer_silent_since_the_first_look_may_have_been_requeued(tmp_path: Path) -> None:
    take(tmp_path, "generator")
    time = FakeTime()
    assert gone_after(watched(tmp_path, time), time, 10**4) == pytest.approx(ABSENT_LIVES * LIFE.lease_seconds + 1)


def test_a_peer_that_comes_back_in_time_has_its_life_again(tmp_path: Path) -> None:
    take(tmp_path, "generator")
    time = FakeTime()
    peer = watched(tmp_path, time)
    assert gone_after(peer, time, 500) is None
    again = take(tmp_path, "generator")
    assert again.holder.epoch == 2
    assert gone_after(peer, time, 55) is None
    assert gone_after(peer, time, 60) == pytest.approx(5)


def test_a_peer_that_never_came_is_waited_for_a_day_by_who_needs_it(tmp_path: Path) -> None:
    time = FakeTime()
    peer = watched(tmp_path / "nowhere", time)
    time.now += 10 * 24 * 3600
    peer.check(is_needed=False)
    peer = watched(tmp_path / "nowhere", time)
    gone = gone_after(peer, time, 10**6, step_seconds=1000)
    assert gone is not None and 24 * 3600 < gone <= 24 * 3600 + 1000
    assert not peer.has_ended()


@given(st.lists(st.tuples(st.floats(0.1, 100), st.booleans()), max_size=30))
def test_gone_exactly_when_silent_too_long(happenings: list[tuple[float, bool]]) -> None:
    """Against the definition: since the last change seen, or ten lives since the first look where there was none."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        held, time = take(Path(name), "generator"), FakeTime()
        peer = watched(Path(name), time)
        last, seen = time.now, False
        for pause, beats in happenings:
            time.now += pause
            if beats:
                held.beat()
                last, seen = time.now, True
            expected = time.now - last > (60 if seen else 600)
            assert (gone_after(peer, time, 0) is not None) == expected


# Ends


@pytest.mark.parametrize(("seen", "ended"), [(True, True), (False, False)])
def test_an_end_counts_where_the_peer_was_seen_at_work(tmp_path: Path, seen: bool, ended: bool) -> None:
    held, time = take(tmp_path, "generator"), FakeTime()
    if not seen:
        held.beat("ended")
    peer = watched(tmp_path, time)
    assert not peer.has_ended()
    if seen:
        held.beat("ended")
    assert peer.has_ended() is ended
    assert gone_after(peer, time, 80_000, step_seconds=100) is None, "what it has left is enough, or another comes"
    assert peer.has_ended() is ended
    take(tmp_path, "generator")
    assert not peer.has_ended(), "the next one is at work"


def test_a_peer_that_stopped_is_waited_for_ten_lives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is to be requeued; for how long it waits in the queue nobody knows."""
    peers = []
    for first_look in ("running", "stopped"):
        held, time = take(tmp_path / first_look, "generator"), FakeTime()
        if first_look == "stopped":
            held.beat("stopped")
        peers.append((watched(tmp_path / first_look, time), time))
        held.beat("stopped")
    for peer, time in peers:
        assert not peer.has_ended()
        time.now += 550
        peer.check()
        take(peer.directory, "generator").beat("stopped")  # it came, and had to leave again
        assert gone_after(peer, time, 10**6) == pytest.approx(ABSENT_LIVES * LIFE.lease_seconds + 1)
    said = capsys.readouterr().out
    assert said.count("has stopped with its state saved: waiting for its restart") == 1, "once for a process"


@pytest.mark.parametrize("error", [PeerGone("no sign of life"), Stopped("at step 4"), Fenced("another"), None])
def test_a_peer_that_left_without_failed_json(tmp_path: Path, error: Exception | None) -> None:
    """It left because its own peer was gone, as it sees it: nobody waits for it for ever."""
    time = FakeTime()
    try:
        with working(tmp_path, "generator", LIFE, "run"):
            peer = watched(tmp_path, time)
            if error is not None:
                raise error
    except type(error or KeyError()):
        pass
    assert read_failed(tmp_path) is None
    later = watched(tmp_path, time)
    if isinstance(error, PeerGone):
        with pytest.raises(PeerGone, match=r"the generator has failed \(no sign of life\)"):
            peer.check()
    else:
        peer.check()
    assert peer.has_ended() == (error is None)
    expected = None if error is None else ABSENT_LIVES * LIFE.lease_seconds + 1
    assert gone_after(later, time, 10**4) == expected, "an earlier job's end: the next one has time to come"


# Failures


def test_the_peer_is_gone(tmp_path: Path) -> None:
    time = FakeTime()
    watched(tmp_path, time).check()
    peer = watched(tmp_path, time)
    with pytest.raises(ZeroDivisionError), working(tmp_path, "generator", LIFE, "run"):
        _ = 1 / 0
    with pytest.raises(PeerGone, match=r"the generator has failed \(ZeroDivisionError: division by zero\)") as caught:
        peer.check()
    assert caught.value.exit_code == 4
    watched(tmp_path, time).check()  # a failure that lay there before is an earlier run's
    with working(tmp_path, "generator", LIFE, "run"):  # one that starts again takes its own back
        peer.check()


def test_the_same_failure_twice_is_seen_twice(tmp_path: Path) -> None:
    lease = lease_of(tmp_path, "generator")
    mark_failed(lease, "reason")
    peer = watched(tmp_path, FakeTime())
    peer.check()
    mark_failed(lease, "reason")
    with pytest.raises(PeerGone, match=r"the generator has failed \(reason\)"):
        peer.check()


def test_a_peer_of_other_flags(tmp_path: Path) -> None:
    """Looked at once, as soon as it has said what it was started with."""
    runs: list[dict[str, Any]] = []

    def check(run: dict[str, Any]) -> None:
        runs.append(run)
        if run["science"]["seed"] != 1:
            raise Disagreement("seed 2 there, 1 here")

    for seed in (1, 2):
        directory = tmp_path / str(seed)
        peer = watch_peer(directory, "generator", 60, check, FakeTime().clock)
        peer.check()
        mark_run(lease_of(directory, "generator"), science={"seed": seed})
        if seed == 1:
            peer.check()
            peer.check()
            assert len(runs) == 1 and runs[0]["role"] == "generator"
        else:
            for _ in range(2):
                with pytest.raises(Disagreement, match=re.escape("seed 2 there, 1 here")):
                    peer.check()
