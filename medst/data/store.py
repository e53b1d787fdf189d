"""The prepared store: what every trial reads, built once from the raw files and shared by all trials.

What lives here: building under a lock, opening, and the carriers of the opened tables. What must not: reading of
raw files (`building`), choices of an experiment, batches.

Legend: N images, S side of the square images.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from medst.config import DataConfig, fingerprint, hash_file, syntax_fingerprint
from medst.data import building
from medst.data.readers import DataError
from medst.data.readers.ms_cxr_t import FINDINGS


class StoreError(ValueError):
    """A store that is missing, stale or does not fit the config; the message names the remedy."""


@dataclass(frozen=True)
class MimicStore:
    """Images and studies for training and evaluation."""

    images: np.ndarray
    """(N, S, S) uint8, memory-mapped."""
    views: pd.DataFrame
    """image (row of `images`), dicom_id, study_id, subject_id, view (AP | PA | LL | LATERAL), is_view_stated, width,
    height (of the original)."""
    studies: pd.DataFrame
    """subject_id, study_id, time, split (train | validate | test), frontal (image row), frontal_view, other_frontals
    (image rows), lateral (image row or -1), lateral_view (empty where there is none), report_released,
    report_corrected, sex (empty where unknown), age (NaN where unknown), label_<name> (1, 0, -1, NaN); indexed
    0..n-1 by patient, time and study id."""
    findings: pd.DataFrame | None
    """The phantom's truth, a row per finding and image: image, finding, severity, side, zone, is_lateral_only, and x,
    y, w, h as fractions of the square's side. For evaluation and inspection only, never for training."""
    study_truth: pd.DataFrame | None
    """The phantom's truth of a study: study (row of `studies`), heart_size, inspiration, rotation, ..."""


@dataclass(frozen=True)
class MsCxrTStore:
    pairs: pd.DataFrame
    """image, previous_image (rows of the MIMIC images), split (of the current study), subject_id, study_id,
    previous_study_id, and for each of the five findings improving | stable | worsening | None."""
    sentences: pd.DataFrame
    """sentence_1, sentence_2, category, subset_name."""


@dataclass(frozen=True)
class MsCxrStore:
    table: pd.DataFrame
    """image (row of the MIMIC images), phrase, finding, x, y, w, h as fractions of the square's side; a row a box."""


@dataclass(frozen=True)
class RsnaStore:
    images: np.ndarray
    """(N, S, S) uint8, memory-mapped."""
    table: pd.DataFrame
    """image, patient_id, target (0 | 1), boxes (arrays [x, y, w, h] as fractions of the side), view (PA where not
    stated), is_view_stated."""


@dataclass(frozen=True)
class CovidxStore:
    images: np.ndarray
    """(N, S, S) uint8, memory-mapped."""
    table: pd.DataFrame
    """image, patient_id, label (normal | pneumonia | COVID-19), source, split (train | test)."""


@dataclass(frozen=True)
class Store:
    """An opened store; data sets that the root does not hold are None."""

    path: Path
    fingerprint: str
    """Hash of the content of everything that a trial can read."""
    name: str
    is_credentialed: bool
    image_size: int
    steps: tuple[tuple[str, int], ...]
    """What remained of MIMIC-CXR after each step of selection, in order."""
    problems: pd.DataFrame
    """data_set, item, reason: files and rows that were left out. Items name raw files: keep them at home."""
    mimic: MimicStore | None
    ms_cxr_t: MsCxrTStore | None
    ms_cxr: MsCxrStore | None
    rsna: RsnaStore | None
    covidx: CovidxStore | None


def store_path(data: DataConfig) -> Path:
    """Folder of the store that a config means."""
    return Path(data.store) if data.store is not None else Path(data.root) / f"store-{data.image_size}"


def prepare(data: DataConfig, num_workers: int = 1, progress: Callable[[int, int], None] | None = None) -> Store:
    """Open the store, building it first where it is missing or made from other raw files or by other code.

    The store is built in a temporary folder and renamed, under a lock that keeps a second process waiting.

    Args:
        num_workers: threads that decode images.
        progress: called with (images decoded, images in all).

    Raises:
        StoreError: the store's place holds something else, cannot be written or was made for another image size.
        DataError: the raw files are missing or broken.
    """
    path = store_path(data)
    if path.is_dir() and _staleness(path, data) is None:
        return _open(path)
    if not Path(data.root).is_dir():
        raise DataError(f"data.root={data.root}: no such folder; make phantom data with `medst data phantom`, or set "
                        "data.root to the folder that holds mimic-cxr-jpg/, mimic-cxr/, ...")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_dir() or _staleness(path, data) is not None:
                _replace(path, data, num_workers, progress)
            return _open(path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
            raise
        raise StoreError(f"{path}: the store cannot be written ({error}); set data.store to another folder") from None


def open_store(data: DataConfig) -> Store:
    """Open a prepared store.

    Raises:
        StoreError: it is missing, was made from other raw files or by other code, or for another image size.
    """
    path = store_path(data)
    if not path.is_dir():
        raise StoreError(f"{path}: no prepared store; `medst data prepare` makes it from data.root={data.root}")
    reason = _staleness(path, data)
    if reason is not None:
        raise StoreError(f"{path}: {reason}; `medst data prepare` makes it anew")
    return _open(path)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        raise StoreError(f"{path}: no readable manifest.json in it, so it is no store; move it away, or set data.store "
                         "to another folder") from None
    return manifest


def _staleness(path: Path, data: DataConfig) -> str | None:
    """Why an existing store may not be used, None where it may.

    A store whose raw files are not on this machine is taken as it is.
    """
    manifest = _read_manifest(path)
    if manifest["image_size"] != data.image_size:
        raise StoreError(f"{path}: the store holds images of {manifest['image_size']} pixels, data.image_size is "
                         f"{data.image_size}; set one like the other, or data.store to another folder")
    if manifest["preparation"] != _preparation_fingerprint():
        return "the code that prepares data has changed since it was made"
    if Path(data.root).is_dir() and manifest["raw_signature"] != _raw_signature(Path(data.root)):
        return f"the raw files in {data.root} have changed since it was made"
    return None


def _preparation_fingerprint() -> str:
    folder = Path(__file__).parent
    return syntax_fingerprint([*sorted((folder / "readers").glob("*.py")), folder / "building.py", folder / "images.py",
                               folder / "report_text.py"])


def _raw_signature(root: Path) -> str:
    """Hash of the tables and descriptions of a data root, not of its images and reports: cheap, and independent of
    where and when they were copied."""
    paths = [root / "dataset.json", root / "phantom.json"]
    for folder in (*building.DATA_SETS, "truth"):
        for pattern in ("*.csv", "*.csv.gz", "*.txt", "*.parquet"):
            paths += sorted((root / folder).glob(pattern))
    return fingerprint("\n".join(f"{path.relative_to(root).as_posix()} {hash_file(path)}"
                                 for path in paths if path.is_file()))


def _replace(path: Path, data: DataConfig, num_workers: int, progress: Callable[[int, int], None] | None) -> None:
    root = Path(data.root)
    temporary, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir()
    try:
        # The signature is taken first: files that change meanwhile make the store stale, not silently wrong.
        origin = {"raw_signature": _raw_signature(root), "preparation": _preparation_fingerprint()}
        manifest = {**building.build(root, temporary, data.image_size, num_workers, progress), **origin}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if path.is_dir():
            # Processes that have the old files mapped keep them until they close.
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        for left_over in (temporary, old):
            shutil.rmtree(left_over, ignore_errors=True)


def _open(path: Path) -> Store:
    manifest = _read_manifest(path)

    def table(name: str) -> pd.DataFrame:
        return pd.read_parquet(path / f"{name}.parquet")

    def images(name: str) -> np.ndarray:
        return np.load(path / f"{name}_images.npy", mmap_mode="r")

    def pairs() -> pd.DataFrame:
        # A column of words comes back with NaN for missing: here that is None.
        frame = table("ms_cxr_t_pairs")
        labels = {name: frame[name].astype(object).where(frame[name].notna(), None) for name in FINDINGS}
        return frame.assign(**labels)

    present = set(manifest["data_sets"])
    has_truth = "mimic_findings" in manifest["counts"]
    return Store(
        path=path, fingerprint=manifest["fingerprint"], name=manifest["name"],
        is_credentialed=manifest["is_credentialed"], image_size=manifest["image_size"],
        steps=tuple((step, remaining) for step, remaining in manifest["steps"]), problems=table("problems"),
        mimic=MimicStore(images("mimic"), table("mimic_views"), table("mimic_studies"),
                         table("mimic_findings") if has_truth else None,
                         table("mimic_study_truth") if has_truth else None)
        if "mimic-cxr-jpg" in present else None,
        ms_cxr_t=MsCxrTStore(pairs(), table("ms_cxr_t_sentences")) if "ms-cxr-t" in present else None,
        ms_cxr=MsCxrStore(table("ms_cxr")) if "ms-cxr" in present else None,
        rsna=RsnaStore(images("rsna"), table("rsna")) if "rsna" in present else None,
        covidx=CovidxStore(images("covidx"), table("covidx")) if "covidx" in present else None,
    )
