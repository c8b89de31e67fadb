"""A model under a hub name: its files in the cache of huggingface_hub, which transformers' loader reads too."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from utils.declared.model_types import MODEL_TYPES
from utils.errors import UserError
from utils.exchange.atomic import read_json
from utils.exchange.model_files import CONFIG, HEAD_WEIGHTS, INDEX, MODULES, WEIGHTS, modules_of, shards_of

PROXIES = {"http", "https", "all"}  # of `getproxies`, which also has what goes by none of them ("no")


def is_path(name_or_path: str) -> bool:
    """Whether a model's name is one of a directory, there or not, and not of the hub."""
    return Path(name_or_path).is_dir() or name_or_path.startswith((".", "/", "~"))


def has_hub() -> bool:
    """Whether the hub may be asked: its host has an address here, or a proxy stands for it.

    Where it has none, huggingface_hub would look for each file six times, half a minute long.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    return bool(PROXIES & getproxies().keys()) or has_address(urlsplit(constants.ENDPOINT).hostname)


@cache
def has_address(host: str | None) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def hub_file(name: str, file: str, local_only: bool = False) -> Path | None:
    """A file's place in the cache, fetched where it is not there; None where it cannot be had.

    ``local_only``: nothing is fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, local_files_only=local_only or not has_hub()))
    except (OSError, ValueError, EntryNotFoundError):  # no such file or model, no network, no name of the hub
        return None


def hub_body_folder(name: str, local_only: bool = False) -> str:
    """`utils.exchange.model_files.body_folder` of a hub name."""
    modules = hub_file(name, MODULES, local_only)
    return modules_of(modules)[0][1] if modules is not None else ""


def hub_config(name: str) -> Path | None:
    """The config.json of a hub name's transformer; None where it cannot be had."""
    found = hub_file(name, CONFIG)
    if found is None and not known_to_lack(name, [CONFIG]):  # no network
        return None
    folder = hub_body_folder(name)
    return hub_file(name, f"{folder}/{CONFIG}") if folder else found


def hub_settings(name: str, local_only: bool = False) -> Path | None:
    """The cache's directory with all JSON files of a model, also of its folders; None where they cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json"], local_files_only=local_only or not has_hub()))
    except (OSError, ValueError):  # no such model, no network, no name of the hub
        return None


def model_directory(name_or_path: str, local_only: bool = False) -> Path:
    """The directory of a model: its own, or the cache's copy of a hub name's.

    A hub name whose weights cannot be had is given back as it is. ``local_only``: nothing is fetched.
    """
    if is_path(name_or_path):
        return Path(name_or_path)
    if hub_file(name_or_path, CONFIG, local_only) is None and not known_to_lack(name_or_path, [CONFIG]):
        return Path(name_or_path)  # no network: each file more would be another half minute of its client's retries
    folder = Path(hub_body_folder(name_or_path, local_only))
    hub_file(name_or_path, (folder / CONFIG).as_posix(), local_only)
    for file in WEIGHTS:
        if (found := hub_file(name_or_path, (folder / file).as_posix(), local_only)) is not None:
            for shard in shards_of(found) if file.endswith(INDEX) else []:
                hub_file(name_or_path, (folder / shard).as_posix(), local_only)
            fetch_heads(name_or_path, local_only)
            return found.parents[len(folder.parts)]
    return Path(name_or_path)


def fetch_heads(name: str, local_only: bool) -> None:
    """What sentence-transformers' files of a hub name have behind the transformer; it lies next to its config then."""
    settings = hub_settings(name, local_only)
    if settings is None or not (settings / MODULES).is_file():
        return
    for _, folder in modules_of(settings / MODULES)[1:]:
        for file in HEAD_WEIGHTS:
            hub_file(name, f"{folder}/{file}", local_only)


def fetched_model(name_or_path: str) -> Path:
    """As `model_directory`. UserError where there is none: nothing is known of such a model."""
    directory = model_directory(name_or_path)
    if not directory.is_dir():
        raise no_such_model(name_or_path)
    return directory


def no_such_model(name_or_path: str) -> UserError:
    return UserError(
        f"there is no model {name_or_path}: it is no directory, and the hub does not have it, or cannot be reached; "
        "where there is a network, `hf download` fetches it"
    )


def known_to_lack(name: str, files: Sequence[str]) -> bool:
    """Whether the hub has said, now or earlier, that a model has none of the files."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    try:
        return all(try_to_load_from_cache(name, file) is _CACHED_NO_EXIST for file in files)
    except ValueError:  # no name of the hub
        return False


def describe_unknown_modules(name_or_path: str, model_type: str) -> str:
    """What to say of a hub name of which the cache does not tell whether it has sentence-transformers' files; else "".

    transformers fetches none of them, so that a model which it alone has opened looks like one without any.

    Args:
        name_or_path: of a model; of one that the cache does not hold, opening it tells all.
        model_type: a word of --model_type; those that do not read these files have nothing to say.
    """
    kind = MODEL_TYPES.get(model_type)
    if kind is None or not (kind.has_modules or kind.has_towers) or is_path(name_or_path):
        return ""
    config, modules = (hub_file(name_or_path, file, local_only=True) for file in (CONFIG, MODULES))
    if config is None or modules is not None or known_to_lack(name_or_path, [MODULES]):
        return ""
    if kind.has_towers and read_json(config).get("model_type") == model_type:  # both, which record it themselves
        return ""
    return (
        f"the hub's cache does not tell whether {name_or_path} has {MODULES}: it is taken to have none, "
        f"without pooling, prefixes or a head of its own; `hf download {name_or_path}` fetches all"
    )
