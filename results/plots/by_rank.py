"""Pictures of what arms logged next to their metrics. A dict of arms maps a name to its runs, one for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from results.plots.curves import KNOWN_STYLES, OTHER_STYLES, arm_styles, new_figure, plain, set_titles
from results.read.logged import ByBucket, Measures
from results.read.published import RAN_AS_TOP
from utils.ir.metrics import METRICS, NDCG
from utils.ir.rank_buckets import NAMES, NOT_RETRIEVED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arms = dict[str, list[Measures]]

TITLES = {
    "gradient": "Mean gradient norm of a triple",
    "satisfied": "Share of triples already satisfied",
    "loss": "Mean loss of a triple",
}
PANELS_A_ROW = 3
CURVE_RANKS = 100  # as far as the paper draws them


def mean_by_bucket(found: Sequence[ByBucket]) -> ByBucket:
    """Of each bucket, over those that have it."""
    buckets = [name for name in NAMES if any(name in one for one in found)]
    return {name: float(np.mean([one[name] for one in found if name in one])) for name in buckets}


def by_rank_of_arm(runs: Sequence[Measures], what: str) -> ByBucket:
    return mean_by_bucket([{bucket: values[what] for bucket, values in run.by_rank.items()} for run in runs])


def draw_by_bucket(axes: Axes, arms: dict[str, ByBucket], title: str) -> None:
    buckets = [bucket for bucket in NAMES if any(bucket in found for found in arms.values())]
    for name, (colour, marker) in arm_styles(list(arms)).items():
        ranked = [place for place, bucket in enumerate(buckets) if bucket in arms[name] and bucket != NOT_RETRIEVED]
        values = [arms[name][buckets[place]] for place in ranked]
        axes.plot(ranked, values, color=colour, marker=marker, linewidth=1.2, label=plain(name))
        if NOT_RETRIEVED in arms[name]:  # next to the ranks, on no line with them
            axes.plot([buckets.index(NOT_RETRIEVED)], [arms[name][NOT_RETRIEVED]], color=colour, marker=marker)
    set_titles(axes, title, "rank of the negative (none: not retrieved)", "")
    axes.set_xticks(range(len(buckets)), buckets, rotation=30, fontsize=8)


def shared_legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, right of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)


def ranks_figure(arms: Arms) -> Figure | None:
    """What the trainer attributed to each rank bucket, over the whole run."""
    if not any(run.by_rank for runs in arms.values() for run in runs):
        return None
    figure, panels = new_figure(len(TITLES), 14, 4)
    for axes, (what, title) in zip(panels, TITLES.items(), strict=True):
        draw_by_bucket(axes, {name: by_rank_of_arm(runs, what) for name, runs in arms.items()}, title)
    shared_legend(figure, panels[0])
    return figure


def stale_figure(arms: Arms) -> Figure | None:
    """What the next search of the same queries made of the negatives, in the mean over the refreshes."""
    if not any(one.rank_retention or one.jaccard for runs in arms.values() for run in runs for one in run.refreshes):
        return None
    titles = {
        "rank_retention": "Negatives still in their ranks",
        "jaccard": "Same negatives, of both refreshes' together",
    }
    figure, panels = new_figure(len(titles), 11, 4)
    for axes, (what, title) in zip(panels, titles.items(), strict=True):
        means = {
            name: mean_by_bucket([getattr(one, what) for run in runs for one in run.refreshes])
            for name, runs in arms.items()
        }
        draw_by_bucket(axes, means, title)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter("{x:.0%}")
    shared_legend(figure, panels[0])
    return figure


def layer_groups(layers: Sequence[str]) -> dict[str, list[str]]:
    """The layers as the paper's Figure 4 has them: bottom, middle and top thirds; others alone."""
    numbered = sorted((name for name in layers if name.startswith("layer_")), key=lambda name: int(name[6:]))
    alone = [name for name in layers if name not in numbered]
    if len(numbered) <= 3:
        return {name: [name] for name in [*(name for name in alone if name != "head"), *numbered]} | {
            name: [name] for name in alone if name == "head"
        }
    thirds = np.array_split(np.array(numbered), 3)
    groups = {f"{word} layers": part.tolist() for word, part in zip(("bottom", "middle", "top"), thirds, strict=True)}
    return groups | {name: [name] for name in alone}


def mean_over_steps(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    """Steps that all curves have, and their mean there."""
    found = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(one) for one in found))) if found else []
    return steps, [float(np.mean([one[step] for one in found])) for step in steps]


def layers_figure(arms: Arms) -> Figure | None:
    """The loss, and gradient norms of each group of layers, against the step."""
    names = list(dict.fromkeys(layer for runs in arms.values() for run in runs for layer in run.layers))
    if not names:
        return None
    groups = layer_groups(names)
    count = 1 + len(groups)
    figure, panels = new_figure(count, 4.2 * min(count, PANELS_A_ROW) + 1.5, 3.8, a_row=PANELS_A_ROW)
    for name, (colour, _) in arm_styles(list(arms)).items():
        curves = [[run.losses for run in arms[name]]]
        curves += [
            [run.layers[layer] for run in arms[name] for layer in layers if layer in run.layers]
            for layers in groups.values()
        ]
        for axes, found in zip(panels, curves, strict=True):
            axes.plot(*mean_over_steps(found), color=colour, linewidth=1.4, label=plain(name))
    titles = ["Training loss", *(f"Gradient norm: {group.replace('_', ' ')}" for group in groups)]
    for axes, title in zip(panels, titles, strict=True):
        set_titles(axes, title, "trainer step", "")
        axes.set_yscale("log")
    shared_legend(figure, panels[0])
    return figure


def curves_figure(arms: Arms) -> Figure | None:
    """Scores of what is returned over the corpus's mean, a panel for each arm, of its first seed."""
    first = {name: runs[0].returned for name, runs in arms.items()}
    shown = {name: returned for name, returned in first.items() if returned is not None}
    if not shown:
        return None
    figure, panels = new_figure(len(shown), 4 * min(len(shown), PANELS_A_ROW) + 0.5, 3.4, a_row=PANELS_A_ROW)
    styles, largest = arm_styles(list(arms)), 0.0
    for axes, (name, returned) in zip(panels, shown.items(), strict=True):
        ranks = np.arange(1, len(returned.curve_K) + 1)[:CURVE_RANKS]
        for curve_K in returned.example_EK:
            axes.plot(ranks, curve_K[:CURVE_RANKS], color=styles[name][0], linewidth=0.7, alpha=0.45)
        axes.plot(ranks, returned.curve_K[:CURVE_RANKS], color=styles[name][0], linewidth=2.4)
        at_100 = returned.trained_on.get("at_100")
        trained_on = f" (overlap {at_100:.0%})" if at_100 is not None else ""
        set_titles(axes, plain(name) + trained_on, "rank", "score over the corpus's mean")
        found = np.concatenate([returned.example_EK[:, :CURVE_RANKS].ravel(), returned.curve_K[:CURVE_RANKS]])
        largest = max(largest, float(np.nanmax(found)))
    for axes in panels:
        axes.set_ylim(0, 1.05 * largest)
    return figure


def fork_figure(curves: dict[str, list[tuple[int, float]]]) -> Figure:
    figure, (axes,) = new_figure(1, 8.5, 4.4)
    for name, curve in curves.items():
        colour, _ = KNOWN_STYLES.get(name, OTHER_STYLES[0])
        dashes = (0, (4, 2)) if name == RAN_AS_TOP else "-"
        axes.plot(
            *zip(*curve, strict=True),
            color=colour,
            linestyle=dashes,
            linewidth=1.3,
            label="random (ran as top)" if name == RAN_AS_TOP else name,
        )
    set_titles(axes, f"Dev {METRICS[NDCG].label} of the fork's arms", "refresh", METRICS[NDCG].label)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure
