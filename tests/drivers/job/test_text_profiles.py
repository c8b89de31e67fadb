"""Text profiles through the programs: what is recorded, what is refused, and what a start may differ in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaModel

from data import msmarco_data
from data.msmarco_data import PreprocessSettings, preprocess
from data.sources.msmarco import find_collection
from data.tokens.collection import open_preprocessed
from data.tokens.text_agreement import TextUse, check_texts
from data.tokens.tokenizer import load_tokenizer
from drivers import run_ann, run_ann_data_gen, run_eval, run_neighbourhood, run_warmup
from model.encoders.roberta_dot import RobertaDot
from tests.drivers.models import config_of_random_roberta
from tests.drivers.test_run_bm25 import call
from tests.hub import Hub, fixture_hub
from tests.tokenizers import save_byte_level
from utils.declared.text_profiles import EARLIER, TEXT_PROFILES
from utils.declared.text_settings import TextSettings
from utils.errors import UserError
from utils.exchange.layout import JobLayout
from utils.model_texts import ModelTexts, is_trained, read_model_texts

PROFILES = ("hf", "ance", "ance-warmup")


@pytest.fixture(scope="module", name="raw")
def fixture_raw(shared_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny collection with capital letters: otherwise lower-casing would change nothing."""
    directory = tmp_path_factory.mktemp("capitals")
    for path in shared_collection.iterdir():
        text = path.read_text()
        (directory / path.name).write_text(text if "qrels" in path.name else capitals(text))
    return directory


def capitals(lines: str) -> str:
    pairs = (line.split("\t") for line in lines.splitlines())
    return "".join(f"{name}\t{text.title()}\n" for name, text in pairs)


@pytest.fixture(scope="module", name="tokenizer")
def fixture_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_level(tmp_path_factory.mktemp("tokenizer") / "bpe")


@pytest.fixture(scope="module", name="collections")
def fixture_collections(raw: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for each of PROFILES, and one of hf whose queries have a prefix."""
    directory = tmp_path_factory.mktemp("collections")
    texts = {profile: TextSettings(profile) for profile in PROFILES}
    texts["prefixed"] = TextSettings("hf", query_prefix="query: ")
    for name, settings in texts.items():
        preprocess(
            find_collection(raw, 1), load_tokenizer(tokenizer), directory / name,
            PreprocessSettings(str(tokenizer), 32, 16, texts=settings),
        )  # fmt: skip
    return {name: directory / name for name in texts}


@pytest.fixture(scope="module", name="ance_weights")
def fixture_ance_weights(
    collections: dict[str, Path], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As ANCE's published ones: a head, and nothing said of their texts."""
    directory = tmp_path_factory.mktemp("ance_weights")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaDot(config_of_random_roberta(collections["hf"], **sizes)).save_pretrained(directory)
    for path in tokenizer.iterdir():
        shutil.copy(path, directory)
    return directory


def with_record(model: Path, directory: Path, **record: str) -> Path:
    """A copy whose config.json says so of its texts."""
    shutil.copytree(model, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **record}))
    return directory


def config_of(model: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((model / "config.json").read_text())
    return found


# Preprocessing


def preprocessed_with(raw: Path, model: Path, out: Path, **flags: str) -> dict[str, Any]:
    given = {"max_seq_length": 32, "max_query_length": 16, "data_type": 1, "model_type": "rdot_nll", **flags}
    call(msmarco_data.main, data_dir=raw, out_data_dir=out, model_name_or_path=model, **given)
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return {name: found[name] for name in ("text_profile", "query_prefix", "passage_prefix")}


def test_a_collection_is_of_the_model_s_profile(
    raw: Path, ance_weights: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"query_prefix": "", "passage_prefix": ""}
    assert preprocessed_with(raw, ance_weights, tmp_path / "a") == {"text_profile": "ance", **nothing}
    said = capsys.readouterr().out
    assert f"texts: profile ance (weights of ANCE's layout start the ANN stage, and {ance_weights} records no" in said
    body = tmp_path / "body"  # without a head
    shutil.copytree(ance_weights, body)
    torch.save({"roberta.embeddings.word_embeddings.weight": torch.zeros(2)}, body / "pytorch_model.bin")
    (body / "model.safetensors").unlink()
    assert preprocessed_with(raw, body, tmp_path / "b") == {"text_profile": "hf", **nothing}
    assert preprocessed_with(raw, tokenizer, tmp_path / "c") == {"text_profile": "hf", **nothing}
    assert "texts: profile hf (the default)" in capsys.readouterr().out
    star = with_record(ance_weights, tmp_path / "star", text_profile="star", query_prefix="q: ")
    theirs = {"text_profile": "star", "query_prefix": "q: ", "passage_prefix": ""}
    assert preprocessed_with(raw, star, tmp_path / "d") == theirs
    given = {"text_profile": "ance-warmup", "query_prefix": "", "passage_prefix": "p: "}
    assert preprocessed_with(raw, star, tmp_path / "e", **given) == given


def test_prompts_are_the_default_prefixes(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    model = tmp_path / "prompted"
    shutil.copytree(tokenizer, model)
    modules = [("sentence_transformers.models.Transformer", ""), ("sentence_transformers.models.Pooling", "1_Pooling")]
    (model / "modules.json").write_text(json.dumps([{"type": kind, "path": path} for kind, path in modules]))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    expected = {"text_profile": "hf", "query_prefix": "query: ", "passage_prefix": "passage: "}
    assert preprocessed_with(raw, model, tmp_path / "out") == expected
    found = open_preprocessed(tmp_path / "out", 32, 16)
    query = (raw / "queries.train.tsv").read_text().splitlines()[0].split("\t")[1]
    ids = load_tokenizer(tokenizer)(f"query: {query}", truncation=True, max_length=16)["input_ids"]
    assert found.queries("train").gather([0], 16)[0].tolist() == ids


def test_preprocessing_refuses_a_tokenizer_of_another_kind(raw: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--text_profile star needs the special tokens <s> </s>, the tokenizer has "):
        preprocessed_with(raw, tiny_tokenizer, tmp_path / "out", text_profile="star")
    assert not (tmp_path / "out").exists()


# Encoding: evaluation, generation, the map


def evaluated(model: Path, data_dir: Path, out: Path, **flags: object) -> None:
    call(
        run_eval.main, model_name_or_path=model, data_dir=data_dir, output_dir=out,
        max_seq_length=32, max_query_length=16, no_cuda="true", topk=10, **{"model_type": "rdot_nll", **flags},
    )  # fmt: skip


def generated(model: Path, data_dir: Path, out: Path, **flags: object) -> None:
    call(
        run_ann_data_gen.main, init_model_dir=model, data_dir=data_dir, output_dir=out / "ann",
        **{"training_dir": out / "run", "end_output_num": 0, "negative_strategy": "top", "topk_training": 20},
        **{"model_type": "rdot_nll", **flags}, max_seq_length=32, max_query_length=16, no_cuda="true",
    )  # fmt: skip


def test_an_evaluation_asks_for_a_profile_that_nobody_says(
    ance_weights: Path, collections: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = r"records no text_profile, and its tensors cannot tell it: say .* by --text_profile \(hf, ance, ance-warmup"
    near = {"negatives": "top=x", "model_type": "rdot_nll", "model_name_or_path": ance_weights}
    for data_dir in (collections["hf"], collections["ance"]):
        with pytest.raises(UserError, match=asked):
            evaluated(ance_weights, data_dir, tmp_path / "eval", dry_run="true")
        with pytest.raises(UserError, match=asked):
            generated(ance_weights, data_dir, tmp_path, inference="true", dry_run="true")
    with pytest.raises(UserError, match=asked):
        negatives = tmp_path / "x"
        negatives.write_text("0\t1\t2\n")
        call(
            run_neighbourhood.main, **{**near, "negatives": f"top={negatives}"}, data_dir=collections["hf"],
            output_dir=tmp_path / "near", max_seq_length=32, max_query_length=16, no_cuda="true", dry_run="true",
        )  # fmt: skip
    differs = (
        r"has seen other texts than .*: text_profile 'ance' there, 'hf' here; preprocess with --text_profile ance$"
    )
    with pytest.raises(UserError, match=differs):
        evaluated(ance_weights, collections["hf"], tmp_path / "eval", text_profile="ance")
    assert not (tmp_path / "eval").exists()
    evaluated(ance_weights, collections["ance"], tmp_path / "eval", text_profile="ance")
    assert "preflight: texts: profile ance (as --text_profile ance has it)" in capsys.readouterr().out


def test_an_evaluation_refuses_another_prefix(ance_weights: Path, collections: dict[str, Path], tmp_path: Path) -> None:
    plain = with_record(ance_weights, tmp_path / "plain", text_profile="hf")
    other = with_record(ance_weights, tmp_path / "other", text_profile="hf", query_prefix="search: ")
    same = with_record(ance_weights, tmp_path / "same", text_profile="hf", query_prefix="query: ")
    evaluated(same, collections["prefixed"], tmp_path / "eval", dry_run="true")
    with pytest.raises(UserError, match=r": query_prefix '' there, 'query: ' here; preprocess with --text_profile hf$"):
        evaluated(plain, collections["prefixed"], tmp_path / "eval", dry_run="true")
    for name in ("hf", "prefixed"):
        with pytest.raises(UserError, match=r"; preprocess with --text_profile hf --query_prefix 'search: '$"):
            evaluated(other, collections[name], tmp_path / "eval", dry_run="true")
    with pytest.raises(UserError, match=r"^--text_profile is ance, the texts of .* are hf \(.*config\.json\): omit"):
        evaluated(plain, collections["ance"], tmp_path / "eval", dry_run="true", text_profile="ance")


# The ANN stage, as ANCE's own recipe goes


def trained(model: Path, data_dir: Path, out: Path, **flags: object) -> Path:
    call(
        run_ann.main, model_name_or_path=model, data_dir=data_dir, ann_dir=out / "ann", output_dir=out / "run",
        **{"model_type": "rdot_nll", "max_steps": 1, "save_steps": 1, "learning_rate": 1e-3, **flags},
        max_seq_length=32, max_query_length=16, no_cuda="true",
    )  # fmt: skip
    return JobLayout(out / "run").checkpoint(1)


def test_weights_of_ance_start_the_ann_stage_lower_cased(
    ance_weights: Path, collections: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their own profile is not guessed: the stage has a default, and what they have seen stays unknown."""
    stage = r"records no text_profile, and ANCE's weights start the ANN stage as ance; .* is hf: preprocess with"
    for program in (generated, trained):
        with pytest.raises(UserError, match=stage):
            program(ance_weights, collections["hf"], tmp_path, dry_run="true")
    generated(ance_weights, collections["ance"], tmp_path)
    checkpoint = trained(ance_weights, collections["ance"], tmp_path)
    said = f"preflight: texts: profile ance (the default of the ANN stage: {ance_weights} records none)"
    assert capsys.readouterr().out.count(said) == 2
    recorded = {"text_profile": "ance", "query_prefix": "", "passage_prefix": "", "initial_text_profile": None}
    assert config_of(checkpoint) | recorded == config_of(checkpoint)
    evaluated(checkpoint, collections["ance"], tmp_path / "eval", dry_run="true")
    with pytest.raises(UserError, match="text_profile 'ance' there, 'hf' here"):
        evaluated(checkpoint, collections["hf"], tmp_path / "eval", dry_run="true")
    with pytest.raises(UserError, match="text_profile 'ance' there, 'hf' here"):
        generated(ance_weights, collections["hf"], tmp_path, inference="true", dry_run="true")


def test_weights_of_dpr_s_layout_are_not_taken_for_ance_s(collections: dict[str, Path]) -> None:
    unknown, of_ance = ModelTexts(), open_preprocessed(collections["ance"], 1, 1)
    assert "the default of the ANN stage" in check_texts(
        of_ance, TextUse("x", unknown, "ann", True, model_type="rdot_nll")
    )
    for profile in PROFILES:
        collection = open_preprocessed(collections[profile], 1, 1)
        with pytest.raises(UserError, match="x records no text_profile, and its tensors cannot tell it: say how"):
            check_texts(collection, TextUse("x", unknown, "ann", True, model_type="dpr"))


def test_training_may_start_from_another_profile_where_the_flag_says_so(
    ance_weights: Path, collections: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a generator's refresh 0, which is of the start; with it both are recorded, and stay so in a resumed run."""
    warmup = with_record(ance_weights, tmp_path / "warmup", text_profile="ance-warmup")
    refused = r"has seen other texts .*; preprocess with --text_profile ance-warmup, or train it on these by --ch"
    for program in (generated, trained):
        with pytest.raises(UserError, match=refused):
            program(warmup, collections["ance"], tmp_path, dry_run="true")
    generated(warmup, collections["ance"], tmp_path, change_text_profile="true")
    checkpoint = trained(warmup, collections["ance"], tmp_path, change_text_profile="true")
    said = "texts: profile ance (--change_text_profile: text_profile 'ance-warmup' there, 'ance' here)"
    assert capsys.readouterr().out.count(said) == 2
    recorded = {"text_profile": "ance", "initial_text_profile": "ance-warmup"}
    assert config_of(checkpoint) | recorded == config_of(checkpoint)
    (tmp_path / "run" / "DONE.json").unlink()
    trained(warmup, collections["ance"], tmp_path, change_text_profile="true")
    with pytest.raises(UserError, match=r"preprocess with --text_profile ance-warmup$"):  # not what encodes alone
        generated(warmup, collections["ance"], tmp_path / "other", inference="true", change_text_profile="true")


def test_a_warmup_takes_the_collection_s_profile(
    ance_weights: Path, tokenizer: Path, collections: dict[str, Path], raw: Path, tmp_path: Path
) -> None:
    """From random weights; with a file of triples, whose texts become tokens as the collection's do."""
    lines = [line.split("\t")[1] for line in (raw / "collection.tsv").read_text().splitlines()]
    triples = tmp_path / "triples.tsv"
    triples.write_text("".join(f"{lines[i]}\t{lines[i]}\t{lines[i + 1]}\n" for i in range(8)))
    common = {"model_type": "rdot_nll", "output_dir": tmp_path / "out", "triples": triples, "do_train": "true"}
    lengths = {"max_seq_length": 32, "max_query_length": 16, "no_cuda": "true", "max_steps": 1, "save_steps": 1}
    new = {"config_name": ance_weights / "config.json", "tokenizer_name": tokenizer}
    call(run_warmup.main, **common, **lengths, **new, data_dir=collections["ance-warmup"])
    found = config_of(JobLayout(tmp_path / "out").checkpoint(1))
    assert found | {"text_profile": "ance-warmup", "initial_text_profile": None} == found
    start = {**common, "output_dir": tmp_path / "again", "model_name_or_path": ance_weights}
    with pytest.raises(UserError, match="records no text_profile, and its tensors cannot tell it"):
        call(run_warmup.main, **start, **lengths, data_dir=collections["ance"], dry_run="true")


# Earlier versions


def test_what_earlier_versions_left_keeps_working(
    ance_weights: Path, collections: dict[str, Path], tmp_path: Path
) -> None:
    """Of passages it is hf's; documents, whose fields they joined by <sep>, go with nothing that is made now."""
    cache = tmp_path / "cache"
    shutil.copytree(collections["hf"], cache)
    manifest = json.loads((cache / "manifest.json").read_text())
    for key in ("text_profile", "query_prefix", "passage_prefix"):
        del manifest[key]
    (cache / "manifest.json").write_text(json.dumps(manifest))
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(ance_weights, checkpoint)
    earlier = read_model_texts(str(checkpoint))
    (checkpoint / "MANIFEST.json").write_text("{}")
    assert (earlier.text_profile, read_model_texts(str(checkpoint)).text_profile) == (None, EARLIER)
    passages = open_preprocessed(cache, 1, 1)
    assert passages.text_settings == TextSettings("hf")
    old = TextUse("old", read_model_texts(str(checkpoint)), "encode", is_trained=True)
    new = TextUse("new", ModelTexts("hf", "", "", "x"), "encode", is_trained=True)
    for collection in (passages, open_preprocessed(collections["hf"], 1, 1)):
        for using in (old, new):
            check_texts(collection, using)
    (cache / "manifest.json").write_text(json.dumps({**manifest, "data_type": 0}))
    documents = open_preprocessed(cache, 1, 1)
    assert documents.text_settings == TextSettings(EARLIER)
    check_texts(documents, old)
    with pytest.raises(UserError, match=f"text_profile 'hf' there, '{EARLIER}' here"):
        check_texts(documents, new)
    recorded = {**manifest, "data_type": 0, "text_profile": "hf"}
    (cache / "manifest.json").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match=f"text_profile '{EARLIER}' there, 'hf' here; give the collection it was"):
        check_texts(open_preprocessed(cache, 1, 1), old)


def test_a_record_of_a_newer_version_or_a_damaged_one_is_named(ance_weights: Path, tmp_path: Path) -> None:
    newer = with_record(ance_weights, tmp_path / "newer", text_profile="upper")
    with pytest.raises(UserError, match=r"config\.json says text_profile 'upper', expected one of hf, ance, "):
        read_model_texts(str(newer))
    other = tmp_path / "other.json"  # --config_name, which does not say
    other.write_text("{}")
    star = with_record(ance_weights, tmp_path / "star", text_profile="star")
    assert read_model_texts(str(star), str(other)).text_profile == "star"
    damaged = tmp_path / "damaged"
    with_record(ance_weights, damaged)
    (damaged / "config.json").write_text(json.dumps({"query_prefix": 3}))
    with pytest.raises(UserError, match=r"config\.json says query_prefix 3, expected a text; the file is damaged"):
        read_model_texts(str(damaged))


def warmed_up(model: Path | str, data_dir: Path, out: Path, **flags: object) -> Path:
    triples = out.with_name("triples.tsv")
    triples.write_text("query\tpassage\tother\n" * 8)
    given = {"model_type": "rdot_nll", "do_train": "true", "triples": triples, "max_steps": 1, "save_steps": 1}
    lengths = {"max_seq_length": 32, "max_query_length": 16, "no_cuda": "true"}
    call(
        run_warmup.main, **{"model_name_or_path": model, **given, **lengths, **flags}, data_dir=data_dir, output_dir=out
    )
    return JobLayout(out).checkpoint(1)


def test_programs_agree_on_what_a_model_without_a_record_has_seen(
    ance_weights: Path, collections: dict[str, Path], tmp_path: Path
) -> None:
    """Of --model_type hf, hf's texts where it encodes or starts the ANN stage; a warmup may begin with a mere body."""
    embedder = ance_weights  # with sentence-transformers' files
    body = Path(shutil.copytree(ance_weights, tmp_path / "body"))
    (body / "modules.json").unlink()
    common: dict[str, Any] = {"model_type": "hf", "dry_run": "true"}
    differs = "text_profile 'hf' there, 'ance' here"
    for program in (evaluated, generated, trained):
        for model in (embedder, body):
            program(model, collections["hf"], tmp_path / "out", **common)
            with pytest.raises(UserError, match=differs):
                program(model, collections["ance"], tmp_path / "out", **common)
            program(model, collections["ance"], tmp_path / "out", text_profile="ance", **common)
    for program in (generated, trained):
        program(body, collections["ance"], tmp_path / "out", change_text_profile="true", **common)
        with pytest.raises(UserError, match=f"{body} records no text_profile, and its tensors cannot tell it"):
            program(body, collections["hf"], tmp_path / "out", model_type="dpr", dry_run="true")
    warmed_up(body, collections["ance"], tmp_path / "out", **common)
    warmed_up(embedder, collections["hf"], tmp_path / "out", **common)
    with pytest.raises(UserError, match=differs):
        warmed_up(embedder, collections["ance"], tmp_path / "out", **common)


def test_random_weights_have_seen_no_texts(
    ance_weights: Path, collections: dict[str, Path], tokenizer: Path, tmp_path: Path
) -> None:
    """Also where the config that they are made of is a checkpoint's, which records some."""
    star = with_record(ance_weights, tmp_path / "star", text_profile="star", query_prefix="q: ")
    new = {"config_name": star / "config.json", "tokenizer_name": tokenizer}
    found = config_of(warmed_up("", collections["ance"], tmp_path / "out", text_profile="ance", **new))
    recorded = {"text_profile": "ance", "query_prefix": "", "passage_prefix": "", "initial_text_profile": None}
    assert found | recorded == found
    with pytest.raises(UserError, match=r"^--text_profile is star, .* is ance, and there is no model that has seen ot"):
        warmed_up("", collections["ance"], tmp_path / "other", text_profile="star", **new)
    assert not (tmp_path / "other").exists()


# Two towers, of which the queries' begins as another model


@pytest.fixture(scope="module", name="body")
def fixture_body(collections: dict[str, Path], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer with a tokenizer and nothing else."""
    directory = Path(shutil.copytree(tokenizer, tmp_path_factory.mktemp("body") / "body"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(config_of_random_roberta(collections["hf"], **sizes)).save_pretrained(directory)
    return directory


def test_the_queries_own_model_is_held_to_its_texts(
    body: Path, collections: dict[str, Path], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    said = {"text_profile": "hf", "query_prefix": "query: ", "passage_prefix": "passage: "}
    of_queries = with_record(body, tmp_path / "queries", **said)
    of_passages = with_record(body, tmp_path / "passages", text_profile="hf", query_prefix="", passage_prefix="")
    other = with_record(body, tmp_path / "other", text_profile="hf", query_prefix="search: ")
    ance = with_record(body, tmp_path / "ance", text_profile="ance")
    begun: dict[str, Any] = {"model_type": "dpr", "query_model_name_or_path": of_queries}
    warmed_up(of_passages, collections["prefixed"], tmp_path / "out", dry_run="true", **begun)
    with pytest.raises(UserError, match=r"queries has seen other texts .*: query_prefix 'query: ' there, '' here"):
        warmed_up(of_passages, collections["hf"], tmp_path / "out", **begun)
    with pytest.raises(UserError, match=r"queries has seen other texts .*: passage_prefix 'passage: ' there"):
        warmed_up(of_queries, collections["prefixed"], tmp_path / "out", **begun | {"query_model_name_or_path": body})
    for model, differs in ((other, "query_prefix 'search: ' there"), (ance, "text_profile 'ance' there, 'hf' here")):
        given = begun | {"query_model_name_or_path": model}
        with pytest.raises(UserError, match=f"^{model} has seen other texts than .*: {differs}"):
            warmed_up(of_passages, collections["prefixed"], tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    found = config_of(
        warmed_up(of_passages, collections["prefixed"], tmp_path / "out", change_text_profile="true", **given)
    )
    assert (found["text_profile"], found["query_prefix"], found["initial_text_profile"]) == ("hf", "query: ", None)


def test_the_queries_own_model_has_the_collection_s_tokenizer_and_whole_files(
    body: Path, collections: dict[str, Path], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    checkpoint = warmed_up(body, collections["hf"], tmp_path / "first", model_type="hf")
    begun: dict[str, Any] = {"model_type": "dpr", "query_model_name_or_path": checkpoint}
    other = Path(shutil.copytree(body, tmp_path / "other"))
    for path in tiny_tokenizer.iterdir():
        shutil.copy(path, other)
    with pytest.raises(UserError, match=f"^the tokenizer of {other} is .*, {collections['hf']} was made with"):
        warmed_up(body, collections["hf"], tmp_path / "out", **begun | {"query_model_name_or_path": other})
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"model.safetensors: sha256 differs .*; copy the checkpoint again"):
        warmed_up(body, collections["hf"], tmp_path / "out", **begun)
    assert not (tmp_path / "out").exists()


# Names of the hub: what its cache holds does not decide


__all__ = ["fixture_hub"]
NOT_THERE = "its weights are neither in the hub's cache nor can they be fetched: .*, or give --text_profile$"


def test_a_collection_is_of_a_hub_model_s_profile_on_a_cold_cache_too(
    raw: Path, ance_weights: Path, tokenizer: Path, tmp_path: Path, hub: Hub
) -> None:
    """A login node fetches what it has to look at; the compute node, which has no network, sees the same."""
    trained, body = hub.add(ance_weights, "lab/ance"), hub.add(tokenizer, "lab/tokenizer")
    assert preprocessed_with(raw, Path(trained), tmp_path / "cold")["text_profile"] == "ance"
    assert preprocessed_with(raw, Path(body), tmp_path / "body")["text_profile"] == "hf"
    hub.set_offline(True)
    assert preprocessed_with(raw, Path(trained), tmp_path / "warm")["text_profile"] == "ance"
    assert preprocessed_with(raw, Path(body), tmp_path / "body2")["text_profile"] == "hf"
    for weights in hub.cache.rglob("model.safetensors"):  # as one that has fetched the tokenizer alone
        weights.unlink()
    with pytest.raises(UserError, match=f"^lab/ance is no directory, and {NOT_THERE}"):
        preprocessed_with(raw, Path(trained), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert preprocessed_with(raw, Path(trained), tmp_path / "said", text_profile="star")["text_profile"] == "star"


def test_programs_hold_a_hub_model_to_its_texts_on_a_cold_cache_too(
    ance_weights: Path, collections: dict[str, Path], tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = Path(hub.add(ance_weights, "lab/ance"))
    star = Path(hub.add(with_record(ance_weights, tmp_path / "star", text_profile="star"), "lab/star"))
    asked, stage = "lab/ance records no text_profile, and its tensors", "lab/ance records no text_profile, and ANCE's"
    other = "lab/star has seen other texts than .*: text_profile 'star' there"
    for program, line in ((evaluated, asked), (warmed_up, asked), (trained, stage)):
        for model, refused in ((unknown, line), (star, other)):
            hub.forget()
            program(model, collections["hf"], tmp_path / "out", dry_run="true")  # fetches nothing, and cannot know
            assert "warning: texts: lab/" in capsys.readouterr().err
            for _ in ("cold", "warm"):
                with pytest.raises(UserError, match=f"^{refused}"):
                    program(model, collections["hf"], tmp_path / "out")
            with pytest.raises(UserError, match=f"^{refused}"):
                program(model, collections["hf"], tmp_path / "out", dry_run="true")
    with pytest.raises(UserError, match=r"^there is no model lab/none: it is no directory, and the hub does"):
        evaluated(Path("lab/none"), collections["hf"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    hub.forget()
    evaluated(unknown, collections["ance"], tmp_path / "out", text_profile="ance")
    assert (tmp_path / "out" / "metrics.json").is_file()


# Weights of ANCE's layout, in every format that they come in


@pytest.mark.parametrize("layout", ["safetensors", "zip", "legacy"])
def test_a_trained_model_is_told_by_its_head(ance_weights: Path, tmp_path: Path, layout: str) -> None:
    for has_head in (True, False):
        directory = tmp_path / str(has_head)
        shutil.copytree(ance_weights, directory)
        weights = RobertaDot.from_pretrained(str(ance_weights)).state_dict()
        kept = {name: tensor for name, tensor in weights.items() if has_head or not name.startswith("embeddingHead")}
        (directory / "model.safetensors").unlink()
        if layout == "safetensors":
            from safetensors.torch import save_file

            save_file(kept, str(directory / "model.safetensors"))
        else:
            path = directory / "pytorch_model.bin"
            torch.save(kept, path, _use_new_zipfile_serialization=layout == "zip")
        assert is_trained(str(directory), "rdot_nll") == has_head
        assert not is_trained(str(directory), "static")


def test_every_profile_has_its_line_in_the_docs() -> None:
    from tests import REPO

    page = (REPO / "docs" / "text_profiles.md").read_text()
    for word, declared in TEXT_PROFILES.items():
        assert f"| `{word}` | {declared.description.replace('<sep>', '`<sep>`')} | {declared.source} |" in page


def test_ance_s_flag_points_to_the_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    from drivers.cli.train import AnnFlags
    from utils.flags import parse_flags

    required = ("data_dir", "model_type", "ann_dir", "output_dir")
    parse_flags(AnnFlags, "run_ann", [*(word for name in required for word in (f"--{name}", "x")), "--do_lower_case"])
    assert "--do_lower_case has no effect here: data.msmarco_data --text_profile ance lower" in capsys.readouterr().err
