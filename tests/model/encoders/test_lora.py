"""LoRA's adapters against peft's own model, against the formula written out, and what their loader refuses."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from model.encoders.base import Encoder
from model.encoders.body import config_of, new_model
from model.encoders.hf import HfEncoder
from model.encoders.lora import add_adapters, merged
from model.encoders.registry import load_encoder
from model.encoders.roberta_dot import RobertaDot
from model.train.checkpoint import save_encoder
from model.train.trained_parts import TrainedParts, check_trained, choose_trained
from tests.model.encoders.families import FAMILIES, PACKED, WIDTH, config_of_family
from tests.model.encoders.test_encoders import TEXTS, embed, new_roberta
from tests.model.formats.tiny import roughen
from utils.declared.lora import LORA_TARGETS, LoraSettings
from utils.errors import UserError
from utils.exchange.model_files import ADAPTER_BASE, ADAPTER_CONFIG, ADAPTERS, weights_sha256
from utils.exchange.sentence_files import HeadModule

SETTINGS = LoraSettings(r=4, alpha=12, dropout=0.0)


def base_directory(directory: Path) -> Path:
    directory.mkdir()
    new_roberta().save_pretrained(directory)
    return directory


def with_rough_adapters(encoder: Encoder) -> Any:
    """B begins as zeros: as if it had been trained."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return encoder


def adapted(base: Path) -> RobertaDot:
    encoder = load_encoder("rdot_nll", str(base))
    add_adapters(encoder, SETTINGS, str(base), seed=1)
    return with_rough_adapters(encoder)


def test_new_adapters_change_nothing_and_are_all_that_is_trained(tmp_path: Path) -> None:
    base = base_directory(tmp_path / "base")
    plain, encoder = load_encoder("rdot_nll", str(base)), load_encoder("rdot_nll", str(base))
    state = torch.get_rng_state()
    add_adapters(encoder, SETTINGS, str(base), seed=1)
    assert torch.equal(torch.get_rng_state(), state), "training draws what it would without"
    assert (embed(encoder, TEXTS) == embed(plain, TEXTS)).all()  # type: ignore[arg-type]
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2, "A and B, of queries and of values, in both layers"
    assert all(".lora_" in name and (".query." in name or ".value." in name) for name in trained)
    # Another seed gives other weights, the same the same.
    again, other = load_encoder("rdot_nll", str(base)), load_encoder("rdot_nll", str(base))
    add_adapters(again, SETTINGS, str(base), seed=1)
    add_adapters(other, SETTINGS, str(base), seed=2)
    (first, same, another) = (
        torch.cat([p.detach().flatten() for n, p in e.named_parameters() if "lora_A" in n])
        for e in (encoder, again, other)
    )
    assert torch.equal(first, same) and not torch.equal(first, another)


def test_new_adapters_leave_the_generators_of_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_directory(tmp_path / "base")
    encoder, seeds = load_encoder("rdot_nll", str(base)), list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    add_adapters(encoder, SETTINGS, str(base), seed=1)
    assert seeds == []


def test_an_adapted_layer_is_the_paper_s_formula(tmp_path: Path) -> None:
    """h = W x + alpha / r B A x (section 4.1), and merged is W + alpha / r B A."""
    encoder = adapted(base_directory(tmp_path / "base"))
    layer: Any = encoder.roberta.encoder.layer[0].attention.self.query
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    a, b, w, bias = (
        t.detach().double()
        for t in (layer.lora_A.default.weight, layer.lora_B.default.weight, layer.weight, layer.bias)
    )
    changed = w + 12 / 4 * (b @ a)
    torch.testing.assert_close(layer(x).double(), x.double() @ changed.T + bias, rtol=1e-5, atol=1e-5)
    whole = merged(copy.deepcopy(encoder))
    torch.testing.assert_close(
        whole.get_parameter("roberta.encoder.layer.0.attention.self.query.weight").double(),
        changed,
        rtol=1e-6,
        atol=1e-6,
    )


def test_merged_is_the_adapted_model_and_an_encoder_as_any_other(tmp_path: Path) -> None:
    base = base_directory(tmp_path / "base")
    encoder = adapted(base)
    expected = embed(encoder, TEXTS)
    assert abs(expected - embed(load_encoder("rdot_nll", str(base)), TEXTS)).max() > 0.1  # type: ignore[arg-type]
    found = merged(copy.deepcopy(encoder))
    assert set(found.state_dict()) == set(new_roberta().state_dict())
    assert abs(embed(found, TEXTS) - expected).max() < 1e-5  # type: ignore[arg-type]
    (tmp_path / "merged").mkdir()
    save_encoder(found, tmp_path / "merged")
    loaded = load_encoder("rdot_nll", str(tmp_path / "merged"))
    assert (embed(loaded, TEXTS) == embed(found, TEXTS)).all()  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in found.parameters())


def saved(encoder: Encoder, directory: Path) -> Path:
    directory.mkdir()
    save_encoder(encoder, directory)
    return directory


def test_what_is_saved_is_the_adapters_alone_and_loads_on_the_base(tmp_path: Path) -> None:
    base = base_directory(tmp_path / "base")
    encoder = adapted(base)
    first, second = saved(encoder, tmp_path / "a"), saved(encoder, tmp_path / "b")
    assert {path.name for path in first.iterdir()} == {"config.json", ADAPTERS, ADAPTER_CONFIG, ADAPTER_BASE}
    assert all((first / path.name).read_bytes() == path.read_bytes() for path in second.iterdir())
    loaded = load_encoder("rdot_nll", str(first))
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in encoder.state_dict().items())
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in encoder.named_parameters() if p.requires_grad
    }


def test_peft_opens_what_is_saved(tmp_path: Path) -> None:
    from peft import PeftModel

    base = base_directory(tmp_path / "base")
    encoder = adapted(base)
    directory = saved(encoder, tmp_path / "adapters")
    theirs = PeftModel.from_pretrained(RobertaDot.from_pretrained(base), str(directory))
    assert set(load_file(directory / ADAPTERS)) <= {f"{n.replace('.default', '')}" for n in theirs.state_dict()}
    assert abs(embed(theirs.base_model.model, TEXTS) - embed(encoder, TEXTS)).max() < 1e-6


def test_the_model_s_identity_has_its_base_and_its_adapters(tmp_path: Path) -> None:
    base = base_directory(tmp_path / "base")
    directory = saved(adapted(base), tmp_path / "adapters")
    first = weights_sha256(directory)
    assert first == weights_sha256(directory) != weights_sha256(base)
    for file, change in ((ADAPTER_BASE, ("weights_sha256", "0" * 64)), (ADAPTER_CONFIG, ("lora_alpha", 13))):
        copied = tmp_path / file
        shutil.copytree(directory, copied)
        values = json.loads((copied / file).read_text())
        (copied / file).write_text(json.dumps({**values, change[0]: change[1]}))
        assert weights_sha256(copied) != first


def refused(directory: Path, word: str) -> str:
    with pytest.raises(UserError, match=word) as caught:
        load_encoder("rdot_nll", str(directory))
    message = str(caught.value)
    assert "\n" not in message and str(directory) in message
    return message


def test_a_base_that_is_another_or_missing_is_refused(tmp_path: Path) -> None:
    base = base_directory(tmp_path / "base")
    directory = saved(adapted(base), tmp_path / "adapters")
    expected = weights_sha256(base)[:12]
    torch.manual_seed(9)
    other = new_roberta()
    other.embeddingHead.weight.data.add_(1)
    other.save_pretrained(base)
    message = refused(directory, f"expected {expected}")
    assert f"found sha256 {weights_sha256(base)[:12]}" in message and str(base) in message
    shutil.rmtree(base)
    assert "bring the base back" in refused(directory, "is not there")


@pytest.mark.parametrize("damage", ["no weights", "no base", "truncated", "no layer", "config"])
def test_damaged_adapters_are_refused(damage: str, tmp_path: Path) -> None:
    directory = saved(adapted(base_directory(tmp_path / "base")), tmp_path / "adapters")
    match damage:
        case "no weights":
            (directory / ADAPTERS).unlink()
        case "no base":
            (directory / ADAPTER_BASE).unlink()
        case "truncated":
            (directory / ADAPTERS).write_bytes((directory / ADAPTERS).read_bytes()[:-100])
        case "no layer":
            values = json.loads((directory / ADAPTER_CONFIG).read_text())
            (directory / ADAPTER_CONFIG).write_text(json.dumps({**values, "target_modules": ["query"]}))
        case "config":
            (directory / ADAPTER_CONFIG).write_text("[]")
    refused(directory, "adapter")


def test_adapters_of_other_settings_are_refused(tmp_path: Path) -> None:
    base = base_directory(tmp_path / "base")
    directory = saved(adapted(base), tmp_path / "adapters")
    encoder = load_encoder("rdot_nll", str(directory))
    choose_trained(encoder, TrainedParts(SETTINGS), str(directory), seed=7)
    others = {LoraSettings(8, 12, 0.0): "expected --lora_r 8 --lora_alpha 12", None: "and --lora_r is 0; give"}
    for other, line in others.items():
        for check in (
            lambda parts: choose_trained(encoder, parts, str(directory), seed=7),
            lambda parts: check_trained(encoder, parts, directory),
        ):
            with pytest.raises(UserError, match=line):
                check(TrainedParts(other))
    (directory / ADAPTER_CONFIG).write_text('{"r": "many"}')
    with pytest.raises(UserError, match=r"adapter_config.json has no usable settings of LoRA .*: it is damaged"):
        check_trained(encoder, TrainedParts(SETTINGS), directory)


# --model_type hf


def hf_base(kind: str, directory: Path) -> Path:
    """With a head behind the pooling."""
    torch.manual_seed(0)
    config = config_of(config_of_family(kind), "x")
    encoder = HfEncoder(new_model(config), "mean", (HeadModule("dense", "2_Dense", WIDTH, 8),))
    roughen(encoder)
    directory.mkdir()
    encoder.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", FAMILIES)
def test_adapters_of_every_family(kind: str, tmp_path: Path) -> None:
    """Trained, saved, loaded and merged; in texts that are packed, too."""
    base = hf_base(kind, tmp_path / "base")
    encoder = load_encoder("hf", str(base))
    plain = embed(encoder, TEXTS)  # type: ignore[arg-type]
    add_adapters(encoder, SETTINGS, str(base), seed=1)
    assert {n.split(".")[0] for n, p in encoder.named_parameters() if p.requires_grad} == {"model"}
    with_rough_adapters(encoder)
    expected = embed(encoder, TEXTS)  # type: ignore[arg-type]
    assert abs(expected - plain).max() > 0.01
    if kind in PACKED:
        encoder.pack_texts(True)  # type: ignore[attr-defined]
        assert abs(embed(encoder, TEXTS) - expected).max() < 1e-4  # type: ignore[arg-type]
    directory = saved(encoder, tmp_path / "adapters")
    assert not (directory / "model.safetensors").exists() and (directory / "modules.json").is_file()
    loaded = load_encoder("hf", str(directory))
    assert (embed(loaded, TEXTS) == expected).all()  # type: ignore[arg-type]
    assert abs(embed(merged(loaded), TEXTS) - expected).max() < 1e-4  # type: ignore[arg-type]


def test_peft_opens_an_encoder_s_adapters_on_auto_model(tmp_path: Path) -> None:
    from peft import PeftModel

    base = hf_base("bert", tmp_path / "base")
    encoder = load_encoder("hf", str(base))
    add_adapters(encoder, SETTINGS, str(base), seed=1)
    with_rough_adapters(encoder)
    directory = saved(encoder, tmp_path / "adapters")
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(base, add_pooling_layer=False), str(directory)).eval()
    body: Any = encoder.eval().adapted
    for text in TEXTS:
        with torch.no_grad():
            ours, other = (model(torch.tensor([text])).last_hidden_state for model in (body, theirs))
        torch.testing.assert_close(ours, other)


def test_an_unknown_family_and_a_body_without_the_layers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = hf_base("bert", tmp_path / "base")
    monkeypatch.setitem(LORA_TARGETS, "bert", ("query", "no_such"))
    with pytest.raises(UserError, match="the bert body has 2 query, 0 no_such, expected 2 of each"):
        add_adapters(load_encoder("hf", str(base)), SETTINGS, str(base), seed=1)
    monkeypatch.delitem(LORA_TARGETS, "bert")
    with pytest.raises(UserError, match="of the family 'bert', expected one of roberta, "):
        add_adapters(load_encoder("hf", str(base)), SETTINGS, str(base), seed=1)
