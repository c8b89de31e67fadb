"""BM25 over a raw collection: the dev run and its metrics, and negatives for the warmup.

    python -m drivers.run_bm25 --raw_data_dir RAW --data_dir PREPROCESSED --output_dir DIR

Writes DIR/dev.trec (or another --dev_split's, with the collection's own ids), DIR/metrics.json, and then the negatives
of the train queries, ``ann_training_data_0`` and ``ann_ndcg_0``, whose ranks and scores are BM25's. Where the record
``ann_ndcg_0`` is, all are.
``--keep_candidates`` adds ``ann_candidates_0.npz``, which the strategy ``bm25`` of the other programs takes from.
The work itself is in drivers/generate/bm25.py.
"""

from __future__ import annotations

from drivers.cli import Bm25Flags
from utils.errors import run_program
from utils.flags import answer_dry_run, parse_flags


def main() -> None:
    flags = parse_flags(Bm25Flags, "run_bm25")
    from drivers.generate.bm25 import preflight, run

    job = preflight(flags)
    if not answer_dry_run(flags):
        run(job)


if __name__ == "__main__":
    run_program("run_bm25", main)
