"""Small models and batches for the tests of the model and of the objectives."""

from __future__ import annotations

from typing import Any

import torch

from medst.config import Config, override
from medst.data.batch import Batch
from medst.model import MedST
from medst.objectives import Objective, medst_objective

AP, PA, LL, LATERAL = range(4)
VOCABULARY_SIZE = 40
SIZES: dict[str, Any] = {
    "data.image_size": 20,
    "data.crop_size": 16,
    "data.caption_tokens": 12,
    "data.sequence_length": 3,
    "model.image.patch_size": 8,
    "model.image.width": 16,
    "model.image.num_layers": 2,
    "model.image.num_heads": 2,
    "model.text.width": 12,
    "model.text.num_layers": 2,
    "model.text.num_heads": 2,
    "model.text.hidden_width": 20,
    "model.heads.hidden_width": 14,
    "model.heads.embedding_width": 10,
}


def small_config(**overrides: Any) -> Config:
    return override(Config(), {**SIZES, **overrides})


def small_model(config: Config, *, spread: float = 1.0) -> MedST:
    """A model whose weights are far from their initial values, so that nothing is near zero by chance."""
    model = MedST.create(config, VOCABULARY_SIZE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad and parameter.ndim > 0:
                noise = torch.randn(parameter.shape, generator=generator) * 0.15 * spread
                parameter.add_(noise) if "norm" in name.lower() else parameter.copy_(noise + parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def small_batch(
    views: tuple[int, ...] = (PA, AP, PA, PA, AP, PA, AP),
    laterals: tuple[tuple[int, int], ...] = ((0, LATERAL), (2, LL), (4, LL), (5, LATERAL)),
    words: tuple[int, ...] = (5, 2, 9, 1, 4, 7, 3),
    *,
    seed: int = 0,
    side: int = 16,
    sequence_length: int = 3,
) -> Batch:
    """Pairs with these views; (row, view) of the laterals; words without [CLS] and [SEP] of each caption.

    The second piece of every third word is a continuation.
    """
    generator = torch.Generator().manual_seed(seed)
    num_pairs = len(views)
    rows = []
    for count in words[:num_pairs]:
        slots = [0]
        for word in range(1, count + 1):
            slots += [word, word] if word % 3 == 0 else [word]
        rows.append([*slots, count + 1])
    width = max(len(row) for row in rows)
    slots = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    mask = (slots >= 0).long()
    ids = torch.randint(5, VOCABULARY_SIZE, slots.shape, generator=generator) * mask
    ids[:, 0] = 2
    num_sequences = num_pairs // sequence_length
    return Batch(
        frontal=torch.rand(num_pairs, 1, side, side, generator=generator) * 2 - 1,
        frontal_view=torch.tensor(views),
        lateral=torch.rand(len(laterals), 1, side, side, generator=generator) * 2 - 1,
        lateral_view=torch.tensor([view for _, view in laterals], dtype=torch.int64),
        lateral_row=torch.tensor([row for row, _ in laterals], dtype=torch.int64),
        token_ids=ids,
        attention_mask=mask,
        word_of_token=slots,
        study=torch.tensor([max(0, row - 1) for row in range(num_pairs)]),
        sequences=torch.arange(num_sequences * sequence_length).view(num_sequences, sequence_length),
    )


def objective_of(model: MedST, batch: Batch, config: Config, **weights: float) -> Objective:
    embeddings = model(batch)
    return medst_objective(embeddings, batch.study, batch.sequences, model.word_pooling, model.patch_pooling,
                           config.objective, prototypes=model.prototypes,
                           **{"fmc_weight": 1.0, "rmr_weight": 1.0, **weights})
