"""One refresh: encode with one checkpoint, search, evaluate, select by the strategy, publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.mining.candidates import Candidates, write_candidates
from data.mining.negative_lists import NegativeLists, read_negative_lists, write_negative_lists
from data.mining.select import chunks_of, describe_selection, select_negatives
from data.mining.staleness import Churn, staleness_since
from drivers.embeddings import store
from drivers.embeddings.distributed_search import retrieve
from drivers.generate.encode_corpus import Job, RefreshEmbeddings, RefreshRequest, encode_all, load_embeddings
from drivers.job.progress import Monitor
from drivers.job.resume import as_earlier_version
from drivers.job.session import Session
from utils import distributed
from utils.errors import Fenced, UserError
from utils.exchange.atomic import is_gone
from utils.exchange.lease import Lease
from utils.exchange.negatives import publish_negatives, read_refresh
from utils.ir.metrics import evaluate, reach
from utils.run_log import RunLog, say

LOOK_EVERY_SECONDS = 2.0  # at the lease, while encoding and searching
DEV_CANDIDATES = 100  # enough for recall@100 and everything at 10


def one_refresh(
    job: Job,
    session: Session,
    request: RefreshRequest,
    ours: dict[str, Any],
    log: RunLog | None,
    leave: Callable[[], bool],
) -> bool:
    """Encode, search, evaluate, select, publish.

    False, on all processes, where it was left before the end: ``leave``, asked between two batches, said so on one of
    them, or the checkpoint is gone. Fenced on all of them where one sees that another job has the lease.
    """
    started = time.monotonic()
    flags, world = job.flags, session.world
    if world.is_first:
        say(f"refresh {request.refresh}: from {request.checkpoint} (step {request.step})")
    session.set_status(refresh=request.refresh, step=request.step, doing="encoding")
    lease_staging_dir = staging_of(session)
    monitor = Monitor(leaving_when_fenced(leave, lease_staging_dir), lambda doing: session.set_status(doing=doing))
    encoding_started = time.monotonic()
    embeddings = (
        load_embeddings(job, session, request)
        if flags.load_gen
        else encode_all(job, session, request, ours, monitor, lease_staging_dir)
    )
    if embeddings is not None and flags.inference:
        return True
    searching_started = time.monotonic()
    found = None if embeddings is None else search_all(job, session, embeddings, monitor)
    if embeddings is None or found is None:
        check_not_fenced(session, lease_staging_dir)
        return False
    timings = {
        "encode_seconds": searching_started - encoding_started,
        "search_seconds": time.monotonic() - searching_started,
    }
    session.set_status(doing="selecting")
    candidates, dev_passages_QK = found

    def conclude() -> None:
        assert log is not None and session.lease is not None
        metrics = dev_metrics(job, dev_passages_QK)
        staleness = publish(
            job, session.lease, request, candidates, metrics, timings, {**ours, "processes": world.size}
        )
        # 'ndcg@10' -> 'dev_ndcg_10': TensorBoard has no @ in its names
        dev = {f"dev_{name.replace('@', '_')}": value for name, value in metrics.items()}
        log.record(request.step, **dev, **timings, **staleness)
        seconds = time.monotonic() - started
        say(f"refresh {request.refresh}: published in {seconds:.1f} s ({', '.join(format_metrics(timings))})")
        if flags.only_keep_latest_embedding_file:
            store.remove_others(session.lease, embeddings.directory)

    distributed.on_process0(world, conclude)
    if world.is_first and world.size > 1:
        say(f"refresh {request.refresh}: {world.waits}")
    return True


def staging_of(session: Session) -> Path:
    """The staging directory of the lease, which process 0 holds, on every process."""
    return Path(
        distributed.broadcast_json(session.world, str(session.lease.staging) if session.lease is not None else None)
    )


def leaving_when_fenced(
    leave: Callable[[], bool], lease_staging_dir: Path, clock: Callable[[], float] = time.monotonic
) -> Callable[[], bool]:
    """``leave``, and now and then a look whether the lease's staging is gone: every process sees for itself.

    Else the others would encode for hours more after process 0, which alone holds the lease, has left.
    """
    looked, is_fenced = clock(), False

    def ask() -> bool:
        nonlocal looked, is_fenced
        if not is_fenced and clock() - looked >= LOOK_EVERY_SECONDS:
            looked, is_fenced = clock(), is_gone(lease_staging_dir)
        return is_fenced or leave()

    return ask


def check_not_fenced(session: Session, lease_staging_dir: Path) -> None:
    """Fenced on all processes where one of them sees that another job has taken this one's role over."""
    if distributed.any_process(session.world, is_gone(lease_staging_dir)):
        raise Fenced("another job has taken this one's role over; it ends")


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


def format_metrics(timings: dict[str, float]) -> list[str]:
    return [f"{name.removesuffix('_seconds')} {seconds:.1f} s" for name, seconds in timings.items()]


def search_all(
    job: Job, session: Session, embeddings: RefreshEmbeddings, monitor: Monitor
) -> tuple[Candidates, np.ndarray] | None:
    """Candidates of the train queries, and the dev queries' lists; None on all processes where one was told to stop."""
    flags, world = job.flags, session.world
    session.set_status(doing="searching")
    k = depth_of_search(job)
    queries_QD = np.concatenate([embeddings.dev_QD, embeddings.train_QD])
    passages = len(job.collection.passages)
    found = retrieve(world, queries_QD, embeddings.share, passages, k, job.search, monitor)
    if found is None:
        return None
    scores_QK, passages_QK = found
    first = len(embeddings.dev_QD)
    wanted = flags.topk_training
    return (
        Candidates(embeddings.train_rows_Q, passages_QK[first:, :wanted], scores_QK[first:, :wanted]),
        passages_QK[:first],
    )


def publish(
    job: Job,
    lease: Lease,
    request: RefreshRequest,
    candidates: Candidates,
    metrics: dict[str, float],
    timings: dict[str, float],
    ours: dict[str, Any],
) -> dict[str, float]:
    """Select by the strategy and publish ``ann_training_data_N`` with its record; what it says of earlier negatives."""
    flags = job.flags
    positives = job.collection.qrels("train").positives()
    bm25 = job.bm25.candidates if job.bm25 is not None else None
    selected = select_negatives(candidates, positives, job.selection, flags.seed, request.refresh, bm25)
    say(describe_selection(selected, job.selection.strategy, flags.topk_training, request.refresh, request.step))
    lists = selected.lists.with_negatives()
    earlier, found = churn(job, request.refresh, lists, candidates)
    if not request.model_sha256:  # embeddings of an earlier version: nor does the refresh say which model made it
        ours = as_earlier_version(ours)
    record = {
        "ndcg": metrics["ndcg@10"],
        "checkpoint": request.checkpoint,
        "mrr": metrics["mrr@10"],
        "metrics": metrics,
        "step": request.step,
        "model_sha256": request.model_sha256,
        "queries": len(lists.query_Q),
        "triples": lists.triples,
        "selection": selected.counts(),
        **({"churn": {"since_refresh": earlier, **asdict(found)}} if found is not None else {}),
        **{name: round(seconds, 3) for name, seconds in timings.items()},
        **ours,
    }

    def write(path: Path) -> None:
        write_negative_lists(path, lists, positives)

    kept = partial(write_candidates, candidates=candidates) if flags.keep_candidates else None
    publish_negatives(lease, request.refresh, write, record, kept)
    if found is None:
        return {}
    return {f"still_rank_{name}": share for name, share in found.still_there.items()} | {
        f"jaccard_rank_{name}": share for name, share in found.jaccard.items()
    }


def churn(job: Job, refresh: int, lists: NegativeLists, candidates: Candidates) -> tuple[int, Churn | None]:
    """Since the refresh before that searched the same train queries; None where there is none that can be read."""
    train_queries = len(job.collection.qrels("train").queries_with_positive())
    earlier = refresh - chunks_of(train_queries, job.flags.ann_chunk_factor)
    if earlier < 0:
        return earlier, None
    try:
        before = read_negative_lists(read_refresh(job.ann_dir, earlier).path)
    except (UserError, OSError):
        return earlier, None
    found = staleness_since(before, lists, candidates)
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in found.still_there.items())
    say(f"of refresh {earlier}'s negatives are still in their ranks: {shares} ({found.queries:,} queries)")
    return earlier, found
