"""The encoders against forwards written out by hand, and what their loaders accept and refuse."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from model.encoders.registry import check_fits, load_encoder, new_encoder
from model.encoders.roberta_dot import RobertaDot
from model.encoders.static import StaticEncoder
from tests.texts import token_batch
from utils.errors import UserError

PAD = 1
SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "type_vocab_size": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TEXTS = [[0, 7, 8, 9, 2], [0, 20, 2], [0, 30, 31, 32, 33, 34, 35, 2]]
STATIC = {"model_type": "static", "vocab_size": 60, "embedding_size": 6, "pad_token_id": PAD}


def padded(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, texts))
    ids_BL = torch.tensor([text + [PAD] * (length - len(text)) for text in texts])
    return ids_BL, torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])


def embed(encoder: RobertaDot | StaticEncoder, texts: list[list[int]]) -> np.ndarray:
    encoder.eval()
    with torch.no_grad():
        return np.asarray(encoder.encode(token_batch(texts), "passage").rows.numpy())


def with_rough_head(encoder: RobertaDot | StaticEncoder) -> Any:
    """Weights of a trained head's kind: a bias that is not 0, a norm whose scale is not 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in (encoder.embeddingHead, encoder.norm):
            for parameter in part.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return encoder


def new_roberta(**changes: Any) -> RobertaDot:
    torch.manual_seed(0)
    return with_rough_head(RobertaDot(RobertaConfig(**{**SHAPE, **changes})))


def head_by_hand(pooled_BH: np.ndarray, weights: dict[str, torch.Tensor]) -> np.ndarray:
    """LayerNorm(Linear(pooled)) in float64."""
    linear, bias, scale, shift = (
        weights[name].numpy().astype(np.float64)
        for name in ("embeddingHead.weight", "embeddingHead.bias", "norm.weight", "norm.bias")
    )
    x_BD = pooled_BH.astype(np.float64) @ linear.T + bias
    centred_BD = x_BD - x_BD.mean(1, keepdims=True)
    return np.asarray(centred_BD / np.sqrt((centred_BD**2).mean(1, keepdims=True) + 1e-5) * scale + shift)


def plain_roberta(encoder: RobertaDot) -> RobertaModel:
    """transformers' own model with the same weights."""
    body = RobertaModel(RobertaConfig(**SHAPE), add_pooling_layer=False).eval()
    weights = {k.removeprefix("roberta."): v for k, v in encoder.state_dict().items() if k.startswith("roberta.")}
    body.load_state_dict(weights)
    return body


def roberta_states(encoder: RobertaDot, texts: list[list[int]]) -> list[np.ndarray]:
    """The last hidden states of each text by itself, from transformers' own model."""
    body = plain_roberta(encoder)
    with torch.no_grad():
        return [body(torch.tensor([text])).last_hidden_state[0].numpy() for text in texts]


# rdot_nll: the forward


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_roberta_s_forward_is_that_written_out_by_hand(pooling: str) -> None:
    encoder = new_roberta(pooling=pooling)
    states = roberta_states(encoder, TEXTS)
    pooled_BH = np.stack([state[0] if pooling == "first" else state.mean(0) for state in states])
    expected = head_by_hand(pooled_BH, encoder.state_dict())
    np.testing.assert_allclose(embed(encoder, TEXTS), expected, rtol=1e-4, atol=1e-5)
    for i, text in enumerate(TEXTS):  # alone, and so without padding
        np.testing.assert_allclose(embed(encoder, [text])[0], expected[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_roberta_s_gradient_is_that_of_transformers_own_model(pooling: str, twice: bool) -> None:
    encoder = new_roberta(pooling=pooling).train()
    if twice:
        encoder.enable_gradient_checkpointing()
    body = plain_roberta(encoder)
    states = [body(torch.tensor([text])).last_hidden_state for text in TEXTS]
    expected_BH = torch.cat([state[:, 0] if pooling == "first" else state.mean(1) for state in states])
    for pooled_BH in (encoder.body.pooled_padded(*padded(TEXTS)), expected_BH):
        (pooled_BH * torch.linspace(-1, 1, pooled_BH.numel()).view_as(pooled_BH)).sum().backward()
    expected = dict(body.named_parameters())
    for name, parameter in encoder.roberta.named_parameters():
        assert parameter.grad is not None and expected[name].grad is not None
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_what_stands_after_a_text_s_end_is_not_read(pooling: str) -> None:
    encoder = new_roberta(pooling=pooling).eval()
    ids_BL, mask_BL = padded([TEXTS[1], TEXTS[2]])
    with torch.no_grad():
        clean = encoder.body_emb(ids_BL, mask_BL)
        ids_BL[0, 3:] = PAD
        longer = torch.nn.functional.pad(ids_BL, (0, 5), value=PAD)
        assert torch.allclose(clean, encoder.body_emb(longer, torch.nn.functional.pad(mask_BL, (0, 5))), atol=1e-5)


def test_queries_and_passages_share_the_encoder() -> None:
    encoder = new_roberta().eval()
    with torch.no_grad():
        query, passage = (encoder.encode(token_batch(TEXTS), side) for side in ("query", "passage"))
        assert query.mask_BR is None and torch.equal(query.rows, passage.rows)
        for packed in (False, True):
            encoder.pack_texts(packed)
            assert torch.equal(encoder.query_emb(*padded(TEXTS)), encoder.encode(token_batch(TEXTS), "query").rows)
            assert torch.equal(encoder.body_emb(*padded(TEXTS)), encoder.encode(token_batch(TEXTS), "passage").rows)


@pytest.mark.parametrize("model_type", ["rdot_nll", "static"])
def test_the_score_scale_multiplies_scores(model_type: str, tmp_path: Path) -> None:
    encoder = new_roberta() if model_type == "rdot_nll" else with_rough_head(StaticEncoder(STATIC))
    encoder.save_pretrained(tmp_path)
    scaled = load_encoder(model_type, str(tmp_path), changes={"score_scale": 0.25})
    plain_QK, scaled_QK = ((lambda x: x @ x.T)(embed(e, TEXTS)) for e in (encoder, scaled))
    np.testing.assert_allclose(scaled_QK, 0.25 * plain_QK, rtol=1e-4, atol=1e-5)


def test_the_embedding_is_768_wide_at_most() -> None:
    assert new_roberta().spec.embedding_dim == 16
    assert new_roberta(embedding_size=5).spec.embedding_dim == 5
    wide = new_roberta(hidden_size=1024, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    assert wide.spec.embedding_dim == 768 and wide.embeddingHead.weight.shape == (768, 1024)


# rdot_nll: names, loading, saving


def test_parameter_names_are_ance_s() -> None:
    """model/models.py of ANCE: RobertaDot_NLL_LN has a RobertaModel, an embeddingHead (Linear), a norm (LayerNorm)."""
    names = set(new_roberta().state_dict())
    head = {f"{part}.{kind}" for part in ("embeddingHead", "norm") for kind in ("weight", "bias")}
    # RoBERTa's names as of 2020, which ANCE's checkpoints have.
    layer = [
        *(f"attention.self.{part}" for part in ("query", "key", "value")),
        *("attention.output.dense", "attention.output.LayerNorm"),
        *("intermediate.dense", "output.dense", "output.LayerNorm"),
    ]
    body = {f"encoder.layer.{i}.{part}.{kind}" for i in range(2) for part in layer for kind in ("weight", "bias")}
    tables = {f"embeddings.{part}.weight" for part in ("word_embeddings", "position_embeddings")}
    tables |= {"embeddings.token_type_embeddings.weight", "embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"}
    assert names == head | {f"roberta.{name}" for name in body | tables}


def write_config(directory: Path, **changes: Any) -> None:
    config = {"architectures": ["RobertaForSequenceClassification"], "model_type": "roberta", **SHAPE, **changes}
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("says_type", [True, False])
def test_ance_s_checkpoints_load(tmp_path: Path, zipped: bool, says_type: bool) -> None:
    """A pytorch_model.bin with the parts of RobertaForSequenceClassification that ANCE never removed.

    transformers 2.3.0, which ANCE pins, writes no model_type.
    """
    encoder = new_roberta()
    weights = {
        **encoder.state_dict(),
        "classifier.dense.weight": torch.randn(16, 16),
        "classifier.out_proj.bias": torch.randn(2),
        "roberta.pooler.dense.weight": torch.randn(16, 16),
        "roberta.pooler.dense.bias": torch.randn(16),
        "roberta.embeddings.position_ids": torch.arange(40)[None],
    }
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    write_config(tmp_path, torch_dtype="float16", output_past=True, finetuning_task="msmarco", num_labels=2)
    if not says_type:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "model_type"}))
    loaded = load_encoder("rdot_nll", str(tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert np.array_equal(embed(loaded, TEXTS), embed(encoder, TEXTS))


def test_what_is_saved_loads_and_keeps_its_settings(tmp_path: Path) -> None:
    encoder = new_roberta(pooling="mean", score_scale=0.5, embedding_size=8)
    encoder.save_pretrained(tmp_path)
    loaded = load_encoder("rdot_nll", str(tmp_path))
    assert (loaded.body.pooling, loaded.score_scale, loaded.spec.embedding_dim) == ("mean", 0.5, 8)
    assert np.array_equal(embed(loaded, TEXTS), embed(encoder, TEXTS))
    assert not list(tmp_path.glob("*.bin")), "weights are stored as safetensors"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads((tmp_path / "config.json").read_text()), "pooling": "first"}))
    assert load_encoder("rdot_nll", str(tmp_path), config_name=str(other)).body.pooling == "first"


def test_weights_of_half_precision_are_loaded_as_float32(tmp_path: Path) -> None:
    new_roberta().half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    loaded = load_encoder("rdot_nll", str(tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("with_prefix", [True, False])
def test_a_plain_roberta_has_no_head_unless_one_is_wanted(tmp_path: Path, with_prefix: bool) -> None:
    plain = RobertaModel(RobertaConfig(**SHAPE), add_pooling_layer=True)
    weights = {("roberta." if with_prefix else "") + name: tensor for name, tensor in plain.state_dict().items()}
    if with_prefix:
        weights["lm_head.bias"] = torch.zeros(60)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    write_config(tmp_path)
    with pytest.raises(UserError, match=r"has no embeddingHead\.bias.*without ANCE's head"):
        load_encoder("rdot_nll", str(tmp_path))
    torch.manual_seed(1)
    first = load_encoder("rdot_nll", str(tmp_path), new_head=True)
    torch.manual_seed(1)
    second = load_encoder("rdot_nll", str(tmp_path), new_head=True)
    for name, tensor in plain.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(first.state_dict()[f"roberta.{name}"], tensor)
    assert torch.equal(first.embeddingHead.weight, second.embeddingHead.weight), "from torch's global seed"
    assert 0.01 < float(first.embeddingHead.weight.detach().std()) < 0.03, "normal of 0.02, as in ANCE"
    assert torch.equal(first.norm.weight, torch.ones(16)) and not first.norm.bias.any()


def refused(model_type: str, directory: Path, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_encoder(model_type, str(directory), **kwargs)
    message = str(caught.value)
    assert "\n" not in message and str(directory) in message and len(message) < 1000
    return message


def saved(model_type: str, directory: Path) -> Path:
    encoder = new_roberta() if model_type == "rdot_nll" else StaticEncoder(STATIC)
    encoder.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("saved_as", "asked"), [("rdot_nll", "static"), ("static", "rdot_nll")])
def test_another_model_type_is_refused(tmp_path: Path, saved_as: str, asked: str) -> None:
    assert f"--model_type {asked} needs" in refused(asked, saved(saved_as, tmp_path))


def test_an_unknown_model_type_is_refused(tmp_path: Path) -> None:
    for call in (load_encoder, lambda model_type, path: new_encoder(model_type, path, {})):
        with pytest.raises(UserError, match=r"expected one of hf, rdot_nll, dpr, static"):
            call("bert", str(tmp_path))


@pytest.mark.parametrize("model_type", ["rdot_nll", "static"])
@pytest.mark.parametrize("damage", ["no directory", "no config", "no weights", "truncated", "empty", "noise", "shape"])
def test_missing_and_damaged_checkpoints_are_refused(tmp_path: Path, model_type: str, damage: str) -> None:
    directory = saved(model_type, tmp_path)
    weights = directory / "model.safetensors"
    match damage:
        case "no directory":
            shutil.rmtree(directory)
        case "no config":
            (directory / "config.json").unlink()
        case "no weights":
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "empty":
            weights.write_bytes(b"")
        case "noise":
            weights.write_bytes(bytes(range(256)) * 20)
        case "shape":
            config = json.loads((directory / "config.json").read_text())
            (directory / "config.json").write_text(json.dumps({**config, "vocab_size": 61}))
    refused(model_type, directory)


@pytest.mark.parametrize("kept", [0, 1000])
def test_a_damaged_pytorch_file_is_refused(tmp_path: Path, kept: int) -> None:
    torch.save(new_roberta().state_dict(), tmp_path / "pytorch_model.bin")
    write_config(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:kept])
    refused("rdot_nll", tmp_path)


@pytest.mark.parametrize("model_type", ["rdot_nll", "static"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model_type": 3}', "\xff"])
def test_a_damaged_config_is_refused(tmp_path: Path, model_type: str, text: str) -> None:
    directory = saved(model_type, tmp_path)
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    refused(model_type, directory)


def test_a_checkpoint_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    weights = {k: v for k, v in new_roberta().state_dict().items() if "layer.1." not in k}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    write_config(tmp_path)
    for new_head in (True, False):
        message = refused("rdot_nll", tmp_path, new_head=new_head)
        assert re.search(r"lacks 16 of RoBERTa's weights, roberta\.encoder\.layer\.1\.", message)


def test_an_unknown_pooling_is_refused(tmp_path: Path) -> None:
    new_roberta().save_pretrained(tmp_path)
    assert "pooling 'max', expected one of first, mean, last, cls" in refused(
        "rdot_nll", tmp_path, changes={"pooling": "max"}
    )


# static


def test_the_static_forward_is_that_written_out_by_hand() -> None:
    encoder = with_rough_head(StaticEncoder({**STATIC, "score_scale": 0.3}))
    table = encoder.embeddings.weight.detach().numpy().astype(np.float64)
    pooled_BH = np.stack([table[text].mean(0) for text in TEXTS])
    expected = head_by_hand(pooled_BH, encoder.state_dict()) * np.sqrt(0.3)
    np.testing.assert_allclose(embed(encoder, TEXTS), expected, rtol=1e-4, atol=1e-5)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(embed(encoder, [text])[0], expected[i], rtol=1e-4, atol=1e-5)


def test_the_static_encoder_is_saved_and_loaded(tmp_path: Path) -> None:
    encoder = with_rough_head(StaticEncoder({**STATIC, "score_scale": 0.3}))
    encoder.save_pretrained(tmp_path)
    loaded = load_encoder("static", str(tmp_path))
    assert np.array_equal(embed(loaded, TEXTS), embed(encoder, TEXTS))
    assert loaded.config == encoder.config and loaded.spec.embedding_dim == 6
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps({**encoder.config, "score_scale": 2.0}))
    assert load_encoder("static", str(tmp_path), config_name=str(changed)).score_scale == 2.0


def test_a_static_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    encoder = StaticEncoder(STATIC)
    encoder.save_pretrained(tmp_path)
    save_file({"embeddings.weight": encoder.embeddings.weight.detach()}, str(tmp_path / "model.safetensors"))
    assert "has no embeddingHead.bias: a checkpoint without its head" in refused("static", tmp_path)


# new encoders


@pytest.mark.parametrize("model_type", ["rdot_nll", "static"])
def test_a_new_encoder_has_the_config_s_shape_and_the_seed_s_weights(tmp_path: Path, model_type: str) -> None:
    source = saved(model_type, tmp_path)
    changes = {"vocab_size": 33, "pad_token_id": 0, "score_scale": 0.5}
    encoders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        encoders.append(new_encoder(model_type, str(source / "config.json"), changes))
    first, same, other = (encoder.embeddingHead.weight for encoder in encoders)
    assert torch.equal(first, same) and not torch.equal(first, other)
    check_fits(encoders[0].spec, 33, 0, {"passage": 20, "query": 20})
    assert encoders[0].score_scale == 0.5
    if model_type == "rdot_nll":
        table = encoders[0].roberta.embeddings.word_embeddings
        assert table.weight.shape == (33, 16) and table.padding_idx == 0 and not table.weight[0].any()
    else:
        assert encoders[0].embeddings.weight.shape == (33, 6)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("static", {"model_type": "static", "vocab_size": 60}),
        ("static", {"model_type": "static", "vocab_size": 60, "embedding_size": "wide"}),
        ("rdot_nll", {"model_type": "roberta", **SHAPE, "num_attention_heads": 3}),
        ("rdot_nll", {"model_type": "roberta", **SHAPE, "hidden_size": "wide"}),
        ("rdot_nll", {"model_type": "roberta", **SHAPE, "pooling": "max"}),
    ],
)
def test_a_config_that_describes_no_encoder_is_refused(tmp_path: Path, model_type: str, config: dict) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json describes no") as caught:
        new_encoder(model_type, str(path), {})
    assert "\n" not in str(caught.value)


# check_fits


def test_what_fits_roberta() -> None:
    encoder = new_roberta()  # 40 position embeddings, the first two for the padding id 1 and before
    check_fits(encoder.spec, 60, PAD, {"passage": 38, "query": 8})
    longest = [[0, *range(2, 38), 2]]
    assert np.isfinite(embed(encoder, longest)).all() and len(longest[0]) == 38
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        embed(encoder, [[0, *range(2, 39), 2]])
    for arguments, complaint in (
        ((61, PAD, 38), "the tokenizer has 61 tokens, the model 60"),
        ((60, 0, 38), "pads with 0, the model's config says 1"),
        ((60, PAD, 39), "up to 39 tokens, the model 38 positions"),
    ):
        with pytest.raises(UserError, match=complaint):
            check_fits(encoder.spec, *arguments[:2], {"passage": 8, "query": arguments[2]})


def test_rows_are_compared_by_their_inner_product() -> None:
    spec = StaticEncoder(STATIC).spec
    with pytest.raises(UserError, match=r"^the model compares rows by 'cosine', expected 'dot'; [^\n]+$"):
        check_fits(dataclasses.replace(spec, similarity="cosine"), 60, 0, {"passage": 8})


def test_what_fits_a_static_encoder() -> None:
    encoder = StaticEncoder(STATIC)
    check_fits(encoder.spec, 60, 0, {"passage": 100_000})
    with pytest.raises(UserError, match="61 tokens, the model 60"):
        check_fits(encoder.spec, 61, PAD, {"passage": 8})


def test_a_static_model_s_config_is_json_that_any_reader_takes(tmp_path: Path) -> None:
    """Its bytes are those of before: other programs know a config by them."""
    config = {"vocab_size": 5, "embedding_size": 2, "score_scale": 1.5, "a": {"y": 1, "b": [2]}}
    StaticEncoder(config).save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text()
    assert written == json.dumps(json.loads(written), indent=2, sort_keys=True) + "\n"
    StaticEncoder({**config, "a": float("nan")}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)["a"] is None
