"""Which floating-point type the model computes in, from ANCE's and today's flags."""

from __future__ import annotations

import contextlib

import torch

from utils.errors import UserError


def autocast_dtype(fp16: bool, bf16: bool, fp16_opt_level: str) -> torch.dtype | None:
    """The type torch autocasts to; None is plain float32.

    apex's levels: O0 is float32, O1 (its default) is autocast. UserError for the two that only
    apex.amp could do, and for flags that contradict each other.
    """
    if fp16_opt_level in ("O2", "O3"):
        raise UserError(
            f"--fp16_opt_level {fp16_opt_level} needs apex.amp, which NVIDIA has removed; "
            "use O1 (autocast, with float32 weights) or --bf16"
        )
    if fp16_opt_level not in ("O0", "O1"):
        raise UserError(f"--fp16_opt_level is {fp16_opt_level!r}, expected O0 or O1")
    if fp16 and bf16:
        raise UserError("--fp16 and --bf16 are both given; choose one")
    if fp16_opt_level == "O0" and fp16:
        return None
    if fp16:
        return torch.float16
    return torch.bfloat16 if bf16 else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
