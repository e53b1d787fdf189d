"""Rays and the intervals in which they cross convex bodies: all rays of an image at once.

What lives here: the geometry of a point source and ellipsoids, and the algebra of intervals (a ray crosses
a convex body in one interval, and the intersection of convex bodies in the intersection of theirs). What
must not: anatomy, attenuation, detectors.

Frame of a view: u along image columns, v up, w along the beam, in cm; a ray is p(t) = source + t d with
d = (x, y, 1), so that t is measured along the beam. Legend: K ellipsoids, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Rays:
    """The rays of one detector."""

    x: Image
    """(C,)."""
    y: Image
    """(R,)."""
    stretch: Image
    """(R, C) length of d: cm of path for each cm along the beam."""


@lru_cache(maxsize=64)
def make_rays(num_rows: int, num_columns: int, pitch: float, source_distance: float) -> Rays:
    """Rays from a point source through the centres of the pixels, `pitch` apart at `source_distance`."""
    x = (np.arange(num_columns) - (num_columns - 1) / 2) * pitch / source_distance
    y = ((num_rows - 1) / 2 - np.arange(num_rows)) * pitch / source_distance
    stretch = np.sqrt(1 + x[None, :] ** 2 + y[:, None] ** 2)
    return Rays(x.astype(np.float32), y.astype(np.float32), stretch.astype(np.float32))


@dataclass(frozen=True)
class Crossing:
    """Where rays are inside a convex body: t in [enter, leave], nowhere if leave <= enter.

    Only the rectangle of the image that the body's shadow reaches is held.
    """

    top: int
    left: int
    enter: Image
    """(r, c)."""
    leave: Image
    """(r, c)."""

    @property
    def bottom(self) -> int:
        return self.top + self.enter.shape[0]

    @property
    def right(self) -> int:
        return self.left + self.enter.shape[1]

    @property
    def box(self) -> tuple[slice, slice]:
        """Its rectangle, as an index into a whole image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @cached_property
    def length(self) -> Image:
        """(r, c) extent of the crossing in t."""
        extent = self.leave - self.enter
        return np.maximum(extent, 0, out=extent)

    def box_within(self, outer: Crossing) -> tuple[slice, slice]:
        """Its rectangle as an index into the rectangle of `outer`, which holds it."""
        return (slice(self.top - outer.top, self.bottom - outer.top),
                slice(self.left - outer.left, self.right - outer.left))


def intersect(ellipsoids_centre: Floats, ellipsoids_shape: Floats, source: float, rays: Rays) -> list[Crossing]:
    """Crossings of ellipsoids (K, 3), (K, 3, 3) given in the view's frame; the source is at w = -source.

    With g the centre seen from the source and Q the shape, a t^2 - 2 b t + c = 0 where a = d.Qd, b = d.Qg,
    c = g.Qg - 1. The discriminant b^2 - a c is itself a quadratic form D in d, so it is expanded per
    ellipsoid in double precision: evaluated from its parts in single precision, small bodies far from the
    source would be lost to cancellation. The shadow's rectangle follows from the dual conic, D's inverse.
    """
    shape = ellipsoids_shape
    centre = ellipsoids_centre + (0.0, 0.0, source)
    pulled = np.einsum("kij,kj->ki", shape, centre)
    constant = np.einsum("ki,ki->k", pulled, centre) - 1
    form = np.einsum("ki,kj->kij", pulled, pulled) - shape * constant[:, None, None]
    dual = np.linalg.inv(form)
    columns = _shadow(dual[:, 0, 0], dual[:, 0, 2], dual[:, 2, 2], rays.x)
    rows = _shadow(dual[:, 1, 1], dual[:, 1, 2], dual[:, 2, 2], rays.y[::-1])
    num_rows = len(rays.y)
    forms, shapes, slopes = form.tolist(), shape.tolist(), pulled.tolist()
    crossings = []
    for index, ((left, right), (low, high)) in enumerate(zip(columns, rows, strict=True)):
        top, bottom = num_rows - high, num_rows - low
        x, y = rays.x[None, left:right], rays.y[top:bottom, None]
        root = _quadratic(forms[index], x, y)
        np.maximum(root, 0, out=root)
        np.sqrt(root, out=root)
        speed = _quadratic(shapes[index], x, y)
        np.reciprocal(speed, out=speed)
        root *= speed
        b_x, b_y, b_1 = slopes[index]
        middle = b_x * x + (b_y * y + b_1)
        middle *= speed
        crossings.append(Crossing(top, left, middle - root, middle + root))
    return crossings


def _shadow(square: Floats, mixed: Floats, scale: Floats, coordinates: Image) -> list[tuple[int, int]]:
    """First and one past the last of the increasing `coordinates` that each shadow reaches."""
    middle = mixed / scale
    half = np.sqrt(np.maximum(middle**2 - square / scale, 0))
    first = np.searchsorted(coordinates, middle - half, side="left")
    last = np.searchsorted(coordinates, middle + half, side="right")
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _quadratic(form: Sequence[Sequence[float]], x: Image, y: Image) -> Image:
    """d.Fd for d = (x, y, 1): symmetric 3 x 3, (1, c), (r, 1) -> (r, c)."""
    value = (2 * form[0][1] * y) * x
    value += (form[0][0] * x + 2 * form[0][2]) * x
    value += (form[1][1] * y + 2 * form[1][2]) * y + form[2][2]
    return value


def meet(first: Crossing, second: Crossing) -> Crossing | None:
    """The crossing of the intersection of two bodies; None where their shadows are apart."""
    top, bottom = max(first.top, second.top), min(first.bottom, second.bottom)
    left, right = max(first.left, second.left), min(first.right, second.right)
    if bottom <= top or right <= left:
        return None
    one = slice(top - first.top, bottom - first.top), slice(left - first.left, right - first.left)
    other = slice(top - second.top, bottom - second.top), slice(left - second.left, right - second.left)
    enter = np.maximum(first.enter[one], second.enter[other])
    leave = np.minimum(first.leave[one], second.leave[other])
    return Crossing(top, left, enter, leave) if (leave > enter).any() else None


def remaining(base: Crossing, cutters: Sequence[Crossing]) -> Image:
    """Length of the part of `base` that is outside every cutter: (r, c) on the rectangle of `base`.

    Inclusion and exclusion over the cutters that really overlap: exact.
    """
    left = base.length.copy()
    met = [inside for cutter in cutters if (inside := meet(base, cutter)) is not None]
    _exclude(left, base, met, -1)
    return np.clip(left, 0, base.length)


def _exclude(left: Image, base: Crossing, met: Sequence[Crossing], sign: int) -> None:
    for index, inside in enumerate(met):
        if sign < 0:
            left[inside.box_within(base)] -= inside.length
        else:
            left[inside.box_within(base)] += inside.length
        deeper = [both for other in met[index + 1:] if (both := meet(inside, other)) is not None]
        if deeper:
            _exclude(left, base, deeper, -sign)


def half_space(base: Crossing, normal: Floats, offset: float, rays: Rays) -> Crossing:
    """The part of `base` with normal . (t d) > offset, where the normal is in the view's frame."""
    rows, columns = base.box
    x, y = rays.x[None, columns], rays.y[rows, None]
    n_x, n_y, n_1 = normal.astype(np.float32)
    speed = n_x * x + (n_y * y + n_1)
    speed = np.where(np.abs(speed) < 1e-5, np.float32(1e-5), speed)
    crossing = np.float32(offset) / speed
    enter = np.where(speed > 0, np.maximum(base.enter, crossing), base.enter)
    leave = np.where(speed > 0, base.leave, np.minimum(base.leave, crossing))
    return Crossing(base.top, base.left, enter, leave)
