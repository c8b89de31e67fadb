"""BEIR folders for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path


def rows_of(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def write_beir(
    folder: Path,
    passages: Iterable[Mapping[str, str]],
    queries: Iterable[Mapping[str, str]],
    qrels: Mapping[str, Iterable[tuple[str, str, str]]],
) -> Path:
    """A BEIR folder.

    Args:
        folder: to make.
        passages, queries: records with an ``_id`` and a ``text``.
        qrels: (query, passage, grade) of each split.
    """
    (folder / "qrels").mkdir(parents=True)
    for name, records in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for split, rows in qrels.items():
        lines = ["\t".join(row) + "\n" for row in rows]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def beir_of_msmarco(raw: Path, folder: Path, splits: Mapping[str, str]) -> Path:
    """The files of MS MARCO's layout as a BEIR folder, its queries in another order than the qrels.

    Args:
        raw: has the files.
        folder: to make.
        splits: MS MARCO's word for each split.
    """

    def records(*names: str) -> list[dict[str, str]]:
        return [{"_id": an_id, "text": text} for name in names for an_id, text in rows_of(raw / name)]

    qrels = {
        split: [(query, passage, grade) for query, _, passage, grade in rows_of(raw / f"qrels.{name}.tsv")]
        for split, name in splits.items()
    }
    queries = records(*(f"queries.{name}.tsv" for name in sorted(splits.values())))
    return write_beir(folder, records("collection.tsv"), queries, qrels)
