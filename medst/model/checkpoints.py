"""Checkpoint files of other programs: read without running anything that they carry.

A PyTorch file is a pickle, and a pickle can run any program. Here it passes torch's own restricted unpickler, which
builds tensors and plain containers only. Checkpoints of PyTorch Lightning also carry settings and callbacks of classes
that this unpickler refuses; those of known training libraries become inert `Foreign` objects, which keep nothing and do
nothing. A file that asks for anything else is refused.

What lives here: from a file to named float32 tensors. What must not: which tensor belongs where (foreign.py).
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_TOLERATED = frozenset((
    "argparse", "collections", "datetime", "lightning", "lightning_fabric", "lightning_utilities", "medst", "MedST",
    "mgca", "ml_collections", "numpy", "omegaconf", "pathlib", "pytorch_lightning", "torch", "transformers", "typing",
    "yacs"))
"""Packages whose objects a training program leaves in its checkpoints; they are never built."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which programs keep the tensors beside what else they save."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
"""What DistributedDataParallel, torch.compile and wrapping modules put before every name."""


class CheckpointError(ValueError):
    """A file that holds no usable weights; the message names the remedy."""


class Foreign:
    """Stands for an object of another program: takes any arguments and state, keeps none."""

    def __new__(cls, *arguments: object, **named: object) -> Foreign:
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: object) -> None:
        """Nothing is restored."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file."""

    path: Path
    tensors: Mapping[str, Tensor]
    """Names without the wrappers' prefixes -> tensors; floating-point ones as float32."""
    adapted: tuple[str, ...]
    """What was done to names and types, for the account."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a .safetensors file, or a PyTorch or Lightning file (.pt, .pth, .bin, .ckpt), without running its code.

    Raises:
        CheckpointError: no such file, damaged, asks for code to run, holds no tensors, or not only finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    adapted: list[str] = []
    if path.suffix == ".safetensors":
        found: Mapping[Any, Any] = _read_safetensors(path)
    else:
        content, foreign = _read_pickle(path)
        if foreign:
            adapted.append(f"objects of other programs left out: {', '.join(foreign)}")
        found = _unwrapped(path, content)
    tensors = {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: no tensors in it; a checkpoint of a model is expected")
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        adapted.append(f"prefix '{prefix}' taken off every name")
    narrow = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()
                     if tensor.is_floating_point() and tensor.dtype is not torch.float32})
    if narrow:
        adapted.append(f"{', '.join(narrow)} brought to float32")
    tensors = {name: tensor.detach().to(torch.float32) if tensor.is_floating_point() else tensor.detach()
               for name, tensor in tensors.items()}
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{path}: {len(broken)} tensors hold numbers that are not finite, first {broken[0]}; the "
                              "training that wrote it had diverged, or the file is damaged")
    return Checkpoint(path, tensors, tuple(adapted))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None


def _read_pickle(path: Path) -> tuple[Any, list[str]]:
    """The content of a PyTorch file and the names of the foreign objects in it."""
    try:
        foreign = _foreign_names(path)
        # A dictionary of another program has to take items: it becomes a plain one.
        inert: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (OrderedDict if name.endswith("Dict") else Foreign, name) for name in foreign]
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True), foreign
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, since reading it would run code or build objects that weights do not "
                              f"need ({_first_line(error)}); ask its authors for a safetensors file") from None
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError, KeyError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = _first_line(error)
        raise CheckpointError(f"{path}: not a readable PyTorch file ({reason}); download it again") from None


def _foreign_names(path: Path) -> list[str]:
    """Names that torch's unpickler refuses and that may stand inert; only the newer, zipped format is searched."""
    if not zipfile.is_zipfile(path):
        return []
    names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    alien = [name for name in names if name.split(".")[0] not in _TOLERATED]
    if alien:
        raise CheckpointError(f"{path}: refused, since it asks for {', '.join(alien[:5])}, which no weights need: "
                              "reading it could run a program; ask its authors for a safetensors file")
    return names


def _unwrapped(path: Path, content: object) -> Mapping[Any, Any]:
    """The mapping that holds the tensors."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: a {type(content).__name__} instead of named tensors; save the model's "
                              "state_dict()")
    for key in _WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and _has_tensors(inner.values()):
            return inner
    return content


def _has_tensors(values: Iterable[object]) -> bool:
    return any(isinstance(value, Tensor) for value in values)


def _first_line(error: Exception) -> str:
    # Torch's own reason stands behind advice that would switch the protection off.
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return text.splitlines()[0] if text else type(error).__name__
