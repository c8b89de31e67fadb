"""Toys: one file each, which registers something at a seam and starts a program that knows nothing of it.

python -m tests.toys.NAME drivers.run_ann FLAGS…
"""

import importlib
import sys

from utils.errors import run_program


def start(argv: list[str]) -> None:
    """Call the ``main`` of the program ``argv[0]`` with the flags that follow, as `python -m` would."""
    program, *sys.argv[1:] = argv
    run_program(program.rpartition(".")[2], importlib.import_module(program).main)
