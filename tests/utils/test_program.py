"""utils.program: the main of the programs that load a model."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import pytest

from utils.flag_values import flag
from utils.flags import ProgramFlags
from utils.program import run_from_command_line

DONE: list[int] = []


@dataclass(frozen=True, kw_only=True)
class CountFlags(ProgramFlags):
    """How many."""

    count: int = flag(0, "how many", at_least=0, group="job")


@dataclass(frozen=True)
class Job:
    flag_values: dict[str, object]
    twice: int


def preflight(flags: CountFlags) -> Job:
    return Job(asdict(flags), 2 * flags.count)


def run(job: Job) -> None:
    DONE.append(job.twice)


def resolved_of(job: Job) -> dict[str, int]:
    return {"resolved_twice": job.twice}


def call(monkeypatch: pytest.MonkeyPatch, *argv: str, module: str = __name__) -> list[int]:
    """What was done."""
    DONE.clear()
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    names = {word: f"{module}:{word}" for word in ("preflight", "run", "resolved_of")}
    run_from_command_line("program", CountFlags, **names)
    return DONE


def test_the_job_that_preflight_made_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "--count", "3") == [6]


def test_a_dry_run_says_what_was_resolved_and_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--count", "3", "--dry_run") == []
    told = json.loads(capsys.readouterr().out)
    assert (told["count"], told["resolved_twice"]) == (3, 6)


def test_flags_are_parsed_before_the_work_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "--cuont", "3", module="no.such.module")
    assert ended.value.code == 2 and "--cuont" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        call(monkeypatch, "--count", "3", module="no.such.module")
