"""Looks at a collection, a model and the machine, and chooses the settings of a run: what quickstart.sh --data_dir does
first.

    python -m drivers.run_plan --data_dir RAW --model_name_or_path MODEL --cores 2 --output plan.tsv

It says what it found and chose, in lines, and writes the settings as a table of three columns: name, value, why.
The choices are made in drivers/plan/plan.py.
"""

from __future__ import annotations

from drivers.cli.plan import PlanFlags
from utils.errors import run_program
from utils.program import run_from_command_line


def main() -> None:
    run_from_command_line(
        "run_plan",
        PlanFlags,
        preflight="drivers.plan.planner:preflight",
        run="drivers.plan.planner:run",
    )


if __name__ == "__main__":
    run_program("run_plan", main)
