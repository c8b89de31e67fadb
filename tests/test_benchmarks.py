"""The benchmarks at a size that takes seconds: their figures' names, their baselines, and what they reckon with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baselines, common
from benchmarks.encode import texts_of
from benchmarks.train import NEGATIVES, our_batch
from model.embedding import encode_blocks
from model.training import make_state, train_step
from tests.shell import REPO
from tests.test_training import ALONE, constant, flat_weights

CPU = torch.device("cpu")
TINY = {
    "encode": ("--layers", "1", "--width", "64", "--texts", "40", "--repeats", "1"),
    "train": ("--layers", "1", "--width", "64", "--queries", "2", "--repeats", "1"),
    "preprocess": ("--passages", "3000", "--repeats", "1"),
    "search": ("--passages", "20000", "--dims", "64", "--queries", "20", "--topk", "30", "--repeats", "1"),
}
RATIOS = {
    "encode": {"vs_st_default", "vs_st_equal_dtype", "vs_ance_padded", "of_gemm_limit"},
    "train": {"vs_st_default", "vs_st_equal_dtype", "vs_ance_padded", "of_gemm_limit"},
    "preprocess": {"vs_raw_tokenizers", "vs_line_at_a_time", "bytes_vs_ance"},
    "search": {"vs_faiss_flat", "peak_memory_growth"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_its_ratios_last_and_writes_them(name: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(tmp_path / "found.json"), *TINY[name]]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"machine", "figures", "ratios"} and set(found["ratios"]) == RATIOS[name]
    assert all(value > 0 for value in [*found["figures"].values(), *found["ratios"].values()])
    said = [line.split() for line in done.stdout.splitlines()[-len(RATIOS[name]) :]]
    assert {ratio: float(value) for ratio, value in said} == pytest.approx(found["ratios"], rel=1e-3)


def made_up_ids(lengths_N: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [np.concatenate([[0], rng.integers(4, common.WORDS, length - 2), [2]]) for length in lengths_N.tolist()]


def test_ance_s_loop_encodes_what_ours_does() -> None:
    encoder = common.make_encoder(layers=1, width=64)
    ids = made_up_ids(common.passage_lengths(20, np.random.default_rng(6)))
    expected_ND = baselines.ance_encode(encoder, ids, CPU)
    found_ND = np.concatenate(list(encode_blocks(encoder, texts_of(ids), (0, 20), 500, CPU, None)))
    assert abs(found_ND - expected_ND).max() < 1e-4


def test_ance_s_step_has_our_gradient() -> None:
    encoders = [common.make_encoder(layers=1, width=64, dropout=0.0) for _ in range(2)]
    rng = np.random.default_rng(7)
    query_ids = made_up_ids(common.query_lengths(2, rng))
    passage_ids = made_up_ids(np.minimum(common.passage_lengths(2 * (NEGATIVES + 1), rng), 60))
    groups = [passage_ids[: NEGATIVES + 1], passage_ids[NEGATIVES + 1 :]]
    optimizers = [torch.optim.SGD(encoder.parameters(), lr=1.0) for encoder in encoders]
    start = flat_weights(encoders[0])
    loss = baselines.ance_step(
        encoders[0], optimizers[0], query_ids, [group[0] for group in groups], [group[1:] for group in groups], CPU
    )
    state = make_state(encoders[1], "pairwise", optimizers[1], constant(optimizers[1]), ALONE, None, 0.0)
    assert train_step(state, [our_batch(query_ids, passage_ids, False)]) == pytest.approx(loss, rel=1e-5)
    theirs, ours = (flat_weights(encoder) - start for encoder in encoders)
    assert float((ours - theirs).abs().max()) < 5e-3 * float(theirs.abs().max())


def test_reckoned_operations_are_those_that_torch_counts() -> None:
    layers, width, length = 2, 128, 50
    encoder = common.make_encoder(layers, width).eval()
    ids_BL = torch.randint(4, common.WORDS, (3, length))
    # As plain products: it does not know the CPU's flash attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(ids_BL, torch.ones_like(ids_BL))
    head = 2 * 3 * width * width
    assert counter.get_total_flops() == common.encoder_flops(np.full(3, length), layers, width) + head


def test_lengths_are_like_ms_marco_s() -> None:
    lengths_N = common.passage_lengths(100_000, np.random.default_rng(8))
    assert 74 < lengths_N.mean() < 78 and 0.001 < (lengths_N > 200).mean() < 0.02
    texts = common.texts_of_lengths(np.array([8, 12]), np.random.default_rng(9))
    assert [len(text.split()) + 2 for text in texts] == [8, 12]


def test_the_readme_names_every_benchmark() -> None:
    text = (REPO / "benchmarks" / "README.md").read_text()
    for name in TINY:
        assert f"python -m benchmarks.{name} " in text and f"| `{name}` |" in text
