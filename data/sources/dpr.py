"""DPR's files (Karpukhin et al. 2020, arXiv 2004.04906): passages in a csv, questions in JSON with their passages.

``psgs_w100.tsv`` (or ``psgs.tsv``) is a csv with tabs, double quotes and the header ``id text title``. Questions are in
``biencoder-SET-SPLIT.json`` (or ``SET-SPLIT.json``), a list whose entries' ``positive_ctxs`` name the relevant passages
by ``passage_id`` or ``psg_id``; and in ``SET-SPLIT.qas.csv`` (``.qa.csv``, ``.csv``): question, tab, a list of answers,
which no passage has been judged for. Of a split that has both, the JSON is read. Each file may be gzipped. Questions
have no ids: a question's place in its file, from 0, is its id. Answers are read where a split's questions are.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from data.sources.base import Passage, QuestionAnswers, SourceRecord, SourceRequest, SplitFiles, find_raw
from data.sources.ids import UniqueIds
from data.sources.json_list import read_json_list
from utils.errors import UserError
from utils.exchange.evaluations import DEV, TRAIN
from utils.text_files import estimate_lines, read_lines

DPR = "dpr"  # --source
PASSAGES = ("psgs_w100.tsv", "psgs.tsv")
HEADER = ["id", "text", "title"]
POSITIVES, ANSWERS, PASSAGE_IDS = "positive_ctxs", "answers", ("passage_id", "psg_id")
QUESTIONS = re.compile(
    r"(?:biencoder-)?(?P<set>.+?)-(?P<split>train|dev|test)(?P<kind>\.json|(?:\.qas?)?\.csv)(?:\.gz)?"
)
LARGEST_FIELD = 1 << 27  # characters


@dataclass(frozen=True)
class DprSplit(SplitFiles):
    """``qrels`` is the file of ``queries``, or None where that has no passages."""

    queries: Path
    qrels: Path | None


@dataclass(frozen=True)
class DprFiles:
    """DPR's files of one set of questions as a `Source`."""

    passages_file: Path
    split_files: dict[str, DprSplit]

    @property
    def record(self) -> SourceRecord:
        return {"source": DPR}

    def estimate_passages(self) -> int:
        return estimate_lines(self.passages_file)

    def passages(self) -> Iterator[Passage]:
        path, ids = self.passages_file, UniqueIds(self.passages_file)
        for number, (passage_id, text, title) in read_csv(path, HEADER):
            ids.add(number, passage_id)
            yield Passage(passage_id, text, title)
        ids.check()

    def queries(self, split: str) -> Iterator[tuple[str, str]]:
        files = self.split_files[split]
        if files.qrels is None:
            return ((str(place), question) for place, (_, question, _) in enumerate(read_questions(files.queries)))
        return ((str(place), question) for place, question, _ in read_entries(files.queries))

    def qrels(self, split: str) -> Iterator[tuple[str, str, int]]:
        qrels = self.split_files[split].qrels
        if qrels is not None:
            for place, _, positives in read_entries(qrels):
                yield from ((str(place), passage_id, 1) for passage_id in positives)

    def answers(self, split: str) -> Iterator[QuestionAnswers]:
        """UserError, with its place, for answers that are no list of strings."""
        files = self.split_files[split]
        if files.qrels is None:
            for place, (number, _, answers) in enumerate(read_questions(files.queries)):
                yield QuestionAnswers(str(place), answers, f"{files.queries}, line {number}")
        else:
            for place, entry in enumerate(read_json_list(files.queries)):
                where = f"{files.queries}, entry {place + 1}"
                found = entry.get(ANSWERS) if isinstance(entry, dict) else None
                if not is_list_of_strings(found):
                    raise UserError(f"{where}: expected an object with {ANSWERS}, a list of strings; fix the entry")
                yield QuestionAnswers(str(place), found, where)

    def remarks(self) -> list[str]:
        """Questions without a positive passage, by split."""
        found = []
        for split, files in self.split_files.items():
            if files.qrels is None:
                found.append(f"{files.queries}: the questions of {split} have answers, no passages: none is judged")
            elif without := sum(not positives for _, _, positives in read_entries(files.queries)):
                found.append(f"{files.queries}: {without:,} entries of {split} have no {POSITIVES}")
        return found


def find(request: SourceRequest) -> DprFiles:
    """The files of ``request.directory``. UserError where there are no passages, or questions of several sets."""
    directory = request.directory
    assert directory is not None
    passages = find_raw(directory, *PASSAGES)
    found: dict[str, dict[str, dict[bool, Path]]] = {}  # by set and split: the JSON (True), or the csv
    for path in sorted(directory.iterdir(), reverse=True):  # a plain file after its gzipped one: it counts
        if (match := QUESTIONS.fullmatch(path.name)) and path.is_file():
            of_split = found.setdefault(match["set"], {}).setdefault(match["split"], {})
            of_split[match["kind"] == ".json"] = path
    if len(found) != 1:
        there = f"holds questions of {', '.join(sorted(found))}" if found else "has no questions"
        raise UserError(
            f"{directory} {there}, expected those of one set, as biencoder-nq-train.json and nq-test.qas.csv: "
            "keep one in a directory"
        )
    (of_set,) = found.values()
    splits = {split: of_set[split] for split in (TRAIN, DEV, "test") if split in of_set}
    return DprFiles(
        passages, {split: DprSplit(kinds.get(True) or kinds[False], kinds.get(True)) for split, kinds in splits.items()}
    )


def read_csv(path: Path, header: list[str] | None, columns: int = 3) -> Iterator[tuple[int, list[str]]]:
    """The records of a csv with tabs and double quotes, each with the number of its last line.

    Args:
        path: The file.
        header: What its first record must be, which is not yielded; None where it has none.
        columns: How many a record has.
    Raises:
        UserError: with file and line, for another header or number of columns, or a quote that does not end.
    """
    reader = csv.reader((f"{line}\n" for line in read_lines(path)), delimiter="\t", quotechar='"', strict=True)
    csv.field_size_limit(LARGEST_FIELD)
    try:
        for place, record in enumerate(reader):
            if place == 0 and header is not None:
                if record != header:
                    raise UserError(f"{path}, line 1: {record[:4]}, expected the header {header}, between tabs; add it")
                continue
            if len(record) != columns:
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(record)} tab-separated columns, expected {columns}; "
                    "fix the line"
                )
            yield reader.line_num, record
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: its quotes are wrong ({error}), expected a csv in double quotes; fix it"
        ) from None


def is_list_of_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def read_questions(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, question and answers of a csv that has both. UserError where the answers are no list of strings."""
    for number, (question, answers) in read_csv(path, None, columns=2):
        try:
            value = ast.literal_eval(answers)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if not is_list_of_strings(value):
            raise UserError(
                f"{path}, line {number}: the answers are {answers[:40]!r}, expected a list of strings as Python "
                "writes one; fix the line"
            )
        yield number, question, value


def read_entries(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Place from 0, question and ids of the positive passages, each once, of every entry of a JSON file."""
    for place, entry in enumerate(read_json_list(path)):
        where = f"{path}, entry {place + 1}"
        question = entry.get("question") if isinstance(entry, dict) else None
        positives = entry.get(POSITIVES, []) if isinstance(entry, dict) else None
        if not isinstance(question, str) or not isinstance(positives, list):
            raise UserError(f"{where}: expected an object with a 'question' and a list of {POSITIVES}; fix the entry")
        yield place, question, list(dict.fromkeys(passage_id_in(where, passage) for passage in positives))


def passage_id_in(where: str, passage: Any) -> str:
    """NQ's files say ``passage_id``, TriviaQA's ``psg_id``."""
    for key in PASSAGE_IDS:
        value = passage.get(key) if isinstance(passage, dict) else None
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
    raise UserError(f"{where}: one of its {POSITIVES} has no {' or '.join(PASSAGE_IDS)}, expected an id; fix the entry")
