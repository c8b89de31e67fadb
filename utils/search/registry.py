"""What --search_backend may name. Light: the words are known before torch or faiss is imported."""

from __future__ import annotations

import importlib
from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from utils.search.base import IndexBuilder


@dataclass(frozen=True)
class Backend:
    """An index over rows: ``builder`` is "module:name" of an `IndexBuilder`, ``devices`` the types that it can use.

    Its search is exact, or the flag would decide the result of a run: of faiss, --faiss_index does.
    """

    builder: str
    devices: tuple[str, ...] = ("cpu",)


BACKENDS = {
    "faiss": Backend("utils.search.faiss_backend:build", ("cpu", "cuda")),
    "torch": Backend("utils.search.exact_torch:TorchIndex", ("cpu", "cuda")),
}
WORDS = ChainMap(BACKENDS, {"auto": Backend("")})  # of the flag: also what is registered later


def builder_of(word: str) -> IndexBuilder:
    module, _, name = BACKENDS[word].builder.partition(":")
    return cast("IndexBuilder", getattr(importlib.import_module(module), name))
