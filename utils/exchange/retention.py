"""Which checkpoints and embeddings are kept, and how one is removed: its name goes at once."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.atomic import numbered
from utils.exchange.layout import (
    CHECKPOINT_PATTERN,
    DONE,
    EMBEDDINGS_PATTERN,
    FAILED,
    JOURNAL,
    MANIFEST,
    METRICS,
    RUN,
    JobLayout,
)
from utils.exchange.lease.held import Lease
from utils.exchange.negatives import read_records

KEEP_CHECKPOINTS = 3


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
        remove(lease, JobLayout(lease.directory).checkpoint(step))


def remove_other_embeddings(lease: Lease, keep: Path) -> None:
    """Remove all other embeddings than ``keep``. Fenced where another job has the lease: they may be its own."""
    for directory in keep.parent.iterdir():
        if EMBEDDINGS_PATTERN.fullmatch(directory.name) and directory != keep:
            remove(lease, directory)


def remove(lease: Lease, path: Path) -> None:
    """The name goes at once: a reader, or the next run, never sees half a checkpoint.

    It goes into our staging, so that a job that has lost its lease removes nothing: Fenced.
    """
    with lease.stage(lease.directory, path.name) as staged:
        if atomic.exists(path):
            path.rename(staged)


def remove_run(lease: Lease) -> None:
    """Remove what an earlier run of the trainer published; nothing else in the directory is touched."""
    lease.previous = {}
    steps = numbered(lease.directory, CHECKPOINT_PATTERN)
    for path in (JobLayout(lease.directory).checkpoint(step) for step in steps):
        if not (path / MANIFEST).exists():
            raise UserError(f"{path} was not written by this program; move it away, or choose another --output_dir")
    for name in (DONE, FAILED, METRICS, JOURNAL):
        remove(lease, lease.directory / name)
    for step in steps:
        remove(lease, JobLayout(lease.directory).checkpoint(step))
    remove(lease, lease.directory / RUN)  # last: until then the directory is still that run's
