"""How long texts may be, where a program's flags do not say.

A checkpoint's config.json records the lengths that it was trained with, embeddings those that they were made with. A
length that is not given is taken from there; else the default of ANCE's flag holds. Where it is looked for are
``places``: directories, hub names and config files, that first whose lengths come before the others'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.tokens.collection import Preprocessed, read_manifest
from utils.distributed import collectives
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.layout import EMBEDDINGS_RECORD
from utils.exchange.model_files import CONFIG, LENGTHS
from utils.model_texts import length_or_default, recorded_lengths

TEXTS_OF = {"max_seq_length": "passages", "max_query_length": "queries"}


@dataclass(frozen=True)
class TextLengths:
    """In tokens, of a passage and of a query; and where they may be recorded, see `find_lengths`."""

    max_seq_length: int
    max_query_length: int
    places: tuple[str, ...] = ()

    @property
    def by_name(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in LENGTHS}


def find_lengths(
    given: Mapping[str, int | None], places: Sequence[str], data_dir: Path, is_dry_run: bool
) -> TextLengths:
    """As given, else as recorded and no longer than the preprocessed texts, else ANCE's default.

    Args:
        given: by name; None where it is to be found.
        places: where it may be recorded.
        data_dir: the preprocessed directory.
        is_dry_run: fetches nothing from the hub, and says itself what was cut, as a job's log does.

    Raises:
        UserError: where what is recorded is no length.
    """
    missing = [name for name in LENGTHS if given[name] is None]
    recorded = recorded_lengths(places, is_dry_run) if missing else {}
    held: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # which opening it tells
        held = read_manifest(data_dir)
    lengths = {name: length for name, length in given.items() if length is not None}
    for name in missing:
        length, path = length_or_default(name, recorded)
        if path is not None and length > held.get(name, length):
            length = held[name]
            if is_dry_run:
                shorter = f"{TEXTS_OF[name]} up to {length} tokens, as --data_dir was cut: {path} says more"
                sys.stderr.write(f"warning: lengths: {shorter}\n")
        lengths[name] = length
    return TextLengths(**lengths, places=tuple(places))


def lengths_of_process0(world: World, lengths: TextLengths) -> TextLengths:
    """On every process the lengths that process 0 found: a checkpoint may have appeared between two looks."""
    return dataclasses.replace(lengths, **collectives.broadcast_json(world, lengths.by_name))


def describe_lengths(lengths: TextLengths, collection: Preprocessed) -> str:
    """The line that says where the lengths come from, and what they are not the same as."""
    recorded, parts, is_cut = recorded_lengths(lengths.places, local_only=False), [], False
    for name, texts in TEXTS_OF.items():
        length, held = getattr(lengths, name), collection.manifest[name]
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


def check_made_with(lengths: TextLengths, directory: Path, record: Mapping[str, object]) -> None:
    """UserError where a flag asks for another length than the embeddings in ``directory`` were made with."""
    for name in LENGTHS:
        if record.get(name) not in (None, getattr(lengths, name)):
            raise UserError(
                f"--{name} is {getattr(lengths, name)}, the embeddings in {directory} were made with {record[name]}: "
                f"give that, or omit --{name}"
            )
