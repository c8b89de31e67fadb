"""Negatives as a table, and the file that carries it, ann_training_data.

One line per query, tab-separated: query_offset, positive_offset, negatives (comma-separated offsets):
ANCE's three columns. Then two that ANCE's reader ignores: the negatives' raw ranks and their scores.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.text_files import read_lines

OFFSET_LIMIT = 2**31  # row numbers are below it, so that a pair of them fits in an int64


@dataclass(frozen=True)
class NegativeLists:
    """One row per query. ``negative_QN`` is -1, ``rank_QN`` 0 and ``score_QN`` 0 after a short row's end."""

    query_Q: np.ndarray
    positive_Q: np.ndarray
    negative_QN: np.ndarray
    rank_QN: np.ndarray
    score_QN: np.ndarray

    @property
    def triples(self) -> int:
        return int((self.negative_QN >= 0).sum())

    def with_negatives(self) -> NegativeLists:
        """Without the queries that have no negative at all: ANCE's reader fails on an empty third column.

        UserError where no query is left.
        """
        kept_Q = (self.negative_QN >= 0).any(1)
        if not kept_Q.any():
            raise UserError(
                f"none of the {len(self.query_Q)} queries has a negative left; raise --topk_training, or filter less"
            )
        return self.rows(np.asarray(kept_Q))

    def rows(self, kept_Q: np.ndarray) -> NegativeLists:
        return NegativeLists(*(getattr(self, field.name)[kept_Q] for field in fields(self)))


def pair_keys(query: np.ndarray, passage: np.ndarray) -> np.ndarray:
    """One int64 for a (query, passage) pair; both are row numbers below OFFSET_LIMIT."""
    return (query.astype(np.int64) << 32) | passage.astype(np.int64)


def is_positive(query: np.ndarray, passage: np.ndarray, positives: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether each pair (broadcast together) is a known positive. ``positives`` is (query_P, passage_P), sorted."""
    known_P = pair_keys(*positives)
    query, passage = np.broadcast_arrays(query, passage)
    if len(known_P) == 0:
        return np.zeros(passage.shape, bool)
    keys = pair_keys(query, np.maximum(passage, 0))
    found = np.minimum(np.searchsorted(known_P, keys), len(known_P) - 1)
    return (known_P[found] == keys) & (passage >= 0)


def write_negative_lists(path: Path, lists: NegativeLists, excluded: tuple[np.ndarray, np.ndarray]) -> None:
    """Write the format above.

    ``excluded`` is (query_P, passage_P), sorted: known positives, own passages. AssertionError where one is among the
    negatives of its query, or a negative is repeated: that is a bug, never a user's mistake.
    """
    assert not is_positive(lists.query_Q[:, None], lists.negative_QN, excluded).any(), "a positive as a negative"
    sorted_QN = np.sort(lists.negative_QN, axis=1)
    assert not ((sorted_QN[:, 1:] == sorted_QN[:, :-1]) & (sorted_QN[:, 1:] >= 0)).any(), "a negative is repeated"
    with path.open("w", encoding="ascii") as file:
        rows = zip(lists.query_Q, lists.positive_Q, lists.negative_QN, lists.rank_QN, lists.score_QN, strict=True)
        for query, positive, negative_N, rank_N, score_N in rows:
            n = int((negative_N >= 0).sum())
            columns = (
                str(query),
                str(positive),
                ",".join(map(str, negative_N[:n].tolist())),
                ",".join(map(str, rank_N[:n].tolist())),
                ",".join(f"{score:.9g}" for score in score_N[:n].tolist()),
            )
            file.write("\t".join(columns) + "\n")


def read_negative_lists(path: Path) -> NegativeLists:
    """Read the format above, or ANCE's three columns (ranks are then 0, scores 0).

    UserError names the file and line that is not of the format, or what `read_lines` finds wrong.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            rows.append(parse_line(line))
        except ValueError:
            raise UserError(
                f"{path}:{number}: not query, positive, negatives in tab-separated columns; generate it again"
            ) from None
    width = max(len(row[2]) for row in rows)
    shape = (len(rows), width)
    negative_QN, rank_QN, score_QN = np.full(shape, -1), np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for i, (_, _, negatives, ranks, scores) in enumerate(rows):
        negative_QN[i, : len(negatives)] = negatives
        rank_QN[i, : len(ranks)] = ranks
        score_QN[i, : len(scores)] = scores
    return NegativeLists(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), negative_QN, rank_QN, score_QN)


def parse_line(line: str) -> tuple[int, int, list[int], list[int], list[float]]:
    """ValueError where the line is not of the format."""
    query, positive, *lists = line.split("\t")
    if len(lists) not in (1, 3) or not line.isascii():  # int() reads the digits of other scripts as well
        raise ValueError(line)
    words = [column.split(",") if column else [] for column in lists]
    negatives = [int(word) for word in words[0]]
    ranks, scores = ([int(word) for word in words[1]], [float(word) for word in words[2]]) if words[1:] else ([], [])
    if words[1:] and not len(negatives) == len(ranks) == len(scores):
        raise ValueError(line)
    if not all(0 <= number < OFFSET_LIMIT for number in (int(query), int(positive), *negatives, *ranks)):
        raise ValueError(line)
    return int(query), int(positive), negatives, ranks, scores


def check_offsets(lists: NegativeLists, queries: int, passages: int, path: Path) -> None:
    """Check that a file's rows are of the collection.

    Args:
        lists: What was read.
        queries: How many train queries the collection has.
        passages: How many passages it has.
        path: The file, for the message.
    Raises:
        UserError: a row names a query or passage that the collection does not have.
    """
    largest = max(int(lists.positive_Q.max()), int(lists.negative_QN.max(initial=-1)))
    if int(lists.query_Q.max()) >= queries or largest >= passages:
        raise UserError(
            f"{path} names query {lists.query_Q.max()} and passage {largest}, the collection has {queries} train "
            f"queries and {passages} passages: it was made from another --data_dir"
        )
