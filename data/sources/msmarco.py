"""MS MARCO's passages and documents: TSV or gzipped TSV, read line by line, with every fault named by file and line.

`find_collection` finds the files of either kind, as a `data.sources.base.Source`. Nothing is held but the line at hand
(utils/text_files.py reads them) and eight bytes per id, by which a repeated id is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.sources.base import (
    Passage,
    SourceRecord,
    SourceRequest,
    SplitFiles,
    find_raw,
    plain_or_gzipped,
    source_files,
)
from data.sources.ids import UniqueIds
from data.sources.judgements import Judgement, read_qrels
from utils.errors import UserError
from utils.exchange.evaluations import DEV, TRAIN
from utils.text_files import check_ends, estimate_lines, numbered_lines

MSMARCO = "msmarco"  # --source
DOCUMENT_TYPE, PASSAGE_TYPE = 0, 1  # --data_type, as ANCE numbers them
TREC_2019, TREC_2020, LEADERBOARD = "trec2019", "trec2020", "leaderboard"  # the words of commands/data_download.sh

# Craswell et al. 2020 (arXiv 2003.07820): of passages grade 1 is "related", and counts as not relevant.
LEVEL_OF_TREC_PASSAGES = 2
TREC_QUERIES = ("msmarco-test2019-queries.tsv", "msmarco-test2020-queries.tsv")  # of passages and documents


@dataclass(frozen=True)
class SplitNames:
    """``qrels`` is None where MS MARCO has published none; ``relevance_level`` is that of `SplitFiles`."""

    queries: str
    qrels: str | None
    relevance_level: int = 1


@dataclass(frozen=True)
class RawNames:
    """What MS MARCO calls the files of one collection. ``columns`` is the number of columns of ``passages``."""

    passages: str
    columns: int
    splits: dict[str, SplitNames]


RAW_NAMES = {
    DOCUMENT_TYPE: RawNames(
        "msmarco-docs.tsv",
        4,
        {
            TRAIN: SplitNames("msmarco-doctrain-queries.tsv", "msmarco-doctrain-qrels.tsv"),
            DEV: SplitNames("msmarco-docdev-queries.tsv", "msmarco-docdev-qrels.tsv"),
            TREC_2019: SplitNames(TREC_QUERIES[0], "2019qrels-docs.txt"),
            TREC_2020: SplitNames(TREC_QUERIES[1], "2020qrels-docs.txt"),
            LEADERBOARD: SplitNames("docleaderboard-queries.tsv", None),
        },
    ),
    PASSAGE_TYPE: RawNames(
        "collection.tsv",
        2,
        {
            TRAIN: SplitNames("queries.train.tsv", "qrels.train.tsv"),
            DEV: SplitNames("queries.dev.small.tsv", "qrels.dev.small.tsv"),
            TREC_2019: SplitNames(TREC_QUERIES[0], "2019qrels-pass.txt", LEVEL_OF_TREC_PASSAGES),
            TREC_2020: SplitNames(TREC_QUERIES[1], "2020qrels-pass.txt", LEVEL_OF_TREC_PASSAGES),
            LEADERBOARD: SplitNames("queries.eval.small.tsv", None),
        },
    ),
}


@dataclass(frozen=True)
class MsMarcoSplit(SplitFiles):
    queries: Path
    qrels: Path | None


@dataclass(frozen=True)
class MsMarco:
    """The files of a raw directory, found under their plain or gzipped names, as a `Source`."""

    data_type: int
    passages_file: Path
    split_files: dict[str, MsMarcoSplit]

    @property
    def record(self) -> SourceRecord:
        return {"source": MSMARCO, "data_type": self.data_type}

    def estimate_passages(self) -> int:
        return estimate_lines(self.passages_file)

    def passages(self) -> Iterator[Passage]:
        return read_passages(self.passages_file, self.data_type)

    def queries(self, split: str) -> Iterator[tuple[str, str]]:
        return read_queries(self.split_files[split].queries)

    def qrels(self, split: str) -> Iterator[Judgement]:
        qrels = self.split_files[split].qrels
        return read_qrels(qrels) if qrels is not None else iter(())

    def remarks(self) -> list[str]:
        """TREC's queries without the qrels of this collection."""
        directory = self.passages_file.parent
        return [
            f"no split {split}: {names.queries} is there, {names.qrels} is not"
            for split, names in RAW_NAMES[self.data_type].splits.items()
            if split not in self.split_files and plain_or_gzipped(directory, names.queries)
        ]


def find(request: SourceRequest) -> MsMarco:
    """The files of ``request.directory``. UserError as `find_collection`, and where both kinds are there."""
    directory, words = request.directory, {str(data_type) for data_type in RAW_NAMES}
    assert directory is not None
    if request.data_type:
        if request.data_type not in words:
            raise UserError(
                f"--data_type is {request.data_type}, expected 0 (MS MARCO's documents) or 1 (its passages); "
                "other formats are --source"
            )
        return find_collection(directory, int(request.data_type))
    there = [of for of, names in RAW_NAMES.items() if plain_or_gzipped(directory, names.passages)]
    if len(there) > 1:
        raise UserError(
            f"{directory} has both {RAW_NAMES[DOCUMENT_TYPE].passages} and {RAW_NAMES[PASSAGE_TYPE].passages}: "
            "write --data_type 0 for the documents, 1 for the passages"
        )
    return find_collection(directory, there[0] if there else PASSAGE_TYPE)


def find_collection(directory: Path, data_type: int) -> MsMarco:
    """All raw files of a collection: the passages, and each split of which a file is there. The other file of such a
    split has its plain name, whether it is there or not.

    UserError where there are no passages or no queries, a file is empty, begins with a header or ends without a line
    end, or ``data_type`` is the wrong one.
    """
    names, other = RAW_NAMES[data_type], RAW_NAMES[1 - data_type]
    if plain_or_gzipped(directory, names.passages) is None and plain_or_gzipped(directory, other.passages):
        raise UserError(
            f"{directory} has {other.passages} and no {names.passages}; did you mean --data_type {1 - data_type}?"
        )
    passages = find_raw(directory, names.passages)
    splits = {split: found for split, of in names.splits.items() if (found := find_split(directory, of))}
    if not splits:
        find_raw(directory, *(of.queries for of in names.splits.values()))
    collection = MsMarco(data_type, passages, splits)
    for path in filter(Path.is_file, source_files(collection)):
        check_ends(path)
    return collection


def find_split(directory: Path, names: SplitNames) -> MsMarcoSplit | None:
    """The files of a split; None where neither is there. TREC's queries are of both collections: its qrels decide."""
    queries = plain_or_gzipped(directory, names.queries)
    qrels = plain_or_gzipped(directory, names.qrels) if names.qrels else None
    if not qrels and (not queries or names.queries in TREC_QUERIES):
        return None
    qrels = directory / names.qrels if names.qrels and not qrels else qrels
    return MsMarcoSplit(queries or directory / names.queries, qrels, names.relevance_level)


def read_records(path: Path, columns: int) -> Iterator[list[str]]:
    """The records of a TSV file whose first column is a unique id and whose others are text, not all blank.

    Raises UserError with file and line for another number of columns, an empty or repeated id, and an empty text.
    """
    ids = UniqueIds(path)
    for number, line in numbered_lines(path):
        record = line.split("\t")
        if len(record) != columns:
            hint = "" if len(record) < columns else " (an id or text must not hold a tab)"
            raise UserError(
                f"{path}, line {number}: {len(record)} tab-separated columns, expected {columns}{hint}; fix the line"
            )
        if record[0].strip() and not any(map(str.strip, record[1:])):
            raise UserError(f"{path}, line {number}: the text of {record[0]!r} is empty; remove the line, or fix it")
        ids.add(number, record[0])
        yield record
    ids.check()


def read_passages(path: Path, data_type: int) -> Iterator[Passage]:
    """Passages (pid, text) or documents (D-id, url, title, body). Raises UserError as `read_records` does."""
    for record in read_records(path, RAW_NAMES[data_type].columns):
        if data_type == DOCUMENT_TYPE:
            passage_id, url, title, body = record
            yield Passage(passage_id, body, title, url)
        else:
            yield Passage(*record)


def read_queries(path: Path) -> Iterator[tuple[str, str]]:
    """(query_id, text) of a queries file. Raises UserError as `read_records` does."""
    for record in read_records(path, 2):
        yield record[0], record[1]
