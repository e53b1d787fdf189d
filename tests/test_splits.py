"""Who is trained on and who is judged: disjoint patients, published splits, the mark of contamination."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from oracle_world import make_world, small_config
from sklearn.model_selection import train_test_split

from medst.config import DataConfig, override
from medst.data.published_splits import published_rsna_split
from medst.data.readers.nih import as_nih_patients, read_nih_patients
from medst.data.readers.tables import DataError
from medst.data.splits import (
    HELD_OUT,
    NO_CAPTION,
    describe_splits,
    evaluation_patients,
    identifies_patients,
    overlaps,
    patient_fingerprint,
    seen_by_trial,
)
from medst.data.store import Store
from medst.evaluation.contamination import contamination, standing
from medst.model.lineage import Lineage, exposures, write_lineage

RELEASED = DataConfig(evaluation_patients="released")


def leaky_store() -> tuple[Store, set[str]]:
    """A store whose official split trains on patients of MS-CXR-T and MS-CXR, and splits one test patient's studies."""
    store = make_world().store
    assert store.mimic is not None and store.ms_cxr_t is not None and store.ms_cxr is not None
    # The made world judges nearly everybody; a few are enough.
    pairs, boxes = store.ms_cxr_t.pairs.head(20), store.ms_cxr.table.head(4)
    boxed = store.mimic.views.loc[store.mimic.views["image"].isin(boxes["image"]), "subject_id"]
    store = replace(store, ms_cxr_t=replace(store.ms_cxr_t, pairs=pairs, patients=frozenset(pairs["subject_id"])),
                    ms_cxr=replace(store.ms_cxr, table=boxes, patients=frozenset(boxed)))
    assert store.mimic is not None and store.ms_cxr_t is not None
    studies = store.mimic.studies.copy()
    judged = set(store.ms_cxr_t.pairs["subject_id"].astype(str))
    studies.loc[studies["subject_id"].astype(str).isin(sorted(judged)[::2]), "split"] = "train"
    counts = studies.loc[studies["split"] == "test", "subject_id"].value_counts()
    shared = str(counts.index[counts > 1][0])
    studies.loc[studies.index[studies["subject_id"].astype(str) == shared][0], "split"] = "train"
    return replace(store, mimic=replace(store.mimic, studies=studies)), judged | {shared}


def trained(store: Store) -> set[str]:
    assert store.mimic is not None
    return set(store.mimic.studies.loc[store.mimic.studies["split"] == "train", "subject_id"].astype(str))


def test_corrected_training_knows_no_patient_that_is_judged() -> None:
    store, judged = leaky_store()
    assert trained(store) & judged and trained(store) - judged and set(overlaps(store)) >= {"MS-CXR-T"}
    seen = seen_by_trial(store, DataConfig())
    for name, patients in evaluation_patients(store).items():
        assert not trained(seen) & patients, name
    assert not overlaps(seen)
    # Nobody else is lost, and no study disappears.
    every = {patient for patients in evaluation_patients(store).values() for patient in patients}
    assert trained(seen) == trained(store) - every
    assert seen.mimic is not None and store.mimic is not None
    changed = seen.mimic.studies["split"] != store.mimic.studies["split"]
    assert set(seen.mimic.studies.loc[changed, "split"]) == {HELD_OUT}
    pd.testing.assert_frame_equal(seen.mimic.studies.drop(columns="split"), store.mimic.studies.drop(columns="split"))


def test_released_training_and_a_clean_store_stay_as_they_are() -> None:
    store, _ = leaky_store()
    assert seen_by_trial(store, RELEASED) is store
    seen = seen_by_trial(store, DataConfig())
    assert seen_by_trial(seen, DataConfig()) is seen


def test_patients_are_judged_also_where_their_images_are_not_in_the_store() -> None:
    store, _ = leaky_store()
    assert store.ms_cxr_t is not None
    absent = sorted(trained(store) - store.ms_cxr_t.patients)[0]
    partial = replace(store, ms_cxr_t=replace(store.ms_cxr_t, patients=store.ms_cxr_t.patients | {absent}))
    assert absent in trained(seen_by_trial(store, DataConfig()))
    assert absent not in trained(seen_by_trial(partial, DataConfig()))


def test_a_trial_sees_the_studies_that_have_a_caption_in_its_cleaning() -> None:
    store, _ = leaky_store()
    assert store.mimic is not None
    studies = store.mimic.studies.copy()
    rows = studies.index[studies["split"] == "train"][:5]
    studies.loc[rows, "report_released"] = ""
    store = replace(store, mimic=replace(store.mimic, studies=studies))
    seen = seen_by_trial(store, DataConfig(report_text="released", evaluation_patients="released"))
    assert seen.mimic is not None
    assert seen.mimic.studies.index[seen.mimic.studies["split"] == NO_CAPTION].tolist() == rows.tolist()
    assert seen_by_trial(store, RELEASED) is store


def test_covid_chestxray_and_covidx_share_images() -> None:
    store, config = make_world().store, small_config()
    assert "COVIDx" not in contamination(store, config)
    assert "COVIDx" in contamination(replace(store, corpus="covid-chestxray"), config)
    assert "COVIDx" not in contamination(replace(store, corpus="covid-chestxray", covidx=None), config)


def test_the_mark_says_which_patients_were_trained_on() -> None:
    store, _ = leaky_store()
    config = small_config()
    assert contamination(seen_by_trial(store, config.data), config) == ""
    assert "contamination" not in standing(seen_by_trial(store, config.data), config)
    reason = contamination(store, override(config, {"data.evaluation_patients": "released"}))
    counts = overlaps(store)
    assert counts and all(f"{count} of {name}" in reason for name, count in counts.items())


@pytest.mark.parametrize(("settings", "word"), [
    ({"model.image.name": "deit_base_patch16_224"}, ""),
    ({"model.text.name": "bert-base-uncased"}, ""),
    ({"model.text.name": "emilyalsentzer/Bio_ClinicalBERT"}, "Bio_ClinicalBERT"),
    ({"model.text.name": "microsoft/BiomedVLP-CXR-BERT-specialized"}, "CXR-BERT"),
    ({"model.image.name": "hf-hub:someone/chest-vit"}, "chest-vit"),
    ({"model.weights": "/somewhere/vit_base.ckpt"}, "not known"),
])
def test_initial_weights_that_may_have_seen_the_patients(settings: dict[str, str], word: str) -> None:
    found = exposures(override(small_config(), settings).model, "print")
    assert found == [] if not word else len(found) == 1 and word in found[0]


def test_a_saved_model_says_what_it_was_trained_on(tmp_path: Path) -> None:
    model = override(small_config(), {"model.weights": str(tmp_path)}).model
    assert "not known" in exposures(model, "one")[0]
    write_lineage(tmp_path, Lineage("made up", "one", ""))
    assert exposures(model, "one") == []
    assert "other data" in exposures(model, "two")[0]
    # The place is left out of captions, which are published.
    assert str(tmp_path.parent) not in exposures(model, "two")[0]
    write_lineage(tmp_path, Lineage("made up", "one", "it saw them"))
    assert "it saw them" in exposures(model, "one")[0]
    (tmp_path / "training.json").write_text("[]")
    with pytest.raises(ValueError, match=r"training\.json"):
        exposures(model, "one")


def test_every_part_is_described_with_its_hash() -> None:
    store, _ = leaky_store()
    seen = seen_by_trial(store, DataConfig())
    parts = {(split.data_set, split.part): split for split in describe_splits(seen)}
    assert parts["MIMIC-CXR", "train"].num_shared == 0
    assert parts["MIMIC-CXR", "train"].fingerprint == patient_fingerprint(trained(seen))
    leaking = {(split.data_set, split.part): split for split in describe_splits(store)}
    assert leaking["MIMIC-CXR", "train"].num_shared > 0
    assert leaking["MIMIC-CXR", "train"].fingerprint != parts["MIMIC-CXR", "train"].fingerprint
    # In the made-up COVIDx a patient has two images: a random split of images cuts patients apart, ours does not.
    assert parts["COVIDx", "train"].num_shared == parts["COVIDx", "test"].num_shared == 0
    assert parts["COVIDx as published", "validate"].num_shared > 0
    assert "do not identify" in parts["RSNA", "test"].note
    facts = standing(seen, small_config())
    assert facts["split.MIMIC-CXR.train"] == parts["MIMIC-CXR", "train"].fingerprint


def test_hashes_of_patients_ignore_order_and_repetition() -> None:
    assert patient_fingerprint(["b", "a", "a"]) == patient_fingerprint(["a", "b"]) != patient_fingerprint(["ab"])


@pytest.mark.parametrize("num_images", [7, 159, 1003])
def test_the_published_rsna_split_is_rebuilt(num_images: int) -> None:
    names = [f"{number * 7919 % 65536:04x}" for number in range(num_images)]
    ids = pd.Series(np.random.default_rng(1).permutation(names))
    split = published_rsna_split(ids)
    # As the published program: one row an id, by id; of the halves, the first is the test set.
    table = pd.DataFrame({"patientId": ids}).groupby("patientId").size().reset_index()
    train, rest = train_test_split(table, test_size=0.15 * 2, random_state=0)
    test, validate = train_test_split(rest, test_size=0.5, random_state=0)
    for name, part in (("train", train), ("validate", validate), ("test", test)):
        assert set(ids[split == name]) == set(part["patientId"]), name


def test_the_published_rsna_split_has_known_members() -> None:
    """As the published program's own lines gave them for twenty ids."""
    ids = pd.Series([f"{number:03d}" for number in range(20)])
    split = published_rsna_split(ids)
    assert ids[split == "test"].tolist() == ["008", "010", "018"]
    assert ids[split == "validate"].tolist() == ["001", "017", "019"]


def test_the_nih_mapping_joins_images_of_one_patient(tmp_path: Path) -> None:
    assert read_nih_patients(tmp_path) == {}
    path = tmp_path / "pneumonia-challenge-dataset-mappings_2018.json"
    rows = [{"img_id": "00000013_001.png", "subset_img_id": "aa", "SOPInstanceUID": "1.2"},
            {"img_id": "00000013_007.png", "subset_img_id": "bb", "SOPInstanceUID": "1.3"},
            {"img_id": "00000014_000.png", "subset_img_id": "cc", "SOPInstanceUID": "1.4"}]
    path.write_text(json.dumps(rows))
    patients = as_nih_patients(pd.Series(["aa", "bb", "cc"]), read_nih_patients(tmp_path))
    assert patients.tolist() == ["nih-00000013", "nih-00000013", "nih-00000014"]
    assert identifies_patients(patients)
    assert not identifies_patients(as_nih_patients(pd.Series(["aa", "zz"]), read_nih_patients(tmp_path)))
    path.write_text(json.dumps([*rows, {**rows[0], "img_id": "00000099_000.png"}]))
    with pytest.raises(DataError, match="two patients"):
        read_nih_patients(tmp_path)
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match="not the published list"):
        read_nih_patients(tmp_path)
