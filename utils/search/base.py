"""What a search backend owes: an index over rows. `utils.search.index` makes passages of them.

A backend of your own is one file with a `Backend`, and its word in `utils.search.registry.BACKENDS`.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Protocol

import numpy as np
import torch

from utils.search.settings import SearchSettings
from utils.search.source import Advance, Passages


class RowIndex(Protocol):
    """The rows of one process, in whatever form a backend searches them; made by `Backend.build`."""

    def search(self, queries_QD: np.ndarray, k: int, advance: Advance) -> tuple[np.ndarray, np.ndarray]:
        """The k rows of largest inner product of each query, best first, ties by row.

        Args:
            queries_QD: float, all finite, one query at least.
            k: from 1 to the number of rows.
            advance: to be told the pairs of a query and a row that are done, every few seconds; what it raises ends
                the search.

        Returns:
            scores_QK float32 and rows_QK int64, -inf and -1 where an approximate index found fewer than k. The caller
            may write into them.

        Raises:
            GpuSearchFailed: where the GPU cannot, for want of memory or of anything else; the CPU searches then, in
                another index. An index that is never on a GPU does not raise it.
        """

    def close(self) -> None:
        """Give up what it holds in memory. Nothing is called afterwards."""


class Backend:
    """A kind of index, by the word of --search_backend. `build` is owed; the rest is that of exact search on the CPU.

    Its lists are exact unless an option of its own asks for less: the word itself decides nothing in a run's result,
    so that a run may be resumed with another one.
    """

    package = ""  # the Python package that it needs, next to numpy and torch
    options: tuple[str, ...] = ()  # those of `settings.OPTIONS` that it reads; a user may give no others

    def build(self, passages: Passages, settings: SearchSettings, advance: Advance) -> RowIndex:
        """The index of one process's rows.

        Args:
            passages: one row at least; their ``blocks`` may be gone through now, or in each search.
            settings: ``device`` is one on which it can search (`device_for`); ``budget_bytes`` is kept where it can be.
            advance: as in a search; told of 0 pairs every few seconds.

        Raises:
            UserError: where it cannot be built as the options say.
            GpuSearchFailed: as in a search.
        """
        raise NotImplementedError

    def is_installed(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None

    def check(self, settings: SearchSettings, embedding_dim: int, rows: int) -> None:
        """UserError where the options do not fit each other, or an index of at most so many rows.

        Called before hours of encoding, of what a build would find after them.
        """

    def searches_on(self, device: torch.device) -> bool:
        """Whether it can use devices of this type, as it is installed."""
        return device.type == "cpu"

    def refusal(self, settings: SearchSettings, embedding_dim: int) -> str:
        """Why it does not have what the options say on ``settings.device``, which it can use; "" where it has."""
        return ""

    def largest_depth(self, settings: SearchSettings) -> int:
        """The most rows that a list may have on ``settings.device``."""
        return sys.maxsize

    def kind(self, settings: SearchSettings) -> str:
        """What is said of the index in the log, next to the backend's word."""
        return "exact"

    def device_for(self, settings: SearchSettings, embedding_dim: int, depth: int) -> torch.device:
        """Where lists of ``depth`` rows are searched: on ``settings.device``, or on the CPU where it cannot there."""
        device = settings.device
        can_search = self.searches_on(device) and depth <= self.largest_depth(settings)
        return device if can_search and not self.refusal(settings, embedding_dim) else torch.device("cpu")
