"""Collections that need no credentials, and the reports of real people: rows in the very forms of the originals."""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_files import write_dicom

from medst.config import load_config
from medst.data.images import read_square
from medst.data.readers import (
    DataError,
    read_chexpert_plus,
    read_covid_chestxray,
    read_covidx,
    read_open_i,
    read_rsna,
)
from medst.data.readers.covid_chestxray import parse_date
from medst.data.readers.open_i import parse_report
from medst.data.readers.tables import read_age, read_table
from medst.data.report_text import caption, clean, extract_sections
from medst.data.sources import Source
from medst.data.store import Store, prepare, prepare_set
from medst.data.support import limits
from medst.data.twins import join_twins

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION">XXXX-year-old with cough.</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">1. No acute disease. 2. XXXX nodule of 2.5 cm.</AbstractText>
</Abstract></Article></MedlineCitation><MeSH><major>{heading}</major></MeSH>{images}</eCitation>"""
COVID_COLUMNS = (
    "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,went_icu,in_icu,"
    "needed_supplemental_O2,extubated,temperature,pO2_saturation,leukocyte_count,neutrophil_count,lymphocyte_count,"
    "view,modality,date,location,folder,filename,doi,url,license,clinical_notes,other_notes,")


@pytest.fixture(scope="module")
def real(repository: Path) -> Path:
    folder = Path(os.environ.get("MEDST_SHARED", repository.parent / "shared")) / "real"
    if not folder.is_dir():
        pytest.skip(f"NOT CHECKED against real files: no folder {folder} (MEDST_SHARED names another place)")
    return folder


def picture(path: Path, level: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(np.arange(20, dtype=np.uint8) * 3 + level, (24, 1))).save(path)


def make(out: Path, name: str, source: Source) -> Store:
    return prepare_set(out, name, source, image_size=24, is_credentialed=False)


# Open-i


def write_open_i(root: Path, num_reports: int, *, is_kaggle: bool, is_packed: bool) -> None:
    """Reports 1, 2, ...: every third without FINDINGS, the last without image."""
    views, folder = [], root / "ecgen-radiology"
    folder.mkdir(parents=True)
    for number in range(1, num_reports + 1):
        names = [f"CXR{number}_IM-{number:04d}-{end}" for end in ("1001", "2001")] if number < num_reports else []
        for name, projection in zip(names, ("Frontal", "Lateral"), strict=False):
            file = f"{name.removeprefix('CXR')}.dcm.png" if is_kaggle else f"{name}.png"
            picture(root / ("images/images_normalized" if is_kaggle else "NLMCXR_png") / file, number)
            kaggle_name = f"{name.removeprefix('CXR')}.dcm.png"
            views.append(
                {"uid": number, "filename": kaggle_name, "projection": projection} if is_kaggle
                else {"imageid": name, "View Position": "PA" if projection == "Frontal" else "LL"})
        text = XML.format(number=number, findings="" if number % 3 == 0 else "The heart is normal. There is XXXX.",
                          heading="Pleural Effusion/left/small" if number % 2 else "normal",
                          images="".join(f'<parentImage id="{name}"/>' for name in names))
        (folder / f"{number}.xml").write_text(text)
    pd.DataFrame(views).to_csv(
        root / ("indiana_projections.csv" if is_kaggle else "nlmcxr_dicom_metadata.csv.gz"), index=False)
    if is_packed:
        with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as archive:
            archive.add(folder, "ecgen-radiology")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@pytest.mark.parametrize(("is_kaggle", "is_packed"), [(False, False), (True, True)])
def test_open_i(tmp_path: Path, is_kaggle: bool, is_packed: bool) -> None:
    root = tmp_path / "open-i"
    write_open_i(root, 40, is_kaggle=is_kaggle, is_packed=is_packed)
    corpus = read_open_i(root, root)
    assert [count for _, count in corpus.steps] == [40, 39, 78, 78, 39]
    assert all(Path(path).is_file() for path in corpus.paths(corpus.images))
    store = make(tmp_path / "store", "open-i", Source(str(root), str(root)))
    assert store.mimic is not None and store.corpus == "open-i"
    studies = store.mimic.studies.set_index("study_id")
    assert len(studies) == 39 and (studies["lateral"] >= 0).all()
    assert set(studies["lateral_view"]) == {"LATERAL" if is_kaggle else "LL"}
    assert studies.loc["CXR1", "report_corrected"] == "no acute disease nodule of 2.5 cm the heart is normal there is"
    assert studies.loc["CXR3", "report_corrected"] == "no acute disease nodule of 2.5 cm"
    assert studies.loc["CXR1", "label_pleural_effusion"] == 1.0
    assert np.isnan(studies.loc["CXR2", "label_pleural_effusion"])
    assert set(studies["split"]) == {"train", "validate", "test"}
    assert any("no temporal loss" in limit for limit in limits(store))
    # As a folder of a root, it is the same data.
    whole = prepare(load_config(overrides={"data.root": str(tmp_path), "data.image_size": 24, "data.crop_size": 16,
                                           "model.image.patch_size": 8}).data)
    assert whole.fingerprint == store.fingerprint


def test_open_i_without_a_table_of_views_says_where_to_get_one(tmp_path: Path) -> None:
    write_open_i(tmp_path, 3, is_kaggle=True, is_packed=False)
    (tmp_path / "indiana_projections.csv").unlink()
    with pytest.raises(DataError, match=r"which image is frontal.*indiana_projections\.csv.*kaggle"):
        read_open_i(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"XML reports.*openi\.nlm\.nih\.gov"):
        write_open_i(tmp_path / "b", 3, is_kaggle=True, is_packed=False)
        read_open_i(tmp_path / "b", tmp_path / "images")


# covid-chestxray-dataset


def covid_row(patient: object, offset: object, view: str, file: str, *, modality: str = "X-ray", date: str = "",
              finding: str = "Pneumonia/Viral/COVID-19", age: str = "65", notes: str = "", other: str = "") -> str:
    cells = [patient, offset, "M", age, finding, *[""] * 13, view, modality, f'"{date}"', "", "images", file, "", "",
             "CC BY", f'"{notes}"', f'"{other}"', ""]
    return ",".join(str(cell) for cell in cells)


def test_covid_chestxray(tmp_path: Path) -> None:
    rows = [
        covid_row(2, 5, "PA", "b.jpg", notes="Progressive infiltrate and consolidation."),
        covid_row(2, 0, "PA", "a.jpg", date="January 22, 2020", notes="An infiltrate in the left lung.", age="50+"),
        covid_row(2, 0, "L", "a-L.jpg", date="January 22, 2020", notes="An infiltrate in the left lung."),
        covid_row(2, 7, "Axial", "ct.jpg", modality="CT"),
        covid_row(3, "", "AP Supine", "c.png", date="Jan 5, 2020", other="Diffuse opacities of both lungs."),
        covid_row(3, "", "AP", "d.png", date="2020-01-02", notes="Lungs are quite clear.", finding="No Finding"),
        covid_row(4, "", "PA", "e.jpg", date="2020", notes="Severe disease of lungs."),
        covid_row(4, 3, "PA", "f.jpg", date="2020", notes="It is unknown which is first."),
        covid_row(5, "", "Coronal", "g.jpg"),
        covid_row(6, 1, "PA", "a.jpg", notes="A file name twice."),
    ]
    (tmp_path / "metadata.csv").write_text("\n".join([COVID_COLUMNS, *rows]) + "\n", encoding="utf-8")
    for name in ("a.jpg", "a-L.jpg", "b.jpg", "c.png", "d.png", "e.jpg"):
        picture(tmp_path / "images" / name)
    corpus = read_covid_chestxray(tmp_path)
    assert dict(corpus.steps) == {
        "rows of the metadata": 10, "radiographs (CT left out)": 9,
        "images with a frontal or lateral view, or none stated": 8,
        "images whose place in time is known or does not matter": 6, "studies": 5}
    assert corpus.problems == ("metadata.csv: 1 rows with a repeated file name are left out",
                               "1 images of patients whose studies cannot be ordered are left out")
    store = make(tmp_path / "store", "covid-chestxray", Source(str(tmp_path)))
    assert store.mimic is not None
    studies = store.mimic.studies
    assert studies["study_id"].tolist() == ["2-1", "2-2", "3-1", "3-2", "4-1"]
    views = store.mimic.views
    assert views["dicom_id"][studies["frontal"].iloc[0]] == "a.jpg"
    assert views["dicom_id"][studies["lateral"].iloc[0]] == "a-L.jpg"
    assert views["dicom_id"][studies["frontal"].iloc[2]] == "d.png"
    assert (studies["time"].diff().dt.days.iloc[[1, 3]] == [5, 3]).all()
    assert studies["report_corrected"].iloc[3] == "diffuse opacities of both lungs"
    assert studies["frontal_view"].iloc[3] == "AP"
    assert studies["age"].iloc[0] == 65.0 or studies["age"].iloc[0] == 50.0
    assert studies["label_pneumonia"].tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert any("they are no reports" in note for note in store.notes)


def test_covid_chestxray_keeps_the_first_study_of_patients_without_order(tmp_path: Path) -> None:
    rows = [
        # The first offset is stated, the last is not; a date without a day says nothing.
        covid_row(1, 5, "PA", "1a.jpg", date="2020"), covid_row(1, 5, "L", "1b.jpg", date="March 2020"),
        covid_row(1, 6, "PA", "1c.jpg"), covid_row(1, "", "PA", "1d.jpg"),
        # The first date is stated, another is not.
        covid_row(2, "", "PA", "2a.jpg", date="2020-01-02"), covid_row(2, "", "AP", "2b.jpg", date="Jan 2, 2020"),
        covid_row(2, "", "L", "2c.jpg", date="Jan 3, 2020"), covid_row(2, "", "L", "2d.jpg"),
        # No day at all: one frontal and one lateral.
        covid_row(3, "", "PA", "3a.jpg", date="2020"), covid_row(3, "", "AP", "3b.jpg", date="2020"),
        covid_row(3, "", "L", "3c.jpg"), covid_row(3, "", "L", "3d.jpg"),
        # The same offset, but other days.
        covid_row(4, 0, "PA", "4a.jpg", date="2020-01-02"), covid_row(4, 0, "L", "4b.jpg", date="2020-01-03"),
        covid_row(4, "", "L", "4c.jpg"),
    ]
    (tmp_path / "metadata.csv").write_text("\n".join([COVID_COLUMNS, *rows]) + "\n", encoding="utf-8")
    corpus = read_covid_chestxray(tmp_path)
    assert [name.removesuffix(".jpg") for name in corpus.images["dicom_id"]] == [
        "1a", "1b", "2a", "2b", "3a", "3c", "4a"]
    assert corpus.studies["study_id"].tolist() == ["1-1", "2-1", "3-1", "4-1"]


@pytest.mark.parametrize(("text", "expected"), [
    ("January 22, 2020", "2020-01-22"), ("Jan 2, 2020", "2020-01-02"), ("Sept. 5, 2020", "2020-09-05"),
    ("2020-03-12", "2020-03-12"), ("3/12/2020", "2020-03-12"), ("12 March 2020", "2020-03-12"), ("2020", None),
    ("March 2020", None), ("", None), (float("nan"), None)])
def test_dates_in_their_spellings(text: object, expected: str | None) -> None:
    assert parse_date(text) == (pd.Timestamp(expected) if expected else None)


def test_ages_in_their_spellings() -> None:
    assert [read_age(text) for text in ("50+", "early 40s", "67", "67+")] == [50.0, 40.0, 67.0, 67.0]
    assert np.isnan(read_age("")) and np.isnan(read_age(float("nan")))


# CheXpert Plus


def test_chexpert_plus(tmp_path: Path) -> None:
    rows = []

    def add(patient: int, study: int, order: object, views: list[tuple[str, str]], **cells: object) -> None:
        for number, (kind, device) in enumerate(views, start=1):
            name = f"{cells.get('split', 'train')}/patient{patient:05d}/study{study}/view{number}_{kind.lower()}"
            picture(tmp_path / "PNG" / f"{name}.png", 50 + len(rows))
            rows.append({
                "path_to_image": f"{name}.jpg", "path_to_dcm": f"{name}.dcm", "frontal_lateral": kind, "ap_pa": device,
                "deid_patient_id": f"patient{patient:05d}", "patient_report_date_order": order, "report": "",
                "section_narrative": "", "section_findings": "", "section_impression": "", "age": 61.0, "sex": "Male",
                "split": "train", **cells})

    # The number of a study is not its place in time.
    add(1, 1, 2, [("Frontal", "AP")], section_impression="1. Larger left effusion of 2.5 cm.")
    add(1, 2, 1, [("Frontal", "PA"), ("Lateral", "")], section_findings="Small left effusion is seen.")
    add(2, 1, 1, [("Frontal", "AP")], report="NARRATIVE:\nFINAL REPORT\n\nIMPRESSION:\n\n1. The lungs are clear.\n")
    add(3, 1, 1, [("Frontal", "AP")], split="valid", section_impression="There is no effusion.")
    add(4, 1, "", [("Frontal", "AP")], section_impression="There is no order.")
    pd.DataFrame(rows).to_csv(tmp_path / "df_chexpert_plus_240401.csv")
    (tmp_path / "chexbert_labels").mkdir()
    labels = {"path_to_image": rows[0]["path_to_image"], **dict.fromkeys(
        ("Atelectasis", "Cardiomegaly", "Consolidation", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
         "Lung Opacity", "No Finding", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices")),
        "Pleural Effusion": 1.0, "Edema": -1.0}
    (tmp_path / "chexbert_labels" / "impression_fixed.json").write_text(json.dumps(labels) + "\n")
    corpus = read_chexpert_plus(tmp_path)
    assert corpus.problems == ("1 images without patient_report_date_order are left out",)
    store = make(tmp_path / "store", "chexpert-plus", Source(str(tmp_path)))
    assert store.mimic is not None
    studies = store.mimic.studies.set_index("study_id")
    assert studies.index.tolist() == ["patient00001-study2", "patient00001-study1", "patient00002-study1",
                                      "patient00003-study1"]
    assert studies["report_corrected"].tolist() == [
        "small left effusion is seen", "larger left effusion of 2.5 cm", "the lungs are clear", "there is no effusion"]
    assert studies["frontal_view"].tolist() == ["PA", "AP", "AP", "AP"]
    assert (studies["lateral"] >= 0).tolist() == [True, False, False, False]
    assert studies["split"].tolist()[3] == "test" and set(studies["split"].iloc[:3]) <= {"train", "validate"}
    assert studies.loc["patient00001-study1", "label_pleural_effusion"] == 1.0
    assert studies.loc["patient00001-study1", "label_edema"] == -1.0
    assert studies["label_edema"].notna().sum() == 1
    assert (studies["age"] == 61.0).all() and (studies["sex"] == "M").all()
    assert any("taken as published" in note for note in store.notes)


def test_chexpert_plus_table_of_windows(tmp_path: Path) -> None:
    picture(tmp_path / "PNG" / "train" / "patient00001" / "study1" / "view1_frontal.png")
    pd.DataFrame([{
        "path_to_image": "train/patient00001/study1/view1_frontal.jpg", "frontal_lateral": "Frontal", "ap_pa": "AP",
        "deid_patient_id": "patient00001", "patient_report_date_order": 1, "report": "", "section_findings": "",
        "section_impression": "The patient’s left lung is clear.", "age": 61.0, "sex": "Male", "split": "train"}]
    ).to_csv(tmp_path / "df_chexpert_plus_240401.csv", encoding="cp1252")
    corpus = read_chexpert_plus(tmp_path)
    assert list(corpus.reports.read(corpus.studies)) == [(0, {"impression": "The patient’s left lung is clear."})]


# Tables apart from the images


@pytest.mark.parametrize("name", ["open-i", "covid-chestxray", "chexpert-plus"])
def test_tables_may_lie_apart_from_the_images(tmp_path: Path, name: str) -> None:
    images, tables = tmp_path / "images", tmp_path / "tables"
    images.mkdir()
    tables.mkdir()
    if name == "open-i":
        write_open_i(images, 6, is_kaggle=True, is_packed=False)
        moved = ["indiana_projections.csv"]
    elif name == "covid-chestxray":
        picture(images / "images" / "a.jpg")
        (images / "metadata.csv").write_text("\n".join([COVID_COLUMNS, covid_row(
            2, 0, "PA", "a.jpg", notes="An infiltrate in the left lung.")]) + "\n")
        moved = ["metadata.csv"]
    else:
        path = "train/patient00001/study1/view1_frontal"
        picture(images / f"{path}.png")
        pd.DataFrame([{
            "path_to_image": f"{path}.jpg", "frontal_lateral": "Frontal", "ap_pa": "AP", "deid_patient_id": "patient1",
            "patient_report_date_order": 1, "report": "IMPRESSION:\nThe lungs are quite clear.", "split": "train"}]
        ).to_csv(images / "df_chexpert_plus_240401.csv")
        moved = ["df_chexpert_plus_240401.csv"]
    beside = make(tmp_path / "beside", name, Source(str(images), str(images) if name == "open-i" else ""))
    for file in moved:
        (images / file).rename(tables / file)
    apart = make(tmp_path / "apart", name, Source(str(images), str(images) if name == "open-i" else "", str(tables)))
    assert apart.fingerprint == beside.fingerprint and apart.mimic is not None and len(apart.mimic.images)


# Real files


def test_real_metadata_that_is_not_utf8(real: Path, tmp_path: Path) -> None:
    # Names of columns hold a space and a slash.
    frame = read_table(real / "covidx_sample" / "figure1_metadata.csv",
                       ["patientid", "age", "notes", "pO2 saturation", "artifacts/distortion", "view", "finding"])
    assert frame["view"].isna().sum() == 37 and frame["finding"].isna().sum() == 15
    assert len(frame) == 55
    assert frame["notes"].str.contains("°").any() and frame["notes"].str.contains("’").any()
    ages = frame["age"].map(read_age)
    assert ages.notna().sum() == 55 - 26 and {50.0, 67.0, 40.0} <= set(ages)


def test_real_series_become_sequences(real: Path, tmp_path: Path) -> None:
    metadata = (real / "covidx_sample" / "figure1_metadata.csv").read_bytes().splitlines(keepends=True)
    series = pd.read_csv(real / "figure1_series" / "series.csv")
    wanted = {Path(file).stem for file in series["file"]}
    kept = [line for line in metadata[1:] if line.split(b",")[0].decode() in wanted]
    (tmp_path / "metadata.csv").write_bytes(b"".join([metadata[0], *kept]))
    (tmp_path / "images").symlink_to(real / "figure1_series" / "images")
    store = make(tmp_path / "store", "covid-chestxray", Source(str(tmp_path)))
    assert store.mimic is not None and len(store.problems) == 0
    views = store.mimic.views
    assert len(views) <= 13
    for patient, rows in store.mimic.studies.groupby("subject_id"):
        names = [views["dicom_id"][row] for row in rows["frontal"]]
        own = series[series["patientid"] == patient]
        expected = [Path(file).stem for file in own.sort_values("order")["file"] if Path(file).stem in set(names)]
        assert names == expected, patient


def test_real_twins_are_one_patient(real: Path) -> None:
    paths = sorted((real / "covidx_sample" / "images").iterdir())
    squares = np.stack([read_square(path, 256) for path in paths])
    names, num_twins = join_twins(squares, pd.Series([path.stem for path in paths], dtype="str"))
    changed = {path.stem: name for path, name in zip(paths, names, strict=True) if path.stem != name}
    assert changed == {"COVID-00037": "COVID-00033"} and num_twins == 1


def test_real_two_class_files_are_refused(real: Path, tmp_path: Path) -> None:
    labels = real / "covidx_sample" / "labels"
    for split in ("train", "test"):
        (tmp_path / f"{split}_COVIDx9B.txt").write_bytes((labels / f"{split}_COVIDx7B.txt").read_bytes())
    with pytest.raises(DataError, match="three classes"):
        read_covidx(tmp_path, version="9B")


def test_real_covidx_store(real: Path, tmp_path: Path) -> None:
    labels = real / "covidx_sample" / "labels"
    (tmp_path / "train_COVIDx5.txt").write_bytes((labels / "train_COVIDx5.txt").read_bytes())
    (tmp_path / "test_COVIDx5.txt").write_bytes((labels / "test_COVIDx5.txt").read_bytes())
    (tmp_path / "images").symlink_to(real / "covidx_sample" / "images")
    store = make(tmp_path / "store", "covidx", Source(str(tmp_path), version="5"))
    assert store.covidx is not None and len(store.covidx.table) == 36
    assert store.covidx.table["split"].value_counts().to_dict() == {"train": 25, "test": 11}
    assert "the same radiograph" in store.problems["reason"].iloc[0]


def test_real_dicom_makes_an_rsna_store(real: Path, tmp_path: Path) -> None:
    sample = real / "rsna_sample"
    (tmp_path / "stage_2_train_images").mkdir()
    dicom = next((sample / "stage_2_train_images").glob("*.dcm"))
    rows = ["patientId,x,y,width,height,Target"]
    for patient, path in ((dicom.stem, dicom), ("fake", sample / "pathological" / "Fake_MONOHR1.dcm"),
                          ("constant", sample / "pathological" / "himl_1_constant_16bit.dcm")):
        (tmp_path / "stage_2_train_images" / f"{patient}.dcm").symlink_to(path)
        rows += [f"{patient},100,200,300,400,1"] * 2 if patient == dicom.stem else [f"{patient},,,,,0"]
    (tmp_path / "stage_2_train_labels.csv").write_text("\n".join(rows))
    store = make(tmp_path / "store", "rsna", Source(str(tmp_path)))
    assert store.rsna is not None
    table = store.rsna.table
    assert table["patient_id"].tolist() == [dicom.stem, "fake", "constant"] and table["target"].tolist() == [1, 0, 0]
    # The row stood there twice, word for word: one box.
    assert len(table["boxes"].iloc[0]) == 1
    assert np.allclose(np.stack(list(table["boxes"].iloc[0])), np.array([[100, 200, 300, 400]]) / 1024)
    difference = 255 - store.rsna.images[1].astype(int) - store.rsna.images[0]
    assert np.abs(difference).max() <= 1 and store.rsna.images[2].max() == 0


def test_a_dicom_of_two_frames_is_listed_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "stage_2_train_images"
    folder.mkdir()
    for number in range(60):
        write_dicom(folder / f"{number}.dcm", np.full((8, 8), number, dtype=np.uint8))
    (folder / "7.dcm").write_bytes((folder / "7.dcm").read_bytes()[:400])
    rows = "".join(f"{number},,,,,0\n" for number in range(60))
    (tmp_path / "stage_2_train_labels.csv").write_text(f"patientId,x,y,width,height,Target\n{rows}")
    assert len(read_rsna(tmp_path).images) == 60
    store = make(tmp_path / "store", "rsna", Source(str(tmp_path)))
    assert len(store.problems) == 1 and "not a readable DICOM" in store.problems["reason"].iloc[0]


def test_real_reports_survive_as_plain_text(real: Path) -> None:
    """The plain text is rebuilt from the labelled sections, the sections are found again."""
    num_sections = num_captions = 0
    unequal = []
    for path in sorted((real / "reports_sample").glob("*.xml")):
        _, truth, _, _ = parse_report(path.read_bytes())
        page = "                                 FINAL REPORT\n" + "\n".join(
            f" {name.upper()}:\n \n {text}\n " for name, text in truth.items())
        found = extract_sections(page)
        for name, text in truth.items():
            num_sections += 1
            if " ".join(found.get(name, "").split()) != " ".join(text.split()):
                unequal.append(name)
        for behaviour in ("released", "corrected"):
            num_captions += caption(found, behaviour) == caption(truth, behaviour)
    # One section holds a line that looks like a heading; what a model reads is equal everywhere.
    assert num_sections == 1109 and len(unequal) == 1 and unequal[0] not in ("findings", "impression")
    assert num_captions == 600


def test_real_reports_have_empty_sections_and_any_number_of_images(real: Path) -> None:
    """The counts of the folder's own description, which was made without this reader."""
    reports = [parse_report(path.read_bytes()) for path in sorted((real / "reports_sample").glob("*.xml"))]
    assert len(reports) == len({patient for patient, _, _, _ in reports}) == 300
    empty = {name: sum(name not in sections for _, sections, _, _ in reports)
             for name in ("findings", "impression", "comparison")}
    assert empty == {"findings": 41, "impression": 0, "comparison": 44}
    counts = pd.Series([len(images) for _, _, images, _ in reports]).value_counts().to_dict()
    assert counts == {2: 235, 1: 36, 3: 20, 0: 9}
    # What was removed reads as in MIMIC-CXR; in findings or impression of 135 reports.
    assert not any("XXXX" in text for _, sections, _, _ in reports for text in sections.values())
    assert sum("___" in f"{sections.get('findings')} {sections.get('impression')}"
               for _, sections, _, _ in reports) == 135


def test_real_numbers_and_units_survive_corrected_cleaning(real: Path) -> None:
    num_found = 0
    for path in sorted((real / "reports_sample").glob("*.xml")):
        for text in ElementTree.fromstring(path.read_bytes()).iter("AbstractText"):
            words = text.text or ""
            for number, unit in re.findall(r"(?<![\d.])(\d+\.\d+)\s?(cm|mm)\b", words):
                num_found += 1
                assert f"{number} {unit}" in clean(words, "corrected").replace(f"{number}{unit}", f"{number} {unit}")
    assert num_found == 6
