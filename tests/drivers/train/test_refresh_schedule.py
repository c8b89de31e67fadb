"""What a run that only begins may find in the generator's directory, and which journals it may replay."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivers.train.journal import RefreshUse
from drivers.train.refresh_schedule import (
    ScheduleSettings,
    check_new_run,
    check_origin,
    check_replayed_order,
    history_from,
)
from tests.exchanging import lease_of, put_checkpoint, put_negatives
from utils.errors import Disagreement, UserError
from utils.exchange.checkpoints import Checkpoint, model_sha256
from utils.exchange.layout import TRAINER_STATE
from utils.exchange.markers import mark_run

SCIENCE = {"refresh_mode": "async", "steps_per_refresh": 0}


def async_over(ann_dir: Path, journal: list[RefreshUse] | None = None) -> ScheduleSettings:
    return ScheduleSettings(
        ann_dir, is_lockstep=False, steps_per_refresh=0, refresh_lag=0, max_steps=100, looks_every=10, journal=journal
    )


def test_negatives_of_a_later_model_are_not_a_new_run_s_own(tmp_path: Path) -> None:
    check_new_run(async_over(tmp_path), SCIENCE)
    put_negatives(tmp_path, 0, model_sha256="a")
    check_new_run(async_over(tmp_path), SCIENCE)
    put_negatives(tmp_path, 1)  # ANCE's own say nothing of their model
    check_new_run(async_over(tmp_path), SCIENCE)
    put_negatives(tmp_path, 3, model_sha256="b")
    with pytest.raises(Disagreement, match="has refreshes up to 3 already, and this run only begins: another run left"):
        check_new_run(async_over(tmp_path), SCIENCE)
    check_new_run(async_over(tmp_path, journal=[RefreshUse(0, 0, 0, "", "")]), SCIENCE)
    with pytest.raises(
        Disagreement, match="refresh 4 was made with other flags: refresh_mode lockstep there, async here"
    ):
        put_negatives(tmp_path, 4, model_sha256="c", refresh_mode="lockstep")
        check_new_run(async_over(tmp_path), SCIENCE)


def test_negatives_of_another_run_s_model_are_refused(tmp_path: Path) -> None:
    found = put_negatives(tmp_path, 1, model_sha256="theirs")
    check_origin(async_over(tmp_path), SCIENCE, found, {100: "theirs"})
    for models in ({100: "ours"}, {0: "theirs"}):
        with pytest.raises(Disagreement, match=r"refresh 1 in .* was not made from this run's model of step 100"):
            check_origin(async_over(tmp_path), SCIENCE, found, models)


def test_a_record_that_names_no_model_is_an_earlier_version_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which left the sha256 of weights in several files blank."""
    earlier = put_negatives(tmp_path, 1, model_sha256="")
    check_origin(async_over(tmp_path), SCIENCE, earlier, {100: "ours"})
    assert "refresh 1 does not say which model made it" in capsys.readouterr().out
    ours = put_negatives(tmp_path, 2, model_sha256="", initial_config_sha256="c")
    with pytest.raises(Disagreement, match=r"refresh 2 in .* was not made from this run's model of step 200"):
        check_origin(async_over(tmp_path), SCIENCE, ours, {200: "ours"})


def test_the_initial_model_of_an_earlier_version_s_state_is_known_again(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path, 100)
    for stored, expected in (("", "known now"), ("as stored", "as stored")):
        state = {"models": {"0": stored, "50": "b"}, "taken": [], "schedule_from": 0}
        (path / TRAINER_STATE).write_text(json.dumps(state))
        nothing: Any = None
        course = history_from(
            replace(async_over(tmp_path), is_lockstep=True), nothing, Checkpoint(path, 100, {}), "known now"
        )
        assert course.model_of_step == {0: expected, 50: "b", 100: model_sha256(path)}


@pytest.mark.parametrize(("group_size", "short", "order"), list(itertools.product((0, 1), (False, True), (1, 2))))
def test_the_journal_of_another_order_of_triples_is_not_replayed(
    tmp_path: Path, group_size: int, short: bool, order: int
) -> None:
    """Version 1's recorded no order; the lists' lengths say whether it was another."""
    settings = async_over(tmp_path)
    texts = ["1\t2\t3,4\n5\t6\t7,8\n", "1\t2\t3,4\n5\t6\t7\n" if short else "1\t2\t4,3\n"]
    found = [put_negatives(settings.ann_dir, refresh, text) for refresh, text in enumerate(texts)]
    entries = [RefreshUse(refresh.number, refresh.step, refresh.step, "", "") for refresh in found]
    replay = tmp_path / "earlier" / "journal.jsonl"
    mark_run(lease_of(replay.parent), science={}, **({"triple_order": order} if order > 1 else {}))
    settings = replace(settings, replay=replay, journal=entries)
    if group_size == 1 and short and order == 1:
        with pytest.raises(UserError, match=r"another order of triples for the lists of refresh 1 at --group_size 1"):
            check_replayed_order(settings, group_size)
    else:
        check_replayed_order(settings, group_size)
