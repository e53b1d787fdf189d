"""Checkpoints: everything that an exact resume needs, written so that a kill leaves the last one whole.

A checkpoint folder `step-<n>` holds the state and its SHA-256; the two newest are kept, so that a damaged newest
one falls back to the one before. A full disk costs the checkpoint that did not fit, not those before it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from medst.config import hash_file

logger = logging.getLogger(__name__)

_FILE = "state.pt"
_DIGEST = "state.sha256"
_KEPT = 2


def _folders(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


class _Hashed:
    """A file that hashes what is written, and remembers the error that torch's writer hides behind one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        rest = memoryview(content)
        try:
            # One call takes 2 GiB at most.
            while rest:
                rest = rest[self._file.write(rest):]
        except OSError as error:
            self.error = error
            raise
        self._hash.update(content)
        return len(content)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()


def save_checkpoint(directory: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`; returns its folder. Older ones but one are removed.

    Raises:
        OSError: the disk is full or broken; nothing half written stays, and the checkpoints before are whole.
    """
    final = directory / f"step-{step}"
    # A kill leaves it behind; one process at a time writes here.
    for left in directory.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)
    partial = directory / f".partial-{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        # Unbuffered: a buffer would be written once more, and fail again, when the file is closed.
        with open(partial / _FILE, "wb", buffering=0) as file:
            hashed = _Hashed(file)
            try:
                # All that torch asks of a file is that it can be written.
                torch.save(state, cast(IO[bytes], hashed))
            except RuntimeError:
                if hashed.error is not None:
                    raise hashed.error from None
                raise
            os.fsync(file.fileno())
        with open(partial / _DIGEST, "w", encoding="utf-8") as text:
            text.write(hashed.digest())
            text.flush()
            os.fsync(text.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in _folders(directory)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None. A damaged one is skipped with a warning."""
    for folder in reversed(_folders(directory)):
        try:
            if hash_file(folder / _FILE) != (folder / _DIGEST).read_text(encoding="utf-8"):
                raise ValueError("its content does not fit its checksum")
            state: dict[str, Any] = torch.load(folder / _FILE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            logger.warning("checkpoint %s cannot be used (%s); the one before is", folder, error)
            continue
        return state
    return None
