"""TCT-ColBERT's weights and texts, against Pyserini's encoders of it, written out with transformers' own classes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForPreTraining, BertModel

from data.sources.base import Passage
from data.tokens.text_profile import TextPreparer, text_preparer
from data.tokens.tokenizer import encoder_at, load_tokenizer
from data.wordpiece import tokenizer_config, train_tokenizer
from drivers.plan.facts import CollectionFacts, Lengths
from drivers.plan.inspect_inputs import inspect_model
from drivers.plan.plan import length_settings
from model.encoders.base import PacksTexts
from model.encoders.registry import load_encoder
from tests.beir import write_beir
from tests.forked import run
from tests.model.formats.converting import call, convert, refused
from tests.model.formats.tiny import SENTENCE, TEXTS, bert_config, roughen
from tests.texts import token_batch
from utils.declared.text_settings import TextSettings
from utils.errors import UserError

LONGEST = 40
QUERIES = [*TEXTS, "the rank [MASK] of", "[SEP] its\u00a0negatives\t[CLS]", " ".join([SENTENCE] * 3)]


def write_model(directory: Path, class_: Any = BertModel) -> Path:
    directory.mkdir()
    tokenizer = train_tokenizer(lambda: iter([SENTENCE, "[ q ] [ d ]"] * 9), 150)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({**tokenizer_config(), "model_max_length": 512}))
    torch.manual_seed(0)
    body = class_(bert_config(tokenizer.get_vocab_size(), max_position_embeddings=LONGEST))
    roughen(body)
    body.save_pretrained(directory)
    return directory


def queries_of(directory: Path, texts: list[str]) -> np.ndarray:
    """[N, H]: Pyserini's TctColBertQueryEncoder, one query after the other."""
    tokenizer, model = AutoTokenizer.from_pretrained(directory), BertModel.from_pretrained(directory).eval()
    rows = []
    for text in texts:
        padded = "[CLS] [Q] " + text + "[MASK]" * 36
        ids = tokenizer(padded, max_length=36, truncation=True, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**ids).last_hidden_state[0, 4:].mean(0).numpy())
    return np.stack(rows)


def passages_of(directory: Path, texts: list[str]) -> np.ndarray:
    """[N, H]: its TctColBertDocumentEncoder, of one text no padding; of nothing zeros."""
    tokenizer, model = AutoTokenizer.from_pretrained(directory), BertModel.from_pretrained(directory).eval()
    rows = []
    for text in texts:
        ids = tokenizer(
            "[CLS] [D] " + text, max_length=LONGEST, truncation=True, add_special_tokens=False, return_tensors="pt"
        )
        with torch.no_grad():
            hidden_LH = model(**ids).last_hidden_state[0, 4:]
        rows.append((hidden_LH.sum(0) / max(1, len(hidden_LH))).numpy())
    return np.stack(rows)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tct")
    source = write_model(directory / "published")
    return source, convert("tct-colbert", "ours", source, directory / "ours")


def prepared(directory: Path) -> TextPreparer:
    return text_preparer(TextSettings("tct-colbert"), load_tokenizer(directory), 10_000)


@pytest.mark.parametrize("packed", [False, True])
def test_embeddings_are_those_of_its_own_encoders(models: tuple[Path, Path], packed: bool) -> None:
    source, ours = models
    preparer, encoder = prepared(ours), load_encoder("hf", str(ours)).eval()
    assert isinstance(encoder, PacksTexts)
    encoder.pack_texts(packed)
    queries = encoder_at(preparer.backend, 36)([preparer.query(text) for text in QUERIES])
    assert {len(row) for row in queries} == {36}
    passages = encoder_at(preparer.backend, LONGEST)([preparer.passage(Passage("p", text)) for text in QUERIES])
    assert min(map(len, passages)) == 4  # of the empty text, of which nothing is pooled
    with torch.no_grad():
        found_query_ND = encoder(token_batch(queries), "query").numpy()
        found_passage_ND = encoder(token_batch(passages), "passage").numpy()
    np.testing.assert_allclose(found_query_ND, queries_of(source, QUERIES), atol=1e-5)
    np.testing.assert_allclose(found_passage_ND, passages_of(source, QUERIES), atol=1e-5)
    assert abs(found_passage_ND[1]).max() == 0 < abs(found_passage_ND[0]).max()


@pytest.mark.parametrize("class_", [BertModel, BertForPreTraining])
def test_weights_and_what_is_recorded(class_: Any, tmp_path: Path) -> None:
    """Some of its checkpoints still have the heads of BERT's first training."""
    source = write_model(tmp_path / "tct", class_)
    call("tct-colbert", "ours", source, tmp_path / "ours")
    stored, found = load_file(source / "model.safetensors"), load_file(tmp_path / "ours" / "model.safetensors")
    prefix = "bert." if class_ is BertForPreTraining else ""
    assert all(torch.equal(found[name], stored[prefix + name]) for name in found) and len(found) == 37
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    expected = {"text_profile": "tct-colbert", "pooling": "mean", "pooled_from": 4, "max_query_length": 36}
    assert {key: config[key] for key in expected} == expected
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "it would give other vectors" in card and "SentenceTransformer(" not in card and "library_name" not in card
    assert not (tmp_path / "ours" / "modules.json").exists()
    (source / "model.safetensors").unlink()
    torch.save({"lstm.weight": torch.ones(1)}, source / "pytorch_model.bin")
    assert "weights are missing), expected a BERT alone" in refused("tct-colbert", "ours", source, tmp_path / "out")


def test_sentence_transformers_cannot_hold_it(models: tuple[Path, Path], tmp_path: Path) -> None:
    source, ours = models
    expected = "--from tct-colbert converts into ours alone"
    assert expected in refused("tct-colbert", "sentence-transformers", source, tmp_path / "out")
    message = refused("ours", "sentence-transformers", ours, tmp_path / "out")
    assert message.endswith("pools the mean from position 4 on, which sentence-transformers does not; --to can be ours")


# The programs


PASSAGES = [f"{SENTENCE} {number} " * (1 + number % 3) for number in range(12)]


def preprocess(folder: Path, model: Path, out: Path, *flags: str, code: int = 0) -> str:
    words = ("--data_dir", folder, "--source", "beir", "--out_data_dir", out, "--model_type", "hf")
    return run("data.msmarco_data", *words, "--model_name_or_path", model, *flags, code=code)


def test_a_collection_is_searched_as_its_own_encoders_search(models: tuple[Path, Path], tmp_path: Path) -> None:
    source, ours = models
    passages = [{"_id": f"p{number}", "text": text} for number, text in enumerate(PASSAGES)]
    queries = [{"_id": f"q{number}", "text": text} for number, text in enumerate(QUERIES) if text]
    qrels = [(query["_id"], "p3", "1") for query in queries]
    folder, data, out = (
        write_beir(tmp_path / "raw", passages, queries, {"test": qrels}),
        tmp_path / "data",
        tmp_path / "out",
    )
    lengths = ("--max_query_length", "36", "--max_seq_length", str(LONGEST))
    assert "profile tct-colbert (as " in preprocess(folder, ours, data, *lengths)
    flags = (
        "--data_dir",
        data,
        "--model_type",
        "hf",
        "--model_name_or_path",
        ours,
        "--output_dir",
        out,
        "--split",
        "test",
    )
    run("drivers.run_eval", *flags, "--dtype", "fp32", "--topk", "12")
    expected_QN = queries_of(source, [query["text"] for query in queries]) @ passages_of(source, PASSAGES).T
    found: dict[str, dict[str, float]] = {}
    for line in next(out.glob("*.trec")).read_text().splitlines():
        query, _, passage, _, score, _ = line.split()
        found.setdefault(query, {})[passage] = float(score)
    for query, expected_N in zip(queries, expected_QN, strict=True):
        scores = [found[query["_id"]][passage["_id"]] for passage in passages]
        np.testing.assert_allclose(scores, expected_N, atol=1e-4)
    shorter = run("drivers.run_eval", *flags[:-4], "--output_dir", tmp_path / "no", "--max_seq_length", "20", code=2)
    assert "--max_seq_length is 20, texts of --text_profile tct-colbert cannot be cut again: give 40" in shorter


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (("40", "37"), "--max_query_length is 37, --text_profile tct-colbert makes queries of 36 tokens: give that"),
        (("4", "36"), "passages cut at 4 tokens hold nothing but the 4 of [CLS] [D]; raise --max_seq_length"),
    ],
)
def test_lengths_that_do_not_fit(
    models: tuple[Path, Path], tmp_path: Path, lengths: tuple[str, str], expected: str
) -> None:
    folder = write_beir(
        tmp_path / "raw", [{"_id": "p", "text": "a"}], [{"_id": "q", "text": "a"}], {"test": [("q", "p", "1")]}
    )
    flags = ("--max_seq_length", lengths[0], "--max_query_length", lengths[1])
    assert expected in preprocess(folder, models[1], tmp_path / "out", *flags, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pooled_from": -1}, "says pooled_from -1, expected a position"),
        ({"pooled_from": "4"}, "says pooled_from '4', expected a position"),
        ({"pooling": "first"}, "the mean from position 4 on, --pooling is first: omit it"),
        ({"head_dim": 8}, "the mean from position 4 on, where no head can follow: omit --head_dim"),
    ],
)
def test_what_does_not_go_with_such_a_mean(
    models: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    shutil.copytree(models[1], tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=re.escape(expected)):
        load_encoder("hf", str(tmp_path / "model"), new_head=True)


def test_a_tower_cannot_begin_as_it(models: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="pools the mean from position 4 on, which no tower does"):
        load_encoder("dpr", str(models[1]), new_head=True)


def test_a_normalised_one_is_stored_and_opened(models: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = load_encoder("hf", str(models[1]), changes={"normalize": True}).eval()
    encoder.save_pretrained(tmp_path)
    tokens = token_batch([[2, 5, 6, 7, 8, 9, 10], [2, 5, 6, 7, 11, 12]])
    with torch.no_grad():
        rows_ND, again_ND = (made(tokens, "query") for made in (encoder, load_encoder("hf", str(tmp_path)).eval()))
    assert torch.equal(rows_ND, again_ND) and abs((rows_ND**2).sum(1) - 1).max() < 1e-5


def test_a_plan_takes_the_length_of_its_queries(models: tuple[Path, Path]) -> None:
    model = inspect_model(models[1])
    assert (model.query_tokens, model.max_seq_length) == (36, LONGEST)
    lengths = Lengths(np.full(9, 20))
    plan = length_settings(CollectionFacts("beir", 9, {"test": 9}, 0, lengths, lengths), model, 1)
    assert plan["max_query_length"].value == "36"
