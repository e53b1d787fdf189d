"""Grounding (MS-CXR): does the model look where the phrase says?

Map of a phrase on a frontal image, from the local embeddings: for every word of the phrase (an own token with the
pieces after it; [CLS] and [SEP] left out) the cosine with every patch; the mean over the words. The
attention map is the mean over the words of softmax over patches of cosine / local temperature, which is the attention
of the local alignment. Boxes of one phrase on one image are united.

- `pointing_accuracy`: the centre of the patch with the largest value lies inside the box (bilinear upsampling has
  its maximum there). Its chance level is the area of the box, `chance`.
- `contrast_to_noise`: |mean_in - mean_out| / sqrt(var_in + var_out) over the pixels of the bilinearly upsampled map, as
  published (BioViL); `contrast_to_noise_signed` without the bars, so that a map that avoids the box scores below 0.
- `attention/...`: the same three of the attention map.

Only images of patients outside the training split are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax
from torch.nn.functional import interpolate

from medst.data.report_text import clean
from medst.evaluation.context import EvaluationContext, held_out, skipped
from medst.evaluation.metrics import contrast_to_noise
from medst.evaluation.predictions import prediction_frame, prediction_table
from medst.evaluation.traits import studies_of, study_traits
from medst.records import Arrays, Facts, Record

TASK = "grounding"
NUM_TRACKED = 12
"""Examples whose maps are tracked where evaluation.track_attention asks for them."""
_PHRASES_PER_CALL = 256
"""Maps in pixels that are held at a time."""


@dataclass(frozen=True)
class Phrase:
    """One phrase on one image with its united boxes."""

    image: int
    text: str
    """Cleaned; not as released captions are, which would drop a phrase of one word."""
    finding: str
    boxes: np.ndarray
    """(k, 4) x, y, w, h in pixels of the centre crop."""
    mask: np.ndarray
    """(crop, crop) bool, True inside a box."""
    row: int
    """First row of the phrase in the store's table."""


def phrase_maps(words: np.ndarray, word_mask: np.ndarray, patches: np.ndarray, temperature: float
                ) -> tuple[np.ndarray, np.ndarray]:
    """Similarity map and attention map (P,) of one phrase.

    Args:
        words: (N, E) unit; word_mask: (N,) bool; patches: (P, E) unit.
    """
    cosines = words[word_mask].astype(np.float64) @ patches.astype(np.float64).T
    return cosines.mean(axis=0), softmax(cosines / temperature, axis=1).mean(axis=0)


def upsample(maps: np.ndarray, size: int) -> np.ndarray:
    """(n, P) maps over a square patch grid -> (n, size, size), bilinear."""
    side = round(maps.shape[1] ** 0.5)
    grid = torch.from_numpy(maps.astype(np.float32)).view(-1, 1, side, side)
    return interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[:, 0].numpy()


def points_inside(patch_maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(n,) bool: the centre of the largest patch lies inside the mask.

    Args:
        patch_maps: (n, P) over a square grid, row by row; masks: (n, side, side) bool in pixels.
    """
    grid = round(patch_maps.shape[1] ** 0.5)
    row, column = np.divmod(patch_maps.argmax(axis=1), grid)
    patch = masks.shape[1] / grid
    return masks[np.arange(len(masks)), ((row + 0.5) * patch).astype(int), ((column + 0.5) * patch).astype(int)]


def box_mask(boxes: np.ndarray, size: int) -> np.ndarray:
    """(size, size) bool: pixels whose centre lies in one of the (k, 4) boxes x, y, w, h in pixels."""
    centres = np.arange(size) + 0.5
    x, y, w, h = (boxes[:, column, None] for column in range(4))
    in_column = (centres >= x) & (centres < x + w)
    in_row = (centres >= y) & (centres < y + h)
    return (in_row[:, :, None] & in_column[:, None, :]).any(axis=0)


def phrases_with_boxes(context: EvaluationContext) -> list[Phrase]:
    """Phrases on images of held-out patients whose box is visible in the centre crop and does not fill it."""
    store, config = context.store, context.config
    assert store.mimic is not None and store.ms_cxr is not None
    table = store.ms_cxr.table
    subject_of_image = store.mimic.views.set_index("image")["subject_id"]
    table = table[held_out(store.mimic, subject_of_image.loc[table["image"]])]
    side, crop = store.mimic.images.shape[1], config.data.crop_size
    boxes = table[["x", "y", "w", "h"]].to_numpy(dtype=float) * side
    boxes[:, :2] -= (side - crop) // 2
    rows_of_phrase: dict[tuple[int, str], list[int]] = {}
    for row, (image, phrase) in enumerate(zip(table["image"], table["phrase"], strict=True)):
        rows_of_phrase.setdefault((int(image), clean(phrase, "corrected")), []).append(row)
    findings, examples = table["finding"].to_numpy(), table.index.to_numpy()
    phrases = []
    for (image, text), rows in rows_of_phrase.items():
        mask = box_mask(boxes[rows], crop)
        if text and mask.any() and not mask.all():
            phrases.append(Phrase(image, text, str(findings[rows[0]]), boxes[rows], mask, int(examples[rows[0]])))
    return phrases


def grounding(context: EvaluationContext) -> Iterator[Record]:
    """`test/grounding/{pointing_accuracy,chance,contrast_to_noise,contrast_to_noise_signed}`, `/attention/...`."""
    store, config = context.store, context.config
    phrases = [] if store.mimic is None or store.ms_cxr is None else phrases_with_boxes(context)
    if store.mimic is None or not phrases:
        yield skipped(TASK, "no MS-CXR phrases on images of patients outside training")
        return
    texts = sorted({phrase.text for phrase in phrases})
    words, word_masks = context.cache.words(texts)
    text_row = {text: row for row, text in enumerate(texts)}
    images = sorted({phrase.image for phrase in phrases})
    patches = context.cache.patches(images)
    image_row = {image: row for row, image in enumerate(images)}
    pairs = [phrase_maps(words[text_row[phrase.text]], word_masks[text_row[phrase.text]],
                         patches[image_row[phrase.image]], config.objective.local.temperature) for phrase in phrases]
    masks = np.stack([phrase.mask for phrase in phrases])
    subject_of_image = store.mimic.views.set_index("image")["subject_id"]
    groups = context.groups(subject_of_image.loc[[phrase.image for phrase in phrases]])
    study_of_image = store.mimic.views.set_index("image")["study_id"]
    traits = study_traits(store.mimic, studies_of(store.mimic, study_of_image.loc[
        [phrase.image for phrase in phrases]]))
    values = {"chance": float(masks.mean())}
    frames = []
    maps = {prefix: np.stack([pair[column] for pair in pairs]) for column, prefix in enumerate(("", "attention/"))}
    for prefix, patch_maps in maps.items():
        hits = points_inside(patch_maps, masks).astype(np.int64)
        contrasts = np.concatenate([
            contrast_to_noise(upsample(patch_maps[start:start + _PHRASES_PER_CALL], config.data.crop_size),
                              masks[start:start + _PHRASES_PER_CALL])
            for start in range(0, len(phrases), _PHRASES_PER_CALL)])
        values |= {f"{prefix}pointing_accuracy": float(hits.mean()),
                   f"{prefix}contrast_to_noise": float(np.abs(contrasts).mean()),
                   f"{prefix}contrast_to_noise_signed": float(contrasts.mean())}
        # The label is whether the point hits, the score the signed contrast-to-noise ratio.
        frames.append(prediction_frame(example=[phrase.row for phrase in phrases], group=groups, label=hits,
                                       score=contrasts, finding=f"{prefix}phrase", traits=traits))
    yield Facts({f"{TASK}.num_phrases": len(phrases), f"{TASK}.num_images": len(images)})
    yield context.metrics({f"test/{TASK}/{name}": value for name, value in values.items()})
    yield prediction_table(TASK, frames)
    if config.evaluation.track_attention:
        yield _tracked(context, phrases, maps, patches[[image_row[phrase.image] for phrase in phrases]])


def reference_patches(boxes: np.ndarray, grid: int, size: int) -> np.ndarray:
    """(n,) patch, row by row of the grid, that holds the centre of the (n, 4) boxes in pixels of a `size` square."""
    centres = np.clip((boxes[:, :2] + boxes[:, 2:] / 2) * grid / size, 0, grid - 1).astype(np.int64)
    return centres[:, 1] * grid + centres[:, 0]


def _tracked(context: EvaluationContext, phrases: list[Phrase], maps: dict[str, np.ndarray], patches: np.ndarray
             ) -> Arrays:
    """Maps of a few examples, drawn in turn from the findings by a fixed seed, whatever their scores.

    Args:
        patches: (phrases, P, E) unit patch embeddings of their images.
    """
    assert context.store.mimic is not None
    order = np.random.default_rng(0).permutation(len(phrases))
    by_finding: dict[str, list[int]] = {}
    for row in order:
        by_finding.setdefault(phrases[row].finding, []).append(int(row))
    turns = sorted((turn, finding, row) for finding, rows in by_finding.items() for turn, row in enumerate(rows))
    chosen = [row for _, _, row in turns[:NUM_TRACKED]]
    crop = context.config.data.crop_size
    margin = (context.store.mimic.images.shape[1] - crop) // 2
    images = context.store.mimic.images[[phrases[row].image for row in chosen]]
    boxes = np.full((len(chosen), max(len(phrases[row].boxes) for row in chosen), 4), np.nan, dtype=np.float32)
    for position, row in enumerate(chosen):
        boxes[position, :len(phrases[row].boxes)] = phrases[row].boxes
    grid = round(patches.shape[1] ** 0.5)
    reference = reference_patches(np.stack([phrases[row].boxes[0] for row in chosen]), grid, crop)
    shown = patches[chosen]
    own = shown[np.arange(len(chosen)), reference]
    points = (np.stack([reference % grid, reference // grid], axis=1) + 0.5) * crop / grid
    return Arrays("attention/grounding", {
        "similarity": upsample(maps[""][chosen], crop),
        "attention": upsample(maps["attention/"][chosen], crop),
        # Cosine of the patch in the middle of the (first) box with all patches of its image; its centre x, y in pixels.
        "patch_similarity": upsample(np.einsum("npe,ne->np", shown, own), crop),
        "reference": points.astype(np.float32),
        "boxes": boxes,
        "images": images[:, margin:margin + crop, margin:margin + crop],
        "phrases": np.array([phrases[row].text for row in chosen]),
        "findings": np.array([phrases[row].finding for row in chosen]),
    })
