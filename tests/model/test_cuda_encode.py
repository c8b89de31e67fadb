"""Encoding on a GPU: the CPU's embeddings, in the collection's order, with batches copied from pinned memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drivers.job.encoder_setup import prepare_encoder
from model.encode import encode_blocks, gather_batches
from model.kernels.precision import quickest_dtype
from tests.gpu import CUDA, ON_GPU, needs_cuda
from tests.model.test_encode import encode, made_up_texts, make_encoder

pytestmark = needs_cuda


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", ["first", "mean"])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16], ids=str)
def test_embeddings_are_the_cpu_s(kind: str, packed: bool, dtype: torch.dtype | None) -> None:
    _, texts = made_up_texts(700)
    expected_ND = encode(make_encoder(kind), texts, (0, 700), 100)
    encoder = make_encoder(kind).to(CUDA)
    if dtype is not None:
        encoder.cast_linear_weights(dtype)
    if packed:
        prepare_encoder(encoder, dtype, ON_GPU)
        assert encoder.is_packed
    found_ND = np.concatenate(list(encode_blocks(encoder, texts, (0, 700), 500, CUDA, dtype)))
    assert found_ND.dtype == np.float32
    within = {None: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    assert np.linalg.norm(found_ND - expected_ND) < within * np.linalg.norm(expected_ND)


def test_the_static_encoder_s_embeddings_are_the_cpu_s() -> None:
    _, texts = made_up_texts(700)
    expected_ND = encode(make_encoder("static"), texts, (0, 700), 100)
    found_ND = np.concatenate(list(encode_blocks(make_encoder("static").to(CUDA), texts, (0, 700), 500, CUDA, None)))
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-5)


def test_batches_for_a_gpu_are_pinned() -> None:
    _, texts = made_up_texts(100)
    for batch in gather_batches(texts, (0, 100), 300, pin=True):
        assert batch.rows_B.is_pinned() and batch.tokens.tokens_T.is_pinned() and batch.tokens.offsets_B1.is_pinned()


def test_auto_is_bfloat16_where_the_gpu_is_quick_at_it() -> None:
    expected = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    assert quickest_dtype(CUDA) is expected
