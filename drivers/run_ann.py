"""Train on ANN negatives.

    python -m drivers.run_ann --data_dir D --ann_dir A --model_type rdot_nll --model_name_or_path M --output_dir T

Waits for negatives in A, trains, publishes ``checkpoint-S`` in T, and takes up newer negatives as
``drivers.run_ann_data_gen`` publishes them. Several processes: ``torchrun --nproc_per_node 4 -m drivers.run_ann …``.
The work itself is in drivers/train/ann.py.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.stderr.write(
        "run_ann: error: start from the repository root: python -m drivers.run_ann "
        "(several processes: torchrun --nproc_per_node N -m drivers.run_ann)\n"
    )
    sys.exit(2)

from drivers.cli import AnnFlags
from utils.errors import run_program
from utils.flags import flags_json, parse_flags


def main() -> None:
    flags = parse_flags(AnnFlags, "run_ann")
    from drivers.train.ann import preflight, train

    job = preflight(flags)
    resolved = flags_json(job.flags)
    if flags.dry_run:
        sys.stdout.write(resolved + "\n")
        return
    train(job, resolved)


if __name__ == "__main__":
    run_program("run_ann", main)
