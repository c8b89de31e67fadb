"""Generate ANN negatives: for each new checkpoint encode, search, select, publish.

    python -m drivers.run_ann_data_gen --data_dir D --training_dir T --init_model_dir M --model_type rdot_nll \
        --output_dir A --negative_strategy top

Runs at the same time as ``drivers.run_ann``, which trains on what this publishes in A and publishes checkpoints in T.
The work itself is in drivers/generate/generator.py.
"""

from __future__ import annotations

from drivers.cli.generate import GenerateFlags
from utils.errors import run_program
from utils.program import run_from_command_line


def main() -> None:
    run_from_command_line(
        "run_ann_data_gen",
        GenerateFlags,
        preflight="drivers.generate.preflight:preflight",
        run="drivers.generate.generator:generate",
        resolved_of="drivers.generate.preflight:resolved_of",
    )


if __name__ == "__main__":
    run_program("run_ann_data_gen", main)
