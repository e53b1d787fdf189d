"""What subgroups are made of: view, sex, age and history of the studies behind a prediction. No scores here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from medst.data.store import MimicStore

TRAITS = ("view", "sex", "age", "prior")
"""view: AP or PA, of the frontal. sex: as the data state it. age: one of AGE_BANDS. prior: yes where the patient has an
earlier study in the data, else no. Empty where unknown."""
AGE_BANDS = ("0-39", "40-59", "60-79", "80+")
_AGE_EDGES = (0, 40, 60, 80, np.inf)


def study_traits(mimic: MimicStore, rows: Sequence[int] | np.ndarray) -> pd.DataFrame:
    """(n,) TRAITS of rows of the store's studies; empty for row -1, which is no study of the store."""
    studies, rows = mimic.studies, np.asarray(rows, dtype=np.int64)
    # The store sorts studies by patient and time.
    has_prior = (studies.groupby("subject_id").cumcount() > 0).to_numpy()[rows]
    chosen = studies.iloc[rows]
    bands = pd.cut(chosen["age"].astype(float), list(_AGE_EDGES), right=False, labels=list(AGE_BANDS))
    traits = pd.DataFrame({
        "view": chosen["frontal_view"].fillna("").to_numpy(dtype=object),
        "sex": chosen["sex"].fillna("").to_numpy(dtype=object),
        "age": bands.astype(object).fillna("").to_numpy(dtype=object),
        "prior": np.where(has_prior, "yes", "no").astype(object),
    })
    traits.loc[rows < 0] = ""
    return traits


def studies_of(mimic: MimicStore, study_ids: Iterable[object]) -> np.ndarray:
    """(n,) rows of the studies with these ids, -1 for those that the store does not have."""
    row_of_study = pd.Series(np.arange(len(mimic.studies)), index=mimic.studies["study_id"].astype(str))
    return row_of_study.reindex([str(study) for study in study_ids]).fillna(-1).to_numpy(dtype=np.int64)
