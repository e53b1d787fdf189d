"""Where weights come from, and whether they may have seen the patients on whom a model is judged.

Known to be clean: timm's weights (natural images) and BERTs of general or biomedical texts. Everything else may have
seen them: BioClinicalBERT learned from notes of the same hospital, CXR-BERT, MGCA and Med-ST from MIMIC-CXR itself, and
of a local file nothing is known. A model that `medst train` wrote says in `training.json` what it was trained on.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from medst.config import ModelConfig

_FILE = "training.json"
_CLEAN_TEXTS = frozenset((
    "bert-base-uncased", "bert-base-cased", "google-bert/bert-base-uncased", "google-bert/bert-base-cased",
    "allenai/scibert_scivocab_uncased", "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext"))
"""BERTs of books, encyclopaedias and papers."""


@dataclass(frozen=True)
class Lineage:
    """What a saved model was trained on."""

    data_name: str
    data_fingerprint: str
    contamination: str
    """Why its results are contaminated already; empty where they are not."""


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Write `training.json` beside a saved model, under a temporary name first."""
    temporary = folder / f".{_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(lineage), indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / _FILE)


def read_lineage(folder: Path) -> Lineage | None:
    """What `write_lineage` wrote; None where the folder does not say."""
    path = folder / _FILE
    if not path.is_file():
        return None
    try:
        return Lineage(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path}: not what medst writes beside a model ({error}); remove it, and results will be "
                         "marked as contaminated") from None


def exposures(config: ModelConfig, data_fingerprint: str) -> list[str]:
    """Why the initial weights of a model may have seen the patients of a store; empty where they have not.

    Args:
        data_fingerprint: of the store on which the model is judged.
    """
    found = []
    image, text, weights = config.image.name, config.text.name, config.weights
    if image is not None and ":" in image:
        found.append(f"the image encoder started from {_shown(image)}, whose training patients are not known")
    if text is not None and text not in _CLEAN_TEXTS:
        found.append(f"the text encoder started from {_shown(text)}, which may know reports of these patients")
    if weights is not None:
        found += _exposures_of_model(Path(weights), data_fingerprint)
    return found


def _exposures_of_model(place: Path, data_fingerprint: str) -> list[str]:
    """The same for a whole model: a folder of ours, or a checkpoint of another program."""
    told = f"the weights came from {_shown(str(place))}"
    lineage = read_lineage(place) if place.is_dir() else None
    if lineage is None:
        return [f"{told}, whose training patients are not known"]
    if lineage.data_fingerprint != data_fingerprint:
        return [f"{told}, which was trained on other data ({lineage.data_name})"]
    return [f"{told}: {lineage.contamination}"] if lineage.contamination else []


def _shown(place: str) -> str:
    """A name as captions show it: of a local place the last part, since captions are published."""
    return place if not Path(place.removeprefix("local-dir:")).exists() else Path(place).name
