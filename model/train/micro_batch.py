"""A micro-batch on its device: the tokens of both sides, and which of their rows make up each triple."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from model.token_batch import TokenBatch


class BatchArrays(Protocol):
    """What is read of `data.training.batches.Batch`, which says what each array holds."""

    @property
    def query_tokens_T(self) -> np.ndarray: ...
    @property
    def query_offsets_B1(self) -> np.ndarray: ...
    @property
    def passage_tokens_T(self) -> np.ndarray: ...
    @property
    def passage_offsets_M1(self) -> np.ndarray: ...
    @property
    def query_index_T(self) -> np.ndarray: ...
    @property
    def positive_index_T(self) -> np.ndarray: ...
    @property
    def negative_index_T(self) -> np.ndarray: ...
    @property
    def allowed_TG(self) -> np.ndarray | None: ...
    @property
    def target_T(self) -> np.ndarray | None: ...
    @property
    def negative_rank_T(self) -> np.ndarray | None: ...


@dataclass(frozen=True)
class TripleRows:
    """The arrays of `BatchArrays` of the same names, as tensors."""

    query_index_T: torch.Tensor
    positive_index_T: torch.Tensor
    negative_index_T: torch.Tensor
    allowed_TG: torch.Tensor | None
    target_T: torch.Tensor | None
    negative_rank_T: torch.Tensor | None


@dataclass(frozen=True)
class MicroBatch:
    """All on one device. The longest texts are known from the arrays: no GPU is asked for them."""

    queries: TokenBatch
    passages: TokenBatch
    triples: TripleRows


def to_device(batch: BatchArrays, device: torch.device) -> MicroBatch:
    def moved(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    def moved_if_there(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else moved(array)

    return MicroBatch(
        TokenBatch.of(batch.query_tokens_T, batch.query_offsets_B1).to(device),
        TokenBatch.of(batch.passage_tokens_T, batch.passage_offsets_M1).to(device),
        TripleRows(
            moved(batch.query_index_T),
            moved(batch.positive_index_T),
            moved(batch.negative_index_T),
            moved_if_there(batch.allowed_TG),
            moved_if_there(batch.target_T),
            moved_if_there(batch.negative_rank_T),
        ),
    )
