"""What one refresh of a collection costs, estimated from measured rates: GPU-hours, disk, memory, what to turn first.

The rates are those of `benchmarks.encode` and `benchmarks.search`, from the files that their --json wrote on the
machine in question. For a GPU that is not at hand, give its matrix product's rates instead, and take the results for
what they are: estimated, not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from drivers.embeddings.distributed_search import BYTES_OF_PLACE
from drivers.job import disk_budget
from utils.flag_values import path_argument, positive_number
from utils.search.settings import MEMORY_BYTES

MEASURED = Path(__file__).parent / "measured"
FLOAT32_BYTES, OFFSET_BYTES, TOKEN_BYTES = 4, 8, 2
KEPT_EMBEDDINGS = 2  # with --only_keep_latest_embedding_file: the last, and those being made
SEARCH_BYTES = MEMORY_BYTES["cuda"] // 8  # the host's part of what a search takes
UNTIL_FULL = 1000  # checkpoints published: as many are kept as ever will be
SAMPLE = 100_000  # lengths drawn to estimate with


@dataclass(frozen=True)
class Rates:
    """Floating-point operations per second of one device, as reached: the matrix product's times a share of it."""

    encoding: float
    searching: float
    where_from: str


@dataclass(frozen=True)
class Size:
    passages: int
    queries: int
    gpus: int
    chunks: int
    topk: int
    negatives: int
    layers: int
    width: int
    embedding_bytes: int

    @property
    def embedding_dim(self) -> int:
        return embedding_dim_of(self.width)


def embedding_dim_of(width: int) -> int:
    """Of RoBERTa with ANCE's head."""
    from model.encoders.roberta_dot import RobertaDot  # which takes seconds to import

    return RobertaDot.spec_of({"hidden_size": width}).embedding_dim


@dataclass(frozen=True)
class Cost:
    """Of one refresh. Hours are of all GPUs together; memory is a process's, there is one for each GPU."""

    encoding_gpu_hours: float
    searching_gpu_hours: float
    wall_hours: float
    embeddings_gb: float
    token_cache_gb: float
    checkpoints_gb: float
    negatives_gb: float
    memory_gb: float
    read_per_gpu_gb: float


def parameters_of(layers: int, width: int, vocabulary: int = 50_265) -> float:
    """RoBERTa's, with ANCE's head; base is 124 million."""
    head = width * embedding_dim_of(width)
    return layers * 12 * width**2 + (vocabulary + 514) * width + head


def estimate(size: Size, rates: Rates) -> Cost:
    rng = np.random.default_rng(0)
    passage_lengths_N, query_lengths_N = common.passage_lengths(SAMPLE, rng), common.query_lengths(SAMPLE, rng)
    searched = size.queries / size.chunks
    encoding = sum(
        count / SAMPLE * common.encoder_flops(lengths_N, size.layers, size.width)
        for count, lengths_N in ((size.passages, passage_lengths_N), (searched, query_lengths_N))
    )
    searching = 2.0 * size.passages * searched * size.embedding_dim
    hours = {"encoding": encoding / rates.encoding / 3600, "searching": searching / rates.searching / 3600}
    embeddings_bytes = KEPT_EMBEDDINGS * (size.passages + searched) * size.embedding_dim * size.embedding_bytes
    tokens = size.passages * passage_lengths_N.mean() + size.queries * query_lengths_N.mean()
    weights_bytes = parameters_of(size.layers, size.width) * FLOAT32_BYTES
    queries_bytes = searched * size.embedding_dim * FLOAT32_BYTES
    lists_bytes = searched * size.topk * BYTES_OF_PLACE
    return Cost(
        encoding_gpu_hours=hours["encoding"],
        searching_gpu_hours=hours["searching"],
        wall_hours=sum(hours.values()) / size.gpus,
        embeddings_gb=embeddings_bytes / 1e9,
        token_cache_gb=(tokens * TOKEN_BYTES + (size.passages + size.queries) * OFFSET_BYTES) / 1e9,
        checkpoints_gb=disk_budget.checkpoints_at_once(UNTIL_FULL)
        * (1 + disk_budget.STATES_PER_WEIGHT)
        * weights_bytes
        / 1e9,
        negatives_gb=searched * (size.negatives * disk_budget.NEGATIVE_BYTES + disk_budget.LINE_BYTES) / 1e9,
        # Embeddings and lists of all queries are in every process, twice where they are put together or merged.
        memory_gb=(weights_bytes + 2 * queries_bytes + 2 * lists_bytes + SEARCH_BYTES) / 1e9,
        read_per_gpu_gb=size.passages * size.embedding_dim * size.embedding_bytes / size.gpus / 1e9,
    )


def advice(size: Size, cost: Cost) -> str:
    """The flag to turn first: the one that takes the most off the largest cost."""
    if cost.searching_gpu_hours > cost.encoding_gpu_hours:
        chunks = int(np.ceil(size.chunks * cost.searching_gpu_hours / cost.encoding_gpu_hours))
        return (
            f"searching costs most: --ann_chunk_factor {chunks} makes it as cheap as encoding, since a refresh then "
            f"serves one of {chunks} parts of the queries"
        )
    if size.embedding_bytes == FLOAT32_BYTES and cost.embeddings_gb > 1000:
        return "the embeddings fill a disk: --embedding_dtype fp16 halves them, --only_keep_latest_embedding_file too"
    return (
        "encoding costs most: more processes (--nproc_per_node) share it evenly; after that --max_seq_length, "
        "which cuts the texts"
    )


def share_of_product(measured: dict[str, Any], work: str) -> float:
    """How much of the matrix product's rate a benchmark has reached."""
    if work == "encode":
        return float(measured["ratios"]["of_gemm_limit"])
    figures = measured["figures"]
    quickest = min(value for name, value in figures.items() if name.startswith("ours_") and name.endswith("_seconds"))
    return float(figures["matrix_product_seconds"] / quickest)


def rates_of(flags: argparse.Namespace) -> Rates:
    reached, origins = {}, []
    for work, file, tflops, share in (
        ("encode", flags.encode, flags.matmul_tflops, flags.encode_share),
        ("search", flags.search, flags.search_tflops, flags.search_share),
    ):
        measured = {} if tflops and share else read_measured(file, work)
        device = measured.get("machine", {}).get("device")
        product = tflops * 1e12 if tflops else measured["figures"]["gemm_gflops"] * 1e9
        part = share or share_of_product(measured, work)
        reached[work] = product * part
        product_from = "as given" if tflops else f"measured on {device}"
        part_from = "as given" if share else f"as measured on {device}"
        origins.append(f"{work}: {product / 1e12:,.4g} TFLOP/s ({product_from}) x {part:.2f} ({part_from})")
    return Rates(reached["encode"], reached["search"], "; ".join(origins))


def read_measured(file: Path, work: str) -> dict[str, Any]:
    try:
        measured: dict[str, Any] = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise SystemExit(f"{file}: {error}; write it with python -m benchmarks.{work} --json {file}") from None
    return measured


def main() -> None:
    parser = common.parser(
        "plan",
        (__doc__ or "").partition("\n")[0],
        passages=8_841_823,
        queries=502_939,
        gpus=4,
        chunks=5,
        topk=200,
        negatives=20,
        layers=12,
        width=768,
        embedding_bytes=4,
    )
    parser.add_argument(
        "--encode", type=path_argument, default=MEASURED / "encode.json", help="from benchmarks.encode --json"
    )
    parser.add_argument(
        "--search", type=path_argument, default=MEASURED / "search.json", help="from benchmarks.search --json"
    )
    parser.add_argument(
        "--matmul_tflops", type=positive_number, help="of one GPU, in the type it encodes in; default: measured"
    )
    parser.add_argument("--search_tflops", type=positive_number, help="of one GPU, in float32; default: measured")
    parser.add_argument("--encode_share", type=positive_number, help="of the matrix product's rate; default: measured")
    parser.add_argument("--search_share", type=positive_number, help="of the matrix product's rate; default: measured")
    flags = parser.parse_args()
    size = Size(**{name: getattr(flags, name) for name in Size.__dataclass_fields__})
    rates = rates_of(flags)
    cost = estimate(size, rates)
    lines = [
        f"one refresh: {size.passages:,} passages, {size.queries:,} queries of which 1/{size.chunks} searched, "
        f"{size.gpus} devices",
        rates.where_from,
        "",
        *(f"{name:22} {value:12,.3f}" for name, value in asdict(cost).items()),
        "",
        advice(size, cost),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if flags.json is not None:
        record = {"machine": common.machine(common.own_device()), "figures": asdict(cost), "ratios": {}}
        flags.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
