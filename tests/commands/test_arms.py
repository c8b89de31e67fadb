"""Arms as the scripts for MS MARCO train them: the same queries in every step, whatever the strategy takes."""

from __future__ import annotations

import hashlib
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data import docstrings
from data.mining.negative_lists import NegativeLists, read_negative_lists
from data.training.batches import batches_of_triples
from results.read.seen import read_seen
from tests import REPO
from tests.forked import run
from tests.shell import run_script

STEPS, WINDOW, BATCH, SEED, GROUP_SIZE = 40, 20, 64, 42, 4
PACKAGES = ("networkx", "matplotlib")  # of the embedded collection's

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | Path]:
    """Settings that point arm.sh to the smaller part of the embedded collection, and to a model with random weights."""
    import torch

    from model.encoders.static import StaticEncoder

    root = tmp_path_factory.mktemp("embedded collection")
    raw, tokenizer, data, checkpoint = (root / name for name in ("raw", "tokenizer", "preprocessed", "checkpoint-10"))
    sources = [source for source in docstrings.installed_sources() if source.name in PACKAGES]
    docstrings.build(sources, raw, dev_queries=50, workers=1)
    lengths = ("--max_seq_length", "64", "--max_query_length", "32")
    for words in (
        ("data.wordpiece", "--data_dir", raw, "--out_dir", tokenizer, "--vocab_size", "2000"),
        ("data.msmarco_data", "--data_dir", raw, "--out_data_dir", data, "--data_type", "1", "--model_type", "static",
         "--model_name_or_path", tokenizer, *lengths),
    ):  # fmt: skip
        run(*words)
    checkpoint.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        StaticEncoder({"model_type": "static", "embedding_size": 16, "vocab_size": 2000}).save_pretrained(checkpoint)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, checkpoint / file)
    return {
        "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "RAW_DATA_DIR": raw, "DATA_DIR": data, "RUNS_DIR": root / "runs", "WARMUP_CHECKPOINT": checkpoint,
        "MODEL": checkpoint, "MODEL_TYPE": "static", "MAX_SEQ_LENGTH": "64", "MAX_QUERY_LENGTH": "32",
        "TOPK_TRAINING": "17", "NEGATIVE_SAMPLE": "5", "ANN_CHUNK_FACTOR": "8", "REFRESH_MODE": "lockstep",
        "STEPS_PER_REFRESH": str(WINDOW), "REFRESH_LAG": "0", "SEED": str(SEED),
    }  # fmt: skip


def queries_of_steps(lists: NegativeLists, group_size: int, refresh: int) -> np.ndarray:
    """The query of each triple [WINDOW, BATCH] of the steps that a refresh serves."""
    batches = batches_of_triples(lists, group_size, BATCH // 2, SEED, refresh)  # of two micro-batches each
    return np.stack([batch.query_T for batch in islice(batches, 2 * WINDOW)]).reshape(WINDOW, BATCH)


def test_top_and_top_bottom_see_the_same_queries_in_every_step(embedded: dict[str, str | Path]) -> None:
    """A filter leaves top_bottom 9 negatives of the 10 asked for, and 8 where the positive is among them; top has 5."""
    flags = ["--generator", "--min_rank", "9", "--trainer", "--max_steps", str(STEPS), "--logging_steps", "5"]
    seen, lists = {}, {}
    for strategy in ("top", "top_bottom"):
        done = run_script(REPO / "commands" / "run_arm.sh", *flags, STRATEGY=strategy, **embedded)
        assert done.returncode == 0, done.stderr[-3000:]
        arm = Path(embedded["RUNS_DIR"]) / "msmarco" / "arms" / strategy
        seen[strategy] = read_seen(arm / "checkpoints")
        paths = [arm / "ann_data" / f"ann_training_data_{refresh}" for refresh in range(STEPS // WINDOW)]
        lists[strategy] = [read_negative_lists(path) for path in paths]
    for refresh, (top, both) in enumerate(zip(lists["top"], lists["top_bottom"], strict=True)):
        counts = [(one.negative_QN >= 0).sum(1) for one in (top, both)]
        assert [one.max() for one in counts] == [5, 9]
        steps = [queries_of_steps(one, GROUP_SIZE, refresh) for one in (top, both)]
        assert np.array_equal(*steps)
        assert not np.array_equal(*(queries_of_steps(one, 0, refresh) for one in (top, both))), "ANCE's order"
        order = hashlib.sha256(steps[0].astype("<i8").tobytes()).hexdigest()
        for noted in (seen["top"][refresh], seen["top_bottom"][refresh]):
            assert (noted.refresh, noted.triples, noted.order) == (refresh, WINDOW * BATCH, order)
            assert noted.queries == len(np.unique(steps[0]))
    assert len(seen["top"]) == len(seen["top_bottom"]) == STEPS // WINDOW
