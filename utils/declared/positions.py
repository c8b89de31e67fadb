"""How many tokens a text may have for a body with so many positions; without torch."""

from __future__ import annotations

# The ``model_type`` of transformers' configs whose positions begin behind the padding's id, and not at 0: RoBERTa's and
# what has its embeddings (``padding_idx + 1``).
BEHIND_PAD_ID = frozenset(
    (
        "camembert", "data2vec-text", "ibert", "longformer", "luke", "markuplm", "mpnet", "roberta",
        "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    )
)  # fmt: skip
ROBERTA_PAD_ID = 1  # of a config that does not say it


def begins_behind_pad_id(kind: str) -> bool:
    """Whether a ``model_type``'s positions begin behind the padding's id, and are fewer by so many."""
    return kind in BEHIND_PAD_ID


def position_padding(kind: str, pad_token_id: int) -> int:
    """The id behind which positions begin: RoBERTa's is the padding's, MPNet's is written in its code."""
    return 1 if kind == "mpnet" else pad_token_id


def usable_positions(kind: str, max_position_embeddings: int, pad_token_id: int | None) -> int:
    """The most tokens of a text.

    Args:
        kind: a config's ``model_type``.
        max_position_embeddings: those that the body has, RoBERTa's before its first token among them.
        pad_token_id: the config's; None for RoBERTa's.
    """
    if not begins_behind_pad_id(kind):
        return max_position_embeddings
    behind = position_padding(kind, ROBERTA_PAD_ID if pad_token_id is None else pad_token_id)
    return max_position_embeddings - behind - 1
