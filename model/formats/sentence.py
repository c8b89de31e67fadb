"""The files by which sentence-transformers opens a model's directory, written next to its weights.

modules.json lists modules, each with a config and perhaps weights in a folder of its own; the first, a Transformer,
reads the weights of the directory itself, so that they are stored once. The names and keys are those that all versions
of the library since 2.0 read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from utils.declared.text_profiles import RECORDED_PROFILES, TextProfile
from utils.exchange.model_files import CONFIG, MODULES, SAFETENSORS
from utils.exchange.sentence_files import SETTINGS, TRANSFORMER
from utils.json_text import json_text

TABLE_CONFIG = "table_config.json"
CLASSES = "sentence_transformers.models"
IDENTITY = "torch.nn.modules.linear.Identity"
POOLING_KEYS = {
    "first": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}

QUERY, DOCUMENT = "query", "document"  # of its tasks
ROUTER = "router_config.json"
WITHOUT_POOLER = {"model_args": {"add_pooling_layer": False}}  # which AutoModel would draw at random

Kind = Literal["Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Router"]


@dataclass(frozen=True)
class SentenceModule:
    """A line of modules.json: the class, what its config.json says, and its weights by the class's names."""

    kind: Kind
    config: Mapping[str, object] = field(default_factory=dict)
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)


NORMALIZE = SentenceModule("Normalize")


def pooling_module(hidden_size: int, pooling: str) -> SentenceModule:
    """``pooling`` is a key of `POOLING_KEYS`."""
    modes = {key: word == pooling for word, key in POOLING_KEYS.items()}
    return SentenceModule("Pooling", {"word_embedding_dimension": hidden_size, **modes})


def dense_module(weight_DH: torch.Tensor, bias_D: torch.Tensor | None) -> SentenceModule:
    """A linear layer without an activation."""
    dim, hidden_size = weight_DH.shape
    config = {"in_features": hidden_size, "out_features": dim, "bias": bias_D is not None}
    weights = {"linear.weight": weight_DH} | ({} if bias_D is None else {"linear.bias": bias_D})
    return SentenceModule("Dense", {**config, "activation_function": IDENTITY}, weights)


def layer_norm_module(weight_D: torch.Tensor, bias_D: torch.Tensor) -> SentenceModule:
    """With torch's epsilon, 1e-5. A scale of embeddings goes into both."""
    return SentenceModule("LayerNorm", {"dimension": len(weight_D)}, {"norm.weight": weight_D, "norm.bias": bias_D})


def head_modules(
    weights: Mapping[str, torch.Tensor], hidden_size: int, pooling: str, score_scale: float
) -> list[SentenceModule]:
    """Pooling and ANCE's head, LayerNorm(Linear(x)), as modules.

    Args:
        weights: with ``embeddingHead.*`` and ``norm.*``.
        hidden_size: numbers of a token's vector.
        pooling: a key of `POOLING_KEYS`.
        score_scale: of the config; embeddings carry its root.
    """
    root = score_scale**0.5
    return [
        pooling_module(hidden_size, pooling),
        dense_module(weights["embeddingHead.weight"], weights["embeddingHead.bias"]),
        layer_norm_module(weights["norm.weight"] * root, weights["norm.bias"] * root),
    ]


def write_table_config(directory: Path, weight: str, shape: Sequence[int], pad_id: int) -> dict[str, object]:
    """Have the first module be a table of token vectors, with the special tokens that the tokenizer adds.

    The library's own StaticEmbedding adds none, and cuts off a long text's end token. XLNet without layers is such a
    table: of transformers' models it alone has neither a norm nor positions before its first layer.

    Args:
        directory: of the model; a config for the library alone is written there.
        weight: the table's name in the model's weights.
        shape: of the table, V and D.
        pad_id: of the tokenizer.

    Returns:
        The transformer's settings, by which that config is read, and the table by its name.
    """
    vocab_size, dim = shape
    sizes = {"vocab_size": vocab_size, "d_model": dim, "n_layer": 0, "n_head": 1, "d_inner": 1}
    _write_json(directory / TABLE_CONFIG, {"model_type": "xlnet", **sizes, "dropout": 0.0, "pad_token_id": pad_id})
    names = {f"^{re.escape(weight)}$": "word_embedding.weight"}
    return {"config_args": {"_configuration_file": TABLE_CONFIG}, "model_args": {"key_mapping": names}}


def write_sentence_files(
    directory: Path,
    modules: Sequence[SentenceModule],
    config: Mapping[str, object],
    transformer: Mapping[str, object] | None = None,
    body: str = "",
) -> None:
    """Make a directory that holds a transformer's config, weights and tokenizer one of sentence-transformers.

    Args:
        directory: of the model.
        modules: what follows the transformer.
        config: the model's own, in which lengths, prefixes and the text profile are recorded, those that are known.
        transformer: what else the transformer's own settings say.
        body: the folder of the transformer's files; "" for the directory itself.
    """
    listed = [_line(0, "Transformer", body)]
    for number, module in enumerate(modules, start=1):
        folder = f"{number}_{module.kind}"
        write_module(directory / folder, module)
        listed.append(_line(number, module.kind, folder))
    _write_json(directory / MODULES, listed)
    write_transformer_settings(directory / body, config, transformer)
    write_settings(directory, config)


def write_router(directory: Path, routes: Mapping[str, Sequence[SentenceModule]], config: Mapping[str, object]) -> None:
    """The same of two encoders: its Router sends queries one way and passages another.

    Args:
        directory: holds the folder `route_folder` of each way, with a transformer's config, weights and tokenizer.
        routes: what follows the transformer, by ``query`` and ``document``, which is the way of what is neither.
        config: the model's own.
    """
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    for route, modules in routes.items():
        structure[route] = [route_folder(route)]
        types[route_folder(route)] = f"{CLASSES}.Transformer"
        write_transformer_settings(directory / route_folder(route), config)
        for number, module in enumerate(modules, start=1):
            folder = f"{route}_{number}_{module.kind}"
            write_module(directory / folder, module)
            structure[route].append(folder)
            types[folder] = f"{CLASSES}.{module.kind}"
    router = {"types": types, "structure": structure, "parameters": {"default_route": DOCUMENT}}
    _write_json(directory / ROUTER, router)
    _write_json(directory / MODULES, [_line(0, "Router", "")])
    write_settings(directory, config)


def route_folder(route: str) -> str:
    return f"{route}_0_Transformer"


def write_transformer_settings(
    folder: Path, config: Mapping[str, object], more: Mapping[str, object] | None = None
) -> None:
    """Next to the transformer's weights; ``more``: of this body."""
    _write_json(folder / TRANSFORMER, {**transformer_settings(config), **(more or {})})


def write_settings(directory: Path, config: Mapping[str, object]) -> None:
    _write_json(directory / SETTINGS, {"prompts": prompts_of(config), "similarity_fn_name": "dot"})


def transformer_settings(config: Mapping[str, object]) -> dict[str, object]:
    """Where it cuts texts and whether it lower-cases them.

    A query is cut shorter than a passage by ``encode_query`` alone: the key exists since version 6 of the library, and
    older ones refuse it, so that it is written only where the lengths differ.
    """
    longest, of_queries = config.get("max_seq_length"), config.get("max_query_length")
    found: dict[str, object] = {} if longest is None else {"max_seq_length": longest}
    if of_queries is not None and of_queries != longest:
        found["query_length"] = of_queries
    profile = profile_of(config)
    return {**found, "do_lower_case": profile is not None and profile.lower_cases}


def profile_of(config: Mapping[str, object]) -> TextProfile | None:
    """The text profile that a model's config records; None where it does not."""
    return RECORDED_PROFILES.get(str(config.get("text_profile")))


def prompts_of(config: Mapping[str, object]) -> dict[str, object]:
    """The prefixes that are recorded, by the names under which ``encode_query`` and ``encode_document`` look."""
    return {QUERY: config.get("query_prefix") or "", DOCUMENT: config.get("passage_prefix") or ""}


def _line(number: int, kind: Kind, folder: str) -> dict[str, object]:
    return {"idx": number, "name": str(number), "path": folder, "type": f"{CLASSES}.{kind}"}


def write_module(folder: Path, module: SentenceModule) -> None:
    folder.mkdir(exist_ok=True)
    _write_json(folder / CONFIG, module.config)
    if module.weights:
        weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in module.weights.items()}
        save_file(weights, folder / SAFETENSORS, metadata={"format": "pt"})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json_text(value, indent=2) + "\n", encoding="utf-8")
