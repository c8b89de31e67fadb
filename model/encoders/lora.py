"""LoRA (Hu et al. 2021, arXiv 2106.09685) by peft: an encoder's weights stay, small adapters at its layers are trained.

1. `add_adapters` to an encoder whose weights lie on disk. B begins as zeros: the encoder still computes what it did.
2. `save_adapters` writes peft's two files, and the base's place and sha256.
3. `check_base` finds the base again, if it is still the same, and `put_adapters` puts them into it.
4. `merged` folds them into the weights: an encoder as any other, for encoding and for export.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from model.encoders.base import Encoder
from model.kernels.cpu_dropout import make_dropout_quick
from utils.declared.lora import LORA_TARGETS, LoraSettings
from utils.errors import UserError, one_line
from utils.exchange.atomic import read_json
from utils.exchange.model_files import (
    ADAPTER_BASE,
    ADAPTER_CONFIG,
    ADAPTERS,
    AdapterBase,
    base_of,
    weight_files,
    weights_sha256,
)
from utils.hub import model_directory
from utils.json_text import json_text

PREFIX = "base_model.model."  # of every name in peft's files


def bodies_of(encoder: Encoder) -> list[PreTrainedModel]:
    """The transformers in an encoder, each once and none within another."""
    found: list[PreTrainedModel] = []
    for module in encoder.modules():
        inside = any(module in set(body.modules()) for body in found)
        if isinstance(module, PreTrainedModel) and module is not encoder and not inside:
            found.append(module)
    return found


def targets_of(encoder: Encoder) -> list[str]:
    """The names of the layers that adapters stand at. UserError for a body that has none, or of an unknown family."""
    targets: set[str] = set()
    for body in bodies_of(encoder):
        family = str(body.config.model_type)
        if family not in LORA_TARGETS:
            raise UserError(
                f"--lora_r is given, the model is of the family {family!r}, expected one of {', '.join(LORA_TARGETS)}; "
                "train it without"
            )
        names, layers = LORA_TARGETS[family], int(body.config.num_hidden_layers)
        linear = (name for name, module in body.named_modules() if isinstance(module, nn.Linear))
        found = Counter(name.rpartition(".")[2] for name in linear)
        if any(found[name] != layers for name in names):
            counted = ", ".join(f"{found[name]} {name}" for name in names)
            raise UserError(
                f"--lora_r is given, the {family} body has {counted}, expected {layers} of each, one in a layer; "
                "train it without"
            )
        targets.update(names)
    if not targets:
        raise UserError("--lora_r is given, this model type has no transformer that adapters could stand in; omit it")
    return sorted(targets)


def insert(encoder: Encoder, settings: LoraSettings, targets: list[str], seed: int) -> None:
    """Put adapters in, and freeze all other weights.

    Args:
        encoder: without any.
        settings: of the adapters.
        targets: they stand at the layers whose names end in one of these.
        seed: their first weights are drawn from it alone.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # it divides by any number
        lora_dropout=settings.dropout,
        target_modules=targets,
        bias="none",
    )
    encoder.requires_grad_(False)
    with torch.random.fork_rng([]):  # training's own draws are those of a run without
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed resets every GPU's, too
        inject_adapter_in_model(config, encoder.adapted)
    make_dropout_quick(encoder.adapted)


def add_adapters(encoder: Encoder, settings: LoraSettings, name_or_path: str, seed: int) -> None:
    """Have adapters trained in place of an encoder's weights; those of a checkpoint that has some already.

    Args:
        encoder: with the weights of ``name_or_path``, which are frozen.
        settings: of the adapters.
        name_or_path: where it comes from: a directory or a hub name.
        seed: of the adapters' first weights.

    Raises:
        UserError: there is no place for adapters.
    """
    if encoder.adapter_base is not None:
        return
    directory = model_directory(name_or_path)
    insert(encoder, settings, targets_of(encoder), seed)
    name = str(directory.resolve()) if Path(name_or_path).is_dir() else name_or_path
    encoder.adapter_base = AdapterBase(name, weights_sha256(directory))


def check_adapters(directory: Path, settings: LoraSettings | None) -> bool:
    """Whether there are adapters in a model's directory. UserError where they are not those that are to be trained."""
    if base_of(directory) is None:
        return False
    found, holds = stored_settings(directory / ADAPTER_CONFIG), f"{directory} holds LoRA's adapters"
    if settings is None:
        raise UserError(
            f"{holds}, and --lora_r is 0; give --lora_r as they have it, or merge them into their base with "
            "python -m model.convert"
        )
    if found != settings:
        raise UserError(
            f"{directory} holds adapters of {described(found)}, expected {described(settings)} as given; "
            "give theirs, or merge them into their base with python -m model.convert"
        )
    return True


def stored_settings(path: Path) -> LoraSettings:
    """Of an adapter_config.json. UserError where it lacks one."""
    config = read_json(path)
    try:
        return LoraSettings(int(config["r"]), config["lora_alpha"], config["lora_dropout"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no usable settings of LoRA ({one_line(error)}): it is damaged") from None


def described(settings: LoraSettings) -> str:
    return f"--lora_r {settings.r} --lora_alpha {settings.alpha:g} --lora_dropout {settings.dropout:g}"


def adapter_weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    """By peft's names, those of its files."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(encoder.adapted, save_embedding_layers=False)
    return {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def save_adapters(encoder: Encoder, directory: Path) -> None:
    """Write what a type has next to its weights, peft's two files, and of which base; the same bytes every time."""
    from safetensors.torch import save_file

    assert encoder.adapter_base is not None
    encoder.save_config(directory)
    peft_config: Any = encoder.adapted.peft_config
    named = {**peft_config["default"].to_dict(), "base_model_name_or_path": encoder.adapter_base.name_or_path}
    # peft holds sets, whose order is another in each process.
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in named.items()}
    text = json_text({**values, "inference_mode": True}, indent=2, sort_keys=True)
    (directory / ADAPTER_CONFIG).write_text(f"{text}\n")
    (directory / ADAPTER_BASE).write_text(f"{json_text(asdict(encoder.adapter_base), indent=2)}\n")
    save_file(adapter_weights(encoder), str(directory / ADAPTERS), metadata={"format": "pt"})


def put_adapters(encoder: Encoder, directory: Path) -> Encoder:
    """The adapters that ``directory`` holds into an encoder of their base. UserError where they do not fit."""
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weight_files(directory)
    encoder.adapter_base = base_of(directory)
    try:
        config = read_json(directory / ADAPTER_CONFIG)
        insert(encoder, stored_settings(directory / ADAPTER_CONFIG), list(config["target_modules"]), seed=0)
        weights = load_file(str(directory / ADAPTERS))
        expected = adapter_weights(encoder)
        if differing := sorted(set(expected) ^ set(weights)):
            raise KeyError(f"{differing[0]} is in one of file and model alone")
        set_peft_model_state_dict(encoder.adapted, {n.removeprefix(PREFIX): weights[n] for n in weights})
    except (SafetensorError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{directory} does not hold this encoder's adapters: {one_line(error)[:300]}") from None
    return encoder


def merged(encoder: Encoder) -> Encoder:
    """The same encoder, with its adapters folded into its weights; one without adapters stays as it is."""
    if encoder.adapter_base is None:
        return encoder
    from peft.tuners.lora import Linear

    for name, module in list(encoder.named_modules()):
        if isinstance(module, Linear):
            module.merge()
            encoder.set_submodule(name, module.get_base_layer())
    del encoder.adapted.peft_config
    encoder.adapter_base = None
    return encoder.requires_grad_(True)
