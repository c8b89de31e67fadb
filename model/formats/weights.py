"""Weights in files: safetensors, and torch's own files, which are read without running anything that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError, one_line
from utils.exchange.model_files import weight_files

SAFETENSORS_END, INDEX_END = ".safetensors", ".index.json"
TORCH_WEIGHTS = "pytorch_model.bin"


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """All weights of a directory in float32, by name, from whatever files transformers would take.

    UserError where there are none, or a file is damaged.
    """
    found: dict[str, torch.Tensor] = {}
    for name in weight_files(directory):
        if not name.endswith(INDEX_END):
            found |= read_weights_file(directory / name)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def names_of_weights(directory: Path) -> set[str]:
    """UserError as `read_weights`."""
    found: set[str] = set()
    for name in weight_files(directory):
        if name.endswith(SAFETENSORS_END):
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(str(directory / name), "pt") as file:
                    found |= set(file.keys())
            except (SafetensorError, OSError) as error:
                raise damaged(directory / name, error) from None
        elif not name.endswith(INDEX_END):
            found |= set(read_weights_file(directory / name))
    return found


def damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({one_line(error)[:200]}); copy it again")


def read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    if path.name.endswith(SAFETENSORS_END):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except (SafetensorError, OSError) as error:
            raise damaged(path, error) from None
    return tensors_of(path, read_torch(path))


def tensors_of(path: Path, value: Any) -> dict[str, torch.Tensor]:
    """UserError where what a file holds is no dictionary of tensors by name."""
    is_weights = isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    )
    if not is_weights or not value:
        raise UserError(f"{path} holds a {type(value).__name__}, expected weights by their names; give another file")
    return dict(value)


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, of tensors, numbers, strings and containers alone; UserError for anything else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing, expected a file of weights; give another path") from None
    except Exception as error:  # torch raises many types for a file that is damaged or holds other objects
        raise UserError(
            f"{path} is no file of torch that holds weights alone ({one_line(error)[:200]}); copy it again, or take "
            "safetensors"
        ) from None


def write_torch(path: Path, value: Mapping[str, Any]) -> None:
    """In the form before torch 1.6, which is all that torch 1.2 to 1.4 read: ANCE's, DPR's and transformers 2.3's."""
    torch.save(dict(value), path, _use_new_zipfile_serialization=False)
