"""The pictures of a report: metrics and training loss against the step, one line for each arm.

Figures are made as objects, never through pyplot's global state, and drawn by Agg, so no display is needed.
Colours are Okabe and Ito's, which colour-blind readers tell apart; each arm has a marker of its own as well.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.read.arm import Arm
from results.read.published import read_dev_ndcg, read_published
from results.read.run import Run
from results.read_log import TrainingPoint
from utils.declared.strategies import FORK_STRATEGIES
from utils.ir.metrics import HEADLINE, METRICS, NDCG

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KNOWN_STYLES = dict(
    zip(FORK_STRATEGIES, (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "D"), ("#CC79A7", "v")), strict=True)
)
OTHER_STYLES = (("#D55E00", "^"), ("#56B4E9", "P"), ("#7F7F7F", "X"), ("#000000", "*"))
GREY = "#8C8C8C"
# The fork trained on a tenth of MS MARCO's passages; next to a toy collection its curves would only mislead.
PUBLISHED_FROM_PASSAGES = 500_000
FORK_WARMUP_STEPS = 150_000  # its arms count on from the warmup's last step
SMOOTHED_SHARE = 1 / 12  # of the logged points, in the moving average
DOTS_PER_INCH = 130


def arm_styles(names: list[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of each arm: always the same for a strategy, in turn for arms of other names."""
    others = [name for name in names if name not in KNOWN_STYLES]
    styles = OTHER_STYLES if len(others) <= len(OTHER_STYLES) else shades(len(others))
    in_turn = dict(zip(others, styles, strict=False))
    return {name: KNOWN_STYLES[name] if name in KNOWN_STYLES else in_turn[name] for name in names}


def shades(count: int) -> list[tuple[str, str]]:
    """From dark to light: for the windows of a sweep, more than there are colours that all eyes tell apart."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    markers = [marker for _, marker in OTHER_STYLES]
    return [(to_hex(colormaps["viridis"](0.92 * i / (count - 1))), markers[i % len(markers)]) for i in range(count)]


def arm_names(runs: list[Run]) -> list[str]:
    """Of all runs, each once, known strategies first."""
    names = dict.fromkeys(arm.name for run in runs for arm in run.arms)
    known = [name for name in FORK_STRATEGIES if name in names]
    return [*known, *(name for name in names if name not in known)]


def new_figure(panels: int, width: float, height: float, a_row: int = 0) -> tuple[Figure, list[Axes]]:
    """A figure without frames on top and right.

    Args:
        panels: How many.
        width: Of the figure, in inches.
        height: Of each row, in inches.
        a_row: Panels side by side; 0: all.
    Returns:
        The figure, and its panels row by row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(panels, a_row or panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    made = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in made[panels:]:
        axes.remove()
    for axes in made[:panels]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E3E3E3", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, made[:panels]


def set_titles(axes: Axes, title: str, x: str, y: str) -> None:
    """Name a picture and its axes, x in whole numbers.

    Args:
        axes: what is drawn on.
        title: above it.
        x, y: what stands at each axis.
    """
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def capital(split: str) -> str:
    """A split's name at the beginning of a title."""
    return split[:1].upper() + split[1:]


def plain(text: str) -> str:
    """A name as a label: matplotlib reads $ as mathematics and hides labels that begin with an underscore."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def dev_curve(run: Run, arm: Arm, metric: str) -> tuple[list[int], list[float]]:
    """(steps, values): the warmup's evaluation at step 0, the refreshes, the final evaluation; those that have it."""
    values: dict[int, float] = {}
    for point in arm.dev:
        value = point.value_of(metric)
        if value is not None:
            values[point.step] = value
    for step, evaluation in ((0, run.warmup), (arm.steps, arm.evaluation)):
        if metric in evaluation.metrics:
            values[step] = evaluation.metrics[metric]
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def draw_dev(axes: Axes, runs: list[Run], metric: str) -> None:
    """One metric of every arm against the step, the best final first in the legend."""
    styles = arm_styles(arm_names(runs))
    finals: dict[str, list[float]] = defaultdict(list)
    handles: dict[str, Any] = {}
    for run in runs:
        for arm in run.arms:
            colour, marker = styles[arm.name]
            steps, values = dev_curve(run, arm, metric)
            if not values:
                continue
            (handles[arm.name],) = axes.plot(steps, values, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
            axes.plot(steps[-1:], values[-1:], color=colour, marker=marker, markersize=9, markeredgecolor="white")
            if metric in arm.evaluation.metrics:
                finals[arm.name].append(values[-1])
        level = run.warmup.metrics.get(metric)
        if level is not None:
            handles["warmup"] = axes.axhline(level, color="#333333", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            finals["warmup"].append(level)
    mean = {name: sum(values) / len(values) for name, values in finals.items()}
    best_first = sorted(mean, key=lambda name: -mean[name])
    best_first += [name for name in handles if name not in mean]  # evaluated with lists that were too short
    axes.legend(
        [handles[name] for name in best_first],
        [f"{mean[name]:.3f}  {plain(name)}" if name in mean else plain(name) for name in best_first],
        title="final" if len(runs) == 1 else f"final, mean of {len(runs)} runs",
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    label = METRICS[metric].label
    title = f"{capital(runs[0].split)} {label} over training"
    set_titles(axes, title, "trainer step of the checkpoint (0: warmup)", label)


def dev_figure(runs: list[Run]) -> Figure:
    figure, (left, right) = new_figure(2, 12, 4.2)
    for axes, metric in zip((left, right), HEADLINE, strict=True):
        draw_dev(axes, runs, metric)
    return figure


def moving_average(values: list[float], window: int) -> list[float]:
    """Centred mean of ``window`` values (odd); near the ends, of those of them that there are."""
    import numpy as np

    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    first = np.maximum(centre - window // 2, 0)
    after = np.minimum(centre + window // 2 + 1, len(values))
    return list(((sums[after] - sums[first]) / (after - first)).tolist())


def draw_loss(axes: Axes, label: str, points: list[TrainingPoint], colour: str) -> int:
    """Draw a training loss, faint as logged, strong as moving average.

    Args:
        axes: Where.
        label: For the legend; one that begins with an underscore is not in it.
        points: What was logged, by step.
        colour: Of both lines.
    Returns:
        The average's window, in logged points.
    """
    steps, losses = [point.step for point in points], [point.loss for point in points]
    window = 2 * round(len(points) * SMOOTHED_SHARE / 2) + 1
    if window > 1:
        axes.plot(steps, losses, color=colour, linewidth=0.8, alpha=0.35)
    strong = moving_average(losses, window)
    axes.plot(steps, strong, color=colour, linewidth=1.8, label=label, marker="o" if len(points) < 3 else "")
    return window


def loss_figure(runs: list[Run]) -> Figure | None:
    """None where no arm has a logged loss."""
    styles = arm_styles(arm_names(runs))
    figure, (axes,) = new_figure(1, 8.5, 4.4)
    windows, drawn = set(), set()
    for run in runs:
        for arm in run.arms:
            points = [point for point in arm.training if math.isfinite(point.loss)]
            if points:
                label = "_again" if arm.name in drawn else plain(arm.name)
                windows.add(draw_loss(axes, label, points, styles[arm.name][0]))
                drawn.add(arm.name)
    if not drawn:
        return None
    if published_fits(runs):
        draw_published_loss(axes, max(arm.steps for run in runs for arm in run.arms))
    smoothed = "" if windows == {1} else f", smoothed over {'/'.join(map(str, sorted(windows)))} logged points"
    set_titles(axes, f"Training loss{smoothed}", "trainer step", "loss (nats)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return figure


def published_fits(runs: list[Run]) -> bool:
    """Whether the fork's curves can stand next to these: only a collection of MS MARCO's size is comparable."""
    return all(run.collection["passages"] >= PUBLISHED_FROM_PASSAGES for run in runs)


def draw_grey(axes: Axes, curves: list[list[tuple[int, float]]], label: str) -> None:
    for i, curve in enumerate(curves):
        axes.plot(*zip(*curve, strict=True), color=GREY, linewidth=0.9, zorder=1, label="_grey" if i else label)


def draw_published_loss(axes: Axes, last_step: int) -> None:
    curves = read_published("fork_train_loss.csv", "step", "loss_mean_of_1000_steps").values()
    cut = [[(x - FORK_WARMUP_STEPS, y) for x, y in curve if x - FORK_WARMUP_STEPS <= last_step] for curve in curves]
    draw_grey(axes, [curve for curve in cut if curve], "the fork's arms")


def refresh_figure(runs: list[Run]) -> Figure | None:
    """nDCG@10 by refresh number, over the fork's published curves; None where they do not fit.

    The fork logged the refresh in the step's place, so that its curves fit no step axis.
    """
    if not published_fits(runs):
        return None
    styles = arm_styles(arm_names(runs))
    figure, (axes,) = new_figure(1, 8.5, 4.4)
    draw_grey(axes, list(read_dev_ndcg().values()), "the fork's arms")
    drawn = set()
    for run in runs:
        for arm in run.arms:
            points = sorted((point.refresh, point.ndcg) for point in arm.dev)
            if points:
                colour, marker = styles[arm.name]
                label = "_again" if arm.name in drawn else plain(arm.name)
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=label)
                drawn.add(arm.name)
    set_titles(
        axes,
        f"{capital(runs[0].split)} {METRICS[NDCG].label} by refresh (grey: the fork's 724 dev queries)",
        "refresh",
        METRICS[NDCG].label,
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return figure


def figures(runs: list[Run]) -> dict[str, Figure]:
    """File name: figure, those that there is something to draw for."""
    made = {"dev.png": dev_figure(runs), "loss.png": loss_figure(runs), "dev_by_refresh.png": refresh_figure(runs)}
    return {name: figure for name, figure in made.items() if figure is not None}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whatever the path's ending."""
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH)
