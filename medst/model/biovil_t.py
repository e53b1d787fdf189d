"""BioViL-T, for evaluation: an image encoder that may see an earlier image, and a BERT, in one embedding space.

Facts of the architecture: arXiv 2301.04558 and the authors' package hi-ml-multimodal. A residual network gives a grid
of patches, reduced to 256 channels. Those of the current and of the previous image pass a small transformer together,
whose outputs for the current patches say what has changed; without a previous image one learned vector stands there.
Both halves, one after the other, are a patch's features; the embedding of an image is the mean of its projected
patches. A text is embedded by its projected [CLS] alone, and so is a phrase that is to be grounded.

What must not live here: reading of files (biovil_t_weights.py).

Legend: B images or texts, W token positions, h x w patches, P = h w, C reduced channels, D = 2 C, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn
from transformers import BertConfig

from medst.config import TextEncoderConfig
from medst.model.outputs import ImageFeatures, TextFeatures
from medst.model.text import TextEncoder

Trunk = Literal["resnet18", "resnet50"]
_TRUNK_WIDTHS: Mapping[Trunk, int] = {"resnet18": 512, "resnet50": 2048}

REDUCED_WIDTH = 256
NUM_BLOCKS, NUM_HEADS = 3, 8
PATCH_SIZE = 32
"""Pixels of a patch's side: the stride of the residual network."""
_IMAGES_PER_CALL = 16
"""At 448 pixels the activations of one image take 50 MB."""


def sine_positions(height: int, width: int, channels: int) -> Tensor:
    """(height * width, channels) fixed positions of a grid, row by row: half of the channels for y, half for x.

    The place 1..n of a row or column becomes the angle 2 pi place / n; channel pairs (sine, cosine) divide it by
    10 000 ** (2 k / (channels / 2)), k = 0, 1, ...
    """
    half = channels // 2
    divisors = 10000.0 ** (2.0 * torch.arange(half // 2) / half)

    def axis(count: int) -> Tensor:
        places = torch.arange(1, count + 1, dtype=torch.float32)
        angles = (2 * math.pi * places / (count + 1e-6))[:, None] / divisors
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (count, half)

    rows, columns = axis(height), axis(width)
    return torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1).flatten(0, 1)


class PoolerBlock(nn.Module):
    """Pre-norm transformer block; positions are added again before each attention, to queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, width)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """(B, 2 P, C) and (2 P, C) -> (B, 2 P, C)."""
        placed = self.norm1(tokens) + places
        query, key, value = (layer(placed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                             for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.output(mixed)
        return tokens + self.mlp(self.norm2(tokens))


class TemporalPooler(nn.Module):
    """Transformer over the patches of the current and the previous image."""

    def __init__(self, width: int = REDUCED_WIDTH, num_blocks: int = NUM_BLOCKS, num_heads: int = NUM_HEADS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PoolerBlock(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.types = nn.Parameter(torch.randn(2, 1, width) * 0.02)
        """Current image, previous image."""

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """(B, C, h, w), (B, C, h, w) -> (B, C, h, w): how each patch of the current image has changed."""
        height, width = current.shape[2:]
        positions = sine_positions(height, width, current.shape[1]).to(current)
        places = torch.cat([positions + self.types[0], positions + self.types[1]])
        tokens = torch.cat([current.flatten(2), previous.flatten(2)], dim=2).transpose(1, 2)  # (B, 2 P, C)
        for block in self.blocks:
            tokens = block(tokens, places)
        return self.norm(tokens)[:, :height * width].transpose(1, 2).unflatten(2, (height, width))


class TemporalImageEncoder(nn.Module):
    """Residual network, reduction, and the pooler or what stands for it."""

    def __init__(self, trunk: Trunk = "resnet50") -> None:
        super().__init__()
        self.trunk = timm.create_model(trunk, pretrained=False, num_classes=0, global_pool="")
        self.reduction = nn.Conv2d(_TRUNK_WIDTHS[trunk], REDUCED_WIDTH, 1, bias=False)
        self.pooler = TemporalPooler()
        self.missing_previous = nn.Parameter(torch.randn(1, REDUCED_WIDTH, 1, 1) * 0.02)

    def forward(self, current: Tensor, previous: Tensor | None = None) -> Tensor:
        """Grey images (B, 1, H, W) in [-1, 1] -> patch features (B, D, h, w)."""
        static = self._patches(current)
        if previous is None:
            change = self.missing_previous.expand_as(static)
        else:
            change = self.pooler(static, self._patches(previous))
        return torch.cat([static, change], dim=1)

    def _patches(self, images: Tensor) -> Tensor:
        # The network was trained on [0, 1], the same in three channels.
        return self.reduction(self.trunk(((images + 1) / 2).expand(-1, 3, -1, -1)))


class BioViLT(nn.Module):
    """Both encoders with their projections: a `JointModel` and a `PairModel`.

    Shapes are those of these protocols; frontal images only, without laterals.
    """

    def __init__(self, architecture: BertConfig, *, trunk: Trunk = "resnet50", embedding_width: int = 128) -> None:
        super().__init__()
        width = 2 * REDUCED_WIDTH
        self.image_encoder = TemporalImageEncoder(trunk)
        self.image_projection = nn.Sequential(
            nn.Conv2d(width, embedding_width, 1, bias=False), nn.BatchNorm2d(embedding_width), nn.ReLU(),
            nn.Conv2d(embedding_width, embedding_width, 1))
        self.text_encoder = TextEncoder(architecture, TextEncoderConfig(), seed=0)
        self.text_projection = nn.Sequential(
            nn.Linear(architecture.hidden_size, embedding_width), nn.GELU(),
            nn.LayerNorm(embedding_width, eps=1e-12), nn.Linear(embedding_width, embedding_width))

    @property
    def vocabulary_size(self) -> int:
        return self.text_encoder.bert.config.vocab_size

    def encode_images(self, frontal: Tensor, frontal_view: Tensor, lateral: Tensor | None = None,
                      lateral_view: Tensor | None = None, lateral_row: Tensor | None = None) -> ImageFeatures:
        """Images without a previous one; the views of frontal images make no difference."""
        assert lateral is None, "BioViL-T reads frontal images only"
        return self._features([self.image_encoder(part) for part in frontal.split(_IMAGES_PER_CALL)])

    def encode_pairs(self, current: Tensor, previous: Tensor) -> ImageFeatures:
        return self._features([self.image_encoder(*part) for part in zip(
            current.split(_IMAGES_PER_CALL), previous.split(_IMAGES_PER_CALL), strict=True)])

    def encode_text(self, token_ids: Tensor, attention_mask: Tensor, word_of_token: Tensor) -> TextFeatures:
        return self.text_encoder(token_ids, attention_mask, word_of_token)

    def embed_images(self, features: ImageFeatures) -> Tensor:
        return F.normalize(self._project(features.frontal_patches).mean(dim=1), dim=-1)

    def embed_patches(self, patches: Tensor) -> Tensor:
        return F.normalize(self._project(patches), dim=-1)

    def embed_reports(self, features: TextFeatures) -> Tensor:
        return F.normalize(self.project_reports(features), dim=-1)

    def project_reports(self, features: TextFeatures) -> Tensor:
        return self.text_projection(features.report)

    def embed_words(self, features: TextFeatures) -> tuple[Tensor, Tensor]:
        """The phrase as a whole: words by themselves were not brought into the space of the patches."""
        phrases = self.embed_reports(features)[:, None]
        return phrases, torch.ones(phrases.shape[:2], dtype=torch.bool, device=phrases.device)

    def _project(self, patches: Tensor) -> Tensor:
        """(B, P, D) -> (B, P, E)."""
        return self.image_projection(patches.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)

    def _features(self, grids: list[Tensor]) -> ImageFeatures:
        """Grids (B, D, h, w) -> features without laterals; the image's vector is the mean of its patches."""
        patches = torch.cat(grids).flatten(2).transpose(1, 2)
        none = torch.zeros(0, dtype=torch.int64, device=patches.device)
        return ImageFeatures(
            cls=patches.mean(dim=1), frontal_patches=patches, lateral_patches=patches[:0], lateral_row=none,
            balance_loss=patches.new_zeros(()), expert_share=patches.new_zeros(0, 0))
