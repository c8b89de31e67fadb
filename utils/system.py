"""The machine: how many cores, how much disk, and the C library's allocator, which torch's CPU tensors come from."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from pathlib import Path

BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own
UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER = -1  # as a trim threshold


def core_count() -> int:
    """The cores this process may use: what Slurm or taskset has left it, not what the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def disk_used(path: Path) -> int:
    """Bytes on the disk of a file, or of everything below a directory; what vanishes meanwhile counts as nothing.

    A sparse file takes what is written of it, and a file of two names counts once.
    """
    total, several_names = 0, set()
    places = [path]
    while places:
        place = places.pop()
        with contextlib.suppress(OSError):
            status = place.lstat()
            if status.st_nlink > 1 and not place.is_dir():
                if (status.st_dev, status.st_ino) in several_names:
                    continue
                several_names.add((status.st_dev, status.st_ino))
            total += status.st_blocks * BLOCK_BYTES
            if place.is_dir() and not place.is_symlink():
                places.extend(Path(entry) for entry in os.scandir(place))
    return total


def free_bytes(directory: Path) -> int:
    """What this user may still write in ``directory``, or where it will be made. A quota is not seen."""
    for place in (directory, *directory.absolute().parents):
        if place.is_dir():
            return shutil.disk_usage(place).free
    raise FileNotFoundError(directory)


def in_bytes(count: float) -> str:
    """4200000 -> '4.2 MB'"""
    for size, unit in UNITS:
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} bytes"


def keep_freed_memory() -> None:
    """What this process frees it keeps for itself, and so stays about as large as it ever was.

    Every batch takes the same megabytes and frees them, a training step gigabytes. glibc gives large pieces back to the
    system, which clears each page again when the next batch touches it. It holds for the first thread, which computes:
    glibc unmaps the others' empty heaps all the same. Nothing changes where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
