"""Makes the report of runs, or of a study: report.html (one file, nothing else needed), report.md, pictures and JSON.

    python -m results.report results/runs/quickstart
    python -m results.report results/runs/study
    python -m results.report RUN_SEED_1 RUN_SEED_2 --output results/runs/both

A run's JSON is report.json (results/page/run.py), a study's summary.json (results/page/study.py). Several runs with
different seeds and the same arms are compared as a study is, and have both.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from results.page import run as run_report
from results.page import sections, study
from results.page.markdown import markdown_of, write_document
from results.page.splits import short_splits
from results.plots.curves import arm_names
from results.read.run import Run, arm_order, read_run
from results.read.study import Study, read_study
from utils.errors import UserError, run_program
from utils.exchange.atomic import listing, write_json
from utils.exchange.layout import REPORT_JSON, SEED_PATTERN, SUMMARY_JSON, ReportLayout, RunLayout
from utils.flag_values import LARGEST_INTEGER, Group, flag
from utils.flags import ProgramFlags, answer_dry_run, parse_flags
from utils.run_log import say

PICTURES = (*run_report.PICTURES, *study.PICTURES, *sections.PICTURES)


@dataclass(frozen=True, kw_only=True)
class ReportFlags(ProgramFlags):
    """Tables, tests, pictures and a page of runs or a study."""

    GROUP: ClassVar[Group] = "data"
    POSITIONAL: ClassVar[str] = "run_dir"
    EXAMPLE: ClassVar[str] = "python -m results.report results/runs/study --seeds 1 2 3 --output report"

    run_dir: list[str] = flag(
        help="run directories as quickstart.sh or study.sh leave them; the flag's name may be omitted", is_path=True
    )
    output: str = flag(
        "",
        "where the report is written; default RUN_DIR, and required where there are several",
        is_path=True,
        group="job",
    )
    seeds: list[int] | None = flag(
        None, "of a study: those to compare; default all that are there", at_least=0, at_most=LARGEST_INTEGER
    )
    arms: list[str] | None = flag(None, "of a study: those to compare; default all that are there in every seed")


# A study


def study_places(directory: Path, flags: ReportFlags) -> tuple[dict[int, Path], list[str]]:
    """The directories of the seeds, and the names of the arms. UserError where one is named twice, or none is there."""
    there = sorted(int(match[1]) for name in listing(directory) if (match := SEED_PATTERN.fullmatch(name)))
    seeds = there if flags.seeds is None else flags.seeds
    places = {seed: RunLayout(directory).seed(seed) for seed in seeds}
    every = [{name for name in listing(place) if not name.startswith(".")} for place in places.values()]
    shared = [directory / name for name in set.intersection(*every)] if every else []
    names = [path.name for path in sorted(shared, key=arm_order)] if flags.arms is None else flags.arms
    if len(set(names)) < len(names) or len(places) < len(seeds):
        raise UserError(f"--arms {names} --seeds {seeds}: one is named twice; name each once")
    if not names:
        raise UserError(f"{directory} has no arm that is there in every seed ({seeds}); train them, or name --arms")
    return places, names


def write_study(found: Study, tests: list[study.PairTest], directory: Path, output: Path) -> None:
    """Write a study's report, summary.json last: where it is new, all of it is.

    Args:
        found: The study.
        tests: Of every pair of its arms.
        directory: The study's, whose query map is shown.
        output: The directory to write.
    """
    warnings = [f"**Warning:** {warning}" for warning in found.warnings]
    parts, command = study.sections_of(found, tests, directory), study.study_command(found)
    text = markdown_of("What the rank of the negatives does", [*warnings, f"Made by `{command}`."], parts)
    write_document(output, text, parts, PICTURES)
    (ReportLayout(output).json).unlink(missing_ok=True)  # of a run whose report was here
    write_json(ReportLayout(output).summary, study.summary_of(found, tests, command))


def report_study(directory: Path, flags: ReportFlags) -> None:
    output = Path(flags.output) if flags.output else directory
    places, names = study_places(directory, flags)
    if answer_dry_run(flags, output=str(output), seeds=[*places], arms=names):
        return
    found = read_study(places, names)
    tests = study.compare(found, np.random.default_rng(study.TEST_SEED))
    write_study(found, tests, directory, output)
    for warning in found.warnings:
        say(f"warning: {warning}", sys.stderr)
    say(f"{study.short_table(found)}\n\n{study.sentence(found, tests)}")
    say_written(ReportLayout(output), SUMMARY_JSON)


# Runs


def study_of_runs(runs: list[Run]) -> tuple[Study | None, str]:
    """The runs' arms compared over the runs' seeds; or None, and why they cannot be."""
    arms = [name for name in arm_names(runs) if all(name in [arm.name for arm in run.arms] for run in runs)]
    if len(runs) < 2 or not arms:
        return None, "no arm is finished in all of them" if len(runs) > 1 else ""
    seeds = [next(arm.seed for arm in run.arms if arm.name == arms[0]) for run in runs]
    if None in seeds or len(set(seeds)) < len(seeds):
        return None, f"their seeds are {', '.join(map(str, seeds))}, expected each once"
    places = {int(seed or 0): RunLayout(run.directory).arms for seed, run in zip(seeds, runs, strict=True)}
    try:
        return read_study(places, arms), ""
    except UserError as reason:
        message = str(reason)
        for run in runs:  # a report may be sent to others
            message = message.replace(str(run.directory), run.name)
        return None, message


def report_runs(directories: list[Path], flags: ReportFlags) -> None:
    if len(directories) > 1 and not flags.output:
        raise UserError(f"{len(directories)} run directories and no --output: say where their report goes")
    if flags.seeds is not None or flags.arms is not None:
        raise UserError("--seeds and --arms are of a study's directory, which has a seed-N in it; omit them")
    runs = [read_run(path, name) for path, name in zip(directories, run_names(directories), strict=True)]
    output = Path(flags.output) if flags.output else directories[0]
    if answer_dry_run(flags, output=str(output)):
        return
    compared, reason = study_of_runs(runs)
    tests = study.compare(compared, np.random.default_rng(study.TEST_SEED)) if compared is not None else []
    write_runs(runs, compared, tests, reason, output)
    say_warnings(runs)
    if compared is not None:
        say(f"{study.short_table(compared)}\n\n{study.sentence(compared, tests)}")
    elif reason:
        say(f"{run_report.table_over_runs(runs)}\n\nMeans over the runs; the arms are not compared: {reason}.")
    else:
        parts = [run_report.short_table(runs[0]), short_splits(runs[0]), run_report.sentence(runs[0])]
        say("\n\n".join(filter(None, parts)))
    say_written(ReportLayout(output), REPORT_JSON)


def say_warnings(runs: list[Run]) -> None:
    for warning in run_report.warnings_across(runs):
        say(f"warning: {warning}", sys.stderr)
    for run in runs:
        for warning in run_report.warnings_of(run):
            say(f"warning: {run.name}: {warning}", sys.stderr)


def write_runs(runs: list[Run], compared: Study | None, tests: list[study.PairTest], reason: str, output: Path) -> None:
    """Write a report, report.json last: where it is new, all of it is.

    Args:
        runs: One, or several of other seeds.
        compared: Their arms as a study's; None where they cannot be compared, or there is one run.
        tests: Of every pair of the study's arms.
        reason: Why several are not compared, else "".
        output: The directory to write.
    """
    parts, summary = run_report.run_sections(runs, compared), None
    if compared is not None:
        parts = [*study.study_sections(compared, tests), *parts]
        command = shlex.join(["python", "-m", "results.report", *(run.name for run in runs)])
        summary = study.summary_of(compared, tests, command)
    warnings = [f"**Warning:** The arms are not compared over the runs: {reason}."] if reason else []
    text = markdown_of(run_report.title_of(runs), [*warnings, *run_report.blocks_of(runs)], parts)
    write_document(output, text, parts, PICTURES)
    if summary is None:
        (ReportLayout(output).summary).unlink(missing_ok=True)  # of an earlier report, which this one replaces
    else:
        write_json(ReportLayout(output).summary, summary)
    write_json(ReportLayout(output).json, run_report.report_of_all(runs))


def say_written(report: ReportLayout, numbers: str) -> None:
    say(f"wrote {report.html}, {report.markdown.name}, {numbers} and the pictures next to it")


def run_names(directories: list[Path]) -> list[str]:
    """The directories' own names where they tell the runs apart, else their paths."""
    names = [directory.resolve().name for directory in directories]
    names = names if len(set(names)) == len(names) else [str(directory) for directory in directories]
    if len(set(names)) < len(names):
        raise UserError(f"a run directory is named twice ({', '.join(names)}), expected each once: omit one")
    return names


def main() -> None:
    flags = parse_flags(ReportFlags, "report")
    directories = [Path(directory) for directory in flags.run_dir]
    if len(directories) == 1 and any(SEED_PATTERN.fullmatch(name) for name in listing(directories[0])):
        report_study(directories[0], flags)
    else:
        report_runs(directories, flags)


if __name__ == "__main__":
    run_program("report", main)
