"""The identity of a model: the same where two compute the same, another where a file that decides it is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig

from drivers import run_ann_data_gen
from drivers.job.model_identity import RANDOM_WEIGHTS, ModelSettings, identity_of
from model.encoders.registry import load_encoder
from model.encoders.roberta_dot import RobertaDot
from tests.drivers.test_run_bm25 import call
from tests.exchanging import lease_of
from tests.model.encoders.test_encoders import SHAPE, TEXTS, embed, new_roberta
from utils.declared.text_settings import DEFAULT_TEXTS
from utils.errors import Disagreement, UserError
from utils.exchange.atomic import dump_with_checksum, load_with_checksum, sha256_of
from utils.exchange.checkpoints import model_sha256, publish_checkpoint
from utils.exchange.markers import read_run
from utils.exchange.model_files import WEIGHTS, config_sha256, weight_files, weights_sha256

SMALL = "6KB"  # of a shard: the model has four times that


def save(encoder: RobertaDot, directory: Path, layout: str) -> Path:
    """The model as transformers writes it, or wrote it: one file or several, of either format."""
    encoder.save_pretrained(directory, max_shard_size=SMALL if "sharded" in layout else "50GB")
    if layout.startswith("bin"):
        for path in directory.glob("*.safetensors"):
            torch.save(load_file(path), directory / bin_name(path.name))
            path.unlink()
        for path in directory.glob("*.index.json"):
            index = json.loads(path.read_text())
            index["weight_map"] = {name: bin_name(file) for name, file in index["weight_map"].items()}
            (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
            path.unlink()
    return directory


def bin_name(name: str) -> str:
    return name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")


LAYOUTS = ("safetensors", "safetensors sharded", "bin", "bin sharded")


def changed(path: Path) -> None:
    """One weight of a file is another."""
    weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    next(iter(weights.values())).view(-1)[:].add_(0.5)
    save_file(weights, path, {"format": "pt"}) if path.suffix == ".safetensors" else torch.save(weights, path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_differ_exactly_where_what_the_loader_reads_does(tmp_path: Path, layout: str) -> None:
    model = save(new_roberta(), tmp_path / "model", layout)
    save(new_roberta(), tmp_path / "bin", "bin")
    if layout != "bin":  # read only where there is no safetensors, before shards
        shutil.copy(tmp_path / "bin" / "pytorch_model.bin", model)
    files = [path.name for path in model.iterdir() if path.suffix in (".safetensors", ".bin")]
    assert len(files) > 3 or "sharded" not in layout
    identity, weights = weights_sha256(model), load_encoder("rdot_nll", str(model)).state_dict()
    assert len(identity) == 64 and weights_sha256(Path(shutil.copytree(model, tmp_path / "copy"))) == identity
    seen = set()
    for name in files:
        other = Path(shutil.copytree(model, tmp_path / f"other-{name}"))
        changed(other / name)
        loaded = load_encoder("rdot_nll", str(other)).state_dict()
        is_same = all(torch.equal(loaded[key], tensor) for key, tensor in weights.items())
        assert (weights_sha256(other) == identity) == is_same, name
        seen.add(is_same)
    assert seen == ({False} if layout == "bin" else {True, False}), "the other file is not read"


def test_one_file_is_known_by_its_own_sha256_as_always(tmp_path: Path) -> None:
    for layout, name in (("safetensors", WEIGHTS[0]), ("bin", WEIGHTS[2])):
        model = save(new_roberta(), tmp_path / layout, layout)
        assert weight_files(model) == [name] and weights_sha256(model) == sha256_of(model / name)


def test_weights_under_a_name_that_the_config_says(tmp_path: Path) -> None:
    model = save(new_roberta(), tmp_path, "safetensors")
    shutil.copy(model / WEIGHTS[0], model / "other.safetensors")
    changed(model / "other.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    assert weights_sha256(model) == sha256_of(model / "other.safetensors") != sha256_of(model / WEIGHTS[0])


def test_no_weights_and_missing_shards_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no weights, expected one of model\.safetensors, "):
        weights_sha256(tmp_path)
    model = save(new_roberta(), tmp_path / "model", "safetensors sharded")
    index = model / WEIGHTS[1]
    shard = sorted(model.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name} is missing, {index.name} lists it"):
        weights_sha256(model)
    index.write_text("{}")
    with pytest.raises(UserError, match=r"lists no weights, expected a weight_map"):
        weights_sha256(model)


def test_a_published_checkpoint_is_not_read_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = save(new_roberta(), tmp_path / "plain", "safetensors sharded")
    with publish_checkpoint(lease_of(tmp_path / "run"), 3, {}) as staging:
        shutil.copytree(plain, staging, dirs_exist_ok=True)
    expected = weights_sha256(plain)
    monkeypatch.setattr("utils.exchange.model_files.sha256_of", lambda path: pytest.fail(f"{path} was hashed again"))
    assert model_sha256(tmp_path / "run" / "checkpoint-3") == expected


# The config


def test_the_config_differs_exactly_where_the_embeddings_do(tmp_path: Path) -> None:
    model = save(new_roberta(), tmp_path / "model", "safetensors")
    config = json.loads((model / "config.json").read_text())
    before, identity = embed(load_encoder("rdot_nll", str(model)), TEXTS), config_sha256(config)
    others: list[dict[str, Any]] = [
        {"pooling": "mean"}, {"score_scale": 4.0}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-2},
        {"transformers_version": "4.0"}, {"_name_or_path": "elsewhere"}, {"dtype": "float32"}, {"max_seq_length": 9},
    ]  # fmt: skip
    found = []
    for other in others:
        (model / "config.json").write_text(json.dumps({**config, **other}))
        found.append(np.array_equal(embed(load_encoder("rdot_nll", str(model)), TEXTS), before))
        assert (config_sha256({**config, **other}) == identity) == found[-1], other
    assert found == [False] * 4 + [True] * 4


def test_what_decides_nothing_decides_nothing_in_a_tower_either() -> None:
    tower = {"model_type": "bert", "hidden_size": 8, "id2label": {"0": "dtype"}}
    config = {"model_type": "dpr", "question_model": tower, "ctx_model": tower}
    recorded = tower | {"dtype": "float32", "text_profile": "ance", "initial_text_profile": None, "_name_or_path": "x"}
    other = tower | {"id2label": {"0": "dtype", "dtype": "1"}}
    assert config_sha256({**config, "ctx_model": recorded}) == config_sha256(config)
    assert (
        len({config_sha256({**config, "ctx_model": each}) for each in (tower, tower | {"hidden_size": 9}, other)}) == 3
    )


def test_the_identity_is_of_the_config_in_use(tmp_path: Path) -> None:
    model = save(new_roberta(), tmp_path / "model", "safetensors")
    own = identity_of(ModelSettings(str(model), "rdot_nll"))
    assert own == identity_of(ModelSettings(str(shutil.copytree(model, tmp_path / "copy")), "rdot_nll"))
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**config, "score_scale": 9.0}))
    other = identity_of(ModelSettings(str(model), "rdot_nll", str(tmp_path / "other.json")))
    assert other["initial_model_sha256"] == own["initial_model_sha256"]
    assert other["initial_config_sha256"] != own["initial_config_sha256"]
    new = identity_of(ModelSettings("", "rdot_nll", str(tmp_path / "other.json")))
    assert new == {**other, "initial_model_sha256": RANDOM_WEIGHTS}


# The hub


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_of_the_hub_is_the_same_as_its_copy(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files in the cache, as huggingface_hub lays them out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository, revision = tmp_path / "hub" / "models--somebody--model", "0" * 40
    model = save(new_roberta(), repository / "snapshots" / revision, layout)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    assert identity_of(ModelSettings("somebody/model", "rdot_nll")) == identity_of(ModelSettings(str(copy), "rdot_nll"))


# The programs


def tiny_model(directory: Path, tokenizer: Path, vocab_size: int, seed: int) -> Path:
    torch.manual_seed(seed)
    shape = {**SHAPE, "vocab_size": vocab_size, "pad_token_id": 0}
    encoder = RobertaDot(RobertaConfig(**shape))
    encoder.record(DEFAULT_TEXTS.record())
    save(encoder, directory, "safetensors sharded")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, directory / name)
    return directory


def infer(data_dir: Path, initial: Path, training_dir: Path, output_dir: Path) -> None:
    call(
        run_ann_data_gen.main, data_dir=data_dir, training_dir=training_dir, init_model_dir=initial,
        model_type="rdot_nll", max_seq_length=32, max_query_length=16, output_dir=output_dir, inference="true",
        topk_training=50, negative_strategy="top", no_cuda="true",
    )  # fmt: skip


def test_two_models_in_shards_have_embeddings_of_their_own(
    tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    vocab_size = json.loads((tiny_preprocessed / "manifest.json").read_text())["vocab_size"]
    initial, out = tiny_model(tmp_path / "model", tiny_tokenizer, vocab_size, seed=0), tmp_path / "ann"
    found = {}
    for seed in (1, 2):  # both of step 5, by trainers that write no manifest
        trained = tiny_model(tmp_path / f"run-{seed}" / "checkpoint-5", tiny_tokenizer, vocab_size, seed)
        (trained / "scheduler.pt").touch()
        infer(tiny_preprocessed, initial, trained.parent, out)
        (made,) = set(out.glob("embeddings/step-5-*")) - {directory for directory, _ in found.values()}
        record = load_with_checksum(made / "embeddings.json")
        assert record["checkpoint"] == str(trained) and record["model_sha256"] == weights_sha256(trained)
        found[seed] = made, np.load(next(made.glob("dev-query-*0.npy")))
    assert not np.allclose(found[1][1], found[2][1])
    # The initial model too is the run's own.
    other = tiny_model(tmp_path / "other", tiny_tokenizer, vocab_size, seed=3)
    with pytest.raises(Disagreement, match=r"initial_model_sha256 [0-9a-f]{64} there, [0-9a-f]{64} here"):
        infer(tiny_preprocessed, other, tmp_path / "none", out)
    # Weights alone do not make a model.
    pooled = Path(shutil.copytree(initial, tmp_path / "pooled"))
    config = json.loads((pooled / "config.json").read_text())
    (pooled / "config.json").write_text(json.dumps({**config, "pooling": "mean"}))
    with pytest.raises(Disagreement, match=r"other flags: initial_config_sha256 [0-9a-f]{64} there, [0-9a-f]{64} here"):
        infer(tiny_preprocessed, pooled, tmp_path / "none", out)


def test_a_run_of_an_earlier_version_goes_on(tiny_preprocessed: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """It recorded no config, and left a model in several files blank."""
    vocab_size = json.loads((tiny_preprocessed / "manifest.json").read_text())["vocab_size"]
    initial, out = tiny_model(tmp_path / "model", tiny_tokenizer, vocab_size, seed=0), tmp_path / "ann"
    infer(tiny_preprocessed, initial, tmp_path / "none", out)
    run = read_run(out)
    assert run is not None
    config = {name: value for name, value in run["science"].items() if name != "initial_config_sha256"}
    for model in ("", config["initial_model_sha256"]):
        (out / "RUN.json").write_text(dump_with_checksum({**run, "science": {**config, "initial_model_sha256": model}}))
        infer(tiny_preprocessed, initial, tmp_path / "none", out)
    (out / "RUN.json").write_text(
        dump_with_checksum({**run, "science": {**run["science"], "initial_model_sha256": ""}})
    )
    with pytest.raises(Disagreement, match="initial_model_sha256  there, "):  # ours: nobody's
        infer(tiny_preprocessed, initial, tmp_path / "none", out)
