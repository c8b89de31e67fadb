"""Which type the flags choose, and what encoding in it costs in exactness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import RobertaConfig

from model.encode import TextSource, encode_blocks
from model.encoders.roberta_dot import RobertaDot
from model.encoders.static import StaticEncoder
from model.kernels.precision import compute_dtype, name_of, quickest_dtype
from model.token_batch import TokenBatch
from tests.processes_as_threads import CPU
from tests.texts import ragged
from utils.errors import UserError
from utils.search.index import Index
from utils.search.settings import SearchSettings
from utils.search.source import in_memory

BF16, FP16 = torch.bfloat16, torch.float16


def test_which_flags_mean_what() -> None:
    for dtype, fp16, bf16, level, expected in (
        (None, False, False, "O1", FP16),  # the default given below
        ("fp32", False, False, "O1", None),
        ("bf16", False, False, "O1", BF16),
        ("auto", False, False, "O1", BF16),
        (None, True, False, "O1", FP16),
        ("fp16", True, False, "O1", FP16),
        (None, True, False, "O0", None),
        ("fp16", False, False, "O0", None),
        ("bf16", False, False, "O0", BF16),
        (None, False, True, "O1", BF16),
    ):
        assert compute_dtype(dtype, fp16, bf16, level, default="fp16", quickest=BF16) is (
            None if level == "O0" and expected is FP16 else expected
        ), (dtype, fp16, bf16, level)
    assert compute_dtype("auto", False, False, "O1", default="fp32", quickest=None) is None
    assert compute_dtype(None, False, False, "O1", default="auto", quickest=BF16) is BF16


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((None, True, True, "O1"), "--fp16 and --bf16 are both given; choose one"),
        (("fp32", False, True, "O1"), "--bf16 and --dtype fp32 are both given; choose one"),
        (("auto", True, False, "O1"), "--fp16 and --dtype auto are both given; choose one"),
        ((None, True, False, "O2"), "apex.amp, which NVIDIA has removed"),
        ((None, False, False, "O3"), "apex.amp"),
        ((None, True, False, "O4"), "expected O0 or O1"),
    ],
)
def test_flags_that_contradict_each_other(flags: tuple[str | None, bool, bool, str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        compute_dtype(*flags, default="fp32", quickest=None)


def test_auto_is_bfloat16_where_the_hardware_is_quick_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    for capability, expected in (((7, 5), None), ((8, 0), BF16), ((8, 6), BF16), ((9, 0), BF16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, found=capability: found)
        assert quickest_dtype(cuda) is expected
    for found, expected in (({}, None), ({"avx512_bf16": True}, BF16), ({"amx_bf16": True}, BF16), ({"avx2": 1}, None)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert quickest_dtype(CPU) is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch cannot tell
    assert quickest_dtype(CPU) is None


def test_names() -> None:
    assert [name_of(dtype) for dtype in (None, BF16, FP16)] == ["float32", "bfloat16", "float16"]


# Encoding

TEXTS, LONGEST, VOCABULARY, DIMS = 1500, 24, 300, 64


def made_up_texts() -> TextSource:
    rng = np.random.default_rng(3)
    lengths_N = rng.integers(4, LONGEST + 1, TEXTS)
    ids_NL = np.where(np.arange(LONGEST) < lengths_N[:, None], rng.integers(5, VOCABULARY, (TEXTS, LONGEST)), 1)

    def gather(rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return ragged([ids_NL[row, : lengths_N[row]].tolist() for row in rows_B.tolist()])

    return TextSource(TEXTS, lambda start, stop: lengths_N[start:stop], gather, "passage")


def make_roberta(**changes: Any) -> RobertaDot:
    torch.manual_seed(3)
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": DIMS,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 4 * DIMS,
        "max_position_embeddings": 40,
        "pad_token_id": 1,
        "initializer_range": 0.2,  # so that texts differ as they do after training
        "pooling": "mean",
    }
    return RobertaDot(RobertaConfig(**{**values, **changes}))


def encode(encoder: RobertaDot | StaticEncoder, dtype: torch.dtype | None) -> np.ndarray:
    return np.concatenate(list(encode_blocks(encoder, made_up_texts(), (0, TEXTS), 600, CPU, dtype)))


def recall_of_lists(found_ND: np.ndarray, exact_ND: np.ndarray) -> float:
    """Of the 200 best of each of 200 texts in ``exact_ND``, the share that ``found_ND`` has among its own."""
    options = SearchSettings("torch", "Flat", 0, CPU)
    found, expected = (
        Index(in_memory(vectors_ND), options).search(vectors_ND[:200], 200)[1] for vectors_ND in (found_ND, exact_ND)
    )
    return float(np.mean([len(np.intersect1d(a, b)) / 200 for a, b in zip(found, expected, strict=True)]))


@pytest.mark.parametrize("prepared", ["by autocast", "lowered", "prepacked"])
def test_top_200_in_bfloat16_are_close_to_those_of_float32(prepared: str) -> None:
    """Of random weights, whose scores lie closer together than a trained model's."""
    exact_ND = encode(make_roberta(), None)
    encoder = make_roberta()
    if prepared != "by autocast":
        encoder.cast_linear_weights(BF16)
    if prepared == "prepacked":
        encoder.prepack_weights()
    rounded_ND = encode(encoder, BF16)
    assert rounded_ND.dtype == np.float32 and not np.array_equal(exact_ND, rounded_ND)
    assert recall_of_lists(rounded_ND, exact_ND) >= 0.975
    assert abs(rounded_ND - exact_ND).max() < 0.25


@pytest.mark.slow
def test_a_trained_model_finds_the_same_in_bfloat16() -> None:
    """After learning to find a text by its first tokens."""
    encoder = make_roberta(initializer_range=0.02, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    texts, rng = made_up_texts(), np.random.default_rng(4)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    for _ in range(100):
        batch = TokenBatch.of(*texts.gather(rng.choice(TEXTS, 64, replace=False)))
        first_BF = batch.padded(1)[0][:, :3]
        scores_BB = encoder.query_emb(first_BF, torch.ones_like(first_BF)) @ encoder.encode(batch, "passage").rows.T
        loss = torch.nn.functional.cross_entropy(scores_BB / 8, torch.arange(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1
    exact_ND = encode(encoder, None)
    encoder.cast_linear_weights(BF16)
    lowered_ND = encode(encoder, BF16)
    encoder.prepack_weights()
    prepacked_ND = encode(encoder, BF16)
    assert recall_of_lists(lowered_ND, exact_ND) >= 0.995 and recall_of_lists(prepacked_ND, exact_ND) >= 0.995
    assert np.linalg.norm(prepacked_ND - exact_ND) <= 1.02 * np.linalg.norm(lowered_ND - exact_ND)


def test_lowered_weights_are_the_layers_matrices_and_change_nothing() -> None:
    encoder = make_roberta()
    before_ND = encode(encoder, BF16)
    encoder.cast_linear_weights(BF16)
    np.testing.assert_array_equal(before_ND, encode(encoder, BF16))
    lowered = {name for name, parameter in encoder.roberta.named_parameters() if parameter.dtype is BF16}
    assert len(lowered) == 4 * 6 * 2, "six linear layers in each of four"
    assert not any("LayerNorm" in name or "embeddings" in name for name in lowered)
    assert encoder.embeddingHead.weight.dtype == encoder.norm.weight.dtype == torch.float32
