"""Jobs that resume where an earlier one stopped: the same bytes at the end, nothing trained twice."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.drivers.test_loop import LENGTHS, bm25, static_warmup, tiny_roberta
from tests.exchanging import flip_byte, put_checkpoint, put_negatives
from tests.forked import run, start
from utils.errors import UserError
from utils.exchange import atomic
from utils.exchange.atomic import numbered
from utils.exchange.checkpoints import newest_checkpoint
from utils.exchange.layout import CHECKPOINT_PATTERN, JobLayout
from utils.exchange.negatives import newest_refresh

pytestmark = pytest.mark.slow
__all__ = ["bm25", "static_warmup", "tiny_roberta"]
STALE = """
import atexit, errno, os, time

def rename(source, target, *more, **named):
    if os.path.basename(target).startswith("checkpoint-"):
        atexit.register(time.sleep, 600)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(target))
    return real(source, target, *more, **named)

if os.environ.get("RANK") == "0":
    real, os.rename = os.rename, rename
"""
SIGNS = ("--heartbeat_seconds", "0.2", "--lease_seconds", "2")


def await_size(path: Path, size: int, limit_seconds: float = 90.0) -> None:
    deadline = time.monotonic() + limit_seconds
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < deadline, f"{path} did not grow"
        time.sleep(0.01)


def weights(directory: Path, step: int) -> str:
    return atomic.sha256_of(JobLayout(directory).checkpoint(step) / "model.safetensors")


def arm_flags(
    arm: Path, data_dir: Path, warmup: Path, clock: tuple[str, ...], steps: int
) -> tuple[list[str | Path], list[str | Path]]:
    common = ["--data_dir", data_dir, "--model_type", "static", *LENGTHS, *clock, *SIGNS]
    generator = [
        *common, "--training_dir", arm / "checkpoints", "--init_model_dir", warmup, "--output_dir", arm / "ann_data",
        "--topk_training", "50", "--negative_sample", "5", "--ann_chunk_factor", "2", "--negative_strategy", "random",
    ]  # fmt: skip
    trainer = [
        *common, "--ann_dir", arm / "ann_data", "--output_dir", arm / "checkpoints", "--model_name_or_path", warmup,
        "--max_steps", str(steps), "--save_steps", "10", "--logging_steps", "5", "--learning_rate", "1e-3",
        "--group_size", "1", "--per_gpu_train_batch_size", "16", "--warmup_steps", "5",
    ]  # fmt: skip
    return trainer, generator


def logged(directory: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("time", "steps_per_second")} for line in lines]


@pytest.mark.parametrize("loss", ["pairwise", "in_batch"])
def test_a_stopped_warmup_goes_on_to_the_same_bytes(
    loss: str, tiny_preprocessed: Path, bm25: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """With dropout, so that the random state counts; by SIGTERM, and of two processes by the stop file."""
    config = tmp_path / "config.json"
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    more = {"model_type": "roberta", "max_position_embeddings": 40, "hidden_dropout_prob": 0.3}
    config.write_text(json.dumps({**shape, **more}))
    processes = 2 if loss == "in_batch" else 1
    flags = [
        "--data_dir", tiny_preprocessed, "--bm25_dir", bm25, "--do_train", "--train_model_type", "rdot_nll",
        "--config_name", config, "--tokenizer_name", tiny_tokenizer, *LENGTHS, "--loss", loss, "--max_steps", "100",
        "--save_steps", "50", "--logging_steps", "7", "--per_gpu_train_batch_size", "8", "--warmup_steps", "10",
        "--learning_rate", "1e-3", "--optimizer", "adamW", "--gradient_accumulation_steps", "2",
        "--evaluate_during_training", "--logging_steps_per_eval", "5", *SIGNS,
    ]  # fmt: skip
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "warmup.out"
    run("drivers.run_warmup", *flags, "--output_dir", whole, processes=processes)
    launcher = ("utils.launch", "--processes", str(processes)) if processes > 1 else ()
    job = start(log, *launcher, "drivers.run_warmup", *flags, "--output_dir", parts)
    try:
        steps = parts / "metrics.jsonl"
        await_size(steps, 1)
        if processes == 1:
            job.send(signal.SIGTERM)
        else:
            (parts / "STOP").touch()
        assert job.wait(60) == 75, log.read_text()[-2000:]
    finally:
        job.end()
    assert not (parts / "STOP").exists()
    stopped_at = max(numbered(parts, CHECKPOINT_PATTERN))
    assert f"stopped by {'SIGTERM' if processes == 1 else parts / 'STOP'} at step {stopped_at}" in log.read_text()
    run("drivers.run_warmup", *flags, "--output_dir", parts, processes=processes)
    assert weights(parts, 100) == weights(whole, 100)
    assert logged(parts) == logged(whole)


def from_the_middle(run_dir: Path, copy: Path, step: int) -> Path:
    """The run as a job that was killed after ``step`` leaves it, a while ago."""
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns(".leases", ".staging", "DONE.json", "tensorboard"))
    for later in numbered(copy, CHECKPOINT_PATTERN):
        if later > step:
            shutil.rmtree(JobLayout(copy).checkpoint(later))
    return copy


def test_a_run_resumes_with_flags_that_leave_the_mathematics_alone(
    tiny_preprocessed: Path, bm25: Path, tiny_tokenizer: Path, tiny_roberta: Path, tmp_path: Path
) -> None:
    """As after an out-of-memory: the same triples in the same order, whose losses are the same but for rounding."""
    flags = [
        "--data_dir", tiny_preprocessed, "--bm25_dir", bm25, "--do_train", "--train_model_type", "rdot_nll",
        "--model_name_or_path", tiny_roberta, "--tokenizer_name", tiny_tokenizer, *LENGTHS, "--max_steps", "16",
        "--save_steps", "8", "--logging_steps", "1", "--learning_rate", "1e-3", "--optimizer", "adamW", *SIGNS,
    ]  # fmt: skip

    def divided(batch: int, micro_batches: int) -> list[str | Path]:
        return ["--per_gpu_train_batch_size", str(batch), "--gradient_accumulation_steps", str(micro_batches)]

    whole = tmp_path / "whole"
    run("drivers.run_warmup", *flags, *divided(4, 2), "--output_dir", whole, processes=2)
    losses = [line["loss"] for line in logged(whole)]
    assert len({*losses}) == 16, "different triples in each step"
    for number, more in enumerate(
        [[*divided(4, 4), "--gradient_checkpointing"], [*divided(16, 1), "--grad_cache_tokens", "64"]]
    ):
        parts = from_the_middle(whole, tmp_path / f"parts-{number}", 8)
        output = run("drivers.run_warmup", *flags, *more, "--output_dir", parts)
        (said,) = [line for line in output.splitlines() if line.startswith("resuming the run ")]
        assert "processes 2 there, 1 here" in said and said.endswith(
            ": the same mathematics, but bytes may differ from here"
        )
        assert f"{more[-1] if number else 'gradient_checkpointing False there, True'} here" in said
        assert "resuming from checkpoint-8" in output
        assert [line["loss"] for line in logged(parts)] == pytest.approx(losses, rel=1e-4)
        assert weights(parts, 16) != weights(whole, 16), "else the test shows nothing"
    before = sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*"))
    for more, why in (
        ([*divided(4, 2), "--compile"], ""),
        ([*divided(4, 2), "--seed", "5", "--optimizer", "lamb"], "seed 42 there, 5 here; optimizer adamW there, lamb"),
        ([*divided(12, 1)], "a step is of 16 triples there, of 12 here"),
    ):
        output = run("drivers.run_warmup", *flags, *more, "--output_dir", whole, "--dry_run", code=3 if why else 0)
        assert why in output
    assert before == sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*")), "a --dry_run has written"


def test_triples_that_end_wrongly_are_refused_before_a_run_begins_and_their_run_resumes_once_they_do_not(
    tiny_preprocessed: Path, tiny_collection: Path, static_warmup: Path, tmp_path: Path
) -> None:
    texts = [line.split("\t")[1] for line in (tiny_collection / "collection.tsv").read_text().splitlines()]
    triples, output_dir = tmp_path / "triples.tsv", tmp_path / "out"
    whole = "".join(f"{texts[i][:20]}\t{texts[i]}\t{texts[i + 9]}\n" for i in range(40))
    flags = [
        "--data_dir", tiny_preprocessed, "--triples", triples, "--do_train", "--train_model_type", "static",
        "--model_name_or_path", static_warmup, *LENGTHS, "--max_steps", "10", "--save_steps", "3", *SIGNS,
    ]  # fmt: skip
    for text, why in ((whole[:-1], "no line end"), (f"{whole}\n", "empty")):
        triples.write_text(text)
        for more in ([], ["--dry_run"]):
            output = run("drivers.run_warmup", *flags, "--output_dir", output_dir, *more, code=2)
            assert f"run_warmup: error: {triples}, line 4" in output and why in output
            assert not (output_dir / "RUN.json").exists()
    triples.write_text(whole)
    run("drivers.run_warmup", *flags, "--output_dir", output_dir)
    # An earlier version began with them as they were, and died at the end of the file.
    stored = atomic.load_with_checksum(output_dir / "RUN.json")
    died = from_the_middle(output_dir, tmp_path / "died", 3)
    stored["science"]["triples_bytes"] -= 1
    (died / "RUN.json").write_text(atomic.dump_with_checksum(stored))
    output = run("drivers.run_warmup", *flags, "--output_dir", died)
    size = len(whole.encode())
    assert f"{triples} has {size:,} bytes, the run began with {size - 1:,}: taken as the same file" in output
    assert "resuming from checkpoint-3" in output
    assert weights(died, 10) == weights(output_dir, 10)
    stored["science"]["triples_bytes"] -= 1
    (died / "RUN.json").write_text(atomic.dump_with_checksum(stored))
    assert "triples_bytes" in run("drivers.run_warmup", *flags, "--output_dir", died, code=3)


def test_a_stale_handle_on_the_first_process_ends_all_of_them_at_once(
    tiny_preprocessed: Path, static_warmup: Path, bm25: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishing fails on process 0, which stays for a while: in collectives the other would wait for it."""
    (tmp_path / "sitecustomize.py").write_text(STALE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    log, output_dir = tmp_path / "warmup.out", tmp_path / "out"
    flags = [
        "--data_dir", tiny_preprocessed, "--bm25_dir", bm25, "--do_train", "--train_model_type", "static",
        "--model_name_or_path", static_warmup, *LENGTHS, "--max_steps", "20", "--save_steps", "5",
        "--output_dir", output_dir, *SIGNS,
    ]  # fmt: skip
    job = start(log, "utils.launch", "--processes", "2", "drivers.run_warmup", *flags)
    try:
        assert job.wait(300) == 2, log.read_text()[-2000:]
    finally:
        job.send(signal.SIGTERM)
    lines = [line for line in log.read_text().splitlines() if line.startswith("run_warmup: ")]
    path = output_dir / "checkpoint-5"
    assert lines == [f"run_warmup: error: {path}: Stale file handle (ESTALE)"]


def test_an_async_run_is_repeated_by_its_journal_and_a_finished_run_is_left_alone(
    tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path
) -> None:
    arm = tmp_path / "arm"
    clock = ("--refresh_mode", "async", "--max_staleness_steps", "100000")
    trainer, generator = arm_flags(arm, tiny_preprocessed, static_warmup, ("--refresh_mode", "async"), steps=900)
    arm.mkdir()
    jobs = [start(tmp_path / "g.out", "drivers.run_ann_data_gen", *generator)]
    jobs.append(start(tmp_path / "t.out", "drivers.run_ann", *trainer, *clock))
    try:
        assert [job.wait(200) for job in jobs] == [0, 0], (tmp_path / "t.out").read_text()[-2000:]
    finally:
        for job in jobs:
            job.end()
    journal = arm / "checkpoints" / "journal.jsonl"
    assert len(journal.read_text().splitlines()) > 1, "the run was too short to see more than its first negatives"
    again = tmp_path / "again"
    run("drivers.run_ann", *trainer, "--output_dir", again, "--replay", journal)
    assert weights(again, 900) == weights(arm / "checkpoints", 900)
    assert (again / "journal.jsonl").read_bytes() == journal.read_bytes()
    other = run("drivers.run_ann", *trainer, "--output_dir", tmp_path / "c", "--seed", "5", "--replay", journal, code=3)
    assert "seed 42 there, 5 here" in other
    before = {path: path.stat().st_mtime_ns for path in again.glob("checkpoint-*/*")}
    assert "finished step=900" in run("drivers.run_ann", *trainer, "--output_dir", again, "--replay", journal)
    assert before == {path: path.stat().st_mtime_ns for path in again.glob("checkpoint-*/*")}


def test_a_stale_trainer_stops_with_its_state_saved_and_goes_on_with_newer_negatives(
    tiny_preprocessed: Path, static_warmup: Path, tmp_path: Path
) -> None:
    arm = tmp_path / "arm"
    trainer, generator = arm_flags(arm, tiny_preprocessed, static_warmup, ("--refresh_mode", "async"), steps=60)
    limit = ("--max_staleness_steps", "23")
    run("drivers.run_ann_data_gen", *generator, "--end_output_num", "0")
    output = run("drivers.run_ann", *trainer, *limit, code=4)
    assert "warning: refresh 0 is 12 steps old; training stops at 23" in output
    assert "--max_staleness_steps is 23" in output
    assert max(numbered(arm / "checkpoints", CHECKPOINT_PATTERN)) == 24
    assert "of the model of 24 steps ago" in run("drivers.run_ann", *trainer, *limit, code=4)
    before = sorted((path, path.stat().st_mtime_ns) for path in arm.rglob("*"))
    for words, name in (
        ((*trainer, "--warmup_steps"), "warmup_steps"),
        ((*generator, "--topk_training"), "topk_training"),
    ):
        program = "drivers.run_ann" if words[:-1] == (*trainer,) else "drivers.run_ann_data_gen"
        assert "{" in run(program, *words[:-1], "--dry_run")
        assert f" was made with other flags: {name} 5" in run(program, *words, "7", "--dry_run", code=3)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in arm.rglob("*")), "a --dry_run has written"
    run("drivers.run_ann_data_gen", *generator, "--end_output_num", "1")
    output = run("drivers.run_ann", *trainer, *limit, code=4)
    assert "refresh 1 from step 24" in output and "taken up at step 24" in output
    assert max(numbered(arm / "checkpoints", CHECKPOINT_PATTERN)) == 48
    # What it resumes with must be what it was trained on.
    negatives = JobLayout(arm / "ann_data").negatives(1)
    text = negatives.read_bytes()
    negatives.write_bytes(text.replace(b"\t1", b"\t2", 1) if b"\t1" in text else text[:-2] + b"0\n")
    assert f"{negatives} has changed since this run trained on it" in run("drivers.run_ann", *trainer, code=2)


def test_a_damaged_version_that_nothing_can_replace_ends_the_wait(tmp_path: Path) -> None:
    """The trainer needs this very refresh, the generator this very checkpoint: neither would ever come."""
    put_negatives(tmp_path / "ann", 3)
    put_checkpoint(tmp_path / "checkpoints", 30)
    for path in (tmp_path / "ann" / "ann_training_data_3", tmp_path / "checkpoints" / "checkpoint-30" / "config.json"):
        flip_byte(path)
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.exchange.verify.time.monotonic", lambda: now[0])
        for seconds in (0.0, 119.0):
            now[0] = seconds
            assert newest_refresh(tmp_path / "ann", number=3) is None
            assert newest_checkpoint(tmp_path / "checkpoints", step=30) is None
        now[0] = 121.0
        assert newest_refresh(tmp_path / "ann", above=2) is None, "an older one serves as long"
        with pytest.raises(UserError, match=r"ann_training_data_3: sha256 differs .* nothing else can take its place"):
            newest_refresh(tmp_path / "ann", number=3)
        with pytest.raises(UserError, match=r"config.json: sha256 differs .* nothing else can take its place"):
            newest_checkpoint(tmp_path / "checkpoints", step=30)
