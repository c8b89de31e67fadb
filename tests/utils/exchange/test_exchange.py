"""utils.exchange: whole or not at all, never the same name twice, and the newest that verifies."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.exchanging import (
    LIFE,
    MEMORY,
    flip_byte,
    lease_of,
    names,
    put_checkpoint,
    put_negatives,
    read_beat,
    staged,
    take,
)
from utils.errors import Fenced, PeerGone, Stopped, UserError, exit_code_of
from utils.exchange import atomic
from utils.exchange.atomic import load_with_checksum, numbered, staging_path, write_json
from utils.exchange.checkpoints import (
    Checkpoint,
    latest_resumable_checkpoint,
    model_sha256,
    newest_checkpoint,
    publish_checkpoint,
    read_checkpoint,
    read_initial_checkpoint,
    set_aside,
)
from utils.exchange.layout import CHECKPOINT_PATTERN, DONE, FAILED, MANIFEST, RECORD_PATTERN, RUN, JobLayout
from utils.exchange.markers import mark_done, mark_failed, mark_run, read_done, read_failed, read_run, working
from utils.exchange.negatives import (
    newest_refresh,
    next_refresh_number,
    publish_negatives,
    read_records,
    read_refresh,
    read_visible_refresh,
)
from utils.exchange.retention import remove_old_checkpoints, remove_run
from utils.exchange.wait import log_once


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said in an earlier test is said again, and no cache hides a record for long."""
    log_once.cache_clear()
    for module in ("checkpoints", "negatives", "verify"):
        monkeypatch.setattr(f"utils.exchange.{module}.VISIBLE_WITHIN_SECONDS", 0.0)


# Checkpoints


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path, 200, b"abc", run_id="r", final=False)
    assert names(tmp_path) == ["checkpoint-200"]
    assert names(path) == [MANIFEST, "config.json", "model.safetensors"]
    manifest = load_with_checksum(path / MANIFEST)
    assert manifest["files"]["model.safetensors"] == {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert (manifest["step"], manifest["run_id"]) == (200, "r")
    found = newest_checkpoint(tmp_path)
    assert found == Checkpoint(path, 200, manifest)
    assert newest_checkpoint(tmp_path, step=200) == found
    assert newest_checkpoint(tmp_path, step=100) is None
    assert newest_checkpoint(tmp_path, above=199) == found
    assert newest_checkpoint(tmp_path, above=200) is None


def test_nothing_is_there_before_the_block_ends(tmp_path: Path) -> None:
    with publish_checkpoint(lease_of(tmp_path), 5, {}) as staging:
        (staging / "a").write_text("a")
        assert names(tmp_path) == []
        assert newest_checkpoint(tmp_path) is None
    assert names(tmp_path) == ["checkpoint-5"] and staged(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), UserError("y")])
def test_an_exception_publishes_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), publish_checkpoint(lease_of(tmp_path), 5, {}) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a").write_text("a")
        raise error
    assert names(tmp_path) == []

    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(type(error)):
        publish_negatives(lease_of(tmp_path, "generator"), 0, write, {"ndcg": 0.0})
    assert names(tmp_path) == []


@pytest.mark.parametrize("taken", ["checkpoint", "empty directory", "file", "dangling link"])
def test_a_taken_checkpoint_name_is_refused(tmp_path: Path, taken: str) -> None:
    path = JobLayout(tmp_path).checkpoint(5)
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
    assert "model.safetensors is missing, MANIFEST.json lists it" in capsys.readouterr().out


def damaged(content: bytes, place: int, bit: int, cut: bool) -> bytes:
    """One bit of it flipped, or its tail cut; ``place`` counts from the end."""
    place = len(content) - 1 - place % len(content)
    return content[:place] if cut else content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


DAMAGE = {"place": st.integers(0, 10**6), "bit": st.integers(0, 7), "cut": st.booleans()}


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from((MANIFEST, "model.safetensors", "config.json")), **DAMAGE)
def test_any_damage_to_a_checkpoint_gives_the_older(name: str, place: int, bit: int, cut: bool) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        older, newest = put_checkpoint(Path(directory), 100), put_checkpoint(Path(directory), 200)
        file = newest / name
        file.write_bytes(damaged(file.read_bytes(), place, bit, cut))
        found = newest_checkpoint(Path(directory))
        assert found is not None and found.path == older


@settings(max_examples=150, deadline=None)
@given(is_record=st.booleans(), **DAMAGE)
def test_any_damage_to_negatives_gives_the_older(is_record: bool, place: int, bit: int, cut: bool) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        ann = Path(directory)
        put_negatives(ann, 0)
        put_negatives(ann, 1)
        file = JobLayout(ann).record(1) if is_record else JobLayout(ann).negatives(1)
        file.write_bytes(damaged(file.read_bytes(), place, bit, cut))
        found = newest_refresh(ann)
        assert found is not None and found.number == 0
        assert next_refresh_number(ann) == 2
        assert [record["refresh"] for record in read_records(ann)] == ([0] if is_record else [0, 1])


@settings(max_examples=60, deadline=None)
@given(**DAMAGE)
def test_any_damage_to_a_mark_passes_it_over(place: int, bit: int, cut: bool) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        lease = lease_of(directory)
        mark_done(lease, step=7)
        mark_failed(lease, "reason")
        mark_run(lease, run_id="r", science={"seed": 1})
        for file in (DONE, FAILED, RUN):
            (directory / file).write_bytes(damaged((directory / file).read_bytes(), place, bit, cut))
        found = (read_done(directory), read_failed(directory), read_run(directory))
        assert found == (None, None, None)


@pytest.mark.parametrize("text", ["[]", "{}", '{"step": 200, "files": {"a": 1}}', '{"files": {}, "step": 201}', "\xff"])
def test_a_manifest_of_another_shape(tmp_path: Path, text: str) -> None:
    older, newest = put_checkpoint(tmp_path, 100), put_checkpoint(tmp_path, 200)
    (newest / MANIFEST).write_text(text, encoding="latin-1")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.path == older


def test_checkpoints_of_other_programs(tmp_path: Path) -> None:
    """ANCE's has no manifest: it is ready once scheduler.pt is there. One given by its path is taken as it is."""
    path = JobLayout(tmp_path).checkpoint(300)
    path.mkdir()
    (path / "pytorch_model.bin").write_bytes(b"")
    assert newest_checkpoint(tmp_path) is None
    (path / "scheduler.pt").write_bytes(b"")
    assert newest_checkpoint(tmp_path) == Checkpoint(path, 300, {})
    assert read_checkpoint(path, 0) == Checkpoint(path, 0, {})
    with pytest.raises(UserError, match="not a directory"):
        read_checkpoint(tmp_path / "nowhere", 0)


def test_a_final_checkpoint_of_another_run_is_a_start(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path, 800, final=True)
    found = read_initial_checkpoint(path)
    assert (found.step, found.manifest["final"]) == (0, False)
    assert found.manifest["files"] == read_checkpoint(path, 800).manifest["files"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with publish_checkpoint(lease_of(tmp_path), 5, {}) as staging:
            for name, mode in (("private", 0o600), ("open", 0o666)):
                descriptor = os.open(staging / name, os.O_CREAT | os.O_WRONLY, mode)
                os.close(descriptor)
        put_negatives(tmp_path, 0)
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file() and not p.parent.name.startswith(".")]
    assert len(files) == 6
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o666 & ~umask}
    assert stat.S_IMODE(JobLayout(tmp_path).checkpoint(5).stat().st_mode) == 0o777 & ~umask


# Negatives


def test_negatives_round_trip(tmp_path: Path) -> None:
    made = put_negatives(tmp_path, 0, "7\t8\t9\n", ndcg=0.25, step=30)
    assert names(tmp_path) == ["ann_ndcg_0", "ann_training_data_0"]
    assert JobLayout(tmp_path).negatives(0).read_text() == "7\t8\t9\n"
    assert made.path == JobLayout(tmp_path).negatives(0)
    assert (made.number, made.step, made.record["ndcg"]) == (0, 30, 0.25)
    assert made.record["sha256"] == hashlib.sha256(b"7\t8\t9\n").hexdigest()
    assert newest_refresh(tmp_path) == read_refresh(tmp_path, 0) == read_visible_refresh(tmp_path, 0) == made
    assert newest_refresh(tmp_path, above=0) is None
    assert newest_refresh(tmp_path, number=1) is None
    assert next_refresh_number(tmp_path) == 1


def test_data_without_a_record_was_never_published(tmp_path: Path) -> None:
    JobLayout(tmp_path).negatives(0).write_text("left by a killed job")
    assert newest_refresh(tmp_path) is None
    assert next_refresh_number(tmp_path) == 0
    put_negatives(tmp_path, 0, "whole\n")
    assert JobLayout(tmp_path).negatives(0).read_text() == "whole\n"


@pytest.mark.parametrize("as_directory", [False, True])
def test_a_committed_number_is_refused(tmp_path: Path, as_directory: bool) -> None:
    if as_directory:
        JobLayout(tmp_path).record(0).mkdir()
    else:
        put_negatives(tmp_path, 0, "first\n")
    before = names(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        put_negatives(tmp_path, 0, "second\n")
    assert names(tmp_path) == before
    if not as_directory:
        assert JobLayout(tmp_path).negatives(0).read_text() == "first\n"


def test_the_data_is_there_before_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease_of(tmp_path, "generator")
    links: list[tuple[str, list[str]]] = []

    def link(source: Path, target: Path) -> None:
        links.append((target.name, names(tmp_path)))
        source.rename(target)

    monkeypatch.setattr(os, "link", link)
    put_negatives(tmp_path, 3)
    assert links == [("ann_training_data_3", []), ("ann_ndcg_3", ["ann_training_data_3"])]
    assert names(tmp_path) == ["ann_ndcg_3", "ann_training_data_3"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "record cut", "record of another shape", "no ndcg"])
def test_damaged_negatives_give_the_older(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    put_negatives(tmp_path, 4, "older\n")
    put_negatives(tmp_path, 5, "newest\n")
    data, record = JobLayout(tmp_path).negatives(5), JobLayout(tmp_path).record(5)
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
    JobLayout(tmp_path).negatives(2).write_text("1\t2\t3\n")
    JobLayout(tmp_path).record(2).write_text('{"ndcg": 0.61, "checkpoint": "/x/checkpoint-100", "mrr": 0.3}')
    found = newest_refresh(tmp_path)
    assert found is not None and (found.step, found.record["ndcg"]) == (0, 0.61)
    assert read_records(tmp_path) == [
        {"refresh": 2, "step": 0, "ndcg": 0.61, "checkpoint": "/x/checkpoint-100", "mrr": 0.3}
    ]


def test_what_is_published_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is synced before its name appears, and the directory afterwards."""
    synced: list[tuple[str, list[str]]] = []
    sync = atomic.sync

    def watched(path: Path) -> None:
        sync(path)
        synced.append((path.name, names(tmp_path)))

    for role in ("trainer", "generator"):
        lease_of(tmp_path, role)
    for module in ("checkpoints", "negatives", "atomic"):
        monkeypatch.setattr(f"utils.exchange.{module}.sync", watched)
    put_checkpoint(tmp_path, 5)
    files = [(name, []) for name in ("config.json", "model.safetensors", MANIFEST, "checkpoint-5")]
    assert synced == [*files, (tmp_path.name, ["checkpoint-5"])]
    JobLayout(tmp_path).checkpoint(5).rename(tmp_path.parent / "away")
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
        assert CHECKPOINT_PATTERN.fullmatch(JobLayout(tmp_path).checkpoint(number).name)
        assert RECORD_PATTERN.fullmatch(JobLayout(tmp_path).record(number).name)
    with staging_path(tmp_path, "checkpoint-5") as staged:
        staged.mkdir()
        assert numbered(tmp_path, CHECKPOINT_PATTERN) == []
        assert numbered(staged.parent.parent, CHECKPOINT_PATTERN) == []


# Keeping and removing


def put_records(directory: Path, rows: list[tuple[int, float]]) -> None:
    for refresh, (step, ndcg) in enumerate(rows):
        put_negatives(directory, refresh, step=step, ndcg=ndcg)


def test_retention(tmp_path: Path) -> None:
    training, ann = tmp_path / "t", tmp_path / "a"
    for step in range(100, 1000, 100):
        put_checkpoint(training, step)
    put_records(ann, [(0, 0.1), (200, 0.9), (300, 0.4), (400, 0.5)])
    remove_old_checkpoints(lease_of(training), ann, keep_unused=False)
    assert numbered(training, CHECKPOINT_PATTERN) == [200, 400, 700, 800, 900], "best, newest used, last three"
    remove_old_checkpoints(lease_of(training), ann, keep_unused=False)
    assert numbered(training, CHECKPOINT_PATTERN) == [200, 400, 700, 800, 900]
    assert names(training) == [f"checkpoint-{step}" for step in (200, 400, 700, 800, 900)]
    assert numbered(ann, RECORD_PATTERN) == [0, 1, 2, 3]


def test_retention_in_lockstep_keeps_what_is_next(tmp_path: Path) -> None:
    training, ann = tmp_path / "t", tmp_path / "a"
    for step in range(100, 1000, 100):
        put_checkpoint(training, step)
    remove_old_checkpoints(lease_of(training), ann, keep_unused=True)
    assert numbered(training, CHECKPOINT_PATTERN) == list(range(100, 1000, 100)), "no refresh yet: all may be next"
    put_records(ann, [(0, 0.9), (300, 0.4)])
    remove_old_checkpoints(lease_of(training), ann, keep_unused=True)
    assert numbered(training, CHECKPOINT_PATTERN) == [300, 400, 500, 600, 700, 800, 900]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.integers(1, 30), unique=True, max_size=8),
    rows=st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), max_size=5),
    keep_unused=st.booleans(),
)
def test_retention_keeps_what_it_must(steps: list[int], rows: list[tuple[int, float]], keep_unused: bool) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        training, ann = Path(name) / "t", Path(name) / "a"
        training.mkdir()
        for step in steps:
            JobLayout(training).checkpoint(step).mkdir()
        put_records(ann, rows)
        remove_old_checkpoints(lease_of(training), ann, keep_unused)
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
    JobLayout(ann).record(2).write_text("{")
    remove_old_checkpoints(lease_of(training), ann, keep_unused=False)
    assert numbered(training, CHECKPOINT_PATTERN) == [100, 200, 400, 500, 600]


def test_a_removed_checkpoint_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while its files go, as rmtree would be: what is left has no checkpoint's name."""
    for step in (1, 2, 3, 4):
        with publish_checkpoint(lease_of(tmp_path), step, {}) as staging:
            (staging / "scheduler.pt").write_text("ANCE's readiness mark")

    def killed(path: Path, ignore_errors: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_old_checkpoints(lease_of(tmp_path), tmp_path / "a", keep_unused=False)
    assert numbered(tmp_path, CHECKPOINT_PATTERN) == [2, 3, 4]


def test_removing_a_run(tmp_path: Path) -> None:
    put_checkpoint(tmp_path, 100)
    put_checkpoint(tmp_path, 200)
    mark_done(lease_of(tmp_path), step=200)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("the user's own")
    remove_run(lease_of(tmp_path))
    assert names(tmp_path) == ["notes.txt"]


def test_removing_a_run_leaves_another_programs_checkpoint_and_all_else(tmp_path: Path) -> None:
    put_checkpoint(tmp_path, 100)
    JobLayout(tmp_path).checkpoint(200).mkdir()
    mark_done(lease_of(tmp_path), step=200)
    before = names(tmp_path)
    with pytest.raises(UserError, match="checkpoint-200 was not written by this program"):
        remove_run(lease_of(tmp_path))
    assert names(tmp_path) == before


def test_damaged_checkpoints_are_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 3, 4):
        put_checkpoint(tmp_path, step)
    for turn in (1, 2):
        for step in (3, 4):
            set_aside(lease_of(tmp_path), step)
        assert numbered(tmp_path, CHECKPOINT_PATTERN) == [1, 2]
        assert names(tmp_path / ".damaged") == ["checkpoint-3.1", "checkpoint-4.1"]
        assert len(capsys.readouterr().out.splitlines()) == (2 if turn == 1 else 0)
    take(tmp_path).beat("ended")
    put_checkpoint(tmp_path, 3, b"trained again")
    set_aside(lease_of(tmp_path), 3)
    assert names(tmp_path / ".damaged") == ["checkpoint-3.1", "checkpoint-3.3", "checkpoint-4.1"]
    assert (tmp_path / ".damaged" / "checkpoint-3.3" / "model.safetensors").read_bytes() == b"trained again"
    assert staged(tmp_path) == []


def test_only_what_was_seen_to_be_damaged_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old listing shows 1 to 3, 3 is damaged; 4 is whole and comes out of the cache later."""
    for step in (1, 2, 3, 4):
        put_checkpoint(tmp_path, step)
    flip_byte(JobLayout(tmp_path).checkpoint(3) / "config.json")
    fresh, views = atomic.listing, iter([["checkpoint-1", "checkpoint-2", "checkpoint-3"]])
    monkeypatch.setattr(atomic, "listing", lambda directory: next(views, None) or fresh(directory))
    found = latest_resumable_checkpoint(lease_of(tmp_path))
    assert found is not None and found.step == 2
    assert numbered(tmp_path, CHECKPOINT_PATTERN) == [1, 2, 4]
    assert names(tmp_path / ".damaged") == ["checkpoint-3.1"]
    assert (again := latest_resumable_checkpoint(lease_of(tmp_path))) is not None and again.step == 4


@pytest.mark.parametrize(("saved", "looks"), [(4, 1), (10, 1), (12, 2)])
def test_what_the_last_holder_had_saved_is_waited_for_unless_newer_ones_are_there(
    saved: int, looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last heartbeat said 4, and then it published 6, 8 and 10, and removed 4; or said 12, which comes later."""
    for step in (6, 8, 10):
        put_checkpoint(tmp_path, step)
    looked = 0

    def wait_for(look: Callable[[], object], what: str, limit_seconds: float) -> None:
        nonlocal looked
        while looked < 2:
            looked += 1
            if look() is not None:
                return
            put_checkpoint(tmp_path, 12)
        pytest.fail(f"{what} is waited for in vain")

    monkeypatch.setattr("utils.exchange.checkpoints.wait_for", wait_for)
    lease = lease_of(tmp_path)
    lease.previous = {"saved": saved}
    found = latest_resumable_checkpoint(lease)
    assert found is not None and (found.step, looked) == (max(saved, 10), looks)


# Ending


@pytest.mark.parametrize("error", [Stopped("at step 3"), Fenced("another"), PeerGone("the generator has failed")])
def test_a_job_that_will_go_on_or_whose_peer_failed_leaves_no_failure(tmp_path: Path, error: Exception) -> None:
    mark_failed(lease_of(tmp_path), "an earlier job's")
    lease_of(tmp_path).beat("failed")
    with pytest.raises(type(error)), working(tmp_path, "trainer", LIFE, "run"):
        assert read_failed(tmp_path) is None, "who starts again takes its own back"
        raise error
    assert read_failed(tmp_path) is None


@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt()])
def test_a_job_that_is_stopped_by_a_signal_has_not_failed(tmp_path: Path, end: BaseException) -> None:
    with pytest.raises(type(end)), working(tmp_path, "trainer", LIFE, "run"):
        raise end
    assert read_failed(tmp_path) is None
    beat = read_beat(tmp_path, "trainer")
    assert beat is not None and beat["state"] == "stopped"


def test_failing_where_nothing_can_be_written_keeps_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str, lease_staging_dir: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("utils.exchange.markers.write_text", full)
    with pytest.raises(ZeroDivisionError), working(tmp_path, "trainer", LIFE, "run"):
        _ = 1 / 0


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_weights_have_one_name_for_all_readers(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / name).write_bytes(b"weights")
    with publish_checkpoint(lease_of(tmp_path), 3, {}) as staging:
        (staging / name).write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert model_sha256(foreign) == model_sha256(tmp_path / "checkpoint-3") == expected
    with pytest.raises(UserError, match="holds no weights"):
        model_sha256(tmp_path)


def test_done_and_failed(tmp_path: Path) -> None:
    assert read_done(tmp_path) is None
    mark_done(lease_of(tmp_path), step=7, seconds=1.5)
    assert read_done(tmp_path) == {"step": 7, "seconds": 1.5}
    mark_failed(lease_of(tmp_path), "reason")
    failed = read_failed(tmp_path)
    assert failed is not None and (failed["role"], failed["reason"]) == ("trainer", "reason")
    assert names(tmp_path) == ["DONE.json", "FAILED.json"]


def test_an_error_that_is_not_the_disks_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), publish_checkpoint(lease_of(tmp_path), 1, {}):
        raise RuntimeError("out of memory")
    assert exit_code_of("program", lambda: None) == 0


# Numbers and bytes


class Publications(RuleBasedStateMachine):
    """Any order of publishing, failing, damaging and retention: numbers are never reused, bytes never change."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory(dir=MEMORY)
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
        lease = lease_of(self.ann, "generator")
        publish_negatives(lease, number, lambda path: path.write_bytes(content) and None, record)
        self.published[number] = content

    @rule(content=st.binary(max_size=20))
    def killed_between_data_and_record(self, content: bytes) -> None:
        self.ann.mkdir(exist_ok=True)
        JobLayout(self.ann).negatives(next_refresh_number(self.ann)).write_bytes(content)

    @rule(number=st.integers(0, 5))
    def publish_again(self, number: int) -> None:
        if number in self.published:
            with pytest.raises(UserError):
                put_negatives(self.ann, number, "other")

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.published)))
        JobLayout(self.ann).negatives(number).write_bytes(self.published[number] + b"!")
        self.damaged.add(number)

    @rule(content=st.binary(max_size=20), fails=st.booleans())
    def checkpoint(self, content: bytes, fails: bool) -> None:
        step = max([*self.checkpoints, *self.removed], default=0) + 1
        try:
            with publish_checkpoint(lease_of(self.training), step, {}) as staging:
                (staging / "weights").write_bytes(content)
                if fails:
                    raise ValueError
        except ValueError:
            return
        self.checkpoints[step] = content

    @rule(keep_unused=st.booleans())
    def retain(self, keep_unused: bool) -> None:
        remove_old_checkpoints(lease_of(self.training), self.ann, keep_unused)
        self.removed |= self.checkpoints.keys() - set(numbered(self.training, CHECKPOINT_PATTERN))

    @invariant()
    def readers_see_the_newest_whole_one(self) -> None:
        whole = [number for number in self.published if number not in self.damaged]
        if whole:
            found = newest_refresh(self.ann)
            assert found is not None and found.number == max(whole)
        elif self.published:
            with pytest.raises(UserError, match="nothing else can take its place"):
                newest_refresh(self.ann)
        else:
            assert newest_refresh(self.ann) is None
        for number in whole:
            assert JobLayout(self.ann).negatives(number).read_bytes() == self.published[number]
        there = self.checkpoints.keys() - self.removed
        newest = newest_checkpoint(self.training)
        assert (newest.step if newest else None) == max(there, default=None)
        assert there >= set(sorted(self.checkpoints)[-3:])
        for step in there:
            assert (JobLayout(self.training).checkpoint(step) / "weights").read_bytes() == self.checkpoints[step]

    @invariant()
    def nothing_is_left_over(self) -> None:
        assert staged(self.training) == staged(self.ann) == []


Publications.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestPublications = Publications.TestCase
