"""Coverage@k of questions with answers: the share that have a passage with an answer among their first k.

The figure of open-domain question answering (DPR, arXiv 2004.04906, table 2; ANCE, arXiv 2007.00808, table 2), there
called top-k accuracy. Answers and passages are the raw collection's; of a passage its text counts, not its title.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.sources.base import AnsweredSource, Source
from data.sources.registry import open_source, request_of_record
from data.tokens.collection import QUERIES_SHA256, Preprocessed
from data.tokens.raw_texts import DIFFERENT, passages_in_order, query_texts
from drivers.evaluate.measure import Ranking
from drivers.evaluate.splits import RankedSplit
from utils.declared.answers import REGEX, STRING
from utils.errors import UserError
from utils.ir.answers import PREPARED_BY, coverage_at, first_hits, pattern_of, tokens_of
from utils.ir.metrics import deepest_cutoff, format_metrics

CUTOFFS = (20, 100)


@dataclass(frozen=True)
class AnswerSettings:
    """What coverage is measured with.

    Args:
        source: the raw collection.
        answers: by the split's name, those of each ranked question.
        match: a word of `ANSWER_MATCHES`.
    """

    source: Source
    answers: dict[str, list[list[str]]]
    match: str


@dataclass(frozen=True)
class Coverage:
    """``metrics`` are coverage@k by name, ``first_hit_Q`` int64 the rank of each question's first passage with an
    answer, 0 where there is none among the first 100."""

    metrics: dict[str, float]
    first_hit_Q: np.ndarray
    match: str

    def record(self) -> dict[str, object]:
        """For metrics.json."""
        return {**self.metrics, "questions": len(self.first_hit_Q), "answer_match": self.match}

    def describe(self) -> str:
        """For a log line."""
        questions = f"of {len(self.first_hit_Q):,} questions"
        if self.metrics:
            return f"{format_metrics(self.metrics)} {questions}"
        return f"no metric {questions}: the lists are shorter than {min(CUTOFFS)} passages"


def answer_settings(
    collection: Preprocessed, splits: Sequence[RankedSplit], raw_data_dir: str, match: str
) -> AnswerSettings | None:
    """What coverage is measured with; None where no raw collection is given.

    Args:
        collection: what is ranked.
        splits: whose questions.
        raw_data_dir: of the raw collection; "" for none.
        match: the rule by which a passage holds an answer.

    Raises:
        UserError: the raw collection has no answers, is another one, or has an answer that every passage holds; a rule
            is given without one.
    """
    if not raw_data_dir:
        if match != STRING:
            raise UserError(
                f"--answer_match {match} has no effect without answers, expected --raw_data_dir, which has them; give "
                "it, or omit --answer_match"
            )
        return None
    source = open_source(request_of_record(collection.manifest, raw_data_dir))
    if not isinstance(source, AnsweredSource):
        raise UserError(
            f"--raw_data_dir {raw_data_dir} is for the answers to questions, and a collection of source "
            f"{source.record['source']} has none, expected DPR's files; omit it"
        )
    check_passages(source, collection)
    return AnswerSettings(source, {split.name: answers_of(source, split) for split in splits}, match)


def check_passages(source: Source, collection: Preprocessed) -> None:
    """UserError where its passages are others; read for that only if the file is not the size of the recorded one."""
    if not has_recorded_size(source.passages_file, collection):
        for _ in passages_in_order(source, collection):
            pass


def has_recorded_size(path: Path | str, collection: Preprocessed) -> bool:
    """Whether the collection was made from a file of this name and size."""
    recorded = collection.manifest.get("sources", {})
    return isinstance(path, Path) and recorded.get(path.name) == {"bytes": path.stat().st_size}


def answers_of(source: AnsweredSource, split: RankedSplit) -> list[list[str]]:
    """The answers to each ranked question. UserError where the questions are others, or an answer has no token.

    Ids are places in a file, so that every file has them: the texts are compared by `query_texts`. A collection of a
    version that recorded no texts has the size of the file alone.
    """
    collection = split.collection
    query_texts(source, collection, split.name)
    path = source.split_files[split.name].queries
    if QUERIES_SHA256 not in collection.manifest and not has_recorded_size(path, collection):
        raise UserError(
            f"{path} has not the name and size of the file that {collection.directory} was made from: {DIFFERENT}"
        )
    answers = {}
    for entry in source.answers(split.name):
        if any(not tokens_of(answer) for answer in entry.answers):
            raise UserError(
                f"{entry.where}: one of the answers is without letter, digit or sign, so that every passage would hold "
                "it; remove it"
            )
        answers[entry.query_id] = entry.answers
    return [answers[query_id] for query_id in split.query_ids]


def describe_answers(settings: AnswerSettings) -> str:
    """How many there are, and how many of them are no pattern where patterns are wanted."""
    answers = [answer for answers_Q in settings.answers.values() for answers in answers_Q for answer in answers]
    said = f"answers: {len(answers):,}, --answer_match {settings.match}"
    if settings.match != REGEX:
        return said
    without = [answer for answer in answers if pattern_of(answer) is None]
    example = f", as {without[0][:40]!r}: they are in no passage" if without else ""
    return f"{said}; {len(without):,} of {len(answers):,} answers are no pattern{example}"


def measure_coverage(
    settings: AnswerSettings | None, ranked: Sequence[tuple[RankedSplit, Ranking]]
) -> list[Coverage | None]:
    """Of each ranking; None where no answers are given. The passages are read once.

    Args:
        settings: the answers, and how they are found.
        ranked: rankings of splits of one collection. A cut-off deeper than the lists is omitted.

    Raises:
        UserError: a passage of the raw collection cannot be read, or is another.
    """
    if settings is None:
        return [None] * len(ranked)
    collection, deepest = ranked[0][0].collection, max(CUTOFFS)
    is_wanted_P = np.zeros(len(collection.passages), bool)
    for _, ranking in ranked:
        passages_QK = ranking.passages_QK[:, :deepest]
        is_wanted_P[passages_QK[(passages_QK >= 0) & (passages_QK < len(is_wanted_P))]] = True
    in_order = enumerate(passages_in_order(settings.source, collection))
    passages = PREPARED_BY[settings.match]((offset, found.text) for offset, found in in_order if is_wanted_P[offset])
    coverages = list[Coverage | None]()
    for split, ranking in ranked:
        first_hit_Q = first_hits(passages.hits(settings.answers[split.name], ranking.passages_QK[:, :deepest]))
        depth = deepest_cutoff(ranking.passages_QK.shape[1], len(collection.passages))
        metrics = {f"coverage@{k}": coverage_at(k, first_hit_Q) for k in CUTOFFS if k <= depth and first_hit_Q.size}
        coverages.append(Coverage(metrics, first_hit_Q, settings.match))
    return coverages
