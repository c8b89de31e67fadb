"""Candidates: what a search returned for each train query, of which negatives are chosen; and their file.

``ann_candidates_N.npz`` holds ``query`` int32 [Q], ``passage`` int32 [Q, K] (-1 after a list's end) and ``score``
float32 [Q, K], the queries in the collection's order.
"""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.mining.negative_lists import pair_keys
from data.tokens.collection import Preprocessed
from utils.errors import UserError, one_line
from utils.exchange import negatives


@dataclass(frozen=True)
class Candidates:
    """``query_Q`` int64; ``passage_QK`` int64 (K above 0), best first, -1 after the end; ``score_QK`` float32."""

    query_Q: np.ndarray
    passage_QK: np.ndarray
    score_QK: np.ndarray

    def of(self, rows: np.ndarray) -> Candidates:
        return Candidates(self.query_Q[rows], self.passage_QK[rows], self.score_QK[rows])

    def cut(self, topk: int) -> Candidates:
        """The best ``topk`` of each query."""
        return Candidates(self.query_Q, self.passage_QK[:, :topk], self.score_QK[:, :topk])

    @functools.cached_property
    def _sorted_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, passage) of each candidate as one number, ascending, and its place in ``passage_QK``, flat."""
        row_Q1 = np.arange(len(self.passage_QK))[:, None]
        keys = pair_keys(np.broadcast_to(row_Q1, self.passage_QK.shape), self.passage_QK + 1).ravel()  # 0: none
        order = np.argsort(keys)
        return keys[order], order

    def columns_of(self, passage_QM: np.ndarray) -> np.ndarray:
        """The column of each passage among its query's candidates, -1 where it is none of them: int64 [Q, M]."""
        keys, order = self._sorted_keys
        row_Q1 = np.arange(len(passage_QM))[:, None]
        wanted_QM = pair_keys(np.broadcast_to(row_Q1, passage_QM.shape), passage_QM + 1)
        found_QM = np.minimum(np.searchsorted(keys, wanted_QM), len(keys) - 1)
        is_there_QM = (keys[found_QM] == wanted_QM) & (passage_QM >= 0)
        return np.where(is_there_QM, order[found_QM] % self.passage_QK.shape[1], -1)


def write_candidates(path: Path, candidates: Candidates) -> None:
    with path.open("wb") as file:  # savez would add an ending to a name
        np.savez(
            file,
            query=candidates.query_Q.astype(np.int32),
            passage=candidates.passage_QK.astype(np.int32),
            score=candidates.score_QK.astype(np.float32),
        )


def read_candidates(path: Path) -> Candidates:
    """UserError where the file is missing or not of the format above."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            query_Q, passage_QK, score_QK = stored["query"], stored["passage"], stored["score"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no candidates ({one_line(error)}); make it with --keep_candidates") from None
    is_whole = query_Q.ndim == 1 and passage_QK.shape == score_QK.shape and passage_QK.shape[:1] == query_Q.shape
    if not (is_whole and passage_QK.ndim == 2 and passage_QK.size):
        raise UserError(f"{path}: shapes {query_Q.shape}, {passage_QK.shape}, {score_QK.shape}; make it again")
    return Candidates(query_Q.astype(np.int64), passage_QK.astype(np.int64), score_QK)


@dataclass(frozen=True)
class Bm25Source:
    """What the strategy ``bm25`` takes from."""

    candidates: Candidates
    sha256: str


def read_bm25(bm25_dir: str, collection: Preprocessed) -> Bm25Source:
    """The candidates in an output directory of drivers.run_bm25. UserError where they are not of this collection."""
    if not bm25_dir:
        raise UserError("the strategy bm25 needs --bm25_dir: the output of drivers.run_bm25 --keep_candidates")
    found = negatives.read_kept_candidates(Path(bm25_dir), 0)
    theirs, ours = found.record.get("collection_fingerprint"), collection.manifest["collection_fingerprint"]
    if theirs != ours:
        raise UserError(
            f"--bm25_dir {bm25_dir} is of another collection than {collection.directory}; make it from that"
        )
    return Bm25Source(read_candidates(found.path), str(found.record["candidates"]["sha256"]))
