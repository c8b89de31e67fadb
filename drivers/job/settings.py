"""The settings that parts of several programs take, built from a program's flags; flags that do not fit are refused.

The programs' own modules and `drivers.train.settings` do the same for one program, or two. All else takes settings.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from data.mining.select import Selection, make_selection
from data.tokens.text_agreement import TextUse, Use
from drivers.cli.evaluate import EvalFlags, NeighbourhoodFlags
from drivers.cli.generate import GenerateFlags
from drivers.cli.train import AnnFlags, WarmupFlags
from drivers.job.encoder_setup import EncoderSettings, check_compiler
from drivers.job.model_identity import ModelSettings
from drivers.job.setup import ComputeSettings
from drivers.job.text_lengths import TextLengths, find_lengths
from model.encode import EncodingSettings
from model.encoders.registry import encoder_type
from model.encoders.spec import pooling_of
from model.kernels.precision import compute_dtype, quickest_dtype
from utils.declared.strategies import FILTERS
from utils.distributed.world import own_device, processes_of_launcher
from utils.errors import UserError
from utils.exchange.lease.record import LeaseTimeouts
from utils.exchange.model_files import LENGTHS
from utils.flag_groups.model import ModelFlags, ModelTypeFlags
from utils.flag_groups.negatives import SelectionFlags
from utils.flag_groups.search import SearchFlags
from utils.flag_values import names_deciding
from utils.flags import ProgramFlags
from utils.hub import fetched_model, is_path, model_directory
from utils.model_texts import ModelTexts, is_trained, read_model_texts, with_default
from utils.search.registry import choose_backend
from utils.search.settings import SMALLEST_MEMORY_BYTES, SearchSettings

# The programs that open a model and a collection.
OpeningFlags = AnnFlags | EvalFlags | GenerateFlags | NeighbourhoodFlags | WarmupFlags


# What they all take


@dataclass(frozen=True)
class ModelJob:
    """What every program that opens a model has resolved of its flags.

    Args:
        flag_values: the flags by name, as resolved: what a log's header and a --dry_run say.
        deciding: those of them that decide what is computed, as given.
        lengths: of texts.
        texts: of which profile the model's texts are.
        model: what is opened; the name is empty where there is none.
        compute: what it computes on.
        encoder: how texts become vectors.
    """

    flag_values: Mapping[str, object]
    deciding: Mapping[str, object]
    lengths: TextLengths
    texts: TextUse
    model: ModelSettings
    compute: ComputeSettings
    encoder: EncoderSettings

    @property
    def deciding_values(self) -> dict[str, object]:
        """What decides what is computed, as resolved."""
        return {**self.deciding, **self.lengths.by_name}

    def at(self, lengths: TextLengths) -> Self:
        """The same for texts of other lengths."""
        return replace(self, lengths=lengths, encoder=self.encoder.at(lengths))


def model_job(flags: OpeningFlags, lengths: TextLengths, model: ModelSettings, compute: ComputeSettings) -> ModelJob:
    """What a program with a model is given.

    Args:
        flags: the program's.
        lengths: how long texts may be, in tokens.
        model: which model.
        compute: on what it computes, and in which type.
    """
    values = {**dataclasses.asdict(flags), **lengths.by_name}
    encoder = encoder_settings(flags, lengths, compute.dtype)
    texts = text_use(flags, model.name_or_path, use_of(flags))
    return ModelJob(values, deciding_flags(flags), lengths, texts, model, compute, encoder)


# Lengths of texts


def lengths_of(flags: OpeningFlags, places: Sequence[str]) -> TextLengths:
    """As given, else as recorded in ``places``; see `find_lengths`."""
    given = {name: getattr(flags, name) for name in LENGTHS}
    return find_lengths(given, places, Path(flags.data_dir), flags.dry_run)


def places_of_model(flags: ModelFlags) -> list[str]:
    """Where the lengths of --model_name_or_path may be recorded."""
    return [flags.model_name_or_path, flags.config_name]


# Text profiles


def use_of(flags: OpeningFlags) -> Use:
    """What the program does with the model that it is given."""
    match flags:
        case AnnFlags():
            return "ann"
        case GenerateFlags() if not (flags.inference or flags.load_gen):
            return "ann"
        case WarmupFlags() if flags.do_train:
            return "train"
        case _:
            return "encode"


def text_use(flags: OpeningFlags, model: str, use: Use) -> TextUse:
    """What is known of the texts of a model, a directory or a hub name, which is fetched; not by a --dry_run.

    One that encodes or starts the ANN stage has seen texts; what a warmup begins with may be a body that has seen none.
    UserError where its record is damaged, or the hub does not have it.
    """
    is_stored = isinstance(flags, GenerateFlags) and flags.load_gen  # embeddings: no model is opened
    name = "" if is_stored else model
    directory = directory_at_hand(name, flags.model_type, flags.dry_run) if name else None
    texts, has_seen_texts = ModelTexts(), False
    if directory is not None:
        texts = read_model_texts(str(directory), flags.config_name)
        has_seen_texts = use != "train" or is_trained(str(directory), flags.model_type)
    if has_seen_texts and not flags.text_profile:
        texts = with_default(texts, flags.model_type)
    may_change = not isinstance(flags, EvalFlags | NeighbourhoodFlags) and flags.change_text_profile
    return TextUse(
        name, texts, use, has_seen_texts, flags.text_profile, may_change and use != "encode", flags.model_type
    )


def directory_at_hand(name: str, model_type: str, is_dry_run: bool) -> Path | None:
    """Where a model's files are: a hub name's are fetched, but for a --dry_run, which says so and gets None."""
    if is_path(name) or not encoder_type(model_type).from_hub:
        return Path(name)
    if not is_dry_run:
        return fetched_model(name)
    directory = model_directory(name, local_only=True)
    if directory.is_dir():
        return directory
    sys.stderr.write(f"warning: texts: {name} is not in the hub's cache: its profile is looked at by the job\n")
    return None


# The model, and what it computes on


def model_settings(flags: ModelTypeFlags, model_dir: str, resumes_optimizer: bool = False) -> ModelSettings:
    """``model_dir``, a directory or a hub name, is the flag that the program has for it."""
    changes = {**model_changes(flags), **head_changes(flags)}
    named = (model_dir, flags.model_type, flags.config_name, flags.tokenizer_name)
    return ModelSettings(*named, resumes_optimizer, changes=changes)


def model_changes(flags: ModelTypeFlags) -> dict[str, object]:
    """What replaces the config's words of any model that is opened. UserError for flags that its type does not take."""
    given = {"pooling": flags.pooling, "normalize": flags.normalize}
    found: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if encoder_type(flags.model_type).has_modules:
        return {name: pooling_of(value) if name == "pooling" else value for name, value in found.items()}
    if isinstance(flags, WarmupFlags):  # which refuses --pooling where it has to, and has it change the first model
        found.pop("pooling", None)
    for name in found:
        raise UserError(f"--{name} is for --model_type hf, a {flags.model_type} checkpoint has its own; omit it")
    return found


def head_changes(flags: ModelTypeFlags) -> dict[str, object]:
    """What the first model of a warmup is given. UserError for a type that has a head of its own."""
    if not isinstance(flags, WarmupFlags) or not flags.head_dim:
        return {}
    if not encoder_type(flags.model_type).has_modules:
        raise UserError(f"--head_dim is for --model_type hf, a {flags.model_type} model has its own head; omit it")
    return {"head_dim": flags.head_dim}


def compute_settings(flags: OpeningFlags, default_dtype: str = "auto") -> ComputeSettings:
    """UserError for what cannot be computed."""
    kind = encoder_type(flags.model_type)
    device = own_device(flags.no_cuda)
    if flags.compile:
        check_compiler(device.type == "cuda")
    quickest = quickest_dtype(device) if kind.has_layers else None
    dtype = compute_dtype(flags.dtype, flags.fp16, flags.bf16, flags.fp16_opt_level, default_dtype, quickest)
    word = flags.dtype or ("given" if flags.fp16 or flags.bf16 else default_dtype)
    return ComputeSettings(flags.no_cuda, device, dtype, word == "auto", flags.collective_timeout_seconds)


def encoder_settings(flags: OpeningFlags, lengths: TextLengths, dtype: torch.dtype | None) -> EncoderSettings:
    """``dtype`` is the type to compute in, or None."""
    budget_tokens = flags.per_gpu_eval_batch_size * lengths.max_seq_length
    encoding = EncodingSettings(lengths.max_seq_length, lengths.max_query_length, budget_tokens, dtype)
    return EncoderSettings(flags.model_type, flags.config_name, encoding, flags.compile, model_changes(flags))


# Search and selection


def search_settings(flags: SearchFlags, device: torch.device) -> SearchSettings:
    """On this process's device. UserError where no backend has what is asked for, or for too little memory."""
    smallest = SMALLEST_MEMORY_BYTES // 2**20
    if flags.search_memory_mib and flags.search_memory_mib < smallest:
        raise UserError(f"--search_memory_mib is {flags.search_memory_mib}, expected 0 or at least {smallest}")
    memory_bytes = flags.search_memory_mib * 2**20
    return choose_backend(SearchSettings(flags.search_backend, flags.faiss_index, flags.nprobe, device, memory_bytes))


def selection_of(flags: SelectionFlags, strategy: str, passages: int) -> Selection:
    """``strategy`` is in the language of data/mining/strategy.py. UserError where it cannot be meant."""
    return make_selection(
        strategy,
        passages,
        topk_training=flags.topk_training,
        negative_sample=flags.negative_sample,
        filters={name: getattr(flags, name) for name in FILTERS},
        on_shortage=flags.on_shortage,
    )


# The run


def lease_timeouts(flags: AnnFlags | GenerateFlags | WarmupFlags) -> LeaseTimeouts:
    """UserError where they do not fit each other, or the limit on collectives."""
    if flags.lease_seconds < 3 * flags.heartbeat_seconds:
        raise UserError(
            f"--lease_seconds is {flags.lease_seconds:g} with --heartbeat_seconds {flags.heartbeat_seconds:g}, "
            "expected at least three heartbeats in a lease's life"
        )

    if processes_of_launcher() > 1 and flags.lease_seconds >= flags.collective_timeout_seconds:
        raise UserError(
            f"--lease_seconds is {flags.lease_seconds:g}, expected less than --collective_timeout_seconds, "
            f"{flags.collective_timeout_seconds:g}: the other processes wait while the first takes a lease over"
        )
    return LeaseTimeouts(flags.heartbeat_seconds, flags.lease_seconds)


def check_refresh_flags(flags: AnnFlags | GenerateFlags) -> None:
    """UserError where trainer and generator could not agree on them."""
    lease_timeouts(flags)
    if flags.refresh_mode == "lockstep" and not flags.steps_per_refresh:
        raise UserError("--refresh_mode lockstep needs --steps_per_refresh above 0; how many steps between refreshes?")


def deciding_flags(flags: ProgramFlags) -> dict[str, object]:
    """The flags that decide what a run computes, by name, as each says at its declaration."""
    omitted = names_deciding(type(flags), "nothing")
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
    return {name: value for name, value in values.items() if name not in omitted}
