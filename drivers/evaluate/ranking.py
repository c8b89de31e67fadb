"""Evaluation of an encoder: full ranking of a split's queries, and reranking of given candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.sources.qrels import Qrels, query_name
from data.tokens.collection import Preprocessed
from drivers.embeddings import store
from drivers.embeddings.distributed_search import rerank, retrieve, score_candidates
from drivers.embeddings.encode import PassageShare, encode_passages, encode_queries, stored_share
from drivers.job.progress import UNMONITORED, Monitor
from model.encode import EncodingSettings
from model.encoders.base import Encoder
from utils.distributed import agreement
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.wait import log_once
from utils.ir.metrics import evaluate, mean_metrics, per_query_metrics, reach
from utils.ir.trec import read_lists_to_rerank
from utils.search.settings import SearchSettings


@dataclass(frozen=True)
class SplitEmbeddings:
    """What a split is ranked by: its judged queries, float32 [Q, D] on every process, and this process's passages."""

    queries_QD: np.ndarray
    share: PassageShare


@dataclass(frozen=True)
class Ranking:
    """The collection's best passages of a split's queries with a positive, and metrics.

    ``query_Q`` int64 are the queries' offsets; ``passages_QK`` int64 and ``scores_QK`` float32 their lists, best first,
    -1 and -inf after a list's end. ``metrics`` are means over all queries of the qrels, ``by_query`` has each one's by
    its offset.
    """

    query_Q: np.ndarray
    passages_QK: np.ndarray
    scores_QK: np.ndarray
    metrics: dict[str, float]
    by_query: dict[int, dict[str, float]]


@dataclass(frozen=True)
class Reranking:
    """Given candidates of the same queries in the order of their scores, and metrics as in a `Ranking`."""

    passages_QK: np.ndarray
    scores_QK: np.ndarray
    metrics: dict[str, float]


def rerank_lists(path: Path, collection: Preprocessed, split: str) -> np.ndarray:
    """Candidates of the split's queries with a positive: passages_QK int64, -1 after a list's end."""
    query_ids = collection.queries(split).original_ids()
    judged_Q = collection.qrels(split).queries_with_positive()
    return read_lists_to_rerank(path, [query_ids[q] for q in judged_Q], collection.passages.original_ids())


def encode_split(
    world: World,
    encoder: Encoder,
    collection: Preprocessed,
    split: str,
    settings: EncodingSettings,
    monitor: Monitor = UNMONITORED,
) -> SplitEmbeddings | None:
    """Encode the split's queries with a positive, and this process's passages.

    Args:
        world: all its processes call this, each encodes its share.
        encoder: on this process's device.
        collection: the passages, and the split's queries and qrels.
        split: one that the collection has.
        settings: lengths in tokens, tokens of a batch, and the type to compute in.
        monitor: is told of the progress, and may say that the work shall end.

    Returns:
        The embeddings; None on all processes where ``monitor`` has told one to leave.
    """
    query_Q = collection.qrels(split).queries_with_positive()
    queries_QD = encode_queries(world, encoder, collection.queries(split), query_Q, settings, monitor)
    if queries_QD is None:
        return None
    share = encode_passages(world, encoder, collection.passages, settings, monitor)
    return None if share is None else SplitEmbeddings(queries_QD, share)


def load_split(world: World, directory: Path, collection: Preprocessed, split: str) -> SplitEmbeddings:
    """The same from embeddings on disk.

    Args:
        world: all its processes call this, each verifies its share of the shards.
        directory: complete embeddings.
        collection: what they are to be of.
        split: one that the collection has.

    Raises:
        UserError: where they are damaged, or of other queries or passages.
    """
    store.read_embeddings_record(directory, collection)
    name = query_name(split)
    rows_Q = store.read_query_rows(directory, name)
    if not np.array_equal(rows_Q, collection.qrels(split).queries_with_positive()):
        raise UserError(f"{directory} does not embed all {split} queries of --data_dir; run with --inference again")
    agreement.on_every_process(world, partial(store.check_all_shards, world.process, world.size, directory))
    return SplitEmbeddings(store.read_queries(directory, name), stored_share(world, directory))


def rank_split(
    world: World,
    collection: Preprocessed,
    split: str,
    embeddings: SplitEmbeddings,
    k: int,
    search: SearchSettings,
    monitor: Monitor = UNMONITORED,
) -> Ranking | None:
    """Rank the whole collection for every query of the split with a positive.

    Args:
        world: all its processes call this, each searches its share of the passages.
        collection: the split's qrels.
        split: one that the collection has.
        embeddings: of `encode_split` or `load_split`.
        k: how many passages; the metrics are those that lists of so many reach.
        search: the index, and where it is searched.
        monitor: is told of the progress, and may say that the work shall end.

    Returns:
        The lists and their metrics; None on all processes where ``monitor`` has told one to leave.
    """
    passages = len(collection.passages)
    found = retrieve(world, embeddings.queries_QD, embeddings.share, passages, k, search, monitor)
    if found is None:
        return None
    scores_QK, passages_QK = found
    qrels = collection.qrels(split)
    query_Q = qrels.queries_with_positive()
    metrics, by_query = measure(qrels, query_Q, passages_QK, reach(k, passages))
    unranked = len(by_query) - len(query_Q)
    if world.is_first and unranked:
        log_once(f"{split}: {unranked:,} of {len(by_query):,} judged queries have no positive, and count as 0")
    return Ranking(query_Q, passages_QK, scores_QK, metrics, by_query)


def measure(
    qrels: Qrels, query_Q: np.ndarray, passages_QK: np.ndarray, depth: float
) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """The metrics that lists of this ``depth`` reach: means over all queries of the qrels, and each one's by offset.

    Args:
        qrels: the split's.
        query_Q: those with a positive, by offset.
        passages_QK: their lists.
        depth: how deep a metric may look.
    """
    judgements = qrels.as_dict()
    rows = per_query_metrics(judgements, query_Q, passages_QK, depth)
    metrics = mean_metrics(judgements, rows, depth)
    return metrics, {query: rows.get(query, dict.fromkeys(metrics, 0.0)) for query in sorted(judgements)}


def rerank_split(
    world: World, collection: Preprocessed, split: str, embeddings: SplitEmbeddings, candidates_QK: np.ndarray
) -> Reranking:
    """Order the candidates of every query of the split with a positive by their scores.

    Args:
        world: all its processes call this, each scores the candidates that it holds.
        collection: the split's qrels.
        split: one that the collection has.
        embeddings: of `encode_split` or `load_split`.
        candidates_QK: int64, -1 after a list's end; of `rerank_lists`.

    Returns:
        The lists, and the metrics that the longest of them reaches.
    """
    qrels = collection.qrels(split)
    query_Q, without = qrels.queries_with_positive(), int((candidates_QK < 0).all(1).sum())
    if world.is_first and without:
        log_once(f"{split}: {without:,} of {len(query_Q):,} queries have no candidates, and count as 0 in reranking")
    given_scores_QK = score_candidates(world, embeddings.queries_QD, embeddings.share, candidates_QK)
    scores_QK, passages_QK = rerank(given_scores_QK, candidates_QK)
    depth = reach(candidates_QK.shape[1], len(collection.passages))
    return Reranking(passages_QK, scores_QK, evaluate(qrels.as_dict(), query_Q, passages_QK, depth))
