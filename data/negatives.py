"""Selects negatives from the candidates that a generator has kept, or from a run: a strategy is a view of a search.

    python -m data.negatives --candidates ANN_DIR/ann_candidates_3.npz --data_dir PREPROCESSED --output_dir VIEW \
        --negative_strategy ranks:21-60

No model is needed. With the generator's own flags it writes the generator's own bytes. Of anyone's run over the train
queries it makes refresh 0.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.mining.candidates import Bm25Source, Candidates, read_bm25, read_candidates, write_candidates
from data.mining.negative_lists import NegativeLists, write_negative_lists
from data.mining.run_candidates import read_run_candidates
from data.mining.select import Selected, Selection, describe_selection, make_selection, select_negatives
from data.mining.strategy import resolve_strategy
from data.tokens.collection import Preprocessed, open_preprocessed
from data.tokens.verify import check_inputs
from utils.declared.strategies import FILTERS
from utils.errors import UserError, run_program
from utils.exchange import negatives
from utils.exchange.atomic import sha256_of_json
from utils.exchange.evaluations import TRAIN, check_as_published
from utils.exchange.layout import CANDIDATES_PATTERN, JobLayout, candidates_number
from utils.exchange.lease.record import DEFAULT_TIMEOUTS
from utils.exchange.markers import working
from utils.exchange.negatives import Refresh, publish_negatives
from utils.flag_groups.negatives import AnceStrategyFlags, Bm25DirFlags, KeepFlags, SelectionFlags
from utils.flag_values import Group, Range, flag
from utils.flags import ProgramFlags, answer_dry_run, parse_flags
from utils.run_log import git_state, say
from utils.text_files import check_ends

# Of a refresh's record, what another selection from the same candidates has in its own words.
OF_ONE_SELECTION = ("bytes", "sha256", "refresh", "candidates", "queries", "triples", "selection", "churn", "git")


@dataclass(frozen=True, kw_only=True)
class NegativesFlags(ProgramFlags, SelectionFlags, AnceStrategyFlags, KeepFlags, Bm25DirFlags):
    """Select negatives from the candidates that a generator has kept (--keep_candidates), or from anyone's run."""

    GROUP: ClassVar[Group] = "data"
    EXAMPLE: ClassVar[str] = (
        "python -m data.negatives --candidates run/ann_data/ann_candidates_0.npz --data_dir preprocessed \\\n    "
        "--output_dir view --negative_strategy ranks:21-60"
    )

    candidates: str = flag(
        help="an ann_candidates_N.npz, with its record in the same directory; or a run over the train queries, TREC's "
        "six columns or MS MARCO's three",
        is_path=True,
    )
    data_dir: str = flag(help="preprocessed directory that they are of, written by data.msmarco_data", is_path=True)
    output_dir: str = flag(
        help="another directory: ann_training_data_N and ann_ndcg_N are published there", is_path=True, group="job"
    )

    DEFAULTS: ClassVar[dict[str, Any]] = {"topk_training": 0}
    RANGES: ClassVar[dict[str, Range]] = {"topk_training": Range(at_least=0)}  # 0: as many as there are


@dataclass(frozen=True)
class KeptSearch:
    """What is selected from: a refresh's search, cut at the flags' --topk_training; and how."""

    refresh: Refresh
    candidates: Candidates
    collection: Preprocessed
    positives: tuple[np.ndarray, np.ndarray]  # of the train queries
    excluded: tuple[np.ndarray, np.ndarray]  # no negatives of theirs
    selection: Selection
    strategy_from: str
    bm25: Bm25Source | None
    negative_sample: int
    seed: int
    keeps_candidates: bool

    @property
    def candidates_per_query(self) -> int:
        return self.candidates.passage_QK.shape[1]


def open_kept_search(flags: NegativesFlags) -> KeptSearch:
    """UserError for what cannot be read, or meant."""
    path = Path(flags.candidates)
    is_kept = CANDIDATES_PATTERN.fullmatch(path.name) is not None
    kept = negatives.read_kept_candidates(path.parent, candidates_number(path)) if is_kept else None
    collection = open_preprocessed(flags.data_dir, max_seq_length=1, max_query_length=1)
    check_inputs(collection)
    refresh, candidates = kept_candidates(kept, collection) if kept else candidates_of_run(path, collection, flags)
    width = candidates.passage_QK.shape[1]
    topk = flags.topk_training or width
    if topk > width:
        raise UserError(f"--topk_training is {topk}, {path} has {width} candidates a query; pass less")
    text, strategy_from = resolve_strategy(
        flags.negative_strategy, flags.ann_measure_topk_mrr, flags.bottom_neg, flags.bottom_only
    )
    selection = make_selection(
        text,
        len(collection.passages),
        topk_training=topk,
        negative_sample=flags.negative_sample,
        filters={name: getattr(flags, name) for name in FILTERS},
        on_shortage=flags.on_shortage,
    )
    bm25 = read_bm25(flags.bm25_dir, collection) if selection.strategy.needs_bm25 else None
    return KeptSearch(
        refresh=refresh,
        candidates=candidates.cut(topk),
        collection=collection,
        positives=collection.qrels(TRAIN).positives(),
        excluded=collection.excluded_pairs(),
        selection=selection,
        strategy_from=strategy_from,
        bm25=bm25,
        negative_sample=flags.negative_sample,
        seed=flags.seed,
        keeps_candidates=flags.keep_candidates,
    )


def kept_candidates(kept: Refresh, collection: Preprocessed) -> tuple[Refresh, Candidates]:
    """UserError where they are of another collection, or cannot be read."""
    if kept.record.get("collection_fingerprint") != collection.manifest["collection_fingerprint"]:
        raise UserError(
            f"{kept.path} is of another collection than {collection.directory}; give the one it was made from"
        )
    return kept, read_candidates(kept.path)


def candidates_of_run(path: Path, collection: Preprocessed, flags: NegativesFlags) -> tuple[Refresh, Candidates]:
    """A run as refresh 0. UserError where it is missing, cannot be read, or lacks the scores that a filter is of."""
    if not path.is_file():
        raise UserError(f"--candidates {path} is missing, expected ann_candidates_N.npz of a generator, or a run")
    if path.suffix == ".npz":
        candidates_number(path)
    check_as_published(path)
    check_ends(path)
    found = read_run_candidates(path, collection)
    if flags.max_positive_ratio and not found.has_scores:
        raise UserError(f"--max_positive_ratio is of scores, {path} has ranks alone; give a run of six columns")
    return Refresh(0, path, found.record), found.candidates


def run(flags: NegativesFlags) -> None:
    """Select and publish. UserError before anything is written."""
    search, output_dir = open_kept_search(flags), Path(flags.output_dir)
    number = search.refresh.number
    if JobLayout(output_dir).record(number).exists():
        raise UserError(f"{output_dir} has a refresh {number} already; choose another --output_dir")
    if answer_dry_run(flags, resolved_strategy=str(search.selection.strategy), strategy_from=search.strategy_from):
        return
    publish_view(select_again(search), search, output_dir)
    say(f"wrote {JobLayout(output_dir).negatives(number)}")


def select_again(search: KeptSearch) -> Selected:
    """The negatives of each query of the search."""
    refresh = search.refresh
    bm25 = search.bm25.candidates if search.bm25 is not None else None
    selected = select_negatives(
        search.candidates, search.positives, search.selection, search.seed, refresh.number, bm25, search.excluded
    )
    say(
        describe_selection(
            selected, search.selection.strategy, search.candidates_per_query, refresh.number, refresh.step
        )
    )
    return selected


def publish_view(selected: Selected, search: KeptSearch, output_dir: Path) -> None:
    """``ann_training_data_N`` and its record, of the search's refresh N."""
    lists, run_id = selected.lists.with_negatives(), secrets.token_hex(6)
    write = partial(write_negative_lists, lists=lists, excluded=search.excluded)
    record = view_record(search, selected, lists, run_id)
    output_dir.mkdir(parents=True, exist_ok=True)
    with working(output_dir, "generator", DEFAULT_TIMEOUTS, run_id) as lease:
        kept = partial(write_candidates, candidates=search.candidates) if search.keeps_candidates else None
        publish_negatives(lease, search.refresh.number, write, record, kept)


def view_record(search: KeptSearch, selected: Selected, lists: NegativeLists, run_id: str) -> dict[str, object]:
    """The generator's record, as far as it holds for another selection from the same search.

    Args:
        search: What was selected from, with the record of its refresh.
        selected: What was selected, and its counts.
        lists: The queries that have negatives, as they are published.
        run_id: This program's.
    """
    source, selection = search.refresh.record, search.selection
    kept = {name: value for name, value in source.items() if name not in OF_ONE_SELECTION}
    view = {
        "topk_training": search.candidates_per_query,
        "negative_sample": search.negative_sample,
        "seed": search.seed,
    }
    filters = {**selection.filters, "on_shortage": selection.on_shortage}
    made = {"strategy": selected.strategy, **view, **filters, "candidates_sha256": source["candidates"]["sha256"]}
    made |= {"bm25_sha256": search.bm25.sha256} if search.bm25 is not None else {}
    return {
        **kept,
        **made,
        "run_id": run_id,
        "git": git_state(),
        "science_sha256": sha256_of_json([source.get("science_sha256"), made]),
        "queries": len(lists.query_Q),
        "triples": lists.triples,
        "selection": selected.counts(),
    }


def main() -> None:
    run(parse_flags(NegativesFlags, "negatives"))


if __name__ == "__main__":
    run_program("negatives", main)
