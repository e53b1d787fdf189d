"""The training step of a setting, the published way against ours: time, parts, memory, evaluation.

What must not live here: the slow ways themselves (published_way.py).

Legend: B pairs, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Step, Times, interleave, matrix_products, peak_memory, spread
from benchmarks.published_way import (
    FAST,
    PUBLISHED,
    PUBLISHED_WITH_ANOMALY,
    Way,
    executed,
    objective_of,
)
from benchmarks.settings import VOCABULARY_SIZE, made_up_batch, model_of
from medst.config import Config
from medst.data.batch import Batch
from medst.model import MedST
from medst.model.heads import ElementPooling
from medst.model.outputs import ImageFeatures
from medst.objectives.alignment import MAX_ENTRIES, local_alignment
from medst.objectives.contrast import global_contrast
from medst.objectives.temporal import fmc, rmr
from medst.training.loop import autocast
from medst.training.optimizer import build_optimizer, gated_step

PUBLISHED_NAME, ANOMALY_NAME, FAST_NAME = "published way", "published way, anomaly detection", "ours, float32"
REDUCED_NAME = "ours, bfloat16"
_SAME = 1e-4


class TrainingStep:
    """One model, one batch and one optimiser, on which every way takes its step."""

    def __init__(self, name: str, config: Config, num_pairs: int) -> None:
        self.config = config
        self.model = model_of(name, config)
        self.batch = made_up_batch(config, VOCABULARY_SIZE[name], num_pairs)
        self.optimizer = build_optimizer(self.model, config.training)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def take(self, way: Way, precision: str = "float32", is_compiled: bool = False) -> Tensor:
        """Forward, backward, clipping and update; returns the loss."""
        config = self.config.model_copy(update={
            "training": self.config.training.model_copy(update={"precision": precision})})
        for group in self.optimizer.param_groups:
            group["fused"] = not way.plain_optimizer
        with torch.compiler.set_stance("default" if is_compiled else "force_eager"), executed(way):
            with autocast(config):
                loss = objective_of(self.model, self.batch, config, way).total
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.training.clip_norm)
        if way.plain_optimizer:
            self.optimizer.found_inf = None  # type: ignore[attr-defined]
            self.optimizer.step()
            loss.item()
        else:
            gated_step(self.optimizer, loss.detach().isfinite() & norm.isfinite())
        return loss.detach()

    def loss(self, way: Way) -> dict[str, float]:
        """The terms in that way, in training mode, without a step."""
        with torch.no_grad(), executed(way):
            terms = objective_of(self.model, self.batch, self.config, way).terms
        return {name: float(value) for name, value in terms.items()}

    def operations(self) -> float:
        """Floating-point operations of the matrix products and convolutions of our step."""
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), \
                FlopCounterMode(display=False) as counter:
            objective_of(self.model, self.batch, self.config).total.backward()
        self.optimizer.zero_grad(set_to_none=True)
        return float(counter.get_total_flops())

    def layer_shapes(self) -> list[tuple[int, int, int]]:
        """(rows, inputs, outputs) of the linear layers of one block of each encoder."""
        encoder, config = self.model.image_encoder, self.config.model
        pairs, laterals = self.batch.num_pairs, self.batch.lateral.shape[0]
        tokens = pairs * (1 + encoder.num_patches) + laterals * encoder.num_patches
        width, hidden = config.image.width, round(config.image.width * config.image.mlp_ratio)
        is_token = self.batch.attention_mask
        words = int(is_token.sum()) if self.model.text_encoder.packs else is_token.numel()
        text = config.text
        return [(tokens, width, 3 * width), (tokens, width, width), (tokens, width, hidden), (tokens, hidden, width),
                (words, text.width, text.hidden_width), (words, text.hidden_width, text.width)]


def measure_training(
    name: str, config: Config, num_pairs: int, *, seconds: float,
    keep: Callable[[dict[str, Any]], None] = lambda measured: None,
) -> dict[str, Any]:
    """All that is measured of one setting: first the published way against ours, then each optimisation alone, the
    parts, evaluation.

    Args:
        seconds: for all of it; what takes longer takes three rounds.
        keep: gets all that is known so far after every round.

    Raises:
        ValueError: a way that should give equal numbers does not.
    """
    device = config.training.device
    step = TrainingStep(name, config, num_pairs)
    is_accelerated = torch.device(device).type != "cpu"
    if is_accelerated:
        step.model.compile_parts()
    operations = step.operations()
    measured: dict[str, Any] = {
        "pairs": num_pairs, "laterals": step.batch.lateral.shape[0], "tokens": step.batch.token_ids.shape[1],
        "mean_tokens": float(step.batch.attention_mask.sum(dim=1).float().mean()),
        "parameters": sum(parameter.numel() for parameter in step.parameters),
        "operations": operations, "largest_difference": _differences(step), "seconds": {}, "faster_than": {},
    }
    main: dict[str, Step] = {
        ANOMALY_NAME: _bind(step, PUBLISHED_WITH_ANOMALY), PUBLISHED_NAME: _bind(step, PUBLISHED),
        FAST_NAME: _bind(step, FAST), REDUCED_NAME: _bind(step, FAST, "bfloat16", is_accelerated),
    }
    alone: dict[str, Step] = {f"ours without: {label}": _bind(step, replace(FAST, **{field: True}))
                              for field, label in _POINTS.items()
                              if step.model.text_encoder.packs or field != "padded_captions"}
    if is_accelerated:
        alone["ours, float32, compiled"] = _bind(step, FAST, "float32", True)
        alone["ours, bfloat16, not compiled"] = _bind(step, FAST, "bfloat16")
    products, product_operations = matrix_products(step.layer_shapes(), device, torch.float32)
    halves, _ = matrix_products(step.layer_shapes(), device, torch.bfloat16)

    def keep_main(times: Times) -> None:
        def share_of_rate(label: str, of: str) -> dict[str, float]:
            return spread(operations / times.of(label) / (product_operations / times.of(of)))

        measured["seconds"] |= {label: spread(times.of(label)) for label in main}
        measured["faster_than"] |= {label: times.ratio(label, FAST_NAME) for label in main if label != FAST_NAME}
        measured["reduced_faster_than"] = {label: times.ratio(label, REDUCED_NAME)
                                           for label in (PUBLISHED_NAME, ANOMALY_NAME)}
        measured["products_per_second"] = {kind: float(product_operations / np.median(times.of(f"products, {kind}")))
                                           for kind in ("float32", "bfloat16")}
        measured["share_of_product_rate"] = {FAST_NAME: share_of_rate(FAST_NAME, "products, float32"),
                                             REDUCED_NAME: share_of_rate(REDUCED_NAME, "products, bfloat16")}
        keep(measured)

    def keep_alone(times: Times) -> None:
        measured["seconds"] |= {label: spread(times.of(label)) for label in alone}
        measured["faster_than"] |= {label: times.ratio(label, FAST_NAME) for label in alone}
        keep(measured)

    interleave({**main, "products, float32": products, "products, bfloat16": halves}, device, seconds=0.5 * seconds,
               keep=keep_main, has_lead_in=True)
    # On a CPU nothing is compiled, and every kernel has run by now.
    interleave({FAST_NAME: main[FAST_NAME], **alone}, device, seconds=0.3 * seconds, keep=keep_alone,
               is_warm=not is_accelerated)
    measured["parts"] = measure_parts(step, seconds=0.1 * seconds)
    keep(measured)
    measured["evaluation_pairs_per_second"] = measure_evaluation(step, seconds=0.1 * seconds)
    return measured


_POINTS = {
    "absent_laterals": "absent laterals left out", "padded_captions": "captions packed",
    "full_captions": "captions cut to their length", "stored_attention": "attention without matrices",
    "word_loop": "words added up at once", "temporal_loop": "sequences at once",
    "plain_optimizer": "fused optimiser, no wait",
}
assert set(_POINTS) | {"anomaly_detection"} == {field.name for field in fields(Way)}


def _bind(step: TrainingStep, way: Way, precision: str = "float32", is_compiled: bool = False) -> Step:
    return lambda: step.take(way, precision, is_compiled)


def _differences(step: TrainingStep) -> float:
    ours = step.loss(FAST)
    theirs = step.loss(PUBLISHED)
    largest = max(abs(ours[name] - theirs[name]) for name in ours if not name.startswith("acc"))
    if not largest <= _SAME * max(1.0, abs(ours["loss"])):
        raise ValueError(f"the published way gives other losses than the model, by {largest}: a slow way is wrong")
    return largest


def measure_parts(step: TrainingStep, *, seconds: float) -> dict[str, dict[str, float]]:
    """Forward and backward of each part alone, on what the parts before it gave; the update alone."""
    model, batch, config = step.model, step.batch, step.config
    with torch.no_grad():
        images = model.encode_images(batch.frontal, batch.frontal_view, batch.lateral, batch.lateral_view,
                                     batch.lateral_row)
        texts = model.encode_text(batch.token_ids, batch.attention_mask, batch.word_of_token)
        image, text = model.project_images(images), model.project_text(texts)

    def encode_images() -> list[Tensor]:
        features = model.encode_images(batch.frontal, batch.frontal_view, batch.lateral, batch.lateral_view,
                                       batch.lateral_row)
        return [features.cls, features.frontal_patches, features.lateral_patches]

    def encode_text() -> list[Tensor]:
        features = model.encode_text(batch.token_ids, batch.attention_mask, batch.word_of_token)
        return [features.report, features.words]

    def project() -> list[Tensor]:
        leaves = ImageFeatures(_leaf(images.cls), _leaf(images.frontal_patches), _leaf(images.lateral_patches),
                               images.lateral_row, images.balance_loss, images.expert_share)
        projected = model.project_images(leaves)
        words = model.project_text(replace(texts, report=_leaf(texts.report), words=_leaf(texts.words)))
        return [projected.image, projected.patches, words.report, words.words]

    def align() -> list[Tensor]:
        local = local_alignment(_leaf(text.words), _leaf(image.patches), text.word_mask, image.patch_mask,
                                model.word_pooling, model.patch_pooling,
                                temperature=config.objective.local.temperature, padding_counts=False,
                                normalise_patch_context=True)
        return [local.word, local.patch]

    def contrast() -> list[Tensor]:
        return [global_contrast(_leaf(image.image), _leaf(text.report), batch.study,
                                config.objective.global_temperature)]

    def order() -> list[Tensor]:
        x, y = _leaf(image.image)[batch.sequences], _leaf(text.report)[batch.sequences]
        temporal = config.objective.temporal
        both = [fmc(x, y, temporal.temperature), fmc(y, x, temporal.temperature)]
        return both + [rmr(one, other, temporal.temperature, variance_weight=temporal.variance_weight,
                           variance_floor=temporal.variance_floor, huber_threshold=temporal.huber_threshold)
                       for one, other in ((x, y), (y, x))]

    for group in step.optimizer.param_groups:
        group["fused"] = True

    def update() -> None:
        for parameter in step.parameters:
            parameter.grad = zeros[parameter]
        gated_step(step.optimizer, torch.ones((), dtype=torch.bool, device=step.config.training.device))

    zeros = {parameter: torch.zeros_like(parameter) for parameter in step.parameters}
    parts: dict[str, Step] = {
        "image encoder": _differentiated(encode_images, step.parameters),
        "text encoder": _differentiated(encode_text, step.parameters),
        "heads": _differentiated(project, step.parameters),
        "local alignment": _differentiated(align, step.parameters),
        "global contrast": _differentiated(contrast, step.parameters),
        "temporal losses": _differentiated(order, step.parameters),
        "optimiser": update,
    }
    with torch.compiler.set_stance("force_eager"):
        times = interleave(parts, config.training.device, seconds=seconds, least_rounds=3)
    step.optimizer.zero_grad(set_to_none=True)
    return {name: spread(times.of(name)) for name in parts}


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _differentiated(compute: Callable[[], Sequence[Tensor]], parameters: Sequence[Tensor]) -> Step:
    def run() -> None:
        outputs = compute()
        torch.autograd.backward(list(outputs), [torch.ones_like(output) for output in outputs])
        for parameter in parameters:
            parameter.grad = None

    return run


def measure_evaluation(step: TrainingStep, *, seconds: float) -> dict[str, dict[str, float]]:
    """Pairs a second of the encoders in evaluation mode, the published way and ours."""
    step.model.eval()

    def encode(way: Way) -> Step:
        def run() -> None:
            with torch.no_grad(), executed(way):
                objective_of(step.model, step.batch, step.config, way)

        return run

    with torch.compiler.set_stance("force_eager"):
        times = interleave({PUBLISHED_NAME: encode(PUBLISHED), FAST_NAME: encode(FAST)}, step.config.training.device,
                           seconds=seconds)
    step.model.train()
    return {name: spread(step.batch.num_pairs / times.of(name)) for name in times.names}


_MEMORY_SETTINGS: dict[str, dict[str, Any]] = {
    "whole batch": {}, "blocks computed again": {"recompute": True}, "pieces of 4 pairs": {"micro_batch": 4},
    "pieces of 4 pairs, blocks computed again": {"micro_batch": 4, "recompute": True},
}
_LOCAL_PAIRS, _LOCAL_WORDS = (32, 64, 128, 256, 512), 80
LARGE_BATCH = 144 * 4
"""Pairs of 144 sequences of 4."""


def measure_memory(
    name: str, config: Config, batch_sizes: Sequence[int], local_batch_sizes: Sequence[int] = _LOCAL_PAIRS
) -> dict[str, Any]:
    """Peak memory of forward and backward against the batch, with the ways to save it; a straight line through each.

    `states` are weights and the two moments of the optimiser, which a batch does not change. Gradients are part of the
    peak, since they come as activations go.
    """
    model = model_of(name, config)
    device = config.training.device
    precision = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    config = config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})
    results: dict[str, Any] = {"precision": precision, "pairs": list(batch_sizes), "peak_bytes": {}, "line": {},
                               "bytes_at_144_sequences_of_4": {}}
    parameters = list(model.parameters())
    results["states_bytes"] = 12.0 * sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    results["local"] = measure_local_memory(config, local_batch_sizes)
    batches = [made_up_batch(config, VOCABULARY_SIZE[name], num_pairs) for num_pairs in batch_sizes]
    for label, settings in _MEMORY_SETTINGS.items():
        for encoder in (model.image_encoder, model.text_encoder):
            encoder.micro_batch, encoder.recompute = settings.get("micro_batch", 0), settings.get("recompute", False)
        peaks = []
        for batch in batches:
            peaks.append(peak_memory(_forward_and_backward(model, batch, config), device))
        slope, constant = np.polyfit(batch_sizes, peaks, 1)
        results["peak_bytes"][label] = peaks
        results["line"][label] = {"bytes_a_pair": float(slope), "constant": float(constant)}
        results["bytes_at_144_sequences_of_4"][label] = float(slope * LARGE_BATCH + constant) + results["states_bytes"]
    return results


def measure_local_memory(
    config: Config, batch_sizes: Sequence[int] = _LOCAL_PAIRS, bound: int = MAX_ENTRIES
) -> dict[str, Any]:
    """Peak memory of the local alignment alone against the batch, every pair with a lateral: with the bound on the
    entries of an array, and without."""
    device, width = config.training.device, config.model.heads.embedding_width
    num_patches = 2 * (config.data.crop_size // config.model.image.patch_size) ** 2
    pooling = ElementPooling(width).to(device)
    peaks: dict[str, list[float]] = {"bounded": [], "whole batch": []}
    for num_pairs in batch_sizes:
        words, patches = (normalize(torch.randn(num_pairs, length, width, device=device), dim=-1).requires_grad_()
                          for length in (_LOCAL_WORDS, num_patches))

        def run(max_entries: int, words: Tensor = words, patches: Tensor = patches) -> None:
            word_mask, patch_mask = (torch.ones(vectors.shape[:2], dtype=torch.bool, device=device)
                                     for vectors in (words, patches))
            local = local_alignment(words, patches, word_mask, patch_mask, pooling, pooling, padding_counts=False,
                                    temperature=config.objective.local.temperature, normalise_patch_context=True,
                                    max_entries=max_entries)
            torch.autograd.grad(local.word + local.patch, (words, patches))

        for label, max_entries in (("bounded", bound), ("whole batch", 2**62)):
            peaks[label].append(peak_memory(partial(run, max_entries), device))
    return {"pairs": list(batch_sizes), "words": _LOCAL_WORDS, "patches": num_patches, "max_entries": bound,
            "peak_bytes": peaks}


def _forward_and_backward(model: MedST, batch: Batch, config: Config) -> Step:
    def run() -> None:
        with autocast(config):
            total = objective_of(model, batch, config).total
        total.backward()
        model.zero_grad(set_to_none=True)

    return run
