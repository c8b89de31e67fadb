"""Stemmers of BM25's words, by the words of --stemmer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stemmer:
    """``stem`` takes a word, lower-cased, to what stands for it; None leaves every word."""

    description: str
    stem: Callable[[str], str] | None


def s_stem(word: str) -> str:
    """The first rule of Harman's S-stemmer that fits ("How effective is suffixing?", JASIS 42(1), 1991, table 1)."""
    rules = (("ies", ("eies", "aies"), "y"), ("es", ("aes", "ees", "oes"), "e"), ("s", ("us", "ss"), ""))
    for ending, exceptions, becomes in rules:
        if word.endswith(ending) and not word.endswith(exceptions):
            return word.removesuffix(ending) + becomes
    return word


STEMMERS = {
    "none": Stemmer("words as they are", None),
    "s": Stemmer("Harman's S-stemmer, which makes plurals singular", s_stem),
}
