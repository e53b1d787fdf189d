"""The figure of the audit: dose-response curves of planted effects, and the power.

What lives here: drawing what audit.py found. What must not: numbers of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from analysis import registry, statistics
from analysis.audit import NAME, PLANTED, Audit, Planted
from analysis.calibration import LEVEL, Dose, Rejections
from analysis.style import BLACK, COLOURS, GREY, LIGHT, PAGE_WIDTH, Picture, panel_letter, style
from analysis.text import broken


def draw(found: Audit) -> Picture:
    """Dose-response curves, and the power in pairs of one arm with itself."""
    panels = [*found.curves, *(["power"] if found.powers else [])]
    num_columns = 3
    num_rows = max(1, math.ceil(len(panels) / num_columns))
    with style():
        figure, grid = plt.subplots(num_rows, num_columns, figsize=(PAGE_WIDTH, 1.9 * num_rows), squeeze=False)
        for axes in grid.ravel()[len(panels):]:
            axes.set_axis_off()
        for position, (name, axes) in enumerate(zip(panels, grid.ravel(), strict=False)):
            if name == "power":
                _draw_power(axes, found.powers)
            else:
                effect = next(effect for effect in PLANTED if effect.name == name)
                _draw_doses(axes, effect, found.curves[name])
            panel_letter(axes, position)
    caption = ("Planted effects by degrees: difference with and without the information, paired by seed, mean and 95 % "
               "interval; filled: found at an adjusted p of 0.05; grey: what this test would miss more often than "
               "once in five. Power: share of A/A comparisons at 6 against 6 seeds in which an added difference "
               "was found.")
    return Picture(NAME, figure, " ".join([caption, *found.warnings]), NAME)


def _draw_doses(axes: Axes, effect: Planted, doses: Sequence[Dose]) -> None:
    # Dose 0 of an effect without pairs is the reference itself.
    at = [dose.dose for dose in doses]
    # Below 6 seeds there is no limit to draw.
    limit = [100 * dose.detectable if math.isfinite(dose.detectable) else math.nan for dose in doses]
    axes.fill_between(at, [-value for value in limit], limit, color=LIGHT, linewidth=0, zorder=0)
    axes.axhline(0, color=GREY, linewidth=0.6)
    mean = [100 * dose.difference.mean for dose in doses]
    start = [] if effect.has_pairs else [0.0]
    axes.plot([*start, *at], [*start, *mean], color=COLOURS[0], zorder=2)
    for place, value, dose in zip(at, mean, doses, strict=True):
        axes.errorbar(place, value, 100 * dose.difference.interval.half_width, color=COLOURS[0], marker="o", capsize=2,
                      markerfacecolor=COLOURS[0] if dose.is_found else "white", zorder=3)
    axes.set(title=effect.name.capitalize(), xlabel=f"{effect.dial} (share)", xlim=(-0.08, 1.08),
             ylabel=f"{broken(registry.describe(effect.metric).short, 16)}\ndifference (points)")


def _draw_power(axes: Axes, powers: Mapping[str, Sequence[Rejections]]) -> None:
    for colour, (metric, curve) in zip(COLOURS, powers.items(), strict=False):
        axes.plot([100 * point.shift for point in curve], [100 * point.by_test.value for point in curve], color=colour,
                  label=registry.describe(metric).short)
    axes.axhline(100 * statistics.POWER, color=GREY, linewidth=0.6, linestyle=":")
    axes.axhline(100 * LEVEL, color=BLACK, linewidth=0.6, linestyle=":")
    axes.set(title="Power at 6 seeds", xlabel="added difference (points)", ylabel="found (%)", ylim=(0, 102))
    axes.legend(loc="lower right", fontsize="x-small", handlelength=0.9, borderaxespad=0.1)
