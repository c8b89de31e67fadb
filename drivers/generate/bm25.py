"""BM25 over a raw collection: from the texts to the run of the dev split, its metrics and the first negatives."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.mining.candidates import Candidates, write_candidates
from data.mining.negative_lists import write_negative_lists
from data.mining.select import Selected, Selection, describe_selection, select_negatives
from data.sources.atomic_dir import check_can_write, publish, staged_directory
from data.sources.base import Source
from data.sources.registry import open_source, request_of_record
from data.tokens.collection import Preprocessed, open_preprocessed
from data.tokens.raw_texts import passages_in_order, query_texts
from data.tokens.tokenizer import encoded_text
from data.tokens.verify import check_inputs
from drivers.cli.generate import Bm25Flags
from drivers.job.resume import dev_split_record
from drivers.job.settings import selection_of
from utils.declared.stemmers import STEMMERS
from utils.errors import UserError
from utils.exchange.evaluations import TRAIN, write_metrics
from utils.exchange.layout import EVALUATION_RECORD, EvaluationLayout, JobLayout
from utils.exchange.lease.record import DEFAULT_TIMEOUTS
from utils.exchange.markers import working
from utils.exchange.negatives import publish_negatives
from utils.flags import flags_json
from utils.ir.metrics import (
    DEPTH_OF_RECORD,
    MetricChoice,
    choose_metrics,
    deepest_cutoff,
    evaluate,
    format_metrics,
    metrics_record,
)
from utils.ir.trec import write_run
from utils.run_log import git_state, header, say
from utils.search.bm25 import Stem, build_index, search, words_of
from utils.search.ranked_lists import without_own
from utils.system import core_count

if TYPE_CHECKING:
    from bm25s import BM25

MODEL = "bm25"  # what metrics.json, the run's tag and ann_ndcg_0 call the model
SCRATCH = "index"


@dataclass(frozen=True)
class Bm25Job:
    """What preflight resolved.

    Args:
        flag_values: the flags, for the log, the record and a --dry_run.
        source: the raw collection.
        preprocessed: the same as tokens, for the order of passages and queries, and the qrels.
        output_dir: where everything is published.
        dev_split: the split that is measured.
        choice: what is measured of it.
        selection: how negatives are chosen from the candidates; None: there is no split train.
        seed: of their draws.
        k1, b: BM25's own.
        stem: makes a word its stem; None: nothing does.
        topk_dev: passages in the run of a dev query.
        topk_training: candidates of a train query.
        workers: processes that search.
        keeps_candidates: the candidates are published, too.
    """

    flag_values: Mapping[str, object]
    source: Source
    preprocessed: Preprocessed
    output_dir: Path
    dev_split: str
    choice: MetricChoice
    selection: Selection | None
    seed: int
    k1: float
    b: float
    stem: Stem | None
    topk_dev: int
    topk_training: int
    workers: int
    keeps_candidates: bool


@dataclass(frozen=True)
class SearchResults:
    """What both searches found.

    ``metrics`` are of the dev split, as deep as --topk_dev, ``recorded_metrics`` are at least at 10; the ``negatives``
    are the train queries' candidates and those selected of them, None where there is no split train.
    """

    metrics: dict[str, float]
    recorded_metrics: dict[str, float]
    negatives: tuple[Candidates, Selected] | None


def preflight(flags: Bm25Flags) -> Bm25Job:
    """Both directories, checked as far as is cheap, and the output directory with them."""
    preprocessed = open_preprocessed(flags.data_dir, max_seq_length=1, max_query_length=1)
    check_inputs(preprocessed)
    source = open_source(request_of_record(preprocessed.manifest, flags.raw_data_dir))
    dev_split = preprocessed.dev_split(flags.dev_split)
    trains = TRAIN in preprocessed.splits
    strategy = str(flags.negative_strategy)
    selection = selection_of(flags, strategy, len(preprocessed.passages)) if trains else None
    if selection is not None and selection.strategy.needs_bm25:
        raise UserError(
            f"--negative_strategy {flags.negative_strategy}: BM25's own candidates are meant here; write top"
        )
    if flags.stemmer not in STEMMERS:
        raise UserError(f"--stemmer is {flags.stemmer}, expected one of {', '.join(STEMMERS)}")
    if trains and len(preprocessed.qrels(TRAIN).queries_with_positive()) == 0:
        raise UserError(f"{flags.data_dir} has no train query with a positive; check the raw train qrels")
    output_dir = Path(flags.output_dir)
    record = JobLayout(output_dir).record(0) if trains else EvaluationLayout(output_dir).metrics
    if record.exists():
        raise UserError(f"{record} exists, {flags.output_dir} is complete; remove it or choose another directory")
    check_can_write(output_dir)
    return Bm25Job(
        flag_values=asdict(flags),
        source=source,
        preprocessed=preprocessed,
        output_dir=output_dir,
        dev_split=dev_split,
        choice=choose_metrics("", preprocessed.relevance_level(dev_split), preprocessed.is_of_documents),
        selection=selection,
        seed=flags.seed,
        k1=flags.k1,
        b=flags.b,
        stem=STEMMERS[flags.stemmer].stem,
        topk_dev=flags.topk_dev,
        topk_training=flags.topk_training,
        workers=flags.workers or core_count(),
        keeps_candidates=flags.keep_candidates,
    )


def passage_texts(source: Source, preprocessed: Preprocessed) -> Iterator[str]:
    """The text of each passage, in collection order. UserError where ``source`` is another collection."""
    characters = preprocessed.manifest["max_doc_character"]
    return (encoded_text(passage, characters) for passage in passages_in_order(source, preprocessed))


def run_dev(job: Bm25Job, index: BM25, staged: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Search the queries of the dev split and write their run into ``staged``.

    The metrics over all judged queries, as deep as --topk_dev; and those that `commit_record` needs, at least at 10.
    """
    preprocessed, split = job.preprocessed, job.dev_split
    words, passages = words_of(query_texts(job.source, preprocessed, split), job.stem), len(preprocessed.passages)
    searched, what = max(job.topk_dev, DEPTH_OF_RECORD), f"{split} queries searched"
    own_Q = preprocessed.own_passage_Q(split, np.arange(len(words)))
    # One more, for each may lose the passage that it is itself.
    deepest = min(searched + bool((own_Q >= 0).any()), passages)
    scores_QK, rows_QK = search(index, words, deepest, job.workers, staged / SCRATCH, what)
    rows_QK, scores_QK = without_own(rows_QK, scores_QK, own_Q, min(searched, passages))
    ids = preprocessed.queries(split).original_ids(), preprocessed.passages.stored_ids()
    run_path = EvaluationLayout(staged).ranking(split)
    write_run(run_path, *ids, rows_QK[:, : job.topk_dev], scores_QK[:, : job.topk_dev], MODEL)
    judged, query_Q = preprocessed.qrels(split).as_dict(), np.arange(len(rows_QK))
    metrics = evaluate(judged, query_Q, rows_QK, deepest_cutoff(searched, passages), job.choice)
    kept = job.choice.names(deepest_cutoff(job.topk_dev, passages))
    return {name: value for name, value in metrics.items() if name in kept}, metrics


def train_negatives(job: Bm25Job, selection: Selection, index: BM25, staged: Path) -> tuple[Candidates, Selected]:
    """Search the train queries that have a positive.

    Args:
        job: the program's.
        selection: how negatives are chosen.
        index: of all passages.
        staged: a directory of our own.
    Returns:
        Their candidates and negatives.
    """
    qrels = job.preprocessed.qrels(TRAIN)
    query_Q = qrels.queries_with_positive()
    texts = query_texts(job.source, job.preprocessed, TRAIN)
    say(f"train: {len(texts):,} queries, {len(query_Q):,} with a positive, {len(texts) - len(query_Q):,} omitted")
    words = words_of((texts[query] for query in query_Q.tolist()), job.stem)
    what = "train queries searched"
    scores_QK, rows_QK = search(index, words, job.topk_training, job.workers, staged / SCRATCH, what)
    candidates = Candidates(query_Q, rows_QK, scores_QK)
    excluded = job.preprocessed.excluded_pairs()
    return candidates, select_negatives(candidates, qrels.positives(), selection, job.seed, 0, excluded=excluded)


def commit_record(job: Bm25Job, run_id: str, metrics: dict[str, float]) -> dict[str, object]:
    """The contents of ``ann_ndcg_0``: ANCE's keys (at 10, however short the run is), and what made the negatives."""
    return {
        "ndcg": metrics["ndcg@10"],
        "mrr": metrics["mrr@10"],
        "checkpoint": MODEL,
        "step": 0,
        "strategy": job.flag_values["negative_strategy"],
        **{name: job.flag_values[name] for name in ("negative_sample", "topk_training", "k1", "b", "stemmer", "seed")},
        **dev_split_record(job.dev_split),
        "metrics": metrics,
        "run_id": run_id,
        "collection_fingerprint": job.preprocessed.manifest["collection_fingerprint"],
        "git": git_state(),
    }


def run(job: Bm25Job) -> None:
    """Index the collection, search both splits, and publish the run of the dev split before the negatives.

    A collection without a split train has the run alone.
    """
    started, run_id = time.monotonic(), secrets.token_hex(6)
    for line in header("run_bm25", run_id, flags_json(job.flag_values), ["cpu"]):
        say(line)
    stemmer = str(job.flag_values["stemmer"])
    say(f"title and text as one field; --stemmer {stemmer}: {STEMMERS[stemmer].description}")
    with staged_directory(job.output_dir) as staged:
        found = search_both(job, staged)
        publish_dev(job, staged, found.metrics, started)
        if found.negatives is not None:
            publish_selected(job, run_id, found.recorded_metrics, *found.negatives)
    passages = len(job.preprocessed.passages)
    say(f"{job.output_dir}: BM25 of {passages:,} passages in {time.monotonic() - started:.1f} s")


def search_both(job: Bm25Job, staged: Path) -> SearchResults:
    """Index the collection, and search the queries of the dev split and the train queries."""
    index = build_index(passage_texts(job.source, job.preprocessed), job.k1, job.b, job.stem)
    metrics, recorded_metrics = run_dev(job, index, staged)
    say(f"{job.dev_split} {format_metrics(metrics)}")
    if job.selection is None:
        say("no split train: no negatives")
        return SearchResults(metrics, recorded_metrics, None)
    candidates, selected = train_negatives(job, job.selection, index, staged)
    say(describe_selection(selected, job.selection.strategy, job.topk_training, 0, 0))
    return SearchResults(metrics, recorded_metrics, (candidates, selected))


def publish_dev(job: Bm25Job, staged: Path, metrics: dict[str, float], started: float) -> None:
    """Publish the run of the dev split and its metrics.

    Args:
        job: the program's, with its output directory and the collection.
        staged: the directory that the run is in.
        metrics: of the split, by name.
        started: when the work began, by `time.monotonic`, in seconds.
    """
    queries = len(job.preprocessed.qrels(job.dev_split).as_dict())
    written = [EvaluationLayout(staged).ranking(job.dev_split).name]
    record = metrics_record(metrics, queries, MODEL, None, time.monotonic() - started)
    record |= {"split": job.dev_split, "relevance_level": job.choice.relevance_level}
    write_metrics(staged, record, written)
    publish(staged, job.output_dir, [*written, EVALUATION_RECORD])


def publish_selected(
    job: Bm25Job, run_id: str, metrics: dict[str, float], candidates: Candidates, selected: Selected
) -> None:
    """Publish ``ann_training_data_0``, the candidates where they are kept, and the record of both.

    Args:
        job: the program's.
        run_id: of this run.
        metrics: of the dev split, for the record.
        candidates: of the train queries.
        selected: their negatives.
    Raises:
        UserError: no query has a negative, or another job is at work in the directory.
    """
    lists, excluded = selected.lists.with_negatives(), job.preprocessed.excluded_pairs()
    with working(job.output_dir, "bm25", DEFAULT_TIMEOUTS, run_id) as lease:
        publish_negatives(
            lease,
            0,
            lambda path: write_negative_lists(path, lists, excluded),
            {**commit_record(job, run_id, metrics), "selection": selected.counts()},
            partial(write_candidates, candidates=candidates) if job.keeps_candidates else None,
        )
