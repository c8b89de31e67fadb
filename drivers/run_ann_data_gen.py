"""Generate ANN negatives: for each new checkpoint encode, search, select, publish.

    python -m drivers.run_ann_data_gen --data_dir D --training_dir T --init_model_dir M --model_type rdot_nll \
        --output_dir A --negative_strategy top

Runs beside ``drivers.run_ann``, which trains on what this publishes in A and publishes checkpoints in T.
The work itself is in drivers/generate/generator.py.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.stderr.write(
        "run_ann_data_gen: error: start from the repository root: python -m drivers.run_ann_data_gen "
        "(several processes: torchrun --nproc_per_node N -m drivers.run_ann_data_gen)\n"
    )
    sys.exit(2)

from drivers.cli import GenerateFlags
from utils.errors import run_program
from utils.flags import flags_json, parse_flags


def main() -> None:
    flags = parse_flags(GenerateFlags, "run_ann_data_gen")
    from data.mining.strategy import NO_FLAG
    from drivers.generate.generator import generate, preflight

    job = preflight(flags)
    resolved = flags_json(job.flags, resolved_strategy=job.strategy, strategy_from=job.strategy_from)
    if job.strategy_from.startswith(NO_FLAG):
        sys.stderr.write(f"run_ann_data_gen: warning: negatives are {job.strategy}: {job.strategy_from}\n")
    if flags.dry_run:
        sys.stdout.write(resolved + "\n")
        return
    generate(job, resolved)


if __name__ == "__main__":
    run_program("run_ann_data_gen", main)
