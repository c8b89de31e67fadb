"""Random choices for negatives, functions of (seed, refresh, query) alone, not of batching or processes."""

from __future__ import annotations

import numpy as np

# What the keys are for: draws for one purpose tell nothing about another's.
FOR_NEGATIVES, FOR_POSITIVES, FOR_LINE_ORDER, FOR_TURNS, FOR_TRIPLES = range(5)
FOR_LATER_SAMPLERS = 16  # and above: the second and further samplers of a mixture
LARGEST_KEY = np.iinfo(np.uint64).max


def mixed_bits(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): uint64 in, well mixed uint64 out."""
    mixed = values.astype(np.uint64)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def random_keys(
    seed: int, refresh: int, purpose: int, query_Q: np.ndarray, width: int, first: int | np.ndarray = 0
) -> np.ndarray:
    """Keys for random choices: functions of (seed, refresh, purpose, query, column) alone.

    Args:
        seed: The run's.
        refresh: The number of the refresh.
        purpose: One of the numbers above, so that draws for one purpose tell nothing about another's.
        query_Q: int64 [Q], rows of train-query.
        width: How many keys each query gets.
        first: The column of a query's first key: of all queries, or [Q].
    Returns:
        uint64 [Q, width]
    Source:
        splitmix64 (Steele, Lea and Flood 2014), as `mixed_bits`.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    state_Q = np.zeros(len(query_Q), np.uint64)
    for word in (seed, refresh, purpose, query_Q):
        state_Q = mixed_bits(state_Q + golden + np.asarray(word).astype(np.uint64))
    column_QW = np.asarray(first).reshape(-1, 1) + np.arange(1, width + 1)
    return mixed_bits(state_Q[:, None] + column_QW.astype(np.uint64) * golden)


def exponential_keys(keys_QW: np.ndarray, weight_W: np.ndarray) -> np.ndarray:
    """Arrival times: the n earliest are n draws without replacement, each in proportion to its weight.

    Efraimidis and Spirakis 2006; the columns of ``keys_QW`` are the contestants.
    """
    uniform_QW = (keys_QW.astype(np.float64) + 1) / 2.0**64
    return -np.log(uniform_QW) / weight_W


def k_smallest_mask(keys_QK: np.ndarray, eligible_QK: np.ndarray, count: int) -> np.ndarray:
    """bool [Q, K]: the ``count`` smallest keys of those eligible, or all of these where they are fewer.

    Keys are uint64 or float, distinct in a row.
    """
    largest = np.inf if keys_QK.dtype.kind == "f" else LARGEST_KEY
    keys_QK = np.where(eligible_QK, keys_QK, largest)
    drawn = min(count, keys_QK.shape[1])
    last_Q1 = np.partition(keys_QK, drawn - 1, axis=1)[:, drawn - 1 : drawn]
    return np.asarray(eligible_QK & (keys_QK <= last_Q1))


def repeats_in_row(values_QW: np.ndarray) -> np.ndarray:
    """bool [Q, W]: what stands further left in its row already."""
    order_QW = np.argsort(values_QW, axis=1, kind="stable")
    sorted_QW = np.take_along_axis(values_QW, order_QW, axis=1)
    repeats_QW = np.zeros(values_QW.shape, bool)
    np.put_along_axis(repeats_QW, order_QW[:, 1:], sorted_QW[:, 1:] == sorted_QW[:, :-1], axis=1)
    return repeats_QW
