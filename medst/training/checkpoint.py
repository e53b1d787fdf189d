"""Checkpoints: everything that an exact resume needs, written so that a kill leaves the last one whole.

A checkpoint folder `step-<n>` holds one file; the two newest are kept, so that a damaged newest one
falls back to the one before.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_FILE = "state.pt"
_KEPT = 2


def _folders(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def save_checkpoint(directory: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`; returns its folder. Older ones but one are removed."""
    final = directory / f"step-{step}"
    partial = directory / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with open(partial / _FILE, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in _folders(directory)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint, or None. A damaged one is skipped with a warning."""
    for folder in reversed(_folders(directory)):
        try:
            state: dict[str, Any] = torch.load(folder / _FILE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            logger.warning("checkpoint %s cannot be read (%s); the one before is used", folder, error)
            continue
        return state
    return None
