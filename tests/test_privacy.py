"""Credentialed data stay home: a whole sweep with canaries in reports, ids and images, then a search of all it left."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from medst.config import Config, DataConfig
from medst.data.phantom import PRESETS, generate
from medst.data.store import prepare
from medst.records import Record
from medst.tracking.privacy import PRIVATE_NOTICE, PRIVATE_SWITCH
from medst.trial import run_trial

WORD = "qzxkwvjbyqplmtrhgfdwqzk"
"""A word that no report has; in upper case in the report, as section heads are, too."""
STUDY = """
name: guarded
question: Does anything leak?
base: [base.yaml]
reference: full
primary_metric: test/finding_zero_shot/mean/auroc
seeds: [0]
arms:
  full: {}
  fails: {training.pairs_per_batch: 12}
"""
BASE = """
data: {root: data, image_size: 72, crop_size: 64, caption_tokens: 48}
model:
  image: {stem: conv, patch_size: 16, width: 32, num_layers: 1, num_heads: 2}
  text: {width: 32, num_layers: 1, num_heads: 2, hidden_width: 32}
  heads: {hidden_width: 32, embedding_width: 16}
training: {epochs: 0.5, pairs_per_batch: 16}
evaluation: {tasks: [validation, temporal_image, retrieval, grounding, rsna_zero_shot, finding_zero_shot]}
"""


def decoded(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's content, and what stands in it under every packing that our tools use."""
    yield name, content
    if content[:2] == b"\x1f\x8b":
        yield from decoded(f"{name} > gzip", gzip.decompress(content))
    elif content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield from decoded(f"{name} > {member}", archive.read(member))
    elif content[:4] == b"PAR1":
        frame = pd.read_parquet(io.BytesIO(content))
        yield f"{name} > table", frame.to_csv(index=False).encode()
    elif content[:8] == b"\x89PNG\r\n\x1a\n":
        yield f"{name} > pixels", np.asarray(Image.open(io.BytesIO(content)).convert("L")).tobytes()
    elif content[:5] == b"%PDF-":
        for stream in re.findall(rb"stream\r?\n(.+?)endstream", content, re.DOTALL):
            try:
                yield f"{name} > stream", zlib.decompress(stream)
            except zlib.error:
                continue


def packed(canary: bytes) -> list[bytes]:
    """A canary as it stands, and within base64 at each of its three alignments."""
    inner = []
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + canary)
        # The first and last letters depend on the neighbours.
        inner.append(text[4:-4])
    # What is too short stands in any packed file by chance.
    return [canary, *(form for form in inner if len(form) >= 12)]


def find(folder: Path, canaries: dict[str, bytes]) -> list[str]:
    """Where canaries stand in a folder: file and canary."""
    wanted = {name: packed(canary) for name, canary in canaries.items()}
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        for place, content in decoded(str(path.relative_to(folder)), path.read_bytes()):
            lower = content.lower()
            found += [f"{place}: {name}" for name, forms in wanted.items()
                      if any(form in content for form in forms) or forms[0] in lower]
    return found


def pixel_canaries(images: np.ndarray, rows: list[int]) -> dict[str, bytes]:
    """The most varied line of some images: as stored, and as the model sees it."""
    canaries = {}
    for row in rows:
        lines = np.asarray(images[row])[8:-8, 20:44]
        line = lines[np.argmax([len(np.unique(line)) for line in lines])]
        assert len(np.unique(line)) > 12
        canaries[f"pixels of image {row}"] = line.tobytes()
        canaries[f"float pixels of image {row}"] = (line.astype(np.float32) / 127.5 - 1).tobytes()
    return canaries


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    """Red once: every packing in which a leak could hide is looked into."""
    image = np.random.default_rng(0).integers(0, 255, (72, 72), dtype=np.uint8)
    canaries = {"word": WORD.encode(), **pixel_canaries(image[None], [0])}
    text = f"the {WORD.upper()} of the report"
    (tmp_path / "plain.log").write_text(text)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "coded.json").write_text(json.dumps({"x": base64.b64encode(f"..{WORD}..".encode()).decode()}))
    pd.DataFrame({"text": [f"a {WORD} b"] * 3}).to_parquet(tmp_path / "table.parquet")
    np.savez_compressed(tmp_path / "arrays.npz", images=image[None])
    np.savez_compressed(tmp_path / "floats.npz", images=image.astype(np.float32) / 127.5 - 1)
    Image.fromarray(image).save(tmp_path / "picture.png")
    found = find(tmp_path, canaries)
    for name in ("plain.log", "packed.gz", "coded.json", "table.parquet", "arrays.npz", "floats.npz", "picture.png"):
        assert any(place.startswith(name) for place in found), name


def plant(root: Path) -> dict[str, bytes]:
    """Put the word into every report and into table cells; return it and the ids as canaries."""
    for path in (root / "mimic-cxr").rglob("*.txt"):
        text = path.read_text()
        path.write_text(re.sub(r"(FINDINGS:|IMPRESSION:)", rf"\1 {WORD} seen.", text))
    metadata = pd.read_csv(root / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz", dtype=str)
    (root / "dataset.json").write_text(json.dumps({"name": "guarded", "credentialed": True}))
    ids = {"word": WORD.encode()}
    for row in metadata.iloc[::29].itertuples():
        ids |= {f"image {row.dicom_id}": row.dicom_id.encode(), f"patient {row.subject_id}": row.subject_id.encode(),
                f"study {row.study_id}": row.study_id.encode()}
    labels = pd.read_csv(root / "rsna" / "stage_2_train_labels.csv", dtype=str)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", labels["patientId"].iloc[3]), "as Kaggle's are"
    return ids | {"rsna patient": labels["patientId"].iloc[3].encode()}


def failing_with(names: list[str]) -> Callable[[Config, Path | None], Iterator[Record]]:
    """A trial whose error, in the arm that fails, speaks of patients, studies and images."""

    # Within a function it travels to Ray's workers by value: they cannot import this file.
    def trial(config: Config, folder: Path | None) -> Iterator[Record]:
        for record in run_trial(config, folder):
            yield record
            if config.training.pairs_per_batch == 12:
                raise ValueError(f"cannot read {', '.join(names)}")

    return trial


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["ray", "inline"])
def test_a_whole_sweep_leaks_no_canary(executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.results import make_results
    from medst.tracking import TrackingPlace
    from sweeps.commands import UNFINISHED_CODE, run_sweep

    monkeypatch.delenv(PRIVATE_SWITCH, raising=False)
    home, project = tmp_path / "home", tmp_path / "project"
    project.mkdir()
    generate(PRESETS["smoke"].model_copy(update={"num_rsna": 12, "num_covidx_train": 9, "num_covidx_test": 6}), home)
    canaries = plant(home)
    store = prepare(DataConfig(root=str(home), image_size=72, crop_size=64))
    assert store.is_credentialed and store.mimic is not None
    has_word = store.mimic.studies["report_corrected"].str.contains(WORD)
    assert has_word.mean() > 0.9, "the canaries are in what is trained on"
    canaries |= pixel_canaries(store.mimic.images, [0, 7, len(store.mimic.images) - 1])
    (project / "base.yaml").write_text(BASE.replace("root: data", f"root: {home}"))
    (project / "guarded.yaml").write_text(STUDY)
    # Ray's sockets need a short path.
    ray_folder = Path(tempfile.mkdtemp(prefix="medst-ray-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    monkeypatch.chdir(project)
    output = io.StringIO()
    try:
        code = run_sweep("guarded.yaml", executor=executor, jobs=1,  # type: ignore[arg-type]
                         project=project, console=Console(file=output, width=200),
                         trial_function=failing_with([canary.decode() for name, canary in canaries.items()
                                                      if name.startswith(("patient", "study", "image", "rsna"))]))
        assert code == UNFINISHED_CODE, "one arm is finished, and one failed with a traceback"
        place = TrackingPlace.of_project(project)
        make_results(place.uri, place.experiment, project / "results", studies=["guarded"])
        (project / "output.log").write_text(output.getvalue())
        if executor == "ray":
            assert any(ray_folder.rglob("*.log")) or any(ray_folder.rglob("*.out")), "Ray's logs are searched too"
        # The search itself is not blind: at home every canary is found.
        at_home = find(home / "mimic-cxr", canaries) + find(home / "mimic-cxr-jpg", canaries)
        assert any(": word" in place for place in at_home) and any(": patient" in place for place in at_home)
        assert any(name.startswith("pixels") for name in canaries)
        found = find(project, canaries) + find(ray_folder, canaries)
        assert found == []
        tracked = [path.name for path in (project / "mlartifacts").rglob("*") if path.is_file()]
        assert "config.yaml" in tracked and "traceback.txt" in tracked
        assert "cannot read withheld, withheld" in output.getvalue(), "the reason is told, without ids"
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


def test_the_switch_says_what_it_allows() -> None:
    assert PRIVATE_SWITCH in PRIVATE_NOTICE
    for thing in ("predictions", "embeddings", "attention", "images", "models"):
        assert thing in PRIVATE_NOTICE, thing
    assert os.environ.get(PRIVATE_SWITCH) is None
