"""BM25 over a raw collection: the dev run and its metrics, and negatives for the warmup.

    python -m drivers.run_bm25 --raw_data_dir RAW --data_dir PREPROCESSED --output_dir DIR

Writes DIR/dev.trec (or another --dev_split's, with the collection's own ids), DIR/metrics.json, and then the negatives
of the train queries, ``ann_training_data_0`` and ``ann_ndcg_0``, whose ranks and scores are BM25's. Where the record
``ann_ndcg_0`` is, all are.
``--keep_candidates`` adds ``ann_candidates_0.npz``, which the strategy ``bm25`` of the other programs takes from.
The work itself is in drivers/generate/bm25.py.
"""

from __future__ import annotations

from drivers.cli.generate import Bm25Flags
from utils.errors import run_program
from utils.program import run_from_command_line


def main() -> None:
    run_from_command_line(
        "run_bm25",
        Bm25Flags,
        preflight="drivers.generate.bm25:preflight",
        run="drivers.generate.bm25:run",
    )


if __name__ == "__main__":
    run_program("run_bm25", main)
