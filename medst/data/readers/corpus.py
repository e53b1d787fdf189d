"""What every corpus of images with reports gives to the store, whatever its layout on disk.

What lives here: the carrier, the ways in which reports are kept, splits by patient. What must not: any one layout,
decoding of images, cleaning of text.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pandas as pd

Item = TypeVar("Item")

LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture",
          "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia",
          "Pneumothorax", "Support Devices")
"""Columns of mimic-cxr-2.0.0-chexpert.csv."""
SPLITS = ("train", "validate", "test")
START_OF_ORDER = pd.Timestamp("1900-01-01")
"""Day 0 of collections that tell the order of studies or days since an event, but no date."""

Report = str | Mapping[str, str]
"""A whole report text, or its sections (`findings`, `impression`, ...)."""


def label_column(name: str) -> str:
    """Column of the studies table for a CheXpert label: 'Pleural Effusion' -> 'label_pleural_effusion'."""
    return "label_" + name.lower().replace(" ", "_")


class Reports(Protocol):
    """Where the reports of a corpus are kept."""

    def read(self, studies: pd.DataFrame) -> Iterator[tuple[int, Report]]:
        """(row of `studies`, report) for every study that has one, in the order in which they are kept."""
        ...


@dataclass(frozen=True)
class ReportSections:
    """Reports that are in memory already."""

    sections: Mapping[str, Mapping[str, str]]
    """By study id."""

    def read(self, studies: pd.DataFrame) -> Iterator[tuple[int, Report]]:
        for row, study in enumerate(studies["study_id"]):
            if study in self.sections:
                yield row, self.sections[study]


@dataclass(frozen=True)
class Corpus:
    """Images of the four views and the studies that they belong to."""

    images: pd.DataFrame
    """dicom_id (name of the image), study_id, subject_id, view (AP | PA | LL | LATERAL), is_view_stated, row (of
    `table`, from 0); in the order of the table."""
    studies: pd.DataFrame
    """subject_id, study_id, time, split, label_<name> (1, 0, -1, NaN), and sex, age where known; by patient, time and
    study id; only studies that have an image in `images`."""
    reports: Reports
    paths: Callable[[pd.DataFrame], list[str]]
    """Files of some rows of `images`."""
    table: str
    """Name of the file whose rows `images.row` counts."""
    steps: tuple[tuple[str, int], ...]
    """What remains after each step of selection, in order."""
    problems: tuple[str, ...] = ()
    """What was left out, with the number of rows."""
    notes: tuple[str, ...] = field(default=())
    """What a user must know about the meaning of the tables."""
    referenced: Mapping[str, str] = field(default_factory=dict)
    """Dicom id -> patient of the images that tables upon this corpus name, also of those that are not there."""


def blocks_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while block := list(itertools.islice(iterator, size)):
        yield block


def without_labels(study_ids: pd.Series) -> pd.DataFrame:
    """study_id and all label columns, missing."""
    return pd.DataFrame({"study_id": study_ids, **{label_column(name): np.nan for name in LABELS}})


def split_by_patient(corpus: str, subjects: Iterable[str], shares: Sequence[tuple[str, int]]) -> list[str]:
    """A split for every patient where none is published: drawn by a hash of the name, so that it is the same on every
    machine and does not change when patients are added.

    Args:
        shares: (split, percent); what remains is `train`.
    """
    splits = []
    for subject in subjects:
        number = int(hashlib.sha256(f"{corpus}\0{subject}".encode()).hexdigest()[:8], 16) % 100
        chosen = "train"
        for name, share in shares:
            if number < share:
                chosen = name
                break
            number -= share
        splits.append(chosen)
    return splits


def first_file(folders: Sequence[Path], names: Sequence[str]) -> str:
    """The first of `names` that is a file in one of `folders`; the first place where none is."""
    return next((str(folder / name) for folder in folders for name in names if (folder / name).is_file()),
                str(folders[0] / names[0]))
