"""utils.exchange.stop: signals and files only leave a note; whoever works asks for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.exchanging import FakeTime
from utils.exchange import atomic
from utils.exchange import stop as stop_module
from utils.exchange.stop import STOP_FILE, Stop


@pytest.fixture(autouse=True)
def no_job_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STOP_FILE, raising=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_nothing_more(tmp_path: Path, number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    stop = Stop(tmp_path)
    with stop.listening():
        assert stop.requested() == ""
        os.kill(os.getpid(), number)
        assert stop.requested() == number.name
        os.kill(os.getpid(), signal.SIGTERM)  # Slurm sends it again and again
        assert stop.requested() == "SIGTERM"
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert list(tmp_path.iterdir()) == []


def test_a_second_interrupt_interrupts(tmp_path: Path) -> None:
    stop = Stop(tmp_path)
    with pytest.raises(KeyboardInterrupt), stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested() == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_file_that_another_rank_saw_first_is_named(tmp_path: Path) -> None:
    time = FakeTime()
    stop = Stop(tmp_path, time.clock)
    assert stop.requested() == "" and stop.reason() == "another process"
    (tmp_path / "STOP").touch()
    assert stop.requested() == "", "not a second has passed since the last look"
    assert stop.reason() == str(tmp_path / "STOP")


@given(pauses=st.lists(st.floats(0, 3), min_size=1, max_size=40), at=st.floats(0, 20), is_job_file=st.booleans())
def test_files_are_looked_at_once_a_second(pauses: list[float], at: float, is_job_file: bool) -> None:
    """Whenever it is asked; a file that is there is noticed at the first question a second after the last look."""
    time, looks = FakeTime(), []
    directory = Path("/nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STOP_FILE, "/job/stop")
        stop = Stop(directory, time.clock)
        wanted = Path("/job/stop") if is_job_file else directory / "STOP"

        def exists(path: Path) -> bool:
            looks.append((path, time.now))
            return path == wanted and time.now >= 1000 + at

        patch.setattr(atomic, "exists", exists)
        looked = -1.0
        for pause in pauses:
            is_due = looked < 0 or time.now - looked >= 1.0
            looked = time.now if is_due else looked
            expected = str(wanted) if is_due and time.now >= 1000 + at else ""
            assert stop.requested() == expected
            if expected:
                break
            time.now += pause
        seen = len(looks)
        assert seen == 2 * len({now for _, now in looks})
        if stop.file_name:
            time.now += 10
            assert stop.requested() == str(wanted) and len(looks) == seen, "what is known is not looked at again"


@pytest.mark.parametrize("by", ["directory", "job", "signal"])
def test_a_stop_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """The next job does not stop at the same file; the job script learns that the state is saved."""
    job_file = tmp_path / "job" / "stop"
    job_file.parent.mkdir()
    monkeypatch.setenv(STOP_FILE, str(job_file))
    own = tmp_path / "own"
    own.mkdir()
    stop = Stop(own)
    with stop.listening():
        if by == "directory":
            (own / "STOP").touch()
        elif by == "job":
            job_file.touch()
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested() == {"directory": str(own / "STOP"), "job": str(job_file), "signal": "SIGTERM"}[by]
        stop.taken()
    assert list(own.iterdir()) == [] and [path.name for path in job_file.parent.iterdir()] == ["stop.taken"]
    assert Stop(own).requested() == ""


def test_a_stop_without_a_job_script(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    stop = Stop(tmp_path)
    assert stop.requested() == str(tmp_path / "STOP")
    stop.taken()
    stop.taken()
    assert list(tmp_path.iterdir()) == []


def test_the_first_look_is_at_once() -> None:
    """However young this machine's clock is."""
    time = FakeTime()
    time.now = 0.0
    stop = Stop(Path("/proc/self"), time.clock)
    stop.directory_file = Path("/proc/self/status")
    assert stop.requested() == "/proc/self/status"
    assert stop_module.LOOK_EVERY_SECONDS == 1.0
