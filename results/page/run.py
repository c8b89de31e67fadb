"""The report of one or more runs: tables, warnings, pictures. `results.report` writes it.

``report.json`` of one run is ``{"collection", "bm25", "warmup", "arms"}``, with ``"given"`` where runs were given; of
several it is ``{"runs": {NAME: that}}``.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path

from results.page.markdown import Section, align, columns, picture
from results.page.sections import common_sections
from results.page.splits import of_other_queries, splits_section
from results.plots.curves import arm_names, capital, figures
from results.read.arm import Arm
from results.read.evaluation import HEADINGS, HEADINGS_OF_DOCUMENTS, REPORTED, Evaluation
from results.read.logged import read_measures
from results.read.run import Run, given_row
from results.read.study import Study
from utils.ir.metrics import MRR, NDCG

NOISE = (
    "Neighbouring arms of one run differ by less than the noise between seeds: "
    "read no order into them without several seeds."
)
NDCG_LABEL, MRR_LABEL = HEADINGS[NDCG], HEADINGS[MRR]
PICTURES = ("dev.png", "loss.png", "dev_by_refresh.png")  # that there may be; dev: the split that was measured


def captions(split: str) -> dict[str, str]:
    """Of each of PICTURES."""
    texts = (
        f"{capital(split)} metrics of the checkpoint that each refresh was made from, and of the last one (large "
        "marker); the dashed line is the warmup checkpoint, which every arm starts from.",
        "Training loss. Each arm's loss is on its own negatives: the harder they are the higher it is, "
        "so its level says nothing about which arm ranks better.",
        f"{capital(split)} {NDCG_LABEL} by refresh number, with the four arms of the student fork in grey "
        "(10% of MS MARCO, 724 dev queries; see results/published/README.md): shapes compare, levels do not.",
    )
    return dict(zip(PICTURES, texts, strict=True))


def report_of(run: Run) -> dict[str, object]:
    """The contract of report.json."""
    return {
        "collection": run.collection,
        "bm25": run.bm25.metrics,
        "warmup": run.warmup.metrics,
        **({"given": {name: found.metrics for name, found in run.given.items()}} if run.given else {}),
        "arms": {
            arm.name: {
                **arm.evaluation.metrics,
                "steps": arm.steps,
                "refreshes": arm.refreshes,
                "seconds": arm.seconds,
                "seen": [asdict(refresh) for refresh in arm.seen],
            }
            for arm in run.arms
        },
    }


def report_of_all(runs: list[Run]) -> dict[str, object]:
    return report_of(runs[0]) if len(runs) == 1 else {"runs": {run.name: report_of(run) for run in runs}}


def gain(value: float | None, base: float | None) -> str:
    return f"{100 * (value / base - 1):+.1f}%" if value is not None and base is not None and base > 0 else "n/a"


def cell(value: float | None) -> str:
    """A metric as the tables have it; None where the lists were shorter than its cut-off."""
    return "n/a" if value is None else f"{value:.4f}"


def short_table(run: Run) -> str:
    """What a terminal shows of a run."""
    metrics = (NDCG, MRR, "recall@100")
    base = run.warmup.metrics.get(MRR)

    def row(name: str, evaluation: Evaluation, over: str = "") -> list[str]:
        return [name, *(cell(evaluation.metrics.get(metric)) for metric in metrics), over]

    rows = [["", *(HEADINGS[metric] for metric in metrics), f"{MRR_LABEL} over {run.start_name}"]]
    rows += [
        row("BM25", run.bm25),
        *(row(given_row(name), found) for name, found in run.given.items()),
        row(run.start_name, run.warmup),
    ]
    rows += [row(arm.name, arm.evaluation, gain(arm.evaluation.metrics.get(MRR), base)) for arm in run.arms]
    return columns(rows)


def sentence(run: Run) -> str:
    """What the short table shows, and no more: one seed orders no arms that lie close."""
    base, bm25 = (evaluation.metrics.get(MRR) for evaluation in (run.warmup, run.bm25))
    finals = sorted((arm.evaluation.metrics[MRR], arm.name) for arm in run.arms if MRR in arm.evaluation.metrics)
    if not finals or base is None:
        return f"What training did to {MRR_LABEL} is not known: the lists that were evaluated are too short for it."
    (low, worst), (high, best) = finals[0], finals[-1]
    start = "model" if run.start_name == "start" else run.start_name
    compared = f" (BM25: {bm25:.4f})" if bm25 is not None else ""
    if len(finals) == 1:
        return (
            f"{best} ends at {high:.4f} {MRR_LABEL}, {gain(high, base)} against the {start} that it started "
            f"from{compared}: one model, trained with one seed."
        )
    return (
        f"The arms end between {low:.4f} ({worst}) and {high:.4f} ({best}) {MRR_LABEL}, {gain(low, base)} to "
        f"{gain(high, base)} against the {start} that they start from{compared}; one seed of each does not "
        "order arms that lie close, for which commands/study.sh trains several."
    )


def table(run: Run) -> str:
    """BM25, runs that were given, the warmup and the arms, these with their gain in MRR@10 over the warmup."""
    headings = headings_of(run)

    def row(name: str, evaluation: Evaluation, *rest: str) -> list[str]:
        return [name, *(cell(evaluation.metrics.get(metric)) for metric in headings), *(rest or ("", "", "", "", ""))]

    of_mrr = (f"{MRR_LABEL} over {run.start_name}", f"best {MRR_LABEL}")
    heading = ["", *headings.values(), *of_mrr, "steps", "refreshes", "seconds"]
    rows = [heading, row("BM25", run.bm25), *(row(given_row(name), found) for name, found in run.given.items())]
    rows.append(row(run.start_name, run.warmup))
    base = run.warmup.metrics.get(MRR)
    for arm in run.arms:
        over = gain(arm.evaluation.metrics.get(MRR), base)
        rest = (over, best_mrr(arm), f"{arm.steps:,}", f"{arm.refreshes:,}", f"{arm.seconds:,.1f}")
        rows.append(row(arm.name, arm.evaluation, *rest))
    return align(rows)


def headings_of(run: Run) -> dict[str, str]:
    """The columns of metrics: of documents those of theirs that an arm has as well."""
    measured = {metric for arm in run.arms for metric in arm.evaluation.metrics}
    return HEADINGS | {metric: label for metric, label in HEADINGS_OF_DOCUMENTS.items() if metric in measured}


def best_mrr(arm: Arm) -> str:
    """Of the checkpoints that refreshes were made from, and the last one; with its step where that is another."""
    measured = {point.step: point.mrr for point in arm.dev if point.mrr is not None}
    if MRR in arm.evaluation.metrics:
        measured[arm.steps] = arm.evaluation.metrics[MRR]
    if not measured:
        return "n/a"
    step = max(measured, key=lambda step: (measured[step], step))
    return f"{measured[step]:.4f}" + (f" at {step:,}" if step != arm.steps else "")


def table_over_runs(runs: list[Run]) -> str:
    """Mean and standard deviation over the runs that finished an arm."""
    rows = [["", "runs", *HEADINGS.values()]]
    for name in ["warmup", *arm_names(runs)]:
        found = [run.warmup for run in runs] if name == "warmup" else []
        found = found or [arm.evaluation for run in runs for arm in run.arms if arm.name == name]
        cells = []
        for metric in REPORTED:
            values = [evaluation.metrics[metric] for evaluation in found if metric in evaluation.metrics]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            # A mean over some of the runs would stand next to means over all.
            cells.append(f"{statistics.mean(values):.4f}{spread}" if len(values) == len(found) else "n/a")
        rows.append([name, str(len(found)), *cells])
    return align(rows)


def short_path(path: str, directory: Path) -> str:
    """``path`` from ``directory`` where it lies in it, else its end: a report may be sent to others."""
    resolved = Path(path).resolve()
    inside = resolved.is_relative_to(directory.resolve())
    return str(resolved.relative_to(directory.resolve())) if inside else "/".join(Path(path).parts[-2:])


def what_was_run(run: Run) -> list[str]:
    """One list item for the collection, the warmup and each arm."""
    counts = [f"{count:,} {what.replace('_', ' ')}" for what, count in run.collection.items()]
    at_step = f", step {run.warmup.step:,}" if run.warmup.step is not None else ""
    lines = [
        f"- collection: {', '.join(counts)}",
        f"- {run.start_name}: `{short_path(run.warmup.model, run.directory)}`{at_step}; every arm starts from it",
    ]
    lines += [f"- {given_row(name)}: `{short_path(found.model, run.directory)}`" for name, found in run.given.items()]
    for arm in run.arms:
        strategy = f"negatives `{arm.strategy}`, " if arm.strategy else ""
        seed = f", seed {arm.seed}" if arm.seed is not None else ""
        lines.append(
            f"- {arm.name}: {strategy}{arm.steps:,} steps, {arm.refreshes:,} refreshes used, "
            f"{arm.seconds:,.1f} s of the trainer{seed}; `{short_path(arm.evaluation.model, run.directory)}`"
        )
    return lines


def warnings_of(run: Run) -> list[str]:
    """What a reader must know before comparing, one sentence each."""
    unfinished = [f"The arm {name} is not finished and omitted: {reason}." for name, reason in run.unfinished.items()]
    return [*unfinished, *run.warnings, *of_other_queries(run)]


def warnings_across(runs: list[Run]) -> list[str]:
    """What makes a mean over these runs doubtful."""
    warnings, splits = [], {run.name: run.split for run in runs}
    if len(set(splits.values())) > 1:
        listed = ", ".join(f"{name}: {split}" for name, split in splits.items())
        warnings.append(f"The runs are measured on different splits ({listed}): their mean has no meaning.")
    collections = {run.name: ", ".join(f"{count:,} {what}" for what, count in run.collection.items()) for run in runs}
    if len(set(collections.values())) > 1:
        listed = "; ".join(f"{name}: {counts}" for name, counts in collections.items())
        warnings.append(f"The runs are on different collections ({listed}): their mean has no meaning.")
    return warnings


def blocks_of(runs: list[Run]) -> list[str]:
    """What stands first: the tables, the warnings, what was run."""
    blocks = []
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
        f"Metrics are means over all {runs[0].split} queries; one without an answer counts as zero. "
        f"Seconds are the trainer's wall time. **{NOISE}**"
    )
    return blocks


def title_of(runs: list[Run]) -> str:
    return "Report of " + runs[0].name if len(runs) == 1 else f"Report of {len(runs)} runs"


def training_section(runs: list[Run]) -> Section:
    """The curves of every arm of every run."""
    drawn, caption_of = figures(runs), captions(runs[0].split)
    return Section("Over training", [picture(name, caption_of[name]) for name in drawn], drawn)


def run_sections(runs: list[Run], compared: Study | None) -> list[Section]:
    """The curves, then what any report has; of several runs only where they may be ``compared``, and of those arms."""
    if compared is not None:
        arms, measures = compared.by_arm, compared.measures
    elif len(runs) == 1:
        arms = {arm.name: [arm] for arm in runs[0].arms}
        measures = {name: [read_measures(arm) for arm in found] for name, found in arms.items()}
    else:
        return [training_section(runs)]
    by_split = splits_section(runs[0]) if len(runs) == 1 else None
    first = [by_split] if by_split is not None else []
    return [*first, training_section(runs), *common_sections(arms, measures, runs[0].directory)]
