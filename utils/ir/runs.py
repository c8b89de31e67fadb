"""Anyone's run, read as lists of offsets: TREC's six columns, or MS MARCO's three (query, passage, rank)."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.ir.trec import offsets_of
from utils.text_files import columns_of, numbered_lines

TREC_COLUMNS, MS_MARCO_COLUMNS = 6, 3
RANK = re.compile("[0-9]{1,9}")  # int() reads digits of other scripts and underscores as well


@dataclass(frozen=True)
class GivenRun:
    """The lists of a run for the queries that were wanted.

    ``passages_QK`` int64 are offsets, best first, -1 after a list's end; a passage that the collection lacks has a
    number beyond its last. ``scores_QK`` float32 are those of the file, -inf after a list's end; where the run does not
    have any (not ``has_scores``: three columns), the negative ranks. ``unknown`` is how many entries name no passage of
    the collection, ``other_queries`` how many queries of the file were not wanted, ``reordered`` in how many lists the
    column of ranks is not the scores' order.
    """

    passages_QK: np.ndarray
    scores_QK: np.ndarray
    has_scores: bool
    unknown: int
    other_queries: int
    reordered: int

    def remarks(self, of_unknown: str) -> list[str]:
        """What a log says of its queries, passages and ranks; ``of_unknown`` is what becomes of unknown passages."""
        remarks = []
        if self.other_queries:
            remarks.append(f"{self.other_queries:,} other queries are passed over")
        if self.unknown:
            remarks.append(f"{self.unknown:,} passages are not in the collection{of_unknown}")
        if self.reordered:
            remarks.append(remark_on_ranks(self.reordered))
        return remarks


def remark_on_ranks(reordered: int) -> str:
    """What a log says of lists whose column of ranks is not the scores' order."""
    return f"in {reordered:,} lists the ranks are not the order of the scores, which decides"


@dataclass(frozen=True)
class Entries:
    """The lines of wanted queries, E in all: the query's row, the passage's place in ``ids``, and the other columns.

    ``query_ids_Q`` are all wanted queries, ``ids`` the passages that the lines name.
    """

    query_ids_Q: Sequence[str]
    ids: list[str]
    row_E: np.ndarray
    place_E: np.ndarray
    score_E: np.ndarray
    rank_E: np.ndarray
    line_E: np.ndarray
    has_scores: bool
    other_queries: int

    def best_first(self) -> np.ndarray:
        """The lines [E] by query, and of each its list: by score; of equal ones the passage whose id is the last."""
        return np.lexsort((order_of_ties(self.ids)[self.place_E], -self.score_E, self.row_E))

    def reordered(self, order_E: np.ndarray) -> int:
        """In how many lists the ranks are not the scores' order, which is ``order_E``, as `best_first` has it."""
        row_E = self.row_E[order_E]
        falls_E = (np.diff(self.rank_E[order_E]) < 0) & (np.diff(row_E) == 0)
        return len(np.unique(row_E[1:][falls_E]))


def read_run(
    path: Path, query_ids_Q: Sequence[str], passage_ids: Sequence[str], unknown_ids: dict[str, int] | None = None
) -> GivenRun:
    """A run, plain or gzipped.

    Scores decide the order, as float32; of equal ones the passage whose id is the last comes first. So does trec_eval,
    which looks at no rank. Of three columns the ranks decide.

    Args:
        path: the file.
        query_ids_Q: the original ids of the wanted queries.
        passage_ids: the original ids of all passages.
        unknown_ids: numbers of passages that the collection lacks, from 0, which several files share; it is added to.

    Raises:
        UserError: with file and line where one is of another form, or a query has a passage or a rank twice; what
            `numbered_lines` finds wrong; the file has none of the queries, or none of the passages.
    """
    entries = read_entries(path, query_ids_Q)
    offset_P = offsets_of(entries.ids, passage_ids)
    unknown_ids = {} if unknown_ids is None else unknown_ids
    for place in np.flatnonzero(offset_P < 0).tolist():
        offset_P[place] = len(passage_ids) + unknown_ids.setdefault(entries.ids[place], len(unknown_ids))
    if (offset_P >= len(passage_ids)).all():
        raise UserError(
            f"{path}: none of its {len(offset_P):,} passages is in the collection; give a run over this one"
        )
    order_E = entries.best_first()
    row_E, passage_E = entries.row_E[order_E], offset_P[entries.place_E[order_E]]
    counts_Q = np.bincount(row_E, minlength=len(query_ids_Q))
    column_E = np.arange(len(row_E)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
    passages_QK = np.full((len(query_ids_Q), int(counts_Q.max())), -1, np.int64)
    scores_QK = np.full(passages_QK.shape, -np.inf, np.float32)
    passages_QK[row_E, column_E], scores_QK[row_E, column_E] = passage_E, entries.score_E[order_E]
    unknown = int((passage_E >= len(passage_ids)).sum())
    reordered = entries.reordered(order_E)
    return GivenRun(passages_QK, scores_QK, entries.has_scores, unknown, entries.other_queries, reordered)


def order_of_ties(ids: Sequence[str]) -> np.ndarray:
    """The place of each id from the last to the first, by its bytes."""
    place_P = np.empty(len(ids), np.int64)
    place_P[sorted(range(len(ids)), key=lambda place: ids[place].encode(), reverse=True)] = np.arange(len(ids))
    return place_P


def read_entries(path: Path, query_ids_Q: Sequence[str] | None = None) -> Entries:
    """The lines of the wanted queries; without any named, of all, in the file's order. UserError as `read_run`."""
    row_of = {query_id: row for row, query_id in enumerate(query_ids_Q or ())}
    place_of: dict[str, int] = {}  # the file's passages, by their first appearance
    integers, scores, others, columns = [array("i") for _ in range(4)], array("f"), set(), 0
    for line, text in numbered_lines(path):
        words = columns_of(text)
        columns = columns or len(words)
        query_id, passage_id, rank, score = parse_line(path, line, words, columns)
        row = row_of.get(query_id) if query_ids_Q is not None else row_of.setdefault(query_id, len(row_of))
        if row is None:
            others.add(query_id)
            continue
        place = place_of.setdefault(passage_id, len(place_of))
        for column, value in zip(integers, (row, place, rank, line), strict=True):
            column.append(value)
        scores.append(score)
    if not scores:
        raise UserError(f"{path} names none of the {len(row_of):,} queries; give a run over this split")
    row_E, place_E, rank_E, line_E = (np.frombuffer(column, np.int32) for column in integers)
    score_E = np.frombuffer(scores, np.float32)
    check_once(path, "passage", row_E, place_E, line_E)
    if columns == MS_MARCO_COLUMNS:
        check_once(path, "rank", row_E, rank_E, line_E)
    named, has_scores = list(row_of) if query_ids_Q is None else query_ids_Q, columns == TREC_COLUMNS
    return Entries(named, list(place_of), row_E, place_E, score_E, rank_E, line_E, has_scores, len(others))


def check_has_scores(path: Path) -> None:
    """UserError where the first line is not that of a run with scores, TREC's six columns."""
    words = columns_of(next(numbered_lines(path))[1])
    parse_line(path, 1, words, len(words))
    if len(words) != TREC_COLUMNS:
        raise UserError(
            f"{path} has {len(words)} columns (query passage rank), so no scores to add; expected TREC's six (query Q0 "
            "passage rank score tag); give the run with its scores"
        )


def parse_line(path: Path, line: int, words: list[str], columns: int) -> tuple[str, str, int, float]:
    """Query, passage, rank and score of a line.

    Args:
        path, line: where it is, for the message.
        words: its columns.
        columns: as many as the first line has; of three the score is the negative rank.

    Raises:
        UserError: they are not a run's.
    """
    if columns not in (TREC_COLUMNS, MS_MARCO_COLUMNS) or len(words) != columns:
        several = f"{columns} as the first line" if columns in (TREC_COLUMNS, MS_MARCO_COLUMNS) else "6 or 3"
        raise UserError(
            f"{path}, line {line}: {len(words)} columns, expected {several}: a TREC run (query Q0 passage rank score "
            "tag) or MS MARCO's (query passage rank); fix the line, or give a run"
        )
    query_id, passage_id, rank = (words[0], *words[2:4]) if columns == TREC_COLUMNS else words
    if not RANK.fullmatch(rank):
        raise UserError(f"{path}, line {line}: the rank is {rank[:40]!r}, expected a whole number; fix the line")
    if columns == MS_MARCO_COLUMNS:
        return query_id, passage_id, int(rank), -float(rank)
    try:
        score = float(words[4]) if "_" not in words[4] else math.nan
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{path}, line {line}: the score is {words[4][:40]!r}, expected a number; fix the line")
    return query_id, passage_id, int(rank), score


def check_once(path: Path, what: str, row_E: np.ndarray, value_E: np.ndarray, line_E: np.ndarray) -> None:
    """A query has no two lines of one value.

    Args:
        path: the file, for the message.
        what: the value is.
        row_E: int32, each line's query.
        value_E: int32, from 0.
        line_E: int32, the lines' numbers, ascending.

    Raises:
        UserError: naming the first line whose value was on an earlier one.
    """
    keys_E = (row_E.astype(np.int64) << 32) | value_E
    order_E = np.argsort(keys_E, kind="stable")
    is_again_E = np.diff(keys_E[order_E]) == 0
    if is_again_E.any():
        line = int(line_E[order_E[1:][is_again_E]].min())
        raise UserError(f"{path}, line {line}: its {what} was on an earlier line of the same query; remove one of them")
