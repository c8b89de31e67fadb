"""data.sources.beir: BEIR folders read as json reads them, and every fault named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources.base import Passage, SourceRequest
from data.sources.registry import open_source
from tests.data.sources.reading import opened, read_all
from tests.real import collection_dir
from utils.errors import UserError

ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), min_size=1).filter(str.strip)
texts = st.text(st.characters(exclude_categories=["Cs"]))


def write_lines(path: Path, records: list[dict[str, Any]], ascii_only: bool = True) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=ascii_only) + "\n" for r in records), encoding="utf-8")


def write_folder(directory: Path) -> Path:
    """Three passages, four queries, of which one is judged in no split, and two splits."""
    (directory / "qrels").mkdir(parents=True)
    write_lines(
        directory / "corpus.jsonl",
        [
            {"_id": "d1", "title": "One", "text": "first\ntext", "metadata": {}},
            {"_id": "d2", "title": "", "text": "second"},
            {"_id": "d3", "text": ""},
        ],
    )
    write_lines(directory / "queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}"} for n in range(4)])
    header = "query-id\tcorpus-id\tscore\n"
    (directory / "qrels" / "train.tsv").write_text(f"{header}q0\td1\t1\n")
    (directory / "qrels" / "test.tsv").write_text(f"{header}q2\td2\t2\nq1\td3\t0\n")
    return directory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder")


def test_a_folder_is_read_as_it_stands(folder: Path) -> None:
    source = opened(folder)
    assert source.record == {"source": "beir"} and list(source.split_files) == ["train", "test"]
    assert list(source.passages()) == [
        Passage("d1", "first\ntext", "One"),
        Passage("d2", "second", ""),
        Passage("d3", "", None),
    ]
    assert list(source.queries("test")) == [("q1", "query 1"), ("q2", "query 2")]
    assert list(source.qrels("test")) == [("q2", "d2", 2), ("q1", "d3", 0)]
    assert list(source.queries("train")) == [("q0", "query 0")]
    (remark,) = source.remarks()
    assert remark.endswith("queries.jsonl: 1 queries (as 'q3') are judged in no split, and not read")


def test_gzipped_files_read_the_same_and_a_plain_one_counts(folder: Path, tmp_path: Path) -> None:
    expected = read_all(opened(folder))
    for path in (*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    (folder / "corpus.jsonl.gz").write_bytes(b"not looked at")
    assert read_all(opened(folder)) == expected
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress((folder / "corpus.jsonl").read_bytes()))
    for path in (*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")):
        path.unlink()
    assert [str(line).replace(".jsonl.gz", ".jsonl") for line in read_all(opened(folder))] == [*map(str, expected)]


@given(
    passages=st.dictionaries(ids, st.tuples(texts, st.one_of(st.none(), texts)), min_size=1, max_size=5),
    ascii_only=st.booleans(),
    with_end=st.booleans(),
)
def test_what_json_writes_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    passages: dict[str, tuple[str, str | None]],
    ascii_only: bool,
    with_end: bool,
) -> None:
    folder = write_folder(tmp_path_factory.mktemp("folder") / "f")
    records = [
        {"_id": passage_id, "text": text} | ({} if title is None else {"title": title})
        for passage_id, (text, title) in passages.items()
    ]
    write_lines(folder / "corpus.jsonl", records, ascii_only)
    if not with_end:
        (folder / "corpus.jsonl").write_bytes((folder / "corpus.jsonl").read_bytes()[:-1])
    assert list(opened(folder).passages()) == [Passage(key, *value) for key, value in passages.items()]


FAULTS = {
    "no JSON": ("corpus.jsonl", '{"_id": "d9", "text"\n', "corpus.jsonl, line 4: .* is no JSON"),
    "an empty line": ("corpus.jsonl", "\n", "corpus.jsonl, line 4: '' is no JSON"),
    "a list": ("corpus.jsonl", "[]\n", "corpus.jsonl, line 4: .* is no JSON object"),
    "no _id": (
        "corpus.jsonl",
        '{"id": "d9", "text": "x"}\n',
        "line 4: the object has no '_id'",
    ),
    "an _id of another type": (
        "corpus.jsonl",
        '{"_id": null, "text": "x"}\n',
        "line 4: '_id' is null",
    ),
    "no text": (
        "corpus.jsonl",
        '{"_id": "d9", "title": "x"}\n',
        "line 4: the object has no 'text'",
    ),
    "a title that is none": (
        "corpus.jsonl",
        '{"_id": "d9", "title": 7, "text": "x"}\n',
        "line 4: 'title' is 7,",
    ),
    "half a character": ("corpus.jsonl", '{"_id": "d9", "text": "\\ud800"}\n', "line 4: .* is no JSON .*surrogates"),
    "a number too long": (
        "corpus.jsonl",
        f'{{"_id": {"9" * 5000}, "text": "x"}}\n',
        "corpus.jsonl, line 4: .* no JSON",
    ),
    "an id twice": ("corpus.jsonl", '{"_id": "d2", "text": "x"}\n', "line 4: the id 'd2' was on an earlier line"),
    "an id with a tab": ("corpus.jsonl", '{"_id": "d\\t9", "text": "x"}\n', "line 4: the id .* holds a tab"),
    "an id with a line end": ("corpus.jsonl", '{"_id": "d\\n9", "text": "x"}\n', "line 4: the id .* a line end"),
    "an empty id": ("queries.jsonl", '{"_id": " ", "text": "x"}\n', "queries.jsonl, line 5: the id is empty"),
    "a query of two texts": ("queries.jsonl", '{"_id": "q1", "text": "x"}\n', "queries.jsonl, line 5: the id 'q1'"),
    "columns": ("qrels/test.tsv", "q2\t0\td1\t1\n", "test.tsv, line 4: 4 tab-separated columns, expected 3"),
    "blanks": ("qrels/test.tsv", "q2 d1 1\n", "test.tsv, line 4: 1 tab-separated columns, expected 3"),
    "a grade": ("qrels/test.tsv", "q2\td1\t1.0\n", "test.tsv, line 4: the relevance is '1.0'"),
    "a contradiction": ("qrels/test.tsv", "q2\td2\t1\n", "test.tsv, line 4: .* were judged differently"),
    "cut off": ("qrels/test.tsv", "q2\td1\t1", "test.tsv, line 4: the last line has no line end"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_file_and_line(folder: Path, fault: str) -> None:
    name, line, message = FAULTS[fault]
    with (folder / name).open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=message) as caught:
        read_all(opened(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_query_that_is_repeated_word_for_word_is_read_once(folder: Path) -> None:
    with (folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q1", "text": "query 1"}\n')
    source = opened(folder)
    assert list(source.queries("test")) == [("q1", "query 1"), ("q2", "query 2")]
    assert "1 lines repeat a query of an earlier line" in source.remarks()[1]


@pytest.mark.parametrize("first", ["q2\td2\t2", "query-id\tcorpus-id", "qid\tpid\tgrade", "query-id corpus-id score"])
def test_qrels_with_another_header_are_refused(folder: Path, first: str) -> None:
    (folder / "qrels" / "test.tsv").write_text(f"{first}\nq1\td1\t1\n")
    with pytest.raises(UserError, match=r"test.tsv, line 1: .*, expected BEIR's header 'query-id\\tcorpus-id\\tscore'"):
        read_all(opened(folder))


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels"])
def test_what_is_missing_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.rename(folder / "elsewhere")
    with pytest.raises(UserError, match=f"{name}.*expected|has no {name}"):
        open_source(SourceRequest(folder, "beir"))


def test_integers_are_ids(folder: Path) -> None:
    write_lines(folder / "corpus.jsonl", [{"_id": 7, "text": "x"}])
    assert [passage.passage_id for passage in opened(folder).passages()] == ["7"]


@pytest.mark.parametrize(
    ("name", "passages", "splits"),
    [
        ("scifact", 5183, {"train": 809, "test": 300}),
        ("nfcorpus", 3633, {"train": 2590, "dev": 324, "test": 323}),
    ],
)
def test_real_folders(name: str, passages: int, splits: dict[str, int]) -> None:
    source = opened(collection_dir(name))
    assert sum(1 for _ in source.passages()) == passages
    assert {split: sum(1 for _ in source.queries(split)) for split in source.split_files} == splits
