"""Evaluate a checkpoint: rank the whole collection, rerank given candidates, write metrics and TREC runs.

    python -m drivers.run_eval --data_dir D --model_type rdot_nll --model_name_or_path T/checkpoint-10000 --output_dir E

What ANCE's evaluation notebook does, as a program: writes for --split dev E/dev.trec, E/dev.per_query.tsv,
E/dev.by_rank.json (scores and grades at each rank; with --ann_dir, how far it is what was trained on), with
--rerank_file E/dev.rerank.trec, with --raw_data_dir E/dev.answers.tsv, and E/metrics.json. With --embedding_dir it
ranks by embeddings on disk instead of a model.
The work itself is in drivers/evaluate/evaluator.py.
"""

from __future__ import annotations

from drivers.cli.evaluate import EvalFlags
from utils.errors import run_program
from utils.program import run_from_command_line


def main() -> None:
    run_from_command_line(
        "run_eval",
        EvalFlags,
        preflight="drivers.evaluate.start:preflight",
        run="drivers.evaluate.start:run",
    )


if __name__ == "__main__":
    run_program("run_eval", main)
