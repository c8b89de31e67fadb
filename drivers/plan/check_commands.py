"""What can be known of programs before their jobs wait in a queue: their flags, the collection, the first model.

    python -m drivers.plan.check_commands msmarco_data FLAGS... :: run_warmup FLAGS... :: run_ann_data_gen FLAGS...

For the scripts: the first mistake is one line, in the words of the program whose mistake it is. Of msmarco_data the
tokenizer is opened, which imports torch; no other command does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from data.mining.strategy import parse_strategy, resolve_strategy
from data.msmarco_data import PreprocessFlags
from data.sources.base import Source
from data.sources.qrels import query_name
from data.sources.registry import open_source
from data.tokens.tokenizer import load_tokenizer
from drivers.cli.evaluate import EvalFlags
from drivers.cli.generate import GenerateFlags
from drivers.cli.train import AnnFlags, WarmupFlags
from drivers.plan.inspect_inputs import config_of
from model.encoders.registry import encoder_type
from utils.errors import UserError, exit_code_of
from utils.exchange.atomic import read_json
from utils.exchange.evaluations import TRAIN
from utils.exchange.layout import COLLECTION_MANIFEST
from utils.exchange.model_files import LENGTHS, weight_files
from utils.flags import ProgramFlags, parse_flags
from utils.hub import hub_config, is_path, no_such_model
from utils.model_texts import lengths_for

SEPARATOR = "::"
PROGRAMS: dict[str, type[ProgramFlags]] = {
    "msmarco_data": PreprocessFlags,
    "run_warmup": WarmupFlags,
    "run_ann_data_gen": GenerateFlags,
    "run_ann": AnnFlags,
    "run_eval": EvalFlags,
}


def main() -> None:
    """Check command after command. SystemExit with the code of the first that would not start."""
    splits: set[str] = set()
    for program, *argv in commands_in(sys.argv[1:]):
        if code := exit_code_of(program, partial(check, program, argv, splits)):
            sys.exit(code)


def commands_in(words: Sequence[str]) -> Iterator[list[str]]:
    """The words between the separators."""
    rest = iter([*words, SEPARATOR])
    while command := list(iter(lambda: next(rest, SEPARATOR), SEPARATOR)):
        yield command


def check(program: str, argv: list[str], splits: set[str]) -> None:
    """UserError where the program would not start.

    Args:
        program: its name.
        argv: its flags.
        splits: of the collection that the programs before it make, to which this one's are added.
    """
    flags = parse_flags(PROGRAMS[program], program, argv)
    if isinstance(flags, PreprocessFlags):
        encoder_type(flags.model_type)
        splits |= set(splits_to_train_on(open_source(flags.source_request)))
        load_tokenizer(flags.tokenizer_name or flags.model_name_or_path)
        lengths_for(flags.model_name_or_path, flags.model_type, {name: getattr(flags, name) for name in LENGTHS})
    elif isinstance(flags, WarmupFlags | GenerateFlags | AnnFlags | EvalFlags):
        encoder_type(flags.model_type)
        check_dev_split(flags, splits or splits_preprocessed(Path(flags.data_dir)))
    if isinstance(flags, WarmupFlags) and flags.model_name_or_path:
        check_model(flags.model_name_or_path)
    if isinstance(flags, GenerateFlags):
        old = (flags.ann_measure_topk_mrr, flags.bottom_neg, flags.bottom_only)
        strategy, _ = resolve_strategy(flags.negative_strategy, *old)
        parse_strategy(strategy, flags.negative_sample, flags.topk_training, flags.min_rank)


def splits_to_train_on(source: Source) -> list[str]:
    """The splits of a raw collection. UserError where train or its qrels are not there."""
    train = source.split_files.get(TRAIN)
    if train is None or train.qrels is None:
        found = ", ".join(source.split_files) or "none"
        raise UserError(f"the collection has no judged split {TRAIN} (it has {found}): add its queries and qrels")
    return list(source.split_files)


def splits_preprocessed(data_dir: Path) -> set[str]:
    """Those that the manifest counts; none where nothing is known."""
    manifest = data_dir / COLLECTION_MANIFEST
    counts = read_json(manifest).get("counts", {}) if manifest.is_file() else {}
    return {name.removesuffix(query_name("")) for name in counts if name.endswith(query_name(""))}


def check_dev_split(flags: WarmupFlags | GenerateFlags | AnnFlags | EvalFlags, known: set[str]) -> None:
    """UserError where a split that is measured is none of the ``known`` ones, if any are."""
    asked: list[str] = []
    if isinstance(flags, EvalFlags):
        asked = flags.split or []
    elif isinstance(flags, WarmupFlags | GenerateFlags):
        asked = [flags.dev_split] if flags.dev_split else []
    for split in asked:
        if known and split not in known:
            raise UserError(f"there is no split {split}, expected one of {', '.join(sorted(known))} of the collection")


def check_model(name_or_path: str) -> None:
    """UserError where a directory lacks config or weights, or a hub name's config cannot be had."""
    directory = Path(name_or_path)
    if directory.is_dir():
        config_of(directory)
        weight_files(directory)
    elif is_path(name_or_path) or hub_config(name_or_path) is None:
        raise no_such_model(name_or_path)


if __name__ == "__main__":
    main()
