"""What a generator finds wrong before it begins, in the first minute, and what it is to do."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.mining.candidates import Bm25Source, read_bm25
from data.mining.select import Selection
from data.mining.strategy import NO_FLAG, resolve_strategy
from data.tokens.collection import Preprocessed
from drivers.cli import GenerateFlags
from drivers.embeddings import store
from drivers.embeddings.distributed_search import check_index_fits_model
from drivers.generate.encode_corpus import RefreshSettings
from drivers.generate.next_checkpoint import RequestSettings, check_last_checkpoint, step_said_used
from drivers.job.encoder_setup import check_model_directory
from drivers.job.model_identity import ModelSettings, identity_of
from drivers.job.resume import dev_split_record
from drivers.job.run_config import check_in_dry_run, run_config
from drivers.job.settings import (
    check_refresh_flags,
    compute_settings,
    deciding_flags,
    encoder_settings,
    lengths_of,
    model_settings,
    search_settings,
    selection_of,
    with_lengths,
)
from drivers.job.setup import ComputeSettings, check_output_dirs, open_collection
from drivers.job.text_lengths import check_made_with
from model.kernels.precision import name_of
from utils.errors import UserError
from utils.exchange.layout import CHECKPOINT_PATTERN, JobLayout, numbered
from utils.search.settings import SearchSettings

OWN_SERIES = "give each series of negatives an --output_dir of its own"


@dataclass(frozen=True)
class GeneratorJob:
    """What preflight resolved."""

    flags: GenerateFlags
    collection: Preprocessed
    selection: Selection
    strategy_from: str
    model: ModelSettings
    compute: ComputeSettings
    search: SearchSettings
    bm25: Bm25Source | None = None

    @property
    def strategy(self) -> str:
        """As the user wrote it."""
        return self.selection.strategy.text

    @property
    def dev_split(self) -> str:
        return self.collection.dev_split(self.flags.dev_split)

    @property
    def ann_dir(self) -> Path:
        return Path(self.flags.output_dir)

    @property
    def training_dir(self) -> Path:
        return Path(self.flags.training_dir)

    @property
    def refresh_settings(self) -> RefreshSettings:
        """How each is made."""
        flags = self.flags
        return RefreshSettings(
            collection=self.collection,
            ann_dir=self.ann_dir,
            dev_split=self.dev_split,
            encoder=encoder_settings(flags, self.compute.dtype),
            search=self.search,
            selection=self.selection,
            bm25=self.bm25,
            seed=flags.seed,
            topk_training=flags.topk_training,
            # --inference keeps all queries: a later --load_gen takes its chunk of them.
            chunk_factor=1 if flags.inference else flags.ann_chunk_factor,
            embedding_dtype=flags.embedding_dtype,
            only_encodes=flags.inference,
            loads_embeddings=flags.load_gen,
            keeps_candidates=flags.keep_candidates,
            only_latest_embeddings=flags.only_keep_latest_embedding_file,
        )

    @property
    def request_settings(self) -> RequestSettings:
        """Which refreshes, and of which checkpoints."""
        flags, last = self.flags, self.flags.end_output_num
        return RequestSettings(
            ann_dir=self.ann_dir,
            training_dir=self.training_dir,
            init_model_dir=Path(flags.init_model_dir),
            is_lockstep=flags.refresh_mode == "lockstep",
            steps_per_refresh=flags.steps_per_refresh,
            refresh_lag=flags.refresh_lag,
            most_refreshes=flags.limit_total_number,
            last_refresh=last if last >= 0 else None,
            step_used=step_said_used(flags.last_checkpoint_dir, self.training_dir),
            only_encodes=flags.inference,
            loads_embeddings=flags.load_gen,
        )


def places_of_lengths(flags: GenerateFlags) -> list[str]:
    if flags.load_gen:
        with contextlib.suppress(UserError):  # which the preflight tells
            return [str(store.newest_embeddings(JobLayout(Path(flags.output_dir)).embeddings))]
    newest = numbered(Path(flags.training_dir), CHECKPOINT_PATTERN)[-1:]
    models = [JobLayout(Path(flags.training_dir)).checkpoint(step) for step in newest]
    return [*map(str, models), flags.init_model_dir, flags.config_name]


def preflight(flags: GenerateFlags) -> GeneratorJob:
    """Find what would fail later, in the first minute. UserError for anything that would."""
    flags = with_lengths(flags, places_of_lengths(flags))
    strategy, strategy_from = resolve_strategy(
        flags.negative_strategy, flags.ann_measure_topk_mrr, flags.bottom_neg, flags.bottom_only
    )
    model, compute = model_settings(flags, flags.init_model_dir), check_flags(flags)
    search = search_settings(flags, compute.device)
    check_directories(flags, model)
    collection = open_inputs(flags, model, search)
    selection = selection_of(flags, strategy, len(collection.passages))
    if not len(collection.qrels("train").queries_with_positive()):
        raise UserError(f"{flags.data_dir}: no train query has a positive, expected some; check its qrels")
    bm25 = read_bm25(flags.bm25_dir, collection) if selection.strategy.needs_bm25 else None
    job = GeneratorJob(flags, collection, selection, strategy_from, model, compute, search, bm25)
    if flags.dry_run:
        unknown = ["encoded_in"] if compute.is_dtype_automatic else []
        check_in_dry_run(job.ann_dir, partial(config_of_job, job), OWN_SERIES, unknown)
    if strategy_from.startswith(NO_FLAG):
        sys.stderr.write(f"run_ann_data_gen: warning: negatives are {job.strategy}: {strategy_from}\n")
    return job


def check_flags(flags: GenerateFlags) -> ComputeSettings:
    """What it computes on. UserError for flags that do not fit together."""
    compute = compute_settings(flags)
    check_refresh_flags(flags)
    if flags.inference and flags.load_gen:
        raise UserError("--inference writes embeddings and --load_gen reads them; give one of the two")
    return compute


def check_directories(flags: GenerateFlags, model: ModelSettings) -> None:
    """UserError where one that is read is not what its flag says, or one cannot be written in."""
    if not Path(flags.init_model_dir).is_dir():
        raise UserError(f"--init_model_dir {flags.init_model_dir} is not a directory, expected the warmup checkpoint")
    check_model_directory(model, flags.dry_run)
    check_last_checkpoint(flags.last_checkpoint_dir, Path(flags.training_dir), Path(flags.init_model_dir))
    check_output_dirs(flags.output_dir)
    check_same_file_system(Path(flags.output_dir))


def check_same_file_system(ann_dir: Path) -> None:
    """UserError where the embeddings have been put on another disk: they are renamed from the lease's staging."""
    embeddings = JobLayout(ann_dir).embeddings
    if embeddings.exists() and embeddings.stat().st_dev != ann_dir.stat().st_dev:
        raise UserError(
            f"{embeddings} is on another file system than {ann_dir}, expected the same one: put both on the larger disk"
        )


def open_inputs(flags: GenerateFlags, model: ModelSettings, search: SearchSettings) -> Preprocessed:
    """The collection. UserError where its splits, the index or stored embeddings (--load_gen) do not fit the flags."""
    collection = open_collection(flags.data_dir, lengths_of(flags), model.tokenizer, flags.dry_run)
    collection.dev_split(flags.dev_split)
    check_index_fits_model(search, len(collection.passages), model)
    if flags.load_gen:
        stored = store.newest_embeddings(JobLayout(Path(flags.output_dir)).embeddings)
        check_made_with(lengths_of(flags), stored, store.read_embeddings_record(stored, collection))
    return collection


def config_of_job(job: GeneratorJob) -> dict[str, object]:
    """What decides the negatives, as it is recorded with them."""
    return run_config(
        deciding_flags(job.flags),
        job.collection,
        strategy=job.strategy,
        encoded_in=name_of(job.compute.dtype),
        **({"bm25_sha256": job.bm25.sha256} if job.bm25 is not None else {}),
        **dev_split_record(job.dev_split),
        **identity_of(job.model),
    )


def resolved_of(job: GeneratorJob) -> dict[str, str]:
    """What the header and a --dry_run say next to the flags."""
    return {"resolved_strategy": job.strategy, "strategy_from": job.strategy_from}
