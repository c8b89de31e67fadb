"""The parts of a report that are the same for a run and for a study: what arms logged and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from results.document import Section, align, picture
from results.fork import NOISE_REFRESHES, RAN_AS_TOP, apart, read_dev_ndcg
from results.measure_figures import Arms, curves_figure, fork_figure, layers_figure, ranks_figure, stale_figure
from results.measures import ByBucket, Measures
from results.neighbourhood import neighbourhood_caption, neighbourhood_figure
from results.run_directory import Arm
from utils.neighbourhood import DIRECTORY, RECORD, read_neighbourhood
from utils.ranks import NAMES, first_and_last

PICTURES = ("ranks.png", "stale.png", "layers.png", "curves.png", "neighbourhood.png", "fork.png")  # that there may be


def common_sections(arms: dict[str, list[Arm]], measures: Arms, directories: Sequence[Path]) -> list[Section]:
    """Those that there is something for, over the seeds of each arm; ``directories`` are of the runs or the study."""
    found = [
        ranks_section(measures),
        layers_section(measures),
        returned_section(measures),
        *map(neighbourhood_section, directories),
        audit_section(measures),
        cost_section(arms, measures),
        fork_section(),
    ]
    return [section for section in found if section is not None]


def ranks_section(measures: Arms) -> Section | None:
    drawn = {"ranks.png": ranks_figure(measures), "stale.png": stale_figure(measures)}
    captions = {
        "ranks.png": "By the rank that a negative had when it was retrieved, over the whole of training: the norm of "
        "its triple's gradient with respect to the three embeddings, the share of triples whose positive scored above "
        "the negative already, and the triple's loss.",
        "stale.png": "What the next refresh that searched the same queries found: how many negatives are in their rank "
        "bucket again, and how many of those that either refresh took there both took. Means over the refreshes.",
    }
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    if not figures:
        return None
    return Section("What each rank does", [picture(name, captions[name]) for name in figures], figures)


def layers_section(measures: Arms) -> Section | None:
    figure = layers_figure(measures)
    if figure is None:
        return None
    caption = (
        "The loss, and the gradient's norm by layer at the logged steps (the ANCE paper's Figure 4 has bottom, middle "
        "and top); means over the seeds. Each arm's loss is on its own negatives. The logarithmic axis is each panel's "
        "own."
    )
    return Section("Loss, and gradients by layer", [picture("layers.png", caption)], {"layers.png": figure})


def returned_section(measures: Arms) -> Section | None:
    """Score curves, and how much of what is returned had been trained on (the ANCE paper's Figure 3)."""
    figure = curves_figure(measures)
    if figure is None:
        return None
    caption = (
        "Scores of the passages returned for dev queries, less the query's mean score over the collection: the mean "
        "(bold) and single queries (thin), of each arm's last model, first seed. In brackets: the overlap of the 100 "
        "passages returned with the negatives of the last refresh."
    )
    blocks = [picture("curves.png", caption)]
    rows = [["arm", "at 10", "at 10, if even", "at 100", "at 100, if even"]]
    for name, runs in measures.items():
        found = [run.returned.trained_on for run in runs if run.returned is not None and run.returned.trained_on]
        if found:
            keys = ("at_10", "uniform_at_10", "at_100", "uniform_at_100")
            rows.append([name, *(f"{np.mean([one[key] for one in found]):.1%}" for key in keys)])
    if len(rows) > 1:
        blocks.append(
            "The overlap is of two distributions over the collection: how often each passage was a negative of the "
            "last refresh, and how often it is among the first 10 (or 100) that the last model returns for dev "
            "queries. It is 100% where they are the same; “if even” is what negatives spread evenly would have."
        )
        blocks.append(align(rows))
    return Section("What is returned, and what was trained on", blocks, {"curves.png": figure})


def neighbourhood_section(directory: Path) -> Section | None:
    """A query's negatives of each arm in the space of one model, where drivers.run_neighbourhood has embedded them."""
    if not (directory / DIRECTORY / RECORD).is_file():
        return None
    found = read_neighbourhood(directory / DIRECTORY)
    blocks = [picture("neighbourhood.png", neighbourhood_caption(found))]
    return Section("A query's neighbourhood", blocks, {"neighbourhood.png": neighbourhood_figure(found)})


# False negatives


def audit_section(measures: Arms) -> Section | None:
    """Where passages stand that the qrels call relevant, and what the filters dropped there."""
    blocks = [*grades_blocks(measures), *dropped_blocks(measures)]
    return Section("False negatives", blocks) if blocks else None


def by_grade_of(runs: Sequence[Measures]) -> dict[str, dict[str, int]]:
    """Summed over the seeds."""
    sums: dict[str, dict[str, int]] = {}
    for run in runs:
        for grade, counts in (run.returned.by_grade if run.returned is not None else {}).items():
            into = sums.setdefault(grade, {})
            for bucket, count in counts.items():
                into[bucket] = into.get(bucket, 0) + count
    return sums


def grades_blocks(measures: Arms) -> list[str]:
    found = {name: by_grade_of(runs) for name, runs in measures.items()}
    grades = sorted({int(grade) for sums in found.values() for grade in sums if grade.isdigit() and int(grade) > 0})
    buckets = [name for name in NAMES if any(name in sums.get("retrieved", {}) for sums in found.values())]
    if not grades or not buckets:
        return []
    rows = [["arm", "grade", *buckets]]
    for name, sums in found.items():
        for grade in [grade for grade in grades if sums.get("retrieved")]:
            counts = sums.get(str(grade), {})
            shares = [
                f"{counts.get(bucket, 0) / sums['retrieved'][bucket]:.2%}" if sums["retrieved"].get(bucket) else ""
                for bucket in buckets
            ]
            rows.append([name, str(grade), *shares])
    graded = (
        "The dev qrels are graded: at these ranks a negative taken without a judgement is false about as often."
        if grades[-1] > 1
        else "The dev qrels are not graded: they name the known positives, which are never taken, and say nothing of "
        "other relevant passages; graded ones (TREC's) would."
    )
    told = f"Of the passages that the last model returns for dev queries, those judged relevant, by rank. {graded}"
    return [told, align(rows)]


def dropped_blocks(measures: Arms) -> list[str]:
    found = [(name, word, part) for name, runs in measures.items() for word, part in dropped_shares(runs).items()]
    if not found:
        return ["No arm had a filter against false negatives (`--min_rank`, `--max_positive_ratio`)."]
    buckets = [bucket for bucket in NAMES if any(bucket in shares for _, _, shares in found)]
    rows = [
        [name, f"`--{word}`", *(f"{shares[bucket]:.2%}" if bucket in shares else "" for bucket in buckets)]
        for name, word, shares in found
    ]
    return [
        "Of the candidates at each rank, those that a filter dropped as likely false negatives:",
        align([["arm", "filter", *buckets], *rows]),
    ]


def dropped_shares(runs: Sequence[Measures]) -> dict[str, ByBucket]:
    """{filter: {bucket: share of the candidates there}}, over all refreshes and seeds."""
    dropped: dict[str, dict[str, int]] = {}
    candidates: dict[str, int] = {}
    for refresh in [refresh for run in runs for refresh in run.refreshes]:
        for word, counts in refresh.dropped.items():
            into = dropped.setdefault(word, {})
            for bucket, count in counts.items():
                into[bucket] = into.get(bucket, 0) + count
        for bucket in NAMES:
            first, last = first_and_last(bucket)
            width = max(0, min(last, refresh.topk) - first + 1) if first else 0
            candidates[bucket] = candidates.get(bucket, 0) + width * refresh.queries
    return {
        word: {bucket: count / candidates[bucket] for bucket, count in counts.items() if candidates.get(bucket)}
        for word, counts in dropped.items()
    }


# Cost


def cost_section(arms: dict[str, list[Arm]], measures: Arms) -> Section:
    headings = ["trainer (s)", "steps/s", "refreshes", "encode (s)", "search (s)", "age of negatives", "process-hours"]
    rows = [["arm", *headings]]
    rows += [[name, *cost_cells([run.seconds for run in runs], measures[name])] for name, runs in arms.items()]
    told = (
        "Medians over the seeds; encode and search are of one refresh. The age is how many steps behind the trainer "
        "the model was that chose the negatives in use, in the mean over the steps. Process-hours add up the trainer's "
        "processes for as long as they trained and the generator's while they encoded and searched; on GPUs a process "
        "has one."
    )
    return Section("Time, staleness and cost", [align(rows), told])


def cost_cells(seconds_S: Sequence[float], found: Sequence[Measures]) -> list[str]:
    """Of one arm's seeds, in the order of the headings."""

    def median(values: Sequence[float], digits: int = 1) -> str:
        return f"{np.median(values):,.{digits}f}" if len(values) else "n/a"

    made = [refresh for one in found for refresh in one.refreshes]
    ages = [one.ages for one in found if one.ages is not None]
    return [
        median(seconds_S),
        median([one.steps_per_second for one in found if one.steps_per_second is not None]),
        median([len(one.refreshes) for one in found], digits=0),
        median([refresh.encode_seconds for refresh in made]),
        median([refresh.search_seconds for refresh in made]),
        f"{np.mean([age for age, _ in ages]):,.0f}, at most {max(last for _, last in ages):,}" if ages else "n/a",
        median([one.process_hours(trained) for trained, one in zip(seconds_S, found, strict=True)], digits=3),
    ]


def fork_section() -> Section:
    """The fork's curves, with how far its two equal arms lie apart."""
    curves = read_dev_ndcg()
    caption = (
        "Dev nDCG@10 by refresh of the fork's four arms (10% of MS MARCO, 724 dev queries; its logs do not tell the "
        "steps). Its random arm was submitted with `--ann_measure_topk_mrr false`, which its `type=bool` parsed as "
        "True: it trained on the top negatives, as the arm top did. Over refreshes "
        f"{NOISE_REFRESHES[0]} to {NOISE_REFRESHES[-1]} these two equal arms differ by "
        f"{apart(curves, RAN_AS_TOP):.4f} in the mean, and top_bottom differs from top by "
        f"{apart(curves, 'top_bottom'):.4f}."
    )
    return Section("What the fork published", [picture("fork.png", caption)], {"fork.png": fork_figure(curves)})
