"""Makes the report of one or more runs: report.json, report.md and the pictures, and prints the table.

    python -m results.report results/runs/quickstart
    python -m results.report RUN_SEED_1 RUN_SEED_2 --output results/runs/both

``report.json`` of one run is ``{"collection", "bm25", "warmup", "arms"}``; of several it is ``{"runs": {NAME: that}}``.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.plots import arm_names, figures, save
from results.read_log import words_to_flag
from results.run_directory import METRICS, Evaluation, Run, read_run
from utils.errors import UserError, run_program
from utils.flags import ProgramFlags, flag, flags_json, parse_flags
from utils.publishing import staging_path, sync, write_json
from utils.run_log import say

HEADINGS = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "map@10": "MAP@10", "recall@100": "recall@100"}
NOISE = (
    "Neighbouring arms of one run differ by less than the noise between seeds: "
    "read no order into them without several seeds."
)
CAPTIONS = {
    "dev.png": "Dev metrics of the checkpoint that each refresh was made from, and of the last one (large marker); "
    "the dashed line is the warmup checkpoint, which every arm starts from.",
    "loss.png": "Training loss. Each arm's loss is on its own negatives: the harder they are the higher it is, "
    "so its level says nothing about which arm ranks better.",
    "dev_by_refresh.png": "Dev nDCG@10 by refresh number, with the four arms of the student fork in grey "
    "(10% of MS MARCO, 724 dev queries; see results/published/README.md): shapes compare, levels do not.",
}


def report_of(run: Run) -> dict[str, Any]:
    """The contract of report.json."""
    return {
        "collection": run.collection,
        "bm25": run.bm25.metrics,
        "warmup": run.warmup.metrics,
        "arms": {
            arm.name: {
                **arm.evaluation.metrics,
                "steps": arm.steps,
                "refreshes": arm.refreshes,
                "seconds": arm.seconds,
            }
            for arm in run.arms
        },
    }


def align(rows: list[list[str]]) -> str:
    """A Markdown table that also reads well as plain text; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def gain(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.1f}%" if base > 0 else "n/a"


def table(run: Run) -> str:
    """BM25, the warmup and the arms, each with its gain in MRR@10 over the warmup."""

    def row(name: str, evaluation: Evaluation, *rest: str) -> list[str]:
        return [name, *(f"{evaluation.metrics[metric]:.4f}" for metric in METRICS), *(rest or ("", "", "", ""))]

    heading = ["", *HEADINGS.values(), "MRR@10 over warmup", "steps", "refreshes", "seconds"]
    rows = [heading, row("BM25", run.bm25), row("warmup", run.warmup)]
    base = run.warmup.metrics["mrr@10"]
    for arm in run.arms:
        over = gain(arm.evaluation.metrics["mrr@10"], base)
        rest = (over, f"{arm.steps:,}", f"{arm.refreshes:,}", f"{arm.seconds:,.1f}")
        rows.append(row(arm.name, arm.evaluation, *rest))
    return align(rows)


def table_over_runs(runs: list[Run]) -> str:
    """Mean and standard deviation over the runs that finished an arm."""
    rows = [["", "runs", *HEADINGS.values()]]
    for name in ["warmup", *arm_names(runs)]:
        found = [run.warmup for run in runs] if name == "warmup" else []
        found = found or [arm.evaluation for run in runs for arm in run.arms if arm.name == name]
        cells = []
        for metric in METRICS:
            values = [evaluation.metrics[metric] for evaluation in found]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        rows.append([name, str(len(found)), *cells])
    return align(rows)


def short_path(path: str, directory: Path) -> str:
    """``path`` from ``directory`` where it lies in it, else as it is."""
    resolved = Path(path).resolve()
    inside = resolved.is_relative_to(directory.resolve())
    return str(resolved.relative_to(directory.resolve())) if inside else path


def what_was_run(run: Run) -> list[str]:
    """One list item for the collection, the warmup and each arm."""
    count = run.collection
    at_step = f", step {run.warmup.step:,}" if run.warmup.step is not None else ""
    lines = [
        f"- collection: {count['passages']:,} passages, {count['train_queries']:,} train queries, "
        f"{count['dev_queries']:,} dev queries",
        f"- warmup: `{short_path(run.warmup.model, run.directory)}`{at_step}; every arm starts from it",
    ]
    for arm in run.arms:
        strategy = f"negatives `{arm.strategy}`, " if arm.strategy else ""
        seed = f", seed {arm.seed}" if arm.seed is not None else ""
        lines.append(
            f"- {arm.name}: {strategy}{arm.steps:,} steps, {arm.refreshes:,} refreshes taken up, "
            f"{arm.seconds:,.1f} s of the trainer{seed}; `{short_path(arm.evaluation.model, run.directory)}`"
        )
    return lines


def warnings_of(run: Run) -> list[str]:
    """What a reader must know before comparing, one sentence each."""
    left_out = [f"The arm {name} is not finished and left out: {reason}." for name, reason in run.unfinished.items()]
    return [*left_out, *run.warnings]


def warnings_across(runs: list[Run]) -> list[str]:
    """What makes a mean over these runs doubtful."""
    collections = {run.name: ", ".join(f"{count:,} {what}" for what, count in run.collection.items()) for run in runs}
    if len(set(collections.values())) == 1:
        return []
    listed = "; ".join(f"{name}: {counts}" for name, counts in collections.items())
    return [f"The runs are on different collections ({listed}): their mean has no meaning."]


def markdown(runs: list[Run], pictures: list[str]) -> str:
    """The text of report.md."""
    blocks = ["# " + ("Report of " + runs[0].name if len(runs) == 1 else f"Report of {len(runs)} runs")]
    if len(runs) > 1:
        blocks += ["Mean over the runs ± standard deviation:", table_over_runs(runs)]
        blocks += [f"**Warning:** {warning}" for warning in warnings_across(runs)]
    for run in runs:
        blocks += [f"## {run.name}"] if len(runs) > 1 else []
        blocks.append(table(run))
        warnings = warnings_of(run)
        if warnings:
            blocks.append("\n".join(f"- **Warning:** {warning}" for warning in warnings))
        blocks += ["What was run:", "\n".join(what_was_run(run))]
    blocks.append(
        "Metrics are means over all dev queries; one without an answer counts as zero. "
        f"Seconds are the trainer's wall time. **{NOISE}**"
    )
    blocks += [f"![{name.removesuffix('.png')}]({name})\n\n{CAPTIONS[name]}" for name in pictures]
    return "\n\n".join(blocks) + "\n"


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Make ``path`` whole or not at all; ``write`` fills a staged file."""
    with staging_path(path.parent, path.name) as staged:
        write(staged)
        sync(staged)
        staged.replace(path)
    sync(path.parent)


def write_report(runs: list[Run], output: Path) -> None:
    """Pictures first, report.json last: where it is new, all of it is."""
    output.mkdir(parents=True, exist_ok=True)
    pictures = figures(runs)
    for name, figure in pictures.items():
        publish(output / name, functools.partial(save, figure))
    for name in CAPTIONS.keys() - pictures.keys():
        (output / name).unlink(missing_ok=True)  # of an earlier report, which this one replaces
    text = markdown(runs, list(pictures))
    publish(output / "report.md", lambda staged: staged.write_text(text, encoding="utf-8"))
    several = {"runs": {run.name: report_of(run) for run in runs}}
    write_json(output / "report.json", report_of(runs[0]) if len(runs) == 1 else several)


def run_names(directories: list[Path]) -> list[str]:
    """The directories' own names where they tell the runs apart, else their paths."""
    names = [directory.resolve().name for directory in directories]
    names = names if len(set(names)) == len(names) else [str(directory) for directory in directories]
    if len(set(names)) < len(names):
        raise UserError(f"a run directory is named twice ({', '.join(names)}), expected each once: leave one out")
    return names


@dataclass(frozen=True, kw_only=True)
class ReportFlags(ProgramFlags):
    """Table, report.json and pictures of runs: `python -m results.report RUN_DIR... [--output DIR]`."""

    run_dir: list[str] = flag(  # noqa: RUF009
        help="run directories as commands/quickstart.sh leaves them; the flag's name may be left out"
    )
    output: str = flag("", "where the report is written; default RUN_DIR, and required where there are several")


def main() -> None:
    flags = parse_flags(ReportFlags, "report", words_to_flag(sys.argv[1:], "run_dir"))
    directories = [Path(directory) for directory in flags.run_dir]
    if len(directories) > 1 and not flags.output:
        raise UserError(f"{len(directories)} run directories and no --output: say where their report goes")
    runs = [read_run(path, name) for path, name in zip(directories, run_names(directories), strict=True)]
    output = Path(flags.output) if flags.output else directories[0]
    if flags.dry_run:
        sys.stdout.write(flags_json(flags, output=str(output)) + "\n")
        return
    write_report(runs, output)
    for warning in warnings_across(runs):
        say(f"warning: {warning}", sys.stderr)
    for run in runs:
        for warning in warnings_of(run):
            say(f"warning: {run.name}: {warning}", sys.stderr)
        say(table(run) if len(runs) == 1 else f"{run.name}\n{table(run)}\n")
    if len(runs) > 1:
        say(f"mean over the runs ± standard deviation\n{table_over_runs(runs)}")
    say(f"{NOISE}\nwrote {output / 'report.md'}, report.json and the pictures beside it")


if __name__ == "__main__":
    run_program("report", main)
