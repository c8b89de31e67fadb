"""Passages per second: ours, sentence-transformers' encode, ANCE's loop, and what the matrix product alone would do."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks import baselines, common
from drivers.job.encoder_setup import prepare_encoder
from model.encode import TextSource, encode_blocks
from model.kernels.precision import name_of, quickest_dtype
from utils.distributed.world import World
from utils.exchange.sentence_files import read_sentence_files
from utils.flag_values import path_argument

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from model.encoders.roberta_dot import RobertaDot

MS_MARCO_PASSAGES = 8_841_823
TOKENS_OF_A_BATCH = 128 * 512  # --per_gpu_eval_batch_size 128 at ANCE's length
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.5}  # between embeddings with a norm of 28


def texts_of(ids: list[np.ndarray], of_collection: int | None = None) -> TextSource:
    """``of_collection``: the first of so many, whose number decides how many texts are sorted together."""
    lengths_N = np.array([len(tokens) for tokens in ids])

    def gather(rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([ids[row] for row in rows_B.tolist()]), np.append(0, lengths_N[rows_B].cumsum())

    return TextSource(of_collection or len(ids), lambda start, stop: lengths_N[start:stop], gather, "passage")


@dataclass(frozen=True)
class Encoders:
    """One model with random weights, as each program has it: ours, ANCE's, and sentence-transformers' in two types."""

    ours: RobertaDot
    ance: RobertaDot
    st_default: SentenceTransformer
    st_equal_dtype: SentenceTransformer


def make_encoders(layers: int, width: int, device: torch.device, directory: Path) -> Encoders:
    """``directory`` holds the tokenizer. Ours computes in the type that is the quickest on the device."""
    dtype = quickest_dtype(device)
    ours = common.make_encoder(layers, width, device=device).eval()
    encoders = Encoders(
        ours,
        baselines.ance_model(ours),
        baselines.sentence_transformer(ours, directory, torch.float32, device),
        baselines.sentence_transformer(ours, directory, dtype or torch.float32, device),
    )
    if dtype is not None:
        ours.cast_linear_weights(dtype)
    prepare_encoder(ours, dtype, World(0, 1, device))
    return encoders


def works_of(
    encoders: Encoders, texts: list[str], ids: list[np.ndarray], device: torch.device
) -> dict[str, Callable[[], np.ndarray]]:
    """What is timed, by name: all texts' embeddings, of ANCE's loop those of its first two batches."""
    source, few = texts_of(ids, MS_MARCO_PASSAGES), first_batches(ids)

    def encode_ours() -> np.ndarray:
        blocks = encode_blocks(encoders.ours, source, (0, len(ids)), TOKENS_OF_A_BATCH, device, quickest_dtype(device))
        return np.concatenate(list(blocks))

    return {
        "ours": encode_ours,
        "st_default": lambda: encoders.st_default.encode(texts, show_progress_bar=False),
        "st_equal_dtype": lambda: encoders.st_equal_dtype.encode(texts, show_progress_bar=False),
        "ance_padded": lambda: baselines.ance_encode(encoders.ance, few, device),
    }


def first_batches(ids: list[np.ndarray]) -> list[np.ndarray]:
    return ids[: 2 * baselines.ANCE_ENCODING_BATCH]


def check_equal(
    encoders: Encoders, works: dict[str, Callable[[], np.ndarray]], texts: list[str], dtype: torch.dtype
) -> None:
    """AssertionError where the programs' embeddings differ by more than ``dtype`` rounds."""
    expected_ND = works["ance_padded"]()
    few = texts[: len(expected_ND)]
    for found_ND in (works["ours"](), encoders.st_default.encode(few)):
        worst = float(abs(found_ND[: len(few)] - expected_ND).max())
        assert worst < TOLERANCE[dtype], f"embeddings differ by {worst}"


def encode_a_model(flags: argparse.Namespace) -> None:
    """The same of a model on disk, against sentence-transformers' default and a RoBERTa of its size."""
    from transformers import AutoTokenizer

    from benchmarks.encode_model import docstrings, measure

    texts = docstrings(flags.texts)
    tokenizer = AutoTokenizer.from_pretrained(flags.model)
    files = read_sentence_files(flags.model)
    longest = (files.max_seq_length if files else None) or common.LONGEST
    ids = [np.array(row) for row in tokenizer(texts, truncation=True, max_length=longest)["input_ids"]]
    measure(flags.model, texts, texts_of(ids), flags.repeats, flags.json)


def main() -> None:
    parser = common.parser("encode", __doc__ or "", layers=12, width=768, texts=512, repeats=3)
    parser.add_argument("--model", type=path_argument, help="a model of --model_type hf, on real texts, in its place")
    flags = parser.parse_args()
    if flags.model is not None:
        encode_a_model(flags)
        return
    device, rng = common.own_device(), np.random.default_rng(1)
    dtype = quickest_dtype(device)
    lengths_N = common.passage_lengths(flags.texts, rng)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        common.write_tokenizer(directory)
        from transformers import AutoTokenizer

        texts = common.texts_of_lengths(lengths_N, rng)
        ids = [np.array(row) for row in AutoTokenizer.from_pretrained(directory)(texts)["input_ids"]]
        encoders = make_encoders(flags.layers, flags.width, device, directory)
    works = works_of(encoders, texts, ids, device)
    check_equal(encoders, works, texts, dtype or torch.float32)

    product = common.encoders_product(encoders.ours, device, dtype)
    seconds = common.side_by_side(
        works, flags.repeats, device, product, lambda name: baselines.allocate_as(name, device)
    )
    counts = {name: len(first_batches(ids)) if name == "ance_padded" else len(ids) for name in seconds}
    rates = {name: counts[name] / taken for name, taken in seconds.items()}
    limit = product.flops_per_second / (common.encoder_flops(lengths_N, flags.layers, flags.width) / len(ids))
    common.report(
        flags.json,
        device,
        {
            **{f"{name}_passages_per_second": rate for name, rate in rates.items()},
            "gemm_limit_passages_per_second": limit,
            "gemm_gflops": product.flops_per_second / 1e9,
            f"mean_tokens_in_{name_of(dtype)}": float(lengths_N.mean()),
        },
        {
            **{f"vs_{name}": rates["ours"] / rates[name] for name in ("st_default", "st_equal_dtype", "ance_padded")},
            "of_gemm_limit": rates["ours"] / limit,
        },
    )


if __name__ == "__main__":
    main()
