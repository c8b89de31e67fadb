"""utils.ir.runs: anyone's run, against trec_eval's own order, MS MARCO's three columns, and bad lines."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.ir.metrics import per_query_metrics
from utils.ir.pooled import overlap_with, pooled_hole_rates
from utils.ir.runs import GivenRun, read_run
from utils.search.ranked_lists import without_own

PASSAGE_IDS = ["D9", "D10", "d", "ü", "Z", "zz", "1", "10", "2"]
QUERY_IDS = ["q9", "1048585", "ü"]
ALL_IDS = [*PASSAGE_IDS, "elsewhere", "Ä"]
SCORES = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-9, 0.99, -3.5, 16777216.0, 16777217.0, 1e-30, 1e39]) | st.floats(
    -2, 2, width=16
)
LISTS = st.lists(st.dictionaries(st.sampled_from(ALL_IDS), SCORES, max_size=11), min_size=3, max_size=3)
GRADES = st.dictionaries(st.sampled_from(range(len(PASSAGE_IDS))), st.integers(-1, 3), max_size=9)


def write_trec(path: Path, lists: list[dict[str, float]]) -> None:
    lines = []
    for query, found in zip(QUERY_IDS, lists, strict=True):
        lines += [f"{query} Q0 {name} {rank} {score!r} t" for rank, (name, score) in enumerate(found.items(), 1)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@settings(max_examples=200, deadline=None)
@given(lists=LISTS, grades=st.lists(GRADES, min_size=3, max_size=3))
def test_ties_and_unknown_passages_as_trec_eval_has_them(
    lists: list[dict[str, float]], grades: list[dict[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Scores that are equal as float32, lists in any order, passages that the collection lacks, short lists."""
    path = tmp_path_factory.mktemp("run") / "run.trec"
    write_trec(path, lists)
    named = {name for found in lists for name in found}
    if not named & {*PASSAGE_IDS}:
        with pytest.raises(UserError, match=r"none of its .* is in the collection|is empty"):
            read_run(path, QUERY_IDS, PASSAGE_IDS)
        return
    found = read_run(path, QUERY_IDS, PASSAGE_IDS)
    assert found.unknown == sum(name not in PASSAGE_IDS for names in lists for name in names)
    with path.open(encoding="utf-8") as file:
        run = pytrec_eval.parse_run(file)
    judged = {
        query: {PASSAGE_IDS[p]: max(grade, 0) for p, grade in row.items()}
        for query, row in zip(QUERY_IDS, grades, strict=True)
    }
    measures = {"ndcg", "recip_rank", "map", "P.5", "recall.5"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    ours = evaluated(found, grades)
    for row, query in enumerate(QUERY_IDS):
        for name, value in theirs.get(
            query, dict.fromkeys(["ndcg", "recip_rank", "map", "P_5", "recall_5"], 0.0)
        ).items():
            assert ours[row][name] == pytest.approx(value, abs=1e-9), (query, name)


def evaluated(found: GivenRun, grades: list[dict[int, int]]) -> dict[int, dict[str, float]]:
    from utils.ir.metrics import choose_metrics

    names = {"nDCG": "ndcg", "RR": "recip_rank", "AP": "map", "P@5": "P_5", "R@5": "recall_5"}
    choice = choose_metrics(" ".join(names), 1, is_of_documents=False)
    rows = per_query_metrics(dict(enumerate(grades)), np.arange(3), found.passages_QK, math.inf, choice)
    return {query: {theirs: row[ours] for ours, theirs in names.items()} for query, row in rows.items()}


@settings(max_examples=60, deadline=None)
@given(
    lists=st.lists(st.lists(st.sampled_from(PASSAGE_IDS), unique=True), min_size=3, max_size=3), start=st.integers(0, 2)
)
def test_three_columns(lists: list[list[str]], start: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By the ranks, in whatever order the lines are; a list may begin at any number."""
    path = tmp_path_factory.mktemp("run") / "rank.tsv"
    lines = [
        f"{query}\t{name}\t{rank}\n"
        for query, names in zip(QUERY_IDS, lists, strict=True)
        for rank, name in enumerate(names, start)
    ]
    path.write_bytes(gzip.compress("".join(lines[::-1]).encode()))
    if not lines:
        return
    found = read_run(path, QUERY_IDS, PASSAGE_IDS)
    expected = [[PASSAGE_IDS.index(name) for name in names] for names in lists]
    assert [[p for p in row if p >= 0] for row in found.passages_QK.tolist()] == expected
    assert (found.unknown, found.other_queries, found.reordered) == (0, 0, 0)
    assert [row[: len(names)] for row, names in zip(found.scores_QK.tolist(), lists, strict=True)] == [
        [-rank for rank in range(start, start + len(names))] for names in lists
    ]


def test_what_is_counted(tmp_path: Path) -> None:
    """Other queries, unknown passages that two files number alike, and ranks that are not the scores' order."""
    one, two = tmp_path / "one.trec", tmp_path / "two.trec"
    one.write_text("q9 Q0 D9 2 1.5 t\nq9 Q0 X 1 1.0 t\nother Q0 D9 1 2 t\nü Q0 D10 1 1 t\nü Q0 Y 2 0.5 t\n")
    two.write_text("q9 Q0 Y 1 3 t\nq9 Q0 X 2 2 t\nq9 Q0 Z 3 2 t\n")
    shared: dict[str, int] = {}
    found, second = (read_run(path, QUERY_IDS, PASSAGE_IDS, shared) for path in (one, two))
    beyond = len(PASSAGE_IDS)
    assert found.passages_QK.tolist() == [[0, beyond], [-1, -1], [1, beyond + 1]]
    assert second.passages_QK[0].tolist() == [beyond + 1, 4, beyond], "equal scores: Z before X"
    assert (found.unknown, found.other_queries, found.reordered) == (2, 1, 1)
    assert (second.unknown, second.other_queries, second.reordered) == (2, 0, 1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("q9 Q0 D10 1 2.5 t\nq9 Q0 D9 2 2.4\n", ", line 2: 5 columns, expected 6 as the first line: a TREC run"),
        ("q9\tD10\twho\twhat\n", ", line 1: 4 columns, expected 6 or 3: a TREC run"),
        ("q9 Q0 D10 1 2.5 t\nq9\tD9\t2\n", ", line 2: 3 columns, expected 6 as the first line"),
        ("q9 Q0 D10 first 2.5 t\n", ", line 1: the rank is 'first', expected a whole number"),
        ("q9\tD10\t-1\n", ", line 1: the rank is '-1', expected a whole number"),
        ("q9 Q0 D10 1 high t\n", ", line 1: the score is 'high', expected a number"),
        ("q9 Q0 D10 1 nan t\n", ", line 1: the score is 'nan', expected a number"),
        ("q9 Q0 D10 1 1_0 t\n", ", line 1: the score is '1_0', expected a number"),
        ("other Q0 D10 1 3 t\nq9 Q0 D10 1 3 t\nq9 Q0 D9 2 2 t\nq9 Q0 D10 3 1 t\n", ", line 4: its passage was on an"),
        ("q9\tD10\t1\nü\tD10\t1\nq9\tD9\t1\n", ", line 3: its rank was on an earlier line"),
        ("other Q0 D10 1 3 t\n", " names none of the 3 queries"),
        ("q9 Q0 X 1 3 t\n", ": none of its 1 passages is in the collection"),
        ("", " is empty"),
        ("q9 Q0 D10 1 2.5 t", ", line 1: the last line has no line end"),
        ("qid\tpid\trank\nq9\tD10\t1\n", ", line 1: 'qid\\tpid\\trank' is a header"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "run.trec"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_run(path, QUERY_IDS, PASSAGE_IDS)
    assert str(caught.value).startswith(f"{path}{told}") and "\n" not in str(caught.value)


PADDED = st.lists(st.lists(st.integers(0, 15), unique=True, max_size=12), min_size=1, max_size=4)


def padded(lists: list[list[int]]) -> np.ndarray:
    array = np.full((len(lists), 12), -1, np.int64)
    for row, values in enumerate(lists):
        array[row, : len(values)] = values
    return array


@settings(max_examples=100, deadline=None)
@given(lists=PADDED, judged=st.dictionaries(st.integers(0, 3), st.dictionaries(st.integers(0, 15), st.integers(-1, 3))))
def test_hole_rates_are_pooled(lists: list[list[int]], judged: dict[int, dict[int, int]]) -> None:
    """Over the passages of judged queries; a passage with a grade of 0 or below is judged."""
    found = pooled_hole_rates(judged, np.arange(len(lists)), padded(lists), 12)
    for name, cut in (("hole_rate@10", 10), ("hole_rate", 12)):
        pool = [(q, p) for q, passages in enumerate(lists) if q in judged for p in passages[:cut]]
        holes = [p for q, p in pool if p not in judged[q]]
        assert found.get(name) == (pytest.approx(len(holes) / len(pool)) if pool else None)
    assert "hole_rate@10" not in pooled_hole_rates(judged, np.arange(len(lists)), padded(lists), 9)


@settings(max_examples=100, deadline=None)
@given(ours=PADDED, theirs=PADDED, judged=st.sets(st.integers(0, 3)))
def test_overlap_is_that_of_the_first_hundred_together(
    ours: list[list[int]], theirs: list[list[int]], judged: set[int]
) -> None:
    """Of judged queries that both have a list for."""
    ours, theirs = ours[: len(theirs)], theirs[: len(ours)]
    qrels: dict[int, dict[int, int]] = {query: {} for query in judged}
    pairs = [(a, b) for query, (a, b) in enumerate(zip(ours, theirs, strict=True)) if query in judged and a and b]
    both, pool = sum(len({*a} & {*b}) for a, b in pairs), sum(len(a) for a, _ in pairs)
    expected = {"overlap@100": both / pool, "overlap_queries": len(pairs)} if pairs else {}
    assert overlap_with(qrels, np.arange(len(ours)), padded(ours), padded(theirs)) == pytest.approx(expected)
    far = np.arange(150)[None]
    assert overlap_with({0: {}}, np.zeros(1, np.int64), far, far[:, ::-1])["overlap@100"] == pytest.approx(0.5)


@settings(max_examples=100, deadline=None)
@given(lists=PADDED, own=st.lists(st.integers(-1, 15), min_size=4, max_size=4), k=st.integers(1, 12))
def test_a_query_s_own_passage_is_omitted(lists: list[list[int]], own: list[int], k: int) -> None:
    passages_QK = padded(lists)
    scores_QK = np.where(passages_QK >= 0, -np.arange(12, dtype=np.float32), -np.inf).astype(np.float32)
    kept_QK, kept_scores_QK = without_own(passages_QK, scores_QK, np.array(own[: len(lists)]), k)
    for row, values in enumerate(lists):
        expected = [(p, float(-place)) for place, p in enumerate(values) if p != own[row]][:k]
        found = [(p, s) for p, s in zip(kept_QK[row].tolist(), kept_scores_QK[row].tolist(), strict=True) if p >= 0]
        assert found == expected
    assert kept_scores_QK.dtype == np.float32 and (kept_scores_QK[kept_QK < 0] == -np.inf).all()
