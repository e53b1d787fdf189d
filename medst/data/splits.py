"""Who is trained on, who is judged: patients, the splits of every data set with their hashes, contamination.

Splits are by patient. Two data sets need care. RSNA's Kaggle files name images, not patients: one patient of the NIH
collection may stand under several ids, and only the mapping that RSNA published tells (readers/nih.py reads it where it
is given). COVIDx draws on several sources: an image from RSNA carries RSNA's id, so the same mapping serves it.

What lives here: the choice of training patients, the published random splits, the description of all splits. What must
not: opening of stores, reading of raw files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medst.config import DataConfig
from medst.data.readers.nih import NIH_PREFIX
from medst.data.store import Store

HELD_OUT = "held out"
"""Split of studies which the official split trains on and `data.evaluation_patients=corrected` does not."""

RSNA_NOTE = ("the Kaggle files do not identify patients: parts may share some; the mapping "
             "pneumonia-challenge-dataset-mappings_2018.json in rsna/ tells")


@dataclass(frozen=True)
class Split:
    """One part of one data set."""

    data_set: str
    part: str
    num_items: int
    """Images, of MIMIC-CXR studies, of MS-CXR-T pairs."""
    num_patients: int
    fingerprint: str
    """Hash of the patients, whatever their order."""
    num_shared: int
    """Patients that stand in another part of the same data set too: 0 where parts are disjoint."""
    note: str = ""


def patient_fingerprint(patients: Iterable[object]) -> str:
    """16 hexadecimal digits of a set of patients, the same in every order."""
    names = "\n".join(sorted({str(patient) for patient in patients}))
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def evaluation_patients(store: Store) -> dict[str, frozenset[str]]:
    """MIMIC-CXR patients on whom tasks are judged, by where they come from: official test split, MS-CXR-T, MS-CXR."""
    if store.mimic is None:
        return {}
    studies, views = store.mimic.studies, store.mimic.views
    found = {"the official test split": _patients(studies.loc[studies["split"] == "test", "subject_id"])}
    if store.ms_cxr_t is not None:
        found["MS-CXR-T"] = _patients(store.ms_cxr_t.pairs["subject_id"])
    if store.ms_cxr is not None:
        found["MS-CXR"] = _patients(views.loc[views["image"].isin(store.ms_cxr.table["image"]), "subject_id"])
    return found


def with_held_out_patients(store: Store, data: DataConfig) -> Store:
    """The store as a trial of `data` sees it: `corrected`, no training study belongs to a patient that is judged.

    Such studies get the split HELD_OUT. Where there are none, and with `released`, the store itself comes back.
    """
    if store.mimic is None or data.evaluation_patients == "released":
        return store
    studies = store.mimic.studies
    judged = frozenset().union(*evaluation_patients(store).values())
    is_leak = (studies["split"] == "train") & studies["subject_id"].astype(str).isin(judged)
    if not is_leak.any():
        return store
    studies = studies.assign(split=studies["split"].mask(is_leak, HELD_OUT))
    return replace(store, mimic=replace(store.mimic, studies=studies))


def overlaps(store: Store) -> dict[str, int]:
    """How many training patients are judged, by where; only where there are any."""
    if store.mimic is None:
        return {}
    studies = store.mimic.studies
    trained = _patients(studies.loc[studies["split"] == "train", "subject_id"])
    return {name: len(trained & patients) for name, patients in evaluation_patients(store).items()
            if trained & patients}


def describe_splits(store: Store) -> list[Split]:
    """Every part of every data set of a store, with the hash of its patients and how many other parts share.

    The published random splits of RSNA and COVIDx, which ignore patients, stand beside those by patient.
    """
    found: list[Split] = []
    if store.mimic is not None:
        studies = store.mimic.studies
        parts = {str(part): studies.loc[studies["split"] == part, "subject_id"] for part in studies["split"].unique()}
        found += _described("MIMIC-CXR", dict(sorted(parts.items())))
    if store.ms_cxr_t is not None:
        found += _described("MS-CXR-T", {"test": store.ms_cxr_t.pairs["subject_id"]})
    if store.mimic is not None and store.ms_cxr is not None:
        views = store.mimic.views
        is_boxed = views["image"].isin(store.ms_cxr.table["image"])
        found += _described("MS-CXR", {"test": views.loc[is_boxed, "subject_id"]})
    if store.rsna is not None:
        patients = store.rsna.table["patient_id"]
        note = "" if identifies_patients(patients) else RSNA_NOTE
        found += _described("RSNA", {"test": patients}, note)
        found += _described("RSNA as published", {
            part: patients.iloc[rows] for part, rows in published_rsna_rows(len(patients)).items()}, note)
    if store.covidx is not None:
        table = store.covidx.table
        is_train = table["split"] == "train"
        train, test = table.loc[is_train, "patient_id"], table.loc[~is_train, "patient_id"]
        found += _described("COVIDx", {"train": train[~train.isin(test)], "test": test})
        rows = published_covidx_rows(len(train))
        found += _described("COVIDx as published", {**{part: train.iloc[own] for part, own in rows.items()},
                                                     "test": test})
    return found


def published_rsna_rows(num_images: int) -> dict[str, np.ndarray]:
    """Rows of the published RSNA split, 70/15/15: 30 % set aside, then halved, both with random_state 0."""
    train, rest = _random_split(np.arange(num_images), 0.3)
    validate, test = _random_split(rest, 0.5)
    return {"train": np.sort(train), "validate": np.sort(validate), "test": np.sort(test)}


def published_covidx_rows(num_train: int) -> dict[str, np.ndarray]:
    """Rows of the published COVIDx split among its training images, 80/20, random_state 0, in the order drawn."""
    train, validate = _random_split(np.arange(num_train), 0.2)
    return {"train": train, "validate": validate}


def _random_split(rows: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """What scikit-learn's train_test_split with random_state 0 gives: `share`, rounded up, is set aside."""
    order = rows[np.random.RandomState(0).permutation(len(rows))]
    num_aside = math.ceil(share * len(rows))
    return order[num_aside:], order[:num_aside]


def identifies_patients(patients: pd.Series) -> bool:
    """True where RSNA's ids are patients: those that its mapping to the NIH collection told."""
    return bool(len(patients)) and bool(patients.astype(str).str.startswith(NIH_PREFIX).all())


def _described(data_set: str, parts: Mapping[str, pd.Series], note: str = "") -> list[Split]:
    """Parts by name, each a Series of patients with one entry an image or study."""
    patients = {name: _patients(series) for name, series in parts.items()}
    return [
        Split(data_set, name, len(series), len(patients[name]), patient_fingerprint(patients[name]),
              sum(any(patient in patients[other] for other in patients if other != name) for patient in patients[name]),
              note)
        for name, series in parts.items()
    ]


def _patients(series: pd.Series) -> frozenset[str]:
    return frozenset(series.astype(str))
