"""How well a passage answers a query: the inner product of their embeddings (ANCE's), always in float32.

Losses and what is measured of them score here and nowhere else. A search computes the same numbers over a whole
collection (utils/search), from embeddings that are stored.
"""

from __future__ import annotations

import torch


def pair_scores(queries_TD: torch.Tensor, passages_TD: torch.Tensor) -> torch.Tensor:
    """The score of query t for passage t: float32 [T].

    Args:
        queries_TD: embeddings of any float type, [..., D]; a single query broadcasts.
        passages_TD: the same shape.
    """
    return (queries_TD.float() * passages_TD.float()).sum(-1)


def all_scores(queries_TD: torch.Tensor, passages_GD: torch.Tensor) -> torch.Tensor:
    """The score of every query for every passage: float32 [T, G].

    Args:
        queries_TD: embeddings of any float type, [..., T, D].
        passages_GD: embeddings of any float type, [..., G, D].
    """
    # Autocast would round the product: ANCE's scores are near 700, where bfloat16 has steps of 4.
    with torch.autocast(queries_TD.device.type, enabled=False):
        return queries_TD.float() @ passages_GD.float().mT
