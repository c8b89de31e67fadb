"""BEIR folders for tests."""

from __future__ import annotations

import json
import shutil
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


def documents_of_passages(raw: Path, out: Path) -> Path:
    """MS MARCO's documents made of its passages: two of three have a title, and queries have grades 0 to 3.

    Args:
        raw: has the files of passages.
        out: to make.
    """
    out.mkdir(parents=True)
    passages = rows_of(raw / "collection.tsv")
    with (out / "msmarco-docs.tsv").open("w") as file:
        for number, (passage_id, text) in enumerate(passages):
            title = " ".join(text.split(" ")[:3]).title() if number % 3 else ""
            file.write(f"{passage_id}\t\t{title}\t{text}\n")
    for split, name in (("train", "train"), ("dev", "dev.small")):
        shutil.copy(raw / f"queries.{name}.tsv", out / f"msmarco-doc{split}-queries.tsv")
        rows = rows_of(raw / f"qrels.{name}.tsv")
        grades = {(query, passage): 1 + number % 3 for number, (query, _, passage, _) in enumerate(rows)}
        others = {(query, passages[number][0]): 0 for number, (query, *_) in enumerate(rows)}
        lines = [f"{query} 0 {passage} {grade}\n" for (query, passage), grade in {**others, **grades}.items()]
        (out / f"msmarco-doc{split}-qrels.tsv").write_text("".join(lines))
    return out


def beir_of_documents(raw: Path, folder: Path) -> Path:
    """Of `documents_of_passages`. A blank title is left blank, or missing.

    Args:
        raw: has the files.
        folder: to make.
    """
    rows = enumerate(rows_of(raw / "msmarco-docs.tsv"))
    passages = [
        {"_id": an_id, "text": text, **({"title": title} if title or number % 2 else {})}
        for number, (an_id, _, title, text) in rows
    ]
    splits = ("train", "dev")
    queries = [
        {"_id": an_id, "text": text}
        for split in splits
        for an_id, text in rows_of(raw / f"msmarco-doc{split}-queries.tsv")
    ]
    qrels = {
        split: [(query, passage, grade) for query, _, passage, grade in map(str.split, lines.splitlines())]
        for split in splits
        for lines in [(raw / f"msmarco-doc{split}-qrels.tsv").read_text()]
    }
    return write_beir(folder, passages, queries, qrels)
