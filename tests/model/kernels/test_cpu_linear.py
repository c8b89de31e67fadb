"""Weights prepacked against float64's products."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaIntermediate

from drivers.job.encoder_setup import prepare_encoder
from model.encoders.roberta_dot import RobertaDot
from model.kernels import cpu_linear
from model.kernels.cpu_linear import PrepackedIntermediate, PrepackedLinear, prepack_products
from model.kernels.precision import autocast, is_quick_at_bfloat16
from utils.distributed.world import World

CPU, BF16 = torch.device("cpu"), torch.bfloat16
ROUNDING = 2.0**-8  # of a bfloat16, relative
SMALL = 1 / 64  # numbers below are held to its rounding
ROWS = 2048

needs_bfloat16 = pytest.mark.skipif(
    not is_quick_at_bfloat16(CPU), reason="this CPU has no products in bfloat16: the layers stay plain"
)


def make_intermediate(width: int = 24, inner: int = 40, **changes: Any) -> RobertaIntermediate:
    torch.manual_seed(5)
    config = RobertaConfig(hidden_size=width, intermediate_size=inner, num_attention_heads=1, **changes)
    return RobertaIntermediate(config).to(BF16)


def make_prepacked(width: int = 24, inner: int = 40) -> PrepackedIntermediate:
    made = make_intermediate(width, inner)
    prepack_products(made, ROWS)
    assert isinstance(made, PrepackedIntermediate) and isinstance(made.dense, PrepackedLinear)
    return made


def applied(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """As encoding does."""
    with torch.inference_mode(), autocast(CPU, BF16):
        made: torch.Tensor = module(input)
        return made


@torch.inference_mode()
def exact(layer: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    return F.linear(input.to(BF16).double(), layer.weight.double(), layer.bias.double())


def far_off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, in roundings."""
    return float(((found.double() - expected).abs() / expected.abs().clamp(min=SMALL)).max()) / ROUNDING


@needs_bfloat16
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    width=st.integers(1, 200),
    inner=st.integers(1, 200),
    dtype=st.sampled_from([BF16, torch.float32]),
)
@example(rows=1, width=768, inner=3072, dtype=torch.float32)
@example(rows=ROWS + 1, width=768, inner=256, dtype=torch.float32)
def test_products_are_those_of_float64_but_for_one_rounding(
    rows: int, width: int, inner: int, dtype: torch.dtype
) -> None:
    intermediate = make_prepacked(width, inner)
    input = 3 * torch.randn(1, rows, width, dtype=dtype)
    product, activated = applied(intermediate.dense, input), applied(intermediate, input)
    assert product.dtype == activated.dtype == BF16 and product.shape == activated.shape == (1, rows, inner)
    expected = exact(intermediate.dense, input)
    assert far_off(product, expected) < 1.01
    assert far_off(activated, F.gelu(expected)) < 1.01


@needs_bfloat16
def test_what_is_prepacked_keeps_its_parameters() -> None:
    before, after = make_intermediate().state_dict(), make_prepacked().state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


@needs_bfloat16
def test_another_activation_is_computed_as_it_was() -> None:
    intermediate, input = make_intermediate(hidden_act="relu"), torch.randn(7, 24)
    prepack_products(intermediate, ROWS)
    assert type(intermediate) is RobertaIntermediate and type(intermediate.dense) is PrepackedLinear
    assert far_off(applied(intermediate, input), exact(intermediate.dense, input).relu()) < 1.01


@needs_bfloat16
def test_gradients_and_other_types_are_the_plain_layers() -> None:
    prepacked, plain = make_prepacked(), make_intermediate()
    found, expected = [], []
    for intermediate, results in ((prepacked, found), (plain, expected)):
        torch.manual_seed(6)
        input = torch.randn(7, 24, requires_grad=True)
        with autocast(CPU, BF16):
            intermediate(input).float().square().sum().backward()
        assert input.grad is not None and intermediate.dense.weight.grad is not None
        results += [input.grad, intermediate.dense.weight.grad]
        with torch.inference_mode(), autocast(CPU, torch.float16):
            results.append(intermediate(input))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    with torch.inference_mode(), pytest.raises(RuntimeError, match="dtype"):
        prepacked(torch.randn(7, 24))  # float32 with weights in bfloat16 is a mistake, as it is of plain layers


@needs_bfloat16
def test_a_compiled_model_has_the_plain_layers() -> None:
    """Which its compiler may join with what is around them."""
    intermediate, input = make_prepacked(), torch.randn(7, 24)
    seen = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    found = applied(torch.compile(intermediate, backend=backend, fullgraph=True), input)
    assert len(seen) >= 2 and not any("pointwise" in name for name in seen)
    assert far_off(found, F.gelu(exact(intermediate.dense, input))) < 6  # rounded before gelu, too


def no_kernel(*_args: Any) -> torch.Tensor:
    raise RuntimeError("could not create a primitive descriptor")


def another_product(input: torch.Tensor, *_others: Any) -> torch.Tensor:
    return torch.zeros(len(input), cpu_linear.TRIED_SHAPE[2], dtype=BF16)


@pytest.mark.parametrize("lacking", ["instructions", "oneDNN", "type", "kernel", "operation", "result"])
def test_where_it_cannot_be_the_layers_stay(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    intermediate = make_intermediate()
    monkeypatch.setattr(cpu_linear, "is_prepacking_right", cpu_linear.is_prepacking_right.__wrapped__)  # tried again
    if lacking == "instructions":
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    elif lacking == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif lacking == "type":
        intermediate.float()
    elif lacking == "kernel":
        monkeypatch.setattr(cpu_linear, "prepack", no_kernel)
    elif lacking == "operation":
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True))
    else:
        monkeypatch.setattr(cpu_linear, "prepacked_product", another_product)
    prepack_products(intermediate, ROWS)
    assert type(intermediate) is RobertaIntermediate and type(intermediate.dense) is nn.Linear


@needs_bfloat16
@pytest.mark.parametrize("trains", [False, True])
def test_an_encoder_is_prepacked_for_encoding_alone(trains: bool, tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    encoder = RobertaDot(config).eval()
    if not trains:
        encoder.cast_linear_weights(BF16)
    before = copy.deepcopy(encoder.state_dict())
    prepare_encoder(encoder, BF16, World(0, 1, CPU), trains=trains)
    prepacked = [name for name, module in encoder.named_modules() if type(module) is PrepackedLinear]
    assert len(prepacked) == (0 if trains else 6 * 2)
    encoder.save_pretrained(tmp_path)
    after = encoder.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    ids_BL = torch.from_numpy(np.random.default_rng(7).integers(5, 50, (3, 9)))
    with torch.inference_mode(), autocast(CPU, BF16):
        assert encoder.body_emb(ids_BL, torch.ones_like(ids_BL)).isfinite().all()
