"""Texts as token ids: what an encoder is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class TokenBatch:
    """B texts back to back: text b is ``tokens_T[offsets_B1[b]:offsets_B1[b + 1]]``; int64 both, on one device.

    ``longest`` is the longest text's number of tokens, known here so that nobody has to ask a GPU for it.
    """

    tokens_T: torch.Tensor
    offsets_B1: torch.Tensor
    longest: int

    @staticmethod
    def of(tokens_T: torch.Tensor | np.ndarray, offsets_B1: torch.Tensor | np.ndarray) -> TokenBatch:
        """From arrays, as `data.tokens.token_cache` gathers them, or tensors."""
        tokens_T, offsets_B1 = torch.as_tensor(tokens_T), torch.as_tensor(offsets_B1)
        lengths_B = offsets_B1.diff()
        return TokenBatch(tokens_T, offsets_B1, int(lengths_B.max()) if len(lengths_B) else 0)

    def __len__(self) -> int:
        return len(self.offsets_B1) - 1

    @property
    def lengths_B(self) -> torch.Tensor:
        return self.offsets_B1.diff()

    @property
    def padded_tokens(self) -> int:
        """How many ids `padded` gives."""
        return len(self) * self.longest

    def to(self, device: torch.device) -> TokenBatch:
        tokens_T, offsets_B1 = (tensor.to(device, non_blocking=True) for tensor in (self.tokens_T, self.offsets_B1))
        return TokenBatch(tokens_T, offsets_B1, self.longest)

    def pin_memory(self) -> TokenBatch:
        """For copies that a GPU makes by itself."""
        return TokenBatch(self.tokens_T.pin_memory(), self.offsets_B1.pin_memory(), self.longest)

    def padded(self, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """ids_BL, padded to the longest text with ``pad_id``, and the mask_BL: 1 for tokens, 0 for padding; int64."""
        columns_L = torch.arange(self.longest, device=self.tokens_T.device)
        is_token_BL = columns_L < self.lengths_B[:, None]
        ids_BL = self.tokens_T.new_full(is_token_BL.shape, pad_id).masked_scatter(is_token_BL, self.tokens_T)
        return ids_BL, is_token_BL.to(torch.int64)

    def text_of_token(self) -> tuple[torch.Tensor, torch.Tensor]:
        """text_T, the text that each token belongs to, and column_T, its place in it."""
        count, device = len(self.tokens_T), self.tokens_T.device
        text_T = torch.arange(len(self), device=device).repeat_interleave(self.lengths_B, output_size=count)
        return text_T, torch.arange(count, device=device) - self.offsets_B1[text_T]

    def select(self, rows_P: torch.Tensor) -> TokenBatch:
        """The texts ``rows_P``, in that order."""
        lengths_P = self.lengths_B[rows_P]
        count, longest = torch.stack([lengths_P.sum(), lengths_P.max()]).tolist()
        offsets_P1 = torch.nn.functional.pad(lengths_P.cumsum(0), (1, 0))
        moved_P = self.offsets_B1[rows_P] - offsets_P1[:-1]
        place_T = moved_P.repeat_interleave(lengths_P, output_size=count)
        place_T += torch.arange(count, device=place_T.device)
        return TokenBatch(self.tokens_T[place_T], offsets_P1, longest)


def unpadded(ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> TokenBatch:
    """The texts of a padded batch whose padding stands behind them."""
    offsets_B1 = torch.nn.functional.pad(mask_BL.sum(1), (1, 0)).cumsum(0)
    return TokenBatch.of(ids_BL[mask_BL.bool()], offsets_B1)
