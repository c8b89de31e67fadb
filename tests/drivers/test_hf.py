"""--model_type hf through the real programs: a family of each kind of attention, and the others when measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from model.encoders.body import config_of, new_model
from model.encoders.hf import HfEncoder
from tests.conftest import TINY_MAX_QUERY_LENGTH, TINY_MAX_SEQ_LENGTH
from tests.fingerprint import loop
from tests.fingerprint.programs import Programs
from tests.forked import fork_server
from tests.model.encoders import families
from tests.model.formats.tiny import with_body_in_a_folder
from utils.declared.text_settings import DEFAULT_TEXTS
from utils.exchange.layout import JobLayout
from utils.exchange.sentence_files import HeadModule

pytestmark = pytest.mark.slow
LEARNING = ("--optimizer", "adamW", "--learning_rate", "1e-3")
WORDS = {
    **dict.fromkeys(families.PACKED, "attention: texts packed without padding"),
    **dict.fromkeys(families.PADDED, "attention: texts padded to the longest of a batch"),
}
IN_A_FOLDER = "mpnet"  # begins as sentence-transformers before version 2 laid a model out
OF_EACH_KIND = ("bert", "mpnet", "modernbert")  # transformers' interface; a bias by distance; padded


@pytest.mark.parametrize(
    "kind", [kind if kind in OF_EACH_KIND else pytest.param(kind, marks=pytest.mark.measured) for kind in WORDS]
)
def test_a_family_is_trained_searched_and_evaluated(
    kind: str, shared_collection: Path, tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path
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
    if kind == IN_A_FOLDER:
        with_body_in_a_folder(base)
    (weights,) = base.glob("**/model.safetensors")
    made = loop.Loop(tmp_path, Programs(fork_server()))
    exact = ("--dtype", "fp32")
    loop.train_and_generate(made, "top", "hf", "base", *loop.batch(1), *LEARNING, *exact, negatives=exact)
    arm = made.path("arms", "top")
    for log in ("trainer.out", "generator.out"):
        assert WORDS[kind] in (arm / log).read_text(), log
    last = JobLayout(arm / "checkpoints").checkpoint(loop.STEPS)
    before, after = (json.loads((path / "config.json").read_text()) for path in (weights.parent, last))
    assert before["architectures"] == after["architectures"] and after["pooling"] == "mean"
    assert (last / "model.safetensors").read_bytes() != weights.read_bytes()
    assert (arm / "eval" / "metrics.json").is_file()
    check_stored_embeddings(arm, shared_collection)


def check_stored_embeddings(arm: Path, collection: Path) -> None:
    """Those on disk have length 1 at any temperature, and are sentence-transformers' own of the same texts."""
    stored = sorted((arm / "ann_data" / "embeddings").iterdir())[-1]
    checkpoint = Path(json.loads((stored / "embeddings.json").read_text())["checkpoint"])
    theirs = SentenceTransformer(str(checkpoint), device="cpu")
    assert (theirs.max_seq_length, theirs[0].query_length) == (TINY_MAX_SEQ_LENGTH, TINY_MAX_QUERY_LENGTH)
    encoders = {
        "passages": ("collection.tsv", theirs.encode_document),
        "dev-query": ("queries.dev.small.tsv", theirs.encode_query),
    }
    for name, (file, encode) in encoders.items():
        texts = [line.split("\t")[1] for line in (collection / file).read_text().splitlines()]
        found_ND = np.concatenate([np.load(path) for path in sorted(stored.glob(f"{name}-*.npy"))])
        np.testing.assert_allclose((found_ND**2).sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(found_ND, encode(texts), rtol=0, atol=1e-5, err_msg=name)
