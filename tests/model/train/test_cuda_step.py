"""The training step on a GPU: the CPU's numbers, less memory where that is asked for, the same bits when resumed."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.training.batches import Batch, Triples, make_batch
from model.encoders.base import Encoder, PacksTexts
from model.encoders.registry import load_encoder
from model.encoders.roberta_dot import RobertaDot
from model.train.checkpoint import load_state, rng_states, save_state
from model.train.optim import linear_schedule, make_optimizer
from model.train.step import TrainingState, make_state, train_step
from tests.gpu import CUDA, ON_GPU, needs_cuda, relative_error
from tests.model.kernels.test_cuda_attention import VOCABULARY, make_encoder
from tests.model.train.test_grad_cache import noted_passes, with_dropout
from tests.model.train.test_step import (
    ENCODERS,
    LOSSES,
    constant,
    flat_weights,
    made_up_batches,
    roberta_encoder,
    sgd_state,
    static_encoder,
)
from tests.texts import ragged

pytestmark = needs_cuda


def sgd_on_gpu(
    encoder: nn.Module, loss: str = "pairwise", dtype: torch.dtype | None = None, grad_cache_tokens: int = 0
) -> TrainingState:
    """Plain descent at rate 1: a step's change of the weights is the gradient."""
    optimizer = torch.optim.SGD(encoder.to(CUDA).parameters(), lr=1.0)
    return make_state(encoder, loss, optimizer, constant(optimizer), ON_GPU, dtype, 0.0, grad_cache_tokens)


def gradient_on_gpu(
    encoder: Encoder, loss: str, dtype: torch.dtype | None, grad_cache_tokens: int = 0, packed: bool = False
) -> tuple[float, torch.Tensor]:
    """The loss of a step of 24 triples twice, and its gradient."""
    state = sgd_on_gpu(encoder, loss, dtype, grad_cache_tokens)
    if packed:
        assert isinstance(encoder, PacksTexts)
        encoder.pack_texts(True)
    before = flat_weights(encoder)
    found = train_step(state, made_up_batches(loss, 24, 2))
    return found, before - flat_weights(encoder)


def gradient_on_cpu(encoder: nn.Module, loss: str) -> tuple[float, torch.Tensor]:
    before = flat_weights(encoder)
    found = train_step(sgd_state(encoder, loss), made_up_batches(loss, 24, 2))
    return found, before - flat_weights(encoder)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["static", "rdot_nll", "packed"])
@pytest.mark.parametrize("grad_cache_tokens", [0, 40])
def test_a_step_on_a_gpu_is_one_on_the_cpu(kind: str, loss: str, grad_cache_tokens: int) -> None:
    make = ENCODERS["rdot_nll" if kind == "packed" else kind]
    expected_loss, expected = gradient_on_cpu(make(), loss)
    found_loss, found = gradient_on_gpu(make(), loss, None, grad_cache_tokens, packed=kind == "packed")
    assert found_loss == pytest.approx(expected_loss, rel=1e-5)
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_step_in_half_precision_points_where_float32_s_does(dtype: torch.dtype, packed: bool, loss: str) -> None:
    """fp16's loss is scaled for the gradient, and its gradient scaled back."""
    expected_loss, expected = gradient_on_cpu(roberta_encoder(), loss)
    found_loss, found = gradient_on_gpu(roberta_encoder(), loss, dtype, packed=packed)
    assert found_loss == pytest.approx(expected_loss, rel=0.02) and found_loss != expected_loss
    assert float(torch.cosine_similarity(found.cpu(), expected, dim=0)) > 0.99
    assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=0.05)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first step is one of the skipped
def test_fp16_s_scaler_skips_steps_that_overflow_and_goes_on() -> None:
    encoder = static_encoder()
    state = sgd_on_gpu(encoder, "pairwise", torch.float16)
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 2.0**127})
    start, scale = flat_weights(encoder), 2.0**127
    while torch.equal(flat_weights(encoder), start) and state.step < 127:
        train_step(state, made_up_batches("pairwise", 4, 1))
        if torch.equal(flat_weights(encoder), start):
            scale /= 2
            assert state.scaler.get_scale() == scale
    assert 1 < state.step < 127 and state.skipped == state.step - 1
    assert torch.isfinite(flat_weights(encoder)).all()


def embeddings_of_passes(encoder: Encoder, dtype: torch.dtype | None, seed: int) -> list[torch.Tensor]:
    """Of a GradCache step, all once and then all again."""
    state = sgd_on_gpu(encoder, "in_batch", dtype, 40)
    torch.manual_seed(seed)
    with noted_passes() as seen:
        train_step(state, made_up_batches("in_batch", 24, 1))
    return seen


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_grad_cache_s_second_pass_repeats_the_first_bit_by_bit(dtype: torch.dtype | None, packed: bool) -> None:
    """Dropout's draws too, which are the GPU's generator's; of another seed they are others."""
    encoder = with_dropout(roberta_encoder(), 0.1).to(CUDA)
    encoder.pack_texts(packed)
    seen, other = (embeddings_of_passes(copy.deepcopy(encoder), dtype, seed) for seed in (8, 9))
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == len(second) > 3
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(seen, other, strict=True))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_layers_made_twice_have_their_dropout_again(dtype: torch.dtype | None) -> None:
    gradients = []
    for twice in (False, True):
        encoder = with_dropout(roberta_encoder(), 0.3)
        if twice:
            encoder.enable_gradient_checkpointing()
        torch.manual_seed(7)
        gradients.append(gradient_on_gpu(encoder, "pairwise", dtype)[1])
    assert relative_error(gradients[1], gradients[0]) < 1e-5


def long_batch(triples: int) -> Batch:
    """Triple t is of query t and of passages 2t and 2t + 1, which have up to 180 tokens."""
    rng = np.random.default_rng(6)

    def gather(rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return ragged([rng.integers(3, VOCABULARY, 60 + 40 * (row % 4)).tolist() for row in rows_B.tolist()])

    place_T = np.arange(triples)
    return make_batch(Triples(place_T, 2 * place_T, 2 * place_T + 1), 0, 1, gather, gather)


def deep_encoder() -> RobertaDot:
    config = make_encoder(dropout=0.1).config
    config.num_hidden_layers = 12
    return RobertaDot(config)


def peak_bytes(encoder: RobertaDot, triples: int, grad_cache_tokens: int = 0) -> int:
    """Of a step, above what model and optimiser take."""
    state, batch = sgd_on_gpu(encoder, "pairwise", torch.bfloat16, grad_cache_tokens), long_batch(triples)
    before = torch.cuda.memory_allocated(CUDA)
    torch.cuda.reset_peak_memory_stats(CUDA)
    assert math.isfinite(train_step(state, [batch]))
    return torch.cuda.max_memory_allocated(CUDA) - before


def test_grad_cache_s_memory_is_a_micro_batch_s() -> None:
    """Four times the triples take hardly more; in one pass they take four times as much."""
    small, large = (peak_bytes(deep_encoder(), triples, 4096) for triples in (64, 256))
    assert large < 1.3 * small
    assert peak_bytes(deep_encoder(), 256) > 3 * large


def test_gradient_checkpointing_takes_less_memory() -> None:
    encoder = deep_encoder()
    whole = peak_bytes(copy.deepcopy(encoder), 64)
    encoder.enable_gradient_checkpointing()
    assert peak_bytes(encoder, 64) < 0.5 * whole


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("optimizer_name", ["lamb", "adamW"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_a_stored_run_resumes_to_the_same_bits(
    dtype: torch.dtype | None, optimizer_name: str, packed: bool, tmp_path: Path
) -> None:
    """With dropout, so that the state of the GPU's generator counts."""

    def state_of(encoder: Encoder) -> TrainingState:
        assert isinstance(encoder.to(CUDA), RobertaDot)
        encoder.pack_texts(packed)
        optimizer = make_optimizer(optimizer_name, encoder, 0.05, 1e-6, 0.01)
        return make_state(encoder, "pairwise", optimizer, linear_schedule(optimizer, 2, 20), ON_GPU, dtype, 1.0)

    batches = made_up_batches("pairwise", 16, 6)
    torch.manual_seed(5)
    whole = state_of(with_dropout(roberta_encoder(), 0.1))
    for batch in batches[:3]:
        train_step(whole, [batch])
    save_state(whole, tmp_path, [], {}, rng_states(ON_GPU))
    losses = [train_step(whole, [batch]) for batch in batches[3:]]
    resumed = state_of(load_encoder("rdot_nll", str(tmp_path)))
    torch.manual_seed(99)
    load_state(resumed, tmp_path, 3)
    assert [train_step(resumed, [batch]) for batch in batches[3:]] == losses
    assert torch.equal(flat_weights(whole.encoder), flat_weights(resumed.encoder))
    assert whole.scaler.get_scale() == resumed.scaler.get_scale()
