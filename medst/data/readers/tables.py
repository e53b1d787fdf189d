"""Strict reading of published CSV tables: ids as text, missing files and columns named with their remedy.

What lives here: what all readers need to read a table and to say what is wrong with one. What must not: the
meaning of any column.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medst.config import nearest


class DataError(ValueError):
    """A data set that cannot be read; the message names file, row, key and remedy."""


def find_table(folder: Path, name: str, origin: str) -> Path:
    """`folder/name`, plain or with `.gz`.

    Args:
        name: file name without `.gz`, such as `mimic-cxr-2.0.0-split.csv`.
        origin: where the file comes from; said where it is missing.

    Raises:
        DataError: neither file is there.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name}[.gz]: no such file; it is part of {origin}. Put it there, or make phantom data "
                    "with `medst data phantom`")


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """All columns of a CSV file as text, empty cells as missing.

    Args:
        columns: columns that must be there.

    Raises:
        DataError: not readable as CSV, or a column is missing.
    """
    try:
        # "NA", "None" and the like are words here: only an empty cell is missing.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, EOFError, OSError) as error:
        raise DataError(f"{path}: not readable as CSV ({error}); download the file again") from None
    frame.columns = frame.columns.str.strip()
    for column in columns:
        if column not in frame.columns:
            guess = nearest(column, frame.columns)
            hint = f"; the nearest one is '{guess}'" if guess else f"; there are: {', '.join(frame.columns)}"
            raise DataError(f"{path}: column '{column}' is missing{hint}. Is it the published, unchanged file?")
    return frame


def line_of(frame: pd.DataFrame, is_bad: pd.Series | np.ndarray) -> int:
    """Line number in the file, header counted, of the first row where `is_bad` holds."""
    return int(np.flatnonzero(np.asarray(is_bad))[0]) + 2


def refuse_rows(path: Path, frame: pd.DataFrame, column: str, is_bad: pd.Series, what: str, remedy: str) -> None:
    """Raise DataError that names the first bad row of a column, if there is one."""
    if is_bad.any():
        line = line_of(frame, is_bad)
        value = frame[column].iloc[line - 2]
        raise DataError(f"{path}, line {line}: {column}={value!r} {what} ({int(is_bad.sum())} such rows); {remedy}")


def numbers(path: Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A column as float64, missing where the cell is empty.

    Raises:
        DataError: a cell holds something else than a number.
    """
    values = pd.to_numeric(frame[column], errors="coerce").astype("float64")
    refuse_rows(path, frame, column, values.isna() & frame[column].notna(), "is not a number",
                "correct the cell, or empty it where the value is unknown")
    return values
