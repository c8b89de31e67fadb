"""An exact index by length: rows stand from the longest to the shortest, and a search ends where none can matter.

python -m tests.toys.by_norm drivers.run_ann_data_gen --search_backend by_norm FLAGS…

An inner product is at most the product of the two norms (Cauchy and Schwarz): once the next row is too short for the
last place of a query's list, so are all that follow.
"""

import sys

import numpy as np

from utils.program import start
from utils.search.base import Backend, RowIndex
from utils.search.ranked_lists import merge_top_k
from utils.search.registry import BACKENDS, BackendWord
from utils.search.settings import SearchSettings
from utils.search.source import Advance, Passages, all_at_once

ROWS_AT_ONCE = 64
ROUNDING = 1 + 1e-5  # of a product in float32


class NormBackend(Backend):
    def build(self, passages: Passages, settings: SearchSettings, advance: Advance) -> RowIndex:
        return NormIndex(passages, advance)


class NormIndex:
    """All rows in memory, sorted once."""

    def __init__(self, passages: Passages, advance: Advance) -> None:
        rows_ND = all_at_once(passages)
        norms_N = np.linalg.norm(rows_ND, axis=1)
        self.order_N = np.argsort(-norms_N, kind="stable")
        self.rows_ND, self.norms_N = rows_ND[self.order_N], norms_N[self.order_N]
        advance(0)

    def search(self, queries_QD: np.ndarray, k: int, advance: Advance) -> tuple[np.ndarray, np.ndarray]:
        queries, rows = len(queries_QD), len(self.order_N)
        norm_Q = np.linalg.norm(queries_QD, axis=1) * ROUNDING
        scores_QK, rows_QK = np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1)
        for first in range(0, rows, ROWS_AT_ONCE):
            if (norm_Q * self.norms_N[first] < scores_QK[:, -1]).all():
                advance(queries * (rows - first))
                break
            held_MD, row_M = self.rows_ND[first : first + ROWS_AT_ONCE], self.order_N[first : first + ROWS_AT_ONCE]
            row_QM = np.broadcast_to(row_M, (queries, len(row_M)))
            scores_QK, rows_QK = merge_top_k([scores_QK, queries_QD @ held_MD.T], [rows_QK, row_QM], k)
            advance(queries * len(row_M))
        return scores_QK, rows_QK

    def close(self) -> None:
        del self.rows_ND


BACKENDS["by_norm"] = BackendWord("rows by length, always exact", "tests.toys.by_norm:NormBackend")

if __name__ == "__main__":
    start(sys.argv[1:])
