"""What an encoder owes: a batch of texts in, one or several rows of numbers out for each.

An encoder is a subclass of `Encoder` (`ConfigEncoder` is the short way) with a ``spec`` and a ``forward``, and a word
in `model.encoders.registry`. What only some can do, `PacksTexts` and those below it, is asked for where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import nn

from model.encoders.spec import EncoderSpec, Side, read_config_file, settings_directory
from model.token_batch import TokenBatch
from utils.errors import UserError, one_line
from utils.exchange.model_files import CONFIG, SAFETENSORS, AdapterBase
from utils.hub import model_directory
from utils.json_text import json_text


@dataclass(frozen=True)
class Embeddings:
    """The rows of B texts: [B, D], or [B, R, D] with mask_BR, True for rows that are there, as is each text's first."""

    rows: torch.Tensor
    mask_BR: torch.Tensor | None = None

    def filled(self) -> torch.Tensor:
        """The rows, of which those that are not there repeat the text's first: a maximum over rows stays as it is."""
        return self.rows if self.mask_BR is None else self.rows.where(self.mask_BR[..., None], self.rows[:, :1])

    def marked(self) -> torch.Tensor:
        """float32: the rows, of which those that are not there are NaN; one that is there has infinity in its place."""
        rows = self.rows.float()
        if self.mask_BR is None:
            return rows
        return rows.where(~rows.isnan(), torch.inf).where(self.mask_BR[..., None], torch.nan)


class Encoder(nn.Module):
    """Both sides behind one object: whether queries and passages share their weights is its own affair."""

    spec: EncoderSpec
    adapter_base: AdapterBase | None = None  # where it has LoRA's adapters (`model.encoders.lora`)
    cpu_batch_tokens = 2048  # in batches of more it encodes no faster on a CPU

    @property
    def padding_costs(self) -> bool:
        """Whether it pads texts to a batch's longest, and computes that: a GPU, too, then trains on less at once."""
        return False

    def encode(self, tokens: TokenBatch, side: Side) -> Embeddings:
        """The rows of the texts, in the batch's order and on its device. ValueError for several rows without a mask.

        Queries have one row each, [B, D]; so have passages where ``spec.rows_per_passage`` is 1, else [B, R, D] with a
        mask: a passage's score is that of its best row. The spec's similarity of two rows is the score itself: a scale
        is folded into them.
        """
        made = self(tokens, side)
        if isinstance(made, tuple):
            return Embeddings(*made)
        if made.ndim != 2:
            raise ValueError(f"{type(self).__name__} gives {made.ndim} dimensions without a mask, expected [B, D]")
        return Embeddings(made)

    def forward(self, tokens: TokenBatch, side: Side) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The rows, or rows_BRD and mask_BR: what an encoder computes, and torch.compile compiles."""
        raise NotImplementedError

    def config_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        raise NotImplementedError

    def record(self, values: dict[str, Any]) -> None:
        """Have config.json hold these, too."""
        raise NotImplementedError

    def save_pretrained(self, directory: Path) -> None:
        """Write config.json and the weights."""
        raise NotImplementedError

    def save_config(self, directory: Path) -> None:
        """Write all of it but the weights."""
        (directory / CONFIG).write_text(json_text(self.config_dict(), indent=2, sort_keys=True) + "\n")

    @property
    def adapted(self) -> nn.Module:
        """What of it LoRA's adapters stand in: peft's files name them from there."""
        return self

    @classmethod
    def complete_config(cls, config: dict[str, Any], directory: Path) -> dict[str, Any]:
        """With what other files of its directory say of the encoder. UserError where they are damaged."""
        return config

    @classmethod
    def spec_of(cls, config: dict[str, Any]) -> EncoderSpec:
        """What a config says of an encoder that is not made yet. UserError where it is damaged."""
        raise NotImplementedError

    @classmethod
    def new(cls, config: dict[str, Any]) -> Encoder:
        """Random weights, drawn from torch's global seed."""
        raise NotImplementedError

    @classmethod
    def config_to_load(cls, name_or_path: str, config_name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """The config that `load` makes an encoder of; no weights are read.

        Args, and what it raises: those of `load`.
        """
        directory = model_directory(name_or_path)
        config, _ = read_config_file(directory, config_name)
        return {**cls.complete_config(config, settings_directory(directory, config_name)), **changes}

    @classmethod
    def load(cls, name_or_path: str, config_name: str, new_head: bool, changes: dict[str, Any]) -> Encoder:
        """Weights and config of a directory, or of a hub's name where the type has such.

        Args: those of `model.encoders.registry.load_encoder`.

        Raises:
            UserError: files are missing or damaged, or without the head where none may be new.
        """
        raise NotImplementedError


class ConfigEncoder(Encoder):
    """An encoder that is made of a dictionary, and saved as that and a safetensors file."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config

    def config_dict(self) -> dict[str, Any]:
        return self.config

    def record(self, values: dict[str, Any]) -> None:
        self.config.update(values)

    def save_pretrained(self, directory: Path) -> None:
        from safetensors.torch import save_file

        self.save_config(directory)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, str(directory / SAFETENSORS), metadata={"format": "pt"})

    @classmethod
    def new(cls, config: dict[str, Any]) -> Self:
        return cls(config)

    @classmethod
    def load(cls, name_or_path: str, config_name: str, new_head: bool, changes: dict[str, Any]) -> Self:
        """A config.json and a safetensors file.

        Args: those of `model.encoders.registry.load_encoder`.

        Raises:
            UserError: the weights are missing, damaged or of another shape.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        config = {**read_config_file(name_or_path, config_name)[0], **changes}
        path = Path(name_or_path) / SAFETENSORS
        if not path.is_file():
            raise UserError(f"{path} is missing, expected the encoder's weights; train with run_warmup first")
        try:
            encoder = cls(config)
            weights = load_file(str(path))
            missing = sorted(set(encoder.state_dict()) - set(weights))
            if missing:
                raise UserError(f"{path} has no {missing[0]}: a checkpoint without its head; train with run_warmup")
            encoder.load_state_dict(weights)
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise UserError(f"{path} does not hold this encoder's weights: {one_line(error)[:300]}") from None
        return encoder


# What an encoder may be able to do


@runtime_checkable
class PacksTexts(Protocol):
    """It can omit padding (`model.kernels.packed_attention`) where ``can_pack``; ``padding_costs``: it pads now."""

    @property
    def can_pack(self) -> bool: ...

    def pack_texts(self, packed: bool, attention: str = "") -> None: ...


@runtime_checkable
class PrepacksWeights(Protocol):
    """For encoding alone, on the device where it is, it can keep weights as a CPU's products read them."""

    def prepack_weights(self) -> None: ...


@runtime_checkable
class CastsWeights(Protocol):
    """For encoding alone it can keep its matrices in the type that autocast would cast them to for each batch."""

    def cast_linear_weights(self, dtype: torch.dtype) -> None: ...


@runtime_checkable
class HasTowers(Protocol):
    """Queries and passages may have weights of their own, of which one side's can stay as they are."""

    def freeze(self, side: Side) -> None: ...


@runtime_checkable
class CheckpointsGradients(Protocol):
    """It can make its layers' activations a second time for the gradient, in place of keeping them."""

    def enable_gradient_checkpointing(self) -> None: ...
