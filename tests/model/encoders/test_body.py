"""The body of an encoder, of each family: held against transformers' own model, one text at a time."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from model.encoders.body import Body, config_of, new_model, spec_of_body
from model.encoders.spec import POOLINGS, pooling_of
from model.kernels import cpu_linear, packed_attention
from model.kernels.cpu_linear import PrepackedLinear
from model.kernels.packed_attention import PACKED, PACKED_ON_CPU
from model.kernels.precision import autocast, is_quick_at_bfloat16
from model.token_batch import TokenBatch
from tests.model.encoders import families
from tests.model.encoders.families import FAMILIES, PAD, POSITIONS, config_of_family
from tests.model.kernels.test_packed_attention import text_by_text
from tests.processes_as_threads import CPU
from utils.errors import UserError

PADS = "pads"
WAYS = [
    *((kind, PADS) for kind in FAMILIES),
    *((kind, PACKED_ON_CPU) for kind in families.PACKED),
    ("bert", PACKED),
    ("distilbert", PACKED),
]
MODELS: dict[str, PreTrainedModel] = {}


def own_model(kind: str) -> PreTrainedModel:
    """transformers', with random weights and biases: it makes a layer norm of 1 and 0."""
    if kind not in MODELS:
        torch.manual_seed(1)
        MODELS[kind] = new_model(config_of(config_of_family(kind), kind)).eval()
        with torch.no_grad():
            for parameter in MODELS[kind].parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return copy.deepcopy(MODELS[kind])


def texts_of(lengths: list[int]) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(PAD + 1, 60, (length,), generator=draw) for length in lengths]


def batch_of(texts: list[torch.Tensor]) -> TokenBatch:
    return TokenBatch.of(torch.cat(texts), torch.tensor([0, *map(len, texts)]).cumsum(0))


def made_of(kind: str, pooling: str, way: str) -> Body:
    body = Body(own_model(kind), pooling)
    if way != PADS:
        body.pack_texts(True, way)
    return body


def expected_rows(model: PreTrainedModel, texts: list[torch.Tensor], pooling: str) -> torch.Tensor:
    states = [model(input_ids=text[None], attention_mask=torch.ones_like(text[None])) for text in texts]
    pool: dict[str, Any] = {"first": lambda hidden: hidden[0], "mean": lambda hidden: hidden.mean(0)}
    return torch.stack([pool.get(pooling, lambda hidden: hidden[-1])(state.last_hidden_state[0]) for state in states])


def gradient_of(model: PreTrainedModel, rows_BH: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (rows_BH * torch.linspace(-1, 1, rows_BH.numel()).view_as(rows_BH)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_rows_and_gradients_are_those_of_transformers_own_model(
    kind: str, way: str, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "quickest_kernel", lambda *_of: text_by_text)  # a GPU's
    body, theirs, texts = made_of(kind, pooling, way), own_model(kind), texts_of([5, 1, 64, 17])
    found, expected = body.pooled(batch_of(texts)), expected_rows(theirs, texts, pooling)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    ours, wanted = gradient_of(body.model, found), gradient_of(theirs, expected)
    total = float(torch.cat([gradient.flatten() for gradient in wanted.values()]).norm())
    assert set(wanted) <= set(ours)
    for name, gradient in ours.items():
        off = gradient - wanted.get(name, torch.zeros_like(gradient))
        assert float(off.norm()) <= 2e-4 * total, name


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("kind", families.PACKED)
def test_prepacked_in_bfloat16_is_near_float32(kind: str, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CPU encodes: shapes rounded up, products prepacked where the CPU has them."""
    texts = texts_of([5, 2, 33, 17, 60])
    body = made_of(kind, pooling, PACKED_ON_CPU)
    with torch.no_grad():
        expected = expected_rows(own_model(kind), texts, pooling)
    body.cast_linear_weights(torch.bfloat16)
    body.prepack_weights()
    products = count_calls(monkeypatch, cpu_linear, "prepacked_product")
    with torch.inference_mode(), autocast(CPU, torch.bfloat16):
        found = body.pooled(batch_of(texts)).float()
    assert float((found - expected).norm() / expected.norm()) < 0.05
    layers = [module for module in body.model.modules() if isinstance(module, nn.Linear)]
    if is_quick_at_bfloat16(torch.device("cpu")):
        assert layers and all(type(layer) is PrepackedLinear for layer in layers)
        assert len(products) >= len(layers), "each computes so"
    else:
        assert not products and all(type(layer) is nn.Linear for layer in layers)


def count_calls(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[str]:
    """Grows by an entry with each call of a module's function."""
    calls, plain = list[str](), getattr(module, name)

    def counted(*args: Any) -> Any:
        calls.append(name)
        return plain(*args)

    monkeypatch.setattr(module, name, counted)
    return calls


@pytest.mark.parametrize("kind", FAMILIES)
def test_padded_in_bfloat16_is_near_float32(kind: str) -> None:
    """Rows, and the gradients of training; then with lowered matrices."""
    body = made_of(kind, "mean", PADS)
    tokens = batch_of(texts_of([11, 3, 7]))
    exact_BH = body.pooled(tokens)
    exact = gradient_of(body.model, exact_BH)
    with autocast(CPU, torch.bfloat16):
        rows_BH = body.pooled(tokens)
    assert 0 < float((rows_BH - exact_BH).detach().norm() / exact_BH.detach().norm()) < 0.05
    found, norm = gradient_of(body.model, rows_BH), sum(float(gradient.norm()) for gradient in exact.values())
    assert found.keys() == exact.keys()
    assert sum(float((found[name] - exact[name]).norm()) for name in exact) < 0.2 * norm
    body.cast_linear_weights(torch.bfloat16)
    with torch.inference_mode(), autocast(CPU, torch.bfloat16):
        lowered_BH = body.pooled(tokens)
    assert float((lowered_BH - exact_BH.detach()).norm() / exact_BH.detach().norm()) < 0.05


@pytest.mark.parametrize("kind", families.PACKED)
def test_dropout_is_drawn_while_training_alone(kind: str) -> None:
    changes = {name: 0.5 for name in FAMILIES[kind] if "dropout" in name}
    torch.manual_seed(2)
    body = Body(new_model(config_of(config_of_family(kind, **changes), kind)).eval(), "mean")
    body.pack_texts(True)
    batch = batch_of(texts_of([9, 30]))
    assert torch.equal(body.pooled(batch), body.pooled(batch))
    body.model.train()
    rows = [body.pooled(batch) for _ in range(2)]
    assert not torch.equal(*rows) and all(bool(made.isfinite().all()) for made in rows)


@pytest.mark.parametrize("kind", [*families.PACKED])
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    body, batch = made_of(kind, "first", PACKED_ON_CPU), batch_of(texts_of([7, 20]))
    body.model.train()
    plain = gradient_of(body.model, body.pooled(batch))
    if kind == "mpnet":
        with pytest.raises(UserError, match="transformers' mpnet model cannot do it; omit it"):
            body.enable_gradient_checkpointing()
        return
    body.enable_gradient_checkpointing()
    again = gradient_of(body.model, body.pooled(batch))
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[name], again[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_spec_is_that_of_the_model(kind: str) -> None:
    config = config_of(config_of_family(kind), kind)
    spec = spec_of_body(config)
    longest = POSITIONS - 2 if kind in ("roberta", "xlm-roberta", "mpnet") else POSITIONS
    assert (spec.embedding_dim, spec.vocab_size, spec.pad_id, spec.max_query_length) == (32, 60, PAD, longest)
    model = own_model(kind)
    made_of(kind, "mean", PADS).pooled(batch_of(texts_of([longest])))
    groups = {spec.layer_of(f"model.{name}") for name, _ in model.named_parameters()}
    assert {"embeddings", "layer_0", "layer_1"} <= groups <= {"embeddings", "layer_0", "layer_1", "head"}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("longformer", {"attention_window": 8}),
        ("xlm-roberta-xl", {}),
        ("data2vec-text", {}),
        ("roberta-prelayernorm", {}),
        ("ibert", {}),
        ("xmod", {"languages": ["en_XX"], "default_language": "en_XX"}),
        ("luke", {"entity_vocab_size": 10}),
        ("markuplm", {}),
    ],
)
def test_padded_families_whose_positions_begin_as_roberta_s(kind: str, changes: dict[str, Any]) -> None:
    config = config_of({"model_type": kind, **families.BERT, "num_hidden_layers": 1, **changes}, kind)
    longest, body = spec_of_body(config).max_query_length, Body(new_model(config).eval(), "mean")
    assert longest == POSITIONS - 2
    body.pooled(batch_of(texts_of([longest])))
    with pytest.raises((IndexError, RuntimeError)):
        body.pooled(batch_of(texts_of([longest + 1])))


def test_words_of_pooling() -> None:
    assert [pooling_of(word) for word in POOLINGS] == ["first", "mean", "last", "first"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"model_type": "nobert"}, "is of a 'nobert' model, which transformers does not know"),
        ({}, "is of a None model"),
        ({"model_type": "t5"}, "is of a t5 model, an encoder with a decoder"),
        ({"model_type": "bert", "hidden_size": "wide"}, "describes no bert model"),
        ({"model_type": "dpr"}, "is of a dpr model, expected one encoder: give --model_type dpr, and convert"),
        ({"model_type": "vit"}, "is of a vit model without a vocab_size"),
        ({"model_type": "clip"}, "is of a clip model without a vocab_size"),
        ({"model_type": "roberta", "pad_token_id": None}, "has no pad_token_id, behind which a roberta model's"),
    ],
)
def test_what_is_no_encoder_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as raised:
        spec_of_body(config_of(values, "x/config.json"))
    assert problem in str(raised.value) and "\n" not in str(raised.value)
