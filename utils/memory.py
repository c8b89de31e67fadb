"""The C library's allocator, which torch's tensors on a CPU come from."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER = -1  # as a trim threshold


def keep_freed_memory() -> None:
    """What this process frees it keeps for itself, and so stays about as large as it ever was.

    Every batch takes the same megabytes and frees them, a training step gigabytes. glibc gives large pieces back to the
    system, which clears each page anew when the next batch touches it. It holds for the first thread, which computes:
    glibc unmaps the others' empty heaps all the same. Nothing changes where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
