"""The objectives' losses, against their definitions in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.train.objectives import OBJECTIVES, EncodedBatch, in_batch_nll, pairwise_nll
from utils.declared.losses import LOSSES


def drawn(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape)).float()


def pairwise_by_hand(query_TD: np.ndarray, positive_TD: np.ndarray, negative_TD: np.ndarray) -> float:
    losses = []
    for query, positive, negative in zip(query_TD, positive_TD, negative_TD, strict=True):
        scores = np.array([query @ positive, query @ negative], np.float64)
        losses.append(-np.log(np.exp(scores[0]) / np.exp(scores).sum()))
    return float(np.mean(losses))


def in_batch_by_hand(
    query_TD: np.ndarray, passage_GD: np.ndarray, allowed_TG: np.ndarray, target_T: np.ndarray
) -> float:
    losses = []
    for t, query in enumerate(query_TD):
        weights = [np.exp(query @ passage_GD[g]) if allowed_TG[t, g] else 0.0 for g in range(len(passage_GD))]
        losses.append(-np.log(weights[target_T[t]] / sum(weights)))
    return float(np.mean(losses))


def made_up_mask(queries: int, passages: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target_T = rng.integers(0, passages, queries)
    allowed_TG = rng.random((queries, passages)) < 0.6
    allowed_TG[np.arange(queries), target_T] = True
    return allowed_TG, target_T


def float64(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy().astype(np.float64) for tensor in tensors]


def over_batch(
    query_TD: torch.Tensor, passages_GD: torch.Tensor, allowed_TG: torch.Tensor, target_T: torch.Tensor
) -> EncodedBatch:
    """A batch of which only the query and all passages count."""
    unused_TD = torch.zeros_like(query_TD)
    return EncodedBatch(query_TD, unused_TD, unused_TD, passages_GD, allowed_TG, target_T)


def test_every_loss_that_is_declared_has_its_objective() -> None:
    assert list(LOSSES) == list(OBJECTIVES)
    assert all(declared.word == word and declared.description and declared.paper for word, declared in LOSSES.items())


def test_a_loss_over_the_batch_refuses_a_batch_made_for_another() -> None:
    embeddings = [drawn(2, 4, seed=seed) for seed in range(3)]
    for word, declared in LOSSES.items():
        if declared.is_over_batch:
            with pytest.raises(AssertionError, match="not made for"):
                OBJECTIVES[word].loss(EncodedBatch(*embeddings))


def test_pairwise_is_the_softmax_of_two() -> None:
    embeddings = [drawn(7, 5, seed=seed) for seed in range(3)]
    assert float(pairwise_nll(EncodedBatch(*embeddings))) == pytest.approx(
        pairwise_by_hand(*float64(*embeddings)), rel=1e-6
    )


def test_pairwise_at_known_values() -> None:
    query, zero = torch.ones(2, 4), torch.zeros(2, 4)
    assert float(pairwise_nll(EncodedBatch(query, zero, zero))) == pytest.approx(np.log(2))
    # Scores of ±400: the naive formula overflows, the loss is their difference or 0.
    far = torch.full((2, 4), 100.0)
    assert float(pairwise_nll(EncodedBatch(query, zero, far))) == pytest.approx(400)
    assert float(pairwise_nll(EncodedBatch(query, far, zero))) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_in_batch_is_the_softmax_over_what_is_allowed(seed: int) -> None:
    query_TD, passage_GD = drawn(6, 4, seed=seed), drawn(9, 4, seed=seed + 50)
    allowed_TG, target_T = made_up_mask(6, 9, seed)
    found = in_batch_nll(over_batch(query_TD, passage_GD, torch.from_numpy(allowed_TG), torch.from_numpy(target_T)))
    expected = in_batch_by_hand(*float64(query_TD, passage_GD), allowed_TG, target_T)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_in_batch_with_one_negative_is_pairwise() -> None:
    query_TD, passage_GD = drawn(1, 4, seed=0), drawn(2, 4, seed=1)
    found = in_batch_nll(over_batch(query_TD, passage_GD, torch.ones(1, 2, dtype=torch.bool), torch.tensor([0])))
    expected = pairwise_nll(EncodedBatch(query_TD, passage_GD[:1], passage_GD[1:]))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_masked_passages_get_no_gradient() -> None:
    query_TD, passage_GD = drawn(2, 4, seed=0), drawn(4, 4, seed=1).requires_grad_()
    allowed_TG = torch.tensor([[True, True, False, False], [False, True, True, False]])
    in_batch_nll(over_batch(query_TD, passage_GD, allowed_TG, torch.tensor([0, 1]))).backward()
    assert passage_GD.grad is not None and torch.isfinite(passage_GD.grad).all()
    assert [bool(row.any()) for row in passage_GD.grad] == [True, True, True, False]


def slopes(function: object, arrays: list[np.ndarray], which: int) -> np.ndarray:
    """Central differences of ``function(*arrays)`` in float64."""
    found = np.zeros_like(arrays[which])
    for at in np.ndindex(found.shape):
        values = []
        for step in (1e-5, -1e-5):
            moved = [array.copy() for array in arrays]
            moved[which][at] += step
            values.append(function(*moved))  # type: ignore[operator]
        found[at] = (values[0] - values[1]) / 2e-5
    return found


def test_gradients_are_the_slopes_of_the_definitions() -> None:
    embeddings = [drawn(3, 4, seed=seed).requires_grad_() for seed in range(3)]
    pairwise_nll(EncodedBatch(*embeddings)).backward()
    for which, tensor in enumerate(embeddings):
        assert tensor.grad is not None
        expected = slopes(pairwise_by_hand, float64(*embeddings), which)
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-4, atol=1e-6)

    allowed_TG, target_T = made_up_mask(3, 5, 2)
    pair = [drawn(3, 4, seed=7).requires_grad_(), drawn(5, 4, seed=8).requires_grad_()]
    in_batch_nll(over_batch(*pair, torch.from_numpy(allowed_TG), torch.from_numpy(target_T))).backward()
    for which, tensor in enumerate(pair):
        assert tensor.grad is not None
        expected = slopes(lambda q, p: in_batch_by_hand(q, p, allowed_TG, target_T), float64(*pair), which)
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32(dtype: torch.dtype) -> None:
    """Inputs of half precision give the loss of those inputs, not one rounded on the way, under autocast too."""
    embeddings = [drawn(6, 8, seed=seed, scale=3.0).to(dtype) for seed in range(3)]
    allowed_TG, target_T = made_up_mask(6, 6, 1)
    masks = torch.from_numpy(allowed_TG), torch.from_numpy(target_T)
    wide = [tensor.double().numpy() for tensor in embeddings]
    with torch.autocast("cpu", dtype=dtype):
        pairwise = pairwise_nll(EncodedBatch(*embeddings))
        in_batch = in_batch_nll(over_batch(embeddings[0], embeddings[1], *masks))
    assert pairwise.dtype == in_batch.dtype == torch.float32
    assert float(pairwise) == pytest.approx(pairwise_by_hand(*wide), rel=1e-5)
    assert float(in_batch) == pytest.approx(in_batch_by_hand(wide[0], wide[1], allowed_TG, target_T), rel=1e-5)
