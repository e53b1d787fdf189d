"""How every figure looks: sizes, type, colours, and the writing of a figure to its files.

What lives here: the one style. What must not: data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN_WIDTH = 3.3
"""Inches: one column of a two-column page."""
PAGE_WIDTH = 6.9
"""Inches: both columns."""

BLACK, GREY, LIGHT = "#222222", "#7a7a7a", "#d9d9d9"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d3b00")
"""Okabe and Ito's palette, told apart by the colour-blind; its yellow, too pale for lines, replaced by a dark brown."""
LINES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)), "-", (0, (4, 1.2)), (0, (1, 1)))
"""A second cue beside the colour."""
SEQUENTIAL = "cividis"
"""Perceptually even, the same for the colour-blind."""

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 7, "axes.titlesize": 7.5,
    "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.5,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
    "ytick.major.size": 2.5, "lines.linewidth": 1.1, "lines.markersize": 3.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": BLACK, "text.color": BLACK, "axes.labelcolor": BLACK,
    "xtick.color": BLACK, "ytick.color": BLACK, "axes.titlelocation": "left", "legend.frameon": False,
    "figure.constrained_layout.use": True, "figure.dpi": 150, "savefig.dpi": 220, "pdf.fonttype": 42,
    "image.interpolation": "nearest",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside: `with style(): figure = plt.figure(...)`."""
    with plt.rc_context(_STYLE):
        yield


@dataclass(frozen=True)
class Picture:
    """A drawn figure and what stands below it."""

    name: str
    """File name without its ending."""
    figure: Figure
    caption: str
    study: str


def save(picture: Picture, folder: Path, fingerprint: str) -> list[Path]:
    """Write `<name>.pdf`, `<name>.png` and the caption `<name>.md`; the figure is closed.

    Args:
        fingerprint: of what it was made from; stands in the metadata of the files.
    """
    paths = [folder / f"{picture.name}.{ending}" for ending in ("pdf", "png", "md")]
    with style():
        # Without dates the same numbers give the same bytes.
        picture.figure.savefig(paths[0], metadata={"CreationDate": None, "ModDate": None, "Title": picture.name,
                                                   "Subject": picture.caption,
                                                   "Keywords": f"fingerprint {fingerprint}"})
        # The layout is found; the second file keeps it.
        picture.figure.set_layout_engine("none")
        picture.figure.savefig(paths[1], metadata={"Description": picture.caption, "Fingerprint": fingerprint})
    plt.close(picture.figure)
    paths[2].write_text(f"{picture.caption}\n\n<!-- fingerprint {fingerprint} -->\n", encoding="utf-8")
    return paths


def panel_letter(axes: Axes, position: int) -> None:
    """a, b, c at the upper left corner."""
    axes.annotate("abcdefghijklmnop"[position], (0, 1), xycoords="axes fraction", xytext=(-18, 5),
                  textcoords="offset points", fontweight="bold", fontsize=8)
