"""CheXpert Plus: images, views and reports of patients over time, one table row an image.

What lives here: the layout of df_chexpert_plus_240401.csv and of the label files. What must not: decoding of images,
cleaning of reports.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medst.data.readers.corpus import (
    LABELS,
    START_OF_ORDER,
    Corpus,
    Report,
    first_file,
    label_column,
    split_by_patient,
    without_labels,
)
from medst.data.readers.tables import DataError, encoding_of, find_table, numbers, read_age, read_table, refuse_rows

ORIGIN = "CheXpert Plus (https://aimi.stanford.edu/datasets/chexpert-plus, registration with Stanford AIMI)"
TABLE = "df_chexpert_plus_240401.csv"
LABEL_FILES = ("report_fixed.json", "impression_fixed.json", "findings_fixed.json")
_SECTIONS = {"section_findings": "findings", "section_impression": "impression", "section_comparison": "comparison"}
_ROWS_PER_CHUNK = 5000


def read_chexpert_plus(folder: str | Path, images_folder: str | Path | None = None) -> Corpus:
    """Read the table, the CheXbert labels where they are there, and the places of the images.

    Args:
        folder: with df_chexpert_plus_240401.csv, and chexbert_labels/ where wanted.
        images_folder: with train/patient1/study1/view1_frontal.png (or .jpg, .dcm), in it or in PNG/; default:
            `folder`.

    Raises:
        DataError: the table or a column is missing, a path does not name patient and study.
    """
    folder = Path(folder)
    images_folder = Path(images_folder or folder)
    path = find_table(folder, TABLE, ORIGIN)
    columns = ["path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "split"]
    frame = read_table(path, columns, ["sex", "age"])
    refuse_rows(path, frame, "path_to_image", frame["path_to_image"].isna(), "is empty", "every row names its image")
    is_copy = frame["path_to_image"].duplicated()
    problems = [f"{TABLE}: {int(is_copy.sum())} repeated images are left out"] if is_copy.any() else []
    frame = frame[~is_copy]
    steps = [("images in the table", len(frame))]
    parts = frame["path_to_image"].str.extract(r"(patient[^/]+)/(study[^/]+)/")
    refuse_rows(path, frame, "path_to_image", parts[1].isna(), "does not name patient and study",
                "train/patient1/study1/view1_frontal.jpg is expected")
    order = numbers(path, frame, "patient_report_date_order")
    kind = frame["frontal_lateral"].str.strip().str.upper()
    device = frame["ap_pa"].str.strip().str.upper()
    is_stated = (kind == "LATERAL") | device.isin(["AP", "PA"])
    view = device.where(device.isin(["AP", "PA"]), "PA").where(kind == "FRONTAL", "LATERAL")
    images = pd.DataFrame({
        "dicom_id": frame["path_to_image"], "study_id": parts[0] + "-" + parts[1],
        "subject_id": frame["deid_patient_id"].fillna(parts[0]), "view": view, "is_view_stated": is_stated,
        "row": frame.index, "order": order, "split": frame["split"].str.strip().str.lower(),
        "sex": frame.get("sex", pd.Series("", frame.index)), "age": frame.get("age", pd.Series("", frame.index))})
    images = images[kind.isin(["FRONTAL", "LATERAL"])]
    steps.append(("images with a frontal or lateral view", len(images)))
    has_order = images["order"].notna()
    if not has_order.all():
        problems.append(f"{int((~has_order).sum())} images without patient_report_date_order are left out")
        images = images[has_order]
        steps.append(("images of studies with a place in time", len(images)))
    images = images.reset_index(drop=True)
    studies = _studies(images, folder)
    steps.append(("studies", len(studies)))
    places = [place for name in (".", "PNG", "PNG/PNG", "DICOM") if (place := images_folder / name).is_dir()]

    def paths(images: pd.DataFrame) -> list[str]:
        stems = [name.rsplit(".", 1)[0] for name in images["dicom_id"]]
        return [first_file(places or [images_folder], [f"{stem}{suffix}" for suffix in (".png", ".jpg", ".dcm")])
                for stem in stems]

    return Corpus(
        images[["dicom_id", "study_id", "subject_id", "view", "is_view_stated", "row"]], studies,
        _TableReports(path), paths, TABLE, tuple(steps), tuple(problems),
        ("times are the order of a patient's reports, not dates: intervals mean nothing. The column "
         "patient_report_date_order is taken as published; whether it is the order in life cannot be checked here",
         "the published `valid` split is `test` here; 5 percent of the training patients, by hash, are `validate`"))


def _studies(images: pd.DataFrame, folder: Path) -> pd.DataFrame:
    first = images.drop_duplicates("study_id").reset_index(drop=True)
    drawn = split_by_patient("chexpert-plus", first["subject_id"], (("validate", 5),))
    split = np.where(first["split"] == "train", drawn, "test")
    studies = first[["subject_id", "study_id"]].assign(
        time=(START_OF_ORDER + pd.to_timedelta(first["order"], unit="D")).astype("datetime64[us]"), split=split)
    studies = studies.merge(_read_labels(folder, images), on="study_id", validate="one_to_one")
    studies = studies.assign(sex=first["sex"].fillna("").str[:1].str.upper(),
                             age=[read_age(text) for text in first["age"]])
    return studies.sort_values(["subject_id", "time", "study_id"]).reset_index(drop=True)


def _read_labels(folder: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Labels of the studies from the CheXbert files (one JSON object a line), missing without them."""
    labels = without_labels(pd.Series(images["study_id"].unique(), dtype="str")).set_index("study_id")
    path = next((path for name in LABEL_FILES for place in ("chexbert_labels", "labels", ".")
                 if (path := folder / place / name).is_file()), None)
    if path is None:
        return labels.reset_index()
    study_of = dict(zip(images["dicom_id"], images["study_id"], strict=True))
    rows: dict[str, list[float]] = {}
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
                study = study_of.get(found["path_to_image"])
                values = [np.nan if found.get(name) is None else float(found[name]) for name in LABELS]
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}, line {number}: one JSON object with path_to_image and labels is expected "
                                f"({error}); the file is part of {ORIGIN}") from None
            if study is not None:
                rows.setdefault(study, values)
    known = pd.DataFrame.from_dict(rows, orient="index", columns=[label_column(name) for name in LABELS])
    return known.reindex(labels.index).rename_axis("study_id").reset_index()


@dataclass(frozen=True)
class _TableReports:
    path: Path

    def read(self, studies: pd.DataFrame) -> Iterator[tuple[int, Report]]:
        """The rows of the images of a study repeat its report: the first that has one serves."""
        rows = {study: row for row, study in enumerate(studies["study_id"])}
        chunks = pd.read_csv(self.path, dtype=str, keep_default_na=False, encoding=encoding_of(self.path),
                             index_col=False, chunksize=_ROWS_PER_CHUNK,
                             usecols=lambda name: name in {"path_to_image", "report", *_SECTIONS})
        for chunk in chunks:
            parts = chunk["path_to_image"].str.extract(r"(patient[^/]+)/(study[^/]+)/")
            for study, line in zip(parts[0] + "-" + parts[1], chunk.to_dict("records"), strict=True):
                sections = {own: text for name, own in _SECTIONS.items() if (text := line.get(name, "").strip())}
                report: Report = sections if {"findings", "impression"} & set(sections) else line.get("report", "")
                if report and (row := rows.pop(study, None)) is not None:
                    yield row, report
