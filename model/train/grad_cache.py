"""A training batch's texts through the encoder in several passes, each of texts of similar length.

So little is padded, and on a CPU what a layer makes stays in the cache. All passes together give what one gives:
their activations are kept for the gradient, or made a second time (`cached_backward`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from model.encode import plan_batches
from model.encoders.base import Encoder
from model.encoders.spec import Side
from model.token_batch import TokenBatch


def plan_micro_batches(lengths_B: torch.Tensor, budget_tokens: int) -> list[torch.Tensor]:
    """The rows of each pass, on the lengths' device."""
    plan = plan_batches(lengths_B.cpu().numpy(), 0, budget_tokens)
    return [torch.from_numpy(rows_P).to(lengths_B.device) for rows_P in plan]


def encode_micro_batch(encoder: Encoder, tokens: TokenBatch, side: Side, rows_P: torch.Tensor) -> torch.Tensor:
    """The embeddings [P, D] of some texts of the batch, or [P, R, D]."""
    return encoder.encode(tokens.select(rows_P), side).filled()


def unsort(parts: list[torch.Tensor], passes: list[torch.Tensor]) -> torch.Tensor:
    """The rows of all passes as the batch has them."""
    return torch.cat(parts)[torch.argsort(torch.cat(passes))]


def encode_in_micro_batches(
    encoder: Encoder, tokens: TokenBatch, side: Side, budget_tokens: int | None
) -> torch.Tensor:
    """The embeddings [B, D], or [B, R, D], with their graph; None for the budget is a single pass."""
    if budget_tokens is None or tokens.padded_tokens <= budget_tokens:
        return encoder.encode(tokens, side).filled()
    passes = plan_micro_batches(tokens.lengths_B, budget_tokens)
    return unsort([encode_micro_batch(encoder, tokens, side, rows_P) for rows_P in passes], passes)


@dataclass
class RngState:
    """The generators that dropout draws from."""

    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @staticmethod
    def capture(device: torch.device) -> RngState:
        return RngState(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


def cached_backward(
    encoder: Encoder,
    texts: list[tuple[TokenBatch, Side]],
    loss_of: Callable[..., torch.Tensor],
    budget_tokens: int,
    autocast: Callable[[], Any],
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
) -> torch.Tensor:
    """The loss, and its gradients as of one large batch, in the memory of a pass.

    GradCache: Gao et al. 2021, arXiv 2101.06983.
    ``texts`` are batches, each of one side, whose embeddings ``loss_of`` takes in this order. Every pass is made twice
    with the same dropout, and gives the same bits. ``autocast`` is a context made again for each use; ``scale`` is the
    gradient scaler's.
    """
    device = texts[0][0].tokens_T.device
    all_passes = [plan_micro_batches(tokens.lengths_B, budget_tokens) for tokens, _ in texts]
    # The paper's step 1. Each pass has its graph, which is dropped at once: where no gradient may be asked for, other
    # code computes (shapes are rounded up, a compiled model is another program), and step 3 would not repeat it.
    cached, states = [], []
    with autocast():
        for (tokens, side), passes in zip(texts, all_passes, strict=True):
            parts = []
            for rows_P in passes:
                states.append(RngState.capture(device))
                parts.append(encode_micro_batch(encoder, tokens, side, rows_P).detach())
            cached.append(unsort(parts, passes).requires_grad_())
    # Step 2, representation gradient computation and caching.
    with autocast():
        loss = loss_of(*cached)
    scale(loss).backward()
    # Step 3, sub-batch gradient accumulation.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for (tokens, side), passes, embeddings_BD in zip(texts, all_passes, cached, strict=True):
            assert embeddings_BD.grad is not None
            for rows_P in passes:
                states.pop(0).restore(device)
                with autocast():
                    again_PD = encode_micro_batch(encoder, tokens, side, rows_P)
                again_PD.backward(embeddings_BD.grad[rows_P])
    return loss.detach()
