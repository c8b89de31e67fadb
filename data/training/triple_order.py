"""In which order training takes the triples of a refresh's lists: a function of the seed, the refresh and the query."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from data.mining.keyed_random import FOR_TRIPLES, FOR_TURNS, LARGEST_KEY, random_keys

if TYPE_CHECKING:
    from data.mining.negative_lists import NegativeLists

TRIPLE_ORDER = 2  # the version of this order, which runs record; those of version 1 recorded none
KEYS_AT_ONCE = 2**21  # random keys drawn for a part of a round: 16 MiB, and a few arrays of that size


def is_as_in_version_1(lists: NegativeLists, group_size: int) -> bool:
    """Whether version 1 had the same order for these lists.

    There a turn ended where the query's negatives did, and a query with fewer had fewer turns.
    """
    width = lists.negative_QN.shape[1]
    count_Q = (lists.negative_QN >= 0).sum(1)
    return group_size == 0 or (width % group_size == 0 and bool(np.isin(count_Q, (0, width)).all()))


def triples_of_a_round(lists: NegativeLists, group_size: int) -> int:
    """How many triples `triple_order` gives each time."""
    return group_size * int((lists.negative_QN >= 0).any(1).sum()) if group_size > 0 else lists.triples


def turns_of_a_round(
    lists: NegativeLists, group_size: int, seed: int, stream: int, number: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A round's turns in order, some at a time.

    Args:
        lists: The negatives.
        group_size: The triples of a turn; 0: all of a query's negatives.
        seed, stream, number: Of the run; of the refresh; and of the round, from 0.
    Returns:
        (row_R, size_R), int64: the row of ``lists`` whose turn it is, and of how many triples.
    """
    count_Q = (lists.negative_QN >= 0).sum(1)
    row_R = np.flatnonzero(count_Q)
    turn_R = random_keys(seed, stream, FOR_TURNS, lists.query_Q[row_R], 1, number)[:, 0]
    row_R = row_R[np.argsort(turn_R, kind="stable")]
    size_R = np.full_like(row_R, group_size) if group_size > 0 else count_Q[row_R]
    most_orders = int((size_R // count_Q[row_R]).max(initial=0)) + 2  # that a turn takes from
    at_once = max(1, KEYS_AT_ONCE // (most_orders * max(1, lists.negative_QN.shape[1])))
    for first in range(0, len(row_R), at_once):
        yield row_R[first : first + at_once], size_R[first : first + at_once]


def triple_order(
    lists: NegativeLists, group_size: int, seed: int, stream: int, number: int, skip: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A round of training, in order and in parts.

    In a round each query that has a negative has one turn, of ``group_size`` triples, in an order keyed by query and
    round. It is the same for other lists of these queries, however many negatives each has, which lets arms differ in
    their negatives alone. A query's negatives come in random order, and when all have been used in a new one; a turn
    may span both. ``group_size`` 0 is ANCE's: a turn is all of a query's negatives, so a round is an epoch, and lists
    of other lengths part.

    Args:
        lists: The negatives.
        group_size: The triples of a turn; 0: all of a query's negatives.
        seed: Of the run.
        stream: The refresh's number.
        number: The round's, from 0.
        skip: So many triples at its beginning are omitted.
    Returns:
        (row_T, column_T), int64, into ``negative_QN``.
    """
    for row_R, size_R in turns_of_a_round(lists, group_size, seed, stream, number):
        if skip >= (triples := int(size_R.sum())):
            skip -= triples
            continue
        row_T, column_T = np.repeat(row_R, size_R), places_of_turns(lists, row_R, size_R, seed, stream, number)
        yield row_T[skip:], column_T[skip:]
        skip = 0


def places_of_turns(
    lists: NegativeLists, row_R: np.ndarray, size_R: np.ndarray, seed: int, stream: int, number: int
) -> np.ndarray:
    """The negatives of some turns of a round, one turn after the other: of each row's endless sequence the next.

    The sequence is one random order of the row's negatives after another; order c is drawn with the row's keys from
    c * width on.

    Args:
        lists: The negatives.
        row_R: int64, the row of ``lists`` whose turn it is.
        size_R: int64, the triples of each turn.
        seed: Of the run.
        stream: The refresh's number.
        number: The round's, from 0.
    Returns:
        column_T, int64, into ``negative_QN``.
    """
    width = lists.negative_QN.shape[1]
    count_R = (lists.negative_QN[row_R] >= 0).sum(1)
    first_R, last_R = number * size_R // count_R, (number * size_R + size_R - 1) // count_R
    orders_R = last_R - first_R + 1  # that a turn takes from
    begin_R = np.cumsum(orders_R) - orders_R
    order_P = np.arange(orders_R.sum()) + np.repeat(first_R - begin_R, orders_R)
    row_P = np.repeat(row_R, orders_R)
    keys_PW = random_keys(seed, stream, FOR_TRIPLES, lists.query_Q[row_P], width, order_P * width)
    keys_PW = np.where(lists.negative_QN[row_P] >= 0, keys_PW, LARGEST_KEY)
    column_PW = np.argsort(keys_PW, axis=1, kind="stable")
    begin_T = np.repeat(np.cumsum(size_R) - size_R, size_R)
    place_T = np.arange(size_R.sum()) - begin_T + np.repeat(number * size_R, size_R)
    order_T, within_T = np.divmod(place_T, np.repeat(count_R, size_R))
    return np.asarray(column_PW[order_T + np.repeat(begin_R - first_R, size_R), within_T])


def queries_in_order(
    lists: NegativeLists, group_size: int, seed: int, stream: int, triples: int
) -> Iterator[np.ndarray]:
    """The query of each of the first triples of training, without choosing their negatives.

    Args:
        lists: The negatives.
        group_size: The triples of a turn; 0: all of a query's negatives.
        seed: Of the run.
        stream: The refresh's number.
        triples: How many.
    Returns:
        query_T, int64, in parts.
    """
    for number in count():
        for row_R, size_R in turns_of_a_round(lists, group_size, seed, stream, number):
            if triples <= 0:
                return
            query_T = np.repeat(lists.query_Q[row_R], size_R)[:triples]
            triples -= len(query_T)
            yield query_T
