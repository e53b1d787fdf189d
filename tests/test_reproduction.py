"""`medst evaluate --weights ... --protocol as-published`: every published kind of weights fills the table."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
import torch
from model_samples import VOCABULARY_SIZE, small_config, small_model
from test_biovil_t import small_biovil_t, write_folder
from test_weights import medst_state, mgca_state

from medst.cli import main
from medst.data.phantom import PRESETS, generate
from medst.data.tokenizer import SPECIAL_TOKENS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom with few training patients."""
    few = PRESETS["smoke"].model_copy(update={"num_train": 4, "num_validate": 2, "num_test": 24, "num_rsna": 24,
                                              "num_covidx_train": 30, "num_covidx_test": 12})
    return generate(few, tmp_path_factory.mktemp("data") / "raw")


def evaluate(weights: Path, root: Path, monkeypatch: pytest.MonkeyPatch, *assignments: str) -> int:
    """The command in this process: its exit code; the table is results/table.csv of the working directory."""
    settings = [word for assignment in ("data.image_size=72", *assignments) for word in ("--set", assignment)]
    monkeypatch.setattr(sys, "argv", ["medst", "evaluate", "--weights", str(weights), "--protocol", "as-published",
                                      "--data", str(root), "--out", "results/table.csv", *settings])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


@pytest.mark.parametrize("kind", ["Med-ST", "MGCA", "BioViL-T"])
def test_published_weights_fill_the_reproduction_table(kind: str, root: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    if kind == "BioViL-T":
        weights = write_folder(small_biovil_t(), tmp_path / "weights")
        settings = ["data.crop_size=64"]
        assert evaluate(weights, root, monkeypatch, *settings, "data.views=both") == 2
        assert "set data.views=frontal" in capfd.readouterr().err.replace("\n", " ")
    else:
        model = small_model(small_config(**{"model.text.positions": "released"}))
        weights = tmp_path / "weights"
        torch.save({"state_dict": medst_state(model) if kind == "Med-ST" else mgca_state(model)}, weights)
        pieces = [*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz", "no", "the", "is", "effusion", "##s", "##e", "edema",
                  "left", "right"]
        assert len(pieces) == VOCABULARY_SIZE
        Path("vocab.txt").write_text("\n".join(pieces) + "\n")
        settings = ["model.image.num_heads=2", "model.text.num_heads=2", "data.vocabulary=vocab.txt"]
    assert evaluate(weights, root, monkeypatch, *settings) == 0, capfd.readouterr().err
    printed = capfd.readouterr()
    assert kind in printed.err and "tensors loaded" in printed.err
    assert "contaminated: the weights came from weights, whose training patients are not known" in printed.out
    rows = list(csv.DictReader(Path("results/table.csv").read_text(encoding="utf-8").splitlines()))
    assert all(math.isfinite(float(row["ours"])) for row in rows)
    compared = {(row["metric"], row["model"]) for row in rows if row["published"]}
    assert {("test/grounding/contrast_to_noise", "BioViL-T"), ("test/sentence_similarity/all/auroc", "BioViL-T"),
            ("test/sentence_similarity/all/accuracy_as_published", "BioViL-T")} <= compared
    shown = {row["metric"] for row in rows}
    assert {"test/rsna_zero_shot/auroc_as_published", "test/covidx_linear/1/accuracy_as_published",
            "test/covidx_linear/100/accuracy_as_published",
            "test/temporal_image/mean/accuracy_5fold_as_published"} <= shown
    assert ("test/temporal_image/pair_encoder/mean/accuracy_5fold_as_published" in shown) == (kind == "BioViL-T")
