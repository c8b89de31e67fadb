"""Packed texts: the embeddings and gradients of padded ones, and the way back where the device cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import RobertaConfig

from data.training.batches import Batch
from drivers.job.encoder_setup import enable_packing, prepare_encoder
from model.encoders import packing
from model.encoders.packing import packing_problem, tried_batch
from model.encoders.roberta_dot import RobertaDot
from model.kernels import packed_attention
from model.kernels.cpu_dropout import BY_DEVICE
from model.kernels.packed_attention import PACKED, PACKED_ON_CPU, flash_attention, memory_efficient_attention
from model.kernels.precision import autocast
from model.token_batch import unpadded
from model.train.step import make_state, train_step
from tests.model.train.test_step import ALONE, constant, flat_weights
from tests.processes_as_threads import CPU
from utils.distributed import collectives
from utils.distributed.world import World

PAD, VOCABULARY = 1, 50


SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
}


def make_encoder(pooling: str = "first", dropout: float = 0.0, shape: Mapping[str, float] = SHAPE) -> RobertaDot:
    torch.manual_seed(4)
    config = RobertaConfig(**shape, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, pooling=pooling)
    return RobertaDot(config).eval()


def text_by_text(
    heads: list[torch.Tensor], offsets_B: torch.Tensor, longest: int, dropout: float, scaling: float
) -> torch.Tensor:
    """What a GPU's kernels compute, which take no other arguments than these."""
    lengths = offsets_B.diff().tolist()
    assert offsets_B.dtype == torch.int32 and offsets_B[0] == 0 and max(lengths) == longest
    assert len({head.dtype for head in heads}) == 1 and heads[0].shape[-1] % 8 == 0
    of_texts = zip(*(head.transpose(0, 1).split(lengths, dim=1) for head in heads), strict=True)
    made = [F.scaled_dot_product_attention(*text, dropout_p=dropout, scale=scaling) for text in of_texts]
    return torch.cat(made, dim=1).transpose(0, 1)


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels are another's: `test_cuda_attention` has them."""
    monkeypatch.setattr(packed_attention, "quickest_kernel", lambda *_of: text_by_text)


def batch_of(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths_B = torch.tensor(lengths)
    ids_BL = torch.randint(2, VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(5))
    mask_BL = (torch.arange(ids_BL.shape[1]) < lengths_B[:, None]).to(torch.int64)
    return ids_BL.where(mask_BL.bool(), PAD), mask_BL


def gradient(encoder: RobertaDot, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    encoder.zero_grad()
    embeddings_BD = encoder.body_emb(ids_BL, mask_BL)
    weights_BD = torch.randn(embeddings_BD.shape, generator=torch.Generator().manual_seed(6))
    (embeddings_BD * weights_BD).sum().backward()
    return embeddings_BD.detach(), torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


@pytest.mark.parametrize("attention", [PACKED, PACKED_ON_CPU])
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), pooling=st.sampled_from(["first", "mean"]))
def test_packed_is_padded(attention: str, lengths: list[int], pooling: str) -> None:
    encoder = make_encoder(pooling)
    expected = gradient(encoder, *batch_of(lengths))
    encoder.pack_texts(True, attention)
    found = gradient(encoder, *batch_of(lengths))
    for packed, padded in zip(found, expected, strict=True):
        assert float((packed - padded).norm()) <= 1e-4 * float(padded.norm())
    alone = [encoder.body_emb(*batch_of([length])) for length in lengths[:1]]  # a text alone has no other to attend to
    encoder.pack_texts(False)
    assert float((alone[0] - encoder.body_emb(*batch_of(lengths[:1]))).detach().abs().max()) < 1e-4


@pytest.mark.parametrize("pooling", ["first", "mean"])
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_rounded_shapes_are_few_and_change_nothing(pooling: str, lengths: list[int]) -> None:
    """Encoding in bfloat16 on a CPU; texts without tokens are added to a batch, tokens to none of its texts."""
    encoder = make_encoder(pooling)
    exact_BD = encoder.body_emb(*batch_of(lengths)).detach()
    encoder.cast_linear_weights(torch.bfloat16)
    encoder.pack_texts(True)
    rows = []
    for module in encoder.roberta.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _module, inputs: rows.append(inputs[0].shape[1]))
    with torch.inference_mode(), autocast(CPU, torch.bfloat16):
        found_BD = encoder.body_emb(*batch_of(lengths))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(packed_attention, "rounds_shapes", lambda: False)
            assert torch.allclose(found_BD, encoder.body_emb(*batch_of(lengths)), atol=0.05)
    products = len(rows) // 2
    of_tokens, of_texts = -(-sum(lengths) // 32) * 32, -(-len(lengths) // 8) * 8
    last = {sum(lengths), len(lengths)} if pooling == "first" else {sum(lengths)}
    assert set(rows[:products]) == ({of_tokens, of_texts} if pooling == "first" else {of_tokens})
    assert set(rows[products:]) == last
    assert found_BD.shape == exact_BD.shape and float((found_BD - exact_BD).norm() / exact_BD.norm()) < 0.03


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_packing_is_taken_up_where_it_agrees(dtype: torch.dtype | None, trains: bool, tmp_path: Path) -> None:
    encoder = make_encoder(dropout=0.1).train()
    if dtype is not None and not trains:
        encoder.cast_linear_weights(dtype)
    before = torch.get_rng_state()
    assert packing_problem(encoder, CPU, dtype, trains) == ""
    assert encoder.training and not encoder.is_packed
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert torch.equal(before, torch.get_rng_state())
    encoder.pack_texts(True, PACKED)
    encoder.save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text()
    assert "hidden_size" in written and "packed" not in written and BY_DEVICE not in written


@pytest.mark.parametrize(("pad_id", "positions"), [(0, 40), (1, 40), (49, 60), (0, 3), (1, 300)])
def test_any_model_is_tried_with_texts_that_fit_it(pad_id: int, positions: int) -> None:
    config = {**make_encoder().config_dict(), "pad_token_id": pad_id, "max_position_embeddings": positions}
    batch = tried_batch(RobertaDot.spec_of(config))
    assert batch.longest == int(batch.lengths_B.max()) <= positions - pad_id - 1
    assert int(batch.tokens_T.min()) >= 0 and int(batch.tokens_T.max()) < VOCABULARY
    assert not (batch.tokens_T == pad_id).any() and int(batch.lengths_B.min()) > 0
    assert batch.longest == 150 or positions < 152


def no_kernel(*_args: Any) -> Any:
    raise RuntimeError("no kernel for this GPU\nC++ stack")


def without_scores(heads: list[torch.Tensor], *_others: Any) -> torch.Tensor:
    return heads[2]


def without_gradient(heads: list[torch.Tensor], *others: Any) -> torch.Tensor:
    return text_by_text([head.detach() for head in heads], *others)


@pytest.mark.parametrize(
    ("kernel", "trains", "reason"),
    [
        (no_kernel, False, "RuntimeError: no kernel for this GPU"),
        (without_scores, False, "the embeddings differ"),
        (without_gradient, True, "the gradients differ"),
    ],
)
def test_packing_is_left_where_it_fails_or_differs(
    kernel: Any, trains: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder()
    expected_BD = encoder.body_emb(*batch_of([3, 9]))
    monkeypatch.setattr(packed_attention, "quickest_kernel", lambda *_of: kernel)
    said = packing_problem(encoder, CPU, None, trains)
    assert said.startswith(reason) and "\n" not in said
    assert not encoder.is_packed and torch.equal(encoder.body_emb(*batch_of([3, 9])), expected_BD)


def test_a_pad_token_inside_a_text_counts_as_it_does_in_a_padded_batch() -> None:
    encoder = make_encoder()
    ids_BL, mask_BL = batch_of([9, 5])
    ids_BL[0, 3] = PAD
    expected_BD = encoder.body_emb(ids_BL, mask_BL)
    encoder.pack_texts(True, PACKED)
    assert float((encoder.body_emb(ids_BL, mask_BL) - expected_BD).detach().abs().max()) < 1e-4


def test_layers_that_are_made_twice_are_packed_on_a_gpu_too() -> None:
    encoder = make_encoder(dropout=0.1)
    encoder.enable_gradient_checkpointing()
    assert packing_problem(encoder, CPU, None, trains=True) == ""


def test_torch_s_kernels_take_what_they_are_given() -> None:
    """This version's: without a GPU, on tensors without numbers."""
    offsets_B = torch.tensor([0, 5, 7], dtype=torch.int32, device="meta")
    for kernel, dtype in ((flash_attention, torch.bfloat16), (memory_efficient_attention, torch.float32)):
        heads = [torch.empty(7, 2, 8, dtype=dtype, device="meta", requires_grad=True) for _ in range(3)]
        made = kernel(heads, offsets_B, 5, 0.1, 0.3)
        assert made.shape == heads[0].shape and made.dtype == dtype and made.requires_grad


@pytest.mark.parametrize("dims", [4, 8, 12])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_heads_of_any_size_and_type_reach_the_kernel_as_it_reads_them(dims: int, scaling: float | None) -> None:
    """In autocast's type, in which some families' queries and keys are not; scaled by their own size."""
    draw = torch.Generator().manual_seed(7)
    heads = [torch.randn(1, 2, 7, dims, generator=draw) for _ in range(3)]
    expected = F.scaled_dot_product_attention(*(head[:, :, :5] for head in heads), scale=scaling).transpose(1, 2)
    packing: dict[str, Any] = {"offsets_B": torch.tensor([0, 5, 7], dtype=torch.int32), "longest": 5}
    for dtype, within in ((None, 1e-6), (torch.bfloat16, 2e-2)):
        with autocast(CPU, dtype):
            found, _ = packed_attention.packed_attention(torch.nn.Module(), *heads, None, scaling=scaling, **packing)
        assert found.shape == (1, 7, 2, dims) and found.dtype == (dtype or torch.float32)
        assert torch.allclose(found[:, :5].float(), expected, atol=within)


@pytest.mark.parametrize("lengths", [[30, 30, 30], [30, 2, 17]])
@pytest.mark.parametrize("made_twice", [False, True])
def test_on_a_cpu_packed_is_padded_with_lower_precision_and_layers_made_twice(
    lengths: list[int], made_twice: bool
) -> None:
    encoder = make_encoder()
    encoder.roberta.train(made_twice)  # where transformers makes them twice
    if made_twice:
        encoder.enable_gradient_checkpointing()
    expected = gradient(encoder, *batch_of(lengths))
    prepare_encoder(encoder, None, ALONE, trains=True)
    assert encoder.is_packed
    for packed, padded in zip(gradient(encoder, *batch_of(lengths)), expected, strict=True):
        assert float((packed - padded).norm()) <= 1e-4 * float(padded.norm())
    with autocast(CPU, torch.bfloat16):
        rounded = gradient(encoder, *batch_of(lengths))
    for packed, padded in zip(rounded, expected, strict=True):
        assert 0 < float((packed - padded).norm()) <= 0.1 * float(padded.norm())


@pytest.mark.parametrize("grad_cache_tokens", [0, 40])
@pytest.mark.parametrize("attention", [PACKED, PACKED_ON_CPU])
def test_a_training_step_on_packed_texts_is_one_on_padded_ones(grad_cache_tokens: int, attention: str) -> None:
    weights = []
    for packed in (False, True):
        encoder = make_encoder()
        encoder.pack_texts(packed, attention)
        optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
        state = make_state(encoder, "pairwise", optimizer, constant(optimizer), ALONE, None, 0.0, grad_cache_tokens)
        queries, passages = (unpadded(*batch_of(lengths)) for lengths in ([4, 7], [20, 3, 11, 30]))
        arrays = (queries.tokens_T, queries.offsets_B1, passages.tokens_T, passages.offsets_B1)
        indices = (np.array([0, 1, 1]), np.array([0, 2, 2]), np.array([1, 1, 3]))
        train_step(state, [Batch(*(array.numpy() for array in arrays), *indices)])
        weights.append(flat_weights(encoder))
    moved = float((weights[0] - flat_weights(make_encoder())).norm())
    assert float((weights[1] - weights[0]).norm()) <= 1e-4 * moved


@pytest.mark.parametrize(("fails_here", "fails_elsewhere"), [(False, False), (True, False), (False, True)])
def test_ranks_pack_together_or_not_at_all(
    fails_here: bool, fails_elsewhere: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packing, "packing_problem", lambda *_args: "no kernel" if fails_here else "")
    monkeypatch.setattr(collectives, "any_process", lambda _world, here: here or fails_elsewhere)
    encoder = make_encoder()
    enable_packing(encoder, None, World(0, 1, torch.device("cuda")), trains=True)
    said = capsys.readouterr().out
    assert encoder.is_packed is not (fails_here or fails_elsewhere)
    assert ("process 0 cannot omit padding (no kernel)" in said) is fails_here
    assert ("packed without padding" in said) is encoder.is_packed


@pytest.mark.parametrize("attention", [PACKED, PACKED_ON_CPU])
def test_no_product_is_made_for_padding(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder()
    encoder.pack_texts(True, attention)
    rows: Counter[int] = Counter()
    linear = F.linear

    def counted(input: torch.Tensor, *others: Any) -> torch.Tensor:
        rows[input.shape[:-1].numel()] += 1
        return linear(input, *others)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    encoder.body_emb(*batch_of([30, 2, 2]))
    # All tokens: six products of the first layer, and queries, keys and values of the last. Then one token a text.
    assert rows == {34: 6 + 3, 3: 3 + 1}


@pytest.mark.parametrize("attention", [PACKED, PACKED_ON_CPU])
def test_dropout_reaches_packed_attention(attention: str) -> None:
    encoder = make_encoder(dropout=0.5).train()
    encoder.pack_texts(True, attention)
    for module in encoder.modules():
        if (
            isinstance(module, torch.nn.Dropout)
            and module is not encoder.roberta.encoder.layer[0].attention.self.dropout
        ):
            module.p = 0.0
    first_BD, again_BD = (encoder.body_emb(*batch_of([12, 7])) for _ in range(2))
    assert not torch.allclose(first_BD, again_BD)
