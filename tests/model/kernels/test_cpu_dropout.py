"""Dropout on a CPU: how often, how much, what its gradient is, and that attention with it is attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch.nn import functional as F
from transformers import RobertaConfig

from model.encoders.roberta_dot import RobertaDot
from model.kernels import cpu_dropout
from model.kernels.cpu_dropout import cpu_eager_or_sdpa, dropped
from tests.model.encoders.test_encoders import SHAPE, padded

COUNT = 1_000_003


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked(p: float) -> None:
    torch.manual_seed(1)
    found = dropped(torch.ones(COUNT, dtype=torch.float64), p)
    is_dropped = found == 0
    rounded = round(p * 65_536) / 65_536
    assert is_likely(int(is_dropped.sum()), COUNT, rounded)
    assert torch.allclose(found[~is_dropped], torch.tensor(1 / (1 - rounded), dtype=torch.float64), rtol=1e-12, atol=0)
    # One element's fate says nothing of that of the next, with which it shares a draw, or of the fourth after it.
    for apart in (1, 2, 3, 4):
        assert is_likely(int((is_dropped[:-apart] & is_dropped[apart:]).sum()), COUNT - apart, rounded**2)


def is_likely(count: int, of: int, p: float) -> bool:
    """Whether neither as few nor as many are seen less often than once in a million times."""
    return bool(binom.cdf(count, of, p) > 1e-6 and binom.sf(count - 1, of, p) > 1e-6)


@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(0, 7), min_size=0, max_size=4), p=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_any_shape_and_the_seed_repeats_it(shape: list[int], p: float, seed: int) -> None:
    tensor = torch.rand(shape) + 1
    found = []
    for _ in range(2):
        torch.manual_seed(seed)
        found.append(dropped(tensor, p))
    assert found[0].shape == tensor.shape and found[0].dtype == tensor.dtype
    assert torch.equal(*found)
    assert p not in (0, 1) or torch.equal(found[0], tensor * (1 - p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_the_mask(dtype: torch.dtype) -> None:
    tensor = torch.ones(1000, dtype=dtype, requires_grad=True)
    torch.manual_seed(2)
    found = dropped(tensor, 0.3)
    found.sum().backward()
    assert tensor.grad is not None and torch.equal(tensor.grad, found.detach())


@pytest.mark.parametrize("with_mask", [False, True])
def test_attention_that_drops_almost_nothing_is_attention(with_mask: bool) -> None:
    """A probability that 16 bits round to 0 goes the way of dropout, and drops nothing."""
    draw = torch.Generator().manual_seed(3)
    heads = [torch.randn(3, 2, 5, 8, generator=draw, requires_grad=True) for _ in range(3)]
    mask = torch.tensor([5, 2, 1])[:, None, None, None] > torch.arange(5) if with_mask else None
    words = {"attn_mask": mask, "scale": 0.4}
    expected = F.scaled_dot_product_attention(*heads, **words).transpose(1, 2)  # type: ignore[arg-type]
    found, _ = cpu_eager_or_sdpa(torch.nn.Module(), *heads, mask, 1e-9, 0.4)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=draw)
    gradients = [torch.autograd.grad((output * weights).sum(), heads) for output in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("longest", [5, cpu_dropout.MAX_EAGER_LENGTH, cpu_dropout.MAX_EAGER_LENGTH + 1])
def test_attention_in_bfloat16_is_attention(longest: int, with_mask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the products up to so many tokens, by torch's own kernel above."""
    draw = torch.Generator().manual_seed(7)
    heads = [torch.randn(3, longest, 2, 8, generator=draw).bfloat16().transpose(1, 2) for _ in range(3)]
    lengths = torch.tensor([longest, 2, 1])[:, None, None, None]
    mask = lengths > torch.arange(longest) if with_mask else None
    query, key, value = (tensor.double() for tensor in heads)
    scores = query @ key.mT * 0.4
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    by_kernel: list[torch.Tensor] = []
    real = cpu_dropout.sdpa_attention_forward

    def noting(module: torch.nn.Module, query: torch.Tensor, *others: Any, **words: Any) -> Any:
        by_kernel.append(query)
        return real(module, query, *others, **words)

    monkeypatch.setattr(cpu_dropout, "sdpa_attention_forward", noting)
    module = torch.nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    found, _ = cpu_eager_or_sdpa(module, *heads, mask, 0.0, 0.4)
    assert len(by_kernel) == (longest > cpu_dropout.MAX_EAGER_LENGTH)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_drops_weights_behind_the_softmax(dtype: torch.dtype) -> None:
    """With the unit vectors for values, what comes out are the weights."""
    draw, p = torch.Generator().manual_seed(4), 0.3
    query_BHQD, key_BHLD = (torch.randn(2, 3, 16, 8, generator=draw).to(dtype) for _ in range(2))
    value_BHLD = torch.eye(16, dtype=dtype).expand(2, 3, 16, 16)
    mask = torch.tensor([16, 9])[:, None, None, None] > torch.arange(16)
    scores_BHQL = (query_BHQD.double() @ key_BHLD.double().mT * 0.5).masked_fill(~mask, -torch.inf)
    torch.manual_seed(5)
    found, _ = cpu_eager_or_sdpa(torch.nn.Module(), query_BHQD, key_BHLD, value_BHLD, mask, p, 0.5)
    found_BHQL = found.transpose(1, 2)
    expected_BHQL = scores_BHQL.softmax(-1) / (1 - round(p * 65_536) / 65_536)
    is_kept = found_BHQL != 0
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(
        found_BHQL[is_kept].double(), expected_BHQL[is_kept], rtol=tolerance, atol=tolerance / 10
    )
    may_be_kept = mask.expand_as(is_kept)
    assert not is_kept[~may_be_kept].any()
    assert is_likely(int(is_kept.sum()), int(may_be_kept.sum()), 1 - p)


@pytest.mark.parametrize(("p", "attention_p"), [(0.0, 0.3), (0.3, 0.0)])
def test_a_model_s_every_dropout_is_this_one(p: float, attention_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    changes = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": attention_p}
    encoder = RobertaDot(RobertaConfig(**{**SHAPE, **changes})).train()
    asked: list[int] = []
    real = cpu_dropout.dropped

    def noting(tensor: torch.Tensor, p: float) -> torch.Tensor:
        asked.append(tensor.dim())
        return real(tensor, p)

    monkeypatch.setattr(cpu_dropout, "dropped", noting)
    batch = padded([[0, 7, 8, 2], [0, 9, 2]])
    assert not torch.equal(encoder.body_emb(*batch), encoder.body_emb(*batch))
    # In each of 2 forwards: the attention's of 2 layers; or their two others, and the embeddings'.
    assert asked == ([4] * 2 * 2 if attention_p else [3] * 2 * 5)
    asked.clear()
    encoder.eval()
    assert torch.equal(encoder.body_emb(*batch), encoder.body_emb(*batch)) and not asked
