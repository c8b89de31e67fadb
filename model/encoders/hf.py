"""Any encoder that transformers' AutoModel opens, pooled, with a head of sentence-transformers' modules or none.

A checkpoint is a directory of sentence-transformers: the body's config.json and weights as AutoModel has them, and the
files of `utils.exchange.sentence_files`, which are read where a directory has them. Embeddings are those of that
library; a temperature is the objective's affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from model.encoders.body import Body, BodyEncoder, class_of, config_of, load_model, new_model, spec_of_body
from model.encoders.spec import EncoderSpec, Side, pooling_of, settings_directory
from model.formats.sentence import SentenceModule, pooling_module, write_sentence_files
from model.formats.weights import read_weights_file
from model.token_batch import TokenBatch
from utils.errors import UserError, one_line
from utils.exchange.model_files import HEAD_WEIGHTS, LENGTHS, POOLED_FROM, SAFETENSORS
from utils.exchange.sentence_files import HeadModule, read_sentence_files
from utils.hub import model_directory

DEFAULT_POOLING = "mean"  # sentence-transformers' own, of a directory without its files
ACTIVATION = {"identity": nn.Identity, "tanh": nn.Tanh}
CLASSES = {"dense": "Dense", "layer_norm": "LayerNorm", "normalize": "Normalize"}
OWN = ("pooling", POOLED_FROM, "head", "normalize", "head_dim")  # keys of a config that are not the body's


class Dense(nn.Module):
    """sentence-transformers' names of parameters, as those of the next."""

    def __init__(self, declared: HeadModule) -> None:
        super().__init__()
        self.linear = nn.Linear(declared.in_features, declared.out_features, bias=declared.has_bias)
        self.activation = ACTIVATION[declared.activation]()

    def forward(self, rows_BD: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.activation(self.linear(rows_BD))
        return made


class LayerNorm(nn.Module):
    def __init__(self, declared: HeadModule) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(declared.out_features)

    def forward(self, rows_BD: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.norm(rows_BD)
        return made


class Normalize(nn.Module):
    def forward(self, rows_BD: torch.Tensor) -> torch.Tensor:
        return F.normalize(rows_BD, dim=-1)


def head_module(declared: HeadModule) -> nn.Module:
    if declared.kind == "normalize":
        return Normalize()
    return Dense(declared) if declared.kind == "dense" else LayerNorm(declared)


class HfEncoder(BodyEncoder):
    """A body and its head.

    Args:
        model: the body.
        pooling: first, mean or last.
        head: what follows the pooling.
        pooled_from: the first position that a mean is of.
    """

    def __init__(
        self, model: PreTrainedModel, pooling: str, head: tuple[HeadModule, ...] = (), pooled_from: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.body, self.declared_head = Body(model, pooling, pooled_from), head
        self.head = nn.ModuleList(head_module(declared) for declared in head)
        self.spec = with_head(spec_of_body(model.config), head)

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)

    @property
    def adapted(self) -> nn.Module:
        return self.model

    @classmethod
    def spec_of(cls, config: dict[str, Any]) -> EncoderSpec:
        return with_head(spec_of_body(body_config(config)), head_of(config))

    def forward(self, tokens: TokenBatch, side: Side) -> torch.Tensor:
        """[B, D]; both sides share the weights."""
        pooled_BH = self.body.pooled(tokens)
        # The head is more exact than the rest: a rounded embedding would move its passage in the lists.
        with torch.autocast(pooled_BH.device.type, enabled=False):
            rows_BD = pooled_BH.float()
            for module in self.head:
                rows_BD = module(rows_BD)
        return rows_BD

    def config_dict(self) -> dict[str, Any]:
        head = [asdict(declared) for declared in self.declared_head]
        own_class = class_of(self.model.config)[0].__name__
        values = {key: value for key, value in self.model.config.to_dict().items() if key != "_name_or_path"}
        pooled_from = {POOLED_FROM: self.body.pooled_from} if self.body.pooled_from else {}
        return {**values, "architectures": [own_class], "pooling": self.body.pooling, **pooled_from, "head": head}

    def record(self, values: dict[str, Any]) -> None:
        self.model.config.update(values)

    def save_pretrained(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        self.save_config(directory)

    def save_config(self, directory: Path) -> None:
        """config.json, and sentence-transformers' files: the head's weights, too, are among them.

        There are none where a mean does not begin at the first token: that library would pool all tokens.
        """
        super().save_config(directory)
        if self.body.pooled_from:
            return
        modules = [pooling_module(self.model.config.hidden_size, self.body.pooling)]
        modules += [saved_module(*pair) for pair in zip(self.declared_head, self.head, strict=True)]
        _, options = class_of(self.model.config)
        write_sentence_files(directory, modules, self.config_dict(), {"model_args": options} if options else {})

    @classmethod
    def complete_config(cls, config: dict[str, Any], directory: Path) -> dict[str, Any]:
        """With what sentence-transformers' files in the directory say. UserError where they or the body are unknown."""
        files = read_sentence_files(directory)
        found = {**config, "pooling": pooling_of(config.get("pooling", DEFAULT_POOLING))}
        if files is not None:
            if files.body != "Transformer":
                raise UserError(f"{directory} begins with the module {files.body}, expected Transformer")
            found |= {"pooling": files.pooling, "head": [asdict(module) for module in files.head]}
            found |= {name: found.get(name, getattr(files, name)) for name in LENGTHS}
        body_config(found, str(directory))
        return found

    @classmethod
    def new(cls, config: dict[str, Any]) -> HfEncoder:
        pooling = pooling_of(config.get("pooling", DEFAULT_POOLING))
        return cls(new_model(body_config(config)), pooling, head_of(config), pooled_from(config, pooling))

    @classmethod
    def load(cls, name_or_path: str, config_name: str, new_head: bool, changes: dict[str, Any]) -> HfEncoder:
        """By transformers' loader, in float32; the head from its folders, where ``head_dim`` of the changes adds none.

        Args: those of `model.encoders.registry.load_encoder`.

        Raises:
            UserError: files are missing, damaged, or of what is no encoder of texts.
        """
        directory = model_directory(name_or_path)
        settings = settings_directory(directory, config_name)
        config = cls.config_to_load(name_or_path, config_name, changes)
        stored, head = head_of({"head": config.get("head", [])}), head_of(config)
        model = load_model(directory, body_config(config))
        pooling = pooling_of(config["pooling"])
        encoder = cls(model, pooling, head, pooled_from(config, pooling))
        for declared, module in zip(head, encoder.head, strict=True):
            if declared in stored and declared.kind != "normalize":
                load_head([settings / declared.folder, directory / declared.folder], module)
            elif declared.kind != "normalize" and not new_head:
                raise UserError(f"{name_or_path} has no head to {declared.out_features} dimensions; train one first")
        return encoder


def pooled_from(config: Mapping[str, Any], pooling: str) -> int:
    """The first position that a config's mean is of.

    UserError where that is none, ``pooling`` is no mean, or a head with weights follows, which only the files of
    sentence-transformers would hold.
    """
    value = config.get(POOLED_FROM, 0)
    if type(value) is not int or value < 0:
        raise UserError(f"the model's config says {POOLED_FROM} {value!r}, expected a position; it is damaged")
    if value and pooling != "mean":
        raise UserError(f"the model pools the mean from position {value} on, --pooling is {pooling}: omit it")
    if value and any(module.kind != "normalize" for module in head_of(config)):
        raise UserError(f"the model pools the mean from position {value} on, where no head can follow: omit --head_dim")
    return value


# The head


def head_of(config: Mapping[str, Any]) -> tuple[HeadModule, ...]:
    """The modules behind the pooling: a config's ``head``, to which ``head_dim`` and ``normalize`` add or take away.

    UserError where they do not fit each other.
    """
    try:
        head = tuple(HeadModule(**declared) for declared in config.get("head") or [])
    except TypeError:
        raise UserError("the model's config.json has a head that is no list of modules: it is damaged") from None
    normalizes = config.get("normalize")
    if normalizes is None:
        normalizes = bool(head) and head[-1].kind == "normalize"
    if head and head[-1].kind == "normalize":
        head = head[:-1]
    if dim := config.get("head_dim"):
        width = head[-1].out_features if head else spec_of_body(body_config(config)).embedding_dim
        head += (HeadModule("dense", folder_of(len(head), "dense"), width, int(dim)),)
    return (*head, HeadModule("normalize", folder_of(len(head), "normalize"))) if normalizes else head


def folder_of(place: int, kind: str) -> str:
    """As sentence-transformers names them: behind the Transformer and the Pooling."""
    return f"{place + 2}_{CLASSES[kind]}"


def with_head(spec: EncoderSpec, head: tuple[HeadModule, ...]) -> EncoderSpec:
    """UserError where a module does not take the numbers of the one before it."""
    dim = spec.embedding_dim
    for declared in head:
        if declared.kind == "normalize":
            continue
        if declared.in_features != dim:
            raise UserError(f"the head's {declared.folder} takes {declared.in_features} numbers, it is given {dim}")
        dim = declared.out_features
    is_normalized = bool(head) and head[-1].kind == "normalize"
    return replace(spec, embedding_dim=dim, is_normalized=is_normalized)


def body_config(config: Mapping[str, Any], where: str = "the model's config.json") -> Any:
    """transformers' config of the body alone."""
    return config_of({key: value for key, value in config.items() if key not in OWN}, where)


def saved_module(declared: HeadModule, module: nn.Module) -> SentenceModule:
    """As `write_sentence_files` writes it."""
    if declared.kind == "normalize":
        return SentenceModule("Normalize")
    if declared.kind == "layer_norm":
        return SentenceModule("LayerNorm", {"dimension": declared.out_features}, module.state_dict())
    activation = ACTIVATION[declared.activation]
    config: dict[str, object] = {"in_features": declared.in_features, "out_features": declared.out_features}
    config |= {"bias": declared.has_bias, "activation_function": f"{activation.__module__}.{activation.__qualname__}"}
    return SentenceModule("Dense", config, module.state_dict())


def load_head(folders: list[Path], module: nn.Module) -> None:
    """The first file of weights that is there. UserError where there is none, or it holds others."""
    paths = [folder / name for folder in folders for name in HEAD_WEIGHTS if (folder / name).is_file()]
    if not paths:
        raise UserError(f"{folders[-1] / SAFETENSORS} is missing, expected the head's weights; copy the model again")
    try:
        module.load_state_dict(read_weights_file(paths[0]))
    except RuntimeError as error:
        raise UserError(f"{paths[0]} does not hold the head's weights: {one_line(error)[:300]}") from None
