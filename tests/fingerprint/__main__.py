"""Runs the small loop and prints ``sha256  NAME`` for all it publishes that is no clock, host or path.

    python -m tests.fingerprint > before.txt
    python -m tests.fingerprint > after.txt      # of another commit, on the same machine
    diff before.txt after.txt

Equal lines say that the two commits compute the same. Another machine's processor rounds differently, so that its lines
differ. ``--record`` runs async training once and writes what the async parts replay: tests/fingerprint/recorded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fingerprint import loop as small
from tests.fingerprint import replay
from tests.fingerprint.digest import lines_of
from tests.fingerprint.programs import Programs
from tests.forked import fork_server

PARTS = (
    small.collection,
    small.other_collections,
    small.bm25,
    small.static_warmup,
    small.other_warmups,
    small.static_arm,
    small.other_arms,
    small.other_views,
    replay.replays,
    replay.resumed,
    small.report,
)
TO_RECORD = (small.collection, small.bm25, small.static_warmup, replay.record)


def run_parts(directory: Path, is_recorded: bool) -> None:
    """Run the loop below ``directory``, which must not be there; the time of each part goes to stderr."""
    loop = small.Loop(directory, Programs(fork_server()))
    for part in TO_RECORD if is_recorded else PARTS:
        started = time.monotonic()
        part(loop)
        sys.stderr.write(f"{part.__name__} {time.monotonic() - started:.1f} s\n")


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.fingerprint", allow_abbrev=False)
    parser.add_argument("--directory", help="a new directory for the loop, which stays; default: one that is removed")
    parser.add_argument("--record", action="store_true", help="write tests/fingerprint/recorded, and print nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fingerprint-") as temporary:
        # The last part of the path is the title of the report.
        directory = Path(given.directory or temporary).absolute() / "loop"
        run_parts(directory, given.record)
        if not given.record:
            sys.stdout.write("\n".join(lines_of(directory)) + "\n")


if __name__ == "__main__":
    main()
