"""RSNA Pneumonia Detection Challenge: DICOM images and one table row a box.

What lives here: the layout of the data set. What must not: decoding of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medst.data.published_splits import published_rsna_split
from medst.data.readers.tables import find_table, numbers, read_table, refuse_rows

ORIGIN = ("the RSNA Pneumonia Detection Challenge, stage 2 "
          "(https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data)")
TABLE = "stage_2_train_labels.csv"


@dataclass(frozen=True)
class Rsna:
    """Images with their target and boxes."""

    images: pd.DataFrame
    """patient_id, target (0 | 1), boxes (list of [x, y, w, h] in pixels), path, row (first one in the table, from 0),
    published_split (train | validate | test); in order of first appearance."""
    problems: tuple[str, ...]
    """Rows that were left out, with the reason."""


def read_rsna(folder: str | Path, tables: str | Path | None = None) -> Rsna:
    """Read stage_2_train_labels.csv, and name the images of stage_2_train_images/ in `folder`.

    The table's patientId is the image's file name; ids inside the DICOM are not used.

    Args:
        tables: folder of the table, where it is not beside the images.

    Raises:
        DataError: the table or a column is missing, a target is neither 0 nor 1 or differs within a patient, a
            positive row has no box.
    """
    folder = Path(folder)
    path = find_table(Path(tables or folder), TABLE, ORIGIN)
    frame = read_table(path, ["patientId", "x", "y", "width", "height", "Target"])
    refuse_rows(path, frame, "patientId", frame["patientId"].isna(), "is empty", "every row needs its patient")
    is_copy = frame.duplicated()
    problems = [f"{TABLE}: {int(is_copy.sum())} rows are repeated word for word and left out"] if is_copy.any() else []
    frame = frame[~is_copy]
    target = numbers(path, frame, "Target")
    refuse_rows(path, frame, "Target", ~target.isin([0.0, 1.0]), "is no target", "0 or 1 is expected")
    first = target.groupby(frame["patientId"]).transform("first")
    refuse_rows(path, frame, "patientId", first != target, "has both targets", "all rows of a patient share one Target")
    box = pd.DataFrame({column: numbers(path, frame, column) for column in ("x", "y", "width", "height")})
    refuse_rows(path, frame, "patientId", (target == 1) & box.isna().any(axis=1), "is positive and has no box",
                "rows with Target 1 carry x, y, width and height")
    boxes: dict[str, list[list[float]]] = {patient: [] for patient in frame["patientId"]}
    for patient, is_positive, values in zip(frame["patientId"], target == 1, box.to_numpy().tolist(), strict=True):
        if is_positive:
            boxes[patient].append(values)
    images = pd.DataFrame({
        "patient_id": list(boxes), "boxes": list(boxes.values()),
        "path": [str(folder / "stage_2_train_images" / f"{patient}.dcm") for patient in boxes],
        "row": frame.index[~frame["patientId"].duplicated()]})
    images.insert(1, "target", images["boxes"].map(bool).astype("int64"))
    images["published_split"] = published_rsna_split(images["patient_id"])
    return Rsna(images, tuple(problems))
