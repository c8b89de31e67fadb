"""utils.exchange: whole or not at all, never the same name twice, and the newest that verifies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from utils import exchange, publishing
from utils.errors import PeerGone, UserError, exit_code_of
from utils.exchange import (
    CHECKPOINT_PATTERN,
    MANIFEST,
    RECORD_PATTERN,
    check_peer,
    checkpoint_path,
    mark_done,
    mark_failed,
    negatives_path,
    newest_checkpoint,
    newest_refresh,
    next_refresh_number,
    numbered,
    publish_checkpoint,
    publish_negatives,
    read_checkpoint,
    read_done,
    read_records,
    read_refresh,
    read_visible_refresh,
    record_path,
    remove_old_checkpoints,
    remove_run,
    role_held,
    wait_for,
    watch_peer,
)
from utils.publishing import STAGING, check_writable, read_json, staging_path, write_json

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def said_anew() -> None:
    """What was said in an earlier test is said again."""
    exchange.say_once.cache_clear()


def put_checkpoint(directory: Path, step: int, weights: bytes = b"weights", **record: Any) -> Path:
    with publish_checkpoint(directory, step, record) as staging:
        (staging / "model.safetensors").write_bytes(weights)
        (staging / "config.json").write_text("{}")
    return checkpoint_path(directory, step)


def put_negatives(directory: Path, refresh: int, text: str = "1\t2\t3\n", **record: Any) -> exchange.Refresh:
    record = {"ndcg": 0.5, "step": 100 * refresh, "checkpoint": f"checkpoint-{100 * refresh}", **record}
    return publish_negatives(directory, refresh, lambda path: path.write_text(text) and None, record)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def flip_byte(path: Path, place: int = 0) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 0x10
    path.write_bytes(damaged)


# Checkpoints


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path, 200, b"abc", run_id="r", final=False)
    assert names(tmp_path) == ["checkpoint-200"]
    assert names(path) == [MANIFEST, "config.json", "model.safetensors"]
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["files"]["model.safetensors"] == {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert (manifest["step"], manifest["run_id"]) == (200, "r")
    found = newest_checkpoint(tmp_path)
    assert found == exchange.Checkpoint(path, 200, manifest)
    assert newest_checkpoint(tmp_path, step=200) == found
    assert newest_checkpoint(tmp_path, step=100) is None
    assert newest_checkpoint(tmp_path, above=199) == found
    assert newest_checkpoint(tmp_path, above=200) is None


def test_nothing_is_there_before_the_block_ends(tmp_path: Path) -> None:
    with publish_checkpoint(tmp_path, 5, {}) as staging:
        (staging / "a").write_text("a")
        assert names(tmp_path) == [STAGING]
        assert newest_checkpoint(tmp_path) is None
    assert names(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), UserError("y")])
def test_an_exception_publishes_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), publish_checkpoint(tmp_path, 5, {}) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a").write_text("a")
        raise error
    assert names(tmp_path) == []

    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(type(error)):
        publish_negatives(tmp_path, 0, write, {"ndcg": 0.0})
    assert names(tmp_path) == []


@pytest.mark.parametrize("taken", ["checkpoint", "empty directory", "file", "dangling link"])
def test_a_taken_checkpoint_name_is_refused(tmp_path: Path, taken: str) -> None:
    path = checkpoint_path(tmp_path, 5)
    if taken == "checkpoint":
        put_checkpoint(tmp_path, 5, b"first")
    elif taken == "empty directory":
        path.mkdir()
    elif taken == "file":
        path.write_text("")
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"):
        put_checkpoint(tmp_path, 5, b"second")
    assert names(tmp_path) == ["checkpoint-5"]
    if taken == "checkpoint":
        assert (path / "model.safetensors").read_bytes() == b"first"


def test_damage_anywhere_in_the_newest_gives_the_older(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = put_checkpoint(tmp_path, 100)
    newest = put_checkpoint(tmp_path, 200, b"some weights")
    flip_byte(newest / "model.safetensors", 4)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.path == older
    newest_checkpoint(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1, "said once, however often one looks"
    assert "passed over checkpoint-200" in said[0] and "sha256 differs" in said[0]

    (newest / "model.safetensors").write_bytes(b"some")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.path == older
    assert "4 bytes, its manifest says 12" in capsys.readouterr().out

    (newest / "model.safetensors").unlink()
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.path == older
    assert "None bytes" in capsys.readouterr().out


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_manifest_never_ends_in_a_traceback(place: int, bit: int, cut: bool) -> None:
    """Any flipped bit or truncation of MANIFEST.json: the checkpoint is valid as it was, or the older is used."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        older, newest = put_checkpoint(directory, 100), put_checkpoint(directory, 200)
        manifest = newest / MANIFEST
        text = bytearray(manifest.read_bytes())
        place %= len(text)
        if cut:
            manifest.write_bytes(text[:place])
        else:
            text[place] ^= 1 << bit
            manifest.write_bytes(text)
        found = newest_checkpoint(directory)
        assert found is not None
        assert (found.path, found.step) in ((older, 100), (newest, 200))


@pytest.mark.parametrize("text", ["[]", "{}", '{"step": 200, "files": {"a": 1}}', '{"files": {}, "step": 201}', "\xff"])
def test_a_manifest_of_another_shape(tmp_path: Path, text: str) -> None:
    older, newest = put_checkpoint(tmp_path, 100), put_checkpoint(tmp_path, 200)
    (newest / MANIFEST).write_text(text, encoding="latin-1")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.path == older


def test_checkpoints_of_other_programs(tmp_path: Path) -> None:
    """ANCE's has no manifest: it is ready once scheduler.pt is there. One given by its path is taken as it is."""
    path = checkpoint_path(tmp_path, 300)
    path.mkdir()
    (path / "pytorch_model.bin").write_bytes(b"")
    assert newest_checkpoint(tmp_path) is None
    (path / "scheduler.pt").write_bytes(b"")
    assert newest_checkpoint(tmp_path) == exchange.Checkpoint(path, 300, {})
    assert read_checkpoint(path, 0) == exchange.Checkpoint(path, 0, {})
    with pytest.raises(UserError, match="not a directory"):
        read_checkpoint(tmp_path / "nowhere", 0)


def test_a_final_checkpoint_of_another_run_is_a_start(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path, 800, final=True)
    found = read_checkpoint(path, 0, of_this_run=False)
    assert (found.step, found.manifest["final"]) == (0, False)
    flip_byte(path / "model.safetensors")
    with pytest.raises(UserError, match="sha256"):
        read_checkpoint(path, 0, of_this_run=False)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with publish_checkpoint(tmp_path, 5, {}) as staging:
            for name, mode in (("private", 0o600), ("open", 0o666)):
                descriptor = os.open(staging / name, os.O_CREAT | os.O_WRONLY, mode)
                os.close(descriptor)
        put_negatives(tmp_path, 0)
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 6
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o666 & ~umask}
    assert stat.S_IMODE(checkpoint_path(tmp_path, 5).stat().st_mode) == 0o777 & ~umask


# Negatives


def test_negatives_round_trip(tmp_path: Path) -> None:
    made = put_negatives(tmp_path, 0, "7\t8\t9\n", ndcg=0.25, step=30)
    assert names(tmp_path) == ["ann_ndcg_0", "ann_training_data_0"]
    assert negatives_path(tmp_path, 0).read_text() == "7\t8\t9\n"
    assert made.path == negatives_path(tmp_path, 0)
    assert (made.number, made.step, made.record["ndcg"]) == (0, 30, 0.25)
    assert made.record["sha256"] == hashlib.sha256(b"7\t8\t9\n").hexdigest()
    assert newest_refresh(tmp_path) == read_refresh(tmp_path, 0) == read_visible_refresh(tmp_path, 0) == made
    assert newest_refresh(tmp_path, above=0) is None
    assert newest_refresh(tmp_path, number=1) is None
    assert next_refresh_number(tmp_path) == 1


def test_data_without_a_record_was_never_published(tmp_path: Path) -> None:
    negatives_path(tmp_path, 0).write_text("left by a killed job")
    assert newest_refresh(tmp_path) is None
    assert next_refresh_number(tmp_path) == 0
    put_negatives(tmp_path, 0, "whole\n")
    assert negatives_path(tmp_path, 0).read_text() == "whole\n"


@pytest.mark.parametrize("as_directory", [False, True])
def test_a_committed_number_is_refused(tmp_path: Path, as_directory: bool) -> None:
    if as_directory:
        record_path(tmp_path, 0).mkdir()
    else:
        put_negatives(tmp_path, 0, "first\n")
    before = names(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        put_negatives(tmp_path, 0, "second\n")
    assert names(tmp_path) == before
    if not as_directory:
        assert negatives_path(tmp_path, 0).read_text() == "first\n"


def test_the_data_is_there_before_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        assert names(tmp_path) == [STAGING, "ann_training_data_3"]
        assert negatives_path(tmp_path, 3).read_text() == "1\t2\t3\n"
        source.rename(target)

    monkeypatch.setattr(exchange.os, "link", link)
    put_negatives(tmp_path, 3)
    assert names(tmp_path) == ["ann_ndcg_3", "ann_training_data_3"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "record cut", "record of another shape", "no ndcg"])
def test_damaged_negatives_give_the_older(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    put_negatives(tmp_path, 4, "older\n")
    put_negatives(tmp_path, 5, "newest\n")
    data, record = negatives_path(tmp_path, 5), record_path(tmp_path, 5)
    if damage == "flip":
        flip_byte(data, 2)
    elif damage == "cut":
        data.write_text("new")
    elif damage == "missing":
        data.unlink()
    elif damage == "record cut":
        record.write_bytes(record.read_bytes()[:-9])
    elif damage == "record of another shape":
        record.write_text("[1]")
    else:
        record.write_text('{"step": 1}')
    found = newest_refresh(tmp_path)
    assert found is not None and found.number == 4
    assert capsys.readouterr().out.startswith("passed over refresh 5: ")
    with pytest.raises(UserError, match=r"ann_(ndcg|training_data)_5"):
        read_refresh(tmp_path, 5)
    assert next_refresh_number(tmp_path) == 6, "a damaged number is not used again"
    assert [r["refresh"] for r in read_records(tmp_path)] == ([4] if "record" in damage or "ndcg" in damage else [4, 5])


def test_a_record_of_ances(tmp_path: Path) -> None:
    """ANCE's record knows neither sizes nor the step."""
    negatives_path(tmp_path, 2).write_text("1\t2\t3\n")
    record_path(tmp_path, 2).write_text('{"ndcg": 0.61, "checkpoint": "/x/checkpoint-100", "mrr": 0.3}')
    found = newest_refresh(tmp_path)
    assert found is not None and (found.step, found.record["ndcg"]) == (0, 0.61)
    assert read_records(tmp_path) == [
        {"refresh": 2, "step": 0, "ndcg": 0.61, "checkpoint": "/x/checkpoint-100", "mrr": 0.3}
    ]


def test_what_is_published_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is synced before its name appears, and the directory afterwards."""
    synced: list[tuple[str, list[str]]] = []
    sync = publishing.sync

    def watched(path: Path) -> None:
        sync(path)
        synced.append((path.name, [name for name in names(tmp_path) if name != STAGING]))

    for module in (exchange, publishing):
        monkeypatch.setattr(module, "sync", watched)
    put_checkpoint(tmp_path, 5)
    files = [(name, []) for name in ("config.json", "model.safetensors", MANIFEST, "checkpoint-5")]
    assert synced == [*files, (tmp_path.name, ["checkpoint-5"])]
    checkpoint_path(tmp_path, 5).rename(tmp_path.parent / "away")
    synced.clear()
    put_negatives(tmp_path, 0)
    data, record = "ann_training_data_0", "ann_ndcg_0"
    assert [there for _, there in synced] == [[], [], [data], [record, data]]
    assert [name for name, _ in synced] == ["data", "record", tmp_path.name, tmp_path.name]


# Names


FOREIGN = [
    *("checkpoint-", "checkpoint-5.tmp", "xcheckpoint-5", "checkpoint-5 ", "checkpoint--5", "checkpoint-+5"),
    *("checkpoint-007", "checkpoint-٣", "checkpoint-5\n", "checkpoint-5_0", "Checkpoint-5", "checkpoint-best"),
    *("ann_ndcg_", "ann_ndcg_5.1", "ann_ndcg_05", "ann_ndcg_5.json", ".ann_ndcg_5", "ann_training_data_5"),
]


def test_foreign_names_are_ignored(tmp_path: Path) -> None:
    for name in (*FOREIGN, "checkpoint-0", "checkpoint-30", "checkpoint-4", "ann_ndcg_0", "ann_ndcg_12", "ann_ndcg_7"):
        (tmp_path / name).mkdir()
    assert numbered(tmp_path, CHECKPOINT_PATTERN) == [0, 4, 30]
    assert numbered(tmp_path, RECORD_PATTERN) == [0, 7, 12]
    assert numbered(tmp_path / "nowhere", RECORD_PATTERN) == []


def test_our_own_names_match_and_our_staging_does_not(tmp_path: Path) -> None:
    for number in (0, 1, 10, 123456):
        assert CHECKPOINT_PATTERN.fullmatch(checkpoint_path(tmp_path, number).name)
        assert RECORD_PATTERN.fullmatch(record_path(tmp_path, number).name)
    with staging_path(tmp_path, "checkpoint-5") as staged:
        staged.mkdir()
        assert numbered(tmp_path, CHECKPOINT_PATTERN) == []
        assert numbered(staged.parent.parent, CHECKPOINT_PATTERN) == []


def test_staging_of_many_writers_in_one_directory(tmp_path: Path) -> None:
    """Each removes .staging where it finds it empty; none may lose its own place by that."""
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(60):
                write_json(tmp_path / f"{number}.json", {"turn": turn})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == ["0.json", "1.json", "2.json", "3.json"]


# Keeping and removing


def put_records(directory: Path, rows: list[tuple[int, float]]) -> None:
    for refresh, (step, ndcg) in enumerate(rows):
        put_negatives(directory, refresh, step=step, ndcg=ndcg)


def test_retention(tmp_path: Path) -> None:
    training, ann = tmp_path / "t", tmp_path / "a"
    for step in range(100, 1000, 100):
        put_checkpoint(training, step)
    put_records(ann, [(0, 0.1), (200, 0.9), (300, 0.4), (400, 0.5)])
    remove_old_checkpoints(training, ann, keep_unused=False)
    assert numbered(training, CHECKPOINT_PATTERN) == [200, 400, 700, 800, 900], "best, newest used, last three"
    remove_old_checkpoints(training, ann, keep_unused=False)
    assert numbered(training, CHECKPOINT_PATTERN) == [200, 400, 700, 800, 900]
    assert names(training) == [f"checkpoint-{step}" for step in (200, 400, 700, 800, 900)]
    assert numbered(ann, RECORD_PATTERN) == [0, 1, 2, 3]


def test_retention_in_lockstep_keeps_what_is_next(tmp_path: Path) -> None:
    training, ann = tmp_path / "t", tmp_path / "a"
    for step in range(100, 1000, 100):
        put_checkpoint(training, step)
    remove_old_checkpoints(training, ann, keep_unused=True)
    assert numbered(training, CHECKPOINT_PATTERN) == list(range(100, 1000, 100)), "no refresh yet: all may be next"
    put_records(ann, [(0, 0.9), (300, 0.4)])
    remove_old_checkpoints(training, ann, keep_unused=True)
    assert numbered(training, CHECKPOINT_PATTERN) == [300, 400, 500, 600, 700, 800, 900]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.integers(1, 30), unique=True, max_size=8),
    rows=st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), max_size=5),
    keep_unused=st.booleans(),
)
def test_retention_keeps_what_it_must(steps: list[int], rows: list[tuple[int, float]], keep_unused: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        training, ann = Path(name) / "t", Path(name) / "a"
        training.mkdir()
        for step in steps:
            checkpoint_path(training, step).mkdir()
        put_records(ann, rows)
        remove_old_checkpoints(training, ann, keep_unused)
        kept = set(numbered(training, CHECKPOINT_PATTERN))
    must = set(sorted(steps)[-3:])
    if rows:
        best = max(ndcg for _, ndcg in rows)
        must |= {rows[-1][0], next(step for step, ndcg in rows if ndcg == best)} & set(steps)
    if keep_unused:
        must |= {step for step in steps if step > (rows[-1][0] if rows else -1)}
    assert kept == must


def test_one_damaged_record_does_not_end_the_trainer(tmp_path: Path) -> None:
    training, ann = tmp_path / "t", tmp_path / "a"
    for step in range(100, 700, 100):
        put_checkpoint(training, step)
    put_records(ann, [(100, 0.9), (200, 0.4), (300, 0.1)])
    record_path(ann, 2).write_text("{")
    remove_old_checkpoints(training, ann, keep_unused=False)
    assert numbered(training, CHECKPOINT_PATTERN) == [100, 200, 400, 500, 600]


def test_a_removed_checkpoint_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while its files go, as rmtree would be: what is left has no checkpoint's name."""
    for step in (1, 2, 3, 4):
        with publish_checkpoint(tmp_path, step, {}) as staging:
            (staging / "scheduler.pt").write_text("ANCE's readiness mark")

    def killed(path: Path, ignore_errors: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_old_checkpoints(tmp_path, tmp_path / "a", keep_unused=False)
    assert numbered(tmp_path, CHECKPOINT_PATTERN) == [2, 3, 4]


def test_removing_a_run(tmp_path: Path) -> None:
    put_checkpoint(tmp_path, 100)
    put_checkpoint(tmp_path, 200)
    mark_done(tmp_path, step=200)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("the user's own")
    remove_run(tmp_path)
    assert names(tmp_path) == ["notes.txt"]


def test_removing_a_run_leaves_another_programs_checkpoint_and_all_else(tmp_path: Path) -> None:
    put_checkpoint(tmp_path, 100)
    checkpoint_path(tmp_path, 200).mkdir()
    mark_done(tmp_path, step=200)
    before = names(tmp_path)
    with pytest.raises(UserError, match="checkpoint-200 was not written by this program"):
        remove_run(tmp_path)
    assert names(tmp_path) == before


# Waiting and ending


class FakeTime:
    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    """Quick polls at first, one every ten seconds later, a line soon and then each minute, and the answer as it is."""
    time = FakeTime()
    found = wait_for(lambda: "it" if time.now > 1400 else None, "a thing", time.sleep, time.clock)
    assert found == "it"
    assert time.pauses[0] == 0.1 and time.pauses == sorted(time.pauses) and time.pauses[-1] == 10.0
    assert sum(time.pauses) < 412
    said = capsys.readouterr().out.splitlines()
    assert [bool(re.fullmatch(r"waiting for a thing since \d+ s", line)) for line in said] == [True] * len(said)
    assert len(said) == 7 and said[0] in ("waiting for a thing since 5 s", "waiting for a thing since 6 s")


def test_waiting_takes_what_is_there_at_once_and_zero_is_an_answer() -> None:
    time = FakeTime()
    assert wait_for(lambda: 0, "a number", time.sleep, time.clock) == 0
    assert time.pauses == []


def test_waiting_has_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    time = FakeTime()
    with pytest.raises(UserError, match="a thing did not appear within 120 s"):
        wait_for(lambda: None, "a thing", time.sleep, time.clock, limit_seconds=120, quiet=True)
    assert 120 < time.now - 1000 < 131
    assert capsys.readouterr().out == ""


def test_the_peer_is_gone(tmp_path: Path) -> None:
    check_peer(watch_peer(tmp_path))
    peer = watch_peer(tmp_path)
    with pytest.raises(ZeroDivisionError), role_held(tmp_path, "generator"):
        _ = 1 / 0
    with pytest.raises(PeerGone, match=r"the generator has failed \(ZeroDivisionError: division by zero\)") as caught:
        check_peer(peer)
    assert caught.value.exit_code == 4
    check_peer(watch_peer(tmp_path))  # a failure that lay there before is an earlier run's
    with role_held(tmp_path, "generator"):  # one that starts again takes its own back
        check_peer(peer)
    (tmp_path / "FAILED.json").write_text("{}")
    with pytest.raises(PeerGone):
        check_peer(peer)


def test_the_same_failure_twice_is_seen_twice(tmp_path: Path) -> None:
    mark_failed(tmp_path, "trainer", "reason")
    peer = watch_peer(tmp_path)
    check_peer(peer)
    mark_failed(tmp_path, "trainer", "reason")
    with pytest.raises(PeerGone):
        check_peer(peer)


@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt()])
def test_a_job_that_is_stopped_tells_its_peer(tmp_path: Path, end: BaseException) -> None:
    with pytest.raises(type(end)), role_held(tmp_path, "trainer"):
        raise end
    failed = exchange.read_failed(tmp_path)
    assert failed is not None and failed["role"] == "trainer"


def test_a_job_whose_peer_has_failed_does_not_tell_it_back(tmp_path: Path) -> None:
    with pytest.raises(PeerGone), role_held(tmp_path, "trainer"):
        raise PeerGone("the generator has failed")
    assert exchange.read_failed(tmp_path) is None


def test_a_role_is_held_by_one(tmp_path: Path) -> None:
    other = "from pathlib import Path; from utils.exchange import role_held; import sys\n"
    other += "with role_held(Path(sys.argv[1]), 'generator'): pass"
    command = [sys.executable, "-c", other, str(tmp_path)]
    with role_held(tmp_path, "generator"):
        with role_held(tmp_path, "trainer"):
            pass
        refused = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "another generator works in" in refused.stderr
    assert subprocess.run(command, cwd=REPOSITORY, timeout=60).returncode == 0


def test_failing_where_nothing_can_be_written_keeps_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(exchange, "write_json", full)
    with pytest.raises(ZeroDivisionError), role_held(tmp_path, "trainer"):
        _ = 1 / 0


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_weights_have_one_name_for_all_readers(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / name).write_bytes(b"weights")
    with publish_checkpoint(tmp_path, 3, {}) as staging:
        (staging / name).write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert exchange.model_sha256(foreign) == exchange.model_sha256(tmp_path / "checkpoint-3") == expected
    assert exchange.model_sha256(tmp_path) == ""


def test_done_and_failed(tmp_path: Path) -> None:
    assert read_done(tmp_path) is None
    mark_done(tmp_path, step=7, seconds=1.5)
    assert read_done(tmp_path) == {"step": 7, "seconds": 1.5}
    mark_failed(tmp_path, "trainer", "reason")
    failed = exchange.read_failed(tmp_path)
    assert failed is not None and (failed["role"], failed["reason"]) == ("trainer", "reason")
    assert names(tmp_path) == ["DONE.json", "FAILED.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe"])
def test_a_damaged_json_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"x\.json is missing"):
        read_json(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json .*it is damaged"):
        read_json(path)


# Places that cannot be written


def test_a_writable_place(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep")
    assert names(tmp_path / "new" / "deep") == []


def unwritable_places(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "file").write_text("")
    yield tmp_path / "file"
    yield tmp_path / "file" / "below"
    yield Path("/proc/ance")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        yield tmp_path / "closed"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for place in unwritable_places(tmp_path):
        with pytest.raises(UserError, match=re.escape(f"cannot publish in {place}: ")) as caught:
            check_writable(place)
        assert "\n" not in str(caught.value)
        assert "file" not in place.parts or "a file is where a directory should be" in str(caught.value)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported", str(source))

    monkeypatch.setattr(exchange.os, "link", link)
    with pytest.raises(UserError, match=r"cannot publish in .*Operation not supported"):
        check_writable(tmp_path / "x")
    assert names(tmp_path / "x") == []


FULL_DISK = """
import resource, sys
from pathlib import Path
import {modules}
from utils.errors import run_program
from utils.exchange import publish_checkpoint, publish_negatives
from utils.publishing import write_json

directory = Path(sys.argv[1])

def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    {body}

run_program("program", main)
"""
BODIES = {
    "negatives": 'publish_negatives(directory, 0, lambda p: p.write_bytes(bytes(50000)) and None, {"ndcg": 0.0})',
    "json": 'write_json(directory / "x.json", {"x": "x" * 50000})',
    "file": "with publish_checkpoint(directory, 1, {}) as s: (s / 'a').write_bytes(bytes(50000))",
    "safetensors": "with publish_checkpoint(directory, 1, {}) as s: "
    "safetensors.numpy.save_file({'a': numpy.zeros(50000)}, s / 'a')",
    "torch": "with publish_checkpoint(directory, 1, {}) as s: torch.save({'a': torch.zeros(50000)}, s / 'a')",
}


@pytest.mark.parametrize("what", BODIES)
def test_a_full_disk(tmp_path: Path, what: str) -> None:
    """The limit on a file's size stands for the disk's: one line, exit code 2, nothing published."""
    modules = {"safetensors": "numpy, safetensors.numpy", "torch": "torch"}.get(what, "json")
    program = FULL_DISK.format(modules=modules, body=BODIES[what])
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"no space left writing {tmp_path}" in done.stderr
    assert names(tmp_path) == []


def test_an_error_that_is_not_the_disks_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), publish_checkpoint(tmp_path, 1, {}):
        raise RuntimeError("out of memory")
    assert exit_code_of("program", lambda: None) == 0


# Numbers and bytes


class Publications(RuleBasedStateMachine):
    """Any order of publishing, failing, damaging and retention: numbers are never reused, bytes never change."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.training, self.ann = Path(self.temporary.name) / "t", Path(self.temporary.name) / "a"
        self.published: dict[int, bytes] = {}
        self.damaged: set[int] = set()
        self.checkpoints: dict[int, bytes] = {}
        self.removed: set[int] = set()

    def teardown(self) -> None:
        self.temporary.cleanup()

    @rule(content=st.binary(max_size=20), ndcg=st.floats(0, 1))
    def publish(self, content: bytes, ndcg: float) -> None:
        number = next_refresh_number(self.ann)
        assert number not in self.published
        record = {"ndcg": ndcg, "step": max(self.checkpoints, default=0)}
        publish_negatives(self.ann, number, lambda path: path.write_bytes(content) and None, record)
        self.published[number] = content

    @rule(content=st.binary(max_size=20))
    def killed_between_data_and_record(self, content: bytes) -> None:
        self.ann.mkdir(exist_ok=True)
        negatives_path(self.ann, next_refresh_number(self.ann)).write_bytes(content)

    @rule(number=st.integers(0, 5))
    def publish_again(self, number: int) -> None:
        if number in self.published:
            with pytest.raises(UserError):
                put_negatives(self.ann, number, "other")

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.published)))
        negatives_path(self.ann, number).write_bytes(self.published[number] + b"!")
        self.damaged.add(number)

    @rule(content=st.binary(max_size=20), fails=st.booleans())
    def checkpoint(self, content: bytes, fails: bool) -> None:
        step = max([*self.checkpoints, *self.removed], default=0) + 1
        try:
            with publish_checkpoint(self.training, step, {}) as staging:
                (staging / "weights").write_bytes(content)
                if fails:
                    raise ValueError
        except ValueError:
            return
        self.checkpoints[step] = content

    @rule(keep_unused=st.booleans())
    def retain(self, keep_unused: bool) -> None:
        remove_old_checkpoints(self.training, self.ann, keep_unused)
        self.removed |= self.checkpoints.keys() - set(numbered(self.training, CHECKPOINT_PATTERN))

    @invariant()
    def readers_see_the_newest_whole_one(self) -> None:
        whole = [number for number in self.published if number not in self.damaged]
        found = newest_refresh(self.ann)
        assert (found.number if found else None) == max(whole, default=None)
        for number in whole:
            assert negatives_path(self.ann, number).read_bytes() == self.published[number]
        there = self.checkpoints.keys() - self.removed
        newest = newest_checkpoint(self.training)
        assert (newest.step if newest else None) == max(there, default=None)
        assert there >= set(sorted(self.checkpoints)[-3:])
        for step in there:
            assert (checkpoint_path(self.training, step) / "weights").read_bytes() == self.checkpoints[step]

    @invariant()
    def nothing_is_left_over(self) -> None:
        assert not (self.training / STAGING).exists() and not (self.ann / STAGING).exists()


Publications.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestPublications = Publications.TestCase
