"""A training batch's texts through the encoder in micro-batches, each of texts of similar length.

So little is padded, and on a CPU what a layer makes stays in the cache. All micro-batches together give what one batch
gives: their activations are kept for the gradient, or made a second time (`cached_backward`). A micro-batch here is a
part of one `MicroBatch` of model/train/micro_batch.py, of which an optimiser step has several.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from model.encode import plan_batches
from model.encoders.base import Encoder
from model.encoders.spec import Side
from model.token_batch import TokenBatch

Autocast = Callable[[], AbstractContextManager[object]]


def plan_micro_batches(lengths_B: torch.Tensor, budget_tokens: int) -> list[torch.Tensor]:
    """The rows of each micro-batch, on the lengths' device."""
    plan = plan_batches(lengths_B.cpu().numpy(), 0, budget_tokens)
    return [torch.from_numpy(rows_P).to(lengths_B.device) for rows_P in plan]


def encode_micro_batch(encoder: Encoder, tokens: TokenBatch, side: Side, rows_P: torch.Tensor) -> torch.Tensor:
    """Some texts of a batch through the encoder.

    Args:
        encoder: in the mode and the autocast that the caller has set.
        tokens: the batch's B texts.
        side: which of the encoder's.
        rows_P: int64, which texts.

    Returns:
        Embeddings [P, D], or [P, R, D], with their graph.
    """
    return encoder.encode(tokens.select(rows_P), side).filled()


def unsort(parts: list[torch.Tensor], plan: list[torch.Tensor]) -> torch.Tensor:
    """The rows of all micro-batches as the batch has them."""
    return torch.cat(parts)[torch.argsort(torch.cat(plan))]


def encode_in_micro_batches(
    encoder: Encoder, tokens: TokenBatch, side: Side, budget_tokens: int | None
) -> torch.Tensor:
    """A batch's texts through the encoder, those of similar length together.

    Args:
        encoder: in the mode and the autocast that the caller has set.
        tokens: B texts.
        side: which of the encoder's.
        budget_tokens: of a micro-batch, padding included; None for a single micro-batch.

    Returns:
        Embeddings [B, D], or [B, R, D], in the batch's order, with their graph.
    """
    if budget_tokens is None or tokens.padded_tokens <= budget_tokens:
        return encoder.encode(tokens, side).filled()
    plan = plan_micro_batches(tokens.lengths_B, budget_tokens)
    return unsort([encode_micro_batch(encoder, tokens, side, rows_P) for rows_P in plan], plan)


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
    autocast: Autocast,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
) -> torch.Tensor:
    """The loss, and its gradients as of one large batch, in the memory of a micro-batch.

    GradCache: Gao et al. 2021, arXiv 2101.06983.

    Args:
        encoder: whose weights get the gradients.
        texts: batches, each of one side.
        loss_of: takes their embeddings, in this order.
        budget_tokens: of a micro-batch, which is made twice with the same dropout, and gives the same bits.
        autocast: makes the context in which all of it is computed, again for each use.
        scale: the gradient scaler's.
    """
    plans = [plan_micro_batches(tokens.lengths_B, budget_tokens) for tokens, _ in texts]
    # The paper's step 1.
    with autocast():
        cached, states = embeddings_to_cache(encoder, texts, plans)
    # Step 2, representation gradient computation and caching.
    with autocast():
        loss = loss_of(*cached)
    scale(loss).backward()
    # Step 3, sub-batch gradient accumulation.
    backward_again(encoder, texts, plans, cached, states, autocast)
    return loss.detach()


def embeddings_to_cache(
    encoder: Encoder, texts: list[tuple[TokenBatch, Side]], plans: list[list[torch.Tensor]]
) -> tuple[list[torch.Tensor], list[RngState]]:
    """The embeddings of each batch, which a gradient may be asked of; and the generators before each micro-batch.

    A side that is frozen has embeddings without a gradient, and no generators: it is not encoded twice.
    Each micro-batch has its graph, which is dropped at once: where no gradient may be asked for, other code computes
    (shapes are rounded up, a compiled model is another program), and step 3 would not repeat it.
    """
    cached, states = [], []
    for (tokens, side), plan in zip(texts, plans, strict=True):
        parts, is_trained = [], False
        for rows_P in plan:
            before = RngState.capture(tokens.tokens_T.device)
            part = encode_micro_batch(encoder, tokens, side, rows_P)
            is_trained = part.requires_grad
            states.extend([before] if is_trained else [])
            parts.append(part.detach())
        cached.append(unsort(parts, plan).requires_grad_(is_trained))
    return cached, states


def backward_again(
    encoder: Encoder,
    texts: list[tuple[TokenBatch, Side]],
    plans: list[list[torch.Tensor]],
    cached: list[torch.Tensor],
    states: list[RngState],
    autocast: Autocast,
) -> None:
    """Every micro-batch a second time, from the same generators, to bring the embeddings' gradients to the weights.

    Args:
        encoder: whose weights get the gradients.
        texts: batches, each of one side.
        plans: each batch's micro-batches.
        cached: each batch's embeddings, with their gradients.
        states: the generators before each micro-batch, in the order of `embeddings_to_cache`.
        autocast: as of `cached_backward`.
    """
    device, in_order = texts[0][0].tokens_T.device, iter(states)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for (tokens, side), plan, embeddings_BD in zip(texts, plans, cached, strict=True):
            if not embeddings_BD.requires_grad:
                continue
            assert embeddings_BD.grad is not None
            for rows_P in plan:
                next(in_order).restore(device)
                with autocast():
                    again_PD = encode_micro_batch(encoder, tokens, side, rows_P)
                again_PD.backward(embeddings_BD.grad[rows_P])
