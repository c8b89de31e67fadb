"""The source of a collection: what is read from raw files, whatever their format, before a token is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from utils.errors import UserError

SourceRecord = dict[str, str | int]


class Passage(NamedTuple):
    """A passage or document as text; a field that its collection does not have is None, one left blank is ""."""

    passage_id: str
    text: str
    title: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class SplitFiles:
    """Where a split's queries and qrels come from; two splits may share a file of queries.

    A name that is no path stands for what is not a file here (a dataset of ir_datasets). ``qrels`` is None where nobody
    has judged the split: its queries can be searched, and nothing measured. ``relevance_level`` is the lowest grade
    that measures without grades call relevant, as the split's figures are published.
    """

    queries: Path | str
    qrels: Path | str | None
    relevance_level: int = 1


@dataclass(frozen=True)
class SourceRequest:
    """Which raw collection is meant.

    Args:
        directory: That of its files; None for one that is not in a directory.
        word: Of `registry.SOURCES`, or "auto": by the files of the directory.
        data_type: MS MARCO's documents ("0") or passages ("1"), as ANCE numbers them; "": which of them is there.
        dataset: The name of a dataset of ir_datasets.
    """

    directory: Path | None
    word: str = "auto"
    data_type: str = ""
    dataset: str = ""


class Source(Protocol):
    """A raw collection: its passages, the splits it has, and the queries and graded qrels of each split.

    The three readers stream: they may be called again, and hold no more than what finds a fault. They raise UserError
    with file and line for what cannot be read. Ids are any text without tab or line end, unique in their file. A grade
    is an integer from -LARGEST_GRADE to LARGEST_GRADE; 1 and above is relevant. Qrels may name queries and passages
    that are not there, and repeat a line: preprocessing counts both. ``record`` is what the manifest records, by which
    `registry.request_of_record` opens the same source again; ``split_files`` has the splits by name, in the order in
    which they are written.
    """

    @property
    def record(self) -> SourceRecord: ...

    @property
    def passages_file(self) -> Path | str: ...

    @property
    def split_files(self) -> Mapping[str, SplitFiles]: ...

    def estimate_passages(self) -> int | None:
        """About how many passages there are, found out fast; None where that is not known."""
        ...

    def passages(self) -> Iterator[Passage]:
        """In the order that gives each passage its offset."""
        ...

    def queries(self, split: str) -> Iterator[tuple[str, str]]:
        """(query_id, text) as the text stands; those that the split's qrels do not judge may be among them."""
        ...

    def qrels(self, split: str) -> Iterator[tuple[str, str, int]]:
        """(query_id, passage_id, grade); none of a split that nobody has judged."""
        ...

    def remarks(self) -> list[str]:
        """What its reader should know of the raw files, as what of them belongs to no split: a sentence each."""
        ...


class QuestionAnswers(NamedTuple):
    """The answers to a question; ``where`` they stand is for messages."""

    query_id: str
    answers: list[str]
    where: str


@runtime_checkable
class AnsweredSource(Source, Protocol):
    """A `Source` whose questions have answers."""

    def answers(self, split: str) -> Iterator[QuestionAnswers]:
        """To every question of `Source.queries`, in that order."""
        ...


def source_files(source: Source) -> list[Path]:
    """All files of ``source``, each once: the passages, then the queries, then the qrels of every split."""
    splits = source.split_files.values()
    origins = [source.passages_file, *(s.queries for s in splits), *(s.qrels for s in splits)]
    return [origin for origin in dict.fromkeys(origins) if isinstance(origin, Path)]


def find_raw(directory: Path, *names: str) -> Path:
    """The first of ``names``, or of ``names`` with ``.gz``, that is in ``directory``.

    Raises UserError naming the directory and all that was looked for.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory, expected the one that holds {names[0]}")
    for name in names:
        if path := plain_or_gzipped(directory, name):
            return path
    wanted = " or ".join(f"{name}[.gz]" for name in names)
    raise UserError(f"{directory} has no {wanted}: fetch it, or give the directory that has it")


def plain_or_gzipped(directory: Path, name: str) -> Path | None:
    """The file ``name``, or ``name`` with ``.gz``, of ``directory``; None where there is neither."""
    paths = (directory / name, directory / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)
