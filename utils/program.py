"""The main of every program that loads a model: its flags, what is looked at first, and its work."""

from __future__ import annotations

import importlib
import sys
from pkgutil import resolve_name

from utils.errors import run_program
from utils.flags import ProgramFlags, flags_json, parse_flags


def run_from_command_line(
    program: str, flags_class: type[ProgramFlags], *, preflight: str, run: str, resolved_of: str = ""
) -> None:
    """Parse the flags, look for what would fail later, and do the work; a --dry_run says what would be done.

    The three functions are given as "module:name", and imported once the flags are parsed: ``--help`` and a wrong flag
    answer without torch.

    Args:
        program: its name, for messages.
        flags_class: its flags.
        preflight: makes a job of them; the job has their ``flag_values`` by name, as resolved.
        run: does the job.
        resolved_of: the job's values that a --dry_run says next to the flags.

    Raises:
        UserError: and what else the functions raise.
    """
    flags = parse_flags(flags_class, program)
    job = resolve_name(preflight)(flags)
    if flags.dry_run:
        resolved = resolve_name(resolved_of)(job) if resolved_of else {}
        sys.stdout.write(flags_json(job.flag_values, **resolved) + "\n")
    else:
        resolve_name(run)(job)


def start(argv: list[str]) -> None:
    """Start a program from a file that has registered something of its own; the program knows nothing of it.

    Args:
        argv: the program's module, as after ``python -m``, and its flags.
    """
    program, *sys.argv[1:] = argv
    run_program(program.rpartition(".")[2], importlib.import_module(program).main)
