"""All that a source gives."""

from __future__ import annotations

from pathlib import Path

from data.sources.base import Source, SourceRequest
from data.sources.registry import open_source


def opened(directory: Path) -> Source:
    return open_source(SourceRequest(directory))


def read_all(source: Source) -> list[object]:
    splits = [[*source.queries(split), *source.qrels(split)] for split in source.split_files]
    return [*source.passages(), splits, source.remarks()]
