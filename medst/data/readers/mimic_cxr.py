"""MIMIC-CXR-JPG (images, metadata, split, CheXpert labels) with the report texts of MIMIC-CXR beside it.

What lives here: the layout of the two data sets, and how images are grouped to studies. What must not: decoding
of images, cleaning of reports, windows.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medst.data.batch import FRONTAL_VIEWS, LATERAL_VIEWS, VIEWS
from medst.data.readers.tables import DataError, find_table, numbers, read_table, refuse_rows

JPG_ORIGIN = "MIMIC-CXR-JPG 2.0.0 (https://physionet.org/content/mimic-cxr-jpg/2.0.0/, credentialed access)"
TEXT_ORIGIN = ("mimic-cxr-reports.zip of MIMIC-CXR 2.0.0 (https://physionet.org/content/mimic-cxr/2.0.0/, credentialed "
               "access)")
SPLITS = ("train", "validate", "test")
LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture",
          "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia",
          "Pneumothorax", "Support Devices")
"""Columns of mimic-cxr-2.0.0-chexpert.csv."""


def label_column(name: str) -> str:
    """Column of the studies table for a CheXpert label: 'Pleural Effusion' -> 'label_pleural_effusion'."""
    return "label_" + name.lower().replace(" ", "_")


@dataclass(frozen=True)
class MimicCxr:
    """Images of the four views and the studies that they belong to."""

    images: pd.DataFrame
    """dicom_id, study_id, subject_id, view (AP | PA | LL | LATERAL), is_view_stated, path; in metadata order."""
    studies: pd.DataFrame
    """subject_id, study_id, time, split, report (whole text, missing where there is none), label_<name> (1, 0, -1,
    NaN); by patient, time and study id; only studies that have an image in `images`."""
    steps: tuple[tuple[str, int], ...]
    """What remains after each step of selection, in order."""


def read_mimic_cxr(root: str | Path, known_frontals: Set[str] = frozenset(),
                   progress: Callable[[int, int], None] | None = None) -> MimicCxr:
    """Read `root/mimic-cxr-jpg` and `root/mimic-cxr`.

    Views PA and AP are frontal, LL and LATERAL lateral; all others are left out, as published.

    Args:
        known_frontals: dicom ids which other tables use as frontal images; where no view is stated for them, they
            count as PA.
        progress: called with (reports read, reports in all).

    Raises:
        DataError: a file is missing, a column is missing, an id is repeated, a date or label cannot be read.
    """
    jpg, text = Path(root) / "mimic-cxr-jpg", Path(root) / "mimic-cxr"
    metadata = _read_metadata(jpg)
    steps = [("images in the metadata", len(metadata))]

    view = metadata["ViewPosition"].str.strip().str.upper()
    is_stated = view.isin(VIEWS)
    view = view.where(is_stated | ~(view.isna() & metadata["dicom_id"].isin(known_frontals)), "PA")
    images = pd.DataFrame({
        "dicom_id": metadata["dicom_id"], "study_id": metadata["study_id"], "subject_id": metadata["subject_id"],
        "view": view, "is_view_stated": is_stated, "path": [
            str(jpg / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg")
            for subject, study, dicom in zip(metadata["subject_id"], metadata["study_id"], metadata["dicom_id"],
                                             strict=True)],
        "time": metadata["time"]})
    images = images[images["view"].isin(VIEWS)].reset_index(drop=True)
    steps.append(("images with a frontal or lateral view", len(images)))

    studies = images.groupby(["subject_id", "study_id"], sort=False)["time"].first().reset_index()
    studies = studies[["subject_id", "study_id", "time"]]
    steps.append(("studies with such an image", len(studies)))
    studies = studies.merge(_read_split(jpg), on="study_id", how="inner", validate="one_to_one")
    steps.append(("studies named in the split file", len(studies)))
    studies = studies.merge(_read_labels(jpg), on="study_id", how="left", validate="one_to_one")
    studies = studies.sort_values(["subject_id", "time", "study_id"]).reset_index(drop=True)
    studies.insert(4, "report", _read_reports(text, studies, progress))
    return MimicCxr(images.drop(columns="time"), studies, tuple(steps))


def group_views(images: pd.DataFrame) -> pd.DataFrame:
    """One row a study: its frontals and its lateral.

    Args:
        images: image (any key of the image), study_id, view; the order of rows decides which is first.

    Returns:
        study_id, frontal, frontal_view, other_frontals (list), lateral (-1 where there is none), lateral_view (empty
        where there is none); only studies with a frontal. The first frontal is `frontal`; the first lateral is kept,
        as published.
    """
    frontals = images[images["view"].isin(FRONTAL_VIEWS)].groupby("study_id", sort=False)
    laterals = images[images["view"].isin(LATERAL_VIEWS)].drop_duplicates("study_id").set_index("study_id")
    grouped = pd.DataFrame({"frontal": frontals["image"].first(), "frontal_view": frontals["view"].first(),
                            "other_frontals": frontals["image"].agg(lambda rows: list(rows)[1:])})
    grouped["lateral"] = laterals["image"].reindex(grouped.index).fillna(-1).astype("int64")
    grouped["lateral_view"] = laterals["view"].reindex(grouped.index).fillna("")
    return grouped.reset_index()


def _read_metadata(folder: Path) -> pd.DataFrame:
    path = find_table(folder, "mimic-cxr-2.0.0-metadata.csv", JPG_ORIGIN)
    frame = read_table(path, ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"])
    for column in ("dicom_id", "subject_id", "study_id"):
        refuse_rows(path, frame, column, frame[column].isna(), "is empty", "every image needs its ids")
    refuse_rows(path, frame, "dicom_id", frame["dicom_id"].duplicated(), "is repeated",
                "every image stands in the metadata once; remove the repeated rows")
    # The time of day is written as a number: 80515.5 is 08:05:15.5.
    clock = frame["StudyTime"].fillna("0").str.partition(".")
    time = pd.to_datetime(frame["StudyDate"] + clock[0].str.zfill(6) + clock[2].str.ljust(6, "0").str[:6],
                          format="%Y%m%d%H%M%S%f", errors="coerce")
    is_bad = time.isna()
    if is_bad.any():
        row = frame[is_bad].iloc[0]
        refuse_rows(path, frame, "StudyDate", is_bad, f"with StudyTime={row['StudyTime']!r} is no date and time",
                    "YYYYMMDD and HHMMSS.ffffff are expected")
    frame["time"] = time.astype("datetime64[us]")
    return frame


def _read_split(folder: Path) -> pd.DataFrame:
    path = find_table(folder, "mimic-cxr-2.0.0-split.csv", JPG_ORIGIN)
    frame = read_table(path, ["study_id", "split"])
    refuse_rows(path, frame, "split", ~frame["split"].isin(SPLITS), "is no split", f"one of {', '.join(SPLITS)}")
    frame = frame[["study_id", "split"]].drop_duplicates().reset_index(drop=True)
    refuse_rows(path, frame, "study_id", frame["study_id"].duplicated(), "stands in two splits",
                "all images of a study belong to one")
    return frame


def _read_labels(folder: Path) -> pd.DataFrame:
    path = find_table(folder, "mimic-cxr-2.0.0-chexpert.csv", JPG_ORIGIN)
    frame = read_table(path, ["study_id", *LABELS])
    refuse_rows(path, frame, "study_id", frame["study_id"].duplicated(), "is repeated", "one row a study is expected")
    labels = {label_column(name): numbers(path, frame, name) for name in LABELS}
    for name in LABELS:
        values = labels[label_column(name)]
        refuse_rows(path, frame, name, values.notna() & ~values.isin([1.0, 0.0, -1.0]), "is no CheXpert label",
                    "1.0, 0.0, -1.0 or empty is expected")
    return pd.DataFrame({"study_id": frame["study_id"], **labels})


def _read_reports(folder: Path, studies: pd.DataFrame,
                  progress: Callable[[int, int], None] | None) -> pd.Series:
    if len(studies) and not (folder / "files").is_dir():
        raise DataError(f"{folder / 'files'}: no such folder; the report texts are part of {TEXT_ORIGIN}")
    reports: list[str | None] = []
    for subject, study in zip(studies["subject_id"], studies["study_id"], strict=True):
        path = folder / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}.txt"
        try:
            reports.append(path.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            reports.append(None)
        if progress is not None and (len(reports) % 500 == 0 or len(reports) == len(studies)):
            progress(len(reports), len(studies))
    return pd.Series(reports, dtype="str")
