"""What the files of a results folder were made from: the manifest, and whether they still are what they claim to be.

What lives here: `manifest.json`, writing and hashing files, the findings of `make check-results`. What must not: making
tables or figures (analysis/results.py passes in what they should be).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from medst.config import hash_file

MANIFEST = "manifest.json"
FORMAT = "medst-results/1"


@dataclass(frozen=True)
class MadeFile:
    """One file of the results."""

    sha256: str
    study: str
    part: Literal["tables", "figures"]
    fingerprint: str
    """`Study.fingerprint` of what it was made from."""


@dataclass(frozen=True)
class Manifest:
    files: dict[str, MadeFile] = field(default_factory=dict)
    """Path below the results folder -> what it is."""
    units: dict[str, str] = field(default_factory=dict)
    """`<study>/<part>` -> `unit_key` with which that part was made completely."""
    missing: dict[str, str] = field(default_factory=dict)
    """Exhibit of the paper that could not be made -> why, and what to run."""
    pages: dict[str, str] = field(default_factory=dict)
    """Page that shows all of them -> its hash."""

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a results folder; an empty one where there is none.

        Raises:
            ValueError: it cannot be read; says which file to delete.
        """
        path = folder / MANIFEST
        if not path.exists():
            return Manifest()
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return Manifest({name: MadeFile(**made) for name, made in document["files"].items()},
                            dict(document["units"]), dict(document["missing"]), dict(document["pages"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no manifest of this version ({error}); delete it and run: make results"
                             ) from error

    def text(self) -> str:
        return json.dumps({"format": FORMAT, "units": dict(sorted(self.units.items())), "missing": self.missing,
                           "pages": dict(sorted(self.pages.items())),
                           "files": {name: asdict(made) for name, made in sorted(self.files.items())}},
                          indent=1, ensure_ascii=False) + "\n"

    @property
    def hashes(self) -> dict[str, str]:
        """File or page -> hash."""
        return {name: made.sha256 for name, made in self.files.items()} | self.pages

    def of_unit(self, study: str, part: str) -> Iterator[str]:
        return (name for name, made in self.files.items() if made.study == study and made.part == part)

    def is_current(self, folder: Path, study: str, part: str, key: str) -> bool:
        """Whether that part of a study was made from the same, and its files are as they were written."""
        return self.units.get(f"{study}/{part}") == key and not list(
            damages(folder, {name: self.files[name].sha256 for name in self.of_unit(study, part)}))


def write_texts(folder: Path, name: str, texts: Mapping[str, str]) -> list[Path]:
    """Write `<name>.<ending>` for each ending -> text."""
    paths = []
    for ending, text in texts.items():
        path = folder / f"{name}.{ending}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def damages(folder: Path, hashes: Mapping[str, str]) -> Iterator[str]:
    """A sentence for every file that is gone or is not as it was written."""
    for name, written in hashes.items():
        path = folder / name
        if not path.exists():
            yield f"MISSING {name}: the manifest names it, but it is not there"
        elif hash_file(path) != written:
            yield f"EDITED {name}: not as it was written"


@cache
def analysis_fingerprint() -> str:
    """Of the source that makes tables and figures."""
    sources = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".j2"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def unit_key(fingerprint: str, current_source: str, role: Iterable[str]) -> str:
    """What a part of a study is made from, the code included.

    Args:
        role: exhibits of the paper that this study serves at present.
    """
    return " ".join([fingerprint, current_source, analysis_fingerprint(), *sorted(role)])
