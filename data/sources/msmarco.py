"""MS MARCO's passages and documents: TSV or gzipped TSV, read line by line, with every fault named by file and line.

`find_collection` finds the files of either kind, as a `data.sources.base.Source`. Nothing is held but the line at hand
(utils/text_files.py reads them) and eight bytes per id, by which a repeated id is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.sources.base import Passage, SplitFiles, find_raw, plain_or_gzipped, source_files
from utils.errors import UserError
from utils.exchange.evaluations import DEV, TRAIN
from utils.ir.notation import LARGEST_GRADE
from utils.text_files import check_ends, columns_of, numbered_lines

DOCUMENT_TYPE, PASSAGE_TYPE = 0, 1  # --data_type, as ANCE numbers them
IDS_PER_CHECK = 65_536
GRADE = re.compile("[+-]?[0-9]{1,20}")  # int() reads digits of other scripts and underscores as well


@dataclass(frozen=True)
class SplitNames:
    queries: str
    qrels: str


@dataclass(frozen=True)
class RawNames:
    """What MS MARCO calls the files of one collection. ``columns`` is the number of columns of ``passages``."""

    passages: str
    columns: int
    splits: dict[str, SplitNames]


RAW_NAMES = {
    DOCUMENT_TYPE: RawNames(
        "msmarco-docs.tsv",
        4,
        {
            TRAIN: SplitNames("msmarco-doctrain-queries.tsv", "msmarco-doctrain-qrels.tsv"),
            DEV: SplitNames("msmarco-docdev-queries.tsv", "msmarco-docdev-qrels.tsv"),
        },
    ),
    PASSAGE_TYPE: RawNames(
        "collection.tsv",
        2,
        {
            TRAIN: SplitNames("queries.train.tsv", "qrels.train.tsv"),
            DEV: SplitNames("queries.dev.small.tsv", "qrels.dev.small.tsv"),
        },
    ),
}


@dataclass(frozen=True)
class MsMarco:
    """The files of a raw directory, found under their plain or gzipped names, as a `Source`."""

    data_type: int
    passages_file: Path
    split_files: dict[str, SplitFiles]

    def passages(self) -> Iterator[Passage]:
        return read_passages(self.passages_file, self.data_type)

    def queries(self, split: str) -> Iterator[tuple[str, str]]:
        return read_queries(self.split_files[split].queries)

    def qrels(self, split: str) -> Iterator[tuple[str, str, int]]:
        return read_qrels(self.split_files[split].qrels)


def find_collection(directory: Path, data_type: int) -> MsMarco:
    """All raw files of a collection; one of a split that is not there has its plain name.

    UserError where there are no passages, a file is empty, begins with a header or ends without a line end, or
    ``data_type`` is the wrong one.
    """
    names, other = RAW_NAMES[data_type], RAW_NAMES[1 - data_type]
    if plain_or_gzipped(directory, names.passages) is None and plain_or_gzipped(directory, other.passages):
        raise UserError(
            f"{directory} has {other.passages} and no {names.passages}; did you mean --data_type {1 - data_type}?"
        )
    passages = find_raw(directory, names.passages)

    def found(name: str) -> Path:
        return plain_or_gzipped(directory, name) or directory / name

    splits = {split: SplitFiles(found(of.queries), found(of.qrels)) for split, of in names.splits.items()}
    collection = MsMarco(data_type, passages, splits)
    for path in filter(Path.is_file, source_files(collection)):
        check_ends(path)
    return collection


class RepeatedIds:
    """Finds repeated ids at eight bytes each (70 MB for MS MARCO's 8.8 million passages).

    64-bit hashes are kept in sorted arrays, each more than twice as long as the next, so that a batch is looked up in
    a few of them. Two different ids out of 8.8 million share a hash with probability 2e-6.
    """

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def first_repeat(self, ids: list[str]) -> int | None:
        """Add ``ids``; the index of the first that was seen before, in this call or an earlier one."""
        hashes_B = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
        order_B = np.argsort(hashes_B, kind="stable")
        run = hashes_B[order_B]
        seen_B = np.zeros(len(ids), dtype=bool)
        seen_B[1:] = run[1:] == run[:-1]
        for older in self.runs:
            at_B = np.searchsorted(older, run)
            seen_B |= older[np.minimum(at_B, len(older) - 1)] == run
        if seen_B.any():
            return int(order_B[seen_B].min())
        while self.runs and len(self.runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self.runs.pop(), run]), kind="stable")
        if len(run):
            self.runs.append(run)
        return None


def read_records(path: Path, columns: int) -> Iterator[list[str]]:
    """The records of a TSV file whose first column is a unique id and whose others are text, not all blank.

    Raises UserError with file and line for another number of columns, an empty or repeated id, and an empty text;
    the repeated id is found at the latest 65,536 lines after it was yielded.
    """
    repeated, checked = RepeatedIds(), 0
    ids: list[str] = []

    def check_ids() -> None:
        index = repeated.first_repeat(ids)
        if index is not None:
            raise UserError(
                f"{path}, line {checked + index + 1}: the id {ids[index]!r} was on an earlier line, "
                "expected every id once; remove one of the two lines"
            )

    for number, line in numbered_lines(path):
        record = line.split("\t")
        if len(record) != columns:
            hint = "" if len(record) < columns else " (an id or text must not hold a tab)"
            raise UserError(
                f"{path}, line {number}: {len(record)} tab-separated columns, expected {columns}{hint}; fix the line"
            )
        if not record[0].strip():
            raise UserError(f"{path}, line {number}: the id is empty, expected one; fix the line")
        if not any(map(str.strip, record[1:])):
            raise UserError(f"{path}, line {number}: the text of {record[0]!r} is empty; remove the line, or fix it")
        ids.append(record[0])
        yield record
        if len(ids) == IDS_PER_CHECK:
            check_ids()
            ids, checked = [], number
    check_ids()


def read_passages(path: Path, data_type: int) -> Iterator[Passage]:
    """Passages (pid, text) or documents (D-id, url, title, body). Raises UserError as `read_records` does."""
    for record in read_records(path, RAW_NAMES[data_type].columns):
        if data_type == DOCUMENT_TYPE:
            passage_id, url, title, body = record
            yield Passage(passage_id, body, title, url)
        else:
            yield Passage(*record)


def read_queries(path: Path) -> Iterator[tuple[str, str]]:
    """(query_id, text) of a queries file. Raises UserError as `read_records` does."""
    for record in read_records(path, 2):
        yield record[0], record[1]


def read_qrels(path: Path) -> Iterator[tuple[str, str, int]]:
    """(query_id, passage_id, relevance) of every line ``query 0 passage relevance``, separated by tabs or blanks.

    A line that repeats an earlier judgement is yielded again; one that contradicts it is a UserError, as are another
    number of columns, an empty id, and a relevance that is no integer from -LARGEST_GRADE to LARGEST_GRADE.
    """
    judged: dict[int, int] = {}
    for number, line in numbered_lines(path):
        record = columns_of(line)
        if len(record) != 4:
            raise UserError(
                f"{path}, line {number}: {len(record)} columns, expected 4 (query 0 passage relevance); fix the line"
            )
        query_id, _, passage_id, word = record
        if not query_id.strip() or not passage_id.strip():
            raise UserError(f"{path}, line {number}: an id is empty, expected query 0 passage relevance; fix the line")
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


def parse_relevance(word: str) -> int | None:
    """The grade that a column of the qrels holds; None where it holds none, or one beyond LARGEST_GRADE."""
    if not GRADE.fullmatch(word):
        return None
    grade = int(word)
    return grade if abs(grade) <= LARGEST_GRADE else None
