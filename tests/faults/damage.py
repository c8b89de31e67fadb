"""One byte changed, or the tail cut, in every published file: it is rejected, and an older version used and named."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.programs import ROLES, Run
from tests.faults.runs import Lab, Miss, Outcome, outcome_of
from utils.exchange.checkpoints import newest_checkpoint
from utils.exchange.layout import DONE, RUN
from utils.exchange.markers import read_done, read_run
from utils.exchange.negatives import newest_refresh, next_refresh_number


@dataclass(frozen=True)
class Damage:
    """The byte at ``place`` with ``bits`` flipped; no ``bits``: everything from ``place`` on is gone."""

    path: Path
    place: int
    bits: int

    def __str__(self) -> str:
        how = f"byte {self.place} changed in" if self.bits else f"cut at byte {self.place}:"
        return f"{how} {'/'.join(self.path.parts[-3:])}"


@contextlib.contextmanager
def damaged(damage: Damage) -> Iterator[None]:
    whole = damage.path.read_bytes()
    changed = bytearray(whole)
    if damage.bits:
        changed[damage.place] ^= damage.bits
    else:
        del changed[damage.place :]
    damage.path.write_bytes(changed)
    try:
        yield
    finally:
        damage.path.write_bytes(whole)


def read_aloud(read: Callable[[], object]) -> tuple[object, str]:
    """What a reader answers, or the error it ends with, and what it says."""
    from utils.errors import UserError
    from utils.exchange import wait

    wait.log_once.cache_clear()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            return read(), said.getvalue()
        except UserError as error:
            return error, said.getvalue()


# One check for each kind of published file. The directories hold what is of the damaged version's number or older.


def check_checkpoint(directory: Path, name: str) -> None:

    step = int(name.removeprefix("checkpoint-"))
    found, said = read_aloud(lambda: newest_checkpoint(directory))
    steps = [int(path.name.removeprefix("checkpoint-")) for path in directory.glob("checkpoint-*")]
    older = max((other for other in steps if other < step), default=None)
    expect_older(getattr(found, "step", None), older, said, name)


def check_refresh(directory: Path, name: str) -> None:

    number = int(name.rpartition("_")[2])
    found, said = read_aloud(lambda: newest_refresh(directory))
    older = number - 1 if number else None
    expect_older(getattr(found, "number", None), older, said, f"refresh {number}")
    if next_refresh_number(directory) != number + 1:
        raise Miss(f"the damaged number {number} would be used again")


def expect_older(found: int | None, older: int | None, said: str, name: str) -> None:
    """The next older version that is there, or none."""
    if found != older:
        raise Miss(f"version {found} was used, expected the older one, {older}")
    if f"passed over {name}" not in said:
        raise Miss(f"nothing names the damaged {name}: {said!r}")


def check_mark(directory: Path, name: str) -> None:
    """DONE.json, RUN.json."""

    read = {DONE: read_done, RUN: read_run}[name]
    found, said = read_aloud(lambda: read(directory))
    if isinstance(found, dict) or name not in f"{found}{said}":
        raise Miss(f"read as {found!r}, said {said!r}")


def check_lease(directory: Path, name: str) -> None:
    from utils.exchange.lease.record import LeaseRecord, read_holder

    role, _, epoch = name.removesuffix(".json").rpartition("-")
    found, _ = read_aloud(lambda: read_holder(directory, role, int(epoch)))
    if isinstance(found, LeaseRecord):
        raise Miss(f"read as {found}")


def checker_of(run: Run, path: Path) -> Callable[[Path], None] | None:
    """What holds for a published file, given a view of its directory; None for what is no publication."""
    name, parent = path.name, path.parent.name
    checkpoint = next((folder.name for folder in path.parents if folder.name.startswith("checkpoint-")), "")
    if checkpoint:
        return lambda view: check_checkpoint(view, checkpoint)
    if name.startswith(("ann_ndcg_", "ann_training_data_")):
        return lambda view: check_refresh(view, name)
    if name in ("DONE.json", "RUN.json"):
        return lambda view: check_mark(view, name)
    if parent == ".leases" and name.endswith(".json"):
        return lambda view: check_lease(view, name)
    return None


def view_of(path: Path, directory: Path, view: Path) -> None:
    """``directory`` by links, without the versions newer than the one ``path`` belongs to."""
    own = path.relative_to(directory).parts[0]
    prefix, number = version_of(own)
    view.mkdir()
    for entry in directory.iterdir():
        other_prefix, other = version_of(entry.name)
        is_newer = bool(prefix) and bool(other_prefix) and other > number
        if not is_newer:
            (view / entry.name).symlink_to(entry)


def version_of(name: str) -> tuple[str, int]:
    for prefix in ("checkpoint-", "ann_ndcg_", "ann_training_data_"):
        if name.startswith(prefix):
            return prefix, int(name.removeprefix(prefix))
    return "", -1


def published_files(run: Run) -> list[tuple[Path, Path]]:
    """(directory of its role, file) of everything published in a finished run."""
    found = []
    for role in ROLES:
        directory = run.own_directory(role)
        files = sorted(path for path in directory.rglob("*") if path.is_file() and checker_of(run, path))
        found += [(directory, path) for path in files]
    return found


def run(lab: Lab, count: int, rng: random.Random) -> list[Outcome]:
    """Every published file in its turn, at random places."""
    assert lab.finished is not None
    copy = Run(lab.directory / "damaged")
    shutil.copytree(lab.finished.directory, copy.directory)
    files = published_files(copy)
    rng.shuffle(files)
    outcomes = []
    for number in range(count):
        directory, path = files[number % len(files)]
        place = rng.randrange(path.stat().st_size)
        damage = Damage(path, place, bits=rng.choice((0, 1 << rng.randrange(8))))
        outcomes.append(outcome_of(damage, lambda: inject(copy, directory, damage)))  # noqa: B023
    shutil.rmtree(copy.directory)
    return outcomes


def inject(copy: Run, directory: Path, damage: Damage) -> None:
    view = copy.directory / "view"
    check = checker_of(copy, damage.path)
    assert check is not None
    view_of(damage.path, directory, view)
    try:
        with damaged(damage):
            check(view)
    finally:
        shutil.rmtree(view)
