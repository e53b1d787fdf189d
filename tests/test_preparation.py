"""Preparing data sets that lie apart: places, kills, verifying, adding, selection, what data cannot support."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from PIL import Image
from raw_files import RawWriter, write_dicom, write_root
from typer.testing import CliRunner

from medst.cli import app
from medst.config import Config, DataConfig, load_config
from medst.data import building, image_array
from medst.data.image_array import journal_of, write_array
from medst.data.images import read_square
from medst.data.inspect import describe_selection, inspect
from medst.data.loader import TrainLoader
from medst.data.readers import DataError
from medst.data.selection import count_selection
from medst.data.sources import Source, Sources
from medst.data.splits import seen_by_trial
from medst.data.store import Store, StoreError, open_store, prepare, prepare_set, verify
from medst.data.support import SupportError, check_support, limits, missing_tasks
from medst.data.tokenizer import build_tokenizer
from medst.data.twins import join_twins
from medst.data.workers import Workers

SIZE = 24


def mimic_source(root: Path, reports: Path | None = None, **settings: object) -> Source:
    return Source(str(root / "mimic-cxr-jpg"), str(reports or root / "mimic-cxr"), **settings)


def make(out: Path, name: str, source: Source, *, is_credentialed: bool = False, **settings: object) -> Store:
    return prepare_set(out, name, source, image_size=SIZE, is_credentialed=is_credentialed, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file; places differ between folders and are blanked."""
    return {path.name: path.read_bytes().replace(str(folder.parent).encode(), b"")
            for path in sorted(folder.iterdir()) if path.is_file()}


def small_config(**settings: object) -> Config:
    overrides = {"data.image_size": SIZE, "data.crop_size": 16, "model.image.patch_size": 8,
                 "training.pairs_per_batch": 4, "data.vocabulary_size": 200, **settings}
    return load_config(overrides=overrides)


# Places


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a folder", "in a folder", "sectioned", "sectioned.gz"])
def test_reports_give_the_same_captions_in_whatever_form_they_come(tmp_path: Path, form: str) -> None:
    write_root(tmp_path / "raw", num_patients=6)
    expected = make(tmp_path / "expected", "mimic-cxr-jpg", mimic_source(tmp_path / "raw"))
    texts = sorted((tmp_path / "raw" / "mimic-cxr").rglob("*.txt"))
    place = tmp_path / "reports"
    if form == "folder":
        shutil.copytree(tmp_path / "raw" / "mimic-cxr" / "files", place / "mimic-cxr-reports" / "files")
    elif form.startswith("sectioned"):
        rows = []
        for path in texts:
            body = path.read_text()
            findings, impression = body.split("FINDINGS:")[1].split("IMPRESSION:")
            rows.append({"study": path.stem, "impression": impression.strip(), "findings": findings.strip(),
                         "last_paragraph": "", "comparison": "___."})
        place.mkdir()
        table = pd.DataFrame(rows).iloc[::-1].to_csv(index=False).replace("\n", "\r\n").encode("utf-8-sig")
        name = "mimic_cxr_sectioned.csv"
        (place / name).write_bytes(table) if form == "sectioned" else (place / f"{name}.gz").write_bytes(
            gzip.compress(table))
    else:
        place.mkdir()
        archive_path = place / "mimic-cxr-reports.zip"
        with zipfile.ZipFile(archive_path, "w") as archive:
            for path in texts:
                inner = path.relative_to(tmp_path / "raw" / "mimic-cxr").as_posix()
                archive.write(path, f"mimic-cxr-reports/{inner}" if form == "zip with a folder" else inner)
        place = place if form == "in a folder" else archive_path
    store = make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path / "raw", place))
    assert store.fingerprint == expected.fingerprint


@pytest.mark.parametrize("layout", ["without files/", "one folder", "png", "tables apart"])
def test_images_are_found_in_other_trees(tmp_path: Path, layout: str) -> None:
    write_root(tmp_path / "raw", num_patients=3)
    root = tmp_path / "raw" / "mimic-cxr-jpg"
    expected = make(tmp_path / "expected", "mimic-cxr-jpg", mimic_source(tmp_path / "raw"))
    tables = ""
    if layout == "without files/":
        for path in list((root / "files").iterdir()):
            path.rename(root / path.name)
    elif layout == "one folder":
        for path in list((root / "files").rglob("*.jpg")):
            path.rename(root / path.name)
    elif layout == "png":
        for path in list((root / "files").rglob("*.jpg")):
            Image.open(path).save(path.with_suffix(".png"))
            path.unlink()
    else:
        tables = str(tmp_path / "tables")
        Path(tables).mkdir()
        for path in list(root.glob("*.csv.gz")):
            path.rename(Path(tables) / path.name)
    store = make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path / "raw", tables=tables))
    assert store.fingerprint == expected.fingerprint


@pytest.mark.parametrize(("name", "pattern"), [("rsna", "*.csv"), ("covidx", "*.txt")])
def test_tables_of_tasks_may_lie_apart_from_the_images(tmp_path: Path, name: str, pattern: str) -> None:
    write_root(tmp_path / "raw", num_patients=1)
    images, tables = tmp_path / "raw" / name, tmp_path / "tables"
    beside = make(tmp_path / "beside", name, Source(str(images)))
    tables.mkdir()
    for path in list(images.glob(pattern)):
        path.rename(tables / path.name)
    apart = make(tmp_path / "apart", name, Source(str(images), tables=str(tables)))
    assert apart.fingerprint == beside.fingerprint and len(apart.problems) == 0


def test_a_partial_download_is_refused_unless_it_is_said_to_be_one(tmp_path: Path) -> None:
    writer = write_root(tmp_path / "raw", num_patients=12)
    lost = sorted((tmp_path / "raw" / "mimic-cxr-jpg").rglob("*.jpg"))[::2]
    for path in lost:
        path.unlink()
    with pytest.raises(DataError, match="--partial"):
        make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path / "raw"))
    store = make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path / "raw", is_partial=True))
    assert dict(store.steps)["images that are there"] == len(writer.metadata) - len(lost)
    assert store.mimic is not None and len(store.problems) == 0
    assert set(store.mimic.views["dicom_id"]).isdisjoint(path.stem for path in lost)


def test_negbio_labels_serve_where_chexpert_is_absent(tmp_path: Path) -> None:
    write_root(tmp_path / "raw", num_patients=3)
    table = tmp_path / "raw" / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-chexpert.csv.gz"
    table.rename(table.with_name("mimic-cxr-2.0.0-negbio.csv.gz"))
    store = make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path / "raw"))
    assert any("NegBio" in note for note in store.notes)
    assert store.mimic is not None and store.mimic.studies["label_edema"].notna().any()
    table.with_name("mimic-cxr-2.0.0-negbio.csv.gz").unlink()
    with pytest.raises(DataError, match=r"chexpert\.csv.*nor.*negbio.*physionet"):
        make(tmp_path / "other", "mimic-cxr-jpg", mimic_source(tmp_path / "raw"))


def test_data_sets_added_one_by_one_make_the_store_of_a_root(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    write_root(root, num_patients=12)
    whole = prepare(DataConfig(root=str(root), image_size=SIZE, crop_size=16))
    out = tmp_path / "store"
    with pytest.raises(DataError, match="mimic-cxr-jpg is missing"):
        make(out, "ms-cxr-t", Source(str(root / "ms-cxr-t")))
    make(out, "rsna", Source(str(root / "rsna")))
    make(out, "mimic-cxr-jpg", mimic_source(root))
    inode = (out / "rsna_images.npy").stat().st_ino
    for name in ("ms-cxr-t", "ms-cxr", "covidx"):
        store = make(out, name, Source(str(root / name)))
    assert store.fingerprint == whole.fingerprint
    assert (out / "rsna_images.npy").stat().st_ino == inode, "what was there is not made again"
    assert verify(out) == [] and verify(whole.path) == []
    # Both forms are what a config may name as its root.
    assert open_store(DataConfig(root=str(out), image_size=SIZE, crop_size=16)).fingerprint == whole.fingerprint
    with pytest.raises(StoreError, match="24 pixels"):
        open_store(DataConfig(root=str(out)))


def test_images_are_decoded_once_when_tables_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "raw"
    writer = write_root(root, num_patients=12)
    hidden = writer.add_study(19999999, 59999999, [""], split="test")[0]
    writer.write_tables()
    writer.write_ms_cxr_t([(hidden, writer.metadata[0]["dicom_id"])])
    out = tmp_path / "store"
    first = make(out, "mimic-cxr-jpg", mimic_source(root))
    decoded: list[str] = []
    decode = image_array.decode_block
    monkeypatch.setattr(image_array, "decode_block", lambda paths, size: (
        decoded.extend(paths), decode(paths, size))[1])
    second = make(out, "ms-cxr-t", Source(str(root / "ms-cxr-t")))
    assert [Path(path).stem for path in decoded] == [hidden]
    assert first.mimic is not None and second.mimic is not None
    assert len(second.mimic.images) == len(first.mimic.images) + 1
    for row in second.mimic.views.itertuples():
        path = next((root / "mimic-cxr-jpg").rglob(f"{row.dicom_id}.jpg"))
        assert np.array_equal(second.mimic.images[row.image], read_square(path, SIZE))
    # Nothing is asked for that is not there already.
    make(out, "ms-cxr-t", Source(str(root / "ms-cxr-t")))
    assert len(decoded) == 1


# Kills


def test_an_array_goes_on_from_any_state_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_array, "IMAGES_PER_BLOCK", 4)
    rng = np.random.default_rng(0)
    paths = []
    for number in range(18):
        paths.append(str(tmp_path / f"{number}.png"))
        if number != 6:
            Image.fromarray(rng.integers(0, 256, (9, 7), dtype=np.uint8)).save(paths[-1])

    def write(target: Path) -> bytes:
        write_array(target, len(paths), 8, lambda start, stop: paths[start:stop], Workers(1), lambda content: None)
        return target.read_bytes()

    whole = tmp_path / "whole.npy"
    expected = write(whole)
    assert np.load(whole).shape == (17, 8, 8)
    log = journal_of(whole).read_bytes()
    for case in range(60):
        target = tmp_path / "cut.npy"
        # Either file may have lost its end, or carry bytes that never reached the other.
        target.write_bytes(expected[:int(rng.integers(0, len(expected) + 1))] + b"\7" * int(rng.integers(0, 90)))
        journal_of(target).write_bytes(log[:int(rng.integers(0, len(log) + 1))])
        assert write(target) == expected, case


def test_a_file_that_was_mended_after_a_kill_is_read(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path in paths[:2]:
        Image.fromarray(np.full((8, 8), 9, dtype=np.uint8)).save(path)
    target = tmp_path / "a.npy"

    def write() -> list[tuple[int, str]]:
        content = write_array(target, 3, 8, lambda start, stop: paths[start:stop], Workers(1), lambda content: None)
        return content.failures

    assert write() == [(2, "no such file")]
    Image.fromarray(np.full((8, 8), 5, dtype=np.uint8)).save(paths[2])
    assert write() == []
    assert np.load(target)[:, 0, 0].tolist() == [9, 9, 5]


KILLED = """
import sys
from pathlib import Path
from medst.data import captions, image_array
from medst.data.sources import Source
from medst.data.store import prepare_set
image_array.IMAGES_PER_BLOCK = 3
captions.REPORTS_PER_BLOCK = 4
root, out = Path(sys.argv[1]), Path(sys.argv[2])
prepare_set(out, "mimic-cxr-jpg", Source(str(root / "mimic-cxr-jpg"), str(root / "mimic-cxr")), image_size=512,
            is_credentialed=False)
"""


def test_killed_at_any_moment_the_end_is_the_same_bit_for_bit(tmp_path: Path, repository: Path) -> None:
    write_root(tmp_path / "raw", num_patients=20)
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "raw"), str(out)], env=environment)

    def progress(partial: Path) -> int:
        """Blocks that the unfinished store has on disk."""
        journal = journal_of(partial / "mimic_images.npy")
        lines = journal.read_bytes().count(b"\n") if journal.is_file() else 0
        return lines + len(list(partial.glob("captions/part-*")))

    undisturbed = tmp_path / "one" / "store"
    assert start(undisturbed).wait() == 0
    out = tmp_path / "two" / "store"
    partial = out.with_name(".store.partial")
    num_blocks, kills = 0, 0
    for wanted in (1, 9, 20):
        process = start(out)
        while process.poll() is None and (progress(partial) < wanted if partial.is_dir() else True):
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        assert progress(partial) >= num_blocks or out.is_dir(), "work was lost"
        num_blocks = progress(partial) if partial.is_dir() else 0
    assert kills >= 2, "the preparation was over before it could be killed"
    assert start(out).wait() == 0
    assert contents(out) == contents(undisturbed)
    assert verify(out) == []


# Files that change


class Decoded(list[str]):
    """Names of the images that were decoded; cleared by `taken`."""

    def taken(self) -> list[str]:
        names = sorted(Path(path).stem for path in self)
        self.clear()
        return names


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    found, decode = Decoded(), image_array.decode_block
    monkeypatch.setattr(image_array, "decode_block", lambda paths, size: (found.extend(paths), decode(paths, size))[1])
    return found


def test_a_partial_download_is_taken_further_by_the_same_command(tmp_path: Path, decoded: Decoded) -> None:
    root = tmp_path / "raw"
    write_root(root, num_patients=12)
    apart = tmp_path / "apart"
    late = sorted((root / "mimic-cxr-jpg").rglob("*.jpg"))[::3]
    for path in late:
        (apart / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        path.rename(apart / path.relative_to(root))
    out, source = tmp_path / "store", mimic_source(root, is_partial=True)
    first = make(out, "mimic-cxr-jpg", source)
    decoded.taken()
    assert make(out, "mimic-cxr-jpg", source).fingerprint == first.fingerprint and decoded.taken() == []
    for path in late:
        (apart / path.relative_to(root)).rename(path)
    second = make(out, "mimic-cxr-jpg", source)
    again = decoded.taken()
    assert first.mimic is not None and again
    assert set(again).isdisjoint(first.mimic.views["dicom_id"]), "what was there is not decoded again"
    whole = make(tmp_path / "whole", "mimic-cxr-jpg", mimic_source(root, is_partial=True))
    assert second.fingerprint == whole.fingerprint != first.fingerprint and verify(out) == []


def test_mended_images_are_read_by_the_same_command(tmp_path: Path, decoded: Decoded) -> None:
    writer = RawWriter(tmp_path)
    for number in range(60):
        writer.add_study(10000000 + number, 50000000 + number, ["PA"])
    writer.write_tables()
    expected = make(tmp_path / "expected", "mimic-cxr-jpg", mimic_source(tmp_path))
    path = next(tmp_path.rglob("s50000007/*.jpg"))
    whole, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=times)
    out, data = tmp_path / "store", DataConfig(root=str(tmp_path), image_size=SIZE, crop_size=16)
    broken = make(out, "mimic-cxr-jpg", mimic_source(tmp_path))
    cache = prepare(data)
    decoded.taken()
    assert len(broken.problems) == len(cache.problems) == 1
    assert len(make(out, "mimic-cxr-jpg", mimic_source(tmp_path)).problems) == 1 and decoded.taken() == []
    # Neither size nor time of change tell that it is another file.
    path.write_bytes(whole)
    os.utime(path, ns=times)
    mended = make(out, "mimic-cxr-jpg", mimic_source(tmp_path))
    assert mended.fingerprint == expected.fingerprint and len(mended.problems) == 0
    assert decoded.taken() == [path.stem]
    # A data root does the same when it is asked to look at all files; opening does not look.
    assert len(prepare(data).problems) == 1 and decoded.taken() == []
    followed = prepare(data, check_files=True)
    assert followed.fingerprint == expected.fingerprint and decoded.taken() == [path.stem]
    assert prepare(data, check_files=True).fingerprint == expected.fingerprint and decoded.taken() == []


def test_a_trial_opens_a_store_without_a_walk_over_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_root(tmp_path, num_patients=1)
    data = DataConfig(root=str(tmp_path), image_size=SIZE, crop_size=16)
    first = prepare(data)
    monkeypatch.setattr("medst.data.inventory.os.walk", lambda *_, **__: pytest.fail("walked"))
    assert prepare(data).fingerprint == open_store(data).fingerprint == first.fingerprint


def test_new_and_changed_reports_are_read_by_the_same_command(tmp_path: Path, decoded: Decoded) -> None:
    writer = write_root(tmp_path, num_patients=3)
    path = sorted((tmp_path / "mimic-cxr").rglob("*.txt"))[0]
    text = path.read_text()
    path.unlink()
    out = tmp_path / "store"
    first = make(out, "mimic-cxr-jpg", mimic_source(tmp_path))
    assert first.mimic is not None and len(first.mimic.studies) == len({row["study_id"] for row in writer.metadata}) - 1
    path.write_text(text)
    second = make(out, "mimic-cxr-jpg", mimic_source(tmp_path))
    assert second.mimic is not None and len(second.mimic.studies) == len(first.mimic.studies) + 1
    path.write_text(text.replace("heart", "trees"))
    decoded.taken()
    third = make(out, "mimic-cxr-jpg", mimic_source(tmp_path))
    assert third.mimic is not None and decoded.taken() == []
    assert third.mimic.studies["report_corrected"].str.contains("trees").sum() == 1


def test_pixels_are_those_of_the_tree_that_is_named_and_of_the_file_as_it_is(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path / "raw")
    dicom = writer.add_study(10000001, 50000001, ["PA"])[0]
    writer.write_tables()
    shutil.copytree(tmp_path / "raw", tmp_path / "other", copy_function=shutil.copy2)
    out = tmp_path / "store"

    def change(root: Path, level: int, *, is_as_old: bool) -> None:
        path = next(root.rglob(f"{dicom}.jpg"))
        before = path.stat()
        Image.fromarray(np.full((24, 20), level, dtype=np.uint8)).save(path, quality=95)
        path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
        assert path.stat().st_size == before.st_size
        if is_as_old:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def level_of(store: Store) -> int:
        assert store.mimic is not None
        return int(store.mimic.images[0, 12, 12])

    first = level_of(make(out, "mimic-cxr-jpg", mimic_source(tmp_path / "raw")))
    change(tmp_path / "other", 200, is_as_old=True)
    second = level_of(make(out, "mimic-cxr-jpg", mimic_source(tmp_path / "other")))
    assert abs(first - 20) <= 2 and abs(second - 200) <= 2
    change(tmp_path / "other", 100, is_as_old=False)
    assert abs(level_of(make(out, "mimic-cxr-jpg", mimic_source(tmp_path / "other"))) - 100) <= 2


def test_changed_tables_of_tasks_are_read_whatever_the_order_of_commands(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    RawWriter(root).write_rsna()
    RawWriter(root).write_covidx()
    (root / "covidx" / "train_COVIDx9A.txt").write_text(
        "0003-rsna train-0.png normal rsna\nb train-1.png pneumonia rsna\n")
    rsna, covidx = Source(str(root / "rsna")), Source(str(root / "covidx"))
    out = tmp_path / "store"
    make(out, "covidx", covidx)
    make(out, "rsna", rsna)
    mapping = root / "rsna" / "pneumonia-challenge-dataset-mappings_2018.json"
    mapping.write_text(json.dumps([{"subset_img_id": f"{number:04d}-rsna", "img_id": f"0000{number}_000.png"}
                                   for number in range(6)]))
    store = make(out, "rsna", rsna)
    assert store.rsna is not None and store.covidx is not None
    assert store.rsna.table["patient_id"].tolist() == [f"nih-0000{number}" for number in range(6)]
    assert "nih-00003" in set(store.covidx.table["patient_id"])
    make(tmp_path / "other", "rsna", rsna)
    assert make(tmp_path / "other", "covidx", covidx).fingerprint == store.fingerprint
    # A corrected table.
    table = root / "rsna" / "stage_2_train_labels.csv"
    table.write_text(table.read_text().replace("0001-rsna,,,,,0", "0001-rsna,1,2,3,4,1"))
    corrected = make(out, "rsna", rsna)
    assert corrected.rsna is not None and corrected.rsna.table["target"].tolist() == [1, 1, 0, 1, 0, 0]
    # A changed image of one data set; the other is left as it is.
    inode = (out / "covidx_images.npy").stat().st_ino
    write_dicom(root / "rsna" / "stage_2_train_images" / "0002-rsna.dcm", np.full((32, 32), 99, dtype=np.uint8))
    changed = make(out, "rsna", rsna)
    assert changed.rsna is not None and int(changed.rsna.images[2, 0, 0]) == 99
    assert (out / "covidx_images.npy").stat().st_ino == inode and verify(out) == []


def test_a_table_that_changes_while_it_is_prepared_is_read_by_the_next_command(tmp_path: Path) -> None:
    root, out = tmp_path / "raw", tmp_path / "store"
    RawWriter(root).write_rsna()
    sources = Sources("store", False, {"rsna": Source(str(root / "rsna"))})
    table, as_read = root / "rsna" / "stage_2_train_labels.csv", sources.signatures()

    def correct_the_table(title: str) -> Callable[[int, int], None]:
        table.write_text(table.read_text().replace("0001-rsna,,,,,0", "0001-rsna,1,2,3,4,1"))
        return lambda done, total: None

    def signatures() -> dict[str, str]:
        return dict(json.loads((out / "manifest.json").read_text(encoding="utf-8"))["signatures"])

    first = make(out, "rsna", sources.sets["rsna"], step=correct_the_table)
    assert first.rsna is not None and first.rsna.table["target"].tolist() == [1, 0, 0, 1, 0, 0]
    assert signatures() == as_read != sources.signatures()
    second = make(out, "rsna", sources.sets["rsna"])
    assert second.rsna is not None and second.rsna.table["target"].tolist() == [1, 1, 0, 1, 0, 0]
    assert signatures() == sources.signatures()


def test_a_stopped_call_never_writes_into_the_finished_store(tmp_path: Path) -> None:
    """The array of RSNA is a link to that of the finished store when the call is stopped and RSNA changes."""
    root, out = tmp_path / "raw", tmp_path / "store"
    write_root(root, num_patients=3)
    make(out, "rsna", Source(str(root / "rsna")))

    def stop_at(words: str) -> Callable[[str], Callable[[int, int], None]]:
        def step(title: str) -> Callable[[int, int], None]:
            if words in title:
                raise KeyboardInterrupt
            return lambda done, total: None

        return step

    with pytest.raises(KeyboardInterrupt):
        make(out, "covidx", Source(str(root / "covidx")), step=stop_at("covidx"))
    partial = out.with_name(".store.partial")
    assert (partial / "rsna_images.npy").stat().st_ino == (out / "rsna_images.npy").stat().st_ino
    write_dicom(root / "rsna" / "stage_2_train_images" / "0002-rsna.dcm", np.full((32, 32), 99, dtype=np.uint8))
    with pytest.raises(KeyboardInterrupt):
        make(out, "covidx", Source(str(root / "covidx")), step=stop_at("covidx"))
    assert verify(out) == []
    store = make(out, "covidx", Source(str(root / "covidx")))
    assert store.rsna is not None and int(store.rsna.images[2, 0, 0]) == 99 and verify(out) == []


def test_what_was_allowed_for_a_data_set_holds_when_another_is_added(tmp_path: Path) -> None:
    root, out = tmp_path / "raw", tmp_path / "store"
    write_root(root, num_patients=12)
    sorted((root / "mimic-cxr-jpg").rglob("*.jpg"))[0].write_bytes(b"")
    sorted((root / "mimic-cxr-jpg").rglob("*.jpg"))[5].write_bytes(b"")
    with pytest.raises(DataError, match=r"complete the download, or allow it with --partial \(absent images\) or"):
        make(out, "mimic-cxr-jpg", mimic_source(root))
    make(out, "mimic-cxr-jpg", mimic_source(root, largest_unreadable=0.2))
    assert make(out, "ms-cxr-t", Source(str(root / "ms-cxr-t"))).ms_cxr_t is not None
    # Asked for anew with less, it is refused; the store stays.
    with pytest.raises(DataError, match="unreadable"):
        make(out, "mimic-cxr-jpg", mimic_source(root))
    assert verify(out) == []
    with pytest.raises(DataError, match="prepare each data set by its name, where --partial"):
        prepare(DataConfig(root=str(root), image_size=SIZE, crop_size=16))


# Kills at the end


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


def test_killed_at_any_step_of_the_end_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      decoded: Decoded) -> None:
    """A store of RSNA gets MIMIC-CXR; the call dies before each change of files that follows the tables and images."""
    root = tmp_path / "raw"
    write_root(root, num_patients=2)
    before = tmp_path / "before" / "store"
    make(before, "rsna", Source(str(root / "rsna")))
    expected = tmp_path / "expected" / "store"
    shutil.copytree(before, expected)
    make(expected, "mimic-cxr-jpg", mimic_source(root))
    build, write_inventory = building.build, building.write_inventory
    for point in itertools.count():
        out = tmp_path / str(point) / "store"
        shutil.copytree(before, out)
        left: list[int] = []

        def dying(function: Callable[..., object], left: list[int] = left) -> Callable[..., object]:
            def call(*arguments: object, **settings: object) -> object:
                if left:
                    left[0] -= 1
                    if left[0] < 0:
                        raise Killed
                return function(*arguments, **settings)

            return call

        with monkeypatch.context() as patch:
            # From the last file of the build on.
            patch.setattr(building, "write_inventory", lambda *arguments, left=left, point=point: (
                left.append(point), write_inventory(*arguments))[1])
            for owner, name in ((os, "replace"), (shutil, "rmtree"), (Path, "unlink"), (Path, "write_text")):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            patch.setattr(building, "build", dying(build))
            try:
                make(out, "mimic-cxr-jpg", mimic_source(root))
                break
            except Killed:
                pass
        decoded.taken()
        assert make(out, "mimic-cxr-jpg", mimic_source(root)).rsna is not None, point
        assert decoded.taken() == [], f"{point}: images were decoded again"
        assert contents(out) == contents(expected), point
        assert verify(out) == [] and sorted(path.name for path in out.parent.iterdir()) in (
            ["store"], ["store", "store.lock"]), point
    assert point >= 8


# Verifying, credentials, problems


@pytest.mark.parametrize(("name", "expected"), [
    ("mimic_images.npy", "content has changed"), ("mimic_studies.parquet", "content has changed"),
    ("rsna.parquet", "missing")])
def test_damage_is_found(tmp_path: Path, name: str, expected: str) -> None:
    write_root(tmp_path, num_patients=3)
    path = prepare(DataConfig(root=str(tmp_path), image_size=SIZE, crop_size=16)).path
    assert verify(path) == []
    if expected == "missing":
        (path / name).unlink()
    else:
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(bytes(data))
    assert len(verify(path)) == 1 and expected in verify(path)[0] and name in verify(path)[0]
    with pytest.raises(StoreError, match="no store"):
        verify(tmp_path / "rsna")


def test_kept_lists_of_credentialed_data_name_rows(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    for number in range(60):
        writer.add_study(10000000 + number, 50000000 + number, ["PA"])
    writer.write_tables()
    next(tmp_path.rglob("s50000007/*.jpg")).write_bytes(b"")
    store = make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path), is_credentialed=True)
    assert store.problems["item"].tolist() == ["row 7 of mimic-cxr-2.0.0-metadata.csv"]
    written = store.problems.to_json() + inspect(store.path)
    assert "50000007" not in written and "10000007" not in written and "00000007-dicom" not in written


def test_the_share_of_unreadable_images_is_the_users(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    for number in range(20):
        writer.add_study(10000000 + number, 50000000 + number, ["PA"])
    writer.write_tables()
    for path in sorted(tmp_path.rglob("*.jpg"))[:3]:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="3 of the first 20 images"):
        make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path))
    store = make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path, largest_unreadable=0.2))
    assert len(store.problems) == 3 and store.mimic is not None and len(store.mimic.images) == 17


def test_tables_of_spreadsheets_read_alike(tmp_path: Path) -> None:
    """Byte-order mark, CRLF, rows without any value, rows twice."""
    for name in ("plain", "odd"):
        writer = RawWriter(tmp_path / name)
        for number in range(3):
            writer.add_study(10000001, 50000001 + number, ["PA", "LL"], date=f"2150010{number + 1}")
        writer.write_tables(is_compressed=False)
    for path in (tmp_path / "odd" / "mimic-cxr-jpg").glob("*.csv"):
        head, first, *rest = path.read_text().splitlines()
        lines = [head, first, "," * head.count(","), *rest, first]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    for path in (tmp_path / "odd" / "mimic-cxr").rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    plain, odd = (make(tmp_path / f"{name}-store", "mimic-cxr-jpg", mimic_source(tmp_path / name))
                  for name in ("plain", "odd"))
    assert plain.fingerprint == odd.fingerprint
    assert odd.problems["reason"].tolist() == [
        "mimic-cxr-2.0.0-metadata.csv: 1 rows are repeated word for word and left out"]


def test_studies_without_a_date_and_at_one_minute(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    for study, date in ((50000003, "21500101"), (50000001, "21500101"), (50000002, ""), (50000004, "21491231")):
        writer.add_study(10000001, study, ["PA"], date=date, time="93014.531")
    writer.write_tables()
    store = make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path))
    assert store.mimic is not None
    assert store.mimic.studies["study_id"].tolist() == ["50000004", "50000001", "50000003"]
    assert "1 studies without a date" in store.problems["reason"].iloc[0]
    assert dict(store.steps)["studies with a date"] == 3


def test_one_radiograph_under_two_ids_makes_one_patient() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 16, 16), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    noisy = np.clip(pictures[1].astype(int) + rng.integers(-2, 3, (64, 64)), 0, 255).astype(np.uint8)
    squares = np.stack([*pictures, noisy, np.full((64, 64), 7, np.uint8), np.full((64, 64), 7, np.uint8)])
    names, num_twins = join_twins(squares, pd.Series(["a", "b", "c", "b", "d", "e", "f"], dtype="str"))
    assert names.tolist() == ["a", "b", "c", "b", "b", "e", "f"] and num_twins == 1


# Selection


def test_selection_by_hand(tmp_path: Path) -> None:
    images = pd.DataFrame(
        [("p1", "s1", "PA"), ("p1", "s1", "AP"), ("p1", "s1", "LL"), ("p1", "s2", "PA"), ("p1", "s3", "AP"),
         ("p1", "s4", "PA"), ("p2", "s5", "PA"), ("p3", "s6", "LATERAL"), ("p4", "s7", "PA"), ("p5", "s8", "AP")],
        columns=["subject_id", "study_id", "view"])
    studies = pd.DataFrame({"study_id": [f"s{number}" for number in range(1, 9)],
                            "split": ["train"] * 6 + ["test", "train"]})
    has_caption = np.array([[True, True]] * 7 + [[True, False]])
    is_readable = np.array([True] * 6 + [False] + [True] * 3)
    counted = count_selection(images, studies, has_caption, is_readable, frozenset({"p1"}))
    assert counted["as published"] == [
        ("with a frontal or lateral view", 5, 8, 10), ("readable", 4, 7, 9), ("of a study in the split file", 4, 7, 9),
        ("frontal images", 3, 6, 7), ("with a caption of three words or more", 3, 6, 7), ("training split", 2, 5, 6),
        ("in windows of 4 images", 1, 3, 4)]
    assert counted["corrected"] == [
        ("with a frontal or lateral view", 5, 8, 10), ("readable", 4, 7, 9), ("of a study in the split file", 4, 7, 9),
        ("of a study with a frontal", 3, 6, 8), ("with a caption of three words or more", 2, 5, 7),
        ("training split", 1, 4, 6), ("patients without MS-CXR-T and MS-CXR", 0, 0, 0),
        ("in windows of 4 studies", 0, 0, 0)]
    # Each rule asks its own cleaning: the last study has no released caption, now no corrected one.
    swapped = count_selection(images, studies, has_caption[:, ::-1], is_readable, frozenset({"p1"}))
    assert swapped["as published"][4] == ("with a caption of three words or more", 2, 5, 6)
    assert swapped["corrected"][4] == ("with a caption of three words or more", 3, 6, 8)
    without = count_selection(images, studies, has_caption, is_readable, frozenset())
    assert without["corrected"][-1] == ("in windows of 4 studies", 1, 4, 6)


def test_selection_is_kept_and_printed(tmp_path: Path) -> None:
    write_root(tmp_path, num_patients=12)
    store = prepare(DataConfig(root=str(tmp_path), image_size=SIZE, crop_size=16))
    assert json.loads((store.path / "manifest.json").read_text())["selection"].keys() == {"as published", "corrected"}
    printed = "\n".join(describe_selection(store.selection))
    assert "patients without MS-CXR-T and MS-CXR" in printed and printed in inspect(store.path)
    assert store.mimic is not None
    train = store.mimic.studies[store.mimic.studies["split"] == "train"]
    counted = {step: studies for step, _, studies, _ in store.selection["corrected"]}
    assert counted["training split"] == len(train)


def test_an_unreadable_image_moves_no_other_in_the_published_splits(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path / "raw")
    writer.write_rsna(60)
    writer.write_covidx(60)
    folders = {name: Source(str(tmp_path / "raw" / name)) for name in ("rsna", "covidx")}
    columns = ["patient_id", "published_split", "published_order", "published_percent"]

    def tables(place: Path) -> list[pd.DataFrame]:
        for name, source in folders.items():
            store = make(place, name, source)
        assert store.rsna is not None and store.covidx is not None
        return [store.rsna.table[columns[:2]].set_index("patient_id"),
                store.covidx.table[columns].set_index("patient_id")]

    whole = tables(tmp_path / "whole")
    assert whole[0]["published_split"].value_counts().to_dict() == {"train": 42, "validate": 9, "test": 9}
    assert whole[1]["published_split"].value_counts().to_dict() == {"train": 48, "validate": 12, "test": 60}
    (tmp_path / "raw/rsna/stage_2_train_images/0011-rsna.dcm").write_bytes(b"")
    (tmp_path / "raw/covidx/train/train-5.png").write_bytes(b"")
    for before, after, lost in zip(whole, tables(tmp_path / "broken"), ("0011-rsna", "train5"), strict=True):
        pd.testing.assert_frame_equal(after, before.drop(index=lost))


def test_patients_of_absent_images_are_judged_and_counted_as_such(tmp_path: Path) -> None:
    writer = write_root(tmp_path / "raw", num_patients=12)
    frontal = next(row for row in writer.metadata if row["ViewPosition"] in ("AP", "PA"))
    writer.write_ms_cxr([str(frontal["dicom_id"])])
    next((tmp_path / "raw" / "mimic-cxr-jpg").rglob(f"{frontal['dicom_id']}.jpg")).unlink()
    make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path / "raw", is_partial=True))
    store = make(tmp_path / "store", "ms-cxr", Source(str(tmp_path / "raw" / "ms-cxr")))
    assert store.ms_cxr is not None and len(store.ms_cxr.table) == 0
    assert store.ms_cxr.patients == {str(frontal["subject_id"])}
    seen = seen_by_trial(store, DataConfig())
    assert seen.mimic is not None
    trained = seen.mimic.studies[seen.mimic.studies["split"] == "train"]
    assert str(frontal["subject_id"]) not in set(trained["subject_id"])
    counted = {step: studies for step, _, studies, _ in store.selection["corrected"]}
    assert counted["patients without MS-CXR-T and MS-CXR"] == len(trained)


# What a store cannot support


def test_what_the_data_lack_is_said_and_refused_before_training(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    for number in range(12):
        writer.add_study(10000001 + number, 50000001 + number, ["PA"], split="train" if number < 9 else "test")
    writer.write_tables()
    store = make(tmp_path / "store", "mimic-cxr-jpg", mimic_source(tmp_path))
    said = "\n".join(limits(store))
    for words in ("no temporal loss", "no lateral views", "RSNA"):
        assert words in said and words in inspect(store.path)
    assert set(missing_tasks(store)) == {"temporal_image", "sentence_similarity", "grounding", "rsna_zero_shot",
                                         "covidx_linear", "finding_zero_shot", "retrieval"}
    tokenizer = build_tokenizer(store, small_config().data, "corrected")
    with pytest.raises(SupportError, match=r"the most is 1.*objective\.lambda_temporal=0"):
        TrainLoader(store, tokenizer, small_config())
    with pytest.raises(SupportError, match=r"no training study has a lateral view.*num_experts=1"):
        check_support(store, small_config(**{"objective.lambda_temporal": 0.0}))
    fitting = small_config(**{"objective.lambda_temporal": 0.0, "model.experts.num_experts": 1})
    check_support(store, fitting)
    assert len(TrainLoader(store, tokenizer, fitting)) == 2
    check_support(store, small_config(**{"objective.lambda_temporal": 0.0, "data.views": "frontal"}))
    check_support(store, small_config(**{"training.epochs": 0.0}))


# Commands


def test_the_commands_prepare_verify_and_say_what_is_missing(tmp_path: Path) -> None:
    root, out = tmp_path / "raw", tmp_path / "store"
    write_root(root, num_patients=6)
    runner = CliRunner()

    def prepare_command(*words: str) -> Result:
        return runner.invoke(app, ["data", "prepare", *words, "--image-size", str(SIZE), "--workers", "1"])

    done = prepare_command("mimic-cxr", "--images", str(root / "mimic-cxr-jpg"), "--reports", str(root / "mimic-cxr"),
                           "--out", str(out))
    assert done.exit_code == 0, done.output
    for words in ("Selection as published", "Selection corrected", "no results of rsna_zero_shot"):
        assert words in done.output
    added = prepare_command("ms-cxr-t", "--tables", str(root / "ms-cxr-t"), "--out", str(out))
    assert added.exit_code == 0 and "MS-CXR-T (temporal" not in added.output
    # Credentialed as their licences say.
    assert open_store(DataConfig(root=str(out), image_size=SIZE, crop_size=16)).is_credentialed
    assert runner.invoke(app, ["data", "verify", str(out)]).exit_code == 0
    (out / "mimic_images.npy").write_bytes(b"")
    assert "damaged" in str(runner.invoke(app, ["data", "verify", str(out)]).exception)
    for words, expected in (
            (("mimic-cxr", "--images", str(root)), "needs --reports and --out"),
            (("mimic-cxrr", "--out", str(out)), "did you mean mimic-cxr"),
            (("--images", str(root)), "name the data set first"),
            (("--data", str(root), "--partial", "--largest-unreadable", "0.1"),
             "--image-size, --partial, --largest-unreadable: for data sets that lie apart"),
            (("rsna", "--images", str(root / "rsna"), "--out", str(out), "--partial"), "--partial: rsna has no such"),
            (("covidx", "--images", str(root), "--reports", str(root), "--out", str(out)), "--reports: covidx has no"),
            (("rsna", "--images", str(root / "rsna"), "--out", str(out), "--version", "5"), "--version: rsna has no"),
            (("ms-cxr", "--tables", str(root), "--images", str(root), "--out", str(out)), "--images: ms-cxr has no"),
            (("rsna", "--images", str(root), "--out", str(out), "--data", str(root)), "--data: for a data root"),
            (("rsna", "--images", str(root), "--out", str(out), "--set", "data.image_size=9"), "--set: for a data"),
            (("rsna", "--images", str(root / "absent"), "--out", str(out)), "no such file or folder")):
        assert expected in str(prepare_command(*words).exception), words
