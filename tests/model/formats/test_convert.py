"""python -m model.convert: which pairs it takes, and what it says of those it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.encoders.lora import add_adapters
from model.encoders.registry import load_encoder
from model.train.checkpoint import save_encoder
from tests import REPO
from tests.model.formats.converting import call, convert, files_in, refused
from tests.model.formats.test_sentence import saved
from tests.model.formats.tiny import roughen, tiny_ance, write_roberta_tokenizer
from tests.texts import token_batch
from utils.declared.layouts import LAYOUTS, targets_of
from utils.declared.lora import LoraSettings
from utils.exchange.atomic import dump_with_checksum, sha256_of
from utils.exchange.verify import signature_of

# What converts into what: of one encoder with ANCE's head, of two without, of any other encoder.
FAMILY = {"ours", "ance", "pyserini", "drhard", "sentence-transformers"}
TOWERS = {"ours", "sentence-transformers", "dpr", "hf-dpr"}
ALLOWED = {
    "ours": FAMILY | TOWERS,
    "ance": FAMILY,
    "pyserini": FAMILY,
    "drhard": FAMILY,
    "sentence-transformers": FAMILY,
    "dpr": TOWERS,
    "hf-dpr": TOWERS,
    "tct-colbert": {"ours"},
}


def test_the_pairs_that_are_allowed() -> None:
    assert {word: set(targets_of(word)) for word in LAYOUTS} == ALLOWED


@pytest.mark.parametrize(("source", "target"), [(s, t) for s in ALLOWED for t in LAYOUTS if t not in ALLOWED[s]])
def test_every_other_pair_is_refused_before_anything_is_read(source: str, target: str, tmp_path: Path) -> None:
    message = refused(source, target, tmp_path / "not there", tmp_path / "out")
    possible = message.partition(" converts into ")[2].partition(" alone")[0].split(", ")
    assert message.startswith(f"--to is {target}, --from {source} converts into ") and set(possible) == ALLOWED[source]


def test_words_and_paths_that_cannot_be_meant(tmp_path: Path) -> None:
    known = ", ".join(LAYOUTS)
    assert refused("ances", "ours", tmp_path, tmp_path / "out") == f"--from is 'ances', expected one of {known}"
    assert refused("ours", "onnx", tmp_path, tmp_path / "out") == f"--to is 'onnx', expected one of {known}"
    assert "1 paths are given, expected IN OUT" in refused("ance", "ours", tmp_path / "out")
    three = (tmp_path, tmp_path, tmp_path / "out")
    assert "3 paths are given, expected IN OUT" in refused("ance", "ours", *three)
    assert "4 paths are given, expected IN [IN] OUT" in refused("hf-dpr", "dpr", tmp_path, *three)
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} is no directory, expected a model in the layout ance" in refused(
        "ance", "ours", nowhere, tmp_path / "out"
    )
    assert "is no file, expected a model in the layout dpr" in refused("dpr", "ours", tmp_path, tmp_path / "out")
    (tmp_path / "there").write_text("")
    assert "there exists already, expected a new name" in refused("ance", "ours", tmp_path, tmp_path / "there")


def test_a_model_that_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "ours"
    tiny_ance(write_roberta_tokenizer(source)).save_pretrained(source)
    expected = (
        "is of the model type rdot_nll, which the layout dpr cannot hold; --to can be ours, ance, pyserini, drhard"
    )
    assert expected in refused("ours", "dpr", source, tmp_path / "out.cp")
    static = saved("static", tmp_path / "static")
    expected = "is of a static model, which no other layout holds; sentence-transformers opens it as it is"
    assert expected in refused("ours", "sentence-transformers", static, tmp_path / "out")


def test_a_dry_run_reads_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "ours"
    tiny_ance(write_roberta_tokenizer(source)).save_pretrained(source)
    call("ours", "ours", source, tmp_path / "out", "--dry_run")
    assert '"read_model_type": "rdot_nll"' in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [source]
    (source / "model.safetensors").write_bytes(b"")
    assert "model.safetensors is damaged" in refused("ours", "ours", source, tmp_path / "out", "--dry_run")


def test_the_program_ends_with_one_line_and_2(tmp_path: Path) -> None:
    words = ["--from", "ance", "--to", "dpr", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "model.convert", *words],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "convert: error: --to is dpr, --from ance converts into ours, ance, pyserini, drhard, sentence-transformers "
        "alone; give one of them"
    ]


def test_the_card_keeps_the_run_that_trained_it(tmp_path: Path) -> None:
    """From the manifest, against which the files are held; what only resumes a training need not be there."""
    source = tmp_path / "checkpoint-30"
    tiny_ance(write_roberta_tokenizer(source), embedding_size=768).save_pretrained(source)
    (source / "trainer_state.json").write_text('{"step": 30, "strategy": "bottom", "losses": []}')
    listed = {str(path.relative_to(source)): signature_of(path) for path in source.rglob("*") if path.is_file()}
    listed["optimizer.pt"] = {"bytes": 9, "sha256": "gone"}
    record = {"run_id": "0f1e", "step": 30, "git": {"commit": "abc"}, "files": listed}
    (source / "MANIFEST.json").write_text(dump_with_checksum(record))
    made = convert("ours", "ours", source, tmp_path / "one")
    for row in ("| negatives | bottom |", "| step | 30 |", "| run | 0f1e |", "| commit of the code | abc |"):
        assert row in (made / "README.md").read_text()
    ance = convert("ours", "ance", source, tmp_path / "ance")
    text = (convert("ance", "sentence-transformers", ance, tmp_path / "two") / "README.md").read_text()
    assert "| read from the layout | ance |" in text and "It was trained by" not in text
    (source / "config.json").write_text("{}")
    assert "config.json: 2 bytes, its manifest says" in refused("ours", "ours", source, tmp_path / "out")


def test_adapters_are_merged_into_the_weights(tmp_path: Path) -> None:
    """As peft merges them; the base stays as it is, and what is written needs it no more."""
    base = tmp_path / "base"
    tiny_ance(write_roberta_tokenizer(base), embedding_size=768).save_pretrained(base)
    before = sha256_of(base / "model.safetensors")
    encoder = load_encoder("rdot_nll", str(base))
    add_adapters(encoder, LoraSettings(r=4, alpha=12, dropout=0.0), str(base), seed=1)
    roughen(encoder)
    adapted = tmp_path / "adapted"
    adapted.mkdir()
    save_encoder(encoder, adapted)
    given = ("--tokenizer_name", str(base))
    made = convert("ours", "ours", adapted, tmp_path / "merged", *given)
    batch = token_batch([[0, 7, 8, 9, 2], [0, 20, 2]])
    with torch.no_grad():
        expected = load_encoder("rdot_nll", str(adapted)).eval().encode(batch, "query").rows
        plain = load_encoder("rdot_nll", str(base)).eval().encode(batch, "query").rows
        found = load_encoder("rdot_nll", str(made)).eval().encode(batch, "query").rows
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, plain, atol=1e-2)
    assert not any("adapter" in name for name in files_in(made)) and sha256_of(base / "model.safetensors") == before
    assert files_in(convert("ours", "ance", adapted, tmp_path / "ance", *given)) >= {"pytorch_model.bin", "vocab.json"}
    base.rename(tmp_path / "away")
    assert "base, which is not there; " in refused("ours", "ours", adapted, tmp_path / "again")
