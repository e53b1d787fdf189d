"""The contact sheet of a phantom: patients over time, both views, with the report's words.

What lives here: one figure, for the eye. matplotlib is imported only when it is drawn.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SECTION = re.compile(r"^ *([A-Z][A-Z ]+): *(.*?)(?=^ *[A-Z][A-Z ]+:|\Z)", re.MULTILINE | re.DOTALL)
_STUDIES_SHOWN = 4
_PANELS_ABREAST = 2
_CELL_WIDTH = 2.3
"""Inches of one study; the heights below are inches too."""
_IMAGE_HEIGHT = 2.25
_LINE_HEIGHT = 0.142
_TITLE_HEIGHT = 0.24
_HEAD_HEIGHT = 0.34
_GAP = 0.3
_LINE_CHARACTERS = 39
_SECTION_LINES = {"INDICATION": 2, "FINDINGS": 9, "IMPRESSION": 7, "FINDINGS AND IMPRESSION": 16}
"""Section of a report that is shown -> the lines it may take; a longer one ends in an ellipsis."""
_TEXT_LINES = 18
_COLOURS = {"consolidation": "#e69f00", "edema": "#56b4e9", "pleural_effusion": "#009e73", "pneumonia": "#cc79a7",
            "pneumothorax": "#d55e00"}


def contact_sheet(root: Path, path_png: Path, num_patients: int = 12) -> Path:
    """Draw the last studies of `num_patients` test patients into a PNG and return its path.

    A panel is a patient, a column a study: frontal above, lateral below where there is one, then the report's
    words. Every finding is seen in its turn. Boxes are the truth.

    Raises:
        ValueError: `root` holds no complete phantom.
    """
    from matplotlib.figure import Figure

    if not (root / "truth" / "studies.parquet").exists():
        raise ValueError(f"{root}: no complete phantom here; write one with `medst data phantom`")
    studies = pd.read_parquet(root / "truth" / "studies.parquet")
    findings = pd.read_parquet(root / "truth" / "findings.parquet")
    metadata = pd.read_csv(root / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz")
    patients = _choose(studies, metadata, num_patients)
    abreast = min(_PANELS_ABREAST, len(patients))
    rows = -(-len(patients) // abreast)
    text_height = _LINE_HEIGHT * (_TEXT_LINES + 0.5)
    panel = (_STUDIES_SHOWN * _CELL_WIDTH, _HEAD_HEIGHT + 2 * (_TITLE_HEIGHT + _IMAGE_HEIGHT) + text_height)
    width = abreast * panel[0] + (abreast + 1) * _GAP
    height = _HEAD_HEIGHT + rows * panel[1] + (rows + 1) * _GAP
    figure = Figure(figsize=(width, height), dpi=80, facecolor="white")
    sheet = _Sheet(figure, width, height)
    sheet.write(_GAP, _GAP, "Boxes (the truth):", size=11)
    for number, (name, colour) in enumerate(_COLOURS.items()):
        sheet.write(_GAP + 1.7 * (number + 1), _GAP, name.replace("_", " "), size=11, color=colour, weight="bold")
    for position, subject in enumerate(patients):
        left = _GAP + (position % abreast) * (panel[0] + _GAP)
        top = _HEAD_HEIGHT + _GAP + (position // abreast) * (panel[1] + _GAP)
        sheet.write(left, top, f"Patient {position + 1}", size=12, weight="bold")
        visits = studies[studies["subject_id"] == subject].sort_values("time").tail(_STUDIES_SHOWN)
        for column, visit in enumerate(visits.to_dict("records")):
            day = (visit["time"] - visits["time"].iloc[0]).days
            _draw_study(sheet, left + column * _CELL_WIDTH, top + _HEAD_HEIGHT, root, visit, day, findings,
                        metadata[metadata["study_id"] == visit["study_id"]])
    path_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path_png)
    return path_png


@dataclass(frozen=True)
class _Sheet:
    """A figure that is laid out in inches from its upper left corner."""

    figure: Figure
    width: float
    height: float

    def write(self, left: float, top: float, words: str, size: float, **style: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, words, fontsize=size, va="top", **style)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        axes = self.figure.add_axes((left / self.width, 1 - (top + height) / self.height,
                                     width / self.width, height / self.height))
        axes.axis("off")
        return axes


def _draw_study(sheet: _Sheet, left: float, top: float, root: Path, visit: dict[Hashable, Any], day: int,
                findings: pd.DataFrame, images: pd.DataFrame) -> None:
    """One column: frontal, lateral, words."""
    from matplotlib.patches import Rectangle

    subject, study = visit["subject_id"], visit["study_id"]
    inside = _CELL_WIDTH - 0.08
    for views in (("AP", "PA"), ("LL", "LATERAL")):
        image = next(iter(images[images["ViewPosition"].isin(views)].to_dict("records")), None)
        if image is None:
            sheet.write(left, top, "no lateral", size=9, color="0.6")
        else:
            sheet.write(left, top, f"{image['ViewPosition']}, day {day}", size=9)
            axes = sheet.axes(left, top + _TITLE_HEIGHT, inside, _IMAGE_HEIGHT - 0.06)
            axes.set_anchor("NW")
            axes.imshow(np.asarray(Image.open(_image_path(root, subject, study, image["dicom_id"]))), cmap="gray",
                        vmin=0, vmax=255)
            for box in findings[findings["dicom_id"] == image["dicom_id"]].dropna(subset=["x"]).to_dict("records"):
                axes.add_patch(Rectangle((box["x"] - 0.5, box["y"] - 0.5), box["w"], box["h"], fill=False,
                                         edgecolor=_COLOURS[box["finding"]], linewidth=1.2))
        top += _TITLE_HEIGHT + _IMAGE_HEIGHT
    for line in _report(root, subject, study):
        sheet.write(left, top, line, size=7.6)
        top += _LINE_HEIGHT


def _choose(studies: pd.DataFrame, metadata: pd.DataFrame, num_patients: int) -> list[int]:
    """Test patients with much of each finding in turn among those with three studies and, best, laterals."""
    with_lateral = metadata.loc[metadata["ViewPosition"].isin(["LL", "LATERAL"]), "study_id"]
    shown = studies[studies["split"] == "test"].sort_values("time").groupby("subject_id").tail(_STUDIES_SHOWN)
    shown = shown.assign(laterals=shown["study_id"].isin(with_lateral).astype(int))
    summed = shown.groupby("subject_id").agg(
        {**{f"severity_{name}": "sum" for name in _COLOURS}, "laterals": "sum", "study_id": "count"})
    long = summed[summed["study_id"] >= min(3, int(summed["study_id"].max()))]
    ranks = {name: (long[f"severity_{name}"] * (0.3 + long["laterals"])).sort_values(ascending=False).index.tolist()
             for name in _COLOURS}
    chosen: list[int] = []
    while len(chosen) < min(num_patients, len(long)):
        name = list(ranks)[len(chosen) % len(ranks)]
        chosen.append(next(subject for subject in ranks[name] if subject not in chosen))
    return chosen


def _image_path(root: Path, subject_id: int, study_id: int, dicom_id: str) -> Path:
    folder = root / "mimic-cxr-jpg" / "files" / f"p{str(subject_id)[:2]}" / f"p{subject_id}"
    return folder / f"s{study_id}" / f"{dicom_id}.jpg"


def _report(root: Path, subject_id: int, study_id: int) -> list[str]:
    """The lines that are shown of a report: sections that say something, cut where they are too long."""
    path = root / "mimic-cxr" / "files" / f"p{str(subject_id)[:2]}" / f"p{subject_id}" / f"s{study_id}.txt"
    lines: list[str] = []
    for heading, words in _SECTION.findall(path.read_text(encoding="utf-8")):
        if heading in _SECTION_LINES:
            lines += textwrap.wrap(f"{heading}: {' '.join(words.split())}", _LINE_CHARACTERS,
                                   max_lines=_SECTION_LINES[heading], placeholder=" …")
    return lines
