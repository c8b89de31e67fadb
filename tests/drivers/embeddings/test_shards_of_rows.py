"""Shards of passages with several rows: what is there is stored, one row after the other, and said to be whose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drivers.embeddings.read_shards import stored_passages
from drivers.embeddings.shards import Shards, fault_of, publish_shard
from model.encode import check_finite, present_rows
from utils.errors import UserError
from utils.search.source import all_at_once

TEXTS, ROWS, DIM = 70, 3, 4


def made_up_texts() -> np.ndarray:
    """[M, R, D], NaN where a row is not there."""
    rng = np.random.default_rng(1)
    texts_MRD = rng.standard_normal((TEXTS, ROWS, DIM)).astype(np.float32)
    texts_MRD[np.arange(ROWS) >= rng.integers(1, ROWS + 1, TEXTS)[:, None]] = np.nan
    return texts_MRD


def published(directory: Path, storage: str = "fp32") -> Shards:
    shards = Shards(directory, "passages", TEXTS, DIM, 32, storage, "ab" * 32, "cd" * 32, rows_per_text=ROWS)
    for number in range(len(shards)):
        start, stop = shards.bounds(number)
        publish_shard(shards, number, (made_up_texts()[a : min(a + 9, stop)] for a in range(start, stop, 9)))
    return shards


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_what_is_stored_is_read(tmp_path: Path, storage: str, rows_at_once: int) -> None:
    shards, texts_MRD = published(tmp_path, storage), made_up_texts()
    for first, last in ((0, 3), (1, 3), (2, 3), (1, 1)):
        passages = stored_passages(shards, first, last)
        start, stop = shards.bounds(first)[0], shards.bounds(last)[0]
        expected = [
            (owner, row)
            for owner, rows in enumerate(texts_MRD[start:stop].tolist())
            for row in rows
            if not np.isnan(row).any()
        ]
        assert passages.row_to_passage is not None
        assert passages.row_to_passage.tolist() == [owner for owner, _ in expected]
        assert passages.count == stop - start
        found_ND = all_at_once(passages, rows_at_once)
        wanted_ND = np.array([row for _, row in expected], np.float32).reshape(-1, DIM)
        np.testing.assert_array_equal(found_ND, wanted_ND.astype(shards.dtype).astype(np.float32))
    assert all(fault_of(shards, number) is None for number in range(3))
    lying = {path.name for path in tmp_path.iterdir() if path.is_file()}
    names = {f"passages-{number * 32:010d}" for number in range(3)}
    assert lying == {f"{name}{end}" for name in names for end in (".npy", ".json", ".rows.npy")}


def test_a_damaged_or_missing_map_is_found(tmp_path: Path) -> None:
    shards = published(tmp_path)
    path = shards.counts_path(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\2")
    assert "sha256 differs" in (fault_of(shards, 1) or "") and path.name in (fault_of(shards, 1) or "")
    for counts_M in (np.zeros(32, np.int32), np.ones(31, np.int32)):
        np.save(path, counts_M)
        with pytest.raises(UserError, match="is of other texts, or damaged; start again"):
            stored_passages(shards, 0, 3)
    path.unlink()
    assert f"{path} is missing" in (fault_of(shards, 1) or "")
    with pytest.raises(UserError, match="missing or damaged; start again"):
        stored_passages(shards, 0, 3)


def test_rows_that_are_not_there_are_not_looked_at_and_the_others_are() -> None:
    texts_MRD = made_up_texts()
    rows_ND, counts_M = present_rows(texts_MRD)
    assert counts_M.tolist() == (~np.isnan(texts_MRD).any(2)).sum(1).tolist() and np.isfinite(rows_ND).all()
    assert check_finite(texts_MRD) is texts_MRD
    for place, number in (((5, 0, 2), np.nan), ((5, 0, 0), np.nan), ((np.flatnonzero(counts_M > 1)[0], 1, 1), np.inf)):
        damaged_MRD = texts_MRD.copy()
        damaged_MRD[place] = number
        with pytest.raises(UserError, match="are not finite"):
            check_finite(damaged_MRD)
