"""data.tokens.token_cache against a padded loop in plain Python."""

from __future__ import annotations

import resource
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tokens.token_cache import TokenCache, TokenCacheWriter, cache_files, open_token_cache
from tests.texts import listed
from utils.errors import UserError

TOKENS = st.integers(0, 69_999)
ROWS = st.lists(st.lists(TOKENS, max_size=9), min_size=1, max_size=20)
NO_LINE_ENDS = st.text(st.characters(exclude_characters="\t\n", exclude_categories=["Cs"]), min_size=1)


def write_cache(directory: Path, rows: list[list[int]], ids: list[str], vocab_size: int, batch: int = 4) -> TokenCache:
    with TokenCacheWriter(directory, "passages", vocab_size) as writer:
        for first in range(0, len(rows), batch):
            writer.append(ids[first : first + batch], rows[first : first + batch])
    assert writer.rows == len(rows)
    return open_token_cache(directory, "passages")


def numbered(count: int) -> list[str]:
    return [f"p{row}" for row in range(count)]


@given(
    data=st.data(),
    rows=ROWS,
    vocab_size=st.sampled_from([10, 65_535, 70_000]),
    max_length=st.integers(1, 12),
    batch=st.integers(1, 7),
)
def test_round_trip(data: st.DataObject, rows: list[list[int]], vocab_size: int, max_length: int, batch: int) -> None:
    rows = [[token % vocab_size for token in row] for row in rows]
    ids = data.draw(st.lists(NO_LINE_ENDS, min_size=len(rows), max_size=len(rows)))
    asked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=30))
    with tempfile.TemporaryDirectory() as directory:
        cache = write_cache(Path(directory), rows, ids, vocab_size, batch)
        assert len(cache) == len(rows)
        assert cache.original_ids() == ids
        stored = cache.stored_ids()
        assert len(stored) == len(ids) and [stored[row] for row in range(-len(ids), len(ids))] == ids * 2
        assert stored[1:3] == ids[1:3] and [*reversed(stored)] == ids[::-1]
        with pytest.raises(IndexError):
            stored[len(ids)]
        tokens_T, offsets_B1 = cache.gather(np.array(asked, dtype=np.int64), max_length)
        wanted = [rows[row] for row in asked]
        assert listed(tokens_T, offsets_B1) == [
            row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in wanted
        ]
        assert tokens_T.dtype == offsets_B1.dtype == np.int64
        assert len(offsets_B1) == len(asked) + 1 and offsets_B1[-1] == len(tokens_T)
        assert cache.lengths(max_length).tolist() == [min(len(row), max_length) for row in rows]
        assert cache.lengths(max_length).dtype == np.int32


@given(row=st.lists(TOKENS, min_size=1, max_size=12), max_length=st.integers(1, 12))
def test_a_cut_text_keeps_its_last_token(row: list[int], max_length: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        tokens_T, offsets_B1 = write_cache(Path(directory), [row], ["x"], 70_000).gather([0], max_length)
    assert tokens_T[-1] == row[-1]
    assert tokens_T[:-1].tolist() == row[: min(len(row), max_length) - 1]
    assert offsets_B1.tolist() == [0, len(tokens_T)] == [0, min(len(row), max_length)]


def test_files_are_what_their_names_say(tmp_path: Path) -> None:
    write_cache(tmp_path, [[5, 6], [], [7]], ["a", "b c", "ü"], 100, batch=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(cache_files("passages"))
    assert np.fromfile(tmp_path / "passages.tokens", dtype="<u2").tolist() == [5, 6, 7]
    assert np.load(tmp_path / "passages.offsets.npy").tolist() == [0, 2, 2, 3]
    assert (tmp_path / "passages.ids.txt").read_text() == "a\nb c\nü\n"


@pytest.mark.parametrize("vocab_size, itemsize", [(65_535, 2), (65_536, 4), (250_002, 4)])
def test_wide_vocabulary_takes_four_bytes(tmp_path: Path, vocab_size: int, itemsize: int) -> None:
    cache = write_cache(tmp_path, [[1, vocab_size - 1]], ["a"], vocab_size)
    assert cache.tokens.dtype.itemsize == itemsize
    assert cache.gather([0], 9)[0].tolist() == [1, vocab_size - 1]


def test_tokens_are_mapped_not_read(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, [[1, 2]], ["a"], 100)
    assert isinstance(cache.tokens.base, np.memmap) and isinstance(cache.offsets_N1.base, np.memmap)
    assert not cache.tokens.flags.writeable


def test_empty_cache(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, [], [], 100)
    assert len(cache) == 0 and cache.original_ids() == [] and cache.lengths(5).shape == (0,)
    assert listed(*cache.gather([], 5)) == []


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, [[1], [2]], ["a", "b"], 100)
    for row in (-1, 2):
        with pytest.raises(IndexError, match="expected 0 to 1"):
            cache.gather([0, row], 5)
    with pytest.raises(ValueError, match="max_length is 0"):
        cache.gather([0], 0)


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), TokenCacheWriter(tmp_path, "passages", 100) as writer:
        writer.append(["a"], [[1, 2]])
        raise RuntimeError("stop")
    with pytest.raises(OverflowError), TokenCacheWriter(tmp_path, "passages", 100) as writer:
        writer.append(["a"], [[70_000]])
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of a file fails the write as a full disk does: here when what was buffered is written out."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = TokenCacheWriter(tmp_path, "passages", 100)
    writer.append(["a"], [[1] * 1000])
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_append_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    with TokenCacheWriter(tmp_path, "passages", 100) as writer:
        for ids, rows in ((["a", "b"], [[1]]), (["a\nb"], [[1]]), ([], [[1]])):
            with pytest.raises(ValueError, match="same texts"):
                writer.append(ids, rows)
        with pytest.raises(ValueError, match="expected uint16"):
            writer.append_flat(["a"], np.array([1]), np.array([1]))
    assert writer.rows == 0


def damage(directory: Path, fault: str) -> None:
    tokens, offsets, ids = (directory / name for name in cache_files("passages"))
    match fault:
        case "tokens cut":
            tokens.write_bytes(tokens.read_bytes()[:-2])
        case "tokens longer":
            tokens.write_bytes(tokens.read_bytes() + b"\0")
        case "tokens missing":
            tokens.unlink()
        case "offsets cut":
            offsets.write_bytes(offsets.read_bytes()[:-8])
        case "offsets empty":
            offsets.write_bytes(b"")
        case "offsets of floats":
            np.save(offsets, np.zeros(3))
        case "ids missing":
            ids.unlink()


@pytest.mark.parametrize(
    "fault",
    [
        "tokens cut",
        "tokens longer",
        "tokens missing",
        "offsets cut",
        "offsets empty",
        "offsets of floats",
        "ids missing",
    ],
)
def test_damaged_cache_is_refused(tmp_path: Path, fault: str) -> None:
    write_cache(tmp_path, [[1, 2, 3], [4]], ["a", "b"], 100)
    damage(tmp_path, fault)
    with pytest.raises(UserError, match=r"run data.msmarco_data again") as caught:
        open_token_cache(tmp_path, "passages")
    assert "passages." in str(caught.value) and "\n" not in str(caught.value)


def test_ids_of_another_number_are_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, [[1], [2]], ["a", "b"], 100)
    (tmp_path / "passages.ids.txt").write_text("a\n")
    for read in (cache.original_ids, lambda: cache.stored_ids()[0]):
        with pytest.raises(UserError, match="has 1 lines, expected 2"):
            read()


def test_stored_ids_hold_eight_bytes_of_an_id_and_going_through_them_none(tmp_path: Path) -> None:
    """Counted by Python's own account of what is allocated; a list takes above sixty."""
    count = 50_000
    stored = write_cache(tmp_path, [[1]] * count, numbered(count), 100).stored_ids()
    tracemalloc.start()
    try:
        assert sum(map(len, stored)) == sum(map(len, numbered(count)))
        held, _ = tracemalloc.get_traced_memory()
        assert held < count
        assert stored[count - 1] == f"p{count - 1}"
        held, _ = tracemalloc.get_traced_memory()
        assert held < 9 * count
    finally:
        tracemalloc.stop()
