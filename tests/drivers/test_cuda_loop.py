"""The programs on a GPU, which they choose by themselves: a resumed warmup, trainer and generator at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPO
from tests.drivers.test_loop import LENGTHS, LOCKSTEP, bm25, published_lists, tiny_roberta
from tests.drivers.test_resume import await_size, logged, weights
from tests.forked import TIMEOUT_SECONDS
from tests.gpu import needs_cuda
from utils.exchange.layout import JobLayout
from utils.exchange.markers import read_done

pytestmark = [needs_cuda, pytest.mark.slow]
__all__ = ["bm25", "tiny_roberta"]


def start(log: Path, program: str, *flags: str | Path) -> subprocess.Popen[bytes]:
    """An interpreter of its own: those that tests.forked starts see no GPU."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("ab") as file:
        words = [sys.executable, "-m", program, *map(str, flags)]
        return subprocess.Popen(words, cwd=REPO, env=environment, stdout=file, stderr=subprocess.STDOUT)


def finish(log: Path, *running: subprocess.Popen[bytes], code: int = 0) -> str:
    try:
        codes = [program.wait(TIMEOUT_SECONDS) for program in running]
    finally:
        for program in running:
            program.kill()
            program.wait()
    assert codes == [code] * len(running), log.read_text()[-4000:]
    return log.read_text()


def run(log: Path, *words: str | Path) -> str:
    return finish(log, start(log, str(words[0]), *words[1:]))


def warmup_flags(data_dir: Path, bm25_dir: Path, tokenizer: Path, model: Path, dtype: str) -> list[str | Path]:
    return [
        "--do_train", "--data_dir", data_dir, "--bm25_dir", bm25_dir, "--train_model_type", "rdot_nll",
        "--model_name_or_path", model, "--tokenizer_name", tokenizer, *LENGTHS, "--dtype", dtype, "--optimizer", "lamb",
        "--max_steps", "60", "--save_steps", "20", "--logging_steps", "5", "--learning_rate", "3e-3",
        "--per_gpu_train_batch_size", "16",
    ]  # fmt: skip


@pytest.fixture
def roberta_with_dropout(tiny_roberta: Path, tmp_path: Path) -> Path:
    """The tiny RoBERTa's weights, and a config by which they are trained with dropout."""
    directory = tmp_path / "roberta"
    directory.mkdir()
    config = json.loads((tiny_roberta / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes((tiny_roberta / "model.safetensors").read_bytes())
    return directory


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_warmup_that_was_stopped_on_a_gpu_resumes_to_the_same_bytes(
    dtype: str, tiny_preprocessed: Path, bm25: Path, tiny_tokenizer: Path, roberta_with_dropout: Path, tmp_path: Path
) -> None:
    flags = warmup_flags(tiny_preprocessed, bm25, tiny_tokenizer, roberta_with_dropout, dtype)
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "log"
    running = start(log, "drivers.run_warmup", *flags, "--output_dir", whole)
    stopped = start(tmp_path / "stopped", "drivers.run_warmup", *flags, "--output_dir", parts)
    try:
        await_size(parts / "metrics.jsonl", 1)
        stopped.send_signal(signal.SIGTERM)
    finally:
        said = finish(log, running)
    assert "packed without padding" in said
    assert stopped.wait(TIMEOUT_SECONDS) == 75, (tmp_path / "stopped").read_text()[-2000:]
    run(log, "drivers.run_warmup", *flags, "--output_dir", parts)
    assert logged(parts) == logged(whole)
    assert weights(parts, 60) == weights(whole, 60)


def test_trainer_and_generator_share_a_gpu(
    tiny_preprocessed: Path, bm25: Path, tiny_tokenizer: Path, roberta_with_dropout: Path, tmp_path: Path
) -> None:
    """In the types that they choose; what they have learned is worth on the CPU what it is worth on the GPU."""
    log, arm, common = tmp_path / "log", tmp_path / "arm", ("--data_dir", tiny_preprocessed, *LENGTHS)
    flags = warmup_flags(tiny_preprocessed, bm25, tiny_tokenizer, roberta_with_dropout, "bf16")
    run(log, "drivers.run_warmup", *flags, "--output_dir", tmp_path / "warmup")
    warmup = JobLayout(tmp_path / "warmup").checkpoint(60)
    arm.mkdir()
    model = ("--model_type", "rdot_nll")
    generator = start(
        arm / "generator.out", "drivers.run_ann_data_gen", *common, *model, *LOCKSTEP,
        "--training_dir", arm / "checkpoints", "--init_model_dir", warmup, "--output_dir", arm / "ann_data",
        "--topk_training", "50", "--negative_sample", "5", "--ann_chunk_factor", "2", "--negative_strategy", "top",
    )  # fmt: skip
    trainer = start(
        arm / "trainer.out", "drivers.run_ann", *common, *model, *LOCKSTEP, "--ann_dir", arm / "ann_data",
        "--output_dir", arm / "checkpoints", "--model_name_or_path", warmup, "--max_steps", "30", "--save_steps", "10",
        "--logging_steps", "5", "--learning_rate", "1e-3", "--single_warmup", "--group_size", "1", "--bf16",
        "--per_gpu_train_batch_size", "16",
    )  # fmt: skip
    finish(arm / "trainer.out", generator, trainer)
    assert "on cuda" in (arm / "generator.out").read_text()
    assert read_done(arm / "checkpoints") is not None
    assert sorted(published_lists(arm / "ann_data", tiny_preprocessed)) == [0, 1]
    evaluated = {}
    for device, more in {"gpu": (), "cpu": ("--no_cuda",)}.items():
        flags = [*common, *model, "--model_name_or_path", JobLayout(arm / "checkpoints").checkpoint(30)]
        run(log, "drivers.run_eval", *flags, "--dtype", "fp32", "--output_dir", tmp_path / device, *more)
        evaluated[device] = json.loads((tmp_path / device / "metrics.json").read_text())
    found, expected = (evaluated[device]["metrics"] for device in ("gpu", "cpu"))
    assert found == pytest.approx(expected, abs=0.01)
