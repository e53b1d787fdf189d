"""Figures that show images: where the model looks.

What lives here: drawing from tracked arrays. What must not: reading the store (analysis/results.py). Arrays of
credentialed data are not in the store unless the user allowed it; their place then says "withheld".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from analysis.style import COLOURS, GREY, PAGE_WIDTH, SEQUENTIAL, Picture, style
from analysis.text import broken, finding_name
from analysis.tidy import Study

ATTENTION = "attention/grounding"
"""Arrays `similarity`, `attention` (n, H, W), `images` (n, H, W) uint8, `boxes` (n, k, 4) x, y, w, h in pixels, NaN
where there are fewer, `phrases` (n,), `findings` (n,)."""
NUM_EXAMPLES = 6
Arrays = Mapping[str, NDArray[np.generic]]


def grounding_maps(study: Study, tracked: Mapping[str, Arrays], withheld: Sequence[str] = (), seed: int = 0
                   ) -> Picture | None:
    """Similarity of phrase and patches with the true boxes: a row of images, then a row for each arm.

    Args:
        tracked: arm -> arrays under `ATTENTION`, of trials at one `seed`, on the same examples.
        withheld: arms whose arrays were not tracked because the data are credentialed.

    Returns:
        None where no arm has tracked or withheld anything.
    """
    arms = [arm for arm in study.plan.arms if arm in tracked or arm in withheld]
    if not arms:
        return None
    first = next(iter(tracked.values()), None)
    if first is None:
        # One row says it all.
        arms = []
    num_examples = NUM_EXAMPLES if first is None else min(NUM_EXAMPLES, len(first["phrases"]))
    with style():
        side = PAGE_WIDTH / (num_examples + 0.55)
        figure, grid = plt.subplots(len(arms) + 1, num_examples, squeeze=False,
                                    figsize=(PAGE_WIDTH, side * (len(arms) + 1) + 0.45))
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for column in range(num_examples):
            if first is None:
                _withheld(grid[0, column])
                continue
            _image(grid[0, column], first, column)
            finding = finding_name(str(first["findings"][column]))
            grid[0, column].set_title(f"{finding.capitalize()}\n{broken(str(first['phrases'][column]), 24, lines=2)}",
                                      fontsize=6, linespacing=1.2)
        grid[0, 0].set_ylabel("Image and\ntrue box", fontsize=6.5)
        for row, arm in enumerate(arms, start=1):
            for column in range(num_examples):
                if arm in tracked:
                    _map(grid[row, column], tracked[arm], column)
                else:
                    _withheld(grid[row, column])
            grid[row, 0].set_ylabel(broken(arm, 16), fontsize=6.5)
    if first is None:
        return Picture(f"grounding_{study.plan.name}", figure,
                       f"Study {study.plan.name}. Where words look: withheld, because the data are credentialed and "
                       "images and maps of patients were not tracked (n = 0 trials).", study.plan.name)
    return Picture(
        f"grounding_{study.plan.name}", figure,
        f"Study {study.plan.name}. Where words look: cosine of a phrase's words with the image's patches, bilinear, "
        f"each map scaled to its own range (dark low, yellow high), with the true box and the "
        f"highest point (+); one row an arm, seed {seed}, "
        f"{num_examples} held-out examples drawn in turn from the findings whatever their scores (n = 1 trial an arm).",
        study.plan.name)


def _image(axes: Axes, arrays: Arrays, row: int) -> None:
    axes.imshow(arrays["images"][row].astype(float), cmap="gray", vmin=0, vmax=255)
    axes.autoscale(False)
    _boxes(axes, arrays, row, COLOURS[4])


def _map(axes: Axes, arrays: Arrays, row: int) -> None:
    axes.imshow(arrays["images"][row].astype(float), cmap="gray", vmin=0, vmax=255)
    similarity = arrays["similarity"][row].astype(float)
    axes.imshow(similarity, cmap=SEQUENTIAL, alpha=0.5, vmin=similarity.min(), vmax=similarity.max())
    axes.autoscale(False)
    _boxes(axes, arrays, row, "white")
    peak = np.unravel_index(int(similarity.argmax()), similarity.shape)
    axes.plot(peak[1], peak[0], "+", color=COLOURS[1], markersize=6, markeredgewidth=1.2)


def _boxes(axes: Axes, arrays: Arrays, row: int, colour: str) -> None:
    for x, y, width, height in arrays["boxes"][row].astype(float):
        if not np.isnan(x):
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.0))


def _withheld(axes: Axes) -> None:
    axes.set_facecolor("#f2f2f2")
    axes.set_aspect("equal")
    axes.text(0.5, 0.5, "withheld", transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=6)
