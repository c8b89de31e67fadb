"""The language of --negative_strategy: which candidates become negatives, by rank, and how that changes by refresh.

    top:20                           a word and its numbers: `utils.declared.strategies.STRATEGIES` declares them all
    top:10+random:10                 several of these: a later one takes none that an earlier one has
    0-4=bottom:20;5-=top:20          by refresh

A number that is not written is --negative_sample. Ranks are those of the list as it was retrieved, the known
positives included; known positives are never taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from utils.declared.strategies import COMBINED_EXAMPLES, NEGATIVE_SAMPLE, STRATEGIES, StrategyWord
from utils.errors import UserError

NO_FLAG = "no strategy flag given"


@dataclass(frozen=True)
class Sampler:
    """One source of negatives: a word, and the numbers of its declared arguments by name, 0 for one not written."""

    kind: str
    numbers: Mapping[str, int]

    def __str__(self) -> str:
        return self.declared.written(self.numbers)

    @property
    def declared(self) -> StrategyWord:
        return STRATEGIES[self.kind]

    @property
    def count(self) -> int:
        """Negatives of a query; 0: all of its window."""
        return self.numbers["count"]

    @property
    def window(self) -> tuple[int, int] | None:
        """The first and the last raw rank of a word that declares its window."""
        if self.declared.window is None:
            return None
        first, last = (self.numbers[name] for name in self.declared.window)
        return first, last

    @property
    def most(self) -> int:
        """Negatives that it can give a query."""
        first, last = self.window or (1, 0)
        return self.count or last - first + 1


@dataclass(frozen=True)
class Phase:
    """What holds from refresh ``first`` on, to ``last`` or (None) for good."""

    first: int
    last: int | None
    samplers: tuple[Sampler, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.samplers))

    @property
    def most(self) -> int:
        """Negatives that a query can have."""
        return sum(sampler.most for sampler in self.samplers)


@dataclass(frozen=True)
class Strategy:
    """``text`` is what the user wrote; the phases follow each other from refresh 0 without a gap."""

    text: str
    phases: tuple[Phase, ...]

    def __str__(self) -> str:
        """In the language, with every number said; parsing it gives the same phases."""
        if len(self.phases) == 1:
            return str(self.phases[0])
        ranges = (
            str(s.first) if s.last == s.first else f"{s.first}-{'' if s.last is None else s.last}" for s in self.phases
        )
        return ";".join(f"{when}={phase}" for when, phase in zip(ranges, self.phases, strict=True))

    def at(self, refresh: int) -> Phase:
        return next(phase for phase in self.phases if phase.last is None or refresh <= phase.last)

    def word_at(self, refresh: int) -> str:
        """For the log: the user's own word, or what a schedule comes to."""
        return self.text if len(self.phases) == 1 else f"{self.at(refresh)} ({self.text})"

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """Of all phases."""
        return tuple(sampler for phase in self.phases for sampler in phase.samplers)

    @property
    def needs_bm25(self) -> bool:
        return any(sampler.declared.needs_bm25 for sampler in self.samplers)

    @property
    def most(self) -> int:
        """Negatives that a query can have, at any refresh."""
        return max(phase.most for phase in self.phases)


def resolve_strategy(
    negative_strategy: str | None,
    ann_measure_topk_mrr: bool | None,
    bottom_neg: bool | None,
    bottom_only: bool | None,
) -> tuple[str, str]:
    """The strategy in the language, and the flags it came from.

    Args:
        negative_strategy: --negative_strategy, None where it is not given.
        ann_measure_topk_mrr: ANCE's flag: true is top, false is random.
        bottom_neg: The fork's: true is top_bottom.
        bottom_only: The fork's: with ``bottom_neg``, bottom.
    Returns:
        The text to parse, and the flags as they were written.
    Raises:
        UserError: flags contradict each other.
    Source:
        drivers/run_ann_data_gen.py of ANCE and of its fork.
    """
    old = {"ann_measure_topk_mrr": ann_measure_topk_mrr, "bottom_neg": bottom_neg, "bottom_only": bottom_only}
    given = {name: value for name, value in old.items() if value is not None}
    if not given:
        if negative_strategy is None:
            return "top", f"{NO_FLAG}; ANCE's own default is random, its fork's is top"
        return negative_strategy, "--negative_strategy"
    flags = " ".join(f"--{name} {str(value).lower()}" for name, value in given.items())
    if bottom_only and not bottom_neg:
        raise UserError(
            f"{flags}: --bottom_only alone meant top in ANCE's fork; write --negative_strategy bottom or top"
        )
    if bottom_neg and ann_measure_topk_mrr is False:
        raise UserError(f"{flags} asks for random and for bottom negatives; write --negative_strategy with one word")
    if bottom_neg:
        meant = "bottom" if bottom_only else "top_bottom"
    else:
        meant = "random" if ann_measure_topk_mrr is False else "top"
    if negative_strategy not in (None, meant):
        raise UserError(f"{flags} means {meant}, but --negative_strategy is {negative_strategy}; omit one")
    return meant, flags


def parse_strategy(text: str, default_count: int, topk: int, min_rank: int = 1) -> Strategy:
    """Read the language.

    Args:
        text: What the user wrote; blanks do not count.
        default_count: --negative_sample, for a word without a number.
        topk: Candidates of a query.
        min_rank: The first rank that may be taken.
    Returns:
        The strategy, every number resolved.
    Raises:
        UserError: what is not in the language, a window outside [1, topk], more negatives than there are candidates, or
            a schedule with a gap, an overlap or an end; in one line.
    """
    text = "".join(text.split())
    try:
        phases = tuple(parse_phase(phase, default_count) for phase in text.split(";"))
        check_schedule(phases)
        for phase in phases:
            check_samplers(phase.samplers, topk, min_rank)
    except ValueError as error:
        raise UserError(f"--negative_strategy {text!r}: {error}; for example {', '.join(examples())}") from None
    return Strategy(text, phases)


def examples() -> list[str]:
    """One of each word, and those of what words combine to."""
    return [*(declared.examples[0] for declared in STRATEGIES.values()), *COMBINED_EXAMPLES]


def parse_phase(text: str, default_count: int) -> Phase:
    when, equals, mixture = text.rpartition("=")
    first, last = 0, None
    if equals:
        found = re.fullmatch(r"(\d+)(-(\d*))?", when, re.ASCII)
        if not found:
            raise ValueError(f"{when!r} is no range of refreshes such as 0-4, 3 or 5-")
        first = int(found[1])
        last = first if found[2] is None else int(found[3]) if found[3] else None
    short_for = {word: declared.short_for for word, declared in STRATEGIES.items() if declared.short_for}
    words = "+".join(short_for.get(word, word) for word in mixture.split("+")).split("+")
    return Phase(first, last, tuple(parse_sampler(word, default_count) for word in words))


def parse_sampler(text: str, default_count: int) -> Sampler:
    kind = text.partition(":")[0]
    if kind not in STRATEGIES or STRATEGIES[kind].short_for:
        raise ValueError(f"{text!r} is not a strategy")
    declared = STRATEGIES[kind]
    numbers = declared.numbers_in(text.removeprefix(kind))
    if numbers is None:
        raise ValueError(f"{text!r} is not {declared.usage}, such as {' or '.join(declared.examples)}")
    values = {}
    for argument in declared.arguments:
        number = numbers.get(argument.name)
        if number is None:
            number = default_count if argument.omitted == NEGATIVE_SAMPLE else 0
        elif problem := argument.range.problem(number):
            raise ValueError(f"{argument.shown} of {text!r} is {number}, {problem}")
        values[argument.name] = number
    return Sampler(kind, values)


def check_schedule(phases: tuple[Phase, ...]) -> None:
    """ValueError where not every refresh has exactly one phase."""
    expected = 0
    for number, phase in enumerate(phases):
        is_last = number == len(phases) - 1
        if phase.first != expected or (phase.last is None) != is_last:
            raise ValueError("refreshes must follow each other from 0, and the last range be open")
        if phase.last is not None:
            if phase.last < phase.first:
                raise ValueError(f"refreshes {phase.first}-{phase.last} are none")
            expected = phase.last + 1


def check_samplers(samplers: tuple[Sampler, ...], topk: int, min_rank: int) -> None:
    """ValueError where a window is not within the candidates, a word stands twice, or more is asked than there is."""
    usable = topk - min_rank + 1
    among = f"of the candidates (--topk_training {topk}" + (f", --min_rank {min_rank})" if min_rank > 1 else ")")
    for sampler in samplers:
        if sampler.window is not None:
            first, last = sampler.window
            if not (1 <= first <= last <= topk and last >= min_rank):
                raise ValueError(f"{sampler} is no window {among}")
            if sampler.count > last - first + 1:
                raise ValueError(f"{sampler} asks for more than its window holds")
        if not sampler.declared.is_beyond_candidates and sampler.count > usable:
            raise ValueError(f"{sampler} asks for more {among} than there are")
    kinds = [sampler.kind for sampler in samplers if sampler.window is None]
    if len(set(kinds)) < len(kinds):
        raise ValueError("a source is named twice, add its numbers up")
