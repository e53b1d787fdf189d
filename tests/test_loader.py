"""Batches: exact size, each pair once, sequences of one patient in time order, nested fractions, exact resumption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_files import write_root

from medst.config import Config, DataConfig, override
from medst.data.batch import Batch
from medst.data.loader import (
    EvalLoader,
    LoaderError,
    Pairs,
    TrainLoader,
    centre_crop,
    crop,
    plan_epoch,
    to_unit_range,
)
from medst.data.store import Store, prepare
from medst.data.tokenizer import Tokenizer, build_tokenizer
from medst.data.views import FRONTAL_VIEWS, VIEWS

SIZE, CROP, BATCH = 24, 16, 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("data") / "root"
    write_root(root, num_patients=18, seed=3)
    return prepare(DataConfig(root=str(root), image_size=SIZE, crop_size=CROP))


@pytest.fixture(scope="module")
def tokenizer(store: Store) -> Tokenizer:
    return build_tokenizer(store, DataConfig(image_size=SIZE, crop_size=CROP), "corrected")


def config(settings: Mapping[str, Any] | None = None) -> Config:
    return override(Config(), {"data.image_size": SIZE, "data.crop_size": CROP, "training.pairs_per_batch": BATCH,
                               **(settings or {})})


def assert_equal(one: Batch, other: Batch) -> None:
    for field in fields(Batch):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


def lateral_rows(store: Store, batch: Batch) -> dict[int, int]:
    """Study -> study whose lateral it meets, read off the pixels (every image has one grey level)."""
    assert store.mimic is not None
    studies = store.mimic.studies
    has_lateral = np.flatnonzero(studies["lateral"] >= 0)
    levels = store.mimic.images[studies["lateral"].to_numpy()[has_lateral], SIZE // 2, SIZE // 2]
    by_grey = dict(zip(levels.tolist(), has_lateral.tolist(), strict=True))
    assert len(by_grey) == len(has_lateral)
    greys = (batch.lateral[:, 0, CROP // 2, CROP // 2] * 0.5 + 0.5).mul(255).round().int().tolist()
    return {int(batch.study[row]): by_grey[grey] for row, grey in zip(batch.lateral_row.tolist(), greys, strict=True)}


# Windows and plans, apart from any store


def pairs_of(counts: list[int]) -> Pairs:
    patient = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(patient))
    return Pairs(study=rows, caption=rows, patient=patient, frontal=rows, frontal_view=rows * 0, lateral=rows * 0 - 1,
                 lateral_view=rows * 0 - 1)


def test_windows_by_hand() -> None:
    windows, singles = pairs_of([1, 5, 4, 3]).windows(2)
    assert windows.tolist() == [[1, 2], [3, 4], [6, 7], [8, 9], [10, 11]]
    assert singles.tolist() == [0, 5, 12]


@given(st.lists(st.integers(1, 14), min_size=1, max_size=40), st.integers(2, 6), st.integers(6, 16), st.integers(0, 9))
def test_an_epoch_deals_out_each_pair_at_most_once(counts: list[int], length: int, size: int, seed: int) -> None:
    pairs = pairs_of(counts)
    num_batches = len(pairs) // size
    windows, singles = pairs.windows(length)
    assert sorted([*windows.ravel(), *singles]) == list(range(len(pairs)))
    plans = plan_epoch(windows, singles, size, num_batches, np.random.default_rng(seed))
    assert len(plans) == num_batches
    assert all(len(plan.rows) == size for plan in plans)
    rows = np.concatenate([[], *(plan.rows for plan in plans)])
    assert len(set(rows)) == len(rows)
    known = {tuple(window) for window in windows.tolist()}
    for plan in plans:
        assert all(tuple(plan.rows[sequence]) in known for sequence in plan.sequences)
        assert sorted(plan.lateral_rows) == sorted(plan.rows)
    # As many windows as fit, and spread evenly.
    held = [len(plan.sequences) for plan in plans]
    assert sum(held) == min(len(windows), num_batches * (size // length))
    assert max(held, default=0) - min(held, default=0) <= 1


# Training batches


@pytest.mark.parametrize("settings", [
    {}, {"data.sequence_length": 2}, {"data.sequence_length": 6}, {"data.lateral_fraction": 0.3},
    {"data.views": "frontal"}, {"data.sequences": "released"}, {"data.lateral_pairing": "released"},
    {"data.report_text": "released"},
])
def test_every_arm_sees_as_many_pairs(store: Store, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    loader = TrainLoader(store, tokenizer, config(settings))
    assert store.mimic is not None
    num_studies = int((store.mimic.studies["split"] == "train").sum())
    assert (loader.num_pairs, len(loader)) == (num_studies, num_studies // BATCH)
    batches = list(loader.batches(0))
    assert [batch.num_pairs for batch in batches] == [BATCH] * (num_studies // BATCH)
    assert sum(len(batch.sequences) for batch in batches) > 0


def test_a_batch_is_what_the_store_says(store: Store, tokenizer: Tokenizer) -> None:
    assert store.mimic is not None
    studies, views = store.mimic.studies, store.mimic.views.set_index("image")["view"]
    seen: list[int] = []
    for batch in TrainLoader(store, tokenizer, config()).batches(0):
        seen += batch.study.tolist()
        assert batch.frontal.shape == (BATCH, 1, CROP, CROP) and batch.frontal.dtype == torch.float32
        table = studies.iloc[batch.study.numpy()].reset_index(drop=True)
        assert (table["split"] == "train").all()
        assert batch.frontal_view.tolist() == [VIEWS.index(views[row]) for row in table["frontal"]]
        has_lateral = np.flatnonzero(table["lateral"] >= 0)
        assert batch.lateral_row.tolist() == has_lateral.tolist()
        assert batch.lateral_view.tolist() == [VIEWS.index(views[row]) for row in table["lateral"][has_lateral]]
        assert all(study == other for study, other in lateral_rows(store, batch).items())
        encoded = tokenizer.encode_batch(table["report_corrected"].to_list(), config().data.caption_tokens)
        assert torch.equal(batch.token_ids, encoded.token_ids)
        assert torch.equal(batch.word_of_token, encoded.word_of_token)
        assert torch.equal(batch.attention_mask, encoded.attention_mask)
        assert int(batch.attention_mask.sum(dim=1).max()) == batch.token_ids.shape[1]
        for sequence in batch.sequences.tolist():
            own = table.iloc[sequence]
            assert own["subject_id"].nunique() == 1
            assert own["time"].is_monotonic_increasing
            assert np.diff(batch.study[sequence]).tolist() == [1, 1, 1]
    assert len(set(seen)) == len(seen)


def test_crops_come_from_their_images_and_frontals_move_apart_from_laterals(store: Store, tokenizer: Tokenizer) -> None:
    assert store.mimic is not None
    batch = next(TrainLoader(store, tokenizer, config()).batches(0))
    frontal = store.mimic.studies["frontal"].to_numpy()[batch.study.numpy()]
    # The fixture's images are 20 wide: two black columns at each side show where a crop began.
    def black_left(images: torch.Tensor) -> list[int]:
        return (images[:, 0, 8] == -1).int().cumprod(dim=1).sum(dim=1).tolist()

    pixels = to_unit_range(torch.from_numpy(store.mimic.images[frontal]))
    for own, image in zip(batch.frontal[:, 0], pixels, strict=True):
        assert any(torch.equal(own, image[y:y + CROP, x:x + CROP])
                   for y in range(SIZE - CROP + 1) for x in range(SIZE - CROP + 1))
    assert len(set(black_left(batch.frontal))) > 1
    assert black_left(batch.frontal[batch.lateral_row]) != black_left(batch.lateral)


def test_brightness_jitter_moves_grey_values_within_its_width(store: Store, tokenizer: Tokenizer) -> None:
    plain = next(TrainLoader(store, tokenizer, config()).batches(0))
    moved = next(TrainLoader(store, tokenizer, config({"data.brightness_jitter": 0.2})).batches(0))
    assert not torch.equal(plain.frontal, moved.frontal)
    assert (moved.frontal - plain.frontal).abs().max() <= 0.4 + 1e-6
    assert moved.frontal.abs().max() <= 1.0
    assert plain.study.tolist() == moved.study.tolist()


def test_same_seed_same_batches_other_seed_or_epoch_others(store: Store, tokenizer: Tokenizer) -> None:
    loader = TrainLoader(store, tokenizer, config())
    again = TrainLoader(store, tokenizer, config())
    first = list(loader.batches(1))
    for one, other in zip(first, again.batches(1), strict=True):
        assert_equal(one, other)
    assert next(loader.batches(2)).study.tolist() != first[0].study.tolist()
    other = TrainLoader(store, tokenizer, config({"seed": 1}))
    assert next(other.batches(1)).study.tolist() != first[0].study.tolist()


def test_batches_for_a_device_keep_on_the_host_what_routes_tokens(store: Store, tokenizer: Tokenizer) -> None:
    loader, ahead = TrainLoader(store, tokenizer, config()), TrainLoader(store, tokenizer, config(), "meta")
    validation = EvalLoader(store, tokenizer, config(), "validate", "meta")
    batches = list(ahead.batches(0))
    assert len(batches) == len(loader) >= 2
    for on_host, on_device in zip(loader.batches(0), batches, strict=True):
        for name in ("frontal_view", "lateral_view", "lateral_row", "word_of_token"):
            assert torch.equal(getattr(on_host, name), getattr(on_device, name)), name
        for name in ("frontal", "lateral", "token_ids", "attention_mask", "study", "sequences"):
            assert getattr(on_device, name).device.type == "meta", name
            assert getattr(on_device, name).shape == getattr(on_host, name).shape, name
    assert all(batch.word_of_token.device.type == "cpu" for batch in validation)


def test_a_resumed_epoch_goes_on_exactly(store: Store, tokenizer: Tokenizer) -> None:
    loader = TrainLoader(store, tokenizer, config())
    whole = list(loader.batches(3, sequence_length=3))
    for start in range(len(loader) + 1):
        rest = list(loader.batches(3, start=start, sequence_length=3))
        assert len(rest) == len(loader) - start
        for one, other in zip(whole[start:], rest, strict=True):
            assert_equal(one, other)


def test_the_sequence_length_can_change_from_call_to_call(store: Store, tokenizer: Tokenizer) -> None:
    loader = TrainLoader(store, tokenizer, config())
    for length in (2, 3, 4):
        batches = list(loader.batches(0, sequence_length=length))
        assert {batch.sequences.shape[1] for batch in batches} == {length}
        assert len(batches) == len(loader)


def lateral_studies(store: Store, tokenizer: Tokenizer, settings: dict[str, Any]) -> set[int]:
    loader = TrainLoader(store, tokenizer, config(settings))
    return set(loader.pairs.study[loader.pairs.lateral >= 0].tolist())


def test_lateral_fractions_are_nested(store: Store, tokenizer: Tokenizer) -> None:
    everything = lateral_studies(store, tokenizer, {})
    kept = [lateral_studies(store, tokenizer, {"data.lateral_fraction": share}) for share in (0.0, 0.25, 0.5, 1.0)]
    assert kept[0] == set() and kept[3] == everything
    assert kept[1] < kept[2] < everything
    assert len(kept[2]) == round(0.5 * len(everything))
    assert kept[2] != lateral_studies(store, tokenizer, {"data.lateral_fraction": 0.5, "seed": 1})
    assert lateral_studies(store, tokenizer, {"data.views": "frontal"}) == set()


def test_train_fractions_are_nested_and_by_patient(store: Store, tokenizer: Tokenizer) -> None:
    assert store.mimic is not None
    subjects = store.mimic.studies["subject_id"]
    kept = []
    for share in (0.25, 0.5, 1.0):
        loader = TrainLoader(store, tokenizer, config({"data.train_fraction": share}))
        own = set(subjects.iloc[loader.pairs.study])
        assert loader.num_pairs == int((subjects.isin(own) & (store.mimic.studies["split"] == "train")).sum())
        kept.append(own)
    assert kept[0] < kept[1] < kept[2]
    assert len(kept[1]) == round(0.5 * len(kept[2]))


def test_released_sequences_are_windows_of_images(store: Store, tokenizer: Tokenizer) -> None:
    assert store.mimic is not None
    loader = TrainLoader(store, tokenizer, config({"data.sequences": "released"}))
    table = store.mimic.studies
    training = table[table["split"] == "train"]
    expected = [row for study in training.itertuples() for row in (study.frontal, *study.other_frontals)]
    assert loader.pairs.frontal.tolist() == expected
    views = store.mimic.views.set_index("image")["view"]
    assert loader.pairs.frontal_view.tolist() == [FRONTAL_VIEWS.index(views[row]) for row in expected]
    repeats = [len(set(batch.study[sequence].tolist())) < 4
               for batch in loader.batches(0) for sequence in batch.sequences.tolist()]
    assert any(repeats)


def test_released_pairing_gives_laterals_to_other_studies_in_mixed_batches(store: Store, tokenizer: Tokenizer) -> None:
    # Two windows and two single pairs a batch.
    ten = {"training.pairs_per_batch": 10}
    corrected = TrainLoader(store, tokenizer, config(ten))
    released = TrainLoader(store, tokenizer, config({**ten, "data.lateral_pairing": "released"}))
    met: list[bool] = []
    for one, other in zip(corrected.batches(0), released.batches(0), strict=True):
        assert torch.equal(one.frontal, other.frontal) and torch.equal(one.token_ids, other.token_ids)
        assert other.lateral_row.tolist() == sorted(set(other.lateral_row.tolist()))
        # The same laterals, in other rows.
        assert len(other.lateral) == len(one.lateral)
        own = lateral_rows(store, other)
        assert sorted(own.values()) == sorted(lateral_rows(store, one).values())
        met += [study != lateral for study, lateral in own.items()]
    assert len(met) > 20 and 0.5 < np.mean(met) < 1.0


def test_released_pairing_is_right_where_nothing_is_reordered() -> None:
    windows = np.arange(12).reshape(3, 4)
    plan = plan_epoch(windows, np.array([], dtype=int), 12, 1, np.random.default_rng(0))[0]
    assert plan.lateral_rows.tolist() == plan.rows.tolist()
    mixed = plan_epoch(windows[:2], np.arange(8, 12), 12, 1, np.random.default_rng(0))[0]
    assert mixed.lateral_rows.tolist() != mixed.rows.tolist()
    # Each kind keeps its order: only the mixing is undone.
    assert [row for row in mixed.lateral_rows if row < 8] == mixed.rows[:8].tolist()
    assert [row for row in mixed.lateral_rows if row >= 8] == mixed.rows[8:].tolist()


# Evaluation batches


@pytest.mark.parametrize("split", ["validate", "test"])
def test_evaluation_sees_every_study_once_in_store_order(store: Store, tokenizer: Tokenizer, split: str) -> None:
    assert store.mimic is not None
    loader = EvalLoader(store, tokenizer, config({"data.lateral_fraction": 0.1, "data.sequences": "released"}), split)
    rows = np.flatnonzero(store.mimic.studies["split"] == split)
    batches = list(loader)
    assert torch.cat([batch.study for batch in batches]).tolist() == rows.tolist()
    assert len(batches) == len(loader) and loader.num_pairs == len(rows)
    assert all(batch.num_pairs <= BATCH for batch in batches)
    laterals = store.mimic.studies["lateral"].to_numpy()[rows]
    assert sum(len(batch.lateral) for batch in batches) == (laterals >= 0).sum()
    counts = store.mimic.studies.iloc[rows].groupby("subject_id").size()
    assert sum(len(batch.sequences) for batch in batches) == int((counts // 4).sum())
    for batch in batches:
        frontal = store.mimic.studies["frontal"].to_numpy()[batch.study.numpy()]
        assert torch.equal(batch.frontal, centre_crop(store.mimic.images[frontal], CROP))
        subjects = store.mimic.studies["subject_id"].to_numpy()[batch.study.numpy()]
        assert all(len(set(subjects[sequence])) == 1 for sequence in batch.sequences.tolist())


def test_frontal_views_alone_hold_in_evaluation_too(store: Store, tokenizer: Tokenizer) -> None:
    loader = EvalLoader(store, tokenizer, config({"data.views": "frontal"}), "test")
    assert sum(len(batch.lateral) for batch in loader) == 0


# Pixels


def test_unit_range_and_crops_by_hand() -> None:
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    assert crop(images, np.array([[0, 1], [2, 2]]), 2).tolist() == [[[[1, 2], [5, 6]]], [[[26, 27], [30, 31]]]]
    middle = centre_crop(images[:1], 2)
    assert middle.shape == (1, 1, 2, 2)
    assert middle.flatten().tolist() == pytest.approx([(value / 255 - 0.5) / 0.5 for value in (5, 6, 9, 10)], abs=1e-6)
    assert crop(images[:0], np.zeros((0, 2), dtype=int), 2).shape == (0, 1, 2, 2)


# Errors


def test_configs_that_the_store_cannot_serve(store: Store, tokenizer: Tokenizer) -> None:
    with pytest.raises(LoaderError, match=r"training\.pairs_per_batch=5000"):
        TrainLoader(store, tokenizer, config({"training.pairs_per_batch": 5000}))
    with pytest.raises(LoaderError, match=r"data\.image_size is 32"):
        TrainLoader(store, tokenizer, config({"data.image_size": 32}))
    with pytest.raises(LoaderError, match=r"word_aggregation is 'released'"):
        TrainLoader(store, tokenizer, config({"model.text.word_aggregation": "released"}))
    with pytest.raises(LoaderError, match="no study in split 'holdout'; there are: test, train, validate"):
        EvalLoader(store, tokenizer, config(), "holdout")
