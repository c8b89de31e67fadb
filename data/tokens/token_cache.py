"""Ragged, memory-mapped token ids: what the drivers read instead of text.

Texts are stored back to back without padding, so that a collection takes what its tokens take and a
batch holds no padding either. Three files make a cache:
``NAME.tokens`` (flat uint16, or uint32 for a vocabulary above 65,535), ``NAME.offsets.npy``
(int64 [N+1]; text i is ``tokens[offsets[i]:offsets[i+1]]``) and ``NAME.ids.txt`` (one original id per line).
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, overload

import numpy as np
import numpy.typing as npt

from utils.errors import UserError
from utils.exchange.atomic import replace_synced

LARGEST_UINT16_VOCABULARY = 65_535
ADVICE = "run data.msmarco_data again, into an empty directory"


def cache_files(name: str) -> tuple[str, str, str]:
    """The names of the tokens, offsets and ids files."""
    return f"{name}.tokens", f"{name}.offsets.npy", f"{name}.ids.txt"


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint32 if vocab_size > LARGEST_UINT16_VOCABULARY else np.uint16)


class TokenCacheWriter:
    """Writes a cache as texts arrive, holding none of it; its files appear under their names at `close`, or not at all.

    A context manager: leaving it closes the cache, leaving it by an exception removes what was written.
    """

    def __init__(self, directory: Path, name: str, vocab_size: int) -> None:
        self.paths = [directory / file for file in cache_files(name)]
        self.parts = [path.with_name(f".{path.name}.part") for path in self.paths]
        self.dtype = token_dtype(vocab_size)
        self.rows, self.end = 0, 0
        self.files: list[BinaryIO] = []
        try:
            self.files.extend(part.open("wb", buffering=1 << 20) for part in self.parts)
            self.tokens, self.offsets, self.ids = self.files
            self._write_header()
            self.offsets.write(np.zeros(1, dtype="<i8").tobytes())
        except BaseException:
            self.discard()
            raise

    def append(self, ids: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
        """Add texts by their original ids and token ids. OverflowError for a token id that the dtype cannot hold."""
        lengths_B = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        flat = np.fromiter(chain.from_iterable(rows), dtype=self.dtype, count=int(lengths_B.sum()))
        self.append_flat(ids, flat, lengths_B)

    def append_flat(self, ids: Sequence[str], flat_tokens: np.ndarray, lengths_B: np.ndarray) -> None:
        """Add texts whose token ids lie back to back in ``flat_tokens``, of the cache's dtype."""
        lines = "".join(f"{text_id}\n" for text_id in ids)
        if len(ids) != len(lengths_B) or lines.count("\n") != len(ids) or int(lengths_B.sum()) != len(flat_tokens):
            raise ValueError("ids (without line ends), lengths and tokens must be of the same texts")
        if flat_tokens.dtype != self.dtype:
            raise ValueError(f"tokens are {flat_tokens.dtype}, expected {self.dtype}")
        if not len(ids):
            return
        ends_B = self.end + np.cumsum(lengths_B, dtype="<i8")
        self.tokens.write(np.ascontiguousarray(flat_tokens).data)
        self.offsets.write(ends_B.data)
        self.ids.write(lines.encode())
        self.rows, self.end = self.rows + len(ids), int(ends_B[-1])

    def close(self) -> int:
        """Give the files their names; the number of texts."""
        try:
            self.offsets.seek(0)
            self._write_header()
            for file in self.files:
                file.close()
            for part, path in zip(self.parts, self.paths, strict=True):
                replace_synced(part, path)
        except BaseException:
            self.discard()
            raise
        return self.rows

    def discard(self) -> None:
        """Remove what was written."""
        for file in self.files:
            try:
                file.close()
            except OSError:  # a full disk fails again on the last flush, after which the descriptor is closed
                continue
        for part in self.parts:
            part.unlink(missing_ok=True)

    def _write_header(self) -> None:
        """The .npy header; numpy pads it so that it keeps its size when the length in it grows."""
        shape = {"descr": "<i8", "fortran_order": False, "shape": (self.rows + 1,)}
        np.lib.format.write_array_header_1_0(self.offsets, shape)

    def __enter__(self) -> TokenCacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


@dataclass(frozen=True)
class StoredIds(Sequence[str]):
    """Original ids by row, mapped from their file: going through them holds none, looking one up eight bytes of each.

    A list of MS MARCO's 8.8 million passages' ids takes 0.6 GB, in every process that has one. UserError, once they are
    read, where the file has not as many as it should.
    """

    path: Path
    rows: int

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[str]:
        count = 0
        with self.path.open("rb") as lines:
            for line in lines:
                count += 1
                yield line.removesuffix(b"\n").decode()
        self._check(count)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        (ids, starts_N1), row = self._mapped, range(len(self))[row]
        return ids[starts_N1[row] : starts_N1[row + 1] - 1].decode()

    @functools.cached_property
    def _mapped(self) -> tuple[mmap.mmap | bytes, np.ndarray]:
        """The file, and the place in it where each id starts, int64 [N+1]."""
        with self.path.open("rb") as file:
            ids = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.path.stat().st_size else b""
        ends_N = np.flatnonzero(np.frombuffer(ids, np.uint8) == ord("\n"))
        self._check(len(ends_N))
        return ids, np.concatenate([np.zeros(1, np.int64), ends_N + 1])

    def _check(self, lines: int) -> None:
        if lines != self.rows:
            raise UserError(f"{self.path} has {lines} lines, expected {self.rows}; {ADVICE}")


@dataclass(frozen=True)
class TokenCache:
    """N texts as token ids. ``tokens`` and ``offsets_N1`` (int64 [N+1]) are memory-mapped from the files."""

    name: str
    directory: Path
    tokens: np.ndarray
    offsets_N1: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    def lengths(self, max_length: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """int32 [N]: the tokens of each text, at most ``max_length``; or of the texts [start, stop) alone."""
        stop = len(self) if stop is None else stop
        return np.minimum(np.diff(self.offsets_N1[start : stop + 1]), max_length).astype(np.int32)

    def gather(self, rows_B: npt.ArrayLike, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """The texts ``rows_B`` back to back as (tokens_T, offsets_B1), both int64: text b ends before offsets[b + 1].

        A text of more than ``max_length`` tokens keeps its first ``max_length - 1`` and its last, which is the
        tokenizer's end token: the result equals tokenizing with truncation at ``max_length``.
        IndexError for a row that is not there.
        """
        rows_B = np.asarray(rows_B, dtype=np.int64)
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}, expected at least 1")
        if rows_B.size and not (rows_B.min() >= 0 and rows_B.max() < len(self)):
            raise IndexError(f"{self.name}: rows {rows_B.min()} to {rows_B.max()}, expected 0 to {len(self) - 1}")
        starts_B, ends_B = self.offsets_N1[rows_B], self.offsets_N1[rows_B + 1]
        lengths_B = np.minimum(ends_B - starts_B, max_length)
        offsets_B1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_B)])
        places_T = np.arange(offsets_B1[-1]) + np.repeat(starts_B - offsets_B1[:-1], lengths_B)
        tokens_T = self.tokens[places_T].astype(np.int64)
        is_cut_B = ends_B - starts_B > max_length
        tokens_T[offsets_B1[1:][is_cut_B] - 1] = self.tokens[ends_B[is_cut_B] - 1]
        return tokens_T, offsets_B1

    def stored_ids(self) -> StoredIds:
        """The same as `original_ids`, read from the file where they are asked for."""
        return StoredIds(self.directory / cache_files(self.name)[2], len(self))

    def original_ids(self) -> list[str]:
        """The collection's own ids, by row."""
        return list(self.stored_ids())


def open_token_cache(directory: Path, name: str) -> TokenCache:
    """Map a cache into memory. UserError where a file is missing or the sizes do not agree."""
    tokens_path, offsets_path, ids_path = (directory / file for file in cache_files(name))
    for path in (tokens_path, offsets_path, ids_path):
        if not path.is_file():
            raise UserError(f"{path} is missing, expected the token cache of {name}; {ADVICE}")
    try:
        offsets_N1 = np.asarray(np.load(offsets_path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise UserError(f"{offsets_path} is damaged ({error}); {ADVICE}") from None
    if offsets_N1.dtype != np.int64 or offsets_N1.ndim != 1 or len(offsets_N1) < 1 or offsets_N1[0] != 0:
        raise UserError(
            f"{offsets_path} holds {offsets_N1.dtype} {offsets_N1.shape}, expected int64 [N+1] from 0; {ADVICE}"
        )
    size, count = tokens_path.stat().st_size, int(offsets_N1[-1])
    for dtype in (np.uint16, np.uint32):
        if size == count * np.dtype(dtype).itemsize:
            # A plain view of the map: indexing np.memmap itself costs a new memmap object each time.
            tokens = np.asarray(np.memmap(tokens_path, dtype=dtype, mode="r")) if count else np.empty(0, dtype)
            return TokenCache(name, directory, tokens, offsets_N1)
    raise UserError(
        f"{tokens_path}: {size} bytes, expected 2 or 4 for each of the {count} tokens of {offsets_path.name}; {ADVICE}"
    )


def gather_from(
    cache: TokenCache, max_length: int, rows: np.ndarray | None = None
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Row numbers to token ids, as `TokenCache.gather`: rows of the cache, or of the selection ``rows`` of it."""
    if rows is None:
        return lambda wanted: cache.gather(wanted, max_length)
    return lambda wanted: cache.gather(rows[wanted], max_length)
