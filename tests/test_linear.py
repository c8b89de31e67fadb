"""Weights arranged beforehand against float64's products, wherever this machine can arrange them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaIntermediate

from model.linear import OPERATIONS, ArrangedIntermediate, ArrangedLinear, arrange_products
from model.precision import is_quick_at_bfloat16

CPU, BF16 = torch.device("cpu"), torch.bfloat16
ROUNDING = 2.0**-8  # of a bfloat16, relative
CAN_ARRANGE = is_quick_at_bfloat16(CPU) and all(hasattr(torch.ops.mkldnn, name) for name in OPERATIONS)


def make_intermediate(width: int = 24, inner: int = 40, **changes: Any) -> RobertaIntermediate:
    torch.manual_seed(5)
    config = RobertaConfig(hidden_size=width, intermediate_size=inner, num_attention_heads=1, **changes)
    return RobertaIntermediate(config).to(BF16)


@torch.inference_mode()
def exact(layer: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    assert layer.bias is not None
    return F.linear(input.to(BF16).double(), layer.weight.double(), layer.bias.double())


def far_off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, in roundings of the number itself or, where it is small, of 1/8."""
    return float(((found.double() - expected).abs() / expected.abs().clamp(min=1 / 8)).max()) / ROUNDING


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    width=st.integers(1, 200),
    inner=st.integers(1, 200),
    dtype=st.sampled_from([BF16, torch.float32]),
)
def test_products_are_those_of_float64_but_for_one_rounding(
    rows: int, width: int, inner: int, dtype: torch.dtype
) -> None:
    intermediate = make_intermediate(width, inner)
    input = 3 * torch.randn(1, rows, width, dtype=dtype)
    arrange_products(intermediate)
    with torch.inference_mode(), torch.autocast("cpu", BF16):
        product, activated = intermediate.dense(input), intermediate(input)
    assert product.dtype == activated.dtype == BF16 and product.shape == activated.shape == (1, rows, inner)
    expected = exact(intermediate.dense, input)
    assert far_off(product, expected) < 1.01
    assert far_off(activated, F.gelu(expected)) < (1.01 if CAN_ARRANGE else 3)


def test_what_is_arranged_keeps_its_parameters() -> None:
    intermediate = make_intermediate()
    before = copy.deepcopy(intermediate.state_dict())
    arrange_products(intermediate)
    assert isinstance(intermediate.dense, ArrangedLinear) == isinstance(intermediate, ArrangedIntermediate)
    assert isinstance(intermediate, ArrangedIntermediate) == CAN_ARRANGE
    after = intermediate.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_a_changed_weight_is_arranged_again() -> None:
    intermediate, input = make_intermediate(), torch.randn(7, 24)
    arrange_products(intermediate)
    with torch.inference_mode():
        intermediate.dense.weight.mul_(2)
    arrange_products(intermediate)
    with torch.inference_mode(), torch.autocast("cpu", BF16):
        assert far_off(intermediate.dense(input), exact(intermediate.dense, input)) < 1.01


def test_another_activation_is_computed_as_it_was() -> None:
    intermediate = make_intermediate(hidden_act="relu")
    arrange_products(intermediate)
    assert type(intermediate) is RobertaIntermediate
    input = torch.randn(7, 24, dtype=BF16)
    with torch.inference_mode():
        assert far_off(intermediate(input), exact(intermediate.dense, input).relu()) < 1.01


@pytest.mark.parametrize("lacking", ["instructions", "oneDNN", "type"])
def test_where_it_cannot_be_the_layers_stay(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    intermediate = make_intermediate()
    if lacking == "instructions":
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    elif lacking == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        intermediate.float()
    arrange_products(intermediate)
    assert type(intermediate) is RobertaIntermediate and type(intermediate.dense) is nn.Linear


def test_a_compiled_model_has_the_plain_layers() -> None:
    """Which its compiler may join with what is around them."""
    intermediate, input = make_intermediate(), torch.randn(7, 24, dtype=BF16)
    arrange_products(intermediate)
    seen = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    with torch.inference_mode():
        compiled = torch.compile(intermediate, backend=backend)(input)
    assert len(seen) >= 2 and not any("pointwise" in name for name in seen)
    assert far_off(compiled, F.gelu(exact(intermediate.dense, input))) < 3
