"""results.report on run directories put together here: every number reported is compared with the one put in."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from results.page.markdown import align, markdown_of
from results.page.run import best_mrr, blocks_of, gain, report_of, sentence, short_table, table, table_over_runs
from results.plots import curves as plots
from results.plots.curves import arm_styles, dev_curve, moving_average, published_fits
from results.read.evaluation import read_evaluation
from results.read.published import read_published
from results.read.run import Run, read_run
from results.read_log import TrainingPoint
from results.report import main, write_runs
from tests import REPO
from tests.exchanging import lease_of
from utils.errors import UserError
from utils.exchange.atomic import SEAL, dump_with_checksum, publish_file, write_json, write_text
from utils.exchange.layout import JobLayout
from utils.exchange.markers import mark_done, mark_failed

WARMUP_STEP = 800


def metrics(level: float) -> dict[str, float]:
    """All that a metrics.json has, each value its own function of ``level``."""
    return {
        "ndcg@10": level + 0.05,
        "mrr@10": level,
        "map@10": level - 0.01,
        "recall@20": level + 0.2,
        "recall@100": level + 0.3,
        "recall@1000": level + 0.5,
        "hole_rate@10": 0.9,
    }


def reported(level: float) -> dict[str, float]:
    return {name: metrics(level)[name] for name in ("ndcg@10", "mrr@10", "map@10", "recall@100")}


def write_evaluation(path: Path, level: float, model: str, step: int | None, split: str = "") -> None:
    """``split`` "": of an earlier version, which listed no files."""
    record = {"metrics": metrics(level), "queries": 1000, "model": model, "step": step, "seconds": 1.5}
    listed = {"files": {f"{split}.by_rank.json": {}, f"{split}.trec": {}, f"{split}.rerank.trec": {}}} if split else {}
    write_json(path, {**record, **listed})


@dataclass(frozen=True)
class Shape:
    """How an arm is made: dev MRR@10 goes from ``start`` to ``final`` over ``refreshes`` equal windows of training."""

    start: float
    final: float
    steps: int = 500
    refreshes: int = 5
    strategy: str = ""
    loss: float = 0.6
    seed: int = 42
    split: str = ""  # it was measured and evaluated on; "": dev, by an earlier version


def write_arm(run: Path, name: str, shape: Shape) -> None:
    arm = run / "arms" / name
    window = shape.steps // shape.refreshes
    for refresh in range(shape.refreshes):
        mrr = shape.start + (shape.final - shape.start) * (1 - math.exp(-refresh)) if refresh else shape.start
        checkpoint = arm / "checkpoints" / f"checkpoint-{refresh * window}"
        record = {
            "ndcg": mrr + 0.05,
            "mrr": mrr,
            "checkpoint": str(checkpoint if refresh else run / "warmup" / f"checkpoint-{WARMUP_STEP}"),
            "step": refresh * window if refresh else WARMUP_STEP,
            "strategy": shape.strategy or name,
            "seed": shape.seed,
            **({"dev_split": shape.split} if shape.split else {}),
        }
        write_text(JobLayout(arm / "ann_data").record(refresh), dump_with_checksum({**record, "refresh": refresh}))
    noise = np.random.default_rng(len(name))
    lines = [
        {"learning_rate": 3e-4, "loss": shape.loss * (1 + math.exp(-s / 90)) + noise.normal(0, 0.03), "step": s}
        for s in range(10, shape.steps + 1, 10)
    ]
    (arm / "trainer.out").write_text("".join(json.dumps(line) + "\n" for line in lines))
    final = arm / "checkpoints" / f"checkpoint-{shape.steps}"
    write_evaluation(arm / "eval" / "metrics.json", shape.final, str(final), shape.steps, shape.split)
    mark_done(lease_of(arm / "checkpoints"), step=shape.steps, seconds=16.25, refreshes=shape.refreshes)


ARMS = {
    "top": Shape(0.211, 0.250, loss=0.75),
    "top_bottom": Shape(0.211, 0.240, loss=0.55),
    "random": Shape(0.211, 0.236, loss=0.5),
    "bottom": Shape(0.211, 0.226, loss=0.3),
}


def write_run(run: Path, arms: dict[str, Shape] | None = None, passages: int = 20_443) -> Path:
    counts = {"passages": passages, "train-query": 19_443, "dev-query": 1000, "train-qrel": 19_443, "dev-qrel": 1000}
    write_json(run / "preprocessed" / "manifest.json", {"format_version": 1, "counts": counts})
    write_evaluation(run / "bm25" / "metrics.json", 0.363, "bm25", None)
    write_evaluation(run / "warmup" / "eval" / "metrics.json", 0.211, "somewhere else/checkpoint-800", WARMUP_STEP)
    for name, shape in (ARMS if arms is None else arms).items():
        write_arm(run, name, shape)
    return run


def read(run: Path) -> Run:
    return read_run(run, run.name)


def write(run: Path) -> None:
    write_runs([read(run)], None, [], "", run)


def colours(path: Path) -> int:
    """How many different colours a picture has, decoded whole."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(pixels) > 300 * 300
    return len(np.unique(pixels, axis=0))


def has_colour(path: Path, code: str) -> bool:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    wanted = [int(code[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels == wanted).all(axis=1).any())


def test_report_json_is_the_contract(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run one")
    write(run)
    found = json.loads((run / "report.json").read_text())
    assert found == {
        "collection": {"passages": 20_443, "train_queries": 19_443, "dev_queries": 1000},
        "bm25": reported(0.363),
        "warmup": reported(0.211),
        "arms": {
            name: {**reported(shape.final), "steps": 500, "refreshes": 5, "seconds": 16.25, "seen": []}
            for name, shape in ARMS.items()
        },
    }
    assert list(found["arms"]) == ["top", "top_bottom", "random", "bottom"]
    assert not (run / ".staging").exists()


def test_table_and_markdown(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "quick"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(run).splitlines()]
    assert cells[0][1:5] == ["nDCG@10", "MRR@10", "MAP@10", "recall@100"]
    assert cells[2] == ["BM25", "0.4130", "0.3630", "0.3530", "0.6630", "", "", "", "", ""]
    assert cells[3][:3] == ["warmup", "0.2610", "0.2110"]
    assert cells[4] == ["top", "0.3000", "0.2500", "0.2400", "0.5500", "+18.5%", "0.2500", "500", "5", "16.2"]
    text = markdown_of("", blocks_of([run]), [])
    assert "less than the noise between seeds" in text
    assert "20,443 passages, 19,443 train queries, 1,000 dev queries" in text
    assert "negatives `top_bottom`, 500 steps" in text and "seed 42" in text
    assert "`arms/top/checkpoints/checkpoint-500`" in text and "`somewhere else/checkpoint-800`, step 800" in text
    assert "Warning" not in text


def shown(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `python -m results.report RUN` prints."""
    monkeypatch.setattr(sys, "argv", ["report", str(run)])
    main()
    return capsys.readouterr().out.splitlines()


def test_a_terminal_shows_a_small_table_one_sentence_and_where_the_report_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    *table_lines, empty, told, where = shown(run, monkeypatch, capsys)
    assert [line.split() for line in table_lines[1:]] == [
        ["BM25", "0.4130", "0.3630", "0.6630"],
        ["warmup", "0.2610", "0.2110", "0.5110"],
        ["top", "0.3000", "0.2500", "0.5500", "+18.5%"],
        ["top_bottom", "0.2900", "0.2400", "0.5400", "+13.7%"],
        ["random", "0.2860", "0.2360", "0.5360", "+11.8%"],
        ["bottom", "0.2760", "0.2260", "0.5260", "+7.1%"],
    ]
    assert table_lines[0].split() == ["nDCG@10", "MRR@10", "recall@100", "MRR@10", "over", "warmup"]
    heading = table_lines[0]
    for name, column in (("nDCG@10", 1), ("MRR@10", 2), ("recall@100", 3)):  # each number ends where its heading does
        end = heading.index(name) + len(name)
        assert all(line[:end].split()[column] == line.split()[column] for line in table_lines[1:])
    assert empty == "" and told == (
        "The arms end between 0.2260 (bottom) and 0.2500 (top) MRR@10, +7.1% to +18.5% against the warmup that they "
        "start from (BM25: 0.3630); one seed of each does not order arms that lie close, for which commands/study.sh "
        "trains several."
    )
    assert where == f"wrote {run / 'report.html'}, report.md, report.json and the pictures next to it"


@pytest.mark.parametrize(("final", "over"), [(0.25, "+18.5%"), (0.2, "-5.2%")])
def test_of_one_arm_one_sentence_says_how_far_it_came(tmp_path: Path, final: float, over: str) -> None:
    told = sentence(read(write_run(tmp_path / "run", {"top": Shape(0.211, final)})))
    assert told == (
        f"top ends at {final:.4f} MRR@10, {over} against the warmup that it started from (BM25: 0.3630): one model, "
        "trained with one seed."
    )


def test_what_was_not_measured_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(part: str, *names: str) -> None:
        path = run / part / "metrics.json"
        told = json.loads(path.read_text())
        write_json(path, {**told, "metrics": {k: v for k, v in told["metrics"].items() if k not in names}})

    run = write_run(tmp_path / "run", {"top": Shape(0.211, 0.25), "bottom": Shape(0.211, 0.24)})
    without("bm25", "recall@100", "mrr@10")
    without("arms/top/eval", "mrr@10")
    lines = shown(run, monkeypatch, capsys)
    assert lines[1].split() == ["BM25", "0.4130", "n/a", "n/a"]
    assert lines[3].split() == ["top", "0.3000", "n/a", "0.5500", "n/a"]
    assert lines[6].startswith(
        "bottom ends at 0.2400 MRR@10, +13.7% against the warmup that it started from: one model"
    )
    without("warmup/eval", "mrr@10")
    assert sentence(read(run)).startswith("What training did to MRR@10 is not known")


def test_a_report_names_the_split_that_was_measured(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"top": Shape(0.211, 0.250, split="heldout")})
    counts = {"passages": 300, "train-query": 60, "test-query": 20, "heldout-query": 30, "train-qrel": 70}
    write_json(run / "preprocessed" / "manifest.json", {"counts": counts})
    write_evaluation(run / "bm25" / "metrics.json", 0.363, "bm25", None, "test")
    write(run)
    counted = {"passages": 300, "train_queries": 60, "test_queries": 20, "heldout_queries": 30}
    assert json.loads((run / "report.json").read_text())["collection"] == counted
    text = (run / "report.md").read_text()
    assert "300 passages, 60 train queries, 20 test queries, 30 heldout queries" in text
    assert "means over all heldout queries" in text and "Heldout metrics of the checkpoint" in text
    assert "dev " not in text.partition("What the fork published")[0]
    assert "Not all evaluations are of the split heldout (bm25 test): evaluate again." in text
    titles = [axes.get_title(loc="left") for axes in plots.dev_figure([read(run)]).axes]
    assert [title.split()[0] for title in titles] == ["Heldout", "Heldout"]


def test_an_arm_is_reported_on_the_split_that_training_was_measured_on(tmp_path: Path) -> None:
    arms = {"top": Shape(0.211, 0.250, split="heldout"), "bottom": Shape(0.211, 0.226, split="test")}
    run = write_run(tmp_path / "run", arms)
    with pytest.raises(UserError, match=r"measured on different splits \(top heldout, bottom test\), expected one"):
        read(run)
    write_evaluation(run / "arms" / "bottom" / "eval" / "metrics.json", 0.226, "m", 500, "heldout")
    told = "eval/metrics.json is of the split heldout, training was measured on test: evaluate again with --split test"
    assert read(run).unfinished == {"bottom": told}


def test_the_best_checkpoint_is_told_where_it_is_not_the_last(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", {"top": Shape(0.30, 0.25, steps=300, refreshes=3)}))
    assert best_mrr(run.arms[0]) == "0.3000 at 0"


def test_pictures_show_every_arm(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write(run)
    text = (run / "report.md").read_text()
    assert "![dev](dev.png)" in text and "![loss](loss.png)" in text
    assert sorted(path.name for path in run.glob("*.png")) == ["dev.png", "fork.png", "loss.png"]
    for name in ("dev.png", "loss.png"):
        assert colours(run / name) > 50
        assert all(has_colour(run / name, colour) for colour, _ in arm_styles(list(ARMS)).values()), name


def test_dev_curve_is_against_the_true_step(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", {"top": Shape(0.211, 0.250)}))
    steps, values = dev_curve(run, run.arms[0], "mrr@10")
    assert steps == [0, 100, 200, 300, 400, 500]
    assert (values[0], values[-1]) == (0.211, 0.250)
    assert values[1] == pytest.approx(0.211 + 0.039 * (1 - math.exp(-1)))
    assert dev_curve(run, run.arms[0], "ndcg@10")[1][-1] == pytest.approx(0.300)
    assert [(p.refresh, p.step) for p in run.arms[0].dev] == [(0, 0), (1, 100), (2, 200), (3, 300), (4, 400)]


def test_drawn_lines_hold_the_run_s_numbers(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run"))
    for axes, metric in zip(plots.dev_figure([run]).axes, ("mrr@10", "ndcg@10"), strict=True):
        drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        for arm in run.arms:
            assert dev_curve(run, arm, metric) in drawn
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert [text.split()[1] for text in texts] == ["top", "top_bottom", "random", "bottom", "warmup"]
        assert texts[0].startswith("0.250" if metric == "mrr@10" else "0.300")


def test_metrics_jsonl_comes_before_the_out_and_later_lines_win(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"top": Shape(0.211, 0.250)})
    lines: list[dict[str, Any]] = [
        {"step": 0, "dev_ndcg": 0.2, "time": 1.0},
        {"step": 100, "learning_rate": 0.1, "loss": 0.9, "time": 2.0},
        {"step": 200, "learning_rate": 0.1, "loss": 0.8, "time": 3.0},
        {"step": 100, "learning_rate": 0.1, "loss": 0.7, "time": 4.0},
    ]
    path = run / "arms/top/checkpoints/metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read(run).arms[0].training == (TrainingPoint(100, 0.1, 0.7), TrainingPoint(200, 0.1, 0.8))
    path.unlink()
    assert len(read(run).arms[0].training) == 50


def test_unfinished_arms_are_named_and_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "arms/top_bottom/checkpoints/DONE.json").unlink()
    (run / "arms/random/eval/metrics.json").unlink()
    (run / "arms/bottom/checkpoints/DONE.json").unlink()
    mark_failed(lease_of(run / "arms/bottom/ann_data", "generator"), "RuntimeError: no memory")
    result = read(run)
    assert [arm.name for arm in result.arms] == ["top"]
    assert list(report_of(result)["arms"]) == ["top"]
    text = markdown_of("", blocks_of([result]), [])
    assert "The arm top_bottom is not finished and omitted: no DONE.json" in text
    assert "The arm random is not finished and omitted: no eval/metrics.json" in text
    assert "The arm bottom is not finished and omitted: the generator failed (RuntimeError: no memory)" in text


def test_an_evaluation_of_an_older_checkpoint_is_not_the_arm_s(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation(run / "arms/top/eval/metrics.json", 0.22, "checkpoint-100", 100)
    assert "is of step 100, the trainer ended at 500" in read(run).unfinished["top"]


def test_an_evaluation_of_another_arm_s_model_is_not_the_arm_s(tmp_path: Path) -> None:
    """Which the step does not tell: it is the same in both."""
    run = write_run(tmp_path / "run")
    written = run / "arms/top/eval/metrics.json"
    for model in ("/moved/arms/top/checkpoints/checkpoint-500", "/scratch/checkpoint-500"):
        write_evaluation(written, 0.22, model, 500)
        assert "top" not in read(run).unfinished
    write_evaluation(written, 0.22, "/moved/arms/random/checkpoints/checkpoint-500", 500)
    assert "is of a model of the arm random" in read(run).unfinished["top"]


def test_unfair_comparisons_are_said(tmp_path: Path) -> None:
    arms = {"top": Shape(0.2, 0.25), "random": Shape(0.2, 0.25, strategy="top", steps=400, refreshes=4)}
    warnings = " ".join(read(write_run(tmp_path / "run", arms)).warnings)
    assert "The arm random was run with --negative_strategy top" in warnings
    assert "different numbers of steps (top 500, random 400)" in warnings
    assert "different numbers of refreshes (top 5, random 4)" in warnings
    assert read(write_run(tmp_path / "fair")).warnings == ()


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("preprocessed/manifest.json", r"manifest\.json is missing: run data\.msmarco_data"),
        ("bm25/metrics.json", r"bm25/metrics\.json is missing: run commands/quickstart\.sh"),
        ("warmup/eval/metrics.json", r"warmup/eval/metrics\.json is missing: run commands/quickstart\.sh"),
        ("arms/top/checkpoints/DONE.json", r"no finished arm, expected at least one \(top: no DONE\.json"),
        ("arms", "no arm in it, expected top/"),
        (".", "is not a directory, expected a run directory"),
    ],
)
def test_missing_pieces_end_in_one_line(tmp_path: Path, remove: str, message: str) -> None:
    run = write_run(tmp_path / "run", {"top": Shape(0.2, 0.25)})
    path = run / remove
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=message):
        read(run)


def sealed_with_nan(value: dict[str, Any]) -> str:
    """As an earlier version wrote it; now a file has null there."""
    text = json.dumps(value, indent=1) + "\n"
    return json.dumps({**value, SEAL: hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bm25/metrics.json", '{"metrics": {"mrr@10": null}}', r"mrr@10 is None, expected a number"),
        ("bm25/metrics.json", "[1]", r"holds a JSON list, expected an object.* run commands/quickstart\.sh"),
        ("bm25/metrics.json", "{", r"is not JSON.* run commands/quickstart\.sh"),
        ("bm25/metrics.json", "", r"is not JSON.* run commands/quickstart\.sh"),
        ("arms/top/eval/metrics.json", "[1]", "holds a JSON list.* run drivers.run_eval on the arm's last checkpoint"),
        ("bm25/metrics.json", '{"metrics": {}, "sealed": "0"}', r"sha256 differs .* run commands/quickstart\.sh"),
        ("preprocessed/manifest.json", "{", r"is not JSON.* run data\.msmarco_data"),
        ("bm25/metrics.json", "{}", "no metrics in it"),
        ("preprocessed/manifest.json", '{"counts": {}}', "counts passages is None"),
        ("preprocessed/manifest.json", "{}", "no counts in it"),
        ("arms/top/checkpoints/DONE.json", dump_with_checksum({"step": 500}), "refreshes is None"),
        ("arms/top/checkpoints/DONE.json", '{"step": 500}', "no DONE.json in checkpoints/"),
        ("arms/top/ann_data/ann_ndcg_1", sealed_with_nan({"ndcg": math.nan, "step": 1, "refresh": 1}), "ndcg is nan"),
    ],
)
def test_damaged_pieces_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = write_run(tmp_path / "run", {"top": Shape(0.2, 0.25)})
    (run / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read(run)


def test_an_evaluation_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes, names = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: names.append(path.name) or read_bytes(path))
    path = tmp_path / "metrics.json"
    for text in (json.dumps({"metrics": {"mrr@10": 0.5}}), dump_with_checksum({"metrics": {"mrr@10": 0.5}})):
        path.write_text(text)
        names.clear()
        assert read_evaluation(path, "").metrics == {"mrr@10": 0.5}
        assert names == ["metrics.json"]


def test_an_arm_without_logged_losses_still_has_its_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"top": Shape(0.2, 0.25)})
    write(run)
    assert (run / "loss.png").exists()
    (run / "arms/top/trainer.out").write_text('{"learning_rate": 1e-4, "loss": NaN, "step": 10}\n')
    write(run)
    assert not (run / "loss.png").exists()  # the earlier report's picture went with it
    assert "loss.png" not in (run / "report.md").read_text()


def remove_metrics(path: Path, *names: str) -> None:
    value = json.loads(path.read_text())
    value["metrics"] = {name: number for name, number in value["metrics"].items() if name not in names}
    write_json(path, value)


def test_metrics_of_short_lists_are_missing_and_said(tmp_path: Path) -> None:
    """Evaluated with --topk 20, or 5: every table, picture and report.json has the rest."""
    run = write_run(tmp_path / "run")
    remove_metrics(run / "bm25" / "metrics.json", "recall@100", "recall@1000")
    remove_metrics(run / "warmup" / "eval" / "metrics.json", *metrics(0))
    remove_metrics(run / "arms" / "top" / "eval" / "metrics.json", *metrics(0))
    write(run)
    found = json.loads((run / "report.json").read_text())
    assert found["bm25"] == {name: value for name, value in reported(0.363).items() if name != "recall@100"}
    assert found["warmup"] == {} and found["arms"]["top"].keys() == {"steps", "refreshes", "seconds", "seen"}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(read(run)).splitlines()]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["BM25"][:4] == ["0.4130", "0.3630", "0.3530", "n/a"]
    assert by_name["warmup"][:4] == ["n/a"] * 4
    assert by_name["top"][:5] == ["n/a"] * 5 and by_name["top"][5].endswith(" at 400")
    assert by_name["random"][4] == "n/a", "there is no gain over what was not measured"
    told = " ".join(read(run).warnings)
    assert "The lists of bm25 were too short for recall@100: " in told
    assert "The lists of top were too short for nDCG@10, MRR@10, MAP@10, recall@100: " in told
    both = [read_run(run, "a"), read_run(write_run(tmp_path / "other"), "b")]
    across = {line.split("|")[1].strip(): line for line in table_over_runs(both).splitlines()}
    assert across["top"].count("n/a") == 4 and "n/a" not in across["random"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    path.write_text("old")

    def fail(staged: Path) -> None:
        staged.write_text("half")
        raise OSError(28, "No space left on device", str(staged))

    with pytest.raises(OSError):
        publish_file(path, fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.md"] and path.read_text() == "old"


def test_published_curves_appear_beside_a_collection_of_ms_marco_s_size(tmp_path: Path) -> None:
    arms = {"top": Shape(0.55, 0.60, steps=20_000, refreshes=20)}
    run = write_run(tmp_path / "run", arms, passages=884_182)
    write(run)
    assert colours(run / "dev_by_refresh.png") > 50
    assert has_colour(run / "dev_by_refresh.png", plots.GREY) and has_colour(run / "loss.png", plots.GREY)
    assert not published_fits([read(write_run(tmp_path / "small"))])


def test_read_published_against_the_file() -> None:
    curves = read_published("fork_dev_ndcg.csv", "refresh", "ndcg_at_10")
    assert set(curves) == {"top", "top_bottom", "bottom", "random_as_run"}
    assert curves["top"][0] == (1, 0.598103) and len(curves["top"]) == 136


def test_moving_average_against_numpy() -> None:
    values = list(np.random.default_rng(0).normal(size=40))
    found = moving_average(values, 5)
    assert found[2:-2] == pytest.approx(np.convolve(values, np.ones(5) / 5, mode="valid"))
    assert (found[0], found[-1]) == (pytest.approx(np.mean(values[:3])), pytest.approx(np.mean(values[-3:])))
    assert found[1] == pytest.approx(np.mean(values[:4]))
    assert moving_average(values, 1) == pytest.approx(values)


def test_small_pieces() -> None:
    assert (gain(0.25, 0.2), gain(0.1, 0.2), gain(0.1, 0.0)) == ("+25.0%", "-50.0%", "n/a")
    assert align([["", "a"], ["name", "1.5"]]).splitlines() == ["|      |   a |", "| ---- | --: |", "| name | 1.5 |"]
    styles = arm_styles(["top", "top-seed2", "_odd$"])
    assert len(set(styles.values())) == 3


def run_report(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "results.report", *words]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120, check=False)


def test_program_over_one_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"top": Shape(0.2, 0.25), "_odd$x$": Shape(0.2, 0.22), "bottom": Shape(0.2, 0.2)})
    (run / "arms/bottom/checkpoints/DONE.json").unlink()
    done = run_report("--run_dir", str(run))
    assert done.returncode == 0, done.stderr
    assert short_table(read(run)) in done.stdout and "one seed of each does not order arms" in done.stdout
    assert done.stderr.count("\n") == 1 and "warning: run: The arm bottom is not finished" in done.stderr
    assert {"report.json", "report.md", "report.html", "dev.png", "loss.png"} <= {path.name for path in run.iterdir()}


def test_program_over_two_runs(tmp_path: Path) -> None:
    first = write_run(tmp_path / "seed1", {"top": Shape(0.2, 0.250), "bottom": Shape(0.2, 0.22)})
    second = write_run(tmp_path / "seed2", {"top": Shape(0.2, 0.260)})
    done = run_report(str(first), str(second), "--output", str(tmp_path / "both"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "both/report.json").read_text())
    assert found["runs"]["seed2"] == report_of(read(second)) and list(found["runs"]) == ["seed1", "seed2"]
    rows = [line.replace(" ", "") for line in done.stdout.splitlines()]
    assert "|top|2|0.3050±0.0071|0.2550±0.0071|0.2450±0.0071|0.5550±0.0071|" in rows
    assert "|bottom|1|0.2700|0.2200|0.2100|0.5200|" in rows
    assert not (first / "report.json").exists()


def test_runs_on_different_collections_are_said(tmp_path: Path) -> None:
    arms = {"top": Shape(0.2, 0.25)}
    runs = [read(write_run(tmp_path / name, arms, passages)) for name, passages in (("a", 100), ("b", 200))]
    assert "The runs are on different collections (a: 100 passages" in "".join(blocks_of(runs))
    assert "different collections" not in "".join(blocks_of([runs[0], runs[0]]))


def test_dry_run_reads_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", {"top": Shape(0.2, 0.25)})
    monkeypatch.setattr(sys, "argv", ["report", str(run), "--dry_run"])
    main()
    assert json.loads(capsys.readouterr().out)["output"] == str(run)
    assert not (run / "report.json").exists()


def test_a_run_named_twice_and_several_without_output_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(write_run(tmp_path / "run", {"top": Shape(0.2, 0.25)}))
    monkeypatch.setattr(sys, "argv", ["report", run, run])
    with pytest.raises(UserError, match="2 run directories and no --output"):
        main()
    monkeypatch.setattr(sys, "argv", ["report", run, run, "--output", str(tmp_path / "both")])
    with pytest.raises(UserError, match="named twice"):
        main()


def test_runs_that_were_given_are_rows(tmp_path: Path) -> None:
    """Of several splits the one that the arms are measured on; what cannot be compared is said."""
    run = write_run(tmp_path / "run", {name: replace(shape, split="test") for name, shape in ARMS.items()})
    of_splits = {"dev": {"metrics": metrics(0.1), "queries": 7}, "test": {"metrics": metrics(0.33), "queries": 1000}}
    record = {"metrics": metrics(0.1), "queries": 7, "model": "/elsewhere/splade.trec", "step": None, "split": "dev"}
    write_json(run / "runs" / "splade" / "metrics.json", {**record, "splits": of_splits, "relevance_level": 2})
    found = read(run)
    assert found.given["splade"].metrics == reported(0.33) and found.given["splade"].split == "test"
    rows = [line.split()[0] for line in short_table(found).splitlines()[1:]]
    assert rows[:3] == ["BM25", "run", "warmup"]
    assert "| run splade | 0.3800 | 0.3300 |" in re.sub(" +", " ", table(found))
    assert report_of(found)["given"] == {"splade": reported(0.33)}
    warning = next(line for line in found.warnings if "call the same grades relevant" in line)
    assert "run splade 2" in warning and "top 1" in warning
    assert not any("different numbers of test queries" in line for line in found.warnings)
    text = "\n".join(blocks_of([found]))
    assert "- run splade: `elsewhere/splade.trec`" in text
    assert "given" not in report_of(read(write_run(tmp_path / "without")))


@pytest.mark.parametrize(("name", "place"), [("bm25", "bm25"), ("warmup", "warmup/eval"), ("top", "arms/top/eval")])
def test_a_given_run_may_have_the_name_of_another_row(tmp_path: Path, name: str, place: str) -> None:
    """Both rows are there, and what cannot be compared is said of the other one."""
    run = write_run(tmp_path / "run", ARMS)
    write_json(run / "runs" / name / "metrics.json", {"metrics": metrics(0.3), "queries": 1000, "model": "x.trec"})
    path = run / place / "metrics.json"
    write_json(path, {**json.loads(path.read_text()), "queries": 7})
    found = read(run)
    warning = next(line for line in found.warnings if "different numbers of" in line)
    assert f"{name} 7" in warning and f"run {name} 1000" in warning
    assert f"| run {name} |" in re.sub(" +", " ", table(found))


def test_documents_have_a_column_of_theirs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"top": ARMS["top"]})
    assert "MRR@100" not in table(read(run))
    path = run / "arms" / "top" / "eval" / "metrics.json"
    record = json.loads(path.read_text())
    write_json(path, {**record, "metrics": {**record["metrics"], "mrr@100": 0.4321}})
    heading, _, bm25, _, top = table(read(run)).splitlines()
    column = [cell.strip() for cell in heading.split("|")].index("MRR@100")
    assert [line.split("|")[column].strip() for line in (bm25, top)] == ["n/a", "0.4321"]
