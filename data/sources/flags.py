"""The flags by which a program is told which raw collection to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data.sources.base import SourceRequest
from data.sources.registry import AUTO, SOURCES
from utils.declared.words import words_help
from utils.flag_values import Group, flag
from utils.flags import ProgramFlags


def source_help() -> str:
    return f"format of the raw files; {AUTO}: by their names; {words_help(SOURCES)}"


@dataclass(frozen=True, kw_only=True)
class SourceFlags(ProgramFlags):
    GROUP: ClassVar[Group] = "data"

    data_dir: str = flag("", "directory of the raw files, plain or gzipped", is_path=True)
    source: str = flag(AUTO, source_help)
    data_type: str = flag("", "MS MARCO's documents (0) or passages (1); default: those that are there")
    dataset: str = flag("", "name of a dataset of ir_datasets, in place of --data_dir, as beir/scifact")

    @property
    def source_request(self) -> SourceRequest:
        return SourceRequest(Path(self.data_dir) if self.data_dir else None, self.source, self.data_type, self.dataset)
