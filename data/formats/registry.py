"""The words of data.export's --format: how other trainers want a query with its positives and negatives.

A record is a line of JSON. Trainers read such a file with Hugging Face's ``datasets``, which wants the same keys in
every line; so scores are in all lines or in none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data.formats.examples import Example
from data.formats.texts import ExportTexts

Record = dict[str, object]
RecordsOf = Callable[[Example, ExportTexts], Iterator[Record]]


@dataclass(frozen=True)
class ExportFormat:
    """``records`` makes the lines of a query; None for a TREC run, which holds ids alone.

    ``is_rectangular``: all lines must have equally many negatives.
    """

    description: str
    records: RecordsOf | None
    is_rectangular: bool = False


def tevatron(example: Example, texts: ExportTexts) -> Iterator[Record]:
    """One line: the ids, titles and texts of all positives and negatives.

    Source:
        texttron/tevatron, docs/datasets.md and src/tevatron/retriever/dataset.py; DistilTrainDataset has the scores.
    """

    def passages(offsets: list[int], scores: list[float] | None) -> list[Record]:
        found = map(texts.passage, offsets)
        records: list[Record] = [{"docid": p.passage_id, "title": p.title, "text": p.text} for p in found]
        if scores is not None:
            records = [{**record, "score": score} for record, score in zip(records, scores, strict=True)]
        return records

    yield {
        "query_id": texts.query_ids[example.query],
        "query": texts.queries[example.query],
        "positive_passages": passages(example.positives, example.positive_scores),
        "negative_passages": passages(example.negatives, example.negative_scores),
    }


def sentence_transformers(example: Example, texts: ExportTexts) -> Iterator[Record]:
    """A line for each positive: its columns are, in this order, the anchor, the positive and the negatives.

    Source:
        sentence-transformers, util/hard_negatives.py: the n-tuples of mine_hard_negatives, with its column of scores.
    """
    negatives = {f"negative_{n}": texts.passage(offset).joined for n, offset in enumerate(example.negatives, 1)}
    for place, positive in enumerate(example.positives):
        anchor: Record = {"anchor": texts.queries[example.query], "positive": texts.passage(positive).joined}
        scores: Record = {}
        if example.positive_scores is not None and example.negative_scores is not None:
            scores = {"scores": [example.positive_scores[place], *example.negative_scores]}
        yield {**anchor, **negatives, **scores}


def flag_embedding(example: Example, texts: ExportTexts) -> Iterator[Record]:
    """One line: the texts of all positives and negatives, and what a teacher scored them.

    Source:
        FlagOpen/FlagEmbedding, FlagEmbedding/abc/finetune/embedder/AbsDataset.py.
    """
    record: Record = {
        "query": texts.queries[example.query],
        "pos": [texts.passage(offset).joined for offset in example.positives],
        "neg": [texts.passage(offset).joined for offset in example.negatives],
    }
    if example.positive_scores is not None:
        record |= {"pos_scores": example.positive_scores, "neg_scores": example.negative_scores}
    yield record


FORMATS = {
    "tevatron": ExportFormat("JSON lines with ids, titles and texts", tevatron),
    "sentence-transformers": ExportFormat(
        "JSON lines of n-tuples, one for each positive", sentence_transformers, is_rectangular=True
    ),
    "flagembedding": ExportFormat("JSON lines of query, pos and neg", flag_embedding),
    "trec": ExportFormat("a TREC run of the train queries", None),
}
