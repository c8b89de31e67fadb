"""How the programs share a directory: the only module that spells the exchange's file names.

The trainer's directory holds ``checkpoint-S/`` (S the step), the generator's holds
``ann_training_data_N`` and its commit record ``ann_ndcg_N`` (N the refresh). Everything is staged
under the writer's lease (utils/lease.py), synced, and appears under its name whole or not at all; a published
name's bytes never change. Readers take the newest version whose sizes and sha256 verify.
docs/exchange.md states what holds at any instant, and why.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import publishing
from utils.errors import PeerGone, Stopped, UserError, described
from utils.lease import Lease, Life, role_held
from utils.model_files import weights_sha256
from utils.publishing import check_space, read_sealed, sealed, sha256_of, staging_path, sync, write_text
from utils.run_log import say
from utils.waiting import VISIBLE_WITHIN_SECONDS, say_once, wait_for, wait_until_visible

MANIFEST = "MANIFEST.json"
RUN = "RUN.json"
DONE = "DONE.json"
FAILED = "FAILED.json"
METRICS = "metrics.jsonl"
JOURNAL = "journal.jsonl"
TRAINER_STATE = "trainer_state.json"
DAMAGED = ".damaged"
NUMBER = "(0|[1-9][0-9]*)"  # as we write it: no leading zeros, no digits of other scripts
CHECKPOINT_PATTERN = re.compile(f"checkpoint-{NUMBER}")
NEGATIVES_PATTERN = re.compile(f"ann_training_data_{NUMBER}")
RECORD_PATTERN = re.compile(f"ann_ndcg_{NUMBER}")
CANDIDATES_PATTERN = re.compile(rf"ann_candidates_{NUMBER}\.npz")
KEEP_CHECKPOINTS = 3
OUR_RECORD_KEYS = {"refresh", "sha256", "step"}  # in a record of ours, beside ANCE's


def checkpoint_path(training_dir: Path, step: int) -> Path:
    return training_dir / f"checkpoint-{step}"


def negatives_path(ann_dir: Path, refresh: int) -> Path:
    return ann_dir / f"ann_training_data_{refresh}"


def candidates_path(ann_dir: Path, refresh: int) -> Path:
    return ann_dir / f"ann_candidates_{refresh}.npz"


def candidates_number(path: Path) -> int:
    """The refresh of a file of candidates, by its name; UserError where it has another."""
    match = CANDIDATES_PATTERN.fullmatch(path.name)
    if not match:
        raise UserError(f"{path} is not named ann_candidates_N.npz, as a generator with --keep_candidates names it")
    return int(match[1])


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
def publish_checkpoint(lease: Lease, step: int, record: dict[str, Any]) -> Iterator[Path]:
    """Yield a staging directory; when the block ends, it becomes ``checkpoint-<step>`` at once.

    ``record`` goes into MANIFEST.json beside sizes and sha256 of every file. An exception in the
    block publishes nothing. UserError where the name is taken; Fenced where another job has the lease.
    """
    lease.check()
    final = checkpoint_path(lease.directory, step)
    # rename() onto an *empty* directory succeeds, so the name is checked by hand.
    if publishing.exists(final):
        raise UserError(f"{final} exists already, expected a new name: choose another --output_dir")
    with staging_path(lease.directory, final.name, lease.staging) as staged:
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
        manifest.write_text(sealed({**record, "step": step, "files": listing}), encoding="utf-8")
        sync(manifest)
        sync(staged)
        lease.check()
        staged.rename(final)
        sync(lease.directory)
    lease.tell(saved=step)


def publish_negatives(
    lease: Lease,
    refresh: int,
    write: Callable[[Path], None],
    record: dict[str, Any],
    write_candidates: Callable[[Path], None] | None = None,
) -> Refresh:
    """Publish ``ann_training_data_N``, and what it was chosen from where that is kept, then ``ann_ndcg_N``.

    ``write(path)`` makes the data file, ``write_candidates(path)`` the candidates'; the record commits both.
    UserError where the record exists; Fenced where another job has the lease.
    """
    lease.check()
    data, commit = negatives_path(lease.directory, refresh), record_path(lease.directory, refresh)
    candidates = candidates_path(lease.directory, refresh)
    taken = UserError(f"{commit} exists already, expected a new refresh number: is a second generator running?")
    if publishing.exists(commit):
        raise taken
    with staging_path(lease.directory, "data", lease.staging) as staged:
        write(staged)
        sync(staged)
        complete = {**record, "refresh": refresh, **signature_of(staged)}
        staged_candidates = staged.with_name("candidates")
        if write_candidates is not None:
            write_candidates(staged_candidates)
            sync(staged_candidates)
            complete["candidates"] = signature_of(staged_candidates)
        staged_record = staged.with_name("record")
        staged_record.write_text(sealed(complete), encoding="utf-8")
        sync(staged_record)
        lease.check()
        link_data(staged, data, commit)
        if write_candidates is not None:
            link_data(staged_candidates, candidates, commit)
        sync(lease.directory)
        try:
            os.link(staged_record, commit)
        except FileExistsError:
            if not publishing.is_same_file(staged_record, commit):
                raise taken from None
        sync(lease.directory)
    return Refresh(refresh, data, complete)


def signature_of(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


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
            wait_for(lambda: publishing.exists(commit) or None, commit.name, limit_seconds=VISIBLE_WITHIN_SECONDS)
        if publishing.exists(commit):
            raise UserError(f"{commit} exists already, expected a new refresh number") from None
        staged_again = staged.with_name(f"{staged.name}-again")
        os.link(staged, staged_again)
        staged_again.replace(data)


def mark_done(lease: Lease, **values: Any) -> None:
    """The trainer's last word: no checkpoint follows, the generator may end."""
    lease.check()
    write_text(lease.directory / DONE, sealed(values), lease.staging)


def mark_failed(lease: Lease, reason: str) -> None:
    values = {"role": lease.holder.role, "reason": reason, "token": secrets.token_hex(8)}
    write_text(lease.directory / FAILED, sealed(values), lease.staging)


def read_done(training_dir: Path) -> dict[str, Any] | None:
    """None where the trainer is not done; one that is damaged is passed over, the final checkpoint tells too."""
    return read_mark(training_dir / DONE)


def read_failed(directory: Path) -> dict[str, Any] | None:
    return read_mark(directory / FAILED)


def read_run(directory: Path) -> dict[str, Any] | None:
    """What the first job of the directory said of itself: role, run_id, science flags."""
    return read_mark(directory / RUN)


def read_mark(path: Path) -> dict[str, Any] | None:
    if not publishing.exists(path):
        return None
    try:
        return read_sealed(path)
    except UserError as error:
        say_once(f"passed over {path.name}: {error}")
        return None


def newest_science_sha256(directory: Path) -> str | None:
    """The hash of the flags that the newest checkpoint or negatives there were made with; None where there are none."""
    checkpoint = newest_checkpoint(directory)
    records = read_records(directory)
    newest = checkpoint.manifest if checkpoint else records[-1] if records else {}
    found = newest.get("science_sha256")
    return None if found is None else str(found)


def mark_run(lease: Lease, **values: Any) -> None:
    write_text(lease.directory / RUN, sealed({"role": lease.holder.role, **values}), lease.staging)


def clear_failed(lease: Lease) -> None:
    """A job that starts again takes back its own FAILED.json."""
    remove(lease, lease.directory / FAILED)


@contextlib.contextmanager
def working(directory: Path, role: str, life: Life, run_id: str) -> Iterator[Lease]:
    """Be the one ``role`` of ``directory`` for the block (`lease.role_held`); FAILED.json tells the peer of an error.

    A peer that has failed is the cause already told; it is not told again.
    """
    with role_held(directory, role, life, run_id) as lease:
        clear_failed(lease)
        try:
            yield lease
        except (PeerGone, Stopped, SystemExit, KeyboardInterrupt):  # no failure of this job's
            raise
        except BaseException as error:
            with contextlib.suppress(OSError, UserError):
                mark_failed(lease, described(error))
            raise


def remove_old_checkpoints(lease: Lease, ann_dir: Path, keep_unused: bool) -> None:
    """Keep the last three, the best by a refresh's dev nDCG, and the one the newest negatives name.

    ``keep_unused`` (lockstep) also keeps every checkpoint newer than the newest refresh: one of them is next.
    """
    steps = numbered(lease.directory, CHECKPOINT_PATTERN)
    records = read_records(ann_dir)
    keep = set(steps[-KEEP_CHECKPOINTS:])
    if keep_unused:
        used = records[-1]["step"] if records else -1
        keep |= {step for step in steps if step > used}
    if records:
        keep |= {records[-1]["step"], max(records, key=lambda r: r["ndcg"])["step"]}
    for step in sorted(set(steps) - keep):
        remove(lease, checkpoint_path(lease.directory, step))


def remove(lease: Lease, path: Path) -> None:
    """The name goes at once: a reader, or the next run, never sees half a checkpoint.

    It goes into our staging, so that a job that has lost its lease removes nothing: Fenced.
    """
    with staging_path(lease.directory, path.name, lease.staging) as staged:
        if publishing.exists(path):
            path.rename(staged)


def newest_to_go_on_from(lease: Lease) -> Checkpoint | None:
    """The newest valid checkpoint of the run; the damaged ones before it are moved out of its way.

    What the last holder said that it had saved is waited for, or a newer one: a job that takes over from one that has
    just stopped elsewhere may be shown an older listing (from one that fell silent, it has waited longer than caches
    remember). Since its last heartbeat it may have published more, and retention removed what it had spoken of.
    One listing decides: what a cache has hidden from it was not looked at, and is not touched.
    """
    if isinstance(saved := lease.previous.get("saved"), int):
        with contextlib.suppress(UserError):
            wait_for(
                lambda: max(numbered(lease.directory, CHECKPOINT_PATTERN), default=-1) >= saved or None,
                str(checkpoint_path(lease.directory, saved)),
                limit_seconds=VISIBLE_WITHIN_SECONDS,
            )
    for step in reversed(numbered(lease.directory, CHECKPOINT_PATTERN)):
        path = checkpoint_path(lease.directory, step)
        try:
            checkpoint = read_checkpoint(path, step)
            if checkpoint.manifest:
                return checkpoint
            reason = f"it has no {MANIFEST}"
        except UserError as error:
            reason = str(error)
        say_once(f"passed over {path.name}: {reason}")
        set_aside(lease, step)
    return None


def set_aside(lease: Lease, step: int) -> None:
    """Move a checkpoint to ``.damaged/``, by way of our staging: who has lost its lease moves nothing of the next's."""
    path = checkpoint_path(lease.directory, step)
    aside = lease.directory / DAMAGED / f"{path.name}.{lease.holder.epoch}"
    if publishing.is_gone(path):
        return
    aside.parent.mkdir(exist_ok=True)
    with staging_path(lease.directory, path.name, lease.staging) as staged:
        path.rename(staged)
        staged.rename(aside)
    say(f"moved {path} to {aside}")


def remove_run(lease: Lease) -> None:
    """Remove what an earlier run of the trainer published; nothing else in the directory is touched."""
    lease.previous = {}
    steps = numbered(lease.directory, CHECKPOINT_PATTERN)
    for path in (checkpoint_path(lease.directory, step) for step in steps):
        if not (path / MANIFEST).exists():
            raise UserError(f"{path} was not written by this program; move it away, or choose another --output_dir")
    for name in (DONE, FAILED, METRICS, JOURNAL):
        remove(lease, lease.directory / name)
    for step in steps:
        remove(lease, checkpoint_path(lease.directory, step))
    remove(lease, lease.directory / RUN)  # last: until then the directory is still that run's


# Reading


def numbered(directory: Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers of the directory's entries whose whole name matches, ascending."""
    matches = (pattern.fullmatch(name) for name in publishing.listing(directory))
    return sorted(int(match[1]) for match in matches if match)


def size_of(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    return path.stat().st_size if path.is_file() else None


def check_files(directory: Path, manifest: dict[str, Any], omitted: Collection[str] = ()) -> None:
    """Sizes first (cheap), then sha256. UserError names the first file that differs.

    ``omitted``: names of files that nobody is going to read. They are not looked at, and need not be there.
    """
    try:
        listed = [
            (directory / name, entry["bytes"], entry["sha256"])
            for name, entry in manifest["files"].items()
            if name not in omitted
        ]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{directory / MANIFEST} lists no files: it is damaged") from None
    for path, expected_bytes, _ in listed:
        if (size := size_of(path)) is None:
            raise UserError(f"{path} is missing, {MANIFEST} lists it")
        if size != expected_bytes:
            raise UserError(f"{path}: {size} bytes, its manifest says {expected_bytes}: it is damaged")
    for path, _, expected_sha256 in listed:
        if sha256_of(path) != expected_sha256:
            raise UserError(f"{path}: sha256 differs from its manifest: it is damaged")


def model_sha256(checkpoint: Path) -> str:
    """What the weights of a checkpoint are known by: `weights_sha256`, from the manifest where there is one.

    `check_files` has verified that. UserError where there are no weights.
    """
    manifest = checkpoint / MANIFEST
    return weights_sha256(checkpoint, read_sealed(manifest)["files"] if manifest.is_file() else None)


def read_initial_checkpoint(path: Path) -> Checkpoint:
    """The model that a run starts from: at step 0 and never final, whatever it was in the run that trained it.

    Its files are not looked at again: preflight has verified those that are read.
    """
    manifest = read_sealed(path / MANIFEST) if publishing.exists(path / MANIFEST) else {}
    return Checkpoint(path, 0, {**manifest, "final": False} if manifest else {})


def read_checkpoint(path: Path, step: int) -> Checkpoint:
    """A checkpoint by its path. One without a manifest (ANCE's, a hub download) is taken as it is, at ``step``."""
    if not path.is_dir():
        raise UserError(f"{path} is not a directory, expected a checkpoint (config.json and weights)")
    if not (path / MANIFEST).exists():
        return Checkpoint(path, step, {})
    manifest = read_sealed(path / MANIFEST)
    check_files(path, manifest)
    if manifest.get("step") != step:
        raise UserError(f"{path / MANIFEST} is of step {manifest.get('step')}, expected {step}: it is damaged")
    return Checkpoint(path, step, manifest)


@functools.cache
def first_seen(error_text: str) -> float:
    """When this process met with this error first, by its own clock."""
    return time.monotonic()


def check_not_lasting(error: Exception) -> None:
    """UserError once a version that nothing can stand in for has been damaged for longer than caches remember."""
    since = first_seen(str(error))
    if time.monotonic() - since > VISIBLE_WITHIN_SECONDS:
        raise UserError(f"{error}; nothing else can take its place: start anew in other directories") from None


def newest_checkpoint(training_dir: Path, step: int | None = None, above: int = -1) -> Checkpoint | None:
    """The newest valid checkpoint above step ``above``, or the one of ``step``; None where there is none yet."""
    steps = [s for s in numbered(training_dir, CHECKPOINT_PATTERN) if s > above and step in (None, s)]
    for candidate in reversed(steps):
        path = checkpoint_path(training_dir, candidate)
        try:
            checkpoint = read_checkpoint(path, candidate)
        except (UserError, OSError) as error:  # OSError: it was removed under our eyes
            say_once(f"passed over {path.name}: {error}")
            if step is not None:
                check_not_lasting(error)
            continue
        if checkpoint.manifest:
            return checkpoint
        if (path / "scheduler.pt").exists():  # ANCE's readiness mark, for checkpoints without a manifest
            return checkpoint
    return None


def read_record(ann_dir: Path, number: int) -> dict[str, Any]:
    """A commit record, ours or ANCE's (which knows no step). UserError where it is missing or damaged."""
    path = record_path(ann_dir, number)
    stored = publishing.read_json(path)
    if OUR_RECORD_KEYS & stored.keys() or publishing.SEAL in stored:
        stored = read_sealed(path)
        if stored.get("refresh") != number:
            raise UserError(f"{path} is of refresh {stored.get('refresh')}, expected {number}: it is damaged")
    record = {"step": 0, "checkpoint": "", **stored, "refresh": number}
    if not isinstance(record["step"], int) or not isinstance(record.get("ndcg"), int | float):
        raise UserError(f"{path}: step {record['step']}, ndcg {record.get('ndcg')}, expected numbers: it is damaged")
    return record


def read_refresh(ann_dir: Path, number: int) -> Refresh:
    """Negatives by their number, verified. UserError where they are damaged or missing."""
    record, path = read_record(ann_dir, number), negatives_path(ann_dir, number)
    check_signature(path, record)
    return Refresh(number, path, record)


def read_candidates(ann_dir: Path, number: int) -> Refresh:
    """A refresh whose ``path`` are the candidates, verified. UserError where they are damaged, or were not kept."""
    record, path = read_record(ann_dir, number), candidates_path(ann_dir, number)
    if "candidates" not in record:
        raise UserError(f"{record_path(ann_dir, number)} knows of no {path.name}; make it with --keep_candidates")
    check_signature(path, record["candidates"])
    return Refresh(number, path, record)


def check_as_recorded(path: Path) -> None:
    """UserError where a file of negatives is not what the record next to it says; one without a record is not known."""
    match = NEGATIVES_PATTERN.fullmatch(path.name)
    if match and publishing.exists(record_path(path.parent, int(match[1]))):
        read_refresh(path.parent, int(match[1]))


def check_signature(path: Path, signature: dict[str, Any]) -> None:
    """UserError where the file is missing or not what its record says; ANCE's records say nothing."""
    size = size_of(path)
    if size is None:
        raise UserError(f"{path}: No such file, its record is there; put it back")
    if size != signature.get("bytes", size):
        raise UserError(f"{path}: {size} bytes, its record says {signature.get('bytes')}: it is damaged")
    if "sha256" in signature and sha256_of(path) != signature["sha256"]:
        raise UserError(f"{path}: sha256 differs from its record: it is damaged")


def read_visible_refresh(ann_dir: Path, number: int) -> Refresh:
    """Negatives that rank 0 has seen and verified; this host may see them a little later."""
    wait_until_visible(record_path(ann_dir, number))
    wait_until_visible(negatives_path(ann_dir, number))
    return Refresh(number, negatives_path(ann_dir, number), read_record(ann_dir, number))


def newest_refresh(
    ann_dir: Path, number: int | None = None, above: int = -1, without: frozenset[int] = frozenset()
) -> Refresh | None:
    """The newest valid negatives above refresh ``above``, or those of ``number``; None where there are none yet.

    UserError where all there are have been damaged for longer than a cache could make them seem so.
    """
    numbers = [n for n in numbered(ann_dir, RECORD_PATTERN) if n > above and number in (None, n) and n not in without]
    errors: list[Exception] = []
    for candidate in reversed(numbers):
        try:
            return read_refresh(ann_dir, candidate)
        except (UserError, OSError) as error:
            say_once(f"passed over refresh {candidate}: {error}")
            errors.append(error)
    if errors and (number is not None or above < 0):
        check_not_lasting(errors[0])
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
            say_once(f"passed over the record of refresh {number}: {error}")
    return records
