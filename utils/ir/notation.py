"""Measures in ir_measures' notation, as ``nDCG@10`` or ``RR(rel=2)@10``: read, and computed by that library.

Those of `MEASURES` are measured, by providers that compute in this process and agree with the definitions for any
grades and lists of any length (``tests/utils/ir/test_metrics.py``). The library's other measures are refused: some
start perl, some look beyond their cut-off.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.errors import UserError, one_line

if TYPE_CHECKING:
    from ir_measures import Measure

PROVIDERS = ("pytrec_eval", "judged", "msmarco")  # the first that has a measure computes it
LONGEST = 200  # characters of a measure
LARGEST_GRADE = 1000  # either way of 0. TREC's go from -2 to 12; pytrec_eval has a table as long as the largest
LARGEST_CUTOFF = 1_000_000

Judgements = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class MeasureWord:
    """A measure by its name in the notation.

    ``argument`` may be given in brackets: ``rel``, the lowest grade that is relevant, or ``gains``, the gain of each
    grade. Where ``needs_cutoff`` an ``@`` and a number of passages must follow, else they may.
    """

    word: str
    description: str
    argument: str = ""
    needs_cutoff: bool = False

    @property
    def usage(self) -> str:
        cutoff = "@K" if self.needs_cutoff else "[@K]"
        return (
            self.word + {"rel": "[(rel=GRADE)]", "gains": "[(gains={GRADE:GAIN,...})]", "": ""}[self.argument] + cutoff
        )


MEASURES = {
    measure.word: measure
    for measure in (
        MeasureWord("nDCG", "discounted gain over that of the ideal ranking; gains are grades", "gains"),
        MeasureWord("RR", "one over the rank of the first relevant passage", "rel"),
        MeasureWord("AP", "precision at the relevant passages, over all that are relevant", "rel"),
        MeasureWord("P", "share of the first K that is relevant", "rel", needs_cutoff=True),
        MeasureWord("R", "share of the relevant passages among the first K", "rel", needs_cutoff=True),
        MeasureWord("Success", "1 where a relevant passage is among the first K, else 0", "rel", needs_cutoff=True),
        MeasureWord("Judged", "share of the first K that is judged", needs_cutoff=True),
    )
}


def measures_help() -> str:
    """What --help says of --metrics."""
    words = ", ".join(measure.usage for measure in MEASURES.values())
    return (
        'measured too, in ir_measures\' notation, between blanks: "nDCG@20 RR(rel=2)@10"; without @K on the whole '
        f"list; {words}"
    )


def canonical(text: str, relevance_level: int = 1) -> str:
    """A measure as the library writes it; one of binary relevance that names no grade counts from ``relevance_level``.

    UserError where it is not in the notation, or not one of MEASURES.
    """
    return repr(parse(text, relevance_level))


def cutoff_of(notation: str) -> int:
    """The ranks that it looks at; 0 for all."""
    return int(parse(notation).params.get("cutoff", 0))


@functools.lru_cache(maxsize=256)
def parse(text: str, relevance_level: int = 1) -> Measure:
    """The library's own measure. UserError as `canonical`."""
    import ir_measures

    if len(text) > LONGEST:
        raise refusal(text, f"it has {len(text)} characters")
    try:
        found = ir_measures.parse_measure(text)
    except (ValueError, NameError, TypeError, RecursionError, MemoryError) as error:
        raise refusal(text, one_line(error)) from None
    if found.NAME not in MEASURES:
        raise refusal(text, "it is none of those measured here")
    word = MEASURES[found.NAME]
    check_arguments(text, word, found.params)
    return found(rel=relevance_level) if word.argument == "rel" and "rel" not in found.params else found


def check_arguments(text: str, word: MeasureWord, params: Mapping[str, object]) -> None:
    """UserError for an argument that the measure does not take here, or out of its range."""
    if unknown := params.keys() - {word.argument, "cutoff"}:
        raise refusal(text, f"{word.word} takes no {', '.join(sorted(unknown))} here")
    if word.needs_cutoff and "cutoff" not in params:
        raise refusal(text, "it has no cut-off")
    ranges = {"cutoff": LARGEST_CUTOFF, "rel": LARGEST_GRADE}
    for name in ranges.keys() & params.keys():
        if type(params[name]) is not int or not 1 <= params[name] <= ranges[name]:  # type: ignore[operator]
            raise refusal(text, f"{name} is {params[name]}, expected 1 to {ranges[name]}")
    gains = params.get("gains", {})
    numbers = [*gains.keys(), *gains.values()] if isinstance(gains, dict) else [None]
    if any(type(number) is not int or not 0 <= number <= LARGEST_GRADE for number in numbers):
        raise refusal(text, f"gains are {gains}, expected whole numbers from 0 to {LARGEST_GRADE} for grades")


def refusal(text: str, why: str) -> UserError:
    usages = ", ".join(measure.usage for measure in MEASURES.values())
    return UserError(f"--metrics {text[:LONGEST]!r}: {why}; expected some of {usages}, with blanks between them")


def values_by_query(notation: str, judgements: Judgements, rankings: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """A measure of each query that is judged and has a ranking; a query that is not there has 0.

    Args:
        notation: of `canonical`.
        judgements: {query: {passage: grade}}, grades from 0.
        rankings: {query: passages}, best first, each once.

    Source:
        ir_measures (MacAvaney, Macdonald and Ounis 2022), its providers PROVIDERS: trec_eval by pytrec_eval (Van Gysel
        and de Rijke 2018), MS MARCO's reciprocal rank.
    """
    import ir_measures
    from ir_measures.providers import FallbackProvider, registry

    cutoff = cutoff_of(notation) or None
    # Of an empty list the share of the judged would be 0 / 0.
    run = {
        query: {passage: float(-rank) for rank, passage in enumerate(ranking[:cutoff])}
        for query, ranking in rankings.items()
        if ranking
    }
    # Each measure alone: next to one with gains the library would give another nDCG these gains, too.
    provider = FallbackProvider([registry[name] for name in PROVIDERS])
    measured = provider.evaluator([ir_measures.parse_measure(notation)], judgements).iter_calc(run)
    return {found.query_id: float(found.value) for found in measured}
