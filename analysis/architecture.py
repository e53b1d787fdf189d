"""The model drawn from the config of a trial: what was trained, not a fixed picture.

What lives here: the boxes and their texts. What must not: numbers of any study but sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import yaml
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from analysis.style import BLACK, COLOURS, GREY, PAGE_WIDTH, Picture, style
from analysis.text import expert_names
from analysis.tidy import FINISHED, Study

HEIGHT = 3.1
"""Inches; the drawing's unit is the inch too."""
CURRICULA = {
    "joint": "FMC and RMR together", "staged": "FMC, then RMR", "ramp": "FMC, RMR rising", "fmc_only": "FMC only",
    "rmr_only": "RMR only", "reversed": "RMR, then FMC", "length": "growing sequences",
}


def architecture(study: Study) -> Picture | None:
    """The reference arm's model; None where no trial of it was tracked."""
    params = study.params.get(study.plan.reference)
    if not params:
        return None
    config = {key: yaml.safe_load(text) for key, text in params.items()}
    numbers = {key: study.scores(f"facts/{key}")[study.plan.reference].mean()
               for key in ("parameters", "flops_two_view", "vocabulary_size")}
    with style():
        figure = plt.figure(figsize=(PAGE_WIDTH, HEIGHT), layout="none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_xlim(0, PAGE_WIDTH)
        axes.set_ylim(0, HEIGHT)
        axes.set_axis_off()
        _draw(axes, config)
    size = ""
    if numbers["parameters"] == numbers["parameters"]:
        size = (f" {numbers['parameters'] / 1e6:.2f} million parameters, {numbers['flops_two_view'] / 1e9:.3f} "
                "GFLOPs for a two-view pair, forward.")
    return Picture("architecture", figure,
                   f"The model of arm '{study.plan.reference}' of study {study.plan.name}, drawn from its tracked "
                   f"configuration.{size} n = {study.states(study.plan.reference).get(FINISHED, 0)} of "
                   f"{len(study.plan.seeds)} planned seeds are finished and share it.", study.plan.name)


def texts_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Box -> what stands in it, from the resolved config of a trial (dotted key -> value)."""
    image, text = "model.image.", "model.text."
    experts = config["model.experts.num_experts"]
    is_learned = config["model.experts.routing"] == "learned"
    patches = (config["data.crop_size"] // config[f"{image}patch_size"]) ** 2
    both = config["data.views"] == "both"
    local, temporal = config["objective.lambda_local"], config["objective.lambda_temporal"]
    scale = config["model.experts.hidden_scale"]
    return {
        "images": f"Frontal{' and lateral' if both else ' alone'}\n{config['data.crop_size']} × "
                  f"{config['data.crop_size']} pixels",
        "report": f"Report\nup to {config['data.caption_tokens']} tokens",
        "patches": f"{'Convolutional stem' if config[f'{image}stem'] == 'conv' else 'Patch embedding'}\n{patches} "
                   f"patches a view\nof {config[f'{image}patch_size']} pixels",
        "image_encoder": f"Vision transformer{_named(config[f'{image}name'])}\n"
                         f"{_layers(config[f'{image}num_layers'])}, width {config[f'{image}width']}, "
                         f"{config[f'{image}num_heads']} heads\n"
                         "shared self-attention,\nfeed-forward of the view's expert",
        "text_encoder": f"Text transformer{_named(config[f'{text}name'])}\n"
                        f"{_layers(config[f'{text}num_layers'])}, width {config[f'{text}width']}, "
                        f"{config[f'{text}num_heads']} heads",
        "experts": (f"{experts} experts, learned top-1 routing" if is_learned
                    else f"{experts} expert{'s' if experts > 1 else ''} by view")
                   + (f", hidden width × {scale:g}" if scale != 1 else ""),
        "heads": f"Heads\n{config['model.heads.hidden_width']} → {config['model.heads.embedding_width']}\nunit length",
        "global": f"Global contrast\ntemperature {config['objective.global_temperature']:g}",
        "local": f"Local alignment, λ1 = {local:g}\nword ↔ patches" if local else "Local alignment\nnot used (λ1 = 0)",
        "temporal": (f"Temporal, λ2 = {temporal:g}\n{CURRICULA[config['objective.curriculum.kind']]},\n"
                     f"sequences of {config['data.sequence_length']}") if temporal
        else "Temporal\nnot used (λ2 = 0)",
    }


def _layers(number: int) -> str:
    return f"{number} layer{'' if number == 1 else 's'}"


def _named(name: str | None) -> str:
    return f"\n{name}" if name else ""


def _draw(axes: Axes, config: Mapping[str, Any]) -> None:
    texts = texts_of(config)
    num_experts = config["model.experts.num_experts"]
    # A box has room for a number, not for its noun.
    names = [name.removeprefix("expert ") for name in expert_names(config["model.experts.routing"], num_experts)]
    upper, lower, grey = 2.05, 0.5, "#f2f2f2"
    _box(axes, 0.62, upper, 1.05, 0.62, texts["images"], grey)
    _box(axes, 1.84, upper, 1.12, 0.62, texts["patches"], grey)
    _box(axes, 3.5, upper, 1.75, 1.5, "", "#e8f1f8")
    axes.text(3.5, upper + 0.36, texts["image_encoder"], ha="center", va="center", fontsize=6, linespacing=1.3)
    width = 1.6 / len(names)
    for number, name in enumerate(names):
        centre = 3.5 - 0.8 + width * (number + 0.5)
        _box(axes, centre, upper - 0.28, width - 0.05, 0.28, name, COLOURS[number % len(COLOURS)], "white")
    axes.text(3.5, upper - 0.58, texts["experts"], ha="center", va="center", fontsize=5.5, color=BLACK)
    _box(axes, 1.23, lower, 1.05, 0.5, texts["report"], grey)
    _box(axes, 3.5, lower, 1.75, 0.62, texts["text_encoder"], "#fdf1e6")
    for height in (upper, lower):
        _box(axes, 5.0, height, 0.72, 0.62, texts["heads"], grey)
    losses = (("global", 2.55), ("local", 1.65), ("temporal", 0.62))
    for name, height in losses:
        is_used = name == "global" or bool(config[f"objective.lambda_{name}"])
        _box(axes, 6.17, height, 1.3, 0.66, texts[name], "white", BLACK if is_used else GREY, is_dashed=not is_used)
    for start, end in (((1.15, upper), (1.27, upper)), ((2.41, upper), (2.61, upper)), ((4.39, upper), (4.63, upper)),
                       ((1.77, lower), (2.61, lower)), ((4.39, lower), (4.63, lower))):
        _arrow(axes, start, end)
    # One line collects both heads; every loss takes its input from it.
    used = [height for name, height in losses if name == "global" or config[f"objective.lambda_{name}"]]
    axes.plot([5.44, 5.44], [min(lower, *used), max(upper, *used)], color=BLACK, linewidth=0.7)
    for own in (upper, lower):
        axes.plot([5.36, 5.44], [own, own], color=BLACK, linewidth=0.7)
    for height in used:
        _arrow(axes, (5.44, height), (5.52, height))


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, face: str, ink: str = BLACK,
         is_dashed: bool = False) -> None:
    axes.add_patch(FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.05", facecolor=face,
        edgecolor=GREY, linewidth=0.6, linestyle=(0, (3, 2)) if is_dashed else "-"))
    axes.text(x, y, text, ha="center", va="center", fontsize=6, color=ink, linespacing=1.3)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=5, linewidth=0.7, color=BLACK,
                                   shrinkA=0, shrinkB=0))
