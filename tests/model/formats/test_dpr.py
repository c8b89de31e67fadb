"""DPR's .cp, Hugging Face's DPR and sentence-transformers' Router of one tiny pair of BERTs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from model.encoders.registry import load_encoder
from tests.model.formats import names
from tests.model.formats.converting import call, convert, files_in, refused
from tests.model.formats.tiny import SIZES, TEXTS, roughen, token_ids, write_bert_tokenizer
from tests.texts import token_batch

SHAPE = {**SIZES, "hidden_size": 64, "num_attention_heads": 1}
IN_A_FILE = {f"{side}.{name}" for side in ("question_model", "ctx_model") for name in names.BODY | names.POOLER}
CLASSES = {"question_encoder": DPRQuestionEncoder, "ctx_encoder": DPRContextEncoder}


def make_published(directory: Path, projection_dim: int = 0, **sizes: Any) -> Path:
    """As facebook's DPR lies on the hub: a directory for each side, with its tokenizer."""
    for seed, (folder, class_) in enumerate(CLASSES.items()):
        vocab_size = write_bert_tokenizer(directory / folder)
        config = DPRConfig(**{**SHAPE, "vocab_size": vocab_size, "projection_dim": projection_dim, **sizes})
        torch.manual_seed(seed)
        model = class_(config)
        roughen(model, seed)
        model.save_pretrained(directory / folder)
    return directory


@pytest.fixture(scope="module", name="published")
def fixture_published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_published(tmp_path_factory.mktemp("published") / "hf")


def by_transformers(directory: Path, texts: list[str] = TEXTS) -> list[np.ndarray]:
    """Of questions and of passages, each text by itself."""
    found = []
    for folder, class_ in CLASSES.items():
        model = class_.from_pretrained(directory / folder).eval()
        ids = token_ids(directory / folder, texts, 512)
        with torch.no_grad():
            found.append(torch.cat([model(torch.tensor([text])).pooler_output for text in ids]).numpy())
    return found


def stored_in(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


@pytest.mark.parametrize("projection_dim", [0, 8])
def test_a_file_and_back_is_transformers_own_model(projection_dim: int, tmp_path: Path) -> None:
    published = make_published(tmp_path / "hf", projection_dim)
    file = convert("hf-dpr", "dpr", published, tmp_path / "both.cp")
    assert file.read_bytes().startswith(names.OLD_MAGIC)
    state = stored_in(file)
    projections = {
        f"{side}.encode_proj.{kind}" for side in ("question_model", "ctx_model") for kind in ("weight", "bias")
    }
    assert set(state["model_dict"]) == IN_A_FILE | (projections if projection_dim else set())
    assert {key: value for key, value in state.items() if key != "model_dict"} == {
        "optimizer_dict": {},
        "scheduler_dict": {},
        "offset": 0,
        "epoch": 0,
        "encoder_params": {"encoder_model_type": "hf_bert", "projection_dim": projection_dim},
    }
    given = ("--tokenizer_name", str(published / "ctx_encoder"))
    back = convert("dpr", "hf-dpr", file, tmp_path / "back", *given)
    for ours, theirs in zip(by_transformers(back), by_transformers(published), strict=True):
        assert np.array_equal(ours, theirs)
    again = stored_in(convert("hf-dpr", "dpr", back, tmp_path / "again.cp"))["model_dict"]
    assert all(torch.equal(again[name], tensor) for name, tensor in state["model_dict"].items())


def test_the_files_of_hugging_face(published: Path, tmp_path: Path) -> None:
    made = convert("hf-dpr", "hf-dpr", published, tmp_path / "out")
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files_in(made) == {f"{folder}/{name}" for folder in CLASSES for name in files}
    for folder, class_ in CLASSES.items():
        config = json.loads((made / folder / "config.json").read_text())
        assert config["model_type"] == "dpr" and config["architectures"] == [class_.__name__]
        assert config["projection_dim"] == 0


def test_a_pooler_and_constants_of_older_versions(published: Path, tmp_path: Path) -> None:
    """A pooler is kept from file to file; what transformers 3 to 4.30 stored of positions is dropped."""
    state = stored_in(convert("hf-dpr", "dpr", published, tmp_path / "plain.cp"))
    weights = {name: torch.randn_like(tensor) for name, tensor in state["model_dict"].items()}
    constants = {f"{side}.embeddings.position_ids": torch.arange(40)[None] for side in ("question_model", "ctx_model")}
    torch.save({**state, "model_dict": {**weights, **constants}}, tmp_path / "older.cp")
    again = stored_in(convert("dpr", "dpr", tmp_path / "older.cp", tmp_path / "again.cp"))["model_dict"]
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("projection_dim", [0, 8])
def test_both_encoders_open_as_a_router(projection_dim: int, tmp_path: Path) -> None:
    published = make_published(tmp_path / "hf", projection_dim)
    made = convert("hf-dpr", "sentence-transformers", published, tmp_path / "out")
    router = SentenceTransformer(str(made), device="cpu")
    questions, passages = by_transformers(published)
    np.testing.assert_allclose(router.encode_query(TEXTS), questions, atol=1e-5)
    np.testing.assert_allclose(router.encode_document(TEXTS), passages, atol=1e-5)
    assert np.abs(questions - passages).max() > 0.1
    assert router.similarity_fn_name == "dot"


def test_two_directories_in_any_order(published: Path, tmp_path: Path) -> None:
    sides = [published / folder for folder in CLASSES]
    expected = stored_in(convert("hf-dpr", "dpr", published, tmp_path / "expected.cp"))["model_dict"]
    for number, (one, other) in enumerate((sides, reversed(sides))):
        call("hf-dpr", "dpr", one, other, tmp_path / f"{number}.cp")
        found = stored_in(tmp_path / f"{number}.cp")["model_dict"]
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_config_that_shapes_do_not_tell_is_asked_for(tmp_path: Path) -> None:
    published = make_published(tmp_path / "hf", hidden_size=16, num_attention_heads=2)
    file = convert("hf-dpr", "dpr", published, tmp_path / "both.cp")
    expected = "does not tell its attention heads: 16 is no multiple of 64; give --config_name"
    assert expected in refused("dpr", "hf-dpr", file, tmp_path / "out")
    config = {**json.loads((published / "ctx_encoder" / "config.json").read_text()), "model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = ("--config_name", str(tmp_path / "config.json"), "--tokenizer_name", str(published / "ctx_encoder"))
    back = convert("dpr", "hf-dpr", file, tmp_path / "back", *given)
    for ours, theirs in zip(by_transformers(back), by_transformers(published), strict=True):
        assert np.array_equal(ours, theirs)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    expected = "has num_hidden_layers 2, its config says 3"
    assert expected in refused("dpr", "hf-dpr", file, tmp_path / "out", *given)


# Refused


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("one side", "has no ctx_model.embeddings.LayerNorm.bias"),
        ("another shape", "has another shape in the other encoder"),
        ("unknown", "has question_model.cls.bias (1 weights are unknown)"),
        ("no state", "holds no model_dict, expected DPR's .cp"),
        ("cut", "is no file of torch that holds weights alone"),
        ("an object", "is no file of torch that holds weights alone"),
    ],
)
def test_a_damaged_file_is_refused(damage: str, expected: str, published: Path, tmp_path: Path) -> None:
    path = convert("hf-dpr", "dpr", published, tmp_path / "both.cp")
    state = stored_in(path)
    weights = state["model_dict"]
    if damage == "one side":
        state["model_dict"] = {name: tensor for name, tensor in weights.items() if name.startswith("question_model")}
    elif damage == "another shape":
        weights["ctx_model.embeddings.word_embeddings.weight"] = torch.zeros(9, 64)
    elif damage == "unknown":
        weights["question_model.cls.bias"] = torch.zeros(1)
    elif damage == "no state":
        state = weights
    elif damage == "an object":
        state["encoder_params"] = Path()
    torch.save(state, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    assert expected in refused("dpr", "hf-dpr", path, tmp_path / "out")


def test_directories_that_lack_a_side_or_differ_are_refused(published: Path, tmp_path: Path) -> None:
    question, context = (published / folder for folder in CLASSES)
    out = tmp_path / "out.cp"
    assert "holds no DPRContextEncoder, expected one directory" in refused("hf-dpr", "dpr", question, question, out)
    assert "holds no DPRQuestionEncoder, expected one directory" in refused("hf-dpr", "dpr", context, out)
    other = make_published(tmp_path / "other", intermediate_size=16) / "ctx_encoder"
    assert "differ in more than their class" in refused("hf-dpr", "dpr", question, other, out)


@pytest.mark.parametrize("folder", ["1_Pooling", "2_Dense", "nothing"])
def test_a_directory_of_another_layout_is_named(folder: str, tmp_path: Path) -> None:
    """A module of sentence-transformers has a config.json, too; of a pooling there are no weights next to it."""
    (tmp_path / "in" / folder).mkdir(parents=True)
    (tmp_path / "in" / "config.json").write_text('{"model_type": "bert"}')
    if folder != "nothing":
        (tmp_path / "in" / folder / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    expected = f"{tmp_path / 'in'} is not in the layout hf-dpr, expected the directories of a DPRQuestionEncoder and"
    assert expected in refused("hf-dpr", "dpr", tmp_path / "in", tmp_path / "out.cp")


def test_what_dpr_cannot_become_is_refused(published: Path, tmp_path: Path) -> None:
    for target in ("ance", "pyserini", "drhard"):
        expected = f"--to is {target}, --from hf-dpr converts into ours, sentence-transformers, dpr, hf-dpr alone"
        assert expected in refused("hf-dpr", target, published, tmp_path / "out")


# As a checkpoint of ours


def by_encoder(directory: Path, tokenizer: Path, changes: dict[str, Any] | None = None) -> list[np.ndarray]:
    encoder = load_encoder("dpr", str(directory), changes=changes).eval()
    batch = token_batch(token_ids(tokenizer, TEXTS, 512))
    with torch.no_grad():
        return [encoder.encode(batch, side).rows.numpy() for side in ("query", "passage")]


@pytest.mark.parametrize("projection_dim", [0, 8])
def test_a_checkpoint_of_two_towers_is_transformers_own_models_and_converts_back(
    projection_dim: int, tmp_path: Path
) -> None:
    published = make_published(tmp_path / "hf", projection_dim)
    ours = convert("hf-dpr", "ours", published, tmp_path / "ours")
    expected = by_transformers(published)
    for found, wanted in zip(by_encoder(ours, published / "ctx_encoder"), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    back = convert("ours", "hf-dpr", ours, tmp_path / "back")
    assert all(np.array_equal(*pair) for pair in zip(by_transformers(back), expected, strict=True))
    file = convert("ours", "dpr", ours, tmp_path / "both.cp")
    weights = stored_in(file)["model_dict"]
    from_published = stored_in(convert("hf-dpr", "dpr", published, tmp_path / "expected.cp"))["model_dict"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in from_published.items())
    again = convert("dpr", "ours", file, tmp_path / "again", "--tokenizer_name", str(published / "ctx_encoder"))
    assert all(
        np.array_equal(*pair)
        for pair in zip(*(by_encoder(path, published / "ctx_encoder") for path in (ours, again)), strict=True)
    )


def test_tied_towers_become_two_and_towers_of_two_kinds_are_refused(published: Path, tmp_path: Path) -> None:
    ours = convert("hf-dpr", "ours", published, tmp_path / "ours")
    encoder = load_encoder("dpr", str(ours))
    towers = encoder.config_dict()
    towers["ctx_model"]["layer_norm_eps"] = 1e-7
    (ours / "config.json").write_text(json.dumps(towers))
    assert "two towers whose layer_norm_eps differ" in refused("ours", "dpr", ours, tmp_path / "out.cp")
    plain = BertModel(BertConfig(**SHAPE, vocab_size=write_bert_tokenizer(tmp_path / "plain")))
    plain.save_pretrained(tmp_path / "plain")
    tied = load_encoder("dpr", str(tmp_path / "plain"), changes={"tied": True})
    (tmp_path / "tied").mkdir()
    tied.save_pretrained(tmp_path / "tied")
    made = convert("ours", "hf-dpr", tmp_path / "tied", tmp_path / "two", "--tokenizer_name", str(tmp_path / "plain"))
    questions, passages = by_transformers(made)
    assert np.array_equal(questions, passages)
    found = by_encoder(tmp_path / "tied", tmp_path / "plain")
    np.testing.assert_allclose(questions, found[0], rtol=1e-4, atol=1e-5)


def test_towers_that_pool_as_sentence_encoders_do_open_as_a_router(published: Path, tmp_path: Path) -> None:
    """Each side with its own weights; DPR's own layouts have no place for it."""
    ours = convert("hf-dpr", "ours", published, tmp_path / "ours")
    config = json.loads((ours / "config.json").read_text())
    for tower in ("question_model", "ctx_model"):
        config[tower] |= {"pooling": "mean", "normalize": True}
    (ours / "config.json").write_text(json.dumps(config))
    router = SentenceTransformer(str(convert("ours", "sentence-transformers", ours, tmp_path / "out")), device="cpu")
    queries, passages = by_encoder(ours, published / "ctx_encoder")
    np.testing.assert_allclose(router.encode_query(TEXTS), queries, atol=1e-5)
    np.testing.assert_allclose(router.encode_document(TEXTS), passages, atol=1e-5)
    for word in ("dpr", "hf-dpr"):
        assert "pools by 'mean', DPR by the first token alone" in refused("ours", word, ours, tmp_path / "no")
