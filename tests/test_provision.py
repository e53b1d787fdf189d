"""Data that are absent are made, once; what is there is taken as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medst.config import Config, DataConfig
from medst.data import provision
from medst.data.phantom import PRESETS
from medst.data.phantom.presets import PhantomError
from medst.data.provision import phantom_of, provide
from medst.data.readers import DataError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A config whose root means a preset of few small images."""
    few = PRESETS["smoke"].model_copy(update={
        "num_train": 4, "num_validate": 2, "num_test": 2, "num_rsna": 2, "num_covidx_train": 3, "num_covidx_test": 3,
        "num_sentence_pairs": 4})
    monkeypatch.setattr(provision, "PRESETS", {"smoke": few})
    return Config.model_validate({"data": {"root": str(tmp_path / "data" / "phantom" / "smoke"), "image_size": 64,
                                           "crop_size": 64}}).data


def test_an_absent_phantom_and_its_store_are_made_once(data: DataConfig) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def step(title: str) -> Callable[[int, int], None]:
        reports = told.setdefault(title, [])
        return lambda done, total: reports.append((done, total))

    first = provide(data, 1, step)
    assert first.mimic is not None
    assert list(told) == ["phantom 'smoke'", "reports of mimic-cxr-jpg", "images of mimic-cxr-jpg", "images of rsna",
                          "images of covidx"]
    assert all(reports[-1][0] == reports[-1][1] for reports in told.values())
    told.clear()
    assert provide(data, 1, step).fingerprint == first.fingerprint
    assert not any(told.values())
    kept = first.path.rename(first.path.parent.parent / "kept")
    shutil.rmtree(data.root)
    alone = data.model_copy(update={"store": str(kept)})
    assert provide(alone, 1, step).fingerprint == first.fingerprint
    assert not Path(data.root).exists(), "a store without its raw files is enough"


def test_only_a_preset_in_its_own_place_is_made(data: DataConfig, tmp_path: Path) -> None:
    smoke = provision.PRESETS["smoke"]
    assert phantom_of(Path("data/phantom/smoke")) == smoke
    assert phantom_of(Path("/home/user/data/phantom/smoke")) == smoke
    assert phantom_of(Path("data/phantom/smoke-draw-2")) == smoke.model_copy(update={"seed": 2})
    for other in ("phantom/smoke", "data/phantom/mimic", "data/phantom/smoke/more", "smoke", "data/phantom/smoke-draw-",
                  "data/phantom/smoke-draw-x"):
        assert phantom_of(Path(other)) is None
    with pytest.raises(DataError, match="no such folder"):
        provide(data.model_copy(update={"root": str(tmp_path / "smoke")}), 1, lambda title: lambda done, total: None)


def test_a_folder_that_holds_something_else_is_left_alone(data: DataConfig) -> None:
    note = Path(data.root) / "note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine")
    with pytest.raises(PhantomError, match="not a complete phantom"):
        provide(data, 1, lambda title: lambda done, total: None)
    assert note.read_text() == "mine"
