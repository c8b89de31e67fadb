"""The language of --negative_strategy: which candidates become negatives, by rank, and how that changes by refresh.

    top:20   bottom:20   random:20   the best ranked, the worst ranked, any of the candidates
    ranks:21-60   ranks:21-60:20     all of a window of raw ranks, or so many of it at random
    log-uniform:20                   at random, a rank's chance in proportion to one over it
    around-positive:20±40            at random, of those within 40 ranks of the positive (``~`` is ``±`` too)
    corpus:20                        at random, of the whole collection
    bm25:20                          the best of BM25's candidates
    top:10+random:10                 several of these: a later one takes none that an earlier one has
    0-4=bottom:20;5-=top:20          by refresh

A number that is left out is --negative_sample. ``top_bottom`` is ``top+bottom``. Ranks are those of the list as it
was retrieved, the known positives included; known positives are never taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from utils.errors import UserError

STRATEGIES = ("top", "top_bottom", "bottom", "random")  # the words that the comparison of ANCE's fork has
COUNTED = ("top", "bottom", "random", "log-uniform", "corpus", "bm25")
WORDS = {"top_bottom": "top+bottom"}
WINDOWED = ("ranks", "around-positive")  # kinds with a window of ranks that can be widened
OUTSIDE = ("corpus", "bm25")  # kinds whose passages need not be candidates of the search
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
        if self.kind == "ranks":
            return f"ranks:{self.first}-{self.last}" + (f":{self.count}" if self.count else "")
        return f"{self.kind}:{self.count}" + (f"±{self.reach}" if self.kind == "around-positive" else "")

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
    words = "+".join(WORDS.get(word, word) for word in mixture.split("+")).split("+")
    return Phase(first, last, tuple(parse_part(word, default_count) for word in words))


def parse_part(text: str, default_count: int) -> Sampler:
    kind, colon, rest = text.partition(":")
    if kind == "ranks":
        found = re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", rest, re.ASCII)
        if not found:
            raise ValueError(f"{text!r} has no window such as ranks:21-60 or ranks:21-60:20")
        return Sampler("ranks", above_zero(text, found[3]) if found[3] else 0, int(found[1]), int(found[2]))
    if kind == "around-positive":
        found = re.fullmatch(r"(\d*)[±~](\d+)", rest, re.ASCII)
        if not found:
            raise ValueError(f"{text!r} has no reach such as around-positive:20±40")
        count = above_zero(text, found[1]) if found[1] else default_count
        return Sampler(kind, count, reach=above_zero(text, found[2]))
    if kind not in COUNTED:
        raise ValueError(f"{text!r} is not a strategy")
    if colon and not re.fullmatch(r"\d+", rest, re.ASCII):
        raise ValueError(f"{rest!r} is no number of negatives in {text!r}")
    return Sampler(kind, above_zero(text, rest) if colon else default_count)


def above_zero(text: str, number: str) -> int:
    if int(number) < 1:
        raise ValueError(f"{number} in {text!r} is not above 0")
    return int(number)


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
        if sampler.kind not in OUTSIDE and sampler.count > usable:
            raise ValueError(f"{sampler} asks for more {among} than there are")
    kinds = [sampler.kind for sampler in samplers if sampler.kind != "ranks"]
    if len(set(kinds)) < len(kinds):
        raise ValueError("a source is named twice, add its numbers up")
