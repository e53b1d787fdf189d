"""The corrected model, executed the way the published program executes it: the same numbers, slowly.

Each slow point can be had alone: `Way(stored_attention=True)` is the model as it is, but for that point. What must not
live here: other numbers. Absent laterals are computed and then left out; padding words are carried along and masked.

Legend: B pairs, W token positions, S sequences, T studies in a sequence, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from medst.config import Config
from medst.data.batch import Batch
from medst.model import MedST
from medst.model.outputs import Embeddings, ImageFeatures, TextFeatures
from medst.objectives import Objective, medst_objective
from medst.objectives.temporal import fmc, rmr


@dataclass(frozen=True)
class Way:
    """The slow points; each False is the model's own way."""

    absent_laterals: bool = False
    """Absent laterals are computed in full, and masked."""
    padded_captions: bool = False
    """Captions are padded to the longest of the batch, and the padding is computed."""
    full_captions: bool = False
    """The same to the longest that is allowed, words too."""
    stored_attention: bool = False
    """Attention as three operations, whose matrices are kept to the end of the step."""
    word_loop: bool = False
    """Token vectors are added up to words one by one, with a look at each token's slot."""
    temporal_loop: bool = False
    """The temporal losses are computed sequence by sequence."""
    plain_optimizer: bool = False
    """AdamW parameter by parameter, and the loss read on the host in every step."""
    anomaly_detection: bool = False
    """Torch's anomaly detection, which looks at every gradient."""


FAST = Way()
PUBLISHED = Way(absent_laterals=True, padded_captions=True, full_captions=True, stored_attention=True, word_loop=True,
                temporal_loop=True, plain_optimizer=True)
PUBLISHED_WITH_ANOMALY = replace(PUBLISHED, anomaly_detection=True)


@contextmanager
def executed(way: Way) -> Iterator[None]:
    """Inside, model and losses work in that way."""
    with ExitStack() as stack:
        if way.stored_attention:
            kept: list[Tensor] = []

            def attention(*arguments: Any, **options: Any) -> Tensor:
                attended, matrix = _stored_attention(*arguments, **options)
                kept.append(matrix)
                return attended

            stack.enter_context(patch("torch.nn.functional.scaled_dot_product_attention", attention))
        if way.word_loop:
            stack.enter_context(patch("medst.model.text.add_up_words", _add_up_words_one_by_one))
        if way.temporal_loop:
            stack.enter_context(patch("medst.objectives.objective.fmc", _one_by_one(fmc)))
            stack.enter_context(patch("medst.objectives.objective.rmr", _one_by_one(rmr)))
        if way.anomaly_detection:
            stack.enter_context(torch.autograd.set_detect_anomaly(True))
        yield


def objective_of(model: MedST, batch: Batch, config: Config, way: Way = FAST) -> Objective:
    """The objective of a batch; call and differentiate it inside `executed(way)`."""
    embeddings = model(batch) if way in (FAST, replace(FAST, **_elsewhere(way))) else _embed(model, batch, way)
    return medst_objective(embeddings, batch.study, batch.sequences, model.word_pooling, model.patch_pooling,
                           config.objective, fmc_weight=config.objective.temporal.fmc_weight,
                           rmr_weight=config.objective.temporal.rmr_weight)


def _elsewhere(way: Way) -> dict[str, bool]:
    """The points that do not change which tensors pass through the model."""
    return {name: getattr(way, name) for name in
            ("stored_attention", "word_loop", "temporal_loop", "plain_optimizer", "anomaly_detection")}


def _embed(model: MedST, batch: Batch, way: Way) -> Embeddings:
    images = _encode_images(model, batch, way.absent_laterals)
    image, text = model.project_images(images), model.project_text(_encode_text(model, batch, way))
    return Embeddings(image=image.image, report=text.report, patches=image.patches, patch_mask=image.patch_mask,
                      words=text.words, word_mask=text.word_mask, balance_loss=images.balance_loss,
                      expert_share=images.expert_share)


def _encode_images(model: MedST, batch: Batch, with_absent: bool) -> ImageFeatures:
    encoder = model.image_encoder
    arguments = (batch.frontal, batch.frontal_view, batch.lateral, batch.lateral_view, batch.lateral_row)
    if not with_absent:
        return model.encode_images(*arguments)
    with patch.object(encoder, "missing_lateral", "released"), \
            patch.object(encoder.stem, "forward", _apart_from_grey(encoder.stem)):
        features = model.encode_images(*arguments)
    present = batch.lateral_row.to(features.lateral_patches.device)
    return replace(features, lateral_patches=features.lateral_patches[present], lateral_row=present)


def _apart_from_grey(stem: nn.Module) -> Callable[[Tensor], Tensor]:
    """The stem's forward, with mid-grey images kept out of the statistics of its batch norms."""
    forward: Callable[[Tensor], Tensor] = stem.forward
    if not any(isinstance(module, nn.BatchNorm2d) for module in stem.modules()):
        return forward

    def apart(images: Tensor) -> Tensor:
        is_grey = (images == 0).flatten(1).all(dim=1)
        patches = forward(images[~is_grey])
        was_training = stem.training
        stem.eval()
        grey = forward(images[is_grey])
        stem.train(was_training)
        return torch.cat([patches, grey])[(~is_grey).argsort(descending=True, stable=True).argsort()]

    return apart


def _encode_text(model: MedST, batch: Batch, way: Way) -> TextFeatures:
    encoder = model.text_encoder
    packs = encoder.packs
    encoder.pack(packs and not (way.padded_captions or way.full_captions))
    missing = (0, model.max_tokens - batch.token_ids.shape[1]) if way.full_captions else (0, 0)
    features: TextFeatures = encoder(pad(batch.token_ids, missing), pad(batch.attention_mask, missing),
                                     pad(batch.word_of_token, missing, value=-1),
                                     num_slots=model.max_tokens if way.full_captions else None)
    encoder.pack(packs)
    return features


def _stored_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                      dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                      **_: Any) -> tuple[Tensor, Tensor]:
    """(B, H, W, D) each -> attended values and the matrix (B, H, W, W)."""
    assert not is_causal
    scores = query @ key.transpose(-2, -1) * (scale or 1.0 / math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    matrix = torch.dropout(scores.softmax(dim=-1), dropout_p, dropout_p > 0)
    return matrix @ value, matrix


def _add_up_words_one_by_one(vectors: Tensor, word_of_token: Tensor, num_slots: int) -> Tensor:
    """As `medst.model.text.add_up_words`."""
    rows = []
    for vectors_of_report, slots in zip(vectors, word_of_token, strict=True):
        words: list[Tensor] = []
        for vector, slot in zip(vectors_of_report, slots, strict=True):
            if slot.item() < 0:
                continue
            if slot.item() == len(words):
                words.append(vector)
            else:
                words[-1] = words[-1] + vector
        words += [torch.zeros_like(vectors_of_report[0])] * (num_slots - len(words))
        rows.append(torch.stack(words))
    return torch.stack(rows)


def _one_by_one(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of (S, T, E) sequences, one sequence after the other."""

    def looped(x: Tensor, y: Tensor, temperature: float, **options: float) -> Tensor:
        return torch.stack([loss(x[index:index + 1], y[index:index + 1], temperature, **options)
                            for index in range(x.shape[0])]).mean()

    return looped
