"""Temporal image classification (MS-CXR-T): is a finding improving, stable or worsening between two images?

Features are the unit embeddings of the current and the previous frontal image, one after the other, from the
frozen encoder; five findings, each on the pairs that have a label for it.

- as published: linear support vector machine (C = 1, features as they are), stratified 5 and 10 folds that
  ignore patients, plain accuracy, mean over folds and the shuffles 42, 100, 666; every labelled pair. (The published
  program counts a label that is none of the three as worsening; the reader leaves such labels out.)
- corrected: pairs of patients outside the training split; class-balanced logistic regression on features
  standardised inside the fold, five folds that never share a patient; balanced accuracy and macro AUROC, mean
  over folds. The strength of the penalty is fixed (`probes.PROBE_STRENGTH`).

A model that reads an image together with an earlier one (BioViL-T) is also judged by the unit embedding of the two:
`pair_encoder/...`, the same protocols.

`evaluate_pixel_baseline` runs the corrected protocol on the pixels themselves: the floor that an encoder must beat.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from medst.config import Config
from medst.data.readers.ms_cxr_t import FINDINGS, PROGRESSIONS
from medst.data.store import Store
from medst.evaluation.context import EvaluationContext, held_out, skipped
from medst.evaluation.metrics import margins
from medst.evaluation.predictions import prediction_frame, prediction_table
from medst.evaluation.probes import PUBLISHED_FOLDS, ProbeResult, TooFewExamplesError, grouped_probe, published_accuracy
from medst.evaluation.traits import studies_of, study_traits
from medst.records import Facts, Metrics, Record

TASK = "temporal_image"
_BASELINE_SIDE = 12
"""Side of the images of the pixel baseline; of 8, 12 and 16 none is clearly better."""


def progression_classes(labels: pd.Series) -> np.ndarray:
    """Class index of every pair into PROGRESSIONS, -1 where the pair has no label for the finding."""
    return labels.map({name: index for index, name in enumerate(PROGRESSIONS)}).fillna(-1).to_numpy(dtype=np.int64)


def temporal_image(context: EvaluationContext) -> Iterator[Record]:
    """`test/temporal_image/<finding>/...` and `/mean/...` over the findings that could be judged."""
    store = context.store
    if store.mimic is None or store.ms_cxr_t is None:
        yield skipped(TASK, "the data has no MS-CXR-T")
        return
    pairs = store.ms_cxr_t.pairs
    images, previous = pairs["image"].to_numpy(), pairs["previous_image"].to_numpy()
    readings = {"": np.concatenate([context.cache.frontal("mimic", images),
                                    context.cache.frontal("mimic", previous)], axis=1)}
    together = context.cache.pairs(images, previous)
    if together is not None:
        readings["pair_encoder/"] = together
    is_held_out = held_out(store.mimic, pairs["subject_id"])
    groups = context.groups(pairs["subject_id"])
    traits = study_traits(store.mimic, studies_of(store.mimic, pairs["study_id"]))
    facts: dict[str, object] = {f"{TASK}.num_pairs": len(pairs), f"{TASK}.num_held_out_pairs": int(is_held_out.sum())}
    frames = []
    metrics: dict[str, float] = {}
    for prefix, features in readings.items():
        values: dict[str, float] = {}
        for finding in FINDINGS:
            classes = progression_classes(pairs[finding])
            try:
                for num_folds in PUBLISHED_FOLDS:
                    values[f"{finding}/accuracy_{num_folds}fold_as_published"] = published_accuracy(
                        features[classes >= 0], classes[classes >= 0], num_folds)
            except TooFewExamplesError as error:
                facts[f"skipped.{TASK}.{finding}.as_published"] = str(error)
            rows = np.flatnonzero((classes >= 0) & is_held_out)
            try:
                result = grouped_probe(features[rows], classes[rows], groups[rows], len(PROGRESSIONS))
            except TooFewExamplesError as error:
                facts[f"skipped.{TASK}.{finding}.corrected"] = f"{error}; too few pairs of patients outside training"
                continue
            values |= _corrected_values(finding, result)
            frames.append(prediction_frame(
                example=rows, group=groups[rows], label=np.array(PROGRESSIONS, dtype=object)[classes[rows]],
                score=margins(result.probabilities, classes[rows]), fold=result.fold, finding=f"{prefix}{finding}",
                traits=traits.iloc[rows]))
        metrics |= _named(f"test/{TASK}/{prefix}".rstrip("/"), values)
    yield Facts(facts)
    yield context.metrics(metrics)
    yield prediction_table(TASK, frames)


def evaluate_pixel_baseline(store: Store, config: Config, step: int = 0) -> Iterator[Record]:
    """Corrected protocol on small images instead of embeddings: current, previous and their difference.

    Yields `test/pixel_baseline/temporal_image/...`; needs no model.
    """
    task = f"pixel_baseline/{TASK}"
    if store.mimic is None or store.ms_cxr_t is None:
        yield skipped(task, "the data has no MS-CXR-T")
        return
    pairs = store.ms_cxr_t.pairs
    current = small_images(store.mimic.images, pairs["image"].to_numpy(), config.data.crop_size)
    previous = small_images(store.mimic.images, pairs["previous_image"].to_numpy(), config.data.crop_size)
    features = np.concatenate([current, previous, current - previous], axis=1)
    is_held_out = held_out(store.mimic, pairs["subject_id"])
    values: dict[str, float] = {}
    for finding in FINDINGS:
        classes = progression_classes(pairs[finding])
        rows = np.flatnonzero((classes >= 0) & is_held_out)
        try:
            result = grouped_probe(features[rows], classes[rows], pairs["subject_id"].to_numpy()[rows],
                                   len(PROGRESSIONS))
        except TooFewExamplesError as error:
            yield skipped(f"{task}.{finding}", str(error))
            continue
        values |= _corrected_values(finding, result)
    yield Metrics(step, _named(f"test/{task}", values))


def small_images(images: np.ndarray, rows: np.ndarray, crop_size: int, side: int = _BASELINE_SIDE) -> np.ndarray:
    """(n, side * side) grey values in [0, 1] of the centre crops, by averaging over (nearly) equal areas."""
    margin = (images.shape[1] - crop_size) // 2
    crops = images[rows][:, margin:margin + crop_size, margin:margin + crop_size].astype(np.float32) / 255.0
    edges = np.linspace(0, crop_size, side + 1).round().astype(int)
    sums = np.add.reduceat(np.add.reduceat(crops, edges[:-1], axis=1), edges[:-1], axis=2)
    areas = np.outer(np.diff(edges), np.diff(edges))
    return (sums / areas).reshape(len(rows), side * side)


def _corrected_values(finding: str, result: ProbeResult) -> dict[str, float]:
    return {f"{finding}/balanced_accuracy": result.balanced_accuracy, f"{finding}/auroc": result.auroc}


def _named(prefix: str, values: dict[str, float]) -> dict[str, float]:
    """Full names, and the mean of every metric over the findings that have it."""
    by_metric: dict[str, list[float]] = {}
    for name, value in values.items():
        by_metric.setdefault(name.split("/")[1], []).append(value)
    means = {f"mean/{metric}": float(np.mean(found)) for metric, found in by_metric.items()}
    return {f"{prefix}/{name}": value for name, value in {**values, **means}.items()}
