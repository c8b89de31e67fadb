"""A generator that is killed or stopped in the middle of encoding and started again: real processes."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from model.encoders.roberta_dot import RobertaDot
from tests.drivers.models import config_of_random_roberta
from tests.faults.fork_server import Child
from tests.forked import TIMEOUT_SECONDS, run, start
from utils.declared.text_settings import DEFAULT_TEXTS
from utils.exchange.layout import JobLayout
from utils.exchange.markers import read_failed
from utils.exchange.negatives import read_records

SHARDS = 10  # of 32 passages each

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slow_model(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa with ANCE's head large enough to take seconds over 300 passages one by one."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024}
    config = config_of_random_roberta(tiny_preprocessed, **sizes)
    directory = tmp_path_factory.mktemp("slow_model")
    encoder = RobertaDot(config)
    encoder.record(DEFAULT_TEXTS.record())
    encoder.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, directory / name)
    return directory


def command(data_dir: Path, model: Path, output_dir: Path) -> list[str | Path]:
    return [
        "drivers.run_ann_data_gen", "--data_dir", data_dir, "--training_dir", output_dir / "none",
        "--init_model_dir", model, "--model_type", "rdot_nll", "--max_seq_length", "32", "--max_query_length", "16",
        "--output_dir", output_dir, "--end_output_num", "0", "--topk_training", "50", "--negative_strategy", "top",
        "--per_gpu_eval_batch_size", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tiny_preprocessed: Path, slow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    output = run(*command(tiny_preprocessed, slow_model, directory))
    assert "used again" not in output
    return directory


def finished_shards(output_dir: Path) -> list[Path]:
    """The passages' shards that have their records."""
    records = output_dir.glob("embeddings/step-0-*/passages-*.json")
    return sorted(path.with_suffix(".npy") for path in records)


def interrupt(
    words: Sequence[str | Path], output_dir: Path, after: int, fault: Callable[[Child], None]
) -> tuple[int | None, str]:
    """Start the generator and do something to it when it has finished ``after`` shards; exit code and output."""
    log = output_dir.with_suffix(".out")
    process = start(log, *words)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while len(finished_shards(output_dir)) < after:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.002)
        fault(process)
        return process.wait(TIMEOUT_SECONDS), log.read_text()
    finally:
        process.end()


def contents(output_dir: Path) -> dict[str, bytes]:
    """What a refresh leaves: the negatives, and the embeddings without the record of when and by whom."""
    paths = [JobLayout(output_dir).negatives(0), *output_dir.glob("embeddings/step-0-*/*")]
    return {str(p.relative_to(output_dir)): p.read_bytes() for p in paths if p.name != "embeddings.json"}


@pytest.mark.parametrize(
    ("number", "after", "processes"), [(signal.SIGKILL, 1, 1), (signal.SIGKILL, 4, 2), (signal.SIGTERM, 2, 1)]
)
def test_it_goes_on_from_the_finished_shards_to_the_same_bytes(
    number: signal.Signals,
    after: int,
    processes: int,
    tiny_preprocessed: Path,
    slow_model: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    arm = tmp_path / "arm"
    words = command(tiny_preprocessed, slow_model, arm)
    code, output = interrupt(words, arm, after, lambda process: process.send(number))
    assert code == (75 if number == signal.SIGTERM else -number), output
    finished = {path: path.stat().st_mtime_ns for path in finished_shards(arm)}
    assert after <= len(finished) < SHARDS and not read_records(arm)
    if number == signal.SIGTERM:
        directory = next(iter(finished)).parent
        assert len(list(directory.glob("passages-*.npy"))) == len(finished), "no half shard stays"
    again = run(*command(tiny_preprocessed, slow_model, arm), processes=processes)
    queries = len(list(arm.glob("embeddings/step-0-*/*query-[0-9]*.npy")))
    assert f"embeddings: {len(finished) + queries} of {SHARDS + queries} shards in " in again
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "they are not written again"
    found, expected = contents(arm), contents(undisturbed)
    if processes > 1:  # two processes search other blocks than one: the last bits of the scores are others
        found.pop("ann_training_data_0")
        expected.pop("ann_training_data_0")
    assert found == expected
    assert not (arm / ".staging").exists(), "what was being written has gone with the lease it was written under"


def test_all_processes_end_together_when_another_job_takes_over(
    tiny_preprocessed: Path, slow_model: Path, tmp_path: Path
) -> None:
    """One that holds no lease too; not only after its next heartbeat, and with all it had finished."""
    arm = tmp_path / "arm"
    words = [*command(tiny_preprocessed, slow_model, arm), "--heartbeat_seconds", "500", "--lease_seconds", "1600"]
    taken: list[float] = []

    def take_over(_: Child) -> None:
        """What a successor does first."""
        (staging,) = (arm / ".staging").glob("generator-1-*")
        staging.rename(staging.with_name("gone"))
        taken.append(time.monotonic())

    code, output = interrupt(["utils.launch", "--processes", "2", *words], arm, 2, take_over)
    assert code == 75, output
    assert time.monotonic() - taken[0] < 30
    assert "run_ann_data_gen: another " in output, "said in one line, and as no error"
    assert not read_records(arm) and not list(arm.glob("embeddings/*/embeddings.json"))
    assert not read_failed(arm)


def test_a_shard_damaged_meanwhile_is_named_and_encoded_again(
    tiny_preprocessed: Path, slow_model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    arm = tmp_path / "arm"
    shutil.copytree(undisturbed / "embeddings", arm / "embeddings")
    damaged = finished_shards(arm)[3]
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    output = run(*command(tiny_preprocessed, slow_model, arm))
    assert f"{damaged}: its sha256 differs" in output
    assert contents(arm) == contents(undisturbed)
