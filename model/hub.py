"""The directory of a model under a hub name, and of the base that adapters are of."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from utils.exchange.model_files import (
    CONFIG,
    HEAD_WEIGHTS,
    INDEX,
    MODULES,
    WEIGHTS,
    base_of,
    modules_of,
    shards_of,
    weights_sha256,
)
from utils.hub import hub_file, hub_settings, is_path

BASE_REMEDY = "bring the base back to its place, or merge the adapters where it is with python -m model.convert"


def model_directory(name_or_path: str) -> Path:
    """The directory that holds a model's config and weights: its own, or the cache's copy of a hub name's."""
    if is_path(name_or_path):
        return Path(name_or_path)
    hub_file(name_or_path, CONFIG)
    for file in WEIGHTS:
        if (found := hub_file(name_or_path, file)) is not None:
            for shard in shards_of(found) if file.endswith(INDEX) else []:
                hub_file(name_or_path, shard)
            fetch_heads(name_or_path)
            return found.parent
    return Path(name_or_path)


def fetch_heads(name: str) -> None:
    """What sentence-transformers' files of a hub name have behind the transformer; it lies next to its config then."""
    settings = hub_settings(name)
    if settings is None or not (settings / MODULES).is_file():
        return
    for _, folder in modules_of(settings / MODULES)[1:]:
        for file in HEAD_WEIGHTS:
            hub_file(name, f"{folder}/{file}")


def check_base(directory: Path) -> Path | None:
    """The directory of the base that the adapters in ``directory`` are of; None where there are none.

    UserError where it is not there any more, or is another.
    """
    base = base_of(directory)
    if base is None:
        return None
    place = model_directory(base.name_or_path)
    what = f"{directory} holds adapters of the weights of {base.name_or_path}"
    if not place.is_dir():
        raise UserError(f"{what}, which is not there; {BASE_REMEDY}")
    found = weights_sha256(place)
    if found != base.weights_sha256:
        raise UserError(f"{what}, found sha256 {found[:12]}, expected {base.weights_sha256[:12]}; {BASE_REMEDY}")
    return place
