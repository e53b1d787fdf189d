"""covid-chestxray-dataset: radiographs of patients over days, with clinical notes; and Figure1, which has its form.

What lives here: the layout of metadata.csv. What must not: decoding of images, cleaning of notes.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from medst.data.readers.corpus import (
    START_OF_ORDER,
    Corpus,
    ReportSections,
    first_file,
    label_column,
    split_by_patient,
    without_labels,
)
from medst.data.readers.tables import find_table, read_age, read_table, refuse_rows
from medst.data.views import LATERAL_VIEWS

ORIGIN = "covid-chestxray-dataset (https://github.com/ieee8023/covid-chestxray-dataset)"
TABLE = "metadata.csv"
_VIEWS = {"PA": "PA", "AP": "AP", "AP SUPINE": "AP", "APS": "AP", "AP ERECT": "AP", "AP SEMI ERECT": "AP",
          "L": "LATERAL", "LATERAL": "LATERAL"}
"""Axial and coronal are views of CT."""
_DATES = ("%B %d, %Y", "%b %d, %Y", "%Y-%m-%d", "%Y/%m/%d", "%m/%d/%Y", "%d %B %Y", "%d %b %Y")
_LETTER = re.compile(r"^(COVID-\d{5})[a-z]$")
_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".JPEG", ".PNG")


def parse_date(text: object) -> pd.Timestamp | None:
    """A date in one of the spellings of the table; None where the day is not stated, as in '2020' or 'March 2020'."""
    if isinstance(text, str):
        # 'Jan. 5, 2020' and 'Sept 5, 2020' are spellings of people, not of a calendar.
        words = re.sub(r"\bSept\b", "Sep", text.strip().replace(".", ""))
        for form in _DATES:
            try:
                return pd.Timestamp(datetime.strptime(words, form))
            except ValueError:
                continue
    return None


def read_covid_chestxray(folder: str | Path, tables: str | Path | None = None) -> Corpus:
    """Read metadata.csv and images/ of a clone of the repository.

    Rows that are no radiograph (CT) are left out. Images of a patient on one day are one study. A day is the offset
    where all of a patient's radiographs state it, else the date where all do; of other patients only the first study
    is kept, since its place in time does not matter: the images with the offset and date of the first one, or, where
    that states no day, one frontal and one lateral of those that state none.

    Args:
        tables: folder of metadata.csv, where it is not that of images/.

    Raises:
        DataError: the table or a column is missing.
    """
    folder = Path(folder)
    path = find_table(Path(tables or folder), TABLE, ORIGIN)
    optional = ["filename", "folder", "modality", "date", "license", "clinical_notes", "other_notes", "notes", "sex",
                "age", "finding", "view"]
    frame = read_table(path, ["patientid", "offset"], optional)
    # Words, also where a column is absent and all its cells are missing.
    frame = frame.reindex(columns=["patientid", "offset", *optional]).astype(object)
    steps = [("rows of the metadata", len(frame))]
    refuse_rows(path, frame, "patientid", frame["patientid"].isna(), "is empty", "every image needs its patient")
    problems = []
    modality = frame["modality"].str.strip().str.lower()
    view = frame["view"].str.strip().str.upper()
    is_radiograph = (modality == "x-ray") | (modality.isna() & ~view.isin(["AXIAL", "CORONAL", "CT"]))
    frame = frame[is_radiograph]
    steps.append(("radiographs (CT left out)", len(frame)))
    view = view[is_radiograph]
    is_known = view.isna() | view.isin(list(_VIEWS))
    frame, view = frame[is_known], view[is_known]
    steps.append(("images with a frontal or lateral view, or none stated", len(frame)))
    figure = frame["patientid"].str.strip()
    name = frame["filename"].str.strip().fillna(figure)
    is_copy = name.duplicated()
    if is_copy.any():
        problems.append(f"{TABLE}: {int(is_copy.sum())} rows with a repeated file name are left out")
    frame = frame.assign(
        dicom_id=name, subject_id=figure.str.replace(_LETTER, r"\1", regex=True),
        view=view.map(_VIEWS).fillna("PA"), is_view_stated=view.notna(), row=frame.index)[~is_copy]
    frame, left_out = _with_days(frame)
    if left_out:
        problems.append(f"{left_out} images of patients whose studies cannot be ordered are left out")
    steps.append(("images whose place in time is known or does not matter", len(frame)))
    frame["study_id"] = frame["subject_id"] + "-" + frame.groupby("subject_id")["day"].rank("dense").astype(
        "int64").astype("str")
    studies = _studies(frame)
    steps.append(("studies", len(studies)))
    texts = {str(study): sections for study, rows in frame.groupby("study_id") if (sections := _notes(rows))}
    subfolder = dict(zip(frame["dicom_id"], frame["folder"].fillna("images"), strict=True))

    def paths(images: pd.DataFrame) -> list[str]:
        return [first_file([folder / subfolder[image]], [image, *(image + suffix for suffix in _SUFFIXES)])
                for image in images["dicom_id"]]

    images = frame[["dicom_id", "study_id", "subject_id", "view", "is_view_stated", "row"]].reset_index(drop=True)
    return Corpus(
        images, studies, ReportSections(texts), paths, TABLE, tuple(steps), tuple(problems),
        ("times are days since onset or admission, or dates: intervals hold within a patient only",
         "splits are drawn by patient (70 / 10 / 20 percent): none is published",
         "texts are clinical notes of the sources, often one text for all images of a patient: they are no reports",
         "licences differ by image (column `license` of metadata.csv)"))


def _with_days(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Rows with `day`, and the number of those that have no place in time."""
    offset = pd.to_numeric(frame["offset"], errors="coerce")
    date = pd.Series([parse_date(text) for text in frame["date"]], frame.index, dtype="datetime64[ns]")
    patient = frame["subject_id"]
    day = (date - START_OF_ORDER).dt.days.astype("float64")
    has_offsets = offset.notna().groupby(patient).transform("all")
    has_dates = day.notna().groupby(patient).transform("all")
    # Figure1 numbers the images of a patient by letters, in order, and gives all of them one offset.
    letter = frame["patientid"].str.strip().str.extract(r"^COVID-\d{5}([a-z])$")[0]
    is_lettered = letter.notna().groupby(patient).transform("all")
    rank = letter.map(lambda sign: ord(sign) - ord("a"), na_action="ignore").astype("float64")
    chosen = rank.where(is_lettered, offset.where(has_offsets, day.where(has_dates)))
    chosen = chosen.where(chosen.notna() | ~_is_of_first_study(frame, offset, day), 0.0)
    is_kept = chosen.notna()
    return frame[is_kept].assign(day=chosen[is_kept]), int((~is_kept).sum())


def _is_of_first_study(frame: pd.DataFrame, offset: pd.Series, day: pd.Series) -> pd.Series:
    """Whether an image belongs to the study of its patient's first image, as far as offset and date tell."""
    patient = frame["subject_id"]
    time = pd.DataFrame({"offset": offset, "day": day}).fillna(np.inf)
    is_same = (time == time.groupby(patient).transform("first")).all(axis=1)
    is_stated = (time < np.inf).any(axis=1)
    # Images that state no day may be of different ones: two of them at most are taken for one study.
    kind = pd.DataFrame({"patient": patient, "is_lateral": frame["view"].isin(LATERAL_VIEWS), "is_same": is_same})
    return is_same & (is_stated | ~kind.duplicated())


def _studies(frame: pd.DataFrame) -> pd.DataFrame:
    first = frame.drop_duplicates("study_id").reset_index(drop=True)
    studies = first[["subject_id", "study_id"]].assign(
        time=(START_OF_ORDER + pd.to_timedelta(first["day"], unit="D")).astype("datetime64[us]"),
        split=split_by_patient("covid-chestxray", first["subject_id"], (("test", 20), ("validate", 10))))
    labels = without_labels(first["study_id"]).drop(columns="study_id")
    finding = first["finding"].fillna("").str.strip().str.lower()
    is_pneumonia = finding.str.startswith(("pneumonia", "covid-19", "sars"))
    is_normal = finding == "no finding"
    labels[label_column("Pneumonia")] = np.where(is_pneumonia, 1.0, np.where(is_normal, 0.0, np.nan))
    labels[label_column("No Finding")] = np.where(is_normal, 1.0, np.nan)
    studies = pd.concat([studies, labels], axis=1).assign(
        sex=first["sex"].str.strip().str.upper().fillna(""), age=[read_age(text) for text in first["age"]])
    return studies.sort_values(["subject_id", "time", "study_id"]).reset_index(drop=True)


def _notes(rows: pd.DataFrame) -> dict[str, str]:
    """The notes of a study as findings: those of its first image that has any."""
    for column in ("clinical_notes", "notes", "other_notes"):
        texts = rows[column].dropna().str.strip()
        if (texts != "").any():
            return {"findings": texts[texts != ""].iloc[0]}
    return {}
