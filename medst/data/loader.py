"""From the store to batches: pairs, windows of studies, their order in an epoch, crops.

What lives here: everything that decides which pairs a batch holds and what the model sees of them. What must not:
reading of raw files, the model, the budget.

All choices come from named random streams of the trial's seed, so that arms that share a seed share them.

Legend: B pairs, L laterals that exist, S sequences, T studies in a sequence, n all pairs, C side of the crop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from medst.config import Config, stream_seed
from medst.data.batch import Batch
from medst.data.prefetch import prefetched, to_device
from medst.data.store import MimicStore, Store
from medst.data.support import check_support
from medst.data.tokenizer import CaptionArrays, Tokenizer
from medst.data.views import VIEWS

_AHEAD = 2
"""Batches that are made ahead of an accelerator."""
_VIEW_CODE = {view: code for code, view in enumerate(VIEWS)}


class LoaderError(ValueError):
    """A config that the store cannot serve; the message names the remedy."""


@dataclass(frozen=True)
class Pairs:
    """All pairs of a split, by patient and time."""

    study: np.ndarray
    """(n,) row of the store's studies."""
    caption: np.ndarray
    """(n,) number of the study among those that were selected."""
    patient: np.ndarray
    """(n,) number of the patient; equal numbers stand together."""
    frontal: np.ndarray
    """(n,) image row."""
    frontal_view: np.ndarray
    """(n,) view code."""
    lateral: np.ndarray
    """(n,) image row, -1 where there is no lateral."""
    lateral_view: np.ndarray
    """(n,) view code, -1 where there is no lateral."""

    def __len__(self) -> int:
        return len(self.study)

    def windows(self, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut every patient's pairs into complete windows from the start.

        Returns:
            (num_windows, sequence_length) rows in time order, and (num_singles,) rows of the rests.
        """
        begins = np.flatnonzero(np.diff(self.patient, prepend=-1))
        counts = np.diff(begins, append=len(self.patient))
        num_windows = counts // sequence_length
        first = np.repeat(begins, num_windows)
        number = np.arange(len(first)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
        windows = (first + number * sequence_length)[:, None] + np.arange(sequence_length)
        is_single = np.ones(len(self.patient), dtype=bool)
        is_single[windows] = False
        return windows, np.flatnonzero(is_single)


@dataclass(frozen=True)
class PlannedBatch:
    """The pairs of one batch: sequences first, then single pairs."""

    rows: np.ndarray
    """(B,) rows of the pairs."""
    lateral_rows: np.ndarray
    """(B,) rows of the pairs whose lateral each row meets; `rows` itself where pairing is correct."""
    sequences: np.ndarray
    """(S, T) positions in `rows` of the complete sequences in time order."""


def plan_epoch(windows: np.ndarray, singles: np.ndarray, pairs_per_batch: int, num_batches: int,
               rng: np.random.Generator) -> list[PlannedBatch]:
    """Deal windows and single pairs out to batches of exactly `pairs_per_batch`, each pair at most once.

    Complete windows are spread evenly; those that do not fit are split into single pairs. What does not fill a batch
    is left out of this epoch.

    Args:
        windows: (num_windows, T) rows.
        singles: (num_singles,) rows.
        num_batches: at most the number of pairs over `pairs_per_batch`.
    """
    length = windows.shape[1]
    assert windows.size + singles.size >= num_batches * pairs_per_batch
    shuffled = windows[rng.permutation(len(windows))]
    num_kept = min(len(shuffled), num_batches * (pairs_per_batch // length))
    kept = shuffled[:num_kept]
    pool = rng.permutation(np.concatenate([singles, shuffled[num_kept:].ravel()]))
    batches = []
    num_taken = 0
    for number in range(num_batches):
        own = kept[number::num_batches]
        num_singles = pairs_per_batch - own.size
        own_singles = pool[num_taken:num_taken + num_singles]
        num_taken += num_singles
        # Windows and singles come mixed from the data set; collation puts the windows first, each kind in its order.
        units = [*own, *own_singles[:, None]]
        mixed = [units[unit] for unit in rng.permutation(len(units))]
        rows = np.concatenate(sorted(mixed, key=lambda unit: len(unit) == 1))
        batches.append(PlannedBatch(rows, np.concatenate(mixed), np.arange(own.size).reshape(-1, length)))
    return batches


class TrainLoader:
    """Batches of the training split. `len(loader)` is the number of batches in an epoch."""

    def __init__(self, store: Store, tokenizer: Tokenizer, config: Config, device: torch.device | str = "cpu",
                 rank: int = 0) -> None:
        """
        Args:
            rank: which of `training.world_size` processes this is; each takes its equal share of every batch, in order.

        Raises:
            LoaderError: the store lacks training pairs, or does not fit the config.
            SupportError: the data lack what the config wants to train on.
        """
        self._rank = rank
        self._mimic = _checked(store, tokenizer, config)
        check_support(store, config)
        self._config = config
        self._device = torch.device(device)
        kept_studies = _training_studies(self._mimic, config)
        self.pairs = select_pairs(self._mimic, kept_studies, config, is_training=True)
        self.num_pairs = len(kept_studies)
        """Pairs of an epoch: one a study, also where the windows hold several images of one study."""
        pairs_per_batch = config.training.pairs_per_batch
        self._num_batches = self.num_pairs // pairs_per_batch
        if self._num_batches == 0:
            raise LoaderError(f"{store.path}: {self.num_pairs} training pairs do not fill one batch of "
                              f"training.pairs_per_batch={pairs_per_batch}; lower it, or raise data.train_fraction")
        self._captions = _encode(self._mimic, kept_studies, tokenizer, config)

    def __len__(self) -> int:
        return self._num_batches

    def batches(self, epoch: int, start: int = 0, sequence_length: int | None = None) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch; each depends on seed, epoch and position alone.

        Args:
            sequence_length: studies in a complete sequence; None: `data.sequence_length`.
        """
        plans = enumerate(self.plan(epoch, sequence_length)[start:], start=start)
        batches = (self._assemble(plan, epoch, position) for position, plan in plans)
        # A processor that trains has no time to spare for a thread beside it.
        return batches if self._device.type == "cpu" else prefetched(batches, depth=_AHEAD)

    def plan(self, epoch: int, sequence_length: int | None = None) -> list[PlannedBatch]:
        """The rows of `pairs` that every batch of an epoch holds."""
        windows, singles = self.pairs.windows(sequence_length or self._config.data.sequence_length)
        rng = np.random.default_rng(stream_seed(self._config.seed, f"order.{epoch}"))
        return plan_epoch(windows, singles, self._config.training.pairs_per_batch, self._num_batches, rng)

    def _assemble(self, plan: PlannedBatch, epoch: int, position: int) -> Batch:
        data = self._config.data
        rng = np.random.default_rng((stream_seed(self._config.seed, "augmentation"), epoch, position))
        shape = (2, len(plan.rows), 2)
        # Drawn for the whole batch, so that a pair looks the same whichever process has it.
        num_own = len(plan.rows) // self._config.training.world_size
        own = slice(self._rank * num_own, (self._rank + 1) * num_own)
        corners = rng.integers(0, data.image_size - data.crop_size + 1, size=shape)[:, own]
        jitter = rng.uniform(-data.brightness_jitter, data.brightness_jitter, size=shape).astype(np.float32)[:, own]
        rows = plan.rows[own]
        lateral_rows = rows if data.lateral_pairing == "corrected" else plan.lateral_rows[own]
        has_lateral = self.pairs.lateral[lateral_rows] >= 0

        def view(images: np.ndarray, corners: np.ndarray, jitter: np.ndarray) -> Tensor:
            crops = crop(_read(self._mimic.images, images), corners, data.crop_size)
            crops = to_unit_range(to_device(crops, self._device))
            if data.brightness_jitter == 0:
                return crops
            gain, offset = to_device(torch.from_numpy(jitter), self._device).view(-1, 2, 1, 1, 1).unbind(1)
            return (crops * (1 + gain) + offset).clamp(-1.0, 1.0)

        return _batch(
            self.pairs, rows, lateral_rows, plan.sequences, self._captions, self._device,
            frontal=view(self.pairs.frontal[rows], corners[0], jitter[0]),
            lateral=view(self.pairs.lateral[lateral_rows[has_lateral]], corners[1, has_lateral],
                         jitter[1, has_lateral]))


class EvalLoader:
    """Batches of one split in store order, centre crop, one pair a study, nothing left out.

    Batches hold at most `training.pairs_per_batch` pairs; a window of `data.sequence_length` studies is never cut.
    """

    def __init__(self, store: Store, tokenizer: Tokenizer, config: Config, split: str,
                 device: torch.device | str = "cpu") -> None:
        """
        Args:
            split: train | validate | test.

        Raises:
            LoaderError: the split is empty, or the store does not fit the config.
        """
        self._mimic = _checked(store, tokenizer, config)
        self._crop_size = config.data.crop_size
        self._device = torch.device(device)
        rows = np.flatnonzero(self._mimic.studies["split"] == split)
        if len(rows) == 0:
            raise LoaderError(f"{store.path}: no study in split '{split}'; there are: "
                              f"{', '.join(sorted(self._mimic.studies['split'].unique()))}")
        self.pairs = select_pairs(self._mimic, rows, config, is_training=False)
        self.num_pairs = len(self.pairs)
        self._plans = _plan_in_order(self.pairs, config.data.sequence_length, config.training.pairs_per_batch)
        self._captions = _encode(self._mimic, rows, tokenizer, config)

    def __len__(self) -> int:
        return len(self._plans)

    def __iter__(self) -> Iterator[Batch]:
        def view(images: np.ndarray) -> Tensor:
            return centre_crop(_read(self._mimic.images, images), self._crop_size, self._device)

        for plan in self._plans:
            laterals = self.pairs.lateral[plan.rows]
            yield _batch(self.pairs, plan.rows, plan.rows, plan.sequences, self._captions, self._device,
                         frontal=view(self.pairs.frontal[plan.rows]), lateral=view(laterals[laterals >= 0]))


def select_pairs(mimic: MimicStore, studies: np.ndarray, config: Config, is_training: bool) -> Pairs:
    """The pairs that `studies` (rows of the store, ascending) give.

    A study is one pair, with its first frontal. In training under `data.sequences=released` every frontal is a pair.
    """
    table = mimic.studies.iloc[studies]
    lateral = table["lateral"].to_numpy().copy()
    if config.data.views == "frontal":
        lateral[:] = -1
    elif is_training:
        candidates = np.flatnonzero(lateral >= 0)
        rng = np.random.default_rng(stream_seed(config.seed, "lateral_fraction"))
        order = rng.permutation(candidates)
        lateral[order[round(config.data.lateral_fraction * len(order)):]] = -1
    frontal = table["frontal"].to_numpy()
    frontal_view = table["frontal_view"].map(_VIEW_CODE).to_numpy()
    number = np.arange(len(table))
    if is_training and config.data.sequences == "released":
        others = table["other_frontals"].to_list()
        counts = 1 + np.array([len(rows) for rows in others])
        number = np.repeat(number, counts)
        frontal = np.concatenate([np.concatenate([[first], rows]) for first, rows in zip(frontal, others, strict=True)])
        frontal = frontal.astype(np.int64)
        frontal_view = mimic.views["view"].map(_VIEW_CODE).to_numpy()[frontal]
    lateral_view = np.where(lateral >= 0, table["lateral_view"].map(_VIEW_CODE), -1).astype(np.int64)
    _, patient = np.unique(table["subject_id"].to_numpy(dtype=object), return_inverse=True)
    return Pairs(study=studies[number], caption=number, patient=patient[number], frontal=frontal,
                 frontal_view=frontal_view, lateral=lateral[number], lateral_view=lateral_view[number])


def crop(images: np.ndarray, corners: np.ndarray, size: int) -> Tensor:
    """(N, S, S) uint8 and (N, 2) top and left -> (N, 1, size, size) uint8."""
    windows = sliding_window_view(images, (size, size), axis=(1, 2))
    return torch.from_numpy(windows[np.arange(len(images)), corners[:, 0], corners[:, 1]]).unsqueeze(1)


def centre_crop(images: np.ndarray, size: int, device: torch.device | str = "cpu") -> Tensor:
    """(N, S, S) uint8 -> (N, 1, size, size) float in [-1, 1], from the middle (rounded towards top and left)."""
    first = (images.shape[1] - size) // 2
    middle = np.ascontiguousarray(images[:, first:first + size, first:first + size])
    return to_unit_range(to_device(torch.from_numpy(middle).unsqueeze(1), device))


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]: (u / 255 - 0.5) / 0.5."""
    return images.to(torch.float32).div_(255.0).sub_(0.5).div_(0.5)


def _checked(store: Store, tokenizer: Tokenizer, config: Config) -> MimicStore:
    if store.mimic is None:
        raise LoaderError(f"{store.path}: the store holds no MIMIC-CXR data, on which training and validation run")
    if store.image_size != config.data.image_size:
        raise LoaderError(f"{store.path}: the store holds images of {store.image_size} pixels, data.image_size is "
                          f"{config.data.image_size}; prepare a store of that size")
    if tokenizer.word_aggregation != config.model.text.word_aggregation:
        raise LoaderError(f"the tokenizer aggregates words in the manner '{tokenizer.word_aggregation}', "
                          f"model.text.word_aggregation is '{config.model.text.word_aggregation}'")
    return store.mimic


def _training_studies(mimic: MimicStore, config: Config) -> np.ndarray:
    """Rows of the training studies of the patients that `data.train_fraction` keeps, ascending."""
    is_train = (mimic.studies["split"] == "train").to_numpy()
    patients = np.unique(mimic.studies["subject_id"].to_numpy(dtype=object)[is_train])
    order = np.random.default_rng(stream_seed(config.seed, "train_fraction")).permutation(len(patients))
    kept = patients[order[:max(1, round(config.data.train_fraction * len(patients)))]] if len(patients) else patients
    return np.flatnonzero(is_train & mimic.studies["subject_id"].isin(kept).to_numpy())


def _plan_in_order(pairs: Pairs, sequence_length: int, pairs_per_batch: int) -> list[PlannedBatch]:
    windows, singles = pairs.windows(sequence_length)
    units = sorted([*windows, *singles[:, None]], key=lambda unit: int(unit[0]))
    groups: list[list[np.ndarray]] = []
    room = 0
    for unit in units:
        if len(unit) > room:
            groups.append([])
            room = max(pairs_per_batch, len(unit))
        groups[-1].append(unit)
        room -= len(unit)
    plans = []
    for group in groups:
        rows = np.concatenate(group)
        begins = np.cumsum([0, *(len(unit) for unit in group[:-1])])
        sequences = [begin + np.arange(sequence_length) for begin, unit in zip(begins, group, strict=True)
                     if len(unit) == sequence_length]
        plans.append(PlannedBatch(rows, rows, np.array(sequences, dtype=np.int64).reshape(-1, sequence_length)))
    return plans


_CAPTIONS: WeakKeyDictionary[Tokenizer, dict[tuple[str, int], tuple[pd.DataFrame, CaptionArrays]]] = (
    WeakKeyDictionary())
"""Encoded captions of whole stores, as long as their tokenizer lives: the trials of one worker share both."""


def _encode(mimic: MimicStore, studies: np.ndarray, tokenizer: Tokenizer, config: Config) -> CaptionArrays:
    """Captions of the studies, in their order; those of the whole store are encoded once."""
    if len(studies) == 0:
        raise ValueError("no text to encode")
    column, max_tokens = f"report_{config.data.report_text}", config.data.caption_tokens
    kept = _CAPTIONS.setdefault(tokenizer, {})
    table, captions = kept.get((column, max_tokens), (None, None))
    if table is not mimic.studies or captions is None:
        captions = tokenizer.encode_captions(mimic.studies[column].to_list(), max_tokens)
        kept[column, max_tokens] = mimic.studies, captions
    return CaptionArrays(captions.token_ids[studies], captions.word_of_token[studies], captions.lengths[studies])


def _read(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a memory-mapped array, read in the order in which they lie in the file."""
    order = np.argsort(rows, kind="stable")
    read = np.empty((len(rows), *images.shape[1:]), dtype=images.dtype)
    read[order] = images[rows[order]]
    return read


def _batch(pairs: Pairs, rows: np.ndarray, lateral_rows: np.ndarray, sequences: np.ndarray, captions: CaptionArrays,
           device: torch.device, *, frontal: Tensor, lateral: Tensor) -> Batch:
    """Put a batch together; `lateral_rows` names the pair whose lateral each row meets. What routes tokens stays on the
    host, as `Batch.to` would leave it."""
    study = pairs.study[rows]
    has_lateral = pairs.lateral[lateral_rows] >= 0
    encoded = captions.batch(pairs.caption[rows])

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64))

    return Batch(
        frontal=frontal, frontal_view=tensor(pairs.frontal_view[rows]), lateral=lateral,
        lateral_view=tensor(pairs.lateral_view[lateral_rows[has_lateral]]),
        lateral_row=tensor(np.flatnonzero(has_lateral)), token_ids=to_device(encoded.token_ids, device),
        attention_mask=to_device(encoded.attention_mask, device), word_of_token=encoded.word_of_token,
        study=to_device(tensor(study), device), sequences=to_device(tensor(sequences), device))
