"""What a model costs: parameters, parameters that are active, and floating-point operations per pair.

What must not live here: measured times.

Legend: P patches of one image, W token positions.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from medst.model.experts import LearnedExperts, ViewExperts
from medst.model.medst import MedST
from medst.model.routing import EXPERT_OF_VIEW


def count(model: MedST, caption_tokens: int) -> dict[str, float]:
    """Costs of one pair whose caption has `caption_tokens` tokens, each a word of its own.

    Returns:
        parameters: trainable numbers.
        active_parameters_frontal, active_parameters_two_view: without the experts that a pair of that kind does not
            pass through. With learned routing, what one token passes through: one expert, for both kinds.
        flops_frontal, flops_two_view: operations of the forward pass of encoders and heads, matrix products and
            convolutions only, a multiplication and an addition counted as two.
    """
    encoder = model.image_encoder
    parameters = _size(model.parameters())
    one_expert = sum(_size(block.experts.experts[0].parameters()) for block in encoder.blocks
                     if isinstance(block.experts, ViewExperts | LearnedExperts))
    idle = encoder.num_experts - 1
    # A two-view pair passes through a frontal and a lateral expert, where these are two.
    views = 1 if encoder.is_learned else len({EXPERT_OF_VIEW[encoder.num_experts][view] for view in (1, 3)})
    text = _text_flops(model, caption_tokens)
    computes_absent = encoder.missing_lateral == "released"
    return {
        "parameters": parameters,
        "active_parameters_frontal": parameters - idle * one_expert,
        "active_parameters_two_view": parameters - (idle - (views - 1)) * one_expert,
        "flops_frontal": text + _image_flops(model, num_views=2 if computes_absent else 1),
        "flops_two_view": text + _image_flops(model, num_views=2),
    }


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def _image_flops(model: MedST, num_views: int) -> float:
    encoder, image, experts = model.image_encoder, model.config.image, model.config.experts
    width, num_patches = image.width, num_views * encoder.num_patches
    num_tokens = 1 + num_patches
    hidden = round(width * image.mlp_ratio * experts.hidden_scale)
    projections = 2 * num_tokens * width * 4 * width
    attention = 2 * 2 * num_tokens**2 * width
    feed_forward = 2 * 2 * num_tokens * width * hidden
    gate = 2 * num_tokens * width * experts.num_experts if encoder.is_learned else 0
    blocks = image.num_layers * (projections + attention + feed_forward + gate)
    stem = num_views * _convolution_flops(encoder.stem, model.image_size)
    return stem + blocks + _head_flops(model, width, num_vectors=1 + num_patches)


def _text_flops(model: MedST, num_tokens: int) -> float:
    architecture = model.text_encoder.bert.config
    width = architecture.hidden_size
    layer = (2 * num_tokens * width * 4 * width + 2 * 2 * num_tokens**2 * width
             + 2 * 2 * num_tokens * width * architecture.intermediate_size)
    num_words = model.max_tokens - 1 if model.padding == "released" else num_tokens - 1
    return architecture.num_hidden_layers * layer + _head_flops(model, width, num_vectors=1 + num_words)


def _head_flops(model: MedST, width: int, num_vectors: int) -> float:
    heads = model.config.heads
    return 2 * num_vectors * heads.hidden_width * (width + heads.embedding_width)


def _convolution_flops(stem: nn.Module, side: int) -> float:
    """Operations of the convolutions of one image, each dividing the side by its stride."""
    total = 0.0
    for module in stem.modules():
        if isinstance(module, nn.Conv2d):
            side //= module.stride[0]
            total += 2 * side**2 * module.weight.numel()
    return total
