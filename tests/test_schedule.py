"""What a run that only begins may find in the generator's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivers.flags import AnnFlags
from drivers.schedule import Job, Taken, check_new_run
from tests.exchanging import put_negatives
from utils.errors import Disagreement


def job_over(ann_dir: Path, journal: list[Taken] | None = None) -> Job:
    flags = AnnFlags(data_dir="d", model_type="static", output_dir="o", ann_dir=str(ann_dir))
    nothing: Any = None
    return Job(flags, nothing, None, journal)


def test_negatives_of_a_later_model_are_not_a_new_run_s_own(tmp_path: Path) -> None:
    check_new_run(job_over(tmp_path))
    put_negatives(tmp_path, 0, model_sha256="a")
    check_new_run(job_over(tmp_path))
    put_negatives(tmp_path, 1)  # ANCE's own say nothing of their model
    check_new_run(job_over(tmp_path))
    put_negatives(tmp_path, 3, model_sha256="b")
    with pytest.raises(Disagreement, match="has refreshes up to 3 already, and this run only begins: another run left"):
        check_new_run(job_over(tmp_path))
    check_new_run(job_over(tmp_path, journal=[Taken(0, 0, 0, "", "")]))
