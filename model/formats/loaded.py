"""A model between two layouts: what is read of one, and written as another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.exchange.model_files import body_directory

HEAD = ("embeddingHead.weight", "embeddingHead.bias", "norm.weight", "norm.bias")
BODY = "roberta."
QUESTION, CONTEXT = "question_model.", "ctx_model."
POSITION_IDS = "embeddings.position_ids"  # a constant that transformers 3 to 4.30 stored
TABLES = (
    *(f"embeddings.{table}_embeddings.weight" for table in ("word", "position", "token_type")),
    *(f"embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")),
)
PARTS_OF_LAYER = (
    *(f"attention.self.{part}" for part in ("query", "key", "value")),
    *("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense"),
    *("output.dense", "output.LayerNorm"),
)
POOLER = ("pooler.dense.weight", "pooler.dense.bias")


@dataclass(frozen=True)
class LoadedModel:
    """A model by the names of this project's checkpoints.

    Args:
        model_type: a word of --model_type.
        config: of config.json: the body's, and what is recorded of texts.
        weights: float32, by name; ``rdot_nll``: `BODY` and `HEAD`; ``dpr``: `QUESTION` and `CONTEXT`.
        tokenizer: the directory that its files are in; None where there are none.
        source: what was read, for messages.
        lower_cases: the tokenizer has to lower-case, which its files do not say.
        record: of the run that trained it, as `model.formats.card.RECORDED` names it.
    """

    model_type: str
    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    tokenizer: Path | None
    source: str
    lower_cases: bool = False
    record: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadSettings:
    """What a layout may lack: a config (directory or file), a tokenizer's directory; empty where it does not."""

    config_name: str = ""
    tokenizer_name: str = ""

    def tokenizer_in(self, directory: Path) -> Path:
        """Of that which is given, else of the model's own directory: where its files are."""
        return body_directory(Path(self.tokenizer_name) if self.tokenizer_name else directory)


# UserError where what lies there is not of the layout.
Reader = Callable[[Sequence[Path], ReadSettings], LoadedModel]
# Into an empty directory, or to a file's path. UserError where the layout cannot say what the model is.
Writer = Callable[[LoadedModel, Path], None]


def body_names(layers: int) -> list[str]:
    """The names of BertModel's and RobertaModel's weights without the pooler."""
    of_layers = [f"encoder.layer.{layer}.{part}" for layer in range(layers) for part in PARTS_OF_LAYER]
    return [*TABLES, *(f"{part}.{kind}" for part in of_layers for kind in ("weight", "bias"))]


def layers_of(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many transformer layers there are below a prefix."""
    place = f"{prefix}encoder.layer."
    return len({name.removeprefix(place).partition(".")[0] for name in weights if name.startswith(place)})


def with_prefix(weights: Mapping[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    """Those whose name begins with ``old``, which ``new`` replaces."""
    return {new + name.removeprefix(old): tensor for name, tensor in weights.items() if name.startswith(old)}


def check_names(weights: Mapping[str, torch.Tensor], expected: Sequence[str], source: str, what: str) -> None:
    """Whether the weights are those of a layout.

    Args:
        weights: as read.
        expected: their names.
        source: the file, for the message.
        what: the layout's model, for the message.

    Raises:
        UserError: names the first that is missing, or that it does not know.
    """
    missing, unknown = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing:
        raise UserError(
            f"{source} has no {missing[0]} ({len(missing)} of {len(expected)} weights are missing), expected {what}; "
            "give the layout that it is of, or another copy"
        )
    if unknown:
        raise UserError(
            f"{source} has {unknown[0]} ({len(unknown)} weights are unknown), expected {what}; "
            "give the layout that it is of"
        )
