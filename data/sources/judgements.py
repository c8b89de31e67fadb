"""Files of qrels: TREC's four columns, BEIR's three under a header, every fault named by file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.errors import UserError
from utils.ir.notation import LARGEST_GRADE
from utils.text_files import columns_of, numbered_lines, read_lines

GRADE = re.compile("[+-]?[0-9]{1,20}")  # int() reads digits of other scripts and underscores as well
TREC_COLUMNS = "query 0 passage relevance"
BEIR_HEADER = ("query-id", "corpus-id", "score")

Judgement = tuple[str, str, int]  # query_id, passage_id, grade


def parse_relevance(word: str) -> int | None:
    """The grade that a column of the qrels holds; None where it holds none, or one beyond LARGEST_GRADE."""
    if not GRADE.fullmatch(word):
        return None
    grade = int(word)
    return grade if abs(grade) <= LARGEST_GRADE else None


def read_qrels(path: Path) -> Iterator[Judgement]:
    """(query_id, passage_id, relevance) of every line ``query 0 passage relevance``, separated by tabs or blanks.

    A line that repeats an earlier judgement is yielded again; one that contradicts it is a UserError, as are another
    number of columns, an empty id, and a relevance that is no integer from -LARGEST_GRADE to LARGEST_GRADE.
    """
    return checked(path, _trec_rows(path), TREC_COLUMNS)


def read_beir_qrels(path: Path) -> Iterator[Judgement]:
    """As `read_qrels`, of a file that has the header ``query-id corpus-id score`` and these columns, between tabs."""
    return checked(path, _beir_rows(path), " ".join(BEIR_HEADER))


def _trec_rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    for number, line in numbered_lines(path):
        record = columns_of(line)
        if len(record) != 4:
            raise UserError(f"{path}, line {number}: {len(record)} columns, expected 4 ({TREC_COLUMNS}); fix the line")
        yield number, record[0], record[2], record[3]


def _beir_rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    header = "\t".join(BEIR_HEADER)
    for number, line in enumerate(read_lines(path), 1):
        record = line.split("\t")
        if number == 1 and record != list(BEIR_HEADER):
            raise UserError(
                f"{path}, line 1: {line[:80]!r}, expected BEIR's header {header!r}; "
                "write it there, with these three columns below it"
            )
        if len(record) != 3:
            raise UserError(
                f"{path}, line {number}: {len(record)} tab-separated columns, expected 3 ({' '.join(BEIR_HEADER)}); "
                "fix the line"
            )
        if number > 1:
            yield number, record[0], record[1], record[2]


def checked(path: Path, rows: Iterable[tuple[int, str, str, str]], columns: str) -> Iterator[Judgement]:
    """The judgements of a file's rows (line, query, passage, word of the grade). UserError as `read_qrels` says."""
    judged: dict[int, int] = {}
    for number, query_id, passage_id, word in rows:
        if not query_id.strip() or not passage_id.strip():
            raise UserError(f"{path}, line {number}: an id is empty, expected {columns}; fix the line")
        relevance = parse_relevance(word)
        if relevance is None:
            raise UserError(
                f"{path}, line {number}: the relevance is {word[:40]!r}, expected an integer from {-LARGEST_GRADE} to "
                f"{LARGEST_GRADE}; fix the line"
            )
        if judged.setdefault(hash((query_id, passage_id)), relevance) != relevance:
            raise UserError(
                f"{path}, line {number}: query {query_id!r} and passage {passage_id!r} were judged differently on an "
                "earlier line, expected one relevance; remove one of the two lines"
            )
        yield query_id, passage_id, relevance
