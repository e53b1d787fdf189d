"""Embeddings of the store's images and of texts, each computed once and shared among the tasks.

What lives here: the frozen context that every evaluator gets, and the cache behind it. What must not: scores.

Legend: n rows asked for, E embedding width, D encoder width, P patches of one image, N word slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medst.config import Config
from medst.data.images import equalise_squares
from medst.data.loader import centre_crop
from medst.data.store import Store
from medst.data.tokenizer import Tokenizer
from medst.data.views import FRONTAL_VIEWS, LATERAL_VIEWS, VIEWS
from medst.model.joint import JointModel, PairModel
from medst.model.outputs import TextFeatures

ImageSet = Literal["mimic", "rsna", "covidx"]

_TOKENS_PER_CALL = 16384
"""Image tokens in one forward pass: large enough to fill a device, small enough to stay in a cache."""
_TEXTS_PER_CALL = 256


class _Rows:
    """Results by row, filled on demand."""

    def __init__(self, num_rows: int) -> None:
        self.is_known = np.zeros(num_rows, dtype=bool)
        self.arrays: dict[str, np.ndarray] = {}

    def missing(self, rows: np.ndarray) -> np.ndarray:
        return np.unique(rows[~self.is_known[rows]])

    def put(self, rows: np.ndarray, **values: Tensor) -> None:
        for name, value in values.items():
            array = value.float().cpu().numpy()
            if name not in self.arrays:
                self.arrays[name] = np.zeros((len(self.is_known), *array.shape[1:]), dtype=np.float32)
            self.arrays[name][rows] = array
        self.is_known[rows] = True


class EmbeddingCache:
    """Embeddings of one frozen model, computed in evaluation mode and float32, without gradients."""

    def __init__(self, model: JointModel, store: Store, tokenizer: Tokenizer, config: Config, device: torch.device
                 ) -> None:
        self._model = model
        self._store = store
        self._tokenizer = tokenizer
        self._config = config
        self._device = device
        self._frontal: dict[ImageSet, _Rows] = {}
        self._patches: dict[int, np.ndarray] = {}
        """MIMIC image -> (P, E); a dense array over all images would be too large at full size."""
        self._boxed = np.zeros(0, dtype=np.int64)
        """MIMIC images whose patches are kept when the image is encoded."""
        if "grounding" in config.evaluation.tasks and store.ms_cxr is not None:
            self._boxed = store.ms_cxr.table["image"].unique()
        self._studies: _Rows | None = None
        self._texts: dict[str, np.ndarray] = {}

    def images(self, name: ImageSet) -> np.ndarray:
        """(N, S, S) uint8 images of one data set of the store."""
        dataset = getattr(self._store, name)
        assert dataset is not None, f"the store has no {name}"
        return dataset.images

    def frontal(self, name: ImageSet, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, E) unit embeddings of single images, as frontal views alone."""
        return self._single_view(name, np.asarray(rows, dtype=np.int64)).arrays["embedding"][rows]

    def class_tokens(self, name: ImageSet, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, D) class tokens of single images, before the projection."""
        return self._single_view(name, np.asarray(rows, dtype=np.int64)).arrays["cls"][rows]

    def studies(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, E) unit embeddings of studies of the store: the frontal with its lateral, where it has one.

        With `data.views=frontal` and for studies without a lateral this is the frontal embedding: an absent
        lateral never reaches the class token.
        """
        mimic = self._store.mimic
        assert mimic is not None
        rows = np.asarray(rows, dtype=np.int64)
        frontal = mimic.studies["frontal"].to_numpy()
        lateral = mimic.studies["lateral"].to_numpy()
        if self._studies is None:
            self._studies = _Rows(len(mimic.studies))
        missing = self._studies.missing(rows)
        is_two_view = (lateral[missing] >= 0) & (self._config.data.views == "both")
        single = missing[~is_two_view]
        if len(single):
            self._studies.put(single, embedding=torch.from_numpy(self.frontal("mimic", frontal[single])))
        frontal_views, lateral_views = self._view_codes("mimic", "frontal"), self._view_codes("mimic", "lateral")
        for part in self._parts(missing[is_two_view], images_per_row=2):
            with torch.no_grad():
                features = self._model.encode_images(
                    self._pixels("mimic", frontal[part]),
                    torch.from_numpy(frontal_views[frontal[part]]),
                    self._pixels("mimic", lateral[part]),
                    torch.from_numpy(lateral_views[lateral[part]]),
                    torch.arange(len(part)),
                )
                self._studies.put(part, embedding=self._model.embed_images(features))
        return self._studies.arrays["embedding"][rows]

    def patches(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, P, E) unit patch embeddings of MIMIC frontal images with boxes, row by row of the patch grid."""
        self._single_view("mimic", np.asarray(rows, dtype=np.int64))
        return np.stack([self._patches[int(row)] for row in rows])

    def pairs(self, rows: Sequence[int] | np.ndarray, previous: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """(n, E) unit embeddings of MIMIC frontal images, each read together with an earlier one.

        None where the model reads images one by one.
        """
        if not isinstance(self._model, PairModel):
            return None
        rows, previous = (np.asarray(part, dtype=np.int64) for part in (rows, previous))
        embeddings = []
        for part in self._parts(np.arange(len(rows)), images_per_row=2):
            with torch.no_grad():
                features = self._model.encode_pairs(self._pixels("mimic", rows[part]),
                                                    self._pixels("mimic", previous[part]))
                embeddings.append(self._model.embed_images(features).float().cpu().numpy())
        return np.concatenate(embeddings)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, E) unit report embeddings; equal texts are encoded once."""
        # Neighbours in length share a batch, so that little of it is padding.
        missing = sorted({text for text in texts if text not in self._texts}, key=lambda text: (len(text), text))
        for start in range(0, len(missing), _TEXTS_PER_CALL):
            part = missing[start:start + _TEXTS_PER_CALL]
            with torch.no_grad():
                embeddings = self._model.embed_reports(self._encode_texts(part)).cpu().numpy()
            self._texts.update(zip(part, embeddings, strict=True))
        return np.stack([self._texts[text] for text in texts])

    def text_projections(self, texts: Sequence[str]) -> np.ndarray:
        """(n, E) report projections before they are brought to unit length."""
        with torch.no_grad():
            return self._model.project_reports(self._encode_texts(list(texts))).float().cpu().numpy()

    def words(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unit word embeddings (n, N, E) of short texts and the mask (n, N), True = a word of the text.

        [CLS] and [SEP] are left out; where the model embeds whole phrases alone, a text is one word.
        """
        with torch.no_grad():
            words, mask = self._model.embed_words(self._encode_texts(list(texts)))
        return words.float().cpu().numpy(), mask.cpu().numpy()

    def _encode_texts(self, texts: list[str]) -> TextFeatures:
        encoded = self._tokenizer.encode_batch(texts, self._config.data.caption_tokens)
        # What routes tokens (word slots here, view codes below) stays on the host, as in a training batch.
        return self._model.encode_text(encoded.token_ids.to(self._device), encoded.attention_mask.to(self._device),
                                       encoded.word_of_token)

    def _single_view(self, name: ImageSet, rows: np.ndarray) -> _Rows:
        if name not in self._frontal:
            self._frontal[name] = _Rows(len(self.images(name)))
        known = self._frontal[name]
        views = self._view_codes(name, "frontal")
        for part in self._parts(known.missing(rows)):
            with torch.no_grad():
                features = self._model.encode_images(self._pixels(name, part), torch.from_numpy(views[part]))
                known.put(part, embedding=self._model.embed_images(features), cls=features.cls)
                boxed = np.flatnonzero(np.isin(part, self._boxed)) if name == "mimic" else np.zeros(0, dtype=np.int64)
                if len(boxed):
                    tokens = features.frontal_patches[torch.from_numpy(boxed).to(self._device)]
                    projected = self._model.embed_patches(tokens).cpu().numpy()
                    self._patches.update(zip(part[boxed].tolist(), projected, strict=True))
        return known

    def _parts(self, rows: np.ndarray, images_per_row: int = 1) -> Iterator[np.ndarray]:
        patches = (self._config.data.crop_size // self._config.model.image.patch_size) ** 2
        size = max(1, _TOKENS_PER_CALL // (1 + patches * images_per_row))
        for start in range(0, len(rows), size):
            yield rows[start:start + size]

    def _pixels(self, name: ImageSet, rows: np.ndarray) -> Tensor:
        images = self.images(name)[rows]
        if name != "mimic" and self._config.evaluation.equalisation == "corrected":
            images = equalise_squares(images)
        return centre_crop(images, self._config.data.crop_size, self._device)

    def _view_codes(self, name: ImageSet, projection: Literal["frontal", "lateral"]) -> np.ndarray:
        """(N,) int64 view code of every image, as a view of that projection; unknown ones as PA or LATERAL."""
        fallback, allowed = (VIEWS.index("PA"), FRONTAL_VIEWS) if projection == "frontal" else (
            VIEWS.index("LATERAL"), LATERAL_VIEWS)
        codes = np.full(len(self.images(name)), fallback, dtype=np.int64)
        stated = None
        if name == "mimic" and self._store.mimic is not None:
            stated = self._store.mimic.views
        elif name == "rsna" and self._store.rsna is not None:
            stated = self._store.rsna.table
        if stated is not None:
            is_named = stated["view"].isin(allowed).to_numpy()
            codes[stated["image"].to_numpy()[is_named]] = [VIEWS.index(view) for view in stated["view"][is_named]]
        return codes
