"""What --negative_strategy and the filters may say, each word declared once.

The parser of ``--negative_strategy``, ``--help``, the tables of docs/strategies.md, the order of a report's arms, and
the tests that run over every word, all read these dictionaries. What a word does is written elsewhere:
data/mining/samplers.py has the strategies' functions, data/mining/filters.py the filters'. Only the standard library
is imported: ``--help`` reads this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from utils.declared.papers import ANCE, ANCE_FORK, DPR, LOG_UNIFORM, MINE_HARD_NEGATIVES, NV_RETRIEVER, SIMANS
from utils.flag_values import Number, Range

FROM_ONE = Range(at_least=1)
NEGATIVE_SAMPLE = "--negative_sample"  # what an argument may be that is not written


@dataclass(frozen=True)
class Argument:
    """A number in a strategy's form, by the name that the form has for it.

    ``omitted`` says what holds where it is not written; "" for an argument that must be.
    """

    name: str
    meaning: str
    omitted: str = ""
    range: Range = FROM_ONE

    @property
    def shown(self) -> str:
        return "N" if self.name == "count" else self.name.upper()


@dataclass(frozen=True)
class StrategyWord:
    """A word of --negative_strategy.

    ``form`` follows the word: ``{name}`` stands for the number of that argument, brackets for what may be omitted.
    Every word but a short one has an argument ``count``, the negatives of a query.
    ``ance`` is how ANCE or its fork say the same, for the words of the fork's comparison. ``short_for`` is another
    text of the language. ``window`` names the arguments that are the first and last of the ranks it takes from: these
    must be candidates, and a mixture may have the word for several windows. Its passages are candidates of the search,
    unless it ``draws_from_collection`` or ``needs_bm25``'s candidates.
    """

    word: str
    takes: str
    paper: str
    form: str = "[:{count}]"
    arguments: tuple[Argument, ...] = (Argument("count", "negatives of a query", NEGATIVE_SAMPLE),)
    examples: tuple[str, ...] = ()
    ance: str = ""
    short_for: str = ""
    window: tuple[str, str] | None = None
    draws_from_collection: bool = False
    needs_bm25: bool = False

    @property
    def is_beyond_candidates(self) -> bool:
        return self.draws_from_collection or self.needs_bm25

    @property
    def usage(self) -> str:
        """``ranks:FIRST-LAST[:N]``"""
        return self.word + self.form.format(**{argument.name: argument.shown for argument in self.arguments})

    def numbers_in(self, rest: str) -> dict[str, int] | None:
        """The arguments that are written in what follows the word; None where that is not of the form."""
        known = {"[": "(?:", "]": ")?", "±": "[±~]"}
        known |= {f"{{{argument.name}}}": f"(?P<{argument.name}>[0-9]+)" for argument in self.arguments}
        parts = re.split(r"(\{\w+\}|[\[\]±])", self.form)
        found = re.fullmatch("".join(known.get(part, re.escape(part)) for part in parts), rest)
        if found is None:
            return None
        return {name: int(digits) for name, digits in found.groupdict().items() if digits is not None}

    def written(self, numbers: Mapping[str, int]) -> str:
        """The word with its arguments; in brackets only what is not 0."""

        def optional(part: re.Match[str]) -> str:
            return part[1] if all(numbers[name] for name in re.findall(r"\{(\w+)\}", part[1])) else ""

        return self.word + re.sub(r"\[([^\]]*)\]", optional, self.form).format(**numbers)


@dataclass(frozen=True)
class Filter:
    """A flag that drops candidates before the strategy takes any; at ``off``, its default, it drops none."""

    flag: str
    drops: str
    off: Number
    range: Range
    example: Number
    paper: str

    @property
    def help(self) -> str:
        return f"filter: drops {self.drops}" + ("; 0: off" if self.off == 0 else "")


def _by_word(*words: StrategyWord) -> dict[str, StrategyWord]:
    return {word.word: word for word in words}


# A report shows the arms in this order.
STRATEGIES = _by_word(
    StrategyWord(
        "top",
        "the best ranked",
        ANCE_FORK,
        examples=("top", "top:10"),
        ance="the fork's default; `--ann_measure_topk_mrr true`",
    ),
    StrategyWord(
        "top_bottom",
        "the best and the worst ranked, N of each, no repeats",
        ANCE_FORK,
        form="",
        arguments=(),
        examples=("top_bottom",),
        ance="`--bottom_neg true`",
        short_for="top+bottom",
    ),
    StrategyWord(
        "random",
        "drawn without replacement",
        ANCE,
        examples=("random", "random:10"),
        ance="ANCE's default; `--ann_measure_topk_mrr false`",
    ),
    StrategyWord(
        "bottom",
        "the worst ranked",
        ANCE_FORK,
        examples=("bottom", "bottom:10"),
        ance="`--bottom_neg true --bottom_only true`",
    ),
    StrategyWord(
        "ranks",
        "all of a window of ranks, or N drawn from it",
        MINE_HARD_NEGATIVES,
        form=":{first}-{last}[:{count}]",
        arguments=(
            Argument("first", "the window's best rank"),
            Argument("last", "its worst, not above --topk_training"),
            Argument("count", "negatives of a query", "all of the window"),
        ),
        examples=("ranks:21-60", "ranks:21-60:20"),
        window=("first", "last"),
    ),
    StrategyWord(
        "log-uniform",
        "drawn, a rank's chance in proportion to one over it",
        LOG_UNIFORM,
        examples=("log-uniform:20",),
    ),
    StrategyWord(
        "around-positive",
        "drawn from within some ranks of the query's positive (`~` is `±` too)",
        SIMANS,
        form=":[{count}]±{reach}",
        arguments=(
            Argument("count", "negatives of a query", NEGATIVE_SAMPLE),
            Argument("reach", "ranks on each side of the positive"),
        ),
        examples=("around-positive:20±40", "around-positive:±40", "around-positive:20~40"),
    ),
    StrategyWord(
        "corpus",
        "drawn from the whole collection",
        f"{DPR}, its random negatives",
        examples=("corpus:20",),
        draws_from_collection=True,
    ),
    StrategyWord(
        "bm25",
        "the best of BM25's candidates: `--bm25_dir` names an output of `drivers.run_bm25 --keep_candidates`",
        f"{DPR}, its BM25 negatives",
        examples=("bm25:20",),
        needs_bm25=True,
    ),
)
COMBINED_EXAMPLES = ("top:10+random:10", "0-4=bottom;5-=top")  # a mixture, and a schedule by refresh
FORK_STRATEGIES = tuple(word for word, declared in STRATEGIES.items() if declared.ance)  # the fork compared these
FILTERS = {
    declared.flag: declared
    for declared in (
        Filter("min_rank", "candidates ranked above this one", 1, FROM_ONE, 11, MINE_HARD_NEGATIVES),
        Filter(
            "max_positive_ratio",
            "likely positives: scores above this share of the positive's margin over the list's mean, and all "
            "candidates of a query whose positive was not retrieved",
            0.0,
            Range(at_least=0, at_most=1),
            0.95,
            NV_RETRIEVER,
        ),
    )
}


def strategy_help() -> str:
    """For --help: a line for each word."""
    lines = [f"  {word.usage}: {word.takes.replace('`', '')}" for word in STRATEGIES.values()]
    return "\n".join(["which candidates become negatives; N is --negative_sample where it is not written:", *lines])
