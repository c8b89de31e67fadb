"""The files that a subset is written as: those of MS MARCO, or a BEIR folder where the collection is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data.sources import beir
from data.sources.base import Passage, Source, SourceRecord
from data.sources.judgements import BEIR_HEADER
from data.sources.msmarco import DOCUMENT_TYPE, LEADERBOARD, MSMARCO, PASSAGE_TYPE, RAW_NAMES, MsMarco, SplitNames
from utils.errors import UserError

OWN_FORMAT = "take the subset in the collection's own format"


@dataclass(frozen=True)
class SubsetFiles:
    """Names and lines of the files.

    Args:
        record: which layout they are of, as a manifest records it.
        collection_files: any of these shows that a directory holds a collection already.
        passages: the file of the passages.
        splits: the files of each split; several may have one of queries.
        passage_line, query_line, qrel_line: make a line; UserError for what the layout cannot hold.
        qrels_header: the first line of a file of qrels.
    """

    record: SourceRecord
    collection_files: tuple[str, ...]
    passages: str
    splits: Mapping[str, SplitNames]
    passage_line: Callable[[Passage], str]
    query_line: Callable[[str, str], str]
    qrel_line: Callable[[str, str, int], str]
    qrels_header: str = ""


def files_of_subset(source: Source) -> SubsetFiles:
    """MS MARCO's documents, a BEIR folder, or of any other source MS MARCO's passages.

    UserError where that layout has not the source's splits.
    """
    if isinstance(source, beir.BeirFolder):
        splits = {split: SplitNames(beir.QUERIES, f"{beir.QRELS}/{split}.tsv") for split in source.split_files}
        header = line_of_columns(*BEIR_HEADER)
        collection_files = (beir.CORPUS, beir.QUERIES, beir.QRELS)
        return SubsetFiles(
            source.record, collection_files, beir.CORPUS, splits, beir_passage, beir_query, beir_qrel, header
        )
    if isinstance(source, MsMarco) and source.data_type == DOCUMENT_TYPE:
        return msmarco_files(DOCUMENT_TYPE, document_line)
    if not isinstance(source, MsMarco):
        check_splits(source)
    return msmarco_files(PASSAGE_TYPE, passage_line)


def msmarco_files(data_type: int, line_of_passage: Callable[[Passage], str]) -> SubsetFiles:
    names, collection_files = RAW_NAMES[data_type], (RAW_NAMES[data_type].passages,)
    record: SourceRecord = {"source": MSMARCO, "data_type": data_type}
    return SubsetFiles(record, collection_files, names.passages, names.splits, line_of_passage, text_line, msmarco_qrel)


def check_splits(source: Source) -> None:
    """UserError where MS MARCO's passages have not the source's splits."""
    judged = {split: names.qrels is not None for split, names in RAW_NAMES[PASSAGE_TYPE].splits.items()}
    other = [split for split, files in source.split_files.items() if judged.get(split) != (files.qrels is not None)]
    if other:
        raise UserError(
            f"{source.passages_file}: its splits are {', '.join(source.split_files)}, a subset is written in MS "
            f"MARCO's format, which has {', '.join(judged)}, all but {LEADERBOARD} with qrels: {OWN_FORMAT}"
        )


# MS MARCO's lines


def line_of_columns(*columns: str) -> str:
    return "\t".join(columns) + "\n"


def text_line(*fields: str) -> str:
    """UserError where a field holds what ends it or its line, or all text is blank: the format cannot have that."""
    if not fields[0].strip() or not any(map(str.strip, fields[1:])):
        raise UserError(f"{fields[0]!r} has no id or no text, which MS MARCO's format cannot hold: {OWN_FORMAT}")
    if any("\t" in field or "\n" in field for field in fields):
        raise UserError(
            f"the text of {fields[0]!r} has a tab or a line end, which MS MARCO's format cannot hold: {OWN_FORMAT}"
        )
    return line_of_columns(*fields)


def document_line(passage: Passage) -> str:
    return text_line(passage.passage_id, passage.url or "", passage.title or "", passage.text)


def passage_line(passage: Passage) -> str:
    """UserError where the format has no column for what the passage has."""
    if passage.title is not None or passage.url is not None:
        raise UserError(
            f"{passage.passage_id!r} has a {'title' if passage.title is not None else 'url'}, which MS MARCO's "
            f"passages have not: {OWN_FORMAT}"
        )
    return text_line(passage.passage_id, passage.text)


def msmarco_qrel(query_id: str, passage_id: str, grade: int) -> str:
    return line_of_columns(query_id, "0", passage_id, str(grade))


# BEIR's lines


def json_line(record: Mapping[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def beir_passage(passage: Passage) -> str:
    """A title where the passage has one, be it blank."""
    title = {} if passage.title is None else {beir.TITLE: passage.title}
    return json_line({beir.ID: passage.passage_id, **title, beir.TEXT: passage.text})


def beir_query(query_id: str, text: str) -> str:
    return json_line({beir.ID: query_id, beir.TEXT: text})


def beir_qrel(query_id: str, passage_id: str, grade: int) -> str:
    return line_of_columns(query_id, passage_id, str(grade))
