"""Writes a model in another layout: ANCE's, Pyserini's, DRhard's, DPR's, Hugging Face's, sentence-transformers', ours.

    python -m model.convert --from ance --to ours ANCE_CHECKPOINT OUT

OUT is written whole or not at all. `utils.declared.layouts` has the layouts, and what converts into what.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, ClassVar

from utils.declared.layouts import LAYOUTS, conversions, targets_of
from utils.declared.text_profiles import TEXT_PROFILES
from utils.errors import UserError, run_program
from utils.exchange.atomic import exists, publish_directory, publish_file
from utils.flag_values import Group, flag
from utils.flags import ProgramFlags, answer_dry_run, parse_flags
from utils.run_log import say

if TYPE_CHECKING:
    from model.formats.loaded import LoadedModel

MOST_DIRECTORIES_READ = 2


@dataclass(frozen=True, kw_only=True)
class ConvertFlags(ProgramFlags):
    """Write a model in another layout; adapters are merged into the weights."""

    GROUP: ClassVar[Group] = "model"
    POSITIONAL: ClassVar[str] = "paths"
    EXAMPLE: ClassVar[str] = "python -m model.convert --from ance --to ours Passage_ANCE_FirstP_Checkpoint ance"

    from_layout: str = flag(help=conversions, aliases=["--from"])
    to_layout: str = flag(help="how OUT is to lie there", aliases=["--to"])
    paths: list[str] = flag(help="IN (of hf-dpr one or two directories), and OUT, a new name", is_path=True)
    config_name: str = flag("", "directory or file of a config that IN lacks", is_path=True)
    tokenizer_name: str = flag("", "directory of a tokenizer that IN lacks", is_path=True)
    text_profile: str = flag("", "how the model's texts became tokens, where IN does not say", choices=TEXT_PROFILES)


def main() -> None:
    flags = parse_flags(ConvertFlags, "convert")
    *sources, target = map(Path, flags.paths)
    check_words(flags.from_layout, flags.to_layout)
    check_paths(flags.from_layout, sources, target)
    loaded = read_as(flags.from_layout, sources, flags.config_name, flags.tokenizer_name)
    loaded = with_profile(loaded, flags.text_profile)
    check_type(loaded, flags.from_layout, flags.to_layout)
    if answer_dry_run(flags, read_model_type=loaded.model_type):
        return
    write_as(flags.to_layout, loaded, target)
    say(f"wrote {target}: {loaded.model_type} in the layout {flags.to_layout}, from {loaded.source}")


def check_words(source: str, target: str) -> None:
    """UserError for a word that is no layout, and where no model of the one can be written as the other."""
    for name, word in (("from", source), ("to", target)):
        if word not in LAYOUTS:
            raise UserError(f"--{name} is {word!r}, expected one of {', '.join(LAYOUTS)}")
    possible = targets_of(source)
    if target not in possible:
        raise UserError(
            f"--to is {target}, --from {source} converts into {', '.join(possible)} alone; give one of them"
        )


def check_paths(word: str, sources: list[Path], target: Path) -> None:
    """UserError where there are too few or too many, IN is not there, or OUT is."""
    most = MOST_DIRECTORIES_READ if word == "hf-dpr" else 1
    if not 1 <= len(sources) <= most:
        raise UserError(f"{len(sources) + 1} paths are given, expected IN{' [IN]' if most > 1 else ''} OUT")
    for source in sources:
        if not (source.is_file() if LAYOUTS[word].is_file else source.is_dir()):
            kind = "file" if LAYOUTS[word].is_file else "directory"
            raise UserError(f"{source} is no {kind}, expected a model in the layout {word} there; give another IN")
    if exists(target):
        raise UserError(f"{target} exists already, expected a new name; choose another OUT")


def read_as(word: str, sources: list[Path], config_name: str, tokenizer_name: str) -> LoadedModel:
    """The model that lies there.

    Args:
        word: of its layout.
        sources: its directories, or its file.
        config_name, tokenizer_name: of what it lacks, or empty.

    Raises:
        UserError: it is not of that layout, or damaged.
    """
    from model.formats.loaded import Reader, ReadSettings

    read: Reader = resolve_name(LAYOUTS[word].reader)
    loaded = read(sources, ReadSettings(config_name, tokenizer_name))
    return replace(loaded, record={**loaded.record, "model_type": loaded.model_type, "read_as": word})


def with_profile(loaded: LoadedModel, profile: str) -> LoadedModel:
    """The same with a text profile that nothing records; UserError where another is recorded."""
    found = loaded.config.get("text_profile")
    if not profile or found == profile:
        return loaded
    if found is not None:
        raise UserError(f"--text_profile is {profile}, {loaded.source} says {found}; omit it")
    return replace(loaded, config={**loaded.config, "text_profile": profile})


def check_type(loaded: LoadedModel, source: str, target: str) -> None:
    """UserError where the model that was read is none that ``target`` can hold."""
    possible = [word for word in targets_of(source) if loaded.model_type in LAYOUTS[word].writes]
    if target not in possible:
        raise UserError(
            f"{loaded.source} is of the model type {loaded.model_type}, which the layout {target} cannot hold; "
            f"--to can be {', '.join(possible)}"
        )


def write_as(word: str, loaded: LoadedModel, target: Path) -> None:
    """Publish the model in a layout. UserError where the layout cannot say what the model is."""
    from model.formats.loaded import Writer

    write: Writer = resolve_name(LAYOUTS[word].writer)
    if LAYOUTS[word].is_file:
        publish_file(target, partial(write, loaded))
    else:
        publish_directory(target, partial(write, loaded))


if __name__ == "__main__":
    run_program("convert", main)
