"""Weights in and out: the project's own format, the released checkpoint's names, timm and transformers.

Every load accounts for each key: what was missing, unexpected, ignored or filled. Nothing is dropped silently.
What must not live here: the model's computation.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from medst.config import Behaviour, ImageEncoderConfig, ModelConfig, TextEncoderConfig

if TYPE_CHECKING:
    from medst.model.medst import MedST

_FORMAT = 1
_WEIGHTS = "model.safetensors"
_DESCRIPTION = "config.json"


@dataclass(frozen=True)
class LoadReport:
    """Account of one load: every key is in one place."""

    source: str
    loaded: tuple[str, ...]
    """Keys of the model that were set from the file."""
    filled: tuple[str, ...] = ()
    """Keys of the model that the file does not have and that were set to a known value."""
    ignored: tuple[str, ...] = ()
    """Keys of the file that take no part in the model, by a stated rule."""
    missing: tuple[str, ...] = ()
    """Keys of the model that were left as they were."""
    unexpected: tuple[str, ...] = ()
    """Keys of the file that nobody knows."""

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        for title in ("filled", "ignored", "missing", "unexpected"):
            keys = getattr(self, title)
            if keys:
                shown = ", ".join(keys[:8]) + (f", and {len(keys) - 8} more" if len(keys) > 8 else "")
                lines.append(f"  {title} ({len(keys)}): {shown}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Description:
    """What config.json says about a saved model."""

    config: ModelConfig
    image_size: int
    max_tokens: int
    padding: Behaviour
    architecture: BertConfig


def save(model: MedST, folder: Path) -> Path:
    """Write config.json and model.safetensors, each under a temporary name first."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    temporary = folder / f".{_WEIGHTS}.{os.getpid()}"
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.replace(folder / _WEIGHTS)
    description = {
        "format": _FORMAT,
        "model": model.config.model_dump(mode="json"),
        "image_size": model.image_size,
        "max_tokens": model.max_tokens,
        "padding": model.padding,
        "text_architecture": model.text_encoder.bert.config.to_dict(),
    }
    temporary = folder / f".{_DESCRIPTION}.{os.getpid()}"
    temporary.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / _DESCRIPTION)
    return folder


def read(folder: Path) -> tuple[Description, dict[str, Tensor]]:
    """Read what `save` wrote.

    Raises:
        ValueError: a file is absent or is not what `save` writes.
    """
    for name in (_DESCRIPTION, _WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name}; a model is a folder written by MedST.save_pretrained")
    try:
        tree = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        if tree["format"] != _FORMAT:
            raise ValueError(f"{folder / _DESCRIPTION}: format {tree['format']}, and this version reads {_FORMAT}")
        description = Description(
            config=ModelConfig.model_validate_json(json.dumps(tree["model"])),
            image_size=int(tree["image_size"]),
            max_tokens=int(tree["max_tokens"]),
            padding=tree["padding"],
            architecture=BertConfig.from_dict(tree["text_architecture"]),
        )
    except (json.JSONDecodeError, KeyError, ValidationError) as error:
        raise ValueError(f"{folder / _DESCRIPTION}: not the description of a model: {error}") from None
    return description, _read_tensors(folder / _WEIGHTS)


def load(
    model: MedST,
    state: Mapping[str, Tensor],
    source: str,
    filled: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
) -> LoadReport:
    """Load a complete state strictly, print the account and return it.

    Raises:
        ValueError: missing or unexpected keys, or shapes that differ.
    """
    own = model.state_dict()
    missing = tuple(key for key in own if key not in state)
    unexpected = tuple(key for key in state if key not in own)
    loaded = tuple(key for key in state if key in own and key not in filled)
    report = LoadReport(source, loaded, filled, ignored, missing, unexpected)
    different = [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
                 for key in state if key in own and state[key].shape != own[key].shape]
    if missing or unexpected or different:
        shapes = f"\n  shapes that differ: {'; '.join(different)}" if different else ""
        raise ValueError(f"weights and model do not fit.\n{report}{shapes}")
    model.load_state_dict(state)
    print(report, file=sys.stderr)
    return report


# The released checkpoint ------------------------------------------------------------------------------------------

_RELEASED_RULES: tuple[tuple[str, str], ...] = (
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
)
"""Released name (whole) -> name here."""

_RELEASED_IGNORED = re.compile(
    r".*_embed_la\..*|.*\.crossattention\..*|.*\.pooler\..*|(word|patch)_local_atten_layer\..*"
    r"|(word|patch)_element_wise_multi_head\.out_proj\..*|.*\.position_ids"
)
"""Released tensors that no loss depends on."""


def released_name(name: str) -> str | None:
    """The name here of a tensor of the released checkpoint; None where it takes no part in any loss.

    Raises:
        ValueError: a name that the released checkpoint does not have.
    """
    if _RELEASED_IGNORED.fullmatch(name):
        return None
    for pattern, replacement in _RELEASED_RULES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise ValueError(f"'{name}' is not a tensor of the released checkpoint")


def load_released(model: MedST, path: str | Path) -> LoadReport:
    """Load a checkpoint under the released program's names; the model must have two experts of view routing.

    Three things are adapted, and the account says so: projection kernels of size 1 become matrices, the value
    third of the pooling attention (in no loss) is dropped, and the token-type embedding, which the released
    program lacks, is set to zero.

    Raises:
        ValueError: not such a checkpoint, or sizes that differ from the model's.
    """
    state: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, tensor in _read_tensors(Path(path)).items():
        target = released_name(name)
        if target is None:
            ignored.append(name)
            continue
        if target.startswith(("word_pooling", "patch_pooling")):
            tensor = tensor[: 2 * tensor.shape[0] // 3]
            ignored.append(f"{name}[values]")
        elif "_head." in target and tensor.ndim == 3:
            tensor = tensor[:, :, 0]
        state[target] = tensor
    types = "text_encoder.bert.embeddings.token_type_embeddings.weight"
    filled: tuple[str, ...] = ()
    if types not in state:
        state[types] = torch.zeros_like(model.state_dict()[types])
        filled = (types,)
    return load(model, state, str(path), filled, tuple(ignored))


# Pretrained encoders ----------------------------------------------------------------------------------------------

_TIMM_RULES: tuple[tuple[str, str], ...] = (
    (r"(cls_token|pos_embed|norm\.\w+)", r"\1"),
    (r"patch_embed\.(.+)", r"stem.\1"),
    (r"(blocks\.\d+\.norm1\..+)", r"\1"),
    (r"(blocks\.\d+)\.attn\.(.+)", r"\1.attention.\2"),
    (r"(blocks\.\d+)\.norm2\.(.+)", r"\1.experts.norm.\2"),
    (r"(blocks\.\d+)\.mlp\.(.+)", r"\1.experts.mlp.\2"),
)
"""timm name (whole) -> name in the image encoder, `experts.` standing for every expert."""


def load_pretrained_encoders(model: MedST) -> tuple[LoadReport, ...]:
    """Load the pretrained weights that the model's config names; print and return the accounts.

    `initialisation=corrected`: all weights survive and every view expert starts as a copy of the pretrained
    feed-forward. `released`: the init pass overwrites all but the patch, class and position embeddings.

    Raises:
        ValueError: files that cannot be had or do not fit.
    """
    keep_all = model.config.initialisation == "corrected"
    reports = []
    image, text = model.config.image, model.config.text
    if image.name is not None:
        reports.append(_load_image(model, image, image.name, keep_all))
    if text.name is not None:
        reports.append(_load_text(model, text.name, keep_all))
    for report in reports:
        print(report, file=sys.stderr)
    return tuple(reports)


def pretrained_bert_config(text: TextEncoderConfig, vocabulary_size: int) -> BertConfig:
    """Architecture of the BERT that `text.name` names, with half its layers where `depth=released`.

    Raises:
        ValueError: it cannot be had, is no BERT, or its vocabulary is too small.
    """
    assert text.name is not None
    try:
        architecture = BertConfig.from_pretrained(text.name)
    except (OSError, ValueError) as error:
        raise _unavailable("model.text.name", text.name, "a transformers folder", error) from None
    if architecture.vocab_size < vocabulary_size:
        raise ValueError(
            f"model.text.name={text.name} knows {architecture.vocab_size} tokens, and the vocabulary has "
            f"{vocabulary_size}; set data.vocabulary to the vocabulary of that model"
        )
    if text.depth == "released":
        architecture.num_hidden_layers = max(1, architecture.num_hidden_layers // 2)
    architecture.hidden_dropout_prob = text.dropout
    architecture.attention_probs_dropout_prob = text.dropout
    return architecture


def _load_image(model: MedST, image: ImageEncoderConfig, name: str, keep_all: bool) -> LoadReport:
    encoder = model.image_encoder
    try:
        # timm resamples position embeddings and adapts the input channels.
        source = timm.create_model(name, pretrained=True, num_classes=0, in_chans=image.num_channels,
                                   img_size=model.image_size).state_dict()
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        remedy = "local-dir:<folder> with config.json and model.safetensors as timm writes them"
        raise _unavailable("model.image.name", name, remedy, error) from None
    own = encoder.state_dict()
    state: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, tensor in source.items():
        target = next((re.sub(pattern, replacement, key) for pattern, replacement in _TIMM_RULES
                       if re.fullmatch(pattern, key)), None)
        if target is None:
            unexpected.append(key)
            continue
        for copy in _expert_names(target, encoder.num_experts, encoder.is_learned):
            state[copy] = tensor
    missing = tuple(key for key in own if key not in state and ".gate." not in key)
    different = [key for key, tensor in state.items() if key in own and own[key].shape != tensor.shape]
    foreign = [key for key in state if key not in own]
    if unexpected or missing or different or foreign:
        raise ValueError(
            f"model.image.name={name} is not the vision transformer that model.image describes: "
            f"unknown {unexpected[:4] + foreign[:4]}, missing {list(missing[:4])}, other shape {different[:4]}; set "
            "model.image.patch_size, width, num_layers, mlp_ratio and model.experts.hidden_scale to its own"
        )
    kept = {key: tensor for key, tensor in state.items()
            if keep_all or key in ("cls_token", "pos_embed") or key.startswith("stem.")}
    encoder.load_state_dict({**own, **kept})
    untouched = tuple(key for key in own if key not in kept)
    return LoadReport(name, tuple(kept), missing=untouched)


def _expert_names(target: str, num_experts: int, is_learned: bool) -> list[str]:
    """Names of a feed-forward tensor in every expert; the name itself for all other tensors."""
    block, experts, rest = target.partition(".experts.")
    if not experts:
        return [target]
    if is_learned:
        if rest.startswith("norm."):
            return [target]
        return [f"{block}.experts.experts.{index}.{rest.removeprefix('mlp.')}" for index in range(num_experts)]
    return [f"{block}.experts.experts.{index}.{rest}" for index in range(num_experts)]


def _load_text(model: MedST, name: str, keep_all: bool) -> LoadReport:
    bert = model.text_encoder.bert
    own = bert.state_dict()
    try:
        source = BertModel.from_pretrained(name, config=bert.config, add_pooling_layer=False).state_dict()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable("model.text.name", name, "a transformers folder", error) from None
    has_no_types = model.text_encoder.positions == "released"
    kept = {key: tensor for key, tensor in source.items()
            if (keep_all or key == "embeddings.position_embeddings.weight")
            and not (has_no_types and key == "embeddings.token_type_embeddings.weight")}
    bert.load_state_dict({**own, **kept})
    return LoadReport(name, tuple(kept), missing=tuple(key for key in own if key not in kept))


def _unavailable(key: str, name: str, place: str, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(
        f"{key}={name}: the pretrained weights cannot be had ({reason}). Without a network, download them on another "
        f"machine and name the folder ({place}), or fill the cache that HF_HOME names"
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
