"""Exact search: ours with either backend, faiss's IndexFlatIP alone, and memory as the collection grows."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from utils.search.index import Index
from utils.search.registry import choose_backend
from utils.search.settings import SearchSettings
from utils.search.source import Passages, in_memory

GROWTH = (1, 2, 4)


def stored(path: Path, count: int, embedding_dim: int) -> Passages:
    """Passages read from disk, a block at a time."""

    def blocks(rows: int) -> Iterator[np.ndarray]:
        buffer_MD = np.empty((min(rows, count), embedding_dim), np.float32)
        with path.open("rb") as file:
            for first in range(0, count, rows):
                block_MD = buffer_MD[: count - first]
                assert file.readinto(block_MD.data.cast("B")) == block_MD.nbytes
                yield block_MD

    return Passages(count, embedding_dim, blocks)


def peak_bytes(
    path: Path, count: int, embedding_dim: int, queries: int, k: int, backend: str = "auto", memory_mib: int = 0
) -> int:
    """The most memory of its own (not of files) that a process has while it searches, above that before it."""
    arguments = (path, count, embedding_dim, queries, k, backend, memory_mib)
    argv = [sys.executable, "-m", "benchmarks.search_memory", *map(str, arguments)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return int(done.stdout)


def main() -> None:
    parser = common.parser("search", __doc__ or "", passages=200_000, dims=768, queries=512, topk=200, repeats=21)
    flags = parser.parse_args()
    import faiss

    device, rng = common.own_device(), np.random.default_rng(3)
    passages_ND = rng.standard_normal((flags.passages, flags.dims), np.float32)
    queries_QD = rng.standard_normal((flags.queries, flags.dims), np.float32)
    index = faiss.IndexFlatIP(flags.dims)
    index.add(passages_ND)
    default = choose_backend(SearchSettings("auto", device=device)).backend
    works: dict[str, Callable[[], Any]] = {
        f"ours_{name}": partial(
            Index(in_memory(passages_ND), SearchSettings(name, device=device)).search, queries_QD, flags.topk
        )
        for name in ("faiss", "torch")
    }
    expected_QK = index.search(queries_QD, flags.topk)[1]
    for name, work in works.items():
        found_QK = work()[1]
        agree = np.mean([len(np.intersect1d(a, b)) / flags.topk for a, b in zip(found_QK, expected_QK, strict=True)])
        assert agree > 0.999, (name, agree)
    works["faiss_flat"] = partial(index.search, queries_QD, flags.topk)
    product = common.MatrixProduct(2048, flags.dims, device, torch.float32)
    seconds = common.side_by_side(works, flags.repeats, device, product)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "passages"
        with path.open("wb") as file:
            for _ in range(max(GROWTH)):
                passages_ND.tofile(file)
        peaks = {
            times: peak_bytes(path, times * flags.passages, flags.dims, flags.queries, flags.topk) for times in GROWTH
        }
    flops = 2.0 * flags.passages * flags.dims * flags.queries
    common.report(
        flags.json,
        device,
        {
            **{f"{name}_seconds": taken for name, taken in seconds.items()},
            "matrix_product_seconds": flops / product.flops_per_second,
            "gemm_gflops": product.flops_per_second / 1e9,
            **{f"peak_mib_at_{times}x": peak / 2**20 for times, peak in peaks.items()},
        },
        {
            "vs_faiss_flat": seconds["faiss_flat"] / seconds[f"ours_{default}"],
            "peak_memory_growth": peaks[max(GROWTH)] / peaks[min(GROWTH)],
        },
    )


if __name__ == "__main__":
    main()
