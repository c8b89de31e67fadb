"""Which floating-point type the model computes in, from ANCE's and today's flags."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from utils.errors import UserError

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_GPU_WITH_BF16 = (8, 0)  # compute capability: A100


def compute_dtype(
    dtype: str | None, fp16: bool, bf16: bool, fp16_opt_level: str, default: str, quickest: torch.dtype | None
) -> torch.dtype | None:
    """The type to compute in, None for float32. apex's levels: O0 is float32, O1 (its default) is autocast.

    Args:
        dtype, fp16, bf16, fp16_opt_level: the flags of these names.
        default: the word of --dtype that no flag means.
        quickest: what the word auto means.

    Raises:
        UserError: flags contradict each other, or name one of the two levels that only apex.amp could do.
    """
    if fp16_opt_level in ("O2", "O3"):
        raise UserError(
            f"--fp16_opt_level {fp16_opt_level} needs apex.amp, which NVIDIA has removed; "
            "use O1 (autocast, with float32 weights) or --bf16"
        )
    if fp16_opt_level not in ("O0", "O1"):
        raise UserError(f"--fp16_opt_level is {fp16_opt_level!r}, expected O0 or O1")
    given = {"--fp16": "fp16" if fp16 else None, "--bf16": "bf16" if bf16 else None, f"--dtype {dtype}": dtype}
    words = {flag: word for flag, word in given.items() if word}
    if len(set(words.values())) > 1:
        raise UserError(f"{' and '.join(words)} are both given; choose one")
    word = next(iter(words.values()), default)
    if word == "fp16" and fp16_opt_level == "O0":
        return None
    return quickest if word == "auto" else DTYPES[word]


def is_quick_at_bfloat16(device: torch.device) -> bool:
    """Whether the hardware is known to multiply its matrices quicker than float32's; of CPUs torch 2.12 tells first."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= FIRST_GPU_WITH_BF16
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def quickest_dtype(device: torch.device) -> torch.dtype | None:
    """Of a model with layers of products: bfloat16 where this hardware is quick at it, else None."""
    return torch.bfloat16 if is_quick_at_bfloat16(device) else None


def name_of(dtype: torch.dtype | None) -> str:
    """As torch spells it: None is float32."""
    return str(dtype or torch.float32).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def encodes_in_bfloat16_on_cpu() -> bool:
    """Whether autocast is on for it now, and nobody may ask for a gradient."""
    is_in_bfloat16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_in_bfloat16 and not torch.is_grad_enabled()
