"""Packed attention by the GPU's kernels against padded texts in float64 on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from drivers.job.encoder_setup import prepare_encoder
from model.encode import encode_batch
from model.encoders.packing import embeddings_and_gradient, packing_problem
from model.encoders.roberta_dot import RobertaDot
from model.kernels.packed_attention import PACKED
from model.token_batch import TokenBatch
from tests.gpu import CUDA, ON_GPU, needs_cuda, relative_error
from tests.model.kernels import test_packed_attention
from tests.processes_as_threads import CPU

pytestmark = needs_cuda
VOCABULARY = 500
TEXT_LENGTHS = {  # a kernel's tiles are of 64 or 128 tokens
    "one token": [1],
    "around the tiles": [1, 63, 64, 65, 127, 128, 129, 180],
    "many short": [3 + n % 17 for n in range(300)],
    "all alike": [64] * 16,
}
WITHIN = {None: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


# Heads of 64, as RoBERTa's are, with weights that make the scores of attention differ.
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 200,
    "initializer_range": 0.1,
}


def make_encoder(pooling: str = "first", dropout: float = 0.0) -> RobertaDot:
    return test_packed_attention.make_encoder(pooling, dropout, SHAPE)


def batch_of(lengths: list[int]) -> TokenBatch:
    offsets_B1 = torch.tensor([0, *lengths]).cumsum(0)
    draw = torch.Generator().manual_seed(5)
    return TokenBatch.of(torch.randint(3, VOCABULARY, (int(offsets_B1[-1]),), generator=draw), offsets_B1)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("dtype", WITHIN, ids=str)
@pytest.mark.parametrize("lengths", TEXT_LENGTHS.values(), ids=TEXT_LENGTHS)
def test_packed_on_a_gpu_is_padded_in_float64(lengths: list[int], dtype: torch.dtype | None, pooling: str) -> None:
    encoder, batch = make_encoder(pooling), batch_of(lengths)
    exact = copy.deepcopy(encoder).double()
    expected = embeddings_and_gradient(exact, batch, None, trains=True)
    expected_BD = encode_batch(exact, batch, "passage", CPU, None)
    encoder.to(CUDA)
    encoder.pack_texts(True, PACKED)
    found = embeddings_and_gradient(encoder, batch.to(CUDA), dtype, trains=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < WITHIN[dtype]
    encoded_BD = encode_batch(encoder, batch, "passage", CUDA, dtype)
    assert relative_error(encoded_BD, expected_BD) < WITHIN[dtype]


@pytest.mark.parametrize("trains", [False, True], ids=["encodes", "trains"])
@pytest.mark.parametrize("dtype", WITHIN, ids=str)
def test_this_gpu_packs(dtype: torch.dtype | None, trains: bool) -> None:
    """By one of the fused kernels, in each type; the random states stay as they are."""
    encoder = make_encoder(dropout=0.1).to(CUDA)
    before = torch.cuda.get_rng_state(CUDA)
    assert packing_problem(encoder, CUDA, dtype, trains) == ""
    assert torch.equal(before, torch.cuda.get_rng_state(CUDA))
    prepare_encoder(encoder, dtype, ON_GPU, trains=trains)
    assert encoder.is_packed


def test_layers_that_are_made_twice_are_packed() -> None:
    encoder = make_encoder(dropout=0.1).to(CUDA)
    encoder.enable_gradient_checkpointing()
    prepare_encoder(encoder, torch.bfloat16, ON_GPU, trains=True)
    assert encoder.is_packed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_lowered_matrices_give_what_autocast_gives(dtype: torch.dtype) -> None:
    encoder, batch = make_encoder().to(CUDA), batch_of([7, 30, 129])
    encoder.pack_texts(True, PACKED)
    expected_BD = encode_batch(encoder, batch, "passage", CUDA, dtype)
    encoder.cast_linear_weights(dtype)
    assert torch.equal(encode_batch(encoder, batch, "passage", CUDA, dtype), expected_BD)


@pytest.mark.parametrize("dtype", WITHIN, ids=str)
def test_attention_s_dropout_is_drawn_from_the_gpu_s_generator(dtype: torch.dtype | None) -> None:
    """Its alone: the layers' other dropouts are off. The same state gives the same bits."""
    encoder, batch = make_encoder(dropout=0.3).to(CUDA).train(), batch_of([12, 129, 7]).to(CUDA)
    encoder.pack_texts(True, PACKED)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in encoder.roberta.encoder.layer:
        layer.attention.self.dropout.p = 0.3
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            drawn.append(encoder.encode(batch, "passage").rows)
    assert torch.equal(drawn[0], drawn[1]) and relative_error(drawn[2], drawn[0]) > 1e-3


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_encoding_a_batch_never_waits_for_the_gpu(pooling: str) -> None:
    """The host queues a batch while the GPU computes the one before: an operation that waits raises here."""
    encoder, batch = make_encoder(pooling).to(CUDA), batch_of([7, 30, 129]).pin_memory()
    encoder.pack_texts(True, PACKED)
    expected_BD = encode_batch(encoder, batch, "passage", CUDA, torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found_BD = encode_batch(encoder, batch, "passage", CUDA, torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found_BD, expected_BD)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_a_compiled_model_computes_the_same_in_batches_of_any_shape(dtype: torch.dtype | None) -> None:
    encoder = make_encoder()
    compiled = copy.deepcopy(encoder).to(CUDA)
    prepare_encoder(compiled, dtype, ON_GPU, compiled=True, trains=True)
    for lengths in ([9, 4, 2], [20, 20], [129, 7, 64, 3]):
        batch = batch_of(lengths)
        expected = embeddings_and_gradient(copy.deepcopy(encoder).double(), batch, None, trains=True)
        found = embeddings_and_gradient(compiled, batch.to(CUDA), dtype, trains=True)
        for ours, theirs in zip(found, expected, strict=True):
            assert relative_error(ours, theirs) < WITHIN[dtype]
    assert next(compiled.parameters()).device == CUDA and next(encoder.parameters()).device == CPU
