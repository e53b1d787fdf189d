"""Scores of image embeddings against prompts for and against. No data set is named here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from medst.evaluation.context import EvaluationContext
from medst.evaluation.prompts import Prompt, join


def unit(vectors: np.ndarray) -> np.ndarray:
    """(..., E) -> (..., E) of Euclidean length 1; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def prompt_direction(context: EvaluationContext, prompts: Sequence[Prompt]) -> np.ndarray:
    """(E,) unit vector of a set of prompts: the mean of their unit embeddings, so that each weighs the same."""
    return unit(context.cache.texts(join(prompts, context.config)).mean(axis=0))


def prompt_direction_as_published(context: EvaluationContext, prompts: Sequence[Prompt]) -> np.ndarray:
    """(E,) unit vector of a set of prompts: projections averaged before they are of unit length."""
    return unit(context.cache.text_projections(join(prompts, context.config)).mean(axis=0))


def prompt_scores(
    context: EvaluationContext,
    images: np.ndarray,
    prompts: Mapping[str, Sequence[Prompt]],
    direction: Callable[[EvaluationContext, Sequence[Prompt]], np.ndarray] = prompt_direction,
) -> np.ndarray:
    """(n,) cosine with the positive prompts minus cosine with the negative ones, in [-2, 2].

    Args:
        images: (n, E) unit embeddings.
        prompts: `positive` and `negative`.
        direction: how a set of prompts becomes one unit vector.
    """
    contrast = direction(context, prompts["positive"]) - direction(context, prompts["negative"])
    return images.astype(np.float64) @ contrast.astype(np.float64)
