"""utils.trec: TREC runs written and read, MS MARCO's top1000 files, and their faults."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.trec import read_candidates, write_run

PASSAGE_IDS = [f"D{7 * offset + 3}" for offset in range(30)]
QUERY_IDS = ["q9", "1048585", "ü"]
LISTS = st.lists(st.lists(st.integers(0, 29), unique=True, max_size=12), min_size=3, max_size=3)


def padded(lists: list[list[int]], fill: float, dtype: type) -> np.ndarray:
    array = np.full((len(lists), max(map(len, lists))), fill, dtype)
    for row, values in enumerate(lists):
        array[row, : len(values)] = values
    return array


def scores_of(lists: list[list[int]]) -> np.ndarray:
    """Descending, and not short in decimal."""
    return padded([[10 / (place + 3) for place in range(len(values))] for values in lists], -np.inf, np.float32)


@settings(max_examples=60, deadline=None)
@given(lists=LISTS)
def test_round_trip(lists: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("run") / "new" / "dev.trec"
    passages_QK, scores_QK = padded(lists, -1, np.int64), scores_of(lists)
    write_run(path, QUERY_IDS, PASSAGE_IDS, passages_QK, scores_QK, "tag")
    assert [entry.name for entry in path.parent.iterdir()] == ["dev.trec"]
    if any(lists):
        assert np.array_equal(read_candidates(path, QUERY_IDS, PASSAGE_IDS), passages_QK)
    else:
        with pytest.raises(UserError, match="is empty"):
            read_candidates(path, QUERY_IDS, PASSAGE_IDS)
    with path.open(encoding="utf-8") as file:
        run = pytrec_eval.parse_run(file)
    expected = {
        query: {PASSAGE_IDS[p]: float(f"{score:.9g}") for p, score in zip(values, scores, strict=False)}
        for query, values, scores in zip(QUERY_IDS, lists, scores_QK, strict=True)
        if values
    }
    assert run == expected
    for query, values, scores in zip(QUERY_IDS, lists, scores_QK, strict=True):
        for passage, score in zip(values, scores, strict=False):
            assert np.float32(run[query][PASSAGE_IDS[passage]]) == score, "float32 scores survive"


def test_the_lines_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "dev.trec"
    passages_QK, scores_QK = np.array([[4, 0], [2, -1]]), np.array([[1.5, -0.25], [1e-7, -np.inf]], np.float32)
    write_run(path, ["a", "b"], ["x", "y", "z", "v", "w"], passages_QK, scores_QK, "ance")
    assert path.read_text() == "a Q0 w 1 1.5 ance\na Q0 x 2 -0.25 ance\nb Q0 z 1 1.00000001e-07 ance\n"


def test_a_run_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "dev.trec"
    path.write_text("earlier\n")
    with pytest.raises(IndexError):
        write_run(path, ["a"], ["x"], np.array([[0, 5]]), np.ones((1, 2), np.float32), "ance")
    with pytest.raises(ValueError, match="zip"):
        write_run(path, ["a", "b"], ["x"], np.array([[0]]), np.ones((1, 1), np.float32), "ance")
    assert [entry.name for entry in tmp_path.iterdir()] == ["dev.trec"]
    assert path.read_text() == "earlier\n"


TOP1000 = (
    "1048585\tD10\twhat is a query\tA passage, with  blanks and ünicode.\n"
    "other\tD9999\tnot a query of ours\tits passage may be unknown\n"
    "q9\tD3\twho\tthird\n"
    "1048585\tD3\twhat is a query\tanother\n"
    "1048585\tD10\twhat is a query\tonce more\n"
)
EXPECTED = np.array([[0, -1], [1, 0], [-1, -1]])  # rows in the order of the queries, columns in that of the file


@pytest.mark.parametrize("is_gzipped", [False, True])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_top1000(tmp_path: Path, is_gzipped: bool, start: str, ending: str) -> None:
    """Under its plain name all the same: gzip is known by its first bytes."""
    content = (start + TOP1000).replace("\n", ending).encode()
    path = tmp_path / "top1000.dev"
    path.write_bytes(gzip.compress(content) if is_gzipped else content)
    found = read_candidates(path, QUERY_IDS, PASSAGE_IDS)
    assert found.dtype == np.int64
    assert found.tolist() == EXPECTED.tolist()


@pytest.mark.parametrize("separator", [" ", "\t", "  "])
def test_a_run_with_tabs_or_blanks(tmp_path: Path, separator: str) -> None:
    rows = [("q9", "Q0", "D10", "1", "2.5", "t"), ("q9", "Q0", "D3", "2", "2.4", "t")]
    path = tmp_path / "dev.trec"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    assert read_candidates(path, QUERY_IDS, PASSAGE_IDS).tolist() == [[1, 0], [-1, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"q9 Q0 D10 1 2.5 t\nq9 Q0 D3 2 2.4\n", ":2: 5 columns, expected a TREC run's 6 or top1000's 4"),
        (b"q9\tD10\twho\n", ":1: 3 columns"),
        (b"q9 Q0 D10 1 2.5 t\n\n", ":2: 0 columns"),
        (b"q9 Q0 D11 1 2.5 t\n", ":1: passage D11 is not in the collection"),
        (b"q9 Q0 D3 1 2.5 t\nother Q0 D9 1 2 t\nq9 Q0 D12 2 2 t\nq9 Q0 D11 3 1 t\n", ":3: passage D12 is not"),
        (b"q9 Q0 D10 1 2.5 t\nother \xff\n", ", line 2: byte 7 is not valid UTF-8"),
        (b"q9 Q0 D10 1 2.5 t\nq9 Q0 D3 2 2.5 t", ", line 2: the last line has no line end"),
        (b"other Q0 D10 1 2.5 t\n", " names none of the 3 queries"),
        (b"", " is empty"),
    ],
)
def test_faults_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "dev.trec"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_candidates(path, QUERY_IDS, PASSAGE_IDS)
    assert str(caught.value).startswith(f"{path}{expected}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["not gzip", "cut", "flipped"])
def test_a_damaged_gzip_file(tmp_path: Path, damage: str) -> None:
    whole = bytearray(gzip.compress(TOP1000.encode() * 100))
    if damage == "not gzip":
        whole = bytearray(TOP1000.encode())
    elif damage == "cut":
        del whole[len(whole) // 2 :]
    else:
        whole[-6] ^= 1  # the checksum
    path = tmp_path / "top1000.dev.gz"
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"is (truncated|damaged)"):
        read_candidates(path, QUERY_IDS, PASSAGE_IDS)


def test_ids_that_hold_a_blank_come_back(tmp_path: Path) -> None:
    queries, passages = ["first query", "q2"], ["a passage", "b", "c"]
    lists_QK = np.array([[2, 0], [1, -1]])
    write_run(tmp_path / "run.trec", queries, passages, lists_QK, np.array([[2.0, 1.0], [3.0, 0.0]]), "tag")
    np.testing.assert_array_equal(read_candidates(tmp_path / "run.trec", queries, passages), lists_QK)


ANY_ID = st.text(
    st.characters(exclude_characters="\t\n", exclude_categories=["Cs"])
    | st.sampled_from(" \u00a0\u2028\u2029\x85\x0b\x0c\x1c\r\u3000"),
    min_size=1,
    max_size=4,
).filter(lambda text: text.strip() and not text.startswith("\ufeff"))


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(ANY_ID, min_size=3, max_size=8, unique=True))
def test_any_id_comes_back(ids: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """An id is any string without tab or line feed: what separates lines or words in Unicode is part of it."""
    path = tmp_path_factory.mktemp("ids") / "run.trec"
    lists_QK = np.array([range(len(ids)), range(len(ids))[::-1]])
    write_run(path, ids[:2], ids, lists_QK, -np.array([range(len(ids))] * 2, np.float32), "tag")
    np.testing.assert_array_equal(read_candidates(path, ids[:2], ids), lists_QK)
