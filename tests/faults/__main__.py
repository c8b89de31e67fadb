"""Inject the faults and say how many were survived: a line for each row, one for every miss."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults import catching, damage, fencing, kills, order, peers, ranks, space, stale_views, stops
from tests.faults.mutants import MUTANTS
from tests.faults.runs import Lab, Miss, Outcome, laboratory

Run = Callable[[Lab, int, random.Random], list[Outcome]]
EVERY = 10**6  # more than there are


@dataclass(frozen=True)
class Row:
    """A kind of fault; ``few`` and ``full`` are how many are injected, EVERY for all there are."""

    about: str
    run: Run
    few: int
    full: int


ROWS = {
    "order": Row("every publication of an undisturbed run, synced in order", order.run, EVERY, EVERY),
    "kills": Row("SIGKILL at publication boundaries and random instants", kills.run, 6, 400),
    "stops": Row("SIGTERM, SIGINT and stop files at random steps", stops.run, 4, 100),
    "space": Row("no space: at every write, by file size, on a small disk", space.run, 6, EVERY),
    "damage": Row("a byte changed or the tail cut in every published file", damage.run, 120, 500),
    "fencing": Row("SIGSTOP past the lease's life at every publication", fencing.run, 2, EVERY),
    "ranks": Row("a rank killed or frozen", ranks.run, 1, 20),
    "views": Row("listings up to 60 s stale, negative lookups cached", stale_views.run, 15, 1000),
    "peers": Row("trainer done, trainer gone", peers.run, 2, 20),
    "mutants": Row("the protocol broken on purpose; survived means caught", catching.run, len(MUTANTS), EVERY),
}


def inject(lab: Lab, name: str, full: bool, seed: int) -> list[Outcome]:
    """One row; its faults depend on the seed and the row alone."""
    row = ROWS[name]
    return row.run(lab, row.full if full else row.few, random.Random(f"{seed} {name}"))


def tell(name: str, outcomes: list[Outcome], seconds: float) -> bool:
    """Say the row's result; whether there was something to survive, and all of it was."""
    survived = sum(not outcome.problem for outcome in outcomes)
    about = f"{ROWS[name].about}; {seconds:.0f} s"
    sys.stdout.write(f"{name}: {len(outcomes)} injected, {survived} survived ({about})\n")
    for outcome in outcomes:
        if outcome.problem:
            sys.stdout.write(f"{name}: MISS: {outcome.fault}: {outcome.problem}\n")
    sys.stdout.flush()
    return 0 < survived == len(outcomes)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.faults", allow_abbrev=False)
    parser.add_argument("--full", action="store_true", help="as many faults as the project promises; hours on 2 cores")
    parser.add_argument("--row", choices=ROWS, action="append", help="this row alone; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="injections at a time")
    parser.add_argument("--directory", help="where the runs are; those that were not survived stay")
    given = parser.parse_args()
    directory = Path(given.directory or tempfile.mkdtemp(prefix="faults-")).absolute()
    missed = ["undisturbed"]
    try:
        with laboratory(directory, workers=given.workers) as lab:
            missed = [name for name in given.row or ROWS if not run_row(lab, name, given.full, given.seed)]
    except Miss as miss:  # there is nothing to hold the others against
        sys.stdout.write(f"undisturbed: MISS: {miss}\n")
    if missed:
        sys.stdout.write(f"the runs that were not survived are in {directory}\n")
    elif not given.directory:
        shutil.rmtree(directory)
    sys.exit(1 if missed else 0)


def run_row(lab: Lab, name: str, full: bool, seed: int) -> bool:
    started = time.monotonic()
    outcomes = inject(lab, name, full, seed)
    return tell(name, outcomes, time.monotonic() - started)


if __name__ == "__main__":
    main()
