"""MS-CXR-T: progression labels of image pairs, and pairs of sentences.

What lives here: the layout of the two tables. What must not: images (they are those of MIMIC-CXR).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medst.data.readers.tables import find_table, read_table, refuse_rows

ORIGIN = "MS-CXR-T 1.0.0 (https://physionet.org/content/ms-cxr-t/1.0.0/, credentialed access)"
FINDINGS = ("consolidation", "edema", "pleural_effusion", "pneumonia", "pneumothorax")
PROGRESSIONS = ("improving", "stable", "worsening")


@dataclass(frozen=True)
class MsCxrT:
    """Pairs of images and pairs of sentences."""

    pairs: pd.DataFrame
    """dicom_id, previous_dicom_id, subject_id, study_id, previous_study_id, and for each of the five findings
    improving | stable | worsening, or None where it is not judged."""
    sentences: pd.DataFrame
    """sentence_1, sentence_2, category (paraphrase | contradiction), subset_name (RadGraph | Swaps)."""
    problems: tuple[str, ...]
    """Labels that are none of the three, which are read as None, and repeated rows."""


def dicom_of(reference: pd.Series) -> pd.Series:
    """Dicom id of an image reference: a path with or without extension, or the id itself."""
    return reference.str.strip().str.split("/").str[-1].str.replace(r"\.(?:jpe?g|dcm|png)$", "", regex=True)


def read_ms_cxr_t(folder: str | Path) -> MsCxrT:
    """Read the two tables in `folder`.

    Raises:
        DataError: a file or a column is missing, an id is empty.
    """
    folder = Path(folder)
    path = find_table(folder, "MS_CXR_T_temporal_image_classification_v1.0.0.csv", ORIGIN)
    ids = ["dicom_id", "previous_dicom_id", "subject_id", "study_id", "previous_study_id"]
    frame = read_table(path, [*ids, *(f"{finding}_progression" for finding in FINDINGS)])
    for column in ids:
        refuse_rows(path, frame, column, frame[column].isna(), "is empty", "every pair needs its ids")
    is_copy = frame.duplicated()
    problems = [f"{path.name}: {int(is_copy.sum())} rows are repeated word for word and left out"] * bool(is_copy.any())
    frame = frame[~is_copy].reset_index(drop=True)
    pairs = frame[ids].copy()
    for column in ("dicom_id", "previous_dicom_id"):
        pairs[column] = dicom_of(frame[column])
    for column, letter in (("subject_id", "p"), ("study_id", "s"), ("previous_study_id", "s")):
        pairs[column] = frame[column].str.strip().str.removeprefix(letter)
    for finding in FINDINGS:
        label = frame[f"{finding}_progression"].str.strip().str.lower()
        is_known = label.isin(PROGRESSIONS)
        for value, count in label[label.notna() & ~is_known].value_counts().items():
            problems.append(f"{path.name}: {count} rows with {finding}_progression={value!r} are read as not judged")
        pairs[finding] = label.astype(object).where(is_known, None)

    path = find_table(folder, "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv", ORIGIN)
    columns = ["sentence_1", "sentence_2", "category", "subset_name"]
    sentences = read_table(path, columns)[columns]
    for column in columns:
        refuse_rows(path, sentences, column, sentences[column].isna(), "is empty", "all four columns are needed")
    return MsCxrT(pairs, sentences.reset_index(drop=True), tuple(problems))
