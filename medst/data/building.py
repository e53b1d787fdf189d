"""Building of a prepared store from raw files: tables as Parquet, images as one uint8 array a data set.

What lives here: the one pass over the raw files, which goes on where a killed one stopped. What must not: opening and
locking of stores (`store`), and anything that a config chooses besides the image size: all trials share one store.

Legend: N images, S side of the square images.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medst.config import fingerprint, hash_file
from medst.data.captions import COLUMNS, Captions, write_captions
from medst.data.image_array import ArrayContent, Reuse, journal_of, write_array
from medst.data.images import square_box
from medst.data.inventory import (
    FILES,
    has_same_files,
    mark_of,
    read_inventory,
    take_inventory,
    write_inventory,
)
from medst.data.readers import (
    Corpus,
    DataError,
    MsCxr,
    MsCxrT,
    read_chexpert_plus,
    read_covid_chestxray,
    read_covidx,
    read_mimic_cxr,
    read_ms_cxr,
    read_ms_cxr_t,
    read_open_i,
    read_rsna,
)
from medst.data.readers.mimic_cxr import group_views
from medst.data.readers.nih import as_nih_patients, read_nih_patients
from medst.data.selection import count_selection
from medst.data.sources import Sources, require_companions
from medst.data.twins import join_twins
from medst.data.views import FRONTAL_VIEWS
from medst.data.workers import Workers

FORMAT = 3
"""Of the store on disk; stores of another format are made anew."""
_ROWS_PER_CHUNK = 2_000

Progress = Callable[[int, int], None]
Step = Callable[[str], Progress]
"""Told what begins; returns what is told (done, in all)."""


def _silent(title: str) -> Progress:
    return lambda done, total: None


@dataclass
class _Building:
    """What the pass over the raw files collects."""

    sources: Sources
    folder: Path
    image_size: int
    workers: Workers
    step: Step
    previous: Path | None
    is_cache: bool
    inventory: Mapping[str, np.ndarray]
    signatures: Mapping[str, str]
    """Data set -> hash of its tables, as they were before the first was read."""
    digests: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    unreadable: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Data set -> marks of the images that could not be read."""

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        frame = frame.reset_index(drop=True)
        schema = pa.Schema.from_pandas(frame, preserve_index=False)
        chunks = (frame.iloc[start:start + _ROWS_PER_CHUNK].reset_index(drop=True)
                  for start in range(0, max(len(frame), 1), _ROWS_PER_CHUNK))
        self.write_chunks(name, schema, chunks, len(frame))

    def write_chunks(self, name: str, schema: pa.Schema, chunks: Any, num_rows: int) -> None:
        """Write a table piece by piece; the digest is that of the whole as JSON, however it is cut.

        Parquet bytes hold the writer's version; the content does not.
        """
        hasher = hashlib.sha256()
        path = self.folder / f"{name}.parquet"
        is_first = True
        with pq.ParquetWriter(path, schema) as writer:
            for chunk in chunks:
                writer.write_table(pa.Table.from_pandas(chunk, schema=schema, preserve_index=False))
                text = chunk.to_json(orient="split", index=False, date_format="iso", date_unit="us",
                                     double_precision=15)
                head, rows = text[:-len("]}")].split('"data":[', 1)
                # What stands before the rows is the same for all chunks.
                hasher.update(f'{head}"data":[{rows}'.encode() if is_first else f",{rows}".encode())
                is_first = False
        hasher.update(b"]}")
        self.digests[name] = hasher.hexdigest()[:16]
        self.counts[name] = num_rows

    def item(self, table: str, row: int, path: str, folder: str) -> str:
        """How a file is named in what is kept: credentialed data by the row of their table."""
        if self.sources.is_credentialed:
            return f"row {row} of {table}"
        return os.path.relpath(path, Path(folder).parent)


def build(sources: Sources, folder: Path, image_size: int, num_workers: int, step: Step | None = None,
          previous: Path | None = None, is_cache: bool = False) -> dict[str, Any]:
    """Read everything that `sources` names and write tables and images into `folder`.

    All tables are read before the first image is decoded, so that a broken table stops the work at once. What an
    earlier, killed call left in `folder` is used as far as it is whole; the end is the same bit for bit. What the next
    call would need of it stays there until `remove_scaffolding`.

    Args:
        num_workers: processes that decode images and clean reports.
        step: told of the steps that take long.
        previous: an earlier store of the same code and size, whose images need not be decoded again.
        is_cache: the store follows a data root, in which no data set has options of its own.

    Returns:
        The content of the manifest.

    Raises:
        DataError: a table is broken, too many images are unreadable, or the disk is too small.
    """
    require_companions(sources)
    for path in (*folder.glob("*.parquet"), *folder.glob("*.npy")):
        # Only arrays go on, by their journals. The others may be links into a finished store: not to be written to.
        if not journal_of(path).is_file():
            path.unlink()
    workers = Workers(max(1, num_workers))
    # Both are taken first: tables and files that change meanwhile are noticed by the next call.
    signatures, inventory = sources.signatures(), take_inventory(sources)
    work = _Building(sources, folder, image_size, workers, step or _silent, previous, is_cache, inventory, signatures)
    try:
        return _build(work)
    finally:
        workers.close()


def remove_scaffolding(folder: Path) -> None:
    """Remove what only a call that goes on after a kill needs."""
    shutil.rmtree(folder / "captions", ignore_errors=True)
    for journal in folder.glob("*.journal"):
        journal.unlink()


def _build(work: _Building) -> dict[str, Any]:
    sources = work.sources
    sets = sources.sets
    ms_cxr_t = read_ms_cxr_t(sets["ms-cxr-t"].table_folder) if "ms-cxr-t" in sets else None
    ms_cxr = read_ms_cxr(sets["ms-cxr"].table_folder) if "ms-cxr" in sets else None
    rsna = read_rsna(sets["rsna"].folder, sets["rsna"].table_folder) if "rsna" in sets else None
    covidx = None
    if "covidx" in sets:
        covidx = read_covidx(sets["covidx"].folder, sets["covidx"].version or "9A", sets["covidx"].table_folder)
    references = _referenced_images(ms_cxr_t, ms_cxr)
    corpus = read_corpus(sources, references)

    steps: list[tuple[str, int]] = []
    selection: dict[str, Any] = {}
    notes = list(corpus.notes) if corpus is not None else []
    if ms_cxr is not None:
        notes.append(f"boxes of MS-CXR are those of {ms_cxr.table}")
    if corpus is not None:
        captions = write_captions(work.folder / "captions", corpus.studies, corpus.reports, work.workers,
                                  work.step(f"reports of {sources.corpus}"))
        steps = [*corpus.steps, *caption_steps(captions)]
        needed = needed_images(corpus, captions, references)
        _require_space(work, len(needed) + sum(len(other.images) for other in (rsna, covidx) if other is not None))
        work.problems += [(str(sources.corpus), "table", problem) for problem in corpus.problems]
        views, studies, is_readable = _write_corpus(work, corpus, captions, needed)
        steps.append(("studies with a readable frontal", len(studies)))
        judged = _judged_patients(corpus, ms_cxr_t, ms_cxr)
        selection = count_selection(corpus.images, corpus.studies, captions.has_caption, is_readable,
                                    frozenset().union(*judged.values()))
        for name, patients in judged.items():
            work.write_table(f"{name}_patients", pd.DataFrame({"subject_id": sorted(patients)}, dtype="str"))
        if ms_cxr_t is not None:
            work.problems += [("ms-cxr-t", "table", problem) for problem in ms_cxr_t.problems]
            _write_ms_cxr_t(work, ms_cxr_t, views, corpus.studies)
        if ms_cxr is not None:
            _write_ms_cxr(work, ms_cxr, views)
    if rsna is not None:
        work.problems += [("rsna", "table", problem) for problem in rsna.problems]
        _write_rsna(work, rsna.images)
    if covidx is not None:
        work.problems += [("covidx", "table", problem) for problem in covidx.problems]
        _write_covidx(work, covidx.images)
    problems = pd.DataFrame(work.problems, columns=["data_set", "item", "reason"], dtype="str")
    problems.to_parquet(work.folder / "problems.parquet", index=False)
    write_inventory(work.folder / FILES, work.inventory, work.unreadable)
    return {
        "format": FORMAT, "name": sources.name, "is_credentialed": sources.is_credentialed,
        "image_size": work.image_size, "data_sets": sorted(sources.sets), "corpus": sources.corpus or "",
        "steps": [list(entry) for entry in steps], "selection": selection,
        "notes": notes, "counts": work.counts, "digests": work.digests,
        "num_problems": len(problems), "files": _checksums(work), "signatures": dict(work.signatures),
        "fingerprint": fingerprint(json.dumps(work.digests, sort_keys=True)),
    }


def read_corpus(sources: Sources, references: frozenset[str] = frozenset()) -> Corpus | None:
    """The data set with reports, None without one.

    Args:
        references: dicom ids that tables upon MIMIC-CXR name.
    """
    name = sources.corpus
    if name is None:
        return None
    source = sources.sets[name]
    if name == "mimic-cxr-jpg":
        return read_mimic_cxr(source.folder, source.reports, source.table_folder, references, source.is_partial)
    if name == "open-i":
        return read_open_i(source.folder, source.reports or source.folder, source.table_folder)
    if name == "covid-chestxray":
        return read_covid_chestxray(source.folder, source.table_folder)
    assert name == "chexpert-plus", name
    return read_chexpert_plus(source.table_folder, source.folder)


def caption_steps(captions: Captions) -> list[tuple[str, int]]:
    return [("studies with a report", int(captions.has_report.sum())),
            ("studies with a caption left after cleaning", int(captions.is_usable.sum()))]


def needed_images(corpus: Corpus, captions: Captions, references: frozenset[str]) -> pd.DataFrame:
    """Images that a trial can read: frontals and first lateral of the studies, and the referenced images.

    Returns:
        Rows of `corpus.images`, with their index there.
    """
    images = corpus.images.assign(image=np.arange(len(corpus.images)))
    usable = corpus.studies["study_id"][captions.is_usable]
    grouped = group_views(images[images["study_id"].isin(usable)])
    is_frontal = images["view"].isin(FRONTAL_VIEWS) & images["study_id"].isin(grouped["study_id"])
    is_needed = (is_frontal | images["dicom_id"].isin(references)).to_numpy(copy=True)
    laterals = grouped["lateral"].to_numpy()
    is_needed[laterals[laterals >= 0]] = True
    return corpus.images[is_needed]


def _referenced_images(ms_cxr_t: MsCxrT | None, ms_cxr: MsCxr | None) -> frozenset[str]:
    """Dicom ids that the tables upon MIMIC-CXR use; all of them are frontal images."""
    ids: set[str] = set()
    if ms_cxr_t is not None:
        ids.update(ms_cxr_t.pairs["dicom_id"], ms_cxr_t.pairs["previous_dicom_id"])
    if ms_cxr is not None:
        ids.update(ms_cxr.boxes["dicom_id"])
    return frozenset(ids)


def _judged_patients(corpus: Corpus, ms_cxr_t: MsCxrT | None, ms_cxr: MsCxr | None) -> dict[str, frozenset[str]]:
    """By table upon MIMIC-CXR, its patients, whether or not their images are there."""
    found = {}
    if ms_cxr_t is not None:
        found["ms_cxr_t"] = frozenset(ms_cxr_t.pairs["subject_id"])
    if ms_cxr is not None:
        found["ms_cxr"] = frozenset(ms_cxr.boxes["dicom_id"].map(corpus.referenced).dropna())
    return found


def _require_space(work: _Building, num_images: int) -> None:
    there = sum(path.stat().st_size for path in work.folder.glob("*_images.npy"))
    needed, free = num_images * work.image_size**2 - there, shutil.disk_usage(work.folder).free
    if needed > free:
        raise DataError(f"{work.folder.parent}: the store needs {needed / 1e9:.1f} GB more ({num_images} images of "
                        f"{work.image_size} pixels), {free / 1e9:.1f} GB are free; free some space, choose another "
                        "folder or a smaller data.image_size")


# ------------------------------------------------------------------------------------------------ corpus


def _write_corpus(work: _Building, corpus: Corpus, captions: Captions,
                  needed: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Images, views and studies; also which of `corpus.images` are readable as far as they were asked for."""
    def paths_of(start: int, stop: int) -> list[str]:
        return corpus.paths(needed.iloc[start:stop])

    written = _write_images(work, "mimic", needed, paths_of, pd.Series(corpus.table, needed.index),
                            _reused_images(work, needed, paths_of))
    views = needed.iloc[written["position"].to_numpy()].reset_index(drop=True)
    views = views.assign(image=written["image"], width=written["width"], height=written["height"])
    is_readable = np.ones(len(corpus.images), dtype=bool)
    is_readable[needed.index[~np.isin(np.arange(len(needed)), written["position"])]] = False
    views = views[["image", "dicom_id", "study_id", "subject_id", "view", "is_view_stated", "width", "height"]]
    usable = corpus.studies.assign(caption=np.arange(len(corpus.studies)))[captions.is_usable]
    studies = usable.merge(group_views(views), on="study_id", how="inner", validate="one_to_one")
    truth = _study_truth(work)
    if truth is not None:
        known = truth[["study_id", *(column for column in ("sex", "age") if column in truth.columns)]]
        studies = studies.merge(known, on="study_id", how="left", validate="one_to_one")
    studies["sex"] = studies["sex"].fillna("") if "sex" in studies.columns else ""
    studies["age"] = studies["age"].astype("float64") if "age" in studies.columns else np.nan
    labels = [column for column in studies.columns if column.startswith("label_")]
    studies = studies.sort_values(["subject_id", "time", "study_id"]).reset_index(drop=True)
    order = ["subject_id", "study_id", "time", "split", "frontal", "frontal_view", "other_frontals", "lateral",
             "lateral_view", *COLUMNS, "sex", "age", *labels]
    work.write_table("mimic_views", views)
    _write_studies(work, studies, captions, order)
    if truth is not None:
        _write_truth(work, truth, studies, views)
    return views, studies, is_readable


def _write_studies(work: _Building, studies: pd.DataFrame, captions: Captions, order: list[str]) -> None:
    """The table of studies with their captions, which are read and written in pieces."""
    texts = {name: pd.Series("", studies.index, dtype="str") for name in COLUMNS}
    schema = pa.Schema.from_pandas(studies.assign(**texts)[order], preserve_index=False)
    chunks = (
        pd.concat([part.reset_index(drop=True), captions.read(part["caption"].to_numpy())], axis=1)[order]
        for start in range(0, max(len(studies), 1), _ROWS_PER_CHUNK)
        for part in [studies.iloc[start:start + _ROWS_PER_CHUNK]])
    work.write_chunks("mimic_studies", schema, chunks, len(studies))


def _study_truth(work: _Building) -> pd.DataFrame | None:
    path = Path(work.sources.truth) / "studies.parquet"
    if not work.sources.truth or not path.is_file():
        return None
    return pd.read_parquet(path).astype({"study_id": "str"})


def _write_truth(work: _Building, truth: pd.DataFrame, studies: pd.DataFrame, views: pd.DataFrame) -> None:
    rows = pd.Series(studies.index, index=studies["study_id"])
    truth.insert(0, "study", truth["study_id"].map(rows))
    truth = truth.dropna(subset="study").astype({"study": "int64"}).sort_values("study")
    work.write_table("mimic_study_truth", truth.drop(columns=["study_id", "subject_id"], errors="ignore"))
    findings = pd.read_parquet(Path(work.sources.truth) / "findings.parquet")
    work.write_table("mimic_findings", _place_boxes(work, _with_images(work, "truth", findings, views)))


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


# ------------------------------------------------------------------------------------------------ tasks


def _write_rsna(work: _Building, images: pd.DataFrame) -> None:
    if _take_over(work, "rsna"):
        return
    frame = _write_paths(work, "rsna", images.assign(table="stage_2_train_labels.csv"))
    fractions = [square_box(np.reshape(boxes, (-1, 4)), width, height, work.image_size).tolist()
                 for boxes, width, height in zip(frame["boxes"], frame["width"], frame["height"], strict=True)]
    is_stated = frame["stated_view"].isin(FRONTAL_VIEWS)
    frame["patient_id"] = as_nih_patients(frame["patient_id"], _nih_patients(work))
    frame = frame.assign(boxes=fractions, view=frame["stated_view"].where(is_stated, "PA"), is_view_stated=is_stated)
    work.write_table("rsna", frame[["image", "patient_id", "target", "boxes", "view", "is_view_stated",
                                    "published_split"]])


def _write_covidx(work: _Building, images: pd.DataFrame) -> None:
    if _take_over(work, "covidx"):
        return
    frame = _write_paths(work, "covidx", images)
    frame["patient_id"] = as_nih_patients(frame["patient_id"], _nih_patients(work))
    squares = np.load(work.folder / "covidx_images.npy", mmap_mode="r")
    frame["patient_id"], num_twins = join_twins(squares, frame["patient_id"])
    if num_twins:
        work.problems.append(("covidx", "table", f"{num_twins} images are the same radiograph as an earlier one under "
                                                 "another patient id; their patients count as one"))
    work.write_table("covidx", frame[["image", "patient_id", "label", "source", "split", "published_split",
                                      "published_order", "published_percent"]])


def _nih_patients(work: _Building) -> dict[str, str]:
    """Patients behind RSNA's image ids, which COVIDx uses too: from RSNA's mapping where it was put into either."""
    found: dict[str, str] = {}
    for name in ("covidx", "rsna"):
        if name in work.sources.sets:
            source = work.sources.sets[name]
            found |= read_nih_patients(source.folder) | read_nih_patients(source.table_folder)
    return found


def _write_paths(work: _Building, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Decode the images of `frame.path`: the readable rows, with image, width, height and stated_view."""
    files = list(frame["path"])
    written = _write_images(work, name, frame, lambda start, stop: files[start:stop], frame["table"])
    readable = frame.iloc[written["position"].to_numpy()].reset_index(drop=True)
    return pd.concat([written[["image"]], readable, written[["width", "height", "stated_view"]]], axis=1)


# ------------------------------------------------------------------------------------------------ images


def _write_images(work: _Building, name: str, frame: pd.DataFrame, paths_of: Callable[[int, int], list[str]],
                  tables: pd.Series, reuse: Reuse | None = None) -> pd.DataFrame:
    """Decode the images of the rows of `frame` into `<name>_images.npy`; see `ArrayContent.table`."""
    data_set = str(work.sources.corpus) if name == "mimic" else name
    source = work.sources.sets[data_set]
    options = ("--partial (absent images) or " if data_set == "mimic-cxr-jpg" else "") + "--largest-unreadable"
    remedy = (f"prepare each data set by its name, where {options} allows it (docs/data.md)" if work.is_cache
              else f"allow it with {options}")
    progress = work.step(f"images of {data_set}")
    total = len(frame)
    rows = frame["row"].to_numpy()

    def item(position: int) -> str:
        return work.item(str(tables.iloc[position]), int(rows[position]), paths_of(position, position + 1)[0],
                         source.folder)

    def on_block(content: ArrayContent) -> None:
        if len(content.failures) > source.largest_unreadable * total:
            first = "".join(f"\n  {item(position)}: {reason}" for position, reason in content.failures[:5])
            raise DataError(
                f"{len(content.failures)} of the first {content.num_done} images of {name} are unreadable, more than "
                f"{source.largest_unreadable:.0%} of all {total}; complete the download, or {remedy}. The first ones:"
                f"{first}")
        progress(content.num_done, total)

    content = write_array(work.folder / f"{name}_images.npy", total, work.image_size, paths_of, work.workers, on_block,
                          reuse)
    work.problems += [(name, item(position), reason) for position, reason in content.failures]
    work.unreadable[data_set].update(
        mark_of(paths_of(position, position + 1)[0], source.folder) for position, _ in content.failures)
    work.digests[f"{name}_images"] = content.digest
    table = content.table()
    work.counts[f"{name}_images"] = len(table)
    return table


def _reused_images(work: _Building, needed: pd.DataFrame,
                   paths_of: Callable[[int, int], list[str]]) -> Reuse | None:
    """Images of an earlier store that need not be decoded again: of the same files, unchanged since."""
    if work.previous is None:
        return None
    earlier, corpus = Sources.from_json(_manifest(work.previous)["sources"]), str(work.sources.corpus)
    folder = work.sources.sets[corpus].folder
    if corpus not in earlier.sets or earlier.sets[corpus].folder != folder:
        return None
    table = pd.read_parquet(work.previous / "mimic_views.parquet", columns=["dicom_id", "image", "width", "height"])
    rows = needed["dicom_id"].map(pd.Series(table["image"].to_numpy(), index=table["dicom_id"]))
    known = rows.fillna(-1).astype("int64").to_numpy()
    squares = np.load(work.previous / "mimic_images.npy", mmap_mode="r")
    marks = read_inventory(work.previous, corpus)["mark"].to_numpy()

    def row_of(start: int, stop: int) -> np.ndarray:
        own = np.array([mark_of(path, folder) for path in paths_of(start, stop)], dtype=np.int64)
        is_as_before = marks[np.minimum(np.searchsorted(marks, own), len(marks) - 1)] == own
        return np.where(is_as_before, known[start:stop], -1)

    return Reuse(squares, table, row_of)


def _take_over(work: _Building, name: str) -> bool:
    """Use what an earlier store has of a data set, if it was made from the same places, tables and files."""
    if work.previous is None:
        return False
    manifest, source = _manifest(work.previous), work.sources.sets[name]
    if (Sources.from_json(manifest["sources"]).sets.get(name) != source
            or manifest["signatures"][name] != work.signatures[name]
            or not has_same_files(work.previous, name, source, work.image_size)):
        return False
    journal_of(work.folder / f"{name}_images.npy").unlink(missing_ok=True)
    for part in (f"{name}.parquet", f"{name}_images.npy"):
        target = work.folder / part
        target.unlink(missing_ok=True)
        try:
            os.link(work.previous / part, target)
        except OSError:
            # Not every file system has hard links.
            shutil.copyfile(work.previous / part, target)
    for part in (name, f"{name}_images"):
        work.digests[part] = manifest["digests"][part]
        work.counts[part] = manifest["counts"][part]
    problems = pd.read_parquet(work.previous / "problems.parquet")
    own = problems[(problems["data_set"] == name) & ~problems["reason"].isin([text for _, _, text in work.problems])]
    work.problems += [(str(row.data_set), str(row.item), str(row.reason)) for row in own.itertuples()]
    files = read_inventory(work.previous, name)
    work.unreadable[name].update(files.loc[~files["is_readable"], "mark"])
    return True


def _manifest(store: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def _checksums(work: _Building) -> dict[str, dict[str, Any]]:
    """Size and hash of every file; arrays by the hash of their pixels, which is known already."""
    return {path.name: {"bytes": path.stat().st_size,
                        "sha256": work.digests[path.stem] if path.suffix == ".npy" else hash_file(path)}
            for path in sorted(work.folder.iterdir()) if path.suffix in (".npy", ".parquet")}
