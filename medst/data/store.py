"""The prepared store: what every trial reads, built once from the raw files and shared by all trials.

What lives here: building under a lock, opening, verifying, and the carriers of the opened tables. What must not:
reading of raw files (`building`), choices of an experiment, batches.

A store is made in one of two ways: beside a data root that holds all data sets, as a cache that follows the root; or
in a folder of its own from data sets that lie apart, one after the other. Both are the same folder of files.

Legend: N images, S side of the square images.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from medst.config import DataConfig, hash_file, syntax_fingerprint
from medst.data import building
from medst.data.building import Step
from medst.data.image_array import hash_pixels
from medst.data.inventory import has_same_files
from medst.data.readers import DataError
from medst.data.readers.ms_cxr_t import FINDINGS
from medst.data.sources import Source, Sources, sources_of_root

MANIFEST = "manifest.json"
"""Written last: a folder with it is a whole store."""
_OTHER_FORMAT = "it has the format of another version"
PURPOSE = "purpose.json"
"""In an unfinished store: what it is made from, by which code."""


class StoreError(ValueError):
    """A store that is missing, stale or does not fit the config; the message names the remedy."""


@dataclass(frozen=True)
class MimicStore:
    """Images and studies for training and evaluation: MIMIC-CXR, or another collection with reports in its place."""

    images: np.ndarray
    """(N, S, S) uint8, memory-mapped."""
    views: pd.DataFrame
    """image (row of `images`), dicom_id, study_id, subject_id, view (AP | PA | LL | LATERAL), is_view_stated, width,
    height (of the original)."""
    studies: pd.DataFrame
    """subject_id, study_id, time, split (train | validate | test), frontal (image row), frontal_view, other_frontals
    (image rows), lateral (image row or -1), lateral_view (empty where there is none), report_released,
    report_corrected (each empty where its cleaning leaves no caption, never both), sex (empty where unknown), age (NaN
    where unknown), label_<name> (1, 0, -1, NaN); indexed 0..n-1 by patient, time and study id."""
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
    patients: frozenset[str]
    """Subject ids of the whole table, also of pairs whose images are not in the store."""


@dataclass(frozen=True)
class MsCxrStore:
    table: pd.DataFrame
    """image (row of the MIMIC images), phrase, finding, x, y, w, h as fractions of the square's side; a row a box."""
    patients: frozenset[str]
    """Subject ids of the whole table, also of boxes whose image is not in the store."""


@dataclass(frozen=True)
class RsnaStore:
    images: np.ndarray
    """(N, S, S) uint8, memory-mapped."""
    table: pd.DataFrame
    """image, patient_id, target (0 | 1), boxes (arrays [x, y, w, h] as fractions of the side), view (PA where not
    stated), is_view_stated, published_split (train | validate | test)."""


@dataclass(frozen=True)
class CovidxStore:
    images: np.ndarray
    """(N, S, S) uint8, memory-mapped."""
    table: pd.DataFrame
    """image, patient_id, label (normal | pneumonia | COVID-19), source, split (train | test),
    published_split, published_order, published_percent (see `published_covidx_split`; `test`, 0, 0 of test images)."""


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
    """What remained of the corpus after each step of selection, in order."""
    problems: pd.DataFrame
    """data_set, item, reason: files and rows that were left out. Items name raw files: keep them at home."""
    mimic: MimicStore | None
    ms_cxr_t: MsCxrTStore | None
    ms_cxr: MsCxrStore | None
    rsna: RsnaStore | None
    covidx: CovidxStore | None
    selection: Mapping[str, list[tuple[str, int, int, int]]] = field(default_factory=dict)
    """Rule (`as published`, `corrected`) -> step, patients, studies, images that enter training."""
    corpus: str = ""
    """The data set with reports: mimic-cxr-jpg, open-i, ...; empty without one."""
    notes: tuple[str, ...] = ()
    """What must be known about the meaning of the corpus."""


def store_path(data: DataConfig) -> Path:
    """Folder of the store that a config means: `data.root` itself may be a store."""
    if data.store is not None:
        return Path(data.store)
    if is_store(Path(data.root)):
        return Path(data.root)
    return Path(data.root) / f"store-{data.image_size}"


def is_store(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def prepare(data: DataConfig, num_workers: int = 1, step: Step | None = None, *, check_files: bool = False) -> Store:
    """Open the store, building it first where it is missing or made from other raw files or by other code.

    The store is built in a folder beside its place and renamed, under a lock that keeps a second process waiting. A
    killed building goes on where it stopped.

    Args:
        num_workers: processes that decode images and clean reports.
        step: told of the steps that take long.
        check_files: look at every image and report, not only at the tables: new, changed and mended ones make the store
            stale. It takes a walk over all files.

    Raises:
        StoreError: the store's place holds something else, cannot be written or was made for another image size.
        DataError: the raw files are missing or broken.
    """
    path = store_path(data)
    if path.is_dir() and _staleness(path, data, check_files) is None:
        return _open(path)
    if is_store(Path(data.root)) and path == Path(data.root):
        raise StoreError(f"{path}: {_OTHER_FORMAT}; prepare it again, into another folder")
    if not Path(data.root).is_dir():
        raise DataError(f"data.root={data.root}: no such folder; make phantom data with `medst data phantom`, or set "
                        "data.root to the folder that holds mimic-cxr-jpg/, mimic-cxr/, ...")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            _recover(path)
            if not path.is_dir() or _staleness(path, data, check_files) is not None:
                _build(path, sources_of_root(Path(data.root)), data.image_size, num_workers, step, is_cache=True)
            return _open(path)
    except OSError as error:
        raise _explained(error, path) from None


def prepare_set(out: Path, name: str, source: Source, *, image_size: int, is_credentialed: bool, num_workers: int = 1,
                step: Step | None = None) -> Store:
    """Put one data set into the store `out`, which may hold others already.

    What the store holds stays as it is where its files are as they were; only what depends on new, changed and mended
    ones is made. A killed building goes on where it stopped.

    Args:
        name: one of DATA_SETS.
        image_size: side of the squares; that of the store, if it exists.
        is_credentialed: whether text, images and ids must stay at home; one such data set makes the store so.

    Raises:
        StoreError: `out` holds something else or other sizes, or cannot be written.
        DataError: the raw files are missing or broken.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{out}.lock"):
            _recover(out)
            sources = Sources(out.name, False, {})
            if out.is_dir():
                manifest = _checked_manifest(out, image_size)
                if manifest.get("format") != building.FORMAT:
                    raise StoreError(f"{out}: {_OTHER_FORMAT}; prepare into another folder")
                sources = Sources.from_json(manifest["sources"])
            wanted = sources.with_set(name, source, is_credentialed)
            is_current = out.is_dir() and (
                manifest["preparation"] == _preparation_fingerprint() and wanted.to_json() == sources.to_json()
                and manifest["raw_signature"] == wanted.signature() and _has_same_files(out, wanted, image_size))
            if not is_current:
                _build(out, wanted, image_size, num_workers, step, is_cache=False)
            return _open(out)
    except OSError as error:
        raise _explained(error, out) from None


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


def verify(path: Path) -> list[str]:
    """Compare every file of a store with the size and hash that it had when it was made, and every row with its image.

    Returns:
        What is wrong; nothing for a whole store.

    Raises:
        StoreError: it is no store.
    """
    manifest = _read_manifest(path)
    wrong = []
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            wrong.append(f"{name}: missing")
        elif file.stat().st_size != expected["bytes"]:
            wrong.append(f"{name}: {file.stat().st_size} bytes instead of {expected['bytes']}")
        elif (hash_pixels(file) if file.suffix == ".npy" else hash_file(file)) != expected["sha256"]:
            wrong.append(f"{name}: its content has changed")
    if not wrong:
        store = _open(path)
        for table, images in (("mimic", store.mimic), ("rsna", store.rsna), ("covidx", store.covidx)):
            if images is not None:
                rows = images.views["image"] if isinstance(images, MimicStore) else images.table["image"]
                if len(rows) != len(images.images) or not np.array_equal(rows, np.arange(len(rows))):
                    wrong.append(f"{table}: the table does not name every image once")
    return wrong


def _explained(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
        return StoreError(f"{path}: the store cannot be written ({error}); set data.store to another folder")
    return error


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        raise StoreError(f"{path}: no readable manifest.json in it, so it is no store; move it away, or set data.store "
                         "to another folder") from None
    return manifest


def _checked_manifest(path: Path, image_size: int) -> dict[str, Any]:
    manifest = _read_manifest(path)
    if manifest["image_size"] != image_size:
        raise StoreError(f"{path}: the store holds images of {manifest['image_size']} pixels, data.image_size is "
                         f"{image_size}; set one like the other, or data.store to another folder")
    return manifest


def _staleness(path: Path, data: DataConfig, check_files: bool = False) -> str | None:
    """Why an existing store may not be used, None where it may.

    A store whose raw files are not on this machine is taken as it is, and so is one that was made from data sets that
    lie apart: it changes by command only. Single images and reports are looked at on request only.
    """
    manifest = _checked_manifest(path, data.image_size)
    if manifest.get("format") != building.FORMAT:
        return _OTHER_FORMAT
    root = Path(data.root)
    if not manifest["is_cache"] or is_store(root):
        return None
    if manifest["preparation"] != _preparation_fingerprint():
        return "the code that prepares data has changed since it was made"
    if root.is_dir():
        sources = sources_of_root(root)
        is_same = manifest["raw_signature"] == sources.signature()
        if not is_same or (check_files and not _has_same_files(path, sources, data.image_size)):
            return f"the raw files in {data.root} have changed since it was made"
    return None


def _has_same_files(path: Path, sources: Sources, image_size: int) -> bool:
    return all(has_same_files(path, name, source, image_size) for name, source in sources.sets.items())


def _preparation_fingerprint() -> str:
    folder = Path(__file__).parent
    names = ("building", "captions", "image_array", "images", "inventory", "published_splits", "report_text", "sources",
             "twins", "workers")
    return syntax_fingerprint([*sorted((folder / "readers").glob("*.py")), *(folder / f"{name}.py" for name in names)])


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _build(path: Path, sources: Sources, image_size: int, num_workers: int, step: Step | None, *,
           is_cache: bool) -> None:
    """Make the store in a folder beside its place, which a killed call leaves for the next, and rename it."""
    partial = _partial(path)
    # The signature is taken first: files that change meanwhile make the store stale, not silently wrong.
    origin = {"raw_signature": sources.signature(), "preparation": _preparation_fingerprint(), "is_cache": is_cache,
              "sources": sources.to_json()}
    purpose = json.dumps([origin["raw_signature"], origin["preparation"], image_size])
    if not (partial / PURPOSE).is_file() or (partial / PURPOSE).read_text(encoding="utf-8") != purpose:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (partial / PURPOSE).write_text(purpose, encoding="utf-8")
    is_reusable = path.is_dir() and _read_manifest(path)["preparation"] == origin["preparation"]
    manifest = {**building.build(sources, partial, image_size, num_workers, step, path if is_reusable else None,
                                 is_cache), **origin}
    temporary = partial / f"{MANIFEST}.new"
    temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    os.replace(temporary, partial / MANIFEST)
    _publish(path)


def _publish(path: Path) -> None:
    """Give the whole store beside `path` its name; killed at any moment, `_recover` ends it."""
    partial, old = _partial(path), path.with_name(f".{path.name}.old")
    building.remove_scaffolding(partial)
    (partial / PURPOSE).unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)
    if path.is_dir():
        # Processes that have the old files mapped keep them until they close.
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)


def _recover(path: Path) -> None:
    """End what a killed call had all but done: a store with its manifest only lacks its name."""
    old = path.with_name(f".{path.name}.old")
    if is_store(_partial(path)) and (is_store(path) or not path.exists()):
        _publish(path)
    elif path.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    elif is_store(old):
        os.replace(old, path)


def _open(path: Path) -> Store:
    manifest = _read_manifest(path)

    def table(name: str) -> pd.DataFrame:
        return pd.read_parquet(path / f"{name}.parquet")

    def images(name: str) -> np.ndarray:
        return np.load(path / f"{name}_images.npy", mmap_mode="r")

    def patients(name: str) -> frozenset[str]:
        return frozenset(table(f"{name}_patients")["subject_id"])

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
        selection={rule: [tuple(row) for row in rows] for rule, rows in manifest["selection"].items()},
        corpus=manifest["corpus"], notes=tuple(manifest["notes"]),
        mimic=MimicStore(images("mimic"), table("mimic_views"), table("mimic_studies"),
                         table("mimic_findings") if has_truth else None,
                         table("mimic_study_truth") if has_truth else None)
        if manifest["corpus"] else None,
        ms_cxr_t=MsCxrTStore(pairs(), table("ms_cxr_t_sentences"), patients("ms_cxr_t"))
        if "ms-cxr-t" in present else None,
        ms_cxr=MsCxrStore(table("ms_cxr"), patients("ms_cxr")) if "ms-cxr" in present else None,
        rsna=RsnaStore(images("rsna"), table("rsna")) if "rsna" in present else None,
        covidx=CovidxStore(images("covidx"), table("covidx")) if "covidx" in present else None,
    )
