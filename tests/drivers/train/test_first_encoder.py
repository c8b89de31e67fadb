"""What run_ann and run_warmup refuse of the encoder that they begin with: in the preflight, with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from drivers import run_ann, run_warmup
from model.encoders.dpr import TwoTowers
from tests.drivers.test_run_bm25 import call
from tests.exchanging import put_negatives
from tests.hub import Hub, fixture_hub
from utils.errors import Disagreement, UserError

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
__all__ = ["fixture_hub"]
TWO = {"model_type": "dpr"}
ADAPTED = {"model_type": "hf", "lora_r": 4}


@pytest.fixture(scope="module", name="models")
def fixture_models(
    tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("models")
    manifest = json.loads((tiny_preprocessed / "manifest.json").read_text())
    sizes = {**SIZES, "vocab_size": manifest["vocab_size"], "pad_token_id": manifest["pad_token_id"]}
    bert = BertConfig(**sizes, max_position_embeddings=40)
    made: dict[str, PreTrainedModel | TwoTowers] = {
        "bert": BertModel(bert),
        "short": BertModel(BertConfig(**sizes, max_position_embeddings=20)),
        "roberta": RobertaModel(RobertaConfig(**sizes, max_position_embeddings=40)),
        "albert": AlbertModel(AlbertConfig(**sizes, embedding_size=8, max_position_embeddings=40)),
        "tied": TwoTowers.new({**bert.to_dict(), "tied": True, "text_profile": "hf"}),
        "untied": TwoTowers.new({**bert.to_dict(), "text_profile": "hf"}),
    }
    for name, model in made.items():
        shutil.copytree(tiny_tokenizer, directory / name)
        model.save_pretrained(directory / name)
    return lambda name: directory / name


def common(out: Path, data_dir: Path) -> dict[str, object]:
    lengths = {"max_seq_length": 32, "max_query_length": 16, "no_cuda": "true", "max_steps": 1, "save_steps": 1}
    return {"data_dir": data_dir, "output_dir": out, "model_type": "rdot_nll", **lengths}


def began_ann(out: Path, data_dir: Path, flags: dict[str, object]) -> None:
    call(run_ann.main, **{**common(out, data_dir), "ann_dir": out.with_name("ann"), **flags})


def began_warmup(out: Path, data_dir: Path, flags: dict[str, object]) -> None:
    triples = out.with_name("triples.tsv")
    triples.write_text("query\tpassage\tother\n" * 8)
    call(run_warmup.main, **{**common(out, data_dir), "do_train": "true", "triples": triples, **flags})


NO_HEAD = r"roberta has no embeddingHead.weight: a checkpoint without its head; train with run_warmup"
TIED = r"--freeze (query|passage) is given, the model's towers are tied: one is both; omit it"
TWICE = r"untied has two towers already: --query_model_name_or_path is for none; omit it"
FAMILY = r"--lora_r is given, the model is of the family 'albert', expected one of .*; train it without"
POSITIONS = r"texts have up to 32 tokens, the model 20 positions; pass fewer"
ALSO_TIED = r"--query_model_name_or_path is given, the towers of .*tied.* are tied: one is both; omit either"
HEAD_DIM = r"--head_dim is given with --lora_r, which trains adapters alone: train the new head without it first"
NO_OPTIMIZER = r"bert/optimizer.pt is missing, --load_optimizer_scheduler needs it; omit the flag"
BOTH, ANN, WARMUP = (began_ann, began_warmup), (began_ann,), (began_warmup,)


@pytest.mark.parametrize(
    ("programs", "model", "flags", "line"),
    [
        (ANN, "roberta", {}, NO_HEAD),
        (WARMUP, "roberta", {"lora_r": 4}, NO_HEAD),
        (BOTH, "tied", {**TWO, "freeze": "query"}, TIED),
        (WARMUP, "bert", {**TWO, "tied": "true", "freeze": "passage"}, TIED),
        (BOTH, "albert", ADAPTED, FAMILY),
        (BOTH, "short", {"model_type": "hf"}, POSITIONS),
        (WARMUP, "", {**TWO, "config_name": "short/config.json", "tokenizer_name": "short"}, POSITIONS),
        (WARMUP, "bert", {**TWO, "query_model_name_or_path": "roberta", "config_name": "tied"}, ALSO_TIED),
        (WARMUP, "untied", {**TWO, "query_model_name_or_path": "bert"}, TWICE),
        (WARMUP, "bert", {**ADAPTED, "head_dim": 8}, HEAD_DIM),
        (BOTH, "bert", {"model_type": "hf", "load_optimizer_scheduler": "true"}, NO_OPTIMIZER),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_not_begin_is_refused_with_nothing_written(
    models: Callable[[str], Path], tiny_preprocessed: Path, tmp_path: Path,
    programs: tuple[Callable[[Path, Path, dict[str, object]], None], ...],
    model: str, flags: dict[str, object], line: str,
) -> None:  # fmt: skip
    named = ("query_model_name_or_path", "config_name", "tokenizer_name")
    given = {key: models(str(value)) if key in named else value for key, value in flags.items()}
    given |= {"model_name_or_path": models(model) if model else ""}
    for begins in programs:
        for dry_run in ("true", "false"):
            with pytest.raises(UserError, match=line) as caught:
                begins(tmp_path / "out", tiny_preprocessed, {**given, "dry_run": dry_run})
            assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("roberta", {}),
        ("bert", {**TWO, "query_model_name_or_path": "bert", "freeze": "passage"}),
        ("", {"config_name": "roberta/config.json", "tokenizer_name": "roberta"}),
    ],
)
def test_what_can_begin_begins_as_without_the_look(
    models: Callable[[str], Path], tiny_preprocessed: Path, tmp_path: Path, model: str, flags: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The look draws no random number: the first weights are the same with it and without."""
    named = ("query_model_name_or_path", "config_name", "tokenizer_name")
    given = {key: models(str(value)) if key in named else value for key, value in flags.items()}
    given |= {"model_name_or_path": models(model) if model else ""}
    found = []
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr("drivers.train.warmup_preflight.check_first_encoder", lambda *given: None)
        torch.manual_seed(5)
        began_warmup(tmp_path / name, tiny_preprocessed, {**given, "learning_rate": 0.01})
        weights = sorted((tmp_path / name / "checkpoint-1").glob("*model*.safetensors"))
        found.append([path.read_bytes() for path in weights])
    assert found[0] and found[0] == found[1]


def test_a_model_of_the_hub_is_looked_at_by_its_name(
    models: Callable[[str], Path], tiny_preprocessed: Path, tmp_path: Path, hub: Hub
) -> None:
    given: dict[str, object] = {"model_name_or_path": hub.add(models("roberta"), "lab/roberta")}
    for _ in ("cold", "warm"):
        with pytest.raises(UserError, match=r"^lab/roberta has no embeddingHead"):
            began_ann(tmp_path / "out", tiny_preprocessed, given)
    began_warmup(tmp_path / "warm up", tiny_preprocessed, {**given, "model_type": "hf"})
    assert (tmp_path / "warm up" / "checkpoint-1" / "tokenizer.json").is_file()
    assert not (tmp_path / "out").exists()


def test_a_run_that_must_not_begin_leaves_nothing_that_says_so(
    models: Callable[[str], Path], tiny_preprocessed: Path, tmp_path: Path
) -> None:
    """Negatives of another run's later model; and --overwrite_output_dir removes nothing before it is refused."""
    flags: dict[str, object] = {"model_type": "hf", "model_name_or_path": models("bert")}
    out = tmp_path / "out"
    began_warmup(out, tiny_preprocessed, flags)  # what another job has left there
    left = (out / "RUN.json").read_bytes()
    put_negatives(tmp_path / "ann", 1, model_sha256="0" * 64)
    for directory, more in ((tmp_path / "new", {}), (out, {"overwrite_output_dir": "true"})):
        with pytest.raises(Disagreement, match="has refreshes up to 1 already, and this run only begins"):
            began_ann(directory, tiny_preprocessed, {**flags, **more})
    assert not (tmp_path / "new" / "RUN.json").exists()
    assert (out / "RUN.json").read_bytes() == left and (out / "checkpoint-1").is_dir()
