"""Whether a passage holds an answer to a question: DPR's two rules (Karpukhin et al. 2020, arXiv 2004.04906).

"string": text and answer in Unicode's NFD, as tokens in lower case; the answer's are next to each other among the
text's. Nothing else is normalized: neither articles nor punctuation. "regex": the answer in NFD, as a pattern, matches
somewhere in the text in NFD, whatever the case. Passages are prepared once, for any number of questions.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import regex

from utils.declared.answers import REGEX, STRING
from utils.run_log import say

# Letters, digits and marks in a row; else one character that is neither a separator nor a control character.
TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
PATTERN_FLAGS = regex.IGNORECASE | regex.UNICODE | regex.MULTILINE
IN_NO_PASSAGE = -1  # the id of a token
MOST_SECONDS = 2.0  # for a pattern in a passage


class AnswerPassages(Protocol):
    """Passages, prepared to be looked through for answers."""

    def hits(self, answers_Q: Sequence[Sequence[str]], passages_QK: np.ndarray) -> np.ndarray:
        """Which passages of each question's list hold one of its answers.

        Args:
            answers_Q: each question's answers.
            passages_QK: int64 offsets [Q, K]; those of no prepared passage, as -1, hold none.

        Returns:
            bool [Q, K].
        """
        ...


def tokens_of(text: str) -> list[str]:
    """The tokens of a text or answer, in lower case."""
    return [token.lower() for token in raw_tokens(text)]


def raw_tokens(text: str) -> list[str]:
    return TOKEN.findall(unicodedata.normalize("NFD", text))


@dataclass(frozen=True)
class PassageTokens:
    """Passages as token ids.

    Args:
        offset_P: int64, ascending: which passages.
        start_P1: int64: where in ``token_T`` the tokens of each begin; at the end, where the last one's end.
        token_T: int32: the ids of all tokens.
        id_of: the id of a token.
    """

    offset_P: np.ndarray
    start_P1: np.ndarray
    token_T: np.ndarray
    id_of: dict[str, int]

    def hits(self, answers_Q: Sequence[Sequence[str]], passages_QK: np.ndarray) -> np.ndarray:
        """As `AnswerPassages` says, by the rule "string". An answer without tokens is nowhere."""
        ids_Q = [{ids for answer in answers if (ids := self.ids_of(answer))} for answers in answers_Q]
        places = TokenPlaces.of(self, (ids for answer_ids in ids_Q for ids in answer_ids))
        hits_QK = np.zeros(passages_QK.shape, bool)
        if not len(self.offset_P):
            return hits_QK
        rows_QK = np.searchsorted(self.offset_P, passages_QK)
        rows_QK[rows_QK == len(self.offset_P)] = 0
        is_known_QK = self.offset_P[rows_QK] == passages_QK
        for query, answer_ids in enumerate(ids_Q):
            for ids in answer_ids:
                hits_QK[query] |= places.are_in(ids, rows_QK[query])
        return hits_QK & is_known_QK

    def ids_of(self, answer: str) -> tuple[int, ...]:
        """() where the answer has no token, or one that is in no passage."""
        ids = [self.id_of.get(token, IN_NO_PASSAGE) for token in tokens_of(answer)]
        return () if IN_NO_PASSAGE in ids else tuple(ids)


@dataclass(frozen=True)
class TokenPlaces:
    """Where the rarest token of each of some answers stands.

    Args:
        passages: that are looked through.
        count_V: int64: how often each token is there.
        place_I: int64: places in ``passages.token_T``, one token's after the other's, ascending.
        first_V1: int64: where in ``place_I`` those of each token begin.
    """

    passages: PassageTokens
    count_V: np.ndarray
    place_I: np.ndarray
    first_V1: np.ndarray

    @classmethod
    def of(cls, passages: PassageTokens, answers: Iterable[Sequence[int]]) -> TokenPlaces:
        """Of answers as token ids."""
        count_V = np.bincount(passages.token_T, minlength=len(passages.id_of))
        is_rarest_V = np.zeros(len(count_V), bool)
        for ids in answers:
            is_rarest_V[min(ids, key=count_V.__getitem__)] = True
        place_I = np.flatnonzero(is_rarest_V[passages.token_T])
        place_I = place_I[np.argsort(passages.token_T[place_I], kind="stable")]
        first_V1 = np.concatenate([[0], np.cumsum(np.where(is_rarest_V, count_V, 0))])
        return cls(passages, count_V, place_I, first_V1)

    def are_in(self, ids: Sequence[int], rows_K: np.ndarray) -> np.ndarray:
        """bool [K]: in which of these passages the tokens ``ids`` of an answer stand next to each other.

        Only the places of its rarest token that are in these passages are looked at, found by bisection: the time does
        not grow with the number of other passages.
        """
        at = min(range(len(ids)), key=lambda position: self.count_V[ids[position]])
        place_I = self.place_I[self.first_V1[ids[at]] : self.first_V1[ids[at] + 1]]
        start_P1, token_T = self.passages.start_P1, self.passages.token_T
        first_K = np.searchsorted(place_I, start_P1[rows_K] + at)
        last_K = np.searchsorted(place_I, start_P1[rows_K + 1] - (len(ids) - 1 - at))
        count_K = np.maximum(last_K - first_K, 0)  # of places where the answer fits into the passage
        if len(ids) == 1 or not count_K.any():
            return count_K > 0
        list_place_I = np.repeat(np.arange(len(rows_K)), count_K)
        nth_I = np.arange(len(list_place_I)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
        start_I = place_I[first_K[list_place_I] + nth_I] - at
        is_there_I = np.ones(len(start_I), bool)
        for position, token in enumerate(ids):
            if position != at:
                is_there_I &= token_T[start_I + position] == token
        found_K = np.zeros(len(rows_K), bool)
        found_K[list_place_I[is_there_I]] = True
        return found_K


def prepare_tokens(passages: Iterable[tuple[int, str]]) -> PassageTokens:
    """Of (offset, text), by offset ascending."""
    id_of: dict[str, int] = {}
    id_of_raw: dict[str, int] = {}  # each is put in lower case once
    offsets, starts, tokens = array("q"), array("q", [0]), array("i")
    for offset, text in passages:
        for token in raw_tokens(text):
            found = id_of_raw.get(token)
            if found is None:
                found = id_of_raw[token] = id_of.setdefault(token.lower(), len(id_of))
            tokens.append(found)
        offsets.append(offset)
        starts.append(len(tokens))
    offset_P, start_P1 = np.array(offsets, np.int64), np.array(starts, np.int64)
    return PassageTokens(offset_P, start_P1, np.array(tokens, np.int32), id_of)


@dataclass(frozen=True)
class PassageTexts:
    """Passages as texts in NFD, by offset."""

    text_of: dict[int, str]

    def hits(self, answers_Q: Sequence[Sequence[str]], passages_QK: np.ndarray) -> np.ndarray:
        """As `AnswerPassages` says, by the rule "regex".

        An answer that is no pattern is nowhere. One that takes more than `MOST_SECONDS` in a passage, or too much
        memory, is in none from there on: the log counts them.
        """
        hits_QK, given_up = np.zeros(passages_QK.shape, bool), list[str]()
        for query, answers in enumerate(answers_Q):
            patterns = [pattern for answer in answers if (pattern := pattern_of(answer)) is not None]
            for place, passage in enumerate(passages_QK[query].tolist()):
                text = self.text_of.get(passage)
                hits_QK[query, place] = text is not None and any_is_in(text, patterns, given_up)
        if given_up:
            say(
                f"warning: {len(given_up):,} answers, as {given_up[0][:40]!r}, took over {MOST_SECONDS:g} seconds or "
                "too much memory in a passage: from there on they are in none"
            )
        return hits_QK


def any_is_in(text: str, patterns: list[regex.Pattern[str]], given_up: list[str]) -> bool:
    """Whether one of them matches. One that takes too much goes from ``patterns`` to ``given_up``."""
    for pattern in [*patterns]:
        try:
            if pattern.search(text, timeout=MOST_SECONDS):
                return True
        except (TimeoutError, MemoryError, RecursionError):
            patterns.remove(pattern)
            given_up.append(pattern.pattern)
    return False


def pattern_of(answer: str) -> regex.Pattern[str] | None:
    """None where it is no pattern."""
    try:
        return regex.compile(unicodedata.normalize("NFD", answer), PATTERN_FLAGS)
    except (regex.error, ValueError, OverflowError, RecursionError, MemoryError):
        return None


def prepare_texts(passages: Iterable[tuple[int, str]]) -> PassageTexts:
    """Of (offset, text)."""
    return PassageTexts({offset: unicodedata.normalize("NFD", text) for offset, text in passages})


PREPARED_BY: dict[str, Callable[[Iterable[tuple[int, str]]], AnswerPassages]] = {
    STRING: prepare_tokens,
    REGEX: prepare_texts,
}


def first_hits(hits_QK: np.ndarray) -> np.ndarray:
    """int64 [Q]: the rank, from 1, of the first passage that holds an answer; 0 where none of the list does."""
    return np.where(hits_QK.any(1), hits_QK.argmax(1) + 1, 0)


def coverage_at(k: int, first_hit_Q: np.ndarray) -> float:
    """The share of all questions with an answer in the first k passages: DPR's top-k accuracy."""
    return float(((first_hit_Q > 0) & (first_hit_Q <= k)).mean())
