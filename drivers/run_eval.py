"""Evaluate a checkpoint: rank the whole collection, rerank given candidates, write metrics and TREC runs.

    python -m drivers.run_eval --data_dir D --model_type rdot_nll --model_name_or_path T/checkpoint-10000 --output_dir E

What ANCE's evaluation notebook does, as a program: writes E/dev.trec, E/dev.per_query.tsv, E/dev.by_rank.json (scores
and grades at each rank; with --ann_dir, how far it is what was trained on), with --rerank_file E/dev.rerank.trec, and
E/metrics.json. With --embedding_dir it ranks by embeddings on disk instead of a model.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.stderr.write(
        "run_eval: error: start from the repository root: python -m drivers.run_eval "
        "(several processes: torchrun --nproc_per_node N -m drivers.run_eval)\n"
    )
    sys.exit(2)

from drivers.cli import EvalFlags
from utils.errors import UserError, run_program
from utils.flags import flags_json, parse_flags
from utils.text_files import check_ends


def main() -> None:
    given = parse_flags(EvalFlags, "run_eval")
    from drivers.embeddings.distributed_search import check_index_fits, check_index_fits_model, check_search
    from drivers.embeddings.store import read_embeddings_record
    from drivers.embeddings.text_lengths import check_made_with, with_lengths
    from drivers.job.encoder_setup import check_model_directory
    from drivers.job.setup import check_compute_flags, check_output_dirs, open_collection
    from utils.exchange.evaluations import check_as_published

    flags = with_lengths(given)
    dtype = check_compute_flags(flags)
    if bool(flags.model_name_or_path) == bool(flags.embedding_dir):
        raise UserError(
            "give --model_name_or_path (a checkpoint) or --embedding_dir (embeddings on disk), one of the two"
        )
    if flags.model_name_or_path:
        check_model_directory(flags, flags.model_name_or_path)
    if flags.rerank_file:
        if not Path(flags.rerank_file).is_file():
            raise UserError(
                f"{flags.rerank_file} is missing, expected candidates to rerank (top1000.dev or a TREC run)"
            )
        check_as_published(Path(flags.rerank_file))
        check_ends(Path(flags.rerank_file))
    backend = check_search(flags)
    check_output_dirs(flags.output_dir)
    collection = open_collection(flags, flags.tokenizer_name or flags.model_name_or_path)
    if flags.embedding_dir:
        stored = read_embeddings_record(Path(flags.embedding_dir), collection)
        check_made_with(flags, Path(flags.embedding_dir), stored)
        check_index_fits(flags, stored["passages"], stored["dims"])
    else:
        check_index_fits_model(flags, len(collection.passages), flags.model_name_or_path)
    if flags.dry_run:
        sys.stdout.write(flags_json(flags) + "\n")
        return
    run(flags, collection, dtype, backend)


def run(flags: EvalFlags, collection: Any, dtype: Any, backend: str) -> None:
    """Load, rank, write."""
    from drivers.embeddings.distributed_search import check_index_fits, search_options
    from drivers.evaluate.checks import check_evaluation
    from drivers.evaluate.ranking import encode_split, load_split, rank_split, rerank_lists
    from drivers.evaluate.score_curves import mean_scores
    from drivers.job.encoder_setup import encoding_settings, open_to_encode
    from drivers.job.preflight import Preflight
    from drivers.job.sanity_batch import check_encoding
    from drivers.job.setup import start_program
    from utils import distributed

    started = time.monotonic()
    world, _ = start_program("run_eval", flags_json(flags), flags)
    negatives = distributed.on_process0(world, partial(last_negatives, flags, collection)) if flags.ann_dir else None
    checks = Preflight(world)
    check_evaluation(checks, collection, flags, flags.tokenizer_name or flags.model_name_or_path)
    candidates_QK = None
    if flags.rerank_file:
        candidates_QK = rerank_lists(Path(flags.rerank_file), collection, flags.split)
    if flags.embedding_dir:
        checks.end()
        vectors: Any = load_split(world, Path(flags.embedding_dir), collection, flags.split)
    else:
        encoder = open_to_encode(flags, flags.model_name_or_path, collection, dtype, world)
        check_index_fits(flags, len(collection.passages), encoder.dims)
        settings = encoding_settings(flags, collection, dtype)
        checks.on_every_process(partial(check_encoding, encoder, collection, flags.split, settings, world.device))
        checks.end()
        vectors = encode_split(flags, world, encoder, collection, dtype, flags.split)
        assert vectors is not None, "nobody is told to leave"
    options = search_options(flags, backend, world.device)
    ranking = rank_split(world, collection, flags.split, vectors, flags.topk, options, candidates_QK)
    assert ranking is not None, "nobody is told to leave"
    queries_QD, share = vectors
    mean_score_Q = mean_scores(world, queries_QD, share, len(collection.passages))

    def write() -> None:
        by_rank = describe_ranks(collection, flags.split, ranking, mean_score_Q, negatives)
        write_results(flags, collection, ranking, by_rank, time.monotonic() - started)

    distributed.on_process0(world, write)
    distributed.stop(world)


def last_negatives(flags: EvalFlags, collection: Any) -> tuple[int, Any]:
    """Number and lists of the last refresh that the model's trainer took up; the newest there where that is not known.

    UserError where there is none, the one that was taken up is damaged, or it is of another collection.
    """
    from data.mining.negative_lists import check_offsets, read_negative_lists
    from utils.exchange.layout import DONE, record_path
    from utils.exchange.markers import read_done
    from utils.exchange.negatives import newest_refresh, read_refresh

    model = flags.model_name_or_path  # embeddings alone do not say who trained it
    done = read_done(Path(model).parent) if model else None
    taken = (done or {}).get("taken") or [{}]
    ann_dir, number = Path(flags.ann_dir), taken[-1].get("refresh")
    is_known = number is not None and record_path(ann_dir, number).exists()
    refresh = read_refresh(ann_dir, number) if is_known else newest_refresh(ann_dir, number)
    if refresh is None and number is not None:
        raise UserError(
            f"--ann_dir {flags.ann_dir} has no refresh {number}, which {Path(model).parent / DONE} says was the last "
            "in use; give the output of that run's generator, or leave it out"
        )
    if refresh is None:
        raise UserError(f"--ann_dir {flags.ann_dir} has no negatives, expected a generator's output; or leave it out")
    theirs, ours = refresh.record.get("collection_fingerprint"), collection.manifest["collection_fingerprint"]
    if theirs not in (None, ours):
        raise UserError(f"{refresh.path} is of another collection than --data_dir {flags.data_dir}; give its own")
    lists = read_negative_lists(refresh.path)
    check_offsets(lists, len(collection.queries("train")), len(collection.passages), refresh.path)
    return refresh.number, lists


def describe_ranks(
    collection: Any, split: Any, ranking: Any, mean_score_Q: Any, negatives: tuple[int, Any] | None
) -> dict[str, Any]:
    """What SPLIT.by_rank.json holds."""
    from drivers.evaluate.score_curves import as_json, grades_by_rank, overlap, score_curves

    qrels, lists_QK = collection.qrels(split), ranking.passages_QK
    curves = score_curves(ranking.query_Q, lists_QK, ranking.scores_QK, mean_score_Q)
    by_grade = grades_by_rank(qrels, ranking.query_Q, lists_QK)
    query_ids = collection.queries(split).original_ids()
    found = as_json(curves, qrels, by_grade, query_ids, len(ranking.query_Q))
    if negatives is not None:
        refresh, lists = negatives
        shares = overlap(lists_QK, lists.negative_QN, len(collection.passages))
        found["training_negatives"] = {"refresh": refresh, **shares}
    return found


def write_results(flags: EvalFlags, collection: Any, ranking: Any, by_rank: Any, seconds: float) -> None:
    """The run files first; metrics.json last, so that its presence says that all is there."""
    from utils.exchange.atomic import read_json, write_json
    from utils.exchange.evaluations import METRICS_FILE, write_metrics
    from utils.exchange.layout import EMBEDDINGS_RECORD, TRAINER_STATE
    from utils.ir.metrics import format_metrics, metrics_record
    from utils.ir.trec import write_run
    from utils.run_log import say

    output_dir, model = Path(flags.output_dir), Path(flags.model_name_or_path or flags.embedding_dir)
    all_ids, passage_ids = collection.queries(flags.split).original_ids(), collection.passages.original_ids()
    query_ids = [all_ids[query] for query in ranking.query_Q]
    names = [f"{flags.split}.{what}" for what in ("trec", "per_query.tsv", "by_rank.json")]
    run_path, per_query_path, by_rank_path = (output_dir / name for name in names)
    write_run(run_path, query_ids, passage_ids, ranking.passages_QK, ranking.scores_QK, "ance")
    write_per_query(per_query_path, all_ids, ranking.by_query)
    write_json(by_rank_path, by_rank)
    state = model / (EMBEDDINGS_RECORD if flags.embedding_dir else TRAINER_STATE)
    step = read_json(state).get("step") if state.is_file() else None
    record = metrics_record(ranking.metrics, len(ranking.by_query), str(model), step, seconds)
    say(f"full ranking {flags.split}: {format_metrics(ranking.metrics)}")
    if ranking.reranked is not None:
        scores_QK, passages_QK = ranking.reranked
        names.append(f"{flags.split}.rerank.trec")
        write_run(output_dir / names[-1], query_ids, passage_ids, passages_QK, scores_QK, "ance-rerank")
        record["rerank_metrics"] = ranking.rerank_metrics
        say(f"reranking {flags.split}: {format_metrics(ranking.rerank_metrics)}")
    write_metrics(output_dir, record, names)
    say(f"finished {output_dir / METRICS_FILE}")


def write_per_query(path: Path, query_ids: Any, by_query: dict[int, dict[str, float]]) -> None:
    """A line for each query of the qrels: its id and metrics, named in the first line; their means are the metrics."""
    from utils.exchange.atomic import write_text

    names = [*next(iter(by_query.values()))]
    lines = ["\t".join(["query_id", *names])]
    for query, row in by_query.items():
        lines.append("\t".join([query_ids[query], *(f"{row[name]:.9g}" for name in names)]))
    write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_program("run_eval", main)
