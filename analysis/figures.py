"""Figures of comparisons: paired differences, response surface, number of experts, learning curves, curriculum.

What lives here: drawing from a `Study` and its curves. What must not: reading the store (analysis/results.py),
statistics (analysis/statistics.py), pictures of images (analysis/pictures.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MultipleLocator

from analysis import registry, statistics
from analysis.registry import Metric
from analysis.style import BLACK, COLOURS, COLUMN_WIDTH, GREY, LIGHT, LINES, PAGE_WIDTH, SEQUENTIAL, Picture, style
from analysis.text import broken, expert_names, in_unit, seeds_text
from analysis.tidy import Plan, Study

LAMBDA_KEYS = ("objective.lambda_local", "objective.lambda_temporal")
EXPERT_KEYS = ("model.experts.routing", "model.experts.num_experts")
EXPERT_SHARE = "train/expert_share/"
SCHEDULES = {"train/fmc_weight": "Weight of FMC", "train/rmr_weight": "Weight of RMR",
             "train/sequence_length": "Studies in a sequence"}
"""Curve -> title of its column."""
Grid = tuple[dict[tuple[int, int], str], list[float], list[float]]
"""(row, column) -> arm; levels of λ2 (rows); levels of λ1 (columns)."""
MAX_CURVES = len(COLOURS)
"""Arms in one panel of curves that can still be told apart."""


def forest(study: Study) -> Picture:
    """Paired differences to the reference on the primary metric: every seed, mean and 95 % interval."""
    plan = study.plan
    metric = registry.describe(plan.primary)
    scores = study.scores(plan.primary)
    # An untrained arm lies so far off that the others would be dots on one line.
    floors = [arm for arm in plan.arms if plan.assignments.get(arm, {}).get("training.epochs") == 0]
    arms = [arm for arm in plan.arms if arm != plan.reference and arm not in floors]
    reference = scores[plan.reference].to_numpy()
    with style():
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 0.75 + 0.19 * len(arms)))
        axes.axvline(0, color=GREY, linewidth=0.6, zorder=0)
        for row, arm in enumerate(arms):
            paired = statistics.paired_difference(scores[arm].to_numpy(), reference)
            if paired.n == 0:
                axes.annotate("no finished pair", (0, row), xytext=(4, 0), textcoords="offset points", va="center",
                              color=GREY, fontsize=6)
                continue
            seeds = (scores[arm].to_numpy() - reference) * metric.scale
            axes.plot(seeds, np.full(len(seeds), row), "|", color=COLOURS[0], alpha=0.55, markersize=5, zorder=1)
            if paired.n > 1:
                axes.plot([paired.low * metric.scale, paired.high * metric.scale], [row, row], color=BLACK,
                          linewidth=1.1, solid_capstyle="butt", zorder=2)
            axes.plot(paired.mean * metric.scale, row, "o", color=BLACK, zorder=3)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=LIGHT, linewidth=0.4)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"Difference to {plan.reference} ({metric.unit})\n{broken(metric.name, 40)}\n"
                        + ("worse ←   → better" if metric.is_higher_better else "better ←   → worse"))
    hidden = f" Not shown: {', '.join(floors)}." if floors else ""
    return Picture(f"forest_{plan.name}", figure,
                   f"{_head(study)} Paired differences to '{plan.reference}' in {metric.name}. Dot and bar: mean and "
                   f"95 % t interval over seeds; ticks: single seeds."
                   f"{hidden} {_counts(study, plan.primary)}", plan.name)


def lambda_surface(study: Study) -> Picture | None:
    """Means and intervals over the grid of both loss weights, and main effects; None where there is no such grid."""
    plan = study.plan
    grid = _lambda_grid(study)
    if grid is None:
        return None
    arm_at, rows, columns = grid
    metric = registry.describe(plan.primary)
    scores = study.scores(plan.primary)
    intervals = {place: statistics.mean_interval(scores[arm].to_numpy()) for place, arm in arm_at.items()}
    table = scores.to_numpy()
    is_contender = dict.fromkeys(plan.arms, False)
    if (~np.isnan(table)).sum(axis=0).min() >= statistics.MIN_SEEDS_FOR_TEST:
        kept = statistics.contenders(table, metric.is_higher_better)
        if not kept.all():
            is_contender = dict(zip(plan.arms, kept.tolist(), strict=True))
    means = np.full((len(rows), len(columns)), math.nan)
    for (row, column), interval in intervals.items():
        means[row, column] = interval.mean * metric.scale
    with style():
        height = 0.6 + COLUMN_WIDTH * 0.72 * len(rows) / max(len(columns), 3)
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, height))
        image = axes.imshow(means, cmap=SEQUENTIAL, aspect="auto", origin="lower")
        middle = (np.nanmin(means) + np.nanmax(means)) / 2
        for (row, column), interval in intervals.items():
            dark = not means[row, column] > middle
            axes.text(column, row, _level(interval, metric), ha="center", va="center", fontsize=6, linespacing=1.15,
                      color="white" if dark else BLACK)
            if is_contender[arm_at[row, column]]:
                axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False,
                                         edgecolor="white" if dark else BLACK, linewidth=1.0, linestyle=(0, (2, 1))))
        margins = _draw_main_effects(axes, study, grid, metric)
        axes.set_xticks(range(len(columns)), [f"{level:g}" for level in columns])
        axes.set_yticks(range(len(rows)), [f"{level:g}" for level in rows])
        axes.set_xlabel("λ1, weight of local alignment")
        axes.set_ylabel("λ2, weight of the temporal loss")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(f"{metric.short} ({metric.unit})")
    outlined = ""
    if any(is_contender.values()):
        outlined = " Outlined: cannot be told from the best (comparison with the best, 95 %)."
    return Picture(f"lambda_surface_{plan.name}", figure,
                   f"{_head(study)} {metric.name} over the weights of the local (λ1) and the temporal (λ2) loss: "
                   f"mean ± half width of the 95 % t interval.{outlined}{margins} {_counts(study, plan.primary)}",
                   plan.name)


def _draw_main_effects(axes: Axes, study: Study, grid: Grid, metric: Metric) -> str:
    """Above and beside the cells, what each weight does averaged over the other; the sentence of the caption."""
    arm_at, rows, columns = grid
    place = {arm: at for at, arm in arm_at.items()}.get(study.plan.reference)
    if place is None or len(arm_at) < len(rows) * len(columns):
        return ""
    scores = study.scores(study.plan.primary)
    cells = np.stack([[scores[arm_at[row, column]].to_numpy() for column in range(len(columns))]
                      for row in range(len(rows))])

    def texts(by_level: np.ndarray, reference: int) -> list[str]:
        effects = statistics.main_effects(by_level, reference)
        return ["reference" if level == reference else _level(effect.interval, metric, is_signed=True)
                for level, effect in enumerate(effects)]

    small: dict[str, Any] = {"fontsize": 5.5, "linespacing": 1.15, "color": GREY}
    for row, text in enumerate(texts(cells.transpose(2, 0, 1), place[0])):
        axes.text(len(columns) - 0.42, row, text, ha="left", va="center", **small)
    for column, text in enumerate(texts(cells.transpose(2, 1, 0), place[1])):
        axes.text(column, len(rows) - 0.42, text, ha="center", va="bottom", **small)
    # Room for the texts; the picture keeps its place.
    axes.set(xlim=(-0.5, len(columns) + 0.15), ylim=(-0.5, len(rows) - 0.05))
    return (f" Beside the cells: difference to λ2 = {rows[place[0]]:g}, averaged over λ1; above them: to λ1 = "
            f"{columns[place[1]]:g}, averaged over λ2; paired by seed, ± half width of the 95 % interval, unadjusted.")


def experts(study: Study) -> Picture | None:
    """Score and parameters of every arm, where the arms differ in their experts; else None."""
    plan = study.plan
    if not varies_experts(study):
        return None
    metric = registry.describe(plan.primary)
    scores = study.scores(plan.primary)
    cost = registry.METRICS[registry.COST[0]]
    parameters = study.scores(cost.key).mean(axis=0) * cost.scale
    with style():
        figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(COLUMN_WIDTH, 2.6), height_ratios=[2.2, 1])
        for column, arm in enumerate(plan.arms):
            values = scores[arm].to_numpy()
            interval = statistics.mean_interval(values)
            colour = COLOURS[0] if arm == plan.reference else BLACK
            upper.plot(column + np.linspace(-0.12, 0.12, len(values)), values * metric.scale, ".", color=GREY,
                       markersize=3, alpha=0.7)
            upper.errorbar(column, interval.mean * metric.scale, interval.half_width * metric.scale, fmt="o",
                           color=colour, elinewidth=1.1, capsize=0)
            lower.bar(column, parameters[arm], width=0.55, color=colour if arm == plan.reference else GREY)
            if not math.isnan(parameters[arm]):
                lower.annotate(f"{parameters[arm]:.{cost.digits}f}", (column, parameters[arm]), xytext=(0, 2),
                               textcoords="offset points", ha="center", fontsize=6)
        upper.set_ylabel(f"{metric.short} ({metric.unit})")
        upper.grid(axis="y", color=LIGHT, linewidth=0.4)
        upper.set_axisbelow(True)
        lower.set_ylabel(f"Parameters\n({cost.unit})")
        lower.margins(y=0.25)
        lower.set_xticks(range(len(plan.arms)), [broken(arm, 10) for arm in plan.arms])
        lower.tick_params(axis="x", length=0)
    return Picture(f"experts_{plan.name}", figure,
                   f"{_head(study)} {metric.name} (above: seeds, mean and 95 % t interval; the reference in blue) "
                   f"and parameters (below) by the experts of the image encoder. "
                   f"{_counts(study, plan.primary)}", plan.name)


def learning_curves(study: Study, curves: pd.DataFrame) -> Picture | None:
    """Every loss term over training, mean and range over seeds.

    Args:
        curves: run_id, name (`train/<term>`), step, value.
    """
    terms = [term for term in registry.LOSS_TERMS if (curves["name"] == f"train/{term}").any()]
    if not terms:
        return None
    arms = curve_arms(study.plan)
    owner = _owners(study)
    placed = curves.merge(owner, on="run_id")
    arms = [arm for arm in arms if (placed["arm"] == arm).any()]
    placed = placed[placed["arm"].isin(arms)]
    num_columns = min(3, len(terms))
    num_rows = math.ceil(len(terms) / num_columns)
    with style():
        figure, grid = plt.subplots(num_rows, num_columns, squeeze=False, sharex=True,
                                    figsize=(PAGE_WIDTH, 0.55 + 1.25 * num_rows))
        for axes, term in zip(grid.flat, terms, strict=False):
            of_term = placed[placed["name"] == f"train/{term}"]
            for number, arm in enumerate(arms):
                _band(axes, of_term[of_term["arm"] == arm], COLOURS[number], LINES[number])
            axes.set_title(registry.LOSS_TERMS[term])
        for axes in grid.flat[len(terms):]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("Loss")
        for column in range(num_columns):
            last = max(row for row in range(num_rows) if row * num_columns + column < len(terms))
            grid[last, column].set_xlabel("Step")
            grid[last, column].tick_params(labelbottom=True)
        handles = [plt.Line2D([], [], color=COLOURS[number], linestyle=LINES[number]) for number in range(len(arms))]
        figure.legend(handles, arms, loc="outside lower center", ncols=min(len(arms), 5))
    left_out = len(study.plan.arms) - len(arms)
    more = f" {len(arms)} of {len(study.plan.arms)} arms." if left_out else ""
    return Picture(f"curves_{study.plan.name}", figure,
                   f"{_head(study)} Training loss by term: mean (line) and range (band) over seeds.{more} A term that "
                   f"an arm does not compute has no curve. {_counts(study, study.plan.primary)}", study.plan.name)


def curriculum_weights(study: Study, curves: pd.DataFrame) -> Picture | None:
    """Weights of FMC and RMR and the sequence length over training; None where all arms have the same."""
    placed = curves[curves["name"].isin(SCHEDULES)].merge(_owners(study), on="run_id")
    # A schedule is no outcome: every seed of an arm has the same.
    schedules = {(str(arm), str(name)): group.drop_duplicates("step").set_index("step")["value"].sort_index()
                 for (arm, name), group in placed.groupby(["arm", "name"])}
    arms = [arm for arm in study.plan.arms if any(owner == arm for owner, _ in schedules)]
    distinct = {tuple((name, *schedules[arm, name].items()) for name in SCHEDULES if (arm, name) in schedules)
                for arm in arms}
    if len(distinct) < 2:
        return None
    with style():
        figure, grid = plt.subplots(len(arms), 3, sharex=True, sharey="col", squeeze=False,
                                    figsize=(PAGE_WIDTH, 0.55 + 0.45 * len(arms)))
        for row, arm in enumerate(arms):
            for column, name in enumerate(SCHEDULES):
                axes = grid[row, column]
                line = schedules.get((arm, name))
                if line is not None:
                    steps, levels = line.index.to_numpy(), line.to_numpy()
                    axes.fill_between(steps, levels, step="pre", color=COLOURS[column], alpha=0.25, linewidth=0)
                    axes.step(steps, levels, where="pre", color=COLOURS[column])
                axes.set_ylim(bottom=0)
                axes.margins(x=0)
                axes.yaxis.set_major_locator(MultipleLocator(2 if name == "train/sequence_length" else 1))
                if row == 0:
                    axes.set_title(SCHEDULES[name])
            grid[row, 0].set_ylabel(broken(arm, 16), rotation=0, ha="right", va="center")
        for axes in grid[-1]:
            axes.set_xlabel("Step")
    return Picture(f"curriculum_{study.plan.name}", figure,
                   f"{_head(study)} Schedules of the temporal curriculum as tracked during training: one row an arm; "
                   f"the seeds of an arm share it. {_counts(study, study.plan.primary)}", study.plan.name)


def expert_use(study: Study, curves: pd.DataFrame) -> Picture | None:
    """Share of tokens that each expert served over training; None where no arm has several."""
    placed = curves[curves["name"].str.startswith(EXPERT_SHARE)].merge(_owners(study), on="run_id")
    placed = placed.assign(expert=placed["name"].str.removeprefix(EXPERT_SHARE).astype(int))
    mean = {str(arm): group.pivot_table(index="step", columns="expert", values="value")
            for arm, group in placed.groupby("arm")}
    arms = [arm for arm in study.plan.arms if arm in mean and mean[arm].shape[1] > 1]
    if not arms:
        return None
    num_columns = min(4, len(arms))
    num_rows = math.ceil(len(arms) / num_columns)
    with style():
        width = PAGE_WIDTH if num_columns > 1 else COLUMN_WIDTH
        figure, grid = plt.subplots(num_rows, num_columns, squeeze=False, sharey=True,
                                    figsize=(width, 0.4 + 1.55 * num_rows))
        for axes, arm in zip(grid.flat, arms, strict=False):
            names = expert_names(study.level(arm, EXPERT_KEYS[0]), mean[arm].shape[1])
            areas = axes.stackplot(mean[arm].index, mean[arm].to_numpy().T * 100, colors=COLOURS, alpha=0.8,
                                   edgecolor="white", linewidth=0.4)
            axes.set_title(broken(arm, 26))
            axes.margins(x=0)
            axes.set_ylim(0, 100)
            axes.set_xlabel("Step")
            axes.legend(areas[::-1], names[::-1], loc="upper center", bbox_to_anchor=(0.5, -0.34),
                        ncols=2, handlelength=1, columnspacing=1)
        for axes in grid.flat[len(arms):]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("Tokens served (%)")
    return Picture(f"expert_use_{study.plan.name}", figure,
                   f"{_head(study)} Share of the image tokens that each view expert served during training, mean over "
                   f"layers and seeds. LL and LATERAL are one projection under two naming conventions. "
                   f"{_counts(study, study.plan.primary)}", study.plan.name)


def varies_experts(study: Study) -> bool:
    """Whether the arms differ in their experts and in nothing else."""
    changed = _changed(study.plan)
    return bool(changed) and all(key.startswith("model.experts.") for key in changed)


def has_schedules(study: Study) -> bool:
    """Whether the arms differ in their curriculum and in nothing else."""
    changed = _changed(study.plan)
    return bool(changed) and all(key.startswith("objective.curriculum.") for key in changed)


def _changed(plan: Plan) -> set[str]:
    return {key for arm in plan.arms for key in plan.assignments.get(arm, {})}


def curve_arms(plan: Plan) -> list[str]:
    """The arms whose curves are drawn: the reference first, as many as can be told apart."""
    return [plan.reference, *[arm for arm in plan.arms if arm != plan.reference]][:MAX_CURVES]


def _band(axes: Axes, curves: pd.DataFrame, colour: str, line: object) -> None:
    if curves.empty:
        return
    by_step = curves.groupby("step")["value"].agg(["mean", "min", "max"])
    axes.fill_between(by_step.index, by_step["min"], by_step["max"], color=colour, alpha=0.18, linewidth=0)
    axes.plot(by_step.index, by_step["mean"], color=colour, linestyle=line)


def _owners(study: Study) -> pd.DataFrame:
    return study.trials.loc[study.trials["run_id"].notna(), ["run_id", "arm", "seed"]]


def _lambda_grid(study: Study) -> Grid | None:
    """None unless both weights vary and nothing else does."""
    plan = study.plan
    if not all(set(plan.assignments.get(arm, {})) <= set(LAMBDA_KEYS) for arm in plan.arms):
        return None
    levels = {arm: tuple(study.level(arm, key) for key in reversed(LAMBDA_KEYS)) for arm in plan.arms}
    known = {arm: level for arm, level in levels.items() if None not in level}
    rows = sorted({row for row, _ in known.values()})
    columns = sorted({column for _, column in known.values()})
    if len(rows) < 2 or len(columns) < 2:
        return None
    return {(rows.index(row), columns.index(column)): arm for arm, (row, column) in known.items()}, rows, columns


def _level(interval: statistics.Interval, metric: Metric, is_signed: bool = False) -> str:
    if interval.n == 0:
        return "–"
    mean = in_unit(interval.mean, metric.scale, metric.digits, is_signed=is_signed)
    return mean if interval.n == 1 else f"{mean}\n±{in_unit(interval.half_width, metric.scale, metric.digits)}"


def _head(study: Study) -> str:
    return f"Study {study.plan.name}."


def _counts(study: Study, metric: str) -> str:
    counts: Sequence[int] = study.scores(metric).notna().sum(axis=0).tolist()
    low, high = min(counts), max(counts)
    return f"n = {low if low == high else f'{low} to {high}'} seeds an arm ({seeds_text(study.plan.seeds)} planned)."
