"""How well a passage answers a query: the inner product of their embeddings (ANCE's), always in float32.

A passage with several rows is scored by its best one (MaxP: Dai and Callan 2019, arXiv 1905.09217).

Losses and what is measured of them score here and nowhere else. A search computes the same numbers over a whole
collection (utils/search), from embeddings that are stored.
"""

from __future__ import annotations

import torch

NORMALIZED_TEMPERATURE = 0.05  # of scores that are at most 1: SimCSE's (Gao et al. 2021, arXiv 2104.08821, section 3)


def temperature_of(is_normalized: bool, given: float | None) -> float:
    """What an objective divides scores by; ``given`` by the user, or None. 1 changes nothing."""
    return given if given is not None else NORMALIZED_TEMPERATURE if is_normalized else 1.0


def at_temperature(rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """Rows whose scores are those of ``rows`` over the temperature."""
    return rows if temperature == 1.0 else rows.float() * temperature**-0.5


def pair_scores(queries_TD: torch.Tensor, passages_TD: torch.Tensor) -> torch.Tensor:
    """The score of query t for passage t: float32 [T].

    Args:
        queries_TD: embeddings of any float type, [..., D]; a single query broadcasts.
        passages_TD: the same shape.
    """
    return (queries_TD.float() * passages_TD.float()).sum(-1)


def best_rows(queries_TD: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """The row of passage t that is best for query t: [T, D].

    Args:
        queries_TD: embeddings of any float type.
        passages: the same shape, which is the answer then, or [T, R, D].
    """
    if passages.ndim == queries_TD.ndim:
        return passages
    best_T = pair_scores(queries_TD[:, None], passages).argmax(1)
    return passages[torch.arange(len(passages), device=passages.device), best_T]


def all_scores(queries_TD: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """The score of every query for every passage: float32 [T, G].

    Args:
        queries_TD: embeddings of any float type, [..., T, D].
        passages: embeddings of any float type, [..., G, D], or of passages with several rows [G, R, D].
    """
    # Autocast would round the product: ANCE's scores are near 700, where bfloat16 has steps of 4.
    with torch.autocast(queries_TD.device.type, enabled=False):
        if passages.ndim == queries_TD.ndim:
            return queries_TD.float() @ passages.float().mT
        return all_row_scores(queries_TD, passages).amax(2)


def all_row_scores(queries_TD: torch.Tensor, passages_GRD: torch.Tensor) -> torch.Tensor:
    """float32 [T, G, R], of each row by itself; without autocast."""
    scores_TN = queries_TD.float() @ passages_GRD.float().flatten(0, 1).mT
    return scores_TN.unflatten(1, passages_GRD.shape[:2])


def mean_rows(share_TG: torch.Tensor, queries_TD: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """float32 [T, D]: the best rows of all passages, added up with the weights ``share_TG``.

    It is the gradient of so weighted `all_scores` with respect to the queries.
    """
    with torch.autocast(queries_TD.device.type, enabled=False):
        if passages.ndim == queries_TD.ndim:
            return share_TG @ passages.float()
        best_TG1 = all_row_scores(queries_TD, passages).argmax(2, keepdim=True)
        share_TGR = torch.zeros(*share_TG.shape, passages.shape[1], device=share_TG.device)
        share_TGR.scatter_(2, best_TG1, share_TG[..., None])
        return share_TGR.flatten(1) @ passages.float().flatten(0, 1)
