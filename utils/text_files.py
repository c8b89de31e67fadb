"""Text that comes in: plain or gzipped, read line by line, with every fault named by file and line.

Lines are read as bytes and decoded one at a time, so that the line of a bad byte is known and so that the
line separators of Unicode, which occur inside MS MARCO's texts and in ids, stay inside them.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from utils.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# How the columns of such files are called, in letters and digits alone: query-id and Query_ID are queryid.
NAMES = """
id pid docid docno did passageid documentid corpusid qid queryid questionid topic topicid
posid negid positiveid negativeid
text passage passagetext content contents document documenttext doc body title url query querytext question anchor
pos neg positive negative positivetext negativetext pospassage negpassage positivepassage negativepassage
q0 0 iter iteration rank score tag run runid runname rel relevance label grade judgment judgement
"""
COLUMN_NAMES = frozenset(NAMES.split())
READ_BYTES = 1 << 20
TAIL_BYTES = 1 << 12
GZIPPED_BYTES = 1 << 30  # a larger file is not unpacked for a look at its end: this takes some 20 seconds
NO_LINE_END = (
    "the last line has no line end, so the file looks cut off; fetch it again, or end it with a newline if it is whole"
)
SAMPLE_BYTES = 4 << 20


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain or gzipped file (told by its first bytes, or its name) to iterate over its lines as bytes.

    Raises UserError where the file is missing, a directory, or gzip finds damage or a missing end,
    also later, while the lines are read.
    """
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb", buffering=READ_BYTES))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise UserError(f"{path}: {error.strerror}, expected a text file, plain or gzipped") from None
        try:
            yield gzip.GzipFile(fileobj=raw) if _is_gzip(path) else raw  # type: ignore[misc]
        except EOFError:
            raise UserError(f"{path} is truncated: its gzip stream has no end; fetch it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged ({error}), expected a gzip file; fetch it again") from None


def estimate_lines(path: Path) -> int:
    """About how many lines a file has, from its first megabytes: a total for progress lines. Exact for a short file."""
    with open_text(path) as lines:
        sample = lines.read(SAMPLE_BYTES)
        if len(sample) < SAMPLE_BYTES:
            return sample.count(b"\n")
    consumed = len(zlib.compress(sample, level=6)) if _is_gzip(path) else len(sample)
    return round(sample.count(b"\n") * path.stat().st_size / consumed)


def _is_gzip(path: Path) -> bool:
    """By its first bytes; a file called .gz that has others is opened as gzip too, and found damaged."""
    with path.open("rb") as file:
        first = file.read(2)
    return first == GZIP_MAGIC or (path.suffix == ".gz" and first != b"")


def read_lines(path: Path, needs_end: bool = True) -> Iterator[str]:
    """The lines of a file without their ends (``\\n`` or ``\\r\\n``); the first is without a byte order mark.

    Raises UserError for an empty file, invalid UTF-8, and a last line without an end (a file cut off in the middle),
    unless the lines themselves show that: ``needs_end`` is False.
    """
    number, line = 0, b""
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            try:
                yield line.decode().removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: byte {error.start + 1} is not valid UTF-8 ({error.reason}); "
                    "fetch the file again, or convert it to UTF-8"
                ) from None
    if number == 0:
        raise UserError(f"{path} is empty, expected one record per line; fetch it again")
    if needs_end and not line.endswith(b"\n"):
        raise UserError(f"{path}, line {number}: {NO_LINE_END}")


def check_end(path: Path) -> bool:
    """UserError where the last line has no end or is blank, which `read_lines` sees when all else has been read.

    Of a plain file the last bytes are looked at. A gzipped one has to be unpacked up to them, which also finds damage;
    False where it is larger than GZIPPED_BYTES, and is not looked at.
    """
    if _is_gzip(path) and path.stat().st_size > GZIPPED_BYTES:
        return False
    tail = _tail(path)
    fault = "" if tail.endswith(b"\n") else NO_LINE_END
    if not fault and not tail[:-1].rpartition(b"\n")[2].strip():
        fault = "the last line is empty, expected a record; remove that line"
    if fault:
        with open_text(path) as lines:
            raise UserError(f"{path}, line {sum(1 for _ in lines)}: {fault}")
    return True


def _tail(path: Path) -> bytes:
    """The last bytes of the text."""
    if not _is_gzip(path):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read()
    tail = b""
    with open_text(path) as file:
        while part := file.read(READ_BYTES):
            tail = (tail + part)[-TAIL_BYTES:]
    return tail


def may_have_had(path: Path, size_bytes: int) -> bool:
    """Whether a file was of this size before its end was fixed as `check_end` asks: a line end added, or one removed.

    Of a gzipped file nobody can tell.
    """
    if _is_gzip(path):
        return False
    line_end = 2 if _tail(path).endswith(b"\r\n") else 1
    return abs(path.stat().st_size - size_bytes) == line_end


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of records, numbered from 1.

    Raises UserError as `read_lines` does, and where the first line is a header: MS MARCO's files and TREC's have none.
    """
    for number, line in enumerate(read_lines(path), 1):
        if number == 1 and is_header(line):
            raise UserError(
                f"{path}, line 1: {line[:80]!r} is a header, expected the first record (these files have none); "
                "remove that line"
            )
        yield number, line


def check_ends(path: Path) -> bool:
    """UserError for what the first line shows of a file of records, and what `check_end` finds; its answer."""
    next(numbered_lines(path))
    return check_end(path)


def is_header(line: str) -> bool:
    """Whether every column is the name of one, in any case, with or without quotes and signs between words."""
    columns = ["".join(filter(str.isalnum, column)).lower() for column in columns_of(line)]
    return len(columns) > 1 and columns[0].isalpha() and COLUMN_NAMES.issuperset(columns)


def columns_of(line: str) -> list[str]:
    """The columns of a run's or qrels' line: between tabs where it has any, else between runs of blanks.

    Only the blank U+0020 separates: an id may hold any other white space, a no-break space as well.
    """
    return line.split("\t") if "\t" in line else [column for column in line.split(" ") if column]
