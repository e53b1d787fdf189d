"""Writes a phantom in the layouts of MIMIC-CXR-JPG, MIMIC-CXR, MS-CXR-T, MS-CXR, RSNA and COVIDx.

What lives here: the plan of jobs, the workers, files and tables, and the care that a folder is either
whole or not there. What must not: how anything looks or reads.

Every patient draws from streams named by (seed, purpose, patient), and the tables are put together in
the order of the plan: the bytes do not depend on the number of workers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medst.config import fingerprint
from medst.data.phantom.anatomy import Body, build_thorax, draw_body
from medst.data.phantom.course import (
    FINDINGS,
    Finding,
    Patient,
    Study,
    draw_opacity,
    draw_patient,
    draw_visitor,
    progression,
    stream,
)
from medst.data.phantom.grammar import phrase, sentence_pairs, write_report
from medst.data.phantom.imaging import Box, Radiograph, ViewName, render
from medst.data.phantom.labels import CHEXPERT_LABELS, LABEL_OF_FINDING, label_study
from medst.data.phantom.presets import PhantomConfig, PhantomError

Kind = Literal["mimic", "rsna", "covidx_train", "covidx_test"]
Rows = dict[str, list[dict[str, Any]]]
"""Table name -> rows."""

MARKER = "phantom.json"
METADATA_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning")
MS_CXR_COLUMNS = ("category_name", "label_text", "path", "dicom_id", "split", "x", "y", "w", "h", "image_width",
                  "image_height", "has_text")
FINDING_COLUMNS = ("dicom_id", "study_id", "subject_id", "view", "finding", "severity", "side", "finding_side", "zone",
                   "is_lateral_only", "x", "y", "w", "h", "contrast")

# Purposes of the random streams beside the course, which is purpose 0.
_BODY, _PIXELS, _WORDS, _LABELS, _VISIT, _PAIRS, _PHRASES, _QUALITY = range(1, 9)
_JPEG_QUALITY = 95
_PATIENTS_PER_JOB = 12


@dataclass(frozen=True)
class Job:
    """Patients start..stop-1 of one collection."""

    kind: Kind
    start: int
    stop: int


def plan(config: PhantomConfig) -> list[Job]:
    """The jobs of a phantom, in the order of its tables."""
    sizes: dict[Kind, int] = {"mimic": config.num_patients, "rsna": config.num_rsna,
                              "covidx_train": config.num_covidx_train, "covidx_test": config.num_covidx_test}
    return [Job(kind, start, min(start + _PATIENTS_PER_JOB, size))
            for kind, size in sizes.items() for start in range(0, size, _PATIENTS_PER_JOB)]


def read_phantom_config(root: Path) -> PhantomConfig | None:
    """The config of the complete phantom in `root`; None where there is none, also where it is half written."""
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    if marker.get("complete") is not True:
        return None
    return PhantomConfig.model_validate_json(json.dumps(marker["config"]))


def generate(config: PhantomConfig, out: Path, num_workers: int = 1,
             progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the phantom `config` into the folder `out` and return it; a complete equal one is left as it is.

    The folder is written under another name and renamed when complete.

    Args:
        num_workers: processes; the result is the same, byte for byte, whatever their number.
        progress: called with (patients done, patients in all).

    Raises:
        PhantomError: `out` holds another phantom, a half-written one or something else; too little space.
    """
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        present = read_phantom_config(out)
        if present is None:
            raise PhantomError(f"{out}: not a complete phantom ({MARKER} is missing or unfinished); "
                               "delete the folder or choose another one")
        if present != config:
            raise PhantomError(f"{out}: holds a phantom of another config ({_difference(present, config)}); "
                               "delete the folder or choose another one")
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    _require_space(config, out.parent)
    partial_root = out.parent / f".{out.name}.writing-{os.getpid()}"
    try:
        _write_all(config, partial_root, num_workers, progress)
        if out.exists():
            out.rmdir()
        partial_root.rename(out)
    finally:
        if partial_root.exists():
            shutil.rmtree(partial_root)
    return out


def _difference(present: PhantomConfig, wanted: PhantomConfig) -> str:
    old, new = present.model_dump(), wanted.model_dump()
    return ", ".join(f"{key}={old[key]} instead of {new[key]}" for key in old if old[key] != new[key])


def _remove_leftovers(out: Path) -> None:
    """Remove what a killed writer of the same folder left behind; a living one is left alone."""
    for path in out.parent.glob(f".{out.name}.writing-*"):
        process = int(path.name.rpartition("-")[2])
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            shutil.rmtree(path)
        except PermissionError:
            continue


def estimate_bytes(config: PhantomConfig) -> int:
    """Disk space that the phantom takes, generously: files and folders fill whole blocks of 4 KiB."""
    weights = np.array(config.sequence_lengths)
    studies = config.num_patients * float((weights * np.arange(1, len(weights) + 1)).sum() / weights.sum()) * 1.15

    def blocks(size: float) -> float:
        return 4096 * np.ceil(size / 4096 + 0.5)

    jpeg, dicom = blocks(0.62 * config.image_size**2), blocks(config.image_size**2 + 1500)
    covidx = config.num_covidx_train + config.num_covidx_test
    return int(studies * (1.6 * jpeg + 5 * 4096) + config.num_patients * 3 * 4096 + config.num_rsna * dicom
               + covidx * jpeg + 20e6)


def _require_space(config: PhantomConfig, folder: Path) -> None:
    needed, free = estimate_bytes(config), shutil.disk_usage(folder).free
    if free < needed:
        raise PhantomError(f"{folder}: the phantom needs about {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
                           "free some space, choose another folder or fewer patients")


def _write_all(config: PhantomConfig, root: Path, num_workers: int,
               progress: Callable[[int, int], None] | None) -> None:
    jobs = plan(config)
    for folder in ("mimic-cxr-jpg", "mimic-cxr", "ms-cxr-t", "ms-cxr", "rsna/stage_2_train_images", "covidx/train",
                   "covidx/test", "truth"):
        (root / folder).mkdir(parents=True)
    tables: Rows = defaultdict(list)
    total = sum(job.stop - job.start for job in jobs)
    done = 0
    for job, rows in zip(jobs, _run_jobs(config, root, jobs, num_workers), strict=True):
        for name, some in rows.items():
            tables[name] += some
        done += job.stop - job.start
        if progress is not None:
            progress(done, total)
    _write_tables(config, root, tables)
    _write_json(root / "dataset.json", {"name": "chest phantom", "credentialed": False})
    _write_json(root / MARKER, {"config": config.model_dump(mode="json"), "generator": generator_fingerprint(),
                                "images": len(tables["metadata"]) + total - config.num_patients,
                                "studies": len(tables["chexpert"]), "complete": True})


def _run_jobs(config: PhantomConfig, root: Path, jobs: list[Job], num_workers: int) -> Iterator[Rows]:
    work = partial(run_job, config, root)
    if num_workers <= 1:
        yield from map(work, jobs)
        return
    # Spawned, not forked: the caller may hold threads (a progress bar, an actor of Ray).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield from pool.map(work, jobs)


@cache
def generator_fingerprint() -> str:
    """Fingerprint of the phantom's source."""
    paths = sorted(Path(__file__).parent.glob("*.py"))
    return fingerprint("\0".join(path.read_text(encoding="utf-8") for path in paths))


def run_job(config: PhantomConfig, root: Path, job: Job) -> Rows:
    """Write the files of one job below `root` and return the rows of its tables."""
    write = {"mimic": _write_patient, "rsna": _write_rsna, "covidx_train": _write_covidx,
             "covidx_test": _write_covidx}[job.kind]
    rows: Rows = defaultdict(list)
    for index in range(job.start, job.stop):
        write(config, root, job.kind, index, rows)
    return dict(rows)


# ------------------------------------------------------------------------------------------------ MIMIC


def split_of(config: PhantomConfig, index: int) -> Literal["train", "validate", "test"]:
    if index < config.num_train:
        return "train"
    return "validate" if index < config.num_train + config.num_validate else "test"


def patient_folder(subject_id: int) -> str:
    return f"p{str(subject_id)[:2]}/p{subject_id}"


def _write_patient(config: PhantomConfig, root: Path, kind: Kind, index: int, rows: Rows) -> None:
    patient = draw_patient(config, split_of(config, index), index)
    body = draw_body(config, stream(config.seed, _BODY, index))
    folder = patient_folder(patient.subject_id)
    reports = root / "mimic-cxr" / "files" / folder
    reports.mkdir(parents=True)
    frontals: list[tuple[str, Radiograph]] = []
    for number, study in enumerate(patient.studies):
        report = write_report(patient, number, config, stream(config.seed, _WORDS, index, number), config.grammar)
        (reports / f"s{study.study_id}.txt").write_text(report.text, encoding="utf-8")
        labels = label_study(patient, number, report.mentioned, config, stream(config.seed, _LABELS, index, number))
        rows["chexpert"].append({"subject_id": patient.subject_id, "study_id": study.study_id, **labels})
        rows["studies"].append(_study_row(patient, study))
        images = root / "mimic-cxr-jpg" / "files" / folder / f"s{study.study_id}"
        images.mkdir(parents=True)
        for dicom_id, view, radiograph in _render_study(config, patient, study, body, index, number):
            _save_jpeg(radiograph.pixels, images / f"{dicom_id}.jpg")
            rows["metadata"].append(_metadata_row(study, dicom_id, view, radiograph.pixels))
            rows["split"].append({"dicom_id": dicom_id, "study_id": study.study_id, "subject_id": study.subject_id,
                                  "split": patient.split})
            rows["findings"] += [_finding_row(study, dicom_id, view, box) for box in radiograph.boxes]
            if len(frontals) == number:
                frontals.append((dicom_id, radiograph))
    if patient.split == "test":
        rows["ms_cxr_t"] += _progression_rows(config, patient, [name for name, _ in frontals], index)
        rows["ms_cxr"] += _phrase_rows(config, patient, frontals, index)


def _render_study(config: PhantomConfig, patient: Patient, study: Study, body: Body, index: int,
                  number: int) -> Iterator[tuple[str, ViewName, Radiograph]]:
    views: tuple[ViewName, ...] = study.frontal_views
    if study.lateral_view is not None:
        views = (*views, study.lateral_view)
    frontal = build_thorax(patient, study, body, config)
    for image, view in enumerate(views):
        rng = stream(config.seed, _PIXELS, index, number, image)
        digits = rng.bytes(20).hex()
        dicom_id = "-".join(digits[at:at + 8] for at in range(0, 40, 8))
        thorax = frontal if image < len(study.frontal_views) else build_thorax(patient, study, body, config, True)
        yield dicom_id, view, render(thorax, study, view, config, patient.body_size, rng)


def _metadata_row(study: Study, dicom_id: str, view: ViewName, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    if study.is_portable:
        step = "CHEST (PORTABLE AP)"
    elif study.lateral_view is not None:
        step = f"CHEST ({study.frontal_views[0]} AND LAT)"
    else:
        step = f"CHEST ({study.frontal_views[0]})"
    meaning = {"AP": "antero-posterior", "PA": "postero-anterior", "LL": "left lateral", "LATERAL": "lateral"}[view]
    time = study.time
    return {
        "dicom_id": dicom_id, "subject_id": study.subject_id, "study_id": study.study_id,
        "PerformedProcedureStepDescription": step, "ViewPosition": view, "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "StudyDate": f"{time:%Y%m%d}",
        "StudyTime": f"{time.hour * 10_000 + time.minute * 100 + time.second}.{study.study_id % 1000:03d}",
        "ProcedureCodeSequence_CodeMeaning": step, "ViewCodeSequence_CodeMeaning": meaning,
        "PatientOrientationCodeSequence_CodeMeaning": "Recumbent" if study.is_supine else "Erect"}


def _finding_row(study: Study, dicom_id: str, view: ViewName, box: Box) -> dict[str, Any]:
    finding = study.findings[box.finding]
    return {"dicom_id": dicom_id, "study_id": study.study_id, "subject_id": study.subject_id, "view": view,
            "finding": finding.name, "severity": finding.severity, "side": box.side, "finding_side": finding.side,
            "zone": finding.zone, "is_lateral_only": finding.is_lateral_only, "x": box.x, "y": box.y, "w": box.width,
            "h": box.height, "contrast": box.contrast}


def _study_row(patient: Patient, study: Study) -> dict[str, Any]:
    severity = {f"severity_{name}": max((finding.severity for finding in study.findings if finding.name == name),
                                        default=0.0) for name in FINDINGS}
    return {"study_id": study.study_id, "subject_id": study.subject_id, "split": patient.split, "sex": patient.sex,
            "age": patient.age, "body_size": patient.body_size, "time": study.time, "is_portable": study.is_portable,
            "is_supine": study.is_supine, "heart_size": study.heart_size, "inspiration": study.inspiration,
            "rotation": study.rotation, **severity,
            "devices": ",".join(sorted({device.kind for device in study.devices}))}


def _progression_rows(config: PhantomConfig, patient: Patient, frontals: list[str], index: int) -> list[dict[str, Any]]:
    """MS-CXR-T: every pair of consecutive studies of which a frontal can tell the change of some finding."""
    rng = stream(config.seed, _QUALITY, index)
    rows = []
    for number in range(1, len(patient.studies)):
        previous, current = patient.studies[number - 1], patient.studies[number]
        row: dict[str, Any] = {
            "dicom_id": f"{patient_folder(patient.subject_id)}/s{current.study_id}/{frontals[number]}",
            "previous_dicom_id": f"{patient_folder(patient.subject_id)}/s{previous.study_id}/{frontals[number - 1]}",
            "study_id": current.study_id, "previous_study_id": previous.study_id, "subject_id": patient.subject_id}
        quality: dict[str, str | None] = {}
        for name in FINDINGS:
            is_hidden = any(finding.is_lateral_only for study in (previous, current) for finding in study.findings
                            if finding.name == name)
            change = None if is_hidden else progression(previous, current, name, config.progression_threshold)
            row[f"{name}_progression"] = change
            draw = rng.random()
            quality[f"{name}_label_quality"] = None if change is None else (
                "multiple_experts" if draw < 0.5 else "one_expert")
        if any(value is not None for value in quality.values()):
            rows.append({**row, **quality})
    return rows


def _phrase_rows(config: PhantomConfig, patient: Patient, frontals: list[tuple[str, Radiograph]],
                 index: int) -> list[dict[str, Any]]:
    """MS-CXR: a phrase and its boxes for every finding that the first frontal of a study shows."""
    rng = stream(config.seed, _PHRASES, index)
    rows = []
    for study, (dicom_id, radiograph) in zip(patient.studies, frontals, strict=True):
        height, width = radiograph.pixels.shape
        for number, finding in enumerate(study.findings):
            text = phrase(finding, rng, config.grammar)
            if finding.is_lateral_only:
                continue
            rows += [{
                "category_name": LABEL_OF_FINDING[finding.name], "label_text": text,
                "path": f"files/{patient_folder(patient.subject_id)}/s{study.study_id}/{dicom_id}.jpg",
                "dicom_id": dicom_id, "split": "test", "x": int(box.x), "y": int(box.y), "w": int(box.width),
                "h": int(box.height), "image_width": width, "image_height": height, "has_text": True,
            } for box in radiograph.boxes if box.finding == number and not np.isnan(box.x)]
    return rows


# ------------------------------------------------------------------------------------- other collections


def _write_rsna(config: PhantomConfig, root: Path, kind: Kind, index: int, rows: Rows) -> None:
    """One DICOM file; pneumonia in 35 of 100, other findings in half of the rest."""
    rng = stream(config.seed, _VISIT, 1, index)
    target = int(rng.random() < 0.35)
    findings: tuple[Finding, ...]
    if target:
        findings = (draw_opacity("pneumonia", rng),)
        if rng.random() < 0.2:
            findings += (Finding("pleural_effusion", float(rng.uniform(0.15, 0.5)), findings[0].side, "lower"),)
    else:
        findings = _other_findings(rng)
    patient, radiograph = _render_visitor(config, 1, index, findings, rng, is_covid=False)
    patient_id = _uuid(rng)
    _save_dicom(radiograph.pixels, patient_id, patient, root / "rsna" / "stage_2_train_images" / f"{patient_id}.dcm")
    boxes = [box for box in radiograph.boxes if target and box.finding == 0 and not np.isnan(box.x)]
    for box in boxes:
        rows["rsna"].append({"patientId": patient_id, "x": box.x, "y": box.y, "width": box.width, "height": box.height,
                             "Target": 1})
    if not boxes:
        # As in the real table, what shows no opacity has no box and no target, whatever the patient has.
        rows["rsna"].append({"patientId": patient_id, "x": None, "y": None, "width": None, "height": None,
                             "Target": 0})


def _other_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    kind = rng.random()
    severity = 0.15 + 0.7 * float(rng.beta(1.5, 2.0))
    side: Literal["left", "right"] = "left" if rng.random() < 0.5 else "right"
    if kind < 0.5:
        return ()
    if kind < 0.66:
        return (Finding("edema", severity, "bilateral", "middle"),)
    if kind < 0.86:
        return (Finding("pleural_effusion", severity, side, "lower"),)
    return (Finding("pneumothorax", severity, side, "upper"),)


def _write_covidx(config: PhantomConfig, root: Path, kind: Kind, index: int, rows: Rows) -> None:
    """One image of three classes in turn: normal, lobar pneumonia, COVID-19 with patches along both bases."""
    is_train = kind == "covidx_train"
    rng = stream(config.seed, _VISIT, 2 if is_train else 3, index)
    label = ("normal", "pneumonia", "COVID-19")[index % 3]
    severity = 0.15 + 0.8 * float(rng.beta(1.8, 1.8))
    findings: tuple[Finding, ...] = ()
    if label == "pneumonia":
        findings = (draw_opacity("pneumonia", rng),)
    elif label == "COVID-19":
        findings = (Finding("pneumonia", severity, "bilateral", "lower"),)
    group = 2 if is_train else 3
    _, radiograph = _render_visitor(config, group, index, findings, rng, is_covid=label == "COVID-19")
    patient_id = _uuid(rng) if label != "COVID-19" else f"COVID_{index + 1}"
    extension, source = ("png", "rsna") if label != "COVID-19" else ("jpg", "cohen")
    folder = "train" if is_train else "test"
    name = f"{patient_id}.{extension}"
    path = root / "covidx" / folder / name
    if extension == "png":
        Image.fromarray(radiograph.pixels).save(path, compress_level=1)
    else:
        _save_jpeg(radiograph.pixels, path)
    rows[kind].append({"patientid": patient_id, "filename": name, "class": label, "source": source})


def _render_visitor(config: PhantomConfig, group: int, index: int, findings: tuple[Finding, ...],
                    rng: np.random.Generator, is_covid: bool) -> tuple[Patient, Radiograph]:
    patient = draw_visitor(config, group, index, findings, rng)
    body = draw_body(config, rng)
    study = patient.studies[0]
    thorax = build_thorax(patient, study, body, config, is_covid=is_covid)
    return patient, render(thorax, study, study.frontal_views[0], config, patient.body_size, rng, equalised=False)


def _uuid(rng: np.random.Generator) -> str:
    digits = rng.bytes(16).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


# ------------------------------------------------------------------------------------------------ files


def _save_jpeg(pixels: NDArray[np.uint8], path: Path) -> None:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    path.write_bytes(buffer.getbuffer())


def _save_dicom(pixels: NDArray[np.uint8], patient_id: str, patient: Patient, path: Path) -> None:
    """An 8-bit MONOCHROME2 secondary capture, uncompressed, with the elements that RSNA's files have."""
    number = int(patient_id[:8], 16)
    instance = f"1.2.276.0.7230010.3.1.4.8323329.{number}.1517875201.{patient.subject_id}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    study = patient.studies[0]
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    elements = {
        "SOPClassUID": SecondaryCaptureImageStorage, "SOPInstanceUID": instance, "StudyDate": "19010101",
        "StudyTime": "000000.00", "Modality": "CR", "ConversionType": "WSD",
        "SeriesDescription": f"view: {study.frontal_views[0]}", "PatientName": patient_id, "PatientID": patient_id,
        "PatientSex": patient.sex, "PatientAge": f"{patient.age:03d}Y", "BodyPartExamined": "CHEST",
        "ViewPosition": study.frontal_views[0], "StudyInstanceUID": instance.replace(".4.8323329", ".2.8323329"),
        "SeriesInstanceUID": instance.replace(".4.8323329", ".3.8323329"), "SeriesNumber": 1, "InstanceNumber": 1,
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
        "PixelData": pixels.tobytes() + b"\0" * (pixels.size % 2)}
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _frame(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))


def _write_tables(config: PhantomConfig, root: Path, tables: Rows) -> None:
    mimic = root / "mimic-cxr-jpg"
    # Without a fixed time the compressed bytes would depend on the clock.
    gzip = {"method": "gzip", "mtime": 1}
    _frame(tables["metadata"], METADATA_COLUMNS).to_csv(mimic / "mimic-cxr-2.0.0-metadata.csv.gz", index=False,
                                                       compression=gzip)
    _frame(tables["split"], ("dicom_id", "study_id", "subject_id", "split")).to_csv(
        mimic / "mimic-cxr-2.0.0-split.csv.gz", index=False, compression=gzip)
    _frame(tables["chexpert"], ("subject_id", "study_id", *CHEXPERT_LABELS)).to_csv(
        mimic / "mimic-cxr-2.0.0-chexpert.csv.gz", index=False, compression=gzip)
    progressions = tuple(f"{name}_progression" for name in FINDINGS)
    qualities = tuple(f"{name}_label_quality" for name in FINDINGS)
    _frame(tables["ms_cxr_t"], ("dicom_id", "previous_dicom_id", "study_id", "previous_study_id", "subject_id",
                                *progressions, *qualities)).to_csv(
        root / "ms-cxr-t" / "MS_CXR_T_temporal_image_classification_v1.0.0.csv", index=False)
    pairs = sentence_pairs(config.num_sentence_pairs, stream(config.seed, _PAIRS), config.grammar,
                           config.order_carries_meaning, config.stable_contradictions, config.degree_words)
    pairs.to_csv(root / "ms-cxr-t" / "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv", index=False)
    _frame(tables["ms_cxr"], MS_CXR_COLUMNS).to_csv(root / "ms-cxr" / "MS_CXR_Local_Alignment_v1.0.0.csv", index=False)
    _frame(tables["rsna"], ("patientId", "x", "y", "width", "height", "Target")).to_csv(
        root / "rsna" / "stage_2_train_labels.csv", index=False)
    for part in ("train", "test"):
        _frame(tables[f"covidx_{part}"], ("patientid", "filename", "class", "source")).to_csv(
            root / "covidx" / f"{part}_COVIDx9A.txt", index=False, header=False, sep=" ")
    _frame(tables["findings"], FINDING_COLUMNS).to_parquet(root / "truth" / "findings.parquet", index=False)
    pd.DataFrame(tables["studies"]).to_parquet(root / "truth" / "studies.parquet", index=False)
