"""What a refresh computes: it searches with one checkpoint's embeddings, evaluates, and selects by the strategy.

`drivers.generate.generator` runs it, and publishes what it finds.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.mining.candidates import Candidates
from data.mining.negative_lists import NegativeLists, read_negative_lists
from data.mining.select import Selected, chunks_of, describe_selection, select_negatives
from data.mining.staleness import Churn, staleness_since
from drivers.embeddings.distributed_search import retrieve
from drivers.generate.encode_corpus import Job, RefreshEmbeddings, RefreshRequest, encode_all, load_embeddings
from drivers.job.progress import Monitor
from drivers.job.resume import as_earlier_version
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.atomic import Stage
from utils.exchange.negatives import read_refresh
from utils.ir.metrics import evaluate, reach
from utils.run_log import say

DEV_CANDIDATES = 100  # enough for recall@100 and everything at 10
Staleness = tuple[int, Churn]  # since which refresh, and what became of its negatives


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
    record: dict[str, Any]
    logged: dict[str, float]


def make_embeddings(
    job: Job, world: World, request: RefreshRequest, ours: dict[str, Any], monitor: Monitor, stage: Stage
) -> RefreshEmbeddings | None:
    """Encoded with the checkpoint, or with --load_gen read from the disk; see `encode_all`."""
    if job.flags.load_gen:
        return load_embeddings(job, world, request)
    return encode_all(job, world, request, ours, monitor, stage)


def search_all(
    job: Job, world: World, embeddings: RefreshEmbeddings, monitor: Monitor, encode_seconds: float
) -> Found | None:
    """Search the dev and the train queries at once; None on all processes where one was told to stop."""
    started = time.monotonic()
    monitor.set_status("searching")
    queries_QD = np.concatenate([embeddings.dev_QD, embeddings.train_QD])
    passages = len(job.collection.passages)
    lists = retrieve(world, queries_QD, embeddings.share, passages, depth_of_search(job), job.search, monitor)
    if lists is None:
        return None
    scores_QK, passages_QK = lists
    first, wanted = len(embeddings.dev_QD), job.flags.topk_training
    candidates = Candidates(embeddings.train_rows_Q, passages_QK[first:, :wanted], scores_QK[first:, :wanted])
    timings = {"encode_seconds": encode_seconds, "search_seconds": time.monotonic() - started}
    return Found(embeddings.directory, candidates, passages_QK[:first], timings)


def conclude(job: Job, request: RefreshRequest, found: Found, ours: dict[str, Any]) -> RefreshResult:
    """Process 0's part of the end: evaluate, select, and compare with the refresh before.

    Arguments:
        job: what preflight resolved.
        request: the refresh, and the checkpoint that it is made from.
        found: what was searched.
        ours: where the run comes from; all of it is recorded.
    """
    metrics = dev_metrics(job, found.dev_passages_QK)
    selected = select(job, request, found.candidates)
    lists = selected.lists.with_negatives()
    staleness = staleness_of(job, request.refresh, lists, found.candidates)
    record = record_of(request, selected, lists, metrics, staleness, found.timings, ours)
    # 'ndcg@10' -> 'dev_ndcg_10': TensorBoard has no @ in its names
    dev = {f"dev_{name.replace('@', '_')}": value for name, value in metrics.items()}
    return RefreshResult(lists, record, {**dev, **found.timings, **logged_staleness(staleness)})


def dev_metrics(job: Job, dev_passages_QK: np.ndarray) -> dict[str, float]:
    """All that can be measured at the depth of the search, at least DEV_CANDIDATES; also said in ANCE's words."""
    collection = job.collection
    qrels = collection.qrels(job.dev_split)
    depth = reach(depth_of_search(job), len(collection.passages))
    metrics = evaluate(qrels.as_dict(), qrels.queries_with_positive(), dev_passages_QK, depth)
    say(f" --- ANN NDCG@10:{metrics['ndcg@10']}")
    say(f" --- ANN MRR:{metrics['mrr@10']}")
    return metrics


def depth_of_search(job: Job) -> int:
    """How many passages are looked for: candidates for training, and enough for the dev metrics."""
    return max(job.flags.topk_training, DEV_CANDIDATES)


def format_timings(timings: dict[str, float]) -> list[str]:
    return [f"{name.removesuffix('_seconds')} {seconds:.1f} s" for name, seconds in timings.items()]


def select(job: Job, request: RefreshRequest, candidates: Candidates) -> Selected:
    """The negatives of each train query by the strategy."""
    positives = job.collection.qrels("train").positives()
    bm25 = job.bm25.candidates if job.bm25 is not None else None
    selected = select_negatives(candidates, positives, job.selection, job.flags.seed, request.refresh, bm25)
    say(describe_selection(selected, job.selection.strategy, job.flags.topk_training, request.refresh, request.step))
    return selected


def record_of(
    request: RefreshRequest,
    selected: Selected,
    lists: NegativeLists,
    metrics: dict[str, float],
    staleness: Staleness | None,
    timings: dict[str, float],
    ours: dict[str, Any],
) -> dict[str, Any]:
    """The contents of ``ann_ndcg_N``: ANCE's keys, what was selected, and ``ours``, where the run comes from."""
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
        **({"churn": {"since_refresh": staleness[0], **asdict(staleness[1])}} if staleness is not None else {}),
        **{name: round(seconds, 3) for name, seconds in timings.items()},
        **ours,
    }


def logged_staleness(staleness: Staleness | None) -> dict[str, float]:
    """What metrics.jsonl says of earlier negatives."""
    if staleness is None:
        return {}
    _, churn = staleness
    return {f"still_rank_{name}": share for name, share in churn.still_there.items()} | {
        f"jaccard_rank_{name}": share for name, share in churn.jaccard.items()
    }


def staleness_of(job: Job, refresh: int, lists: NegativeLists, candidates: Candidates) -> Staleness | None:
    """Since the refresh before that searched the same train queries; None where there is none that can be read."""
    train_queries = len(job.collection.qrels("train").queries_with_positive())
    earlier = refresh - chunks_of(train_queries, job.flags.ann_chunk_factor)
    if earlier < 0:
        return None
    try:
        before = read_negative_lists(read_refresh(job.ann_dir, earlier).path)
    except (UserError, OSError):
        return None
    found = staleness_since(before, lists, candidates)
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in found.still_there.items())
    say(f"of refresh {earlier}'s negatives are still in their ranks: {shares} ({found.queries:,} queries)")
    return earlier, found
