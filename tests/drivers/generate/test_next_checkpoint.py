"""drivers.generate.next_checkpoint: which checkpoint the next refresh is made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivers.generate.next_checkpoint import RequestSettings, find_request, step_said_used
from tests.exchanging import put_checkpoint, put_negatives


def step_of_next(tmp_path: Path, last_checkpoint_dir: str) -> int | None:
    warmup, training_dir = tmp_path / "warmup" / "checkpoint-150000", tmp_path / "checkpoints"
    if not warmup.exists():
        put_checkpoint(warmup.parent, 150000)
    settings = RequestSettings(
        ann_dir=tmp_path / "ann",
        training_dir=training_dir,
        init_model_dir=warmup,
        is_lockstep=False,
        steps_per_refresh=0,
        refresh_lag=0,
        most_refreshes=9,
        step_used=step_said_used(last_checkpoint_dir, training_dir),
    )
    nothing: Any = None
    found = find_request(settings, nothing, {})
    return None if found is None else int(found["request"]["step"])


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_last_checkpoint_outside_the_training_dir_is_the_initial_model(tmp_path: Path, slash: str) -> None:
    """ANCE's commands name the warmup's, whose steps are not the trainer's."""
    warmup = f"{tmp_path}/warmup/checkpoint-150000{slash}"
    assert step_of_next(tmp_path, warmup) == 0, "nothing counts as used: refresh 0 is made from the initial model"
    put_negatives(tmp_path / "ann", 0)
    assert step_of_next(tmp_path, warmup) is None, "the initial model's refresh is there, the trainer has begun nothing"
    put_checkpoint(tmp_path / "checkpoints", 500)
    assert step_of_next(tmp_path, warmup) == 500


def test_a_last_checkpoint_of_the_training_dir_counts_as_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_checkpoint(tmp_path / "checkpoints", 500)
    for path in (f"{tmp_path}/checkpoints/checkpoint-500", "checkpoints/checkpoint-500/"):
        assert step_of_next(tmp_path, path) is None
    assert step_of_next(tmp_path, f"{tmp_path}/checkpoints/checkpoint-400") == 500, "also where it has been removed"
    put_checkpoint(tmp_path / "checkpoints", 600)
    assert step_of_next(tmp_path, f"{tmp_path}/checkpoints/checkpoint-500") == 600
