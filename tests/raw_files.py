"""A tiny data root in the published layouts, written for the tests of readers, store and loader."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medst.data.readers.mimic_cxr import LABELS

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough.

 COMPARISON:  ___.

 FINDINGS:
 There is a {degree} {side} pleural effusion. The heart is {degree} enlarged.

 IMPRESSION:
 {degree} {side} pleural effusion, unchanged from the prior study of number {number}.
"""


def write_dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", view: str | None = "AP") -> None:
    """An uncompressed one-frame DICOM of uint8 or uint16 pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path.name)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    if view is not None:
        dataset.ViewPosition = view
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


class RawWriter:
    """Collects studies of MIMIC-CXR and writes the whole root. Every image has a grey level of its own."""

    def __init__(self, root: Path, size: tuple[int, int] = (24, 20)) -> None:
        self.root = root
        self.height, self.width = size
        self.metadata: list[dict[str, object]] = []
        self.splits: list[dict[str, object]] = []
        self.labels: list[dict[str, object]] = []

    def add_study(self, subject: int, study: int, views: list[str], *, date: str = "21500101", time: str = "93014.531",
                  split: str = "train", report: str | None = None, has_report: bool = True) -> list[str]:
        """Add a study with one image a view; returns the dicom ids."""
        folder = f"files/p{str(subject)[:2]}/p{subject}"
        dicoms = []
        for view in views:
            number = len(self.metadata)
            dicom = f"{number:08x}-dicom"
            path = self.root / "mimic-cxr-jpg" / folder / f"s{study}" / f"{dicom}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((self.height, self.width), 20 + number % 230, dtype=np.uint8)
            Image.fromarray(pixels).save(path, quality=95)
            self.metadata.append({"dicom_id": dicom, "subject_id": subject, "study_id": study, "ViewPosition": view,
                                  "Rows": self.height, "Columns": self.width, "StudyDate": date, "StudyTime": time})
            self.splits.append({"dicom_id": dicom, "study_id": study, "subject_id": subject, "split": split})
            dicoms.append(dicom)
        self.labels.append({"subject_id": subject, "study_id": study,
                            **{name: [1.0, 0.0, -1.0, None][(study + index) % 4] for index, name in enumerate(LABELS)}})
        if has_report:
            path = self.root / "mimic-cxr" / folder / f"s{study}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = report if report is not None else REPORT.format(
                degree=("small", "moderate", "large")[study % 3], side=("left", "right")[study % 2], number=study)
            path.write_text(text, encoding="utf-8")
        return dicoms

    def write_tables(self, *, is_compressed: bool = True) -> None:
        """Write the CSV files of MIMIC-CXR-JPG and dataset.json."""
        for name, rows in (("metadata", self.metadata), ("split", self.splits), ("chexpert", self.labels)):
            text = pd.DataFrame(rows).to_csv(index=False)
            path = self.root / "mimic-cxr-jpg" / f"mimic-cxr-2.0.0-{name}.csv"
            if is_compressed:
                with gzip.GzipFile(f"{path}.gz", "wb", mtime=0) as file:
                    file.write(text.encode())
            else:
                path.write_text(text, encoding="utf-8")
        (self.root / "dataset.json").write_text(json.dumps({"name": "fixture", "credentialed": False}))

    def write_ms_cxr_t(self, pairs: list[tuple[str, str]]) -> None:
        """`pairs`: current and previous dicom id."""
        by_dicom = {row["dicom_id"]: row for row in self.metadata}
        rows = []
        for number, (current, previous) in enumerate(pairs):
            now, before = by_dicom[current], by_dicom[previous]
            folder = f"files/p{str(now['subject_id'])[:2]}/p{now['subject_id']}"
            rows.append({
                "dicom_id": f"{folder}/s{now['study_id']}/{current}",
                "previous_dicom_id": f"{folder}/s{before['study_id']}/{previous}",
                "study_id": now["study_id"], "previous_study_id": before["study_id"], "subject_id": now["subject_id"],
                **{f"{finding}_progression": ["improving", "stable", "worsening", ""][(number + index) % 4]
                   for index, finding in enumerate(("consolidation", "edema", "pleural_effusion", "pneumonia",
                                                    "pneumothorax"))}})
        target = self.root / "ms-cxr-t"
        target.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(target / "MS_CXR_T_temporal_image_classification_v1.0.0.csv", index=False)
        pd.DataFrame([("Effusion has grown.", "Larger effusion.", "paraphrase", "RadGraph"),
                      ("Effusion has grown.", "Smaller effusion.", "contradiction", "Swaps")],
                     columns=["sentence_1", "sentence_2", "category", "subset_name"]).to_csv(
            target / "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv", index=False)

    def write_ms_cxr(self, dicoms: list[str]) -> None:
        """One box an image: the left upper quarter."""
        folder = self.root / "ms-cxr"
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame([{"category_name": "Pleural Effusion", "label_text": "left effusion", "path": "",
                       "dicom_id": dicom, "split": "test", "x": 0, "y": 0, "w": self.width // 2, "h": self.height // 2,
                       "image_width": self.width, "image_height": self.height, "has_text": True}
                      for dicom in dicoms]).to_csv(folder / "MS_CXR_Local_Alignment_v1.0.0.csv", index=False)

    def write_rsna(self, num_patients: int = 6) -> None:
        """Every third patient is positive, with two boxes."""
        folder = self.root / "rsna"
        (folder / "stage_2_train_images").mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, object]] = []
        for number in range(num_patients):
            patient = f"{number:04d}-rsna"
            write_dicom(folder / "stage_2_train_images" / f"{patient}.dcm",
                        np.full((32, 32), 30 + number, dtype=np.uint8), view=("AP", "PA", None)[number % 3])
            if number % 3 == 0:
                rows += [{"patientId": patient, "x": x, "y": 8, "width": 8, "height": 16, "Target": 1} for x in (4, 20)]
            else:
                rows.append({"patientId": patient, "x": None, "y": None, "width": None, "height": None, "Target": 0})
        pd.DataFrame(rows).to_csv(folder / "stage_2_train_labels.csv", index=False)

    def write_covidx(self, num_images: int = 6) -> None:
        folder = self.root / "covidx"
        for split in ("train", "test"):
            (folder / split).mkdir(parents=True, exist_ok=True)
            lines = []
            for number in range(num_images):
                file = f"{split}-{number}.png"
                Image.fromarray(np.full((30, 20), 40 + number, dtype=np.uint8)).save(folder / split / file)
                lines.append(f"{split}{number} {file} {('normal', 'pneumonia', 'COVID-19')[number % 3]} rnsa")
            (folder / f"{split}_COVIDx9A.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_root(root: Path, num_patients: int = 12, seed: int = 0) -> RawWriter:
    """A root with all data sets: patients of 1 to 9 studies, some without lateral, some with two frontals."""
    rng = np.random.default_rng(seed)
    writer = RawWriter(root)
    pairs, frontals = [], []
    for number in range(num_patients):
        subject = 10000000 + number * 7
        split = ("train", "train", "train", "train", "validate", "test")[number % 6]
        previous = None
        for visit in range(int(rng.integers(1, 10))):
            views = [("PA", "AP")[int(rng.integers(2))]]
            if rng.random() < 0.3:
                views.append("AP")
            if rng.random() < 0.5:
                views += [("LL", "LATERAL")[int(rng.integers(2))]] * int(rng.integers(1, 3))
            dicoms = writer.add_study(subject, 50000000 + number * 100 + visit, views, date=f"2150{visit + 1:02d}15",
                                      split=split)
            frontals.append(dicoms[0])
            if previous is not None:
                pairs.append((dicoms[0], previous))
            previous = dicoms[0]
    writer.write_tables()
    writer.write_ms_cxr_t(pairs)
    writer.write_ms_cxr(frontals[:5])
    writer.write_rsna()
    writer.write_covidx()
    return writer
