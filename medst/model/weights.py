"""Weights in and out: the project's own format, and encoders by their names in timm and transformers.

Every load accounts for each key: what was missing, unexpected, ignored or filled. Nothing is dropped silently.
What must not live here: the model's computation, checkpoints of other programs (foreign.py).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from medst.config import Behaviour, ImageEncoderConfig, ModelConfig, TextEncoderConfig
from medst.model.experts import widened
from medst.model.foreign import load_checkpoint, places_of
from medst.model.report import LoadReport

if TYPE_CHECKING:
    from medst.model.medst import MedST

_FORMAT = 1
_WEIGHTS = "model.safetensors"
_DESCRIPTION = "config.json"


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


def load(model: MedST, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Load a complete state strictly, print the account and return it.

    Raises:
        ValueError: missing or unexpected keys, or shapes that differ.
    """
    own = model.state_dict()
    report = LoadReport(source, tuple(key for key in state if key in own),
                        missing=tuple(key for key in own if key not in state),
                        unexpected=tuple(key for key in state if key not in own))
    different = [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
                 for key in state if key in own and state[key].shape != own[key].shape]
    if report.missing or report.unexpected or different:
        shapes = f"\n  shapes that differ: {'; '.join(different)}" if different else ""
        raise ValueError(f"weights and model do not fit.\n{report}{shapes}")
    model.load_state_dict(state)
    print(report, file=sys.stderr)
    return report


def load_initial_weights(model: MedST) -> tuple[LoadReport, ...]:
    """Load the weights that the model's config names: of single encoders, then of `model.weights` over them.

    Raises:
        ValueError: files that cannot be had or do not fit.
    """
    reports = load_pretrained_encoders(model)
    name = model.config.weights
    if name is None:
        return reports
    if Path(name).is_dir():
        return (*reports, load(model, read(Path(name))[1], name))
    return (*reports, load_checkpoint(model, name))


def continue_from(model: MedST, source: MedST) -> LoadReport:
    """Lay the weights of a model with one expert over `model`, print the account and return it.

    Its expert serves every view (`initialisation=corrected`), or the frontal ones alone (`released`). What it has no
    weights for, such as the gates of learned routing, stays as it is.
    """
    assert source.image_encoder.num_experts == 1
    own = model.state_dict()
    state: dict[str, Tensor] = {}
    ignored = []
    for key, tensor in source.state_dict().items():
        places = places_of(key, model, has_lateral=False)
        state |= dict.fromkeys(places, tensor)
        ignored += [] if places else [key]
    model.load_state_dict({**own, **state})
    report = LoadReport("first phase", tuple(state), ignored=tuple(ignored),
                        missing=tuple(key for key in own if key not in state))
    print(report, file=sys.stderr)
    return report


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
    state, reshaped = widened(state, own)
    missing = tuple(key for key in own if key not in state and ".gate." not in key)
    different = [key for key, tensor in state.items() if key in own and own[key].shape != tensor.shape]
    foreign = [key for key in state if key not in own]
    if unexpected or missing or different or foreign:
        raise ValueError(
            f"model.image.name={name} is not the vision transformer that model.image describes: "
            f"unknown {unexpected[:4] + foreign[:4]}, missing {list(missing[:4])}, other shape {different[:4]}; set "
            "model.image.patch_size, width, num_layers and mlp_ratio to its own, and model.experts.hidden_scale to 1 "
            "or another whole number"
        )
    kept = {key: tensor for key, tensor in state.items()
            if keep_all or key in ("cls_token", "pos_embed") or key.startswith("stem.")}
    encoder.load_state_dict({**own, **kept})
    untouched = tuple(key for key in own if key not in kept)
    return LoadReport(name, tuple(kept), missing=untouched, reshaped=reshaped)


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
        loaded: Any = BertModel.from_pretrained(name, config=bert.config, add_pooling_layer=False,
                                                output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable("model.text.name", name, "a transformers folder", error) from None
    source, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"model.text.name={name}: {len(missing)} tensors of a BERT are not in it ({missing[0]}, ...); "
                         "the folder of a whole BERT is expected")
    has_no_types = model.text_encoder.positions == "released"
    kept = {key: tensor for key, tensor in source.state_dict().items()
            if (keep_all or key == "embeddings.position_embeddings.weight")
            and not (has_no_types and key == "embeddings.token_type_embeddings.weight")}
    bert.load_state_dict({**own, **kept})
    return LoadReport(name, tuple(kept), ignored=tuple(sorted(found["unexpected_keys"])),
                      missing=tuple(key for key in own if key not in kept))


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
