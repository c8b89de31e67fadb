"""Several processes of one program, as real processes: exit codes, messages and signals are those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.encoders.static import StaticEncoder
from tests import REPO
from tests.exchanging import read_beat
from utils.errors import EXIT_CODE_FILE, PeerGone, ProcessGone, UserError, exit_code_of
from utils.exchange.atomic import dump_with_checksum
from utils.exchange.stop import STOP_FILE
from utils.exchange.wait import wait_for
from utils.launch import STOP_SIGNALS, signals_as_stop_file

TIMEOUT_SECONDS = 120


# One process


def failing_with(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_first_process_that_fails_leaves_its_code_and_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code_file = tmp_path / "exit_code"
    monkeypatch.setenv(EXIT_CODE_FILE, str(code_file))
    assert exit_code_of("program", lambda: None) == 0
    with pytest.raises(SystemExit):
        exit_code_of("program", failing_with(SystemExit(143)))
    assert not code_file.exists()
    assert exit_code_of("program", failing_with(PeerGone("the trainer has failed"))) == 4
    assert exit_code_of("program", failing_with(UserError("no file"))) == 2
    assert code_file.read_text() == "4"
    assert capsys.readouterr().err == "program: error: the trainer has failed\n"


def test_an_exception_is_the_first_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others miss the process then, and would say that it is gone."""
    monkeypatch.setenv(EXIT_CODE_FILE, str(tmp_path / "exit_code"))
    with pytest.raises(RuntimeError, match="boom"):
        exit_code_of("program", failing_with(RuntimeError("boom")))
    assert exit_code_of("program", failing_with(ProcessGone("another process is gone"))) == 4
    assert (tmp_path / "exit_code").read_text() == "1"


def test_code_file_that_cannot_be_written_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(EXIT_CODE_FILE, str(tmp_path / "missing" / "exit_code"))
    assert exit_code_of("program", failing_with(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "program: interrupted\n"


def test_sigterm_unwinds_the_stack_once(tmp_path: Path) -> None:
    """The second SIGTERM comes while the first one's `finally` runs."""
    before = signal.getsignal(signal.SIGTERM)
    done = tmp_path / "done"

    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            done.touch()

    with pytest.raises(SystemExit) as stopped:
        exit_code_of("program", main)
    assert stopped.value.code == 143 and done.exists()
    assert signal.getsignal(signal.SIGTERM) == before


# Two processes


@pytest.fixture(scope="module")
def encoder(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder")
    vocab_size = json.loads((tiny_preprocessed / "manifest.json").read_text())["vocab_size"]
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 8}).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tiny_tokenizer / name).read_bytes())
    return directory


class Launched:
    """A program on two gloo processes, working in ``directory``."""

    def __init__(self, directory: Path, module: str, *flags: str | Path) -> None:
        command = [sys.executable, "-m", "utils.launch", "--processes", "2", module, *map(str, flags)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        self.out, self.err = directory / "out", directory / "err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(command, cwd=REPO, env=environment, stdout=out, stderr=err)

    def wait(self) -> int:
        try:
            return self.process.wait(TIMEOUT_SECONDS)
        finally:
            self.process.kill()

    def errors(self) -> list[str]:
        """The lines that begin with the program's name."""
        return [line for line in self.err.read_text().splitlines() if line.startswith("run_ann")]


PROGRAM = """
import os, signal, sys, time
from utils.errors import run_program

def main():
    if "--dry_run" in sys.argv:
        return
    if os.environ["RANK"] == "1":
        time.sleep(0.5)
        exec(sys.argv[1])
    time.sleep(60)

run_program("program", main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("raise RuntimeError('boom')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("os.kill(os.getppid(), signal.SIGUSR1)", 138),
    ],
    ids=["exception", "killed", "signal to the launcher"],
)
def test_code_of_an_end_that_the_program_did_not_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, code: int
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    launched = Launched(tmp_path, "program", statement)
    assert launched.wait() == code
    assert ("RuntimeError: boom" in launched.err.read_text()) == (code == 1)


def common_flags(data_dir: Path) -> list[str]:
    lengths = "--max_seq_length 32 --max_query_length 16"
    return ["--data_dir", str(data_dir), "--model_type", "static", *lengths.split()]


def start_trainer(directory: Path, data_dir: Path, encoder: Path) -> Launched:
    """A trainer that waits for negatives that nobody makes; returns once both of its processes do."""
    places = ("--ann_dir", directory / "ann", "--output_dir", directory / "checkpoints")
    flags = (*common_flags(data_dir), *places, "--model_name_or_path", encoder, "--max_steps", "10")
    trainer = Launched(directory, "drivers.run_ann", *flags)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not list((directory / "checkpoints").glob("tensorboard/*")):
        assert trainer.process.poll() is None and time.monotonic() < deadline, trainer.err.read_text()
        time.sleep(0.1)
    return trainer


def generate(directory: Path, data_dir: Path, encoder: Path, *flags: str) -> Launched:
    places = ("--training_dir", directory / "none", "--output_dir", directory / "ann", "--init_model_dir", encoder)
    selection = ("--topk_training", "50", "--negative_sample", "5", "--end_output_num", "0")
    words = (*common_flags(data_dir), *places, *selection, *flags)
    return Launched(directory, "drivers.run_ann_data_gen", *words)


@pytest.mark.slow
def test_success(tmp_path: Path, tiny_preprocessed: Path, encoder: Path) -> None:
    launched = generate(tmp_path, tiny_preprocessed, encoder)
    assert launched.wait() == 0, launched.err.read_text()
    assert (tmp_path / "ann" / "ann_ndcg_0").exists()
    assert launched.out.read_text().splitlines()[-1] == "finished refreshes=1"
    assert "--dry_run" not in launched.out.read_text()


@pytest.mark.slow
def test_bad_flag_or_input_ends_in_one_line_before_any_worker_starts(
    tmp_path: Path, tiny_preprocessed: Path, encoder: Path
) -> None:
    launched = generate(tmp_path, tiny_preprocessed, encoder, "--topk_training", "1000000")
    assert launched.wait() == 2
    (line,) = launched.err.read_text().splitlines()
    assert line.startswith("run_ann_data_gen: error: --topk_training is 1000000, the collection has")
    assert launched.out.read_text() == ""


@pytest.mark.slow
def test_failure_of_the_workers_has_their_code_and_one_message(
    tmp_path: Path, tiny_preprocessed: Path, encoder: Path
) -> None:
    trainer = start_trainer(tmp_path, tiny_preprocessed, encoder)
    for number in range(TIMEOUT_SECONDS):  # one that lies there when the trainer first looks is an earlier run's
        (tmp_path / "ann").mkdir(exist_ok=True)
        staged = tmp_path / "FAILED.json"
        staged.write_text(dump_with_checksum({"role": "generator", "reason": "out of memory", "token": number}))
        staged.rename(tmp_path / "ann" / "FAILED.json")
        time.sleep(1)
        if trainer.process.poll() is not None:
            break
    assert trainer.wait() == 4, trainer.err.read_text()
    assert len(trainer.errors()) == 1 and "the generator has failed (out of memory)" in trainer.errors()[0]
    assert "Traceback" not in trainer.err.read_text()


def processes_of(directory: Path) -> list[int]:
    """Those that have ``directory`` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(directory) in path.read_text():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_signal_becomes_a_stop_that_the_workers_take_together(
    tmp_path: Path, tiny_preprocessed: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_file = tmp_path / "stop-of-the-job"
    monkeypatch.setenv(STOP_FILE, str(stop_file))
    trainer = start_trainer(tmp_path, tiny_preprocessed, encoder)
    assert len(processes_of(tmp_path)) == 3
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.wait() == 75, trainer.err.read_text()
    assert not processes_of(tmp_path)
    (line,) = trainer.errors()
    assert line.startswith(f"run_ann: stopped by {stop_file} at step 0, with nothing to save; start again")
    assert not stop_file.exists() and stop_file.with_name("stop-of-the-job.taken").exists()
    assert not (tmp_path / "checkpoints" / "FAILED.json").exists(), "its peer waits for it to resume"
    beat = read_beat(tmp_path / "checkpoints", "trainer")
    assert beat is not None and beat["state"] == "stopped"
    assert "Traceback" not in trainer.err.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_the_stop_file_is_made_by_a_signal_and_by_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv(STOP_FILE, "")  # so that what is set meanwhile is taken back
    monkeypatch.delenv(STOP_FILE)
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    with signals_as_stop_file(tmp_path):
        assert os.environ[STOP_FILE] == str(tmp_path / "stop")
        time.sleep(0.5)
        assert not (tmp_path / "stop").exists()
        os.kill(os.getpid(), number)
        wait_for(lambda: (tmp_path / "stop").exists() or None, "the stop file", limit_seconds=20)
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


def test_the_stop_file_of_a_job_script_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given"
    monkeypatch.setenv(STOP_FILE, str(given))
    with signals_as_stop_file(tmp_path / "own"):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: given.exists() or None, "the stop file", limit_seconds=20)
    assert given.exists() and os.environ[STOP_FILE] == str(given)
