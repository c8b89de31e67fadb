"""run_eval's coverage@k of a small collection in DPR's files: a loop over the run it wrote finds the same ranks."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from data.sources.base import AnsweredSource, SourceRequest
from data.sources.registry import open_source
from model.encoders.static import StaticEncoder
from tests.forked import run
from tests.real import collection_dir, minilm_dir
from tests.utils.ir.test_answers import holds_an_answer
from utils.exchange.evaluations import read_metrics
from utils.ir.answers import prepare_tokens

PASSAGES, LENGTHS = 150, ("--max_seq_length", "32", "--max_query_length", "16")


def write_collection(folder: Path) -> dict[str, list[str]]:
    """DPR's files; the answers of the dev questions. Test questions have answers alone, and dev's own are in JSON."""
    draws, vocabulary = random.Random(5), [f"word{number}" for number in range(90)]
    texts = [" ".join(draws.choices(vocabulary, k=12)) for _ in range(PASSAGES)]
    folder.mkdir()
    with (folder / "psgs_w100.tsv").open("w", newline="") as file:
        rows = [(f"p{row}", text, f"only{row}") for row, text in enumerate(texts)]
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("id", "text", "title"), *rows])
    entries = []
    for number in range(30):
        positive = draws.randrange(PASSAGES)
        words = texts[positive].split()
        # Two words in a row; a title, which is no text; a question without a positive passage; one without an answer.
        answers = [" ".join(words[3:5]).upper(), draws.choice(vocabulary)] if number % 3 else [f"only{positive}"]
        entry = {"question": " ".join(words[:3]), "answers": [] if number == 5 else answers, "positive_ctxs": []}
        entries.append(entry if number == 7 else {**entry, "positive_ctxs": [{"passage_id": f"p{positive}"}]})
    for split in ("train", "dev"):
        (folder / f"biencoder-nq-{split}.json").write_text(json.dumps(entries))
    lines = [f"{entry['question']}\t{entry['answers']!r}\n" for entry in entries[:12]]
    (folder / "nq-test.qas.csv").write_text("".join(lines))
    return {str(place): list(entry["answers"]) for place, entry in enumerate(entries)}


@pytest.fixture(scope="module", name="base")
def fixture_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """raw/, data/ and model/, of random weights."""
    base = tmp_path_factory.mktemp("coverage")
    answers = write_collection(base / "raw")
    (base / "answers.json").write_text(json.dumps(answers))
    model_flags = ("--model_type", "static", "--model_name_or_path", tiny_tokenizer)
    run("data.msmarco_data", "--data_dir", base / "raw", "--out_data_dir", base / "data", *LENGTHS, *model_flags)
    (base / "model").mkdir()
    vocab_size = json.loads((base / "data" / "manifest.json").read_text())["vocab_size"]
    StaticEncoder({"vocab_size": vocab_size, "embedding_size": 8}).save_pretrained(base / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer / name, base / "model" / name)
    return base


def evaluate(base: Path, *flags: str | Path, processes: int = 1, code: int = 0) -> str:
    places = ("--data_dir", base / "data", *LENGTHS, *(() if "--raw_data_dir" in flags else raw_flags(base)))
    return run("drivers.run_eval", *places, *flags, processes=processes, code=code)


def raw_flags(base: Path) -> tuple[str | Path, ...]:
    return ("--raw_data_dir", base / "raw")


def model_flags(base: Path) -> tuple[str | Path, ...]:
    return ("--model_type", "static", "--model_name_or_path", base / "model")


def ranks_by_loop(base: Path, trec: Path, queries: int) -> dict[str, int]:
    """`first_ranks` of the first questions of the small collection."""
    answers = json.loads((base / "answers.json").read_text())
    rows = csv.reader((base / "raw" / "psgs_w100.tsv").open(), delimiter="\t")
    return first_ranks(
        trec, {row[0]: row[1] for row in rows}, {str(query): answers[str(query)] for query in range(queries)}
    )


def first_ranks(trec: Path, text_of: dict[str, str], answers: dict[str, list[str]]) -> dict[str, int]:
    """Of each question the first rank of ``trec``, to 100, whose text holds an answer; 0 where there is none."""
    ranks = dict.fromkeys(answers, 0)
    for line in trec.read_text().splitlines():
        query, _, passage, rank, *_ = line.split(" ")
        if ranks[query] == 0 and int(rank) <= 100 and holds_an_answer(text_of.get(passage, ""), answers[query]):
            ranks[query] = int(rank)
    return ranks


def ranks_written(path: Path) -> dict[str, int]:
    header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert header == ["query_id", "first_answer"]
    return {query: int(rank) for query, rank in rows}


def check(directory: Path, split: str, expected: dict[str, int], cutoffs: tuple[int, ...] = (20, 100)) -> None:
    assert ranks_written(directory / f"{split}.answers.tsv") == expected
    found = read_metrics(directory / "metrics.json")["splits"][split]["coverage"]
    shares = {f"coverage@{k}": sum(0 < rank <= k for rank in expected.values()) / len(expected) for k in cutoffs}
    assert found == {**shares, "questions": len(expected), "answer_match": "string"}


def test_coverage_of_a_model_is_that_of_its_run(base: Path, tmp_path: Path) -> None:
    """Of dev's questions in JSON, with and without positives, and test's in csv, which nobody has judged."""
    said = evaluate(base, *model_flags(base), "--split", "dev", "test", "--output_dir", tmp_path, "--topk", "120")
    for split, questions in (("dev", 30), ("test", 12)):
        expected = ranks_by_loop(base, tmp_path / f"{split}.trec", questions)
        check(tmp_path, split, expected)
        ranks = expected.values()
        assert (
            0 in ranks
            and any(0 < rank <= 20 for rank in ranks)
            and (split == "test" or any(rank > 20 for rank in ranks))
        )
        assert re.search(rf"answers {split}: coverage@20 0\.\d+, coverage@100 0\.\d+ of {questions} questions", said)
    metrics = read_metrics(tmp_path / "metrics.json")
    assert (metrics["splits"]["test"]["metrics"], metrics["splits"]["test"]["queries"]) == ({}, 0)
    assert metrics["coverage"] == metrics["splits"]["dev"]["coverage"], "the first split's are metrics.json's own"
    evaluate(base, *model_flags(base), "--split", "dev", "--output_dir", tmp_path / "two", "--topk", "120", processes=2)
    assert read_metrics(tmp_path / "two" / "metrics.json")["coverage"] == metrics["coverage"]


def test_coverage_of_runs_that_are_given(base: Path, tmp_path: Path) -> None:
    """Two in one call, one with passages that the collection lacks; lists of 30 have no coverage@100."""
    draws, passages = random.Random(9), [f"p{row}" for row in range(PASSAGES)]
    for name, depth, more in (("deep", 130, ["unknown"]), ("short", 30, [])):
        lines = []
        for query in range(0, 30, 2):  # half of the questions have no list
            ranked = draws.sample([*passages, *more], depth)
            lines += [f"{query} Q0 {passage} {rank} {-rank} x\n" for rank, passage in enumerate(ranked, 1)]
        (tmp_path / f"{name}.trec").write_text("".join(lines))
    runs = (tmp_path / "deep.trec", tmp_path / "short.trec")
    said = evaluate(base, "--run", *runs, "--split", "dev", "--output_dir", tmp_path / "out")
    assert "nothing is encoded or searched: --max_seq_length, --max_query_length\n" in said, (
        "no other is without effect"
    )
    check(tmp_path / "out" / "deep", "dev", ranks_by_loop(base, runs[0], 30))
    check(tmp_path / "out" / "short", "dev", ranks_by_loop(base, runs[1], 30), (20,))


def test_lists_that_are_too_short(base: Path, tmp_path: Path) -> None:
    given = tmp_path / "run.tsv"
    given.write_text("0\tp1\t1\n")
    said = evaluate(base, "--run", given, "--split", "dev", "--output_dir", tmp_path / "out")
    assert "answers dev: no metric of 30 questions: the lists are shorter than 20 passages\n" in said


def test_answers_as_patterns(base: Path, tmp_path: Path) -> None:
    raw, given = tmp_path / "raw", tmp_path / "run.tsv"
    shutil.copytree(base / "raw", raw)
    entries = json.loads((raw / "biencoder-nq-dev.json").read_text())
    entries = [{**entry, "answers": ["^WORD1[0-9]? ", "("]} for entry in entries]
    (raw / "biencoder-nq-dev.json").write_text(json.dumps(entries))
    given.write_text("".join(f"0\tp{row}\t{row + 1}\n" for row in range(100)))
    flags = ("--raw_data_dir", raw, "--answer_match", "regex", "--split", "dev", "--output_dir", tmp_path / "out")
    said = evaluate(base, "--run", given, *flags)
    assert (
        "preflight: answers: 60, --answer_match regex; 30 of 60 answers are no pattern, as '(': they are in no" in said
    )
    texts = [row[1] for row in csv.reader((raw / "psgs_w100.tsv").open(), delimiter="\t")][1:]
    first = next(rank for rank, text in enumerate(texts, 1) if re.match("word1[0-9]? ", text))
    expected = {str(query): first if query == 0 else 0 for query in range(30)}
    assert ranks_written(tmp_path / "out" / "run" / "dev.answers.tsv") == expected


def test_without_a_raw_directory_nothing_is_said_of_answers(base: Path, tmp_path: Path) -> None:
    given = tmp_path / "run.tsv"
    given.write_text("0\tp1\t1\n")
    run("drivers.run_eval", "--data_dir", base / "data", "--run", given, "--output_dir", tmp_path / "out")
    assert "coverage" not in read_metrics(tmp_path / "out" / "run" / "metrics.json")
    assert not (tmp_path / "out" / "run" / "dev.answers.tsv").exists()


FAULTS: dict[str, tuple[str, str | None, str | None, str]] = {
    "blank answer": (
        "biencoder-nq-dev.json",
        '"answers": []',
        '"answers": [" "]',
        "entry 6: one of the answers is wit",
    ),
    "blank answer of a csv": ("nq-test.qas.csv", "\t[]\n", "\t['']\n", "nq-test.qas.csv, line 6: one of the answers"),
    "no answers": (
        "biencoder-nq-dev.json",
        '"answers": []',
        '"answer": []',
        "entry 6: expected an object with answers",
    ),
    "code": ("nq-test.qas.csv", "\t[]\n", "\t__import__('os')\n", "nq-test.qas.csv, line 6: the answers are"),
    "fewer questions": ("nq-test.qas.csv", None, "what?\t['x']\n", "has no query 1, .* has: they are different coll"),
    "questions of another set": (
        "nq-test.qas.csv",
        "word",
        "term",
        "has other texts by the ids of the test queries of",
    ),
    "no such split": (
        "nq-test.qas.csv",
        "",
        None,
        "next to queries of train, dev, .* of test: they are different coll",
    ),
    "other passages": ("psgs_w100.tsv", "p149\t", "p1490\t", "has 'p1490', .* has 'p149': they are different coll"),
    "fewer passages": ("psgs_w100.tsv", None, "id\ttext\ttitle\np0\tx\ty\n", "has the end, .* has 'p1'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_before_the_work(base: Path, tmp_path: Path, fault: str) -> None:
    name, old, new, message = FAULTS[fault]
    raw = tmp_path / "raw"
    shutil.copytree(base / "raw", raw)
    text = (raw / name).read_text()
    assert not old or old in text
    if new is None:
        (raw / name).unlink()
    else:
        (raw / name).write_text(new if old is None else text.replace(old, new))
    flags = (*model_flags(base), "--split", "dev", "test", "--output_dir", tmp_path / "out", "--raw_data_dir", raw)
    said = evaluate(base, *flags, "--dry_run", code=2)
    assert re.search(message, said) and len(said.strip().splitlines()) == 1, said


@pytest.mark.parametrize("is_recorded", [True, False])
def test_questions_in_another_order_are_refused(base: Path, tmp_path: Path, is_recorded: bool) -> None:
    """A collection that was made earlier records no texts: the name and size of the file are compared."""
    shutil.copytree(base / "raw", tmp_path / "raw")
    shutil.copytree(base / "data", tmp_path / "data")
    path, manifest_path = tmp_path / "raw" / "biencoder-nq-dev.json", tmp_path / "data" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1], indent=None if is_recorded else 1))
    manifest = json.loads(manifest_path.read_text())
    if not is_recorded:
        del manifest["queries_sha256"]
    manifest_path.write_text(json.dumps(manifest))
    flags = ("--data_dir", tmp_path / "data", "--raw_data_dir", tmp_path / "raw", "--output_dir", tmp_path / "out")
    said = run("drivers.run_eval", *flags, *model_flags(base), *LENGTHS, "--dry_run", code=2)
    expected = "has other texts by the ids of the dev" if is_recorded else "has not the name and size of the file"
    assert expected in said and len(said.strip().splitlines()) == 1, said


def test_a_rule_without_answers_is_refused(base: Path, tmp_path: Path) -> None:
    flags = ("--data_dir", base / "data", *model_flags(base), *LENGTHS, "--output_dir", tmp_path / "out")
    said = run("drivers.run_eval", *flags, "--answer_match", "regex", "--dry_run", code=2)
    assert "--answer_match regex has no effect without answers, expected --raw_data_dir" in said
    assert len(said.strip().splitlines()) == 1, said


def test_a_collection_without_answers_is_refused(
    shared_collection: Path, tiny_preprocessed: Path, base: Path, tmp_path: Path
) -> None:
    flags = ("--data_dir", tiny_preprocessed, "--raw_data_dir", shared_collection, "--output_dir", tmp_path / "out")
    said = run("drivers.run_eval", *flags, *model_flags(base), *LENGTHS, code=2)
    assert "is for the answers to questions, and a collection of source msmarco has none" in said


@pytest.mark.measured
def test_on_squad_the_own_paragraph_holds_the_answer_but_for_one_question() -> None:
    """By a literal reading too. SQuAD marks its answers as characters: "four" is marked inside "fourth"."""
    source = open_source(SourceRequest(collection_dir("squad") / "dpr"))
    assert isinstance(source, AnsweredSource)
    text_of = {passage.passage_id: passage.text for passage in source.passages()}
    passage_ids = list(text_of)
    for split, questions, without in (("dev", 10_570, 1), ("train", 5_000, 6)):
        answers = {entry.query_id: entry.answers for entry in source.answers(split)}
        own = {query: passage for query, passage, _ in source.qrels(split)}
        assert len(answers) == len(own) == questions
        literal = [holds_an_answer(text_of[own[query]], answers[query]) for query in own]
        row_of = {passage_id: row for row, passage_id in enumerate(passage_ids)}
        rows_Q1 = np.array([[row_of[passage]] for passage in own.values()])
        found = prepare_tokens(enumerate(text_of.values())).hits([answers[query] for query in own], rows_Q1)
        assert found[:, 0].tolist() == literal and literal.count(False) == without
        missed = [query for query, holds in zip(own, literal, strict=True) if not holds]
        assert all(any(answer in text_of[own[query]] for answer in answers[query]) for query in missed)


@pytest.mark.measured
def test_on_squad_coverage_of_bm25_is_that_of_a_loop(tmp_path: Path) -> None:
    """All 10,570 dev questions, the first 100 of 20,958 paragraphs."""
    raw, data = collection_dir("squad") / "dpr", tmp_path / "data"
    model_flags = ("--model_type", "hf", "--model_name_or_path", minilm_dir())
    run("data.msmarco_data", "--data_dir", raw, "--out_data_dir", data, *model_flags)
    places = ("--raw_data_dir", raw, "--data_dir", data)
    depths = ("--topk_dev", "100", "--topk_training", "20", "--negative_sample", "1", "--workers", "1")
    run("drivers.run_bm25", *places, "--output_dir", tmp_path / "bm25", *depths)
    trec = tmp_path / "bm25" / "dev.trec"
    run("drivers.run_eval", *places, "--run", trec, "--output_dir", tmp_path / "runs")
    with gzip.open(raw / "psgs.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        text_of = {row[0]: row[1] for row in csv.reader(file, delimiter="\t")}
    with gzip.open(raw / "biencoder-squad-dev.json.gz", "rt", encoding="utf-8") as file:
        answers = {str(place): entry["answers"] for place, entry in enumerate(json.load(file))}
    check(tmp_path / "runs" / "dev", "dev", first_ranks(trec, text_of, answers))
    found = read_metrics(tmp_path / "runs" / "dev" / "metrics.json")["coverage"]
    assert (round(found["coverage@20"], 4), round(found["coverage@100"], 4)) == (0.9505, 0.9798)


@pytest.mark.measured
def test_a_hundred_thousand_questions_with_a_hundred_passages_each_take_at_most_30_seconds() -> None:
    """The answers of SQuAD's questions, with paragraphs at random; some hundreds of them next to a literal reading."""
    source = open_source(SourceRequest(collection_dir("squad") / "dpr"))
    assert isinstance(source, AnsweredSource)
    texts = [passage.text for passage in source.passages()]
    answers_Q = [entry.answers for split in ("train", "dev") for entry in source.answers(split)]
    answers_Q = (answers_Q * 7)[:100_000]
    passages_QK = np.random.default_rng(3).integers(0, len(texts), (100_000, 100))
    passages = prepare_tokens(enumerate(texts))
    began = time.monotonic()
    hits_QK = passages.hits(answers_Q, passages_QK)
    assert time.monotonic() - began <= 30
    for query in range(0, 100_000, 20_000):
        expected = [holds_an_answer(texts[passage], answers_Q[query]) for passage in passages_QK[query]]
        assert hits_QK[query].tolist() == expected
    assert 1e-3 < hits_QK.mean() < 1e-2
