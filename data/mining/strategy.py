"""The language of --negative_strategy: which candidates become negatives, by rank, and how that changes by refresh.

    top:20                           a word and its numbers: `utils.declared.STRATEGIES` declares them all
    top:10+random:10                 several of these: a later one takes none that an earlier one has
    0-4=bottom:20;5-=top:20          by refresh

A number that is not written is --negative_sample. Ranks are those of the list as it was retrieved, the known
positives included; known positives are never taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from utils.declared import NEGATIVE_SAMPLE, STRATEGIES
from utils.errors import UserError

EXAMPLES = "top, bottom:20, ranks:21-60, log-uniform:20, around-positive:20±40, top:10+random:10, 0-4=bottom;5-=top"
NO_FLAG = "no strategy flag given"


@dataclass(frozen=True)
class Sampler:
    """One source of negatives. ``count`` 0 is all of the window; ``first`` and ``last`` are its raw ranks."""

    kind: str
    count: int
    first: int = 0
    last: int = 0
    reach: int = 0  # ranks on each side of the positive

    def __str__(self) -> str:
        return STRATEGIES[self.kind].written(vars(self))

    @property
    def most(self) -> int:
        """Negatives that it can give a query."""
        return self.count or self.last - self.first + 1


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
    """``text`` is what the user wrote; the stages follow each other from refresh 0 without a gap."""

    text: str
    stages: tuple[Phase, ...]

    def __str__(self) -> str:
        """In the language, with every number said; parsing it gives the same stages."""
        if len(self.stages) == 1:
            return str(self.stages[0])
        ranges = (
            str(s.first) if s.last == s.first else f"{s.first}-{'' if s.last is None else s.last}" for s in self.stages
        )
        return ";".join(f"{when}={stage}" for when, stage in zip(ranges, self.stages, strict=True))

    def at(self, refresh: int) -> Phase:
        return next(stage for stage in self.stages if stage.last is None or refresh <= stage.last)

    def word_at(self, refresh: int) -> str:
        """For the log: the user's own word, or what a schedule comes to."""
        return self.text if len(self.stages) == 1 else f"{self.at(refresh)} ({self.text})"

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """Of all stages."""
        return tuple(sampler for stage in self.stages for sampler in stage.samplers)

    @property
    def needs_bm25(self) -> bool:
        return any(sampler.kind == "bm25" for sampler in self.samplers)

    @property
    def most(self) -> int:
        """Negatives that a query can have, at any refresh."""
        return max(stage.most for stage in self.stages)


def resolve_strategy(
    negative_strategy: str | None,
    ann_measure_topk_mrr: bool | None,
    bottom_neg: bool | None,
    bottom_only: bool | None,
) -> tuple[str, str]:
    """The strategy in the language, and the flags it came from in words.

    The three booleans are ANCE's and its fork's way to say it (drivers/run_ann_data_gen.py there).
    Raises UserError where flags contradict each other.
    """
    old = {"ann_measure_topk_mrr": ann_measure_topk_mrr, "bottom_neg": bottom_neg, "bottom_only": bottom_only}
    given = {name: value for name, value in old.items() if value is not None}
    if not given:
        if negative_strategy is None:
            return "top", f"{NO_FLAG}; ANCE's own default is random, its fork's is top"
        return negative_strategy, "--negative_strategy"
    said = " ".join(f"--{name} {str(value).lower()}" for name, value in given.items())
    if bottom_only and not bottom_neg:
        raise UserError(
            f"{said}: --bottom_only alone meant top in ANCE's fork; write --negative_strategy bottom or top"
        )
    if bottom_neg and ann_measure_topk_mrr is False:
        raise UserError(f"{said} asks for random and for bottom negatives; write --negative_strategy with one word")
    if bottom_neg:
        meant = "bottom" if bottom_only else "top_bottom"
    else:
        meant = "random" if ann_measure_topk_mrr is False else "top"
    if negative_strategy not in (None, meant):
        raise UserError(f"{said} means {meant}, but --negative_strategy is {negative_strategy}; leave one out")
    return meant, said


def parse_strategy(text: str, default_count: int, topk: int, min_rank: int = 1) -> Strategy:
    """``default_count`` is --negative_sample, ``topk`` the candidates of a query, ``min_rank`` the first of use.

    UserError, in one line, for what is not in the language, for windows outside [1, topk], for more negatives
    than there are candidates, and for a schedule with a gap, an overlap or an end.
    """
    text = "".join(text.split())
    try:
        stages = tuple(parse_stage(stage, default_count) for stage in text.split(";"))
        check_schedule(stages)
        for stage in stages:
            check_parts(stage.samplers, topk, min_rank)
    except ValueError as error:
        raise UserError(f"--negative_strategy {text!r}: {error}; for example {EXAMPLES}") from None
    return Strategy(text, stages)


def parse_stage(text: str, default_count: int) -> Phase:
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
    return Phase(first, last, tuple(parse_part(word, default_count) for word in words))


def parse_part(text: str, default_count: int) -> Sampler:
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
    return Sampler(kind, **values)


def check_schedule(stages: tuple[Phase, ...]) -> None:
    """ValueError where not every refresh has exactly one stage."""
    expected = 0
    for number, stage in enumerate(stages):
        is_last = number == len(stages) - 1
        if stage.first != expected or (stage.last is None) != is_last:
            raise ValueError("refreshes must follow each other from 0, and the last range be open")
        if stage.last is not None:
            if stage.last < stage.first:
                raise ValueError(f"refreshes {stage.first}-{stage.last} are none")
            expected = stage.last + 1


def check_parts(samplers: tuple[Sampler, ...], topk: int, min_rank: int) -> None:
    """ValueError where a window is not within the candidates, a kind stands twice, or more is asked than there is."""
    usable = topk - min_rank + 1
    among = f"of the candidates (--topk_training {topk}" + (f", --min_rank {min_rank})" if min_rank > 1 else ")")
    for sampler in samplers:
        if sampler.kind == "ranks" and not (1 <= sampler.first <= sampler.last <= topk and sampler.last >= min_rank):
            raise ValueError(f"{sampler} is no window {among}")
        if sampler.kind == "ranks" and sampler.count > sampler.last - sampler.first + 1:
            raise ValueError(f"{sampler} asks for more than its window holds")
        if not STRATEGIES[sampler.kind].is_beyond_candidates and sampler.count > usable:
            raise ValueError(f"{sampler} asks for more {among} than there are")
    kinds = [sampler.kind for sampler in samplers if sampler.kind != "ranks"]
    if len(set(kinds)) < len(kinds):
        raise ValueError("a source is named twice, add its numbers up")
