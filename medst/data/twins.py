"""Radiographs that stand in a data set twice, under two patient ids.

What lives here: finding them by their pixels, and joining the patients. What must not: anything that needs more than
the stored squares.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image

_SIDE = 8
_LARGEST_DISTANCE = 3
"""Of 64 bits that say where a picture grows brighter from left to right."""
_LARGEST_DIFFERENCE = 3.0
"""Mean difference of grey values between two copies of one radiograph, saved and scaled apart."""
_SMALLEST_SPREAD = 8.0
"""Standard deviation of grey values below which a picture has too little in it to be told from another."""
_FEWEST_BITS = 12
"""A picture that grows brighter almost nowhere, or almost everywhere, has too little in it as well."""
_ROWS_AT_ONCE = 512


def join_twins(squares: np.ndarray, patients: pd.Series) -> tuple[pd.Series, int]:
    """Patients with one name for all whose radiographs are the same.

    Args:
        squares: (N, S, S) uint8.
        patients: N names.

    Returns:
        The names, each replaced by that of the first image of its group, and the number of images that are the same as
        an earlier one of another patient.
    """
    bits, is_telling = _signatures(squares)
    names = patients.to_numpy(dtype=object).copy()
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    twins: set[int] = set()
    telling = np.flatnonzero(is_telling)
    for start in range(0, len(telling), _ROWS_AT_ONCE):
        rows = telling[start:start + _ROWS_AT_ONCE]
        distance = np.bitwise_count(bits[rows, None] ^ bits[None, telling])
        for position, other in np.argwhere(distance <= _LARGEST_DISTANCE):
            later, earlier = rows[position], telling[other]
            if earlier >= later or names[earlier] == names[later]:
                continue
            difference = np.abs(squares[earlier].astype(np.int16) - squares[later]).mean()
            if difference <= _LARGEST_DIFFERENCE:
                twins.add(int(later))
                parent[root(names[later])] = root(names[earlier])
    return pd.Series([root(name) for name in names], patients.index, dtype=patients.dtype), len(twins)


def _signatures(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) 64 bits and (N,) whether the picture has enough in it."""
    bits = np.zeros(len(squares), dtype=np.uint64)
    is_telling = np.zeros(len(squares), dtype=bool)
    quarter = max(1, squares.shape[1] // 4)
    for row, square in enumerate(squares):
        small = np.asarray(Image.fromarray(np.asarray(square)).resize((_SIDE + 1, _SIDE), Image.Resampling.BOX))
        grows = (small[:, 1:] > small[:, :-1]).ravel()
        bits[row] = np.packbits(grows).view(np.uint64)[0]
        has_shape = _FEWEST_BITS <= grows.sum() <= grows.size - _FEWEST_BITS
        # The middle, where there is no padding.
        is_telling[row] = has_shape and square[quarter:-quarter, quarter:-quarter].std() >= _SMALLEST_SPREAD
    return bits, is_telling
