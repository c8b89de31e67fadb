"""data.wordpiece: the tokenizer transformers loads, against WordPiece written out, and the same in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources.base import SourceRequest, source_files
from data.sources.msmarco import find_collection
from data.sources.registry import open_source
from data.wordpiece import check_inputs, collection_texts, files_read, save_tokenizer, train_tokenizer
from tests import REPO
from utils.errors import UserError

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Returns a new array; the array's dtype is float32 or float64 (see numpy.dtype).",
    "Café owners résumé their work: naïve, but they are working, worked and work again.",
    "Foxes and dogs are animals. An animal is not an array, but arrays may be jagged.",
] * 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def raw_dir(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "collection.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(TEXTS)))
    for split, text in (("train", "ωκ"), ("dev.small", "ψ")):
        (raw / f"queries.{split}.tsv").write_text(f"7\t{text}\n")
        (raw / f"qrels.{split}.tsv").write_text("7\t0\t1\t1\n")
    return raw


@cache
def trained(vocab_size: int = 160):  # type: ignore[no-untyped-def]
    return train_tokenizer(lambda: iter(TEXTS), vocab_size)


def wordpiece(text: str, vocabulary: dict[str, int]) -> list[str]:
    """BERT's tokenizer from its paper's code, in plain Python: normalize, split, then greedy longest match first."""
    decomposed = unicodedata.normalize("NFD", text)
    lowered = "".join(c for c in decomposed if unicodedata.category(c) != "Mn").lower()
    spaced = "".join(f" {c} " if not c.isalnum() and not c.isspace() else c for c in lowered)
    tokens = []
    for word in spaced.split():
        pieces, start = [], 0
        while start < len(word):
            ends = range(len(word), start, -1)
            prefix = "##" if start else ""
            end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
            if end is None:
                pieces = ["[UNK]"]
                break
            pieces.append(prefix + word[start:end])
            start = end
        tokens += pieces
    return ["[CLS]", *tokens, "[SEP]"]


@given(st.lists(st.sampled_from([*" ".join(TEXTS).split(), "Zoo", "ÉTÉ", "x+y", "unmindful", "q!", "Ω"])))
def test_encoding_is_wordpiece(words: list[str]) -> None:
    text = " ".join(words)
    assert trained().encode(text).tokens == wordpiece(text, trained().get_vocab())


def test_special_tokens_come_first_and_the_vocabulary_keeps_its_size() -> None:
    vocabulary = trained().get_vocab()
    assert sorted(vocabulary, key=vocabulary.__getitem__)[:5] == SPECIAL
    assert sorted(vocabulary.values()) == list(range(160))
    assert "the" in vocabulary
    assert trained().encode("漢字").tokens == ["[CLS]", "[UNK]", "[UNK]", "[SEP]"]
    assert trained().encode("").tokens == ["[CLS]", "[SEP]"]
    assert trained().encode("a", "the").tokens == ["[CLS]", "a", "[SEP]", "the", "[SEP]"]


def test_every_word_of_the_training_texts_can_be_written() -> None:
    assert not any("[UNK]" in trained(400).encode(text).tokens for text in TEXTS)


def test_another_process_trains_the_same_tokenizer(tmp_path: Path, raw_dir: Path) -> None:
    """The library's own trainer does not: it numbers characters in the order of a randomly seeded hash table."""
    here = train_tokenizer(lambda: collection_texts(open_source(SourceRequest(raw_dir)), 10000), 300)
    save_tokenizer(here, tmp_path / "here")
    command = [sys.executable, "-m", "data.wordpiece", "--data_dir", str(raw_dir), "--vocab_size", "300", "--out_dir"]
    for name, variables in (("a", {"TOKENIZERS_PARALLELISM": "false"}), ("b", {"RAYON_NUM_THREADS": "3"})):
        subprocess.run(
            [*command, str(tmp_path / name)], cwd=REPO, env={**os.environ, **variables}, check=True, timeout=60
        )
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "here" / file).read_bytes()
    assert here.token_to_id("ω") is not None, "the train queries were read"
    assert here.token_to_id("ψ") is None, "the dev queries were not"


def test_transformers_loads_it_beside_a_model_type_it_does_not_know(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(trained(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "static", "vocab_size": 160}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.is_fast
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id) == (0, 1, 2)
    assert (tokenizer.sep_token_id, tokenizer.mask_token_id, len(tokenizer)) == (3, 4, 160)
    for text in (TEXTS[2], "The FOX"):
        assert tokenizer(text)["input_ids"] == trained().encode(text).ids
    short = tokenizer(TEXTS[0], truncation=True, max_length=6)["input_ids"]
    assert len(short) == 6 and short[-1] == tokenizer.sep_token_id
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_mistakes_are_named(tmp_path: Path, raw_dir: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"already holds a tokenizer \(vocab.json\)"):
        check_inputs(open_source(SourceRequest(raw_dir)), tmp_path)
    (tmp_path / "vocab.json").unlink()
    for name in ("collection.tsv", "queries.train.tsv"):
        whole = (raw_dir / name).read_bytes()
        for content in (whole[:-1], whole + b"\n"):
            (raw_dir / name).write_bytes(content)
            with pytest.raises(UserError, match=rf"{name}, line [0-9]+: the last line "):
                open_source(SourceRequest(raw_dir), files_read)
        (raw_dir / name).write_bytes(whole)
    source = find_collection(raw_dir, 1)
    check_inputs(source, tmp_path)
    with pytest.raises(UserError, match=r"next to it are the splits dev, expected train among them"):
        check_inputs(replace(source, split_files={"dev": source.split_files["dev"]}), tmp_path)
    (raw_dir / "queries.train.tsv").unlink()
    for files in (source_files, files_read):
        with pytest.raises(UserError, match=r"has no queries\.train\.tsv\[\.gz\]"):
            open_source(SourceRequest(raw_dir), files)


def test_passages_and_train_queries_are_enough(tmp_path: Path, raw_dir: Path) -> None:
    for path in raw_dir.iterdir():
        if path.name not in ("collection.tsv", "queries.train.tsv"):
            path.unlink()
    with pytest.raises(UserError, match=r"has no qrels\.train\.tsv\[\.gz\]"):
        open_source(SourceRequest(raw_dir))
    command = [sys.executable, "-m", "data.wordpiece", "--data_dir", str(raw_dir), "--vocab_size", "300", "--out_dir"]
    subprocess.run([*command, str(tmp_path / "made")], cwd=REPO, check=True, timeout=60)
    texts = collection_texts(open_source(SourceRequest(raw_dir), files_read), 10000)
    assert len([*texts]) == sum(len(path.read_text().splitlines()) for path in raw_dir.iterdir())
    assert (tmp_path / "made" / "tokenizer.json").is_file()


def test_the_program_answers_a_mistake_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.wordpiece", "--data_dir", str(tmp_path), "--out_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "collection.tsv" in done.stderr
    assert not (tmp_path / "out").exists()
