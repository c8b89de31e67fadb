"""Whether embeddings can be searched: all numbers finite, and their inner products numbers that float32 holds."""

from __future__ import annotations

import numpy as np

LARGEST_NORM = 1e18  # an inner product of two such, and each sum on the way to it, stays far below float32's 3e38


def problem_of(embeddings_XD: np.ndarray) -> str:
    """What keeps embeddings [X, D] from being searched, in words that follow theirs; "" where nothing does."""
    with np.errstate(over="ignore", invalid="ignore"):
        largest = float(np.sqrt(np.einsum("xd,xd->x", embeddings_XD, embeddings_XD).max(initial=0)))
    if largest <= LARGEST_NORM:
        return ""
    if not np.isfinite(embeddings_XD).all():
        return "are not finite"
    norm = np.linalg.norm(embeddings_XD.astype(np.float64), axis=1).max()
    return f"have norms of up to {norm:.3g}, expected at most {LARGEST_NORM:g}, whose inner products float32 holds"
