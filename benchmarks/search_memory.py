"""How much memory of its own a search takes: `benchmarks.search` starts this in a process that does nothing else."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.search import stored
from utils.search import SearchOptions, choose_backend, search

LOOK_SECONDS = 0.005


def own_bytes() -> int:
    """Of memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    path, count, dims, queries, k = Path(sys.argv[1]), *map(int, sys.argv[2:])
    queries_QD = np.random.default_rng(4).standard_normal((queries, dims), np.float32)
    device = common.own_device()
    options = SearchOptions(choose_backend("auto", "Flat", device.type == "cuda"), device=device)
    passages = stored(path, count, dims)
    search(queries_QD[:1], stored(path, min(count, 1000), dims), k, options)  # libraries are loaded
    before, most, ended = own_bytes(), 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(LOOK_SECONDS):
            most = max(most, own_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    search(queries_QD, passages, k, options)
    ended.set()
    thread.join()
    sys.stdout.write(f"{most - before}\n")


if __name__ == "__main__":
    main()
