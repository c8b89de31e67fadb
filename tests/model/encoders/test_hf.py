"""--model_type hf against sentence-transformers: real texts and a real model, directories of ours, and flags."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from data import msmarco_data
from data.tokens.collection import open_preprocessed
from data.tokens.token_cache import TokenCache
from data.tokens.tokenizer import load_tokenizer, local_tokenizer, tokenizer_fingerprint
from drivers.embeddings.encode import chosen_texts
from drivers.job.encoder_setup import check_model_directory, prepare_encoder
from drivers.job.model_identity import ModelSettings, check_checkpoint, identity_of
from drivers.job.text_lengths import find_lengths
from drivers.plan.inspect_inputs import inspect_model
from model.encode import encode_blocks
from model.encoders.base import Encoder
from model.encoders.body import config_of, new_model
from model.encoders.hf import HfEncoder
from model.encoders.registry import load_encoder, new_encoder, read_config, read_spec
from model.encoders.spec import Side
from model.similarity import all_scores
from model.train.micro_batch import TripleRows
from model.train.step import TrainingStep
from tests.beir import write_beir
from tests.drivers.test_run_bm25 import call
from tests.hub import Hub, fixture_hub
from tests.model.encoders.families import config_of_family
from tests.model.formats.tiny import TEXTS, roughen, token_ids, with_body_in_a_folder, write_bert_tokenizer
from tests.real import collection_dir, minilm_dir
from tests.texts import token_batch
from utils.distributed.world import World
from utils.errors import UserError
from utils.exchange.model_files import config_sha256, weights_sha256
from utils.exchange.sentence_files import HeadModule
from utils.hub import describe_unknown_modules, model_directory
from utils.model_texts import read_model_texts

__all__ = ["fixture_hub"]
LENGTH = 12
NORMALIZE = (HeadModule("normalize", "2_Normalize"),)
HEAD = (
    HeadModule("dense", "2_Dense", 32, 8, activation="tanh"),
    HeadModule("layer_norm", "3_LayerNorm", 8, 8),
    HeadModule("normalize", "4_Normalize"),
)


def rows_of(encoder: Encoder, ids: list[list[int]]) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(encoder.eval().encode(token_batch(ids), "passage").rows.numpy())


def saved(directory: Path, kind: str = "bert", pooling: str = "mean", head: tuple[HeadModule, ...] = HEAD) -> Path:
    """A checkpoint with its tokenizer, as a trainer publishes it."""
    vocab_size = write_bert_tokenizer(directory)
    torch.manual_seed(0)
    config = config_of(config_of_family(kind, vocab_size=vocab_size, pad_token_id=0), "x")
    encoder = HfEncoder(new_model(config), pooling, head)
    roughen(encoder)
    encoder.record({"max_seq_length": LENGTH, "max_query_length": LENGTH})
    encoder.save_pretrained(directory)
    load_tokenizer(directory).save_pretrained(str(directory))
    return directory


def real_collection(folder: Path) -> tuple[list[str], list[str]]:
    """A BEIR folder with 900 passages and 100 queries of NFCorpus; the texts of both as BEIR's programs join them.

    Most passages are its queries, which are short; the others are abstracts, some of more tokens than the model reads.
    """
    nfcorpus = collection_dir("nfcorpus")
    abstracts, queries = (
        [json.loads(line) for line in (nfcorpus / f"{name}.jsonl").read_text().splitlines()]
        for name in ("corpus", "queries")
    )
    passages = [*abstracts[:20], *({**query, "title": ""} for query in queries[:880])]
    asked = queries[880:980]
    write_beir(folder, passages, asked, {"test": [(query["_id"], passages[0]["_id"], "1") for query in asked]})
    return [f"{found['title']} {found['text']}".strip() for found in passages], [query["text"] for query in asked]


def test_minilm_gives_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    """Of 1,000 real texts, from the texts: preprocessed, read from the token cache, packed, in float32; to 1e-5."""
    directory, data_dir, length = str(minilm_dir()), tmp_path / "preprocessed", 256
    passages, queries = real_collection(tmp_path / "raw")
    lengths = {"max_seq_length": length, "max_query_length": length}
    call(msmarco_data.main, data_dir=tmp_path / "raw", out_data_dir=data_dir, source="beir", model_type="hf",
         model_name_or_path=directory, **lengths)  # fmt: skip
    collection = open_preprocessed(data_dir, length, length)
    encoder, world, cpu = load_encoder("hf", directory), World(0, 1, torch.device("cpu")), torch.device("cpu")
    prepare_encoder(encoder, None, world)
    assert not encoder.padding_costs, "packed"
    theirs = SentenceTransformer(directory, device="cpu")
    sides: list[tuple[Side, TokenCache, list[str], Any]] = [
        ("passage", collection.passages, passages, theirs.encode_document),
        ("query", collection.queries("test"), queries, theirs.encode_query),
    ]
    for side, cache, texts, encode in sides:
        assert len(cache) == len(texts)
        source = chosen_texts(cache, np.arange(len(texts)), length, side)
        found_ND = np.concatenate(list(encode_blocks(encoder, source, (0, len(texts)), 2048, cpu, None)))
        np.testing.assert_allclose(found_ND, encode(texts), rtol=0, atol=1e-5)
    assert max(len(theirs.tokenizer(text)["input_ids"]) for text in passages[:20]) > length, "some are cut"
    assert encoder.spec.is_normalized and read_spec(directory, "hf") == encoder.spec


@pytest.mark.parametrize(
    ("kind", "pooling", "head"),
    [("bert", "mean", HEAD), ("mpnet", "first", HEAD[:1]), ("distilbert", "last", ()), ("electra", "mean", NORMALIZE)],
)
def test_a_checkpoint_opens_in_sentence_transformers(
    kind: str, pooling: str, head: tuple[HeadModule, ...], tmp_path: Path
) -> None:
    directory = saved(tmp_path / "model", kind, pooling, head)
    theirs = SentenceTransformer(str(directory), device="cpu")
    assert theirs.max_seq_length == LENGTH
    expected = theirs.encode(TEXTS)
    encoder = load_encoder("hf", str(directory))
    np.testing.assert_allclose(rows_of(encoder, token_ids(directory, TEXTS, LENGTH)), expected, atol=1e-5)
    theirs.save(str(tmp_path / "theirs"))
    again = load_encoder("hf", str(tmp_path / "theirs"))
    np.testing.assert_allclose(rows_of(again, token_ids(directory, TEXTS, LENGTH)), expected, atol=1e-5)
    names = sorted(path.name for path in directory.glob("[0-9]_*"))
    assert names == sorted(["1_Pooling", *(module.folder for module in head)])
    assert read_config(str(directory), "hf")["architectures"] == [type(again.model).__mro__[0].__name__.split("Of")[-1]]


@pytest.mark.parametrize("place", ["directory", "hub"])
def test_a_transformer_in_a_folder_of_its_own(place: str, tmp_path: Path, hub: Hub) -> None:
    """As sentence-transformers before version 2 wrote it: every reader of a model's files finds it."""
    flat = saved(tmp_path / "flat")
    settings = flat / "sentence_bert_config.json"
    settings.write_text(json.dumps({"max_seq_length": LENGTH, "query_length": 5}))
    config = json.loads((flat / "config.json").read_text())
    for name in ("max_seq_length", "max_query_length"):
        del config[name]
    (flat / "config.json").write_text(json.dumps(config))
    nested = with_body_in_a_folder(Path(shutil.copytree(flat, tmp_path / "nested")))
    name = hub.add(nested, "lab/nested") if place == "hub" else str(nested)
    ids = token_ids(flat, TEXTS, LENGTH)
    found_BD = rows_of(load_encoder("hf", name), ids)
    np.testing.assert_array_equal(found_BD, rows_of(load_encoder("hf", str(flat)), ids))
    theirs = SentenceTransformer(str(nested), device="cpu")
    np.testing.assert_allclose(found_BD, theirs.encode(TEXTS), atol=1e-5)
    assert tokenizer_fingerprint(name) == tokenizer_fingerprint(flat)
    assert read_model_texts(name) == read_model_texts(str(flat))
    lengths = find_lengths(dict.fromkeys(("max_seq_length", "max_query_length")), [name], tmp_path, is_dry_run=True)
    assert lengths.by_name == {"max_seq_length": LENGTH, "max_query_length": 5}
    identity = identity_of(ModelSettings(name, "hf"))
    assert identity["initial_config_sha256"] == identity_of(ModelSettings(str(flat), "hf"))["initial_config_sha256"]
    assert local_tokenizer(name, tmp_path / "tokenizer")[0].is_file()
    directory = model_directory(name)
    assert inspect_model(directory) == inspect_model(flat)
    towers = load_encoder("dpr", str(with_body_in_a_folder(saved(tmp_path / "tower", head=NORMALIZE))))
    assert towers.spec.is_normalized
    (nested / "0_Transformer" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="nested/0_Transformer holds no weights, expected one of"):
        weights_sha256(nested)
    (nested / "0_Transformer" / "config.json").unlink()
    with pytest.raises(UserError, match=r"nested/0_Transformer/config\.json is missing"):
        read_config(str(nested), "hf")


def test_a_cache_that_transformers_alone_has_filled_is_said_not_to_tell(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has none of sentence-transformers' files: the pooling, the head and the prefixes are unknown."""
    config = saved(tmp_path / "model") / "config.json"  # as others write it, without pooling and head
    others = {key: value for key, value in json.loads(config.read_text()).items() if key not in ("pooling", "head")}
    config.write_text(json.dumps(others))
    name = hub.add(config.parent, "lab/model")
    write_beir(
        tmp_path / "raw", [{"_id": "p", "text": "a b"}], [{"_id": "q", "text": "a"}], {"test": [("q", "p", "1")]}
    )
    model, line = ModelSettings(name, "hf"), f"does not tell whether {name} has modules.json: "

    def warnings() -> tuple[str, str]:
        """Of preprocessing and of a program."""
        call(msmarco_data.main, data_dir=tmp_path / "raw", out_data_dir=tmp_path / "out", source="beir",
             model_type="hf", model_name_or_path=name, dry_run="true")  # fmt: skip
        of_preprocessing = capsys.readouterr().err
        check_model_directory(model, is_dry_run=True)
        return of_preprocessing, capsys.readouterr().err

    AutoTokenizer.from_pretrained(name)
    AutoModel.from_pretrained(name)
    hub.set_offline(True)
    assert load_encoder("hf", name).spec.is_normalized is False
    assert all(line in found and f"`hf download {name}` fetches all" in found for found in warnings())
    assert line in check_checkpoint(model)
    assert all(line not in describe_unknown_modules(name, kind) for kind in ("rdot_nll", "static", "no such type"))
    assert line in describe_unknown_modules(name, "dpr")  # whose towers begin as it
    assert describe_unknown_modules("lab/nothere", "hf") == "", "opening it says that there is none"
    hub.set_offline(False)
    model_directory(name)
    hub.set_offline(True)
    assert load_encoder("hf", name).spec.is_normalized
    assert warnings() == ("", "") and line not in check_checkpoint(model)
    hub.set_offline(False)
    body = saved(tmp_path / "body")
    (body / "modules.json").unlink()
    known = ModelSettings(hub.add(body, "lab/body"), "hf")
    model_directory(known.name_or_path)
    hub.set_offline(True)
    assert "does not tell" not in check_checkpoint(known)  # the hub has said that there is none


def test_flags_replace_what_the_files_say(tmp_path: Path) -> None:
    directory = saved(tmp_path / "model", head=())
    ids = token_ids(directory, TEXTS, LENGTH)
    plain = load_encoder("hf", str(directory))
    first = load_encoder("hf", str(directory), changes={"pooling": "cls", "normalize": True})
    assert (plain.body.pooling, first.body.pooling) == ("mean", "first")
    assert (plain.spec.is_normalized, first.spec.is_normalized) == (False, True)
    with torch.inference_mode():
        states = [first.model(input_ids=torch.tensor([row])).last_hidden_state[0, 0] for row in ids]
    np.testing.assert_allclose(rows_of(first, ids), F.normalize(torch.stack(states), dim=1).numpy(), atol=1e-5)
    with pytest.raises(UserError, match="has no head to 5 dimensions; train one first"):
        load_encoder("hf", str(directory), changes={"head_dim": 5})
    torch.manual_seed(3)
    made = load_encoder("hf", str(directory), new_head=True, changes={"head_dim": 5, "normalize": True})
    assert rows_of(made, ids).shape == (len(TEXTS), 5) and made.spec.is_normalized
    made.save_pretrained(tmp_path)
    np.testing.assert_array_equal(rows_of(load_encoder("hf", str(tmp_path)), ids), rows_of(made, ids))


def test_scores_by_cosine_are_those_of_normalize(tmp_path: Path) -> None:
    """The library says cosine of every model that it saves without another word; its vectors have any length."""
    bare = saved(tmp_path / "bare", head=())
    settings = json.loads((bare / "config_sentence_transformers.json").read_text())
    (bare / "config_sentence_transformers.json").write_text(json.dumps({**settings, "similarity_fn_name": None}))
    SentenceTransformer(str(bare), device="cpu").save(str(tmp_path / "theirs"))
    name, ids = str(tmp_path / "theirs"), token_ids(bare, TEXTS, LENGTH)
    theirs = SentenceTransformer(name, device="cpu")
    encoded_BD = theirs.encode(TEXTS)
    np.testing.assert_allclose(rows_of(load_encoder("hf", name), ids), encoded_BD, atol=1e-5)
    rows_BD = rows_of(load_encoder("hf", name, changes={"normalize": True}), ids)
    np.testing.assert_allclose(rows_BD @ rows_BD.T, theirs.similarity(encoded_BD, encoded_BD), atol=1e-5)
    said = check_checkpoint(ModelSettings(name, "hf"))
    assert "scores are inner products, sentence-transformers' files say cosine: --normalize computes that" in said
    others = [
        ModelSettings(name, "hf", changes={"normalize": True}),
        ModelSettings(name, "hf", changes={"normalize": False}),
        ModelSettings(str(saved(tmp_path / "unit", head=NORMALIZE)), "hf"),
        ModelSettings(str(saved(tmp_path / "dot", head=())), "hf"),
    ]
    assert not any("files say cosine" in check_checkpoint(model) for model in others)


def test_random_weights_of_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of_family("bert", pooling="last", normalize=True)))
    encoder = new_encoder("hf", str(tmp_path), {"vocab_size": 90})
    assert (encoder.body.pooling, encoder.spec.vocab_size, encoder.spec.is_normalized) == ("last", 90, True)


def test_the_head_is_part_of_the_identity(tmp_path: Path) -> None:
    directory = saved(tmp_path / "model")
    before = weights_sha256(directory)
    other = saved(tmp_path / "other")
    assert weights_sha256(other) == before
    shutil.copyfile(directory / "3_LayerNorm" / "model.safetensors", other / "2_Dense" / "model.safetensors")
    assert weights_sha256(other) != before
    # Whatever its folder is called.
    (directory / "2_Dense").rename(directory / "Dense")
    modules = directory / "modules.json"
    modules.write_text(modules.read_text().replace("2_Dense", "Dense"))
    before = weights_sha256(directory)
    assert load_encoder("hf", str(directory)).spec.embedding_dim == 8
    shutil.copyfile(directory / "3_LayerNorm" / "model.safetensors", directory / "Dense" / "model.safetensors")
    assert weights_sha256(directory) != before
    configs = [read_config(str(directory), "hf")]
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    configs.append(read_config(str(directory), "hf"))
    assert config_sha256(configs[0]) != config_sha256(configs[1])


@pytest.mark.parametrize("loss", ["pairwise", "in_batch"])
@pytest.mark.parametrize(("normalizes", "given"), [(True, None), (True, 0.5), (False, None), (False, 2.0)])
def test_the_temperature_divides_the_scores_of_the_loss_alone(loss: str, normalizes: bool, given: float | None) -> None:
    torch.manual_seed(1)
    head = NORMALIZE if normalizes else ()
    encoder = HfEncoder(new_model(config_of(config_of_family("bert"), "x")), "mean", head)
    queries_TD, passages_GD = torch.randn(3, 32), torch.randn(6, 32)
    place_T = torch.arange(3)
    triples = TripleRows(place_T, place_T, place_T + 3, torch.ones(3, 6, dtype=torch.bool), place_T, None)
    found = TrainingStep(encoder, loss, temperature=given).loss_of(queries_TD, passages_GD, triples)
    temperature = given if given is not None else 0.05 if normalizes else 1.0
    scores_TG = all_scores(queries_TD, passages_GD) / temperature
    pairs = scores_TG[place_T, place_T + 3] - scores_TG[place_T, place_T]
    expected = F.softplus(pairs).mean() if loss == "pairwise" else F.cross_entropy(scores_TG, place_T)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def refused(directory: Path, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        load_encoder("hf", str(directory), **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_bad_directories_are_refused_in_one_line(tmp_path: Path) -> None:
    directory = saved(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())

    def with_config(**changes: Any) -> Path:
        (directory / "config.json").write_text(json.dumps({**config, **changes}))
        return directory

    assert "is of a 'nobert' model, which transformers does not know" in refused(with_config(model_type="nobert"))
    assert "lacks" in refused(with_config(num_hidden_layers=3)) and "encoder.layer.2" in refused(directory)
    assert "has another shape than its config says" in refused(with_config(vocab_size=7))
    with_config()
    (directory / "2_Dense" / "model.safetensors").write_bytes(b"no weights")
    assert "2_Dense/model.safetensors is damaged" in refused(directory)
    (directory / "2_Dense" / "model.safetensors").unlink()
    assert "2_Dense/model.safetensors is missing" in refused(directory)
    (directory / "3_LayerNorm" / "config.json").write_text(json.dumps({"dimension": 9}))
    assert "3_LayerNorm takes 9 numbers, it is given 8" in refused(directory)
    (directory / "model.safetensors").unlink()
    assert "does not load as a bert checkpoint" in refused(directory)
