"""Which parameter of a search mattered, by two measures, as a table.

fANOVA (Hutter et al. 2014): share of the variance of a random forest's prediction over the whole space. PED-ANOVA
(Watanabe et al. 2023): how far the best quarter of the trials differ from all, parameter by parameter; it also judges
parameters that exist in some trials only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import optuna
import pandas as pd
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)

from medst.tracking import TrialState
from sweeps.searching.history import Attempt, optuna_study
from sweeps.searching.search_file import Search

FEWEST_TRIALS = 8
"""With fewer finished trials neither measure says anything."""
BEST_SHARE = 0.25
"""The authors take a tenth, which of a few dozen trials would be two or three."""


def importances(search: Search, attempts: Sequence[Attempt]) -> pd.DataFrame:
    """One row per objective and parameter: objective, parameter, pedanova, fanova, num_trials.

    Shares that add up to 1 within an objective. `fanova` of a parameter that does not exist in all trials is NaN, and
    the others share what is left to them. Empty where too few trials are finished. Only finished trials count.
    """
    finished = [attempt for attempt in attempts if attempt.state is TrialState.FINISHED]
    columns = ["objective", "parameter", "pedanova", "fanova", "num_trials"]
    if len(finished) < FEWEST_TRIALS:
        return pd.DataFrame(columns=columns)
    study = optuna_study(search, finished)
    rows = []
    for index, metric in enumerate(search.file.objectives):
        if len({attempt.objectives[index] for attempt in finished if attempt.objectives}) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes")
            # PED-ANOVA takes lower values for better ones.
            sign = 1.0 if search.directions[index] == "minimize" else -1.0
            ped = _shares(study, PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE), index, sign)
            fanova = _shares(study, FanovaImportanceEvaluator(seed=0), index, sign)
        for parameter in search.space.parameters:
            rows.append((metric, parameter.key, ped.get(parameter.key, math.nan),
                         fanova.get(parameter.key, math.nan), len(finished)))
    return pd.DataFrame(rows, columns=columns)


def _shares(study: optuna.Study, evaluator: BaseImportanceEvaluator, index: int, sign: float) -> dict[str, float]:
    return get_param_importances(study, evaluator=evaluator, target=lambda trial: sign * trial.values[index])
