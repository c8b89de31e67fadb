"""Texts as lists of token ids, and as the programs have them: back to back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from model.token_batch import TokenBatch


def ragged(texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """tokens_T and offsets_B1, int64, as `data.tokens.token_cache.TokenCache.gather` gives them."""
    tokens = [token for text in texts for token in text]
    return np.array(tokens, np.int64), np.cumsum([0, *map(len, texts)], dtype=np.int64)


def listed(tokens_T: np.ndarray, offsets_B1: np.ndarray) -> list[list[int]]:
    """The way back, one text after the other."""
    return [tokens_T[start:stop].tolist() for start, stop in pairwise(offsets_B1.tolist())]


def token_batch(texts: Sequence[Sequence[int]]) -> TokenBatch:
    return TokenBatch.of(*ragged(texts))
