"""Building of a prepared store from raw files: tables as Parquet, images as one uint8 array a data set.

What lives here: the one pass over the raw files. What must not: opening and locking of stores (`store`), and
anything that a config chooses besides the image size: all trials share one store.

Legend: N images, S side of the square images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medst.config import Behaviour, fingerprint
from medst.data.batch import FRONTAL_VIEWS
from medst.data.images import ImageError, SquareImage, read_square_image, square_box
from medst.data.readers import (
    DataError,
    MsCxr,
    MsCxrT,
    read_covidx,
    read_mimic_cxr,
    read_ms_cxr,
    read_ms_cxr_t,
    read_rsna,
)
from medst.data.readers.mimic_cxr import MimicCxr, group_views
from medst.data.report_text import caption, extract_sections

DATA_SETS = ("mimic-cxr-jpg", "ms-cxr-t", "ms-cxr", "rsna", "covidx")
"""Folders of a data root; any of them may be absent."""
LARGEST_UNREADABLE_SHARE = 0.02
"""Preparation stops where more images than this share cannot be read."""
_IMAGES_PER_BLOCK = 256
_BEHAVIOURS: tuple[Behaviour, ...] = ("released", "corrected")

Progress = Callable[[int, int], None]


@dataclass
class _Building:
    """What the pass over the raw files collects."""

    root: Path
    folder: Path
    image_size: int
    num_workers: int
    progress: Progress | None
    num_images: int = 0
    num_done: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        frame.reset_index(drop=True).to_parquet(self.folder / f"{name}.parquet", index=False)
        # Parquet bytes hold the writer's version; the content does not.
        text = frame.to_json(orient="split", index=False, date_format="iso", date_unit="us", double_precision=15)
        self.digests[name] = fingerprint(text)
        self.counts[name] = len(frame)


def build(root: Path, folder: Path, image_size: int, num_workers: int, progress: Progress | None) -> dict[str, Any]:
    """Read everything under `root` and write tables and images into `folder`.

    All tables are read before the first image is decoded, so that a broken table stops the work at once.

    Args:
        num_workers: threads that decode images (decoders work outside the interpreter's lock).
        progress: called with (images decoded, images in all).

    Returns:
        The content of the manifest.

    Raises:
        DataError: a table is broken, or more than 2 % of a data set's images are unreadable.
    """
    present = {name for name in DATA_SETS if (root / name).is_dir()}
    if not present:
        raise DataError(f"{root}: none of {', '.join(DATA_SETS)} is there; set data.root to the folder that holds "
                        "them, or make phantom data with `medst data phantom`")
    for name in ("ms-cxr-t", "ms-cxr"):
        if name in present and "mimic-cxr-jpg" not in present:
            raise DataError(f"{root / name}: its images are those of MIMIC-CXR-JPG, but {root / 'mimic-cxr-jpg'} is "
                            "missing; put it there")
    name, is_credentialed = read_description(root)
    work = _Building(root, folder, image_size, max(1, num_workers), progress)

    ms_cxr_t = read_ms_cxr_t(root) if "ms-cxr-t" in present else None
    ms_cxr = read_ms_cxr(root) if "ms-cxr" in present else None
    rsna = read_rsna(root) if "rsna" in present else None
    covidx = read_covidx(root) if "covidx" in present else None
    references = _referenced_images(ms_cxr_t, ms_cxr)
    mimic = read_mimic_cxr(root, references) if "mimic-cxr-jpg" in present else None
    steps: list[tuple[str, int]] = []
    if mimic is not None:
        studies, caption_steps = with_captions(mimic.studies)
        steps = [*mimic.steps, *caption_steps]
        needed = _needed_images(mimic, studies, references)
        work.num_images += len(needed)
    for other in (rsna, covidx):
        work.num_images += 0 if other is None else len(other.images)

    if mimic is not None:
        views, studies = _write_mimic(work, needed, studies)
        steps.append(("studies with a readable frontal", len(studies)))
        if ms_cxr_t is not None:
            work.problems += [("ms-cxr-t", "table", problem) for problem in ms_cxr_t.problems]
            _write_ms_cxr_t(work, ms_cxr_t, views, mimic.studies)
        if ms_cxr is not None:
            _write_ms_cxr(work, ms_cxr, views)
    if rsna is not None:
        _write_rsna(work, rsna.images)
    if covidx is not None:
        work.problems += [("covidx", "table", problem) for problem in covidx.problems]
        _write_covidx(work, covidx.images)
    problems = pd.DataFrame(work.problems, columns=["data_set", "item", "reason"], dtype="str")
    problems.to_parquet(folder / "problems.parquet", index=False)
    return {
        "name": name, "is_credentialed": is_credentialed, "image_size": image_size,
        "data_sets": sorted(present), "steps": [list(step) for step in steps], "counts": work.counts,
        "num_problems": len(problems), "fingerprint": fingerprint(json.dumps(work.digests, sort_keys=True)),
    }


def read_description(root: Path) -> tuple[str, bool]:
    """Name of the data and whether it is credentialed: dataset.json, absent means that it is."""
    phantom = root / "phantom.json"
    if phantom.is_file() and json.loads(phantom.read_text(encoding="utf-8")).get("complete") is not True:
        raise DataError(f"{phantom}: the phantom was not written to its end; make it again with `medst data phantom`")
    path = root / "dataset.json"
    if not path.is_file():
        return root.resolve().name, True
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        name, is_credentialed = described["name"], described["credentialed"]
        if not isinstance(name, str) or not isinstance(is_credentialed, bool):
            raise TypeError("wrong types")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f'{path}: expected {{"name": "...", "credentialed": true or false}} ({error})') from None
    return name, is_credentialed


def _referenced_images(ms_cxr_t: MsCxrT | None, ms_cxr: MsCxr | None) -> frozenset[str]:
    """Dicom ids that the tables upon MIMIC-CXR use; all of them are frontal images."""
    ids: set[str] = set()
    if ms_cxr_t is not None:
        ids.update(ms_cxr_t.pairs["dicom_id"], ms_cxr_t.pairs["previous_dicom_id"])
    if ms_cxr is not None:
        ids.update(ms_cxr.boxes["dicom_id"])
    return frozenset(ids)


def with_captions(studies: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, int]]]:
    """Cut the captions out of the reports, in both behaviours.

    Args:
        studies: as the reader gives them, with `report`.

    Returns:
        The studies that have a caption in both behaviours (so that both see the same pairs), with report_released and
        report_corrected in place of `report`; and what remained after each step.
    """
    with_text = studies[studies["report"].notna()]
    sections = [extract_sections(text) for text in with_text["report"]]
    captions = {f"report_{behaviour}": [caption(own, behaviour) for own in sections] for behaviour in _BEHAVIOURS}
    kept = with_text.drop(columns="report").assign(
        **{name: pd.Series(texts, with_text.index, dtype="str") for name, texts in captions.items()})
    kept = kept.dropna(subset=list(captions)).reset_index(drop=True)
    return kept, [("studies with a report", len(with_text)), ("studies with a caption left after cleaning", len(kept))]


def _needed_images(mimic: MimicCxr, studies: pd.DataFrame, references: frozenset[str]) -> pd.DataFrame:
    """Images that a trial can read: frontals and first lateral of the studies, and the referenced images."""
    images = mimic.images.assign(image=np.arange(len(mimic.images)))
    grouped = group_views(images[images["study_id"].isin(studies["study_id"])])
    rows = {row for column in ("frontal", "lateral") for row in grouped[column]}
    rows.update(row for rows_of_study in grouped["other_frontals"] for row in rows_of_study)
    is_needed = images["image"].isin(rows) | images["dicom_id"].isin(references)
    return images[is_needed].drop(columns="image").reset_index(drop=True)


def _write_mimic(work: _Building, images: pd.DataFrame, studies: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    views = _write_images(work, "mimic", images)
    views = views[["image", "dicom_id", "study_id", "subject_id", "view", "is_view_stated", "width", "height"]]
    grouped = group_views(views)
    studies = studies.merge(grouped, on="study_id", how="inner", validate="one_to_one")
    truth_path = work.root / "truth" / "studies.parquet"
    truth = pd.read_parquet(truth_path) if truth_path.is_file() else pd.DataFrame({"study_id": []})
    truth["study_id"] = truth["study_id"].astype("str")
    known = truth[["study_id", *(column for column in ("sex", "age") if column in truth.columns)]]
    studies = studies.merge(known, on="study_id", how="left", validate="one_to_one")
    studies["sex"] = studies["sex"].fillna("") if "sex" in studies.columns else ""
    studies["age"] = studies["age"].astype("float64") if "age" in studies.columns else np.nan
    labels = [column for column in studies.columns if column.startswith("label_")]
    studies = studies[["subject_id", "study_id", "time", "split", "frontal", "frontal_view", "other_frontals",
                       "lateral", "lateral_view", "report_released", "report_corrected", "sex", "age", *labels]]
    studies = studies.sort_values(["subject_id", "time", "study_id"]).reset_index(drop=True)
    work.write_table("mimic_views", views)
    work.write_table("mimic_studies", studies)
    if truth_path.is_file():
        rows = pd.Series(studies.index, index=studies["study_id"])
        truth.insert(0, "study", truth["study_id"].map(rows))
        truth = truth.dropna(subset="study").astype({"study": "int64"}).sort_values("study")
        work.write_table("mimic_study_truth", truth.drop(columns=["study_id", "subject_id"], errors="ignore"))
        findings = pd.read_parquet(work.root / "truth" / "findings.parquet")
        work.write_table("mimic_findings", _place_boxes(work, _with_images(work, "truth", findings, views)))
    return views, studies


def _with_images(work: _Building, data_set: str, frame: pd.DataFrame, views: pd.DataFrame) -> pd.DataFrame:
    """Rows whose image is in the store, with its row and original size; what is left out is counted."""
    joined = frame.drop(columns=["view", "study_id", "subject_id"], errors="ignore").astype({"dicom_id": "str"})
    joined = joined.merge(views[["dicom_id", "image", "width", "height"]], on="dicom_id", how="inner")
    num_missing = len(frame) - len(joined)
    if num_missing and data_set != "truth":
        work.problems.append((data_set, "table", f"{num_missing} rows name an image that is not in the store"))
    return joined


def _place_boxes(work: _Building, frame: pd.DataFrame) -> pd.DataFrame:
    """Boxes x, y, w, h from pixels of the original (width, height) to fractions of the square's side."""
    boxes = square_box(frame[["x", "y", "w", "h"]].to_numpy(dtype=float), frame["width"].to_numpy(),
                       frame["height"].to_numpy(), work.image_size)
    frame = frame.drop(columns=["dicom_id", "width", "height"]).assign(
        x=boxes[:, 0], y=boxes[:, 1], w=boxes[:, 2], h=boxes[:, 3])
    return frame[["image", *(column for column in frame.columns if column != "image")]]


def _write_ms_cxr_t(work: _Building, ms_cxr_t: MsCxrT, views: pd.DataFrame, studies: pd.DataFrame) -> None:
    rows = views.set_index("dicom_id")["image"]
    pairs = ms_cxr_t.pairs
    pairs.insert(0, "image", pairs["dicom_id"].map(rows))
    pairs.insert(1, "previous_image", pairs["previous_dicom_id"].map(rows))
    splits = studies.set_index("study_id")["split"]
    pairs.insert(2, "split", pairs["study_id"].map(splits))
    kept = pairs.dropna(subset=["image", "previous_image", "split"]).drop(columns=["dicom_id", "previous_dicom_id"])
    if len(kept) < len(pairs):
        work.problems.append(("ms-cxr-t", "table",
                              f"{len(pairs) - len(kept)} pairs name an image that is not in the store"))
    work.write_table("ms_cxr_t_pairs", kept.astype({"image": "int64", "previous_image": "int64"}))
    work.write_table("ms_cxr_t_sentences", ms_cxr_t.sentences)


def _write_ms_cxr(work: _Building, ms_cxr: MsCxr, views: pd.DataFrame) -> None:
    boxes = _with_images(work, "ms-cxr", ms_cxr.boxes, views)
    # The size that the annotators worked on, whatever size the stored JPEG has.
    boxes = boxes.assign(width=boxes["image_width"].astype("int64"), height=boxes["image_height"].astype("int64"))
    work.write_table("ms_cxr", _place_boxes(work, boxes.drop(columns=["image_width", "image_height"])))


def _write_rsna(work: _Building, images: pd.DataFrame) -> None:
    frame = _write_images(work, "rsna", images)
    fractions = [square_box(np.reshape(boxes, (-1, 4)), width, height, work.image_size).tolist()
                 for boxes, width, height in zip(frame["boxes"], frame["width"], frame["height"], strict=True)]
    is_stated = frame["stated_view"].isin(FRONTAL_VIEWS)
    frame = frame.assign(boxes=fractions, view=frame["stated_view"].where(is_stated, "PA"), is_view_stated=is_stated)
    work.write_table("rsna", frame[["image", "patient_id", "target", "boxes", "view", "is_view_stated"]])


def _write_covidx(work: _Building, images: pd.DataFrame) -> None:
    frame = _write_images(work, "covidx", images)
    work.write_table("covidx", frame[["image", "patient_id", "label", "source", "split"]])


def _decode(paths: Sequence[str], size: int, num_workers: int) -> Iterator[SquareImage | ImageError]:
    """Decoded images in the order of the paths, blocks of them at a time."""
    def attempt(path: str) -> SquareImage | ImageError:
        try:
            return read_square_image(path, size)
        except ImageError as error:
            return error

    if num_workers == 1:
        yield from map(attempt, paths)
        return
    with ThreadPoolExecutor(num_workers) as executor:
        for start in range(0, len(paths), _IMAGES_PER_BLOCK):
            yield from executor.map(attempt, paths[start:start + _IMAGES_PER_BLOCK])


def _write_images(work: _Building, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Decode the images of `frame.path` into `<name>_images.npy`.

    Returns:
        The rows whose image could be read, with `image` (row of the array), `width`, `height` of the original and
        `stated_view` of a DICOM.
    """
    size = work.image_size
    digest = hashlib.sha256()
    is_readable = np.zeros(len(frame), dtype=bool)
    decoded: list[tuple[int, int, str]] = []
    failures: list[str] = []
    with open(work.folder / f"{name}_images.npy", "wb") as file:
        # numpy reserves room in the header for a longer first axis, so that it can be rewritten at the end.
        _write_header(file, len(frame), size)
        for row, image in enumerate(_decode(list(frame["path"]), size, work.num_workers)):
            if isinstance(image, ImageError):
                path = Path(frame["path"].iloc[row])
                failures.append(f"{path}: {image}")
                work.problems.append((name, str(path.relative_to(work.root)), str(image)))
                if len(failures) > LARGEST_UNREADABLE_SHARE * len(frame):
                    raise DataError(
                        f"{len(failures)} of the first {row + 1} images of {name} are unreadable, more than "
                        f"{LARGEST_UNREADABLE_SHARE:.0%} of all {len(frame)}; complete the download. The first ones:"
                        + "".join(f"\n  {failure}" for failure in failures[:5]))
            else:
                pixels = image.pixels.tobytes()
                file.write(pixels)
                digest.update(pixels)
                is_readable[row] = True
                decoded.append((image.width, image.height, image.view))
            work.num_done += 1
            if work.progress is not None and (work.num_done % 50 == 0 or work.num_done == work.num_images):
                work.progress(work.num_done, work.num_images)
        file.seek(0)
        _write_header(file, len(decoded), size)
    work.digests[f"{name}_images"] = digest.hexdigest()
    work.counts[f"{name}_images"] = len(decoded)
    readable = frame[is_readable].reset_index(drop=True)
    sizes = pd.DataFrame(decoded, columns=["width", "height", "stated_view"])
    return pd.concat([pd.DataFrame({"image": np.arange(len(decoded))}), readable, sizes], axis=1)


def _write_header(file: Any, num_images: int, size: int) -> None:
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False,
               "shape": (num_images, size, size)})
