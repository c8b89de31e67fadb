"""Maximum inner product search over passages: an index that is built once and searched many times.

Exact by faiss, torch or another registered backend; approximate by any faiss index. The embeddings come in blocks of
rows, so that a collection takes no more memory than a block; an index other than Flat needs all of them at once. A
passage may have several rows and is found by its best one: who searches sees passages only. Ties break by passage
order, whatever the backend.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np

from utils.errors import UserError
from utils.search.base import RowIndex
from utils.search.fold import first_depth, search_passages
from utils.search.norms import problem_of
from utils.search.registry import builder_of
from utils.search.settings import SearchSettings, largest_depth, with_search_device
from utils.search.source import ROWS_AT_ONCE, Advance, Passages, no_progress, rows_in


class Index:
    """The passages of this process. Use it in a ``with``, or close it, for what its backend holds in memory."""

    def __init__(self, passages: Passages, settings: SearchSettings) -> None:
        self.passages, self.settings = passages, settings
        self.row_index: RowIndex | None = None

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what the backend holds; another search would build it again."""
        if self.row_index is not None:
            self.row_index.close()
            self.row_index = None

    def search(self, queries_QD: np.ndarray, k: int, advance: Advance = no_progress) -> tuple[np.ndarray, np.ndarray]:
        """The k passages of largest inner product of each query, best first.

        Returns scores_QK float32 and passages_QK int64 (numbers of ``passages``; -1 and -inf where an
        approximate index found fewer than k). K is k, or the number of passages where that is smaller.
        In memory at a time: the queries, the lists (twice where faiss takes several blocks, or searches tied lists
        again; of rows and of passages, where those are two), and what ``settings.budget_bytes`` says; all rows for an
        index other than Flat. The first search builds what the later ones use.
        An exception that ``advance`` raises ends the search. GpuSearchFailed where faiss fails on a GPU: who searches
        on several processes has them all use the CPU, which takes many times as long.
        All numbers are finite: else no order is defined, and each backend makes up its own. Who encodes passages or
        stores them sees to theirs, since a look at all of them takes a twentieth of a search. UserError where a
        query's are not.
        """
        check_queries(queries_QD)
        k = min(k, self.passages.count)
        if k == 0 or not len(queries_QD):
            return np.zeros((len(queries_QD), k), np.float32), np.zeros((len(queries_QD), k), np.int64)

        passages = self.passages
        row_index = self.build(first_depth(passages, k), advance)
        if passages.row_to_passage is None:
            found = row_index.search(queries_QD, k, advance)
        else:
            deepest = largest_depth(self.settings, passages.rows)
            size_bytes = self.settings.passages_bytes
            found = search_passages(row_index, queries_QD, passages, k, deepest, size_bytes, advance)
        check_scores(*found, rows_in(self.settings.passages_bytes, k))
        return found

    def build(self, depth: int, advance: Advance) -> RowIndex:
        """The backend's index, for lists of ``depth`` rows: once, and again on the CPU where a GPU's are too short."""
        settings = with_search_device(self.settings, self.passages.embedding_dim, depth)
        if self.row_index is None or settings != self.settings:
            self.close()
            self.settings = settings  # asked once: a GPU's memory may have room later, or none
            self.row_index = builder_of(settings.backend)(self.passages, settings, advance)
        return self.row_index


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
