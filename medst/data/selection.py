"""Which rows of a corpus enter training, counted step by step as in a CONSORT diagram, under two rules.

What lives here: the counts. What must not: the selection of a trial itself (`loader`).

`as published`: every frontal image of the training split with a caption is a pair, and windows are cut of images; a
report with neither impression nor findings has none.
`corrected`: every study is one pair, its caption the last paragraph where it has neither; windows are cut of studies,
and patients on whom the model is judged (MS-CXR-T, MS-CXR) are left out.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import pandas as pd

from medst.data.views import FRONTAL_VIEWS

WINDOW = 4
"""Studies (or images) in a sequence, as published."""

Step = tuple[str, int, int, int]
"""What was asked for, and the patients, studies and images that have it."""


def count_selection(images: pd.DataFrame, studies: pd.DataFrame, has_caption: np.ndarray, is_readable: np.ndarray,
                    evaluated: Set[str]) -> dict[str, list[Step]]:
    """Counts of both rules.

    Args:
        images: study_id, subject_id, view; n rows.
        studies: study_id, split; m rows.
        has_caption: (m, 2) released, corrected.
        is_readable: (n,) False for images that could not be read.
        evaluated: patients of MS-CXR-T and MS-CXR.
    """
    facts = studies[["study_id", "split"]].assign(
        released=has_caption[:, 0], corrected=has_caption[:, 1])
    table = images[["study_id", "subject_id", "view"]].merge(facts, on="study_id", how="left")
    has_study = table["split"].notna().to_numpy()
    is_frontal = table["view"].isin(FRONTAL_VIEWS).to_numpy()
    is_train = (table["split"] == "train").to_numpy()
    has_frontal = table["study_id"].isin(table.loc[is_frontal & is_readable, "study_id"]).to_numpy()
    # A study without a row in the table has none.
    released, corrected = (table[name].eq(True).to_numpy() for name in ("released", "corrected"))
    common = [("with a frontal or lateral view", np.ones(len(table), dtype=bool)), ("readable", is_readable),
              ("of a study in the split file", has_study)]
    return {
        "as published": _count(table, [
            *common, ("frontal images", is_frontal), ("with a caption of three words or more", released),
            ("training split", is_train)], by_study=False),
        "corrected": _count(table, [
            *common, ("of a study with a frontal", has_frontal),
            ("with a caption of three words or more", corrected), ("training split", is_train),
            ("patients without MS-CXR-T and MS-CXR", ~table["subject_id"].isin(evaluated).to_numpy())],
            by_study=True),
    }


def _count(table: pd.DataFrame, criteria: list[tuple[str, np.ndarray]], by_study: bool) -> list[Step]:
    kept = np.ones(len(table), dtype=bool)
    steps = []
    for name, holds in criteria:
        kept = kept & holds
        rows = table[kept]
        steps.append((name, rows["subject_id"].nunique(), rows["study_id"].nunique(), len(rows)))
    rows = table[kept]
    units = rows.drop_duplicates("study_id") if by_study else rows
    number = units.groupby("subject_id").cumcount()
    size = units.groupby("subject_id")["study_id"].transform("size")
    in_window = units[number < size // WINDOW * WINDOW]
    num_images = int(rows["study_id"].isin(in_window["study_id"]).sum()) if by_study else len(in_window)
    steps.append((f"in windows of {WINDOW} {'studies' if by_study else 'images'}", in_window["subject_id"].nunique(),
                  in_window["study_id"].nunique(), num_images))
    return steps
