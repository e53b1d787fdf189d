"""Figures of a search: isolation plots, the course of the best, importances, the front of several objectives.

An isolation plot, after the Deep Learning Tuning Playbook, answers for one scientific parameter: with the nuisance
parameters as good as they were found at each of its values, how good can it be? All trials stand behind the line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analysis.searches import Contest, Floats, SearchResult, front, hypervolume, position_in, running_best
from analysis.style import BLACK, COLOURS, COLUMN_WIDTH, GREY, LIGHT, PAGE_WIDTH, Picture, panel_letter, style

NUM_BINS = 6
"""Of a range: each shows its best trial."""
PANELS_A_ROW = 3


def best_by_bin(positions: Floats, scores: Floats, sign: float, num_bins: int = NUM_BINS) -> list[int]:
    """Rows of the best trial in each of `num_bins` equal parts of [0, 1], in their order; empty parts left out.

    Args:
        positions: (trials,) in [0, 1]; NaN where the parameter did not exist.
        scores: (trials,); NaN where not finished.
    """
    usable = ~np.isnan(positions) & ~np.isnan(scores)
    bins = np.minimum((np.where(usable, positions, 0.0) * num_bins).astype(int), num_bins - 1)
    rows = []
    for part in range(num_bins):
        inside = np.flatnonzero(usable & (bins == part))
        if len(inside):
            rows.append(int(inside[np.argmax(scores[inside] * sign)]))
    return rows


def isolation(result: SearchResult, index: int = 0) -> Picture | None:
    """One panel for every parameter: all finished trials, pruned ones, and the best at each value."""
    scores, sign = result.scores(index), result.signs[index]
    if np.isnan(scores).all():
        return None
    parameters = result.parameters
    num_rows = math.ceil(len(parameters) / PANELS_A_ROW)
    with style():
        figure, grid = plt.subplots(num_rows, PANELS_A_ROW, figsize=(PAGE_WIDTH, 0.3 + 1.75 * num_rows), squeeze=False,
                                    sharey=True)
        for position, axes in enumerate(grid.flat):
            if position >= len(parameters):
                axes.set_visible(False)
                continue
            _panel(axes, result, parameters[position], scores, sign, index)
            panel_letter(axes, position)
            if position % PANELS_A_ROW == 0:
                axes.set_ylabel(result.objectives[index].removeprefix("validation/"))
    scientific = result.plan["scientific"]
    asked = (f"Scientific: {', '.join(_label(result, key) for key in scientific)}; the others are nuisance."
             if scientific else "Each parameter is the scientific one in its panel, all others nuisance.")
    pruned = int((result.trials["state"] == "pruned").sum())
    suffix = "" if index == 0 else f"_{index + 1}"
    return Picture(f"isolation_{result.name}{suffix}", figure,
                   f"Search {result.name}, {len(result.trials)} trials on {result.plan['data']}: "
                   f"{result.objectives[index]} over each parameter. Dots: finished trials; line: the best one at each "
                   f"choice or in each of {NUM_BINS} parts of a range, with all other parameters as they were in it; "
                   f"crosses: {pruned} pruned trials, at their last rung and so after less training; grey bands: the "
                   f"outer 5 % of a range. {asked} One seed: the height of the best is optimistic.", result.name)


def _label(result: SearchResult, key: str) -> str:
    return next(str(parameter["label"]) for parameter in result.parameters if parameter["key"] == key)


def _panel(axes: Axes, result: SearchResult, parameter: Mapping[str, Any], scores: Floats, sign: float, index: int
           ) -> None:
    key = parameter["key"]
    held: list[Any] = [values.get(key) for values in result.values]
    exists = np.array([key in values for values in result.values])
    axes.set_xlabel(parameter["label"])
    axes.grid(axis="y", color=LIGHT, linewidth=0.4)
    axes.set_axisbelow(True)
    if parameter["choices"]:
        places = np.array([float(parameter["choices"].index(value)) if there else np.nan
                           for value, there in zip(held, exists, strict=True)])
        axes.set_xticks(range(len(parameter["choices"])), [str(choice) for choice in parameter["choices"]])
        axes.set_xlim(-0.5, len(parameter["choices"]) - 0.5)
        best = [int(rows[np.argmax(scores[rows] * sign)]) for choice in range(len(parameter["choices"]))
                if len(rows := np.flatnonzero((places == choice) & ~np.isnan(scores)))]
    else:
        places = np.array([np.nan if value is None else float(value) for value in held])
        positions = np.array([position_in(parameter, place) if not np.isnan(place) else np.nan for place in places])
        if parameter["is_log"]:
            axes.set_xscale("log")
        axes.set_xlim(parameter["low"], parameter["high"])
        for low, high in ((0.0, 0.05), (0.95, 1.0)):
            axes.axvspan(_at(parameter, low), _at(parameter, high), color=LIGHT, alpha=0.5, linewidth=0, zorder=0)
        best = best_by_bin(positions, scores, sign)
    if index == 0:
        pruned = (result.trials["state"] == "pruned").to_numpy() & exists
        last = np.array([list(rungs.values())[-1] if rungs else np.nan for rungs in result.rungs])
        axes.plot(places[pruned], last[pruned], "x", color=GREY, markersize=3, markeredgewidth=0.7, zorder=1,
                  clip_on=False)
    axes.plot(places, scores, "o", color=COLOURS[0], alpha=0.45, markersize=3.2, markeredgewidth=0, zorder=2,
              clip_on=False)
    axes.plot(places[best], scores[best], "o-" if not parameter["choices"] else "o", color=COLOURS[1], markersize=4,
              linewidth=1, zorder=3, clip_on=False)
    for line in axes.lines:
        # Not clipped, an empty one would count for the layout as a dot in the corner of the page.
        line.set_in_layout(False)


def _at(parameter: Mapping[str, Any], position: float) -> float:
    low, high = parameter["low"], parameter["high"]
    if parameter["is_log"]:
        return float(math.exp(math.log(low) + position * (math.log(high) - math.log(low))))
    return float(low + position * (high - low))


def course(result: SearchResult, contests: Sequence[Contest], rivals: Mapping[str, tuple[Floats, Floats]]
           ) -> Picture | None:
    """The best so far over trials and seconds of computing, beside others, with the best of each other as a line."""
    scores, sign = result.scores(), result.signs[0]
    if np.isnan(scores).all() or len(result.objectives) > 1:
        return None
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.1), sharey=True)
        courses = {result.name: (scores, result.seconds()), **rivals}
        for (name, (values, seconds)), colour in zip(courses.items(), COLOURS, strict=False):
            best = running_best(values, sign)
            left.step(np.arange(1, len(best) + 1), best, where="post", color=colour, linewidth=1.2, label=name)
            right.step(np.cumsum(seconds), best, where="post", color=colour, linewidth=1.2, label=name)
        left.plot(np.arange(1, len(scores) + 1), scores, "o", color=COLOURS[0], alpha=0.4, markersize=2.6,
                  markeredgewidth=0)
        for entry in contests:
            for axes, place in ((left, entry.trials_to_reach), (right, entry.seconds_to_reach)):
                axes.axhline(entry.best, color=GREY, linewidth=0.6, linestyle=(0, (4, 2)), zorder=0)
                if place is not None:
                    axes.plot(place, entry.best, "v", color=BLACK, markersize=4.5, zorder=4)
        left.set_xlabel("Trials begun")
        right.set_xlabel("Seconds of computing, all trials")
        left.set_ylabel(result.objectives[0].removeprefix("validation/"))
        right.legend(loc="lower right")
        for position, axes in enumerate((left, right)):
            panel_letter(axes, position)
    told = "".join(
        f" {entry.other}: its best, {entry.best:.4f} after {entry.num_trials} trials and {entry.seconds:.0f} s, was "
        + (f"reached after {entry.trials_to_reach} trials and {entry.seconds_to_reach:.0f} s (triangle)."
           if entry.trials_to_reach is not None else "not reached.") for entry in contests)
    return Picture(f"course_{result.name}", figure,
                   f"Search {result.name}: the best {result.objectives[0]} so far. Dots: its finished trials. Pruned "
                   f"trials count with what they cost. Dashed: the best of another.{told}", result.name)


def importance_bars(result: SearchResult) -> Picture | None:
    """Shares of each parameter, by both measures."""
    table = result.importance
    if table.empty:
        return None
    objectives = list(dict.fromkeys(table["objective"]))
    with style():
        figure, grid = plt.subplots(1, len(objectives), squeeze=False, sharex=True, figsize=(
            COLUMN_WIDTH if len(objectives) == 1 else PAGE_WIDTH, 0.8 + 0.3 * len(result.parameters)))
        for position, (objective, axes) in enumerate(zip(objectives, grid[0], strict=True)):
            rows = table[table["objective"] == objective].sort_values("pedanova")
            places = np.arange(len(rows))
            axes.barh(places + 0.18, rows["pedanova"].fillna(0.0), 0.34, color=COLOURS[0], label="PED-ANOVA")
            axes.barh(places - 0.18, rows["fanova"].fillna(0.0), 0.34, color=COLOURS[4], label="fANOVA")
            for place, value in zip(places, rows["fanova"], strict=True):
                if np.isnan(value):
                    axes.annotate("not in all trials", (0, place - 0.18), xytext=(2, 0), textcoords="offset points",
                                  va="center", fontsize=5, color=GREY)
            axes.set_yticks(places, [_label(result, key) for key in rows["parameter"]])
            axes.tick_params(axis="y", length=0)
            axes.set_xlabel(f"Share of importance\n{objective.removeprefix('validation/')}")
            if len(objectives) > 1:
                panel_letter(axes, position)
        grid[0][-1].legend(loc="lower right")
    return Picture(f"importance_{result.name}", figure,
                   f"Search {result.name}: what mattered among {int(table['num_trials'].iloc[0])} finished trials. "
                   "PED-ANOVA: for being among the best quarter. fANOVA: share of the variance over the whole space; "
                   "only of parameters that exist in all trials. With a few dozen trials small shares are noise.",
                   result.name)


def pareto(result: SearchResult) -> Picture | None:
    """The first two objectives of every finished trial, the front, and the hypervolume over trials."""
    if len(result.objectives) < 2:
        return None
    scores = np.stack([result.scores(index) for index in range(len(result.objectives))], axis=1) * result.signs
    known: NDArray[np.bool_] = np.all(np.isfinite(scores), axis=1)
    if known.sum() < 2:
        return None
    is_front = front(scores)
    reference = scores[known].min(axis=0)
    volumes = [hypervolume(scores[: count + 1][known[: count + 1]], reference) for count in range(len(scores))]
    signs = result.signs
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.3))
        left.plot(scores[known, 0] * signs[0], scores[known, 1] * signs[1], "o", color=COLOURS[0], alpha=0.5,
                  markersize=3.5, markeredgewidth=0)
        edge = scores[is_front][np.argsort(scores[is_front, 0])]
        left.step(edge[:, 0] * signs[0], edge[:, 1] * signs[1], where="pre" if signs[0] > 0 else "post",
                  color=COLOURS[1], linewidth=1)
        left.plot(edge[:, 0] * signs[0], edge[:, 1] * signs[1], "o", color=COLOURS[1], markersize=4.5)
        for row in np.flatnonzero(is_front):
            left.annotate(f"#{result.trials['number'].iloc[row]}", scores[row, :2] * signs[:2], xytext=(3, 3),
                          textcoords="offset points", fontsize=5.5)
        left.set_xlabel(result.objectives[0].removeprefix("validation/"))
        left.set_ylabel(result.objectives[1].removeprefix("validation/"))
        right.step(np.arange(1, len(volumes) + 1), volumes, where="post", color=COLOURS[0], linewidth=1.2)
        right.set_xlabel("Trials begun")
        right.set_ylabel("Hypervolume above the worst values")
        for position, axes in enumerate((left, right)):
            panel_letter(axes, position)
    return Picture(f"pareto_{result.name}", figure,
                   f"Search {result.name}: {int(known.sum())} finished trials; orange: the {int(is_front.sum())} that "
                   "no other beats in all objectives, with their numbers. Right: the volume that they dominate above "
                   "the worst value found in each objective. One seed: part of the front is luck.", result.name)
