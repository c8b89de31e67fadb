"""Evaluating an encoder: full ranking of a split's queries, and reranking of given candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.sources.qrels import query_name
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
class Ranking:
    """Lists of a split's queries with a positive, and metrics; the rerank fields are None where nothing was reranked.

    ``by_query`` has those of each query of the qrels, by its offset.
    """

    query_Q: np.ndarray
    passages_QK: np.ndarray
    scores_QK: np.ndarray
    metrics: dict[str, float]
    by_query: dict[int, dict[str, float]]
    reranked: tuple[np.ndarray, np.ndarray] | None = None
    rerank_metrics: dict[str, float] | None = None


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
) -> tuple[np.ndarray, PassageShare] | None:
    """Embeddings of the split's judged queries, and of this process's passages.

    None on all processes where ``monitor`` has told one to leave.
    """
    query_Q = collection.qrels(split).queries_with_positive()
    queries_QD = encode_queries(world, encoder, collection.queries(split), query_Q, settings, monitor)
    if queries_QD is None:
        return None
    share = encode_passages(world, encoder, collection.passages, settings, monitor)
    return None if share is None else (queries_QD, share)


def load_split(world: World, directory: Path, collection: Preprocessed, split: str) -> tuple[np.ndarray, PassageShare]:
    """The same from embeddings on disk; UserError where they are damaged, or of other queries or passages."""
    store.read_embeddings_record(directory, collection)
    name = query_name(split)
    rows_Q = store.read_query_rows(directory, name)
    if not np.array_equal(rows_Q, collection.qrels(split).queries_with_positive()):
        raise UserError(f"{directory} does not embed all {split} queries of --data_dir; run with --inference again")
    agreement.on_every_process(world, partial(store.check_all_shards, world.process, world.size, directory))
    return store.read_queries(directory, name), stored_share(world, directory)


def rank_split(
    world: World,
    collection: Preprocessed,
    split: str,
    vectors: tuple[np.ndarray, PassageShare],
    k: int,
    search: SearchSettings,
    candidates_QK: np.ndarray | None,
    monitor: Monitor = UNMONITORED,
) -> Ranking | None:
    """Rank the whole collection for every query of the split with a positive; rerank ``candidates_QK`` where given.

    The metrics are means over all queries of the qrels, as deep as ``k``, and of the candidates as their longest list.
    None on all processes where ``monitor`` has told one to leave.
    """
    queries_QD, share = vectors
    qrels = collection.qrels(split)
    query_Q, judgements = qrels.queries_with_positive(), qrels.as_dict()
    found = retrieve(world, queries_QD, share, len(collection.passages), k, search, monitor)
    if found is None:
        return None
    scores_QK, passages_QK = found
    passages = len(collection.passages)
    depth = reach(k, passages)
    rows = per_query_metrics(judgements, query_Q, passages_QK, depth)
    metrics = mean_metrics(judgements, rows, depth)
    unranked = len(judgements) - len(query_Q)
    if world.is_first and unranked:
        log_once(f"{split}: {unranked:,} of {len(judgements):,} judged queries have no positive, and count as 0")
    by_query = {query: rows.get(query, dict.fromkeys(metrics, 0.0)) for query in sorted(judgements)}
    if candidates_QK is None:
        return Ranking(query_Q, passages_QK, scores_QK, metrics, by_query)
    without = int((candidates_QK < 0).all(1).sum())
    if world.is_first and without:
        log_once(f"{split}: {without:,} of {len(query_Q):,} queries have no candidates, and count as 0 in reranking")
    candidate_scores_QK = score_candidates(world, queries_QD, share, candidates_QK)
    reranked = rerank(candidate_scores_QK, candidates_QK)
    rerank_metrics = evaluate(judgements, query_Q, reranked[1], reach(candidates_QK.shape[1], passages))
    return Ranking(query_Q, passages_QK, scores_QK, metrics, by_query, reranked, rerank_metrics)
