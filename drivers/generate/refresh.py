"""What a refresh computes: it searches with one checkpoint's embeddings, evaluates, and selects by the strategy.

`drivers.generate.generator` runs it, and publishes what it finds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.mining.candidates import Candidates
from data.mining.negative_lists import NegativeLists, read_negative_lists
from data.mining.select import Selected, chunks_of, describe_selection, select_negatives
from data.mining.staleness import Staleness, staleness_since
from drivers.embeddings.distributed_search import retrieve
from drivers.generate.encode_corpus import (
    RefreshEmbeddings,
    RefreshRequest,
    RefreshSettings,
)
from drivers.job.progress import Monitor
from drivers.job.resume import as_earlier_version
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN
from utils.exchange.negatives import read_refresh
from utils.ir.metrics import always_measured, deepest_cutoff, evaluate
from utils.run_log import say
from utils.search.ranked_lists import without_own

DEV_CANDIDATES = 100  # enough for recall@100 and everything at 10
StalenessSince = tuple[int, Staleness]  # since which refresh, and what became of its negatives


@dataclass(frozen=True)
class Found:
    """What a refresh has searched: the train queries' candidates, the dev queries' lists, how long each part took."""

    embeddings: Path
    candidates: Candidates
    dev_passages_QK: np.ndarray
    timings: dict[str, float]


@dataclass(frozen=True)
class RefreshResult:
    """What a refresh publishes: the negatives, the contents of ``ann_ndcg_N``, and what metrics.jsonl says of it."""

    lists: NegativeLists
    record: dict[str, object]
    logged: dict[str, float]


def search_all(
    settings: RefreshSettings, world: World, embeddings: RefreshEmbeddings, monitor: Monitor, encode_seconds: float
) -> Found | None:
    """Search the dev and the train queries at once.

    Args:
        settings: of the refresh: how deep to search, and with which index.
        world: the processes; all call this.
        embeddings: of both splits' queries, and of this process's share of the passages.
        monitor: is told of the progress, and may say that the work shall end.
        encode_seconds: how long encoding took, for the record.

    Returns:
        What was found; None on all processes where one was told to stop.
    """
    started = time.monotonic()
    monitor.set_status("searching")
    queries_QD = np.concatenate([embeddings.dev_QD, embeddings.train_QD])
    passages = len(settings.collection.passages)
    # one more, for each dev query may lose the passage that it is itself
    depth = depth_of_search(settings) + bool(settings.collection.own_passages(settings.dev_split))
    lists = retrieve(world, queries_QD, embeddings.share, passages, depth, settings.search, monitor)
    if lists is None:
        return None
    scores_QK, passages_QK = lists
    first, wanted = len(embeddings.dev_QD), settings.topk_training
    candidates = Candidates(embeddings.train_rows_Q, passages_QK[first:, :wanted], scores_QK[first:, :wanted])
    timings = {"encode_seconds": encode_seconds, "search_seconds": time.monotonic() - started}
    return Found(embeddings.directory, candidates, passages_QK[:first], timings)


def conclude(
    settings: RefreshSettings, request: RefreshRequest, found: Found, ours: Mapping[str, object]
) -> RefreshResult:
    """Evaluate, select, and compare with the refresh before; on process 0.

    Args:
        settings: how every refresh of the run is made.
        request: the refresh, and the checkpoint that it is made from.
        found: what was searched.
        ours: where the run comes from; all of it is recorded.
    """
    metrics = dev_metrics(settings, found.dev_passages_QK)
    selected = select(settings, request, found.candidates)
    lists = selected.lists.with_negatives()
    staleness = staleness_of(settings, request.refresh, lists, found.candidates)
    record = record_of(request, selected, lists, metrics, staleness, found.timings, ours)
    # 'ndcg@10' -> 'dev_ndcg_10': TensorBoard has no @ in its names
    dev = {f"dev_{name.replace('@', '_')}": value for name, value in metrics.items()}
    return RefreshResult(lists, record, {**dev, **found.timings, **logged_staleness(staleness)})


def dev_metrics(settings: RefreshSettings, dev_passages_QK: np.ndarray) -> dict[str, float]:
    """All that can be measured at the depth of the search, at least DEV_CANDIDATES; also said in ANCE's words.

    A passage that is its query is in no list.
    """
    collection = settings.collection
    qrels = collection.qrels(settings.dev_split)
    depth = deepest_cutoff(depth_of_search(settings), len(collection.passages))
    query_Q = qrels.queries_with_positive()
    own_Q = collection.own_passage_Q(settings.dev_split, query_Q)
    unused_QK = np.zeros(dev_passages_QK.shape, np.float32)  # scores
    dev_passages_QK, _ = without_own(dev_passages_QK, unused_QK, own_Q, depth_of_search(settings))
    choice = always_measured(collection.relevance_level(settings.dev_split))
    metrics = evaluate(qrels.as_dict(), query_Q, dev_passages_QK, depth, choice)
    say(f" --- ANN NDCG@10:{metrics['ndcg@10']}")
    say(f" --- ANN MRR:{metrics['mrr@10']}")
    return metrics


def depth_of_search(settings: RefreshSettings) -> int:
    """How many passages are looked for: candidates for training, and enough for the dev metrics."""
    return max(settings.topk_training, DEV_CANDIDATES)


def format_timings(timings: dict[str, float]) -> list[str]:
    return [f"{name.removesuffix('_seconds')} {seconds:.1f} s" for name, seconds in timings.items()]


def select(settings: RefreshSettings, request: RefreshRequest, candidates: Candidates) -> Selected:
    """The negatives of each train query by the strategy."""
    positives = settings.collection.qrels(TRAIN).positives()
    bm25 = settings.bm25.candidates if settings.bm25 is not None else None
    excluded = settings.collection.excluded_pairs()
    selected = select_negatives(
        candidates, positives, settings.selection, settings.seed, request.refresh, bm25, excluded
    )
    say(
        describe_selection(selected, settings.selection.strategy, settings.topk_training, request.refresh, request.step)
    )
    return selected


def record_of(
    request: RefreshRequest,
    selected: Selected,
    lists: NegativeLists,
    metrics: dict[str, float],
    staleness: StalenessSince | None,
    timings: dict[str, float],
    ours: Mapping[str, object],
) -> dict[str, object]:
    """The contents of ``ann_ndcg_N``.

    Args:
        request: the checkpoint that the refresh is of.
        selected: the negatives, with what was counted as they were selected.
        lists: of the queries that have some, as they are published.
        metrics: of dev, by name.
        staleness: since an earlier refresh, whose number is with it; None where there is none.
        timings: in seconds, by what took them.
        ours: where the run comes from.

    Returns:
        ANCE's keys, what was selected, and ``ours``.
    """
    if not request.model_sha256:  # embeddings of an earlier version: nor does the refresh say which model made it
        ours = as_earlier_version(ours)
    return {
        "ndcg": metrics["ndcg@10"],
        "checkpoint": request.checkpoint,
        "mrr": metrics["mrr@10"],
        "metrics": metrics,
        "step": request.step,
        "model_sha256": request.model_sha256,
        "queries": len(lists.query_Q),
        "triples": lists.triples,
        "selection": selected.counts(),
        **({"churn": churn_of(*staleness)} if staleness is not None else {}),
        **{name: round(seconds, 3) for name, seconds in timings.items()},
        **ours,
    }


def churn_of(since_refresh: int, staleness: Staleness) -> dict[str, object]:
    """Under the names that records have had from the first."""
    return {
        "since_refresh": since_refresh,
        "queries": staleness.queries,
        "still_there": staleness.rank_retention,
        "jaccard": staleness.jaccard,
    }


def logged_staleness(staleness: StalenessSince | None) -> dict[str, float]:
    """What metrics.jsonl says of earlier negatives."""
    if staleness is None:
        return {}
    _, shares = staleness
    return {f"still_rank_{name}": share for name, share in shares.rank_retention.items()} | {
        f"jaccard_rank_{name}": share for name, share in shares.jaccard.items()
    }


def staleness_of(
    settings: RefreshSettings, refresh: int, lists: NegativeLists, candidates: Candidates
) -> StalenessSince | None:
    """What has changed since the refresh before that searched the same train queries.

    Args:
        settings: where refreshes are, and into how many chunks the train queries are divided.
        refresh: the number of this one.
        lists: its negatives.
        candidates: what its search found for the same queries.

    Returns:
        The earlier refresh's number and the staleness; None where there is none that can be read.
    """
    train_queries = len(settings.collection.qrels(TRAIN).queries_with_positive())
    earlier = refresh - chunks_of(train_queries, settings.chunk_factor)
    if earlier < 0:
        return None
    try:
        before = read_negative_lists(read_refresh(settings.ann_dir, earlier).path)
    except (UserError, OSError):
        return None
    found = staleness_since(before, lists, candidates)
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in found.rank_retention.items())
    say(f"of refresh {earlier}'s negatives are still in their ranks: {shares} ({found.queries:,} queries)")
    return earlier, found
