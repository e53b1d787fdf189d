"""COVIDx: split text files with one image a line, and folders of JPEG and PNG images.

What lives here: the layout of the split files, with all their irregularities. What must not: decoding of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medst.data.published_splits import published_covidx_split
from medst.data.readers.corpus import first_file
from medst.data.readers.tables import DataError

ORIGIN = ("COVIDx: images from https://www.kaggle.com/datasets/andyczhao/covidx-cxr2, split files from "
          "https://github.com/lindawangg/COVID-Net, folder labels")
CLASSES = ("normal", "pneumonia", "COVID-19")
"""Classes of the three-class files (COVIDx to COVIDx5 and the A files)."""
_CLASS_WORDS = (*CLASSES, "positive", "negative", "level1", "level2")


@dataclass(frozen=True)
class Covidx:
    """Images of both splits."""

    images: pd.DataFrame
    """patient_id, label, source, split (train | test), path, table, row (of the split file, from 0), published_split,
    published_order, published_percent (of training images, see `published_covidx_split`; `test`, 0, 0 of test images);
    in file order, training images first."""
    problems: tuple[str, ...]
    """Lines that were left out, with the reason."""


def read_split_file(path: Path) -> pd.DataFrame:
    """Rows of one split file: patient_id, file, label, source, row.

    A row is `patient file class [source]`; the source is missing in some rows, and a patient id may hold spaces, so
    the class word is looked for from the right. The class is kept as written: `positive` and `negative` of the
    two-class B files are not turned into others. The misspelt source `rnsa` reads `rsna`. Figure1 numbers every
    image of a patient apart (COVID-00039a, b, c); its patient id is given without the letter.

    Raises:
        DataError: the file is missing, or a row has no class word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        others = sorted(other.name for other in path.parent.glob("*COVIDx*.txt"))
        seen = f"; there are: {', '.join(others)}" if others else ""
        raise DataError(f"{path}: no such file; it is part of {ORIGIN}{seen}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        tokens = line.split()
        if not tokens:
            continue
        position = next((index for index in (len(tokens) - 1, len(tokens) - 2)
                         if index >= 2 and tokens[index] in _CLASS_WORDS), None)
        if position is None:
            raise DataError(f"{path}, line {number}: no class word in {line!r}; `patient file class [source]` with "
                            f"one of {', '.join(_CLASS_WORDS)} is expected")
        source = tokens[position + 1] if position + 1 < len(tokens) else ""
        rows.append((" ".join(tokens[:position - 1]), tokens[position - 1], tokens[position],
                     "rsna" if source == "rnsa" else source, number - 1))
    frame = pd.DataFrame(rows, columns=["patient_id", "file", "label", "source", "row"]).astype(
        {"patient_id": "str", "file": "str", "label": "str", "source": "str", "row": "int64"})
    frame["patient_id"] = frame["patient_id"].str.replace(r"^(COVID-\d{5})[a-z]$", r"\1", regex=True)
    return frame


def read_covidx(folder: str | Path, version: str = "9A", tables: str | Path | None = None) -> Covidx:
    """Read `{train,test}_COVIDx<version>.txt`, and name the images of `train/` and `test/` in `folder`.

    Args:
        version: number of the split files; 9A are the three-class files that the published evaluation reads.
        tables: folder of the split files, where they are not beside the images.

    Raises:
        DataError: a split file is missing, has a row without a class word, or has not the three classes.
    """
    folder, tables = Path(folder), Path(tables or folder)
    parts, problems = [], []
    for split in ("train", "test"):
        name = f"{split}_COVIDx{version}.txt"
        part = read_split_file(tables / name)
        others = sorted(set(part["label"]) - set(CLASSES))
        if others:
            raise DataError(f"{tables / name}: classes {', '.join(others)}; the evaluation needs the three classes "
                            f"{', '.join(CLASSES)} of the A files (9A is the published one), not a two-class file")
        drawn = ({"published_split": "test", "published_order": 0, "published_percent": 0} if split == "test"
                 else dict(published_covidx_split(len(part))))
        part = part.assign(**drawn)
        is_repeated = part["file"].duplicated()
        if is_repeated.any():
            problems.append(f"{name}: {int(is_repeated.sum())} repeated file names are left out")
        part = part[~is_repeated]
        # A split folder as published, or all images in one.
        parts.append(part.assign(split=split, table=name, path=[
            first_file([folder / split, folder / "images", folder], [file]) for file in part["file"]]))
    images = pd.concat(parts, ignore_index=True)
    return Covidx(images[["patient_id", "label", "source", "split", "path", "table", "row", "published_split",
                          "published_order", "published_percent"]], tuple(problems))
