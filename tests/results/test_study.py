"""results.report on studies put together here: the figures put in come out, and what is drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from results import report
from results.plots.study import sweep_figure
from results.read.run import read_run
from results.read.study import read_study
from tests.drivers.test_run_bm25 import call
from tests.results.studies import ARMS, CONFIG, places, write_study
from tests.results.test_report import Shape, colours, write_run
from utils.exchange.atomic import dump_with_checksum

pytestmark = pytest.mark.usefixtures("few_resamples")


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
    config = {**CONFIG, "seed": 2, "strategy": "top", "learning_rate": 5.0}
    stored.write_text(dump_with_checksum({"role": "checkpoints", "science": config}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", *map(str, runs), "--output", str(tmp_path / "all")])
        report.main()
    text = (tmp_path / "all" / "report.md").read_text()
    assert "**Warning:** The arms are not compared over the runs: " in text and "learning_rate of the trainer" in text
    assert "over the seeds" not in text and not (tmp_path / "all" / "summary.json").exists()
    # A file that is gone: named, without the machine's path.
    stored.write_text(dump_with_checksum({"role": "checkpoints", "science": {**CONFIG, "seed": 2, "strategy": "top"}}))
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


def test_a_sweep_without_attribution_is_drawn_all_the_same(tmp_path: Path) -> None:
    arms = {f"r{first}": (f"ranks:{first}-{first + 19}", 0.3 - first / 1000) for first in (1, 21, 41)}
    root = write_study(tmp_path, arms, (1,))
    for path in root.glob("seed-1/*/checkpoints/metrics.jsonl"):
        path.unlink()
    figure = sweep_figure(read_study(places(root, [1]), [*arms]))
    assert len(figure.axes) == 1


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
