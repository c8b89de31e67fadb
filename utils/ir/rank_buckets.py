"""Ranks in buckets: the same ones, under the same names, wherever something is counted or averaged by rank."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

FIRST_RANKS = (1, 6, 21, 51, 101, 201, 501, 1001)  # of each bucket
NOT_RETRIEVED = "none"  # process 0: what the search did not return
NAMES = (
    NOT_RETRIEVED,
    *(f"{first}-{after - 1}" for first, after in pairwise(FIRST_RANKS)),
    f"{FIRST_RANKS[-1]}-",
)

MEASURED = ("loss", "gradient", "satisfied")  # of the triples of a bucket, by the trainer
TRIPLES = "triples"  # how many these were


def logged_name(bucket: str, what: str) -> str:
    """In metrics.jsonl and TensorBoard."""
    return f"rank_{bucket}_{what}"


def first_and_last(name: str) -> tuple[int, int]:
    """The ranks of a bucket; (0, 0) of NOT_RETRIEVED, and a last rank beyond all lists of the open one."""
    firsts = (0, *FIRST_RANKS, 2**31)
    place = NAMES.index(name)
    return firsts[place], firsts[place + 1] - 1


def bucket_of(ranks: np.ndarray) -> np.ndarray:
    """The index in NAMES of each rank: int64, of the same shape."""
    return np.searchsorted(np.array(FIRST_RANKS), ranks, side="right")


def counted(ranks: np.ndarray) -> dict[str, int]:
    """How many of the ranks fall into each bucket; buckets without any are omitted."""
    counts = np.bincount(bucket_of(ranks).ravel(), minlength=len(NAMES))
    return {name: int(count) for name, count in zip(NAMES, counts, strict=True) if count}
