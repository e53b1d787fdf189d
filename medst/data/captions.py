"""The captions of a corpus, cleaned block by block into files, so that the text is never in memory as a whole.

What lives here: cleaning of all reports of a corpus, and reading of the results. What must not: rules of cleaning.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medst.data.readers.corpus import Report, Reports, blocks_of
from medst.data.workers import BEHAVIOURS, Workers, caption_block

REPORTS_PER_BLOCK = 500
COLUMNS = tuple(f"report_{behaviour}" for behaviour in BEHAVIOURS)


@dataclass(frozen=True)
class Captions:
    """Captions of the n studies of a corpus, in files."""

    folder: Path
    part: np.ndarray
    """(n,) number of the file, -1 where the study has no report."""
    place: np.ndarray
    """(n,) row in the file."""
    has_caption: np.ndarray
    """(n, 2) bool: whether a caption was left after cleaning, released and corrected."""

    @property
    def has_report(self) -> np.ndarray:
        """(n,) bool."""
        return self.part >= 0

    @property
    def is_usable(self) -> np.ndarray:
        """(n,) bool: a caption in either behaviour; a trial sees those of its own."""
        return np.logical_or.reduce(self.has_caption, axis=1)

    def read(self, rows: np.ndarray) -> pd.DataFrame:
        """Captions of some studies, in their order; empty where a behaviour leaves none."""
        frame = pd.DataFrame({name: pd.Series("", range(len(rows)), dtype="str") for name in COLUMNS})
        texts = {name: np.empty(len(rows), dtype=object) for name in COLUMNS}
        for number in np.unique(self.part[rows]):
            is_here = self.part[rows] == number
            table = pd.read_parquet(_part_path(self.folder, int(number)), columns=list(COLUMNS))
            for name in COLUMNS:
                texts[name][is_here] = table[name].fillna("").to_numpy(dtype=object)[self.place[rows][is_here]]
        return frame.assign(**{name: pd.Series(values, dtype="str") for name, values in texts.items()})


def write_captions(folder: Path, studies: pd.DataFrame, reports: Reports, workers: Workers,
                   progress: Callable[[int, int], None] | None) -> Captions:
    """Clean the reports of `studies` into files of `folder`; files that an earlier call wrote are kept.

    Args:
        progress: told (reports cleaned, studies in all).
    """
    folder.mkdir(exist_ok=True)
    num_studies = len(studies)
    captions = Captions(folder, np.full(num_studies, -1, dtype=np.int32), np.zeros(num_studies, dtype=np.int32),
                        np.zeros((num_studies, len(COLUMNS)), dtype=bool))
    num_done = 0
    for number, (rows, table) in enumerate(_parts(folder, studies, reports, workers)):
        captions.part[rows] = number
        captions.place[rows] = np.arange(len(rows))
        for column, name in enumerate(COLUMNS):
            captions.has_caption[rows, column] = table[name].notna()
        num_done += len(rows)
        if progress is not None:
            progress(num_done, num_studies)
    return captions


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _parts(folder: Path, studies: pd.DataFrame, reports: Reports,
           workers: Workers) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """(rows of the studies, their captions), block by block."""
    waiting: list[tuple[int, np.ndarray, str, pd.DataFrame | None]] = []

    def jobs() -> Iterator[tuple[list[Report]]]:
        for number, block in enumerate(blocks_of(reports.read(studies), REPORTS_PER_BLOCK)):
            rows = np.array([row for row, _ in block], dtype=np.int64)
            key = hashlib.sha256(repr(block).encode("utf-8", "surrogatepass")).hexdigest()
            table = _read_part(_part_path(folder, number), key)
            waiting.append((number, rows, key, table))
            yield ([report for _, report in block] if table is None else [],)

    for found in workers.map(caption_block, jobs(), len(studies) // REPORTS_PER_BLOCK):
        number, rows, key, table = waiting.pop(0)
        if table is None:
            table = pd.DataFrame({name: pd.Series([texts[column] for texts in found], dtype="str")
                                  for column, name in enumerate(COLUMNS)}).assign(key=key)
            temporary = folder / ".part.new"
            table.to_parquet(temporary, index=False)
            os.replace(temporary, _part_path(folder, number))
        yield rows, table


def _read_part(path: Path, key: str) -> pd.DataFrame | None:
    """A part that was written from the same reports."""
    if not path.is_file():
        return None
    table = pd.read_parquet(path)
    return table if len(table) and table["key"].iloc[0] == key else None
