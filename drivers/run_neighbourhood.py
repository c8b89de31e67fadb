"""The embeddings of one train query's neighbourhood under a checkpoint: what the arms' negatives look like to it.

    python -m drivers.run_neighbourhood --data_dir D --model_type static --model_name_or_path W/checkpoint-250 \
        --negatives top=TOP/ann_training_data_0 bottom=BOTTOM/ann_training_data_0 --output_dir O

Writes O/neighbourhood.npz and O/neighbourhood.json (utils/ir/query_map.py says what they hold): the query, its
positives, its negatives of each file with their ranks, and a random sample of the other passages.
results/plots/tsne.py draws them. The work itself is in drivers/evaluate/query_map.py.
"""

from __future__ import annotations

from drivers.cli import NeighbourhoodFlags
from utils.errors import run_program
from utils.flags import answer_dry_run, parse_flags


def main() -> None:
    flags = parse_flags(NeighbourhoodFlags, "run_neighbourhood")
    from drivers.evaluate.query_map import preflight, run

    job = preflight(flags)
    if not answer_dry_run(job.flags, resolved_query=job.chosen.query_id):
        run(job)


if __name__ == "__main__":
    run_program("run_neighbourhood", main)
