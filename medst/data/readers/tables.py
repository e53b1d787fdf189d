"""Strict reading of published CSV tables: ids as text, missing files and columns named with their remedy.

What lives here: what all readers need to read a table and to say what is wrong with one. What must not: the
meaning of any column.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import pandas as pd

from medst.config import nearest

_ENCODINGS = ("utf-8-sig", "cp1252")
"""Tables written by spreadsheets begin with a byte-order mark, or hold typographic signs of Windows."""
_AGE = re.compile(r"\d+")


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
    path = find_optional_table(folder, name)
    if path is None:
        raise DataError(f"{folder / name}[.gz]: no such file; it is part of {origin}. Put it there, or make phantom "
                        "data with `medst data phantom`")
    return path


def find_optional_table(folder: Path, name: str) -> Path | None:
    """As `find_table`; None where neither file is there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Columns of a CSV file as text, empty cells as missing; rows without any value are left out.

    The index counts the rows of the file from 0, also where rows are left out. Files that are not UTF-8 are read as
    cp1252.

    Args:
        columns: columns that must be there.
        optional: columns that are read where they are there.

    Raises:
        DataError: not readable as CSV, or a column is missing.
    """
    wanted = {*columns, *optional}
    for encoding in _ENCODINGS:
        try:
            # "NA", "None" and the like are words here: only an empty cell is missing.
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding=encoding,
                                index_col=False, usecols=lambda name: name.strip() in wanted)
            break
        except UnicodeDecodeError as error:
            reason: Exception = error
        except (pd.errors.ParserError, pd.errors.EmptyDataError, EOFError, OSError, zlib.error, ValueError) as error:
            raise DataError(f"{path}: not readable as CSV ({error}); download the file again") from None
    else:
        raise DataError(f"{path}: neither UTF-8 nor cp1252 text ({reason}); download the file again")
    frame.columns = frame.columns.str.strip()
    for column in columns:
        if column not in frame.columns:
            present = pd.read_csv(path, dtype=str, nrows=0, encoding=encoding, index_col=False).columns.str.strip()
            guess = nearest(column, present)
            hint = f"; the nearest one is '{guess}'" if guess else f"; there are: {', '.join(present)}"
            raise DataError(f"{path}: column '{column}' is missing{hint}. Is it the published, unchanged file?")
    return frame.dropna(how="all")


def open_text(path: Path, encoding: str, errors: str = "strict") -> IO[str]:
    """Open a table, plain or with `.gz`, for the csv module."""
    opener: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding=encoding, errors=errors, newline="")


def encoding_of(path: Path) -> str:
    """The encoding in which `read_table` reads a table: for those who read it in pieces."""
    try:
        with open_text(path, _ENCODINGS[0]) as file:
            while file.read(2**20):
                pass
    except UnicodeDecodeError:
        return _ENCODINGS[1]
    return _ENCODINGS[0]


def line_of(path: Path, frame: pd.DataFrame, is_bad: pd.Series) -> int:
    """Line number in the file, from 1, at which the first row where `is_bad` holds begins.

    Cells may hold line breaks, and empty lines are no rows, so the file is gone through.
    """
    wanted, record, start = int(frame.index[is_bad.to_numpy()][0]), -1, 1
    # Line breaks and quotes are the same in all encodings that occur.
    with open_text(path, "latin-1") as file:
        reader = csv.reader(file)
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                if record == wanted:
                    break
                record += 1
            start = reader.line_num + 1
    return start


def refuse_rows(path: Path, frame: pd.DataFrame, column: str, is_bad: pd.Series, what: str, remedy: str) -> None:
    """Raise DataError that names the first bad row of a column, if there is one."""
    if is_bad.any():
        value = frame.loc[is_bad.to_numpy(), column].iloc[0]
        raise DataError(f"{path}, line {line_of(path, frame, is_bad)}: {column}={value!r} {what} "
                        f"({int(is_bad.sum())} such rows); {remedy}")


def numbers(path: Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A column as float64, missing where the cell is empty.

    Raises:
        DataError: a cell holds something else than a number.
    """
    values = pd.to_numeric(frame[column], errors="coerce").astype("float64")
    refuse_rows(path, frame, column, values.isna() & frame[column].notna(), "is not a number",
                "correct the cell, or empty it where the value is unknown")
    return values


def read_age(text: object) -> float:
    """Age in years as public tables write it: '50+' is 50, 'early 40s' 40, an empty cell NaN."""
    found = _AGE.search(text) if isinstance(text, str) else None
    return float(found[0]) if found else float("nan")
