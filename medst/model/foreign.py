"""Weights of other programs: which of their tensors belongs where in a MedST.

Known kinds, told apart by their names: the released Med-ST, MGCA with its vision transformer, a vision transformer of
timm or DeiT, a BERT of transformers. Every kind states what of the model it does not bring; what is missing beyond
that, or what nobody knows, is an error. What must not live here: reading of files (checkpoints.py).

Legend: P patches, D width.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from medst.model.checkpoints import Checkpoint, CheckpointError, read_checkpoint
from medst.model.experts import widened
from medst.model.report import LoadReport
from medst.model.routing import EXPERT_OF_VIEW

if TYPE_CHECKING:
    from medst.model.medst import MedST

_RULES: tuple[tuple[str, str], ...] = (
    (r"img_encoder_q\.model\.(cls_token|pos_embed|norm\.\w+)", r"image_encoder.\1"),
    (r"img_encoder_q\.model\.patch_embed\.(.+)", r"image_encoder.stem.\1"),
    (r"img_encoder_q\.model\.(blocks\.\d+\.norm1\..+)", r"image_encoder.\1"),
    (r"img_encoder_q\.model\.(blocks\.\d+)\.attn\.(.+)", r"image_encoder.\1.attention.\2"),
    (r"img_encoder_q\.model\.(blocks\.\d+)\.norm2\.(.+)", r"image_encoder.\1.experts.experts.0.norm.\2"),
    (r"img_encoder_q\.model\.(blocks\.\d+)\.mlp\.(.+)", r"image_encoder.\1.experts.experts.0.mlp.\2"),
    (r"img_encoder_q\.model\.(blocks\.\d+)\.norm2_l\.(.+)", r"image_encoder.\1.experts.experts.1.norm.\2"),
    (r"img_encoder_q\.model\.(blocks\.\d+)\.mlp_l\.(.+)", r"image_encoder.\1.experts.experts.1.mlp.\2"),
    (r"text_encoder_q\.model\.((?:embeddings|encoder)\..+)", r"text_encoder.bert.\1"),
    *(
        (rf"{tower}_encoder_q\.{span}_embed\.head\.{index}\.(.+)", rf"{name}_head.{layer}.\1")
        for tower, span, name in (("img", "global", "image"), ("img", "local", "patch"),
                                  ("text", "global", "report"), ("text", "local", "word"))
        for index, layer in ((0, "hidden"), (1, "hidden_norm"), (3, "output"), (4, "output_norm"))
    ),
    (r"(word|patch)_element_wise_multi_head\.in_proj_(weight|bias)", r"\1_pooling.\2"),
    (r"prototype_layer\.weight", "prototypes"),
)
"""Released name (whole) -> name in a MedST with a frontal and a lateral expert."""

_IGNORED = re.compile(
    r".*_embed_la\..*|.*\.crossattention\..*|.*\.pooler\..*|(word|patch)_local_atten_layer\..*"
    r"|(word|patch)_element_wise_multi_head\.out_proj\..*|.*\.position_ids"
    r"|img_encoder_q\.model\.(?:head|head_dist|pre_logits|fc_norm)\..*"
    r"|text_encoder_q\.model\.(?:cls|cls_projection_head)\..*"
)
"""Tensors that no loss of Med-ST depends on: heads of classification and masked words, ..."""

_TOKEN_TYPES = "text_encoder.bert.embeddings.token_type_embeddings.weight"
_POSITIONS = "image_encoder.pos_embed"
_PATCHES = "image_encoder.stem.proj.weight"


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint."""

    name: str
    prefix: str
    """What is put before its names to make them released ones."""
    lacks: str
    """Pattern of the model's keys that such a file does not bring."""


MED_ST = Kind("Med-ST", "", r".*\.gate\..*|prototypes")
MGCA = Kind("MGCA", "", r".*\.gate\..*|(word|patch)_pooling\..*")
VISION_TRANSFORMER = Kind("vision transformer", "img_encoder_q.model.", r"(?!image_encoder\.).*|.*\.gate\..*")
BERT = Kind("BERT", "text_encoder_q.model.", r"(?!text_encoder\.).*")


def kind_of(checkpoint: Checkpoint) -> Kind:
    """The kind of a checkpoint, by its names.

    Raises:
        CheckpointError: none that this model can take.
    """
    names = checkpoint.tensors.keys()
    known = "Med-ST, MGCA (vit_base), a timm or DeiT vision transformer, a BERT"
    if any(name.startswith("img_encoder_q.") for name in names):
        if "img_encoder_q.model.cls_token" not in names:
            raise CheckpointError(f"{checkpoint.path}: its image encoder is no vision transformer (MGCA's resnet_50?); "
                                  "take the checkpoint with the vision transformer, MGCA's vit_base")
        return MED_ST if "img_encoder_q.model.blocks.0.mlp_l.fc1.weight" in names else MGCA
    if "cls_token" in names and "blocks.0.norm1.weight" in names:
        return VISION_TRANSFORMER
    if any(name.removeprefix("bert.") == "embeddings.word_embeddings.weight" for name in names):
        return BERT
    if any(name.startswith("encoder.encoder.") for name in names):
        raise CheckpointError(f"{checkpoint.path}: the image encoder of BioViL or BioViL-T, a residual network, which "
                              f"has no place in this model. Known are {known}. BioViL-T is judged from the folder that "
                              "holds both of its encoders; its text encoder is a BERT to train from: model.text.name")
    raise CheckpointError(f"{checkpoint.path}: weights of an unknown kind, with names such as "
                          f"{', '.join(sorted(names)[:3])}. Known are {known}, and model folders of medst")


def released_name(name: str) -> str | None:
    """The name here of a tensor of the released checkpoint; None where it takes no part in any loss.

    Raises:
        ValueError: a name that the released checkpoint does not have.
    """
    if _IGNORED.fullmatch(name):
        return None
    for pattern, replacement in _RULES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise ValueError(f"'{name}' is not a tensor of the released checkpoint")


def load_checkpoint(model: MedST, path: str | Path) -> LoadReport:
    """Load a checkpoint of any known kind into `model`, print the account and return it.

    - Position embeddings of another image size are resampled; kernels of colour are added up for a grey stem.
    - Each view expert takes the expert of its view, a single feed-forward serves them all; experts that are several
      times as wide compute the same (`experts.widened`). With
      `initialisation=released` such a feed-forward fills the frontal experts alone, as the published program does.
    - Projection kernels of size 1 become matrices; the value third of the pooling attention (in no loss) is left out;
      the token-type embedding, which the released program lacks, is set to zero.

    Raises:
        CheckpointError: the file cannot be read safely, is of no known kind, or does not fit the model.
    """
    checkpoint = read_checkpoint(path)
    kind = kind_of(checkpoint)
    own = model.state_dict()
    translated, ignored, unexpected = _translated(checkpoint.tensors, kind)
    reshaped: list[str] = []
    state: dict[str, Tensor] = {}
    copied: list[str] = []
    for target, tensor in translated.items():
        places = places_of(target, model, has_lateral=kind is MED_ST)
        if not places:
            ignored.append(target)
        for place in places:
            state[place] = _fitted(place, tensor, own.get(place), reshaped)
        copied += places[1:]
    state, changed = widened(state, own)
    filled: tuple[str, ...] = ()
    if kind is not VISION_TRANSFORMER and _TOKEN_TYPES not in state:
        state[_TOKEN_TYPES] = torch.zeros_like(own[_TOKEN_TYPES])
        filled = (_TOKEN_TYPES,)
    missing = tuple(key for key in own if key not in state)
    unexpected += [key for key in state if key not in own]
    report = LoadReport(
        f"{path} ({kind.name})", tuple(key for key in state if key in own and key not in filled), filled,
        tuple(ignored), missing, tuple(unexpected), (*reshaped, *changed), (*checkpoint.adapted, *(
            (f"{len(copied)} tensors serve several experts",) if copied else ())))
    lacking = re.compile(kind.lacks if model.config.initialisation == "corrected" or kind is MED_ST
                         else rf"{kind.lacks}|.*\.experts\.experts\.[123]\..*")
    alien = [key for key in missing if not lacking.fullmatch(key)]
    different = [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
                 for key in state if key in own and state[key].shape != own[key].shape]
    if alien or unexpected or different:
        problems = [f"{title} ({len(keys)}): {', '.join(keys[:5])}" for title, keys in
                    (("not in the file", alien), ("unknown", unexpected), ("other shape", different)) if keys]
        raise CheckpointError(
            f"{path}: this {kind.name} checkpoint does not fit the model.\n  " + "\n  ".join(problems)
            + "\n  Its own sizes: " + ", ".join(f"{key}={value}" for key, value in settings_of(checkpoint).items()))
    model.load_state_dict({**own, **state})
    print(report, file=sys.stderr)
    return report


def settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings (dotted) of the model that a checkpoint was made with, as far as its shapes show them.

    Heads of 64 channels are assumed, as all base models have them; positions and word aggregation of Med-ST and MGCA
    are those of their program.
    """
    kind = kind_of(checkpoint)
    tensors = {_released(name, kind): tensor for name, tensor in checkpoint.tensors.items()}
    settings: dict[str, Any] = {}
    if (cls := tensors.get("img_encoder_q.model.cls_token")) is not None:
        image = "img_encoder_q.model."
        width, patch = cls.shape[-1], tensors[f"{image}patch_embed.proj.weight"]
        side = math.isqrt(tensors[f"{image}pos_embed"].shape[1] - 1)
        settings |= {
            "data.crop_size": side * patch.shape[-1], "model.image.stem": "patch",
            "model.image.patch_size": patch.shape[-1], "model.image.num_channels": patch.shape[1],
            "model.image.width": width, "model.image.num_heads": max(1, width // 64),
            "model.image.num_layers": _num_layers(tensors, rf"{re.escape(image)}blocks\.(\d+)\."),
            "model.image.mlp_ratio": tensors[f"{image}blocks.0.mlp.fc1.weight"].shape[0] / width,
            "model.experts.num_experts": 2 if kind is MED_ST else 1,
        }
    if (words := tensors.get("text_encoder_q.model.embeddings.word_embeddings.weight")) is not None:
        layer = "text_encoder_q.model.encoder.layer."
        settings |= {
            "model.text.width": words.shape[1], "model.text.num_heads": max(1, words.shape[1] // 64),
            "model.text.num_layers": _num_layers(tensors, rf"{re.escape(layer)}(\d+)\."),
            "model.text.hidden_width": tensors[f"{layer}0.intermediate.dense.weight"].shape[0],
        }
    if (head := tensors.get("img_encoder_q.global_embed.head.0.weight")) is not None:
        settings |= {
            "model.heads.hidden_width": head.shape[0],
            "model.heads.embedding_width": tensors["img_encoder_q.global_embed.head.3.weight"].shape[0],
            "model.text.positions": "released", "model.text.word_aggregation": "released",
            "model.image.missing_lateral": "released",
        }
    return settings


def vocabulary_of(checkpoint: Checkpoint) -> tuple[int, int]:
    """Tokens and positions that the text encoder of a whole model knows.

    Raises:
        CheckpointError: an encoder alone, which cannot be judged by itself.
    """
    kind = kind_of(checkpoint)
    if kind not in (MED_ST, MGCA):
        raise CheckpointError(f"{checkpoint.path}: a {kind.name} alone, without the other encoder and the projections, "
                              "cannot be evaluated; train from it with model.weights, model.image.name or "
                              "model.text.name")
    embeddings = "text_encoder_q.model.embeddings"
    return (checkpoint.tensors[f"{embeddings}.word_embeddings.weight"].shape[0],
            checkpoint.tensors[f"{embeddings}.position_embeddings.weight"].shape[0])


def _released(name: str, kind: Kind) -> str:
    if kind is BERT:
        # Names from before transformers 1.0, and of models with further heads.
        name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    return kind.prefix + name


def _translated(tensors: Mapping[str, Tensor], kind: Kind) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Tensors under our names for two experts; names that are left out; names that nobody knows."""
    state: dict[str, Tensor] = {}
    ignored: list[str] = []
    unexpected: list[str] = []
    for name, tensor in tensors.items():
        try:
            target = released_name(_released(name, kind))
        except ValueError:
            unexpected.append(name)
            continue
        if target is None:
            ignored.append(name)
            continue
        if target.startswith(("word_pooling", "patch_pooling")):
            tensor = tensor[: 2 * tensor.shape[0] // 3]
            ignored.append(f"{name}[values]")
        elif "_head." in target and tensor.ndim == 3:
            tensor = tensor[:, :, 0]
        state[target] = tensor
    return state, ignored, unexpected


def places_of(target: str, model: MedST, has_lateral: bool) -> list[str]:
    """Keys of the model that a tensor under its two-expert name fills; none where it has no place there.

    Args:
        has_lateral: the tensors come from a model with a lateral expert, too; else the one expert serves all views
            (`initialisation=corrected`).
    """
    if target == "prototypes" and model.prototypes is None:
        return []
    found = re.fullmatch(r"(.+\.experts)\.experts\.([01])\.(norm|mlp)\.(.+)", target)
    if found is None:
        return [target]
    block, expert, part, rest = found.groups()
    source, encoder = int(expert), model.image_encoder
    if encoder.is_learned:
        if source:
            return []
        if part == "norm":
            return [f"{block}.norm.{rest}"]
        return [f"{block}.experts.{index}.{rest}" for index in range(encoder.num_experts)]
    experts = EXPERT_OF_VIEW[encoder.num_experts]
    # Views AP, PA, LL, LATERAL: the first two are frontal.
    frontal, lateral = dict.fromkeys(experts[:2]), dict.fromkeys(experts[2:])
    if source:
        served = [index for index in lateral if index not in frontal]
    elif has_lateral or model.config.initialisation == "released":
        served = list(frontal)
    else:
        served = list(dict.fromkeys(experts))
    return [f"{block}.experts.{index}.{part}.{rest}" for index in served]


def _fitted(place: str, tensor: Tensor, own: Tensor | None, reshaped: list[str]) -> Tensor:
    """The tensor brought to the model's image size and channels, where that is what differs."""
    if own is None or own.shape == tensor.shape:
        return tensor
    fitted = tensor
    if place == _POSITIONS and tensor.shape[-1] == own.shape[-1]:
        side = math.isqrt(own.shape[1] - 1)
        fitted = resample_abs_pos_embed(tensor, new_size=[side, side], num_prefix_tokens=1)
    elif place == _PATCHES and own.shape[1] == 1 and tensor.shape[2:] == own.shape[2:]:
        # The encoder's grey image stands for equal channels.
        fitted = tensor.sum(dim=1, keepdim=True)
    if fitted is not tensor:
        reshaped.append(f"{place} {tuple(tensor.shape)} -> {tuple(fitted.shape)}")
    return fitted


def _num_layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found.group(1)) for name in tensors if (found := re.match(pattern, name)))
