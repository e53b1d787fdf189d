"""A made-up store whose images and texts are read by an oracle: a model whose embeddings are made from the truth.

Axes of the embedding: for every finding one for present and one for absent, then NUM_STUDY_AXES that tell studies
apart. A finding of severity s has the coordinates (sin, cos)(s * pi / 2), so that all embeddings are equally long.
Pixels hold nothing but the number of the image and of its data set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from medst.config import Config, load_config
from medst.data.published_splits import published_covidx_split, published_rsna_split
from medst.data.store import CovidxStore, MimicStore, MsCxrStore, MsCxrTStore, RsnaStore, Store
from medst.evaluation.context import EvaluationContext
from medst.evaluation.embeddings import EmbeddingCache
from medst.evaluation.prompts import FINDINGS

SIDE, CROP, PATCH = 18, 16, 4
GRID = CROP // PATCH
NUM_STUDY_AXES = 48
NAMES = list(FINDINGS)
WIDTH = 2 * len(NAMES) + NUM_STUDY_AXES
SETS = ("mimic", "rsna", "covidx")
COVIDX_CLASSES = ("normal", "pneumonia", "COVID-19")
_NOUNS = {"consolidation": ("consolidation",), "edema": ("edema",), "pleural_effusion": ("effusion",),
          "pneumonia": ("pneumonia", "opacity", "opacities"), "pneumothorax": ("pneumothorax",)}


def small_config(**overrides: object) -> Config:
    """A config that fits the images of the made-up store."""
    return load_config(overrides={"data.image_size": SIDE, "data.crop_size": CROP, "model.image.patch_size": PATCH,
                                  # An image tells its row by its grey values.
                                  "evaluation.equalisation": "released",
                                  **{key.replace("__", "."): value for key, value in overrides.items()}})


@dataclass
class World:
    """The store and what the oracle knows."""

    store: Store
    images: dict[str, np.ndarray]
    """Data set -> (N, WIDTH) embedding of an image seen alone."""
    two_view: dict[int, np.ndarray]
    """Image row of a lateral -> (WIDTH,) embedding of its study."""
    classes: np.ndarray
    """(N,) class of every COVIDx image."""
    boxes: dict[int, tuple[str, np.ndarray]]
    """MIMIC image -> finding and (GRID, GRID) bool patches inside its box."""
    studies: np.ndarray
    """(n, NUM_STUDY_AXES) of every study; report texts name its row."""
    visited: list[tuple[str, int]] = field(default_factory=list)
    """Images that a model was asked for, to count computations."""
    texts_encoded: list[str] = field(default_factory=list)


def concept(severities: np.ndarray) -> np.ndarray:
    """(n, 5) severities -> (n, 10) coordinates, present and absent of each finding in turn."""
    angle = severities * np.pi / 2
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(severities), -1)


def numbered_images(name: str, count: int) -> np.ndarray:
    """(count, SIDE, SIDE) uint8 whose central pixels hold data set and row."""
    images = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    images[:, 4, 4], images[:, 4, 5] = np.arange(count) % 256, np.arange(count) // 256
    images[:, 4, 6] = SETS.index(name)
    return images


def make_world(seed: int = 0, num_patients: int = 150) -> World:
    """Patients 0..num_patients - 1 of three studies: half train, a sixth validate, the rest test."""
    rng = np.random.default_rng(seed)
    studies, severities, views, frontal_image = [], [], [], []
    image = 0
    for patient in range(num_patients):
        split = "train" if patient % 6 < 3 else "validate" if patient % 6 == 3 else "test"
        state = rng.choice([0.0, 0.5, 1.0], 5)
        for visit in range(3):
            state = np.where(rng.random(5) < 0.6, rng.choice([0.0, 0.5, 1.0], 5), state)
            has_lateral = rng.random() < 0.6
            frontal, lateral = image, image + 1 if has_lateral else -1
            image += 2 if has_lateral else 1
            row = len(studies)
            studies.append({
                "subject_id": f"{10000 + patient}", "study_id": f"{50000 + row}",
                "time": pd.Timestamp("2150-01-01") + pd.Timedelta(days=10 * visit), "split": split,
                "frontal": frontal, "frontal_view": "AP", "other_frontals": [], "lateral": lateral,
                "lateral_view": "LL" if has_lateral else "", "report_released": f"study {row}",
                "report_corrected": f"study {row}", "sex": "FM"[patient % 2], "age": 20.0 + patient % 70})
            views.append((frontal, "AP", row))
            if has_lateral:
                views.append((lateral, "LL", row))
            severities.append(state)
            frontal_image.append(frontal)
    severity = np.array(severities)
    frame = pd.DataFrame(studies)
    # A tenth of the present findings of studies with a lateral shows on the lateral only.
    is_hidden = (severity > 0) & (rng.random(severity.shape) < 0.2) & (frame["lateral"] >= 0).to_numpy()[:, None]
    for column, name in enumerate(NAMES):
        labels = np.where(severity[:, column] > 0, 1.0, np.where(rng.random(len(frame)) < 0.5, np.nan, 0.0))
        frame[f"label_{name}"] = labels
    view_table = pd.DataFrame({
        "image": [entry[0] for entry in views], "dicom_id": [f"d{entry[0]}" for entry in views],
        "study_id": frame["study_id"].to_numpy()[[entry[2] for entry in views]],
        "subject_id": frame["subject_id"].to_numpy()[[entry[2] for entry in views]],
        "view": [entry[1] for entry in views]})
    axes = rng.normal(size=(len(frame), NUM_STUDY_AXES))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    whole = np.concatenate([concept(severity), axes], axis=1)
    seen = np.concatenate([concept(np.where(is_hidden, 0.0, severity)), axes], axis=1)
    mimic_embeddings = np.zeros((image, WIDTH))
    mimic_embeddings[frontal_image] = seen
    two_view = {int(row.lateral): whole[row.Index] for row in frame.itertuples() if row.lateral >= 0}

    truth = [{"image": frontal_image[row], "finding": NAMES[column], "severity": severity[row, column],
              "is_lateral_only": bool(is_hidden[row, column])}
             for row, column in zip(*np.nonzero(severity), strict=True)]
    pairs = []
    for row in range(1, len(frame)):
        if frame["subject_id"][row] == frame["subject_id"][row - 1]:
            before, now = (np.where(is_hidden[index], 0.0, severity[index]) for index in (row - 1, row))
            change = np.sign(now - before)
            label = {1.0: "worsening", 0.0: "stable", -1.0: "improving"}
            pairs.append({
                "image": frontal_image[row], "previous_image": frontal_image[row - 1],
                "split": frame["split"][row], "subject_id": frame["subject_id"][row],
                "study_id": frame["study_id"][row], "previous_study_id": frame["study_id"][row - 1],
                **{name: label[change[column]] if before[column] or now[column] else None
                   for column, name in enumerate(NAMES)}})
    sentences = pd.DataFrame([
        {"sentence_1": f"the {_NOUNS[name][0]} has worsened {number}",
         "sentence_2": f"{'increased' if same else 'decreased'} {_NOUNS[name][0]} {number}",
         "category": "paraphrase" if same else "contradiction", "subset_name": subset}
        for number in range(12) for name in NAMES for same in (True, False) for subset in ("RadGraph", "Swaps")])

    boxes, box_rows = {}, []
    for row in range(0, len(frame), 2):
        named, corner = NAMES[rng.integers(5)], rng.integers(0, GRID - 1, 2)
        patches = np.zeros((GRID, GRID), dtype=bool)
        patches[corner[0]:corner[0] + 2, corner[1]:corner[1] + 2] = True
        boxes[frontal_image[row]] = (named, patches)
        margin = (SIDE - CROP) // 2
        box_rows.append({"image": frontal_image[row], "phrase": f"small {_NOUNS[named][0]}",
                         "finding": named, "x": (corner[1] * PATCH + margin) / SIDE,
                         "y": (corner[0] * PATCH + margin) / SIDE, "w": 2 * PATCH / SIDE, "h": 2 * PATCH / SIDE})

    # These images speak of pneumonia alone.
    column = 2 * NAMES.index("pneumonia")
    rsna_embeddings = np.zeros((200, WIDTH))
    rsna_embeddings[:, column:column + 2] = np.where(np.arange(200)[:, None] % 3 == 0, [1.0, 0.0], [0.0, 1.0])
    rsna = pd.DataFrame({"image": np.arange(200), "patient_id": [f"r{row}" for row in range(200)],
                         "target": (np.arange(200) % 3 == 0).astype(int), "boxes": [[]] * 200, "view": "PA"})
    rsna["published_split"] = published_rsna_split(rsna["patient_id"])
    classes = rng.integers(0, 3, 400)
    covidx = pd.DataFrame({"image": np.arange(400), "patient_id": [f"c{row // 2}" for row in range(400)],
                           "label": [COVIDX_CLASSES[value] for value in classes], "source": "x",
                           "split": np.where(np.arange(400) < 300, "train", "test")})
    covidx = pd.concat([covidx, published_covidx_split(300)], axis=1).fillna(
        {"published_split": "test", "published_order": 0, "published_percent": 0})
    store = Store(
        path=Path("nowhere"), fingerprint="0123456789abcdef", name="made up", is_credentialed=False, image_size=SIDE,
        steps=(), problems=pd.DataFrame(),
        mimic=MimicStore(numbered_images("mimic", image), view_table, frame, pd.DataFrame(truth), None),
        ms_cxr_t=MsCxrTStore(pd.DataFrame(pairs), sentences, frozenset(frame["subject_id"])),
        ms_cxr=MsCxrStore(pd.DataFrame(box_rows), frozenset(frame["subject_id"].iloc[::2])),
        rsna=RsnaStore(numbered_images("rsna", 200), rsna), covidx=CovidxStore(numbered_images("covidx", 400), covidx))
    return World(store, {"mimic": mimic_embeddings, "rsna": rsna_embeddings}, two_view, classes, boxes, axes)


class Encoded(NamedTuple):
    token_ids: Tensor
    attention_mask: Tensor
    word_of_token: Tensor


class OracleTokenizer:
    """Passes the number of a text in place of its tokens."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode_batch(self, texts: list[str], max_tokens: int) -> Encoded:
        self.texts += texts
        numbers = torch.arange(len(self.texts) - len(texts), len(self.texts))[:, None]
        return Encoded(numbers, torch.ones_like(numbers), torch.zeros_like(numbers))


class UnitHead(nn.Module):
    """Brings to unit length, and does nothing before that."""

    def project(self, vectors: Tensor) -> Tensor:
        return vectors

    def forward(self, vectors: Tensor) -> Tensor:
        return normalize(self.project(vectors).float(), dim=-1)


@dataclass(frozen=True)
class OracleFeatures:
    cls: Tensor
    frontal_patches: Tensor


@dataclass(frozen=True)
class OracleText:
    report: Tensor
    words: Tensor
    word_mask: Tensor


class OracleModel(nn.Module):
    """Embeds from the truth of the world."""

    def __init__(self, world: World, tokenizer: OracleTokenizer) -> None:
        super().__init__()
        self.world = world
        self.tokenizer = tokenizer
        self.head = UnitHead()

    def image_vector(self, name: str, row: int) -> np.ndarray:
        if name == "covidx":
            # Class tokens: one axis a class.
            return np.eye(WIDTH)[self.world.classes[row]]
        return self.world.images[name][row]

    def study_vector(self, lateral: int) -> np.ndarray:
        return self.world.two_view[lateral]

    def patch_vectors(self, row: int) -> np.ndarray:
        finding, inside = self.world.boxes[row]
        vectors = np.tile(concept(np.zeros((1, 5))), (GRID * GRID, 1))
        present = np.zeros((1, 5))
        present[0, NAMES.index(finding)] = 1.0
        vectors[inside.ravel()] = concept(present)
        return np.concatenate([vectors, np.zeros((len(vectors), NUM_STUDY_AXES))], axis=1)

    def text_vector(self, text: str) -> np.ndarray:
        vector = np.zeros(WIDTH)
        words = text.lower().replace(".", " ").split()
        if words and words[0] == "study":
            row = int(words[1])
            mimic = self.world.store.mimic
            assert mimic is not None
            labels = mimic.studies[[f"label_{name}" for name in NAMES]].fillna(0).to_numpy()
            vector[:10] = concept(labels[row:row + 1])[0] * 0.5
            vector[10:] = self.world.studies[row]
            return vector
        is_negative = bool({"no", "clear", "improved", "decreased", "improvement"} & set(words))
        for column, name in enumerate(NAMES):
            if any(word.startswith(_NOUNS[name]) for word in words):
                vector[2 * column + is_negative] = 1.0
        if not vector.any() and is_negative:
            vector[1:10:2] = 1.0
        return vector

    def encode_images(self, frontal: Tensor, frontal_view: Tensor, lateral: Tensor | None = None,
                      lateral_view: Tensor | None = None, lateral_row: Tensor | None = None) -> OracleFeatures:
        assert not self.training
        assert set(frontal_view.tolist()) <= {0, 1}
        assert frontal.shape[1:] == (1, CROP, CROP) and frontal.min() >= -1
        vectors, patches = [], []
        for position, (name, row) in enumerate(self._numbers(frontal)):
            self.world.visited.append((name if lateral is None else "study", row))
            if lateral is None:
                vectors.append(self.image_vector(name, row))
            else:
                assert lateral_row is not None and lateral_row.tolist() == list(range(len(frontal)))
                assert lateral_view is not None and set(lateral_view.tolist()) <= {2, 3}
                vectors.append(self.study_vector(self._numbers(lateral)[position][1]))
            patches.append(self.patch_vectors(row) if row in self.world.boxes and name == "mimic"
                           else np.zeros((GRID * GRID, WIDTH)))
        return OracleFeatures(torch.tensor(np.array(vectors)), torch.tensor(np.array(patches)))

    def encode_text(self, token_ids: Tensor, attention_mask: Tensor, word_of_token: Tensor) -> OracleText:
        texts = [self.tokenizer.texts[number] for number in token_ids[:, 0].tolist()]
        self.world.texts_encoded += texts
        vectors = np.array([self.text_vector(text) for text in texts])
        # Two words and padding (whose vector would point away from the box).
        words = np.stack([vectors, vectors, -9.0 * vectors], axis=1)
        mask = torch.tensor([[True, True, False]] * len(texts))
        return OracleText(torch.tensor(vectors), torch.tensor(words), mask)

    def embed_images(self, features: OracleFeatures) -> Tensor:
        return self.head(features.cls)

    def embed_patches(self, patches: Tensor) -> Tensor:
        return self.head(patches)

    def embed_reports(self, features: OracleText) -> Tensor:
        return self.head(features.report)

    def project_reports(self, features: OracleText) -> Tensor:
        return self.head.project(features.report)

    def embed_words(self, features: OracleText) -> tuple[Tensor, Tensor]:
        return self.head(features.words), features.word_mask

    def _numbers(self, images: Tensor) -> list[tuple[str, int]]:
        corner = (SIDE - CROP) // 2
        values = ((images[:, 0, 4 - corner, 4 - corner:7 - corner] + 1) / 2 * 255).round().long().tolist()
        return [(SETS[name], low + 256 * high) for low, high, name in values]


class RandomModel(OracleModel):
    """Says nothing about its inputs: a fixed random vector for every image, study, patch and text."""

    def __init__(self, world: World, tokenizer: OracleTokenizer, seed: int = 1) -> None:
        super().__init__(world, tokenizer)
        self.seed = seed

    def _random(self, kind: int, number: int, *shape: int) -> np.ndarray:
        return np.random.default_rng((self.seed, kind, number)).normal(size=(*shape, WIDTH))

    def image_vector(self, name: str, row: int) -> np.ndarray:
        return self._random(SETS.index(name), row)

    def study_vector(self, lateral: int) -> np.ndarray:
        return self._random(3, lateral)

    def patch_vectors(self, row: int) -> np.ndarray:
        return self._random(4, row, GRID * GRID)

    def text_vector(self, text: str) -> np.ndarray:
        return self._random(5, int.from_bytes(text.encode(), "big"))


def make_context(world: World, config: Config | None = None, model: type[OracleModel] = OracleModel
                 ) -> EvaluationContext:
    """A context of the oracle (or the random model) on a world."""
    config = config or small_config()
    tokenizer = OracleTokenizer()
    oracle = model(world, tokenizer).eval()
    device = torch.device("cpu")
    return EvaluationContext(oracle, world.store, tokenizer, config, device, 7,  # type: ignore[arg-type]
                             EmbeddingCache(oracle, world.store, tokenizer, config, device))  # type: ignore[arg-type]
