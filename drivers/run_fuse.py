"""Linear fusion of two runs: BM25's score plus a weight times a dense one's, ranked.

    python -m drivers.run_fuse --run bm25/dev.trec dense/dev.trec --weight 1.1 --output both.trec

It is DPR's BM25+DPR. drivers.run_eval --run measures what it writes. The work itself is in drivers/evaluate/fuse.py,
the formula in utils/ir/fusion.py.
"""

from __future__ import annotations

from drivers.cli.evaluate import FuseFlags
from utils.errors import run_program
from utils.program import run_from_command_line


def main() -> None:
    run_from_command_line(
        "run_fuse",
        FuseFlags,
        preflight="drivers.evaluate.fuse:preflight",
        run="drivers.evaluate.fuse:run",
    )


if __name__ == "__main__":
    run_program("run_fuse", main)
