"""Open-i, the Indiana University collection: PNG images, XML reports, one study a patient, no dates.

What lives here: the layout of the collection and of the two public tables that tell its views. What must not:
decoding of images, cleaning of reports.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from medst.data.readers.corpus import (
    START_OF_ORDER,
    Corpus,
    ReportSections,
    first_file,
    label_column,
    split_by_patient,
    without_labels,
)
from medst.data.readers.tables import DataError, find_optional_table, read_table

ORIGIN = ("the Indiana University collection of Open-i (https://openi.nlm.nih.gov/faq#collection: NLMCXR_png.tgz and "
          "NLMCXR_reports.tgz)")
VIEWS_ORIGIN = ("indiana_projections.csv of https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university, or "
                "nlmcxr_dicom_metadata.csv.gz of torchxrayvision (https://github.com/mlmed/torchxrayvision)")
_SECTIONS = ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")
_VIEW_OF_PROJECTION = {"FRONTAL": "PA", "LATERAL": "LATERAL", "PA": "PA", "AP": "AP", "LL": "LL", "RL": "LL"}
_LABEL_OF_TERM = {"atelectasis": "Atelectasis", "cardiomegaly": "Cardiomegaly", "consolidation": "Consolidation",
                  "pulmonary edema": "Edema", "pulmonary congestion": "Edema", "pleural effusion": "Pleural Effusion",
                  "pneumonia": "Pneumonia", "pneumothorax": "Pneumothorax", "opacity": "Lung Opacity",
                  "normal": "No Finding", "fractures, bone": "Fracture"}
"""First part of a MeSH heading of the annotators -> label; headings name what is there, never what is absent."""


def parse_report(content: bytes) -> tuple[str, dict[str, str], list[str], list[str]]:
    """One XML report.

    Returns:
        Patient ('CXR1003'), sections by lower-case name without the empty ones, image names, and MeSH headings. The
        XXXX that stands for removed words reads as MIMIC's ___.

    Raises:
        ElementTree.ParseError: not whole XML.
    """
    root = ElementTree.fromstring(content)
    identity = root.find("uId")
    patient = "" if identity is None else identity.get("id", "")
    sections = {}
    for text in root.iter("AbstractText"):
        words = (text.text or "").strip()
        if words and text.get("Label") in _SECTIONS:
            sections[str(text.get("Label")).lower()] = words.replace("XXXX", "___")
    images = [image.get("id", "") for image in root.iter("parentImage")]
    headings = [term.text.strip() for term in root.iter("major") if term.text]
    return patient, sections, images, headings


def read_open_i(images_folder: str | Path, reports: str | Path, tables: str | Path | None = None) -> Corpus:
    """Read the collection.

    Args:
        images_folder: with the PNG files, in it or in NLMCXR_png/ or images/images_normalized/, named
            CXR1003_IM-0005-2002.png or 1003_IM-0005-2002.dcm.png.
        reports: folder with the XML files, in it or in ecgen-radiology/; or NLMCXR_reports.tgz.
        tables: folder of the table of views, where it is not beside the images.

    Raises:
        DataError: a file is missing or broken.
    """
    folder = Path(images_folder)
    views = _read_views(Path(tables or folder))
    rows, labels, texts, problems = [], [], {}, []
    num_without_image = num_reports = 0
    for number, (name, content) in enumerate(_xml_files(Path(reports))):
        try:
            patient, sections, images, headings = parse_report(content)
        except ElementTree.ParseError as error:
            problems.append(f"report {number} is not whole XML and left out ({error})")
            continue
        num_reports += 1
        num_without_image += not images
        patient = patient or f"CXR{Path(name).stem}"
        texts[patient] = sections
        positive = {_LABEL_OF_TERM[term] for heading in headings
                    if (term := heading.split("/")[0].strip().lower()) in _LABEL_OF_TERM}
        labels.append({"study_id": patient, **{label_column(label): 1.0 for label in positive}})
        rows += [(image, patient, views.get(image, "")) for image in images]
    if not rows:
        raise DataError(f"{reports}: no XML report names an image; the reports are part of {ORIGIN}")
    images_table = pd.DataFrame(rows, columns=["dicom_id", "subject_id", "view"], dtype="str")
    images_table = images_table.assign(study_id=images_table["subject_id"], is_view_stated=True,
                                       row=range(len(images_table)))
    images_table = images_table.drop_duplicates("dicom_id")
    steps = [("reports", num_reports), ("reports that name an image", num_reports - num_without_image),
             ("images named in reports", len(images_table))]
    is_known = images_table["view"] != ""
    if not is_known.all():
        problems.append(f"{int((~is_known).sum())} images without a stated view are left out")
    images_table = images_table[is_known].reset_index(drop=True)
    steps.append(("images with a frontal or lateral view", len(images_table)))
    studies = pd.DataFrame({"subject_id": images_table["subject_id"].unique()}, dtype="str")
    studies = studies.assign(
        study_id=studies["subject_id"], time=pd.Series(START_OF_ORDER, studies.index).astype("datetime64[us]"),
        split=split_by_patient("open-i", studies["subject_id"], (("test", 20), ("validate", 10))))
    empty = without_labels(studies["study_id"]).set_index("study_id")
    known = pd.DataFrame(labels).set_index("study_id").reindex(index=empty.index, columns=empty.columns)
    studies = studies.merge(known.astype("float64").reset_index(), on="study_id", validate="one_to_one")
    studies = studies.sort_values(["subject_id", "time", "study_id"]).reset_index(drop=True)
    steps.append(("studies with such an image", len(studies)))
    places = [folder, folder / "NLMCXR_png", folder / "images" / "images_normalized", folder / "images_normalized"]
    present = [place for place in places if place.is_dir()] or places[:1]

    def paths(images: pd.DataFrame) -> list[str]:
        return [first_file(present, [f"{name}.png", f"{name.removeprefix('CXR')}.dcm.png"])
                for name in images["dicom_id"]]

    return Corpus(
        images_table[["dicom_id", "study_id", "subject_id", "view", "is_view_stated", "row"]], studies,
        ReportSections(texts), paths, "the images named in the reports", tuple(steps), tuple(problems),
        ("one study a patient and no date: no sequences, so no temporal loss",
         "splits are drawn by patient (70 / 10 / 20 percent): none is published",
         "labels are the annotators' MeSH headings: they say what is there, not what is absent"))


def _xml_files(place: Path) -> Iterator[tuple[str, bytes]]:
    """Reports by number, so that the order is that of the collection."""
    def number(name: str) -> tuple[int, str]:
        stem = Path(name).stem
        return (int(stem) if stem.isdigit() else 0, stem)

    if place.is_dir():
        archive = place / "NLMCXR_reports.tgz"
        folder = place / "ecgen-radiology" if (place / "ecgen-radiology").is_dir() else place
        files = sorted(folder.glob("*.xml"), key=lambda path: number(path.name))
        if files or not archive.is_file():
            if not files:
                raise DataError(f"{place}: no XML reports and no NLMCXR_reports.tgz; they are part of {ORIGIN}")
            for path in files:
                yield path.name, path.read_bytes()
            return
        place = archive
    try:
        with tarfile.open(place) as archive_file:
            members = [member for member in archive_file.getmembers() if member.name.endswith(".xml")]
            for member in sorted(members, key=lambda member: number(member.name)):
                file = archive_file.extractfile(member)
                assert file is not None, "members of a tar archive named .xml are files"
                yield member.name, file.read()
    except FileNotFoundError:
        raise DataError(f"{place}: no such file or folder; the reports are part of {ORIGIN}") from None
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{place}: not a whole archive ({error}); download {ORIGIN} again") from None


def _read_views(folder: Path) -> dict[str, str]:
    """View of each image by its name in the reports."""
    path = find_optional_table(folder, "indiana_projections.csv")
    if path is not None:
        frame = read_table(path, ["filename", "projection"])
        names = "CXR" + frame["filename"].str.removesuffix(".png").str.removesuffix(".dcm").str.removeprefix("CXR")
        stated = frame["projection"]
    else:
        path = find_optional_table(folder, "nlmcxr_dicom_metadata.csv")
        if path is None:
            raise DataError(f"{folder}: the reports do not say which image is frontal and which lateral; put one of "
                            f"these tables there: {VIEWS_ORIGIN}")
        frame = read_table(path, ["imageid", "View Position"])
        names, stated = frame["imageid"], frame["View Position"]
    views = stated.str.strip().str.upper().map(_VIEW_OF_PROJECTION)
    return dict(zip(names[views.notna()], views.dropna(), strict=True))
