"""Coverage@k of questions with answers: the share that have a passage with an answer among their first k.

The figure of open-domain question answering (DPR, arXiv 2004.04906, table 2; ANCE, arXiv 2007.00808, table 2), there
called top-k accuracy. Answers and passages are the raw collection's; of a passage its text counts, not its title.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.sources.base import AnsweredSource, QuestionAnswers, Source
from data.sources.registry import open_source, request_of_record
from data.tokens.collection import Preprocessed
from data.tokens.raw_texts import passages_in_order
from drivers.evaluate.measure import Ranking
from drivers.evaluate.splits import RankedSplit
from utils.errors import UserError
from utils.ir.answers import PREPARED_BY, coverage_at, first_hits, tokens_of
from utils.ir.metrics import deepest_cutoff

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
        UserError: the raw collection has no answers, is another one, or has an answer that every passage holds.
    """
    if not raw_data_dir:
        return None
    source = open_source(request_of_record(collection.manifest, raw_data_dir))
    if not isinstance(source, AnsweredSource):
        raise UserError(
            f"--raw_data_dir {raw_data_dir} is for the answers to questions, and a collection of source "
            f"{source.record['source']} has none, expected DPR's files; omit it"
        )
    check_passages(source, collection)
    found = {split.name: answers_of(split, list(source.answers(split.name)), raw_data_dir) for split in splits}
    return AnswerSettings(source, found, match)


def check_passages(source: Source, collection: Preprocessed) -> None:
    """UserError where its passages are others; read for that only if the file is not the size of the recorded one."""
    path = source.passages_file
    recorded = collection.manifest.get("sources", {}).get(getattr(path, "name", ""))
    if isinstance(path, str) or recorded != {"bytes": path.stat().st_size}:
        for _ in passages_in_order(source, collection):
            pass


def answers_of(split: RankedSplit, entries: Sequence[QuestionAnswers], raw_data_dir: str) -> list[list[str]]:
    """The answers to each ranked question. UserError where a question is missing, or an answer has no token."""
    for entry in entries:
        if any(not tokens_of(answer) for answer in entry.answers):
            raise UserError(
                f"{entry.where}: one of the answers is without letter, digit or sign, so that every passage would hold "
                "it; remove it"
            )
    answers = {entry.query_id: entry.answers for entry in entries}
    missing = next((query_id for query_id in split.query_ids if query_id not in answers), None)
    if missing is not None:
        raise UserError(
            f"{raw_data_dir} has no question {missing} of {split.name}, {split.collection.directory} has: they are "
            "different collections; give the raw directory it was made from"
        )
    return [answers[query_id] for query_id in split.query_ids]


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
