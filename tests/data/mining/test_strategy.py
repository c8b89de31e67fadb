"""The language of --negative_strategy: what it prints it reads, and what cannot be meant is an error of one line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mining.candidates import Candidates
from data.mining.samplers import BEYOND_CANDIDATES, FROM_CANDIDATES, CandidatePool, FromCandidates
from data.mining.select import Selection, select_negatives
from data.mining.strategy import Phase, Sampler, Strategy, examples, parse_strategy
from utils.declared.strategies import FORK_STRATEGIES, NEGATIVE_SAMPLE, STRATEGIES, Argument, StrategyWord
from utils.errors import UserError

TOPK = 200
KINDS = [word for word, declared in STRATEGIES.items() if not declared.short_for]


@st.composite
def samplers(draw: st.DrawFn) -> tuple[Sampler, ...]:
    found = []
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)):
        declared = STRATEGIES[kind]
        if declared.window is not None:
            first = draw(st.integers(1, TOPK))
            last = draw(st.integers(first, TOPK))
            ends = dict(zip(declared.window, (first, last), strict=True))
            found.append(Sampler(kind, {**ends, "count": draw(st.integers(0, last - first + 1))}))
        elif kind not in {sampler.kind for sampler in found}:
            others = {argument.name: draw(st.integers(1, 300)) for argument in declared.arguments}
            found.append(Sampler(kind, {**others, "count": draw(st.integers(1, TOPK))}))
    return tuple(found)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Phase, ...]:
    lengths = draw(st.lists(st.integers(1, 5), max_size=3))
    phases, first = [], 0
    for length in lengths:
        phases.append(Phase(first, first + length - 1, draw(samplers())))
        first += length
    return (*phases, Phase(first, None, draw(samplers())))


@settings(max_examples=300, deadline=None)
@given(phases=schedules(), default_count=st.integers(1, 50))
def test_what_is_printed_is_read_as_the_same(phases: tuple[Phase, ...], default_count: int) -> None:
    printed = str(Strategy("", phases))
    found = parse_strategy(printed, default_count, TOPK)
    assert found.phases == phases and str(found) == printed
    for phase in phases:
        for refresh in {phase.first, phase.first + 3 if phase.last is None else phase.last}:
            assert found.at(refresh) == phase
    assert found.most == max(sum(sampler.most for sampler in phase.samplers) for phase in phases)


@settings(max_examples=200, deadline=None)
@given(
    first=st.integers(-2, TOPK + 20),
    last=st.integers(-2, TOPK + 20),
    count=st.one_of(st.none(), st.integers(-1, 250)),
    min_rank=st.integers(1, TOPK),
)
def test_a_window_is_within_the_candidates_or_refused(first: int, last: int, count: int | None, min_rank: int) -> None:
    text = f"ranks:{first}-{last}" + ("" if count is None else f":{count}")
    is_window = 1 <= first <= last <= TOPK and last >= min_rank
    holds = count is None or 1 <= count <= min(last - first + 1, TOPK - min_rank + 1)
    if is_window and holds:
        (sampler,) = parse_strategy(text, 20, TOPK, min_rank).samplers
        assert (sampler.window, sampler.count) == ((first, last), count or 0)
    else:
        with pytest.raises(UserError) as caught:
            parse_strategy(text, 20, TOPK, min_rank)
        assert "\n" not in str(caught.value) and text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("top", "top:20"),
        ("top_bottom", "top:20+bottom:20"),
        ("bottom", "bottom:20"),
        ("random", "random:20"),
        ("top:5", "top:5"),
        ("ranks:21-60", "ranks:21-60"),
        ("ranks:21-60:7", "ranks:21-60:7"),
        ("around-positive:20~40", "around-positive:20±40"),
        ("around-positive:±40", "around-positive:20±40"),
        (" top : 10 + random : 10 ", "top:10+random:10"),
        ("0-4=bottom;5-=top", "0-4=bottom:20;5-=top:20"),
        ("0=bottom:3;1-=top", "0=bottom:3;1-=top:20"),
        ("0-=top", "top:20"),
    ],
)
def test_short_forms(text: str, printed: str) -> None:
    assert str(parse_strategy(text, 20, TOPK)) == printed


def test_the_four_words_keep_their_own_name() -> None:
    assert set(FORK_STRATEGIES) == {"top", "top_bottom", "bottom", "random"}
    assert [parse_strategy(word, 20, TOPK).word_at(3) for word in FORK_STRATEGIES] == list(FORK_STRATEGIES)
    assert parse_strategy("0-4=bottom;5-=top", 20, TOPK).word_at(5) == "top:20 (0-4=bottom;5-=top)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("best", "'best' is not a strategy"),
        ("", "'' is not a strategy"),
        ("top:", "'top:' is not top[:N], such as top or top:10"),
        ("top:x", "'top:x' is not top[:N]"),
        ("top:٣", "'top:٣' is not top[:N]"),
        ("top:0", "N of 'top:0' is 0, expected a whole number, at least 1"),
        ("top:201", "asks for more of the candidates (--topk_training 200) than there are"),
        ("ranks:5", "'ranks:5' is not ranks:FIRST-LAST[:N], such as ranks:21-60 or"),
        ("ranks:60-21", "is no window of the candidates"),
        ("ranks:1-201", "is no window of the candidates"),
        ("ranks:1-5:6", "asks for more than its window holds"),
        ("around-positive:20", "is not around-positive:[N]±REACH, such as around-positive:20±40 or"),
        ("top+top:3", "a source is named twice"),
        ("top_bottom+bottom", "a source is named twice"),
        ("1-4=top;5-=bottom", "must follow each other from 0"),
        ("0-4=top;6-=bottom", "must follow each other from 0"),
        ("0-4=top;4-=bottom", "must follow each other from 0"),
        ("0-4=top", "the last range be open"),
        ("0-=top;5-=bottom", "the last range be open"),
        ("x=top", "'x' is no range of refreshes"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_strategy(text, 20, TOPK)
    message = str(caught.value)
    assert said in message and message.startswith("--negative_strategy ") and "\n" not in message


# The declarations


@pytest.mark.parametrize("word", STRATEGIES)
def test_a_declaration_is_whole_and_its_examples_are_in_the_language(word: str) -> None:
    declared = STRATEGIES[word]
    assert declared.word == word and declared.takes and declared.paper and declared.examples
    written = set()
    for example in declared.examples:
        numbers = declared.numbers_in(example.removeprefix(word))
        assert numbers is not None
        written |= numbers.keys()
        parsed = parse_strategy(example, 7, TOPK)
        if not declared.short_for:
            (sampler,) = parsed.samplers
            assert {name: sampler.numbers[name] for name in numbers} == numbers
            omitted = [argument for argument in declared.arguments if argument.name not in numbers]
            for argument in omitted:
                assert sampler.numbers[argument.name] == (7 if argument.omitted == NEGATIVE_SAMPLE else 0)
    assert written == {argument.name for argument in declared.arguments}, "an argument that no example shows"
    if declared.short_for:
        assert parse_strategy(word, 7, TOPK).phases == parse_strategy(declared.short_for, 7, TOPK).phases


@pytest.mark.parametrize("text", examples())
def test_an_example_of_an_error_is_in_the_language(text: str) -> None:
    assert parse_strategy(text, 20, TOPK)


@pytest.mark.parametrize("word", KINDS)
def test_an_argument_is_within_its_range_or_refused(word: str) -> None:
    declared = STRATEGIES[word]
    good = {"count": 3, "first": 1, "last": 8, "reach": 3}
    assert parse_strategy(declared.written(good), 5, TOPK)
    for argument in declared.arguments:
        text = word + declared.form.replace("[", "").replace("]", "").format(**{**good, argument.name: 0})
        with pytest.raises(UserError) as caught:
            parse_strategy(text, 5, TOPK)
        assert f"{argument.shown} of {text!r} is 0, expected a whole number, at least 1" in str(caught.value)


def test_every_word_has_its_function() -> None:
    beyond = {word for word in KINDS if STRATEGIES[word].is_beyond_candidates}
    assert set(BEYOND_CANDIDATES) == beyond and set(FROM_CANDIDATES) == set(KINDS) - beyond


def test_a_word_is_one_entry_and_one_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declared here, with an argument of its own, and taken from candidates by nothing else."""
    every = StrategyWord(
        "every",
        "each STEP-th",
        "this test",
        form=":{step}[:{count}]",
        arguments=(Argument("step", "ranks between two"), Argument("count", "negatives of a query", NEGATIVE_SAMPLE)),
        examples=("every:3", "every:3:2"),
    )

    def take(sampler: Sampler, pool: CandidatePool, available_QK: np.ndarray, number: int) -> np.ndarray:
        of_step_QK = available_QK & (pool.rank_1K % sampler.numbers["step"] == 0)
        return of_step_QK & (np.cumsum(of_step_QK, axis=1) <= sampler.count)

    monkeypatch.setitem(STRATEGIES, "every", every)
    monkeypatch.setitem(FROM_CANDIDATES, "every", FromCandidates(take))
    candidates = Candidates(np.array([0]), np.arange(100, 120)[None], np.arange(20, 0, -1, np.float32)[None])
    positives = (np.array([0]), np.array([105]))  # the one of rank 6
    selection = Selection(parse_strategy("every:3:4", 9, 20), passages=200)
    found = select_negatives(candidates, positives, selection, seed=1, refresh=0)
    assert found.lists.rank_QN.tolist() == [[3, 9, 12, 15]]
    assert str(parse_strategy("every:3", 9, 20)) == "every:3:9" and "every:3" in examples()
