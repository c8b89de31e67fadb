"""Train on ANN negatives.

    python -m drivers.run_ann --data_dir D --ann_dir A --model_type rdot_nll --model_name_or_path M --output_dir T

Waits for negatives in A, trains, publishes ``checkpoint-S`` in T, and switches to newer negatives
as ``drivers.run_ann_data_gen`` publishes them. Several processes: ``torchrun --nproc_per_node 4 -m drivers.run_ann …``.
The work itself is in drivers/train/ann.py.
"""

from __future__ import annotations

from drivers.cli.train import AnnFlags
from utils.errors import run_program
from utils.program import run_from_command_line


def main() -> None:
    run_from_command_line(
        "run_ann",
        AnnFlags,
        preflight="drivers.train.ann:preflight",
        run="drivers.train.ann:train",
    )


if __name__ == "__main__":
    run_program("run_ann", main)
