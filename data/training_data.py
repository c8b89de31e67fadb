"""The ann_training_data format, and training batches made from it.

One line per query, tab-separated: query_offset, positive_offset, negatives (comma-separated offsets):
ANCE's three columns. Then two that ANCE's reader ignores: the negatives' raw ranks and their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import chain, count
from pathlib import Path

import numpy as np

from data.triple_order import triple_order, triples_of_a_round
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


def write_negative_lists(path: Path, lists: NegativeLists, positives: tuple[np.ndarray, np.ndarray]) -> None:
    """Write the format above.

    ``positives`` is (query_P, passage_P), sorted. AssertionError where a known positive is among the
    negatives of its query, or a negative is repeated: that is a bug, never a user's mistake.
    """
    assert not is_positive(lists.query_Q[:, None], lists.negative_QN, positives).any(), "a positive as a negative"
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
    """UserError where a row names a query or passage that the collection does not have."""
    largest = max(int(lists.positive_Q.max()), int(lists.negative_QN.max(initial=-1)))
    if int(lists.query_Q.max()) >= queries or largest >= passages:
        raise UserError(
            f"{path} names query {lists.query_Q.max()} and passage {largest}, the collection has {queries} train "
            f"queries and {passages} passages: it was made from another --data_dir"
        )


@dataclass(frozen=True)
class Triples:
    """The (query, positive, negative) offsets of one batch, all ranks' together: int64 [T] each.

    ``rank_T`` are the negatives' ranks in the search that found them, 0 where they are unknown.
    """

    query_T: np.ndarray
    positive_T: np.ndarray
    negative_T: np.ndarray
    rank_T: np.ndarray | None = None

    def part(self, rank: int, ranks: int) -> Triples:
        """The rank's equal, contiguous share."""
        size = len(self.query_T) // ranks
        mine = slice(rank * size, (rank + 1) * size)
        rank_T = None if self.rank_T is None else self.rank_T[mine]
        return Triples(self.query_T[mine], self.positive_T[mine], self.negative_T[mine], rank_T)


def batches_of_triples(
    lists: NegativeLists, group_size: int, batch_triples: int, seed: int, stream: int, start: int = 0
) -> Iterator[Triples]:
    """Endless batches of ``batch_triples``, one round of `triple_order` after another.

    The order depends on (seed, stream, query, round) alone; ``stream`` is the refresh number. ``start`` skips
    that many batches, to go on where an interrupted run was. A batch may span several rounds.
    UserError where there is no triple at all.
    """
    if lists.triples == 0:
        raise UserError("the negatives file holds no negative at all; use a larger --topk_training or collection")
    first, skip = divmod(start * batch_triples, triples_of_a_round(lists, group_size))
    rounds = (
        triple_order(lists, group_size, seed, stream, number, skip if number == first else 0) for number in count(first)
    )
    left: list[tuple[np.ndarray, np.ndarray]] = []
    available = 0
    for part in chain.from_iterable(rounds):
        left.append(part)
        available += len(part[0])
        if available < batch_triples:
            continue
        row_T, column_T = (np.concatenate(parts) for parts in zip(*left, strict=True))
        used = 0
        while available - used >= batch_triples:
            row, column = row_T[used : used + batch_triples], column_T[used : used + batch_triples]
            yield Triples(
                lists.query_Q[row], lists.positive_Q[row], lists.negative_QN[row, column], lists.rank_QN[row, column]
            )
            used += batch_triples
        left, available = [(row_T[used:], column_T[used:])], available - used


@dataclass(frozen=True)
class Batch:
    """One rank's batch as the model takes it: each different query and passage once.

    ``query_index_T`` and the others say which rows make up triple t. For the in-batch loss,
    ``allowed_TG`` marks which passages of all ranks (rank after rank, each rank's in its own row order)
    triple t is scored against, and ``target_T`` is its positive's place among them.
    """

    query_ids_BL: np.ndarray
    query_lengths_B: np.ndarray
    passage_ids_ML: np.ndarray
    passage_lengths_M: np.ndarray
    query_index_T: np.ndarray
    positive_index_T: np.ndarray
    negative_index_T: np.ndarray
    allowed_TG: np.ndarray | None = None
    target_T: np.ndarray | None = None
    negative_rank_T: np.ndarray | None = None


Gather = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # rows_B -> (ids_BL, lengths_B)


def make_batch(
    triples: Triples,
    rank: int,
    ranks: int,
    gather_queries: Gather,
    gather_passages: Gather,
    positives: tuple[np.ndarray, np.ndarray] | None = None,
) -> Batch:
    """Look up the tokens of the rank's share of ``triples``.

    With ``positives`` the batch is made for the in-batch loss: known positives of a query are masked out
    of its negatives, and a passage that several ranks hold counts once.
    """
    mine = triples.part(rank, ranks)
    query_B, query_index_T = np.unique(mine.query_T, return_inverse=True)
    passage_M, both_2T = np.unique(np.concatenate([mine.positive_T, mine.negative_T]), return_inverse=True)
    positive_index_T, negative_index_T = np.split(both_2T, 2)
    allowed_TG = target_T = None
    if positives is not None:
        allowed_TG, target_T = in_batch_mask(triples, rank, ranks, positives)
    return Batch(
        *gather_queries(query_B),
        *gather_passages(passage_M),
        query_index_T=query_index_T,
        positive_index_T=positive_index_T,
        negative_index_T=negative_index_T,
        allowed_TG=allowed_TG,
        target_T=target_T,
        negative_rank_T=mine.rank_T,
    )


def in_batch_mask(
    triples: Triples, rank: int, ranks: int, positives: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """``allowed_TG`` and ``target_T`` of `Batch`. Every rank knows the whole batch, so nothing is sent."""
    parts = [triples.part(r, ranks) for r in range(ranks)]
    passage_G = np.concatenate([np.unique(np.concatenate([p.positive_T, p.negative_T])) for p in parts])
    different, first_G = np.unique(passage_G, return_index=True)
    counts_once_G = np.zeros(len(passage_G), bool)
    counts_once_G[first_G] = True
    mine = parts[rank]
    target_T = first_G[np.searchsorted(different, mine.positive_T)]
    allowed_TG = counts_once_G & ~is_positive(mine.query_T[:, None], passage_G[None, :], positives)
    allowed_TG[np.arange(len(target_T)), target_T] = True
    return allowed_TG, target_T
