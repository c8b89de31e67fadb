"""Two towers: an encoder of queries and one of passages, each a transformer and, where it has one, a projection.

DPR's (Karpukhin et al. 2020, arXiv 2004.04906), and ANCE's for OpenQA (model/models.py, BiEncoder there), whose names
the weights have on disk: ``question_model.*`` and ``ctx_model.*``, BertModel's own behind them, ``encode_proj`` next to
those. Segment ids are 0, as there. Towers pool the first token unless they record another; tied towers are one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from model.encoders.base import ConfigEncoder
from model.encoders.body import LAYER_GROUPS, Body, BodyEncoder, config_of, load_model, new_model, spec_of_body
from model.encoders.spec import EncoderSpec, Side, pooling_of, read_config_file
from model.token_batch import TokenBatch
from utils.declared.model_types import PASSAGE_TOWER, QUERY_TOWER
from utils.declared.text_settings import INITIAL_PROFILE, TEXT_KEYS
from utils.errors import UserError, one_line
from utils.exchange.model_files import LENGTHS, POOLED_FROM, SAFETENSORS
from utils.exchange.sentence_files import read_sentence_files
from utils.hub import model_directory

MODEL_TYPE = "dpr"
OLDER_BODY = "bert"  # of a config that names no type, as transformers before 2.4 wrote it
TOWERS: dict[Side, str] = {"query": QUERY_TOWER, "passage": PASSAGE_TOWER}
PROJECTION = "encode_proj"
QUERY_MODEL = "query_model"  # of `load_encoder`'s changes: the queries' tower begins as another model
# What stands next to the towers, as other types have it next to a body's own.
OF_TEXTS = (*LENGTHS, *TEXT_KEYS, INITIAL_PROFILE)
RECORDED = ("projection_dim", "tied", "score_scale", *OF_TEXTS)
OF_EACH_TOWER = ("pooling", "vocab_size", "pad_token_id")  # of the same: said of both
UNUSED = ("pooler.", "embeddings.position_ids")  # parts of names; DPR's files have them


class Projection(nn.Module):
    """DPR's ``encode_proj``: no nn.Linear, for those of a body may be cast, and a rounded embedding moves in lists."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        layer = nn.Linear(width, embedding_dim)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, rows_BH: torch.Tensor) -> torch.Tensor:
        return F.linear(rows_BH, self.weight, self.bias)


class TwoTowers(BodyEncoder, ConfigEncoder):
    """The config has an object for each of `TOWERS`: its body's config, ``pooling``, ``normalize``.

    Next to them ``tied``, where the queries' tower is both, ``projection_dim``, 0 for none, and ``score_scale``.
    """

    def __init__(self, config: dict[str, Any], models: Mapping[Side, PreTrainedModel] | None = None) -> None:
        """Without ``models``, the bodies of both sides, they have random weights; of tied towers one counts."""
        super().__init__(config)
        self.spec = self.spec_of(config)
        self.is_tied, self.frozen, self.score_scale = bool(config["tied"]), "", float(config.get("score_scale", 1))
        self.tower_of: dict[Side, str] = {side: TOWERS["query" if self.is_tied else side] for side in get_args(Side)}
        self.body_of: dict[str, Body] = {}
        for side, tower in self.tower_of.items():
            if tower in self.body_of:
                continue
            model = models[side] if models else new_model(config_of(config[tower], tower))
            if config["projection_dim"]:
                model.add_module(PROJECTION, Projection(model.config.hidden_size, config["projection_dim"]))
            self.add_module(tower, model)
            self.body_of[tower] = Body(model, pooling_of(config[tower]["pooling"]))

    @classmethod
    def complete_config(cls, config: dict[str, Any], directory: Path) -> dict[str, Any]:
        """The config of two towers; sentence-transformers' files say how an encoder pools that both begin as."""
        is_whole = config.get("model_type") == MODEL_TYPE
        return two_towers(config if is_whole else pooled_as_said(config, directory), str(directory))

    @classmethod
    def spec_of(cls, config: dict[str, Any]) -> EncoderSpec:
        """UserError where the towers do not fit each other."""
        config = two_towers(config, "the model's config.json")
        query, passage = (spec_of_body(config_of(config[tower], tower)) for tower in TOWERS.values())
        width, tied = int(config["projection_dim"]), bool(config["tied"])
        for what, ours, theirs in (
            ("numbers in an embedding", width or query.embedding_dim, width or passage.embedding_dim),
            ("as the id of padding", query.pad_id, passage.pad_id),
        ):
            if ours != theirs:
                raise UserError(f"the queries' tower has {ours} {what}, the passages' {theirs}; take two that agree")
        return EncoderSpec(
            embedding_dim=width or query.embedding_dim,
            vocab_size=min(query.vocab_size or 0, passage.vocab_size or 0),
            pad_id=query.pad_id,
            max_query_length=query.max_query_length,
            max_passage_length=passage.max_passage_length,
            layer_groups=LAYER_GROUPS if tied else layer_groups_of_two(),
            is_normalized=all(config[tower]["normalize"] for tower in TOWERS.values()) and "score_scale" not in config,
        )

    @property
    def bodies(self) -> tuple[Body, ...]:
        return tuple(self.body_of.values())

    def forward(self, tokens: TokenBatch, side: Side) -> torch.Tensor:
        """[B, D]."""
        tower = self.tower_of[side]
        rows_BH = self.body_of[tower].pooled(tokens)
        with torch.autocast(rows_BH.device.type, enabled=False):  # a rounded embedding would move its passage in lists
            rows_BD = rows_BH.float()
            if self.config["projection_dim"]:
                rows_BD = self.get_submodule(f"{tower}.{PROJECTION}")(rows_BD)
            if self.config[tower]["normalize"]:
                rows_BD = F.normalize(rows_BD)
            return rows_BD if self.score_scale == 1 else rows_BD * self.score_scale**0.5

    def freeze(self, side: Side) -> None:
        """Keep a side as it is; without dropout, so that a passage has the embedding that is searched."""
        if self.is_tied:
            raise UserError(f"--freeze {side} is given, the model's towers are tied: one is both; omit it")
        self.frozen = self.tower_of[side]
        self.get_submodule(self.frozen).requires_grad_(False)

    def train(self, mode: bool = True) -> TwoTowers:
        super().train(mode)
        if self.frozen:
            self.get_submodule(self.frozen).eval()
        return self

    @classmethod
    def new(cls, config: dict[str, Any]) -> TwoTowers:
        """Of a config of two towers, or of a body's for both."""
        return cls(two_towers(config, "the config"))

    @classmethod
    def load(cls, name_or_path: str, config_name: str, new_head: bool, changes: dict[str, Any]) -> TwoTowers:
        """Two towers of a directory; or both begin as one encoder of a directory or a hub name.

        Args: those of `model.encoders.registry.load_encoder`. ``changes`` may name another encoder for the queries.

        Raises:
            UserError: files are missing or damaged, or lack a tower.
        """
        config, directory = cls.config_to_load(name_or_path, config_name, changes), model_directory(name_or_path)
        if is_two_towers(directory):
            return load_towers(directory, config)
        return begin_towers({"query": changes.get(QUERY_MODEL, name_or_path), "passage": name_or_path}, config)

    @classmethod
    def config_to_load(cls, name_or_path: str, config_name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Of two towers of a directory, or of what both begin as.

        Args, and what it raises: those of `load`.
        """
        directory, query = model_directory(name_or_path), changes.get(QUERY_MODEL)
        others = {name: value for name, value in changes.items() if name != QUERY_MODEL}
        if not is_two_towers(directory):
            config = config_to_begin({"query": query or name_or_path, "passage": name_or_path}, config_name, others)
        elif query is None:
            found, path = read_config_file(directory, config_name)
            config = two_towers(found, str(path), others)
        else:
            raise UserError(f"{name_or_path} has two towers already: --query_model_name_or_path is for none; omit it")
        if query is not None and config["tied"]:
            raise UserError(
                f"--query_model_name_or_path is given, the towers of {config_name} are tied: one is both; omit either"
            )
        return config


def layer_groups_of_two() -> tuple[tuple[str, str], ...]:
    """`LAYER_GROUPS` of each side by itself."""
    sides = TOWERS.items()
    return tuple((rf"\b{tower}\b.*?{found}", f"{side}_{name}") for side, tower in sides for found, name in LAYER_GROUPS)


# Configs


def two_towers(config: Mapping[str, Any], where: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config of two towers that another one means.

    Args:
        config: of two towers, or of a transformer, which both are then.
        where: it is from, for an error.
        changes: replace what it says.

    Raises:
        UserError: it is of a single tower, as Hugging Face has DPR's.
    """
    if config.get("model_type") == MODEL_TYPE:
        missing = [tower for tower in TOWERS.values() if not isinstance(config.get(tower), dict)]
        if missing:
            raise UserError(
                f"{where} has no {missing[0]}, expected both towers; Hugging Face's DPR has a directory for each: "
                "python -m model.convert joins them"
            )
        bodies = {tower: config[tower].items() for tower in TOWERS.values()}  # which have seen the texts of both
        made = {**config, **{tower: {k: v for k, v in items if k not in OF_TEXTS} for tower, items in bodies.items()}}
    else:
        body = dict(config)
        recorded = {name: body.pop(name) for name in RECORDED if name in body}
        made = {"model_type": MODEL_TYPE, **recorded, **{tower: dict(body) for tower in TOWERS.values()}}
    changed = {name: made.pop(name) for name in OF_EACH_TOWER if name in made} | dict(changes or {})
    of_each = {name: changed.pop(name) for name in OF_EACH_TOWER if name in changed}
    for tower in TOWERS.values():
        made[tower] = {"model_type": OLDER_BODY, "pooling": "first", "normalize": False, **made[tower], **of_each}
    return {"tied": False, "projection_dim": 0, "architectures": ["TwoTowers"], **made, **changed}


# Weights


def load_towers(directory: Path, config: dict[str, Any]) -> TwoTowers:
    """The weights of both towers in a directory. UserError where some are missing, damaged or of another shape."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / SAFETENSORS
    if not path.is_file():
        raise UserError(f"{path} is missing, expected the weights of two towers; train with run_warmup first")
    try:
        with no_init_weights():
            encoder = TwoTowers(config)
        stored = load_file(str(path))
        names = encoder.state_dict().keys()
        for tower in encoder.body_of:
            if not any(name.startswith(f"{tower}.") for name in stored):
                raise UserError(f"{path} has no weights of {tower}: one tower alone; give a checkpoint with both")
        differing = sorted(name for name in names ^ stored.keys() if not any(part in name for part in UNUSED))
        if differing:
            has = "lacks" if differing[0] in names else "has, and its config does not,"
            raise UserError(f"{path} {has} {differing[0]}: not the towers of its config.json; take another checkpoint")
        encoder.load_state_dict({name: stored[name].float() for name in names})
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(f"{path} does not hold the weights of two towers: {one_line(error)[:300]}") from None
    return encoder


def is_two_towers(directory: Path) -> bool:
    return read_config_file(directory)[0].get("model_type") == MODEL_TYPE


def config_to_begin(names: Mapping[Side, str], config_name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of both towers as two encoders are, which may be the same.

    Args:
        names: their directories or hub names.
        config_name: a config in place of both encoders', "" for their own.
        changes: replace what the configs say.

    Raises:
        UserError: one is no encoder of a transformer and a pooling alone.
    """
    given = read_config_file(config_name)[0] if config_name else {}
    if given.get("model_type") == MODEL_TYPE:  # of a checkpoint whose adapters are of this encoder
        return two_towers(given, config_name, changes)
    towers = {TOWERS[side]: config_of_tower(model_directory(name), config_name) for side, name in names.items()}
    return two_towers({"model_type": MODEL_TYPE, **towers}, names["query"], changes)


def begin_towers(names: Mapping[Side, str], config: dict[str, Any]) -> TwoTowers:
    """The two encoders of these names, with the config of both. UserError where one has no such weights."""
    models: dict[Side, PreTrainedModel] = {}
    for side, name in names.items():
        if name in (names[other] for other in models):
            models[side] = copy.deepcopy(models["query"])
        elif not (config["tied"] and models):
            models[side] = load_model(model_directory(name), config_of(config[TOWERS[side]], name))
    return TwoTowers(config, models)


def config_of_tower(directory: Path, config_name: str) -> dict[str, Any]:
    """Of an encoder's directory: its body's config, and how it pools."""
    return pooled_as_said(read_config_file(directory, config_name)[0], directory)


def pooled_as_said(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """A body's config, and how sentence-transformers' files in the directory say that it pools.

    UserError where something follows the pooling that is no normalisation.
    """
    if start := config.get(POOLED_FROM):
        raise UserError(f"{directory} pools the mean from position {start} on, which no tower does; take another")
    files = read_sentence_files(directory)
    if files is None:
        return config
    others = [module.kind for module in files.head if module.kind != "normalize"]
    if files.body != "Transformer" or others:
        raise UserError(
            f"{directory} is a {files.body} with {', '.join(others) or 'no head'}, expected a transformer and its "
            "pooling alone as a tower; take another"
        )
    found = {name: value for name, value in config.items() if name != "head"}
    return {**found, "pooling": files.pooling, "normalize": files.is_normalized}
