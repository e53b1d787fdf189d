"""Readers and image decoding: published quirks, errors that name their remedy, and real files where they are."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from raw_files import RawWriter, write_dicom, write_root

from medst.data.images import ImageError, read_square, read_square_image, square_box, to_square
from medst.data.readers import (
    Corpus,
    DataError,
    read_covidx,
    read_mimic_cxr,
    read_ms_cxr,
    read_ms_cxr_t,
    read_rsna,
)
from medst.data.readers.covidx import read_split_file
from medst.data.readers.mimic_cxr import find_reports, group_views
from medst.data.readers.tables import line_of, numbers, read_table


@pytest.fixture(scope="module")
def real(repository: Path) -> Path:
    folder = Path(os.environ.get("MEDST_SHARED", repository.parent / "shared")) / "real"
    if not folder.is_dir():
        pytest.skip(f"NOT CHECKED against real files: no folder {folder} (MEDST_SHARED names another place)")
    return folder


def read_root(root: Path, **settings: object) -> Corpus:
    return read_mimic_cxr(root / "mimic-cxr-jpg", root / "mimic-cxr", **settings)


def reports_of(corpus: Corpus) -> dict[str, object]:
    """Report by study id."""
    return {corpus.studies["study_id"].iloc[row]: report for row, report in corpus.reports.read(corpus.studies)}


# MIMIC-CXR


def test_mimic_groups_images_to_studies_in_time_order(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    late = writer.add_study(10000001, 50000002, ["LL", "PA", "LATERAL", "AP"], date="21500302", time="80515.5")
    early = writer.add_study(10000001, 50000003, ["PA"], date="21500301", time="235959.123456")
    writer.add_study(10000001, 50000004, ["SWIMMERS"], date="21500303")
    writer.write_tables()
    mimic = read_root(tmp_path)
    assert mimic.studies["study_id"].tolist() == ["50000003", "50000002"]
    assert mimic.studies["time"].tolist() == [pd.Timestamp("2150-03-01 23:59:59.123456"),
                                              pd.Timestamp("2150-03-02 08:05:15.5")]
    grouped = group_views(mimic.images.assign(image=mimic.images["dicom_id"].map(
        {dicom: row for row, dicom in enumerate(late + early)}))).set_index("study_id")
    assert grouped.loc["50000002"].tolist() == [1, "PA", [3], 0, "LL"]
    assert grouped.loc["50000003"].tolist() == [4, "PA", [], -1, ""]
    assert dict(mimic.steps)["images with a frontal or lateral view"] == 5
    assert all(Path(path).is_file() for path in mimic.paths(mimic.images))
    assert "pleural effusion" in str(reports_of(mimic)["50000003"])


def test_mimic_plain_and_compressed_tables_read_alike(tmp_path: Path) -> None:
    for name, is_compressed in (("plain", False), ("compressed", True)):
        writer = RawWriter(tmp_path / name)
        writer.add_study(10000001, 50000001, ["PA", "LL"])
        writer.write_tables(is_compressed=is_compressed)
    plain, compressed = read_root(tmp_path / "plain"), read_root(tmp_path / "compressed")
    pd.testing.assert_frame_equal(plain.studies, compressed.studies)


def test_mimic_ids_stay_text_and_labels_are_numbers(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    writer.add_study(10000001, 50000001, ["PA"])
    writer.write_tables()
    studies = read_root(tmp_path).studies
    assert studies["subject_id"].tolist() == ["10000001"]
    # The fixture's labels go round 1, 0, -1, missing; study 50000001 begins at the second.
    assert studies[["label_atelectasis", "label_cardiomegaly", "label_edema"]].iloc[0].tolist() == [0.0, -1.0, 1.0]
    assert np.isnan(studies["label_consolidation"].iloc[0])


def test_a_frontal_of_unstated_view_counts_as_pa_where_other_tables_name_it(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    known, _ = writer.add_study(10000001, 50000001, ["", ""])
    writer.write_tables()
    assert len(read_root(tmp_path).images) == 0
    images = read_root(tmp_path, known_frontals={known}).images
    assert images[["dicom_id", "view", "is_view_stated"]].to_numpy().tolist() == [[known, "PA", False]]


def test_a_missing_report_is_missing_not_empty(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    writer.add_study(10000001, 50000001, ["PA"], has_report=False)
    writer.add_study(10000001, 50000002, ["PA"])
    writer.write_tables()
    assert set(reports_of(read_root(tmp_path))) == {"50000002"}


@pytest.mark.parametrize(("column", "value", "expected"), [
    ("StudyDate", "2150-01-01", "line 3: StudyDate='2150-01-01'"),
    ("StudyTime", "noon", "StudyTime='noon'"),
    ("dicom_id", "00000000-dicom", "line 3: dicom_id='00000000-dicom' is repeated"),
    ("study_id", None, "line 3: study_id=nan is empty"),
])
def test_a_bad_cell_is_named_with_its_line(tmp_path: Path, column: str, value: str | None, expected: str) -> None:
    writer = RawWriter(tmp_path)
    writer.add_study(10000001, 50000001, ["PA"])
    writer.add_study(10000001, 50000002, ["PA"])
    writer.metadata[1][column] = value
    writer.write_tables()
    with pytest.raises(DataError, match=expected):
        read_root(tmp_path)


def test_a_study_of_two_patients_is_named_with_its_line(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    writer.add_study(10000001, 50000001, ["PA", "LL"])
    writer.metadata[1]["subject_id"] = 10000002
    writer.write_tables()
    with pytest.raises(DataError, match=r"metadata\.csv\.gz, line 3: study_id='50000001' stands under two patients"):
        read_root(tmp_path)


def test_a_study_in_two_splits_is_named_with_its_line(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    writer.add_study(10000001, 50000001, ["PA", "LL", "LL"])
    writer.splits[2]["split"] = "test"
    writer.write_tables()
    with pytest.raises(DataError, match=r"split\.csv\.gz, line 4: study_id='50000001' stands in two splits"):
        read_root(tmp_path)


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_lines_are_those_of_the_file_where_cells_hold_line_breaks(tmp_path: Path, name: str) -> None:
    text = '\r\nid,number\r\n"two\r\nlines",1\r\n\r\n"more ""quoted""\n\nlines",2\r\n   \r\nbad,none\r\nlast,4'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    frame = read_table(path, ["id", "number"])
    assert len(frame) == 4
    with pytest.raises(DataError, match="line 10: number='none' is not a number"):
        numbers(path, frame, "number")
    assert line_of(path, frame, frame["id"] == "last") == 11
    assert line_of(path, frame, frame["number"] == "2") == 6
    assert line_of(path, frame, frame["number"] == "1") == 3


def test_missing_files_and_columns_name_their_source(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    writer.add_study(10000001, 50000001, ["PA"])
    writer.write_tables()
    folder = tmp_path / "mimic-cxr-jpg"
    metadata = folder / "mimic-cxr-2.0.0-metadata.csv.gz"
    text = gzip.decompress(metadata.read_bytes()).decode().replace("ViewPosition", "ViewPositon")
    metadata.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(DataError, match="'ViewPosition' is missing; the nearest one is 'ViewPositon'"):
        read_root(tmp_path)
    metadata.unlink()
    with pytest.raises(DataError, match=r"metadata\.csv.*no such file.*physionet\.org"):
        read_root(tmp_path)
    for name, read in (("ms-cxr-t", read_ms_cxr_t), ("ms-cxr", read_ms_cxr)):
        with pytest.raises(DataError, match=f"{name}.*physionet"):
            read(tmp_path / name)
    for read in (read_rsna, read_covidx):
        with pytest.raises(DataError, match="kaggle"):
            read(tmp_path)


def test_a_truncated_archive_is_reported(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    writer.add_study(10000001, 50000001, ["PA"])
    writer.write_tables()
    path = tmp_path / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="download the file again"):
        read_root(tmp_path)


# MS-CXR-T, MS-CXR


@pytest.mark.parametrize("name", ["mimic_cxr_sectioned.csv.gz", "mimic-cxr-reports.zip", "metadata"])
def test_a_broken_member_of_an_archive_names_the_archive(tmp_path: Path, name: str) -> None:
    """Flipped bytes inside the compressed part, which only decompression notices; and a lost end."""
    rng = np.random.default_rng(0)
    text = "".join(chr(letter) for letter in rng.integers(97, 123, 40_000))
    studies = pd.DataFrame({"subject_id": ["10000032"], "study_id": ["50414267"]})
    path = tmp_path / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("files/p10/p10000032/s50414267.txt", text)
    elif name == "metadata":
        path = tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz"
        path.write_bytes(gzip.compress(f"study,impression,findings\ns50414267,{text},a\n".encode()))
    else:
        path.write_bytes(gzip.compress(f"study,impression,findings\ns50414267,{text},a\n".encode()))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[200:240] = b"\xff" * 40
    broken = [bytes(flipped)] if name.endswith(".zip") else [bytes(flipped), whole[:-300]]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path.name}: not .*\("):
            if name == "metadata":
                read_table(path, ["study"])
            else:
                list(find_reports(path).read(studies))


def test_the_newest_release_of_ms_cxr_is_read_and_named(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    dicoms = writer.add_study(10000001, 50000001, ["PA", "AP"])
    writer.write_ms_cxr(dicoms)
    folder = tmp_path / "ms-cxr"
    first = read_ms_cxr(folder)
    assert (first.table, len(first.boxes)) == ("MS_CXR_Local_Alignment_v1.0.0.csv", 2)
    rows = pd.read_csv(folder / first.table)
    rows.iloc[:1].assign(split="val").to_csv(folder / "MS_CXR_Local_Alignment_v1.1.0.csv.gz", index=False)
    both = read_ms_cxr(folder)
    assert (both.table, both.boxes["dicom_id"].tolist()) == ("MS_CXR_Local_Alignment_v1.1.0.csv.gz", dicoms[:1])
    (folder / first.table).unlink()
    pd.testing.assert_frame_equal(read_ms_cxr(folder).boxes, both.boxes)


def test_ms_cxr_t_reads_paths_as_dicom_ids_and_counts_odd_labels(tmp_path: Path) -> None:
    writer = write_root(tmp_path, num_patients=3)
    path = tmp_path / "ms-cxr-t" / "MS_CXR_T_temporal_image_classification_v1.0.0.csv"
    frame = pd.read_csv(path, dtype=str)
    frame.loc[0, "edema_progression"] = "Progressing"
    frame.loc[0, "dicom_id"] += ".jpg"
    frame.to_csv(path, index=False)
    read = read_ms_cxr_t(tmp_path / "ms-cxr-t")
    dicoms = {row["dicom_id"] for row in writer.metadata}
    assert set(read.pairs["dicom_id"]) | set(read.pairs["previous_dicom_id"]) <= dicoms
    assert read.pairs.loc[0, "edema"] is None
    assert read.pairs.loc[0, "consolidation"] == "improving"
    assert read.problems == (f"{path.name}: 1 rows with edema_progression='progressing' are read as not judged",)
    assert read.sentences["category"].tolist() == ["paraphrase", "contradiction"]


def test_ms_cxr_refuses_a_box_outside_its_image(tmp_path: Path) -> None:
    write_root(tmp_path, num_patients=3)
    assert len(read_ms_cxr(tmp_path / "ms-cxr").boxes) == 5
    path = tmp_path / "ms-cxr" / "MS_CXR_Local_Alignment_v1.0.0.csv"
    frame = pd.read_csv(path)
    frame.loc[2, "x"] = 15
    frame.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"line 4: .* outside its image"):
        read_ms_cxr(tmp_path / "ms-cxr")


# RSNA


def test_rsna_gathers_the_boxes_of_a_patient(tmp_path: Path) -> None:
    RawWriter(tmp_path).write_rsna(num_patients=4)
    images = read_rsna(tmp_path / "rsna").images
    assert images["target"].tolist() == [1, 0, 0, 1]
    assert images["boxes"].iloc[0] == [[4.0, 8.0, 8.0, 16.0], [20.0, 8.0, 8.0, 16.0]]
    assert images["boxes"].iloc[1] == []


@pytest.mark.parametrize(("line", "expected"), [
    ("0000-rsna,,,,,0", "line 3: patientId='0000-rsna' has both targets"),
    ("other,1,2,,4,1", "positive and has no box"),
    ("other,1,2,a,4,1", "width='a' is not a number"),
    ("other,,,,,2", "Target='2' is no target"),
])
def test_rsna_contradictions_are_errors(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "rsna").mkdir()
    path = tmp_path / "rsna" / "stage_2_train_labels.csv"
    path.write_text(f"patientId,x,y,width,height,Target\n0000-rsna,1,2,3,4,1\n{line}\n")
    with pytest.raises(DataError, match=expected):
        read_rsna(tmp_path / "rsna")


# COVIDx


def test_covidx_rows_of_three_four_and_five_tokens(tmp_path: Path) -> None:
    path = tmp_path / "train_COVIDx7A.txt"
    path.write_text("uuid-1 uuid-1.png normal\n12 scan(1).jpeg pneumonia cohen\nCOVID 1 COVID(1).png COVID-19 sirm\n\n"
                    "r r.png normal rnsa\nCOVID-00039a COVID-00039a.jpg COVID-19 fig1\n"
                    "COVID-00039b COVID-00039b.jpg COVID-19 fig1\n")
    frame = read_split_file(path)
    assert frame["patient_id"].tolist() == ["uuid-1", "12", "COVID 1", "r", "COVID-00039", "COVID-00039"]
    assert frame["file"].tolist()[:3] == ["uuid-1.png", "scan(1).jpeg", "COVID(1).png"]
    assert frame["label"].tolist()[:4] == ["normal", "pneumonia", "COVID-19", "normal"]
    assert frame["source"].tolist()[:4] == ["", "cohen", "sirm", "rsna"]


def test_covidx_two_class_labels_are_never_renamed(tmp_path: Path) -> None:
    path = tmp_path / "test_COVIDx9B.txt"
    path.write_text("1 a.png positive ricord\n2 b.png negative rsna\n")
    assert read_split_file(path)["label"].tolist() == ["positive", "negative"]


def test_covidx_names_a_row_without_class_and_the_files_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "covidx"
    folder.mkdir()
    (folder / "train_COVIDx9B.txt").write_text("1 a.png healthy ricord\n")
    with pytest.raises(DataError, match=r"train_COVIDx9A\.txt: no such file.*there are: train_COVIDx9B\.txt"):
        read_covidx(tmp_path / "covidx")
    with pytest.raises(DataError, match=r"line 1: no class word in '1 a\.png healthy ricord'"):
        read_covidx(tmp_path / "covidx", version="9B")


def test_covidx_repeated_files_are_left_out_and_said(tmp_path: Path) -> None:
    RawWriter(tmp_path).write_covidx()
    path = tmp_path / "covidx" / "train_COVIDx9A.txt"
    path.write_text(path.read_text() + "other train-0.png normal\n")
    covidx = read_covidx(tmp_path / "covidx")
    assert len(covidx.images) == 12
    assert covidx.problems == ("train_COVIDx9A.txt: 1 repeated file names are left out",)


# Images


def test_a_wide_image_is_scaled_by_area_and_centred() -> None:
    grey = np.zeros((2, 8), dtype=np.uint8)
    grey[:, 0::2] = 100
    square = to_square(grey, 4)
    # Every output pixel is the mean of two by two; one row of image between zeros.
    assert square.tolist() == [[0] * 4, [50] * 4, [0] * 4, [0] * 4]


def test_an_image_of_the_right_size_is_untouched(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_square(tmp_path / "a.png", 24), pixels)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 40), st.data())
def test_a_box_follows_its_image_into_the_square(width: int, height: int, size: int, data: st.DataObject) -> None:
    whole = square_box(np.array([0, 0, width, height]), width, height, size) * size
    square = to_square(np.full((height, width), 255, dtype=np.uint8), size)
    rows, columns = np.nonzero(square)
    assert np.allclose(whole, [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1])
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    inner = square_box(np.array([x, y, 1, 1]), width, height, size) * size
    assert whole[0] - 1e-9 <= inner[0] and inner[0] + inner[2] <= whole[0] + whole[2] + 1e-9
    assert whole[1] - 1e-9 <= inner[1] and inner[1] + inner[3] <= whole[1] + whole[3] + 1e-9


def test_colour_palette_and_rotated_pictures(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "rgb.png")
    assert np.array_equal(read_square(tmp_path / "rgb.png", 8), grey)
    palette = Image.fromarray(255 - grey, mode=None).convert("L").convert("P")
    palette.putpalette([255 - value for value in range(256) for _ in range(3)])
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_square(tmp_path / "palette.png", 8), grey)
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: show the picture turned clockwise by a quarter.
    Image.fromarray(grey).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_square(tmp_path / "turned.png", 8), np.rot90(grey, -1))


def test_deep_pictures_use_the_range_that_occurs(tmp_path: Path) -> None:
    deep = np.array([[0, 1000], [2000, 4095]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_square(tmp_path / "deep.png", 2).tolist() == [[0, 62], [125, 255]]


def test_dicom_photometry(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    write_dicom(tmp_path / "two.dcm", grey)
    write_dicom(tmp_path / "one.dcm", grey, photometric="MONOCHROME1", view=None)
    write_dicom(tmp_path / "deep.dcm", np.array([[0, 2048], [1024, 4096]], dtype=np.uint16))
    write_dicom(tmp_path / "constant.dcm", np.full((4, 4), 7, dtype=np.uint16))
    two = read_square_image(tmp_path / "two.dcm", 8)
    assert np.array_equal(two.pixels, grey)
    assert (two.width, two.height, two.view) == (8, 8, "AP")
    one = read_square_image(tmp_path / "one.dcm", 8)
    assert np.array_equal(one.pixels, 255 - grey)
    assert one.view == ""
    assert read_square(tmp_path / "deep.dcm", 2).tolist() == [[0, 128], [64, 255]]
    assert read_square(tmp_path / "constant.dcm", 4).max() == 0


@pytest.mark.parametrize("name", ["absent.jpg", "absent.dcm", "text.jpg", "text.dcm", "cut.jpg", "empty.png"])
def test_unreadable_images_say_why(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("text"):
        path.write_text("no picture")
    elif name.startswith("empty"):
        path.touch()
    elif name.startswith("cut"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(ImageError, match="no such file" if name.startswith("absent") else "not a readable"):
        read_square(path, 8)


# Real files


def test_real_covidx_split_files(real: Path) -> None:
    folder = real / "covidx_sample" / "format_specimens"
    files = sorted(folder.glob("*.txt"))
    assert len(files) == 26
    for path in files:
        frame = read_split_file(path)
        assert len(frame) == sum(bool(line.strip()) for line in path.read_text().splitlines())
        expected = {"positive", "negative"} if path.stem.endswith(("B", "COVIDx6")) else (
            {"level1", "level2"} if path.stem.endswith("Sev") else {"normal", "pneumonia", "COVID-19"})
        assert set(frame["label"]) <= expected, path
        assert not frame["source"].isin(["rnsa", *expected]).any()
        assert frame["file"].str.contains(r"\.(?:png|jpe?g)$", case=False).all(), path


def test_real_covidx_images(real: Path) -> None:
    sample = real / "covidx_sample"
    sizes = pd.read_csv(sample / "sizes.csv").set_index("file")
    paths = sorted((sample / "images").iterdir())
    assert len(paths) == 37
    labelled = read_split_file(sample / "labels" / "train_COVIDx9A.txt")
    assert set(labelled["file"]) <= {path.name for path in paths}
    assert labelled["patient_id"].nunique() < len(labelled)
    for path in paths:
        image = read_square_image(path, 64)
        assert (image.width, image.height) == tuple(sizes.loc[path.name, ["w", "h"]])
        assert image.pixels.std() > 10, path


def test_real_rsna_files(real: Path) -> None:
    folder = real / "rsna_sample"
    table = pd.read_csv(folder / "stage_2_train_labels.csv")
    plain = read_square_image(next((folder / "stage_2_train_images").glob("*.dcm")), 128)
    assert (plain.width, plain.height) == (1024, 1024)
    assert 60 < plain.pixels.mean() < 200
    # The same pixel bytes with the other photometry, averaged before or after inversion.
    inverted = read_square(folder / "pathological" / "Fake_MONOHR1.dcm", 128)
    assert np.abs(255 - inverted.astype(int) - plain.pixels).max() <= 1
    assert read_square(folder / "pathological" / "himl_1_constant_16bit.dcm", 32).max() == 0
    assert len(table) == 200


def test_real_rsna_table(real: Path, tmp_path: Path) -> None:
    (tmp_path / "rsna").mkdir()
    (tmp_path / "rsna" / "stage_2_train_labels.csv").write_bytes(
        (real / "rsna_sample" / "stage_2_train_labels.csv").read_bytes())
    images = read_rsna(tmp_path / "rsna").images
    assert (len(images), int(images["target"].sum()), int(images["boxes"].map(len).sum())) == (159, 55, 96)
    assert images["boxes"].map(len).value_counts().to_dict() == {0: 104, 2: 37, 1: 16, 3: 2}


def test_real_pictures_of_other_sources(real: Path) -> None:
    paths = [path for path in sorted((real / "images_misc").rglob("*")) if path.suffix in (".png", ".jpg")]
    assert len(paths) == 7
    for path in paths:
        square = read_square(path, 64)
        assert square.shape == (64, 64) and square.std() > 10
