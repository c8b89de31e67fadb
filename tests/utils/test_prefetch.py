"""utils.prefetch: in order, in its place, and no further ahead than it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.prefetch import overlapped, prefetched


@given(items=st.lists(st.integers()), threads=st.integers(1, 3))
def test_overlapped_is_map(items: list[int], threads: int) -> None:
    assert list(overlapped(lambda item: item * 2, items, threads)) == [item * 2 for item in items]


def test_overlapped_hands_errors_on_and_holds_little() -> None:
    taken = 0

    def counted() -> Iterator[int]:
        nonlocal taken
        for item in range(1000):
            taken += 1
            yield item

    results = overlapped(lambda item: 1 // (5 - item), counted(), 2)
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert taken < 12


@given(st.lists(st.integers()))
def test_the_same_items_in_the_same_order(items: list[int]) -> None:
    assert list(prefetched(iter(items))) == items


def test_no_more_than_two_are_made_before_they_are_asked_for() -> None:
    made = 0

    def items() -> Iterator[int]:
        nonlocal made
        for number in range(10):
            made += 1
            yield number

    ahead = prefetched(items())
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while made < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == 3  # the one in hand and two ahead
    ahead.close()


def test_the_next_is_made_while_this_one_is_in_hand() -> None:
    second_is_made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second_is_made.set()
        yield 2

    for _ in prefetched(items()):
        assert second_is_made.wait(5)


def test_an_error_comes_in_its_place_and_ends_the_items() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    ahead = prefetched(items())
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="lost"):
        next(ahead)


def test_whoever_stops_early_leaves_no_thread() -> None:
    ahead = prefetched(iter(range(100)))
    assert next(ahead) == 0
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("overlap")]
