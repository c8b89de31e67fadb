"""What the tests share that need a GPU: its device, and the mark that skips them where there is none."""

from __future__ import annotations

import pytest
import torch

from utils.distributed.world import World

CUDA = torch.device("cuda", 0)
ON_GPU = World(0, 1, CUDA)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference as a part of the norm; from and to any device, in float64."""
    expected = expected.detach().double().cpu()
    return float((found.detach().double().cpu() - expected).norm() / expected.norm())
