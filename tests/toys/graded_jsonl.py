"""A collection in two files of JSON lines, with any splits and graded judgements: a source of its own.

python -m tests.toys.graded_jsonl data.msmarco_data --source graded_jsonl FLAGS…
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources.base import Passage, SourceRecord, SourceRequest, SplitFiles, find_raw
from data.sources.registry import SOURCES, SourceWord
from utils.program import start


def records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


@dataclass(frozen=True)
class GradedJsonl:
    """Passages ``{id, title, text}``, and queries ``{split, id, text, grades: {passage: grade}}`` of all splits."""

    passages_file: Path
    queries_file: Path

    @property
    def record(self) -> SourceRecord:
        return {"source": "graded_jsonl"}

    @property
    def split_files(self) -> dict[str, SplitFiles]:
        return {
            query["split"]: SplitFiles(self.queries_file, self.queries_file) for query in records(self.queries_file)
        }

    def estimate_passages(self) -> None:
        return None

    def passages(self) -> Iterator[Passage]:
        return (Passage(passage["id"], passage["text"], passage["title"]) for passage in records(self.passages_file))

    def queries(self, split: str) -> Iterator[tuple[str, str]]:
        return ((query["id"], query["text"]) for query in records(self.queries_file) if query["split"] == split)

    def qrels(self, split: str) -> Iterator[tuple[str, str, int]]:
        for query in records(self.queries_file):
            if query["split"] == split:
                yield from ((query["id"], passage, grade) for passage, grade in query["grades"].items())

    def remarks(self) -> list[str]:
        return []


def find(request: SourceRequest) -> GradedJsonl:
    directory = request.directory
    return GradedJsonl(find_raw(directory, "passages.jsonl"), find_raw(directory, "queries.jsonl"))


SOURCES["graded_jsonl"] = SourceWord("JSON lines with grades", find)

if __name__ == "__main__":
    start(sys.argv[1:])
