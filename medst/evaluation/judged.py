"""From saved weights to what the tasks need: settings, model, tokenizer.

Weights are a folder that `medst train` left, the folder of BioViL-T, or a checkpoint file of Med-ST or MGCA, whose
sizes are read from its tensors. What must not live here: the tasks, reading of checkpoint files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medst.config import Config, load_config
from medst.data.store import Store
from medst.data.tokenizer import Tokenizer, VocabularyError, build_tokenizer
from medst.model import MedST
from medst.model.biovil_t_weights import HUB_NAME, IMAGE_WEIGHTS, biovil_t_settings, is_biovil_t, load_biovil_t
from medst.model.checkpoints import CheckpointError, read_checkpoint
from medst.model.foreign import load_checkpoint, settings_of, vocabulary_of
from medst.model.joint import JointModel
from medst.model.text import bert_config

SETTINGS = "config.yaml"
"""The resolved settings beside a saved model."""
_PUBLISHED_DATA: Mapping[str, Any] = {"data.image_size": 256, "data.caption_tokens": 112,
                                      "data.report_text": "released"}
"""How the published program prepares images and captions."""
_PUBLISHED_IMAGES: Mapping[str, Any] = {"evaluation.equalisation": "released"}
_PUBLISHED_PROMPTS: Mapping[str, Any] = {"evaluation.prompt_joining": "released"}


def judged_config(weights: Path, overrides: Mapping[str, Any], is_as_published: bool) -> Config:
    """The settings under which weights are judged; `overrides` win.

    Args:
        is_as_published: a foreign checkpoint also gets the published program's images and (Med-ST, MGCA) prompts.

    Raises:
        ValueError: no such weights, of an unknown kind, or settings that are refused.
    """
    # Where the weights came from decides whether results may be contaminated.
    told = {"model.weights": str(weights.absolute())}
    images = _PUBLISHED_IMAGES if is_as_published else {}
    if is_biovil_t(weights):
        return load_config(overrides={**images, **biovil_t_settings(weights), **overrides, **told})
    if weights.is_dir():
        if not (weights / SETTINGS).is_file():
            raise CheckpointError(
                f"{weights}: neither {SETTINGS}, which `medst train` leaves beside a model, nor {IMAGE_WEIGHTS} of "
                f"{HUB_NAME}; name the folder of a model, which `medst train --out FOLDER` leaves in FOLDER/model "
                "and `medst pull` fetches, or a checkpoint file")
        return load_config(weights / SETTINGS, overrides={**overrides, **told})
    checkpoint = read_checkpoint(weights)
    vocabulary_of(checkpoint)
    prompts = _PUBLISHED_PROMPTS if is_as_published else {}
    return load_config(overrides={**_PUBLISHED_DATA, **images, **prompts, **settings_of(checkpoint), **overrides,
                                  **told})


def open_judged(weights: Path, store: Store, config: Config) -> tuple[JointModel, Tokenizer]:
    """The model in evaluation mode and its tokenizer; `config` comes from `judged_config`.

    Raises:
        ValueError: weights that do not fit, a checkpoint without `data.vocabulary`, or laterals for BioViL-T.
    """
    if is_biovil_t(weights):
        if config.data.views != "frontal":
            raise ValueError(f"data.views={config.data.views}: BioViL-T reads frontal images only; set "
                             "data.views=frontal")
        biovil_t = load_biovil_t(weights)
        return biovil_t, _tokenizer(weights, store, config, biovil_t.vocabulary_size)
    if weights.is_dir():
        return MedST.from_pretrained(weights), Tokenizer.load(weights)
    num_tokens, num_positions = vocabulary_of(read_checkpoint(weights))
    if config.data.vocabulary is None:
        raise VocabularyError(f"{weights}: a checkpoint holds no vocabulary, and its text encoder knows {num_tokens} "
                              "tokens; give that of its BERT with --set data.vocabulary=<vocab.txt or folder> (Med-ST "
                              "and MGCA: BioClinicalBERT, 28 996 tokens)")
    tokenizer = _tokenizer(weights, store, config, num_tokens)
    model = MedST(config.model, image_size=config.data.crop_size, max_tokens=config.data.caption_tokens,
                  architecture=bert_config(config.model.text, num_tokens, num_positions),
                  padding=config.objective.local.padding, seed=config.seed)
    load_checkpoint(model, weights)
    return model.eval(), tokenizer


def _tokenizer(weights: Path, store: Store, config: Config, num_tokens: int) -> Tokenizer:
    """The tokenizer of `data.vocabulary`, which must be that of the weights' text encoder."""
    tokenizer = build_tokenizer(store, config.data, config.model.text.word_aggregation)
    if tokenizer.vocabulary_size != num_tokens:
        raise VocabularyError(f"data.vocabulary={config.data.vocabulary} has {tokenizer.vocabulary_size} tokens, and "
                              f"the text encoder of {weights} knows {num_tokens}; give the vocabulary of its BERT")
    return tokenizer
