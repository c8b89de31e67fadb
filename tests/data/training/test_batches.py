"""The ann_training_data format and the batches made from it, against plain loops."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count, groupby, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mining.keyed_random import FOR_TRIPLES, FOR_TURNS, random_keys
from data.mining.negative_lists import (
    NegativeLists,
    check_offsets,
    is_positive,
    read_negative_lists,
    write_negative_lists,
)
from data.training.batches import Triples, batches_of_triples, in_batch_mask, make_batch
from data.training.triple_order import KEYS_AT_ONCE, is_as_in_version_1, queries_in_order, triple_order
from tests.texts import listed as listed_texts
from tests.texts import ragged
from utils.errors import UserError

NO_POSITIVES = (np.empty(0, np.int64), np.empty(0, np.int64))
Pairs = tuple[np.ndarray, np.ndarray]


def as_lists(rows: list[tuple[int, int, list[tuple[int, int, float]]]], width: int) -> NegativeLists:
    """From (query, positive, [(negative, rank, score)]) to padded arrays."""
    negative_QN, rank_QN = np.full((len(rows), width), -1), np.zeros((len(rows), width), np.int64)
    score_QN = np.zeros((len(rows), width), np.float32)
    for i, (_, _, entries) in enumerate(rows):
        for j, (negative, rank, score) in enumerate(entries):
            negative_QN[i, j], rank_QN[i, j], score_QN[i, j] = negative, rank, score
    return NegativeLists(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), negative_QN, rank_QN, score_QN)


def made_up_lists(lengths: list[int], passages: int = 1000, seed: int = 0) -> NegativeLists:
    """One query per length, with different negatives; query offsets are 3, 13, 23, …"""
    rng = np.random.default_rng(seed)
    rows = []
    for i, length in enumerate(lengths):
        drawn = rng.choice(passages, length + 1, replace=False).tolist()
        rows.append((10 * i + 3, drawn[0], [(p, r + 1, 1.0 / (r + 1)) for r, p in enumerate(drawn[1:])]))
    return as_lists(rows, max(lengths, default=0))


def sorted_pairs(pairs: set[tuple[int, int]]) -> Pairs:
    ordered = sorted(pairs)
    return np.array([q for q, _ in ordered], np.int64), np.array([p for _, p in ordered], np.int64)


def all_triples(lists: NegativeLists) -> list[tuple[int, int, int]]:
    rows = zip(lists.query_Q.tolist(), lists.positive_Q.tolist(), lists.negative_QN.tolist(), strict=True)
    return [(query, positive, negative) for query, positive, row in rows for negative in row if negative >= 0]


def listed(triples: Triples) -> list[tuple[int, int, int]]:
    return list(zip(triples.query_T.tolist(), triples.positive_T.tolist(), triples.negative_T.tolist(), strict=True))


# The file


entries = st.lists(
    st.tuples(
        st.integers(0, 2**31 - 1), st.integers(1, 1000), st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    max_size=6,
    unique_by=lambda entry: entry[0],
)
file_rows = st.lists(
    st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), entries),
    min_size=1,
    max_size=6,
    unique_by=lambda row: row[0],
)


def read_as_ance(path: Path) -> list[tuple[int, int, list[int]]]:
    """The three columns as ANCE reads them (GetTripletTrainingDataProcessingFn in its data/msmarco_data.py)."""
    rows = []
    with path.open() as file:
        for line in file:
            line_arr = line.split("\t")
            qid, pos_pid = int(line_arr[0]), int(line_arr[1])
            neg_pids = [int(neg_pid) for neg_pid in line_arr[2].split(",")]
            rows.append((qid, pos_pid, neg_pids))
    return rows


@settings(max_examples=60, deadline=None)
@given(rows=file_rows)
def test_lists_written_are_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("lists") / "ann_training_data_0"
    lists = as_lists(rows, max(len(row[2]) for row in rows))
    write_negative_lists(path, lists, NO_POSITIVES)
    found = read_negative_lists(path)
    for name in ("query_Q", "positive_Q", "negative_QN", "rank_QN", "score_QN"):
        assert np.array_equal(getattr(found, name), getattr(lists, name)), name
        assert getattr(found, name).dtype == getattr(lists, name).dtype
    assert found.triples == sum(len(row[2]) for row in rows)
    if all(row[2] for row in rows):
        assert read_as_ance(path) == [(query, positive, [e[0] for e in row]) for query, positive, row in rows]


def test_ance_s_own_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ann_training_data_3"
    path.write_text("5\t17\t4,9,2\n8\t1\t30\n")
    lists = read_negative_lists(path)
    assert lists.query_Q.tolist() == [5, 8] and lists.positive_Q.tolist() == [17, 1]
    assert lists.negative_QN.tolist() == [[4, 9, 2], [30, -1, -1]]
    assert not lists.rank_QN.any() and not lists.score_QN.any()
    assert lists.triples == 4


def test_a_positive_among_the_negatives_is_never_written(tmp_path: Path) -> None:
    lists = made_up_lists([3, 2])
    other_query = sorted_pairs({(int(lists.query_Q[0]), int(lists.negative_QN[1, 1]))})
    write_negative_lists(tmp_path / "fine", lists, other_query)
    its_own = sorted_pairs({(int(lists.query_Q[1]), int(lists.negative_QN[1, 1]))})
    with pytest.raises(AssertionError, match="a positive as a negative"):
        write_negative_lists(tmp_path / "wrong", lists, its_own)
    assert not (tmp_path / "wrong").exists()


def test_a_repeated_negative_is_never_written(tmp_path: Path) -> None:
    lists = as_lists([(1, 2, [(7, 1, 3.0), (8, 2, 2.0), (7, 3, 1.0)])], 5)
    with pytest.raises(AssertionError, match="repeated"):
        write_negative_lists(tmp_path / "wrong", lists, NO_POSITIVES)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"3",
        b"3\t4",
        b"x\t4\t5",
        b"3\t4\t5,",
        b"3\t4\t5 6",
        b"3\t4\t5\t1",
        b"3\t4\t5\t1\t2.0\t9",
        b"3\t4\t5,6\t1\t2.0,1.0",
        b"3\t4\t5,6\t1,2\t2.0",
        b"3\t4\t5\t1\tgood",
        b"3\t4\t-5",
        b"-3\t4\t5",
        b"3\t-4\t5",
        b"3\t4\t99999999999999999999",
        b"3\t4\t4294967296",
        b"3\t4\t\xc2\xb2",
        b"3\t4\t\xd9\xa3",  # a three in Arabic
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "ann_training_data_0"
    path.write_bytes(b"1\t2\t3\n" + line + b"\n5\t6\t7\n")
    with pytest.raises(UserError, match=r"ann_training_data_0:2: not query, positive, negatives"):
        read_negative_lists(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"1\t2\t3\n3\t4\t5\xff\n", "line 2: byte 6 is not valid UTF-8"),
        (b"1\t2\t3\n3\t4\t56", "line 2: the last line has no line end"),  # perhaps of 567
    ],
)
def test_damage_that_every_text_file_may_have_is_named(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "ann_training_data_0"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"ann_training_data_0, {fault}"):
        read_negative_lists(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ann_training_data_0"
    path.touch()
    with pytest.raises(UserError, match="is empty"):
        read_negative_lists(path)


def test_offsets_outside_the_collection_are_refused(tmp_path: Path) -> None:
    lists = as_lists([(4, 9, [(2, 1, 1.0), (11, 2, 0.5)]), (7, 3, [])], 2)
    check_offsets(lists, 8, 12, tmp_path)
    for queries, passages in ((7, 12), (8, 11)):
        with pytest.raises(UserError, match="names query 7 and passage 11, the collection has"):
            check_offsets(lists, queries, passages, tmp_path)
    with pytest.raises(UserError):
        check_offsets(as_lists([(4, 9, [])], 0), 8, 9, tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    known=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20),
    queries=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    passages=st.lists(st.integers(-1, 7), max_size=5),
)
def test_is_positive_looks_up_pairs(known: set[tuple[int, int]], queries: list[int], passages: list[int]) -> None:
    found = is_positive(np.array(queries)[:, None], np.array([passages] * len(queries), np.int64), sorted_pairs(known))
    assert found.tolist() == [[(query, passage) in known for passage in passages] for query in queries]


# The order of training


def defined_order(lists: NegativeLists, group_size: int, seed: int, stream: int, triples: int) -> list[tuple[int, int]]:
    """In plain loops, (row, column) of the first ``triples``: round after round each query has a turn."""
    width, queries = lists.negative_QN.shape[1], lists.query_Q

    def key(purpose: int, row: int, number: int) -> int:
        return int(random_keys(seed, stream, purpose, queries[row : row + 1], 1, number)[0, 0])

    def endless(row: int) -> Iterator[int]:
        """The row's own negatives, in one random order after another."""
        own = int((lists.negative_QN[row] >= 0).sum())
        for again in count():
            yield from sorted(range(own), key=lambda column: key(FOR_TRIPLES, row, again * width + column))

    rows = [row for row in range(len(queries)) if (lists.negative_QN[row] >= 0).any()]
    columns = {row: endless(row) for row in rows}
    order: list[tuple[int, int]] = []
    for number in count():
        for row in sorted(rows, key=lambda row: key(FOR_TURNS, row, number)):
            turn = group_size or int((lists.negative_QN[row] >= 0).sum())
            order += [(row, next(columns[row])) for _ in range(turn)]
        if len(order) >= triples:
            return order[:triples]
    raise AssertionError


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(any),
    group_size=st.integers(0, 8),
    seed=st.integers(0, 1000),
    stream=st.integers(0, 3),
)
def test_the_order_is_as_defined(lengths: list[int], group_size: int, seed: int, stream: int) -> None:
    lists = made_up_lists(lengths)
    expected = [
        (int(lists.query_Q[row]), int(lists.positive_Q[row]), int(lists.negative_QN[row, column]))
        for row, column in defined_order(lists, group_size, seed, stream, 120)
    ]
    assert flat(list(islice(batches_of_triples(lists, group_size, 8, seed, stream), 15))) == expected


@settings(max_examples=80, deadline=None)
@given(data=st.data(), group_size=st.integers(1, 6), batch_triples=st.integers(1, 40))
def test_arms_see_the_same_queries_step_by_step(data: st.DataObject, group_size: int, batch_triples: int) -> None:
    """Whatever the widths, and however many negatives a query has, if it has any."""
    queries, steps = data.draw(st.integers(1, 8)), 12
    streams = []
    for arm in range(2):
        lengths = data.draw(st.lists(st.integers(1, 9), min_size=queries, max_size=queries))
        lists = made_up_lists(lengths, seed=arm)
        rows = lists.rows(np.array(data.draw(st.permutations(range(queries)))))
        streams.append(
            [b.query_T.tolist() for b in islice(batches_of_triples(rows, group_size, batch_triples, 7, 2), steps)]
        )
    assert streams[0] == streams[1]
    seen = [query for step in streams[0] for query in step]
    rounds = [seen[first : first + queries * group_size] for first in range(0, len(seen), queries * group_size)]
    for turns in rounds[:-1]:
        assert [turns[place] for place in range(0, len(turns), group_size) for _ in range(group_size)] == turns
        assert sorted(turns[::group_size]) == lists.query_Q.tolist(), "each query has one turn in a round"


def test_a_query_with_7_of_20_negatives_takes_its_turns_all_the_same() -> None:
    full, half = made_up_lists([20] * 6), made_up_lists([20, 7, 20, 20, 7, 20], seed=1)
    short = half.query_Q[[1, 4]]
    streams = [list(islice(batches_of_triples(lists, 4, 24, 3, 0), 14)) for lists in (full, half)]
    for mine, other in zip(*streams, strict=True):
        assert np.array_equal(mine.query_T, other.query_T)
    for query in short:
        given_to = [n for batch in streams[1] for n in batch.negative_T[batch.query_T == query].tolist()]
        assert len(given_to) == 56
        orders = [tuple(given_to[first : first + 7]) for first in range(0, 56, 7)]
        assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(orders[0]))} and len(set(orders[0])) == 7
        assert len(set(orders)) == 8, "each time in a new order"


def order_before(lists: NegativeLists, group_size: int, epoch: int) -> list[tuple[int, int]]:
    """(query, negative) of an epoch in version 1's order, as the committed figures were trained on it."""
    queries, width = lists.negative_QN.shape
    present_QN = lists.negative_QN >= 0
    keys_QN = random_keys(1, 2, FOR_TRIPLES, lists.query_Q, width, epoch * width)
    column_QN = np.argsort(np.where(present_QN, keys_QN, np.iinfo(np.uint64).max), axis=1, kind="stable")
    place_QN = np.broadcast_to(np.arange(width), (queries, width))
    group_QN = place_QN // group_size if group_size > 0 else np.zeros_like(place_QN)
    groups = int(group_QN.max()) + 1
    turn_QN = np.take_along_axis(random_keys(1, 2, FOR_TURNS, lists.query_Q, groups, epoch * groups), group_QN, axis=1)
    kept_QN = place_QN < present_QN.sum(1, keepdims=True)
    row_T, column_T = np.nonzero(kept_QN)[0], column_QN[kept_QN]
    order_T = np.lexsort((place_QN[kept_QN], turn_QN[kept_QN], group_QN[kept_QN]))
    row_T, column_T = row_T[order_T], column_T[order_T]
    return list(zip(lists.query_Q[row_T].tolist(), lists.negative_QN[row_T, column_T].tolist(), strict=True))


def has_order_before(lists: NegativeLists, group_size: int) -> bool:
    expected = [pair for epoch in range(3) for pair in order_before(lists, group_size, epoch)]
    found = flat(list(islice(batches_of_triples(lists, group_size, 1, 1, 2), len(expected))))
    return [(query, negative) for query, _, negative in found] == expected


@pytest.mark.parametrize("group_size", [0, 1, 4])
def test_full_lists_have_the_order_that_they_always_had(group_size: int) -> None:
    lists = made_up_lists([20] * 9)
    assert has_order_before(lists, group_size) and is_as_in_version_1(lists, group_size)


@settings(max_examples=60, deadline=None)
@given(
    full=st.booleans(), lengths=st.lists(st.integers(0, 6), min_size=2, max_size=5).filter(any), group=st.integers(0, 7)
)
def test_lists_of_which_version_1_had_another_order_are_known(full: bool, lengths: list[int], group: int) -> None:
    """Where it says that the order is the same it is; where not, it may be so by chance in a few queries only."""
    lists = made_up_lists([max(lengths) * bool(length) for length in lengths] if full else lengths)
    assert has_order_before(lists, group) or not is_as_in_version_1(lists, group)


@pytest.mark.parametrize(("lengths", "group"), [([6, 6, 6, 2], 1), ([6] * 5, 4), ([6] * 5, 12), ([6, 6, 6, 4], 2)])
def test_such_lists_do_have_another_order(lengths: list[int], group: int) -> None:
    lists = made_up_lists(lengths)
    assert not has_order_before(lists, group) and not is_as_in_version_1(lists, group)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    group=st.integers(0, 8),
    start=st.integers(0, 30),
)
def test_the_parts_of_a_round_make_no_difference(lengths: list[int], group: int, start: int) -> None:
    lists = made_up_lists(lengths)
    expected = [
        (int(lists.query_Q[row]), int(lists.negative_QN[row, column]))
        for row, column in defined_order(lists, group, 4, 5, 3 * (start + 20))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.training.triple_order.KEYS_AT_ONCE", 1)  # a turn at a time
        found = flat(list(islice(batches_of_triples(lists, group, 3, 4, 5, start), 20)))
        queries = [query for part in queries_in_order(lists, group, 4, 5, 3 * start) for query in part.tolist()]
    assert [(query, negative) for query, _, negative in found] == expected[3 * start :]
    assert queries == [query for query, _ in expected[: 3 * start]]


def test_a_large_group_takes_no_more_memory_than_a_part_of_a_round() -> None:
    """Whole, this round would be 3 million triples, each with the keys of an order of 20 negatives: 480 MB of them."""
    lists = made_up_lists([20] + [1] * 3000)
    tracemalloc.start()
    try:
        batch = next(batches_of_triples(lists, 1000, 64, 1, 0, start=40_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(batch.query_T) == 64 and peak < 16 * 8 * KEYS_AT_ONCE


def test_the_order_is_uniform_over_queries_and_negatives() -> None:
    lists = made_up_lists([4, 4, 4])
    for by in ("seed", "stream", "number"):
        first = np.zeros((3, 4))
        for number in range(3000):
            ((row_T, column_T),) = triple_order(lists, 1, **{"seed": 5, "stream": 0, "number": 0, by: number})
            first[row_T[0], column_T[0]] += 1
        assert ((first - 250) ** 2 / 250).sum() < 31.3, by  # chi-square, 11 degrees of freedom, 0.1 %


def flat(batches: list[Triples]) -> list[tuple[int, int, int]]:
    return [triple for batch in batches for triple in listed(batch)]


@pytest.mark.parametrize("batch_triples", [1, 4, 7, 40])
def test_batches_are_endless_epochs_without_a_seam(batch_triples: int) -> None:
    """ANCE's order: all negatives of a query follow each other, and an epoch has every triple once."""
    lists = made_up_lists([3, 0, 5, 1, 2])  # 11 triples
    count = 44 // batch_triples + 1
    batches = list(islice(batches_of_triples(lists, 0, batch_triples, 1, 0), count))
    assert all(len(batch.query_T) == batch_triples for batch in batches)
    stream = flat(batches)
    epochs = [stream[first : first + 11] for first in range(0, len(stream) - 10, 11)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(all_triples(lists))
        assert len([query for query, _ in groupby(epoch, key=lambda triple: triple[0])]) == 4
    assert len(epochs) < 2 or epochs[0] != epochs[1]


def test_batches_repeat_for_one_seed_and_stream_alone() -> None:
    lists = made_up_lists([6] * 6)

    def first(seed: int, stream: int) -> list[tuple[int, int, int]]:
        return flat(list(islice(batches_of_triples(lists, 1, 4, seed, stream), 20)))

    assert first(1, 2) == first(1, 2)
    assert first(1, 2) != first(1, 3) and first(1, 2) != first(2, 2) and first(2, 1) != first(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    group_size=st.integers(0, 3),
    batch_triples=st.integers(1, 12),
    start=st.integers(0, 30),
)
def test_starting_late_is_skipping_batches(lengths: list[int], group_size: int, batch_triples: int, start: int) -> None:
    lists = made_up_lists(lengths)
    skipped = list(islice(batches_of_triples(lists, group_size, batch_triples, 3, 1), start, start + 4))
    resumed = list(islice(batches_of_triples(lists, group_size, batch_triples, 3, 1, start=start), 4))
    assert flat(resumed) == flat(skipped)


def test_lists_without_any_negative_are_refused() -> None:
    with pytest.raises(UserError, match="no negative at all"):
        next(batches_of_triples(made_up_lists([0, 0]), 1, 4, 1, 0))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_ranks_parts_make_up_the_batch(ranks: int) -> None:
    whole = next(batches_of_triples(made_up_lists([4, 4, 4]), 1, 12, 1, 0))
    parts = [whole.part(rank, ranks) for rank in range(ranks)]
    assert [len(part.query_T) for part in parts] == [12 // ranks] * ranks
    assert flat(parts) == listed(whole)


# The batch as the model takes it


def gather_of(texts: dict[int, list[int]]) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def gather(rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return ragged([texts[row] for row in rows_B.tolist()])

    return gather


def made_up_texts(rows: set[int], seed: int) -> dict[int, list[int]]:
    rng = np.random.default_rng(seed)
    return {row: [row + 1, *rng.integers(1, 100, rng.integers(1, 9)).tolist()] for row in sorted(rows)}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("group_size", [0, 1])
def test_a_batch_s_rows_are_the_triples_tokens(rank: int, group_size: int) -> None:
    lists = made_up_lists([5, 3, 4, 6], passages=12)  # few passages, so that some recur
    triples = next(batches_of_triples(lists, group_size, 16, 1, 0))
    queries, passages = (made_up_texts(rows, 1) for rows in (set(lists.query_Q.tolist()), set(range(12))))
    batch = make_batch(triples, rank, 2, gather_of(queries), gather_of(passages))
    mine = listed(triples)[8 * rank : 8 * rank + 8]

    query_texts = listed_texts(batch.query_tokens_T, batch.query_offsets_B1)
    passage_texts = listed_texts(batch.passage_tokens_T, batch.passage_offsets_M1)
    places = zip(batch.query_index_T, batch.positive_index_T, batch.negative_index_T, strict=True)
    found = [(query_texts[q], passage_texts[p], passage_texts[n]) for q, p, n in places]
    assert found == [(queries[q], passages[p], passages[n]) for q, p, n in mine]
    assert len(query_texts) == len({q for q, _, _ in mine})
    different = {p for _, p, n in mine} | {n for _, p, n in mine}
    assert len(passage_texts) == len(different)
    assert batch.allowed_TG is None and batch.target_T is None


small = st.integers(0, 5)


@settings(max_examples=150, deadline=None)
@given(
    ranks=st.integers(1, 3),
    per_rank=st.integers(1, 4),
    data=st.data(),
    more_positives=st.sets(st.tuples(small, small), max_size=8),
)
def test_the_in_batch_mask_is_that_of_a_plain_loop(
    ranks: int, per_rank: int, data: st.DataObject, more_positives: set[tuple[int, int]]
) -> None:
    size = ranks * per_rank
    drawn = data.draw(st.lists(st.tuples(small, small, small), min_size=size, max_size=size))
    triples = Triples(*np.array(drawn).T)
    known = {(q, p) for q, p, _ in drawn} | more_positives
    shares = [drawn[rank * per_rank : (rank + 1) * per_rank] for rank in range(ranks)]
    columns = [passage for share in shares for passage in sorted({x for _, p, n in share for x in (p, n)})]
    for rank, share in enumerate(shares):
        allowed_TG, target_T = in_batch_mask(triples, rank, ranks, sorted_pairs(known))
        assert allowed_TG.shape == (per_rank, len(columns)) and allowed_TG.dtype == bool
        for t, (query, positive, _) in enumerate(share):
            assert columns[target_T[t]] == positive
            scored = [columns[g] for g in np.flatnonzero(allowed_TG[t])]
            negatives = {passage for passage in columns if (query, passage) not in known}
            assert sorted(scored) == sorted(negatives | {positive}), "each passage once, no other positive"
        mine = {row: [row + 1] for row in range(6)}
        batch = make_batch(triples, rank, ranks, gather_of(mine), gather_of(mine), sorted_pairs(known))
        assert batch.allowed_TG is not None and np.array_equal(batch.allowed_TG, allowed_TG)
        assert batch.target_T is not None and np.array_equal(batch.target_T, target_T)
        own_first = sum(len({x for _, p, n in other for x in (p, n)}) for other in shares[:rank])
        own = columns[own_first : own_first + len(batch.passage_offsets_M1) - 1]
        assert [token - 1 for token in batch.passage_tokens_T.tolist()] == own, "columns are in the order of the rows"
