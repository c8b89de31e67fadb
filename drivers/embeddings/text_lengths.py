"""Which models a program opens, and how long the texts may be where its flags do not say.

A checkpoint's config.json records the lengths that it was trained with, embeddings those that they were made with. A
length that is not given is taken from there; else the default of ANCE's flag holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from data.tokens.collection import Preprocessed, read_manifest
from drivers.cli import AnnFlags, EvalFlags, GenerateFlags, NeighbourhoodFlags, WarmupFlags
from drivers.embeddings.store import newest_embeddings
from model.hub import hub_file, is_path
from utils.distributed import collectives
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.layout import CHECKPOINT_PATTERN, EMBEDDINGS_RECORD, JobLayout, numbered
from utils.exchange.model_files import CONFIG, LENGTHS
from utils.flag_groups import TextFlags

TEXTS_OF = {"max_seq_length": "passages", "max_query_length": "queries"}
DEFAULT_OF = {field.name: field.default for field in dataclasses.fields(TextFlags) if field.name in LENGTHS}
Opening = AnnFlags | EvalFlags | GenerateFlags | NeighbourhoodFlags | WarmupFlags
Flags = TypeVar("Flags", bound=Opening)


# Which models


def to_evaluate(flags: WarmupFlags) -> list[Path]:
    """Of run_warmup --do_eval: the last checkpoint trained, all of them, or the model given; none at all."""
    directory = Path(flags.output_dir)
    if not flags.do_train and not flags.eval_all_checkpoints and flags.model_name_or_path:
        return [Path(flags.model_name_or_path)]
    steps = numbered(directory, CHECKPOINT_PATTERN)
    return [JobLayout(directory).checkpoint(step) for step in (steps if flags.eval_all_checkpoints else steps[-1:])]


def opened_by(flags: Opening) -> list[str]:
    """Directories, hub names and config files, that first whose lengths come before the others'."""
    if isinstance(flags, EvalFlags) and flags.embedding_dir:
        return [flags.embedding_dir]
    if not isinstance(flags, GenerateFlags):
        models = to_evaluate(flags)[-1:] if isinstance(flags, WarmupFlags) and not flags.do_train else []
        return [*map(str, models), flags.model_name_or_path, flags.config_name]
    if flags.load_gen:
        with contextlib.suppress(UserError):  # which the preflight tells
            return [str(newest_embeddings(JobLayout(Path(flags.output_dir)).embeddings))]
    training_dir = Path(flags.training_dir)
    newest = numbered(training_dir, CHECKPOINT_PATTERN)[-1:]
    models = [JobLayout(training_dir).checkpoint(step) for step in newest]
    return [*map(str, models), flags.init_model_dir, flags.config_name]


# Their lengths


def records_of(places: list[str], local_only: bool) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The config of each model, or the record of embeddings. What cannot be read is passed over: opening tells why."""
    for place in filter(None, places):
        path = Path(place)
        if path.is_dir():
            path = path / EMBEDDINGS_RECORD if (path / EMBEDDINGS_RECORD).is_file() else path / CONFIG
        elif not path.is_file():
            path = (None if is_path(place) else hub_file(place, CONFIG, local_only)) or path
        with contextlib.suppress(UserError, OSError):
            yield path, read_json(path)


def recorded_lengths(flags: Opening) -> dict[str, tuple[Any, Path]]:
    """Each length that is recorded, and the file that says it. --dry_run fetches nothing from the hub."""
    found: dict[str, tuple[Any, Path]] = {}
    for path, record in records_of(opened_by(flags), flags.dry_run):
        for name in LENGTHS:
            if name in record:
                found.setdefault(name, (record[name], path))
    return found


def with_lengths(flags: Flags) -> Flags:
    """``flags`` with both lengths: as given, else as recorded and no longer than --data_dir holds, else ANCE's default.

    UserError where what is recorded is no length.
    """
    missing = [name for name in LENGTHS if getattr(flags, name) is None]
    recorded = recorded_lengths(flags) if missing else {}
    held: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # which opening it tells
        held = read_manifest(Path(flags.data_dir))
    lengths = {}
    for name in missing:
        length, path = recorded.get(name, (DEFAULT_OF[name], Path()))
        if type(length) is not int or length <= 0:
            raise UserError(f"{path} says {name} {length!r}, expected a number of tokens; give --{name}")
        if name in recorded and length > held.get(name, length):
            length = held[name]
            if flags.dry_run:  # else the log says it
                told = f"{TEXTS_OF[name]} up to {length} tokens, as --data_dir was cut: {path} says more"
                sys.stderr.write(f"warning: lengths: {told}\n")
        lengths[name] = length
    return dataclasses.replace(flags, **lengths)


def lengths_of_process0(world: World, flags: Flags) -> Flags:
    """On every process the lengths that process 0 found: a checkpoint may have appeared between two looks."""
    ours = {name: getattr(flags, name) for name in LENGTHS}
    return dataclasses.replace(flags, **collectives.broadcast_json(world, ours))


def describe_lengths(flags: Opening, collection: Preprocessed) -> str:
    """The line that says where the lengths come from, and what they are not the same as."""
    recorded, parts, is_cut = recorded_lengths(flags), [], False
    for name, texts in TEXTS_OF.items():
        length, held = getattr(flags, name), collection.manifest[name]
        known, path = recorded.get(name, (None, Path()))
        what = "the embeddings were made" if path.name == EMBEDDINGS_RECORD else "the model was trained"
        if known is None:
            origin = f"--{name} or its default: the model's {CONFIG} records none"
        elif known == length:
            origin = f"as {what}"
        else:
            cut_here = isinstance(known, int) and length == held < known
            is_cut |= cut_here
            origin = f"{what} with {known}" + (f", {collection.directory} was cut at {held}" if cut_here else "")
        parts.append(f"{texts} up to {length} tokens ({origin})")
    return f"{'warning: ' if is_cut else ''}lengths: {', '.join(parts)}"


def check_made_with(flags: Opening, directory: Path, record: dict[str, Any]) -> None:
    """UserError where a flag asks for another length than the embeddings in ``directory`` were made with."""
    for name in LENGTHS:
        if record.get(name) not in (None, getattr(flags, name)):
            raise UserError(
                f"--{name} is {getattr(flags, name)}, the embeddings in {directory} were made with {record[name]}: "
                f"give that, or leave --{name} out"
            )
