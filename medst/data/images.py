"""Decoding of JPEG, PNG and DICOM radiographs to small grey squares, and boxes to fractions of them.

What lives here: one image file -> one uint8 square. What must not: batches, augmentation, data sets.

Legend: S side of the square.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.pixels import apply_color_lut


class ImageError(ValueError):
    """An image file that cannot be decoded; the message says why."""


@dataclass(frozen=True)
class SquareImage:
    """A decoded image with the size that it had."""

    pixels: np.ndarray
    """(S, S) uint8."""
    width: int
    height: int
    """Pixels of the original, after EXIF rotation."""
    view: str
    """ViewPosition of a DICOM file, upper case; empty where not stated."""


def read_square(path: str | Path, size: int) -> np.ndarray:
    """(size, size) uint8: the image in grey, longest side scaled to `size` by area interpolation, zero-padded.

    Raises:
        ImageError: missing, truncated, or of an unknown kind.
    """
    return read_square_image(path, size).pixels


def read_square_image(path: str | Path, size: int) -> SquareImage:
    """As `read_square`, with the original's size."""
    grey, view = _read_dicom(Path(path)) if str(path).lower().endswith(".dcm") else (_read_picture(Path(path)), "")
    height, width = grey.shape
    return SquareImage(to_square(grey, size), width, height, view)


def is_readable(path: str | Path, size: int) -> bool:
    """Whether `read_square` reads a file."""
    try:
        read_square(path, size)
    except ImageError:
        return False
    return True


def to_square(grey: np.ndarray, size: int) -> np.ndarray:
    """(H, W) uint8 -> (size, size) uint8, the short side centred between zeros."""
    height, width = grey.shape
    new_width, new_height, left, top = (int(value) for value in _placement(width, height, size))
    if (new_width, new_height) != (width, height):
        grey = np.asarray(Image.fromarray(grey).resize((new_width, new_height), Image.Resampling.BOX))
    square = np.zeros((size, size), dtype=np.uint8)
    square[top:top + new_height, left:left + new_width] = grey
    return square


def square_box(box: np.ndarray, width: np.ndarray | int, height: np.ndarray | int, size: int) -> np.ndarray:
    """Boxes in pixels of a width x height original -> fractions of the side of its square.

    Args:
        box: (..., 4) x, y, w, h.
        width, height: (...) or one number.
        size: side of the square, whose rounding of the short side is followed.

    Returns:
        (..., 4) x, y, w, h in [0, 1] for a box inside the image.
    """
    new_width, new_height, left, top = _placement(width, height, size)
    scale_x, scale_y = new_width / width, new_height / height
    x, y, w, h = np.moveaxis(np.asarray(box, dtype=float), -1, 0)
    return np.stack([x * scale_x + left, y * scale_y + top, w * scale_x, h * scale_y], axis=-1) / size


def equalise(pixels: np.ndarray) -> np.ndarray:
    """Equalise the histogram of a uint8 image, as MIMIC-CXR-JPG's images have it (Johnson et al., 2019)."""
    cumulative = np.bincount(pixels.ravel(), minlength=256).cumsum()
    lowest = cumulative[pixels.min()]
    span = max(int(pixels.size - lowest), 1)
    table = np.clip(np.rint((cumulative - lowest) * 255.0 / span), 0, 255).astype(np.uint8)
    return table[pixels]


def equalise_squares(squares: np.ndarray) -> np.ndarray:
    """(N, S, S) uint8 zero-padded squares with the histogram of each picture equalised; the padding stays zero."""
    equalised = np.zeros_like(squares)
    for square, result in zip(squares, equalised, strict=True):
        rows, columns = np.flatnonzero(square.any(axis=1)), np.flatnonzero(square.any(axis=0))
        if len(rows):
            picture = np.s_[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
            result[picture] = equalise(square[picture])
    return equalised


def _placement(width: np.ndarray | int, height: np.ndarray | int,
               size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Size of the scaled image, left and top margin; the short side is rounded down to whole pixels, as published."""
    longest = np.maximum(width, height)
    new_width = np.maximum(1, np.asarray(width) * size // longest)
    new_height = np.maximum(1, np.asarray(height) * size // longest)
    return new_width, new_height, (size - new_width) // 2, (size - new_height) // 2


def _stretch(values: np.ndarray) -> np.ndarray:
    """Deep grey values to uint8: the range that occurs becomes 0..255, a constant image 0.

    The declared depth says little: 12-bit radiographs come in 16-bit containers.
    """
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint((values.astype(np.float64) - low) * (255.0 / (high - low))).astype(np.uint8)


def _reason(error: Exception, path: Path) -> str:
    """What a decoder said, without the path: it may name a patient."""
    return f"{type(error).__name__}: {str(error).replace(str(path), 'this file')}"


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith(("I", "F")):
                return _stretch(np.asarray(upright))
            return np.asarray(upright.convert("L"))
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"not a readable JPEG or PNG ({_reason(error, path)})") from None


def _read_dicom(path: Path) -> tuple[np.ndarray, str]:
    try:
        dataset = pydicom.dcmread(path)
        values = dataset.pixel_array
        kind = str(dataset.PhotometricInterpretation)
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except (pydicom.errors.InvalidDicomError, AttributeError, KeyError, NotImplementedError, OSError, RuntimeError,
            ValueError) as error:
        raise ImageError(f"not a readable DICOM ({_reason(error, path)})") from None
    if int(getattr(dataset, "NumberOfFrames", 1) or 1) > 1:
        raise ImageError(f"{dataset.NumberOfFrames} frames in one DICOM; one radiograph is expected")
    if values.ndim == 3:
        colours = values if values.dtype == np.uint8 else _stretch(values)
        grey = np.asarray(Image.fromarray(colours).convert("L"))
    else:
        grey = values if values.dtype == np.uint8 else _stretch(values)
    if kind == "MONOCHROME1":
        grey = 255 - grey
    return grey, str(dataset.get("ViewPosition", "") or "").strip().upper()
