"""Text encoder: BERT, whose token vectors are added up to words.

What must not live here: tokenisation (data), reading of pretrained files (weights.py).

Legend: B reports, W token positions, N word slots without [CLS], K words of the batch, R real tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from medst.config import Behaviour, TextEncoderConfig
from medst.model.initialisation import stream
from medst.model.outputs import TextFeatures
from medst.model.recompute import in_block, in_piece, join


def bert_config(text: TextEncoderConfig, vocabulary_size: int, max_positions: int) -> BertConfig:
    """The architecture that the fields of `text` describe (its `name` is for weights.py)."""
    num_layers = text.num_layers
    if text.depth == "released":
        num_layers = max(1, num_layers // 2)
    return BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=text.width,
        num_hidden_layers=num_layers,
        num_attention_heads=text.num_heads,
        intermediate_size=text.hidden_width,
        hidden_dropout_prob=text.dropout,
        attention_probs_dropout_prob=text.dropout,
        max_position_embeddings=max_positions,
        # BERT's 0.02 at its width of 768, and the same strength of signal at others.
        initializer_range=0.02 * (768 / text.width) ** 0.5,
    )


def add_up_words(vectors: Tensor, word_of_token: Tensor, num_slots: int) -> Tensor:
    """Sum of the vectors of each word's tokens.

    Args:
        vectors: (B, W, D).
        word_of_token: (B, W) int64 word slot of every token, -1 for none.
        num_slots: word slots to return, [CLS] included.

    Returns:
        (B, num_slots, D), zeros where there is no word.
    """
    num_reports, _, width = vectors.shape
    # Tokens of no word go to a slot of their own, which is cut off.
    slot = torch.where(word_of_token < 0, num_slots, word_of_token)
    row = torch.arange(num_reports, device=slot.device)[:, None] * (num_slots + 1)
    sums = vectors.new_zeros(num_reports * (num_slots + 1), width)
    sums = sums.index_add(0, (row + slot).flatten(), vectors.flatten(0, 1))
    return sums.view(num_reports, num_slots + 1, width)[:, :num_slots]


def _attend_in_captions(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor, *,
                        place: Tensor, **options: Any) -> tuple[Tensor, None]:
    """Attention of packed captions: padded for the attention alone, which is the smallest part of a layer.

    Args:
        query, key, value: (1, H, R, D / H).
        key_mask: (B, 1, 1, W) bool, True = a token.
        place: (R,) int64, the places of the tokens in the flattened (B * W) positions.

    Returns:
        (1, R, H, D / H), and no matrix.
    """
    rows, _, _, width = key_mask.shape

    def padded(packed: Tensor) -> Tensor:
        heads = packed[0]
        spread = heads.new_zeros(heads.shape[0], rows * width, heads.shape[2]).index_copy(1, place, heads)
        return spread.view(heads.shape[0], rows, width, heads.shape[2]).transpose(0, 1)

    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    attended, _ = attend(module, padded(query), padded(key), padded(value), key_mask, **options)
    return attended.flatten(0, 1)[place][None], None


_IN_CAPTIONS = "medst_in_captions"
AttentionInterface.register(_IN_CAPTIONS, _attend_in_captions)


class TextEncoder(nn.Module):
    """BERT without pooler, then words.

    Attributes:
        packs: lay the tokens of all captions in one row and compute nothing for padding (`pack`).
        micro_batch: reports whose activations are held at once, 0 = all; see `medst.model.recompute`.
        recompute: hold only the inputs of the layers.
    """

    def __init__(self, architecture: BertConfig, text: TextEncoderConfig, *, seed: int) -> None:
        super().__init__()
        self.positions: Behaviour = text.positions
        self.word_aggregation: Behaviour = text.word_aggregation
        self.micro_batch = 0
        self.recompute = False
        self.packs = False
        with stream(seed, "text"):
            self.bert = BertModel._from_config(architecture, attn_implementation="sdpa", add_pooling_layer=False)
        if self.positions == "released":
            # The published program adds no token-type embedding: a zero that does not learn.
            types = self.bert.embeddings.token_type_embeddings
            types.requires_grad_(False)
            nn.init.zeros_(types.weight)

    @property
    def max_positions(self) -> int:
        return self.bert.config.max_position_embeddings

    def pack(self, packs: bool = True) -> None:
        """Compute nothing for padding tokens from here on, or do so again."""
        self.packs = packs
        self.bert.set_attn_implementation(_IN_CAPTIONS if packs else "sdpa")

    def tokens(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, W), (B, W) -> last-layer token vectors (B, W, D)."""
        return self._last_states(token_ids, attention_mask, attention_mask.cpu() - 1)[0]

    def forward(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        word_of_token: Tensor,
        *,
        num_slots: int | None = None,
        with_attention: bool = False,
    ) -> TextFeatures:
        """Encode reports.

        Args:
            token_ids: (B, W) int64, [CLS] first.
            attention_mask: (B, W) int64, 1 = token.
            word_of_token: (B, W) int64 word slots, [CLS] 0, -1 for tokens of no word; contiguous from 0.
            num_slots: word slots to return, [CLS] included; None: as many as the longest report has.
            with_attention: also return the last layer's attention from [CLS] to each word.
        """
        longest = max(2, int(word_of_token.max()) + 1)
        num_slots = longest if num_slots is None else num_slots
        assert num_slots >= longest, f"{longest} words do not fit into {num_slots} slots"
        device = token_ids.device
        num_words = word_of_token.amax(dim=1)
        word_mask = torch.arange(1, num_slots, device=num_words.device) <= num_words[:, None]
        word_index = word_mask.flatten().nonzero()[:, 0]
        slots = word_of_token.to(device, non_blocking=True)

        last, before_last = self._last_states(token_ids, attention_mask, word_of_token)
        words = add_up_words(last, slots, num_slots)
        return TextFeatures(
            report=words[:, 0],
            words=words[:, 1:],
            word_mask=word_mask.to(device, non_blocking=True),
            word_index=word_index.to(device, non_blocking=True),
            attention=self._word_attention(before_last, attention_mask, slots, num_slots) if with_attention else None,
        )

    def _last_states(self, token_ids: Tensor, attention_mask: Tensor, word_of_token: Tensor) -> tuple[Tensor, Tensor]:
        """Output and input of the last layer, each (B, W, D)."""
        length = token_ids.shape[1]
        if length > self.max_positions:
            raise ValueError(
                f"captions of {length} tokens are longer than the text encoder's {self.max_positions} positions; "
                "lower data.caption_tokens"
            )
        size = self.micro_batch or len(token_ids)
        pieces = list(zip(token_ids.split(size), attention_mask.split(size), word_of_token.split(size), strict=True))
        states = [in_piece(self._transform, len(pieces), *piece) for piece in pieces]
        return join([last for last, _ in states]), join([before_last for _, before_last in states])

    def _transform(self, token_ids: Tensor, attention_mask: Tensor, word_of_token: Tensor) -> tuple[Tensor, Tensor]:
        """The last states of some reports."""
        rows, width = token_ids.shape
        positions = torch.arange(width, device=token_ids.device)[None]
        if self.positions == "released":
            positions = torch.zeros_like(positions)
        layers: list[Callable[..., Tensor]] = list(self.bert.encoder.layer)
        if self.packs:
            # From the word slots, which are on the host: nothing waits for an accelerator.
            place = (word_of_token.flatten() >= 0).nonzero()[:, 0].to(token_ids.device, non_blocking=True)
            token_ids, positions = token_ids.flatten()[place][None], positions.expand(rows, -1).flatten()[place][None]
            layers = [partial(layer, place=place) for layer in layers]
        hidden = self.bert.embeddings(input_ids=token_ids, position_ids=positions,
                                      token_type_ids=torch.zeros_like(positions))
        keys = attention_mask[:, None, None, :].bool()
        before_last = hidden
        for layer in layers:
            before_last, hidden = hidden, in_block(layer, self.recompute, hidden, keys)
        if not self.packs:
            return hidden, before_last

        def unpacked(states: Tensor) -> Tensor:
            """(1, R, D) -> (B, W, D), zeros where there is no token."""
            spread = states.new_zeros(rows * width, states.shape[2]).index_copy(0, place, states[0])
            return spread.view(rows, width, -1)

        return unpacked(hidden), unpacked(before_last)

    def _word_attention(self, hidden: Tensor, attention_mask: Tensor, slots: Tensor, num_slots: int) -> Tensor:
        """Attention of the last layer from [CLS], mean of the heads, added up per word: (B, N).

        As published (`word_aggregation=released`), the attention to token t + 1 is added to the word that holds
        token t.
        """
        attention = self.bert.encoder.layer[-1].attention.self
        heads = (hidden.shape[0], -1, attention.num_attention_heads, attention.attention_head_size)
        query = attention.query(hidden[:, :1]).view(heads).transpose(1, 2)
        key = attention.key(hidden).view(heads).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)) * attention.scaling
        scores = scores.masked_fill(attention_mask[:, None, None, :] == 0, -torch.inf)
        weights = scores.softmax(dim=-1).mean(dim=1).transpose(1, 2)  # (B, W, 1)
        if self.word_aggregation == "released":
            weights, slots = weights[:, 1:], slots[:, :-1]
        return add_up_words(weights, slots, num_slots)[:, 1:, 0]
