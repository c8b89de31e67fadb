"""How far negatives go stale: what the next search of the same queries makes of them, by rank bucket."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.mining.candidates import Candidates
from data.mining.negative_lists import NegativeLists, pair_keys
from utils.ir.rank_buckets import NAMES, bucket_of


@dataclass(frozen=True)
class Staleness:
    """Shares by bucket; buckets without a negative are omitted.

    ``rank_retention``: earlier negatives whose rank is in their bucket again. ``jaccard``: the negatives of a bucket,
    then and now, that both have, of those that either has.
    """

    queries: int
    rank_retention: dict[str, float]
    jaccard: dict[str, float]


def staleness_since(before: NegativeLists, now: NegativeLists, candidates: Candidates) -> Staleness:
    """Over the queries that all three have. ``candidates`` are what ``now`` was chosen from."""
    shared = np.intersect1d(np.intersect1d(before.query_Q, now.query_Q), candidates.query_Q)
    before, now = (lists.rows(np.isin(lists.query_Q, shared)) for lists in (before, now))
    order = np.argsort(candidates.query_Q)
    row_Q = order[np.searchsorted(candidates.query_Q, before.query_Q, sorter=order)]
    column_QN = candidates.of(row_Q).columns_of(before.negative_QN)
    held_QN = before.negative_QN >= 0
    bucket_before = bucket_of(before.rank_QN[held_QN])
    is_there = bucket_of(column_QN[held_QN] + 1) == bucket_before
    pairs_before, pairs_now = pairs_of(before), pairs_of(now)
    bucket_now = bucket_of(now.rank_QN[now.negative_QN >= 0])
    rank_retention, jaccard = {}, {}
    for bucket, name in enumerate(NAMES):
        of_bucket = bucket_before == bucket
        if of_bucket.any():
            rank_retention[name] = float(is_there[of_bucket].mean())
        mine, theirs = pairs_before[of_bucket], pairs_now[bucket_now == bucket]
        if len(mine) or len(theirs):
            both = len(np.intersect1d(mine, theirs, assume_unique=True))
            jaccard[name] = both / (len(mine) + len(theirs) - both)
    return Staleness(len(shared), rank_retention, jaccard)


def pairs_of(lists: NegativeLists) -> np.ndarray:
    """(query, negative) of every negative, as one number: int64, in the order of ``negative_QN[negative_QN >= 0]``."""
    held_QN = lists.negative_QN >= 0
    query_QN = np.broadcast_to(lists.query_Q[:, None], held_QN.shape)
    return pair_keys(query_QN[held_QN], lists.negative_QN[held_QN])
