"""The names of the directories and files of a run: the only module that spells them, for Python and for the scripts.

    RUN/                       RunLayout: what quickstart.sh, study.sh and the scripts for MS MARCO leave
      raw/ preprocessed/       the collection
      bm25/ warmup/            a JobLayout each, with the evaluation's files in bm25/ and warmup/eval/
      runs/NAME/               EvaluationLayout of a run that was given (run_eval --run)
      arms/NAME/               ArmLayout
        checkpoints/           JobLayout of the trainer: checkpoint-S/ (S the step)
        ann_data/              JobLayout of the generator: ann_training_data_N, committed by ann_ndcg_N (N the refresh)
        eval/                  EvaluationLayout
        trainer.out …
      report.html …            ReportLayout

``python -m utils.exchange.layout`` prints the same names for bash (commands/env.sh), so that nothing heavy is imported.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

# In a job's directory.
MANIFEST = "MANIFEST.json"  # of a checkpoint
RUN, DONE, FAILED = "RUN.json", "DONE.json", "FAILED.json"
METRICS = "metrics.jsonl"
JOURNAL = "journal.jsonl"
TRAINER_STATE = "trainer_state.json"
SCHEDULER = "scheduler.pt"  # of a checkpoint; ANCE's readiness mark
STAGING = ".staging"
LEASES = ".leases"
DAMAGED = ".damaged"
STOP = "STOP"  # for people
TAKEN = ".taken"  # ends the name of a stop file that was obeyed
EMBEDDINGS = "embeddings"  # a generator's, one directory for each model in it
EMBEDDINGS_RECORD = "embeddings.json"
ROWS_END = ".rows.npy"  # of a file that says which queries are embedded, or how many rows each passage of a shard has
TENSORBOARD = "tensorboard"

# In an arm's directory.
CHECKPOINTS, ANN_DATA, EVALUATION = "checkpoints", "ann_data", "eval"

# In a run's directory.
RAW, PREPROCESSED, TOKENIZER = "raw", "preprocessed", "tokenizer"
BM25, WARMUP, ARMS, LOGS, INFERENCE = "bm25", "warmup", "arms", "logs", "inference"
GIVEN_RUNS = "runs"
QUERY_MAP = "neighbourhood"
MODEL_CONFIG = "model.json"
STAGES = ".stages"
PLAN = "plan.tsv"  # the settings that were chosen for a collection

# What says that a step's output is complete.
COLLECTION_MANIFEST = "manifest.json"  # of a preprocessed directory
SUBSET_RECORD = "subset.json"
DOCSTRINGS_RECORD = "docstrings.json"
TOKENIZER_FILE = "tokenizer.json"
EVALUATION_RECORD = "metrics.json"
QUERY_MAP_ARRAYS, QUERY_MAP_RECORD = "neighbourhood.npz", "neighbourhood.json"
REPORT_JSON, REPORT_MARKDOWN, REPORT_HTML = "report.json", "report.md", "report.html"
SUMMARY_JSON = "summary.json"  # of a study

NUMBER = "(0|[1-9][0-9]*)"  # as we write it: no leading zeros, no digits of other scripts
CHECKPOINT_PREFIX = "checkpoint-"
SEED_PREFIX = "seed-"  # in a study's directory
STOP_PREFIX = ".stop-"  # of the file by which a job's script asks a program to end
OUTPUT_END = ".out"  # of what a program printed
RUN_ENDS = (".gz", ".trec", ".tsv", ".txt", ".run")  # of a run's file
CHECKPOINT_PATTERN = re.compile(f"{CHECKPOINT_PREFIX}{NUMBER}")
NEGATIVES_PATTERN = re.compile(f"ann_training_data_{NUMBER}")
RECORD_PATTERN = re.compile(f"ann_ndcg_{NUMBER}")
CANDIDATES_PATTERN = re.compile(rf"ann_candidates_{NUMBER}\.npz")
EMBEDDINGS_PATTERN = re.compile(r"step-\d+-[0-9a-f]{16}")
SEED_PATTERN = re.compile(f"{SEED_PREFIX}{NUMBER}")


@dataclass(frozen=True)
class JobLayout:
    """The directory that one program works in: a trainer, a generator, a warmup, or BM25."""

    root: Path

    @property
    def run(self) -> Path:
        """What the first job of the directory was given."""
        return self.root / RUN

    @property
    def done(self) -> Path:
        return self.root / DONE

    @property
    def failed(self) -> Path:
        return self.root / FAILED

    @property
    def metrics(self) -> Path:
        return self.root / METRICS

    @property
    def journal(self) -> Path:
        """Which negatives served which steps."""
        return self.root / JOURNAL

    @property
    def tensorboard(self) -> Path:
        return self.root / TENSORBOARD

    @property
    def stop(self) -> Path:
        """A person makes this file to stop the program."""
        return self.root / STOP

    @property
    def staging(self) -> Path:
        return self.root / STAGING

    @property
    def leases(self) -> Path:
        return self.root / LEASES

    def lease(self, role: str, epoch: int) -> Path:
        return self.leases / f"{role}-{epoch}.json"

    def heartbeat(self, role: str, epoch: int) -> Path:
        return self.leases / f"{role}-{epoch}.beat"

    def role_lock(self, role: str) -> Path:
        return self.leases / f"{role}.lock"

    def damaged(self, name: str, epoch: int) -> Path:
        """Where the holder of lease ``epoch`` moves what cannot be read."""
        return self.root / DAMAGED / f"{name}.{epoch}"

    @property
    def embeddings(self) -> Path:
        return self.root / EMBEDDINGS

    def checkpoint(self, step: int) -> Path:
        return self.root / f"{CHECKPOINT_PREFIX}{step}"

    def negatives(self, refresh: int) -> Path:
        return self.root / f"ann_training_data_{refresh}"

    def record(self, refresh: int) -> Path:
        """The commit record of a refresh: where it is, all of the refresh is."""
        return self.root / f"ann_ndcg_{refresh}"

    def candidates(self, refresh: int) -> Path:
        return self.root / f"ann_candidates_{refresh}.npz"


@dataclass(frozen=True)
class EvaluationLayout:
    """What an evaluation leaves, of a split."""

    root: Path

    @property
    def metrics(self) -> Path:
        """Written last."""
        return self.root / EVALUATION_RECORD

    def ranking(self, split: str) -> Path:
        return self.root / f"{split}.trec"

    def reranking(self, split: str) -> Path:
        return self.root / f"{split}.rerank.trec"

    def per_query(self, split: str) -> Path:
        return self.root / f"{split}.per_query.tsv"

    def by_rank(self, split: str) -> Path:
        return self.root / f"{split}.by_rank.json"

    def answers(self, split: str) -> Path:
        return self.root / f"{split}.answers.tsv"


@dataclass(frozen=True)
class ArmLayout:
    """An arm: trainer and generator, the evaluation of the last checkpoint, and the programs' output."""

    root: Path

    @property
    def checkpoints(self) -> JobLayout:
        return JobLayout(self.root / CHECKPOINTS)

    @property
    def ann_data(self) -> JobLayout:
        return JobLayout(self.root / ANN_DATA)

    @property
    def evaluation(self) -> EvaluationLayout:
        return EvaluationLayout(self.root / EVALUATION)

    def output(self, program: str) -> Path:
        """What the trainer, the generator or the evaluation printed."""
        return self.root / f"{program}{OUTPUT_END}"

    def stop_file(self, program: str, job: str) -> Path:
        """By which a job's script asks the program to save its state and end."""
        return self.root / f"{STOP_PREFIX}{program}-{job}"


@dataclass(frozen=True)
class ReportLayout:
    """A report of runs or of a study, next to its pictures."""

    root: Path

    @property
    def json(self) -> Path:
        return self.root / REPORT_JSON

    @property
    def summary(self) -> Path:
        return self.root / SUMMARY_JSON

    @property
    def markdown(self) -> Path:
        return self.root / REPORT_MARKDOWN

    @property
    def html(self) -> Path:
        return self.root / REPORT_HTML


@dataclass(frozen=True)
class RunLayout:
    """A run: the collection, what its arms start from, the arms, the report. A study has its arms in seed-N/."""

    root: Path

    @property
    def preprocessed(self) -> Path:
        return self.root / PREPROCESSED

    @property
    def bm25(self) -> EvaluationLayout:
        return EvaluationLayout(self.root / BM25)

    @property
    def warmup(self) -> JobLayout:
        return JobLayout(self.root / WARMUP)

    @property
    def warmup_evaluation(self) -> EvaluationLayout:
        return EvaluationLayout(self.warmup.root / EVALUATION)

    @property
    def given_runs(self) -> Path:
        return self.root / GIVEN_RUNS

    @property
    def arms(self) -> Path:
        return self.root / ARMS

    def seed(self, seed: int) -> Path:
        return self.root / f"{SEED_PREFIX}{seed}"


def embeddings_path(embeddings_dir: Path, step: int, key: str) -> Path:
    """The embeddings of one model, in one way; ``key`` is a sha256 of all that decides their numbers."""
    return embeddings_dir / f"step-{step}-{key[:16]}"


def candidates_number(path: Path) -> int:
    """The refresh of a file of candidates, by its name; UserError where it has another."""
    match = CANDIDATES_PATTERN.fullmatch(path.name)
    if not match:
        raise UserError(f"{path} is not named ann_candidates_N.npz, as a generator with --keep_candidates names it")
    return int(match[1])


def run_name(path: Path) -> str:
    """What a run that was given is called: its file's name without what says how it is written."""
    while path.suffix in RUN_ENDS and path.stem:
        path = path.with_suffix("")
    return path.name


def bash_names() -> dict[str, str]:
    """Each name by its constant's in lower case, and those of the first negatives: what the scripts look for."""
    names = {name.lower(): value for name, value in globals().items() if name.isupper() and isinstance(value, str)}
    return {
        **names,
        "first_record": JobLayout(Path()).record(0).name,
        "first_negatives": JobLayout(Path()).negatives(0).name,
    }


if __name__ == "__main__":
    entries = " ".join(f"[{name}]={shlex.quote(value)}" for name, value in bash_names().items())
    sys.stdout.write(f"LAYOUT=({entries})\n")
