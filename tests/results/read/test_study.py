"""results.read.study: which arms are compared, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from results.read.study import read_by_query, read_study
from tests.results.studies import places, write_arm_of_study, write_study
from utils.errors import UserError
from utils.exchange.atomic import dump_with_checksum


def said(root: Path, names: list[str], seeds: list[int]) -> str:
    with pytest.raises(UserError) as caught:
        read_study(places(root, seeds), names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_arm_of_an_earlier_version_that_says_no_config_is_compared(tmp_path: Path) -> None:
    write_arm_of_study(tmp_path, "top", 1, "top", 0.3)
    write_arm_of_study(tmp_path, "bottom", 1, "bottom", 0.3, initial_config_sha256="c")
    assert [*read_study(places(tmp_path, [1]), ["top", "bottom"]).arms] == ["top", "bottom"]
    write_arm_of_study(tmp_path, "random", 1, "random", 0.3, initial_config_sha256="d")
    assert "initial_config_sha256 of the trainer c in bottom, d in random" in said(tmp_path, ["bottom", "random"], [1])


def test_arms_that_differ_in_more_than_strategy_and_seed_are_refused(tmp_path: Path) -> None:
    write_arm_of_study(tmp_path, "top", 1, "top", 0.3)
    write_arm_of_study(tmp_path, "bottom", 1, "bottom", 0.3, learning_rate=5e-4)
    message = said(tmp_path, ["top", "bottom"], [1])
    assert "learning_rate of the trainer 0.001 in top, 0.0005 in bottom" in message and "strategy of" not in message
    write_arm_of_study(tmp_path, "less", 1, "random", 0.3, top_up=True)
    assert "top_up of the generator None in top, True in less" in said(tmp_path, ["top", "less"], [1])


def test_one_arm_under_two_names_is_seen(tmp_path: Path) -> None:
    write_arm_of_study(tmp_path, "random", 1, "random", 0.3, negatives="1,2,3")
    write_arm_of_study(tmp_path, "top", 1, "top", 0.3, negatives="3,2,1")
    write_arm_of_study(tmp_path, "bottom", 1, "bottom", 0.3, negatives="1,2,4")
    (warning,) = read_study(places(tmp_path, [1]), ["random", "top", "bottom"]).warnings
    assert "arms random and top share 100% of their negatives" in warning
    last = tmp_path / "seed-1" / "random" / "ann_data" / "ann_training_data_4"
    last.write_text(last.read_text().replace("1,2,3", "7,8,9"))
    now = read_study(places(tmp_path, [1]), ["random", "top", "bottom"])
    assert not now.warnings, "a schedule that parts them later"


def test_an_arm_is_one_strategy_as_far_from_its_seed_in_all_of_them(tmp_path: Path) -> None:
    write_arm_of_study(tmp_path, "x", 1, "top", 0.3)
    write_arm_of_study(tmp_path, "x", 2, "bottom", 0.3)
    assert "the arm x has strategies bottom, top over its seeds" in said(tmp_path, ["x"], [1, 2])
    write_arm_of_study(tmp_path, "y", 1, "top", 0.3)
    write_arm_of_study(tmp_path, "y", 2, "top", 0.3, offset=1000)
    assert "the arm y has seeds off by [0, 1000]" in said(tmp_path, ["y"], [1, 2])


@pytest.mark.parametrize("metrics", [{"mrr@10": 0.302}, {"mrr@10": 0.302, "ndcg@10": 0.9}])
def test_metrics_that_are_not_the_means_of_the_queries_are_refused(tmp_path: Path, metrics: dict[str, float]) -> None:
    """One is missing, the lists having been short, or the file is of another evaluation."""
    write_study(tmp_path, {"top": ("top", 0.3)}, (1, 2))
    path = tmp_path / "seed-2" / "top" / "eval" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": metrics}))
    found = said(tmp_path, ["top"], [1, 2])
    assert f"ndcg@10 is {metrics.get('ndcg@10')} in metrics.json, 0.352 in the mean of dev.per_query.tsv" in found


def test_query_ids_may_hold_any_white_space(tmp_path: Path) -> None:
    path, query_ids = tmp_path / "dev.per_query.tsv", ("a\u00a0b", "c\u2028d", "e\x85f", "g\rh", " ")
    rows = [f"{query_id}\t0.5\t{place / 8}\n" for place, query_id in enumerate(query_ids)]
    path.write_bytes(("query_id\tmrr@10\tndcg@10\n" + "".join(rows)).encode())
    found_ids, values = read_by_query(path)
    assert found_ids == query_ids
    assert values["ndcg@10"].tolist() == [0, 0.125, 0.25, 0.375, 0.5]


def test_what_is_missing_or_of_other_queries_is_named(tmp_path: Path) -> None:
    write_study(tmp_path, {"top": ("top", 0.3)}, (1, 2))
    assert "seed-3/top" in said(tmp_path, ["top"], [1, 2, 3])
    path = tmp_path / "seed-2" / "top" / "eval" / "dev.per_query.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    assert "evaluated on other dev queries" in said(tmp_path, ["top"], [1, 2])
    path.write_text("query_id\tmap@10\nq1\t0.5\n")
    assert "is not a table of mrr@10, ndcg@10 by query" in said(tmp_path, ["top"], [1, 2])
    path.write_text("")
    assert "dev.per_query.tsv is empty" in said(tmp_path, ["top"], [1, 2])
    path.unlink()
    assert "dev.per_query.tsv is missing" in said(tmp_path, ["top"], [1, 2])


def test_async_arms_need_not_use_as_many_refreshes(tmp_path: Path) -> None:
    for name, refreshes in (("top", 5), ("bottom", 4)):
        arm = write_arm_of_study(tmp_path, name, 1, name, 0.3, refresh_mode="async")
        done = json.loads((arm / "checkpoints" / "DONE.json").read_text())
        taken = [{"refresh": refresh, "made_from_step": 0, "taken_at_step": 0} for refresh in (0, 4)]
        changed = {**done, "refreshes": refreshes, "taken": taken}
        (arm / "checkpoints" / "DONE.json").write_text(
            dump_with_checksum({k: v for k, v in changed.items() if k != "sealed"})
        )
    assert read_study(places(tmp_path, [1]), ["top", "bottom"]).seeds == [1]
