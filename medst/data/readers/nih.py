"""Patients behind the images of the RSNA challenge: its mapping to the NIH ChestX-ray14 collection.

Kaggle's patientId names an image. RSNA published a list that names the NIH image of each, and an NIH image begins with
its patient. What lives here: that list. What must not: the tables of RSNA or COVIDx themselves.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from medst.data.readers.tables import DataError

NIH_PREFIX = "nih-"
"""Before patient ids that the mapping told."""
PATTERN = "pneumonia-challenge-dataset-mappings*.json"


def read_nih_patients(folder: str | Path) -> dict[str, str]:
    """Kaggle id -> `nih-<patient>`, from the mapping file in `folder`; empty where there is none.

    Raises:
        DataError: the file is not the published list, or gives one image two patients.
    """
    paths = sorted(Path(folder).glob(PATTERN))
    if not paths:
        return {}
    path = paths[-1]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(str(row["subset_img_id"]), str(row["img_id"])) for row in rows]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the published list of subset_img_id and img_id ({type(error).__name__}: "
                        f"{error}); download it again from RSNA") from None
    patients: dict[str, str] = {}
    for kaggle, image in pairs:
        patient = f"{NIH_PREFIX}{image.partition('_')[0]}"
        if patients.setdefault(kaggle, patient) != patient:
            raise DataError(f"{path}: image {kaggle} has two patients; download the file again from RSNA")
    return patients


def as_nih_patients(ids: pd.Series, patients: dict[str, str]) -> pd.Series:
    """Kaggle ids replaced by NIH patients where the mapping has them."""
    return ids.map(lambda name: patients.get(str(name), name)).astype(ids.dtype) if patients else ids
