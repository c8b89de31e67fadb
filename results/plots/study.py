"""The pictures of a study: curves with bands, finals with intervals, the sweep over windows of ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from results.plots.curves import arm_styles, capital, new_figure, plain, set_titles
from results.read.study import Study
from results.stats import seeds_interval
from utils.declared.strategies import STRATEGIES
from utils.ir.metrics import METRICS, MRR
from utils.ir.rank_buckets import TRIPLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC = METRICS[MRR]


def curves_of(study: Study, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and MRR@10 [seeds, steps] of the checkpoints that every seed's refreshes measured, and of the last."""
    curves = []
    for run in study.arms[name]:
        curve = {point.step: point.mrr for point in run.arm.dev if point.mrr is not None}
        curve[run.arm.steps] = run.arm.evaluation.metrics[METRIC.name]
        curves.append(curve)
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in curves])


def draw_curves(axes: Axes, study: Study) -> None:
    """The mean over the seeds, and a band from the lowest to the highest of them."""
    for name, (colour, marker) in arm_styles(list(study.arms)).items():
        steps, values_SX = curves_of(study, name)
        axes.plot(steps, values_SX.mean(0), color=colour, marker=marker, markersize=4, linewidth=1.6, label=plain(name))
        axes.fill_between(steps, values_SX.min(0), values_SX.max(0), color=colour, alpha=0.12, linewidth=0)
    title = f"{capital(study.split)} {METRIC.label}, mean and range over seeds"
    set_titles(axes, title, "trainer step (0: warmup)", METRIC.label)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def draw_finals(axes: Axes, study: Study) -> None:
    styles = arm_styles(list(study.arms))
    names = sorted(study.arms, key=lambda name: study.finals(name, METRIC.name).mean())
    for place, name in enumerate(names):
        values_S, colour = study.finals(name, METRIC.name), styles[name][0]
        axes.plot(values_S, np.full(len(values_S), place), ".", color=colour, alpha=0.45, markersize=6)
        interval = seeds_interval(values_S)
        if np.isfinite(interval.low):
            axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2)
        axes.plot([interval.mean], [place], styles[name][1], color=colour, markersize=8, markeredgecolor="white")
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    set_titles(axes, f"Final {study.split} {METRIC.label}, 95% over seeds", METRIC.label, "")
    axes.xaxis.set_major_formatter("{x:.3f}")


def main_figure(study: Study) -> Figure:
    figure, (left, right) = new_figure(2, 12, 4.4)
    draw_curves(left, study)
    draw_finals(right, study)
    return figure


def windows_of(study: Study) -> list[tuple[int, int, str]]:
    """(first, last, arm) of the arms whose negatives are one window of ranks, by rank."""
    found = []
    for name, runs in study.arms.items():
        word, _, _ = runs[0].arm.strategy.partition(":")
        declared = STRATEGIES.get(word)
        if declared is None or declared.window is None:
            continue
        if numbers := declared.numbers_in(runs[0].arm.strategy.removeprefix(word)):
            first, last = (numbers[end] for end in declared.window)
            found.append((first, last, name))
    return sorted(found)


def mean_gradient(study: Study, name: str) -> float:
    """Of a triple, over all ranks and seeds; NaN where it was not logged."""
    found = [values for run in study.measures[name] for values in run.by_rank.values()]
    triples = sum(one[TRIPLES] for one in found)
    return sum(one["gradient"] * one[TRIPLES] for one in found) / triples if triples else math.nan


def sweep_figure(study: Study) -> Figure:
    """Final quality, and the mean gradient of a triple, against the rank of the negatives."""
    windows = windows_of(study)
    centre = np.array([(first + last) / 2 for first, last, _ in windows])
    values_WS = np.array([study.finals(name, METRIC.name) for _, _, name in windows])
    gradient_W = [mean_gradient(study, name) for _, _, name in windows]
    figure, (axes,) = new_figure(1, 8.5, 4.4)
    axes.plot(centre, values_WS.mean(1), color="#0072B2", marker="o", label=f"final {study.split} {METRIC.label}")
    axes.fill_between(centre, values_WS.min(1), values_WS.max(1), color="#0072B2", alpha=0.15, linewidth=0)
    set_titles(axes, "Negatives from one window of ranks each", "rank (middle of the window)", METRIC.label)
    if np.isnan(gradient_W).all():
        return figure
    other = axes.twinx()
    other.plot(centre, gradient_W, color="#D55E00", marker="s", linestyle="--", label="mean gradient norm of a triple")
    other.set_ylabel("gradient norm")
    handles = [*axes.get_lines(), *other.get_lines()]
    axes.legend(handles, [str(line.get_label()) for line in handles], frameon=False, fontsize=9)
    return figure
