"""run_fuse: the page's commands from two runs to a row of the report, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.tokens.collection import Preprocessed, open_preprocessed
from results.page.run import table
from results.read.run import read_run
from tests import REPO
from tests.forked import run
from tests.results.test_report import Shape, write_run
from tests.test_readme import commands_of
from utils.exchange.evaluations import read_metrics

PAGE = REPO / "docs" / "evaluation.md"
Lists = dict[str, dict[str, float]]


def write_lists(path: Path, collection: Preprocessed, seed: int) -> Lists:
    """Scores of 40 passages of every dev query, no two of them equal, a relevant one among the first ones."""
    passage_ids, judged = collection.passages.original_ids(), collection.qrels("dev").as_dict()
    rng, lists = np.random.default_rng(seed), {}
    for number, query in enumerate(collection.queries("dev").original_ids()):
        scores = np.sort(rng.normal(10 * seed, 3, 40).astype(np.float32))[::-1].tolist()
        order = rng.permutation(len(passage_ids)).tolist()
        order.insert(int(rng.integers(12)), next(iter(judged[number])))
        lists[query] = dict(zip([passage_ids[place] for place in dict.fromkeys(order)], scores, strict=False))
    lines = [
        f"{query} Q0 {passage} {rank} {score:.9g} t\n"
        for query, found in lists.items()
        for rank, (passage, score) in enumerate(found.items(), 1)
    ]
    path.write_text("".join(lines))
    return lists


def test_the_commands_of_the_page_make_a_row_of_the_report(tmp_path: Path, tiny_preprocessed: Path) -> None:
    """Of a run directory in quickstart's place; the row has the reciprocal ranks of a loop over the two runs."""
    quickstart = write_run(tmp_path / "quickstart", {"top": Shape(0.2, 0.25)})
    shutil.rmtree(quickstart / "preprocessed")
    shutil.copytree(tiny_preprocessed, quickstart / "preprocessed")
    collection = open_preprocessed(quickstart / "preprocessed", 1, 1)
    sparse = write_lists(quickstart / "bm25" / "dev.trec", collection, 1)
    dense = write_lists(quickstart / "arms" / "top" / "eval" / "dev.trec", collection, 2)
    section = [command for command in commands_of(PAGE) if "bm25_top" in command]
    assert [command.split()[2] for command in section] == ["drivers.run_fuse", "drivers.run_eval"]
    for command in section:
        program, *flags = shlex.split(command.replace("results/runs/quickstart", str(quickstart)))[2:]
        said = run(program, *flags)
    assert "lists for 20 of 20 queries" in said and "ranks are not" not in said
    reciprocals = []
    for query, judged in collection.qrels("dev").as_dict().items():
        name = collection.queries("dev").original_ids()[query]
        lowest = min(sparse[name].values()), min(dense[name].values())
        scores = {
            passage: sparse[name].get(passage, lowest[0]) + 1.1 * dense[name].get(passage, lowest[1])
            for passage in {*sparse[name], *dense[name]}
        }
        ranked = sorted(scores, key=lambda passage: (scores[passage], passage.encode()), reverse=True)[:10]
        relevant = {collection.passages.original_ids()[passage] for passage, grade in judged.items() if grade > 0}
        reciprocals.append(next((1 / rank for rank, passage in enumerate(ranked, 1) if passage in relevant), 0.0))
    found = read_metrics(quickstart / "runs" / "bm25_top" / "metrics.json")["metrics"]["mrr@10"]
    assert found == pytest.approx(np.mean(reciprocals)) and 0.05 < found < 0.9
    row = re.search(r"^\| run bm25_top .*$", re.sub(" +", " ", table(read_run(quickstart, "quickstart"))), re.M)
    assert row is not None and f"| {found:.4f} |" in row[0]


def test_lists_are_cut_and_queries_of_one_run_are_said(tmp_path: Path) -> None:
    (tmp_path / "one.trec").write_text("q1 Q0 a 1 3 t\nq1 Q0 b 2 2 t\nq3 Q0 x 1 1 t\nq3 Q0 y 2 2 t\n")
    (tmp_path / "two.trec").write_text("q1 Q0 c 1 0.75 t\nq1 Q0 a 2 0.5 t\n")
    flags = ("--run", tmp_path / "one.trec", tmp_path / "two.trec", "--output", tmp_path / "new" / "out.trec")
    dry = run("drivers.run_fuse", *flags, "--dry_run")
    assert json.loads(dry)["weight"] == 1.1 and not (tmp_path / "new").exists()
    said = run("drivers.run_fuse", *flags, "--topk", "1", "--weight", "0")
    assert "one.trec: 4 passages of 2 queries; in 1 lists the ranks are not the order of the scores" in said
    assert f"warning: {tmp_path}/one.trec alone has 1 of the queries; their lists keep its order" in said
    assert (tmp_path / "new" / "out.trec").read_text() == "q1 Q0 a 1 3 fusion\nq3 Q0 y 1 2 fusion\n"
    assert [path.name for path in (tmp_path / "new").iterdir() if not path.name.startswith(".")] == ["out.trec"]


GOOD = "q1 Q0 a 1 3 t\nq1 Q0 b 2 2 t\n"
REFUSED = {
    "ranks alone": ("q1\ta\t1\n", (), "bad.trec has 3 columns (query passage rank), so no scores to add"),
    "other columns": ("q1 Q0 a 1 3 t\nq1 Q0 b 2 2\n", (), "bad.trec, line 2: 5 columns, expected 6 as the first line"),
    "four columns": ("q1 Q0 a 1\n", (), "bad.trec, line 1: 4 columns, expected 6 or 3"),
    "no number": ("q1 Q0 a 1 nan t\n", (), "bad.trec, line 1: the score is 'nan', expected a number"),
    "a query twice": (
        f"{GOOD}q2 Q0 a 1 3 t\n{GOOD}",
        (),
        "bad.trec, line 4: its passage was on an earlier line of the",
    ),
    "other queries": ("q7 Q0 a 1 3 t\n", (), "have no query in common (one has 'q1', the other 'q7')"),
    "nothing": ("", (), "bad.trec is empty"),
    "a negative weight": (GOOD, ("--weight", "-1"), "--weight is -1.0, expected a finite number, at least 0"),
    "no weight": (GOOD, ("--weight", "nan"), "--weight is nan, expected a finite number, at least 0"),
    "a word": (GOOD, ("--weight", "much"), "argument --weight: invalid float value: 'much'"),
    "packed": (GOOD, ("--output", "out.trec.gz"), "--output is out.trec.gz, expected a name without .gz"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    content, flags, told = REFUSED[case]
    good, bad, output = tmp_path / "good.trec", tmp_path / "bad.trec", tmp_path / "out.trec"
    good.write_text(GOOD)
    bad.write_text(content)
    said = run("drivers.run_fuse", "--run", good, bad, "--output", output, *flags, code=2)
    (error,) = [line for line in said.splitlines() if "error: " in line]
    assert told in error and error.startswith("run_fuse: error: ")
    assert {path.name for path in tmp_path.iterdir()} == {"good.trec", "bad.trec"}


def test_two_runs_and_a_new_file(tmp_path: Path) -> None:
    good = tmp_path / "good.trec"
    good.write_text(GOOD)
    for runs, output, told in (
        ((good,), tmp_path / "out.trec", "--run has 1 of them, expected two runs"),
        ((good, good, good), tmp_path / "out.trec", "--run has 3 of them, expected two runs"),
        ((good, tmp_path / "none"), tmp_path / "out.trec", "none is missing, expected a run"),
        ((good, good), good, "good.trec exists; remove it or choose another --output"),
    ):
        said = run("drivers.run_fuse", "--run", *runs, "--output", output, code=2)
        assert said.count("\n") == 1 and told in said
    assert good.read_text() == GOOD and [path.name for path in tmp_path.iterdir()] == ["good.trec"]
