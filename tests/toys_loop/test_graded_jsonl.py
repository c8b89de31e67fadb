"""A source with splits of its own and graded judgements goes through the programs, which know nothing of it."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import pytrec_eval

from data import create_subset, wordpiece
from data.sources.msmarco import find_collection
from data.sources.registry import SOURCES, SourceWord
from data.tokens.collection import open_preprocessed
from results.read.study import read_study
from tests.fingerprint import loop
from tests.fingerprint.programs import ProgramFailed
from tests.toys_loop.toy_loop import toy_loop
from utils.errors import exit_code_of

with patch.dict(SOURCES):  # afterwards only our own are registered again
    from tests.toys.graded_jsonl import find, records

MEASURES = {
    "ndcg@10": "ndcg_cut_10", "map@10": "map_cut_10", "recall@20": "recall_20", "recall@100": "recall_100",
}  # fmt: skip


def write_graded(raw: Path, directory: Path) -> None:
    """The tests' collection with titles, its dev queries as test and heldout, and more judgements of grades -1 to 3."""
    directory.mkdir()
    rng = random.Random(5)
    passages = [line.split("\t") for line in (raw / "collection.tsv").read_text().splitlines()]
    with (directory / "passages.jsonl").open("w") as file:
        for passage, text in passages:
            title, _, rest = text.partition(" ")
            file.write(json.dumps({"id": passage, "title": title, "text": rest}) + "\n")
    with (directory / "queries.jsonl").open("w") as file:
        for name in ("train", "dev.small"):
            grades: dict[str, dict[str, int]] = {}
            for line in (raw / f"qrels.{name}.tsv").read_text().splitlines():
                query, _, passage, _ = line.split("\t")
                grades.setdefault(query, {})[passage] = 3
            for place, line in enumerate((raw / f"queries.{name}.tsv").read_text().splitlines()):
                query, text = line.split("\t")
                split = "train" if name == "train" else ("test", "heldout")[place % 2]
                others = {passage: rng.choice((-1, 0, 1, 2)) for passage, _ in rng.sample(passages, 60)}
                judged = {**others, **grades[query]}
                file.write(json.dumps({"split": split, "id": query, "text": text, "grades": judged}) + "\n")


def expected_metrics(queries: Path, split: str, run: Path, at_least: int = 0) -> dict[str, float]:
    """Of the written run, by pytrec_eval; grades as they are, or 1 from ``at_least``."""
    qrels = {
        query["id"]: {p: max(g, 0) if not at_least else int(g >= at_least) for p, g in query["grades"].items()}
        for query in records(queries)
        if query["split"] == split
    }
    scores: dict[str, dict[str, float]] = {}
    for line in run.read_text().splitlines():
        query, _, passage, _, score, _ = line.split()
        scores.setdefault(query, {})[passage] = float(score)
    rows = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map_cut.10", "recall", "recip_rank"}).evaluate(scores)
    means = {ours: sum(row[theirs] for row in rows.values()) / len(qrels) for ours, theirs in MEASURES.items()}
    found = (row["recip_rank"] for row in rows.values())
    return {**means, "mrr@10": sum(value for value in found if value > 0.099) / len(qrels)}


def check_metrics(made: loop.Loop, split: str, directory: str) -> None:
    queries, run = made.path("raw", "queries.jsonl"), made.path(directory, f"{split}.trec")
    metrics = json.loads(made.path(directory, "metrics.json").read_text())["metrics"]
    expected = expected_metrics(queries, split, run)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    binary = expected_metrics(queries, split, run, at_least=1)
    assert abs(binary["ndcg@10"] - metrics["ndcg@10"]) > 0.01, "gains are grades"
    assert {name: value for name, value in binary.items() if name != "ndcg@10"} == pytest.approx(
        {name: value for name, value in expected.items() if name != "ndcg@10"}
    ), "relevant from grade 1"


def write_split(queries: Path, splits: tuple[str, ...]) -> None:
    """The queries of two splits, an even and an odd one of each."""
    rows = [
        {"split": split, "id": f"{split}{n}", "text": f"{split} {n} ", "grades": {f"p{n}": 1 + n}}
        for split in splits
        for n in range(2)
    ]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_passages(directory: Path, **fields: object) -> None:
    rows = ({"id": f"p{n}", "title": None, "text": f"passage {n}  ", **fields} for n in range(20))
    (directory / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A program of data/ in this process, on the toy's collection in ``tmp_path``: its exit code."""
    monkeypatch.setitem(SOURCES, "graded_jsonl", SourceWord("toy", find))
    write_split(tmp_path / "queries.jsonl", ("train", "dev"))
    write_passages(tmp_path)

    def run(module: ModuleType, *flags: object) -> int:
        words = ("--data_dir", tmp_path, "--source", "graded_jsonl", *flags)
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        return exit_code_of(module.__name__, module.main)

    return run


def test_a_subset_of_any_source_is_written_as_ms_marco_s(
    program: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--out_data_dir", tmp_path / "out", "--fraction")
    assert program(create_subset, *flags, 1) == 0
    lines = {path.name: path.read_text().splitlines() for path in (tmp_path / "out").glob("*.tsv")}
    assert lines == {
        "collection.tsv": [f"p{n}\tpassage {n}  " for n in range(20)],
        "queries.train.tsv": ["train0\ttrain 0 ", "train1\ttrain 1 "],
        "queries.dev.small.tsv": ["dev0\tdev 0 ", "dev1\tdev 1 "],
        "qrels.train.tsv": ["train0\t0\tp0\t1", "train1\t0\tp1\t2"],
        "qrels.dev.small.tsv": ["dev0\t0\tp0\t1", "dev1\t0\tp1\t2"],
    }
    shutil.rmtree(tmp_path / "out")
    assert program(create_subset, *flags, 0.5) == 0
    kept = dict(line.split("\t") for line in (tmp_path / "out" / "collection.tsv").read_text().splitlines())
    assert {"p0", "p1"} <= kept.keys() and 2 < len(kept) < 20
    assert find_collection(tmp_path / "out", 1).data_type == 1
    assert json.loads((tmp_path / "out" / "subset.json").read_text())["data_type"] == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"title": "t"}, "'p0' has a title, which MS MARCO's passages have not"),
        ({"text": "a\tb"}, "the text of 'p0' has a tab or a line end, which MS MARCO's format cannot hold"),
        ({"text": "a\nb"}, "the text of 'p0' has a tab or a line end, which MS MARCO's format cannot hold"),
        ({"text": " "}, "'p0' has no id or no text, which MS MARCO's format cannot hold"),
        (
            {},
            "its splits are train, heldout, a subset is written in MS MARCO's format, which has train, dev, trec2019,",
        ),
    ],
)
def test_what_ms_marco_s_format_cannot_hold_is_refused(
    program: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object],
    told: str,
) -> None:
    write_passages(tmp_path, **change)
    if not change:
        write_split(tmp_path / "queries.jsonl", ("train", "heldout"))
    assert program(create_subset, "--out_data_dir", tmp_path / "out", "--fraction", 1) == 2
    error = capsys.readouterr().err
    assert told in error and "take the subset in the collection's own format" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_trained_on_any_source(program: Callable[..., int], tmp_path: Path) -> None:
    write_passages(tmp_path, title="Headings", text="of passages", id="one")
    assert program(wordpiece, "--out_dir", tmp_path / "tokenizer", "--vocab_size", 200) == 0
    vocabulary = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert {"headings", "passages", "train"} <= vocabulary.keys() and "dev" not in vocabulary


@pytest.mark.slow
def test_any_splits_and_grades_go_through_the_loop(
    shared_collection: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "graded"
    write_graded(shared_collection, raw)
    arm = tmp_path / "arms" / "top"
    made = toy_loop("graded_jsonl", tmp_path, raw, tiny_tokenizer, "--source", "graded_jsonl")
    loop.bm25(made)
    loop.static_warmup(made)
    start = made.path("warmup", f"checkpoint-{loop.WARMUP_STEPS}")
    generator = loop.generator(made, arm, "static", start, *loop.lockstep(0), "--dev_split", "heldout")
    trainer = loop.trainer(made, arm, "static", start, *loop.lockstep(0), *loop.batch(1))
    made.programs.run_together({arm / "generator.out": generator, arm / "trainer.out": trainer})
    model = ("--model_name_or_path", arm / "checkpoints" / f"checkpoint-{loop.STEPS}", "--topk", 100)
    evaluate = ("drivers.run_eval", *loop.common(made, "static"), *model)
    loop.evaluate(made, arm, "static", "--split", "heldout")
    warmup = ("--model_name_or_path", start, "--output_dir", made.path("warmup", "eval"), "--split", "heldout")
    made.run("warmup/eval", "drivers.run_eval", *loop.common(made, "static"), *warmup)
    made.run("report", "results.report", tmp_path)
    made.run("status", "results.status", tmp_path)
    for split in ("test", "heldout"):
        made.run(f"{split}/eval", *evaluate, "--split", split, "--output_dir", made.path(split))
    with pytest.raises(ProgramFailed, match="has no split dev, expected one of train, test, heldout"):
        made.run("none/eval", *evaluate, "--split", "dev", "--output_dir", made.path("none"))

    collection = open_preprocessed(tmp_path / "preprocessed", 32, 16)
    assert collection.splits == ("train", "test", "heldout") and collection.manifest["source"] == "graded_jsonl"
    for split in collection.splits:
        passage_ids, query_ids = collection.passages.original_ids(), collection.queries(split).original_ids()
        grades = {
            query_ids[query]: {passage_ids[passage]: grade for passage, grade in judged.items()}
            for query, judged in collection.qrels(split).as_dict().items()
        }
        assert grades == {q["id"]: q["grades"] for q in records(raw / "queries.jsonl") if q["split"] == split}
    check_metrics(made, "test", "bm25")
    for split in ("test", "heldout"):
        check_metrics(made, split, split)
    measured_splits(tmp_path, arm)
    reported_splits(tmp_path, arm)


def measured_splits(directory: Path, arm: Path) -> None:
    """BM25 and the warmup took the first split but train, the generator the one that it was given; they say so."""
    assert "dev measures are of the split test" in (directory / "warmup" / "warmup.out").read_text()
    assert "dev measures are of the split heldout" in (arm / "generator.out").read_text()
    record = json.loads((arm / "ann_data" / "ann_ndcg_0").read_text())
    assert record["dev_split"] == "heldout"
    assert list((arm / "ann_data").glob("embeddings/*/heldout-query.rows.npy"))
    assert not list((arm / "ann_data").glob("embeddings/*/test-query*"))


def reported_splits(directory: Path, arm: Path) -> None:
    """Report, status and study find the split that the arm was measured on, and name it."""
    assert (directory / "status.out").read_text().splitlines()[-1] == "all done (exit code 0)"
    found = json.loads((directory / "report.json").read_text())
    assert found["collection"] == {"passages": 300, "train_queries": 60, "test_queries": 10, "heldout_queries": 10}
    metrics = json.loads((arm / "eval" / "metrics.json").read_text())["metrics"]
    assert {name: found["arms"]["top"][name] for name in ("ndcg@10", "mrr@10")} == {
        name: metrics[name] for name in ("ndcg@10", "mrr@10")
    }
    text = (directory / "report.md").read_text()
    assert "300 passages, 60 train queries, 10 test queries, 10 heldout queries" in text
    assert "passages returned for heldout queries" in text and "The heldout qrels are graded" in text
    assert "Not all evaluations are of the split heldout (bm25 test)" in text
    study = read_study({42: directory / "arms"}, ["top"])
    assert study.split == "heldout" and study.finals("top", "ndcg@10").tolist() == [metrics["ndcg@10"]]
    measured = [point.ndcg for point in study.arms["top"][0].arm.dev]
    records = [json.loads((arm / "ann_data" / f"ann_ndcg_{number}").read_text()) for number in range(len(measured))]
    assert measured == [record["ndcg"] for record in records] and len(measured) == loop.STEPS // loop.WINDOW
