"""The parts of a report that are the same for a run and for a study: what arms logged and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from results.page.markdown import Section, align, picture
from results.plots.by_rank import Arms, curves_figure, fork_figure, layers_figure, ranks_figure, stale_figure
from results.plots.tsne import neighbourhood_caption, neighbourhood_figure
from results.read.arm import Arm
from results.read.logged import ByBucket, Measures
from results.read.published import NOISE_REFRESHES, RAN_AS_TOP, apart, read_dev_ndcg
from utils.exchange.layout import QUERY_MAP, QUERY_MAP_RECORD
from utils.ir.metrics import METRICS, NDCG
from utils.ir.query_map import read_neighbourhood
from utils.ir.rank_buckets import NAMES, first_and_last

PICTURES = ("ranks.png", "stale.png", "layers.png", "curves.png", "neighbourhood.png", "fork.png")  # that there may be


def common_sections(arms: dict[str, list[Arm]], measures: Arms, directory: Path) -> list[Section]:
    """Those that there is something for, over the seeds of each arm; ``directory`` is the run's or the study's."""
    split = next(iter(arms.values()))[0].split
    found = [
        ranks_section(measures),
        layers_section(measures),
        returned_section(measures, split),
        neighbourhood_section(directory),
        audit_section(measures, split),
        seen_section(arms),
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
        "bucket again, and how many of those that either refresh took there both took (of a random draw that is "
        "mostly the draw). Means over the refreshes.",
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


def returned_section(measures: Arms, split: str) -> Section | None:
    """Score curves, and how much of what is returned had been trained on (the ANCE paper's Figure 3)."""
    figure = curves_figure(measures)
    if figure is None:
        return None
    caption = (
        f"Scores of the passages returned for {split} queries, less the query's mean score over the collection: the "
        "mean (bold) and single queries (thin), of each arm's last model, first seed. In brackets: the overlap of the "
        "100 passages returned with the negatives of the last refresh."
    )
    blocks = [picture("curves.png", caption)]
    rows = [["arm", "at 10", "at 10, if even", "at 100", "at 100, if even"]]
    for name, runs in measures.items():
        found = [run.returned.trained_on for run in runs if run.returned is not None and run.returned.trained_on]
        if found:
            keys = ("at_10", "uniform_at_10", "at_100", "uniform_at_100")
            means = [np.mean([one[key] for one in found]) if all(key in one for one in found) else None for key in keys]
            rows.append([name, *("n/a" if mean is None else f"{mean:.1%}" for mean in means)])
    if len(rows) > 1:
        blocks.append(
            "The overlap is of two distributions over the collection: how often each passage was a negative of the "
            f"last refresh, and how often it is among the first 10 (or 100) that the last model returns for {split} "
            "queries. It is 100% where they are the same; “if even” is what negatives spread evenly would have."
        )
        blocks.append(align(rows))
    return Section("What is returned, and what was trained on", blocks, {"curves.png": figure})


def neighbourhood_section(directory: Path) -> Section | None:
    """A query's negatives of each arm in the space of one model, where drivers.run_neighbourhood has embedded them."""
    if not (directory / QUERY_MAP / QUERY_MAP_RECORD).is_file():
        return None
    found = read_neighbourhood(directory / QUERY_MAP)
    blocks = [picture("neighbourhood.png", neighbourhood_caption(found))]
    return Section("A query's neighbourhood", blocks, {"neighbourhood.png": neighbourhood_figure(found)})


# False negatives


def audit_section(measures: Arms, split: str) -> Section | None:
    """Where passages stand that the qrels call relevant, and what the filters dropped there."""
    blocks = [*grades_blocks(measures, split), *dropped_blocks(measures)]
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


def grades_blocks(measures: Arms, split: str) -> list[str]:
    """Shares of the passages returned: judged at all where the qrels judge irrelevant ones too, then of each grade."""
    found = {name: by_grade_of(runs) for name, runs in measures.items()}
    grades = sorted(
        {grade for runs in measures.values() for run in runs if run.returned for grade in run.returned.grades}
    )
    buckets = [name for name in NAMES if any(name in sums.get("retrieved", {}) for sums in found.values())]
    if not grades or not buckets:
        return []
    rows = [["arm", "grade", *buckets]]
    for name, sums in found.items():
        judged = {"any": [grade for grade in sums if grade != "retrieved"]} if "0" in sums else {}
        kinds = {**judged, **{str(grade): [str(grade)] for grade in grades}} if sums else {}
        for kind, members in kinds.items():
            counts = {bucket: sum(sums.get(grade, {}).get(bucket, 0) for grade in members) for bucket in buckets}
            whole = sums["retrieved"]
            cells = [f"{counts[bucket] / whole[bucket]:.2%}" if whole.get(bucket) else "" for bucket in buckets]
            rows.append([name, kind, *cells])
    return [
        f"Of the passages that the last model returns for {split} queries, those judged, by rank. "
        f"{graded(grades, split)}",
        align(rows),
    ]


def graded(grades: Sequence[int], split: str) -> str:
    if len(grades) > 1:
        return (
            f"The {split} qrels are graded. The shares are of all passages at a rank, judged or not: where few are "
            "judged they are lower bounds. Of train queries the known positives are never taken; others like these "
            "would be false negatives."
        )
    return (
        f"The {split} qrels are not graded: they name the known positives, which are never taken, and say nothing of "
        "other relevant passages; graded ones (TREC's) would."
    )


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
        "Of the candidates at each rank (known positives included), those that a filter dropped as likely false "
        "negatives:",
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
            candidates[bucket] = candidates.get(bucket, 0) + width * refresh.searched
    return {
        word: {bucket: count / candidates[bucket] for bucket, count in counts.items() if candidates.get(bucket)}
        for word, counts in dropped.items()
    }


# Queries


def seen_section(arms: dict[str, list[Arm]]) -> Section | None:
    """How many triples each refresh gave, and of how many queries; refreshes of equal figures are one row."""
    cells = {name: seen_cells(runs) for name, runs in arms.items()}
    refreshes = sorted({refresh for by_refresh in cells.values() for refresh in by_refresh})
    if not refreshes:
        return None
    rows: list[list[str]] = []
    for refresh in refreshes:
        row = [by_refresh.get(refresh, "n/a") for by_refresh in cells.values()]
        if rows and rows[-1][1:] == row:
            rows[-1][0] = f"{rows[-1][0].partition(' ')[0]} to {refresh}"
        else:
            rows.append([str(refresh), *row])
    note = (
        "Different queries in the triples that were trained on while a refresh served, from the lowest to the highest "
        "of the seeds. Arms of one seed that did not see the same queries at the same steps are named in a warning at "
        "the top."
    )
    return Section("Queries and triples of each refresh", [align([["refresh", *cells], *rows]), note])


def seen_cells(runs: Sequence[Arm]) -> dict[int, str]:
    """{refresh: "640 in 12,800"}, over the seeds of an arm."""
    found: dict[int, list[tuple[int, int]]] = {}
    for seen in [seen for run in runs for seen in run.seen]:
        found.setdefault(seen.refresh, []).append((seen.queries, seen.triples))
    return {
        refresh: " in ".join(low_to_high(values) for values in zip(*counts, strict=True))
        for refresh, counts in found.items()
    }


def low_to_high(values: Sequence[int]) -> str:
    lowest, highest = min(values), max(values)
    return f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"


# Cost


def cost_section(arms: dict[str, list[Arm]], measures: Arms) -> Section:
    headings = ["trainer (s)", "steps/s", "refreshes", "encode (s)", "search (s)", "age of negatives", "process-hours"]
    rows = [["arm", *headings]]
    rows += [[name, *cost_cells([run.seconds for run in runs], measures[name])] for name, runs in arms.items()]
    note = (
        "Medians over the seeds; encode and search are of one refresh. The trainer's seconds are from its first step "
        "to its last, waiting for negatives included. The age is how many steps behind the trainer the model was that "
        "chose the negatives in use, in the mean over the steps. Process-hours are the trainer's, and the generator's "
        "while it encoded and searched; on GPUs a process has one."
    )
    return Section("Time, staleness and cost", [align(rows), note])


def cost_cells(seconds_S: Sequence[float], found: Sequence[Measures]) -> list[str]:
    """Of one arm's seeds, in the order of the headings."""

    def median(values: Sequence[float], digits: int = 1) -> str:
        return f"{np.median(values):,.{digits}f}" if len(values) else "n/a"

    hours = [one.process_hours(trained) for trained, one in zip(seconds_S, found, strict=True)]
    made = [refresh for one in found for refresh in one.refreshes]
    ages = [one.ages for one in found if one.ages is not None]
    return [
        median(seconds_S),
        median([one.steps_per_second for one in found if one.steps_per_second is not None]),
        median([len(one.refreshes) for one in found], digits=0),
        median([refresh.encode_seconds for refresh in made if refresh.encode_seconds is not None]),
        median([refresh.search_seconds for refresh in made if refresh.search_seconds is not None]),
        f"{np.mean([age for age, _ in ages]):,.0f}, at most {max(last for _, last in ages):,}" if ages else "n/a",
        median([one for one in hours if one is not None], digits=3),
    ]


def fork_section() -> Section:
    """The fork's curves, with how far its two equal arms lie apart."""
    curves = read_dev_ndcg()
    caption = (
        f"Dev {METRICS[NDCG].label} by refresh of the fork's four arms (10% of MS MARCO, 724 dev queries; its "
        "logs do not tell the steps). Its random arm was submitted with `--ann_measure_topk_mrr false`, which its "
        "`type=bool` parsed as True: it trained on the top negatives, as the arm top did. Over refreshes "
        f"{NOISE_REFRESHES[0]} to {NOISE_REFRESHES[-1]} these two equal arms differ by "
        f"{apart(curves, RAN_AS_TOP):.4f} in the mean, and top_bottom differs from top by "
        f"{apart(curves, 'top_bottom'):.4f}."
    )
    return Section("What the fork published", [picture("fork.png", caption)], {"fork.png": fork_figure(curves)})
