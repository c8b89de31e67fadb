"""RoBERTa with ANCE's head: LayerNorm(Linear(first token)), scored by the inner product.

ANCE's model type rdot_nll (model/models.py, RobertaDot_NLL_LN there), with its parameter names:
``roberta.*``, ``embeddingHead.*``, ``norm.*``. So its checkpoints and Pyserini's load here, and ours there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaModel, RobertaPreTrainedModel

from model.encoders.body import LAYER_GROUPS, Body, BodyEncoder, check_loaded
from model.encoders.spec import EncoderSpec, Side, pooling_of, positive_number
from model.formats.sentence import WITHOUT_POOLER, head_modules, write_sentence_files
from model.token_batch import TokenBatch, unpadded
from utils.declared.positions import usable_positions
from utils.errors import UserError, one_line
from utils.exchange.model_files import body_folder
from utils.hub import model_directory

HEAD = ("embeddingHead.", "norm.")
LARGEST_EMBEDDING = 768  # ANCE's; a narrower model keeps its own width


class RobertaDot(RobertaPreTrainedModel, BodyEncoder):  # type: ignore[misc]  # save_pretrained takes more
    """The config may say ``embedding_size``, ``pooling`` (of `POOLINGS`) and ``score_scale``; ANCE's: 768, first, 1."""

    # Old checkpoints carry RoBERTa's classifier and pooler, which the dual encoder never uses.
    _keys_to_ignore_on_load_unexpected = [r"classifier\.", r"pooler\.", r"position_ids", r"lm_head\."]  # noqa: RUF012

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        self.spec = self.spec_of(config.to_dict())
        self.score_scale = float(getattr(config, "score_scale", 1.0))
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.body = Body(self.roberta, pooling_of(getattr(config, "pooling", "first")))
        self.embeddingHead = nn.Linear(config.hidden_size, self.spec.embedding_dim)
        self.norm = nn.LayerNorm(self.spec.embedding_dim)
        self.post_init()

    @classmethod
    def spec_of(cls, config: dict[str, Any]) -> EncoderSpec:
        """What the config does not say is RoBERTa's default.

        ANCE's layer-wise groups: the embeddings, each transformer layer, and the rest.
        """
        width = min(positive_number(config, ["hidden_size"], 768), LARGEST_EMBEDDING)
        pad_id = int(config.get("pad_token_id", 1))
        longest = usable_positions("roberta", positive_number(config, ["max_position_embeddings"], 512), pad_id)
        return EncoderSpec(
            embedding_dim=positive_number(config, ["embedding_size"], width),
            vocab_size=positive_number(config, ["vocab_size"], 50265),
            pad_id=pad_id,
            max_query_length=longest,
            max_passage_length=longest,
            layer_groups=LAYER_GROUPS,
        )

    def forward(self, tokens: TokenBatch, side: Side) -> torch.Tensor:
        """[B, D]; both sides share the weights."""
        return self.head(self.body.pooled(tokens))

    def head(self, pooled_BH: torch.Tensor) -> torch.Tensor:
        # The head is more exact than the rest: a rounded embedding would move its passage in the lists. The scale is
        # folded into the embeddings, so that training and search see the same scores.
        with torch.autocast(pooled_BH.device.type, enabled=False):
            return self.norm(self.embeddingHead(pooled_BH.to(self.embeddingHead.weight.dtype))) * self.score_scale**0.5

    def query_emb(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """By the name and with the arguments that ANCE's code has: ids and mask [B, L] to embeddings [B, D]."""
        if self.is_packed:
            return self(unpadded(input_ids, attention_mask), "query")
        return self.head(self.body.pooled_padded(input_ids, attention_mask))

    body_emb = query_emb

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)

    def config_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config.to_dict()
        return found

    def record(self, values: dict[str, Any]) -> None:
        self.config.update(values)

    def save_pretrained(  # type: ignore[override]  # transformers' takes more
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """As transformers does, and what sentence-transformers opens the directory by.

        Args:
            save_directory: where to.
            *args, **kwargs: transformers'.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        modules = head_modules(self.state_dict(), self.config.hidden_size, self.body.pooling, self.score_scale)
        write_sentence_files(Path(save_directory), modules, self.config_dict(), WITHOUT_POOLER)

    @classmethod
    def new(cls, config: dict[str, Any]) -> RobertaDot:
        return cls(RobertaConfig(**{k: v for k, v in config.items() if k != "model_type"}))

    @classmethod
    def config_to_load(cls, name_or_path: str, config_name: str, changes: dict[str, Any]) -> dict[str, Any]:
        check_layout(name_or_path)
        return super().config_to_load(name_or_path, config_name, changes)

    @classmethod
    def load(cls, name_or_path: str, config_name: str, new_head: bool, changes: dict[str, Any]) -> RobertaDot:
        """By transformers' loader, in float32.

        Args: those of `model.encoders.registry.load_encoder`.

        Raises:
            UserError: files are missing or damaged, or without the head where none may be new.
        """
        check_layout(name_or_path)
        try:
            config = RobertaConfig.from_pretrained(config_name or name_or_path)
            config.update(changes)
            loaded: Any = cls.from_pretrained(
                name_or_path, config=config, output_loading_info=True, dtype=torch.float32
            )
        except Exception as error:  # transformers raises many types for files that are missing or damaged
            raise UserError(f"{name_or_path} does not load as a RoBERTa checkpoint: {one_line(error)[:300]}") from None
        encoder, info = loaded
        missing = check_loaded(name_or_path, info, "RoBERTa", HEAD)
        if missing and not new_head:
            raise UserError(
                f"{name_or_path} has no {missing[0]}: a checkpoint without ANCE's head; train with run_warmup"
            )
        return encoder


def check_layout(name_or_path: str) -> None:
    """UserError where sentence-transformers' files have the transformer in a folder, and the head in others."""
    folder = body_folder(model_directory(name_or_path))
    if folder:
        raise UserError(
            f"{name_or_path} is of sentence-transformers' layout, its transformer lies in {folder}: give what "
            "python -m model.convert --from sentence-transformers --to ours makes of it"
        )
