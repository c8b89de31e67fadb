"""A job that is paused before any step on the disk, and has lost its lease when it continues: it changes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.exchanging import flip_byte, put_checkpoint, put_negatives, staged, take
from utils.errors import Fenced
from utils.exchange import atomic
from utils.exchange.atomic import STAGING, numbered, write_text
from utils.exchange.checkpoints import publish_checkpoint, set_aside
from utils.exchange.layout import (
    CHECKPOINT_PATTERN,
    DAMAGED,
    JOURNAL,
    LEASES,
    METRICS,
    RECORD_PATTERN,
    JobLayout,
)
from utils.exchange.lease.acquire import try_epoch
from utils.exchange.lease.held import Lease
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.markers import clear_failed, mark_done, mark_failed, mark_run
from utils.exchange.negatives import next_refresh_number, publish_negatives, read_refresh
from utils.exchange.retention import remove_old_checkpoints, remove_run

STEPS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "os.chmod"}
before_step: Callable[[str, tuple[Any, ...]], None] | None = None


def hook(event: str, details: tuple[Any, ...]) -> None:
    if before_step is not None and event in STEPS:
        before_step(event, details)


sys.addaudithook(hook)  # it hears of each step before it is done; there is no way to take it off again


@contextmanager
def interrupted(directory: Path, at: int, action: Callable[[], None]) -> Iterator[list[str]]:
    """``action`` happens before the ``at``-th step below ``directory``, which is then in the list."""
    global before_step
    done: list[str] = []
    count = 0

    def look(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        global before_step
        if not any(str(directory) in os.fsdecode(part) for part in details if isinstance(part, str | bytes | Path)):
            return
        count += 1
        if count == at:
            before_step = None
            action()
            done.append(event)

    before_step = look
    try:
        yield done
    finally:
        before_step = None


def contents(directory: Path) -> dict[str, bytes | None]:
    """All that is published: names and bytes."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if name.parts[0] not in (LEASES, STAGING) and name.parts != (DAMAGED,):
            found[str(name)] = path.read_bytes() if path.is_file() else None
    return found


def save(lease: Lease, step: int) -> None:
    with publish_checkpoint(lease, step, {"by": lease.holder.epoch}) as staging:
        (staging / "model.safetensors").write_text(f"step {step} by {lease.holder.epoch}")


def negatives(lease: Lease, number: int) -> None:
    def write(path: Path) -> None:
        path.write_text(f"refresh {number} by {lease.holder.epoch}")

    publish_negatives(lease, number, write, {"ndcg": 0.5, "step": number})


def everything(lease: Lease) -> None:
    """All marks of a job, under the names that every job gives them."""
    mark_run(lease, by=lease.holder.epoch)
    mark_done(lease, by=lease.holder.epoch)
    mark_failed(lease, f"by {lease.holder.epoch}")
    for name in (JOURNAL, METRICS):
        write_text(lease.directory / name, f"by {lease.holder.epoch}", lease.stage)


LATE: dict[str, Callable[[Lease], object]] = {
    "checkpoint": lambda lease: save(lease, 8),
    "negatives": lambda lease: negatives(lease, 2),
    "marks": lambda lease: (mark_done(lease, late=True), mark_failed(lease, "late")),
    "clear failed": clear_failed,
    "remove old checkpoints": lambda lease: remove_old_checkpoints(lease, lease.directory, keep_unused=False),
    "remove run": remove_run,
    "set damaged aside": lambda lease: [
        set_aside(lease, step) for step in numbered(lease.directory, CHECKPOINT_PATTERN) if step > 3
    ],
}


def prepare(directory: Path) -> Lease:
    """A run of five checkpoints, the last two of them damaged, and two refreshes."""
    lease = take(directory)
    for step in range(1, 6):
        save(lease, step)
    for number in (0, 1):
        negatives(lease, number)
    for step in (4, 5):
        flip_byte(directory / f"checkpoint-{step}" / "model.safetensors")
    everything(lease)
    return lease


@pytest.mark.parametrize("what", LATE)
def test_a_paused_job_changes_nothing_after_another_took_over(tmp_path: Path, what: str) -> None:
    endings: list[bool] = []
    holder = prepare(tmp_path / "0").holder
    for at in range(1, 500):
        directory = Path(shutil.copytree(tmp_path / "0", tmp_path / str(at)))
        loser = Lease(directory, holder, count=1)
        seen: dict[str, bytes | None] = {}

        def take_over(directory: Path = directory, seen: dict[str, bytes | None] = seen) -> None:
            winner = take(directory)
            everything(winner)
            save(winner, 9)
            if not JobLayout(directory).record(3).exists():
                negatives(winner, 3)
            seen.update(contents(directory))

        with interrupted(directory, at, take_over) as done:
            try:
                LATE[what](loser)
                fenced = False
            except Fenced:
                fenced = True
        if not done:
            break
        assert contents(directory) == seen, f"after the other took over before its step {at}, {done}"
        assert staged(directory) == []
        endings.append(fenced)
    assert at > 4 and endings[0], "never paused"
    assert endings == sorted(endings, reverse=True), "fenced up to its last change, and not after it"
    loser.beat()
    assert not loser.lost


@pytest.mark.parametrize("what", LATE)
def test_a_job_that_knows_or_does_not_know_that_it_has_lost(tmp_path: Path, what: str) -> None:
    loser = prepare(tmp_path)
    take(tmp_path)
    before = contents(tmp_path)
    for knows in (False, True):
        if knows:
            loser.beat()
            assert loser.lost
        with pytest.raises(Fenced, match=r"another \w+ works in") as caught:
            LATE[what](loser)
        assert caught.value.exit_code == 75
        assert contents(tmp_path) == before


def test_the_winner_publishes_under_the_number_that_the_loser_had_half_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused between data and record; the winner's differ, and replace them once no record has appeared."""
    monkeypatch.setattr("utils.exchange.negatives.VISIBLE_WITHIN_SECONDS", 0.01)
    last: list[str] = []
    for at in range(1, 100):
        directory = tmp_path / str(at)
        loser = take(directory)

        def take_over(directory: Path = directory) -> None:
            winner = take(directory)
            negatives(winner, next_refresh_number(directory))

        with interrupted(directory, at, take_over) as done, suppress(Fenced):
            negatives(loser, 0)
        if not done:
            break
        for number in numbered(directory, RECORD_PATTERN):
            refresh = read_refresh(directory, number)
            last.append(refresh.path.read_text())
    assert {"refresh 0 by 2", "refresh 0 by 1", "refresh 1 by 2"} == set(last)


def test_whoever_sleeps_through_several_epochs_gets_none_of_them(tmp_path: Path) -> None:
    """It looked when epoch 1 was the newest; its link must find epoch 2 taken, whatever has been cleaned since."""
    for _ in range(6):
        newest = take(tmp_path)
    life = LeaseTimeouts(10, 60)
    for epoch in range(1, 7):
        assert try_epoch(tmp_path, "trainer", epoch, life, "late", False) is None
    assert [path.name for path in (tmp_path / STAGING).iterdir()] == [newest.holder.staging]
    assert len(list((tmp_path / LEASES).glob("*.beat"))) <= 3


def test_a_job_paused_while_it_takes_the_role(tmp_path: Path) -> None:
    """At every step: either it gets the next epoch after the other, or it is fenced; never two at work."""
    for at in range(1, 100):
        directory = tmp_path / str(at)
        take(directory).beat("ended")
        others: list[Lease] = []

        def take_over(directory: Path = directory, others: list[Lease] = others) -> None:
            others.append(take(directory))
            put = others[-1]
            save(put, 1)

        with interrupted(directory, at, take_over) as done:
            late = take(directory)
        if not done:
            break
        (other,) = others
        newest, older = (late, other) if late.holder.epoch > other.holder.epoch else (other, late)
        assert newest.holder.epoch != older.holder.epoch
        newest.check()
        save(newest, 2)
        with pytest.raises(Fenced):
            save(older, 3)
        assert numbered(directory, CHECKPOINT_PATTERN) == [1, 2]
    assert at > 10


def test_probes_and_leftovers_of_a_killed_job_are_gone_after_the_next(tmp_path: Path) -> None:
    killed = take(tmp_path)
    half = killed.staging / "1.abcd"
    (half / "checkpoint-7").mkdir(parents=True)
    (half / "checkpoint-7" / "model.safetensors").write_text("half")
    (tmp_path / STAGING / "gone-trainer-0123").mkdir()
    other = take(tmp_path, "generator")
    mine = take(tmp_path)
    assert {path.name for path in (tmp_path / STAGING).iterdir()} == {mine.holder.staging, other.holder.staging}
    assert put_negatives(tmp_path, 0).number == 0 and put_checkpoint(tmp_path / "t", 1).is_dir()
    assert atomic.is_gone(killed.staging) and not atomic.is_gone(mine.staging)
