"""Where the files of each data set lie, for a data root and for data that lie apart.

What lives here: places, what each place stands for, and the hash by which a change of the tables is noticed. What
must not: reading of any table, the single images and reports (`inventory`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from medst.config import fingerprint, hash_file
from medst.data.readers import DataError, nih

CORPORA = ("mimic-cxr-jpg", "open-i", "covid-chestxray", "chexpert-plus")
"""Data sets with reports, on which training and validation run; a store holds one of them."""
DATA_SETS = ("mimic-cxr-jpg", "ms-cxr-t", "ms-cxr", "rsna", "covidx", *CORPORA[1:])
"""Folders of a data root; any of them may be absent."""
IS_CREDENTIALED = {"mimic-cxr-jpg": True, "ms-cxr-t": True, "ms-cxr": True, "chexpert-plus": True, "rsna": False,
                   "covidx": False, "open-i": False, "covid-chestxray": False}
"""Whether text, images and ids of a data set must stay at home; a data root says it in dataset.json."""
LARGEST_UNREADABLE_SHARE = 0.02
"""Preparation stops where more images of a data set than this share cannot be read."""
_TABLES = ("*.csv", "*.csv.gz", "*.txt", "*.parquet", "*.zip", "*.tgz", "*.json", "chexbert_labels/*.json",
           "labels/*.json")
_LARGE = 64 * 2**20
"""Larger files are known by name and size: hashing them at every opening would take seconds."""


@dataclass(frozen=True)
class Source:
    """The places of one data set."""

    folder: str
    """Images, and the tables where `tables` does not name another folder; empty for a data set of tables only."""
    reports: str = ""
    """Folder or file of the reports, for the data sets that keep them apart."""
    tables: str = ""
    is_partial: bool = False
    """Images that are not there are left out and counted instead of being problems."""
    version: str = ""
    """Of COVIDx: number of the split files."""
    largest_unreadable: float = LARGEST_UNREADABLE_SHARE

    @property
    def table_folder(self) -> str:
        return self.tables or self.folder

    def paths(self) -> list[Path]:
        return [Path(place) for place in (self.folder, self.reports, self.tables) if place]


@dataclass(frozen=True)
class Sources:
    """What a store is made of."""

    name: str
    is_credentialed: bool
    sets: Mapping[str, Source]
    """Data set -> its places."""
    truth: str = ""
    """Folder of the phantom's truth."""
    descriptions: tuple[str, ...] = field(default=())
    """Files that describe the root."""

    @property
    def corpus(self) -> str | None:
        """The data set with reports."""
        return next((name for name in CORPORA if name in self.sets), None)

    def signatures(self) -> dict[str, str]:
        """Data set -> hash of the tables that its part of a store is made from, and of how they are read; not of images
        and single reports: cheap, and independent of where and when they were copied."""
        tables = {name: [line for path in source.paths() for line in _described_tables(path)]
                  for name, source in self.sets.items()}
        # RSNA's list of patients serves both, in whichever folder it lies.
        patients = sorted(line for name in ("rsna", "covidx") for line in tables.get(name, ())
                          if fnmatch(line, f"{nih.PATTERN} *"))
        return {name: fingerprint("\n".join([
            *tables[name], *(patients if name in ("rsna", "covidx") else ()),
            f"{source.is_partial} {source.version} {source.largest_unreadable}"]))
            for name, source in sorted(self.sets.items())}

    def signature(self) -> str:
        """Hash of all that is small: the signatures, the truth, the description of the root."""
        others = [line for path in (self.truth, *self.descriptions) if path for line in _described_tables(Path(path))]
        return fingerprint(json.dumps([self.name, self.is_credentialed, self.signatures(), others]))

    def are_there(self) -> bool:
        """Whether the raw files are on this machine."""
        return all(path.exists() for source in self.sets.values() for path in source.paths())

    def with_set(self, name: str, source: Source, is_credentialed: bool) -> Sources:
        """The same sources with one data set more, or at another place."""
        others = [other for other in CORPORA if name in CORPORA and other in self.sets and other != name]
        if others:
            raise DataError(f"the store holds {others[0]} already, and one store holds one data set with reports; "
                            f"prepare {name} into another folder")
        return replace(self, sets={**self.sets, name: source},
                       is_credentialed=self.is_credentialed or is_credentialed)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Sources:
        return cls(name=written["name"], is_credentialed=written["is_credentialed"], truth=written["truth"],
                   sets={name: Source(**source) for name, source in written["sets"].items()},
                   descriptions=tuple(written["descriptions"]))


def _described_tables(place: Path) -> list[str]:
    """Name and hash of each table in a place."""
    files = [place] if place.is_file() else sorted(
        path for pattern in _TABLES for path in place.glob(pattern) if path.is_file())
    sizes = [file.stat().st_size for file in files]
    return [f"{file.name} {size if size > _LARGE else hash_file(file)}"
            for file, size in zip(files, sizes, strict=True)]


def sources_of_root(root: Path) -> Sources:
    """The data sets that lie side by side in a data root.

    Raises:
        DataError: there is none, or a table upon MIMIC-CXR without it, or an unfinished phantom.
    """
    present = [name for name in DATA_SETS if (root / name).is_dir()]
    if not present:
        raise DataError(f"{root}: none of {', '.join(DATA_SETS)} is there; set data.root to the folder that holds "
                        "them, or make phantom data with `medst data phantom`")
    name, is_credentialed = read_description(root)
    sources = Sources(
        name, is_credentialed, {}, truth=str(root / "truth") if (root / "truth").is_dir() else "",
        descriptions=tuple(str(root / file) for file in ("dataset.json", "phantom.json") if (root / file).is_file()))
    reports = {"mimic-cxr-jpg": str(root / "mimic-cxr"), "open-i": str(root / "open-i")}
    for data_set in present:
        source = Source(str(root / data_set), reports=reports.get(data_set, ""))
        sources = sources.with_set(data_set, source, False)
    require_companions(sources)
    return sources


def require_companions(sources: Sources) -> None:
    """Raise DataError where tables upon the images of MIMIC-CXR-JPG come without them."""
    for name in ("ms-cxr-t", "ms-cxr"):
        if name in sources.sets and "mimic-cxr-jpg" not in sources.sets:
            raise DataError(f"{sources.sets[name].table_folder}: the images of {name} are those of MIMIC-CXR-JPG, but "
                            "mimic-cxr-jpg is missing; put it beside it, or prepare mimic-cxr into the same store "
                            "first")


def read_description(root: Path) -> tuple[str, bool]:
    """Name of the data and whether it is credentialed: dataset.json, absent means that it is."""
    phantom = root / "phantom.json"
    if phantom.is_file() and json.loads(phantom.read_text(encoding="utf-8")).get("complete") is not True:
        raise DataError(f"{phantom}: the phantom was not written to its end; make it again with `medst data phantom`")
    path = root / "dataset.json"
    if not path.is_file():
        return root.resolve().name, True
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        name, is_credentialed = described["name"], described["credentialed"]
        if not isinstance(name, str) or not isinstance(is_credentialed, bool):
            raise TypeError("wrong types")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f'{path}: expected {{"name": "...", "credentialed": true or false}} ({error})') from None
    return name, is_credentialed
