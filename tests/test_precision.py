"""Which type the flags choose, and what encoding in it costs in exactness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import RobertaConfig

from model.embedding import Texts, encode_blocks
from model.precision import autocast_for, compute_dtype, name_of, quickest_dtype
from model.roberta_dot import RobertaDot
from model.static import StaticEncoder
from utils.errors import UserError
from utils.search import SearchOptions, in_memory, search

CPU = torch.device("cpu")
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
        assert quickest_dtype(cuda, "rdot_nll") is expected
        assert quickest_dtype(cuda, "static") is None
    for found, expected in (({}, None), ({"avx512_bf16": True}, BF16), ({"amx_bf16": True}, BF16), ({"avx2": 1}, None)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert quickest_dtype(CPU, "rdot_nll") is expected
        assert quickest_dtype(CPU, "static") is None
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch cannot tell
    assert quickest_dtype(CPU, "rdot_nll") is None


def test_names() -> None:
    assert [name_of(dtype) for dtype in (None, BF16, FP16)] == ["float32", "bfloat16", "float16"]


# Encoding

TEXTS, LONGEST, VOCABULARY, DIMS = 1500, 24, 300, 64


def made_up_texts() -> Texts:
    rng = np.random.default_rng(3)
    lengths_N = rng.integers(4, LONGEST + 1, TEXTS)
    ids_NL = np.where(np.arange(LONGEST) < lengths_N[:, None], rng.integers(5, VOCABULARY, (TEXTS, LONGEST)), 1)

    def gather(rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return ids_NL[rows_B, : lengths_N[rows_B].max()], lengths_N[rows_B]

    return Texts(TEXTS, lambda start, stop: lengths_N[start:stop], gather)


def make_roberta() -> RobertaDot:
    torch.manual_seed(3)
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=DIMS,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * DIMS,
        max_position_embeddings=40,
        pad_token_id=1,
        initializer_range=0.2,  # so that texts differ as they do after training
    )
    return RobertaDot(config)


def encode(encoder: RobertaDot | StaticEncoder, dtype: torch.dtype | None) -> np.ndarray:
    return np.concatenate(list(encode_blocks(encoder, made_up_texts(), (0, TEXTS), 600, CPU, dtype)))


@pytest.mark.parametrize("lowered", [False, True])
def test_top_200_in_bfloat16_are_close_to_those_of_float32(lowered: bool) -> None:
    """Of random weights, whose scores lie closer together than a trained model's."""
    exact_ND = encode(make_roberta(), None)
    encoder = make_roberta()
    if lowered:
        encoder.lower_weights(BF16)
    rounded_ND = encode(encoder, BF16)
    assert rounded_ND.dtype == np.float32 and not np.array_equal(exact_ND, rounded_ND)
    options = SearchOptions("torch", "Flat", 0, CPU)
    found, expected = (
        search(vectors_ND[:200], in_memory(vectors_ND), 200, options, lambda _count: None)[1]
        for vectors_ND in (rounded_ND, exact_ND)
    )
    recall = np.mean([len(np.intersect1d(a, b)) / 200 for a, b in zip(found, expected, strict=True)])
    assert recall >= 0.97
    assert abs(rounded_ND - exact_ND).max() < 0.25


def test_lowered_weights_keep_the_head_and_need_no_autocast() -> None:
    encoder = make_roberta()
    assert torch.is_autocast_enabled("cpu") is False
    with autocast_for(encoder, CPU, BF16):
        assert torch.is_autocast_enabled("cpu")
    encoder.lower_weights(BF16)
    with autocast_for(encoder, CPU, BF16):
        assert not torch.is_autocast_enabled("cpu")
    assert {parameter.dtype for parameter in encoder.roberta.parameters()} == {BF16}
    assert encoder.embeddingHead.weight.dtype == encoder.norm.weight.dtype == torch.float32
    static = StaticEncoder({"vocab_size": VOCABULARY, "embedding_size": 16})
    before_ND = encode(static, BF16)
    static.lower_weights(BF16)
    assert np.array_equal(before_ND, encode(static, BF16))
