"""Who is trained on, who is judged: patients, the splits of every data set with their hashes, contamination.

Splits are by patient. Two data sets need care. RSNA's Kaggle files name images, not patients: one patient of the NIH
collection may stand under several ids, and only the mapping that RSNA published tells (readers/nih.py reads it where it
is given). COVIDx draws on several sources: an image from RSNA carries RSNA's id, so the same mapping serves it.

What lives here: which studies a trial sees, the description of all splits. What must not: opening of stores, reading of
raw files, the drawing of the published random splits (published_splits.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from medst.config import DataConfig
from medst.data.readers.nih import NIH_PREFIX
from medst.data.store import Store

HELD_OUT = "held out"
"""Split of studies which the official split trains on and `data.evaluation_patients=corrected` does not."""
NO_CAPTION = "no caption"
"""Split of studies to whose report `data.report_text` leaves no caption."""

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
    """MIMIC-CXR patients on whom tasks are judged, by where they come from: official test split, MS-CXR-T, MS-CXR.

    Of the two tables all patients, also those whose images the store lacks.
    """
    if store.mimic is None:
        return {}
    studies = store.mimic.studies
    found = {"the official test split": _patients(studies.loc[studies["split"] == "test", "subject_id"])}
    if store.ms_cxr_t is not None:
        found["MS-CXR-T"] = store.ms_cxr_t.patients
    if store.ms_cxr is not None:
        found["MS-CXR"] = store.ms_cxr.patients
    return found


def seen_by_trial(store: Store, data: DataConfig) -> Store:
    """The store as a trial of `data` sees it.

    Studies to whose report `data.report_text` leaves no caption get the split NO_CAPTION; with
    `data.evaluation_patients=corrected`, training studies of patients who are judged get the split HELD_OUT. Where
    there are none of either, the store itself comes back.
    """
    if store.mimic is None:
        return store
    studies = store.mimic.studies
    split = studies["split"].mask(studies[f"report_{data.report_text}"] == "", NO_CAPTION)
    if data.evaluation_patients == "corrected":
        judged = frozenset().union(*evaluation_patients(store).values())
        split = split.mask((split == "train") & studies["subject_id"].astype(str).isin(judged), HELD_OUT)
    if split.equals(studies["split"]):
        return store
    return replace(store, mimic=replace(store.mimic, studies=studies.assign(split=split)))


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
        table = store.rsna.table
        note = "" if identifies_patients(table["patient_id"]) else RSNA_NOTE
        found += _described("RSNA", {"test": table["patient_id"]}, note)
        found += _described("RSNA as published", _published_parts(table), note)
    if store.covidx is not None:
        table = store.covidx.table
        is_train = table["split"] == "train"
        train, test = table.loc[is_train, "patient_id"], table.loc[~is_train, "patient_id"]
        found += _described("COVIDx", {"train": train[~train.isin(test)], "test": test})
        found += _described("COVIDx as published", _published_parts(table))
    return found


def _published_parts(table: pd.DataFrame) -> dict[str, pd.Series]:
    return {part: table.loc[table["published_split"] == part, "patient_id"] for part in ("train", "validate", "test")}


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
