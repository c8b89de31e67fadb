"""What `python drivers/run_ann.py` finds in place of the package: it says how to start, and ends with exit code 2.

Python then looks for every import in this folder first, and the programs import from ``drivers`` before anything else.
Started as they should be, with ``-m`` from the repository root, they never see this file.
"""

import sys
from pathlib import Path

program = Path(sys.argv[0]).stem if sys.argv[0].endswith(".py") else "PROGRAM"
sys.stderr.write(
    f"{program}: error: start from the repository root: python -m drivers.{program} "
    f"(several processes: torchrun --nproc_per_node N -m drivers.{program})\n"
)
sys.exit(2)
