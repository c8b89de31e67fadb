"""Every flag, declared once, and the parser that all programs share.

A program's flags are one frozen dataclass put together from the groups below, so that
``--learning_rate`` means the same and has the same default wherever it appears. The names are
ANCE's; ``tests/utils/test_flags.py`` holds them against the list of all flags of ANCE and its fork.
Importing this module must stay cheap: ``--help`` and a mistyped flag answer before torch is loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast

try:
    from transformers.hf_argparser import HfArgumentParser
except ModuleNotFoundError as missing:
    sys.stderr.write(
        f"error: {sys.executable} has no {missing.name}: run bash commands/setup_venv.sh, then use .venv/bin/python\n"
    )
    sys.exit(2)

from utils.declared import DEFAULT_LOSS, LOSSES, loss_help
from utils.flag_values import LARGEST_INTEGER, LONGEST_SECONDS, OneLineParser, Range, expand_path, flag, tristate

# Flags of programs that are not part of this project yet, or that cannot mean anything here.
# A command line that uses one fails with the line that says what to write instead.
REFUSED = {
    **dict.fromkeys(
        ("question_dir", "wiki_dir", "answer_dir", "passage_path", "test_qa_path", "trivia_test_qa_path", "num_epoch"),
        "belongs to ANCE's OpenQA (DPR) programs, which are not here yet; leave it out",
    ),
}


SMALLEST_EPSILON = 1e-30  # in float32 it is not 0: by 0 a weight without a gradient would become nan
NOT_ARGPARSE = ("range", "is_path", "decides")  # of a flag's metadata, what is for this module


@dataclass(frozen=True, kw_only=True)
class ProgramFlags:
    dry_run: bool = flag(
        False, "parse, resolve and check what can be checked, print the flags as JSON, and exit", decides="nothing"
    )

    DEFAULTS: ClassVar[dict[str, Any]] = {}  # where a program's default differs from the group's
    RANGES: ClassVar[dict[str, Range]] = {}  # and where its range does
    IGNORED: ClassVar[dict[str, str]] = {}  # accepted for old command lines without effect, and why; any group has one


Flags = TypeVar("Flags", bound=ProgramFlags)


@dataclass(frozen=True, kw_only=True)
class SeedFlags:
    seed: int = flag(42, "seed of every random choice", at_least=0, at_most=LARGEST_INTEGER)


@dataclass(frozen=True, kw_only=True)
class DocumentFlags:
    max_doc_character: int = flag(
        10000, "characters kept of a document before tokenizing", at_least=1, decides="nothing"
    )


@dataclass(frozen=True, kw_only=True)
class TextFlags(DocumentFlags):
    """How long a text may be. ANCE's msmarco_data."""

    max_seq_length: int = flag(128, "tokens kept of a passage", at_least=1)
    max_query_length: int = flag(64, "tokens kept of a query", at_least=1)


@dataclass(frozen=True, kw_only=True)
class PreprocessedFlags(DocumentFlags):
    """``drivers.embeddings.text_lengths`` finds the lengths that are not given."""

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
class ModelTypeFlags:
    model_type: str = flag(help="rdot_nll (RoBERTa and ANCE's head) or static", aliases=["--train_model_type"])
    config_name: str = flag("", "config file or directory, where it is not the model's own", is_path=True)
    tokenizer_name: str = flag("", "tokenizer directory, where it is not the model's own", is_path=True)


@dataclass(frozen=True, kw_only=True)
class ModelFlags(ModelTypeFlags):
    model_name_or_path: str = flag(
        "",
        "directory (or hub name) to start from; leave it out to start from random weights of --config_name",
        is_path=True,
    )


@dataclass(frozen=True, kw_only=True)
class ComputeFlags:
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
    collective_timeout_seconds: float = flag(
        1800.0,
        "several processes: a rank that the others have waited for so long ends the job",
        above=0,
        at_most=LONGEST_SECONDS,
        decides="nothing",
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
    output_dir: str = flag(help="where checkpoints and logs are written", is_path=True)
    task_name: str = flag("msmarco", "ignored: --data_dir decides the task", decides="nothing")
    do_lower_case: bool = flag(False, "ignored: the tokenizer's own files decide", decides="nothing")
    log_dir: str = flag("", "TensorBoard directory; default OUTPUT_DIR/tensorboard", is_path=True)
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
        "GradCache: a batch of any size in passes of so many tokens, each made twice; 0: in one go",
        at_least=0,
        decides="bytes",
    )
    gradient_checkpointing: bool = flag(
        False, "less memory: make each layer's activations a second time", decides="bytes"
    )
    logging_steps: int = flag(500, "steps between log lines", at_least=1, at_most=LARGEST_INTEGER, decides="nothing")
    save_steps: int = flag(500, "steps between checkpoints", at_least=1, at_most=LARGEST_INTEGER, decides="nothing")
    load_optimizer_scheduler: bool = flag(False, "go on with the optimiser and schedule stored beside the checkpoint")
    overwrite_output_dir: bool = flag(
        False, "remove the run that --output_dir holds, and start anew", decides="nothing"
    )
    loss: str = flag(DEFAULT_LOSS, loss_help(), choices=LOSSES)

    IGNORED: ClassVar[dict[str, str]] = {
        "task_name": "--data_dir decides the task",
        "do_lower_case": "the tokenizer's own files decide",
    }


@dataclass(frozen=True, kw_only=True)
class ExchangeFlags:
    """How a job shows that it lives, and goes on where an earlier one stopped."""

    resume: Literal["auto", "never"] = flag(
        "auto",
        "auto: go on where the directory holds a run of the same flags; never: refuse such a directory",
        decides="nothing",
    )
    heartbeat_seconds: float = flag(
        10.0, "between two signs of life of a job", above=0, at_most=LONGEST_SECONDS, decides="nothing"
    )
    lease_seconds: float = flag(
        180.0,
        "a job silent for so long counts as dead; keep it above the minute that network file systems may cache",
        above=0,
        at_most=LONGEST_SECONDS,
        decides="nothing",
    )


@dataclass(frozen=True, kw_only=True)
class RefreshFlags(ExchangeFlags):
    """Which checkpoint a refresh is made from; trainer and generator must be given the same."""

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

    topk_training: int = flag(500, "candidates per train query", at_least=1)
    negative_sample: int = flag(
        5, "negatives per query where the strategy names no number (top_bottom: twice that)", at_least=1
    )
    negative_strategy: str | None = flag(
        None,
        "top, top_bottom, bottom, random, or what docs/strategies.md has: ranks:21-60, top:10+random:10",
        decides="nothing",
    )
    min_rank: int = flag(1, "candidates ranked above this one are never negatives", at_least=1)
    max_positive_ratio: float = flag(
        0.0,
        "drop likely positives: scores above this share of the positive's margin over the list's mean; 0: off",
        at_least=0,
        at_most=1,
    )
    on_shortage: Literal["fewer", "widen", "skip"] = flag(
        "fewer", "too few are left of a query's candidates: fewer negatives, others of the nearest ranks, or none"
    )


@dataclass(frozen=True, kw_only=True)
class KeepFlags:
    keep_candidates: bool = flag(
        False, "publish the candidates too: python -m data.negatives then selects from them", decides="nothing"
    )


@dataclass(frozen=True, kw_only=True)
class Bm25DirFlags:
    bm25_dir: str = flag(
        "",
        "output of drivers.run_bm25: what run_warmup trains on and reranks, "
        "and (with its --keep_candidates) what the strategy bm25 takes",
        is_path=True,
    )


@dataclass(frozen=True, kw_only=True)
class AnceStrategyFlags:
    """How ANCE and its fork name a strategy."""

    ann_measure_topk_mrr: bool | None = tristate("ANCE's word: true is top, false is random")
    bottom_neg: bool | None = tristate("the fork's word: true is top_bottom")
    bottom_only: bool | None = tristate("the fork's word: with --bottom_neg true, bottom")


@dataclass(frozen=True, kw_only=True)
class SearchFlags:
    search_backend: Literal["auto", "faiss", "torch"] = flag(
        "auto",
        "auto: faiss where installed (torch for an exact search on a GPU that this faiss cannot use), else torch",
        decides="nothing",
    )
    faiss_index: str = flag("Flat", "faiss index_factory string; Flat is exact")
    nprobe: int = flag(0, "cells visited by an IVF index; 0 keeps the index's own", at_least=0)
    search_memory_mib: int = flag(
        0,
        "an exact search takes no more, beside the queries and their lists; 0: 512 on a CPU, 4096 on a GPU",
        at_least=0,
        decides="nothing",
    )


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(OneLineParser, HfArgumentParser):
    """HfArgumentParser that answers a mistake in one line."""

    def add_argument(self, *names: Any, **words: Any) -> argparse.Action:
        return super().add_argument(*names, **{name: word for name, word in words.items() if name not in NOT_ARGPARSE})


def parse_flags(flags_class: type[Flags], program: str, argv: list[str] | None = None) -> Flags:
    """Parse a command line into ``flags_class``; one warning line for each flag given without effect.

    Exits with code 2 and one line where a flag is unknown, refused, missing, not of its type or not in its range.
    """
    argv = sys.argv[1:] if argv is None else argv
    doc = (flags_class.__doc__ or "").strip()
    parser = Parser(
        cast(Any, flags_class), prog=program, description=doc, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.set_defaults(**flags_class.DEFAULTS)
    show_ranges(parser, flags_class)
    own = {f.name for f in dataclasses.fields(flags_class)}
    given = [word.split("=", 1)[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")]
    for name in given:
        if name in REFUSED and name not in own:
            parser.error(f"--{name} {REFUSED[name]}")
    known = parser._option_string_actions
    for word in argv:  # before argparse, which would first ask for required flags
        if word.startswith("--") and word.split("=", 1)[0] not in known:
            parser.error(unknown_flag(word.split("=", 1)[0], known))
    flags, unknown = parser.parse_args_into_dataclasses(
        args=argv, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        parser.error(unknown_flag(unknown[0], known))
    check_ranges(parser, flags)
    check_launcher(parser, flags)
    flags = dataclasses.replace(flags, **expanded_paths(parser, flags))
    warn_of_ignored(flags_class, program, given)
    return flags


def range_of(flags_class: type[ProgramFlags], field: dataclasses.Field[Any]) -> Range | None:
    """The range of a number, None for any other flag."""
    range_: Range | None = flags_class.RANGES.get(field.name, field.metadata.get("range"))
    return range_


def show_ranges(parser: Parser, flags_class: type[ProgramFlags]) -> None:
    """In --help, after what the flag is."""
    for field in dataclasses.fields(flags_class):
        if range_ := range_of(flags_class, field):
            parser._option_string_actions[f"--{field.name}"].help = f"{field.metadata['help']} ({range_.in_help()})"


def check_ranges(parser: Parser, flags: ProgramFlags) -> None:
    for field in dataclasses.fields(flags):
        range_, value = range_of(type(flags), field), getattr(flags, field.name)
        if range_ is None or value is None:
            continue
        for number in value if isinstance(value, list) else [value]:
            if problem := range_.problem(number):
                parser.error(f"--{field.name} is {number}, {problem}")


def expanded_paths(parser: Parser, flags: ProgramFlags) -> dict[str, Any]:
    """The paths that were given, by flag, with their ``~`` expanded."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        if not field.metadata["is_path"] or value is None or value == field.default:
            continue
        try:
            found[field.name] = [*map(expand_path, value)] if isinstance(value, list) else expand_path(value)
        except ValueError as error:
            parser.error(f"--{field.name} {error}")
    return found


def unknown_flag(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"unknown flag {word}" + (f"; did you mean {close[0]}?" if close else "; --help lists them")


def check_launcher(parser: Parser, flags: Any) -> None:
    """A --local_rank without torchrun's environment would train as many separate models as there are processes."""
    if getattr(flags, "local_rank", -1) >= 0 and "WORLD_SIZE" not in os.environ:
        parser.error(
            f"--local_rank {flags.local_rank} without a launcher's environment; start several processes with "
            f"torchrun --nproc_per_node N -m drivers.{parser.prog}, one with python -m drivers.{parser.prog}"
        )


def warn_of_ignored(flags_class: type[Any], program: str, given: list[str]) -> None:
    reasons: dict[str, str] = {}
    for group in reversed(flags_class.__mro__):
        reasons.update(getattr(group, "IGNORED", {}))
    for name in dict.fromkeys(given):
        if name in reasons:
            sys.stderr.write(f"{program}: warning: --{name} has no effect here: {reasons[name]}\n")


def flags_json(flags: Any, **resolved: Any) -> str:
    """One JSON object: the flags as resolved, and what was derived from them."""
    return json.dumps({**dataclasses.asdict(flags), **resolved}, default=str)


def answer_dry_run(flags: ProgramFlags, **resolved: Any) -> bool:
    """Whether this is a --dry_run: what it was for has been checked, and `flags_json` is written to stdout."""
    if flags.dry_run:
        sys.stdout.write(flags_json(flags, **resolved) + "\n")
    return flags.dry_run
