"""What a run that only begins may find in the generator's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivers.flags import AnnFlags
from drivers.schedule import Job, Taken, check_new_run, check_origin
from tests.exchanging import put_negatives
from utils.errors import Disagreement

SCIENCE = {"refresh_mode": "async", "steps_per_refresh": 0}


def job_over(ann_dir: Path, journal: list[Taken] | None = None) -> Job:
    flags = AnnFlags(data_dir="d", model_type="static", output_dir="o", ann_dir=str(ann_dir))
    nothing: Any = None
    return Job(flags, nothing, None, journal)


def test_negatives_of_a_later_model_are_not_a_new_run_s_own(tmp_path: Path) -> None:
    check_new_run(job_over(tmp_path), SCIENCE)
    put_negatives(tmp_path, 0, model_sha256="a")
    check_new_run(job_over(tmp_path), SCIENCE)
    put_negatives(tmp_path, 1)  # ANCE's own say nothing of their model
    check_new_run(job_over(tmp_path), SCIENCE)
    put_negatives(tmp_path, 3, model_sha256="b")
    with pytest.raises(Disagreement, match="has refreshes up to 3 already, and this run only begins: another run left"):
        check_new_run(job_over(tmp_path), SCIENCE)
    check_new_run(job_over(tmp_path, journal=[Taken(0, 0, 0, "", "")]), SCIENCE)
    with pytest.raises(
        Disagreement, match="refresh 4 was made with other flags: refresh_mode lockstep there, async here"
    ):
        put_negatives(tmp_path, 4, model_sha256="c", refresh_mode="lockstep")
        check_new_run(job_over(tmp_path), SCIENCE)


def test_negatives_of_another_run_s_model_are_refused(tmp_path: Path) -> None:
    found = put_negatives(tmp_path, 1, model_sha256="theirs")
    check_origin(job_over(tmp_path), SCIENCE, found, {100: "theirs"})
    for models in ({100: "ours"}, {0: "theirs"}):
        with pytest.raises(Disagreement, match=r"refresh 1 in .* was not made from this run's model of step 100"):
            check_origin(job_over(tmp_path), SCIENCE, found, models)
