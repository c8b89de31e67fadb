"""Train on ANN negatives.

    python -m drivers.run_ann --data_dir D --ann_dir A --model_type rdot_nll --model_name_or_path M --output_dir T

Waits for negatives in A, trains, publishes ``checkpoint-S`` in T, and switches to newer negatives
as ``drivers.run_ann_data_gen`` publishes them. Several processes: ``torchrun --nproc_per_node 4 -m drivers.run_ann …``.
The work itself is in drivers/train/ann.py.
"""

from __future__ import annotations

from drivers.cli import AnnFlags
from utils.errors import run_program
from utils.flags import answer_dry_run, parse_flags


def main() -> None:
    flags = parse_flags(AnnFlags, "run_ann")
    from drivers.train.ann import preflight, train

    job = preflight(flags)
    if not answer_dry_run(job.flags):
        train(job)


if __name__ == "__main__":
    run_program("run_ann", main)
