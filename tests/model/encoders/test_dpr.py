"""Two towers against transformers' own DPR, and what their loader accepts and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
)

from drivers.job.model_identity import ModelSettings, identity_of
from model.checkpoints import as_two_of_one_kind
from model.encoders.base import Encoder
from model.encoders.dpr import QUERY_MODEL, TOWERS, TwoTowers
from model.encoders.lora import add_adapters, merged
from model.encoders.registry import load_encoder, new_encoder, read_spec
from model.encoders.spec import Side
from model.train.checkpoint import save_encoder
from model.train.optim import layer_gradient_norms, make_optimizer
from model.train.step import make_state, train_step
from tests.model.encoders.test_encoders import SHAPE as OF_ROBERTA
from tests.model.train.test_step import LOSSES, constant, made_up_batches
from tests.processes_as_threads import ALONE
from tests.real import minilm_dir
from tests.texts import token_batch
from utils.declared.lora import LoraSettings
from utils.errors import UserError
from utils.exchange.model_files import weights_sha256

SHAPE: dict[str, Any] = {**OF_ROBERTA, "pad_token_id": 0, "type_vocab_size": 2, "initializer_range": 0.3}
TEXTS = [[2, 7, 8, 9, 3], [2, 20, 3], [2, 30, 31, 32, 33, 34, 35, 3]]
SIDES: tuple[Side, Side] = ("query", "passage")


def bert(directory: Path, seed: int, **changes: Any) -> Path:
    torch.manual_seed(seed)
    BertModel(BertConfig(**{**SHAPE, **changes})).save_pretrained(directory)
    return directory


def embed(encoder: Encoder, side: Side, texts: list[list[int]] = TEXTS) -> np.ndarray:
    encoder.eval()
    with torch.no_grad():
        return np.asarray(encoder.encode(token_batch(texts), side).rows.numpy())


def saved(encoder: TwoTowers, directory: Path) -> Path:
    directory.mkdir()
    save_encoder(encoder, directory)
    return directory


def pair(tmp_path: Path, **changes: Any) -> TwoTowers:
    """Towers of two different encoders."""
    query, passage = bert(tmp_path / "query", 1), bert(tmp_path / "passage", 2)
    made = load_encoder("dpr", str(passage), changes={QUERY_MODEL: str(query), **changes})
    assert isinstance(made, TwoTowers)
    return made


@pytest.mark.parametrize("width", [0, 6])
def test_embeddings_are_transformers_dpr_s(width: int, tmp_path: Path) -> None:
    """transformers' DPRQuestionEncoder and DPRContextEncoder with the same tensors, padded."""
    torch.manual_seed(0)
    config = DPRConfig(**SHAPE, projection_dim=width)
    theirs = {"query": DPRQuestionEncoder(config).eval(), "passage": DPRContextEncoder(config).eval()}
    weights = {}
    for side, model in theirs.items():
        prefix = "question_encoder." if side == "query" else "ctx_encoder."
        for name, tensor in model.state_dict().items():
            rest = name.removeprefix(prefix).removeprefix("bert_model.")
            weights[f"{TOWERS[side]}.{rest}"] = tensor.clone()  # type: ignore[index]
    tower = {"model_type": "bert", **SHAPE}
    described = {"model_type": "dpr", "projection_dim": width, **dict.fromkeys(TOWERS.values(), tower)}
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file(weights, tmp_path / "model.safetensors")
    encoder = load_encoder("dpr", str(tmp_path))
    longest = max(map(len, TEXTS))
    ids_BL = torch.tensor([text + [0] * (longest - len(text)) for text in TEXTS])
    for side in SIDES:
        with torch.no_grad():
            expected = theirs[side](ids_BL, attention_mask=(ids_BL != 0).long()).pooler_output.numpy()
        np.testing.assert_allclose(embed(encoder, side), expected, rtol=1e-5, atol=1e-6)
        assert encoder.spec.embedding_dim == expected.shape[1]
    assert abs(embed(encoder, "query") - embed(encoder, "passage")).max() > 0.1


def test_one_encoder_for_both_towers_and_two_of_their_own(tmp_path: Path) -> None:
    query, passage = bert(tmp_path / "query", 1), bert(tmp_path / "passage", 2)
    both = load_encoder("dpr", str(query))
    assert np.array_equal(embed(both, "query"), embed(both, "passage"))
    one = load_encoder("dpr", str(passage), changes={QUERY_MODEL: str(query)})
    other = load_encoder("dpr", str(passage))
    assert np.array_equal(embed(one, "query"), embed(both, "query"))
    assert np.array_equal(embed(one, "passage"), embed(other, "passage"))
    # The copies are apart from each other.
    both.get_parameter("ctx_model.embeddings.LayerNorm.bias").data.add_(torch.arange(16.0))
    assert not np.array_equal(embed(both, "query"), embed(both, "passage"))
    assert np.array_equal(embed(both, "query"), embed(one, "query"))


def test_what_is_saved_has_dpr_s_names_and_loads(tmp_path: Path) -> None:
    encoder = pair(tmp_path)
    directory = saved(encoder, tmp_path / "saved")
    names = set(load_file(directory / "model.safetensors"))
    plain = {n for n in load_file(tmp_path / "query" / "model.safetensors") if not n.startswith("pooler.")}
    assert names == {f"{tower}.{name}" for tower in TOWERS.values() for name in plain}
    loaded = load_encoder("dpr", str(directory))
    assert set(encoder.state_dict()) == names
    for side in SIDES:
        assert np.array_equal(embed(loaded, side), embed(encoder, side))
    assert read_spec(str(directory), "dpr") == loaded.spec == encoder.spec


def test_tied_towers_are_one_encoder_of_both_sides(tmp_path: Path) -> None:
    base = bert(tmp_path / "base", 1)
    tied = load_encoder("dpr", str(base), changes={"tied": True})
    assert isinstance(tied, TwoTowers)
    plain = BertModel.from_pretrained(base, add_pooling_layer=False)
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in plain.parameters())
    assert np.array_equal(embed(tied, "query"), embed(tied, "passage"))
    apart = load_encoder("dpr", str(base))
    assert isinstance(apart, TwoTowers)
    gradients = []
    for encoder in (tied, apart):
        rows = [encoder.encode(token_batch(TEXTS), side).rows for side in SIDES]
        (rows[0] * rows[1] ** 2).sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        both = gradients[1][name] + gradients[1][name.replace("question_model", "ctx_model")]
        torch.testing.assert_close(gradient, both, rtol=1e-4, atol=1e-4)
    directory = saved(tied, tmp_path / "tied")
    assert all(name.startswith("question_model.") for name in load_file(directory / "model.safetensors"))
    loaded = load_encoder("dpr", str(directory))
    assert isinstance(loaded, TwoTowers) and loaded.is_tied
    assert np.array_equal(embed(loaded, "passage"), embed(tied, "passage"))
    assert set(layer_gradient_norms(tied)) == {"embeddings", "layer_0", "layer_1"}
    both_sides = {f"{side}_{name}" for side in SIDES for name in ("embeddings", "layer_0", "layer_1")}
    assert set(layer_gradient_norms(apart)) == both_sides


@pytest.mark.parametrize("loss", LOSSES)
def test_tied_towers_are_trained_bit_by_bit_as_one_encoder(loss: str, tmp_path: Path) -> None:
    base = bert(tmp_path / "base", 1, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    found = []
    for model_type, changes in (("dpr", {"tied": True}), ("hf", {"pooling": "first"})):
        encoder = load_encoder(model_type, str(base), changes=changes)
        encoder.pack_texts(True)  # type: ignore[attr-defined]
        optimizer = make_optimizer("lamb", encoder, 1e-2, 1e-8, 0.01)
        state = make_state(encoder, loss, optimizer, constant(optimizer), ALONE, None, 1.0)
        torch.manual_seed(3)
        losses = [train_step(state, made_up_batches(loss, 8, 2)) for _ in range(2)]
        names = {name.partition(".")[2]: tensor for name, tensor in encoder.state_dict().items()}
        found.append((losses, names))
    (losses, tied), (expected, shared) = found
    assert losses == expected and losses[0] != losses[1]
    assert tied.keys() == shared.keys() and all(torch.equal(tensor, shared[name]) for name, tensor in tied.items())


@pytest.mark.parametrize("side", SIDES)
def test_the_identity_is_another_when_either_tower_is(side: Side, tmp_path: Path) -> None:
    encoder = pair(tmp_path)
    first = weights_sha256(saved(encoder, tmp_path / "first"))
    assert weights_sha256(saved(encoder, tmp_path / "again")) == first
    encoder.get_parameter(f"{TOWERS[side]}.embeddings.LayerNorm.bias").data[0] += 1
    assert weights_sha256(saved(encoder, tmp_path / "changed")) != first


def test_the_identity_has_the_config_of_the_queries_model(tmp_path: Path) -> None:
    query, passage = bert(tmp_path / "query", 1), bert(tmp_path / "passage", 2)
    settings = ModelSettings(str(passage), "dpr", query_name_or_path=str(query))
    first = identity_of(settings)
    path = query / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))
    differing = {name for name, value in identity_of(settings).items() if value != first[name]}
    assert differing == {"initial_query_config_sha256"}


@pytest.mark.parametrize("side", SIDES)
def test_a_frozen_tower_has_no_gradient_and_no_dropout(side: Side, tmp_path: Path) -> None:
    dropout = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    encoder = load_encoder("dpr", str(bert(tmp_path / "base", 1, **dropout)))
    assert isinstance(encoder, TwoTowers)
    encoder.freeze(side)
    encoder.train()
    (other,) = {*SIDES} - {side}
    rows = {s: [encoder.encode(token_batch(TEXTS), s).rows for _ in range(2)] for s in SIDES}
    assert torch.equal(*rows[side]) and not torch.equal(*rows[other])
    assert not rows[side][0].requires_grad and rows[other][0].requires_grad
    assert {n.split(".")[0] for n, p in encoder.named_parameters() if p.requires_grad} == {TOWERS[other]}
    tied = load_encoder("dpr", str(tmp_path / "base"), changes={"tied": True})
    with pytest.raises(UserError, match="tied"):
        tied.freeze(side)  # type: ignore[operator]


def test_towers_may_be_of_different_families(tmp_path: Path) -> None:
    torch.manual_seed(4)
    sizes = {"vocab_size": 60, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 20}
    DistilBertModel(DistilBertConfig(**sizes, pad_token_id=0)).save_pretrained(tmp_path / "small")
    changes = {QUERY_MODEL: str(tmp_path / "small")}
    encoder = load_encoder("dpr", str(bert(tmp_path / "large", 1)), changes=changes)
    assert (encoder.spec.max_query_length, encoder.spec.max_passage_length) == (20, 40)
    loaded = load_encoder("dpr", str(saved(encoder, tmp_path / "saved")))  # type: ignore[arg-type]
    for side in SIDES:
        assert np.array_equal(embed(loaded, side), embed(encoder, side))
    wide = bert(tmp_path / "wide", 1, hidden_size=32)
    with pytest.raises(UserError, match="queries' tower has 16 numbers in an embedding, the passages' 32"):
        load_encoder("dpr", str(wide), changes=changes)


def test_sentence_transformers_files_say_how_a_tower_pools(tmp_path: Path) -> None:
    base = bert(tmp_path / "base", 1)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules]
    (base / "modules.json").write_text(json.dumps(listed))
    encoder = load_encoder("dpr", str(base))
    body = BertModel.from_pretrained(base, add_pooling_layer=False).eval()
    with torch.no_grad():
        means = np.stack([body(torch.tensor([text])).last_hidden_state[0].mean(0).numpy() for text in TEXTS])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    for side in SIDES:
        np.testing.assert_allclose(embed(encoder, side), expected, rtol=1e-5, atol=1e-6)
    assert encoder.spec.is_normalized and read_spec(str(base), "dpr") == encoder.spec
    loaded = load_encoder("dpr", str(saved(encoder, tmp_path / "saved")))  # type: ignore[arg-type]
    assert np.array_equal(embed(loaded, "query"), embed(encoder, "query"))
    first = load_encoder("dpr", str(base), changes={"pooling": "first"})
    assert not np.array_equal(embed(first, "query"), embed(encoder, "query"))


@pytest.mark.parametrize("side", SIDES)
def test_packed_is_padded_and_a_score_s_factor_is_folded_in(side: Side, tmp_path: Path) -> None:
    encoder = pair(tmp_path)
    padded = embed(encoder, side)
    encoder.pack_texts(True)
    np.testing.assert_allclose(embed(encoder, side), padded, rtol=1e-4, atol=1e-5)
    scaled = load_encoder("dpr", str(saved(encoder, tmp_path / "saved")), changes={"score_scale": 0.25})
    np.testing.assert_allclose(embed(scaled, side), padded / 2, rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_stand_in_both_towers(tied: bool, tmp_path: Path) -> None:
    base = bert(tmp_path / "base", 1)
    encoder = load_encoder("dpr", str(base), changes={"tied": tied})
    assert isinstance(encoder, TwoTowers)
    add_adapters(encoder, LoraSettings(4, 8, 0.0), str(base), seed=0)
    draw = torch.Generator().manual_seed(5)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw)
    if not tied:
        encoder.freeze("passage")
    trained = {name.split(".")[0] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"question_model"}
    directory = saved(encoder, tmp_path / "saved")
    loaded = load_encoder("dpr", str(directory))
    whole = load_encoder("dpr", str(saved(merged(load_encoder("dpr", str(directory))), tmp_path / "merged")))  # type: ignore[arg-type]
    plain = load_encoder("dpr", str(base))
    for side in SIDES:
        assert np.array_equal(embed(loaded, side), embed(encoder, side))
        np.testing.assert_allclose(embed(whole, side), embed(encoder, side), rtol=1e-4, atol=1e-5)
        assert abs(embed(plain, side) - embed(encoder, side)).max() > 0.1
    assert np.array_equal(embed(whole, "query"), embed(whole, "passage")) == tied


def test_random_towers_of_a_body_s_config(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "bert", **SHAPE, "vocab_size": 7}))
    encoder = new_encoder("dpr", str(config), {"vocab_size": 61, "pad_token_id": 0})
    assert encoder.spec.vocab_size == 61
    assert not np.array_equal(embed(encoder, "query"), embed(encoder, "passage"))


def refused(directory: Path, word: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=word) as caught:
        load_encoder("dpr", str(directory), changes=changes)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


@pytest.mark.parametrize("side", SIDES)
def test_weights_that_lack_a_tower_are_refused(side: Side, tmp_path: Path) -> None:
    directory = saved(pair(tmp_path), tmp_path / "saved")
    weights = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(TOWERS[side])}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    refused(directory, f"has no weights of {TOWERS[side]}: one tower alone")


@pytest.mark.parametrize("damage", ["a layer", "more", "truncated", "none", "hugging face", "twice"])
def test_damaged_checkpoints_are_refused(damage: str, tmp_path: Path) -> None:
    directory = saved(pair(tmp_path), tmp_path / "saved")
    path = directory / "model.safetensors"
    weights = load_file(path)
    changes: dict[str, Any] = {}
    match damage:
        case "a layer":
            save_file({n: t for n, t in weights.items() if "layer.1." not in n}, path)
        case "more":
            save_file({**weights, "ctx_model.encode_proj.weight": torch.zeros(2, 16)}, path)
        case "truncated":
            path.write_bytes(path.read_bytes()[:-100])
        case "none":
            path.unlink()
        case "hugging face":
            DPRContextEncoder(DPRConfig(**SHAPE)).save_pretrained(directory)
        case "twice":
            changes[QUERY_MODEL] = str(tmp_path / "query")
    words = {
        "a layer": "lacks ctx_model.encoder.layer.1",
        "more": "and its config does not, ctx_model.encode_proj.weight",
        "hugging face": "python -m model.convert joins them",
        "twice": "two towers already",
    }
    refused(directory, words.get(damage, "two towers"), **changes)


def test_an_older_bert_that_names_no_type_is_a_tower(tmp_path: Path) -> None:
    """transformers before 2.4, which ANCE pins, writes no model_type."""
    known, older = bert(tmp_path / "known", 1), bert(tmp_path / "older", 1)
    config = json.loads((older / "config.json").read_text())
    (older / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "model_type"}))
    assert read_spec(str(older), "dpr") == read_spec(str(known), "dpr")
    expected, found = (embed(load_encoder("dpr", str(path)), "query") for path in (known, older))
    assert np.array_equal(found, expected)


@pytest.mark.measured
def test_towers_and_adapters_of_a_real_model(tmp_path: Path) -> None:
    """MiniLM as both towers gives sentence-transformers' vectors, and adapters in it are what they are once merged."""
    from sentence_transformers import SentenceTransformer

    texts = [line for line in Path(json.__file__).read_text().splitlines() if len(line.split()) > 4]
    model = SentenceTransformer(str(minilm_dir()), device="cpu")
    ids = [model.tokenizer(text)["input_ids"] for text in texts]
    expected = model.encode(texts)
    encoder = load_encoder("dpr", str(minilm_dir()))
    for side in SIDES:
        np.testing.assert_allclose(embed(encoder, side, ids), expected, atol=1e-5)
    add_adapters(encoder, LoraSettings(8, 16, 0.0), str(minilm_dir()), seed=0)
    draw = torch.Generator().manual_seed(5)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) / 20
    adapted = load_encoder("dpr", str(saved(encoder, tmp_path / "adapters")))  # type: ignore[arg-type]
    for side in SIDES:
        changed = embed(adapted, side, ids)
        assert np.array_equal(changed, embed(encoder, side, ids)) and abs(changed - expected).max() > 0.05
    whole = merged(adapted)
    for side in SIDES:
        np.testing.assert_allclose(embed(whole, side, ids), embed(encoder, side, ids), atol=1e-5)


def test_towers_keep_nothing_of_the_texts_that_they_began_with(tmp_path: Path) -> None:
    """What a checkpoint records of them stands next to the towers, and is what an export says."""
    first = bert(tmp_path / "first", 1)
    config = json.loads((first / "config.json").read_text())
    said = {"text_profile": "ance", "query_prefix": "q: ", "initial_text_profile": "star", "max_seq_length": 9}
    (first / "config.json").write_text(json.dumps({**config, **said}))
    encoder = load_encoder("dpr", str(first))
    assert isinstance(encoder, TwoTowers)
    now = {"text_profile": "hf", "query_prefix": "", "passage_prefix": "", "initial_text_profile": "ance"}
    encoder.record(now)
    checkpoint = saved(encoder, tmp_path / "checkpoint")
    written = json.loads((checkpoint / "config.json").read_text())
    assert written | now == written and not set(said) & {*written["question_model"], *written["ctx_model"]}
    exported = as_two_of_one_kind(encoder, "x")[0]
    assert exported | now == exported
    assert TwoTowers.new(exported).config | now == TwoTowers.new(exported).config  # also where a body's are lifted
