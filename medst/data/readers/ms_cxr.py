"""MS-CXR: phrases with their boxes on images of MIMIC-CXR.

What lives here: the layout of the table. What must not: images (they are those of MIMIC-CXR).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medst.data.readers.ms_cxr_t import dicom_of
from medst.data.readers.tables import find_optional_table, find_table, numbers, read_table, refuse_rows

TABLES = ("MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.0.0.csv")
"""Of the published releases, the newest first; 1.1.0 has columns more, which are not needed."""
ORIGIN = "MS-CXR (https://physionet.org/content/ms-cxr/, credentialed access)"


@dataclass(frozen=True)
class MsCxr:
    """Phrases and boxes."""

    boxes: pd.DataFrame
    """dicom_id, phrase, finding, x, y, w, h, image_width, image_height (pixels of the original); one row a box."""
    table: str
    """Name of the file that was read."""


def read_ms_cxr(folder: str | Path) -> MsCxr:
    """Read the table in `folder`, of the newest release that is there.

    Raises:
        DataError: the file or a column is missing; a box is no number or lies outside its image.
    """
    folder = Path(folder)
    name = next((name for name in TABLES if find_optional_table(folder, name) is not None), TABLES[0])
    path = find_table(folder, name, ORIGIN)
    sizes = ["x", "y", "w", "h", "image_width", "image_height"]
    frame = read_table(path, ["dicom_id", "label_text", "category_name", *sizes])
    for column in ("dicom_id", "label_text", "category_name", *sizes):
        refuse_rows(path, frame, column, frame[column].isna(), "is empty", "every box needs it")
    frame = frame.drop_duplicates()
    boxes = pd.DataFrame({"dicom_id": dicom_of(frame["dicom_id"]), "phrase": frame["label_text"],
                          "finding": frame["category_name"],
                          **{column: numbers(path, frame, column) for column in sizes}})
    # Boxes drawn by hand may overrun the border by a pixel.
    is_outside = ((boxes["x"] < -1) | (boxes["y"] < -1) | (boxes["x"] + boxes["w"] > boxes["image_width"] + 1)
                  | (boxes["y"] + boxes["h"] > boxes["image_height"] + 1) | (boxes["w"] <= 0) | (boxes["h"] <= 0))
    refuse_rows(path, frame, "dicom_id", is_outside, "has a box that is empty or outside its image",
                "x, y, w, h are pixels of an image of image_width x image_height")
    return MsCxr(boxes.reset_index(drop=True), path.name)
