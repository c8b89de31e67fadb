"""The picture of a query's neighbourhood: its texts in two dimensions, a panel for each arm's negatives.

The coordinates are t-SNE's (van der Maaten and Hinton 2008), as in figure 1 of the ANCE paper.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from results.plots.curves import new_figure, plain
from utils.errors import UserError
from utils.ir.query_map import BACKGROUND, NEGATIVE, NO_RANK, POSITIVE, QUERY, Neighbourhood

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

LARGEST_PERPLEXITY = 30.0  # t-SNE's usual one; fewer points need a smaller
TSNE_SEED = 0
ONE_ROW = 4  # panels; more of them make two rows
MARGIN = 0.06  # around the points, as a share of their extent
PANEL_INCHES = 3.3
RANK_COLOURS = "plasma"  # dark to bright, and none of them like the two below
NO_RANK_COLOUR, POSITIVE_COLOUR = "#56B4E9", "#009E73"

STYLES: dict[str, dict[str, Any]] = {  # by label, from the back of a panel to its front
    "other passages": {"color": "#D0D0D0", "s": 9, "linewidths": 0},
    "other arms' negatives": {"facecolors": "none", "edgecolors": "#9A9A9A", "s": 18, "linewidths": 0.7},
    "negatives without a rank": {"color": NO_RANK_COLOUR, "s": 26, "linewidths": 0.5, "edgecolors": "black"},
    "negatives by rank": {"cmap": RANK_COLOURS, "s": 26, "linewidths": 0.5, "edgecolors": "black"},
    "positive": {"color": POSITIVE_COLOUR, "marker": "*", "s": 150, "linewidths": 0.9, "edgecolors": "white"},
    "query": {"color": "black", "marker": "X", "s": 80, "linewidths": 1.0, "edgecolors": "white"},
}


def coordinates(embedding_ND: np.ndarray) -> np.ndarray:
    """float [N, 2]: the embeddings laid out by t-SNE, the same at every call; N and D at least 2.

    UserError where all embeddings are one.
    """
    from sklearn.manifold import TSNE

    if (embedding_ND == embedding_ND[0]).all():
        raise UserError(f"all {len(embedding_ND)} texts have the same embedding: the model has collapsed; take another")
    perplexity = min(LARGEST_PERPLEXITY, (len(embedding_ND) - 1) / 3)
    layout = TSNE(2, perplexity=perplexity, metric="euclidean", init="pca", random_state=TSNE_SEED)
    return np.asarray(layout.fit_transform(embedding_ND))


def parts_of(found: Neighbourhood, arm: int) -> list[np.ndarray]:
    """Which texts each of STYLES is for in the arm's panel: bool [N] each, none of them in two."""
    is_negative_N, rank_N = found.kind_N == NEGATIVE, found.rank_AN[arm]
    by_rank = [is_negative_N & chosen_N for chosen_N in (rank_N < NO_RANK, rank_N == NO_RANK, rank_N > NO_RANK)]
    return [found.kind_N == BACKGROUND, *by_rank, found.kind_N == POSITIVE, found.kind_N == QUERY]


def draw_arm(axes: Axes, found: Neighbourhood, arm: int, xy_N2: np.ndarray) -> dict[str, PathCollection]:
    """Draw one panel.

    Args:
        axes: Where.
        found: The query and the texts around it.
        arm: Whose negatives are coloured, by its place in ``found.arms``.
        xy_N2: float [N, 2], where each text lies.
    Returns:
        What was drawn, by its label in `STYLES`.
    """
    largest_rank = max(2, int(found.rank_AN.max()))  # of all arms, so that a colour is a rank in every panel
    drawn = {}
    for place, (label, part_N) in enumerate(zip(STYLES, parts_of(found, arm), strict=True)):
        style = dict(STYLES[label])
        if "cmap" in style:
            style.update(c=found.rank_AN[arm, part_N], vmin=1, vmax=largest_rank)
        if part_N.any():
            drawn[label] = axes.scatter(*xy_N2[part_N].T, label=label, zorder=2 + place, **style)
    low_2, high_2 = xy_N2.min(0), xy_N2.max(0)
    margin_2 = MARGIN * (high_2 - low_2)
    (left, bottom), (right, top) = low_2 - margin_2, high_2 + margin_2
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.spines[["top", "right"]].set_visible(True)
    axes.spines[:].set_color("#BBBBBB")
    axes.set_title(plain(found.arms[arm]), loc="left", fontsize=11, fontweight="bold")
    return drawn


def neighbourhood_figure(found: Neighbourhood) -> Figure:
    """A panel for each arm over the same coordinates; its own negatives have the colour of their rank.

    UserError where all embeddings are one.
    """
    arms = len(found.arms)
    columns = arms if arms <= ONE_ROW else math.ceil(arms / 2)
    figure, panels = new_figure(arms, PANEL_INCHES * columns + 1, PANEL_INCHES + 0.3, a_row=columns)
    xy_N2, drawn = coordinates(found.embedding_ND), {}
    for arm, axes in enumerate(panels):
        drawn.update(draw_arm(axes, found, arm, xy_N2))
    if "negatives by rank" in drawn:
        figure.colorbar(drawn["negatives by rank"], ax=panels, label="rank", aspect=30, pad=0.01)
    labels = [label for label in STYLES if label in drawn]
    figure.legend(
        [drawn[label] for label in labels], labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def neighbourhood_caption(found: Neighbourhood) -> str:
    """What is drawn, and what cannot be read from it."""
    names = " and ".join(sorted({Path(file).name for file in found.files}))
    passages, model = len(found.passage_N) - found.count(QUERY), "/".join(Path(found.model).parts[-2:])
    return (
        f"Train query {found.query_id}, its positives, the arms' negatives of it ({names}) and "
        f"{found.count(BACKGROUND)} random passages as {model} embeds them, {passages} passages in all, laid out once "
        "by t-SNE for all panels (the "
        "ANCE paper's Figure 1). t-SNE keeps near neighbours near: how far apart groups lie, or how dense they are, "
        "says little."
    )
