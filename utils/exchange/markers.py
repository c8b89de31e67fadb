"""What a job says of its run to the others: RUN.json, DONE.json, FAILED.json."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import PeerGone, Stopped, UserError, described
from utils.exchange import atomic
from utils.exchange.atomic import dump_with_checksum, load_with_checksum, write_text
from utils.exchange.checkpoints import newest_checkpoint
from utils.exchange.layout import JobLayout
from utils.exchange.lease.acquire import role_held
from utils.exchange.lease.held import Lease
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.negatives import read_records
from utils.exchange.retention import remove
from utils.exchange.wait import log_once


def mark_done(lease: Lease, **values: Any) -> None:
    """The trainer's last word: no checkpoint follows, the generator may end."""
    lease.check()
    write_text(JobLayout(lease.directory).done, dump_with_checksum(values), lease.stage)


def mark_failed(lease: Lease, reason: str) -> None:
    values = {"role": lease.holder.role, "reason": reason, "token": secrets.token_hex(8)}
    write_text(JobLayout(lease.directory).failed, dump_with_checksum(values), lease.stage)


def read_done(training_dir: Path) -> dict[str, Any] | None:
    """None where the trainer is not done; one that is damaged is passed over, the final checkpoint tells too."""
    return read_mark(JobLayout(training_dir).done)


def read_failed(directory: Path) -> dict[str, Any] | None:
    return read_mark(JobLayout(directory).failed)


def read_run(directory: Path) -> dict[str, Any] | None:
    """What the first job of the directory said of itself: role, run_id, what decides its result."""
    return read_mark(JobLayout(directory).run)


def read_mark(path: Path) -> dict[str, Any] | None:
    if not atomic.exists(path):
        return None
    try:
        return load_with_checksum(path)
    except UserError as error:
        log_once(f"passed over {path.name}: {error}")
        return None


def newest_run_config_sha256(directory: Path) -> str | None:
    """The hash of the flags that the newest checkpoint or negatives there were made with; None where there are none."""
    checkpoint = newest_checkpoint(directory)
    records = read_records(directory)
    newest = checkpoint.manifest if checkpoint else records[-1] if records else {}
    found = newest.get("science_sha256")
    return None if found is None else str(found)


def mark_run(lease: Lease, **values: Any) -> None:
    write_text(JobLayout(lease.directory).run, dump_with_checksum({"role": lease.holder.role, **values}), lease.stage)


def clear_failed(lease: Lease) -> None:
    """A job that starts again takes back its own FAILED.json."""
    remove(lease, JobLayout(lease.directory).failed)


@contextlib.contextmanager
def working(directory: Path, role: str, timeouts: LeaseTimeouts, run_id: str) -> Iterator[Lease]:
    """Be the one ``role`` of ``directory`` for the block (`lease.acquire.role_held`).

    FAILED.json tells the peer of an error. A peer that has failed is the cause already told; it is not told again.

    Args:
        directory: the job's; it is made.
        role: trainer, generator, …
        timeouts: of the lease.
        run_id: this job's.

    Raises:
        UserError: a living job has the role.
        Fenced: another took it over and this one had not noticed yet.
    """
    with role_held(directory, role, timeouts, run_id) as lease:
        clear_failed(lease)
        try:
            yield lease
        except (PeerGone, Stopped, SystemExit, KeyboardInterrupt):  # no failure of this job's
            raise
        except BaseException as error:
            with contextlib.suppress(OSError, UserError):
                mark_failed(lease, described(error))
            raise
