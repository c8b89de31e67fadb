"""results.report on studies put together here: what is compared, what is refused, and the figures put in come out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results import report, stats
from results.page import study
from results.plots.study import sweep_figure
from results.read.logged import by_rank_of, read_logged
from results.read.run import read_run
from results.read.study import read_by_query, read_study
from tests.drivers.test_run_bm25 import call
from tests.results.test_report import Shape, colours, write_arm, write_run
from utils.errors import UserError
from utils.exchange.atomic import dump_with_checksum

QUERIES = 300
# {arm: (strategy, mean reciprocal rank)}
ARMS = {"top": ("top", 0.30), "again": ("top", 0.30), "bottom": ("bottom", 0.22)}
SCIENCE: dict[str, Any] = {"learning_rate": 1e-3, "max_steps": 500}


def quality(name: str, seed: int, level: float) -> np.ndarray:
    """Made-up values of the queries, whose difficulty all arms share; their mean is exactly ``level``."""
    difficulty_Q = np.random.default_rng(0).normal(0, 0.1, QUERIES)
    noise_Q = np.random.default_rng([seed, *name.encode()]).normal(0, 0.05, QUERIES)
    values_Q = difficulty_Q + noise_Q
    return values_Q - values_Q.mean() + level


def write_arm_of_study(
    root: Path,
    name: str,
    seed: int,
    strategy: str,
    level: float,
    negatives: str | None = None,
    offset: int = 0,
    **config: Any,
) -> Path:
    """``offset`` is what commands/study.sh's @N adds to the seed of the arm's directory."""
    level += 0.001 * seed
    write_arm(root / "made", name, Shape(0.21, level, strategy=strategy, seed=seed + offset))
    arm = root / f"seed-{seed}" / name
    arm.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / "made" / "arms" / name, arm)
    values_Q = quality(name, seed, level)
    rows = [f"q{query}\t{value + 0.05:.17g}\t{value:.17g}" for query, value in enumerate(values_Q)]
    (arm / "eval" / "dev.per_query.tsv").write_text("\n".join(["query_id\tndcg@10\tmrr@10", *rows]) + "\n")
    for place in ("checkpoints", "ann_data"):
        stored = {"role": place, "science": {**SCIENCE, "seed": seed + offset, "strategy": strategy, **config}}
        (arm / place / "RUN.json").write_text(dump_with_checksum(stored))
    numbers = negatives or ",".join(str(sum(name.encode()) * 100 + i) for i in range(20))
    lines = [f"{query}\t7\t{numbers}\t{numbers}\t{numbers}\n" for query in range(30)]
    for refresh in (0, 4):
        (arm / "ann_data" / f"ann_training_data_{refresh}").write_text("".join(lines))
    logged = {"rank_1-5_triples": 10, "rank_1-5_loss": 0.5, "rank_1-5_gradient": 2.0, "rank_1-5_satisfied": 0.25}
    more = {"rank_1-5_triples": 30, "rank_1-5_loss": 0.1, "rank_1-5_gradient": 1.0, "rank_1-5_satisfied": 0.75}
    late = {"rank_6-20_triples": 5, "rank_6-20_loss": 0.3, "rank_6-20_gradient": 3.0, "rank_6-20_satisfied": 0.5}
    steps = [{"step": 10, **logged}, {"step": 20, "dev_ndcg": 0.2}, {"step": 30, **more, **late}]
    (arm / "checkpoints" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    return arm


def write_study(root: Path, arms: dict[str, tuple[str, float]] = ARMS, seeds: tuple[int, ...] = (1, 2, 3)) -> Path:
    for name, (strategy, level) in arms.items():
        for seed in seeds:
            write_arm_of_study(root, name, seed, strategy, level, offset=1000 * (name == "again"))
    return root


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 2000)


def test_the_summary_is_what_was_put_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"run_dir": write_study(tmp_path / "study"), "output": tmp_path / "out"}
    with pytest.MonkeyPatch.context() as patch:
        argv = ["report", *(w for k, v in words.items() for w in (f"--{k}", str(v))), "--seeds", "1", "2", "3"]
        patch.setattr("sys.argv", [*argv, "--arms", *ARMS])
        report.main()
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["seeds"] == [1, 2, 3] and list(found["arms"]) == list(ARMS)
    for name, (_, level) in ARMS.items():
        expected = [level + 0.001 * seed for seed in (1, 2, 3)]
        assert found["arms"][name]["mrr@10"] == pytest.approx(expected)
        assert found["arms"][name]["ndcg@10"] == pytest.approx([value + 0.05 for value in expected])
    assert len(found["tests"]) == 2 * 3
    by_pair = {(test["a"], test["b"]): test for test in found["tests"] if test["metric"] == "mrr@10"}
    for (a, b), test in by_pair.items():
        assert test["difference"] == pytest.approx(ARMS[a][1] - ARMS[b][1], abs=1e-9)
        assert test["p"] <= test["p_holm"] <= 1
    assert by_pair["top", "again"]["p_holm"] > 0.05
    assert by_pair["top", "bottom"]["p_holm"] < 0.01 and by_pair["again", "bottom"]["p_holm"] < 0.01
    assert found["command"].startswith(
        'bash commands/study.sh --seeds "1 2 3" --arms "top=top again=top@1000 bottom=bottom"'
    )
    text = (tmp_path / "out" / "report.md").read_text()
    *table, empty, told, where = capsys.readouterr().out.splitlines()
    finals = {line.split()[0]: line.split()[1:] for line in table[1:]}
    for name, (strategy, level) in ARMS.items():
        assert finals[name][:2] == [strategy, f"{level + 0.002:.4f}"] and finals[name][5] == f"{level + 0.052:.4f}"
    best = " and ".join(sorted(("top", "again"), key=lambda name: -ARMS[name][1]))
    assert told == f"By MRR@10, {best} are better than bottom; 1 of 3 pairs cannot be told apart." and not empty
    assert where.startswith(f"wrote {tmp_path / 'out' / 'report.html'}, ")
    assert "top better than bottom" in text and "again better than" in text
    assert text.count("top - again (A/A)") == 3 and "Warning" not in text
    assert "- top is better than bottom (by 0.0800" in text and "Cannot be told apart: top - again (A/A)." in text
    for picture in ("study.png", "ranks.png"):
        assert colours(tmp_path / "out" / picture) > 20 and f"({picture})" in text
    assert not (tmp_path / "out" / "sweep.png").exists()


def test_what_ranks_did_is_a_mean_over_triples(tmp_path: Path) -> None:
    arm = write_arm_of_study(tmp_path, "top", 1, "top", 0.3)
    assert by_rank_of(read_logged(arm / "checkpoints" / "metrics.jsonl")) == {
        "1-5": pytest.approx({"triples": 40, "loss": 0.2, "gradient": 1.25, "satisfied": 0.625}),
        "6-20": {"triples": 5, "loss": 0.3, "gradient": 3.0, "satisfied": 0.5},
    }


def places(root: Path, seeds: list[int]) -> dict[int, Path]:
    return {seed: root / f"seed-{seed}" for seed in seeds}


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


def test_many_arms_can_still_be_told_apart(tmp_path: Path) -> None:
    arms = {f"a{number}": (f"top:{number + 1}", 0.3) for number in range(15)}
    root = write_study(tmp_path, {**arms, "worse": ("bottom", 0.1)}, (1,))
    found = study.compare(read_study(places(root, [1]), [*arms, "worse"]), np.random.default_rng(0))
    assert max(test.p_holm for test in found if test.b == "worse") < study.ALPHA


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


def test_runs_of_several_seeds_are_compared_as_a_study_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write_study(tmp_path / "made", {"top": ("top", 0.30), "bottom": ("bottom", 0.22)}, (1, 2, 3))
    runs = []
    for seed in (1, 2, 3):
        runs.append(write_run(tmp_path / f"run{seed}", {}))
        shutil.move(made / f"seed-{seed}", runs[-1] / "arms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", *map(str, runs), "--output", str(tmp_path / "all")])
        report.main()
    found = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert found["seeds"] == [1, 2, 3] and found["arms"]["top"]["mrr@10"] == pytest.approx([0.301, 0.302, 0.303])
    (test,) = [test for test in found["tests"] if test["metric"] == "mrr@10"]
    assert (test["a"], test["b"]) == ("top", "bottom") and test["p_holm"] < 0.01
    text = (tmp_path / "all" / "report.md").read_text()
    assert "- top is better than bottom" in text and "no A/A arm" in text and "## run2" in text
    assert [*json.loads((tmp_path / "all" / "report.json").read_text())["runs"]] == ["run1", "run2", "run3"]
    # One that was trained otherwise: told why, and the rest of the report is there all the same.
    stored = runs[1] / "arms" / "top" / "checkpoints" / "RUN.json"
    config = {**SCIENCE, "seed": 2, "strategy": "top", "learning_rate": 5.0}
    stored.write_text(dump_with_checksum({"role": "checkpoints", "science": config}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", *map(str, runs), "--output", str(tmp_path / "all")])
        report.main()
    text = (tmp_path / "all" / "report.md").read_text()
    assert "**Warning:** The arms are not compared over the runs: " in text and "learning_rate of the trainer" in text
    assert "over the seeds" not in text and not (tmp_path / "all" / "summary.json").exists()
    # A file that is gone: named, without the machine's path.
    stored.write_text(dump_with_checksum({"role": "checkpoints", "science": {**SCIENCE, "seed": 2, "strategy": "top"}}))
    (runs[1] / "arms" / "top" / "ann_data" / "ann_training_data_0").unlink()
    found_study, reason = report.study_of_runs([read_run(run, run.name) for run in runs])
    assert found_study is None and reason.startswith("run2/arms/top/ann_data/ann_training_data_0: No such file")


@pytest.mark.parametrize(("seeds", "message"), [((4, 4), "seeds are 4, 4"), ((1, 2), "no arm is finished in all")])
def test_runs_that_are_no_study_say_why(tmp_path: Path, seeds: tuple[int, int], message: str) -> None:
    runs = []
    for number, seed in enumerate(seeds):
        name = "top" if message.startswith("seeds") or number else "bottom"
        runs.append(write_run(tmp_path / str(number), {name: Shape(0.2, 0.3, seed=seed)}))
    found, reason = report.study_of_runs([read_run(run, run.name) for run in runs])
    assert found is None and message in reason


def test_what_is_within_the_noise_is_not_called_better(tmp_path: Path) -> None:
    """Two arms of one strategy that lie far apart, in one seed this way and in the other that way."""
    for seed, shift in ((1, 0.05), (2, -0.05)):
        write_arm_of_study(tmp_path, "top", seed, "top", 0.30)
        write_arm_of_study(tmp_path, "again", seed, "top", 0.30 + shift, offset=1000)
        write_arm_of_study(tmp_path, "bottom", seed, "bottom", 0.26)
        write_arm_of_study(tmp_path, "corpus", seed, "corpus", 0.10)
    found = read_study(places(tmp_path, [1, 2]), ["top", "again", "bottom", "corpus"])
    tests = study.compare(found, np.random.default_rng(0))
    noise = study.noise_of(found, "mrr@10")
    assert noise == pytest.approx(0.05)
    by_pair = {(test.a, test.b): test for test in tests if test.metric == "mrr@10"}
    near, far = by_pair["top", "bottom"], by_pair["top", "corpus"]
    assert near.p_holm < 0.01 and study.verdict(found, near) == study.WITHIN_NOISE
    assert study.verdict(found, far) == "top better than corpus"
    text = "\n".join(study.conclusions(found, tests))
    assert "top - bottom" in text and "Within 2 times the A/A noise" in text and "top is better than corpus" in text
    assert f"({noise:.4f} in MRR@10, " in study.how_tested(found, tests)
    told = study.sentence(found, tests)
    expected = (
        r"By MRR@10, (top, again|again, top) and bottom are better than corpus; 3 of 6 pairs cannot be told apart\."
    )
    assert re.fullmatch(expected, told), told


def test_one_seed_says_nothing_of_strategies(tmp_path: Path) -> None:
    root = write_study(tmp_path, {"top": ("top", 0.3), "bottom": ("bottom", 0.2)}, (1,))
    found = read_study(places(root, [1]), ["top", "bottom"])
    tests = study.compare(found, np.random.default_rng(0))
    assert "one seed" in study.conclusions(found, tests)[-1]
    assert study.sentence(found, tests) == (
        "By MRR@10, top is better than bottom (one seed: this is said of these models, not of their strategies)."
    )


def test_a_sweep_without_attribution_is_drawn_all_the_same(tmp_path: Path) -> None:
    arms = {f"r{first}": (f"ranks:{first}-{first + 19}", 0.3 - first / 1000) for first in (1, 21, 41)}
    root = write_study(tmp_path, arms, (1,))
    for path in root.glob("seed-1/*/checkpoints/metrics.jsonl"):
        path.unlink()
    figure = sweep_figure(read_study(places(root, [1]), [*arms]))
    assert len(figure.axes) == 1


def test_async_arms_need_not_take_up_as_many_refreshes(tmp_path: Path) -> None:
    for name, refreshes in (("top", 5), ("bottom", 4)):
        arm = write_arm_of_study(tmp_path, name, 1, name, 0.3, refresh_mode="async")
        done = json.loads((arm / "checkpoints" / "DONE.json").read_text())
        taken = [{"refresh": refresh, "made_from_step": 0, "taken_at_step": 0} for refresh in (0, 4)]
        changed = {**done, "refreshes": refreshes, "taken": taken}
        (arm / "checkpoints" / "DONE.json").write_text(
            dump_with_checksum({k: v for k, v in changed.items() if k != "sealed"})
        )
    assert read_study(places(tmp_path, [1]), ["top", "bottom"]).seeds == [1]


def test_windows_of_ranks_make_the_sweep(tmp_path: Path) -> None:
    arms = {f"r{first}": (f"ranks:{first}-{first + 19}", 0.3 - first / 1000) for first in (1, 21, 41)}
    call(report.main, run_dir=write_study(tmp_path / "study", arms, (1,)), output=tmp_path / "out", seeds=1, arms="r1")
    assert not (tmp_path / "out" / "sweep.png").exists()
    with pytest.MonkeyPatch.context() as patch:
        words = ["report", "--run_dir", str(tmp_path / "study"), "--output", str(tmp_path / "out"), "--seeds", "1"]
        patch.setattr("sys.argv", [*words, "--arms", *arms])
        report.main()
    assert colours(tmp_path / "out" / "sweep.png") > 20


def test_one_arm_of_one_seed_has_no_noise_and_no_interval(tmp_path: Path) -> None:
    call(report.main, run_dir=write_study(tmp_path, ARMS, (1,)), output=tmp_path / "out", seeds=1, arms="top")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    found = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=refuse)
    assert found["aa_noise"] == {"mrr@10": None, "ndcg@10": None} and found["tests"] == []
    assert "nan" not in (tmp_path / "out" / "report.md").read_text()
