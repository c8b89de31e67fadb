"""utils.ir.answers next to a literal reading of DPR's rule: category by category, list by list."""

# ruff: noqa: RUF001 - letters of other scripts are what is tested

from __future__ import annotations

import functools
import random
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from utils.declared.answers import ANSWER_MATCHES, REGEX, STRING
from utils.ir.answers import PREPARED_BY, coverage_at, first_hits, tokens_of


@functools.lru_cache(1 << 16)
def tokens_by_category(text: str) -> list[str]:
    """Runs of letters, numbers and marks; else single characters but separators and control characters."""
    tokens, run = [], ""
    for character in unicodedata.normalize("NFD", text):
        kind = unicodedata.category(character)[0]
        if kind in "LNM":
            run += character
            continue
        tokens += [run] if run else []
        run = ""
        if kind not in "ZC":
            tokens.append(character)
    return [token.lower() for token in [*tokens, *([run] if run else [])]]


def holds_an_answer(text: str, answers: list[str]) -> bool:
    tokens = tokens_by_category(text)
    for answer in answers:
        wanted = tokens_by_category(answer)
        for start in range(len(tokens) - len(wanted) + 1):
            if wanted and tokens[start : start + len(wanted)] == wanted:
                return True
    return False


def hits(match: str, texts: list[str], answers_Q: list[list[str]]) -> list[list[bool]]:
    """Of all texts, which are those at every third offset, for every question."""
    passages = PREPARED_BY[match]((3 * row, text) for row, text in enumerate(texts))
    offsets_QK = np.tile(3 * np.arange(len(texts), dtype=np.int64), (len(answers_Q), 1))
    found: list[list[bool]] = passages.hits(answers_Q, offsets_QK).tolist()
    return found


# Latin with accents (one character or two), Greek with its final sigma, CJK, Arabic with marks, Devanagari with marks,
# an emoji of several code points, digits of two scripts, punctuation, a capital that becomes two characters, and what
# separates: blanks, a line end, zero-width characters, a control character.
SYLLABLES = [
    *("a", "b", "É", "é", "e\u0301", "ü", "ß", "İ", "ı", "ﬁ", "Σ", "σ", "ς", "ΑΣ", "漢", "字", "が", "か\u3099"),
    *("كِ", "تَ", "ا", "ك", "कि", "क", "ि", "ज़", "👩\u200d🔬", "🇬🇧", "1", "2", "٣", "½", "²", "Ⅷ"),
    *(".", "'", "’", "-", "$", "_", "€", " ", "\u00a0", "\n", "\u2028", "\u200d", "\u00ad", "\x07"),
]
words = st.lists(st.sampled_from(SYLLABLES), max_size=8).map("".join)
any_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=12)
texts = st.one_of(words, any_text)


@given(texts)
@example("Wènchuān’s 8.0 Ms")
def test_tokens_are_those_of_a_literal_reading(text: str) -> None:
    assert tokens_of(text) == tokens_by_category(text)


@given(st.data())
def test_a_passage_holds_an_answer_as_a_literal_reading_has_it(data: st.DataObject) -> None:
    """Answers are of their own, or pieces of the texts, in another case and normal form."""
    passages = data.draw(st.lists(texts, min_size=1, max_size=6))
    whole, form = " ".join(passages), data.draw(st.sampled_from(["NFC", "NFD"]))
    pieces = st.tuples(st.integers(0, len(whole)), st.integers(1, 8)).map(lambda at: whole[at[0] : at[0] + at[1]])
    answers = st.one_of(texts, pieces, pieces.map(lambda text: unicodedata.normalize(form, text).upper()))
    answers_Q = data.draw(st.lists(st.lists(answers, max_size=3), min_size=1, max_size=4))
    expected = [[holds_an_answer(text, answers) for text in passages] for answers in answers_Q]
    assert hits(STRING, passages, answers_Q) == expected


CASES = [
    ("the 1973 crisis", "1973", True),
    ("the 1973crisis", "1973", False),  # inside a token
    ("nearly $12 globally", "$12", True),
    ("nearly $ 12 globally", "$12", True),  # the same tokens
    ("the U.S. mark", "us", False),
    ("of New York City", "new york", True),
    ("of New, York City", "new york", False),  # the comma is a token
    ("The Beatles", "Beatles", True),
    ("Beatles", "The Beatles", False),  # articles stay
    ("Pokémon", "poke\u0301mon", True),
    ("Pokémon", "pokemon", False),  # accents are not dropped
    ("ends with new", "new york", False),
    ("york", "new york", False),
    ("", "new", False),
]


@pytest.mark.parametrize(("text", "answer", "expected"), CASES)
def test_cases(text: str, answer: str, expected: bool) -> None:
    assert hits(STRING, [text], [[answer]]) == [[expected]] == [[holds_an_answer(text, [answer])]]


def test_an_answer_does_not_reach_from_one_passage_into_the_next() -> None:
    assert hits(STRING, ["in new", "york is", "new york"], [["new york"]]) == [[False, False, True]]


def test_an_answer_without_tokens_is_nowhere() -> None:
    assert hits(STRING, ["a", ""], [["", " ", "\u200d"]]) == [[False, False]]


@pytest.mark.parametrize("match", ANSWER_MATCHES)
def test_passages_that_were_not_prepared_hold_nothing(match: str) -> None:
    """-1 after a list's end, one in between, one beyond the last; and no passage at all."""
    offsets_QK = np.array([[6, -1, 4, 99, 2]])
    passages = PREPARED_BY[match](iter([(2, "no"), (6, "yes")]))
    assert passages.hits([["yes"]], offsets_QK).tolist() == [[True, False, False, False, False]]
    assert not PREPARED_BY[match](iter([])).hits([["yes"]], offsets_QK).any()
    assert passages.hits([[]], offsets_QK).tolist() == [[False] * 5], "a question without answers"


def test_patterns() -> None:
    passages = ["on 4 July 1776", "ON 4 JULY", "Pokémon\nfirst line"]
    answers_Q = [
        [r"\d\s?july"],
        [r"^first"],
        ["poke\u0301mon$"],
        ["(", "*", "a{2,1}", r"\p{Nonsense}", "[", r"(?P<a", "(?L)a"],
    ]
    expected = [[True, True, False], [False, False, True], [False, False, True], [False] * 3]
    assert hits(REGEX, passages, answers_Q) == expected
    assert hits(REGEX, passages, [["(", "JULY"]]) == [[True, True, False]], "the other answers of it count"


PASSAGE = "a" * 60 + "!"
PATHOLOGICAL = ["(?R)", "(a|aa)+$", "(" * 5000 + ")" * 5000]


def test_patterns_that_take_too_much_are_in_no_passage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that calls itself without end, one of exponential time, and one nested too deep to be read."""
    monkeypatch.setattr("utils.ir.answers.MOST_SECONDS", 0.5)
    answers_Q = [[pattern, "TIME"] for pattern in PATHOLOGICAL]
    assert hits(REGEX, [PASSAGE, "it has\ntime"], answers_Q) == [[False, True]] * len(PATHOLOGICAL)
    assert "warning: 2 answers, as '(?R)', took over 0.5 seconds or too much memory" in capsys.readouterr().out


@given(texts)
def test_no_text_is_a_pattern_that_cannot_be_looked_for(text: str) -> None:
    hits(REGEX, ["abc"], [[text]])


def test_ranks_and_coverage() -> None:
    first_hit_Q = first_hits(np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]], bool))
    assert first_hit_Q.tolist() == [2, 0, 1, 3]
    assert [coverage_at(k, first_hit_Q) for k in (1, 2, 3, 9)] == [0.25, 0.5, 0.75, 0.75]


def test_many_passages_and_answers() -> None:
    """Random words, of so few that tokens repeat and answers overlap themselves."""
    draws = random.Random(4)
    vocabulary = ["to", "be", "or", "not", "To.", "-"]
    passages = [" ".join(draws.choices(vocabulary, k=draws.randrange(30))) for _ in range(60)]
    answers_Q = [[" ".join(draws.choices(vocabulary, k=draws.randint(1, 4))) for _ in range(3)] for _ in range(60)]
    expected = [[holds_an_answer(text, answers) for text in passages] for answers in answers_Q]
    assert hits(STRING, passages, answers_Q) == expected
    assert 0.2 < np.mean(expected) < 0.95
