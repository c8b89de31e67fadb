"""The embeddings of one train query's neighbourhood under a checkpoint: what the arms' negatives look like to it.

    python -m drivers.run_neighbourhood --data_dir D --model_type static --model_name_or_path W/checkpoint-250 \
        --negatives top=TOP/ann_training_data_0 bottom=BOTTOM/ann_training_data_0 --output_dir O

Writes O/neighbourhood.npz and O/neighbourhood.json (utils/ir/query_map.py says what they hold): the query, its
positives, its negatives of each file with their ranks, and a random sample of the other passages.
results/plots/tsne.py draws them. The work itself is in drivers/evaluate/query_map.py.
"""

from __future__ import annotations

from drivers.cli.evaluate import NeighbourhoodFlags
from utils.errors import run_program
from utils.program import run_from_command_line


def main() -> None:
    run_from_command_line(
        "run_neighbourhood",
        NeighbourhoodFlags,
        preflight="drivers.evaluate.query_map:preflight",
        run="drivers.evaluate.query_map:run",
        resolved_of="drivers.evaluate.query_map:resolved_of",
    )


if __name__ == "__main__":
    run_program("run_neighbourhood", main)
