"""What the evaluators ask of a model of images and texts, whoever trained it. No computation here.

Legend: B images or texts, L laterals, W token positions, P patches of one image, N words, D encoder width, E
embedding width.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from medst.model.outputs import ImageFeatures, TextFeatures


class JointModel(Protocol):
    """An encoder of images and one of texts with one embedding space, as evaluation uses them: frozen."""

    training: bool

    def eval(self) -> Any:
        """Into evaluation mode."""

    def train(self, mode: bool = True) -> Any:
        """Into training mode, or back."""

    def to(self, device: Any) -> Any:
        """All weights onto a device."""

    def encode_images(self, frontal: Tensor, frontal_view: Tensor, lateral: Tensor | None = None,
                      lateral_view: Tensor | None = None, lateral_row: Tensor | None = None) -> ImageFeatures:
        """Images (B, 1, H, W) in [-1, 1] with their view codes (B,), and laterals (L, ...) with the rows they go to."""

    def encode_text(self, token_ids: Tensor, attention_mask: Tensor, word_of_token: Tensor) -> TextFeatures:
        """Texts, each argument (B, W) int64."""

    def embed_images(self, features: ImageFeatures) -> Tensor:
        """(B, E) unit embeddings of whole images."""

    def embed_patches(self, patches: Tensor) -> Tensor:
        """(B, P, D) patches of `ImageFeatures` -> (B, P, E) unit embeddings."""

    def embed_reports(self, features: TextFeatures) -> Tensor:
        """(B, E) unit embeddings of whole texts."""

    def project_reports(self, features: TextFeatures) -> Tensor:
        """The same before they are brought to unit length."""

    def embed_words(self, features: TextFeatures) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, N, E) of what grounding looks for, and the mask (B, N), True = there is one."""


@runtime_checkable
class PairModel(Protocol):
    """A model that also reads an image together with an earlier one."""

    def encode_pairs(self, current: Tensor, previous: Tensor) -> ImageFeatures:
        """Images (B, 1, H, W) in [-1, 1] and the earlier ones, alike -> features of the current, as it has changed."""
