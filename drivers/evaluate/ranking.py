"""Evaluation of an encoder: full ranking of the queries of splits, and reranking of given candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from data.sources.qrels import query_name
from drivers.embeddings import store
from drivers.embeddings.distributed_search import rerank, retrieve, score_candidates
from drivers.embeddings.encode import PassageShare, encode_passages, encode_queries, stored_share
from drivers.evaluate.measure import Ranking, measure_lists
from drivers.evaluate.splits import RankedSplit
from drivers.job.progress import UNMONITORED, Monitor
from model.encode import EncodingSettings
from model.encoders.base import Encoder
from utils.distributed import agreement
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.wait import log_once
from utils.ir.metrics import deepest_cutoff
from utils.search.ranked_lists import without_own
from utils.search.settings import SearchSettings


@dataclass(frozen=True)
class SplitEmbeddings:
    """What splits are ranked by: float32 [Q, D] of one split's queries after the other's, on every process, and this
    process's passages."""

    queries_QD: np.ndarray
    share: PassageShare

    def by_split(self, splits: Sequence[RankedSplit]) -> list[SplitEmbeddings]:
        return [SplitEmbeddings(queries_QD, self.share) for queries_QD in parts_of(self.queries_QD, splits)]


def parts_of(rows_Q: np.ndarray, splits: Sequence[RankedSplit]) -> list[np.ndarray]:
    """The rows of each split's queries, of arrays that have one split's after the other's."""
    ends = accumulate((len(split.query_Q) for split in splits), initial=0)
    return [rows_Q[start:stop] for start, stop in pairwise(ends)]


def encode_splits(
    world: World,
    encoder: Encoder,
    splits: Sequence[RankedSplit],
    settings: EncodingSettings,
    monitor: Monitor = UNMONITORED,
) -> SplitEmbeddings | None:
    """Encode the ranked queries of splits of one collection, and this process's passages.

    Args:
        world: all its processes call this, each encodes its share.
        encoder: on this process's device.
        splits: whose queries; at least one.
        settings: lengths in tokens, tokens of a batch, and the type to compute in.
        monitor: is told of the progress, and may say that the work shall end.

    Returns:
        The embeddings; None on all processes where ``monitor`` has told one to leave.
    """
    parts = []
    for split in splits:
        cache = split.collection.queries(split.name)
        queries_QD = encode_queries(world, encoder, cache, split.query_Q, settings, monitor)
        if queries_QD is None:
            return None
        parts.append(queries_QD)
    share = encode_passages(world, encoder, splits[0].collection.passages, settings, monitor)
    return None if share is None else SplitEmbeddings(np.concatenate(parts), share)


def load_splits(world: World, directory: Path, splits: Sequence[RankedSplit]) -> SplitEmbeddings:
    """The same from embeddings on disk.

    Args:
        world: all its processes call this, each verifies its share of the shards.
        directory: complete embeddings.
        splits: whose queries; at least one.

    Raises:
        UserError: where they are damaged, or of other queries or passages.
    """
    store.read_embeddings_record(directory, splits[0].collection)
    for split in splits:
        rows_Q = store.read_query_rows(directory, query_name(split.name))
        if not np.array_equal(rows_Q, split.query_Q):
            raise UserError(
                f"{directory} does not embed all {split.name} queries of --data_dir; run with --inference again"
            )
    agreement.on_every_process(world, partial(store.check_all_shards, world.process, world.size, directory))
    queries = [store.read_queries(directory, query_name(split.name)) for split in splits]
    return SplitEmbeddings(np.concatenate(queries), stored_share(world, directory))


def rank_splits(
    world: World,
    splits: Sequence[RankedSplit],
    embeddings: SplitEmbeddings,
    k: int,
    search: SearchSettings,
    monitor: Monitor = UNMONITORED,
) -> list[Ranking] | None:
    """Rank the whole collection for every query of the splits, in one search.

    Args:
        world: all its processes call this, each searches its share of the passages.
        splits: of one collection, and what is measured of each.
        embeddings: of `encode_splits` or `load_splits`.
        k: how many passages; the metrics are those that lists of so many reach.
        search: the index, and where it is searched.
        monitor: is told of the progress, and may say that the work shall end.

    Returns:
        Each split's lists and their metrics; None on all processes where ``monitor`` has told one to leave.
    """
    passages = len(splits[0].collection.passages)
    own_Q = np.concatenate([split.own_passage_Q for split in splits])
    searched = k + 1 if (own_Q >= 0).any() else k
    found = retrieve(world, embeddings.queries_QD, embeddings.share, passages, searched, search, monitor)
    if found is None:
        return None
    scores_QK, passages_QK = found
    if searched > k:
        passages_QK, scores_QK = without_own(passages_QK, scores_QK, own_Q, min(k, passages))
    lists = zip(splits, parts_of(passages_QK, splits), parts_of(scores_QK, splits), strict=True)
    return [measure_lists(*of_split, deepest_cutoff(k, passages)) for of_split in lists]


def rerank_split(world: World, split: RankedSplit, embeddings: SplitEmbeddings, candidates_QK: np.ndarray) -> Ranking:
    """Order the candidates of a split's queries by their scores.

    Args:
        world: all its processes call this, each scores the candidates that it holds.
        split: whose queries.
        embeddings: of its queries alone, and of the passages.
        candidates_QK: int64, -1 after a list's end.

    Returns:
        The lists, and the metrics that the longest of them reaches.
    """
    candidates_QK, _ = without_own(candidates_QK, candidates_QK, split.own_passage_Q, candidates_QK.shape[1])
    without = int((candidates_QK < 0).all(1).sum())
    if world.is_first and without:
        queries = f"{without:,} of {len(split.query_Q):,} queries"
        log_once(f"{split.name}: {queries} have no candidates, and count as 0 in reranking")
    given_scores_QK = score_candidates(world, embeddings.queries_QD, embeddings.share, candidates_QK)
    scores_QK, passages_QK = rerank(given_scores_QK, candidates_QK)
    depth = deepest_cutoff(candidates_QK.shape[1], len(split.collection.passages))
    return measure_lists(split, passages_QK, scores_QK, depth)
