"""utils.ir.trec: TREC runs written and read, MS MARCO's top1000 files, and their faults."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.ir.metrics import evaluate
from utils.ir.trec import read_lists_to_rerank, strictly_descending, write_run

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
        assert np.array_equal(read_lists_to_rerank(path, QUERY_IDS, PASSAGE_IDS), passages_QK)
    else:
        with pytest.raises(UserError, match="is empty"):
            read_lists_to_rerank(path, QUERY_IDS, PASSAGE_IDS)
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
    found = read_lists_to_rerank(path, QUERY_IDS, PASSAGE_IDS)
    assert found.dtype == np.int64
    assert found.tolist() == EXPECTED.tolist()


@pytest.mark.parametrize("separator", [" ", "\t", "  "])
def test_a_run_with_tabs_or_blanks(tmp_path: Path, separator: str) -> None:
    rows = [("q9", "Q0", "D10", "1", "2.5", "t"), ("q9", "Q0", "D3", "2", "2.4", "t")]
    path = tmp_path / "dev.trec"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    assert read_lists_to_rerank(path, QUERY_IDS, PASSAGE_IDS).tolist() == [[1, 0], [-1, -1], [-1, -1]]


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
        read_lists_to_rerank(path, QUERY_IDS, PASSAGE_IDS)
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
        read_lists_to_rerank(path, QUERY_IDS, PASSAGE_IDS)


def test_ids_that_hold_a_blank_come_back(tmp_path: Path) -> None:
    queries, passages = ["first query", "q2"], ["a passage", "b", "c"]
    lists_QK = np.array([[2, 0], [1, -1]])
    write_run(tmp_path / "run.trec", queries, passages, lists_QK, np.array([[2.0, 1.0], [3.0, 0.0]]), "tag")
    np.testing.assert_array_equal(read_lists_to_rerank(tmp_path / "run.trec", queries, passages), lists_QK)


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
    np.testing.assert_array_equal(read_lists_to_rerank(path, ids[:2], ids), lists_QK)


LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_subnormal)
SCORES = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1.0, 1.0000000001, -1.0, SMALLEST, -SMALLEST, LARGEST, -LARGEST, np.inf, -np.inf, 1e39]
    ),
    st.floats(-2, 2, width=16),
    st.floats(allow_nan=False),
)


def numbered(scores_K: np.ndarray) -> np.ndarray:
    """float32 numbers as the count of steps of `np.nextafter` from zero: int64, by the bits of their magnitudes."""
    steps_K = np.abs(scores_K).view(np.int32).astype(np.int64)
    return np.where(scores_K < 0, -steps_K, steps_K)


@settings(max_examples=200, deadline=None)
@given(scores=st.lists(SCORES, min_size=1, max_size=30).map(lambda scores: sorted(scores, reverse=True)))
def test_scores_strictly_descend_as_printed(scores: list[float]) -> None:
    """No list of float32 numbers that strictly descend is nearer to all scores."""
    scores_K = np.array(scores)
    found_K = strictly_descending(scores_K)
    printed_K = np.array([np.float32(f"{score:.9g}") for score in found_K.tolist()])
    assert np.isfinite(printed_K).all() and (np.diff(printed_K.astype(np.float64)) < 0).all()
    true_K = np.clip(scores_K, -LARGEST, LARGEST).astype(np.float32)
    # A lower bound, by pairs: places i < j have to come apart by j - i numbers, and each moves half of what lacks.
    place_K, true_number_K = np.arange(len(scores)), numbered(true_K)
    lacking_KK = (place_K - place_K[:, None]) - np.abs(true_number_K - true_number_K[:, None])
    needed = -(-int(np.triu(lacking_KK, 1).max()) // 2)
    at_the_edge = len(scores) if np.abs(true_K).max() == np.float32(LARGEST) else 0  # all move to one side there
    assert np.abs(numbered(found_K) - true_number_K).max() <= max(needed, at_the_edge, 0)


@settings(max_examples=50, deadline=None)
@given(
    lists=st.lists(st.lists(SCORES, min_size=4, max_size=12), min_size=1, max_size=3),
    relevant=st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_other_evaluators_find_the_same_in_a_run(
    lists: list[list[float]], relevant: list[int], dtype: type, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ties are ours to break: by the order of the list, though ids would order them otherwise."""
    path, queries_Q = tmp_path_factory.mktemp("run") / "dev.trec", np.arange(len(lists))
    passages_QK = padded([list(range(len(scores))) for scores in lists], -1, np.int64)
    with np.errstate(over="ignore"):
        scores_QK = padded([sorted(scores, reverse=True) for scores in lists], -np.inf, dtype)
    ids = [f"D{place:03d}" for place in range(12)]  # trec_eval has the last id of a tie first
    write_run(path, [f"q{query}" for query in queries_Q], ids, passages_QK, scores_QK, "tag")
    with path.open() as file:
        run = pytrec_eval.parse_run(file)
    held = {query: {p: float(np.float32(score)) for p, score in row.items()} for query, row in run.items()}
    assert all(len(set(row.values())) == len(row) for row in held.values()), "a tie as float32"
    qrels = {query: dict.fromkeys(relevant, 1) for query in queries_Q.tolist()}
    judged = {f"q{query}": {ids[p]: 1 for p in relevant} for query in qrels}
    rows = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "map_cut.10", "recall.20"}).evaluate(held)
    ours = evaluate(qrels, queries_Q, passages_QK, depth=20)
    for name, theirs in (("ndcg@10", "ndcg_cut_10"), ("map@10", "map_cut_10"), ("recall@20", "recall_20")):
        assert ours[name] == pytest.approx(np.mean([row[theirs] for row in rows.values()]), abs=1e-12)
