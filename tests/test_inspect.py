"""What `inspect` says of a data root and of a store, and the hardness of findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from raw_files import RawWriter, write_root

from medst.config import DataConfig
from medst.data.inspect import inspect
from medst.data.readers import DataError
from medst.data.store import MimicStore, Store, prepare
from medst.evaluation.hardness import hardness, hardness_text


def line(text: str, beginning: str) -> list[str]:
    """The words after `beginning` in the only line that begins so."""
    found = [row for row in text.splitlines() if row.strip().startswith(beginning)]
    assert len(found) == 1, f"{beginning!r} in\n{text}"
    return found[0].strip().removeprefix(beginning).split()


def test_root_and_store_are_counted(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    for number in range(4):
        writer.add_study(10000001, 50000000 + number, ["PA", "LL"] if number == 0 else ["AP"])
    writer.add_study(10000002, 50000010, ["PA"], split="test")
    writer.add_study(10000002, 50000011, ["SWIMMERS"], split="test")
    writer.write_tables()
    writer.write_rsna(6)
    writer.write_covidx(6)
    store = prepare(DataConfig(root=str(tmp_path), image_size=16, crop_size=16))
    for text in (inspect(tmp_path), inspect(store.path)):
        assert text.startswith("fixture\n")
        assert line(text, "train ") == ["1", "4", "4.00", "75.0%"]
        assert line(text, "test ") == ["1", "1", "1.00", "100.0%"]
        assert line(text, "AP ")[:2] == ["3", "50.0%"]
        assert line(text, "4 or 5 ") == ["1", "50.0%", "75.0%"]
        assert line(text, "images with a frontal or lateral view") == ["6"]
        assert line(text, "pneumonia ") == ["2", "33.3%"]
        assert line(text, "train, COVID-19") == ["2"]
        # Labels of the fixture by study: 0, 1, 2, 3, 10 modulo 4 -> 1, 0, -1, missing, -1.
        assert line(text, "Atelectasis")[:4] == ["20.0%", "40.0%", "20.0%", "20.0%"]
        assert line(text, "none") == []
    assert store.fingerprint in inspect(store.path)


def test_problems_of_credentialed_data_name_no_file(tmp_path: Path) -> None:
    writer = RawWriter(tmp_path)
    for number in range(60):
        writer.add_study(10000000 + number, 50000000 + number, ["PA"])
    writer.write_tables()
    next(tmp_path.rglob("s50000007/*.jpg")).write_bytes(b"")
    data = DataConfig(root=str(tmp_path), image_size=16, crop_size=16)
    assert "s50000007" in inspect(prepare(data).path)
    (tmp_path / "dataset.json").unlink()
    text = inspect(prepare(data).path)
    assert "credentialed" in text and "not a readable JPEG" in text
    assert "50000007" not in text and "10000007" not in text


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a data root"):
        inspect(tmp_path)


def test_hardness_finds_what_is_linear_in_pixels_and_not_what_is_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    num_studies = 600
    images = rng.normal(120, 20, (num_studies, 32, 32))
    severity = rng.uniform(0, 1, num_studies)
    images[:, 16:24, 4:12] += 60 * severity[:, None, None]
    label = (severity > 0.5).astype(float)
    label[::50] = -1
    noise = rng.integers(0, 2, num_studies).astype(float)
    findings = pd.DataFrame({"image": np.arange(num_studies), "finding": "edema", "severity": severity})
    studies = pd.DataFrame({
        "split": np.where(np.arange(num_studies) < 400, "train", "test"), "frontal": np.arange(num_studies),
        "label_edema": label, "label_consolidation": noise, "label_pneumonia": 0.0, "label_pneumothorax": np.nan,
        "label_pleural_effusion": noise})
    mimic = MimicStore(images.clip(0, 255).astype(np.uint8), pd.DataFrame(), studies, findings, None)
    store = Store(path=tmp_path, fingerprint="", name="", is_credentialed=False, image_size=32, steps=(),
                  problems=pd.DataFrame(), mimic=mimic, ms_cxr_t=None, ms_cxr=None, rsna=None, covidx=None)
    table = hardness(store).set_index("finding")
    assert table.loc["edema", "pixel_auroc"] > 0.9
    assert table.loc["edema", "severity_auroc"] == 1.0
    assert table.loc["edema", "num_test"] == 200 - 4
    assert abs(table.loc["consolidation", "pixel_auroc"] - 0.5) < 0.15
    assert np.isnan(table.loc["pneumonia", "pixel_auroc"]) and np.isnan(table.loc["pneumothorax", "severity_auroc"])
    assert "linear probe on pixels" in hardness_text(store)


def test_a_root_with_everything_prints(tmp_path: Path) -> None:
    write_root(tmp_path, num_patients=6)
    text = inspect(tmp_path)
    assert line(text, "Swaps, contradiction") == ["1"]
    assert "MS-CXR boxes\n  Pleural Effusion        5\n" in text
