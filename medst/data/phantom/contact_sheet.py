"""The contact sheet of a phantom: patients over time, both views, with the report's words.

What lives here: one figure, for the eye. matplotlib is imported only when it is drawn.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

_STUDIES_SHOWN = 4


def contact_sheet(root: Path, path_png: Path, num_patients: int = 12) -> Path:
    """Draw the last studies of `num_patients` test patients into a PNG and return its path.

    Every finding is seen in its turn. Boxes are the truth.

    Raises:
        ValueError: `root` holds no complete phantom.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if not (root / "truth" / "studies.parquet").exists():
        raise ValueError(f"{root}: no complete phantom here; write one with `medst data phantom`")
    studies = pd.read_parquet(root / "truth" / "studies.parquet")
    findings = pd.read_parquet(root / "truth" / "findings.parquet")
    metadata = pd.read_csv(root / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz")
    patients = _choose(studies, metadata, num_patients)
    columns = 3
    rows = -(-len(patients) // columns)
    figure = Figure(figsize=(columns * 9.6, rows * 7.6), dpi=80, facecolor="white")
    for position, subject in enumerate(patients):
        part = figure.add_gridspec(
            1, 1, left=(position % columns) / columns + 0.006, right=(position % columns + 1) / columns - 0.006,
            top=1 - (position // columns) / rows - 0.014, bottom=1 - (position // columns + 1) / rows + 0.006)
        grid = part[0].subgridspec(3, _STUDIES_SHOWN, height_ratios=(1, 1, 0.9), hspace=0.06, wspace=0.03)
        visits = studies[studies["subject_id"] == subject].sort_values("time").tail(_STUDIES_SHOWN)
        start = visits["time"].iloc[0]
        for column, visit in enumerate(visits.to_dict("records")):
            images = metadata[metadata["study_id"] == visit["study_id"]]
            for row, views in enumerate((("AP", "PA"), ("LL", "LATERAL"))):
                axis = figure.add_subplot(grid[row, column])
                axis.axis("off")
                for image in images[images["ViewPosition"].isin(views)].head(1).to_dict("records"):
                    path = _image_path(root, subject, visit["study_id"], image["dicom_id"])
                    axis.imshow(np.asarray(Image.open(path)), cmap="gray", vmin=0, vmax=255)
                    boxes = findings[findings["dicom_id"] == image["dicom_id"]].dropna(subset=["x"])
                    for box in boxes.to_dict("records"):
                        axis.add_patch(Rectangle((box["x"] - 0.5, box["y"] - 0.5), box["w"], box["h"], fill=False,
                                                 edgecolor=_COLOURS[box["finding"]], linewidth=0.8))
                    axis.set_title(f"{image['ViewPosition']}, day {(visit['time'] - start).days}", fontsize=9, pad=2)
            axis = figure.add_subplot(grid[2, column])
            axis.axis("off")
            axis.text(0, 1, _report(root, subject, visit["study_id"]), fontsize=7.4, va="top", family="monospace",
                      transform=axis.transAxes)
    for number, (name, colour) in enumerate(_COLOURS.items()):
        figure.text(0.01 + 0.07 * number, 0.001, name.replace("_", " "), color=colour, fontsize=11)
    path_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path_png)
    return path_png


_COLOURS = {"consolidation": "#e69f00", "edema": "#56b4e9", "pleural_effusion": "#009e73", "pneumonia": "#f0e442",
            "pneumothorax": "#d55e00"}


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


def _report(root: Path, subject_id: int, study_id: int) -> str:
    path = root / "mimic-cxr" / "files" / f"p{str(subject_id)[:2]}" / f"p{subject_id}" / f"s{study_id}.txt"
    words = " ".join(path.read_text(encoding="utf-8").replace("FINAL REPORT", "").split())
    return "\n".join(textwrap.wrap(words, 34)[:21])
