"""data.sources.msmarco: MS MARCO's files read as they come, and every fault named by file and line."""

from __future__ import annotations

import gzip
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources import ids as ids_module
from data.sources.base import Passage, SourceRequest, find_raw, source_files
from data.sources.ids import RepeatedIds
from data.sources.judgements import read_qrels
from data.sources.msmarco import find_collection, read_passages, read_queries
from data.sources.registry import open_source
from data.tokens.tokenizer import encoded_text
from utils import text_files
from utils.errors import UserError
from utils.text_files import check_end, estimate_lines, may_have_had


def written(directory: Path, content: bytes, name: str = "collection.tsv") -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def texts_of(path: Path, data_type: int, max_doc_character: int = 10_000) -> list[tuple[str, str]]:
    return [
        (passage.passage_id, encoded_text(passage, max_doc_character)) for passage in read_passages(path, data_type)
    ]


def passages_of(path: Path) -> list[tuple[str, str]]:
    return texts_of(path, data_type=1)


def test_plain_and_gzipped_files_read_the_same(tmp_path: Path) -> None:
    content = b"7\tone passage\n8\tanother\n"
    expected = [("7", "one passage"), ("8", "another")]
    assert passages_of(written(tmp_path, content)) == expected
    assert passages_of(written(tmp_path, gzip.compress(content), "collection.tsv.gz")) == expected
    assert passages_of(written(tmp_path, gzip.compress(content), "gzipped.tsv")) == expected
    two_members = gzip.compress(content[:8]) + gzip.compress(content[8:])
    assert passages_of(written(tmp_path, two_members, "two.tsv.gz")) == expected


def test_line_ends_and_separators_inside_a_text(tmp_path: Path) -> None:
    content = "\ufeff1\ta\u2028b\x85c \x0b d \r\n2\tzwei\n".encode()
    assert passages_of(written(tmp_path, content)) == [("1", "a\u2028b\x85c \x0b d"), ("2", "zwei")]


def test_text_is_cut_at_max_doc_character(tmp_path: Path) -> None:
    path = written(tmp_path, "1\täöüß and more\n".encode())
    assert texts_of(path, 1, 4) == [("1", "äöüß")]


def test_a_document_is_url_title_and_body(tmp_path: Path) -> None:
    path = written(tmp_path, b"D7\thttp://x \tTitle \tThe body. \nD8\thttp://y\t\tBody\n")
    assert texts_of(path, 0) == [
        ("D7", "http://x Title The body."),
        ("D8", "http://y Body"),
    ]
    assert texts_of(path, 0, 10)[0] == ("D7", "http://x T")
    assert next(read_passages(path, 0)) == Passage("D7", "The body. ", "Title ", "http://x ")


FAULTS = {
    "empty file": (b"", "is empty"),
    "no tab": (b"1\tgood\nbad line\n", "line 2: 1 tab-separated columns, expected 2"),
    "blank line": (b"1\tgood\n\n3\tgood\n", "line 2: 1 tab-separated columns"),
    "id with a tab": (b"1\tgood\na\tb\tgood\n", "line 2: 3 tab-separated columns, expected 2 .*tab"),
    "empty id": (b"1\tgood\n \tgood\n", "line 2: the id is empty"),
    "empty text": (b"1\tgood\n2\t \n", "line 2: the text of '2' is empty"),
    "duplicate id": (b"1\tgood\n2\tgood\n1\tother\n", "line 3: the id '1' was on an earlier line"),
    "invalid UTF-8": (b"1\tgood\n2\tb\xffd\n", "line 2: byte 4 is not valid UTF-8"),
    "cut off": (b"1\tgood\n2\thalf a li", "line 2: the last line has no line end"),
    "truncated gzip": (gzip.compress(b"1\tgood\n" * 99)[:-12], "is truncated"),
    "gzip without its trailer": (gzip.compress(b"1\tgood\n")[:-4], "is truncated"),
    "damaged gzip": (gzip.compress(b"1\tgood\n")[:10] + b"\xff" * 30, "is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_with_file_and_line(tmp_path: Path, fault: str) -> None:
    content, message = FAULTS[fault]
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + message) as caught:
        passages_of(path)
    assert "\n" not in str(caught.value)


def test_bad_checksum_of_gzip_is_damage(tmp_path: Path) -> None:
    zipped = bytearray(gzip.compress(b"1\tgood\n"))
    zipped[-6] ^= 0xFF
    with pytest.raises(UserError, match="is damaged"):
        passages_of(written(tmp_path, bytes(zipped)))


def test_text_file_called_gz_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is damaged"):
        passages_of(written(tmp_path, b"1\tgood\n", "collection.tsv.gz"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        passages_of(tmp_path / "nothing.tsv")
    with pytest.raises(UserError, match="Is a directory"):
        passages_of(tmp_path)


@given(batches=st.lists(st.lists(st.text(max_size=2), max_size=6), max_size=12))
def test_repeated_ids_are_those_a_set_finds(batches: list[list[str]]) -> None:
    repeated, seen = RepeatedIds(), set()
    for batch in batches:
        expected = None
        for index, text_id in enumerate(batch):
            if text_id in seen and expected is None:
                expected = index
            seen.add(text_id)
        assert repeated.first_repeat(batch) == expected
        if expected is not None:
            return
    sizes = [len(run) for run in repeated.runs]
    assert sum(sizes) == len(seen) and all(a > 2 * b for a, b in pairwise(sizes))


@pytest.mark.parametrize("first, second", [(1, 2), (1, 10), (4, 5), (3, 9), (9, 10)])
def test_repeated_id_is_found_across_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    monkeypatch.setattr(ids_module, "IDS_PER_CHECK", 4)
    ids = [f"id{first if line == second else line}" for line in range(1, 12)]
    path = written(tmp_path, "".join(f"{text_id}\ttext\n" for text_id in ids).encode())
    with pytest.raises(UserError, match=f"line {second}: the id 'id{first}'"):
        list(read_queries(path))


def test_queries_keep_ids_that_are_not_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "train-ü 7\twhat is it \n".encode())
    assert list(read_queries(path)) == [("train-ü 7", "what is it ")]


def test_qrels_by_tab_or_blank(tmp_path: Path) -> None:
    path = written(tmp_path, b"q 1\t0\tD7\t1\nq2 0  D8 0\nq2 0 D8 0\n")
    assert list(read_qrels(path)) == [("q 1", "D7", 1), ("q2", "D8", 0), ("q2", "D8", 0)]


def test_grades_of_trec(tmp_path: Path) -> None:
    """-2 is spam in the web tracks, +1 and 01 are integers as well."""
    words = {"-2": -2, "-1": -1, "0": 0, "4": 4, "12": 12, "+1": 1, "01": 1, "1000": 1000, "-1000": -1000}
    path = written(tmp_path, "".join(f"q 0 p{place} {word}\n" for place, word in enumerate(words)).encode())
    assert [grade for _, _, grade in read_qrels(path)] == [*words.values()]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"q1\t0\tp1\t1\nq1\t0\tp1\n", "line 2: 3 columns, expected 4"),
        (b"q1 0 p1 1 extra\n", "line 1: 5 columns, expected 4"),
        (b"q1\t0\t\t1\n", "line 1: an id is empty"),
        (b"q1\t0\tp1\tyes\n", "line 1: the relevance is 'yes'"),
        (b"q1\t0\tp1\t-1000\nq1\t0\tp2\t1001\n", "line 2: the relevance is '1001', expected .* -1000 to 1000"),
        (b"q1\t0\tp1\t-2000000000\n", "line 1: the relevance is '-2000000000'"),
        (b"q1 0 p1 9223372036854775807\n", "line 1: the relevance is '9223372036854775807'"),
        (b"q1 0 p1 9223372036854775808\n", "line 1: the relevance is '9223372036854775808'"),
        (b"q1 0 p1 " + b"9" * 5000 + b"\n", "line 1: the relevance is '9{40}'"),
        ("q1 0 p1 ٣\n".encode(), "line 1: the relevance is '٣'"),
        (b"q1 0 p1 1_0\n", "line 1: the relevance is '1_0'"),
        (b"q1 0 p1 1.0\n", "line 1: the relevance is '1.0'"),
        (b"q1\t0\tp1\t1\nq2\t0\tp1\t1\nq1\t0\tp1\t0\n", "line 3: query 'q1' and passage 'p1' were judged differently"),
        (b"q1\t0\tp1\t1\nq\xc3\t0\tp1\t1\n", "line 2: byte 2 is not valid UTF-8"),
        (b"", "is empty"),
        (b"q1\t0\tp1\t1", "no line end"),
    ],
)
def test_faults_of_qrels(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path, content, "qrels.train.tsv")
    with pytest.raises(UserError, match=f"qrels.train.tsv.*{message}"):
        list(read_qrels(path))


def test_find_raw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no collection.tsv\[.gz\] or other.tsv\[.gz\]"):
        find_raw(tmp_path, "collection.tsv", "other.tsv")
    zipped = written(tmp_path, b"", "other.tsv.gz")
    assert find_raw(tmp_path, "collection.tsv", "other.tsv") == zipped
    plain = written(tmp_path, b"", "other.tsv")
    assert find_raw(tmp_path, "other.tsv") == plain
    with pytest.raises(UserError, match="is not a directory"):
        find_raw(tmp_path / "nowhere", "collection.tsv")


def test_find_collection(tiny_collection: Path) -> None:
    assert len(source_files(find_collection(tiny_collection, 1))) == 5
    with pytest.raises(UserError, match=r"has collection.tsv and no msmarco-docs.tsv; did you mean --data_type 1"):
        find_collection(tiny_collection, 0)
    (tiny_collection / "qrels.dev.small.tsv").write_bytes(b"")
    with pytest.raises(UserError, match=r"qrels.dev.small.tsv is empty"):
        find_collection(tiny_collection, 1)
    (tiny_collection / "qrels.dev.small.tsv").unlink()
    with pytest.raises(UserError, match=r"no qrels.dev.small.tsv\[.gz\]"):
        open_source(SourceRequest(tiny_collection, data_type="1"))


@pytest.mark.parametrize("zipped", [False, True])
def test_estimated_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    content = b"".join(b"%d\tsome words of number %d\n" % (line, line * line) for line in range(20_000))
    path = written(tmp_path, gzip.compress(content, 6) if zipped else content)
    assert estimate_lines(path) == 20_000
    monkeypatch.setattr(text_files, "SAMPLE_BYTES", 100_000)
    assert estimate_lines(path) == pytest.approx(20_000, rel=0.25)


ENDS = {
    b"1\tgood\n": "",
    b"1\tgood\r\n": "",
    b"1\tgood\n" * 5000: "",
    b"1\tgo\n\n2\td\n": "",  # which the reader finds in its turn
    b"1\tgood": "the last line has no line end",
    b"1\tgood\n" * 5000 + b"2\tgoo": "the last line has no line end",
    b"1\tgood\n\n": "the last line is empty",
    b"1\tgood\r\n\r\n": "the last line is empty",
    b"1\tgood\n \t\n": "the last line is empty",
    b"\n": "the last line is empty",
}


@pytest.mark.parametrize("content", ENDS, ids=range(len(ENDS)))
@pytest.mark.parametrize("zipped", [False, True])
def test_the_end_of_a_file_is_seen_before_all_else_is_read(tmp_path: Path, content: bytes, zipped: bool) -> None:
    path = written(tmp_path, gzip.compress(content) if zipped else content, "queries.tsv")
    if not ENDS[content]:
        assert check_end(path)
        return
    with pytest.raises(UserError, match=rf"queries.tsv, line {len(content.splitlines())}: {ENDS[content]}"):
        check_end(path)
    with pytest.raises(UserError):  # the reader finds the same, in the end
        list(read_queries(path))


def test_a_large_gzipped_file_is_not_unpacked_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, gzip.compress(b"1\tgood"))
    monkeypatch.setattr(text_files, "GZIPPED_BYTES", path.stat().st_size - 1)
    assert not check_end(path)
    plain = written(tmp_path, b"1\tgood" * 99, "plain.tsv")
    with pytest.raises(UserError, match="no line end"):
        check_end(plain)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("fault", ["cut off", "an empty line"])
def test_no_file_of_a_collection_is_begun_that_ends_wrongly(tiny_collection: Path, number: int, fault: str) -> None:
    path = source_files(find_collection(tiny_collection, 1))[number]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if fault == "cut off" else whole + b"\n")
    with pytest.raises(UserError, match=f"{path.name}, line [0-9]+: the last line "):
        find_collection(tiny_collection, 1)


def test_a_file_whose_end_was_fixed_is_known_by_its_size(tmp_path: Path) -> None:
    for end in (b"\n", b"\r\n"):
        path = written(tmp_path, b"1\tgood" + end)
        sizes = {size for size in range(20) if may_have_had(path, size)}
        assert sizes == {6, 6 + 2 * len(end)}
    assert not any(may_have_had(written(tmp_path, gzip.compress(b"1\tgood\n")), size) for size in range(99))
