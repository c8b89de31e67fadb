"""The flags that several programs share, each declared once in a group of what it is about.

A program's flags are one frozen dataclass put together from these, so that ``--learning_rate`` means the same and has
the same default wherever it appears. The names are ANCE's; ``tests/utils/test_flags.py`` holds them against the list of
all flags of ANCE and its fork. ``GROUP`` is the section of ``--help`` that a class's flags stand in, unless a flag
names another; what ``IGNORED`` names, and what has one value, stands at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from utils.declared import DEFAULT_LOSS, FILTERS, LOSSES, MODEL_TYPES, Filter, strategy_help, words_help
from utils.exchange.lease.record import DEFAULT_TIMEOUTS
from utils.flag_values import LARGEST_INTEGER, LONGEST_SECONDS, Group, flag, tristate
from utils.search.registry import AUTO
from utils.search.registry import WORDS as BACKEND_WORDS

SMALLEST_EPSILON = 1e-30  # in float32 it is not 0: by 0 a weight without a gradient would become nan


def seconds_flag(default: float, help_text: str) -> float:
    """How long: it decides nothing."""
    return flag(default, help_text, above=0, at_most=LONGEST_SECONDS, decides="nothing")


def filter_flag(declared: Filter) -> Any:
    range_ = declared.range
    return flag(declared.off, declared.help, at_least=range_.at_least, above=range_.above, at_most=range_.at_most)


@dataclass(frozen=True, kw_only=True)
class SeedFlags:
    GROUP: ClassVar[Group] = "job"

    seed: int = flag(42, "seed of every random choice", at_least=0, at_most=LARGEST_INTEGER)


@dataclass(frozen=True, kw_only=True)
class DocumentFlags:
    GROUP: ClassVar[Group] = "data"

    max_doc_character: int = flag(
        10000, "characters kept of a document before tokenizing", at_least=1, decides="nothing"
    )


@dataclass(frozen=True, kw_only=True)
class TextFlags(DocumentFlags):
    """How long a text may be. ANCE's msmarco_data."""

    GROUP: ClassVar[Group] = "data"

    max_seq_length: int = flag(128, "tokens kept of a passage", at_least=1)
    max_query_length: int = flag(64, "tokens kept of a query", at_least=1)


@dataclass(frozen=True, kw_only=True)
class PreprocessedFlags(DocumentFlags):
    """``drivers.job.text_lengths`` finds the lengths that are not given."""

    GROUP: ClassVar[Group] = "data"

    max_seq_length: int | None = flag(
        None,
        "tokens kept of a passage; default: what the model's config.json says it was trained with, else 128",
        at_least=1,
    )
    max_query_length: int | None = flag(
        None,
        "tokens kept of a query; default: what the model's config.json says it was trained with, else 64",
        at_least=1,
    )
    data_dir: str = flag(help="preprocessed directory, written by data.msmarco_data", is_path=True)
    cache_dir: str = flag("", "ignored: the token cache is memory-mapped from --data_dir", is_path=True)

    IGNORED: ClassVar[dict[str, str]] = {
        "cache_dir": "the token cache is memory-mapped from --data_dir",
        "max_doc_character": "data.msmarco_data has cut the documents already",
    }


@dataclass(frozen=True, kw_only=True)
class DevSplitFlags:
    GROUP: ClassVar[Group] = "evaluation"

    dev_split: str = flag(
        "", "split that is measured while training; default: dev, else the first other than train", decides="nothing"
    )


@dataclass(frozen=True, kw_only=True)
class ModelTypeFlags:
    GROUP: ClassVar[Group] = "model"

    model_type: str = flag(help=partial(words_help, MODEL_TYPES), aliases=["--train_model_type"])
    config_name: str = flag("", "config file or directory, where it is not the model's own", is_path=True)
    tokenizer_name: str = flag("", "tokenizer directory, where it is not the model's own", is_path=True)


@dataclass(frozen=True, kw_only=True)
class ModelFlags(ModelTypeFlags):
    GROUP: ClassVar[Group] = "model"

    model_name_or_path: str = flag(
        "",
        "directory (or hub name) to start from; without it the model starts from random weights of --config_name",
        is_path=True,
    )


@dataclass(frozen=True, kw_only=True)
class ComputeFlags:
    GROUP: ClassVar[Group] = "job"

    per_gpu_eval_batch_size: int = flag(
        128,
        "texts of --max_seq_length tokens that an encoding batch may hold; shorter texts make larger batches",
        at_least=1,
        decides="nothing",
    )
    no_cuda: bool = flag(False, "stay on the CPU even where there is a GPU", decides="nothing")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = flag(
        None,
        "type to compute in; auto: bf16 where the hardware is quick at it; default: auto, in training fp32",
        decides="nothing",
    )
    fp16: bool = flag(False, "the same as --dtype fp16 (training: with loss scaling)", decides="nothing")
    bf16: bool = flag(False, "the same as --dtype bf16", decides="nothing")
    compile: bool = flag(
        False, "torch.compile each model that is loaded: a minute, then faster, mostly on a GPU", decides="bytes"
    )
    collective_timeout_seconds: float = seconds_flag(
        1800.0, "several processes: one that the others have waited for so long ends the job"
    )
    fp16_opt_level: str = flag(
        "O1", "apex's word: O0 is float32, O1 is autocast; O2 and O3 are refused", decides="nothing"
    )
    local_rank: int = flag(-1, "ignored: torchrun sets it in the environment", at_least=-1, decides="nothing")
    server_ip: str = flag("", "ignored: start with python -m debugpy instead", decides="nothing")
    server_port: str = flag("", "ignored: start with python -m debugpy instead", decides="nothing")

    IGNORED: ClassVar[dict[str, str]] = {
        "server_ip": "for remote debugging start with python -m debugpy",
        "server_port": "for remote debugging start with python -m debugpy",
        "local_rank": "torchrun says it in the environment: torchrun --nproc_per_node N -m drivers.PROGRAM",
    }


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(SeedFlags, ComputeFlags):
    GROUP: ClassVar[Group] = "optimisation"

    output_dir: str = flag(help="where checkpoints and logs are written", is_path=True, group="job")
    task_name: str = flag("msmarco", "ignored: --data_dir decides the task", decides="nothing")
    do_lower_case: bool = flag(False, "ignored: the tokenizer's own files decide", decides="nothing")
    log_dir: str = flag("", "TensorBoard directory; default OUTPUT_DIR/tensorboard", is_path=True, group="job")
    optimizer: Literal["lamb", "adamW", "apex_fused_lamb"] = flag("lamb", "optimiser")
    learning_rate: float = flag(5e-5, "peak learning rate", above=0)
    weight_decay: float = flag(0.0, "weight decay", at_least=0)
    adam_epsilon: float = flag(1e-8, "epsilon of Adam and LAMB", at_least=SMALLEST_EPSILON)
    max_grad_norm: float = flag(1.0, "gradients are clipped to this norm; 0 leaves them", at_least=0)
    max_steps: int = flag(1_000_000, "optimiser steps to train", at_least=1, at_most=LARGEST_INTEGER)
    warmup_steps: int = flag(0, "steps of linear learning-rate warmup", at_least=0, at_most=LARGEST_INTEGER)
    per_gpu_train_batch_size: int = flag(
        8, "triples (run_ann) or queries (run_warmup) per process and micro-batch", at_least=1, decides="step"
    )
    gradient_accumulation_steps: int = flag(1, "micro-batches per optimiser step", at_least=1, decides="step")
    grad_cache_tokens: int = flag(
        0,
        "GradCache: a batch of any size in micro-batches of so many tokens, each encoded twice; 0: at once",
        at_least=0,
        decides="bytes",
    )
    gradient_checkpointing: bool = flag(
        False, "less memory: compute each layer's activations a second time", decides="bytes"
    )
    logging_steps: int = flag(
        500, "steps between log lines", at_least=1, at_most=LARGEST_INTEGER, decides="nothing", group="job"
    )
    save_steps: int = flag(
        500, "steps between checkpoints", at_least=1, at_most=LARGEST_INTEGER, decides="nothing", group="job"
    )
    load_optimizer_scheduler: bool = flag(False, "resume the optimiser and schedule stored with the checkpoint")
    overwrite_output_dir: bool = flag(
        False, "remove the run that --output_dir holds, and start again", decides="nothing", group="job"
    )
    loss: str = flag(DEFAULT_LOSS, partial(words_help, LOSSES), choices=LOSSES)

    IGNORED: ClassVar[dict[str, str]] = {
        "task_name": "--data_dir decides the task",
        "do_lower_case": "the tokenizer's own files decide",
    }


@dataclass(frozen=True, kw_only=True)
class ExchangeFlags:
    """How a job shows that it lives, and resumes where an earlier one stopped."""

    GROUP: ClassVar[Group] = "job"

    resume: Literal["auto", "never"] = flag(
        "auto",
        "auto: resume where the directory holds a run of the same flags; never: refuse such a directory",
        decides="nothing",
    )
    heartbeat_seconds: float = seconds_flag(DEFAULT_TIMEOUTS.heartbeat_seconds, "between two signs of life of a job")
    lease_seconds: float = seconds_flag(
        DEFAULT_TIMEOUTS.lease_seconds,
        "a job silent for so long counts as dead; keep it above the minute that network file systems may cache",
    )


@dataclass(frozen=True, kw_only=True)
class RefreshFlags(ExchangeFlags):
    """Which checkpoint a refresh is made from; trainer and generator must be given the same."""

    GROUP: ClassVar[Group] = "refresh"

    refresh_mode: Literal["async", "lockstep"] = flag(
        "async", "async: the newest wins (ANCE); lockstep: refresh N is made from step N*steps_per_refresh"
    )
    steps_per_refresh: int = flag(
        0, "lockstep: trainer steps between two refreshes", at_least=0, at_most=LARGEST_INTEGER
    )
    refresh_lag: Literal[0, 1] = flag(0, "lockstep: 0 the trainer waits for each refresh, 1 both work at once")


@dataclass(frozen=True, kw_only=True)
class SelectionFlags(SeedFlags):
    """Which candidates become negatives; data/mining/strategy.py has the language."""

    GROUP: ClassVar[Group] = "negatives"

    topk_training: int = flag(500, "candidates per train query", at_least=1)
    negative_sample: int = flag(
        5, "negatives per query where the strategy names no number (top_bottom: twice that)", at_least=1
    )
    negative_strategy: str | None = flag(None, strategy_help, decides="nothing")
    min_rank: int = filter_flag(FILTERS["min_rank"])
    max_positive_ratio: float = filter_flag(FILTERS["max_positive_ratio"])
    on_shortage: Literal["fewer", "widen", "skip"] = flag(
        "fewer", "too few are left of a query's candidates: fewer negatives, others of the nearest ranks, or none"
    )


@dataclass(frozen=True, kw_only=True)
class KeepFlags:
    GROUP: ClassVar[Group] = "negatives"

    keep_candidates: bool = flag(
        False, "publish the candidates too: python -m data.negatives then selects from them", decides="nothing"
    )


@dataclass(frozen=True, kw_only=True)
class Bm25DirFlags:
    GROUP: ClassVar[Group] = "negatives"

    bm25_dir: str = flag(
        "",
        "output of drivers.run_bm25: what run_warmup trains on and reranks, "
        "and (with its --keep_candidates) what the strategy bm25 takes",
        is_path=True,
    )


@dataclass(frozen=True, kw_only=True)
class AnceStrategyFlags:
    """How ANCE and its fork name a strategy."""

    GROUP: ClassVar[Group] = "negatives"

    ann_measure_topk_mrr: bool | None = tristate("ANCE's word: true is top, false is random")
    bottom_neg: bool | None = tristate("the fork's word: true is top_bottom")
    bottom_only: bool | None = tristate("the fork's word: with --bottom_neg true, bottom")


@dataclass(frozen=True, kw_only=True)
class SearchFlags:
    GROUP: ClassVar[Group] = "search"

    search_backend: str = flag(AUTO, partial(words_help, BACKEND_WORDS), choices=BACKEND_WORDS, decides="nothing")
    faiss_index: str = flag("Flat", "faiss index_factory string; Flat is exact")
    nprobe: int = flag(0, "cells visited by an IVF index; 0 keeps the index's own", at_least=0)
    search_memory_mib: int = flag(
        0,
        "an exact search takes no more, next to the queries and their lists; 0: 512 on a CPU, 4096 on a GPU",
        at_least=0,
        decides="nothing",
    )
