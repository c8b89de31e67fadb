"""Generate ANN negatives: for each new checkpoint encode, search, select, publish.

    python -m drivers.run_ann_data_gen --data_dir D --training_dir T --init_model_dir M --model_type rdot_nll \
        --output_dir A --negative_strategy top

Runs at the same time as ``drivers.run_ann``, which trains on what this publishes in A and publishes checkpoints in T.
The work itself is in drivers/generate/generator.py.
"""

from __future__ import annotations

import sys

from drivers.cli import GenerateFlags
from utils.errors import run_program
from utils.flags import answer_dry_run, parse_flags


def main() -> None:
    flags = parse_flags(GenerateFlags, "run_ann_data_gen")
    from data.mining.strategy import NO_FLAG
    from drivers.generate.generator import generate
    from drivers.generate.preflight import preflight, resolved_of

    job = preflight(flags)
    if job.strategy_from.startswith(NO_FLAG):
        sys.stderr.write(f"run_ann_data_gen: warning: negatives are {job.strategy}: {job.strategy_from}\n")
    if not answer_dry_run(job.flags, **resolved_of(job)):
        generate(job)


if __name__ == "__main__":
    run_program("run_ann_data_gen", main)
