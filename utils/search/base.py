"""What a search backend owes: an index over rows. `utils.search.index` makes passages of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from utils.search.settings import SearchSettings
from utils.search.source import Advance, Passages


class RowIndex(Protocol):
    """The rows of one process, in whatever form a backend searches them; made by an `IndexBuilder`."""

    def search(self, queries_QD: np.ndarray, k: int, advance: Advance) -> tuple[np.ndarray, np.ndarray]:
        """The k rows of largest inner product of each query, best first, ties by row.

        Arguments: float queries_QD, all finite and at least one; k from 1 to the number of rows; ``advance``, to be
        told the pairs of a query and a row that are done, every few seconds: what it raises ends the search.
        Returns scores_QK float32 and rows_QK int64, -inf and -1 where an approximate index found fewer than k.
        The caller may write into them. Raises GpuSearchFailed where a GPU cannot, and the CPU shall in its place.
        """

    def close(self) -> None:
        """Give up what it holds in memory."""


class IndexBuilder(Protocol):
    """Makes a `RowIndex` of at least one row, on ``settings.device``, in ``settings.budget_bytes`` where it can.

    ``passages.blocks`` may be gone through now or in each search. Errors and ``advance`` as in a search.
    """

    def __call__(self, passages: Passages, settings: SearchSettings, advance: Advance) -> RowIndex: ...
