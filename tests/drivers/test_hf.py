"""--model_type hf through the real programs: a family of each kind of attention, and the others when measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from model.encoders.body import config_of, new_model
from model.encoders.hf import HfEncoder
from tests.fingerprint import loop
from tests.fingerprint.programs import Programs
from tests.forked import fork_server
from tests.model.encoders import families
from utils.declared.text_settings import DEFAULT_TEXTS
from utils.exchange.layout import JobLayout
from utils.exchange.sentence_files import HeadModule

pytestmark = pytest.mark.slow
LEARNING = ("--optimizer", "adamW", "--learning_rate", "1e-3")
WORDS = {
    **dict.fromkeys(families.PACKED, "attention: texts packed without padding"),
    **dict.fromkeys(families.PADDED, "attention: texts padded to the longest of a batch"),
}
OF_EACH_KIND = ("bert", "mpnet", "modernbert")  # transformers' interface; a bias by distance; padded


@pytest.mark.parametrize(
    "kind", [kind if kind in OF_EACH_KIND else pytest.param(kind, marks=pytest.mark.measured) for kind in WORDS]
)
def test_a_family_is_trained_searched_and_evaluated(
    kind: str, tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "preprocessed").symlink_to(tiny_preprocessed)
    base = tmp_path / "base" / f"checkpoint-{loop.WARMUP_STEPS}"
    shutil.copytree(tiny_tokenizer, base)
    manifest = json.loads((tiny_preprocessed / "manifest.json").read_text())
    torch.manual_seed(3)
    changes = {name: manifest[name] for name in ("vocab_size", "pad_token_id")}
    config = config_of(families.config_of_family(kind, **changes), kind)
    encoder = HfEncoder(new_model(config), "mean", (HeadModule("normalize", "2_Normalize"),))
    encoder.record(DEFAULT_TEXTS.record())
    encoder.save_pretrained(base)
    made = loop.Loop(tmp_path, Programs(fork_server()))
    loop.train_and_generate(made, "top", "hf", "base", *loop.batch(1), *LEARNING)
    arm = made.path("arms", "top")
    for log in ("trainer.out", "generator.out"):
        assert WORDS[kind] in (arm / log).read_text(), log
    last = JobLayout(arm / "checkpoints").checkpoint(loop.STEPS)
    before, after = (json.loads((path / "config.json").read_text()) for path in (base, last))
    assert before["architectures"] == after["architectures"] and after["pooling"] == "mean"
    assert (last / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()
    rows_ND = SentenceTransformer(str(last), device="cpu").encode(["a text", "another"])
    assert abs((rows_ND**2).sum(1) - 1).max() < 1e-5, "stored vectors keep length 1 at any temperature"
    assert (arm / "eval" / "metrics.json").is_file()
