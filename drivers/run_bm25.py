"""BM25 over a raw collection: the dev run and its metrics, and negatives for the warmup.

    python -m drivers.run_bm25 --raw_data_dir RAW --data_dir PREPROCESSED --output_dir DIR

Writes DIR/dev.trec (the collection's own ids), DIR/metrics.json, and then the negatives of the train queries,
``ann_training_data_0`` and ``ann_ndcg_0``, whose ranks and scores are BM25's. Where ``ann_ndcg_0`` is, all are.
``--keep_candidates`` adds ``ann_candidates_0.npz``, which the strategy ``bm25`` of the other programs takes from.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if not __package__:
    sys.stderr.write("run_bm25: error: start from the repository root: python -m drivers.run_bm25\n")
    sys.exit(2)

import numpy as np

from data.mining.candidates import Candidates, write_candidates
from data.mining.negative_lists import write_negative_lists
from data.mining.select import Selected, Selection, describe_selection, make_selection, select_negatives
from data.sources.atomic_dir import check_can_write, publish, staged_directory
from data.sources.base import Source, encoded_texts
from data.sources.registry import open_source
from data.tokens.collection import Preprocessed, open_preprocessed
from data.tokens.verify import check_inputs
from utils.errors import UserError, run_program
from utils.exchange.evaluations import METRICS_FILE, write_metrics
from utils.exchange.layout import record_path
from utils.exchange.lease import LeaseTimeouts
from utils.exchange.markers import working
from utils.exchange.negatives import publish_negatives
from utils.flag_values import MOST_WORKERS, flag
from utils.flags import KeepFlags, ProgramFlags, SelectionFlags, flags_json, parse_flags
from utils.ir.metrics import evaluate, format_metrics, metrics_record, metrics_to, reach
from utils.ir.trec import write_run
from utils.run_log import Progress, git_state, header, say
from utils.search.bm25 import build_index, search, words_of
from utils.system import core_count

if TYPE_CHECKING:
    from bm25s import BM25

MODEL = "bm25"  # what metrics.json, the run's tag and ann_ndcg_0 call the model
RUN_FILE, SCRATCH = "dev.trec", "index"
DEPTH_OF_RECORD = 10  # of ANCE's ndcg and mrr


@dataclass(frozen=True, kw_only=True)
class Bm25Flags(ProgramFlags, SelectionFlags, KeepFlags):
    """Search a collection with BM25: a TREC run and metrics for dev, negatives for train."""

    raw_data_dir: str = flag(help="raw collection in MS MARCO's format, the one --data_dir was made from", is_path=True)
    data_dir: str = flag(help="preprocessed directory, written by data.msmarco_data", is_path=True)
    output_dir: str = flag(
        help="directory for dev.trec, metrics.json, ann_training_data_0 and ann_ndcg_0", is_path=True
    )
    k1: float = flag(
        0.9,
        "BM25's k1, how slowly a repeated word stops counting; Anserini's value for MS MARCO",
        at_least=0,
        at_most=1000,
    )
    b: float = flag(
        0.4, "BM25's b, how much its length is held against a passage; Anserini's value", at_least=0, at_most=1
    )
    topk_dev: int = flag(
        1000, "passages in the run of a dev query; metrics of a deeper cut-off are left out", at_least=1
    )
    workers: int = flag(
        0, "processes that search a large collection; 0 is one for each core", at_least=0, at_most=MOST_WORKERS
    )

    DEFAULTS: ClassVar[dict[str, Any]] = {"topk_training": 200, "negative_sample": 20, "negative_strategy": "random"}


def open_inputs(flags: Bm25Flags) -> tuple[Source, Preprocessed, Selection]:
    """Both directories, checked as far as is cheap, and the output directory with them."""
    preprocessed = open_preprocessed(flags.data_dir, max_seq_length=1, max_query_length=1)
    check_inputs(preprocessed)
    source = open_source(preprocessed.manifest["data_type"], Path(flags.raw_data_dir))
    selection = make_selection(str(flags.negative_strategy), flags, len(preprocessed.passages))
    if selection.strategy.needs_bm25:
        raise UserError(
            f"--negative_strategy {flags.negative_strategy}: BM25's own candidates are meant here; write top"
        )
    if len(preprocessed.qrels("train").queries_with_positive()) == 0:
        raise UserError(f"{flags.data_dir} has no train query with a positive; check the raw train qrels")
    record = record_path(Path(flags.output_dir), 0)
    if record.exists():
        raise UserError(f"{record} exists, {flags.output_dir} is complete; remove it or choose another directory")
    check_can_write(Path(flags.output_dir))
    return source, preprocessed, selection


def passage_texts(source: Source, preprocessed: Preprocessed) -> Iterator[str]:
    """The passages in collection order. UserError at the first that is another in ``preprocessed``."""
    passages = encoded_texts(source, preprocessed.manifest["max_doc_character"])
    progress = Progress(len(preprocessed.passages), "passages read")
    both = zip_longest(passages, preprocessed.passages.original_ids())
    for offset, (passage, expected_id) in enumerate(both):
        found_id, text = passage or (None, "")
        if found_id != expected_id:
            found, expected = (repr(an_id) if an_id is not None else "the end" for an_id in (found_id, expected_id))
            raise UserError(
                f"passage {offset}: {source.passages_file} has {found}, {preprocessed.directory} has {expected}: they "
                "are different collections; give the raw directory it was made from, or preprocess this one"
            )
        progress.advance()
        yield text
    progress.close()


def query_texts(source: Source, preprocessed: Preprocessed, split: str) -> list[str]:
    """The texts of the preprocessed queries, by offset. UserError where the raw file lacks one."""
    ids = preprocessed.queries(split).original_ids()
    wanted = set(ids)
    texts = {query_id: text for query_id, text in source.queries(split) if query_id in wanted}
    missing = next((query_id for query_id in ids if query_id not in texts), None)
    if missing is not None:
        raise UserError(
            f"{source.split_files[split].queries} has no query {missing}, {preprocessed.directory} has: they are "
            "different collections; give the raw directory it was made from, or preprocess this one"
        )
    return [texts[query_id] for query_id in ids]


def run_dev(
    flags: Bm25Flags, source: Source, preprocessed: Preprocessed, index: BM25, staged: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Search the dev queries and write their run into ``staged``.

    The metrics over all judged queries, as deep as --topk_dev; and those that `commit_record` needs, at least at 10.
    """
    words, passages = words_of(query_texts(source, preprocessed, "dev")), len(preprocessed.passages)
    searched = max(flags.topk_dev, DEPTH_OF_RECORD)
    scores_QK, rows_QK = search(
        index, words, min(searched, passages), flags.workers or core_count(), staged / SCRATCH, "dev queries searched"
    )
    ids = preprocessed.queries("dev").original_ids(), preprocessed.passages.original_ids()
    write_run(staged / RUN_FILE, *ids, rows_QK[:, : flags.topk_dev], scores_QK[:, : flags.topk_dev], MODEL)
    judged, query_Q = preprocessed.qrels("dev").as_dict(), np.arange(len(rows_QK))
    metrics = evaluate(judged, query_Q, rows_QK, reach(searched, passages))
    kept = metrics_to(reach(flags.topk_dev, passages))
    return {name: value for name, value in metrics.items() if name in kept}, metrics


def train_negatives(
    flags: Bm25Flags,
    source: Source,
    preprocessed: Preprocessed,
    selection: Selection,
    index: BM25,
    staged: Path,
) -> tuple[Candidates, Selected]:
    """Candidates and negatives of every train query with a positive; the others are not searched."""
    qrels = preprocessed.qrels("train")
    query_Q = qrels.queries_with_positive()
    texts = query_texts(source, preprocessed, "train")
    say(f"train: {len(texts):,} queries, {len(query_Q):,} with a positive, {len(texts) - len(query_Q):,} left out")
    words = words_of(texts[query] for query in query_Q.tolist())
    scores_QK, rows_QK = search(
        index, words, flags.topk_training, flags.workers or core_count(), staged / SCRATCH, "train queries searched"
    )
    candidates = Candidates(query_Q, rows_QK, scores_QK)
    return candidates, select_negatives(candidates, qrels.positives(), selection, flags.seed, refresh=0)


def commit_record(
    flags: Bm25Flags, run_id: str, preprocessed: Preprocessed, metrics: dict[str, float]
) -> dict[str, Any]:
    """The contents of ``ann_ndcg_0``: ANCE's keys (at 10, however short the run is), and what made the negatives."""
    return {
        "ndcg": metrics["ndcg@10"],
        "mrr": metrics["mrr@10"],
        "checkpoint": MODEL,
        "step": 0,
        "strategy": flags.negative_strategy,
        "negative_sample": flags.negative_sample,
        "topk_training": flags.topk_training,
        "k1": flags.k1,
        "b": flags.b,
        "seed": flags.seed,
        "metrics": metrics,
        "run_id": run_id,
        "collection_fingerprint": preprocessed.manifest["collection_fingerprint"],
        "git": git_state(),
    }


def run(flags: Bm25Flags, source: Source, preprocessed: Preprocessed, selection: Selection) -> None:
    started, run_id, out = time.monotonic(), secrets.token_hex(6), Path(flags.output_dir)
    for line in header("run_bm25", run_id, flags_json(flags), ["cpu"]):
        say(line)
    with staged_directory(out) as staged:
        index = build_index(passage_texts(source, preprocessed), flags.k1, flags.b)
        metrics, metrics_at_10 = run_dev(flags, source, preprocessed, index, staged)
        say(f"dev {format_metrics(metrics)}")
        candidates, selected = train_negatives(flags, source, preprocessed, selection, index, staged)
        say(describe_selection(selected, selection.strategy, flags.topk_training, 0, 0))
        lists = selected.lists.with_negatives()
        dev_queries = len(preprocessed.qrels("dev").as_dict())
        record = metrics_record(metrics, dev_queries, MODEL, None, time.monotonic() - started)
        write_metrics(staged, record, [RUN_FILE])
        publish(staged, out, [RUN_FILE, METRICS_FILE])
        positives = preprocessed.qrels("train").positives()
        with working(out, "bm25", LeaseTimeouts(10.0, 180.0), run_id) as lease:
            publish_negatives(
                lease,
                0,
                lambda path: write_negative_lists(path, lists, positives),
                {**commit_record(flags, run_id, preprocessed, metrics_at_10), "selection": selected.counts()},
                partial(write_candidates, candidates=candidates) if flags.keep_candidates else None,
            )
    say(f"{out}: BM25 of {len(preprocessed.passages):,} passages in {time.monotonic() - started:.1f} s")


def main() -> None:
    flags = parse_flags(Bm25Flags, "run_bm25")
    source, preprocessed, selection = open_inputs(flags)
    if flags.dry_run:
        sys.stdout.write(flags_json(flags) + "\n")
        return
    run(flags, source, preprocessed, selection)


if __name__ == "__main__":
    run_program("run_bm25", main)
