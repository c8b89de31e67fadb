"""Negatives: a data file that counts once its commit record is there, and read as the newest that verifies.

docs/exchange.md states what holds at any instant, and why.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.atomic import dump_with_checksum, load_with_checksum, numbered, sha256_of, sync
from utils.exchange.layout import NEGATIVES_PATTERN, RECORD_PATTERN, JobLayout
from utils.exchange.lease.held import Lease
from utils.exchange.verify import FAULTS, check_signature, signature_of
from utils.exchange.wait import VISIBLE_WITHIN_SECONDS, log_once, wait_for, wait_until_visible
from utils.run_log import say

OUR_RECORD_KEYS = {"refresh", "sha256", "step"}  # in a record of ours, in addition to ANCE's


@dataclass(frozen=True)
class Refresh:
    """Verified negatives: ``record`` is the contents of ``ann_ndcg_N``."""

    number: int
    path: Path
    record: dict[str, Any]

    @property
    def step(self) -> int:
        """The trainer step of the checkpoint they were made from."""
        return int(self.record["step"])


def publish_negatives(
    lease: Lease,
    refresh: int,
    write: Callable[[Path], None],
    record: dict[str, Any],
    write_candidates: Callable[[Path], None] | None = None,
) -> Refresh:
    """Publish ``ann_training_data_N``, and what it was chosen from where that is kept, then ``ann_ndcg_N``.

    Args:
        lease: the generator's, of the directory.
        refresh: its number, N.
        write: makes the data file at the path that it is given.
        record: what the record says of it, next to size and sha256.
        write_candidates: makes the candidates' file, where they are kept; the record commits it, too.

    Raises:
        UserError: the record exists.
        Fenced: another job has the lease.
    """
    lease.check()
    files = JobLayout(lease.directory)
    data, commit = files.negatives(refresh), files.record(refresh)
    if atomic.exists(commit):
        raise already_published(commit)
    with lease.stage(lease.directory, "data") as staged:
        complete = {**record, "refresh": refresh, **write_synced(staged, write)}
        staged_candidates, staged_record = staged.with_name("candidates"), staged.with_name("record")
        if write_candidates is not None:
            complete["candidates"] = write_synced(staged_candidates, write_candidates)
        staged_record.write_text(dump_with_checksum(complete), encoding="utf-8")
        sync(staged_record)
        lease.check()
        link_data(staged, data, commit)
        if write_candidates is not None:
            link_data(staged_candidates, files.candidates(refresh), commit)
        sync(lease.directory)
        link_record(staged_record, commit)
        sync(lease.directory)
    return Refresh(refresh, data, complete)


def already_published(commit: Path) -> UserError:
    return UserError(f"{commit} exists already, expected a new refresh number: is a second generator running?")


def write_synced(path: Path, write: Callable[[Path], object]) -> dict[str, Any]:
    """Make the file and bring it to the disk; its size and sha256."""
    write(path)
    sync(path)
    return signature_of(path)


def link_record(staged: Path, commit: Path) -> None:
    """Give the record its name, which commits the refresh. UserError where another job's record has it."""
    try:
        os.link(staged, commit)
    except FileExistsError:
        if not atomic.is_same_file(staged, commit):
            raise already_published(commit) from None


def link_data(staged: Path, data: Path, commit: Path) -> None:
    """Give ``staged`` its published name. Data without a record was never published: an interrupted job left it.

    Where it differs from ours it is replaced, once the record has had the time to come out of any cache.
    """
    try:
        os.link(staged, data)
    except FileExistsError:
        if sha256_of(data) == sha256_of(staged):
            return
        say(f"{data.name} was left by an interrupted job; it is replaced unless its record appears")
        with contextlib.suppress(UserError):
            wait_for(lambda: atomic.exists(commit) or None, commit.name, limit_seconds=VISIBLE_WITHIN_SECONDS)
        if atomic.exists(commit):
            raise UserError(f"{commit} exists already, expected a new refresh number") from None
        staged_again = staged.with_name(f"{staged.name}-again")
        os.link(staged, staged_again)
        staged_again.replace(data)


def read_record(ann_dir: Path, number: int) -> dict[str, Any]:
    """A commit record, ours or ANCE's (which knows no step). UserError where it is missing or damaged."""
    path = JobLayout(ann_dir).record(number)
    stored = atomic.read_json(path)
    if OUR_RECORD_KEYS & stored.keys() or atomic.SEAL in stored:
        stored = load_with_checksum(path)
        if stored.get("refresh") != number:
            raise UserError(f"{path} is of refresh {stored.get('refresh')}, expected {number}: it is damaged")
    record = {"step": 0, "checkpoint": "", **stored, "refresh": number}
    if not isinstance(record["step"], int) or not isinstance(record.get("ndcg"), int | float):
        raise UserError(f"{path}: step {record['step']}, ndcg {record.get('ndcg')}, expected numbers: it is damaged")
    return record


def read_refresh(ann_dir: Path, number: int) -> Refresh:
    """Negatives by their number, verified. UserError where they are damaged or missing."""
    record, path = read_record(ann_dir, number), JobLayout(ann_dir).negatives(number)
    check_signature(path, record)
    return Refresh(number, path, record)


def read_kept_candidates(ann_dir: Path, number: int) -> Refresh:
    """A refresh whose ``path`` are the candidates, verified. UserError where they are damaged, or were not kept."""
    record, path = read_record(ann_dir, number), JobLayout(ann_dir).candidates(number)
    if "candidates" not in record:
        raise UserError(f"{JobLayout(ann_dir).record(number)} knows of no {path.name}; make it with --keep_candidates")
    check_signature(path, record["candidates"])
    return Refresh(number, path, record)


def check_as_recorded(path: Path) -> None:
    """UserError where a file of negatives is not what the record next to it says; one without a record is not known."""
    match = NEGATIVES_PATTERN.fullmatch(path.name)
    if match and atomic.exists(JobLayout(path.parent).record(int(match[1]))):
        read_refresh(path.parent, int(match[1]))


def read_visible_refresh(ann_dir: Path, number: int) -> Refresh:
    """Negatives that process 0 has seen and verified; this host may see them a little later."""
    wait_until_visible(JobLayout(ann_dir).record(number))
    wait_until_visible(JobLayout(ann_dir).negatives(number))
    return Refresh(number, JobLayout(ann_dir).negatives(number), read_record(ann_dir, number))


def newest_refresh(
    ann_dir: Path, number: int | None = None, above: int = -1, without: frozenset[int] = frozenset()
) -> Refresh | None:
    """The newest valid negatives; None where there are none yet.

    Args:
        ann_dir: where they are published.
        number: that refresh alone, where given.
        above: only refreshes of higher numbers.
        without: refreshes that do not count.

    Raises:
        UserError: all there are have been damaged for longer than a cache could make them seem so.
    """
    numbers = [n for n in numbered(ann_dir, RECORD_PATTERN) if n > above and number in (None, n) and n not in without]
    errors: list[Exception] = []
    for candidate in reversed(numbers):
        try:
            return read_refresh(ann_dir, candidate)
        except (UserError, OSError) as error:
            log_once(f"passed over refresh {candidate}: {error}")
            errors.append(error)
    if errors and (number is not None or above < 0):
        FAULTS.raise_if_persistent(errors[0])
    return None


def next_refresh_number(ann_dir: Path) -> int:
    """One above every number that was ever committed."""
    numbers = numbered(ann_dir, RECORD_PATTERN)
    return numbers[-1] + 1 if numbers else 0


def read_records(ann_dir: Path) -> list[dict[str, Any]]:
    """All commit records that can be read, by refresh number."""
    records = []
    for number in numbered(ann_dir, RECORD_PATTERN):
        try:
            records.append(read_record(ann_dir, number))
        except (UserError, OSError) as error:
            log_once(f"passed over the record of refresh {number}: {error}")
    return records
