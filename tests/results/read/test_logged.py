"""What reports say of an arm next to its metrics, on logs and evaluations put together here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.page.sections import audit_section, common_sections, cost_section, dropped_shares, fork_section
from results.plots import by_rank
from results.read.logged import ages_of, by_rank_of, read_logged, read_measures, read_returned
from results.read.published import NOISE_REFRESHES, PUBLISHED, RAN_AS_TOP, apart, read_dev_ndcg
from results.read.run import read_arm
from tests.results.studies import write_arm_of_study
from tests.results.test_report import Shape, write_arm
from utils.errors import UserError
from utils.exchange.atomic import dump_with_checksum
from utils.exchange.layout import JobLayout
from utils.exchange.negatives import read_records
from utils.ir.rank_buckets import FIRST_RANKS, NAMES, bucket_of, first_and_last

STEPS, REFRESHES = 500, 5


def logged(step: int, scale: float) -> dict[str, Any]:
    ranks = {"rank_1-5_triples": 10, "rank_1-5_loss": scale, "rank_1-5_gradient": 2 * scale, "rank_1-5_satisfied": 0.5}
    norms = {f"gradient_layer_{layer}": scale * (layer + 1) for layer in range(6)}
    return {"step": step, "loss": scale, "steps_per_second": 20.0, "gradient_head": 9 * scale, **norms, **ranks}


def write_measured(root: Path, name: str, scale: float = 1.0, **by_rank: Any) -> Path:
    """An arm with all that is logged: ``scale`` is in every number."""
    write_arm(root, name, Shape(0.2, 0.25, steps=STEPS, refreshes=REFRESHES))
    arm = root / "arms" / name
    (arm / "checkpoints" / "RUN.json").write_text(dump_with_checksum({"science": {"processes": 3}}))
    return add_measures(arm, scale, **by_rank)


def add_measures(arm: Path, scale: float, **by_rank: Any) -> Path:
    """To an arm of STEPS steps that has been written already."""
    rows = [logged(step, scale * 100 / step) for step in range(100, STEPS + 1, 100)]
    (arm / "checkpoints" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, record in enumerate(read_records(arm / "ann_data")):
        churn = {"still_there": {"1-5": 0.5 * scale}, "jaccard": {"1-5": 0.25 * scale}}
        more = {
            "queries": 60,  # of 100 that were searched
            "topk_training": 60,
            "encode_seconds": 2.0 * scale,
            "search_seconds": 1.0 * scale,
            "processes": 2,
            "selection": {
                "skipped": 15,
                "empty": 25,
                "dropped": {"max_positive_ratio": {"1-5": 450, "51-100": 900}},
            },
            **({"churn": churn} if number else {}),
        }
        path = JobLayout(arm / "ann_data").record(number)
        path.write_text(
            dump_with_checksum({key: value for key, value in {**record, **more}.items() if key != "sealed"})
        )
    found = {
        "score_over_corpus_mean": [3.0 * scale, 2.0 * scale, None],
        "examples": {"q1": [4.0 * scale, 1.0 * scale, None]},
        "grades": [1],
        "passages_by_grade": {"retrieved": {"1-5": 50, "6-20": 150}, "1": {"1-5": 10, "6-20": 3}},
        "training_negatives": {"refresh": 4, "at_10": 0.6, "at_100": 0.4, "uniform_at_10": 0.3, "uniform_at_100": 0.2},
        **by_rank,
    }
    (arm / "eval" / "dev.by_rank.json").write_text(json.dumps(found))
    return arm


def test_a_bucket_s_ranks_are_those_counted_into_it() -> None:
    for name in NAMES[:-1]:
        first, last = first_and_last(name)
        assert {NAMES[place] for place in bucket_of(np.arange(first, last + 1))} == {name}
    assert first_and_last(NAMES[-1])[0] == FIRST_RANKS[-1] and first_and_last("none") == (0, 0)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=6))
def test_ages_against_a_loop_over_steps(windows: list[tuple[int, int]]) -> None:
    """Windows of so many steps each, on negatives that were so old when training switched to them."""
    taken, at = [], 0
    for length, age in windows:
        taken.append({"refresh": len(taken), "made_from_step": at - age, "taken_at_step": at})
        at += length
    ages = []
    for step in range(at):
        entry = max((one for one in taken if one["taken_at_step"] <= step), key=lambda one: one["taken_at_step"])
        ages.append(step - entry["made_from_step"])
    found = ages_of(taken, at)
    assert found is not None and found == (pytest.approx(sum(ages) / len(ages)), max(ages))


def test_nothing_taken_has_no_age() -> None:
    assert ages_of([], 100) is None


def test_measures_are_what_was_logged(tmp_path: Path) -> None:
    found = read_measures(read_arm(write_measured(tmp_path, "top")))
    assert found.losses == [(step, 100 / step) for step in range(100, STEPS + 1, 100)]
    assert found.layers["layer_5"] == [(step, 100 / step * 6) for step in range(100, STEPS + 1, 100)]
    assert [*found.layers] == ["head", *(f"layer_{layer}" for layer in range(6))]
    mean = np.mean([100 / step for step in range(100, STEPS + 1, 100)])
    assert found.by_rank["1-5"] == pytest.approx({"triples": 50, "loss": mean, "gradient": 2 * mean, "satisfied": 0.5})
    assert [refresh.rank_retention for refresh in found.refreshes] == [{}, *[{"1-5": 0.5}] * (REFRESHES - 1)]
    # 16.25 s of three trainer processes (write_arm's), and five refreshes of 3 s on two
    assert found.process_hours(16.25) == pytest.approx((3 * 16.25 + 5 * 3 * 2) / 3600)
    assert found.returned is not None and found.returned.trained_on["at_10"] == 0.6
    assert found.returned.curve_K[:2].tolist() == [3, 2] and np.isnan(found.returned.curve_K[2])


def test_a_run_that_logged_nothing_more_has_nothing_more(tmp_path: Path) -> None:
    write_arm(tmp_path, "top", Shape(0.2, 0.25))
    arm = read_arm(tmp_path / "arms" / "top")
    found = read_measures(arm)
    assert not found.by_rank and not found.layers and found.returned is None and found.ages is None
    assert found.process_hours(16.25) is None, "nobody said how many processes there were"
    titles = [section.title for section in common_sections({"top": [arm]}, {"top": [found]}, tmp_path)]
    assert titles == ["False negatives", "Time, staleness and cost", "What the fork published"]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"score_over_corpus_mean": 1, "examples": [], "passages_by_grade": {}}',
        '{"score_over_corpus_mean": ["x"], "examples": {}, "passages_by_grade": {}}',
    ],
)
def test_a_damaged_evaluation_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dev.by_rank.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"dev\.by_rank\.json .*run drivers\.run_eval"):
        read_returned(path)


def test_a_log_with_half_a_line_and_a_step_trained_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 2, "loss": 3}\n{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n[\n\xff\n{"step": 3, "lo'
    )
    assert read_logged(path) == [{"step": 1, "loss": 2}, {"step": 2, "loss": 1}]
    assert capsys.readouterr().err == f"warning: {path}: 3 lines are no rows of a log; passed over\n"


def test_a_log_without_a_row_is_said_to_be_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_logged(path) == [] and capsys.readouterr().err == "", "a run need not have one"
    path.write_bytes(b"")
    assert read_logged(path) == []
    assert capsys.readouterr().err == f"warning: {path} is empty: nothing of the training can be shown\n"


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_every_part_of_a_report_is_there_and_draws_what_was_logged(tmp_path: Path) -> None:
    arms = {name: [read_arm(write_measured(tmp_path, name, scale))] for name, scale in (("top", 1.0), ("bottom", 0.5))}
    measures = {name: [read_measures(arm) for arm in found] for name, found in arms.items()}
    parts = {section.title: section for section in common_sections(arms, measures, tmp_path)}
    assert len(parts) == 6
    for section in parts.values():
        text = "\n\n".join(section.blocks)
        assert all(f"({name})\n\n" in text for name in section.figures)
    axes = parts["Loss, and gradients by layer"].figures["layers.png"].axes
    assert [one.get_title(loc="left").partition(": ")[2] for one in axes] == [
        "",
        "bottom layers",
        "middle layers",
        "top layers",
        "head",
    ]
    assert list(axes[1].lines[0].get_ydata()) == pytest.approx([150 / step for step in range(100, STEPS + 1, 100)])
    stale = parts["What each rank does"].figures["stale.png"].axes
    assert [line.get_ydata()[0] for line in stale[0].lines] == [0.5, 0.25]
    curves = parts["What is returned, and what was trained on"]
    assert [one.get_title(loc="left") for one in curves.figures["curves.png"].axes] == [
        "top (overlap 40%)",
        "bottom (overlap 40%)",
    ]
    assert cells(curves.blocks[-1])[2] == ["top", "60.0%", "30.0%", "40.0%", "20.0%"]


def test_the_audit_counts_by_rank(tmp_path: Path) -> None:
    graded = {"retrieved": {"1-5": 50, "6-20": 150}, "0": {"1-5": 9}, "1": {"1-5": 10, "6-20": 3}, "3": {"6-20": 6}}
    plain, judged = (
        [read_measures(read_arm(write_measured(tmp_path / name, "top", **more)))]
        for name, more in (("plain", {}), ("graded", {"passages_by_grade": graded, "grades": [1, 2, 3]}))
    )
    section = audit_section({"top": plain}, "dev")
    assert section is not None and "are not graded" in section.blocks[0]
    assert cells(section.blocks[1])[2:] == [["top", "1", "20.00%", "2.00%"]]
    # Refreshes that searched 100 queries, 60 candidates each: ranks 51 to 60 are all that the bucket 51-100 has.
    assert dropped_shares(plain) == {"max_positive_ratio": pytest.approx({"1-5": 450 / 500, "51-100": 900 / 1000})}
    assert cells(section.blocks[3])[2] == ["top", "`--max_positive_ratio`", "90.00%", "90.00%"]
    section = audit_section({"top": judged}, "dev")
    assert section is not None and "qrels are graded" in section.blocks[0]
    assert cells(section.blocks[1])[2:] == [
        ["top", "any", "38.00%", "6.00%"],
        ["top", "1", "20.00%", "2.00%"],
        ["top", "2", "0.00%", "0.00%"],
        ["top", "3", "0.00%", "4.00%"],
    ]


def test_cost_is_the_median_over_seeds(tmp_path: Path) -> None:
    runs = [read_arm(write_measured(tmp_path / str(scale), "top", scale)) for scale in (1.0, 3.0, 2.0)]
    section = cost_section({"top": runs}, {"top": [read_measures(arm) for arm in runs]})
    hours = (3 * 16.25 + 2 * 2 * 3 * REFRESHES) / 3600
    assert cells(section.blocks[0])[2] == ["top", "16.2", "20.0", "5", "4.0", "2.0", "n/a", f"{hours:.3f}"]


def test_the_fork_s_equal_arms_lie_apart_as_published() -> None:
    rows: dict[tuple[str, int], float] = {}
    with (PUBLISHED / "fork_dev_ndcg.csv").open() as file:
        for row in csv.DictReader(file):
            rows[row["arm"], int(row["refresh"])] = float(row["ndcg_at_10"])
    gaps = [rows["top", refresh] - rows[RAN_AS_TOP, refresh] for refresh in NOISE_REFRESHES]
    assert apart(read_dev_ndcg(), RAN_AS_TOP) == pytest.approx(abs(sum(gaps) / len(gaps)))
    text = fork_section().blocks[0]
    assert "differ by 0.0010 in the mean, and top_bottom differs from top by 0.0015" in text
    assert (PUBLISHED / "README.md").read_text().count("0.0010") == 1


def test_layers_in_thirds() -> None:
    bert = ["embeddings", *(f"layer_{layer}" for layer in reversed(range(12))), "head"]
    assert by_rank.layer_groups(bert) == {
        "bottom layers": ["layer_0", "layer_1", "layer_2", "layer_3"],
        "middle layers": ["layer_4", "layer_5", "layer_6", "layer_7"],
        "top layers": ["layer_8", "layer_9", "layer_10", "layer_11"],
        "embeddings": ["embeddings"],
        "head": ["head"],
    }
    assert by_rank.layer_groups(["embeddings", "head"]) == {"embeddings": ["embeddings"], "head": ["head"]}


def test_what_ranks_did_is_a_mean_over_triples(tmp_path: Path) -> None:
    arm = write_arm_of_study(tmp_path, "top", 1, "top", 0.3)
    assert by_rank_of(read_logged(arm / "checkpoints" / "metrics.jsonl")) == {
        "1-5": pytest.approx({"triples": 40, "loss": 0.2, "gradient": 1.25, "satisfied": 0.625}),
        "6-20": {"triples": 5, "loss": 0.3, "gradient": 3.0, "satisfied": 0.5},
    }
