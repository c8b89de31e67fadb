"""RoBERTa with ANCE's head: LayerNorm(Linear(first token)), scored by the inner product.

ANCE's model type rdot_nll (model/models.py, RobertaDot_NLL_LN there), with its parameter names:
``roberta.*``, ``embeddingHead.*``, ``norm.*``. So its checkpoints and Pyserini's load here, and ours there.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaLayer, RobertaModel, RobertaPreTrainedModel
from transformers.utils.logging import disable_progress_bar

from model.encoders.base import Encoder
from model.encoders.spec import POOLINGS, EncoderSpec, Side, positive_number
from model.kernels.cpu_dropout import BY_DEVICE, make_dropout_quick
from model.kernels.cpu_linear import prepack_products
from model.kernels.packed_attention import PACKED, PACKED_ON_CPU, hidden_of_packed
from model.token_batch import TokenBatch, unpadded
from utils.errors import UserError, one_line

HEAD = ("embeddingHead.", "norm.")
LARGEST_EMBEDDING = 768  # ANCE's; a narrower model keeps its own width

if not sys.stderr.isatty():
    disable_progress_bar()  # transformers' own, while it reads and writes weights: an .out has no carriage returns


class FirstTokenLayer(RobertaLayer):
    """The last layer where only a text's first token is pooled: after the attention that token alone is computed.

    Of a layer's 12 products this omits 9, which no embedding and no gradient depends on. The other tokens' queries
    are not needed either, but transformers' attention makes them together with keys and values.
    """

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_cross: Any, **kwargs: Any
    ) -> torch.Tensor:
        """[B, L, H] to [B, 1, H]; where texts are packed, with the places ``first_B``, [1, T, H] to [1, B, H]."""
        first: Any = kwargs.get("first_B", slice(1))
        attended, _ = self.attention.self(hidden_states, attention_mask, **kwargs)
        kept: torch.Tensor = self.attention.output(attended[:, first], hidden_states[:, first])
        made: torch.Tensor = self.feed_forward_chunk(kept)
        return made


class RobertaDot(RobertaPreTrainedModel, Encoder):  # type: ignore[misc]  # save_pretrained takes more
    """The config may say ``embedding_size``, ``pooling`` (of `POOLINGS`) and ``score_scale``; ANCE's: 768, first, 1."""

    # Old checkpoints carry RoBERTa's classifier and pooler, which the dual encoder never uses.
    _keys_to_ignore_on_load_unexpected = [r"classifier\.", r"pooler\.", r"position_ids", r"lm_head\."]  # noqa: RUF012

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        self.spec = self.spec_of(config.to_dict())
        self.pooling = getattr(config, "pooling", "first")
        if self.pooling not in POOLINGS:
            raise UserError(f"the model's config says pooling {self.pooling!r}, expected {' or '.join(POOLINGS)}")
        self.score_scale = float(getattr(config, "score_scale", 1.0))
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        if self.pooling == "first":
            # The same modules and weights, called in another way: a new layer would draw its weights a second time.
            self.roberta.encoder.layer[-1].__class__ = FirstTokenLayer
        make_dropout_quick(self.roberta)
        self.pack_texts(False)
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
        # RoBERTa's positions begin behind the padding's.
        longest = positive_number(config, ["max_position_embeddings"], 512) - pad_id - 1
        return EncoderSpec(
            embedding_dim=positive_number(config, ["embedding_size"], width),
            vocab_size=positive_number(config, ["vocab_size"], 50265),
            pad_id=pad_id,
            max_query_length=longest,
            max_passage_length=longest,
            layer_groups=((r"embeddings\.", "embeddings"), (r"\.encoder\.layer\.(\d+)\.", r"layer_\1")),
        )

    def forward(self, tokens: TokenBatch, side: Side) -> torch.Tensor:
        """[B, D]; both sides share the weights."""
        if self.is_packed:
            return self.head(self.pooled_packed(tokens))
        assert self.spec.pad_id is not None
        return self.head(self.pooled_padded(*tokens.padded(self.spec.pad_id)))

    def head(self, pooled_BH: torch.Tensor) -> torch.Tensor:
        # The head is more exact than the rest: a rounded embedding would move its passage in the lists. The scale is
        # folded into the embeddings, so that training and search see the same scores.
        with torch.autocast(pooled_BH.device.type, enabled=False):
            return self.norm(self.embeddingHead(pooled_BH.to(self.embeddingHead.weight.dtype))) * self.score_scale**0.5

    def query_emb(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """By the name and with the arguments that ANCE's code has: ids and mask [B, L] to embeddings [B, D]."""
        if self.is_packed:
            return self(unpadded(input_ids, attention_mask), "query")
        return self.head(self.pooled_padded(input_ids, attention_mask))

    body_emb = query_emb

    def pooled_padded(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        hidden_BLH = self.roberta(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        if self.pooling == "first":
            return hidden_BLH[:, 0]
        weights_BL1 = mask_BL[..., None].to(hidden_BLH)
        return (hidden_BLH * weights_BL1).sum(1) / weights_BL1.sum(1)

    def pooled_packed(self, tokens: TokenBatch) -> torch.Tensor:
        hidden = hidden_of_packed(self.roberta, tokens)
        if self.pooling == "first":
            return hidden[: len(tokens)]
        return torch.segment_reduce(hidden[: len(tokens.tokens_T)], "mean", lengths=tokens.lengths_B)

    @property
    def padding_costs(self) -> bool:
        return not self.is_packed

    @property
    def cpu_batch_tokens(self) -> int:  # type: ignore[override]
        """What a layer makes of so many is still in the cache when the next needs it.

        Times at base width on 2 cores, packed, as parts of those of 2,048: in float32 of 512 tokens encoding 1.12, of
        1,024 encoding 1.05 and training 1.0 to 1.09, of 4,096 training 1.03; in bfloat16 encoding 1.0 of 1,024 and
        0.99 of 4,096. Padded, texts of more tokens differ too much in length: training takes 1.06 to 1.18 times as long
        with 2,048.
        """
        return 2048 if self.is_packed else 1024

    def pack_texts(self, packed: bool, attention: str = "") -> None:
        """Whether texts stand without padding, and by which attention of `packed_attention`: the device's own."""
        self.is_packed = packed
        own = PACKED_ON_CPU if self.device.type == "cpu" else PACKED
        self.roberta.set_attn_implementation((attention or own) if packed else BY_DEVICE)

    def enable_gradient_checkpointing(self) -> None:
        """Gradient checkpointing: only a layer's input is kept for the gradient."""
        # Newer transformers say "activation", and warn of the older name.
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def cast_linear_weights(self, dtype: torch.dtype) -> None:
        """For encoding alone: the matrices in ``dtype``, to which autocast would cast them again for each batch.

        What is added up from layer to layer stays in float32, as under autocast: in bfloat16 throughout, the
        embeddings were ten times as far from float32's, and 0.8% of the top 200 others (0.1% this way).
        """
        body: nn.Module = self.roberta
        for module in body.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)

    def prepack_weights(self) -> None:
        """For encoding alone, on the device where it is: a CPU keeps lowered matrices as its products read them, too.

        Those take the memory of the matrices once more, and cannot be copied. Nothing happens where there is nothing to
        gain.
        """
        prepack_products(self.roberta, self.cpu_batch_tokens)

    def config_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config.to_dict()
        return found

    def record(self, values: dict[str, Any]) -> None:
        self.config.update(values)

    @classmethod
    def new(cls, config: dict[str, Any]) -> RobertaDot:
        return cls(RobertaConfig(**{k: v for k, v in config.items() if k != "model_type"}))

    @classmethod
    def load(cls, name_or_path: str, config_name: str, new_head: bool, changes: dict[str, Any]) -> RobertaDot:
        """By transformers' loader, in float32.

        Args: those of `model.encoders.registry.load_encoder`.

        Raises:
            UserError: files are missing or damaged, or without the head where none may be new.
        """
        try:
            config = RobertaConfig.from_pretrained(config_name or name_or_path)
            config.update(changes)
            loaded: Any = cls.from_pretrained(
                name_or_path, config=config, output_loading_info=True, dtype=torch.float32
            )
        except Exception as error:  # transformers raises many types for files that are missing or damaged
            raise UserError(f"{name_or_path} does not load as a RoBERTa checkpoint: {one_line(error)[:300]}") from None
        encoder, info = loaded
        check_loaded(name_or_path, info, new_head)
        return encoder


def check_loaded(name_or_path: str, info: dict[str, Any], new_head: bool) -> None:
    """UserError where ``info``, what transformers tells of a loaded model, names weights that it should have had."""
    missing = sorted(info["missing_keys"])
    body = [key for key in missing if not key.startswith(HEAD)]
    if body:
        raise UserError(f"{name_or_path} lacks {len(body)} of RoBERTa's weights, {body[0]} first: another model's?")
    if info["mismatched_keys"]:
        raise UserError(f"{name_or_path}: {sorted(info['mismatched_keys'])[0]} has another shape than its config says")
    if missing and not new_head:
        raise UserError(f"{name_or_path} has no {missing[0]}: a checkpoint without ANCE's head; train with run_warmup")
