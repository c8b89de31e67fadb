"""Encoders that sentence-transformers itself has saved, through our checkpoints and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, LayerNorm, Normalize, Pooling, Transformer
from tokenizers import Tokenizer, normalizers
from torch import nn
from transformers import AutoTokenizer, BertModel

from data.tokens.tokenizer import (
    encoder_at,
    fingerprint_of,
    load_tokenizer,
    local_tokenizer,
    tokenizer_files,
    tokenizer_fingerprint,
)
from model.encoders.registry import load_encoder
from tests.model.formats.converting import convert, refused
from tests.model.formats.tiny import (
    TEXTS,
    bert_config,
    roughen,
    token_ids,
    with_body_in_a_folder,
    write_bert_tokenizer,
)
from tests.real import minilm_dir
from tests.texts import token_batch
from utils.exchange.sentence_files import TRANSFORMER

HEADS: dict[str, list[nn.Module]] = {
    "none": [],
    "normalised": [Normalize()],
    "dense": [Dense(16, 8), LayerNorm(8), Normalize()],
}


def write_body(directory: Path, class_: Any = BertModel) -> Path:
    torch.manual_seed(0)
    body = class_(bert_config(write_bert_tokenizer(directory)))
    roughen(body)
    body.save_pretrained(directory)
    return directory


def published(directory: Path, head: str, pooling: str = "mean") -> Path:
    """As the library saves it, with prompts and a length."""
    body = Transformer(str(write_body(directory / "body")), max_seq_length=12)
    modules = [body, Pooling(16, pooling), *HEADS[head]]
    prompts = {"query": "query: ", "document": "passage: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(directory / "published"))
    return directory / "published"


def vectors(directory: Path) -> np.ndarray:
    model = SentenceTransformer(str(directory), device="cpu")
    return np.stack([model.encode_query(TEXTS), model.encode_document(TEXTS)])


@pytest.mark.parametrize("in_folder", [False, True])
@pytest.mark.parametrize(("head", "pooling"), [("none", "cls"), ("normalised", "mean"), ("dense", "lasttoken")])
def test_an_encoder_and_back(head: str, pooling: str, in_folder: bool, tmp_path: Path) -> None:
    source = published(tmp_path, head, pooling)
    expected = vectors(source)
    if in_folder:
        source = with_body_in_a_folder(source)
    ours = convert("sentence-transformers", "ours", source, tmp_path / "ours")
    np.testing.assert_allclose(vectors(ours), expected, atol=1e-6)
    encoder = load_encoder("hf", str(ours)).eval()
    for prefix, wanted in zip(("query: ", "passage: "), expected, strict=True):
        ids = token_ids(ours, [prefix + text for text in TEXTS], 12)
        with torch.no_grad():
            found = encoder.encode(token_batch(ids), "query").rows.numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    back = convert("ours", "sentence-transformers", ours, tmp_path / "back")
    np.testing.assert_allclose(vectors(back), expected, atol=1e-6)
    body = source / "0_Transformer" if in_folder else source
    stored, again = load_file(body / "model.safetensors"), load_file(back / "model.safetensors")
    assert all(torch.equal(again[name], stored[name]) for name in again)
    assert set(stored) - set(again) <= {"pooler.dense.weight", "pooler.dense.bias"}
    if not in_folder and head == "dense":
        assert "of the model type hf, which the layout ance cannot hold" in refused(
            "ours", "ance", ours, tmp_path / "a"
        )


def test_a_head_that_is_missing_is_refused(tmp_path: Path) -> None:
    source = with_body_in_a_folder(published(tmp_path, "dense"))
    (source / "2_Dense" / "model.safetensors").unlink()
    expected = "2_Dense/model.safetensors is missing, expected the head's weights"
    assert expected in refused("sentence-transformers", "ours", source, tmp_path / "out")
    (source / "modules.json").unlink()
    expected = "modules.json is missing, expected a directory of sentence-transformers"
    assert expected in refused("sentence-transformers", "ours", source, tmp_path / "out")


CASES = ["İstanbul, ΑΣ and É", "What A Dense [MASK] Retriever KNOWS", "the rank [SEP] Of its negatives", "[mask]"]


def cased(directory: Path, **changes: Any) -> Path:
    """A model whose tokenizer knows cases, and whose files lower-case texts, as versions before 6 wrote it."""
    source = published(directory, "none")
    backend = Tokenizer.from_file(str(source / "tokenizer.json"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.save(str(source / "tokenizer.json"))
    write_lower_casing(source, **changes)
    return source


def write_lower_casing(source: Path, **config: Any) -> None:
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    found = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**found, **config}))


def ids_of(directory: Path) -> list[list[int]]:
    return encoder_at(load_tokenizer(directory).backend_tokenizer, 12)(CASES)


@pytest.mark.parametrize("in_folder", [False, True])
def test_texts_are_lower_cased_where_sentence_transformers_does(in_folder: bool, tmp_path: Path) -> None:
    """By the tokenizer, so that a checkpoint's own says it."""
    source = cased(tmp_path / "source")
    bare = fingerprint_of(AutoTokenizer.from_pretrained(str(source)))
    if in_folder:
        source = with_body_in_a_folder(source)
    theirs = SentenceTransformer(str(source), device="cpu")
    assert ids_of(source) == theirs.tokenizer(CASES, truncation=True)["input_ids"]
    fingerprint = tokenizer_fingerprint(source)
    assert fingerprint != bare and "[UNK]" not in load_tokenizer(source).tokenize("What A Dense")
    ours = convert("sentence-transformers", "ours", source, tmp_path / "ours")
    theirs.save(str(tmp_path / "saved"))
    trained = tmp_path / "trained"
    shutil.copytree(ours, trained)
    for path in local_tokenizer(str(source), tmp_path / "tokenizer"):
        shutil.copy(path, trained)
    for made in (ours, tmp_path / "saved", trained):
        assert tokenizer_fingerprint(made) == fingerprint, made
        np.testing.assert_allclose(
            SentenceTransformer(str(made), device="cpu").encode(CASES), theirs.encode(CASES), atol=1e-6
        )
    # The same files without that setting are of another tokenizer.
    files = tokenizer_files(source)
    body = source / "0_Transformer" if in_folder else source
    (body / "sentence_bert_config.json").write_text("{}")
    assert tokenizer_files(source) != files and tokenizer_fingerprint(source) == bare


def test_what_lower_cases_already_stays_as_it_is(tmp_path: Path) -> None:
    """A tokenizer that does, a text profile that does, and a RoBERTa, whose profile is ance."""
    source = published(tmp_path, "none")
    before = tokenizer_fingerprint(source)
    write_lower_casing(source)
    assert tokenizer_fingerprint(source) == before
    assert (
        ids_of(source) == SentenceTransformer(str(source), device="cpu").tokenizer(CASES, truncation=True)["input_ids"]
    )
    recorded = cased(tmp_path / "recorded", text_profile="ance")
    roberta = cased(tmp_path / "roberta", model_type="roberta")
    for model in (recorded, roberta):
        assert tokenizer_fingerprint(model) == fingerprint_of(AutoTokenizer.from_pretrained(str(model)))
        assert TRANSFORMER not in tokenizer_files(model)


def test_lower_casing_that_no_file_can_say_is_refused(tmp_path: Path) -> None:
    source = cased(tmp_path)
    words = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    (source / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n")
    (source / "tokenizer.json").unlink()
    assert "lower-cases texts and has no tokenizer.json" in refused(
        "sentence-transformers", "ours", source, tmp_path / "out"
    )


@pytest.mark.measured
def test_minilm_and_back(tmp_path: Path) -> None:
    source = minilm_dir()
    ours = convert("sentence-transformers", "ours", source, tmp_path / "ours")
    back = convert("ours", "sentence-transformers", ours, tmp_path / "back")
    expected = vectors(source)
    for made in (ours, back):
        np.testing.assert_allclose(vectors(made), expected, atol=1e-6)
    stored, again = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    assert all(torch.equal(again[name], stored[name]) for name in again)
    assert set(stored) - set(again) <= {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
