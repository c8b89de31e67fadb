"""How many processes are worth starting."""

from __future__ import annotations

import os
import sys


def core_count() -> int:
    """The cores this process may use: what Slurm or taskset has left it, not what the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
