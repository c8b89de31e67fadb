"""Checkpoints: published whole or not at all, and read as the newest that verifies.

Everything is staged under the writer's lease, synced, and appears under its name at once; a published name's bytes
never change. docs/exchange.md states what holds at any instant, and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.atomic import check_space, dump_with_checksum, load_with_checksum, numbered, sync, sync_contents
from utils.exchange.layout import CHECKPOINT_PATTERN, MANIFEST, SCHEDULER, JobLayout
from utils.exchange.lease.held import Lease
from utils.exchange.model_files import weights_sha256
from utils.exchange.verify import FAULTS, check_files, signature_of
from utils.exchange.wait import VISIBLE_WITHIN_SECONDS, log_once, wait_for
from utils.run_log import say


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. ``manifest`` is empty for one that another program wrote."""

    path: Path
    step: int
    manifest: dict[str, Any]


# Writing


@contextlib.contextmanager
def publish_checkpoint(lease: Lease, step: int, record: dict[str, Any]) -> Iterator[Path]:
    """Yield a staging directory; when the block ends, it becomes ``checkpoint-<step>`` at once.

    ``record`` goes into MANIFEST.json next to sizes and sha256 of every file. An exception in the
    block publishes nothing. UserError where the name is taken; Fenced where another job has the lease.
    """
    lease.check()
    final = JobLayout(lease.directory).checkpoint(step)
    # rename() onto an *empty* directory succeeds, so the name is checked by hand.
    if atomic.exists(final):
        raise UserError(f"{final} exists already, expected a new name: choose another --output_dir")
    with lease.stage(lease.directory, final.name) as staged:
        staged.mkdir()
        try:
            yield staged
        except Exception:
            check_space(staged)
            raise
        files = sync_contents(staged)
        listing = {str(path.relative_to(staged)): signature_of(path) for path in files}
        manifest = staged / MANIFEST
        manifest.write_text(dump_with_checksum({**record, "step": step, "files": listing}), encoding="utf-8")
        sync(manifest)
        sync(staged)
        lease.check()
        staged.rename(final)
        sync(lease.directory)
    lease.set_status(saved=step)


def latest_resumable_checkpoint(lease: Lease) -> Checkpoint | None:
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
                str(JobLayout(lease.directory).checkpoint(saved)),
                limit_seconds=VISIBLE_WITHIN_SECONDS,
            )
    for step in reversed(numbered(lease.directory, CHECKPOINT_PATTERN)):
        path = JobLayout(lease.directory).checkpoint(step)
        try:
            checkpoint = read_checkpoint(path, step)
            if checkpoint.manifest:
                return checkpoint
            reason = f"it has no {MANIFEST}"
        except UserError as error:
            reason = str(error)
        log_once(f"passed over {path.name}: {reason}")
        set_aside(lease, step)
    return None


def set_aside(lease: Lease, step: int) -> None:
    """Move a checkpoint to ``.damaged/``, by way of our staging: who has lost its lease moves nothing of the next's."""
    path = JobLayout(lease.directory).checkpoint(step)
    aside = JobLayout(lease.directory).damaged(path.name, lease.holder.epoch)
    if atomic.is_gone(path):
        return
    aside.parent.mkdir(exist_ok=True)
    with lease.stage(lease.directory, path.name) as staged:
        path.rename(staged)
        staged.rename(aside)
    say(f"moved {path} to {aside}")


def model_sha256(checkpoint: Path) -> str:
    """What the weights of a checkpoint are known by: `weights_sha256`, from the manifest where there is one.

    `check_files` has verified that. UserError where there are no weights.
    """
    manifest = checkpoint / MANIFEST
    return weights_sha256(checkpoint, load_with_checksum(manifest)["files"] if manifest.is_file() else None)


def read_initial_checkpoint(path: Path) -> Checkpoint:
    """The model that a run starts from: at step 0 and never final, whatever it was in the run that trained it.

    Its files are not looked at again: preflight has verified those that are read.
    """
    manifest = load_with_checksum(path / MANIFEST) if atomic.exists(path / MANIFEST) else {}
    return Checkpoint(path, 0, {**manifest, "final": False} if manifest else {})


def read_checkpoint(path: Path, step: int) -> Checkpoint:
    """A checkpoint by its path. One without a manifest (ANCE's, a hub download) is taken as it is, at ``step``."""
    if not path.is_dir():
        raise UserError(f"{path} is not a directory, expected a checkpoint (config.json and weights)")
    if not (path / MANIFEST).exists():
        return Checkpoint(path, step, {})
    manifest = load_with_checksum(path / MANIFEST)
    check_files(path, manifest)
    if manifest.get("step") != step:
        raise UserError(f"{path / MANIFEST} is of step {manifest.get('step')}, expected {step}: it is damaged")
    return Checkpoint(path, step, manifest)


def newest_checkpoint(training_dir: Path, step: int | None = None, above: int = -1) -> Checkpoint | None:
    """The newest valid checkpoint above step ``above``, or the one of ``step``; None where there is none yet."""
    steps = [s for s in numbered(training_dir, CHECKPOINT_PATTERN) if s > above and step in (None, s)]
    for candidate in reversed(steps):
        path = JobLayout(training_dir).checkpoint(candidate)
        try:
            checkpoint = read_checkpoint(path, candidate)
        except (UserError, OSError) as error:  # OSError: it was removed under our eyes
            log_once(f"passed over {path.name}: {error}")
            if step is not None:
                FAULTS.raise_if_persistent(error)
            continue
        if checkpoint.manifest:
            return checkpoint
        if (path / SCHEDULER).exists():  # ANCE's readiness mark, for checkpoints without a manifest
            return checkpoint
    return None
