"""Which of the retrieved candidates become negatives.

A candidate's rank is its 1-based place in the raw retrieved list. Known positives are removed first, so ``top`` takes
the best ranked *others*. Everything is vectorised over queries, and a random choice depends on (seed, refresh, query)
alone. data/mining/strategy.py has the language that says what is chosen, data/mining/samplers.py what each of its
words does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data.mining.candidates import Candidates
from data.mining.filters import filtered, first_rank
from data.mining.keyed_random import FOR_LINE_ORDER, FOR_POSITIVES, random_keys
from data.mining.negative_lists import NegativeLists, is_positive
from data.mining.samplers import CandidatePool, apply_strategy, widen
from data.mining.strategy import Strategy, parse_strategy
from utils.errors import UserError
from utils.flag_values import Number


@dataclass(frozen=True)
class Selection:
    """How negatives are chosen from candidates.

    ``filters``, {a flag of FILTERS: its value}, drop candidates first (data/mining/filters.py); one that is not there
    drops none. A query that is left with fewer negatives than asked (also because its positive stands in a window) has
    ``fewer``, or more from the ranks nearest to the window (``widen``), or is omitted (``skip``). ``passages`` of the
    collection are what ``corpus`` draws from.
    """

    strategy: Strategy
    filters: Mapping[str, Number] = field(default_factory=dict)
    on_shortage: str = "fewer"
    passages: int = 0


def make_selection(
    text: str,
    passages: int,
    *,
    topk_training: int,
    negative_sample: int,
    filters: Mapping[str, Number],
    on_shortage: str,
) -> Selection:
    """How negatives are chosen, of what the flags say.

    Args:
        text: the strategy, in the language of data/mining/strategy.py.
        passages: how many the collection has.
        topk_training: candidates of a query.
        negative_sample: negatives of a query, where the strategy names no number.
        filters, on_shortage: see `Selection`.

    Raises:
        UserError: where one of them cannot be meant.
    """
    if topk_training > passages:
        raise UserError(f"--topk_training is {topk_training}, the collection has {passages} passages; pass less")
    if negative_sample > topk_training:
        raise UserError(f"--negative_sample {negative_sample} exceeds --topk_training {topk_training}")
    min_rank = first_rank(filters)
    if min_rank > topk_training:
        raise UserError(f"--min_rank {min_rank} leaves none of --topk_training {topk_training}; lower it")
    strategy = parse_strategy(text, negative_sample, topk_training, min_rank)
    drawn = [sampler for sampler in strategy.samplers if sampler.declared.draws_from_collection]
    if any(sampler.count > passages // 2 for sampler in drawn):
        raise UserError(f"--negative_strategy {text!r} draws more than half of the {passages} passages; ask for fewer")
    return Selection(strategy, filters, on_shortage, passages)


@dataclass(frozen=True)
class Selected:
    """The negatives, and what became of the queries and of the candidates on the way.

    ``dropped`` counts candidates (no known positives) by filter and rank bucket.
    """

    lists: NegativeLists
    strategy: str  # as the user wrote it
    asked: int
    short: int  # queries with fewer than asked, whatever became of them
    widened: int
    skipped: int
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def empty(self) -> int:
        return int((self.lists.negative_QN < 0).all(1).sum())

    def counts(self) -> dict[str, object]:
        """For the record of a refresh."""
        record = {"asked": self.asked, "short": self.short, "widened": self.widened, "skipped": self.skipped}
        return {**record, "empty": self.empty, "dropped": self.dropped}


def choose_positives(
    query_Q: np.ndarray, positives: tuple[np.ndarray, np.ndarray], seed: int, refresh: int
) -> np.ndarray:
    """One known positive of each query, drawn again each refresh.

    Args:
        query_Q: int64 [Q]; every query must have a positive.
        positives: (query_P, passage_P) int64, sorted by query then passage.
        seed: The run's.
        refresh: The number of the refresh.
    Returns:
        int64 [Q], passages.
    """
    query_P, passage_P = positives
    first_Q = np.searchsorted(query_P, query_Q, side="left")
    count_Q = np.searchsorted(query_P, query_Q, side="right") - first_Q
    keys_Q = random_keys(seed, refresh, FOR_POSITIVES, query_Q, 1)[:, 0]
    return passage_P[first_Q + (keys_Q % count_Q.astype(np.uint64)).astype(np.int64)]


def select_negatives(
    candidates: Candidates,
    positives: tuple[np.ndarray, np.ndarray],
    selection: Selection,
    seed: int,
    refresh: int,
    bm25: Candidates | None = None,
    excluded: tuple[np.ndarray, np.ndarray] | None = None,
) -> Selected:
    """The negatives of each query, with their raw ranks and scores, one drawn positive next to them.

    Args:
        candidates: What the search returned for Q queries.
        positives: (query_P, passage_P) int64, sorted by query then passage; every query must have one.
        selection: The strategy, the filters, and what a query with too few left gets.
        seed, refresh: They decide the draws, and the refresh's number the phase.
        bm25: BM25's candidates, for a strategy that takes from them.
        excluded: Sorted as ``positives``, what is no negative, the positives among it; None: the positives alone.
    Returns:
        Lines in a seeded random order, as ANCE's; their negatives by rank, then those not retrieved, of rank 0.
    Raises:
        UserError: BM25's candidates lack a query.
    """
    keys_Q1 = random_keys(seed, refresh, FOR_LINE_ORDER, candidates.query_Q, 1)
    candidates = candidates.of(np.lexsort((candidates.query_Q, keys_Q1[:, 0])))
    query_Q, passage_QK = candidates.query_Q, candidates.passage_QK
    positive_Q = choose_positives(query_Q, positives, seed, refresh)
    positive_rank_Q = ranks_of(passage_QK, positive_Q)
    excluded = positives if excluded is None else excluded
    usable_QK = (passage_QK >= 0) & ~is_positive(query_Q[:, None], passage_QK, excluded)
    usable_QK, dropped = filtered(candidates, usable_QK, positive_rank_Q, selection.filters)
    pool = CandidatePool(candidates, excluded, positive_rank_Q, usable_QK, seed, refresh)
    phase = selection.strategy.at(refresh)
    taken_QK, outside_QM = apply_strategy(pool, phase, selection.passages, bm25)
    found_Q = taken_QK.sum(1) + (outside_QM >= 0).sum(1)
    is_short_Q, widened = found_Q < phase.most, 0
    if selection.on_shortage == "widen":
        taken_QK = widen(pool, phase, taken_QK, phase.most - found_Q)
        widened = int((taken_QK.sum(1) + (outside_QM >= 0).sum(1) > found_Q).sum())
    lists = as_lists(candidates, positive_Q, taken_QK, outside_QM, phase.most)
    skipped = int(is_short_Q.sum()) if selection.on_shortage == "skip" else 0
    lists = lists.rows(~is_short_Q) if skipped else lists
    return Selected(lists, selection.strategy.text, phase.most, int(is_short_Q.sum()), widened, skipped, dropped)


def ranks_of(passage_QK: np.ndarray, wanted_Q: np.ndarray) -> np.ndarray:
    """The 1-based place of one passage in each list; K + 1 where it is not there."""
    held_QK = passage_QK == wanted_Q[:, None]
    return np.where(held_QK.any(1), held_QK.argmax(1), passage_QK.shape[1]) + 1


# The result


def as_lists(
    candidates: Candidates, positive_Q: np.ndarray, taken_QK: np.ndarray, outside_QM: np.ndarray, most: int
) -> NegativeLists:
    """What was taken as a table: of each query the candidates by rank, then the others.

    Args:
        candidates: What the search returned.
        positive_Q: int64 [Q], the positive of each line.
        taken_QK: bool [Q, K], of the candidates.
        outside_QM: int64 [Q, M], passages that are no candidates, -1 for no passage.
        most: Negatives that a line can have, its width.
    Returns:
        Q lines.
    """
    ranked = min(most, taken_QK.shape[1])
    column_QN = np.argsort(~taken_QK, axis=1, kind="stable")[:, :ranked]
    is_taken_QN = np.arange(ranked) < taken_QK.sum(1, keepdims=True)
    none_QM = np.zeros(outside_QM.shape)  # what is no candidate has no rank and no score
    negative_QN = np.concatenate(
        [np.where(is_taken_QN, np.take_along_axis(candidates.passage_QK, column_QN, 1), -1), outside_QM], axis=1
    )
    rank_QN = np.concatenate([np.where(is_taken_QN, column_QN + 1, 0), none_QM.astype(np.int64)], axis=1)
    score_QN = np.concatenate(
        [np.where(is_taken_QN, np.take_along_axis(candidates.score_QK, column_QN, 1), 0), none_QM], axis=1
    )
    front_QN = np.argsort(negative_QN < 0, axis=1, kind="stable")[:, :most]
    missing = ((0, 0), (0, most - front_QN.shape[1]))
    return NegativeLists(
        query_Q=candidates.query_Q,
        positive_Q=positive_Q,
        negative_QN=np.pad(np.take_along_axis(negative_QN, front_QN, 1), missing, constant_values=-1),
        rank_QN=np.pad(np.take_along_axis(rank_QN, front_QN, 1), missing),
        score_QN=np.pad(np.take_along_axis(score_QN, front_QN, 1).astype(np.float32), missing),
    )


def describe_selection(selected: Selected, strategy: Strategy, width: int, refresh: int, step: int) -> str:
    """The decision in one line: ``negatives: bottom, 20 of 200 per query, refresh 3 from step 2000``.

    Args:
        selected: What was chosen.
        strategy: By which strategy.
        width: How many candidates a query had.
        refresh: The number of the refresh.
        step: The step of the checkpoint that the candidates are from.
    Returns:
        The line.
    """
    asked = selected.asked
    text = f"negatives: {strategy.word_at(refresh)}, {asked} of {width} per query, refresh {refresh} from step {step}, "
    text += f"{len(selected.lists.query_Q) + selected.skipped:,} queries"
    text += f", {selected.short:,} of them with fewer than {asked}" if selected.short else ""
    text += f", {selected.widened:,} given others near by" if selected.widened else ""
    text += f", {selected.skipped:,} skipped" if selected.skipped else ""
    text += f", {selected.empty:,} with none and omitted" if selected.empty else ""
    for name, by_rank in selected.dropped.items():
        text += f"; --{name} dropped {sum(by_rank.values()):,} candidates"
        text += f" ({', '.join(f'ranks {bucket}: {count:,}' for bucket, count in by_rank.items())})" if by_rank else ""
    return text


def chunks_of(queries: int, chunk_factor: int) -> int:
    """In how many parts the train queries are searched, one each refresh; no part is empty."""
    return max(1, min(chunk_factor, queries))


def chunk_of_queries(query_Q: np.ndarray, chunk_factor: int, refresh: int, seed: int) -> np.ndarray:
    """This refresh's share of the train queries.

    A seeded permutation is cut in parts: each is a fair sample, and as many refreshes visit every query once.

    Args:
        query_Q: int64 [Q], all train queries with a positive.
        chunk_factor: Into how many parts they are cut; 1 or less means all queries, each time.
        refresh: The number of the refresh: which part.
        seed: The run's.
    Returns:
        int64, ascending.
    Source:
        ANCE's ``--ann_chunk_factor``.
    """
    chunks = chunks_of(len(query_Q), chunk_factor)
    if chunks == 1:
        return query_Q
    shuffled = np.random.default_rng([seed, 7]).permutation(query_Q)
    return np.sort(np.array_split(shuffled, chunks)[refresh % chunks])
