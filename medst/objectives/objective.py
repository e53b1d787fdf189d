"""The full objective: L_global + lambda_local L_local + lambda_temporal L_temporal + lambda_prototype L_prototype.

What lives here: the sum and its switches. What must not: the losses themselves.

Legend: B pairs, S sequences, T time points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medst.config import ObjectiveConfig, TemporalConfig
from medst.model.outputs import Embeddings
from medst.objectives.alignment import Pooling, attention_weights, local_alignment
from medst.objectives.contrast import global_contrast, retrieval_accuracy, similarity
from medst.objectives.prototypes import swapped_prediction
from medst.objectives.temporal import fmc, rmr

_RELEASED_VARIANCE_FLOOR = 1e-7
_RELEASED_HUBER_THRESHOLD = 2.0


@dataclass(frozen=True)
class Objective:
    """The loss to differentiate, and everything that it is made of."""

    total: Tensor
    """()."""
    terms: dict[str, Tensor]
    """Detached scalars: loss, global, acc1, acc5 (percent) always; local, local_word, local_patch, temporal, fmc,
    fmc_i2t, fmc_t2i, rmr, rmr_i2t, rmr_t2i, prototype, balance where they were computed. All unweighted but loss,
    and temporal, which has the weights of FMC and RMR in it."""


def medst_objective(
    embeddings: Embeddings,
    study: Tensor,
    sequences: Tensor,
    word_pooling: Pooling,
    patch_pooling: Pooling,
    config: ObjectiveConfig,
    *,
    fmc_weight: float,
    rmr_weight: float,
    balance_weight: float = 0.0,
    prototypes: Tensor | None = None,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Objective:
    """Add up the terms; one whose weight is 0 is not computed. In float32 or better, whatever the autocast.

    Args:
        embeddings: of B pairs.
        study: (B,) int64, equal for pairs of one study.
        sequences: (S, T) int64 rows of complete sequences in time order, of the gathered batch; S may be 0, then there
            is no temporal term in this batch.
        word_pooling, patch_pooling: parameters of the model that weigh words and patches.
        config: switches, temperatures and the two lambdas.
        fmc_weight, rmr_weight: weights at this step, the curriculum's factors included.
        balance_weight: weight of the load-balance loss of learned routing; 0 for view routing.
        prototypes: (K, E) of the model; needed where `config.lambda_prototype` is not 0.
        gather: rows of this process -> rows of all processes that share the batch, differentiable. The mean over the
            processes of `total` is then the objective of the whole batch.
    """
    with torch.autocast(embeddings.image.device.type, enabled=False):
        terms: dict[str, Tensor] = {}
        image, report = _precise(embeddings.image), _precise(embeddings.report)
        if gather is not None:
            # The local alignment looks inside one pair at a time: only these reach over pairs.
            image, report, study = gather(image), gather(report), gather(study)
        excluded = study if config.global_negatives == "corrected" else None
        total = terms["global"] = global_contrast(image, report, excluded, config.global_temperature,
                                                  config.global_image_share)
        if config.lambda_local > 0:
            local = config.local
            is_weighted = local.weighting == "modality"
            aligned = local_alignment(
                _precise(embeddings.words), _precise(embeddings.patches), embeddings.word_mask, embeddings.patch_mask,
                word_pooling if is_weighted else None, patch_pooling if is_weighted else None,
                temperature=local.temperature,
                padding_counts=local.padding == "released",
                normalise_patch_context=local.context == "corrected",
                given_weights=_given_weights(embeddings) if local.weighting == "attention" else None,
            )
            terms["local_word"], terms["local_patch"] = aligned.word, aligned.patch
            terms["local"] = aligned.word + aligned.patch
            total = total + config.lambda_local * terms["local"]
        if config.lambda_temporal > 0 and sequences.shape[0] > 0 and (fmc_weight > 0 or rmr_weight > 0):
            temporal = _temporal_terms(image[sequences], report[sequences], config.temporal, fmc_weight, rmr_weight)
            terms.update(temporal)
            total = total + config.lambda_temporal * terms["temporal"]
        if config.lambda_prototype > 0:
            assert prototypes is not None, "the prototype term needs the model's prototypes"
            swapped = config.prototypes
            terms["prototype"] = swapped_prediction(
                image, report, _precise(prototypes), temperature=swapped.temperature, epsilon=swapped.epsilon,
                num_iterations=swapped.sinkhorn_iterations)
            total = total + config.lambda_prototype * terms["prototype"]
        if balance_weight > 0:
            terms["balance"] = embeddings.balance_loss
            total = total + balance_weight * terms["balance"]
        with torch.no_grad():
            scores = similarity(image, report, excluded, config.global_temperature)
            terms["acc1"], terms["acc5"] = retrieval_accuracy(scores, 1), retrieval_accuracy(scores, 5)
        terms = {"loss": total, **terms}
        return Objective(total, {name: value.detach() for name, value in terms.items()})


def _given_weights(embeddings: Embeddings) -> tuple[Tensor, Tensor]:
    """Weights of words (B, N) and patches (B, M) from the encoders' attention."""
    words, patches = embeddings.word_attention, embeddings.patch_attention
    assert words is not None and patches is not None, "the model was not asked for its attention"
    return (attention_weights(_precise(words), embeddings.word_mask),
            attention_weights(_precise(patches), embeddings.patch_mask))


def _precise(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def _temporal_terms(
    image: Tensor, report: Tensor, config: TemporalConfig, fmc_weight: float, rmr_weight: float
) -> dict[str, Tensor]:
    """(S, T, E), (S, T, E) -> temporal and its parts."""
    is_released = config.regression == "released"
    terms: dict[str, Tensor] = {}
    weighted: list[Tensor] = []
    if fmc_weight > 0:
        terms["fmc_i2t"] = fmc(image, report, config.temperature)
        terms["fmc_t2i"] = fmc(report, image, config.temperature)
        terms["fmc"] = terms["fmc_i2t"] + terms["fmc_t2i"]
        weighted.append(fmc_weight * terms["fmc"])
    if rmr_weight > 0:
        for name, x, y in (("rmr_i2t", image, report), ("rmr_t2i", report, image)):
            terms[name] = rmr(
                x, y, config.temperature,
                variance_weight=config.variance_weight,
                variance_floor=_RELEASED_VARIANCE_FLOOR if is_released else config.variance_floor,
                huber_threshold=_RELEASED_HUBER_THRESHOLD if is_released else config.huber_threshold,
            )
        terms["rmr"] = terms["rmr_i2t"] + terms["rmr_t2i"]
        weighted.append(rmr_weight * terms["rmr"])
    terms["temporal"] = torch.stack(weighted).sum()
    return terms
