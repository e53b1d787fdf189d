"""The prepared store: content, atomic building, sharing, staleness, unreadable files."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_files import RawWriter, write_root

from medst.config import DataConfig
from medst.data import building
from medst.data.images import read_square
from medst.data.readers import DataError
from medst.data.store import Store, StoreError, open_store, prepare, store_path

SIZE = 24


def config(root: Path, **settings: object) -> DataConfig:
    return DataConfig.model_validate({"root": str(root), "image_size": SIZE, "crop_size": 16, **settings})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[RawWriter, Store]:
    root = tmp_path_factory.mktemp("data") / "root"
    writer = write_root(root)
    return writer, prepare(config(root), num_workers=2)


def test_every_image_stands_in_its_row(built: tuple[RawWriter, Store]) -> None:
    writer, store = built
    mimic = store.mimic
    assert mimic is not None and store.rsna is not None and store.covidx is not None
    assert mimic.images.shape == (len(mimic.views), SIZE, SIZE) and mimic.images.dtype == np.uint8
    for row in mimic.views.itertuples():
        path = (writer.root / "mimic-cxr-jpg" / "files" / f"p{row.subject_id[:2]}" / f"p{row.subject_id}"
                / f"s{row.study_id}" / f"{row.dicom_id}.jpg")
        assert np.array_equal(mimic.images[row.image], read_square(path, SIZE))
        assert (row.width, row.height) == (writer.width, writer.height)
    for row in store.rsna.table.itertuples():
        assert np.all(store.rsna.images[row.image] == 30 + int(row.patient_id[:4]))
    assert store.covidx.images.shape == (12, SIZE, SIZE)


def test_studies_are_by_patient_and_time_and_name_their_views(built: tuple[RawWriter, Store]) -> None:
    writer, store = built
    assert store.mimic is not None
    studies, views = store.mimic.studies, store.mimic.views.set_index("image")
    assert len(studies) == len({row["study_id"] for row in writer.metadata})
    keys = list(zip(studies["subject_id"], studies["time"], studies["study_id"], strict=True))
    assert keys == sorted(keys)
    metadata = pd.DataFrame(writer.metadata).astype({"study_id": str})
    for study in studies.itertuples():
        own = metadata[metadata["study_id"] == study.study_id]
        frontals = own[own["ViewPosition"].isin(["AP", "PA"])]
        laterals = own[own["ViewPosition"].isin(["LL", "LATERAL"])]
        assert views["dicom_id"][study.frontal] == frontals["dicom_id"].iloc[0]
        assert study.frontal_view == frontals["ViewPosition"].iloc[0]
        assert [views["dicom_id"][row] for row in study.other_frontals] == frontals["dicom_id"].tolist()[1:]
        assert (study.lateral >= 0) == (len(laterals) > 0)
        if len(laterals):
            assert views["dicom_id"][study.lateral] == laterals["dicom_id"].iloc[0]
            assert study.lateral_view == laterals["ViewPosition"].iloc[0]
        assert study.report_corrected and study.report_released
    # Second laterals are not kept.
    assert len(views) < len(metadata)


def test_pairs_and_boxes_point_at_their_images(built: tuple[RawWriter, Store]) -> None:
    _, store = built
    assert store.mimic is not None and store.rsna is not None
    assert store.ms_cxr_t is not None and store.ms_cxr is not None
    study_of = store.mimic.views.set_index("image")["study_id"]
    pairs = store.ms_cxr_t.pairs
    assert (pairs["image"].map(study_of) == pairs["study_id"]).all()
    assert (pairs["previous_image"].map(study_of) == pairs["previous_study_id"]).all()
    assert {None, "improving", "stable", "worsening"} == set(pairs["edema"])
    assert set(pairs["split"]) <= {"train", "validate", "test"}
    # 20 x 24 images: no padding above, (24 - 20) / 2 = 2 of 24 pixels on the left.
    assert store.ms_cxr.table[["x", "y", "w", "h"]].to_numpy() == pytest.approx(
        np.tile([2 / 24, 0, 10 / 24, 0.5], (5, 1)))
    assert np.stack(list(store.rsna.table["boxes"].iloc[0])) == pytest.approx(
        np.array([[4, 8, 8, 16], [20, 8, 8, 16]]) / 32)
    assert store.rsna.table["view"].tolist() == ["AP", "PA", "PA"] * 2
    assert store.rsna.table["is_view_stated"].tolist() == [True, True, False] * 2


def test_fingerprint_is_of_content_not_of_place_time_or_workers(tmp_path: Path) -> None:
    writer = write_root(tmp_path / "a", num_patients=6)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = prepare(config(tmp_path / "a"))
    second = prepare(config(tmp_path / "b", store=str(tmp_path / "elsewhere")), num_workers=3)
    assert first.fingerprint == second.fingerprint
    dicom = writer.metadata[0]["dicom_id"]
    path = next((tmp_path / "b").rglob(f"{dicom}.jpg"))
    Image.fromarray(np.full((24, 20), 255, dtype=np.uint8)).save(path)
    assert prepare(config(tmp_path / "b")).fingerprint != first.fingerprint


def test_a_second_call_only_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_root(tmp_path, num_patients=3)
    first = prepare(config(tmp_path))
    monkeypatch.setattr(building, "build", lambda *_, **__: pytest.fail("built again"))
    assert prepare(config(tmp_path)).fingerprint == first.fingerprint
    assert open_store(config(tmp_path)).fingerprint == first.fingerprint


def test_processes_that_come_together_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_root(tmp_path, num_patients=3)
    calls = []
    build = building.build
    monkeypatch.setattr(building, "build", lambda *arguments, **settings: (calls.append(1), build(*arguments))[1])
    with ThreadPoolExecutor(4) as executor:
        stores = list(executor.map(lambda _: prepare(config(tmp_path)), range(4)))
    assert len(calls) == 1
    assert len({store.fingerprint for store in stores}) == 1


def test_changed_raw_files_are_noticed(tmp_path: Path) -> None:
    writer = write_root(tmp_path, num_patients=3)
    first = prepare(config(tmp_path))
    os.utime(next(tmp_path.rglob("*metadata.csv.gz")), (1, 1))
    assert open_store(config(tmp_path)).fingerprint == first.fingerprint
    writer.add_study(19999999, 59999999, ["PA"])
    writer.write_tables()
    with pytest.raises(StoreError, match=r"raw files .* have changed"):
        open_store(config(tmp_path))
    assert prepare(config(tmp_path)).fingerprint != first.fingerprint


def test_changed_preparing_code_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_root(tmp_path, num_patients=3)
    prepare(config(tmp_path))
    monkeypatch.setattr("medst.data.store._preparation_fingerprint", lambda: "other")
    with pytest.raises(StoreError, match="code that prepares data has changed"):
        open_store(config(tmp_path))


def test_a_store_works_without_its_raw_files(tmp_path: Path) -> None:
    write_root(tmp_path / "root", num_patients=3)
    data = config(tmp_path / "root", store=str(tmp_path / "store"))
    first = prepare(data)
    shutil.rmtree(tmp_path / "root")
    assert prepare(data).fingerprint == first.fingerprint


def test_an_interrupted_build_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    write_root(tmp_path, num_patients=3)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path), step=lambda title: interrupt)
    assert not store_path(config(tmp_path)).exists()
    assert prepare(config(tmp_path)).mimic is not None


def test_progress_counts_every_image_once(tmp_path: Path) -> None:
    write_root(tmp_path, num_patients=6)
    seen: dict[str, list[tuple[int, int]]] = {}
    store = prepare(config(tmp_path), step=lambda title: lambda done, total: seen.setdefault(title, []).append(
        (done, total)))
    assert store.mimic is not None
    assert {title: told[-1] for title, told in seen.items()} == {
        "reports of mimic-cxr-jpg": (len(store.mimic.studies),) * 2,
        "images of mimic-cxr-jpg": (len(store.mimic.images),) * 2,
        "images of rsna": (6, 6), "images of covidx": (12, 12)}


def test_misplaced_and_misfitting_stores_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="medst data phantom"):
        prepare(config(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of mimic-cxr-jpg"):
        prepare(config(tmp_path / "empty"))
    write_root(tmp_path / "root", num_patients=3)
    prepare(config(tmp_path / "root"))
    place = str(tmp_path / "root" / f"store-{SIZE}")
    with pytest.raises(StoreError, match=r"24 pixels, data\.image_size is 32"):
        prepare(config(tmp_path / "root", store=place, image_size=32))
    (tmp_path / "notes").mkdir()
    with pytest.raises(StoreError, match="so it is no store"):
        prepare(config(tmp_path / "root", store=str(tmp_path / "notes")))
    with pytest.raises(StoreError, match="no prepared store"):
        open_store(config(tmp_path / "root", store=str(tmp_path / "other")))


def test_unreadable_images_are_skipped_and_listed_below_two_percent(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    for number in range(60):
        writer.add_study(10000000 + number, 50000000 + number, ["PA", "AP"] if number == 7 else ["PA"])
    writer.write_tables()
    bad = next(tmp_path.rglob("s50000007/*.jpg"))
    first = sorted(tmp_path.rglob("s50000007/*.jpg"))[0]
    assert bad.exists()
    first.write_bytes(b"no picture")
    store = prepare(config(tmp_path), num_workers=2)
    assert store.mimic is not None
    assert store.problems[["data_set", "item"]].to_numpy().tolist() == [["mimic", str(first.relative_to(tmp_path))]]
    assert "not a readable JPEG" in store.problems["reason"].iloc[0]
    assert len(store.mimic.images) == 60
    # The study lives on with its other frontal.
    study = store.mimic.studies[store.mimic.studies["study_id"] == "50000007"].iloc[0]
    assert study["frontal_view"] == "AP" and list(study["other_frontals"]) == []
    assert np.array_equal(store.mimic.images[study["frontal"]],
                          read_square(sorted(tmp_path.rglob("s50000007/*.jpg"))[1], SIZE))
    assert dict(store.steps)["studies with a readable frontal"] == 60


def test_more_unreadable_images_stop_the_preparation(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    for number in range(60):
        writer.add_study(10000000 + number, 50000000 + number, ["PA"])
    writer.write_tables()
    for path in sorted(tmp_path.rglob("*.jpg"))[:2]:
        path.unlink()
    with pytest.raises(DataError, match=r"2 of the first 60 images of mimic are unreadable.*\n.*no such file"):
        prepare(config(tmp_path))
    assert not store_path(config(tmp_path)).exists()


def test_steps_count_what_is_left_out(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    writer.add_study(10000001, 50000001, ["PA", "SWIMMERS"])
    writer.add_study(10000001, 50000002, ["LL"])
    writer.add_study(10000001, 50000003, ["PA"], has_report=False)
    writer.add_study(10000001, 50000004, ["PA"], report="FINAL REPORT\n FINDINGS:\n Normal.\n")
    writer.write_tables()
    assert list(prepare(config(tmp_path)).steps) == [
        ("images in the metadata", 5), ("images with a frontal or lateral view", 4), ("studies with such an image", 4),
        ("studies named in the split file", 4), ("studies with a report", 3),
        ("studies with a caption left after cleaning", 2), ("studies with a readable frontal", 1)]


def test_data_are_credentialed_unless_they_say_otherwise(tmp_path: Path) -> None:
    writer = write_root(tmp_path, num_patients=3)
    assert not prepare(config(tmp_path)).is_credentialed
    (writer.root / "dataset.json").unlink()
    store = prepare(config(tmp_path))
    assert store.is_credentialed and store.name == tmp_path.name
    (writer.root / "dataset.json").write_text('{"name": "x", "credentialed": "no"}')
    with pytest.raises(DataError, match=r"dataset\.json"):
        prepare(config(tmp_path))


def test_an_unfinished_phantom_is_refused(tmp_path: Path) -> None:
    write_root(tmp_path, num_patients=3)
    (tmp_path / "phantom.json").write_text(json.dumps({"complete": False}))
    with pytest.raises(DataError, match="not written to its end"):
        prepare(config(tmp_path))


def test_truth_is_joined_to_images_and_studies(tmp_path: Path) -> None:
    writer = write_root(tmp_path, num_patients=3)
    row = writer.metadata[0]
    (tmp_path / "truth").mkdir()
    pd.DataFrame([{
        "dicom_id": row["dicom_id"], "study_id": row["study_id"], "subject_id": row["subject_id"], "view": "PA",
        "finding": "edema", "severity": 0.5, "side": "left", "zone": "lower", "is_lateral_only": False, "x": 0.0,
        "y": 12.0, "w": 20.0, "h": 12.0}]).to_parquet(tmp_path / "truth" / "findings.parquet")
    pd.DataFrame([{"study_id": row["study_id"], "subject_id": row["subject_id"], "heart_size": 0.5, "sex": "F",
                   "age": 61}]).to_parquet(tmp_path / "truth" / "studies.parquet")
    mimic = prepare(config(tmp_path)).mimic
    assert mimic is not None and mimic.findings is not None and mimic.study_truth is not None
    finding = mimic.findings.iloc[0]
    assert mimic.views["dicom_id"][finding["image"]] == row["dicom_id"]
    assert [finding[name] for name in "xywh"] == pytest.approx([2 / 24, 0.5, 20 / 24, 0.5])
    study = mimic.studies.iloc[mimic.study_truth["study"].iloc[0]]
    assert (study["study_id"], study["sex"], study["age"]) == (str(row["study_id"]), "F", 61.0)
    assert np.isnan(mimic.studies["age"]).sum() == len(mimic.studies) - 1
