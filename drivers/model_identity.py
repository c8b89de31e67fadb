"""The identity of the model that a run starts from."""

from __future__ import annotations

from pathlib import Path

from model.encoder import read_config
from model.hub import model_directory
from utils.exchange import model_sha256
from utils.model_files import config_sha256

RANDOM_WEIGHTS = "random weights"  # what the seed and the config decide


def identity_of(name_or_path: str, model_type: str, config_name: str = "") -> dict[str, str]:
    """All that decides what the initial model computes, as science: its weights and its config.

    ``name_or_path`` is a directory, a hub name, or empty for random weights of ``config_name``; its tokenizer is known
    by the collection's fingerprint. Preflight has verified its manifest, where it has one. UserError where files are
    missing.
    """
    directory = str(model_directory(name_or_path)) if name_or_path else ""
    return {
        "initial_model_sha256": model_sha256(Path(directory)) if directory else RANDOM_WEIGHTS,
        "initial_config_sha256": config_sha256(read_config(directory, model_type, config_name)),
    }
