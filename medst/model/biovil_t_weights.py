"""BioViL-T's files, as the hub holds them: from a folder to a model, with the account of every tensor.

The folder of microsoft/BiomedVLP-BioViL-T: the image encoder (IMAGE_WEIGHTS), the text encoder (TEXT_WEIGHTS) with its
config.json, and vocab.txt. Files are read by `checkpoints.py`, which runs nothing that they carry.
What must not live here: the model's computation (biovil_t.py).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BertConfig

from medst.model.biovil_t import NUM_BLOCKS, NUM_HEADS, PATCH_SIZE, REDUCED_WIDTH, BioViLT
from medst.model.checkpoints import Checkpoint, CheckpointError, read_checkpoint
from medst.model.report import LoadReport

IMAGE_WEIGHTS = "biovil_t_image_model_proj_size_128.pt"
TEXT_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Either of them; the first that is there is read."""
HUB_NAME = "microsoft/BiomedVLP-BioViL-T"

_IMAGE_RULES: tuple[tuple[str, str], ...] = (
    (r"encoder\.encoder\.(?!fc\.)(.+)", r"image_encoder.trunk.\1"),
    (r"encoder\.backbone_to_vit\.(.+)", r"image_encoder.reduction.\1"),
    (r"encoder\.missing_previous_emb", r"image_encoder.missing_previous"),
    (r"encoder\.vit_pooler\.type_embed", r"image_encoder.pooler.types"),
    (r"encoder\.vit_pooler\.norm_post\.(.+)", r"image_encoder.pooler.norm.\1"),
    (r"encoder\.vit_pooler\.(blocks\.\d+\.(?:norm1|norm2|mlp)\..+)", r"image_encoder.pooler.\1"),
    *((rf"encoder\.vit_pooler\.(blocks\.\d+)\.attn\.{theirs}\.(.+)", rf"image_encoder.pooler.\1.{ours}.\2")
      for theirs, ours in (("proj_q", "query"), ("proj_k", "key"), ("proj_v", "value"), ("proj", "output"))),
    (r"projector\.model\.(.+)", r"image_projection.\1"),
)
"""Name in the file (whole) -> name in `BioViLT`."""
_TEXT_RULES: tuple[tuple[str, str], ...] = (
    (r"bert\.((?:embeddings\.(?!position_ids|token_type_ids)|encoder\.).+)", r"text_encoder.bert.\1"),
    *((rf"cls_projection_head\.{theirs}\.(.+)", rf"text_projection.{index}.\1")
      for theirs, index in (("dense_to_hidden", 0), ("LayerNorm", 2), ("dense_to_output", 3))),
)
_IGNORED = re.compile(
    r"encoder\.encoder\.fc\..*|encoder\.vit_pooler\.pos_embed|classifier\..*"
    r"|cls\..*|bert\.pooler\..*|bert\.embeddings\.(position_ids|token_type_ids)")
"""Heads of classification and masked words, positions that are computed."""


def is_biovil_t(place: Path) -> bool:
    """True for a folder that holds BioViL-T's image encoder."""
    return (place / IMAGE_WEIGHTS).is_file()


def biovil_t_settings(folder: Path) -> dict[str, Any]:
    """The settings (dotted) that describe BioViL-T, and the images and texts that it was made for.

    Its program scales the short side of an image to 512 pixels and cuts 448 from the middle; the store scales the long
    side, so that the same is seen of an image whose sides are as 6 to 5.

    Raises:
        CheckpointError: the folder's config.json is missing or describes no BERT.
    """
    architecture = _architecture(folder)
    return {
        "data.image_size": 614, "data.crop_size": 448, "data.views": "frontal",
        "data.caption_tokens": min(256, architecture.max_position_embeddings),
        "data.vocabulary": str(folder.absolute()),
        "model.image.patch_size": PATCH_SIZE, "model.image.num_channels": 3, "model.image.width": 2 * REDUCED_WIDTH,
        "model.image.num_layers": NUM_BLOCKS, "model.image.num_heads": NUM_HEADS, "model.image.mlp_ratio": 1.0,
        "model.experts.num_experts": 1,
        "model.text.width": architecture.hidden_size, "model.text.num_layers": architecture.num_hidden_layers,
        "model.text.num_heads": architecture.num_attention_heads,
        "model.text.hidden_width": architecture.intermediate_size,
        "model.heads.hidden_width": architecture.projection_size,
        "model.heads.embedding_width": architecture.projection_size,
    }


def load_biovil_t(folder: Path) -> BioViLT:
    """The model of a folder, in evaluation mode; prints one account for each file.

    Raises:
        CheckpointError: a file is missing, cannot be read safely, or is not BioViL-T's.
    """
    architecture = _architecture(folder)
    image = read_checkpoint(folder / IMAGE_WEIGHTS)
    if not any(name.startswith("encoder.vit_pooler.") for name in image.tensors):
        raise CheckpointError(f"{image.path}: an image encoder without temporal part, as BioViL's; take "
                              f"{IMAGE_WEIGHTS} of {HUB_NAME}")
    found = next((folder / name for name in TEXT_WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder}: no {' or '.join(TEXT_WEIGHTS)}, the text encoder of {HUB_NAME}")
    has_bottlenecks = "encoder.encoder.layer1.0.conv3.weight" in image.tensors
    model = BioViLT(architecture, trunk="resnet50" if has_bottlenecks else "resnet18",
                    embedding_width=architecture.projection_size)
    _load(model, image, _IMAGE_RULES, "image_")
    _load(model, read_checkpoint(found), _TEXT_RULES, "text_")
    return model.eval()


def _architecture(folder: Path) -> BertConfig:
    """The BERT of config.json, with `projection_size`."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; bring the whole folder of {HUB_NAME}")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); bring it again from {HUB_NAME}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("projection_size"), int):
        raise CheckpointError(f"{path}: no projection_size, so that this is no CXR-BERT; take the one of {HUB_NAME}")
    # The class that the file names is a program from the hub; what it describes is a BERT.
    return BertConfig.from_dict({key: value for key, value in tree.items() if key not in ("model_type", "auto_map")})


def _load(model: BioViLT, checkpoint: Checkpoint, rules: tuple[tuple[str, str], ...], part: str) -> LoadReport:
    """Fill the modules whose names begin with `part` from a file, strictly; print the account and return it."""
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(part)}
    state: dict[str, Tensor] = {}
    ignored: list[str] = []
    unexpected: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        target = next((re.sub(pattern, replacement, name) for pattern, replacement in rules
                       if re.fullmatch(pattern, name)), None)
        if target is not None and target in own:
            state[target] = tensor
        elif target is None and _IGNORED.fullmatch(name):
            ignored.append(name)
        else:
            unexpected.append(name)
    report = LoadReport(f"{checkpoint.path} (BioViL-T)", tuple(state), ignored=tuple(ignored),
                        missing=tuple(key for key in own if key not in state), unexpected=tuple(unexpected),
                        adapted=checkpoint.adapted)
    different = [f"{key} {tuple(tensor.shape)} instead of {tuple(own[key].shape)}" for key, tensor in state.items()
                 if tensor.shape != own[key].shape]
    if report.missing or report.unexpected or different:
        shapes = f"\n  shapes that differ: {'; '.join(different[:5])}" if different else ""
        raise CheckpointError(f"these are not the weights of BioViL-T.\n{report}{shapes}")
    model.load_state_dict({**model.state_dict(), **state})
    print(report, file=sys.stderr)
    return report
