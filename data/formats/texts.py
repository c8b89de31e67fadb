"""The texts of an export, found by offset: those of the passages lie in a file of their own, so that none is held."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data.sources.base import Source
from data.tokens.collection import Preprocessed
from data.tokens.raw_texts import passages_in_order


class PassageText(NamedTuple):
    """A passage as other trainers know it; a document's url is no part of it. ``title`` is "" where there is none."""

    passage_id: str
    title: str
    text: str

    @property
    def joined(self) -> str:
        """Title and text as one string, with a blank between them: BEIR's convention."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True)
class ExportTexts:
    """Queries are held; the passages are in ``file``, passage p from ``end_N1[p]`` to ``end_N1[p + 1]``."""

    query_ids: Sequence[str]
    queries: Sequence[str]
    file: BinaryIO
    end_N1: np.ndarray

    def passage(self, offset: int) -> PassageText:
        first, end = self.end_N1[offset : offset + 2].tolist()
        self.file.seek(first)
        return PassageText(*json.loads(self.file.read(end - first)))


def write_passage_texts(path: Path, source: Source, collection: Preprocessed, is_wanted_N: np.ndarray) -> np.ndarray:
    """Write the texts of some passages to a file of JSON.

    Args:
        path: The file.
        source: The raw collection, read once.
        collection: The same, preprocessed.
        is_wanted_N: bool [N], which passages.
    Returns:
        int64 [N + 1], where passage p begins and ends: of one that is not wanted, at the same byte.
    Raises:
        UserError: ``source`` is another collection.
    """
    end_N1 = np.zeros(len(collection.passages) + 1, np.int64)
    end = 0
    with path.open("wb", buffering=1 << 20) as file:
        for offset, passage in enumerate(passages_in_order(source, collection)):
            if is_wanted_N[offset]:
                text = PassageText(passage.passage_id, passage.title or "", passage.text)
                end += file.write(json.dumps(text, ensure_ascii=False).encode())
            end_N1[offset + 1] = end
    return end_N1
