"""ANCE's, Pyserini's, DRhard's and sentence-transformers' layouts of one tiny model, each against the others' readers.

The names that files must have are those of the published checkpoints, written out here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from model.encoders.registry import encoder_without_weights, load_encoder
from model.encoders.roberta_dot import RobertaDot
from tests.model.formats import names
from tests.model.formats.converting import convert, files_in, refused
from tests.model.formats.tiny import TEXTS, tiny_ance, token_ids, write_roberta_tokenizer
from tests.texts import token_batch
from utils.errors import UserError

LAYOUTS = ["ance", "pyserini", "drhard", "sentence-transformers", "ours"]
BODY = {f"roberta.{name}" for name in names.BODY}
HEAD = {"embeddingHead.weight", "embeddingHead.bias", "norm.weight", "norm.bias"}
UNUSED_OF_ANCE = {
    "roberta.pooler.dense.weight": (16, 16),
    "roberta.pooler.dense.bias": (16,),
    "classifier.dense.weight": (16, 16),
    "classifier.dense.bias": (16,),
    "classifier.out_proj.weight": (2, 16),
    "classifier.out_proj.bias": (2,),
}
POSITION_IDS = "roberta.embeddings.position_ids"


@pytest.fixture(scope="module", name="encoder")
def fixture_encoder(tmp_path_factory: pytest.TempPathFactory) -> RobertaDot:
    return tiny_ance(write_roberta_tokenizer(tmp_path_factory.mktemp("tokenizer")), embedding_size=768)


@pytest.fixture(scope="module", name="published")
def fixture_published(encoder: RobertaDot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ANCE's FirstP and MaxP checkpoints are: transformers 2.3's config, which names no type, and unused parts."""
    directory = tmp_path_factory.mktemp("published") / "ance"
    write_roberta_tokenizer(directory)
    config = {k: v for k, v in encoder.config_dict().items() if k not in ("model_type", "embedding_size")}
    (directory / "config.json").write_text(json.dumps({**config, "finetuning_task": "msmarco", "num_labels": 2}))
    unused = {name: torch.ones(shape) for name, shape in UNUSED_OF_ANCE.items()}
    weights = {**encoder.state_dict(), **unused}
    torch.save(weights, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return directory


@pytest.fixture(scope="module", name="converted")
def fixture_converted(published: Path) -> dict[str, Path]:
    """The published checkpoint in each layout."""
    return {word: convert("ance", word, published, published.with_name(f"as_{word}")) for word in LAYOUTS}


def vectors(directory: Path, word: str) -> np.ndarray:
    """By the layout's own reader, or one that is like it."""
    if word == "sentence-transformers":
        return np.asarray(SentenceTransformer(str(directory), device="cpu").encode(TEXTS))
    ids = token_ids(directory, TEXTS, 12)
    with torch.no_grad():
        if word == "ours":
            return load_encoder("rdot_nll", str(directory)).eval().encode(token_batch(ids), "passage").rows.numpy()
        model = LikePyserini(directory)
        return torch.cat([model(torch.tensor([text])) for text in ids]).numpy()


class LikePyserini(nn.Module):
    """What ANCE's, Pyserini's and DRhard's classes are: a RobertaModel, a Linear to 768 and a LayerNorm."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.roberta = RobertaModel(RobertaConfig.from_json_file(directory / "config.json"), add_pooling_layer=False)
        self.embeddingHead = nn.Linear(self.roberta.config.hidden_size, 768)
        self.norm = nn.LayerNorm(768)
        stored = torch.load(directory / "pytorch_model.bin", weights_only=True)
        missing, unexpected = self.load_state_dict(stored, strict=False)
        assert not missing and set(unexpected) <= {POSITION_IDS}
        self.eval()

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.norm(self.embeddingHead(self.roberta(ids_BL).last_hidden_state[:, 0]))
        return made


@pytest.mark.parametrize("word", LAYOUTS)
def test_every_layout_gives_the_same_vectors(word: str, converted: dict[str, Path], encoder: RobertaDot) -> None:
    ids = token_ids(converted["ours"], TEXTS, 12)
    with torch.no_grad():
        expected = encoder.encode(token_batch(ids), "passage").rows.numpy()
    np.testing.assert_allclose(vectors(converted[word], word), expected, atol=1e-5)


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_a_round_trip_is_the_identity(
    source: str, target: str, converted: dict[str, Path], encoder: RobertaDot, tmp_path: Path
) -> None:
    """Of every allowed pair, by bytes of tensors."""
    there = convert(source, target, converted[source], tmp_path / "there")
    back = convert(target, "ours", there, tmp_path / "back")
    found, expected = load_file(back / "model.safetensors"), encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    before, after = (json.loads((d / "config.json").read_text()) for d in (converted["ours"], back))
    assert {k: v for k, v in after.items() if before.get(k) != v} == {}
    assert token_ids(back, TEXTS, 12) == token_ids(converted["ours"], TEXTS, 12)


@pytest.mark.parametrize(
    ("word", "constants"), [("ance", set()), ("pyserini", {POSITION_IDS}), ("drhard", {POSITION_IDS})]
)
def test_files_of_old_programs(word: str, constants: set[str], converted: dict[str, Path]) -> None:
    """The serialisation before torch 1.6, tensors alone, and strings for special tokens."""
    directory = converted[word]
    assert files_in(directory) == {
        *("config.json", "pytorch_model.bin", "vocab.json", "merges.txt"),
        *("special_tokens_map.json", "tokenizer_config.json"),
    }
    assert (directory / "pytorch_model.bin").read_bytes().startswith(names.OLD_MAGIC)
    stored = torch.load(directory / "pytorch_model.bin", weights_only=True)
    assert set(stored) == BODY | HEAD | constants
    assert all(stored[name].tolist() == [list(range(40))] for name in constants)
    assert stored["embeddingHead.weight"].shape == (768, 16)
    special = json.loads((directory / "special_tokens_map.json").read_text())
    assert set(map(type, special.values())) == {str}
    lines = (directory / "merges.txt").read_text().split("\n")
    assert lines[0] == "#version: 0.2" and lines[-1] == "", "transformers 2.3 drops the first line and the last"


def test_files_of_sentence_transformers(converted: dict[str, Path]) -> None:
    directory = converted["sentence-transformers"]
    types = {module["path"]: module["type"] for module in json.loads((directory / "modules.json").read_text())}
    assert types == {
        "0_Transformer": "sentence_transformers.models.Transformer",
        "1_Pooling": "sentence_transformers.models.Pooling",
        "2_Dense": "sentence_transformers.models.Dense",
        "3_LayerNorm": "sentence_transformers.models.LayerNorm",
    }
    stored = load_file(directory / "0_Transformer" / "model.safetensors")
    assert set(stored) == names.BODY
    assert set(load_file(directory / "2_Dense" / "model.safetensors")) == {"linear.weight", "linear.bias"}
    assert set(load_file(directory / "3_LayerNorm" / "model.safetensors")) == {"norm.weight", "norm.bias"}
    assert not list(directory.rglob("*.bin"))


def altered(source: Path, directory: Path, **files: Any) -> Path:
    """A copy of a directory with other weights, or another config."""
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    if "weights" in files:
        torch.save(files["weights"], directory / "pytorch_model.bin")
    if "config" in files:
        config = json.loads((source / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **files["config"]}))
    return directory


def stored_in(directory: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(directory / "pytorch_model.bin", weights_only=True))


@pytest.mark.parametrize("look", [encoder_without_weights, load_encoder])
def test_a_port_is_not_taken_for_a_checkpoint(converted: dict[str, Path], look: Callable[..., object]) -> None:
    """Its transformer would be opened, and its head passed over."""
    directory = str(converted["sentence-transformers"])
    with pytest.raises(UserError, match=r"its transformer lies in 0_Transformer: give what python -m model.convert"):
        look("rdot_nll", directory, "", True, {})


def test_the_names_of_a_wrapped_encoder_and_the_new_serialisation_are_read(
    converted: dict[str, Path], encoder: RobertaDot, tmp_path: Path
) -> None:
    """Pyserini's loaders also try a leading ``ance_encoder.``."""
    wrapped = {f"ance_encoder.{name}": tensor for name, tensor in stored_in(converted["pyserini"]).items()}
    source = altered(converted["pyserini"], tmp_path / "wrapped", weights=wrapped)
    assert (source / "pytorch_model.bin").read_bytes().startswith(names.ZIP_MAGIC)
    found = load_file(convert("pyserini", "ours", source, tmp_path / "ours") / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in encoder.state_dict().items())


def test_a_score_scale_is_kept_in_the_norm_where_a_layout_has_no_place_for_it(
    published: Path, converted: dict[str, Path], tmp_path: Path
) -> None:
    scaled = altered(published, tmp_path / "scaled", config={"score_scale": 0.25})
    ours = convert("ance", "ours", scaled, tmp_path / "ours")
    assert json.loads((ours / "config.json").read_text())["score_scale"] == 0.25
    expected = vectors(ours, "ours")
    np.testing.assert_allclose(expected, 0.5 * vectors(converted["ance"], "ance"), atol=1e-5)
    for word in ("ance", "sentence-transformers"):
        np.testing.assert_allclose(vectors(convert("ours", word, ours, tmp_path / word), word), expected, atol=1e-5)


def test_what_is_recorded_of_texts_survives(published: Path, tmp_path: Path) -> None:
    recorded = {"text_profile": "ance", "query_prefix": "q: ", "max_seq_length": 12, "max_query_length": 6}
    source = altered(published, tmp_path / "recorded", config=recorded)
    for word in LAYOUTS:
        there = convert("ance", word, source, tmp_path / word)
        back = convert(word, "ours", there, tmp_path / f"{word}_back")
        config = json.loads((back / "config.json").read_text())
        assert {name: config.get(name) for name in recorded} == recorded, word


def test_sentence_transformers_port_says_by_itself_that_it_lower_cases(published: Path, tmp_path: Path) -> None:
    """Its RoBERTa's tokenizer does not: it is ANCE's profile. One that does not lower-case says nothing."""
    for does_lower in (True, False):
        port = convert("ance", "sentence-transformers", published, tmp_path / f"port_{does_lower}")
        (settings,) = port.rglob("sentence_bert_config.json")
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_lower_case": does_lower}))
        ours = convert("sentence-transformers", "ours", port, tmp_path / str(does_lower))
        config = json.loads((ours / "config.json").read_text())
        assert config.get("text_profile") == ("ance" if does_lower else None)


def test_the_text_profile_is_what_the_layout_says_or_the_user(published: Path, tmp_path: Path) -> None:
    """Nobody reads it out of the weights. sentence-transformers' copy of FirstP lower-cases, by a file of its own."""
    silent = convert("ance", "sentence-transformers", published, tmp_path / "silent")
    assert "text_profile" not in json.loads((silent / "0_Transformer" / "config.json").read_text())
    made = convert("ance", "sentence-transformers", published, tmp_path / "st", "--text_profile", "ance")
    place = made / "0_Transformer"
    assert json.loads((place / "sentence_bert_config.json").read_text())["do_lower_case"]
    assert "`ance`: lower-cased and stripped" in (made / "README.md").read_text()
    upper = [text.upper() for text in TEXTS]
    by_itself, lowered = (
        SentenceTransformer(str(path), device="cpu").encode([text.lower() for text in upper]) for path in (silent, made)
    )
    np.testing.assert_allclose(SentenceTransformer(str(made), device="cpu").encode(upper), lowered, atol=1e-6)
    np.testing.assert_allclose(by_itself, lowered, atol=1e-6)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "text_profile"}))
    back = convert("sentence-transformers", "ours", made, tmp_path / "back")
    assert json.loads((back / "config.json").read_text())["text_profile"] == "ance"
    expected = f"--text_profile is star, {back} says ance; omit it"
    assert expected in refused("ours", "ance", back, tmp_path / "out", "--text_profile=star")


# Refused


@pytest.mark.parametrize("word", ["ance", "pyserini", "drhard"])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"pooling": "mean"}, "pools by 'mean', ANCE's class by the first"), ({"embedding_size": 8}, "of 8 numbers")],
)
def test_what_ance_s_class_cannot_be_is_refused(
    word: str, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    source = tmp_path / "ours"
    tiny_ance(write_roberta_tokenizer(source), **{"embedding_size": 768, **changes}).save_pretrained(source)
    assert expected in refused("ours", word, source, tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("lacks a layer's weight", "has no roberta.encoder.layer.1.output.dense.bias (1 of 41 weights are missing)"),
        ("has no head", "has no embeddingHead.bias (4 of"),
        ("has another model's", "has lstm.weight (1 weights are unknown)"),
        ("is cut", "is no file of torch that holds weights alone"),
        ("holds an object", "is no file of torch that holds weights alone"),
        ("holds a list", "holds a list, expected weights by their names"),
        ("is not there", "holds no weights, expected one of"),
        ("another config", "the weights are of other sizes than config.json says"),
        ("another type", "is of a 'bert' model, expected 'roberta'"),
        ("no config", "config.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused(damage: str, expected: str, published: Path, tmp_path: Path) -> None:
    source, stored = altered(published, tmp_path / "damaged"), stored_in(published)
    path = source / "pytorch_model.bin"
    kept = {
        "lacks a layer's weight": set(stored) - {"roberta.encoder.layer.1.output.dense.bias"},
        "has no head": set(stored) - HEAD,
    }
    if damage in kept:
        torch.save({name: stored[name] for name in kept[damage]}, path)
    elif damage == "has another model's":
        torch.save({**stored, "lstm.weight": torch.ones(1)}, path)
    elif damage == "is cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "holds an object":
        torch.save({**stored, "x": Path()}, path)
    elif damage == "holds a list":
        torch.save([1, 2], path)
    elif damage == "is not there":
        path.unlink()
    elif damage == "no config":
        (source / "config.json").unlink()
    else:
        changed = {"another config": {"num_hidden_layers": 3}, "another type": {"model_type": "bert"}}[damage]
        source = altered(published, tmp_path / "other", config=changed)
    assert expected in refused("ance", "ours", source, tmp_path / "out")


def test_a_tokenizer_of_another_kind_is_refused(encoder: RobertaDot, tiny_tokenizer: Path, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "ours" / name).write_bytes((tiny_tokenizer / name).read_bytes())
    expected = "holds no tokenizer of RoBERTa's (byte-level BPE with <s>), which ANCE's programs need"
    assert expected in refused("ours", "ance", tmp_path / "ours", tmp_path / "out")


def test_a_tokenizer_may_be_given(encoder: RobertaDot, published: Path, tmp_path: Path) -> None:
    """ADORE's checkpoints have none."""
    encoder.save_pretrained(tmp_path / "bare")
    expected = "has no tokenizer, which sentence-transformers needs; give --tokenizer_name"
    assert expected in refused("ours", "sentence-transformers", tmp_path / "bare", tmp_path / "out")
    given = ("--tokenizer_name", str(published))
    made = convert("ours", "sentence-transformers", tmp_path / "bare", tmp_path / "out", *given)
    assert AutoTokenizer.from_pretrained(str(made / "0_Transformer")).get_vocab()["<mask>"] == 4
