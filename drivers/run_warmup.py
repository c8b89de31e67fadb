"""Train the first checkpoint, from BM25 negatives or from a triples file.

    python -m drivers.run_warmup --do_train --data_dir D --train_model_type rdot_nll --model_name_or_path roberta-base \
        --tokenizer_name D/tokenizer --bm25_dir B --output_dir W

The work itself is in drivers/train/warmup.py.
"""

from __future__ import annotations

from drivers.cli.train import WarmupFlags
from utils.errors import run_program
from utils.program import run_from_command_line


def main() -> None:
    run_from_command_line(
        "run_warmup",
        WarmupFlags,
        preflight="drivers.train.warmup_preflight:preflight",
        run="drivers.train.warmup:run",
    )


if __name__ == "__main__":
    run_program("run_warmup", main)
