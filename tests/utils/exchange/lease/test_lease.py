"""utils.exchange.lease: one holder of a role, judged by its heartbeat and nothing else."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import REPO
from tests.exchanging import LIFE, MEMORY, FakeTime, flip_byte, read_beat, read_lease, take
from utils.errors import Fenced, PeerGone, Stopped, UserError
from utils.exchange import atomic
from utils.exchange.atomic import STAGING
from utils.exchange.layout import LEASES, JobLayout
from utils.exchange.lease import acquire as acquire_module
from utils.exchange.lease.acquire import acquire, flock_if_free, role_held, try_epoch
from utils.exchange.lease.held import Lease
from utils.exchange.lease.record import LeaseTimeouts, newest_epoch
from utils.exchange.lease.watch import Watch
from utils.exchange.wait import log_once, wait_for

QUICK = LeaseTimeouts(heartbeat_seconds=0.05, lease_seconds=1)


@pytest.fixture(autouse=True)
def fresh() -> None:
    log_once.cache_clear()


class WithOthers(FakeTime):
    """A clock next to which something else happens: ``each`` is called after every pause."""

    def __init__(self, each: Any) -> None:
        super().__init__()
        self.each = each

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.each(self.now - 1000)


def beating(holder: Lease, every_seconds: float = 10.0) -> WithOthers:
    """A clock on whose time ``holder`` gives its signs of life."""
    last = 0.0

    def each(now: float) -> None:
        nonlocal last
        if now - last >= every_seconds:
            last = now
            holder.beat()

    return WithOthers(each)


# Taking a role


def test_the_first_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    time = FakeTime()
    held = take(tmp_path, "generator", time)
    assert time.pauses == []
    stored = json.loads(JobLayout(tmp_path).lease("generator", 1).read_text())
    assert (stored["role"], stored["epoch"], stored["pid"], stored["job"]) == ("generator", 1, os.getpid(), "77")
    assert (stored["heartbeat_seconds"], stored["lease_seconds"], stored["run_id"]) == (10, 60, "run")
    assert read_lease(tmp_path, "generator") == held.holder
    beat = read_beat(tmp_path, "generator")
    assert beat is not None and (beat["epoch"], beat["count"], beat["state"]) == (1, 1, "running")
    assert os.listdir(tmp_path / STAGING) == [held.holder.staging]  # noqa: PTH208
    assert read_lease(tmp_path, "trainer") is None and read_beat(tmp_path, "trainer") is None


@pytest.mark.parametrize("state", ["ended", "stopped", "failed"])
def test_a_holder_that_left_a_last_word_is_followed_at_once(tmp_path: Path, state: str) -> None:
    take(tmp_path).beat(state)
    time = FakeTime()
    assert take(tmp_path, time=time).holder.epoch == 2
    assert time.pauses == []


@pytest.mark.parametrize("damage", ["none", "no beat yet", "beat", "lease"])
def test_a_silent_holder_is_followed_after_its_life(tmp_path: Path, damage: str) -> None:
    """Its own, not ours; ours where its lease cannot be read. A damaged beat is no last word."""
    life = LeaseTimeouts(10, 300)
    acquire(tmp_path, "trainer", life, "run", None)
    if damage == "no beat yet":
        JobLayout(tmp_path).heartbeat("trainer", 1).unlink()
    elif damage == "beat":
        JobLayout(tmp_path).heartbeat("trainer", 1).write_bytes(b'{"state": "ended"')
    elif damage == "lease":
        flip_byte(JobLayout(tmp_path).lease("trainer", 1), 40)
    time = FakeTime()
    assert take(tmp_path, time=time).holder.epoch == 2
    assert time.now - 1000 == pytest.approx(60 if damage == "lease" else 300, abs=0.2)


def test_a_living_holder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = take(tmp_path)
    time = beating(holder)
    with pytest.raises(UserError, match=rf"another trainer works in .*\(host \S+, process {os.getpid()}\)") as caught:
        take(tmp_path, time=time)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert time.now - 1000 < 2.5 * 10, "known after two heartbeats"
    assert newest_epoch(tmp_path, "trainer") == 1
    holder.beat()
    assert not holder.lost
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert take(tmp_path, "generator").holder.epoch == 1, "another role is nobody's business"


def test_one_change_may_be_an_old_cache_that_lets_go(tmp_path: Path) -> None:
    """This host still shows what the dead holder said some time ago, then its last words but one."""
    holder = take(tmp_path)
    old = JobLayout(tmp_path).heartbeat("trainer", 1).read_bytes()
    for _ in range(5):
        holder.beat()
    last = JobLayout(tmp_path).heartbeat("trainer", 1).read_bytes()
    JobLayout(tmp_path).heartbeat("trainer", 1).write_bytes(old)
    shown: list[float] = []

    def each(now: float) -> None:
        if now > 30 and not shown:
            shown.append(now)
            JobLayout(tmp_path).heartbeat("trainer", 1).write_bytes(last)

    time = WithOthers(each)
    assert take(tmp_path, time=time).holder.epoch == 2
    assert time.now - 1000 == pytest.approx(30 + 60, abs=0.5)


def test_a_slow_starter_is_no_dead_holder(tmp_path: Path) -> None:
    """Between link and first heartbeat: silent from when its lease was first seen, not from the old holder's."""
    take(tmp_path)
    others: list[Lease] = []

    def each(now: float) -> None:
        if now > 50 and not others:
            made = try_epoch(tmp_path, "trainer", 2, LIFE, "other", False)
            assert made is not None
            others.append(made)

    time = WithOthers(each)
    mine = take(tmp_path, time=time)
    assert mine.holder.epoch == 3 and time.now - 1000 == pytest.approx(110, abs=0.5)
    others[0].beat()
    assert others[0].lost


def race(directory: Path, epoch: int, runners: int) -> list[Lease | None]:
    found: list[Lease | None] = [None] * runners
    barrier = threading.Barrier(runners)

    def run(number: int) -> None:
        barrier.wait()
        found[number] = try_epoch(directory, "trainer", epoch, LIFE, f"run-{number}", False)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_one_of_many_wins_an_epoch(tmp_path: Path) -> None:
    (tmp_path / LEASES).mkdir()
    for epoch in range(1, 31):
        winners = [lease for lease in race(tmp_path, epoch, 4) if lease is not None]
        assert len(winners) == 1
        assert read_lease(tmp_path, "trainer") == winners[0].holder
    assert len(list((tmp_path / STAGING).iterdir())) == 30, "the losers leave nothing"


def test_one_of_many_that_come_at_once_works(tmp_path: Path) -> None:
    """With their heartbeats, after a holder that was killed."""
    take(tmp_path)
    outcomes: list[str] = []
    working: list[int] = []
    life = LeaseTimeouts(0.05, 0.5)
    JobLayout(tmp_path).lease("trainer", 1).unlink()  # so that its life is ours
    barrier = threading.Barrier(4)

    def run(number: int) -> None:
        barrier.wait()
        try:
            held = acquire(tmp_path, "trainer", life, "run", None)
        except UserError:
            outcomes.append("refused")
            return
        working.append(number)
        thread = threading.Thread(target=held.keep_beating, daemon=True)
        thread.start()
        wait_for(lambda: len(outcomes) == 3 or None, "the others", limit_seconds=30, quiet=True)
        held.ending.set()
        thread.join()
        held.check()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["refused"] * 3 and len(working) == 1


# Judging a heartbeat


@settings(max_examples=100, deadline=None)
@given(
    looks=st.lists(st.tuples(st.floats(0.01, 50), st.sampled_from(("", "beat", "touch", "epoch"))), max_size=25),
    data=st.data(),
)
def test_silence_is_measured_from_the_last_change_that_was_seen(
    looks: list[tuple[float, str]], data: st.DataObject
) -> None:
    """On the reader's clock; file times and the times inside say what they like."""
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory, time = Path(name), FakeTime()
        (directory / LEASES).mkdir()
        holder, changed, changes = take(directory), time.now, 0
        watch = Watch(directory, "trainer", 60, time.clock)
        assert watch.look() == "running" and not watch.seen_alive
        for pause, happening in looks:
            time.now += pause
            path = JobLayout(directory).heartbeat("trainer", holder.holder.epoch)
            if happening == "beat":
                holder.beat(time=rng.choice([0, -(10.0**9), 10.0**12]))
            elif happening == "epoch":
                made = try_epoch(directory, "trainer", holder.holder.epoch + 1, LIFE, "next", False)
                assert made is not None
                holder = made
            if happening in ("beat", "epoch"):
                changed, changes = time.now, changes + 1
            if happening == "touch" and path.exists():
                os.utime(path, (rng.randrange(2**31), rng.randrange(2**31)))
            assert watch.look() == "running"
            assert watch.silent_seconds == time.now - changed
            assert watch.is_silent == (time.now - changed > 60)
            assert watch.changes == changes and watch.seen_alive == (changes > 0)
            assert watch.holder == holder.holder


def test_nobody_and_foreign_names(tmp_path: Path) -> None:
    watch = Watch(tmp_path, "trainer", 60)
    assert watch.look() == ""
    (tmp_path / LEASES).mkdir()
    for name in ("trainer-0.json", "trainer-01.json", "trainer-3.json.tmp", "xtrainer-3.json", "trainer-3.beat"):
        (tmp_path / LEASES / name).touch()
    assert watch.look() == "" and newest_epoch(tmp_path, "trainer") == 0
    assert not watch.seen_alive


# Holding a role


def test_signs_of_life(tmp_path: Path) -> None:
    with role_held(tmp_path, "trainer", QUICK, "run") as held:
        held.set_status(step=3, doing="training")
        first = wait_for(lambda: said(tmp_path, step=3), "a beat", limit_seconds=20)
        held.set_status(step=4)
        second = wait_for(lambda: said(tmp_path, step=4), "a beat", limit_seconds=20)
    assert first["doing"] == second["doing"] == "training" and second["count"] > first["count"]
    last = read_beat(tmp_path, "trainer")
    assert last is not None and (last["state"], last["step"], last["error"]) == ("ended", 4, "")
    assert not (tmp_path / STAGING).exists()
    assert not any(thread.name == "heartbeat of the trainer" for thread in threading.enumerate())


def said(directory: Path, **values: Any) -> dict[str, Any] | None:
    beat = read_beat(directory, "trainer") or {}
    return beat if beat.items() >= values.items() else None


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (Stopped("at step 4"), "stopped", ""),
        (ValueError("of\ntwo lines"), "failed", "of two lines"),
        (ZeroDivisionError(), "failed", "ZeroDivisionError"),
        (SystemExit(143), "stopped", ""),
        (KeyboardInterrupt(), "stopped", ""),
        (PeerGone("the trainer has failed"), "failed", "the trainer has failed"),
    ],
)
def test_last_words(tmp_path: Path, error: BaseException, state: str, text: str) -> None:
    with pytest.raises(type(error)), role_held(tmp_path, "trainer", LIFE, "run"):
        raise error
    beat = read_beat(tmp_path, "trainer")
    assert beat is not None and (beat["state"], beat["error"]) == (state, text)
    with role_held(tmp_path, "trainer", LIFE, "run") as held:
        assert held.holder.epoch == 2


def test_a_full_disk_is_no_lost_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = take(tmp_path)
    before = JobLayout(tmp_path).heartbeat("trainer", 1).read_bytes()

    def full(path: Path, *_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        held.beat()
    assert not held.lost and JobLayout(tmp_path).heartbeat("trainer", 1).read_bytes() == before
    with monkeypatch.context() as patch:  # a server that is away says nothing about the lease either
        patch.setattr(Path, "write_text", full)
        patch.setattr(Path, "lstat", full)
        held.beat()
    assert not held.lost
    held.beat()
    held.check()
    assert JobLayout(tmp_path).heartbeat("trainer", 1).read_bytes() != before


@pytest.mark.parametrize(("synced", "epoch"), [("lease", 2), (LEASES, 3), ("", 3)])
def test_a_full_disk_while_a_lease_is_taken_leaves_no_staging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: str, epoch: int
) -> None:
    """Before the lease is there, after it, or while the earlier holder's staging is moved away."""
    first = take(tmp_path)
    real_sync = atomic.sync

    def full(path: Path, *_: Any) -> None:
        if synced and path.name != synced:
            real_sync(path)
        else:
            raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(atomic, "sync", full) if synced else patch.setattr(acquire_module, "fence_others", full)
        take(tmp_path)
    assert [path.name for path in (tmp_path / STAGING).iterdir()] == [first.holder.staging]
    assert take(tmp_path).holder.epoch == epoch
    assert len(list((tmp_path / STAGING).iterdir())) == 1


def test_a_job_that_lost_its_lease_unnoticed_says_so_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Fenced) as caught, role_held(tmp_path, "trainer", LIFE, "run") as held:
        new = take(tmp_path)
        held.beat()
        assert held.lost
    assert caught.value.exit_code == 75
    assert read_lease(tmp_path, "trainer") == new.holder
    beat = read_beat(tmp_path, "trainer")
    assert beat is not None and (beat["epoch"], beat["state"]) == (2, "running")


# The lock, where both are on one host


def test_two_locks_on_one_file_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.lock"
    with flock_if_free(path) as first:
        with flock_if_free(path) as second:
            assert first is not None and second is None
        with flock_if_free(path) as third:
            assert third is None
    with flock_if_free(path) as again:
        assert again is not None


HOLDER = """
import sys, time
from pathlib import Path
from utils.exchange.lease import acquire as acquire_module
from utils.exchange.lease.acquire import role_held
from utils.exchange.lease.record import LeaseTimeouts
with role_held(Path(sys.argv[1]), "trainer", LeaseTimeouts(0.05, 1000), "run"):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_process_that_was_killed_on_this_host_is_followed_at_once(
    tmp_path: Path, other_process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its life of 1000 s is not waited for; while it lives it keeps its role, and on another host one has to wait."""
    with pytest.raises(UserError, match=f"process {other_process.pid}"), role_held(tmp_path, "trainer", LIFE, "run"):
        pass
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    time = FakeTime()
    with flock_if_free(tmp_path / LEASES / "trainer.lock") as lock:
        assert lock is not None
        with monkeypatch.context() as patch:
            patch.setattr(acquire_module, "boot_id", lambda: "another kernel")
            taken = take(tmp_path, time=time, lock=lock)
            assert taken.holder.epoch == 2 and time.now - 1000 == pytest.approx(1000, abs=0.5)
        taken.beat("ended")
    with flock_if_free(tmp_path / LEASES / "trainer.lock") as lock:
        assert take(tmp_path, lock=lock).holder.epoch == 3
    with flock_if_free(tmp_path / LEASES / "trainer.lock") as lock:
        time = FakeTime()
        assert take(tmp_path, time=time, lock=lock).holder.epoch == 4
        assert time.pauses == [], "epoch 3 had the lock, and has given it back without a last word"


def test_a_process_that_is_only_paused_keeps_the_lock_and_is_given_its_life(
    tmp_path: Path, other_process: subprocess.Popen[str]
) -> None:
    other_process.send_signal(signal.SIGSTOP)
    time = FakeTime()
    with flock_if_free(tmp_path / LEASES / "trainer.lock") as lock:
        assert lock is None
        second = take(tmp_path, time=time, lock=lock)
    assert second.holder.epoch == 2 and not second.holder.locked
    assert time.now - 1000 == pytest.approx(1000, abs=0.5)
    other_process.send_signal(signal.SIGCONT)
    other_process.kill()
    other_process.wait()
    # The lock is free now, but the holder never had it: it lives.
    with flock_if_free(tmp_path / LEASES / "trainer.lock") as lock:
        assert lock is not None
        with pytest.raises(UserError, match="another trainer works in"):
            take(tmp_path, time=beating(second), lock=lock)
    second.check()
    assert atomic.exists(second.staging)
