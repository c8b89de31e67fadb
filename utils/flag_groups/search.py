"""Flags of the search of a collection."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from utils.declared.words import words_help
from utils.flag_values import Group, flag
from utils.search.registry import AUTO
from utils.search.registry import WORDS as BACKEND_WORDS


@dataclass(frozen=True, kw_only=True)
class SearchFlags:
    GROUP: ClassVar[Group] = "search"

    search_backend: str = flag(AUTO, partial(words_help, BACKEND_WORDS), choices=BACKEND_WORDS, decides="nothing")
    faiss_index: str = flag("Flat", "faiss index_factory string; Flat is exact")
    nprobe: int = flag(0, "cells visited by an IVF index; 0 keeps the index's own", at_least=0)
    search_memory_mib: int = flag(
        0,
        "an exact search takes no more, next to the queries and their lists; 0: 512 on a CPU, 4096 on a GPU",
        at_least=0,
        decides="nothing",
    )
