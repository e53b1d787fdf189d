"""The configurations that are measured, and batches of made-up pairs for them.

Legend: B pairs, W token positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medst.config import Config, load_config, override, stream_seed
from medst.data.batch import Batch
from medst.model import MedST
from medst.model.initialisation import stream

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"

PAPER: dict[str, Any] = {
    "data.image_size": 256, "data.crop_size": 224, "data.caption_tokens": 112, "data.sequence_length": 4,
    "model.image.patch_size": 16, "model.image.width": 768, "model.image.num_layers": 12, "model.image.num_heads": 12,
    "model.text.width": 768, "model.text.num_layers": 12, "model.text.num_heads": 12, "model.text.hidden_width": 3072,
    "model.heads.hidden_width": 2048, "model.heads.embedding_width": 128,
}
"""ViT-B/16 at 224 pixels and BERT-base, as in the paper. No dropout, so that two ways can be held side by side."""

VOCABULARY_SIZE = {"tiny": 1000, "small": 1000, "paper": 28996}
_CAPTION_MEAN, _CAPTION_DEVIATION = 0.58, 0.2
"""Tokens of a caption as shares of the longest: 65 and 22 of 112."""


def configuration(name: str, device: str, **changes: Any) -> Config:
    """The `tiny`, `small` or `paper` configuration on a device, in our fastest setting with equal numbers."""
    is_paper = name == "paper"
    config = load_config(overrides=PAPER) if is_paper else load_config(EXPERIMENTS / f"phantom_{name}.yaml")
    return override(config, {"training.device": device, "training.learning_rate": 1.0e-6,
                             "training.pack_captions": True, **changes})


def model_of(name: str, config: Config) -> MedST:
    """The model of a setting, in training mode, with view experts that differ."""
    model = MedST.create(config, VOCABULARY_SIZE[name])
    with stream(0, "benchmark"), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return model.to(config.training.device).train()


def made_up_batch(
    config: Config, vocabulary_size: int, num_pairs: int, *, lateral_share: float = 0.5, seed: int = 0
) -> Batch:
    """`num_pairs` pairs in complete sequences, a share of them with a lateral, captions of varied length."""
    rng = np.random.default_rng(stream_seed(seed, "benchmark"))
    side, longest, length = config.data.crop_size, config.data.caption_tokens, config.data.sequence_length
    rows = np.sort(rng.permutation(num_pairs)[:round(lateral_share * num_pairs)])
    sizes = rng.normal(_CAPTION_MEAN * longest, _CAPTION_DEVIATION * longest, num_pairs).round().clip(8, longest)
    width = int(sizes.max())
    mask = np.arange(width) < sizes[:, None]
    # Every fourth token continues the word before it.
    slots = np.cumsum(np.arange(width) % 4 != 3) - 1
    num_sequences = num_pairs // length

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).long()

    batch = Batch(
        frontal=torch.from_numpy(rng.uniform(-1, 1, (num_pairs, 1, side, side)).astype(np.float32)),
        frontal_view=tensor(rng.integers(0, 2, num_pairs)),
        lateral=torch.from_numpy(rng.uniform(-1, 1, (len(rows), 1, side, side)).astype(np.float32)),
        lateral_view=tensor(rng.integers(2, 4, len(rows))),
        lateral_row=tensor(rows),
        token_ids=tensor(rng.integers(5, vocabulary_size, (num_pairs, width)) * mask),
        attention_mask=tensor(mask),
        word_of_token=tensor(np.where(mask, slots, -1)),
        study=torch.arange(num_pairs),
        sequences=torch.arange(num_sequences * length).view(num_sequences, length),
    )
    return batch.to(config.training.device)
