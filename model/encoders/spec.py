"""What is known of an encoder before it is made, and reading it from a config; without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.declared.model_types import POOLINGS
from utils.errors import UserError
from utils.exchange.model_files import CONFIG, body_directory

Side = Literal["query", "passage"]
DOT = "dot"  # the inner product, which the indices search by
OTHER_LAYERS = "head"


@dataclass(frozen=True)
class EncoderSpec:
    """What everyone but the encoder itself may know of it.

    Args:
        embedding_dim: numbers in a row.
        vocab_size: token ids are below it; None where the config leaves it to the tokenizer, before there is a model.
        pad_id: what padding is made of; None where nothing is ever padded.
        max_query_length, max_passage_length: the most tokens of a text; None where there is no limit.
        rows_per_passage: the most rows that a passage has; a query has one.
        similarity: how a query's row and a passage's are compared; `DOT` is all that training and search know.
        layer_groups: how parameters group into layers, for LAMB and for gradient norms: a regular expression and the
            name of its group (which may refer to the expression's groups); the first that is found in a parameter's
            name holds.
        is_normalized: whether a row has length 1, so that a score is at most 1.
    """

    embedding_dim: int
    vocab_size: int | None
    pad_id: int | None = None
    max_query_length: int | None = None
    max_passage_length: int | None = None
    rows_per_passage: int = 1
    similarity: str = DOT
    layer_groups: tuple[tuple[str, str], ...] = ((r"embeddings\.", "embeddings"),)
    is_normalized: bool = False

    def layer_of(self, parameter: str) -> str:
        """The group of a parameter, by its name; of those that no expression finds, `OTHER_LAYERS`."""
        found = ((re.search(pattern, parameter), name) for pattern, name in self.layer_groups)
        return next((match.expand(name) for match, name in found if match), OTHER_LAYERS)

    def text_shape(self, side: Side) -> tuple[int, ...]:
        """Of a text's rows: [D], or [R, D] of a passage that may have several."""
        has_one = side == "query" or self.rows_per_passage == 1
        return (self.embedding_dim,) if has_one else (self.rows_per_passage, self.embedding_dim)

    def max_length(self, side: Side) -> int | None:
        return self.max_query_length if side == "query" else self.max_passage_length


def pooling_of(word: object) -> str:
    """A config's word of `POOLINGS`, without the synonym: first, mean or last. UserError for another."""
    if word not in POOLINGS:
        raise UserError(f"the model's config says pooling {word!r}, expected one of {', '.join(POOLINGS)}")
    return "first" if word == "cls" else str(word)


def settings_directory(directory: str | Path, config_name: str = "") -> Path:
    """Where sentence-transformers' files of that model would be: next to its config, or above its folder."""
    place = Path(config_name or directory)
    return place if place.is_dir() else place.parent


def read_config_file(directory: str | Path, config_name: str = "") -> tuple[dict[str, Any], Path]:
    """The config.json that a model in ``directory`` will use, and its path; UserError where it cannot be read."""
    place = Path(config_name or directory)
    path = body_directory(place) / CONFIG if place.is_dir() else place
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing, expected a model's config.json; give a checkpoint directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); the checkpoint is damaged") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object, expected a model's config; the checkpoint is damaged")
    return config, path


def positive_number(config: dict[str, Any], names: Sequence[str], default: int | None = None) -> int:
    """The first of the config's ``names`` that it has, else ``default``. UserError where that is no number above 0."""
    value = next((config[name] for name in names if name in config), default)
    try:
        number = int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = 0
    if number <= 0:
        raise UserError(f"the model's config.json has no usable {' or '.join(names)}; the checkpoint is damaged")
    return number
