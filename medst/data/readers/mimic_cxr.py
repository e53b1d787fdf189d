"""MIMIC-CXR-JPG (images, metadata, split, labels) with the report texts of MIMIC-CXR beside it.

What lives here: the layouts of the two data sets, and how images are grouped to studies. What must not: decoding
of images, cleaning of reports, windows.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from medst.data.readers.corpus import LABELS, SPLITS, Corpus, Report, Reports, label_column, without_labels
from medst.data.readers.tables import (
    DataError,
    find_optional_table,
    find_table,
    numbers,
    open_text,
    read_table,
    refuse_rows,
)
from medst.data.views import FRONTAL_VIEWS, LATERAL_VIEWS, VIEWS

JPG_ORIGIN = "MIMIC-CXR-JPG 2.0.0 (https://physionet.org/content/mimic-cxr-jpg/2.0.0/, credentialed access)"
TEXT_ORIGIN = ("mimic-cxr-reports.zip of MIMIC-CXR 2.0.0 (https://physionet.org/content/mimic-cxr/2.0.0/, credentialed "
               "access)")
REPORTS_ZIP = "mimic-cxr-reports.zip"
SECTIONED = "mimic_cxr_sectioned.csv"
METADATA = "mimic-cxr-2.0.0-metadata.csv"
_SECTIONS = ("impression", "findings", "last_paragraph", "comparison")
_SUFFIXES = (".jpg", ".jpeg", ".png")


# ------------------------------------------------------------------------------------------------ images


@dataclass(frozen=True)
class _Layout:
    """Where the images lie: the published tree, the same without `files/`, or all in one folder."""

    folder: Path
    is_nested: bool
    suffix: str

    def path(self, subject: str, study: str, dicom: str) -> str:
        tree = f"p{subject[:2]}/p{subject}/s{study}/" if self.is_nested else ""
        return f"{self.folder}/{tree}{dicom}{self.suffix}"

    def paths(self, images: pd.DataFrame) -> list[str]:
        return [self.path(subject, study, dicom) for subject, study, dicom in
                zip(images["subject_id"], images["study_id"], images["dicom_id"], strict=True)]


def _find_layout(folder: Path, images: pd.DataFrame) -> _Layout:
    """The layout in which the first image is found; the published one where none is."""
    published = _Layout(folder / "files", True, ".jpg")
    candidates = [_Layout(place, is_nested, suffix) for suffix in _SUFFIXES for is_nested in (True, False)
                  for place in (folder / "files", folder, folder / "images") if place.is_dir()]
    ids = zip(images["subject_id"], images["study_id"], images["dicom_id"], strict=True)
    return next((layout for row in ids for layout in candidates if Path(layout.path(*row)).is_file()), published)


def read_mimic_cxr(images_folder: str | Path, reports: str | Path, tables: str | Path | None = None,
                   known_frontals: Set[str] = frozenset(), is_partial: bool = False) -> Corpus:
    """Read MIMIC-CXR-JPG and the reports of MIMIC-CXR.

    Views PA and AP are frontal, LL and LATERAL lateral; all others are left out, as published. Images may lie in the
    published tree, in that tree without `files/`, or in one folder; as JPEG or PNG of any size.

    Args:
        images_folder: with `files/p10/...` and the tables.
        reports: a folder with `files/p10/p10000032/s50414267.txt`, mimic-cxr-reports.zip or a sectioned CSV in it; or
            one of the latter two itself.
        tables: folder of the tables, where they are not beside the images.
        known_frontals: dicom ids which other tables use as frontal images; where no view is stated for them, they
            count as PA.
        is_partial: the download is not complete: images that are not there are left out and counted, before the
            selection.

    Raises:
        DataError: a file is missing, a column is missing, an id stands for two images, a date or label cannot be read.
    """
    jpg, tables = Path(images_folder), Path(tables or images_folder)
    metadata, problems = _read_metadata(tables)
    steps = [("images in the metadata", len(metadata))]
    layout = _find_layout(jpg, metadata)
    is_named = metadata["dicom_id"].isin(known_frontals)
    referenced = dict(zip(metadata.loc[is_named, "dicom_id"], metadata.loc[is_named, "subject_id"], strict=True))
    if is_partial:
        metadata = metadata[[Path(path).is_file() for path in layout.paths(metadata)]]
        steps.append(("images that are there", len(metadata)))

    view = metadata["ViewPosition"].str.strip().str.upper()
    is_stated = view.isin(VIEWS)
    view = view.where(is_stated | ~(view.isna() & metadata["dicom_id"].isin(known_frontals)), "PA")
    images = metadata[["dicom_id", "study_id", "subject_id"]].assign(
        view=view, is_view_stated=is_stated, row=metadata.index, time=metadata["time"])
    images = images[images["view"].isin(VIEWS)].reset_index(drop=True)
    steps.append(("images with a frontal or lateral view", len(images)))

    studies = images.groupby(["subject_id", "study_id"], sort=False)["time"].first().reset_index()
    studies = studies[["subject_id", "study_id", "time"]]
    steps.append(("studies with such an image", len(studies)))
    has_time = studies["time"].notna()
    if not has_time.all():
        problems.append(f"{int((~has_time).sum())} studies without a date are left out: their place in time is unknown")
        studies = studies[has_time]
        images = images[images["study_id"].isin(studies["study_id"])].reset_index(drop=True)
        steps.append(("studies with a date", len(studies)))
    studies = studies.merge(_read_split(tables), on="study_id", how="inner", validate="one_to_one")
    steps.append(("studies named in the split file", len(studies)))
    labels, notes = _read_labels(tables)
    studies = studies.merge(labels, on="study_id", how="left", validate="one_to_one")
    studies = studies.sort_values(["subject_id", "time", "study_id"]).reset_index(drop=True)
    return Corpus(images.drop(columns="time"), studies, find_reports(Path(reports)), partial(_Layout.paths, layout),
                  METADATA, tuple(steps), tuple(problems), tuple(notes), referenced)


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


# ------------------------------------------------------------------------------------------------ tables


def _read_metadata(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    path = find_table(folder, METADATA, JPG_ORIGIN)
    frame = read_table(path, ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"])
    problems = []
    for column in ("dicom_id", "subject_id", "study_id"):
        refuse_rows(path, frame, column, frame[column].isna(), "is empty", "every image needs its ids")
    is_copy = frame.duplicated()
    if is_copy.any():
        problems.append(f"{path.name}: {int(is_copy.sum())} rows are repeated word for word and left out")
        frame = frame[~is_copy]
    refuse_rows(path, frame, "dicom_id", frame["dicom_id"].duplicated(), "is repeated",
                "every image stands in the metadata once; remove the repeated rows")
    first = frame.groupby("study_id")["subject_id"].transform("first")
    refuse_rows(path, frame, "study_id", first != frame["subject_id"], "stands under two patients",
                "all images of a study have one subject_id")
    # The time of day is written as a number: 80515.5 is 08:05:15.5.
    clock = frame["StudyTime"].fillna("0").str.partition(".")
    time = pd.to_datetime(frame["StudyDate"] + clock[0].str.zfill(6) + clock[2].str.ljust(6, "0").str[:6],
                          format="%Y%m%d%H%M%S%f", errors="coerce")
    is_bad = time.isna() & frame["StudyDate"].notna()
    if is_bad.any():
        row = frame[is_bad].iloc[0]
        refuse_rows(path, frame, "StudyDate", is_bad, f"with StudyTime={row['StudyTime']!r} is no date and time",
                    "YYYYMMDD and HHMMSS.ffffff are expected")
    frame = frame.drop(columns=["StudyDate", "StudyTime"])
    frame["time"] = time.astype("datetime64[us]")
    return frame, problems


def _read_split(folder: Path) -> pd.DataFrame:
    path = find_table(folder, "mimic-cxr-2.0.0-split.csv", JPG_ORIGIN)
    frame = read_table(path, ["study_id", "split"])
    refuse_rows(path, frame, "split", ~frame["split"].isin(SPLITS), "is no split", f"one of {', '.join(SPLITS)}")
    frame = frame[["study_id", "split"]].drop_duplicates()
    refuse_rows(path, frame, "study_id", frame["study_id"].duplicated(), "stands in two splits",
                "all images of a study belong to one")
    return frame


def _read_labels(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """CheXpert's labels; NegBio's, which have the same columns, where those are absent."""
    path, notes = find_optional_table(folder, "mimic-cxr-2.0.0-chexpert.csv"), []
    if path is None:
        path = find_optional_table(folder, "mimic-cxr-2.0.0-negbio.csv")
        if path is None:
            raise DataError(f"{folder / 'mimic-cxr-2.0.0-chexpert.csv'}[.gz]: no such file, nor mimic-cxr-2.0.0-negbio"
                            f".csv[.gz]; both are part of {JPG_ORIGIN}. Put one there")
        notes.append("labels are those of NegBio: the CheXpert file is absent")
    frame = read_table(path, ["study_id", *LABELS])
    refuse_rows(path, frame, "study_id", frame["study_id"].isna(), "is empty", "every row needs its study")
    frame = frame.drop_duplicates()
    refuse_rows(path, frame, "study_id", frame["study_id"].duplicated(), "is repeated", "one row a study is expected")
    labels = {label_column(name): numbers(path, frame, name) for name in LABELS}
    for name in LABELS:
        values = labels[label_column(name)]
        refuse_rows(path, frame, name, values.notna() & ~values.isin([1.0, 0.0, -1.0]), "is no CheXpert label",
                    "1.0, 0.0, -1.0 or empty is expected")
    table = without_labels(frame["study_id"]).assign(**labels)
    return table, notes


# ------------------------------------------------------------------------------------------------ reports


def find_reports(place: Path) -> Reports:
    """The reports in a folder tree, an archive or a sectioned CSV.

    Raises:
        DataError: none of them is there.
    """
    if place.is_dir():
        for folder in (place, place / "mimic-cxr-reports"):
            if (folder / "files").is_dir():
                return _FolderReports(folder / "files")
        found = next((path for name in (REPORTS_ZIP, SECTIONED, f"{SECTIONED}.gz")
                      if (path := place / name).is_file()), None)
        if found is None:
            raise DataError(f"{place / 'files'}: no such folder, and neither {REPORTS_ZIP} nor {SECTIONED} is in "
                            f"{place}; the report texts are part of {TEXT_ORIGIN}")
        place = found
    if not place.is_file():
        raise DataError(f"{place}: no such file or folder; the report texts are part of {TEXT_ORIGIN}")
    if place.suffix == ".zip":
        return _ZippedReports(place)
    if place.name.endswith((".csv", ".csv.gz")):
        return _SectionedReports(place)
    raise DataError(f"{place}: reports are a folder with files/, {REPORTS_ZIP} or {SECTIONED}; from {TEXT_ORIGIN}")


def _name(subject: str, study: str) -> str:
    return f"p{subject[:2]}/p{subject}/s{study}.txt"


def _decode(content: bytes) -> str:
    return content.decode("utf-8-sig", errors="replace")


@dataclass(frozen=True)
class _FolderReports:
    folder: Path

    def read(self, studies: pd.DataFrame) -> Iterator[tuple[int, Report]]:
        for row, (subject, study) in enumerate(zip(studies["subject_id"], studies["study_id"], strict=True)):
            try:
                content = (self.folder / _name(subject, study)).read_bytes()
            except FileNotFoundError:
                continue
            yield row, _decode(content)


@dataclass(frozen=True)
class _ZippedReports:
    path: Path

    def read(self, studies: pd.DataFrame) -> Iterator[tuple[int, Report]]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                # The archive may have been packed with or without the folder `mimic-cxr-reports/`.
                prefix = next((name[:name.index("files/")] for name in archive.namelist() if "files/" in name), "")
                for row, (subject, study) in enumerate(zip(studies["subject_id"], studies["study_id"], strict=True)):
                    try:
                        content = archive.read(f"{prefix}files/{_name(subject, study)}")
                    except KeyError:
                        continue
                    yield row, _decode(content)
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise DataError(f"{self.path}: not a whole archive ({error}); download {TEXT_ORIGIN} again") from None


@dataclass(frozen=True)
class _SectionedReports:
    """The table that create_section_files.py of https://github.com/MIT-LCP/mimic-cxr makes."""

    path: Path

    def read(self, studies: pd.DataFrame) -> Iterator[tuple[int, Report]]:
        try:
            yield from self._read(studies)
        except (OSError, EOFError, zlib.error, csv.Error) as error:
            raise DataError(f"{self.path}: not a whole table ({error}); copy it again, or make it again with "
                            "create_section_files.py of MIT-LCP/mimic-cxr") from None

    def _read(self, studies: pd.DataFrame) -> Iterator[tuple[int, Report]]:
        rows = {study: row for row, study in enumerate(studies["study_id"])}
        with open_text(self.path, "utf-8-sig", errors="replace") as file:
            lines = csv.DictReader(file)
            columns = set(lines.fieldnames or ())
            key = next((name for name in ("study", "study_id") if name in columns), None)
            if key is None or not {"impression", "findings"} <= columns:
                raise DataError(f"{self.path}: columns study, impression and findings are expected, as "
                                f"create_section_files.py of MIT-LCP/mimic-cxr writes them; there are: "
                                f"{', '.join(sorted(columns))}")
            for line in lines:
                row = rows.pop((line[key] or "").strip().removeprefix("s"), None)
                sections = {name.replace("_", " "): text for name in _SECTIONS
                            if (text := (line.get(name) or "").strip())}
                if row is not None and sections:
                    yield row, sections
