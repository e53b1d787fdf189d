"""Figures that show images: the data, and where the model looks.

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
"""Arrays `similarity`, `attention`, `patch_similarity` (n, H, W), `reference` (n, 2) x, y of the reference patch,
`images` (n, H, W) uint8, `boxes` (n, k, 4) x, y, w, h in pixels, NaN where there are fewer, `phrases`, `findings`
(n,)."""
NUM_EXAMPLES = 6
Arrays = Mapping[str, NDArray[np.generic]]


SAMPLES = "samples/sequences"
"""Arrays `frontal`, `lateral` (n, T, H, W) uint8, `has_lateral`, `frontal_view`, `lateral_view`, `reports`, `days`
(n, T)."""
NUM_REPORT_LINES = 7


def patients(study: Study, samples: Arrays | None, is_withheld: bool) -> Picture | None:
    """The data as the model is given them: patients over time, both views, reports.

    Args:
        samples: arrays under `SAMPLES`; None where they were not tracked.
    """
    if samples is None:
        return all_withheld(study, "data", "Patients over time") if is_withheld else None
    num_patients, num_studies = min(2, len(samples["frontal"])), samples["frontal"].shape[1]
    # In inches: a study is two square images side by side with the report below them.
    width = PAGE_WIDTH / num_studies
    side, text_height, head = (width - 0.14) / 2, 0.115 * NUM_REPORT_LINES, 0.34
    height = head + side + 0.06 + text_height
    with style():
        figure = plt.figure(figsize=(PAGE_WIDTH, num_patients * height), layout="none")

        def place(left: float, top: float, right: float, bottom: float) -> Axes:
            total = num_patients * height
            axes = figure.add_axes((left / PAGE_WIDTH, 1 - bottom / total, (right - left) / PAGE_WIDTH,
                                    (bottom - top) / total))
            axes.set_axis_off()
            return axes

        for patient in range(num_patients):
            top = patient * height
            figure.text(0.03 / PAGE_WIDTH, 1 - (top + 0.04) / (num_patients * height), f"Patient {'ABC'[patient]}",
                        va="top", fontsize=7, fontweight="bold")
            for number in range(num_studies):
                left, which = number * width + 0.03, (patient, number)
                upper, lower = top + head, top + head + side
                frontal = place(left, upper, left + side, lower)
                lateral = place(left + side + 0.04, upper, left + 2 * side + 0.04, lower)
                frontal.imshow(samples["frontal"][which].astype(float), cmap="gray", vmin=0, vmax=255)
                frontal.set_title(f"Day {float(samples['days'][which]):.0f}, {samples['frontal_view'][which]}",
                                  fontsize=6, pad=2)
                if samples["has_lateral"][which]:
                    lateral.imshow(samples["lateral"][which].astype(float), cmap="gray", vmin=0, vmax=255)
                    lateral.set_title(str(samples["lateral_view"][which]), fontsize=6, pad=2)
                else:
                    lateral.add_patch(Rectangle((0, 0), 1, 1, transform=lateral.transAxes, facecolor="#f2f2f2"))
                    lateral.text(0.5, 0.5, "no lateral", transform=lateral.transAxes, ha="center", va="center",
                                 color=GREY, fontsize=6)
                below = place(left, lower + 0.05, left + width - 0.1, lower + 0.05 + text_height)
                below.text(0, 1, broken(str(samples["reports"][which]), 36, NUM_REPORT_LINES),
                           transform=below.transAxes, va="top", fontsize=5, linespacing=1.25)
    return Picture("data", figure,
                   f"Data of study {study.plan.name}. {num_patients} held-out patients over time (days since the "
                   "first study shown): frontal and lateral view of every study and the beginning of its report, as "
                   f"the model is given them. Of the patients with {num_studies} studies and laterals for half of them "
                   "or more, those with the most labelled findings.", study.plan.name)


def grounding_maps(study: Study, tracked: Mapping[str, Arrays], withheld: Sequence[str] = (), seed: int = 0
                   ) -> Picture | None:
    """Where phrases and patches look, with the true boxes: a row of images, then two rows for each arm.

    Args:
        tracked: arm -> arrays under `ATTENTION`, of trials at one `seed`, on the same examples.
        withheld: arms whose arrays were not tracked because the data are credentialed.

    Returns:
        None where no arm has tracked or withheld anything.
    """
    arms = [arm for arm in study.plan.arms if arm in tracked]
    if not arms:
        return all_withheld(study, "attention", "Where words look") if withheld else None
    first = tracked[arms[0]]
    num_examples = min(NUM_EXAMPLES, len(first["phrases"]))
    kinds = [(kind, name) for kind, name in (("similarity", "phrase"), ("patch_similarity", "patch")) if kind in first]
    rows = [(arm, kind, name) for kind, name in kinds for arm in arms if kind in tracked[arm]]
    with style():
        side = PAGE_WIDTH / (num_examples + 0.7)
        figure, grid = plt.subplots(len(rows) + 1, num_examples, squeeze=False,
                                    figsize=(PAGE_WIDTH, side * (len(rows) + 1) + 0.5))
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for column in range(num_examples):
            _image(grid[0, column], first, column)
            finding = finding_name(str(first["findings"][column]))
            grid[0, column].set_title(f"{finding.capitalize()}\n{broken(str(first['phrases'][column]), 24, lines=2)}",
                                      fontsize=6, linespacing=1.2)
        grid[0, 0].set_ylabel("Image and\ntrue box", fontsize=6.5)
        for row, (arm, kind, name) in enumerate(rows, start=1):
            for column in range(num_examples):
                _map(grid[row, column], tracked[arm], kind, column)
            grid[row, 0].set_ylabel(f"{broken(arm, 18)}\n({name})", fontsize=6.5)
    patch = ""
    if len(kinds) > 1:
        patch = (" Rows 'patch': cosine of the reference patch (circle: the patch that holds the middle of the box) "
                 "with all patches of its image.")
    return Picture(
        "attention", figure,
        f"Study {study.plan.name}. Rows 'phrase': cosine of a phrase's words with the image's patches, bilinear, "
        f"with the highest point (+).{patch} Each map is scaled to its own range (dark low, yellow high); the true box "
        f"is white. Seed {seed}, {num_examples} held-out examples drawn in turn from the findings whatever their "
        "scores (n = 1 trial an arm).", study.plan.name)


def all_withheld(study: Study, name: str, subject: str) -> Picture:
    with style():
        figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 1.2))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        _withheld(axes)
    return Picture(name, figure, f"Study {study.plan.name}. {subject}: withheld, because the data are credentialed and "
                   "what shows single patients was not tracked (n = 0 trials).", study.plan.name)


def _image(axes: Axes, arrays: Arrays, row: int) -> None:
    axes.imshow(arrays["images"][row].astype(float), cmap="gray", vmin=0, vmax=255)
    axes.autoscale(False)
    _boxes(axes, arrays, row, COLOURS[4])


def _map(axes: Axes, arrays: Arrays, kind: str, row: int) -> None:
    axes.imshow(arrays["images"][row].astype(float), cmap="gray", vmin=0, vmax=255)
    similarity = arrays[kind][row].astype(float)
    axes.imshow(similarity, cmap=SEQUENTIAL, alpha=0.5, vmin=similarity.min(), vmax=similarity.max())
    axes.autoscale(False)
    _boxes(axes, arrays, row, "white")
    if kind == "patch_similarity":
        x, y = arrays["reference"][row].astype(float)
        axes.plot(x - 0.5, y - 0.5, "o", markerfacecolor="none", markeredgecolor=COLOURS[1], markersize=4,
                  markeredgewidth=1.0)
        return
    peak = np.unravel_index(int(similarity.argmax()), similarity.shape)
    axes.plot(peak[1], peak[0], "+", color=COLOURS[1], markersize=6, markeredgewidth=1.2)


def _boxes(axes: Axes, arrays: Arrays, row: int, colour: str) -> None:
    for x, y, width, height in arrays["boxes"][row].astype(float):
        if not np.isnan(x):
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.0))


def _withheld(axes: Axes) -> None:
    axes.set_facecolor("#f2f2f2")
    axes.text(0.5, 0.5, "withheld", transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=6)
