"""Flags that decide which candidates become negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from utils.declared.strategies import FILTERS, Filter, strategy_help
from utils.flag_groups.common import SeedFlags
from utils.flag_values import Group, flag, tristate


def filter_flag(declared: Filter) -> Any:
    range_ = declared.range
    return flag(declared.off, declared.help, at_least=range_.at_least, above=range_.above, at_most=range_.at_most)


@dataclass(frozen=True, kw_only=True)
class SelectionFlags(SeedFlags):
    """Which candidates become negatives; data/mining/strategy.py has the language."""

    GROUP: ClassVar[Group] = "negatives"

    topk_training: int = flag(500, "candidates per train query", at_least=1)
    negative_sample: int = flag(
        5, "negatives per query where the strategy names no number (top_bottom: twice that)", at_least=1
    )
    negative_strategy: str | None = flag(None, strategy_help, decides="nothing")
    min_rank: int = filter_flag(FILTERS["min_rank"])
    max_positive_ratio: float = filter_flag(FILTERS["max_positive_ratio"])
    on_shortage: Literal["fewer", "widen", "skip"] = flag(
        "fewer", "too few are left of a query's candidates: fewer negatives, others of the nearest ranks, or none"
    )


@dataclass(frozen=True, kw_only=True)
class KeepFlags:
    GROUP: ClassVar[Group] = "negatives"

    keep_candidates: bool = flag(
        False, "publish the candidates too: python -m data.negatives then selects from them", decides="nothing"
    )


@dataclass(frozen=True, kw_only=True)
class Bm25DirFlags:
    GROUP: ClassVar[Group] = "negatives"

    bm25_dir: str = flag(
        "",
        "output of drivers.run_bm25: what run_warmup trains on and reranks, "
        "and (with its --keep_candidates) what the strategy bm25 takes",
        is_path=True,
    )


@dataclass(frozen=True, kw_only=True)
class AnceStrategyFlags:
    """How ANCE and its fork name a strategy."""

    GROUP: ClassVar[Group] = "negatives"

    ann_measure_topk_mrr: bool | None = tristate("ANCE's word: true is top, false is random")
    bottom_neg: bool | None = tristate("the fork's word: true is top_bottom")
    bottom_only: bool | None = tristate("the fork's word: with --bottom_neg true, bottom")
