"""The words of --data_type: which source reads a raw directory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from data.sources.base import Source, find_raw, source_files
from data.sources.msmarco import DOCUMENT_TYPE, PASSAGE_TYPE, find_collection
from utils.errors import UserError


@dataclass(frozen=True)
class SourceWord:
    """A word of --data_type. ``find`` finds a directory's files; those of a split may be missing."""

    description: str
    find: Callable[[Path], Source]


SOURCES = {
    str(DOCUMENT_TYPE): SourceWord(
        "MS MARCO's documents (url, title, body)", lambda directory: find_collection(directory, DOCUMENT_TYPE)
    ),
    str(PASSAGE_TYPE): SourceWord("MS MARCO's passages", lambda directory: find_collection(directory, PASSAGE_TYPE)),
}

SPLIT_NAME = re.compile(r"\w[\w.-]*")  # it begins the names of files


def open_source(
    data_type: str | int, directory: Path, files_read: Callable[[Source], Iterable[Path]] = source_files
) -> Source:
    """The raw collection of ``directory``, of which ``files_read`` says what the caller reads.

    UserError for an unknown word, where one of these files is not there, and for a split whose name cannot name a file.
    """
    word = SOURCES.get(str(data_type))
    if word is None:
        raise UserError(f"--data_type is {data_type}, expected one of {', '.join(SOURCES)}")
    source = word.find(directory)
    for path in files_read(source):
        find_raw(path.parent, path.name)
    for split in source.split_files:
        if not SPLIT_NAME.fullmatch(split):
            raise UserError(f"{directory} has a split {split!r}, expected letters, digits, '.', '_' and '-'; rename it")
    return source
