"""Train the first checkpoint, from BM25 negatives or from a triples file.

    python -m drivers.run_warmup --do_train --data_dir D --train_model_type rdot_nll --model_name_or_path roberta-base \
        --tokenizer_name D/tokenizer --bm25_dir B --output_dir W

The work itself is in drivers/train/warmup.py.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.stderr.write(
        "run_warmup: error: start from the repository root: python -m drivers.run_warmup "
        "(several processes: torchrun --nproc_per_node N -m drivers.run_warmup)\n"
    )
    sys.exit(2)

from drivers.cli import WarmupFlags
from utils.errors import run_program
from utils.flags import flags_json, parse_flags


def main() -> None:
    flags = parse_flags(WarmupFlags, "run_warmup")
    from drivers.train.warmup import preflight, run

    job = preflight(flags)
    resolved = flags_json(job.flags)
    if flags.dry_run:
        sys.stdout.write(resolved + "\n")
        return
    run(job, resolved)


if __name__ == "__main__":
    run_program("run_warmup", main)
