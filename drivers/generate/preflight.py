"""What a generator finds wrong before it begins, in the first minute, and what it is to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.mining.candidates import read_bm25
from data.mining.select import make_selection
from data.mining.strategy import resolve_strategy
from data.tokens.collection import Preprocessed
from drivers.cli import GenerateFlags
from drivers.embeddings import store
from drivers.embeddings.distributed_search import check_index_fits_model, search_settings
from drivers.embeddings.text_lengths import check_made_with, with_lengths
from drivers.generate.encode_corpus import Job
from drivers.generate.next_checkpoint import check_last_checkpoint
from drivers.job.encoder_setup import check_model_directory
from drivers.job.model_identity import identity_of
from drivers.job.resume import dev_split_record
from drivers.job.run_config import check_in_dry_run, run_config
from drivers.job.setup import check_compute_flags, check_output_dirs, check_refresh_flags, open_collection
from model.kernels.precision import name_of
from utils.distributed.world import own_device
from utils.errors import UserError
from utils.exchange.layout import JobLayout
from utils.search.settings import SearchSettings

OWN_SERIES = "give each series of negatives an --output_dir of its own"


def preflight(flags: GenerateFlags) -> Job:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    flags = with_lengths(flags)
    strategy, strategy_from = resolve_strategy(
        flags.negative_strategy, flags.ann_measure_topk_mrr, flags.bottom_neg, flags.bottom_only
    )
    dtype = check_flags(flags)
    search = search_settings(flags, own_device(flags.no_cuda))
    check_directories(flags)
    collection = open_inputs(flags, search)
    selection = make_selection(strategy, flags, len(collection.passages))
    if not len(collection.qrels("train").queries_with_positive()):
        raise UserError(f"{flags.data_dir}: no train query has a positive, expected some; check its qrels")
    bm25 = read_bm25(flags.bm25_dir, collection) if selection.strategy.needs_bm25 else None
    job = Job(flags, collection, selection, strategy_from, dtype, search, bm25)
    if flags.dry_run:
        check_in_dry_run(job.ann_dir, flags, partial(config_of_job, job), OWN_SERIES, "encoded_in")
    return job


def check_flags(flags: GenerateFlags) -> torch.dtype | None:
    """UserError for flags that do not fit together; the type to compute in, None for float32."""
    dtype = check_compute_flags(flags)
    check_refresh_flags(flags)
    if flags.inference and flags.load_gen:
        raise UserError("--inference writes embeddings and --load_gen reads them; give one of the two")
    return dtype


def check_directories(flags: GenerateFlags) -> None:
    """UserError where one that is read is not what its flag says, or one cannot be written in."""
    if not Path(flags.init_model_dir).is_dir():
        raise UserError(f"--init_model_dir {flags.init_model_dir} is not a directory, expected the warmup checkpoint")
    check_model_directory(flags, flags.init_model_dir)
    check_last_checkpoint(flags)
    check_output_dirs(flags.output_dir)
    check_same_file_system(Path(flags.output_dir))


def check_same_file_system(ann_dir: Path) -> None:
    """UserError where the embeddings have been put on another disk: they are renamed from the lease's staging."""
    embeddings = JobLayout(ann_dir).embeddings
    if embeddings.exists() and embeddings.stat().st_dev != ann_dir.stat().st_dev:
        raise UserError(
            f"{embeddings} is on another file system than {ann_dir}, expected the same one: put both on the larger disk"
        )


def open_inputs(flags: GenerateFlags, search: SearchSettings) -> Preprocessed:
    """The collection. UserError where its splits, the index or stored embeddings (--load_gen) do not fit the flags."""
    collection = open_collection(flags, flags.tokenizer_name or flags.init_model_dir)
    collection.dev_split(flags.dev_split)
    passages = len(collection.passages)
    check_index_fits_model(search, passages, flags.init_model_dir, flags.model_type, flags.config_name)
    if flags.load_gen:
        stored = store.newest_embeddings(JobLayout(Path(flags.output_dir)).embeddings)
        check_made_with(flags, stored, store.read_embeddings_record(stored, collection))
    return collection


def config_of_job(job: Job) -> dict[str, Any]:
    """What decides the negatives, as it is recorded with them."""
    return run_config(
        job.flags,
        job.collection,
        strategy=job.strategy,
        encoded_in=name_of(job.dtype),
        **({"bm25_sha256": job.bm25.sha256} if job.bm25 is not None else {}),
        **dev_split_record(job.dev_split),
        **identity_of(job.flags.init_model_dir, job.flags.model_type, job.flags.config_name),
    )


def resolved_of(job: Job) -> dict[str, str]:
    """What the header and a --dry_run say next to the flags."""
    return {"resolved_strategy": job.strategy, "strategy_from": job.strategy_from}
