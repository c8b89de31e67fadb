"""The objective that is a toy goes through the programs, which know nothing of it."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from drivers.cli.train import AnnFlags
from model.train.objectives import OBJECTIVES, EncodedBatch, Objective
from tests.fingerprint import loop
from tests.toys_loop.toy_loop import toy_loop
from utils.declared.losses import LOSSES
from utils.flags import parse_flags


@pytest.fixture
def objective() -> Iterator[Objective]:
    """The toy's; afterwards only our own are registered again."""
    with patch.dict(LOSSES), patch.dict(OBJECTIVES):
        importlib.import_module("tests.toys.margin")
        yield OBJECTIVES["margin"]


def test_what_is_logged_of_a_triple_is_its_own_loss_and_gradient(objective: Objective) -> None:
    """By autograd, one triple at a time: within the margin, ranked wrongly, and beyond the margin."""
    generator = torch.Generator().manual_seed(0)
    triples = [torch.randn(40, 4, generator=generator, dtype=torch.float32) for _ in range(3)]
    measured_T3 = objective.measure(EncodedBatch(*triples))
    expected = []
    for row in range(40):
        one = [tensor[row : row + 1].clone().requires_grad_() for tensor in triples]
        query, positive, negative = (tensor.detach().double().numpy()[0] for tensor in one)
        loss = objective.loss(EncodedBatch(*one))
        loss.backward()
        margin = query @ positive - query @ negative
        assert float(loss.detach()) == pytest.approx(max(0.0, 1.0 - margin), abs=1e-5)
        gradients = [tensor.grad for tensor in one if tensor.grad is not None]
        expected.append((max(0.0, 1.0 - margin), math.hypot(*(float(g.norm()) for g in gradients)), float(margin > 0)))
    np.testing.assert_allclose(measured_T3.numpy(), np.array(expected), rtol=1e-4, atol=1e-5)
    assert {loss > 0 for loss, *_ in expected} == {True, False}


def test_a_word_that_is_not_registered_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--data_dir", "d", "--ann_dir", "a", "--output_dir", "o", "--model_type", "static"]
    with pytest.raises(SystemExit) as ended:
        parse_flags(AnnFlags, "run_ann", [*places, "--loss", "margin"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert "margin" in error and all(word in error for word in LOSSES)


@pytest.mark.slow
def test_the_margin_loss_goes_through_the_loop(shared_collection: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    learning = ("--optimizer", "adamW", "--learning_rate", "3e-2", "--loss", "margin")
    made = toy_loop("margin", tmp_path, shared_collection, tiny_tokenizer, "--data_type", 1)
    loop.bm25(made)
    loop.warm_up(made, "warmup", "static", "--config_name", loop.write_static_config(made), *learning)
    loop.train_and_generate(made, "top", "static", "warmup", *loop.batch(1, *learning))
    arm = tmp_path / "arms" / "top"
    for directory in (tmp_path / "warmup", arm / "checkpoints"):
        assert json.loads((directory / "RUN.json").read_text())["science"]["loss"] == "margin"
    first = load_file(tmp_path / "warmup" / "checkpoint-6" / "model.safetensors")
    last = load_file(arm / "checkpoints" / f"checkpoint-{loop.STEPS}" / "model.safetensors")
    assert all(np.abs(last[name] - first[name]).max() > 0 for name in first)
    logged = [json.loads(line) for line in (arm / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in logged if "loss" in line]
    assert lines
    for line in lines:  # the mean over the triples is that over the buckets of ranks
        buckets = [name.removesuffix("_triples") for name in line if name.startswith("rank_") and "_triples" in name]
        counts = [line[f"{bucket}_triples"] for bucket in buckets]
        by_rank = sum(line[f"{bucket}_loss"] * count for bucket, count in zip(buckets, counts, strict=True))
        assert by_rank / sum(counts) == pytest.approx(line["loss"], rel=1e-5)
    assert json.loads((arm / "eval" / "metrics.json").read_text())["queries"] > 0
