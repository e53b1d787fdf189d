"""Multi-view image encoder: a vision transformer whose feed-forwards are view experts.

Attention (and its norm) is shared by all tokens of a pair; the tokens of each view pass through the expert of
that view. Tokens of a two-view pair: [class, frontal patches, lateral patches]; the class token and the frontal
patches have positions 0..P, the lateral patches 1..P again, and there is no view embedding.

What must not live here: which expert serves what (routing.py), pretrained weights (weights.py).

Legend: B pairs, L laterals, P patches of one image, T tokens of the whole batch, D width, H heads.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from medst.config import Behaviour, ExpertsConfig, ImageEncoderConfig
from medst.data.views import VIEWS
from medst.model.experts import LearnedExperts, ViewExperts
from medst.model.initialisation import initialise_transformer, stream
from medst.model.outputs import ImageFeatures
from medst.model.recompute import in_block, in_piece, join
from medst.model.routing import TokenLayout, arrange, expert_share

_NORM_EPSILON = 1e-6
_POSITION_DEVIATION = 0.3
"""Tokens leave the stem with a deviation near 1: positions far below that are learned too late to tell places apart."""
_UNKNOWN_LATERAL = VIEWS.index("LATERAL")


class ConvolutionalStem(nn.Module):
    """A 4x4 convolution of stride 4, 3x3 ones of stride 2 down to the patch grid, a 1x1 one (after Xiao et al., 2021).

    Batch norm, since it learns faster than group norm here; in evaluation mode an image's tokens depend on it alone.
    """

    def __init__(self, patch_size: int, num_channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = num_channels
        num_layers = int(math.log2(patch_size)) - 1
        for index in range(num_layers):
            # The first convolution takes whole 4x4 squares: it learned a little faster than two of stride 2, at equal
            # cost.
            size, stride, padding = (4, 4, 0) if index == 0 else (3, 2, 1)
            target = max(8, width << 1 >> (num_layers - 1 - index))
            layers += [nn.Conv2d(channels, target, size, stride=stride, padding=padding, bias=False),
                       nn.BatchNorm2d(target), nn.ReLU()]
            channels = target
        # Weights and images in channels-last order: a stem of 3x3 convolutions took 8.4 instead of 11.5 ms on a CPU.
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, width, 1)).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, P, D)."""
        return self.layers(images.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)


class PairAttention(nn.Module):
    """Self-attention inside every pair: over both views where there is a lateral, else over the frontal image."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, layout: TokenLayout, key_mask: Tensor | None) -> Tensor:
        """(T, D) -> (T, D); `key_mask` (L, 1, 1, 1 + 2 P), False = not attended to."""
        num_pairs, num_laterals, num_patches = layout.num_pairs, layout.num_laterals, layout.num_patches
        length = num_patches + 1
        projected = self.qkv(tokens)
        if num_laterals == 0:
            return self.proj(self._attend(projected.view(num_pairs, length, -1), None).flatten(0, 1))
        frontal, single, lateral = projected.split(
            [num_laterals * length, (num_pairs - num_laterals) * length, num_laterals * num_patches]
        )
        both = torch.cat([frontal.view(num_laterals, length, -1), lateral.view(num_laterals, num_patches, -1)], dim=1)
        frontal, lateral = self._attend(both, key_mask).split([length, num_patches], dim=1)
        attended = [frontal.flatten(0, 1), lateral.flatten(0, 1)]
        if num_pairs > num_laterals:
            attended.insert(1, self._attend(single.view(num_pairs - num_laterals, length, -1), None).flatten(0, 1))
        return self.proj(torch.cat(attended))

    @torch.no_grad()
    def from_class(self, tokens: Tensor, layout: TokenLayout, key_mask: Tensor | None) -> Tensor:
        """(T, D) -> attention from the class token to each patch, mean of the heads: (B, 2 P), frontal patches first, 0
        where there is no lateral."""
        num_pairs, num_laterals, num_patches = layout.num_pairs, layout.num_laterals, layout.num_patches
        length, width = num_patches + 1, self.proj.in_features
        both, lateral = tokens.split([num_pairs * length, num_laterals * num_patches])
        frontal = both.view(num_pairs, length, width)
        query_weight, key_weight, _ = self.qkv.weight.split(width)
        query_bias, key_bias, _ = self.qkv.bias.split(width)

        def attention(seen: Tensor, mask: Tensor | None) -> Tensor:
            """(rows, tokens, D) whose first token is the class token -> (rows, tokens - 1)."""
            rows = seen.shape[0]
            query = F.linear(seen[:, :1], query_weight, query_bias).view(rows, 1, self.num_heads, -1).transpose(1, 2)
            key = F.linear(seen, key_weight, key_bias).view(rows, seen.shape[1], self.num_heads, -1).transpose(1, 2)
            scores = query @ key.transpose(2, 3) / math.sqrt(key.shape[-1])
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            return scores.softmax(dim=-1).mean(dim=1)[:, 0, 1:]

        found = tokens.new_zeros(num_pairs, 2 * num_patches)
        if num_laterals > 0:
            pairs = torch.cat([frontal[:num_laterals], lateral.view(num_laterals, num_patches, width)], dim=1)
            found[:num_laterals] = attention(pairs, key_mask)
        if num_pairs > num_laterals:
            found[num_laterals:, :num_patches] = attention(frontal[num_laterals:], None)
        return found

    def _attend(self, projected: Tensor, key_mask: Tensor | None) -> Tensor:
        """(rows, tokens, 3 D) -> (rows, tokens, D)."""
        rows, length, _ = projected.shape
        query, key, value = projected.view(rows, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask)
        return attended.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Pre-norm transformer block: shared attention, then experts."""

    def __init__(self, image: ImageEncoderConfig, experts: ExpertsConfig, *, seed: int, name: str,
                 copies: bool) -> None:
        super().__init__()
        with stream(seed, f"{name}.attention"):
            self.norm1 = nn.LayerNorm(image.width, eps=_NORM_EPSILON)
            self.attention = PairAttention(image.width, image.num_heads)
            initialise_transformer(self.attention)
        hidden = round(image.width * image.mlp_ratio * experts.hidden_scale)
        kind = LearnedExperts if experts.routing == "learned" else ViewExperts
        self.experts = kind(image.width, hidden, experts.num_experts, seed=seed, name=f"{name}.experts",
                            copies=copies)

    def forward(self, tokens: Tensor, layout: TokenLayout, key_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) -> tokens (T, D), balance loss (), shares of the experts (E,); the latter two for learned
        routing only, else empty."""
        tokens = tokens + self.attention(self.norm1(tokens), layout, key_mask)
        if isinstance(self.experts, LearnedExperts):
            served, balance, share = self.experts(tokens)
            return tokens + served, balance, share
        nothing = tokens.new_empty(0)
        return tokens + self.experts(tokens, layout.segments), nothing, nothing


@dataclass(frozen=True)
class _Piece:
    """Pairs of a batch that pass through the blocks together."""

    first_pair: int
    first_lateral: int
    layout: TokenLayout
    """Counts pairs and laterals from the first of the piece."""


class ImageEncoder(nn.Module):
    """Encodes pairs of views, or images of one view alone.

    Attributes:
        micro_batch: pairs whose activations are held at once, 0 = all; see `medst.model.recompute`.
        recompute: hold only the inputs of the blocks.
        gives_attention: return the last block's attention from the class token, too.
    """

    def __init__(self, image: ImageEncoderConfig, experts: ExpertsConfig, *, image_size: int, seed: int,
                 initialisation: Behaviour) -> None:
        super().__init__()
        if image_size % image.patch_size:
            raise ValueError(f"image side {image_size} is not a multiple of model.image.patch_size={image.patch_size}")
        self.num_patches = (image_size // image.patch_size) ** 2
        self.num_channels = image.num_channels
        self.missing_lateral = image.missing_lateral
        self.is_learned = experts.routing == "learned"
        self.num_experts = experts.num_experts
        self.micro_batch = 0
        self.recompute = False
        self.gives_attention = False
        with stream(seed, "image.stem"):
            self.stem: nn.Module = (
                PatchEmbed(image_size, image.patch_size, image.num_channels, image.width)
                if image.stem == "patch" else ConvolutionalStem(image.patch_size, image.num_channels, image.width)
            )
        with stream(seed, "image.tokens"):
            self.cls_token = nn.Parameter(torch.empty(1, 1, image.width).normal_(std=1e-6))
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.num_patches, image.width))
            nn.init.trunc_normal_(self.pos_embed, std=_POSITION_DEVIATION)
        self.blocks = nn.ModuleList(
            [Block(image, experts, seed=seed, name=f"image.blocks.{index}", copies=initialisation == "corrected")
             for index in range(image.num_layers)]
        )
        self.norm = nn.LayerNorm(image.width, eps=_NORM_EPSILON)

    def forward(
        self,
        frontal: Tensor,
        frontal_view: Tensor,
        lateral: Tensor | None = None,
        lateral_view: Tensor | None = None,
        lateral_row: Tensor | None = None,
    ) -> ImageFeatures:
        """Encode B pairs.

        Args:
            frontal: (B, C, side, side) in [-1, 1], C the encoder's channels or 1 (then repeated). A lateral alone
                may stand here: its view code sends it to the lateral expert.
            frontal_view: (B,) int64 view codes.
            lateral: (L, C, side, side), the laterals that exist; None or L = 0: single-view encoding.
            lateral_view: (L,) int64 view codes.
            lateral_row: (L,) int64, strictly increasing rows of the pairs.
        """
        num_pairs, device = frontal.shape[0], frontal.device
        views = frontal_view.tolist()
        lateral_views: list[int] = []
        rows: list[int] = []
        key_mask = None
        if lateral is not None and lateral.shape[0] > 0:
            assert lateral_view is not None and lateral_row is not None
            lateral_views, rows = lateral_view.tolist(), lateral_row.tolist()
            if self.missing_lateral == "released" and len(rows) < num_pairs:
                # Absent laterals are mid-grey images whose tokens are computed but not attended to.
                present = dict(zip(rows, lateral_views, strict=True))
                index = torch.tensor(rows).to(device, non_blocking=True)
                lateral = lateral.new_zeros(num_pairs, *lateral.shape[1:]).index_copy(0, index, lateral)
                lateral_views = [present.get(row, _UNKNOWN_LATERAL) for row in range(num_pairs)]
                rows = list(range(num_pairs))
                key_mask = torch.ones(num_pairs, 1, 1, 1 + 2 * self.num_patches, dtype=torch.bool)
                key_mask[[row not in present for row in rows], ..., 1 + self.num_patches:] = False
        pieces = self._pieces(views, lateral_views, rows)
        layouts = [piece.layout for piece in pieces]
        order = torch.tensor([piece.first_pair + pair for piece in pieces for pair in piece.layout.frontal_order])
        inverse = order.argsort().to(device, non_blocking=True)
        if key_mask is not None:
            key_mask = key_mask[order].to(device, non_blocking=True)
        images = frontal[order.to(device, non_blocking=True)]
        if rows:
            assert lateral is not None
            lateral_order = torch.tensor([piece.first_lateral + index for piece in pieces
                                          for index in piece.layout.lateral_order])
            images = torch.cat([images, lateral[lateral_order.to(device, non_blocking=True)]])
            lateral_inverse = lateral_order.argsort().to(device, non_blocking=True)

        patches = self._embed(images)
        sizes = [layout.num_pairs for layout in layouts] + [layout.num_laterals for layout in layouts]
        parts = patches.split(sizes)
        masks = [None] * len(pieces) if key_mask is None else key_mask.split(sizes[:len(pieces)])
        encoded = [
            in_piece(self._transform, len(pieces), frontal_part, lateral_part, layout, mask)
            for frontal_part, lateral_part, layout, mask
            in zip(parts[:len(pieces)], parts[len(pieces):], layouts, masks, strict=True)
        ]
        num_patches = self.num_patches
        split = [tokens.split([layout.num_pairs * (1 + num_patches), layout.num_laterals * num_patches])
                 for (tokens, *_), layout in zip(encoded, layouts, strict=True)]
        frontal_tokens = join([tokens for tokens, _ in split]).view(num_pairs, 1 + num_patches, -1)[inverse]
        lateral_patches = join([tokens for _, tokens in split]).view(len(rows), num_patches, frontal_tokens.shape[-1])
        if rows:
            lateral_patches = lateral_patches[lateral_inverse]
        if self.is_learned:
            # Pieces do not occur here: the balance loss is of the whole batch.
            ((_, balances, shares, _),) = encoded
            balance_loss, share = torch.stack(balances).mean(), torch.stack(shares)
        else:
            balance_loss = frontal_tokens.new_zeros((), dtype=torch.float32)
            share = torch.tensor([expert_share(layouts, self.num_experts)] * len(self.blocks))
            share = share.to(device, non_blocking=True)
        return ImageFeatures(
            cls=frontal_tokens[:, 0],
            frontal_patches=frontal_tokens[:, 1:],
            lateral_patches=lateral_patches,
            lateral_row=torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True),
            balance_loss=balance_loss,
            expert_share=share,
            attention=self._in_order([attention for *_, attention in encoded], inverse, len(rows) > 0),
        )

    def _in_order(self, attentions: list[Tensor], inverse: Tensor, has_laterals: bool) -> Tensor | None:
        """Attention of the pieces (rows, 2 P) -> that of the batch (B, M); None where it was not asked for."""
        if not self.gives_attention:
            return None
        return join(attentions)[inverse, :(2 if has_laterals else 1) * self.num_patches]

    def encode_tokens(self, images: Tensor, layout: TokenLayout, key_mask: Tensor | None) -> Tensor:
        """Images (B + L, C, side, side) in the layout's order -> tokens (T, D), normed."""
        frontal, lateral = self._embed(images).split([layout.num_pairs, layout.num_laterals])
        return self._transform(frontal, lateral, layout, key_mask)[0]

    def _pieces(self, views: list[int], lateral_views: list[int], rows: list[int]) -> list[_Piece]:
        """The batch, cut into `micro_batch` pairs with their laterals."""
        size = self.micro_batch or len(views)
        assert size >= len(views) or not self.is_learned, "learned routing needs all tokens of a batch at once"
        num_experts = 1 if self.is_learned else self.num_experts
        pieces = []
        for first in range(0, len(views), size):
            begin, end = bisect_left(rows, first), bisect_left(rows, first + size)
            layout = arrange(views[first:first + size], lateral_views[begin:end],
                             [row - first for row in rows[begin:end]], self.num_patches, num_experts)
            pieces.append(_Piece(first, begin, layout))
        return pieces

    def _embed(self, images: Tensor) -> Tensor:
        """(N, C, side, side) -> patches with their positions (N, P, D)."""
        return self.stem(images.expand(-1, self.num_channels, -1, -1)) + self.pos_embed[:, 1:]

    def _transform(
        self, frontal: Tensor, lateral: Tensor, layout: TokenLayout, key_mask: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
        """Patches (B, P, D), (L, P, D) in the layout's order -> tokens (T, D); of every block the balance loss and the
        experts' shares, empty but for learned routing; the class token's attention (B, 2 P), empty if not asked for."""
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(layout.num_pairs, -1, -1)
        tokens = torch.cat([torch.cat([cls, frontal], dim=1).flatten(0, 1), lateral.flatten(0, 1)])
        balances, shares = [], []
        attention = tokens.new_empty(0)
        for number, block in enumerate(self.blocks, start=1):
            if self.gives_attention and number == len(self.blocks):
                assert isinstance(block, Block)
                with torch.no_grad():
                    attention = block.attention.from_class(block.norm1(tokens), layout, key_mask)
            tokens, balance, share = in_block(block, self.recompute, tokens, layout, key_mask)
            balances.append(balance)
            shares.append(share)
        return self.norm(tokens), balances, shares, attention
