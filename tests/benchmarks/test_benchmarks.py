"""The benchmarks at a size that takes seconds: their figures' names, their baselines, and what they estimate with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.roberta.modeling_roberta import RobertaLayer

from benchmarks import baselines, common, loop
from benchmarks.encode import texts_of
from benchmarks.plan import MEASURED, parameters_of
from benchmarks.search import peak_bytes
from benchmarks.train import NEGATIVES, our_batch
from model.encode import encode_blocks
from model.kernels.cpu_dropout import Dropout
from model.train.step import make_state, train_step
from tests import REPO
from tests.forked import run
from tests.model.train.test_step import ALONE, constant, flat_weights
from tests.processes_as_threads import CPU
from tests.real import minilm_dir

TINY = {
    "encode": ("--layers", "1", "--width", "64", "--texts", "40", "--repeats", "1"),
    "train": ("--layers", "1", "--width", "64", "--queries", "2", "--repeats", "1"),
    "preprocess": ("--passages", "3000", "--repeats", "1"),
    "search": ("--passages", "20000", "--dims", "64", "--queries", "20", "--topk", "30", "--repeats", "1"),
    "refresh": (
        *("--passages", "200", "--doublings", "1", "--queries", "20", "--topk", "30"),
        *("--layers", "1", "--width", "64", "--repeats", "1"),
    ),
    "loop": ("--layers", "1", "--width", "64", "--refreshes", "1", "--steps", "2", "--batch", "16", "--repeats", "1"),
}
RATIOS = {
    "encode": {"vs_st_default", "vs_st_equal_dtype", "vs_ance_padded", "of_gemm_limit"},
    "train": {"vs_st_default", "vs_st_equal_dtype", "vs_ance_padded", "of_gemm_limit"},
    "preprocess": {"vs_raw_tokenizers", "vs_line_at_a_time", "bytes_vs_ance"},
    "search": {"vs_faiss_flat", "peak_memory_growth"},
    "refresh": {"time_growth_per_doubling", "peak_memory_growth"},
    "loop": {"vs_ance_padded"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_its_ratios_last_and_writes_them(name: str, tiny_preprocessed: Path, tmp_path: Path) -> None:
    words = [f"benchmarks.{name}", "--json", str(tmp_path / "found.json"), *TINY[name]]
    if name == "loop":
        words += ["--preprocessed", str(tiny_preprocessed)]  # in place of quickstart, which has a test of its own
    output = run(*words)
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"machine", "figures", "ratios"} and set(found["ratios"]) == RATIOS[name]
    assert all(value > 0 for value in [*found["figures"].values(), *found["ratios"].values()])
    said = [line.split() for line in output.splitlines()[-len(RATIOS[name]) :]]
    assert {ratio: float(value) for ratio, value in said} == pytest.approx(found["ratios"], rel=1e-3)


def made_up_ids(lengths_N: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [np.concatenate([[0], rng.integers(4, common.WORDS, length - 2), [2]]) for length in lengths_N.tolist()]


def test_the_result_is_the_first_refresh_that_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the refreshes' numbers: 10 comes after 9, and an entry of another name is no refresh."""
    monkeypatch.setattr(loop.subprocess, "run", lambda argv, **options: None)  # quickstart, which leaves this
    ann_data = tmp_path / "arms" / "top" / "ann_data"
    ann_data.mkdir(parents=True)
    (tmp_path / ".stages").mkdir()
    (tmp_path / ".stages" / "top.begun").touch()
    os.utime(tmp_path / ".stages" / "top.begun", (1000, 1000))
    for name, mrr in (("10", 0.5), ("9", loop.ENOUGH), ("2", 0.1), ("8.partial", 0.9)):
        path = ann_data / f"ann_ndcg_{name}"
        path.write_text(json.dumps({"mrr": mrr}))
        os.utime(path, (1060, 1060))
    assert loop.quickstart(tmp_path) == (60, loop.ENOUGH)


def test_ance_s_loop_encodes_what_ours_does() -> None:
    encoder = common.make_encoder(layers=1, width=64)
    ids = made_up_ids(common.passage_lengths(20, np.random.default_rng(6)))
    expected_ND = baselines.ance_encode(baselines.ance_model(encoder), ids, CPU)
    found_ND = np.concatenate(list(encode_blocks(encoder, texts_of(ids), (0, 20), 500, CPU, None)))
    assert abs(found_ND - expected_ND).max() < 1e-4


def test_ance_s_model_is_transformers_own() -> None:
    model = baselines.ance_model(common.make_encoder(layers=2, width=64))
    kinds = {type(module) for module in model.modules()}
    assert Dropout not in kinds and torch.nn.Dropout in kinds
    assert [type(layer) for layer in model.roberta.encoder.layer] == [RobertaLayer] * 2
    assert model.config._attn_implementation == "sdpa" and model.training


def test_ance_s_step_has_our_gradient() -> None:
    encoder = common.make_encoder(layers=2, width=64, dropout=0.0)
    encoders = [baselines.ance_model(encoder), encoder]
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


def test_estimated_operations_are_those_that_torch_counts() -> None:
    layers, width, length = 2, 128, 50
    encoder = common.make_encoder(layers, width).eval()
    ids_BL = torch.randint(4, common.WORDS, (3, length))
    # As plain products: it does not know the CPU's flash attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.body_emb(ids_BL, torch.ones_like(ids_BL))
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


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "queries", "k"), [("faiss", 2000, 200), ("torch", 500, 1000)])
def test_a_search_takes_no_more_memory_than_it_is_given(backend: str, queries: int, k: int, tmp_path: Path) -> None:
    count, dims, memory_mib = 120_000, 256, 32  # passages of 117 MiB
    np.random.default_rng(10).standard_normal((count, dims), np.float32).tofile(tmp_path / "passages")
    lists_bytes = 3 * queries * (k + 1) * 12 + 4 * queries * dims  # being merged, and given back
    allocators_bytes = 8 * 2**20  # what they and the threads keep
    most = peak_bytes(tmp_path / "passages", count, dims, queries, k, backend, memory_mib)
    assert most < memory_mib * 2**20 + lists_bytes + allocators_bytes


# The plan


def planned(tmp_path: Path, *words: str) -> tuple[dict[str, float], list[str]]:
    output = run("benchmarks.plan", "--json", tmp_path / "plan.json", *words)
    return json.loads((tmp_path / "plan.json").read_text())["figures"], output.splitlines()


def test_the_plan_is_arithmetic_on_the_rates(tmp_path: Path) -> None:
    size = ("--passages", "1000000", "--queries", "10000", "--chunks", "2", "--gpus", "4")
    rates = ("--matmul_tflops", "100", "--encode_share", "0.5", "--search_tflops", "20", "--search_share", "0.25")
    found, said = planned(tmp_path, *size, *rates)
    assert found["searching_gpu_hours"] == pytest.approx(1e6 * 5000 * 768 * 2 / 5e12 / 3600)
    # Of 11 layers, and of the last one's queries, keys and values; attention within 76 tokens comes on top.
    weights = (11 * 12 + 3) * 768**2
    least = 2 * weights * 76 * 1e6 / 5e13 / 3600
    assert least < found["encoding_gpu_hours"] < 1.1 * least
    assert found["wall_hours"] == pytest.approx((found["searching_gpu_hours"] + found["encoding_gpu_hours"]) / 4)
    assert found["embeddings_gb"] == pytest.approx(2 * (1e6 + 5000) * 768 * 4 / 1e9)
    assert found["read_per_gpu_gb"] == pytest.approx(1e6 * 768 * 4 / 4 / 1e9)
    assert "as given" in said[1] and "encoding costs most" in said[-1]


def test_the_plan_s_parameters_are_the_model_s() -> None:
    layers, width = 2, 128
    encoder = common.make_encoder(layers, width)
    counted = sum(parameter.numel() for parameter in encoder.parameters())
    assert parameters_of(layers, width, common.WORDS + 4) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("--queries", "400000000", "--chunks", "1"), "--ann_chunk_factor"),
        (
            (
                "--passages",
                "1000000000",
            ),
            "--embedding_dtype fp16",
        ),
        (("--passages", "1000000000", "--embedding_bytes", "2"), "--nproc_per_node"),
    ],
)
def test_the_plan_names_the_flag_to_turn_first(words: tuple[str, ...], flag: str, tmp_path: Path) -> None:
    assert flag in planned(tmp_path, *words)[1][-1]


# What is written down


def test_the_ratios_in_the_readme_are_those_of_the_committed_files() -> None:
    lines = (REPO / "benchmarks" / "README.md").read_text().splitlines()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    said = {(name, ratio): value for name, ratio, value, _ in (row for row in rows if len(row) == 4)}
    measured = {path.stem: json.loads(path.read_text())["ratios"] for path in MEASURED.glob("*.json")}
    assert set(measured) <= {*TINY, "encode_model"}
    expected = {(name, ratio): f"{value:.4g}" for name, ratios in measured.items() for ratio, value in ratios.items()}
    assert said == expected


@pytest.mark.slow
def test_the_plans_in_the_documentation_are_what_the_program_prints() -> None:
    blocks = (REPO / "docs" / "scale.md").read_text().split("```console\n")[1:]
    plans = [block.split("```")[0].splitlines() for block in blocks if block.startswith("$ python -m benchmarks.plan ")]
    assert len(plans) == 4
    for command, *printed in plans:
        assert run(*command.split()[3:]).splitlines() == printed


def test_a_model_on_disk_is_encoded_as_sentence_transformers_does(tmp_path: Path) -> None:
    """--model: it ends with an AssertionError where the embeddings differ."""
    report = tmp_path / "report.json"
    run("benchmarks.encode", "--model", minilm_dir(), "--texts", "4", "--repeats", "1", "--json", report)
    found = json.loads(report.read_text())
    assert set(found["ratios"]) == {"vs_st_default", "vs_roberta"} and found["figures"]["ours_tokens_per_second"] > 0
