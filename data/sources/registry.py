"""The words of --data_type: which source reads a raw directory."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.sources.base import Source
from data.sources.msmarco import DOCUMENT_TYPE, PASSAGE_TYPE, find_collection
from utils.errors import UserError


@dataclass(frozen=True)
class SourceWord:
    """A word of --data_type. ``find`` finds a directory's files and reads none; UserError where one is missing."""

    description: str
    find: Callable[[Path], Source]


SOURCES = {
    str(DOCUMENT_TYPE): SourceWord(
        "MS MARCO's documents (url, title, body)", lambda directory: find_collection(directory, DOCUMENT_TYPE)
    ),
    str(PASSAGE_TYPE): SourceWord("MS MARCO's passages", lambda directory: find_collection(directory, PASSAGE_TYPE)),
}

SPLIT_NAME = re.compile(r"\w[\w.-]*")  # it begins the names of files


def open_source(data_type: str | int, directory: Path) -> Source:
    """The raw collection of ``directory``.

    UserError for an unknown word, where its files are not there, and for a split whose name cannot name a file.
    """
    word = SOURCES.get(str(data_type))
    if word is None:
        raise UserError(f"--data_type is {data_type}, expected one of {', '.join(SOURCES)}")
    source = word.find(directory)
    for split in source.split_files:
        if not SPLIT_NAME.fullmatch(split):
            raise UserError(f"{directory} has a split {split!r}, expected letters, digits, '.', '_' and '-'; rename it")
    return source
