"""What the victims work on: a tiny collection and model, and the command lines of one run in lockstep.

A run is one directory in the layout of the scripts: ``arm/checkpoints`` the trainer's, ``arm/ann_data`` the
generator's, ``warmup`` the warmup's, and the ``.out`` and ``.err`` of each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH, write_tiny_collection

# Checkpoints within a window too: resuming from them needs the position in the negatives.
STEPS, WINDOW, SAVE_STEPS = 12, 4, 2
REFRESHES = STEPS // WINDOW
HEARTBEAT_SECONDS, LEASE_SECONDS = 0.2, 2.0
NEGATIVES = 4
VOCABULARY, MAX_DOC_CHARACTER = 500, 10_000
TRAINER, GENERATOR, WARMUP = "trainer", "generator", "warmup"
ROLES = (TRAINER, GENERATOR, WARMUP)


@dataclass(frozen=True)
class Inputs:
    """What every run starts from; read only."""

    directory: Path

    @property
    def data_dir(self) -> Path:
        return self.directory / "preprocessed"

    @property
    def tokenizer(self) -> Path:
        return self.directory / "tokenizer"

    @property
    def model(self) -> Path:
        """The checkpoint that trainer and generator start from."""
        return self.directory / "model"

    @property
    def bm25_dir(self) -> Path:
        """Negatives of refresh 0 for the warmup."""
        return self.directory / "bm25"


def make_inputs(directory: Path) -> Inputs:
    """The collection of the other tests, a static encoder of 8 dimensions, and random negatives for the warmup.

    The same bytes in every process: which checkpoints retention removes, and so how many operations there are, depends
    on the dev nDCG.
    """
    from data.msmarco_data import PreprocessSettings, preprocess
    from data.sources.msmarco import find_collection
    from data.tokens.collection import open_preprocessed
    from data.tokens.tokenizer import load_tokenizer
    from data.wordpiece import collection_texts, save_tokenizer, train_tokenizer

    inputs = Inputs(directory)
    raw = directory / "raw"
    for path in (raw, inputs.tokenizer):
        path.mkdir(parents=True)
    write_tiny_collection(raw)
    source = find_collection(raw, 1)
    save_tokenizer(train_tokenizer(lambda: collection_texts(source, MAX_DOC_CHARACTER), VOCABULARY), inputs.tokenizer)
    settings = PreprocessSettings(str(inputs.tokenizer), TINY_MAX_SEQ_LENGTH, TINY_MAX_QUERY_LENGTH)
    preprocess(source, load_tokenizer(inputs.tokenizer), inputs.data_dir, settings)
    collection = open_preprocessed(inputs.data_dir, TINY_MAX_SEQ_LENGTH, TINY_MAX_QUERY_LENGTH)
    write_model(inputs, collection.manifest["vocab_size"])
    write_random_negatives(inputs, *collection.qrels("train").positives(), len(collection.passages))
    (directory / "config.json").write_text(json.dumps({"model_type": "static", "embedding_size": 8}))
    return inputs


def write_model(inputs: Inputs, vocab_size: int) -> None:
    import torch

    from model.encoders.static import StaticEncoder

    torch.manual_seed(5)
    inputs.model.mkdir()
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 8}).save_pretrained(inputs.model)
    for path in inputs.tokenizer.iterdir():
        (inputs.model / path.name).write_bytes(path.read_bytes())


def write_random_negatives(inputs: Inputs, query_P: np.ndarray, positive_P: np.ndarray, passages: int) -> None:
    from data.mining.negative_lists import NegativeLists, write_negative_lists

    rng = np.random.default_rng(3)
    query_Q, first_Q = np.unique(query_P, return_index=True)
    rows = [
        rng.choice(np.setdiff1d(np.arange(passages), positive_P[query_P == query]), NEGATIVES, replace=False)
        for query in query_Q
    ]
    negative_QN = np.array(rows)
    rank_QN, score_QN = np.ones_like(negative_QN), np.zeros(negative_QN.shape, np.float32)
    lists = NegativeLists(query_Q, positive_P[first_Q], negative_QN, rank_QN, score_QN)
    inputs.bm25_dir.mkdir()
    write_negative_lists(inputs.bm25_dir / "ann_training_data_0", lists, (query_P, positive_P))
    (inputs.bm25_dir / "ann_ndcg_0").write_text(json.dumps({"ndcg": 0.0, "mrr": 0.0, "checkpoint": ""}))


@dataclass(frozen=True)
class Run:
    """One run's directory."""

    directory: Path

    @property
    def checkpoints(self) -> Path:
        return self.directory / "arm" / "checkpoints"

    @property
    def ann_data(self) -> Path:
        return self.directory / "arm" / "ann_data"

    @property
    def warmup(self) -> Path:
        return self.directory / "warmup"

    def own_directory(self, role: str) -> Path:
        return {TRAINER: self.checkpoints, GENERATOR: self.ann_data, WARMUP: self.warmup}[role]

    def out(self, role: str) -> Path:
        return self.directory / f"{role}.out"

    def err(self, role: str) -> Path:
        return self.directory / f"{role}.err"


def words_of(role: str, inputs: Inputs, run: Run, steps: int = STEPS) -> tuple[str, ...]:
    """The command line of a role, as after ``python -m``."""
    common = (
        *("--data_dir", inputs.data_dir, "--model_type", "static", "--no_cuda"),
        *("--max_seq_length", TINY_MAX_SEQ_LENGTH, "--max_query_length", TINY_MAX_QUERY_LENGTH),
        *("--heartbeat_seconds", HEARTBEAT_SECONDS, "--lease_seconds", LEASE_SECONDS),
    )
    lockstep = ("--refresh_mode", "lockstep", "--steps_per_refresh", WINDOW, "--refresh_lag", "0")
    training = (
        *("--max_steps", steps, "--save_steps", SAVE_STEPS, "--logging_steps", 1, "--warmup_steps", 3),
        *("--per_gpu_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--learning_rate", "1e-2"),
        *("--optimizer", "lamb", "--group_size", 1),
    )
    words: tuple[object, ...]
    if role == TRAINER:
        places = ("--ann_dir", run.ann_data, "--output_dir", run.checkpoints, "--model_name_or_path", inputs.model)
        words = ("drivers.run_ann", *common, *lockstep, *training, *places, "--single_warmup")
    elif role == GENERATOR:
        places = ("--training_dir", run.checkpoints, "--output_dir", run.ann_data, "--init_model_dir", inputs.model)
        selection = ("--negative_strategy", "top", "--topk_training", 20, "--negative_sample", NEGATIVES)
        words = ("drivers.run_ann_data_gen", *common, *lockstep, *places, *selection, "--ann_chunk_factor", 2)
    else:
        model = ("--config_name", inputs.directory / "config.json", "--tokenizer_name", inputs.tokenizer)
        places = ("--bm25_dir", inputs.bm25_dir, "--output_dir", run.warmup)
        words = ("drivers.run_warmup", "--do_train", *common, *training, *places, *model)
    return tuple(str(word) for word in words)
