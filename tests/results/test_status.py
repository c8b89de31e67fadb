"""results.status: real leases, real processes that are killed and frozen, and pages of 80 columns."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.encoders.static import StaticEncoder
from results import status
from results.read.job_states import ABSENT, ALIVE, DONE, GONE, UNSURE, Place, Reader, RoleStatus, find_places, health
from results.status import look_until_sure, page, watch
from tests import REPO, forked
from tests.drivers.test_loop import LENGTHS
from tests.faults.fork_server import Child
from utils.errors import PeerGone, Stopped, UserError
from utils.exchange.layout import JobLayout
from utils.exchange.lease.acquire import role_held
from utils.exchange.lease.held import Lease
from utils.exchange.lease.record import ENDED, FAILED_STATE, STOPPED, LeaseRecord, LeaseTimeouts
from utils.exchange.markers import mark_done, working

LIFE = LeaseTimeouts(heartbeat_seconds=0.1, lease_seconds=1.5)
HOLD = """
import sys, time
from pathlib import Path
from utils.exchange.lease.acquire import role_held
from utils.exchange.lease.record import LeaseTimeouts
directory, role, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with role_held(directory, role, LeaseTimeouts(0.1, 1.5), "run-1") as lease:
    status = {"rate": 25.0, "eta_seconds": 8, "doing": "training"}
    lease.set_status(step=step, total_steps=500, refresh=2, made_from_step=200, **status)
    lease.beat()
    print("holding", flush=True)
    time.sleep(120)
"""
Start = Callable[[Path, str, int], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that has a role of a directory and gives signs of life."""
    running = []

    def hold(directory: Path, role: str, step: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLD, str(directory), role, str(step)]
        process = subprocess.Popen(words, cwd=REPO, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None and process.stdout.readline() == "holding\n"
        return process

    yield hold
    for process in running:
        process.kill()
        process.communicate()


def run_status(*words: str | Path, seconds: float = 60) -> tuple[int, str]:
    """The program as users run it: exit code and output."""
    command = [sys.executable, "-m", "results.status", *map(str, words)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=seconds)
    assert max(map(len, done.stdout.splitlines()), default=0) <= 80, done.stdout
    assert "\x1b" not in done.stdout
    return done.returncode, done.stdout + done.stderr


def arm_at(run: Path, name: str = "top") -> tuple[Path, Path]:
    arm = run / "arms" / name
    for directory in (arm / "checkpoints", arm / "ann_data"):
        directory.mkdir(parents=True)
    return arm / "checkpoints", arm / "ann_data"


def leave(directory: Path, role: str, error: BaseException | None = None, **told: Any) -> None:
    """Have a role for a moment, and end as told."""
    try:
        with working(directory, role, LIFE, "run-1") as lease:
            lease.set_status(**told)
            if error is not None:
                raise error
    except BaseException as raised:
        if raised is not error:
            raise


def finish(directory: Path, role: str, step: int) -> None:
    with working(directory, role, LIFE, "run-1") as lease:
        mark_done(lease, step=step)


def states(run: Path) -> dict[str, str]:
    return {role.place.role: role.state for role in Reader(find_places([run])).look()}


# Real processes


def test_jobs_at_work_are_seen_within_a_few_heartbeats(tmp_path: Path, start: Start) -> None:
    trainer, generator = arm_at(tmp_path)
    start(trainer, "trainer", 300)
    start(generator, "generator", 0)
    started = time.monotonic()
    code, output = run_status(tmp_path)
    assert time.monotonic() - started < 20
    assert code == 0, output
    assert output.count("alive since 20") == 2
    text = " ".join(output.split())
    assert "step 300 of 500 (60%), negatives of refresh 2 from step 200: 100 steps old" in text
    assert "training, 25.0 steps/s, ETA 0:00:08" in output
    assert output.splitlines()[-1] == "all well (exit code 0)"


def test_a_killed_job_is_gone_once_its_lease_is_over(tmp_path: Path, start: Start) -> None:
    trainer, generator = arm_at(tmp_path)
    victim = start(trainer, "trainer", 300)
    start(generator, "generator", 0)
    victim.kill()
    victim.wait()
    code, output = run_status(tmp_path)
    assert code == 4, output
    text = " ".join(output.split())
    seconds = re.search(r"trainer GONE, no sign of life for (\d+) s, last heard of at 20", text)
    assert seconds is not None and int(seconds[1]) >= LIFE.lease_seconds - 0.5, output
    assert f"process {victim.pid}" in text and "step 300 of 500" in text
    assert "generator alive since" in text


def test_a_frozen_job_is_gone_and_comes_back(tmp_path: Path, start: Start) -> None:
    trainer, _ = arm_at(tmp_path)
    process = start(trainer, "trainer", 1)
    reader = Reader(find_places([trainer]))

    def state_within(seconds: float, wanted: str) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if reader.look()[0].state == wanted:
                return True
            time.sleep(0.05)
        return False

    assert reader.look()[0].state == UNSURE
    assert state_within(10, ALIVE)
    os.kill(process.pid, signal.SIGSTOP)
    assert state_within(10, GONE)
    os.kill(process.pid, signal.SIGCONT)
    assert state_within(10, ALIVE)


def test_file_times_are_no_sign_of_life(tmp_path: Path) -> None:
    leave(tmp_path, "trainer")
    beat = JobLayout(tmp_path).heartbeat("trainer", 1)
    beat.write_text(beat.read_text().replace(ENDED, "running"))
    now = [1000.0]
    reader = Reader(find_places([tmp_path]), lambda: now[0])
    for second in range(4):
        now[0] = 1000.0 + second * 0.5
        os.utime(beat, (1e9 + second, 4e9 + second))
        assert reader.look()[0].state == UNSURE
    now[0] = 1001.6
    assert reader.look()[0].state == GONE
    beat.write_text(beat.read_text() + " ")
    assert reader.look()[0].state == ALIVE


def test_looking_ends_as_soon_as_all_is_sure(tmp_path: Path) -> None:
    leave(tmp_path, "trainer")
    beat = JobLayout(tmp_path).heartbeat("trainer", 1)
    text = beat.read_text().replace(ENDED, "running")
    beat.write_text(text)
    slept, told = [], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            beat.write_text(text.replace('"count": ', '"count": 1'))

    roles = look_until_sure(Reader(find_places([tmp_path]), lambda: 0.0), sleep, told.append)
    assert [role.state for role in roles] == [ALIVE]
    assert len(slept) == 3 and len(told) == 1


# States and exit codes


def test_every_way_to_end(tmp_path: Path) -> None:
    trainer, generator = arm_at(tmp_path)
    assert states(tmp_path) == {"trainer": ABSENT, "generator": ABSENT}
    assert run_status(tmp_path)[0] == 75
    leave(generator, "generator")
    assert states(tmp_path) == {"trainer": ABSENT, "generator": ENDED}
    leave(trainer, "trainer", Stopped("stopped on request"), step=120, total_steps=500)
    assert states(tmp_path)["trainer"] == STOPPED
    code, output = run_status(tmp_path)
    assert code == 75 and "stopped, last heard of at 20" in output and "step 120 of 500 (24%)" in output
    leave(trainer, "trainer", ZeroDivisionError("in the third layer"), step=130)
    code, output = run_status(tmp_path)
    assert code == 4 and "FAILED, last heard of at 20" in output and "error: in the third layer" in output
    leave(generator, "generator", PeerGone("the trainer has failed"))
    assert states(tmp_path) == {"trainer": FAILED_STATE, "generator": FAILED_STATE}
    finish(trainer, "trainer", 500)
    code, output = run_status(tmp_path)
    assert states(tmp_path)["trainer"] == DONE
    # What remains of the generator does not matter: the arm is finished.
    assert code == 0 and "arm top: finished" in output and output.splitlines()[-1] == "all done (exit code 0)"


def test_the_worst_arm_decides(tmp_path: Path) -> None:
    for name, ending in (("top", None), ("random", Stopped("asked to"))):
        trainer, generator = arm_at(tmp_path, name)
        leave(generator, "generator")
        if ending is None:
            finish(trainer, "trainer", 10)
        else:
            leave(trainer, "trainer", ending)
    finish(tmp_path / "warmup", "warmup", 40)
    code, output = run_status(tmp_path)
    assert code == 75
    headings = [line for line in output.splitlines() if not line.startswith(" ")]
    assert headings == [
        "warmup: finished", "arm top: finished", "arm random", "a job waits to be started (exit code 75)"
    ]  # fmt: skip
    trainer, _ = arm_at(tmp_path, "bottom")
    leave(trainer, "trainer", MemoryError())
    code, output = run_status(tmp_path)
    assert code == 4 and "error: MemoryError" in output


def test_a_generator_that_has_made_all_it_was_asked_for(tmp_path: Path, start: Start) -> None:
    trainer, generator = arm_at(tmp_path)
    leave(generator, "generator")
    start(trainer, "trainer", 5)
    assert run_status(tmp_path)[0] == 0
    assert run_status(generator)[0] == 0  # alone, it is done


def test_a_damaged_lease_and_beat_are_no_obstacle(tmp_path: Path, start: Start) -> None:
    trainer, _ = arm_at(tmp_path)
    start(trainer, "trainer", 5)
    lease = trainer / ".leases" / "trainer-1.json"
    lease.write_bytes(lease.read_bytes()[:-20])
    code, output = run_status(trainer)
    assert code == 0 and "alive" in output


# Where it looks


def test_a_run_an_arm_and_single_directories(tmp_path: Path) -> None:
    trainer, generator = arm_at(tmp_path, "top")
    bottom, _ = arm_at(tmp_path, "bottom")
    (tmp_path / "warmup").mkdir()
    run = find_places([tmp_path])
    assert [(place.group, place.role) for place in run] == [
        ("warmup", "warmup"), ("arm top", "trainer"), ("arm top", "generator"),
        ("arm bottom", "trainer"), ("arm bottom", "generator"),
    ]  # fmt: skip
    assert find_places([bottom.parent]) == run[3:]
    for directory in (trainer, generator, tmp_path / "warmup"):
        with pytest.raises(UserError, match="is no run, arm, or directory"):
            find_places([directory])
    leave(trainer, "trainer")
    leave(generator, "generator")
    leave(tmp_path / "warmup", "warmup")
    assert find_places([trainer]) == [Place(str(trainer), "trainer", trainer)]
    assert find_places([tmp_path / "warmup"])[0].role == "warmup"
    assert {place.group for place in find_places([generator, trainer])} == {"arm"}


def test_a_run_of_before_there_were_leases(tmp_path: Path) -> None:
    """Published steps and refreshes tell how far it came."""
    trainer, generator = arm_at(tmp_path)
    (trainer / "checkpoint-20").mkdir()
    (trainer / "checkpoint-100").mkdir()
    (generator / "ann_ndcg_0").write_text('{"ndcg": 0.5, "checkpoint": ""}')
    code, output = run_status(tmp_path)
    assert code == 75 and "step 100" in output and "refresh 0 published" in output
    assert find_places([trainer])[0].role == "trainer" and find_places([generator])[0].role == "generator"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        code, output = run_status(path)
        assert code == 2 and output.startswith(f"status: error: {path} is no run") and output.count("\n") == 1
    assert run_status(tmp_path, "--watch", "--every_seconds", "0")[0] == 2


def test_a_run_whose_jobs_wait_in_the_queue(tmp_path: Path) -> None:
    """submit_ance.sh has made the place for its logs, and no job has begun."""
    (tmp_path / "logs").mkdir()
    code, output = run_status(tmp_path)
    assert code == 75 and "no job has begun yet" in output and "squeue" in output


def test_it_writes_nothing(tmp_path: Path) -> None:
    trainer, _ = arm_at(tmp_path)
    leave(trainer, "trainer")

    def everything() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))

    before = everything()
    run_status(tmp_path)
    assert everything() == before


# The page


def role(state: str, **changes: Any) -> RoleStatus:
    holder = LeaseRecord("trainer", 3, "node07", "b", 4242, "r", "99_1", 10.0, 180.0, True, "s", 1.7e9)
    values: dict[str, Any] = {
        "place": Place("arm top", "trainer", Path("nowhere")), "state": state, "silent_seconds": 4.0, "holder": holder,
        "beat": {}, "done": {}, "error": "",
    }  # fmt: skip
    return RoleStatus(**{**values, **changes})


@pytest.mark.parametrize("state", [ALIVE, UNSURE, GONE, DONE, ABSENT, ENDED, STOPPED, FAILED_STATE])
@pytest.mark.parametrize("name", ["trainer", "generator", "warmup"])
def test_no_line_is_longer_than_80_columns(state: str, name: str) -> None:
    long = "/a/path/without/any/blank" * 20
    holder = LeaseRecord(name, 3, "n" * 120, "b", 2**31, "r", "1" * 90, 10.0, 180.0, True, "s", 1.7e9)
    beat = {
        "step": 10**9, "total_steps": 10**9, "refresh": 10**6, "made_from_step": 1, "doing": f"waiting for {long}",
        "rate": 123456789.0, "eta_seconds": 10**8, "time": 1.7e9,
    }  # fmt: skip
    place = Place(f"arm {long}", name, Path("nowhere"))
    text = page([role(state, place=place, holder=holder, beat=beat, error=f"{long}\n{long} " * 9, silent_seconds=1e7)])
    assert max(map(len, text.splitlines())) <= 80
    bare = page([role(state, holder=None)])
    assert max(map(len, bare.splitlines())) <= 80


def test_a_beat_of_another_version_is_shown_as_far_as_it_goes() -> None:
    for beat in (
        {"step": None, "total_steps": 0},
        {"refresh": 1},
        {"rate": "fast", "eta_seconds": None, "time": "now"},
    ):
        assert "trainer" in page([role(ALIVE, beat=beat)])


def test_a_late_heartbeat_is_told_before_the_lease_is_over() -> None:
    assert "no sign of life" not in page([role(ALIVE, silent_seconds=25.0)])
    assert "alive since 2023-11-14" in page([role(ALIVE, silent_seconds=31.0)])
    assert "no sign of life for 31 s" in page([role(ALIVE, silent_seconds=31.0)])


@pytest.mark.parametrize(
    ("trainer", "generator", "code"),
    [
        (ALIVE, ALIVE, 0), (ALIVE, ENDED, 0), (DONE, ALIVE, 0), (DONE, GONE, 0), (UNSURE, ALIVE, 0), (ALIVE, GONE, 4),
        (GONE, ALIVE, 4), (FAILED_STATE, STOPPED, 4), (ALIVE, STOPPED, 75), (STOPPED, STOPPED, 75), (ABSENT, ENDED, 75),
        (ALIVE, ABSENT, 75), (ENDED, ENDED, 75), (DONE, ABSENT, 0),
    ],
)  # fmt: skip
def test_the_exit_code_of_an_arm(trainer: str, generator: str, code: int) -> None:
    places = {name: Place("arm top", name, Path("nowhere")) for name in ("trainer", "generator")}
    roles = [role(trainer, place=places["trainer"]), role(generator, place=places["generator"])]
    assert health(roles) == code
    assert page(roles).endswith(f"(exit code {code})")


# Watching


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_watching_ends_with_the_run(tmp_path: Path, stream: io.StringIO) -> None:
    trainer, generator = arm_at(tmp_path)
    leases: list[Lease] = []
    with role_held(generator, "generator", LIFE, "r") as lease:
        leases.append(lease)
        naps = []

        def sleep(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 2:
                finish(trainer, "trainer", 7)
            if len(naps) == 3:  # the generator has yet to notice
                lease.beat(ENDED)
                lease.ending.set()

        assert watch([tmp_path], 2.5, stream, sleep) == 0
    text = stream.getvalue()
    assert naps == [2.5] * 3
    assert text.count("arm top") == 4 and text.count("(exit code") == 4
    assert text.count(status.CLEAR) == (4 if stream.isatty() else 0)
    assert text.splitlines()[-2] == "all done (exit code 0)"


def test_watching_finds_the_jobs_that_begin_later(tmp_path: Path) -> None:
    """Right after a submission there are none, then a warmup, then an arm before that is done."""
    (tmp_path / "logs").mkdir()
    stream = io.StringIO()
    pages: list[str] = []
    begun = contextlib.ExitStack()

    leases: list[Lease] = []

    def begin(directory: Path, role: str) -> None:
        leases.append(begun.enter_context(role_held(directory, role, LIFE, "r")))

    def sleep(seconds: float) -> None:
        pages.append(stream.getvalue())
        stream.seek(stream.truncate(0))
        if len(pages) == 2:
            begin(tmp_path / "warmup", "warmup")
        if len(pages) == 3:
            leases[0].beat()
        if len(pages) == 4:
            begin(arm_at(tmp_path)[0], "trainer")
        if len(pages) == 5:
            begun.close()
            finish(tmp_path / "warmup", "warmup", 40)
            finish(tmp_path / "arms" / "top" / "checkpoints", "trainer", 7)

    with begun:
        assert watch([tmp_path], 2.5, stream, sleep) == 0
    pages.append(stream.getvalue())
    assert ["no job has begun yet" in text for text in pages] == [True] * 2 + [False] * 4
    assert ["warmup" in text for text in pages] == [False] * 2 + [True] * 4
    assert ["alive since" in text for text in pages] == [False] * 3 + [True] * 2 + [False], "what is known stays known"
    assert ["arm top" in text for text in pages] == [False] * 4 + [True] * 2
    assert "all done (exit code 0)" in pages[-1]


def test_watching_a_submitted_run_does_not_end_between_warmup_and_arms(tmp_path: Path) -> None:
    """The warmup is done while the jobs of the arms are still in the queue."""
    (tmp_path / "logs").mkdir()
    finish(tmp_path / "warmup", "warmup", 40)
    code, output = run_status(tmp_path)
    assert code == 75 and "no arm has begun yet: those submitted wait in the queue" in output
    assert output.splitlines()[-1] == "a job waits to be started (exit code 75)"
    stream = io.StringIO()
    pages: list[str] = []

    def sleep(seconds: float) -> None:
        pages.append(stream.getvalue())
        stream.seek(stream.truncate(0))
        if len(pages) == 2:
            leave(arm_at(tmp_path)[1], "generator")  # the first negatives
        if len(pages) == 3:
            finish(tmp_path / "arms" / "top" / "checkpoints", "trainer", 7)

    assert watch([tmp_path], 2.5, stream, sleep) == 0
    pages.append(stream.getvalue())
    assert ["warmup: finished" in text for text in pages] == [True] * 4
    assert ["no arm has begun yet" in text for text in pages] == [True, True, False, False]
    assert ["all done (exit code 0)" in text for text in pages] == [False] * 3 + [True]
    assert ["(exit code 75)" in text for text in pages] == [True] * 3 + [False]
    assert run_status(tmp_path)[0] == 0


def test_watch_as_a_program(tmp_path: Path) -> None:
    finish(tmp_path / "warmup", "warmup", 40)
    code, output = run_status("--watch", tmp_path)
    assert code == 0 and output.splitlines()[0] == "warmup: finished" and "step 40" in output


# The programs


@pytest.mark.slow
def test_an_arm_whose_trainer_is_killed(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Seen alive with its figures, then gone; and again alive once it is started again."""
    model, arm = tmp_path / "model", tmp_path / "run" / "arms" / "top"
    model.mkdir()
    vocab_size = json.loads((tiny_preprocessed / "manifest.json").read_text())["vocab_size"]
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 16}).save_pretrained(model)
    for path in tiny_tokenizer.iterdir():
        shutil.copy(path, model)
    common = (
        "--data_dir", tiny_preprocessed, "--model_type", "static", *LENGTHS, "--refresh_mode", "async",
        "--heartbeat_seconds", "0.3", "--lease_seconds", "4",
    )  # fmt: skip
    generator = (
        "--training_dir", arm / "checkpoints", "--init_model_dir", model, "--output_dir", arm / "ann_data",
        "--negative_strategy", "top", "--topk_training", "20", "--negative_sample", "3",
    )  # fmt: skip
    trainer = (
        "--ann_dir", arm / "ann_data", "--output_dir", arm / "checkpoints", "--model_name_or_path", model,
        "--max_steps", "1000000", "--save_steps", "2000", "--logging_steps", "100",
    )  # fmt: skip
    arm.mkdir(parents=True)
    running: list[Child] = []

    def begin(program: str, *flags: str | Path) -> Child:
        running.append(forked.start(arm / f"{program}.out", f"drivers.{program}", *common, *flags))
        return running[-1]

    def page_with(pattern: str) -> tuple[int, str]:
        """The first page whose text, in one line, has the pattern."""
        end, text = time.monotonic() + 90, ""
        while time.monotonic() < end:
            code, output = run_status(tmp_path / "run")
            text = " ".join(output.split())
            if re.search(pattern, text):
                return code, text
        raise AssertionError(text + "".join(path.read_text()[-1000:] for path in arm.glob("*.out")))

    try:
        begin("run_ann_data_gen", *generator)
        victim = begin("run_ann", *trainer)
        code, text = page_with(r"trainer alive since .* step [\d,]+ of 1,000,000 .* negatives of refresh \d+ from step")
        assert code == 0, text
        age = re.search(r"step ([\d,]+) of .* from step ([\d,]+): ([\d,]+) steps old", text)
        assert age is not None
        step, made_from, old = (int(number.replace(",", "")) for number in age.groups())
        assert old == step - made_from > 0
        assert re.search(r"training, [\d,.]+ steps/s, ETA [\d:]+", text)
        assert "arm top, negatives top" in text and "refresh 0 published" in text
        victim.end()
        code, text = page_with(r"trainer GONE, no sign of life for \d+ s")
        assert code == 4 and f"process {victim.pid}" in text
        begin("run_ann", *trainer)
        code, text = page_with(r"trainer alive since .* negatives of refresh \d+ from step")
    finally:
        for child in running:
            child.end()
