"""Which figures a study gets, and what of the tracking store each of them needs.

What lives here: reading curves and arrays of the right trials. What must not: drawing (analysis/figures.py,
pictures.py, trajectories.py, architecture.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import architecture, figures, pictures, registry, trajectories
from analysis.style import Picture
from analysis.tidy import FINISHED, Study
from medst import tracking

MAX_ATTENTION_ARMS = 2


def draw(study: Study, exhibits: Iterable[str], uri: str, only: str | None = None) -> Iterator[Picture]:
    """Figures of a study: those of its comparison, and the named ones of the paper.

    Args:
        only: one exhibit, and nothing else.
    """
    asked = set(exhibits)

    def curves() -> Picture | None:
        terms = [f"train/{term}" for term in registry.LOSS_TERMS]
        drawn = figures.learning_curves(study, _curves(study, figures.curve_arms(study.plan), terms, uri))
        return _named(drawn, "learning_curves" if "learning_curves" in asked else None)

    def schedules() -> Picture | None:
        if not figures.has_schedules(study):
            return None
        return figures.curriculum_weights(study, _curves(study, study.plan.arms, figures.SCHEDULES, uri))

    def shares() -> Picture | None:
        is_exhibit = "view_expert_use" in asked
        if not (figures.varies_experts(study) or is_exhibit):
            return None
        arms = study.plan.arms if figures.varies_experts(study) else [study.plan.reference]
        use = [metric for metric in study.metrics if metric.startswith(figures.EXPERT_SHARE)]
        return _named(figures.expert_use(study, _curves(study, arms, use, uri)),
                      "view_expert_use" if is_exhibit else None)

    def surface() -> Picture | None:
        return _named(figures.lambda_surface(study), "lambda_surface" if "lambda_surface" in asked else None)

    makers: dict[str, Callable[[], Picture | None]] = {
        "forest": lambda: figures.forest(study), "lambda_surface": surface,
        "experts": lambda: figures.experts(study), "learning_curves": curves, "curriculum": schedules,
        "view_expert_use": shares,
    }
    pictures_of_paper: dict[str, Callable[[], Picture | None]] = {
        "data": lambda: _samples(study, uri), "architecture": lambda: architecture.architecture(study),
        "attention": lambda: _attention(study, uri), "tsne": lambda: _tsne(study, uri),
    }
    makers |= {name: make for name, make in pictures_of_paper.items() if name in asked}
    for name, make in makers.items():
        if only in (None, name) and (picture := make()) is not None:
            yield picture


def _named(picture: Picture | None, name: str | None) -> Picture | None:
    return picture if picture is None or name is None else replace(picture, name=name)


def _curves(study: Study, arms: Iterable[str], names: Iterable[str], uri: str) -> pd.DataFrame:
    """run_id, name, step, value of the finished trials of some arms."""
    trials = study.trials
    run_ids = trials.loc[(trials["state"] == FINISHED) & trials["arm"].isin(list(arms)), "run_id"].tolist()
    return tracking.metric_history(run_ids, [name for name in names if name in study.metrics], uri)


def _flagged(study: Study, name: str, switch: str, uri: str, order: Callable[[str], Any], most: int
             ) -> tuple[dict[str, Any], list[str], int]:
    """Arm -> arrays `name`, arms that withhold them, the seed: of at most `most` arms at the first seed that all have.

    Args:
        switch: config key that asks a trial to track them.
        order: key by which arms are sorted.
    """
    # Only the first seed of an arm is flagged; its config stands for the arm.
    asked = [arm for arm in study.plan.arms if study.params.get(arm, {}).get(switch) == "true"]
    asked = sorted(asked, key=order)[:most]
    trials = study.trials[(study.trials["state"] == FINISHED) & study.trials["arm"].isin(asked)]
    complete = [seed for seed in study.plan.seeds if (trials["seed"] == seed).sum() == len(asked)]
    if not asked or not complete:
        return {}, [], 0
    chosen = trials[trials["seed"] == complete[0]].set_index("arm")
    tracked: dict[str, Any] = {}
    withheld = []
    for arm in asked:
        if name in str(chosen.loc[arm, "withheld"]):
            withheld.append(arm)
        elif (arrays := tracking.find_arrays(str(chosen.loc[arm, "run_id"]), name, uri)) is not None:
            tracked[arm] = arrays
    return tracked, withheld, complete[0]


def _attention(study: Study, uri: str) -> Picture | None:
    """Maps of the reference, then of arms without local alignment, then of others."""
    def order(arm: str) -> tuple[bool, bool]:
        return arm != study.plan.reference, study.level(arm, "objective.lambda_local") != 0

    found = _flagged(study, pictures.ATTENTION, "evaluation.track_attention", uri, order, MAX_ATTENTION_ARMS)
    return pictures.grounding_maps(study, *found)


def _tsne(study: Study, uri: str) -> Picture | None:
    """The baseline, the arm with the least of Med-ST that was trained, beside the reference."""
    def order(arm: str) -> tuple[bool, int]:
        absent = sum(study.level(arm, f"objective.lambda_{term}") == 0 for term in ("local", "temporal"))
        return arm != study.plan.reference, -absent if study.level(arm, "training.epochs") else 1

    tracked, withheld, seed = _flagged(study, trajectories.EMBEDDINGS, "evaluation.track_embeddings", uri, order, 2)
    baseline_first = dict(reversed(tracked.items()))
    return trajectories.tsne_over_time(study, baseline_first, bool(withheld), seed)


def _samples(study: Study, uri: str) -> Picture | None:
    tracked, withheld, _ = _flagged(study, pictures.SAMPLES, "evaluation.track_embeddings", uri,
                                    lambda arm: arm != study.plan.reference, 1)
    return pictures.patients(study, next(iter(tracked.values()), None), bool(withheld))
