"""A batch's way to its device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.training.batches import Batch
from model.train.micro_batch import to_device

BATCH = Batch(
    query_tokens_T=np.array([5, 6, 7]),
    query_offsets_B1=np.array([0, 1, 3]),
    passage_tokens_T=np.array([8, 9, 10, 11]),
    passage_offsets_M1=np.array([0, 3, 4]),
    query_index_T=np.array([0, 1]),
    positive_index_T=np.array([0, 0]),
    negative_index_T=np.array([1, 1]),
    negative_rank_T=np.array([2, 3]),
)


def test_a_batch_arrives_as_it_is() -> None:
    moved = to_device(BATCH, torch.device("cpu"))
    assert moved.queries.tokens_T.tolist() == [5, 6, 7] and moved.queries.offsets_B1.tolist() == [0, 1, 3]
    assert moved.passages.tokens_T.tolist() == [8, 9, 10, 11] and moved.passages.longest == 3
    assert moved.triples.negative_index_T.tolist() == [1, 1] and moved.triples.allowed_TG is None
    assert moved.triples.negative_rank_T is not None and moved.triples.negative_rank_T.tolist() == [2, 3]


def test_no_device_is_asked_for_the_longest_text() -> None:
    """A device that has no values answers no such question; on a GPU each one would wait for all work before it."""
    meta = torch.device("meta")
    moved = to_device(BATCH, meta)
    assert (moved.queries.longest, moved.passages.longest) == (2, 3)
    assert moved.queries.tokens_T.device == moved.triples.query_index_T.device == meta
    with pytest.raises(RuntimeError, match="meta"):
        int(moved.passages.lengths_B.max())
