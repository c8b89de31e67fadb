"""Maximum inner product search over passages: an index that is built once and searched many times.

The embeddings come in blocks of rows, so that a collection takes no more memory than a block, unless its backend needs
all of them at once. A passage may have several rows and is found by its best one: who searches sees passages only. Ties
break by passage order, whatever the backend.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from utils.errors import UserError
from utils.search.base import RowIndex
from utils.search.fold import first_depth, search_passages
from utils.search.norms import problem_of
from utils.search.registry import backend_of
from utils.search.settings import SearchSettings
from utils.search.source import ROWS_AT_ONCE, Advance, Passages, no_progress, rows_in


class Index:
    """The passages of this process. Close it (`contextlib.closing`) for what its backend holds in memory."""

    def __init__(self, passages: Passages, settings: SearchSettings) -> None:
        self.passages, self.settings = passages, settings
        self.backend = backend_of(settings.backend)
        self.row_index: RowIndex | None = None

    def close(self) -> None:
        """Give up what the backend holds; another search would build it again."""
        if self.row_index is not None:
            self.row_index.close()
            self.row_index = None

    def search(self, queries_QD: np.ndarray, k: int, advance: Advance = no_progress) -> tuple[np.ndarray, np.ndarray]:
        """The k passages of largest inner product of each query, best first. The first search builds the index.

        In memory at a time: the queries, the lists (twice where a backend searches several blocks, or tied lists again;
        of rows and of passages, where those are two), and what ``settings.budget_bytes`` says; all rows where the
        backend holds them.

        Args:
            queries_QD: float. All numbers of passages are finite too, else no order is defined, and each backend makes
                up its own. Who encodes or stores passages sees to theirs: a look at all takes a twentieth of a search.
            k: how many passages.
            advance: told the pairs of a query and a row that are done; what it raises ends the search.

        Returns:
            scores_QK float32 and passages_QK int64, numbers of ``passages``; -inf and -1 where an approximate index
            found fewer than k. K is k, or the number of passages where that is smaller.

        Raises:
            GpuSearchFailed: who searches on several processes has them all use the CPU, which takes many times as long.
            UserError: where a query's numbers or the scores are not finite, or the index cannot be built.
        """
        check_queries(queries_QD)
        passages, k = self.passages, min(k, self.passages.count)
        if k == 0 or not len(queries_QD):
            return np.zeros((len(queries_QD), k), np.float32), np.zeros((len(queries_QD), k), np.int64)

        row_index = self.build(k, advance)
        size_bytes = self.settings.passages_bytes
        if passages.has_row_each:
            found = row_index.search(queries_QD, k, advance)
        else:
            deepest = self.backend.largest_depth(self.settings)
            found = search_passages(row_index, queries_QD, passages, k, deepest, size_bytes, advance)
        check_scores(*found, rows_in(size_bytes, k))
        return found

    def build(self, k: int, advance: Advance) -> RowIndex:
        """The backend's index, for k passages: once, and again on the CPU where the lists of a GPU are too short."""
        device = self.device_for(k)
        if self.row_index is None or device != self.settings.device:
            self.close()
            self.settings = replace(self.settings, device=device)  # asked once: a GPU may have room later, or none
            self.row_index = self.backend.build(self.passages, self.settings, advance)
        return self.row_index

    def device_for(self, k: int) -> torch.device:
        """Where k passages would be searched: the CPU where the backend cannot on ``settings.device``."""
        passages = self.passages  # of which a share may have fewer, or none
        depth = first_depth(passages, min(k, passages.count)) if passages.count else k
        return self.backend.device_for(self.settings, passages.embedding_dim, depth)

    def describe(self, k: int) -> str:
        """What would search for k passages, and where, for the log."""
        return f"{self.settings.backend}, {self.backend.kind(self.settings)}, on {self.device_for(k)}"


def check_queries(queries_QD: np.ndarray) -> None:
    """UserError where a number is not finite, or too large."""
    for start in range(0, len(queries_QD), ROWS_AT_ONCE):
        if problem := problem_of(queries_QD[start : start + ROWS_AT_ONCE]):
            raise UserError(
                f"embeddings of queries {problem}: the model has diverged; resume from an earlier checkpoint"
            )


def check_scores(scores_QK: np.ndarray, passages_QK: np.ndarray, queries_at_once: int) -> None:
    """UserError where a score that has a passage is not finite. A mask of all lists would be gigabytes."""
    for start in range(0, len(scores_QK), queries_at_once):
        part = slice(start, start + queries_at_once)
        if not (np.isfinite(scores_QK[part]) | (passages_QK[part] < 0)).all():
            raise UserError(
                "scores are not finite: the embeddings are too large, or damaged; encode the collection again"
            )
