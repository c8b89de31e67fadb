"""Two BERTs, one for questions and one for passages: DPR's .cp file, and Hugging Face's directory for each.

DPR (Karpukhin et al. 2020, arXiv 2004.04906): dpr/models/biencoder.py there; ANCE's OpenQA writes the same file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.formats.ance import read_body_config
from model.formats.loaded import (
    CONTEXT,
    POOLER,
    POSITION_IDS,
    QUESTION,
    LoadedModel,
    ReadSettings,
    body_names,
    check_names,
    layers_of,
    with_prefix,
)
from model.formats.tokenizers import copy_tokenizer
from model.formats.weights import read_torch, read_weights, tensors_of, write_torch
from utils.declared.layouts import TOWERS
from utils.errors import UserError
from utils.exchange.atomic import listing, read_json
from utils.exchange.model_files import CONFIG, SAFETENSORS
from utils.json_text import json_text

CONFIG_TYPE, HF_CONFIG_TYPE = "bert", "dpr"
PROJECTION = ("encode_proj.weight", "encode_proj.bias")
HEAD_WIDTH = 64  # of BERT's attention, in all its sizes
NO_HEAD = "two encoders without a head (question_model.*, ctx_model.*)"
# In Hugging Face's classes, by our prefix: the prefix, the class, the folder when both are in one directory.
SIDES = {
    QUESTION: ("question_encoder.", "DPRQuestionEncoder", "question_encoder"),
    CONTEXT: ("ctx_encoder.", "DPRContextEncoder", "ctx_encoder"),
}
BERT_IN_HF = "bert_model."
# Keys of a config that say which class or side it is of, not what it computes.
OF_A_CLASS = ("architectures", "model_type", "_name_or_path", "transformers_version", "dtype", "torch_dtype")
BASE_UNCASED = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12}


def read_file(paths: Sequence[Path], settings: ReadSettings) -> LoadedModel:
    """A .cp of DPR's or ANCE's.

    Args:
        paths: the file alone.
        settings: of a config, where the weights' shapes do not tell it, and of a tokenizer: the file has neither.

    Raises:
        UserError: the file is missing, damaged, or of another model.
    """
    (path,) = paths
    state = read_torch(path)
    if not isinstance(state, Mapping) or "model_dict" not in state:
        raise UserError(f"{path} holds no model_dict, expected DPR's .cp; give the layout that it is of")
    weights = {name: tensor.float() for name, tensor in tensors_of(path, state["model_dict"]).items()}
    tokenizer = Path(settings.tokenizer_name) if settings.tokenizer_name else None
    kept = checked(weights, str(path))
    if settings.config_name:
        config = read_body_config(Path(settings.config_name), CONFIG_TYPE)
    else:
        config = config_of_shapes(kept, str(path))
    check_config(config, kept, str(path))
    return LoadedModel(TOWERS, config, kept, tokenizer, str(path))


def read_directories(paths: Sequence[Path], settings: ReadSettings) -> LoadedModel:
    """Hugging Face's DPRQuestionEncoder and DPRContextEncoder.

    Args:
        paths: their directories in any order, or the one that both are in.
        settings: of a tokenizer that is elsewhere.

    Raises:
        UserError: a side is missing, or both are of other sizes.
    """
    found = folders_of(paths)
    where = " and ".join(map(str, paths))
    weights: dict[str, torch.Tensor] = {}
    configs: dict[str, dict[str, Any]] = {}
    for path in found:
        stored = read_weights(path)
        for prefix, (theirs, _, _) in SIDES.items():
            side = with_prefix(with_prefix(stored, theirs, ""), BERT_IN_HF, prefix)
            side |= with_prefix(stored, f"{theirs}encode_proj.", f"{prefix}encode_proj.")
            if side:
                weights |= side
                configs[prefix] = read_json(path / CONFIG)
    if not configs:
        raise UserError(
            f"{where} is not in the layout hf-dpr, expected the directories of a DPRQuestionEncoder and of a "
            "DPRContextEncoder, or the one that both are in; give the layout that it is in as --from"
        )
    if missing := [name for prefix, (_, name, _) in SIDES.items() if prefix not in configs]:
        raise UserError(
            f"{where} holds no {missing[0]}, expected one directory for questions and one for passages; give both"
        )
    shared, other = ({k: v for k, v in config.items() if k not in OF_A_CLASS} for config in configs.values())
    if shared != other:
        raise UserError(f"{where}: the two configs differ in more than their class; give two encoders of one size")
    config = {**shared, "model_type": CONFIG_TYPE}
    kept = checked(weights, where)
    check_config(config, kept, where)
    return LoadedModel(TOWERS, config, kept, settings.tokenizer_in(found[0]), where)


def folders_of(paths: Sequence[Path]) -> list[Path]:
    """The directories of sides of a DPR: of those that are given, or of the one that is and those in it."""
    among = [*paths] if len(paths) > 1 else [*paths, *(paths[0] / name for name in sorted(listing(paths[0])))]
    configs = ((path, path / CONFIG) for path in among)
    return [
        path for path, config in configs if config.is_file() and read_json(config).get("model_type") == HF_CONFIG_TYPE
    ]


def checked(weights: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The weights that both sides must have, and those that they may: a pooler, a projection.

    UserError where some are missing or unknown, or the sides are of other sizes.
    """
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(POSITION_IDS)}
    expected: list[str] = []
    for prefix in SIDES:
        names = [prefix + name for name in body_names(max(1, layers_of(kept, prefix)))]
        expected += [*names, *(prefix + name for name in (*POOLER, *PROJECTION) if prefix + name in kept)]
    check_names(kept, expected, source, NO_HEAD)
    shapes = [{name: tensor.shape for name, tensor in with_prefix(kept, prefix, "").items()} for prefix in SIDES]
    if differing := sorted(name for name in shapes[0] if shapes[0][name] != shapes[1].get(name)):
        raise UserError(f"{source}: {differing[0]} has another shape in the other encoder; give two of one size")
    return kept


def sizes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """What the shapes of the weights tell of their config."""
    side = with_prefix(weights, QUESTION, "")
    vocab_size, hidden_size = side["embeddings.word_embeddings.weight"].shape
    projection = side.get(PROJECTION[0])
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers_of(weights, QUESTION),
        "intermediate_size": len(side["encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(side["embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(side["embeddings.token_type_embeddings.weight"]),
        "projection_dim": 0 if projection is None else len(projection),
    }


def config_of_shapes(weights: Mapping[str, torch.Tensor], source: str) -> dict[str, Any]:
    """BERT's defaults around the sizes. UserError where the number of attention heads cannot be told."""
    sizes = sizes_of(weights)
    heads, rest = divmod(sizes["hidden_size"], HEAD_WIDTH)
    if rest:
        raise UserError(
            f"{source} does not tell its attention heads: {sizes['hidden_size']} is no multiple of {HEAD_WIDTH}; "
            "give --config_name, the config of its BERT"
        )
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0}
    return {"model_type": CONFIG_TYPE, **sizes, "num_attention_heads": heads, **fixed}


def check_config(config: dict[str, Any], weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Complete the config by what the weights tell; UserError where it says another size."""
    for name, size in sizes_of(weights).items():
        if config.setdefault(name, size) != size:
            raise UserError(f"{source} has {name} {size}, its config says {config[name]!r}; give the config it is of")


def write_file(loaded: LoadedModel, path: Path) -> None:
    """As DPR's and ANCE's programs read it: all 199 weights of a BERT, for they take no fewer.

    Its pooler is not used; where the model has none it is of zeros.

    Args:
        loaded: of the type ``dpr``.
        path: the file.
    """
    check_pooling(loaded)
    weights = dict(loaded.weights)
    hidden_size = int(loaded.config["hidden_size"])
    for prefix in SIDES:
        weights.setdefault(prefix + POOLER[0], torch.zeros(hidden_size, hidden_size))
        weights.setdefault(prefix + POOLER[1], torch.zeros(hidden_size))
    state = {"model_dict": weights, "optimizer_dict": {}, "scheduler_dict": {}, "offset": 0, "epoch": 0}
    write_torch(path, {**state, "encoder_params": encoder_params(loaded.config)})


def encoder_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """What DPR's programs take from the file in place of their flags; a name only of BERT base."""
    params: dict[str, Any] = {"encoder_model_type": "hf_bert", "projection_dim": int(config.get("projection_dim", 0))}
    if all(config.get(name) == size for name, size in BASE_UNCASED.items()):
        params |= {"pretrained_model_cfg": "bert-base-uncased", "do_lower_case": True}
    if config.get("max_seq_length"):
        params["sequence_length"] = int(config["max_seq_length"])
    return params


def write_directories(loaded: LoadedModel, directory: Path) -> None:
    """As transformers' classes read them, in two folders, each with the tokenizer.

    Args:
        loaded: of the type ``dpr``.
        directory: empty.
    """
    from safetensors.torch import save_file

    check_pooling(loaded)
    for prefix, (theirs, class_name, name) in SIDES.items():
        folder = directory / name
        folder.mkdir()
        side = with_prefix(loaded.weights, prefix, "")
        projection = {theirs + key: tensor for key, tensor in side.items() if key in PROJECTION}
        body = {theirs + BERT_IN_HF + key: tensor for key, tensor in side.items() if key not in (*PROJECTION, *POOLER)}
        config = {**loaded.config, "model_type": HF_CONFIG_TYPE, "architectures": [class_name]}
        (folder / CONFIG).write_text(json_text(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tensors = {key: tensor.contiguous() for key, tensor in {**body, **projection}.items()}
        save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
        copy_tokenizer(loaded, folder)


def check_pooling(loaded: LoadedModel) -> None:
    """UserError where the encoders are no BERTs that pool the first token, as DPR's are."""
    body, pooling = loaded.config.get("model_type"), loaded.config.get("pooling", "first")
    if body != CONFIG_TYPE:
        raise UserError(f"{loaded.source} has encoders of {body!r}, DPR's are BERT; choose another --to")
    if pooling not in ("first", "cls"):
        raise UserError(f"{loaded.source} pools by {pooling!r}, DPR by the first token alone; choose another --to")
    if loaded.config.get("normalize"):
        raise UserError(f"{loaded.source} has embeddings of length 1, DPR's have any; choose another --to")
    check_scale(loaded)


def check_scale(loaded: LoadedModel) -> None:
    """UserError where embeddings are scaled: there is no head that could hold it."""
    if loaded.config.get("score_scale", 1) != 1:
        raise UserError(f"{loaded.source} has a score_scale, DPR's scores have none; choose another --to")
