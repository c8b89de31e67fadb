"""README.md of a model: YAML that the hub reads, and what is known of the run and of its texts."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import BertModel

from model.encoders.hf import HfEncoder
from model.encoders.lora import add_adapters
from model.encoders.registry import load_encoder
from model.formats.card import card_text, write_card
from model.train.checkpoint import save_encoder
from tests.model.formats.converting import call, convert
from tests.model.formats.test_dpr import make_published
from tests.model.formats.tiny import TEXTS, bert_config, token_ids, write_bert_tokenizer
from tests.texts import token_batch
from utils.declared.lora import LoraSettings
from utils.exchange.model_files import CARD

RECORD = {
    "model_type": "rdot_nll",
    "strategy": "ranks:21-60",
    "refresh": 3,
    "step": 3000,
    "max_steps": 10000,
    "run_id": "0f1e2d",
    "collection_fingerprint": "ab|cd",
    "git": {"commit": "abc", "dirty": False},
}


def parts(text: str) -> tuple[dict[str, object], str]:
    """By the hub's own reader."""
    card = ModelCard(text)
    return card.data.to_dict(), card.text


@pytest.mark.parametrize("base", ["", "FacebookAI/roberta-base", "checkpoint-800", "a: b/c #d", "results/runs/x"])
def test_what_the_hub_reads(base: str) -> None:
    """Only a name that the hub may have is a base model."""
    front, body = parts(card_text({}, {**RECORD, "base": base}))
    assert front["library_name"] == "sentence-transformers" and front["pipeline_tag"] == "sentence-similarity"
    assert "sentence-transformers" in front["tags"]  # type: ignore[operator]
    assert front.get("base_model") == ({"FacebookAI/roberta-base": base}.get(base))
    assert ("started from" in body) == bool(base)


def test_the_record_of_the_run_is_a_table() -> None:
    _, body = parts(card_text({}, RECORD))
    lines = [line for line in body.splitlines() if line.startswith("| ")]
    rows = dict(line[2:-2].split(" | ", 1) for line in lines[2:])
    assert rows["negatives"] == "ranks:21-60" and rows["step"] == "3000" and rows["of steps"] == "10000"
    assert rows["collection"] == "ab\\|cd" and "seed" not in rows


def test_what_does_not_open_as_it_is_says_how_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands of the cards themselves: two towers, and adapters of an encoder."""
    towers = convert("hf-dpr", "ours", make_published(tmp_path / "hf"), tmp_path / "towers" / "this directory")
    whole = tmp_path / "whole"
    vocab_size = write_bert_tokenizer(whole)
    torch.manual_seed(0)
    HfEncoder(BertModel(bert_config(vocab_size), add_pooling_layer=False), "mean").save_pretrained(whole)
    encoder = load_encoder("hf", str(whole))
    add_adapters(encoder, LoraSettings(2, 4, 0.0), str(whole), seed=1)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    adapters = tmp_path / "adapters" / "this directory"
    write_bert_tokenizer(adapters)
    save_encoder(encoder, adapters)
    write_card(adapters, encoder.config_dict(), {})
    base_sha256 = hashlib.sha256((whole / "model.safetensors").read_bytes()).hexdigest()
    for model, model_type, words in (
        (towers, "dpr", "Queries and passages have an encoder each"),
        (
            adapters,
            "hf",
            f"adapters (LoRA, as peft writes them) of `whole`, whose weights have the sha256 `{base_sha256}`",
        ),
    ):
        front, body = parts((model / CARD).read_text())
        assert words in body and str(tmp_path) not in body
        assert "library_name" not in front and "sentence-transformers" not in front["tags"]  # type: ignore[operator]
        (command,) = [line for line in body.splitlines() if line.startswith("python -m model.convert ")]
        monkeypatch.chdir(model.parent)
        _, source, _, target, *places = shlex.split(command)[3:]
        call(source, target, *places)
        (opened,) = [line for line in body.splitlines() if line.startswith("model = ")]
        theirs = SentenceTransformer(opened.partition('"')[2].partition('"')[0], device="cpu")
        ids = token_ids(model, TEXTS, 12)
        theirs.max_seq_length = 12
        with torch.no_grad():
            expected = load_encoder(model_type, str(model)).eval().encode(token_batch(ids), "passage").rows
        np.testing.assert_allclose(theirs.encode_document(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "said", "unsaid"),
    [
        ({}, ["is not recorded"], ["cut at"]),
        ({"text_profile": "hf"}, ["`hf`", "join url, title and text by a blank."], ["is not recorded", "lower-case"]),
        (
            {"text_profile": "ance"},
            ["`ance`", "files here lower-case; the rest", "on both sides", "by `<sep>`"],
            ["blank"],
        ),
        ({"text_profile": "ance-warmup"}, ["not lower-cased", "on both sides"], ["the files here"]),
        ({"text_profile": "star"}, ["files here lower-case", "on the right", "a blank before each"], ["both sides"]),
        ({"text_profile": "dpr"}, ["`title [SEP] text`"], ["<sep>", "lower-case"]),
        ({"max_seq_length": 128, "max_query_length": 64}, ["at 64 tokens and passages at 128", "encode_query"], []),
        ({"max_seq_length": 128, "max_query_length": 128}, ["Texts are cut at 128 tokens."], ["passages at"]),
        ({"query_prefix": 'a "b": '}, ['A query begins with "a \\"b\\": "'], ["A passage begins"]),
    ],
)
def test_what_is_done_to_texts(config: dict[str, object], said: list[str], unsaid: list[str], tmp_path: Path) -> None:
    write_card(tmp_path, config, {})
    texts = (tmp_path / CARD).read_text().partition("## Texts")[2].partition("## Use")[0]
    assert all(words in texts for words in said) and not any(words in texts for words in unsaid)
