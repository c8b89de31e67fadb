"""results.read_log against logs put together by hand, and against arbitrary junk around them."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import lzma
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.read_log import (
    PACKED,
    DevNdcg,
    Generation,
    TrainingPoint,
    WarmupMrr,
    as_json,
    as_tsv,
    main,
    pair_generation,
    read_lines,
    read_log,
)
from tests import REPO
from utils.errors import UserError

FORK_TRAINING = """\
Fri Mar  3 11:12:13 2023
+-----------------------------------------------------------------------------+
| NVIDIA-SMI 515.65.01    Driver Version: 515.65.01    CUDA Version: 11.7     |
|   0  NVIDIA A40          On   | 00000000:01:00.0 Off |                    0 |
+-----------------------------------------------------------------------------+
learning_rate <class 'float'>
{"learning_rate": 2e-08, "loss": 0.86, "step": 150100}
{"learning_rate": 2e-08, "loss": 0.86, "step": 150100}
dev_ndcg 0.5981 1
\rIteration:   1%|1         | 100/10000 [00:12<20:33,  8.03it/s]\rIteration:   1%|1         | 101/10000
Traceback (most recent call last):
  File "../drivers/run_ann.py", line 203, in train
KeyError: 'step'
{"learning_rate": 4e-08, "loss": 0.84, "step": 150200}{"learning_rate": 4e-08, "loss": 0.83, "step": 150200}
it/s]{"learning_rate": 6e-08, "loss": 0.8, "step": 150300}dev_ndcg 0.6017 2
{"learning_rate": 6e-08, "loss": 0.8{"learning_rate": 8e-08, "loss": NaN, "step": 150400}
dev_ndcg 0.6017 2
"""

FORK_WARMUP = """\
Reranking/Full ranking mrr: 0.1/0.05
{"learning_rate": 0.0001967, "loss": 0.0873, "step": 19000}
Reranking/Full ranking mrr: 0.28048386546595605/0.2522891936144078
/home/someone/warmup/
{"learning_rate": 0.0001965, "loss": 0.0819, "step": 20000}
"""

FORK_GENERATION = """\
Rank:0 --- ANN NDCG@10:0.6245
Rank:0 --- ANN NDCG@10:0.6245
Inferencing:  10%|#         | 10/100\rRank:0 --- ANN MRR:0.2871Rank:0 --- ANN MRR:0.2871
***** Done 0 of 100 *****
Rank:0 --- ANN NDCG@10:0.6301
Rank:0 --- ANN MRR:0.2871
"""

OURS = """\
program run_ann run 3f2a host node1 devices cpu
versions {"python": "3.11.9", "torch": "2.13.0"} git {"commit": "abc", "dirty": false}
flags {"learning_rate": 0.0003, "loss": "pairwise", "max_steps": 500}
refresh 0 from step 0: 8000 lists, strategy top
dev_ndcg 0.2714 0
training 100/500 (20%), 31.0/s, ETA 0:00:13
{"learning_rate": 0.0003, "loss": 0.61, "step": 100}
refresh 1 from step 100: 8000 lists, strategy top
dev_ndcg 0.2801 100
finished step=500
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.out"
    path.write_bytes(text.encode())
    return path


def test_fork_training_log(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, FORK_TRAINING))
    assert log.kind == "training"
    assert log.training[:4] == (
        TrainingPoint(150100, 2e-08, 0.86),
        TrainingPoint(150200, 4e-08, 0.84),
        TrainingPoint(150200, 4e-08, 0.83),
        TrainingPoint(150300, 6e-08, 0.8),
    )
    assert len(log.training) == 5 and log.training[4].step == 150400 and math.isnan(log.training[4].loss)
    assert log.dev_ndcg == (DevNdcg(0.5981, 1), DevNdcg(0.6017, 2))
    assert log.finished_step is None
    # date, 4 lines of nvidia-smi, a print of types, 2 progress bars, 3 of the traceback
    assert log.skipped_lines == 11


def test_fork_warmup_log_takes_the_step_of_the_json_line_before(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, FORK_WARMUP))
    assert log.kind == "warmup"
    assert log.warmup_mrr == (
        WarmupMrr(None, 0.1, 0.05),
        WarmupMrr(19000, 0.28048386546595605, 0.2522891936144078),
    )
    assert [point.step for point in log.training] == [19000, 20000]


def test_fork_generation_log(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, FORK_GENERATION))
    assert log.kind == "generation"
    assert log.generation == (Generation(0.6245, 0.2871), Generation(0.6301, 0.2871))


def test_our_log(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, OURS))
    assert log.kind == "training"
    assert log.training == (TrainingPoint(100, 0.0003, 0.61),)  # the flags line is no training point
    assert log.dev_ndcg == (DevNdcg(0.2714, 0), DevNdcg(0.2801, 100))
    assert log.refreshes == ((0, 0), (1, 100))
    assert log.finished_step == 500


def test_our_warmup_without_an_evaluation_is_known_by_its_header() -> None:
    assert read_lines(["program run_warmup run 1 host h devices cpu"]).kind == "warmup"
    assert read_lines(["program run_ann_data_gen run 1 host h devices cpu"]).kind == "generation"
    assert read_lines(["nothing"]).kind == "unknown"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([("ndcg", 0.6), ("mrr", 0.2), ("ndcg", 0.6), ("mrr", 0.2)], [(0.6, 0.2)]),  # the pair printed twice
        ([("ndcg", 0.6), ("ndcg", 0.6), ("mrr", 0.2), ("mrr", 0.2)], [(0.6, 0.2)]),  # each line twice
        ([("ndcg", 0.6), ("mrr", 0.2), ("ndcg", 0.6), ("mrr", 0.3)], [(0.6, 0.2), (0.6, 0.3)]),  # equal by chance
        ([("mrr", 0.2), ("ndcg", 0.6), ("mrr", 0.3), ("ndcg", 0.7)], [(0.6, 0.2), (0.7, 0.3)]),
        ([("ndcg", 0.6), ("ndcg", 0.7)], [(0.6, None), (0.7, None)]),
        ([], []),
    ],
)
def test_generation_pairs(events: list[tuple[str, float]], expected: list[tuple[float, float]]) -> None:
    assert [tuple(pair) for pair in pair_generation(events)] == expected


@pytest.mark.parametrize(
    "line",
    [
        '{"learning_rate": "a", "loss": 1, "step": 1}',
        '{"learning_rate": true, "loss": 1, "step": 1}',
        '{"learning_rate": 1, "loss": 1, "step": 1.5}',
        '{"learning_rate": 1, "loss": 1, "step": -1}',
        '{"learning_rate": 1, "loss": 1, "step": Infinity}',
        '{"learning_rate": 1, "loss": 1}',
        '{"learning_rate": 1, "loss": 1, "step": ' + "9" * 5000 + "}",
        '{"learning_rate": 1' + "0" * 400 + ', "loss": 1, "step": 1}',
        '{"step": ' * 20_000,
        "finished step=" + "9" * 5000,
        "dev_ndcg 0.5 " + "9" * 5000,
        "dev_ndcg 0.5",
        "Reranking/Full ranking mrr: 0.1/",
    ],
)
def test_what_only_looks_like_a_line_is_skipped(line: str) -> None:
    log = read_lines([line, '{"learning_rate": 1, "loss": 2, "step": 3}'])
    assert log.training == (TrainingPoint(3, 1.0, 2.0),)
    assert (log.dev_ndcg, log.warmup_mrr, log.finished_step, log.skipped_lines) == ((), (), None, 1)


KNOWN_WORDS = ('"step"', '"loss"', '"learning_rate"', "dev_ndcg", "ANN", "Reranking", "refresh", "finished", "program")
FRAGMENTS = [
    "{",
    "}",
    '{"',
    "\r",
    "\n",
    "\r\n",
    "\x00",
    "\x1b[A",
    " --- ",
    "it/s]",
    '{"learning',
    "| 45%",
    "\u2028",
    "é",
]


def is_junk(text: str) -> bool:
    """No marker of a known line, and no start that would run into the number at the end of the line before."""
    return not any(word in text for word in KNOWN_WORDS) and not text[:1].isdigit() and text[:1] not in (".", "e", "E")


junk = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=12), max_size=5).map("".join).filter(is_junk)
steps = st.integers(0, 10**9)
values = st.floats(0, 1)
entries = st.one_of(
    st.builds(TrainingPoint, steps, values, st.floats(allow_infinity=False, allow_nan=False)),
    st.builds(DevNdcg, values, steps),
    st.tuples(values, values),  # Reranking/Full ranking mrr
)


def as_line(entry: tuple[float, ...]) -> str:
    if isinstance(entry, TrainingPoint):
        return json.dumps({"learning_rate": entry.learning_rate, "loss": entry.loss, "step": entry.step})
    if isinstance(entry, DevNdcg):
        return f"dev_ndcg {entry.ndcg} {entry.step}"
    return f"Reranking/Full ranking mrr: {entry[0]}/{entry[1]}"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(junk, entries, st.integers(1, 2)), max_size=8), junk, st.binary(max_size=40))
def test_junk_loses_no_line_and_adds_none(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[tuple[str, tuple[float, ...], int]],
    tail: str,
    bytes_after: bytes,
) -> None:
    text, training, dev_ndcg, warmup = "", [], [], []
    for before, entry, copies in parts:
        text += before + "\n".join([as_line(entry)] * copies)
        if isinstance(entry, TrainingPoint):
            training.append(entry)
        elif isinstance(entry, DevNdcg):
            dev_ndcg.append(entry)
        else:
            warmup.append(WarmupMrr(training[-1].step if training else None, *entry))
        text += " "  # two numbers of two prints that touch cannot be told apart
    path = tmp_path_factory.getbasetemp() / "junk.out"
    path.write_bytes((text + tail).encode("utf-8", "surrogatepass") + b"\n" + bytes_after)
    log = read_log(path)
    assert log.training == tuple(dict.fromkeys(training))
    assert log.dev_ndcg == tuple(dict.fromkeys(dev_ndcg))
    assert log.warmup_mrr == tuple(dict.fromkeys(warmup))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.out"
    path.write_bytes(content)
    try:
        json.loads(as_json(read_log(path)))
    except UserError:
        assert content.startswith((b"\x1f\x8b", *PACKED))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_a_log_reads_the_same_however_it_was_saved(encoding: str, is_gzipped: bool, tmp_path: Path) -> None:
    plain = read_log(write(tmp_path, OURS))
    start = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    content = (start + OURS).encode(encoding)
    path = tmp_path / "saved.out"
    path.write_bytes(gzip.compress(content) if is_gzipped else content)
    assert plain.training and read_log(path) == dataclasses.replace(plain, file=str(path))


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_a_log_packed_otherwise_is_named(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "log.out"
    path.write_bytes(pack(OURS.encode()))
    with pytest.raises(UserError, match=r"log.out is packed by (bzip2|xz), expected a log, plain or gzipped"):
        read_log(path)
    path.write_bytes(gzip.compress(OURS.encode())[:-9])
    with pytest.raises(UserError, match=r"log.out is truncated"):
        read_log(path)


def test_a_log_with_nothing_in_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "something else\n")
    monkeypatch.setattr(sys, "argv", ["read_log", str(path)])
    main()
    out, error = capsys.readouterr()
    assert json.loads(out)["kind"] == "unknown"
    assert error == f"read_log: warning: {path} holds no line of a training or generating program\n"


def test_a_null_is_a_number_that_was_not_finite(tmp_path: Path) -> None:
    line = '{"step": 100, "learning_rate": 1e-06, "loss": null, "time": 1.0}\n'
    (point,) = read_log(write(tmp_path, line)).training
    assert (point.step, point.learning_rate) == (100, 1e-06) and math.isnan(point.loss)


def test_json_holds_the_issue_s_keys_and_no_nan(tmp_path: Path) -> None:
    text = as_json(read_log(write(tmp_path, FORK_TRAINING)))
    value = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert value["steps"] == [150100, 150200, 150200, 150300, 150400]
    assert value["loss"] == [0.86, 0.84, 0.83, 0.8, None]
    assert value["learning_rate"] == [2e-08, 4e-08, 4e-08, 6e-08, 8e-08]
    assert value["dev_ndcg"] == [[0.5981, 1], [0.6017, 2]]
    assert value["warmup_mrr"] == [] and value["skipped_lines"] == 11 and value["kind"] == "training"
    warmup = json.loads(as_json(read_log(write(tmp_path, FORK_WARMUP))))
    assert warmup["warmup_mrr"][1] == [19000, 0.28048386546595605, 0.2522891936144078]


def test_tsv_is_one_number_per_line(tmp_path: Path) -> None:
    rows = [row.split("\t") for row in as_tsv([read_log(write(tmp_path, OURS))]).splitlines()]
    assert rows[0] == ["file", "series", "step", "value"]
    found = [tuple(row[1:]) for row in rows[1:]]
    assert ("loss", "100", "0.61") in found and ("dev_ndcg", "100", "0.2801") in found
    assert ("finished", "500", "500") in found
    assert all(len(row) == 4 for row in rows)


def test_missing_file_and_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope\.out is not there"):
        read_log(tmp_path / "nope.out")
    with pytest.raises(UserError, match="is a directory"):
        read_log(tmp_path)


def test_program_prints_one_object_per_file_and_answers_a_missing_one(tmp_path: Path) -> None:
    path = str(write(tmp_path, OURS))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "results.read_log", *words]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60, check=False)

    done = run(path, path)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == [path, path]
    failed = run(path, str(tmp_path / "nope.out"))
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1 and "nope.out is not there" in failed.stderr
