"""utils.run_log: the lines that scripts match, the numbers in every place, and no carriage returns in a log."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.read.logged import read_logged
from utils import run_log
from utils.exchange.atomic import dump_with_checksum, load_with_checksum, write_json
from utils.run_log import Progress, RunLog, git_state, header, installed_versions, progress_line, say

# The pattern of the predecessors' log readers: the three keys, in this order, and nothing else on the line.
ANCE_LINE = re.compile(r'\{"learning_rate": ([-+.\deNa]+), "loss": ([-+.\deNa]+), "step": (\d+)\}')


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("passages", 500, 2000, 10.0), "passages 500/2,000 (25%), 50.0/s, ETA 0:00:30"),
        (("passages", 8841823, 8841823, 3600.0), "passages 8,841,823/8,841,823 (100%), 2,456.1/s, ETA 0:00:00"),
        (("step", 1, 1_000_000, 10.0), "step 1/1,000,000 (0%), 0.1/s, ETA 115 days, 17:46:30"),
        (("lines", 1234, None, 4.0), "lines 1,234, 308.5/s"),
        (("lines", 0, 10, 4.0), "lines 0/10 (0%), 0.0/s"),
        (("lines", 3, 10, 0.0), "lines 3/10 (30%), 0.0/s"),
        (("lines", 0, 0, 1.0), "lines 0, 0.0/s"),
    ],
)
def test_progress_line(arguments: tuple[str, int, int | None, float], expected: str) -> None:
    assert progress_line(*arguments) == expected


def test_progress_says_a_line_every_ten_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, "queries", 10.0, clock, stream)
    for _ in range(50):
        clock.now += 0.5
        progress.advance(2)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "queries 40/100 (40%), 4.0/s, ETA 0:00:15",
        "queries 80/100 (80%), 4.0/s, ETA 0:00:05",
    ]
    assert "\r" not in stream.getvalue()


def test_short_work_says_nothing() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(None, "queries", 10.0, clock, stream)
    clock.now += 9.9
    progress.advance()
    progress.close()
    assert stream.getvalue() == ""


def test_on_a_terminal_it_is_a_bar() -> None:
    stream = Terminal()
    progress = Progress(4, "queries", stream=stream)
    progress.advance(4)
    progress.close()
    assert "queries" in stream.getvalue() and "\r" in stream.getvalue()


def test_progress_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(2, "queries", 1.0, clock)
    clock.now += 2
    progress.advance()
    out, error = capfd.readouterr()
    assert (out, error) == ("", "queries 1/2 (50%), 0.5/s, ETA 0:00:02\n")


def test_say_is_one_line_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    say("a line")
    assert capfd.readouterr().out == "a line\n"


def test_the_line_that_scripts_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "metrics.jsonl", None)
    log.training(150100, 2e-08, 0.86, steps_per_second=3.5)
    log.close()
    assert capsys.readouterr().out == '{"learning_rate": 2e-08, "loss": 0.86, "step": 150100}\n'


@given(
    step=st.integers(0, 10**7),
    learning_rate=st.floats(0, 1),
    loss=st.one_of(st.floats(0, 100), st.just(math.nan)),
)
def test_key_order_and_values(step: int, learning_rate: float, loss: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(run_log, "say", said.append)
        log = object.__new__(RunLog)
        log.clock, log.file, log.writer = Clock(), io.StringIO(), None
        log.training(step, learning_rate, loss)
    assert len(said) == 1
    found = ANCE_LINE.fullmatch(said[0])
    assert found is not None
    assert repr((float(found[1]), float(found[2]), int(found[3]))) == repr((learning_rate, loss, step))


def test_metrics_jsonl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    log = RunLog(tmp_path / "new" / "run" / "metrics.jsonl", None, clock)
    log.training(10, 0.1, 2.5, steps_per_second=4.0)
    clock.now += 1.23456
    log.dev_ndcg(0.5981, 7)
    log.record(11, note="text", count=3)
    path = tmp_path / "new" / "run" / "metrics.jsonl"
    before_close = path.read_text()
    log.close()
    assert path.read_text() == before_close, "each line is there at once"
    assert [json.loads(line) for line in before_close.splitlines()] == [
        {"step": 10, "learning_rate": 0.1, "loss": 2.5, "steps_per_second": 4.0, "time": 50.0},
        {"step": 7, "dev_ndcg": 0.5981, "time": 51.235},
        {"step": 11, "note": "text", "count": 3, "time": 51.235},
    ]
    assert capsys.readouterr().out.splitlines()[1] == "dev_ndcg 0.5981 7", "ANCE's line, with the checkpoint's step"
    again = RunLog(path, None, clock)
    again.record(12, x=1)
    again.close()
    assert path.read_text().startswith(before_close), "a run that resumes adds to the file"


def test_tensorboard_has_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    log = RunLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    log.training(10, 0.25, 2.5)
    log.dev_ndcg(0.5, 7)
    log.record(11, note="text is for metrics.jsonl alone")
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, place, scalars = path.read_bytes(), 0, set()
    while place < len(content):  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(content[place : place + 8], "little")
        data = content[place + 12 : place + 12 + length]
        checksum = content[place + 12 + length : place + 16 + length]
        assert masked_crc32c(data).to_bytes(4, "little") == checksum
        event = Event.FromString(data)
        scalars |= {(value.tag, event.step, value.simple_value) for value in event.summary.value}
        place += 16 + length
    assert scalars == {("learning_rate", 10, 0.25), ("loss", 10, 2.5), ("dev_ndcg", 7, 0.5)}


def git(directory: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(directory), "-c", "core.hooksPath=/dev/null", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def test_git_state_of_a_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert git_state(tmp_path) == {"commit": None, "dirty": False}, "no commit yet"
    (tmp_path / "a").write_text("a")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "untracked").write_text("")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("b")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_git_state_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"commit": None, "dirty": None}
    assert git_state(tmp_path) == nothing
    assert git_state(tmp_path / "nowhere") == nothing
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == nothing, "no git installed"


def test_header() -> None:
    lines = header("run_ann", "abc123", '{"seed": 42}', ["cpu (2 threads)"])
    assert len(lines) == 3 and not any("\n" in line for line in lines)
    assert re.fullmatch(r"program run_ann run abc123 host \S+ devices cpu \(2 threads\)", lines[0])
    assert '"torch": "' in lines[1] and '"commit":' in lines[1]
    assert json.loads(lines[2].removeprefix("flags ")) == {"seed": 42}


def test_versions_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "VERSIONS_SHOWN", ("numpy", "no-such-package"))
    assert list(installed_versions()) == ["python", "numpy"]


@pytest.mark.parametrize("kept_lines", [0, 1, 2])
def test_going_on_writes_again_what_came_after_in_a_file_of_its_own(tmp_path: Path, kept_lines: int) -> None:
    """A job that has lost its role may wake up and write a line: not into the log of the one that continues."""
    lost = RunLog(tmp_path / "metrics.jsonl", None, clock=lambda: 0.0)
    sizes = [0]
    for step in (1, 2):
        lost.record(step, loss=0.5)
        sizes.append(lost.bytes)
    log = RunLog(tmp_path / "metrics.jsonl", None, clock=lambda: 0.0, resumes_at=(kept_lines, sizes[kept_lines]))
    lost.record(3, loss=99.0)
    log.record(kept_lines + 1, loss=0.25)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [(step, 0.5) for step in range(1, kept_lines + 1)] + [(kept_lines + 1, 0.25)]
    assert [(line["step"], line["loss"]) for line in lines] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    for each in (lost, log):
        each.close()


def test_numbers_that_are_not_finite_are_null_in_every_file(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl", None)
    log.record(7, reranking_mrr=math.nan, full_ranking_mrr=0.5, worst=-math.inf)
    log.close()
    write_json(tmp_path / "one.json", {"scores": [math.inf, 1.0], "curve": {"mean": (math.nan,)}})
    (tmp_path / "two.json").write_text(dump_with_checksum({"ndcg": math.nan, "step": 3}))

    def read(path: Path) -> dict[str, object]:
        value = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
        assert isinstance(value, dict)
        return value

    row = read(tmp_path / "metrics.jsonl")
    assert (row["step"], row["reranking_mrr"], row["full_ranking_mrr"], row["worst"]) == (7, None, 0.5, None)
    assert read(tmp_path / "one.json") == {"scores": [None, 1.0], "curve": {"mean": [None]}}
    assert read(tmp_path / "two.json")["ndcg"] is None
    assert load_with_checksum(tmp_path / "two.json") == {"ndcg": None, "step": 3}
    (logged,) = read_logged(tmp_path / "metrics.jsonl")
    assert logged["full_ranking_mrr"] == 0.5 and math.isnan(logged["reranking_mrr"])
