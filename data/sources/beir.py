"""A BEIR folder (Thakur et al. 2021, arXiv 2104.08663): JSON lines of passages and queries, qrels by split.

``corpus.jsonl`` has a line ``{"_id", "title", "text"}`` for each passage (the title may be missing), ``queries.jsonl``
``{"_id", "text"}`` for the queries of all splits, and ``qrels/SPLIT.tsv`` the judgements of one split. Each may be
gzipped. Other keys are not read. A split's queries are those that its qrels name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources.base import Passage, SourceRecord, SourceRequest, SplitFiles, find_raw
from data.sources.ids import UniqueIds, check_id
from data.sources.judgements import Judgement, read_beir_qrels
from utils.errors import UserError, one_line
from utils.exchange.evaluations import DEV, TRAIN
from utils.text_files import estimate_lines, read_lines

BEIR = "beir"  # --source
CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
ID, TITLE, TEXT = "_id", "title", "text"


@dataclass(frozen=True)
class BeirSplit(SplitFiles):
    queries: Path
    qrels: Path


@dataclass(frozen=True)
class BeirFolder:
    """The files of a BEIR folder as a `Source`."""

    passages_file: Path
    split_files: dict[str, BeirSplit]

    @property
    def record(self) -> SourceRecord:
        return {"source": BEIR}

    def estimate_passages(self) -> int:
        return estimate_lines(self.passages_file)

    def passages(self) -> Iterator[Passage]:
        return read_passages(self.passages_file)

    def queries(self, split: str) -> Iterator[tuple[str, str]]:
        """Those that the split's qrels name: the file has those of all splits."""
        judged = {query_id for query_id, _, _ in self.qrels(split)}
        return (query for query in read_queries(self.split_files[split].queries) if query[0] in judged)

    def qrels(self, split: str) -> Iterator[Judgement]:
        return read_beir_qrels(self.split_files[split].qrels)

    def remarks(self) -> list[str]:
        """Queries that no split's qrels name, and lines that repeat a query."""
        judged = {query_id for split in self.split_files for query_id, _, _ in self.qrels(split)}
        path = next(iter(self.split_files.values())).queries
        queries = [query_id for query_id, _ in read_queries(path)]
        unjudged = [query_id for query_id in queries if query_id not in judged]
        found = []
        if unjudged:
            found.append(f"{path}: {len(unjudged):,} queries (as {unjudged[0]!r}) are judged in no split, and not read")
        if repeats := sum(1 for _ in read_lines(path, needs_end=False)) - len(queries):
            found.append(f"{path}: {repeats:,} lines repeat a query of an earlier line, word for word; one is read")
        return found


def find(request: SourceRequest) -> BeirFolder:
    """The files of the folder ``request.directory``. UserError where one of the three is missing."""
    directory = request.directory
    assert directory is not None
    passages, queries = find_raw(directory, CORPUS), find_raw(directory, QUERIES)
    qrels: dict[str, Path] = {}
    for path in sorted((directory / QRELS).glob("*.tsv*"), reverse=True):  # SPLIT.tsv after SPLIT.tsv.gz: it counts
        split = path.name.removesuffix(".gz").removesuffix(".tsv")
        if path.name in (f"{split}.tsv", f"{split}.tsv.gz"):
            qrels[split] = path
    if not qrels:
        raise UserError(f"{directory / QRELS} has no qrels, expected SPLIT.tsv[.gz] there, as test.tsv: fetch them")
    order = sorted(qrels, key=lambda split: (split != TRAIN, split != DEV, split))
    return BeirFolder(passages, {split: BeirSplit(queries, qrels[split]) for split in order})


def read_passages(path: Path) -> Iterator[Passage]:
    """A title that is missing or null is None; a text may be empty. UserError as `read_records`; an id twice is one."""
    ids = UniqueIds(path)
    for number, passage_id, record in read_records(path):
        ids.add(number, passage_id)
        text, title = text_in(path, number, record, TEXT), record.get(TITLE)
        yield Passage(passage_id, text, None if title is None else text_in(path, number, record, TITLE))
    ids.check()


def read_queries(path: Path) -> Iterator[tuple[str, str]]:
    """(query_id, text) of each query, once where lines repeat it. UserError where a query has two texts."""
    hash_of: dict[str, int] = {}
    for number, query_id, record in read_records(path):
        text = text_in(path, number, record, TEXT)
        if query_id not in hash_of:
            check_id(path, "line", number, query_id)
            hash_of[query_id] = hash(text)
            yield query_id, text
        elif hash_of[query_id] != hash(text):
            raise UserError(
                f"{path}, line {number}: the id {query_id!r} was on an earlier line with another text, expected every "
                "id once; remove one of the two"
            )


def read_records(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Line number, id and object of each line. UserError with file and line for what is no JSON object with an id."""
    for number, line in enumerate(read_lines(path, needs_end=False), 1):
        record = parse_object(path, number, line)
        yield number, id_in(path, number, record), record


def parse_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if "\\ud" in line.lower():  # half of a character of two: json takes it, no file can hold it
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, line {number}: {line[:40]!r} is no JSON ({one_line(error)[:90]}), expected an object; fix it"
        ) from None
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number}: {line[:40]!r} is no JSON object, expected one with {ID!r}; fix it")
    return record


def id_in(path: Path, number: int, record: dict[str, Any]) -> str:
    """The object's id; an integer counts as its digits, which is how qrels write it."""
    value = record.get(ID)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise no_string(path, number, record, ID)
    return value


def text_in(path: Path, number: int, record: dict[str, Any], key: str) -> str:
    """The text of a line's object.

    Args:
        path: The file.
        number: The line's.
        record: The object.
        key: The text's.
    Raises:
        UserError: there is none, or it is no string.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise no_string(path, number, record, key)
    return value


def no_string(path: Path, number: int, record: dict[str, Any], key: str) -> UserError:
    """What is wrong with an object that has no string under a key.

    Args: those of `text_in`.
    """
    found = f"{key!r} is {json.dumps(record[key])[:40]}" if key in record else f"the object has no {key!r}"
    return UserError(f"{path}, line {number}: {found}, expected a string; fix the line")
