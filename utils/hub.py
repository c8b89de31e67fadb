"""A model under a hub name: its files in the cache of huggingface_hub, which transformers' loader reads too."""

from __future__ import annotations

from pathlib import Path


def is_path(name_or_path: str) -> bool:
    """Whether a model's name is one of a directory, there or not, and not of the hub."""
    return Path(name_or_path).is_dir() or name_or_path.startswith((".", "/", "~"))


def hub_file(name: str, file: str, local_only: bool = False) -> Path | None:
    """A file's place in the cache, fetched where it is not there; None where it cannot be had.

    ``local_only``: nothing is fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, local_files_only=local_only))
    except (OSError, ValueError, EntryNotFoundError):  # no such file or model, no network, no name of the hub
        return None


def hub_settings(name: str, local_only: bool = False) -> Path | None:
    """The cache's directory with all JSON files of a model, also of its folders; None where they cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json"], local_files_only=local_only))
    except (OSError, ValueError):  # no such model, no network, no name of the hub
        return None
