"""data.sources.dpr: DPR's files read as csv and json read them, and every fault named by file and place."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources import json_list
from data.sources.base import Passage
from data.sources.json_list import read_json_list
from data.sources.msmarco import find_collection
from tests.data.sources.reading import opened, read_all
from tests.real import collection_dir
from utils.errors import UserError

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


def entry(question: str, *positives: object, key: str = "passage_id", **more: object) -> dict[str, Any]:
    contexts = [{"title": "t", "text": "x", key: passage} for passage in positives]
    return {"question": question, "answers": ["a"], "positive_ctxs": contexts, "hard_negative_ctxs": [], **more}


def write_passages(path: Path, rows: list[tuple[str, str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("id", "text", "title"), *rows])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "dpr"
    directory.mkdir()
    write_passages(
        directory / "psgs_w100.tsv", [("1", 'he said "no"\tand left', "A"), ("2", "second", "B, the"), ("3", "x", "")]
    )
    train = [entry("who?", "1", "2", "1"), entry("none?"), entry("which?", 3, key="psg_id")]
    (directory / "biencoder-nq-train.json").write_text(json.dumps(train, indent=1))
    (directory / "nq-dev.json").write_text(json.dumps([entry("when?", "2")]))
    (directory / "nq-test.qas.csv").write_text("what?\t['it', \"that\"]\nwhy?\t[]\n")
    return directory


def test_files_are_read_as_they_stand(files: Path) -> None:
    source = opened(files)
    assert source.record == {"source": "dpr"} and list(source.split_files) == ["train", "dev", "test"]
    assert list(source.passages()) == [
        Passage("1", 'he said "no"\tand left', "A"),
        Passage("2", "second", "B, the"),
        Passage("3", "x", ""),
    ]
    assert list(source.queries("train")) == [("0", "who?"), ("1", "none?"), ("2", "which?")]
    assert list(source.qrels("train")) == [("0", "1", 1), ("0", "2", 1), ("2", "3", 1)]
    assert list(source.qrels("dev")) == [("0", "2", 1)]
    assert list(source.queries("test")) == [("0", "what?"), ("1", "why?")] and list(source.qrels("test")) == []
    assert source.split_files["test"].qrels is None
    remarks = source.remarks()
    assert [remark.partition(": ")[2] for remark in remarks] == [
        "1 entries of train have no positive_ctxs",
        "the questions of test have answers, no passages: none is judged",
    ]


def test_gzipped_files_and_both_spellings_read_the_same(files: Path) -> None:
    expected = [str(line).replace(".gz", "") for line in read_all(opened(files))]
    names = {"biencoder-nq-train.json": "nq-train.json", "nq-dev.json": "biencoder-nq-dev.json",
             "nq-test.qas.csv": "nq-test.csv", "psgs_w100.tsv": "psgs.tsv"}  # fmt: skip
    for old, new in names.items():
        (files / f"{new}.gz").write_bytes(gzip.compress((files / old).read_bytes()))
        (files / old).unlink()
    found = str([str(line).replace(".gz", "") for line in read_all(opened(files))])
    for old, new in names.items():
        found = found.replace(new, old)
    assert found == str(expected)


def test_the_json_of_a_split_counts_where_there_is_a_csv_too(files: Path) -> None:
    (files / "nq-train.qas.csv").write_text("another?\t['it']\n")
    assert next(iter(opened(files).queries("train"))) == ("0", "who?")


FAULTS = {
    "header": ("psgs_w100.tsv", "1\tx\ty\n", "psgs_w100.tsv, line 1: .*, expected the header"),
    "columns": ("psgs_w100.tsv", "id\ttext\ttitle\n1\tx\n", "line 2: 2 tab-separated columns, expected 3"),
    "quotes": ("psgs_w100.tsv", 'id\ttext\ttitle\n1\t"x\ty\n', "psgs_w100.tsv, line 2: its quotes are wrong"),
    "an id twice": (
        "psgs_w100.tsv",
        "id\ttext\ttitle\n1\tx\ty\n1\tx\ty\n",
        "line 3: the id '1' was on an earlier line",
    ),
    "answers": ("nq-test.qas.csv", "what?\t['it']\nwho?\t__import__('os')\n", "nq-test.qas.csv, line 2: the answers"),
    "answers of numbers": ("nq-test.qas.csv", "what?\t[1]\n", "nq-test.qas.csv, line 1: the answers are"),
    "no list": ("nq-dev.json", '{"question": "x"}\n', "nq-dev.json begins with .*, expected a JSON list"),
    "no object": ("nq-dev.json", "[7]", "nq-dev.json, entry 1: expected an object with a 'question'"),
    "no question": ("nq-dev.json", json.dumps([entry("a", "1"), {"positive_ctxs": []}]), "entry 2: expected an object"),
    "no id": ("nq-dev.json", json.dumps([entry("a", "1", key="id")]), "entry 1: one of its positive_ctxs has no pass"),
    "cut off": ("nq-dev.json", json.dumps([entry("a", "1"), entry("b", "2")])[:-9], "nq-dev.json, entry 2: no JSON"),
    "no end": ("nq-dev.json", json.dumps([entry("a", "1")])[:-1], "nq-dev.json, after entry 1: the end of the file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(files: Path, fault: str) -> None:
    name, content, message = FAULTS[fault]
    (files / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_all(opened(files))
    assert "\n" not in str(caught.value) and str(files) in str(caught.value)


def test_questions_of_two_sets_are_refused(files: Path) -> None:
    (files / "trivia-dev.json").write_text("[]")
    with pytest.raises(UserError, match="holds questions of nq, trivia, expected those of one set"):
        opened(files)
    for path in files.glob("*-*"):
        path.unlink()
    with pytest.raises(UserError, match="has no questions, expected those of one set"):
        opened(files)


@given(elements=st.lists(values, max_size=6), indent=st.sampled_from([None, 0, 3]), read_bytes=st.integers(1, 40))
def test_a_list_is_read_element_by_element_as_json_reads_it(
    tmp_path_factory: pytest.TempPathFactory, elements: list[object], indent: int | None, read_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("list") / "list.json"
    path.write_text(json.dumps(elements, indent=indent, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "READ_BYTES", read_bytes)
        try:
            expected = json.loads(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            with pytest.raises(UserError, match="is not valid UTF-8"):
                list(read_json_list(path))
        else:
            assert list(read_json_list(path)) == expected


def test_squad_as_dpr_has_it_is_squad_as_ms_marco_has_it() -> None:
    """The same paragraphs in both layouts; the first dev questions with the same paragraph."""
    dpr, raw = opened(collection_dir("squad") / "dpr"), find_collection(collection_dir("squad") / "raw", 1)
    texts = [passage.text for passage in raw.passages()]
    found = [passage.text for passage in dpr.passages()]
    assert len(found) == 20_958 and sorted(found) == sorted(texts)
    assert set(dpr.split_files) == {"train", "dev"} and sum(1 for _ in dpr.queries("train")) == 5_000
    positive = {query: passage for query, passage, _ in raw.qrels("dev")}
    text_of = {passage.passage_id: passage.text for passage in raw.passages()}
    expected = {(question, text_of[positive[query]]) for query, question in raw.queries("dev") if query in positive}
    psgs = {passage.passage_id: passage.text for passage in dpr.passages()}
    questions = dict(dpr.queries("dev"))
    assert {(questions[query].strip(), psgs[passage]) for query, passage, _ in dpr.qrels("dev")} <= {
        (question.strip(), text) for question, text in expected
    }
