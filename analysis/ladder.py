"""The proxy ladder from the tracking store: does a cheaper study rank the arms as the full one does?

Rank correlations are taken between the arms' means over seeds. Their intervals are percentile intervals of the
bootstrap over seeds, rung and full study drawn together (a seed shares its initialisation and data order among both);
with few seeds all samples are enumerated. Such intervals are too narrow with fewer than 6 seeds, and the table says so.
The yardstick is the full study against itself: how well one of its seeds ranks the arms as the mean of the others does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from analysis import registry
from analysis.style import BLACK, COLOURS, GREY, LIGHT, PAGE_WIDTH, Picture, panel_letter, style
from analysis.text import counted
from medst import tracking
from medst.tracking.members import load_group_plan

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
MAX_ENUMERATED_SEEDS = 5
NUM_SAMPLES = 2000
FEW_SEEDS = 6


@dataclass(frozen=True)
class Rung:
    """One rung against the full study, over the seeds and arms that both have."""

    fraction: float
    num_seeds: int
    num_arms: int
    kendall: float
    kendall_low: float
    kendall_high: float
    spearman: float
    spearman_low: float
    spearman_high: float
    one_seed: float
    """Mean over seeds of Kendall's tau of one seed of the rung with the full study's mean of the other seeds."""
    top: str
    """The arm that the rung would choose."""
    is_top_agreed: bool
    top_agreement: float
    """Share of the bootstrap samples in which rung and full study choose the same arm."""
    regret: float
    """Of the full study's score, in the metric's unit: what choosing by the rung loses."""
    seconds_per_trial: float
    cost_share: float
    """Of the full study's seconds of computing."""


@dataclass(frozen=True)
class Ladder:
    """A ladder as far as it was run."""

    plan: Mapping[str, Any]
    arms: tuple[str, ...]
    """Those compared: trained, and finished at some seed of every rung."""
    scores: Mapping[float, pd.DataFrame]
    """Fraction -> (seeds x arms)."""
    rungs: tuple[Rung, ...]

    @property
    def name(self) -> str:
        return str(self.plan["name"])


def load_ladder(uri: str, experiment: str, name: str) -> Ladder | None:
    """A ladder from the tracking store; None where too little of it is finished.

    Raises:
        TrackingError: the store has no such ladder.
    """
    plan = load_group_plan("ladder", name, uri, experiment)
    runs = tracking.load_runs(uri, experiment)
    column = f"metrics.{plan['metric']}"
    finished = runs[runs["state"] == "finished"].drop_duplicates("key", keep="last").set_index("key")
    if column not in finished:
        return None
    planned = pd.DataFrame(plan["trials"])
    planned["score"] = planned["key"].map(finished[column])
    planned["seconds"] = planned["key"].map(finished["seconds"])
    planned = planned[~planned["arm"].isin(plan["untrained"])].dropna(subset=["score"])
    scores = {fraction: planned[planned["fraction"] == fraction].pivot(index="seed", columns="arm", values="score")
              for fraction in plan["fractions"]}
    arms = tuple(arm for arm in plan["arms"] if all(arm in table for table in scores.values()))
    if len(arms) < 3:
        return None
    scores = {fraction: table[list(arms)].dropna() for fraction, table in scores.items()}
    full = scores[1.0]
    seconds = planned[planned["arm"].isin(arms)].groupby("fraction")["seconds"].mean()
    sign = 1.0 if registry.describe(plan["metric"]).is_higher_better else -1.0
    rungs = [compare(fraction, table, full, sign, float(seconds[fraction]), float(seconds[1.0]))
             for fraction, table in scores.items() if len(table.index.intersection(full.index))]
    return Ladder(plan, arms, scores, tuple(rungs))


def compare(fraction: float, table: pd.DataFrame, full: pd.DataFrame, sign: float, seconds: float, full_seconds: float
            ) -> Rung:
    """One rung against the full study; both (seeds x arms), the same arms in the same order."""
    seeds = table.index.intersection(full.index)
    cheap, dear = table.loc[seeds].to_numpy() * sign, full.loc[seeds].to_numpy() * sign
    samples = bootstrap_samples(len(seeds))
    taus, rhos, agreed = [], [], []
    for sample in samples:
        left, right = cheap[sample].mean(axis=0), dear[sample].mean(axis=0)
        taus.append(kendalltau(left, right).statistic)
        rhos.append(spearmanr(left, right).statistic)
        agreed.append(left.argmax() == right.argmax())
    left, right = cheap.mean(axis=0), dear.mean(axis=0)
    (kendall_low, kendall_high), (spearman_low, spearman_high) = _interval(taus), _interval(rhos)
    chosen = int(left.argmax())
    return Rung(
        fraction, len(seeds), cheap.shape[1], float(kendalltau(left, right).statistic), kendall_low, kendall_high,
        float(spearmanr(left, right).statistic), spearman_low, spearman_high, one_seed_tau(cheap, dear),
        str(table.columns[chosen]), chosen == int(right.argmax()), float(np.mean(agreed)),
        float(right.max() - right[chosen]), seconds, seconds / full_seconds)


def bootstrap_samples(num_seeds: int) -> Sequence[NDArray[np.int64]]:
    """Draws of seeds with replacement: all of them where that is few, else NUM_SAMPLES."""
    if num_seeds <= MAX_ENUMERATED_SEEDS:
        return [np.array(sample) for sample in itertools.product(range(num_seeds), repeat=num_seeds)]
    random = np.random.default_rng(0)
    return list(random.integers(0, num_seeds, (NUM_SAMPLES, num_seeds)))


def one_seed_tau(cheap: Floats, dear: Floats) -> float:
    """Mean over seeds of tau(one seed of the rung, mean of the full study's other seeds); NaN with one seed."""
    if len(dear) < 2:
        return float("nan")
    return float(np.mean([kendalltau(cheap[seed], np.delete(dear, seed, axis=0).mean(axis=0)).statistic
                          for seed in range(len(dear))]))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        # One seed says nothing of what another would have.
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


HEADS = ("rung", "Kendall's τ", "Spearman's ρ", "one seed", "chooses", "same choice", "regret", "seconds a trial",
         "cost")


def table_rows(ladder: Ladder) -> list[tuple[str, ...]]:
    """The table's cells, under HEADS."""
    metric = registry.describe(ladder.plan["metric"])
    rows: list[tuple[str, ...]] = []
    for rung in ladder.rungs:
        is_full = rung.fraction == 1
        rows.append((
            f"{100 * rung.fraction:g} %",
            "" if is_full else _with_interval(rung.kendall, rung.kendall_low, rung.kendall_high),
            "" if is_full else _with_interval(rung.spearman, rung.spearman_low, rung.spearman_high),
            "" if np.isnan(rung.one_seed) else f"{rung.one_seed:.2f}", rung.top,
            "" if is_full else ("yes" if rung.is_top_agreed else "no")
            + (f" ({100 * rung.top_agreement:.0f} %)" if rung.num_seeds > 1 else ""),
            "" if is_full else f"{rung.regret * metric.scale:.{metric.digits}f}",
            f"{rung.seconds_per_trial:.1f}", f"{100 * rung.cost_share:.0f} %"))
    return rows


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f}" if np.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def caption(ladder: Ladder) -> str:
    metric = registry.describe(ladder.plan["metric"])
    what = "the budget (pairs seen)" if ladder.plan["of"] == "budget" else "the training patients"
    full = ladder.rungs[-1]
    left_out = f" Left out: {', '.join(ladder.plan['untrained'])}, untrained." if ladder.plan["untrained"] else ""
    few = ("" if full.num_seeds >= FEW_SEEDS else " With one seed there are none." if full.num_seeds == 1 else
           f" With {full.num_seeds} seeds these intervals are too narrow; take them as a lower bound of the doubt.")
    return (f"Study {ladder.plan['study']} at shares of {what}, ranked by {metric.name}: {full.num_arms} arms, "
            f"{counted(full.num_seeds, 'seed')}. Correlations of the arms' means with those of the full study, with 95 "
            f"% intervals of the bootstrap over seeds, rung and full study drawn together.{few} One seed: Kendall's "
            "τ of single seeds with the full study's mean of the other seeds; in the full row the most that any rung "
            "can be expected to reach. Same choice: whether the best arm is the same, and in how many of the samples. "
            f"Regret: what choosing by the rung loses in the full study ({metric.unit}).{left_out}")


def markdown(ladder: Ladder) -> str:
    rows = table_rows(ladder)
    lines = [f"# Ladder {ladder.name}", "", "| " + " | ".join(HEADS) + " |",
             "| --: | --: | --: | --: | :-- | --: | --: | --: | --: |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", caption(ladder)]) + "\n"


def frame(ladder: Ladder) -> pd.DataFrame:
    """The numbers of the table, unrounded."""
    return pd.DataFrame([vars(rung) for rung in ladder.rungs])


def figure(ladder: Ladder) -> Picture:
    """Ranks of the arms over the rungs; correlations against cost."""
    metric = registry.describe(ladder.plan["metric"])
    sign = 1.0 if metric.is_higher_better else -1.0
    fractions = list(ladder.scores)
    means = np.stack([ladder.scores[fraction].mean(axis=0).to_numpy() * sign for fraction in fractions])
    ranks = (-means).argsort(axis=1).argsort(axis=1) + 1
    places = np.arange(len(fractions))
    with style():
        picture, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 0.9 + 0.19 * max(8, len(ladder.arms))),
                                              width_ratios=(1.35, 1))
        for arm, name in enumerate(ladder.arms):
            rank = ranks[-1, arm]
            is_shown = rank <= len(COLOURS)
            left.plot(places, ranks[:, arm], "o-", color=COLOURS[(rank - 1) % len(COLOURS)] if is_shown else GREY,
                      linewidth=1.3 if is_shown else 0.8, markersize=3.5, alpha=1 if is_shown else 0.6)
            left.annotate(name, (places[-1], rank), xytext=(6, 0), textcoords="offset points", va="center", fontsize=6,
                          annotation_clip=False)
        left.set_xticks(places, [f"{100 * fraction:g} %" for fraction in fractions])
        left.set_xlabel(f"Share of the {'budget' if ladder.plan['of'] == 'budget' else 'training patients'}")
        left.set_ylabel("Rank of the arm (1 is best)")
        left.set_ylim(len(ladder.arms) + 0.5, 0.5)
        left.set_yticks(range(1, len(ladder.arms) + 1))
        proxies = [rung for rung in ladder.rungs if rung.fraction < 1]
        for shift, (colour, name, values) in enumerate((
                (COLOURS[0], "Kendall's τ", [(rung.kendall, rung.kendall_low, rung.kendall_high) for rung in proxies]),
                (COLOURS[1], "Spearman's ρ", [(rung.spearman, rung.spearman_low, rung.spearman_high)
                                              for rung in proxies]))):
            at = np.array([100 * rung.cost_share for rung in proxies]) * (1 + 0.04 * (2 * shift - 1))
            points = np.array(values)
            right.plot(at, points[:, 0], "o-", color=colour, label=name, markersize=3.5, linewidth=1)
            right.vlines(at, points[:, 1], points[:, 2], color=colour, linewidth=1)
        ceiling = ladder.rungs[-1].one_seed
        if not np.isnan(ceiling):
            right.axhline(ceiling, color=BLACK, linewidth=0.7, linestyle=(0, (4, 2)))
            right.annotate("full study, one seed against the others (τ)", (1, ceiling), xytext=(0, 2), ha="right",
                           xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=5.5)
        right.axhline(0, color=GREY, linewidth=0.5)
        right.set_ylim(-1.02, 1.02)
        right.grid(axis="y", color=LIGHT, linewidth=0.4)
        right.set_axisbelow(True)
        right.set_xlabel("Cost (% of the full study's seconds)")
        right.set_ylabel("Rank correlation with the full study")
        right.legend(loc="lower right")
        for position, axes in enumerate((left, right)):
            panel_letter(axes, position)
    return Picture(f"ladder_{ladder.name}", picture,
                   f"{caption(ladder)} Left: ranks, best arm of the full study on top.", ladder.name)
