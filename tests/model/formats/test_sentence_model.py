"""Encoders that sentence-transformers itself has saved, through our checkpoints and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, LayerNorm, Normalize, Pooling, Transformer
from torch import nn
from transformers import BertModel

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
