"""The names of the files by which the programs meet: the only module that spells them.

The trainer's directory holds ``checkpoint-S/`` (S the step), the generator's holds ``ann_training_data_N`` and its
commit record ``ann_ndcg_N`` (N the refresh).
"""

from __future__ import annotations

import re
from pathlib import Path

from utils.errors import UserError
from utils.exchange import atomic

MANIFEST = "MANIFEST.json"
RUN = "RUN.json"
DONE = "DONE.json"
FAILED = "FAILED.json"
METRICS = "metrics.jsonl"
JOURNAL = "journal.jsonl"
TRAINER_STATE = "trainer_state.json"
DAMAGED = ".damaged"
EMBEDDINGS = "embeddings"  # a generator's, one directory for each model in it
EMBEDDINGS_RECORD = "embeddings.json"
NUMBER = "(0|[1-9][0-9]*)"  # as we write it: no leading zeros, no digits of other scripts
CHECKPOINT_PATTERN = re.compile(f"checkpoint-{NUMBER}")
NEGATIVES_PATTERN = re.compile(f"ann_training_data_{NUMBER}")
RECORD_PATTERN = re.compile(f"ann_ndcg_{NUMBER}")
CANDIDATES_PATTERN = re.compile(rf"ann_candidates_{NUMBER}\.npz")


def checkpoint_path(training_dir: Path, step: int) -> Path:
    return training_dir / f"checkpoint-{step}"


def negatives_path(ann_dir: Path, refresh: int) -> Path:
    return ann_dir / f"ann_training_data_{refresh}"


def candidates_path(ann_dir: Path, refresh: int) -> Path:
    return ann_dir / f"ann_candidates_{refresh}.npz"


def candidates_number(path: Path) -> int:
    """The refresh of a file of candidates, by its name; UserError where it has another."""
    match = CANDIDATES_PATTERN.fullmatch(path.name)
    if not match:
        raise UserError(f"{path} is not named ann_candidates_N.npz, as a generator with --keep_candidates names it")
    return int(match[1])


def record_path(ann_dir: Path, refresh: int) -> Path:
    return ann_dir / f"ann_ndcg_{refresh}"


# Reading


def numbered(directory: Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers of the directory's entries whose whole name matches, ascending."""
    matches = (pattern.fullmatch(name) for name in atomic.listing(directory))
    return sorted(int(match[1]) for match in matches if match)
