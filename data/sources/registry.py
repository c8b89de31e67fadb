"""The words of --source: which format the raw files of a collection have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources import beir, dpr, ir_datasets, msmarco
from data.sources.base import Source, SourceRequest, find_raw, plain_or_gzipped, source_files
from utils.errors import UserError

AUTO = "auto"


@dataclass(frozen=True)
class SourceWord:
    """A word of --source.

    Args:
        description: For --help.
        find: Finds a collection's files; those of a split may be missing.
        signature_files: Names of files; one of them, plain or gzipped, makes a directory one of this format for "auto".
        is_in_directory: Whether there has to be a directory.
    """

    description: str
    find: Callable[[SourceRequest], Source]
    signature_files: tuple[str, ...] = ()
    is_in_directory: bool = True


SOURCES = {
    msmarco.MSMARCO: SourceWord(
        "MS MARCO's files of passages or documents",
        msmarco.find,
        tuple(names.passages for names in msmarco.RAW_NAMES.values()),
    ),
    beir.BEIR: SourceWord("a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv)", beir.find, (beir.CORPUS,)),
    dpr.DPR: SourceWord(
        "DPR's files (psgs_w100.tsv, biencoder-SET-SPLIT.json, SET-SPLIT.qas.csv)", dpr.find, dpr.PASSAGES
    ),
    ir_datasets.IR_DATASETS: SourceWord(
        "--dataset of the package ir-datasets", ir_datasets.find, is_in_directory=False
    ),
}

SPLIT_NAME = re.compile(r"\w[\w.-]*")  # it begins the names of files


def open_source(request: SourceRequest, files_read: Callable[[Source], Iterable[Path]] = source_files) -> Source:
    """The raw collection that is meant, of which ``files_read`` says what the caller reads.

    UserError for an unknown word, where one of these files is not there, and for a split whose name cannot name a file.
    """
    word = word_of(request)
    source = SOURCES[word].find(request)
    for path in files_read(source):
        find_raw(path.parent, path.name)
    for split in source.split_files:
        if not SPLIT_NAME.fullmatch(split):
            raise UserError(
                f"{request.directory or request.dataset} has a split {split!r}, expected letters, digits, '.', '_' and "
                "'-'; rename it"
            )
    return source


def request_of_record(record: Mapping[str, Any], raw_data_dir: str) -> SourceRequest:
    """How to open again the source that a manifest records, in ``raw_data_dir`` ("": in no directory).

    One of an older version is of MS MARCO's files.
    """
    word, data_type = record.get("source", msmarco.MSMARCO), record.get("data_type", "")
    directory = Path(raw_data_dir) if raw_data_dir else None
    return SourceRequest(directory, word, str(data_type), record.get("dataset", ""))


def word_of(request: SourceRequest) -> str:
    """The word that is meant, found out where it is "auto". UserError for an unknown one, and for what does not fit."""
    word = request.word
    if word == AUTO:
        word = ir_datasets.IR_DATASETS if request.dataset else msmarco.MSMARCO if request.data_type else ""
        word = word or word_in(request.directory)
    if word not in SOURCES:
        raise UserError(f"--source is {word}, expected {AUTO} or one of {', '.join(SOURCES)}")
    if request.dataset and word != ir_datasets.IR_DATASETS:
        raise UserError(f"--dataset names a dataset of ir_datasets, --source is {word}; omit one of them")
    if request.data_type and word != msmarco.MSMARCO:
        raise UserError(f"--data_type is of MS MARCO's files, --source is {word}; omit one of them")
    if SOURCES[word].is_in_directory and request.directory is None:
        raise UserError(f"--source {word} reads a directory of raw files, and none was given; give its path")
    return word


def word_in(directory: Path | None) -> str:
    """The word whose files are in ``directory``. UserError where there are files of several, or of none."""
    if directory is None:
        raise UserError("no collection: give the directory of its raw files, or --dataset with a name of ir_datasets")
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory, expected one of raw files")
    found = {
        word: names
        for word, source in SOURCES.items()
        if (names := [name for name in source.signature_files if plain_or_gzipped(directory, name)])
    }
    if len(found) > 1:
        there = " and ".join(f"{names[0]} ({word})" for word, names in found.items())
        raise UserError(
            f"{directory} has files of several collections, {there}: remove all but one, or name one by --source"
        )
    if not found:
        known = {word: source.signature_files for word, source in SOURCES.items() if source.signature_files}
        wanted = ", ".join(f"{' or '.join(names)} ({word})" for word, names in known.items())
        raise UserError(f"{directory} has no collection, expected {wanted}, plain or gzipped; name another directory")
    return next(iter(found))


def describe_source(source: Source) -> str:
    """What was found, for the log."""
    splits = ", ".join(
        name if files.qrels is not None else f"{name} (no qrels)" for name, files in source.split_files.items()
    )
    return f"source {source.record['source']}: passages {source.passages_file}, splits {splits}"
