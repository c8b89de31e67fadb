"""The score of a query for a passage, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.similarity import all_scores, best_rows, mean_rows, pair_scores

LARGE = 25.0  # embeddings of ANCE's size: inner products of several hundred


def embeddings(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(len(shape) + sum(shape))
    return (torch.randn(*shape) * LARGE).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_inner_products_in_float32_whatever_is_autocast(dtype: torch.dtype) -> None:
    queries_TD, passages_GD = embeddings(5, 32, dtype=dtype), embeddings(7, 32, dtype=dtype)
    expected_TG = queries_TD.double().numpy() @ passages_GD.double().numpy().T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        all_TG, pairs_T = all_scores(queries_TD, passages_GD), pair_scores(queries_TD, passages_GD[:5])
    assert all_TG.dtype == pairs_T.dtype == torch.float32
    np.testing.assert_allclose(all_TG.numpy(), expected_TG, rtol=0, atol=1e-2)  # bfloat16 has steps of 4 there
    np.testing.assert_allclose(pairs_T.numpy(), np.diag(expected_TG[:, :5]), rtol=0, atol=1e-2)


def test_dimensions_in_front_are_passed_through() -> None:
    queries_STD, passages_SGD = embeddings(2, 3, 8), embeddings(2, 4, 8)
    expected_STG = np.einsum("std,sgd->stg", queries_STD.double().numpy(), passages_SGD.double().numpy())
    np.testing.assert_allclose(all_scores(queries_STD, passages_SGD).numpy(), expected_STG, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(
        pair_scores(queries_STD, passages_SGD[:, :3]).numpy(),
        np.diagonal(expected_STG[:, :, :3], axis1=1, axis2=2), rtol=1e-3, atol=1e-2,
    )  # fmt: skip


# Passages with several rows


def test_a_passage_of_several_rows_is_scored_by_its_best() -> None:
    queries_TD, passages_GRD = embeddings(5, 8), embeddings(5, 3, 8)
    rows_TGR = np.einsum("td,grd->tgr", queries_TD.double().numpy(), passages_GRD.double().numpy())
    np.testing.assert_allclose(all_scores(queries_TD, passages_GRD).numpy(), rows_TGR.max(2), rtol=1e-3, atol=1e-2)
    best_T = rows_TGR[range(5), range(5)].argmax(1)
    assert len(set(best_T.tolist())) > 1
    assert torch.equal(best_rows(queries_TD, passages_GRD), passages_GRD[range(5), best_T])
    assert best_rows(queries_TD, queries_TD) is queries_TD


@pytest.mark.parametrize("shape", [(6, 8), (6, 3, 8)])
def test_mean_rows_are_the_gradient_of_weighted_scores(shape: tuple[int, ...]) -> None:
    queries_TD, passages = embeddings(4, 8).requires_grad_(), embeddings(*shape)
    share_TG = torch.rand(4, 6)
    (all_scores(queries_TD, passages) * share_TG).sum().backward()
    assert queries_TD.grad is not None
    torch.testing.assert_close(mean_rows(share_TG, queries_TD.detach(), passages), queries_TD.grad)
