"""From thorax to radiograph: point source, rays, Beer-Lambert, scatter, quantum noise, processing.

What lives here: projection of `anatomy`'s volume, all rays of an image at once, and the truth in pixels
that follows from it (boxes). What must not: the shape of anything, words, files.

Frame of a view: u along image columns, v up, w along the beam; the axis of rotation is the origin.
Legend: K ellipsoids, R rows, C columns, N points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medst.data.phantom.anatomy import (BONE, INDEX, LEFT, LUNG, RIB, RIGHT, SOFT, Ellipsoids, Floats, Opacity,
                                        PleuralSpace, Points, Thorax)
from medst.data.phantom.course import Study
from medst.data.phantom.presets import PhantomConfig

Image = NDArray[np.float32]
ViewName = Literal["AP", "PA", "LL", "LATERAL"]


@dataclass(frozen=True)
class Technique:
    """How a view is taken."""

    source_distance: float
    """cm from source to detector."""
    field: float
    """cm on the detector along the longest side."""
    rows: float
    columns: float
    """Share of the longest side."""
    body_to_detector: float
    """cm from the middle of a body of size 1 to the detector."""
    photons: float
    """Quanta that an unattenuated pixel would count."""
    scatter: float
    """Scattered over primary, averaged over the image."""


TECHNIQUES: dict[str, dict[ViewName, Technique]] = {
    "first": {
        "PA": Technique(180, 41, 1.0, 0.94, 15, 16_000, 0.35),
        "AP": Technique(100, 46, 0.92, 1.0, 15, 9_000, 0.7),
        "LL": Technique(180, 42, 1.0, 0.84, 21, 22_000, 0.45),
        "LATERAL": Technique(180, 41, 1.0, 0.86, 21, 16_000, 0.6),
    },
    "second": {
        "PA": Technique(150, 42, 1.0, 1.0, 16, 9_000, 0.5),
        "AP": Technique(120, 44, 0.88, 1.0, 14, 6_000, 0.9),
        "LL": Technique(150, 43, 1.0, 0.9, 22, 12_000, 0.6),
        "LATERAL": Technique(150, 42, 1.0, 0.9, 22, 10_000, 0.8),
    },
}

_VIEW_AXES: dict[ViewName, Floats] = {
    # Rows are u, v, w. The image is always seen from the patient's front, or from the left: facing left.
    "PA": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "AP": np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]),
    "LL": np.array([[0, 1.0, 0], [0, 0, 1], [1, 0, 0]]),
    "LATERAL": np.array([[0, 1.0, 0], [0, 0, 1], [1, 0, 0]]),
}


@dataclass(frozen=True)
class Camera:
    """One exposure: where the thorax stands before source and detector."""

    technique: Technique
    axes: Floats
    """(3, 3) patient -> view."""
    shift: Floats
    """(3,) cm, in the view's frame."""
    origin_to_detector: float
    num_rows: int
    num_columns: int
    pitch: float
    """cm on the detector from pixel to pixel."""

    @property
    def source(self) -> float:
        """cm from the source to the origin."""
        return self.technique.source_distance - self.origin_to_detector

    def to_view(self, position: Floats) -> Floats:
        """(N, 3) patient -> view."""
        return position @ self.axes.T + self.shift

    def project(self, position: Floats) -> tuple[Floats, Floats, Floats]:
        """(N, 3) in the patient's frame -> column, row (fractional, pixel centres are whole) and magnification."""
        view = self.to_view(position)
        magnification = self.technique.source_distance / (self.source + view[:, 2])
        column = view[:, 0] * magnification / self.pitch + (self.num_columns - 1) / 2
        row = (self.num_rows - 1) / 2 - view[:, 1] * magnification / self.pitch
        return column, row, magnification


@dataclass(frozen=True)
class Box:
    """Where one finding of one lung shows, in pixels of the image; NaN where it does not."""

    finding: int
    """Position in `Study.findings`."""
    side: Literal["left", "right"]
    x: float
    y: float
    width: float
    height: float
    contrast: float
    """Largest change of the line integral."""


@dataclass(frozen=True)
class Radiograph:
    pixels: NDArray[np.uint8]
    """(R, C)."""
    boxes: tuple[Box, ...]


def place_camera(study: Study, view: ViewName, config: PhantomConfig, body_size: float,
                 rng: np.random.Generator) -> Camera:
    """Centring, tilt and turn of one exposure; the study's rotation applies to frontals and laterals alike."""
    technique = TECHNIQUES[config.geometry][view]
    offset = rng.normal(0, 1.0, 2) * config.pose_strength
    turn = np.radians(study.rotation + rng.normal(0, 0.7) * config.rotation_strength)
    tilt = np.radians(rng.normal(0, 1.6) * config.pose_strength)
    about_body = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_beam = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    shift = np.array([np.clip(offset[0], -2.5, 2.5), np.clip(offset[1], -2.5, 2.5) + 1.5, 0.0])
    if view in ("LL", "LATERAL"):
        shift[0] += 0.5
    return Camera(technique, about_beam @ _VIEW_AXES[view] @ about_body, shift, technique.body_to_detector * body_size,
                  round(technique.rows * config.image_size), round(technique.columns * config.image_size),
                  technique.field / config.image_size)


@dataclass(frozen=True)
class Rays:
    """Rays p(t) = source + t d with d = (x, y, 1), t in cm along the beam."""

    x: Image
    """(C,)."""
    y: Image
    """(R,)."""
    stretch: Image
    """(R, C) length of d: cm of path for each cm along the beam."""


@lru_cache(maxsize=64)
def make_rays(num_rows: int, num_columns: int, pitch: float, source_distance: float) -> Rays:
    x = (np.arange(num_columns) - (num_columns - 1) / 2) * pitch / source_distance
    y = ((num_rows - 1) / 2 - np.arange(num_rows)) * pitch / source_distance
    stretch = np.sqrt(1 + x[None, :] ** 2 + y[:, None] ** 2)
    return Rays(x.astype(np.float32), y.astype(np.float32), stretch.astype(np.float32))


def intersect(ellipsoids: Ellipsoids, camera: Camera, rays: Rays) -> tuple[Image, Image]:
    """Where each ray enters and leaves each ellipsoid: (K, R, C) twice, t in cm; equal where it misses.

    With g the centre seen from the source and Q the shape, |ray| solves a t^2 - 2 b t + c = 0 with
    a = d.Qd, b = d.Qg, c = g.Qg - 1. The discriminant b^2 - ac is itself a quadratic form in d, so it is
    expanded per ellipsoid in double precision: evaluated from its parts in single precision it would lose
    small ellipsoids at 180 cm to cancellation.
    """
    shape = camera.axes @ ellipsoids.shape @ camera.axes.T
    centre = camera.to_view(ellipsoids.centre) + (0.0, 0.0, camera.source)
    pulled = np.einsum("kij,kj->ki", shape, centre)
    constant = np.einsum("ki,ki->k", pulled, centre) - 1
    discriminant = np.einsum("ki,kj->kij", pulled, pulled) - shape * constant[:, None, None]
    x, y = rays.x, rays.y
    root = _quadratic(discriminant, x, y)
    np.maximum(root, 0, out=root)
    np.sqrt(root, out=root)
    speed = _quadratic(shape, x, y)
    np.reciprocal(speed, out=speed)
    linear = pulled.astype(np.float32)
    middle = (linear[:, 1, None] * y + linear[:, 2, None])[:, :, None] + (linear[:, 0, None] * x)[:, None, :]
    middle *= speed
    root *= speed
    return middle - root, middle + root


def _quadratic(form: Floats, x: Image, y: Image) -> Image:
    """d.Fd for d = (x, y, 1): (K, 3, 3) symmetric -> (K, R, C)."""
    along_x = (form[:, 0, 0, None] * x**2 + 2 * form[:, 0, 2, None] * x + form[:, 2, 2, None]).astype(np.float32)
    along_y = (form[:, 1, 1, None] * y**2 + 2 * form[:, 1, 2, None] * y).astype(np.float32)
    mixed = (2 * form[:, 0, 1, None] * y).astype(np.float32)
    value = mixed[:, :, None] * x
    value += along_x[:, None, :]
    value += along_y[:, :, None]
    return value


@lru_cache(maxsize=32)
def _pairs(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = np.array(list(combinations(range(count), 2)), dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def remaining(start: Image, end: Image, cut_start: Image, cut_end: Image) -> Image:
    """Length of [start, end] outside every interval of a stack: (R, C), (R, C), (K, R, C), (K, R, C) -> (R, C).

    Inclusion and exclusion up to pairs: exact wherever no three cutters overlap.
    """
    first, last = np.maximum(cut_start, start), np.minimum(cut_end, end)
    length = np.maximum(end - start, 0)
    left = length - np.maximum(last - first, 0).sum(axis=0)
    one, other = _pairs(len(cut_start))
    both = np.minimum(last[one], last[other])
    both -= np.maximum(first[one], first[other])
    left += np.maximum(both, 0, out=both).sum(axis=0)
    return np.clip(left, 0, length)


def _half_space(normal: Floats, offset: float, camera: Camera, rays: Rays) -> tuple[Image, Image]:
    """The part of each ray with normal . p > offset (patient's frame), as an interval of t."""
    in_view = camera.axes @ normal
    speed = rays.y[:, None] * np.float32(in_view[1]) + rays.x[None, :] * np.float32(in_view[0]) + np.float32(in_view[2])
    # normal . p = in_view . (view - shift), and view = (0, 0, -source) + t d.
    reach = offset + in_view @ camera.shift + in_view[2] * camera.source
    speed = np.where(np.abs(speed) < 1e-5, np.float32(1e-5), speed)
    crossing = np.float32(reach) / speed
    far = np.float32(1e6)
    return np.where(speed > 0, crossing, -far), np.where(speed > 0, far, crossing)


_CUTTERS = {
    RIGHT: ("heart", "mediastinum", "right_dome", "vena_cava", "spine", "pulmonary_trunk"),
    LEFT: ("heart", "mediastinum", "left_dome", "descending_aorta", "aortic_knob", "spine", "pulmonary_trunk"),
}
_BONES = ("sternum", "right_clavicle", "left_clavicle", "right_scapula", "left_scapula", "right_humerus",
          "left_humerus")
_VERTEBRA = 2.5
_RIB_SPACING = 3.1
_RIB_SLOPE = 0.62
"""A rib falls by this much for each cm it comes forward."""


@dataclass(frozen=True)
class LineIntegrals:
    """Attenuation along every ray, (R, C), apart by what causes it; the sum is what the detector sees."""

    anatomy: Image
    layers: tuple[tuple[Image, float], ...]
    """Images with the standard deviation in pixels of the blur that is still due."""
    findings: tuple[tuple[int, int, Image], ...]
    """(finding, lung, change of the line integral); part of `anatomy` and `layers` already."""


def integrate(thorax: Thorax, camera: Camera) -> LineIntegrals:
    """Line integrals of the whole thorax, exact for ellipsoids and their intersections."""
    rays = make_rays(camera.num_rows, camera.num_columns, camera.pitch, camera.technique.source_distance)
    enter, leave = intersect(thorax.ellipsoids, camera, rays)
    chord = leave - enter

    def length(name: str) -> Image:
        return chord[INDEX[name]]

    total = SOFT * _soft_tissue(enter, leave, chord)
    opacities = np.zeros_like(total)
    findings: list[tuple[int, int, Image]] = []
    for lung, side in ((RIGHT, "right"), (LEFT, "left")):
        lung_index = INDEX[f"{side}_lung"]
        cutters = [INDEX[name] for name in _CUTTERS[lung]]
        cut_start, cut_end = enter[cutters], leave[cutters]
        start, end = enter[lung_index], leave[lung_index]
        air = remaining(start, end, cut_start, cut_end)
        total -= (SOFT - LUNG) * air
        filled = np.zeros_like(total)
        for opacity in thorax.opacities:
            if opacity.lung == lung:
                change = _opacity(opacity, enter, leave, start, end, cut_start, cut_end, rays.stretch)
                filled += change
                findings.append((opacity.finding, lung, change))
        for space in thorax.spaces:
            if space.lung == lung:
                change = _pleural_space(space, thorax, enter, leave, start, end, cut_start, cut_end, camera, rays)
                if space.is_air:
                    total += change
                else:
                    filled += change * rays.stretch
                findings.append((space.finding, lung, change * rays.stretch))
        # What fills the lung cannot be denser than soft tissue.
        opacities += np.minimum(filled, (SOFT - LUNG) * air * rays.stretch)

    for side in ("right", "left"):
        total += 0.45 * (SOFT - LUNG) * length(f"{side}_hilum")
        total -= 0.8 * SOFT * length(f"{side}_bronchus")
    total -= 0.9 * SOFT * length("trachea") + 0.95 * SOFT * length("stomach_bubble")
    for name in _BONES:
        total += BONE * length(name)
    total += _spine(chord, camera, rays)
    total += _ribs(thorax, enter, leave, camera, rays)
    for index, attenuation in thorax.solids:
        total += np.float32(attenuation) * chord[index]
    total *= rays.stretch

    scale = camera.technique.source_distance / camera.source / camera.pitch
    layers = [(opacities, 0.3 * scale)]
    layers += [(splat(points, camera), points.blur * scale) for points in thorax.points]
    return LineIntegrals(total, tuple(layers), tuple(findings))


def _soft_tissue(enter: Image, leave: Image, chord: Image) -> Image:
    """Length in the union of trunk, shoulders, neck and breasts; only pairs of them meet."""
    trunk = INDEX["torso"]
    others = slice(INDEX["right_shoulder"], INDEX["left_breast"] + 1)
    inside = np.minimum(leave[others], leave[trunk]) - np.maximum(enter[others], enter[trunk])
    length = chord[trunk] + (chord[others] - np.maximum(inside, 0)).sum(axis=0)
    neck = INDEX["neck"]
    shoulders = slice(INDEX["right_shoulder"], INDEX["left_shoulder"] + 1)
    # Shoulder and neck meet outside the trunk only in a rim; its part inside the trunk is counted out above.
    first = np.maximum(np.maximum(enter[shoulders], enter[neck]), leave[trunk])
    last = np.minimum(leave[shoulders], leave[neck])
    return np.maximum(length - np.maximum(last - first, 0).sum(axis=0), 0)


def _opacity(opacity: Opacity, enter: Image, leave: Image, start: Image, end: Image, cut_start: Image,
             cut_end: Image, stretch: Image) -> Image:
    blobs = slice(opacity.first, opacity.last)
    first, last = np.maximum(enter[blobs], start), np.minimum(leave[blobs], end)
    length = np.maximum(last - first, 0).sum(axis=0)
    # Heart and dome take their share of a blob that reaches into them.
    for cutter_start, cutter_end in zip(cut_start[:3], cut_end[:3], strict=True):
        inside = np.minimum(last, cutter_end)
        inside -= np.maximum(first, cutter_start)
        length -= np.maximum(inside, 0, out=inside).sum(axis=0)
    length = np.maximum(length, 0) * stretch
    saturated = opacity.thickness * (1 - np.exp(-length / opacity.thickness))
    return np.asarray((SOFT - LUNG) * opacity.fill * saturated, dtype=np.float32)


def _pleural_space(space: PleuralSpace, thorax: Thorax, enter: Image, leave: Image, start: Image, end: Image,
                   cut_start: Image, cut_end: Image, camera: Camera, rays: Rays) -> Image:
    """Change of attenuation over path along the beam; fluid adds, air takes, and the pleura draws a line."""
    axis_scale = float(np.abs(space.normal) @ thorax.scale / np.abs(space.normal).sum())
    plane_start, plane_end = _half_space(space.normal, space.offset * axis_scale, camera, rays)
    first, last = np.maximum(start, plane_start), np.minimum(end, plane_end)
    inner_start = np.concatenate([cut_start, enter[space.inner][None]])
    inner_end = np.concatenate([cut_end, leave[space.inner][None]])
    length = remaining(first, last, inner_start, inner_end)
    if not space.is_air:
        return np.asarray((SOFT - LUNG) * length, dtype=np.float32)
    # The visceral pleura is the shell between the collapsed lung and a slightly smaller one.
    outer = np.minimum(leave[space.inner], last) - np.maximum(enter[space.inner], first)
    inner = np.minimum(leave[space.inner + 1], last) - np.maximum(enter[space.inner + 1], first)
    shell = np.maximum(outer, 0) - np.maximum(inner, 0)
    beside = length > 0.3
    return np.asarray(0.55 * SOFT * shell * beside - LUNG * length, dtype=np.float32)


def _spine(chord: Image, camera: Camera, rays: Rays) -> Image:
    """Vertebrae and discs: a column whose density alternates along its height."""
    height = rays.y[:, None] * np.float32(camera.source) - np.float32(camera.shift[1])
    pattern = 0.78 + 0.22 * np.tanh(3 * np.cos(2 * np.pi * height / _VERTEBRA) + 1.5)
    return np.asarray(1.4 * BONE * chord[INDEX["spine"]] * pattern, dtype=np.float32)


def _ribs(thorax: Thorax, enter: Image, leave: Image, camera: Camera, rays: Rays) -> Image:
    """Ribs: a thin shell round the lungs whose density is periodic in the height of the rib's plane."""
    outer, inner = INDEX["cage_outer"], INDEX["cage_inner"]
    middle = 0.5 * (enter[inner] + leave[inner])
    back_to_patient = camera.axes.T.astype(np.float32)
    # Point of the shell = axes^T (source + t d - shift), linear in x, y and t.
    origin = (camera.axes.T @ (np.array([0.0, 0.0, -camera.source]) - camera.shift)).astype(np.float32)
    total = np.zeros_like(middle)
    for first, last in ((enter[outer], np.minimum(enter[inner], middle)), (np.maximum(leave[inner], middle),
                                                                          leave[outer])):
        path = last - first
        at = 0.5 * (first + last)
        across, back, up = (
            (origin[axis] + at * (back_to_patient[axis, 0] * rays.x[None, :] + back_to_patient[axis, 1]
                                  * rays.y[:, None] + back_to_patient[axis, 2])) / np.float32(thorax.scale[axis])
            for axis in range(3))
        plane = up - np.float32(_RIB_SLOPE) * back + np.float32(thorax.rib_phase)
        wave = np.cos(np.float32(2 * np.pi / _RIB_SPACING) * plane)
        density = np.clip(1.6 * wave + 0.1, 0, 1)
        # Twelve ribs, and cartilage instead of bone beside the sternum.
        density *= np.clip(plane + 17.5, 0, 1) * np.clip(15.5 - plane, 0, 1)
        cartilage = np.clip(0.5 * (np.abs(across) - 5.0), 0.1, 1)
        density *= np.where(back < -2, cartilage, 1)
        total += density * path
    return np.asarray(RIB * total, dtype=np.float32)


def splat(points: Points, camera: Camera) -> Image:
    """Line integral of points: each spreads its weight over the four pixels around it, (R, C)."""
    column, row, magnification = camera.project(points.position)
    density = points.weight * (magnification / camera.pitch) ** 2
    left, top = np.floor(column), np.floor(row)
    right_part, lower_part = column - left, row - top
    size = (camera.num_rows + 2, camera.num_columns + 2)
    # A rim of one pixel all round takes what falls outside.
    column_index = np.clip(left + 1, 0, size[1] - 2).astype(np.int64)
    row_index = np.clip(top + 1, 0, size[0] - 2).astype(np.int64)
    corner = row_index * size[1] + column_index
    index = np.concatenate([corner, corner + 1, corner + size[1], corner + size[1] + 1])
    weight = np.concatenate([
        density * (1 - right_part) * (1 - lower_part), density * right_part * (1 - lower_part),
        density * (1 - right_part) * lower_part, density * right_part * lower_part])
    flat = np.bincount(index, weights=weight, minlength=size[0] * size[1])
    return flat.reshape(size)[1:-1, 1:-1].astype(np.float32)


@lru_cache(maxsize=256)
def _frequencies(num_rows: int, num_columns: int) -> Image:
    rows = np.fft.fftfreq(num_rows)[:, None]
    columns = np.fft.rfftfreq(num_columns)[None, :]
    return np.asarray(-2 * np.pi**2 * (rows**2 + columns**2), dtype=np.float32)


def _transfer(num_rows: int, num_columns: int, sigma: float) -> Image:
    """Fourier transform of a Gaussian of `sigma` pixels."""
    return np.asarray(np.exp(_frequencies(num_rows, num_columns) * np.float32(sigma**2)), dtype=np.float32)


def flatten(integrals: LineIntegrals) -> Image:
    """The sum of anatomy and layers, each layer with its own blur."""
    shape = integrals.anatomy.shape
    spectrum = sum(np.fft.rfft2(layer) * _transfer(*shape, sigma) for layer, sigma in integrals.layers)
    return integrals.anatomy + np.fft.irfft2(spectrum, s=shape).astype(np.float32)


_SATURATION = 0.55
"""Signal at which the detector saturates: the direct beam is black."""


def expose(line_integral: Image, camera: Camera, config: PhantomConfig, rng: np.random.Generator) -> Image:
    """Beer-Lambert, scatter, detector blur and quantum noise; minus the logarithm of the relative signal."""
    shape = line_integral.shape
    technique = camera.technique
    primary = np.exp(-np.maximum(line_integral, 0))
    exposure = float(np.exp(rng.normal(0, 0.35) * config.exposure_strength))
    # Scatter is a broad smear of the primary, capped by what thick parts let out.
    size = max(shape)
    padded = np.pad(np.minimum(primary, 0.35), ((size // 4,) * 2, (size // 4,) * 2), mode="edge")
    smear = np.fft.irfft2(np.fft.rfft2(padded) * _transfer(*padded.shape, size / 9), s=padded.shape)
    smear = smear[size // 4:size // 4 + shape[0], size // 4:size // 4 + shape[1]]
    signal = primary + np.float32(technique.scatter * 0.35) * smear.astype(np.float32)
    quanta = technique.photons * exposure
    noise = rng.standard_normal(shape, dtype=np.float32)
    signal = signal + np.sqrt(signal / quanta) * noise * np.float32(config.noise_strength)
    return -np.log(np.clip(signal, np.float32(2e-4), np.float32(_SATURATION)))


def to_bytes(image: Image, low: float, high: float) -> NDArray[np.uint8]:
    return (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255 + 0.5).astype(np.uint8)


def equalise(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Histogram equalisation of 8-bit grey values, as MIMIC-CXR-JPG's images have it."""
    cumulative = np.bincount(pixels.ravel(), minlength=256).cumsum()
    lowest = cumulative[pixels.min()]
    span = max(int(pixels.size - lowest), 1)
    table = np.clip(np.rint((cumulative - lowest) * 255.0 / span), 0, 255).astype(np.uint8)
    return table[pixels]


_BOX_SHARE = 0.3
"""A box holds every pixel in which a finding changes the line integral by this share of its maximum."""
_VISIBLE = 0.045
"""Smallest change of the line integral that can be seen among noise and vessels."""


def find_box(finding: int, lung: int, change: Image) -> Box:
    """The box of a finding's change of the line integral (R, C)."""
    size = np.abs(change)
    side: Literal["left", "right"] = "left" if lung == LEFT else "right"
    largest = float(size.max())
    if largest < _VISIBLE:
        return Box(finding, side, float("nan"), float("nan"), float("nan"), float("nan"), largest)
    mask = size > max(_BOX_SHARE * largest, 0.5 * _VISIBLE)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(finding, side, float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1),
               float(rows[-1] - rows[0] + 1), largest)


def render(thorax: Thorax, study: Study, view: ViewName, config: PhantomConfig, body_size: float,
           rng: np.random.Generator, equalised: bool = True) -> Radiograph:
    """One radiograph with the boxes of its findings.

    Args:
        equalised: True: MIMIC's JPEGs; False: a plain 8-bit window, as RSNA's DICOM files.
    """
    camera = place_camera(study, view, config, body_size, rng)
    integrals = integrate(thorax, camera)
    image = expose(flatten(integrals), camera, config, rng)
    boxes = tuple(find_box(*finding) for finding in integrals.findings)
    if equalised:
        low, high = np.percentile(image, (0.5, 99.8))
        return Radiograph(equalise(to_bytes(image, float(low), float(high))), boxes)
    middle = float(np.median(image)) + rng.normal(0, 0.12) * config.exposure_strength
    window = 0.85 * float(np.exp(rng.normal(0, 0.1) * config.exposure_strength))
    return Radiograph(to_bytes(1 / (1 + np.exp(-(image - middle) / window)), 0.03, 0.97), boxes)
