"""What a model says of the texts that it was trained with: its config.json, else sentence-transformers' files.

Nothing is read out of its tensors: the published warmup of ANCE and its FirstP have the same, and saw other texts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.declared.model_types import MODEL_TYPES, PASSAGE_TOWER, QUERY_TOWER
from utils.declared.text_profiles import EARLIER
from utils.declared.text_settings import read_text_record
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.layout import EMBEDDINGS_RECORD, MANIFEST
from utils.exchange.model_files import CONFIG, LENGTHS, WEIGHTS, body_directory, has_own_head, holds_tensor
from utils.exchange.sentence_files import SentenceFiles, positions_of, read_sentence_files
from utils.flag_groups.texts import DEFAULT_LENGTHS
from utils.hub import hub_config, hub_settings, is_path, known_to_lack, model_directory

LOWER_CASED = "ance"  # what a RoBERTa of sentence-transformers is that lower-cases: their copy of ANCE's FirstP


@dataclass(frozen=True)
class ModelTexts:
    """What is known of a model's texts, None where nobody says; and who says the profile, for a message."""

    text_profile: str | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    profile_source: str = ""


def read_model_texts(name_or_path: str, config_name: str = "") -> ModelTexts:
    """What a model's files say of its texts: a directory's, or a hub name's; of random weights ("") nothing.

    A checkpoint of this project without a record is of a version before profiles: it has the profile of these.
    UserError where a record is damaged, or of a newer version.
    """
    if not name_or_path:
        return ModelTexts()
    config: dict[str, Any] = {}
    for path in filter(None, (config_path(place) for place in (config_name, name_or_path))):
        with contextlib.suppress(UserError, OSError):  # which opening it tells
            config = read_json(path)
        record = read_text_record(config, path)
        if "text_profile" in record:
            prefixes = {name: record.get(name, "") for name in ("query_prefix", "passage_prefix")}
            return ModelTexts(record["text_profile"], **prefixes, profile_source=str(path))
    if (Path(name_or_path) / MANIFEST).is_file():
        return ModelTexts(EARLIER, "", "", f"a {MANIFEST} of a version before text profiles")
    files = sentence_files(name_or_path)
    return ModelTexts() if files is None else from_sentence_files(files, config)


def with_default(texts: ModelTexts, model_type: str) -> ModelTexts:
    """The same with the profile of the kind, where it has one and no file says any."""
    kind = MODEL_TYPES.get(model_type)
    if texts.text_profile is not None or kind is None or not kind.text_profile:
        return texts
    return replace(texts, text_profile=kind.text_profile, profile_source=f"--model_type {model_type}")


def config_path(place: str) -> Path | None:
    """Where the config.json of a directory or hub name is, or the config file itself; None where there is none."""
    if not place:
        return None
    path = body_directory(Path(place)) / CONFIG if Path(place).is_dir() else Path(place)
    if path.is_file():
        return path
    return None if is_path(place) else hub_config(place)


def sentence_files(name_or_path: str) -> SentenceFiles | None:
    """sentence-transformers' files of a directory or hub name; None where there are none, or they cannot be used."""
    directory = Path(name_or_path)
    if not is_path(name_or_path):
        directory = hub_settings(name_or_path) or directory
    with contextlib.suppress(UserError):  # which opening it tells
        return read_sentence_files(directory)
    return None


def from_sentence_files(files: SentenceFiles, config: dict[str, Any]) -> ModelTexts:
    """Prompts that say something, and lower-casing where the tokenizer of the body does not do it itself.

    That they do not lower-case says nothing: they stand next to weights of which nobody knows it, too.
    """
    lowers = files.do_lower_case and config.get("model_type") == "roberta"
    return ModelTexts(
        text_profile=LOWER_CASED if lowers else None,
        query_prefix=files.query_prefix or None,
        passage_prefix=files.passage_prefix or None,
        profile_source="sentence-transformers' files, which lower-case" if lowers else "",
    )


def is_trained(name_or_path: str, model_type: str) -> bool:
    """Whether a model is one that has been trained to retrieve, and not a body to start from.

    Of kinds that do not know their profile the names of the tensors tell (`ModelType.own_tensor`): a hub name's weights
    are fetched, for what the cache happens to hold must not decide. Of ``hf`` sentence-transformers' files tell.
    UserError where a hub name's weights cannot be had.
    """
    kind = MODEL_TYPES.get(model_type)
    if kind is None or not name_or_path:
        return False
    if kind.has_modules:
        return sentence_files(name_or_path) is not None
    if not kind.own_tensor:
        return False
    directory = model_directory(name_or_path)
    if not (is_path(name_or_path) or directory.is_dir()):
        if known_to_lack(name_or_path, WEIGHTS):
            return False
        raise UserError(
            f"{name_or_path} is no directory, and its weights are neither in the hub's cache nor can they be fetched: "
            "whether they are trained cannot be seen; fetch them where there is a network, or give --text_profile"
        )
    with contextlib.suppress(UserError):
        return holds_tensor(directory, kind.own_tensor)
    return False


# Lengths


def records_of(places: Sequence[str], local_only: bool) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The config of each model, or the record of embeddings. What cannot be read is passed over: opening tells why."""
    for place in filter(None, places):
        path = directory = Path(place)
        if not is_path(place) and not path.is_file():
            path = directory = hub_settings(place, local_only) or path
        with contextlib.suppress(UserError, OSError):
            if (path / EMBEDDINGS_RECORD).is_file():
                path /= EMBEDDINGS_RECORD
            elif path.is_dir():
                path = body_directory(path) / CONFIG
            else:
                directory = path.parent
            yield path, (record := read_json(path))
            if path.name != CONFIG or has_own_head(record):
                continue
            if (files := read_sentence_files(directory)) is not None:
                for name, file in zip(LENGTHS, files.length_files, strict=True):
                    if file:
                        yield path.parent / file, {name: getattr(files, name)}


def recorded_lengths(places: Sequence[str], local_only: bool) -> dict[str, tuple[object, Path]]:
    """Each length that is recorded, and the file that says it. ``local_only`` fetches nothing from the hub."""
    found: dict[str, tuple[object, Path]] = {}
    for path, record in records_of(places, local_only):
        for name in LENGTHS:
            if name in record:
                found.setdefault(name, (record[name], path))
    return found


def length_or_default(name: str, recorded: Mapping[str, tuple[object, Path]]) -> tuple[int, Path | None]:
    """In tokens, and the file that says so; None for ANCE's default.

    Args:
        name: of `LENGTHS`.
        recorded: as `recorded_lengths` has it.

    Raises:
        UserError: what is recorded is no length.
    """
    if name not in recorded:
        return DEFAULT_LENGTHS[name], None
    length, path = recorded[name]
    if type(length) is not int or length <= 0:
        raise UserError(f"{path} says {name} {length!r}, expected a number of tokens; give --{name}")
    return length, path


def positions_for(model: str, model_type: str) -> tuple[dict[str, int], Path | None]:
    """The most tokens that a model has positions for, by `LENGTHS`, and the config.json that says so.

    Nothing of one that does not say it, and of one of another kind: a tokenizer alone is taken from there.

    Args:
        model: a directory or hub name, "" for none.
        model_type: a word of --model_type.
    """
    path, kind, config = config_path(model), MODEL_TYPES.get(model_type), dict[str, Any]()
    if path is None or kind is None:
        return {}, None
    with contextlib.suppress(UserError, OSError):  # which opening it tells
        config = read_json(path)
    if kind.is_older_than_types:
        config = {"model_type": kind.config_type, **config}
    if kind.config_type not in ("", config.get("model_type")):
        return {}, None
    found: dict[str, int] = {}
    for name, tower in zip(LENGTHS, (PASSAGE_TOWER, QUERY_TOWER), strict=True):
        body = config.get(tower)
        if (positions := positions_of(body if isinstance(body, dict) else config)) is not None:
            found[name] = positions
    return found, path


def lengths_for(model: str, model_type: str, given: Mapping[str, int | None]) -> tuple[dict[str, int], str]:
    """How many tokens a collection's texts may have: as given, else as the model has it, else ANCE's; and who says so.

    No more than the model has positions for.

    Args:
        model: a directory or hub name, "" for none.
        model_type: a word of --model_type.
        given: by `LENGTHS`; None for one that is not given.

    Raises:
        UserError: what the model records is no length, or one that is given is beyond its positions.
    """
    positions, config = positions_for(model, model_type)
    for name, most in positions.items():
        if (asked := given[name]) is not None and asked > most:
            raise UserError(f"--{name} is {asked}, the model has {most} positions ({config}); give no more than that")
    missing = [name for name in LENGTHS if given[name] is None]
    recorded = recorded_lengths([model], local_only=False) if missing else {}
    lengths = {name: length for name, length in given.items() if length is not None}
    sources = ["as given"] if lengths else []
    for name in missing:
        lengths[name], path = length_or_default(name, recorded)
        if lengths[name] > positions.get(name, lengths[name]):
            lengths[name], path = positions[name], config
        sources.append("the default" if path is None else f"as {path} has it")
    return lengths, ", ".join(dict.fromkeys(sources))
