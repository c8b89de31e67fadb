"""How much memory of its own a search takes: `benchmarks.search` starts this in a process that does nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.search import stored
from utils.search.index import Index
from utils.search.registry import choose_backend
from utils.search.settings import SearchSettings

LOOKS = 20


def main() -> None:
    """Arguments: file, passages, embedding_dim, queries, k, backend (or auto), MiB for the search (0: its default)."""
    path, backend = Path(sys.argv[1]), sys.argv[6]
    count, embedding_dim, queries, k, memory_mib = map(int, (*sys.argv[2:6], sys.argv[7]))
    queries_QD = np.random.default_rng(4).standard_normal((queries, embedding_dim), np.float32)
    device = common.own_device()
    settings = choose_backend(SearchSettings(backend, device=device, memory_bytes=memory_mib * 2**20))
    passages = stored(path, count, embedding_dim)
    Index(stored(path, min(count, 1000), embedding_dim), settings).search(queries_QD[:1], k)  # libraries are loaded
    index, before = Index(passages, settings), common.own_bytes()
    with common.watched_memory() as seen:
        while len(seen) < LOOKS:  # a small search would be over before anybody looks
            index.search(queries_QD, k)
    sys.stdout.write(f"{max(seen) - before}\n")


if __name__ == "__main__":
    main()
