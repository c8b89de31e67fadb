"""Ids of a file's records: that each is one that the files of a collection can hold, and that none comes twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.errors import UserError

IDS_PER_CHECK = 65_536


class RepeatedIds:
    """Finds repeated ids at eight bytes each (70 MB for MS MARCO's 8.8 million passages).

    64-bit hashes are kept in sorted arrays, each more than twice as long as the next, so that a batch is looked up in
    a few of them. Two different ids out of 8.8 million share a hash with probability 2e-6.
    """

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def first_repeat(self, ids: list[str]) -> int | None:
        """Add ``ids``; the index of the first that was seen before, in this call or an earlier one."""
        hashes_B = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
        order_B = np.argsort(hashes_B, kind="stable")
        run = hashes_B[order_B]
        seen_B = np.zeros(len(ids), dtype=bool)
        seen_B[1:] = run[1:] == run[:-1]
        for older in self.runs:
            at_B = np.searchsorted(older, run)
            seen_B |= older[np.minimum(at_B, len(older) - 1)] == run
        if seen_B.any():
            return int(order_B[seen_B].min())
        while self.runs and len(self.runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self.runs.pop(), run]), kind="stable")
        if len(run):
            self.runs.append(run)
        return None


def check_id(origin: Path | str, unit: str, number: int, text_id: str) -> None:
    """An id is not blank, and is one column of one line.

    Args:
        origin: What holds the record, for the message.
        unit: What ``number`` counts.
        number: The record's.
        text_id: Its id.
    Raises:
        UserError: it is blank, or holds a tab or a line end.
    """
    if not text_id.strip():
        raise UserError(f"{origin}, {unit} {number}: the id is empty, expected one; fix it")
    if "\t" in text_id or "\n" in text_id or "\r" in text_id:
        raise UserError(
            f"{origin}, {unit} {number}: the id {text_id!r} holds a tab or a line end, which no id may; rename it, in "
            "the qrels as well"
        )


class UniqueIds:
    """The ids of a file's records in their order: `add` each, and `check` at the end.

    A repeated id is found at the latest 65,536 records after it was added. ``unit`` is what ``number`` counts.
    """

    def __init__(self, origin: Path | str, unit: str = "line") -> None:
        self.origin, self.unit = origin, unit
        self.repeated = RepeatedIds()
        self.ids: list[str] = []
        self.numbers: list[int] = []

    def add(self, number: int, text_id: str) -> None:
        """UserError as `check_id`, and where the id was added before."""
        check_id(self.origin, self.unit, number, text_id)
        self.ids.append(text_id)
        self.numbers.append(number)
        if len(self.ids) == IDS_PER_CHECK:
            self.check()

    def check(self) -> None:
        """UserError where one of the ids that were added last came before."""
        index = self.repeated.first_repeat(self.ids)
        if index is not None:
            raise UserError(
                f"{self.origin}, {self.unit} {self.numbers[index]}: the id {self.ids[index]!r} was on an earlier "
                f"{self.unit}, expected every id once; remove one of the two"
            )
        self.ids, self.numbers = [], []
