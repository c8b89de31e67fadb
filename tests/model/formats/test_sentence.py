"""Checkpoints of ours in sentence-transformers, which is given the directory as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertModel

from data.tokens.tokenizer import load_tokenizer
from model.encoders.base import Encoder
from model.encoders.registry import load_encoder
from model.encoders.spec import Side
from model.encoders.static import StaticEncoder
from model.formats.sentence import TABLE_CONFIG
from tests.model.formats.tiny import (
    LENGTHS,
    TEXTS,
    bert_config,
    roughen,
    tiny_ance,
    token_ids,
    write_bert_tokenizer,
    write_roberta_tokenizer,
)
from tests.texts import token_batch
from utils.exchange.model_files import weights_sha256


def saved(kind: str, directory: Path, **config: Any) -> Path:
    """A checkpoint with its tokenizer, as a trainer publishes it."""
    directory.mkdir()
    if kind == "static":
        settings = {"vocab_size": write_bert_tokenizer(directory), "embedding_size": 8, "pad_token_id": 0}
        encoder: Encoder = StaticEncoder({**settings, **LENGTHS, **config})
        roughen(encoder)
    elif kind == "hf":
        BertModel(bert_config(write_bert_tokenizer(directory))).save_pretrained(directory)
        encoder = load_encoder("hf", str(directory), changes={"pooling": "mean", "normalize": True, **config})
        encoder.record(LENGTHS)
    else:
        source = directory.with_name("tokenizer")
        encoder = tiny_ance(write_roberta_tokenizer(source), **config)
        encoder.save_pretrained(directory)  # so that the tokenizer's class is known
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (directory / name).write_bytes((source / name).read_bytes())
        load_tokenizer(directory).save_pretrained(str(directory))
    encoder.save_pretrained(directory)
    return directory


def ours(kind: str, directory: Path, side: Side) -> np.ndarray:
    encoder = load_encoder(kind, str(directory)).eval()
    length = LENGTHS["max_query_length" if side == "query" else "max_seq_length"]
    with torch.no_grad():
        return encoder.encode(token_batch(token_ids(directory, TEXTS, length)), side).rows.numpy()


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    ("kind", "changes"), [("rdot_nll", {}), ("rdot_nll", {"pooling": "mean", "embedding_size": 5}), ("static", {})]
)
def test_a_checkpoint_opens_with_the_same_vectors(
    kind: str, changes: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    """Also of texts that are cut: sides have lengths of their own."""
    directory = saved(kind, tmp_path / "checkpoint", score_scale=scale, **changes)
    check_vectors(kind, directory)


def test_a_checkpoint_of_any_body_opens_with_the_same_vectors(tmp_path: Path) -> None:
    check_vectors("hf", saved("hf", tmp_path / "checkpoint"))


def check_vectors(kind: str, directory: Path) -> None:
    theirs = SentenceTransformer(str(directory), device="cpu")
    queries, passages = ours(kind, directory, "query"), ours(kind, directory, "passage")
    assert not np.allclose(queries[2], passages[2], atol=1e-3), "the long text is cut at two lengths"
    np.testing.assert_allclose(theirs.encode_query(TEXTS), queries, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(TEXTS), passages, atol=1e-5)
    np.testing.assert_allclose(theirs.encode(TEXTS), passages, atol=1e-5)
    np.testing.assert_allclose(theirs.similarity(queries, passages).numpy(), queries @ passages.T, rtol=1e-4)


def test_prefixes_and_lower_casing_are_those_that_are_recorded(tmp_path: Path) -> None:
    recorded = {"query_prefix": "query: ", "passage_prefix": "passage: ", "text_profile": "ance"}
    directory = saved("rdot_nll", tmp_path / "checkpoint", **recorded)
    theirs = SentenceTransformer(str(directory), device="cpu")
    plain = saved("rdot_nll", tmp_path / "plain")
    by_hand = SentenceTransformer(str(plain), device="cpu")
    lower = [text.lower() for text in TEXTS]
    for encode, prefix in (("encode_query", "query: "), ("encode_document", "passage: ")):
        expected = getattr(by_hand, encode)([prefix + text for text in lower])
        np.testing.assert_allclose(getattr(theirs, encode)(TEXTS), expected, atol=1e-6)
        assert np.abs(expected - getattr(by_hand, encode)(lower)).max() > 1e-3


@pytest.mark.parametrize("kind", ["rdot_nll", "static"])
def test_the_weights_are_stored_once(kind: str, tmp_path: Path) -> None:
    """Next to them only the head, and the model is known by the weights alone."""
    directory = saved(kind, tmp_path / "checkpoint")
    before = weights_sha256(directory)
    sizes = {str(path.relative_to(directory)): path.stat().st_size for path in directory.rglob("*.safetensors")}
    assert set(sizes) == {"model.safetensors", "2_Dense/model.safetensors", "3_LayerNorm/model.safetensors"}
    dim = 8 if kind == "static" else 16
    assert sum(sizes.values()) - sizes["model.safetensors"] < 4 * dim * (dim + 3) + 1000
    for path in [*directory.glob("[0-9]_*/*"), *directory.glob("*sentence*"), directory / "modules.json"]:
        path.unlink()
    assert weights_sha256(directory) == before
    assert np.isfinite(ours(kind, directory, "query")).all(), "ours needs none of them"


def test_without_lengths_nothing_is_said_of_them(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    StaticEncoder({"vocab_size": 9, "embedding_size": 4}).save_pretrained(directory)
    assert json.loads((directory / "sentence_bert_config.json").read_text()).keys() == {
        "do_lower_case",
        "config_args",
        "model_args",
    }
    assert json.loads((directory / TABLE_CONFIG).read_text())["n_layer"] == 0
