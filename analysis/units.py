"""What is made, found stale and checked together: a study, the audit of several, a search, a ladder.

What lives here: making the stale ones in a workplace beside the results, and publishing them. What must not: the
content of any file, pages that show several units (analysis/results.py).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from analysis import paper
from analysis.provenance import MadeFile, Manifest
from medst.config import hash_file

Part = Literal["tables", "figures"]
PARTS: tuple[Part, ...] = ("tables", "figures")
Made = tuple[list[Path], dict[str, str]]
"""Files, and exhibits that could not be made with the reason."""


@dataclass(frozen=True)
class Unit:
    """What is made from the same runs."""

    name: str
    """In the manifest: a study's name, `audit`, `search <name>` or `ladder <name>`."""
    root: str
    """Folder inside the results: '' for the common folders `tables` and `figures`, else one for all its files."""
    fingerprint: str
    """Of all that it is made from."""
    key: str
    """`unit_key`: the runs, the code, and its place in the paper."""
    exhibits: tuple[paper.Exhibit, ...]
    make: Callable[[Part, Path], Made]
    """Fills the folder with one part."""
    log: Callable[[Path], object]
    """Tracks the files of a folder, which is laid out as the unit's files are inside the results or its root."""

    @property
    def title(self) -> str:
        """As a sentence names it."""
        return self.name if self.root else f"study {self.name}"

    def folder(self, part: Part) -> str:
        """Where a part lies inside the results."""
        return self.root or part


def make_units(units: Iterable[Unit], parts: Sequence[Part], out: Path, place: Path, manifest: Manifest
               ) -> tuple[Manifest, list[Path]]:
    """Make what is stale into `place`, laid out as the results are.

    Returns:
        The manifest with what was made, and the files in `out` that are in order as they are.
    """
    files, keys, missing = dict(manifest.files), dict(manifest.units), dict(manifest.missing)
    kept: list[Path] = []
    for unit in units:
        stale = [part for part in parts if not manifest.is_current(out, unit.name, part, unit.key)]
        kept += [out / name for part in parts if part not in stale for name in manifest.of_unit(unit.name, part)]
        for part in stale:
            fresh, without = unit.make(part, place / unit.folder(part))
            for name in manifest.of_unit(unit.name, part):
                files.pop(name, None)
            for path in fresh:
                files[path.relative_to(place).as_posix()] = MadeFile(
                    hash_file(path), unit.name, part, unit.fingerprint)
            own = {exhibit.name for exhibit in unit.exhibits if f"{exhibit.kind}s" == part}
            missing = {name: why for name, why in missing.items() if name not in own} | without
            keys[f"{unit.name}/{part}"] = unit.key
            _log(fresh, unit, place)
    return replace(manifest, files=files, units=keys, missing=missing), kept


def _log(paths: Sequence[Path], unit: Unit, place: Path) -> None:
    """Track the files that were made."""
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            target = Path(folder) / path.relative_to(place / unit.root)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        unit.log(Path(folder))


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A folder inside the results, on the same disk, so that a rename publishes a file at once."""
    place = Path(tempfile.mkdtemp(prefix=".making-", dir=out))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def publish(place: Path, out: Path, outdated: Iterable[str]) -> list[Path]:
    """Move what was made to where it belongs, then remove what is no longer made."""
    written = []
    for path in sorted(place.rglob("*")):
        if path.is_file():
            target = out / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            written.append(target)
    for name in outdated:
        (out / name).unlink(missing_ok=True)
    return written
