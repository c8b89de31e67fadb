"""The words of --model_type, each declared once, with the encoder that it names; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from utils.declared.text_profiles import DEFAULT_PROFILE

# Of a transformer's last layer: its first token (ANCE's), all of them, or its last; cls is another word for first.
Pooling = Literal["first", "mean", "last", "cls"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
QUERY_TOWER, PASSAGE_TOWER = "question_model", "ctx_model"  # in the config of two towers: transformers' names of DPR's


@dataclass(frozen=True)
class ModelType:
    """A word of --model_type.

    Args:
        description: for --help.
        config_type: config.json's ``model_type``; "" where the encoder itself says which it knows.
        implementation: "module:class" of a `model.encoders.base.Encoder`.
        has_layers: whether most of its work is layers of products, which gain from bfloat16 and from gradient
            checkpointing.
        has_pooling: whether its config may say how tokens are pooled (--pooling).
        from_hub: whether a model may be named as on the hub, and not be a directory.
        is_older_than_types: whether a config without ``model_type`` is one of it: transformers before 2.4, which ANCE
            and DPR wrote theirs with, had no such key.
        has_towers: whether queries and passages may have weights of their own (--freeze).
        text_profile: what a model that records none was trained with; "": nobody can know it.
        own_tensor: where nobody can: how the name of a tensor begins that a trained model has, and a body to start from
            lacks.
        has_modules: whether sentence-transformers' modules follow its body: --normalize and --head_dim change them, and
            --pooling does wherever a model is opened.
    """

    description: str
    config_type: str
    implementation: str
    has_layers: bool = True
    has_pooling: bool = False
    from_hub: bool = False
    is_older_than_types: bool = False
    has_towers: bool = False
    text_profile: str = DEFAULT_PROFILE
    own_tensor: str = ""
    has_modules: bool = False


MODEL_TYPES = {
    "hf": ModelType(
        "any encoder of Hugging Face's, pooled as sentence-transformers' files say or --pooling",
        "",
        "model.encoders.hf:HfEncoder",
        has_pooling=True,
        from_hub=True,
        has_modules=True,
    ),
    "rdot_nll": ModelType(
        "RoBERTa and ANCE's head",
        "roberta",
        "model.encoders.roberta_dot:RobertaDot",
        has_pooling=True,
        from_hub=True,
        is_older_than_types=True,
        text_profile="",
        own_tensor="embeddingHead.weight",
    ),
    "dpr": ModelType(
        "two towers, an encoder of queries and one of passages, as DPR; they begin as any transformer",
        "",
        "model.encoders.dpr:TwoTowers",
        has_pooling=True,
        from_hub=True,
        has_towers=True,
        text_profile="",
        own_tensor=f"{QUERY_TOWER}.",
    ),
    "static": ModelType(
        "the mean of a text's token vectors, and the same head",
        "static",
        "model.encoders.static:StaticEncoder",
        has_layers=False,
    ),
}
