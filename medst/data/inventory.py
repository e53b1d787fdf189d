"""Which raw files a store was made from, so that new, changed and mended ones are noticed on request.

A file is known by a mark: a number hashed from its place in the data set, its size and its time of change. A store
keeps the marks of all files that were there, not their names.

What lives here: marks, the walk over the files of a data set, comparing. What must not: tables, which `sources` knows
by their content; decoding for a store.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import numpy as np
import pandas as pd

from medst.data.images import is_readable
from medst.data.sources import Source, Sources

FILES = "files.parquet"
"""In a store: data_set, mark, is_readable (False for images that the preparation could not read); by set and mark."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".txt", ".xml", ".csv", ".gz", ".zip", ".tgz")
"""Of images, reports and tables. A store that lies within a data set has none of them."""


def stamp(path: str | Path) -> str:
    """Size and time of change of a file; empty where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def mark_of(path: str, folder: str) -> int:
    """Mark of a file below `folder`."""
    name = f"{os.path.relpath(path, folder)}\0{stamp(path)}"
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "little", signed=True)


def take_inventory(sources: Sources) -> dict[str, np.ndarray]:
    """Data set -> sorted marks of its files."""
    return {name: np.sort(np.fromiter((mark for _, mark in _marked_files(source)), dtype=np.int64))
            for name, source in sorted(sources.sets.items())}


def write_inventory(path: Path, inventory: Mapping[str, np.ndarray], unreadable: Mapping[str, Set[int]]) -> None:
    """Write the table FILES.

    Args:
        unreadable: data set -> marks of images that could not be read.
    """
    parts = [pd.DataFrame({"data_set": pd.Series(name, range(len(marks)), dtype="str"), "mark": marks,
                           "is_readable": ~np.isin(marks, list(unreadable.get(name, ())))})
             for name, marks in inventory.items()]
    pd.concat(parts, ignore_index=True).to_parquet(path, index=False)


def read_inventory(store: Path, name: str) -> pd.DataFrame:
    """Rows of one data set: mark, is_readable."""
    return pd.read_parquet(store / FILES, columns=["mark", "is_readable"], filters=[("data_set", "==", name)])


def has_same_files(store: Path, name: str, source: Source, image_size: int) -> bool:
    """Whether the files of a data set are those that a store was made from, and none that could not be read then can be
    read now."""
    before = read_inventory(store, name)
    unreadable = frozenset(before.loc[~before["is_readable"], "mark"])
    marks = []
    for path, mark in _marked_files(source):
        if mark in unreadable and is_readable(path, image_size):
            return False
        marks.append(mark)
    return np.array_equal(np.sort(np.array(marks, dtype=np.int64)), before["mark"])


def _marked_files(source: Source) -> Iterator[tuple[str, int]]:
    """Files below the places of a data set, each once a place, with their marks."""
    for place in sorted({str(path) for path in source.paths()}):
        if os.path.isfile(place):
            yield place, mark_of(place, os.path.dirname(place))
            continue
        seen = set()
        # Links are followed: images often lie elsewhere. A folder that is reached twice is gone through once.
        for folder, subfolders, names in os.walk(place, followlinks=True):
            identity = os.stat(folder)
            if (identity.st_dev, identity.st_ino) in seen:
                subfolders.clear()
                continue
            seen.add((identity.st_dev, identity.st_ino))
            for name in names:
                if name.lower().endswith(_SUFFIXES):
                    path = os.path.join(folder, name)
                    yield path, mark_of(path, place)
