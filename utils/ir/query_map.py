"""A query's neighbourhood in a model's space, on disk: the only module that spells the names of its two files.

``neighbourhood.npz`` holds what `Neighbourhood` says of its N texts; ``neighbourhood.json`` is written after it and
vouches for it: no byte of either can differ unseen.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError, one_line
from utils.exchange.atomic import dump_with_checksum, load_with_checksum, publish_file, sha256_of, write_text
from utils.exchange.layout import QUERY_MAP_ARRAYS, QUERY_MAP_RECORD
from utils.exchange.verify import Expected, Words, verify_files

ADVICE = "run drivers.run_neighbourhood again"
WORDS = Words(
    missing=f"{{path}} is missing, {QUERY_MAP_RECORD} next to it expects it; {ADVICE}",
    sha256=f"{{path}}: its sha256 differs from what {QUERY_MAP_RECORD} says: it is damaged; {ADVICE}",
)

KINDS = ("query", "positive", "negative", "background")
QUERY, POSITIVE, NEGATIVE, BACKGROUND = range(len(KINDS))  # the values of ``kind_N``
NO_RANK, NOT_NEGATIVE = 0, -1  # the values of ``rank_AN`` that are no rank


@dataclass(frozen=True)
class Neighbourhood:
    """N texts, the query first, then passages, each once; and the A arms whose negatives are among them.

    ``embedding_ND`` float32 are the model's embeddings; ``passage_N`` int64 the passages' offsets, -1 for the query;
    ``kind_N`` int8 what each is. ``rank_AN`` int32 is a passage's rank in the search that an arm's negatives are from:
    NO_RANK where that did not return it, NOT_NEGATIVE where it is no negative of the arm. ``files`` are the arms' files
    of negatives, each with as much of its path as tells which arm and refresh it is of.
    """

    query_id: str
    arms: tuple[str, ...]
    files: tuple[str, ...]
    model: str
    embedding_ND: np.ndarray
    passage_N: np.ndarray
    kind_N: np.ndarray
    rank_AN: np.ndarray

    def count(self, kind: int) -> int:
        return int((self.kind_N == kind).sum())


def write_neighbourhood(directory: Path, found: Neighbourhood, more: Mapping[str, object]) -> Path:
    """Publish both files, whole, the record last; ``more`` goes into it. Returns the record's path.

    UserError where an embedding is not finite.
    """
    check_shapes(directory / QUERY_MAP_ARRAYS, found)

    def write(staged: Path) -> str:
        np.savez(
            staged,
            embedding=found.embedding_ND.astype(np.float32),
            passage=found.passage_N.astype(np.int64),
            kind=found.kind_N.astype(np.int8),
            rank=found.rank_AN.astype(np.int32),
        )
        return sha256_of(staged)

    sha256 = publish_file(directory / QUERY_MAP_ARRAYS, write)
    passages = len(found.passage_N) - found.count(QUERY)
    own = {
        "query_id": found.query_id,
        "arms": list(found.arms),
        "files": list(found.files),
        "model": found.model,
        "passages": passages,
    }
    write_text(directory / QUERY_MAP_RECORD, dump_with_checksum({**own, **more, "sha256": sha256}))
    return directory / QUERY_MAP_RECORD


def read_neighbourhood(directory: Path) -> Neighbourhood:
    """UserError where one of the files is missing, damaged or of another run."""
    record, path = load_with_checksum(directory / QUERY_MAP_RECORD), directory / QUERY_MAP_ARRAYS
    verify_files({path: Expected(None, str(record.get("sha256")))}, WORDS)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = [stored[name] for name in ("embedding", "passage", "kind", "rank")]
        found = Neighbourhood(
            record["query_id"], tuple(record["arms"]), tuple(record["files"]), record["model"], *arrays
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{directory} holds no neighbourhood ({one_line(error)}); {ADVICE}") from None
    check_shapes(path, found)
    return found


def check_shapes(path: Path, found: Neighbourhood) -> None:
    """UserError where the arrays do not fit each other, do not begin with the query, or an embedding is not finite."""
    count = len(found.passage_N)
    shapes = [found.passage_N.shape, found.kind_N.shape, found.rank_AN.shape, found.embedding_ND.shape[:1]]
    if shapes != [(count,), (count,), (len(found.arms), count), (count,)]:
        raise UserError(f"{path}: arrays of {shapes} for {len(found.arms)} arms do not fit; {ADVICE}")
    if not np.isfinite(found.embedding_ND).all():
        raise UserError(f"{path}: embeddings that are not finite: the model has diverged; take another, and {ADVICE}")
    if found.kind_N[:1].tolist() != [QUERY] or found.count(QUERY) != 1:
        raise UserError(f"{path}: expected one query, as the first text; {ADVICE}")
