"""One file of uint8 squares, written block by block so that a killed process loses one block.

What lives here: the array, its journal, and going on after a kill. What must not: which images there are.

The array is the `.npy` file that trials map. Beside it lies a journal with one line a block: what the block was made
of, and the hash of its bytes. After a kill the array is cut to the last block whose bytes are as the journal says, and
writing goes on there, so that the end is the same bit for bit.

Legend: N images, S side of the square images.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from medst.config import fingerprint
from medst.data.images import is_readable
from medst.data.inventory import stamp
from medst.data.workers import DecodedBlock, Workers, decode_block

IMAGES_PER_BLOCK = 128


@dataclass(frozen=True)
class Reuse:
    """Images that an earlier store of the same code holds."""

    images: np.ndarray
    """(M, S, S) uint8."""
    table: pd.DataFrame
    """width, height; a row an image of `images`."""
    row_of: Callable[[int, int], np.ndarray]
    """(start, stop) -> row of `images` for each image to be written, -1 where it must be decoded."""


@dataclass
class ArrayContent:
    """What was written."""

    digest: str = ""
    """SHA-256 of all pixels in order."""
    sizes: list[pd.DataFrame] = field(default_factory=list)
    """position (among the images asked for), width, height, stated_view; in order."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """(position, reason) of the images that could not be read."""
    num_done: int = 0

    def table(self) -> pd.DataFrame:
        """One row a written image: image (row of the array), position, width, height, stated_view."""
        columns = {"position": "int64", "width": "int64", "height": "int64", "stated_view": "object"}
        parts = self.sizes or [pd.DataFrame({name: [] for name in columns})]
        table = pd.concat(parts, ignore_index=True).astype(columns)
        table.insert(0, "image", np.arange(len(table)))
        return table

    def add(self, line: dict[str, Any]) -> None:
        failed = dict(line["failures"])
        readable = [position for position in range(line["count"]) if position not in failed]
        self.sizes.append(pd.DataFrame({
            "position": np.array(readable, dtype=np.int64) + self.num_done, "width": line["width"],
            "height": line["height"], "stated_view": line["view"] or [""] * len(readable)}))
        self.failures += [(position + self.num_done, reason) for position, reason in line["failures"]]
        self.num_done += line["count"]


def write_array(target: Path, num_images: int, size: int, paths_of: Callable[[int, int], list[str]], workers: Workers,
                on_block: Callable[[ArrayContent], None], reuse: Reuse | None = None) -> ArrayContent:
    """Decode images into `target`, going on where an earlier call was killed.

    Args:
        paths_of: (start, stop) -> files of some of the images.
        on_block: called after each block, also after those that were there already; may raise to stop.
    """
    content = ArrayContent()
    journal = journal_of(target)
    with open(target, "r+b" if target.exists() else "w+b") as file:
        header = _header(num_images, size)
        hasher = hashlib.sha256()
        lines = _whole_blocks(file, journal, len(header), size, num_images, paths_of)
        kept = []
        for line, pixels in lines:
            hasher.update(pixels)
            kept.append(json.dumps(line))
            content.add(line)
        _replace_journal(journal, kept)
        file.seek(0)
        file.write(header)
        num_written = sum(len(part) for part in content.sizes)
        file.truncate(len(header) + num_written * size * size)
        file.seek(0, os.SEEK_END)
        on_block(content)
        starts = range(content.num_done, num_images, IMAGES_PER_BLOCK)
        jobs = ((_to_decode(paths_of, start, num_images, reuse), size) for start in starts)
        with open(journal, "a", encoding="utf-8") as log:
            for start, block in zip(starts, workers.map(decode_block, jobs, len(starts)), strict=True):
                stop = min(start + IMAGES_PER_BLOCK, num_images)
                if reuse is not None:
                    block = _with_reused(block, reuse, start, stop)
                pixels = block.packed()
                line = _line(block, paths_of(start, stop), pixels)
                file.write(pixels)
                file.flush()
                log.write(json.dumps(line) + "\n")
                log.flush()
                hasher.update(pixels)
                content.add(line)
                on_block(content)
        file.seek(0)
        file.write(_header(sum(len(part) for part in content.sizes), size))
        file.flush()
        os.fsync(file.fileno())
    content.digest = hasher.hexdigest()
    return content


def journal_of(target: Path) -> Path:
    return target.with_suffix(".journal")


def hash_pixels(path: Path) -> str:
    """SHA-256 of the pixels of a written array."""
    pixels = np.load(path, mmap_mode="r")
    hasher = hashlib.sha256()
    for start in range(0, len(pixels), IMAGES_PER_BLOCK):
        hasher.update(pixels[start:start + IMAGES_PER_BLOCK].tobytes())
    return hasher.hexdigest()


def _header(num_images: int, size: int) -> bytes:
    """numpy reserves room in the header for a longer first axis, so that it can be rewritten at the end."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False,
                 "shape": (num_images, size, size)})
    return buffer.getvalue()


def _line(block: DecodedBlock, paths: list[str], pixels: bytes) -> dict[str, Any]:
    return {"items": _items(paths), "count": len(paths), "failures": block.failures,
            "width": block.width, "height": block.height, "view": block.view if any(block.view) else [],
            "sha256": hashlib.sha256(pixels).hexdigest()}


def _items(paths: list[str]) -> str:
    """The files of a block as they are now."""
    return fingerprint("\n".join(f"{path} {stamp(path)}" for path in paths))


def _whole_blocks(file: BinaryIO, journal: Path, start: int, size: int, num_images: int,
                  paths_of: Callable[[int, int], list[str]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Blocks that were written whole and would be written the same again, up to the first that would not."""
    if not journal.is_file():
        return
    file.seek(start)
    first = 0
    for text in journal.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            return
        paths = paths_of(first, min(first + line["count"], num_images))
        is_whole = line["count"] == IMAGES_PER_BLOCK or first + line["count"] == num_images
        if not is_whole or line["items"] != _items(paths):
            return
        # Mended since?
        if any(is_readable(paths[position], size) for position, _ in line["failures"]):
            return
        pixels = file.read((line["count"] - len(line["failures"])) * size * size)
        if hashlib.sha256(pixels).hexdigest() != line["sha256"]:
            return
        yield line, pixels
        first += line["count"]


def _replace_journal(journal: Path, lines: list[str]) -> None:
    temporary = journal.with_name(f"{journal.name}.new")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(temporary, journal)


def _to_decode(paths_of: Callable[[int, int], list[str]], start: int, num_images: int,
               reuse: Reuse | None) -> list[str]:
    stop = min(start + IMAGES_PER_BLOCK, num_images)
    paths = paths_of(start, stop)
    if reuse is None:
        return paths
    return [path for path, row in zip(paths, reuse.row_of(start, stop), strict=True) if row < 0]


def _with_reused(decoded: DecodedBlock, reuse: Reuse, start: int, stop: int) -> DecodedBlock:
    """The block with the images that were not decoded in their places."""
    merged = DecodedBlock(decoded.size)
    failed = dict(decoded.failures)
    fresh = iter(zip(decoded.pixels, decoded.width, decoded.height, decoded.view, strict=True))
    num_fresh = 0
    for position, row in enumerate(reuse.row_of(start, stop)):
        if row >= 0:
            size = reuse.table.iloc[row]
            values = (np.asarray(reuse.images[row]), int(size["width"]), int(size["height"]), "")
        elif num_fresh in failed:
            merged.failures.append((position, failed[num_fresh]))
            num_fresh += 1
            continue
        else:
            values = next(fresh)
            num_fresh += 1
        merged.pixels.append(values[0])
        merged.width.append(values[1])
        merged.height.append(values[2])
        merged.view.append(values[3])
    return merged
