"""Ragged texts against lists of lists."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.token_batch import TokenBatch, unpadded
from tests.texts import listed, token_batch

PAD = 9
TEXTS = st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=7), min_size=1, max_size=6)


def texts_of(batch: TokenBatch) -> list[list[int]]:
    return listed(batch.tokens_T.numpy(), batch.offsets_B1.numpy())


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, data=st.data())
def test_texts_are_kept_whatever_is_done_to_them(texts: list[list[int]], data: st.DataObject) -> None:
    batch = token_batch(texts)
    longest = max(map(len, texts))
    assert (len(batch), batch.longest, batch.padded_tokens) == (len(texts), longest, len(texts) * longest)
    ids_BL, mask_BL = batch.padded(PAD)
    assert ids_BL.tolist() == [text + [PAD] * (longest - len(text)) for text in texts]
    assert mask_BL.tolist() == [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
    assert ids_BL.dtype == mask_BL.dtype == torch.int64
    again = unpadded(ids_BL, mask_BL)
    assert texts_of(again) == texts and again.longest == longest
    text_T, column_T = batch.text_of_token()
    assert [texts[b][i] for b, i in zip(text_T.tolist(), column_T.tolist(), strict=True)] == batch.tokens_T.tolist()
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    chosen = batch.select(torch.tensor(rows))
    assert texts_of(chosen) == [texts[row] for row in rows]
    assert chosen.longest == max(len(texts[row]) for row in rows)


def test_a_batch_without_texts() -> None:
    batch = token_batch([])
    assert (len(batch), batch.longest) == (0, 0) and batch.padded(PAD)[0].shape == (0, 0)
