"""How the programs share a directory: the only module that spells the exchange's file names.

The trainer's directory holds ``checkpoint-S/`` (S the step), the generator's holds
``ann_training_data_N`` and its commit record ``ann_ndcg_N`` (N the refresh). Everything is staged
under ``.staging/`` in the same directory, synced, and appears under its name whole or not at all;
a published name's bytes never change. Readers take the newest version whose sizes and sha256 verify.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import PeerGone, UserError
from utils.publishing import check_space, held_lock, read_json, sha256_of, staging_path, sync, write_json
from utils.run_log import say

MANIFEST = "MANIFEST.json"
DONE = "DONE.json"
FAILED = "FAILED.json"
METRICS = "metrics.jsonl"
TRAINER_STATE = "trainer_state.json"
NUMBER = "(0|[1-9][0-9]*)"  # as we write it: no leading zeros, no digits of other scripts
CHECKPOINT_PATTERN = re.compile(f"checkpoint-{NUMBER}")
RECORD_PATTERN = re.compile(f"ann_ndcg_{NUMBER}")
KEEP_CHECKPOINTS = 3
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 10.0
FIRST_WORD_SECONDS, SAY_EVERY_SECONDS = 5.0, 60.0
VISIBLE_WITHIN_SECONDS = 120.0

Found = TypeVar("Found")


def checkpoint_path(training_dir: Path, step: int) -> Path:
    return training_dir / f"checkpoint-{step}"


def negatives_path(ann_dir: Path, refresh: int) -> Path:
    return ann_dir / f"ann_training_data_{refresh}"


def record_path(ann_dir: Path, refresh: int) -> Path:
    return ann_dir / f"ann_ndcg_{refresh}"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. ``manifest`` is empty for one that another program wrote."""

    path: Path
    step: int
    manifest: dict[str, Any]


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


# Writing


@contextlib.contextmanager
def publish_checkpoint(training_dir: Path, step: int, record: dict[str, Any]) -> Iterator[Path]:
    """Yield a staging directory; when the block ends, it becomes ``checkpoint-<step>`` at once.

    ``record`` goes into MANIFEST.json beside sizes and sha256 of every file. An exception in the
    block publishes nothing. UserError where the name is taken.
    """
    final = checkpoint_path(training_dir, step)
    # rename() onto an *empty* directory succeeds, so the name is checked by hand.
    if os.path.lexists(final):
        raise UserError(f"{final} exists already, expected a new name: choose another --output_dir")
    with staging_path(training_dir, final.name) as staged:
        staged.mkdir()
        try:
            yield staged
        except Exception:
            check_space(staged)
            raise
        files = sorted(p for p in staged.rglob("*") if p.is_file())
        for file in files:
            file.chmod(staged.stat().st_mode & 0o666)  # safetensors makes files for their owner alone
            sync(file)
        listing = {str(p.relative_to(staged)): {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files}
        manifest = staged / MANIFEST
        manifest.write_text(json.dumps({**record, "step": step, "files": listing}, indent=1), encoding="utf-8")
        sync(manifest)
        sync(staged)
        staged.rename(final)
    sync(training_dir)


def publish_negatives(ann_dir: Path, refresh: int, write: Callable[[Path], None], record: dict[str, Any]) -> Refresh:
    """Publish ``ann_training_data_N``, then ``ann_ndcg_N`` that commits it.

    ``write(path)`` makes the data file. Data without a record was never published: what an
    interrupted job left under the name is replaced. UserError where the record exists.
    """
    data, commit = negatives_path(ann_dir, refresh), record_path(ann_dir, refresh)
    if os.path.lexists(commit):
        raise UserError(f"{commit} exists already, expected a new refresh number: is a second generator running?")
    with staging_path(ann_dir, "data") as staged, staging_path(ann_dir, "record") as staged_record:
        write(staged)
        sync(staged)
        complete = {**record, "refresh": refresh, "bytes": staged.stat().st_size, "sha256": sha256_of(staged)}
        staged_record.write_text(json.dumps(complete), encoding="utf-8")
        sync(staged_record)
        if os.path.lexists(commit):
            raise UserError(f"{commit} appeared meanwhile: a second generator is running; stop one of the two")
        staged.replace(data)
        sync(ann_dir)
        os.link(staged_record, commit)
    sync(ann_dir)
    return Refresh(refresh, data, complete)


def mark_done(training_dir: Path, **values: Any) -> None:
    """The trainer's last word: no checkpoint follows, the generator may end."""
    write_json(training_dir / DONE, values)


def mark_failed(directory: Path, role: str, reason: str) -> None:
    write_json(directory / FAILED, {"role": role, "reason": reason, "token": secrets.token_hex(8)})


def read_done(training_dir: Path) -> dict[str, Any] | None:
    path = training_dir / DONE
    return read_json(path) if path.exists() else None


def read_failed(directory: Path) -> dict[str, Any] | None:
    path = directory / FAILED
    return read_json(path) if path.exists() else None


def clear_failed(directory: Path) -> None:
    """A job that starts again takes back its own FAILED.json."""
    (directory / FAILED).unlink(missing_ok=True)


@contextlib.contextmanager
def role_held(directory: Path, role: str) -> Iterator[None]:
    """Be the one ``role`` of ``directory`` for the block, and tell the peer if it ends with an error.

    UserError where a process of this host (on NFS 4: of any) already has the role. A peer that has failed is the
    cause already told; it is not told again.
    """
    busy = f"another {role} works in {directory}; wait for it, or give this one a directory of its own"
    with held_lock(directory / f".{role}.lock", busy):
        clear_failed(directory)
        try:
            yield
        except PeerGone:
            raise
        except BaseException as error:
            with contextlib.suppress(OSError, UserError):
                mark_failed(directory, role, f"{type(error).__name__}: {error}")
            raise


def remove_old_checkpoints(training_dir: Path, ann_dir: Path, keep_unused: bool) -> None:
    """Keep the last three, the best by a refresh's dev nDCG, and the one the newest negatives name.

    ``keep_unused`` (lockstep) also keeps every checkpoint newer than the newest refresh: one of them is next.
    """
    steps = numbered(training_dir, CHECKPOINT_PATTERN)
    records = read_records(ann_dir)
    keep = set(steps[-KEEP_CHECKPOINTS:])
    if keep_unused:
        used = records[-1]["step"] if records else -1
        keep |= {step for step in steps if step > used}
    if records:
        keep |= {records[-1]["step"], max(records, key=lambda r: r["ndcg"])["step"]}
    for step in sorted(set(steps) - keep):
        remove_checkpoint(training_dir, step)


def remove_checkpoint(training_dir: Path, step: int) -> None:
    """The name goes at once: a reader, or the next run, never sees half a checkpoint."""
    path = checkpoint_path(training_dir, step)
    with staging_path(training_dir, path.name) as staged:
        path.rename(staged)


def remove_run(training_dir: Path) -> None:
    """Remove what an earlier run of the trainer published; nothing else in the directory is touched."""
    steps = numbered(training_dir, CHECKPOINT_PATTERN)
    for path in (checkpoint_path(training_dir, step) for step in steps):
        if not (path / MANIFEST).exists():
            raise UserError(f"{path} was not written by this program; move it away, or choose another --output_dir")
    for name in (DONE, FAILED, METRICS):
        (training_dir / name).unlink(missing_ok=True)
    for step in steps:
        remove_checkpoint(training_dir, step)


# Reading


def numbered(directory: Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers of the directory's entries whose whole name matches, ascending."""
    if not directory.is_dir():
        return []
    names = [entry.name for entry in directory.iterdir()]
    matches = (pattern.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def size_of(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    return path.stat().st_size if path.is_file() else None


def check_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Sizes first (cheap), then sha256. UserError names the first file that differs."""
    try:
        listed = [(directory / name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{directory / MANIFEST} lists no files: it is damaged") from None
    for path, expected_bytes, _ in listed:
        if (size := size_of(path)) != expected_bytes:
            raise UserError(f"{path}: {size} bytes, its manifest says {expected_bytes}: it is damaged")
    for path, _, expected_sha256 in listed:
        if sha256_of(path) != expected_sha256:
            raise UserError(f"{path}: sha256 differs from its manifest: it is damaged")


def model_sha256(checkpoint: Path) -> str:
    """sha256 of the weights: from the manifest where there is one, else of the file; empty where there is no file."""
    manifest = checkpoint / MANIFEST
    for name in WEIGHT_FILES:
        if (checkpoint / name).is_file():
            listed = read_json(manifest)["files"].get(name) if manifest.is_file() else None
            return listed["sha256"] if listed else sha256_of(checkpoint / name)
    return ""


def read_checkpoint(path: Path, step: int, of_this_run: bool = True) -> Checkpoint:
    """A checkpoint by its path. One without a manifest (ANCE's, a hub download) is taken as it is, at ``step``.

    One of another run (``of_this_run`` False: the initial model) is at ``step`` and never final, whatever it was there.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a directory, expected a checkpoint (config.json and weights)")
    if not (path / MANIFEST).exists():
        return Checkpoint(path, step, {})
    manifest = read_json(path / MANIFEST)
    check_files(path, manifest)
    if not of_this_run:
        return Checkpoint(path, step, {**manifest, "final": False})
    if manifest.get("step") != step:
        raise UserError(f"{path / MANIFEST} is of step {manifest.get('step')}, expected {step}: it is damaged")
    return Checkpoint(path, step, manifest)


@functools.cache
def say_once(text: str) -> None:
    """What is found anew at every look is said at the first."""
    say(text)


def newest_checkpoint(training_dir: Path, step: int | None = None, above: int = -1) -> Checkpoint | None:
    """The newest valid checkpoint above step ``above``, or the one of ``step``; None where there is none yet."""
    steps = [s for s in numbered(training_dir, CHECKPOINT_PATTERN) if s > above and step in (None, s)]
    for candidate in reversed(steps):
        path = checkpoint_path(training_dir, candidate)
        try:
            checkpoint = read_checkpoint(path, candidate)
        except (UserError, OSError) as error:  # OSError: it was removed under our eyes
            say_once(f"passed over {path.name}: {error}")
            continue
        if checkpoint.manifest:
            return checkpoint
        if (path / "scheduler.pt").exists():  # ANCE's readiness mark, for checkpoints without a manifest
            return checkpoint
    return None


def read_record(ann_dir: Path, number: int) -> dict[str, Any]:
    """A commit record, ours or ANCE's (which knows no step). UserError where it is missing or damaged."""
    path = record_path(ann_dir, number)
    record = {"step": 0, "checkpoint": "", **read_json(path), "refresh": number}
    if not isinstance(record["step"], int) or not isinstance(record.get("ndcg"), int | float):
        raise UserError(f"{path}: step {record['step']}, ndcg {record.get('ndcg')}, expected numbers: it is damaged")
    return record


def read_refresh(ann_dir: Path, number: int) -> Refresh:
    """Negatives by their number, verified. UserError where they are damaged or missing."""
    record, path = read_record(ann_dir, number), negatives_path(ann_dir, number)
    size = size_of(path)
    if size is None or size != record.get("bytes", size):
        raise UserError(f"{path}: {size} bytes, its record says {record.get('bytes')}: it is damaged")
    if "sha256" in record and sha256_of(path) != record["sha256"]:
        raise UserError(f"{path}: sha256 differs from its record: it is damaged")
    return Refresh(number, path, record)


def read_visible_refresh(ann_dir: Path, number: int) -> Refresh:
    """Negatives that rank 0 has seen and verified; this host may see them a little later."""
    wait_until_visible(record_path(ann_dir, number))
    wait_until_visible(negatives_path(ann_dir, number))
    return Refresh(number, negatives_path(ann_dir, number), read_record(ann_dir, number))


def newest_refresh(ann_dir: Path, number: int | None = None, above: int = -1) -> Refresh | None:
    """The newest valid negatives above refresh ``above``, or those of ``number``; None where there are none yet."""
    numbers = [n for n in numbered(ann_dir, RECORD_PATTERN) if n > above and number in (None, n)]
    for candidate in reversed(numbers):
        try:
            return read_refresh(ann_dir, candidate)
        except (UserError, OSError) as error:
            say_once(f"passed over refresh {candidate}: {error}")
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
        except UserError as error:
            say_once(f"passed over the record of refresh {number}: {error}")
    return records


@dataclass(frozen=True)
class Peer:
    """The other job's directory, and the failure that lay in it when we looked first: an earlier run's."""

    directory: Path
    old_failure: dict[str, Any] | None


def watch_peer(directory: Path) -> Peer:
    return Peer(directory, read_failed(directory))


def check_peer(peer: Peer) -> None:
    """PeerGone once the peer has published a FAILED.json that was not there at the start."""
    failed = read_failed(peer.directory)
    if failed is not None and failed != peer.old_failure:
        role, reason = failed.get("role", "other job"), failed.get("reason", "no reason given")
        raise PeerGone(f"the {role} has failed ({reason}): mend it and start both again")


def wait_for(
    look: Callable[[], Found | None],
    what: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    limit_seconds: float = math.inf,
    quiet: bool = False,
) -> Found:
    """Call ``look`` until it answers, saying soon and then each minute what is waited for.

    Polls quickly at first, then every ten seconds. UserError after ``limit_seconds``.
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
        sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 1.3, LONGEST_POLL_SECONDS)


def wait_until_visible(path: Path) -> None:
    """A name that another host has just published may be hidden by an attribute cache for a while."""
    wait_for(lambda: path.exists() or None, str(path), limit_seconds=VISIBLE_WITHIN_SECONDS)
