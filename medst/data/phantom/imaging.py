"""From thorax to radiograph: point source, rays, Beer-Lambert, scatter, quantum noise, processing.

What lives here: projection of `anatomy`'s volume, all rays of an image at once, and the truth in pixels
that follows from it (boxes). What must not: the shape of anything, words, files.

Frame of a view: u along image columns, v up, w along the beam; the axis of rotation is the origin.
Legend: K ellipsoids, R rows, C columns, N points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medst.data.images import equalise
from medst.data.phantom.anatomy import BONE, INDEX, LEFT, LUNG, RIB, RIGHT, SOFT, Opacity, PleuralSpace, Points, Thorax
from medst.data.phantom.course import Study
from medst.data.phantom.presets import PhantomConfig
from medst.data.phantom.rays import Crossing, Floats, Image, Rays, half_space, intersect, make_rays, meet, remaining

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
        "PA": Technique(180, 37, 1.0, 0.94, 15, 16_000, 0.35),
        "AP": Technique(100, 42, 0.92, 1.0, 15, 9_000, 0.7),
        "LL": Technique(180, 38, 1.0, 0.84, 21, 22_000, 0.45),
        "LATERAL": Technique(180, 38, 1.0, 0.86, 21, 16_000, 0.6),
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


_CUTTERS = {
    RIGHT: ("heart", "mediastinum", "right_dome", "vena_cava", "spine", "pulmonary_trunk"),
    LEFT: ("heart", "mediastinum", "left_dome", "descending_aorta", "aortic_knob", "spine", "pulmonary_trunk"),
}
_BODY = ("torso", "right_shoulder", "left_shoulder", "neck", "right_breast", "left_breast")
_INSIDE = {
    "right_hilum": 0.45 * (SOFT - LUNG), "left_hilum": 0.45 * (SOFT - LUNG),
    "trachea": -0.9 * SOFT, "right_bronchus": -0.8 * SOFT, "left_bronchus": -0.8 * SOFT,
    "stomach_bubble": -0.95 * SOFT, "sternum": BONE, "right_clavicle": BONE, "left_clavicle": BONE,
    "right_scapula": BONE, "left_scapula": BONE, "right_humerus": BONE, "left_humerus": BONE,
}
"""Attenuation that structures inside the body add to what is round them."""
_PLEURA = 0.75 * SOFT
_RIM, _HAZE_RIM = 0.35, 1.2
"""Standard deviation in cm of the rim of fluid and airspace disease, and of the haze of edema."""
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
    """Line integrals of the whole thorax, exact for ellipsoids, their unions and intersections."""
    rays = make_rays(camera.num_rows, camera.num_columns, camera.pitch, camera.technique.source_distance)
    ellipsoids = thorax.ellipsoids
    crossings = intersect(camera.to_view(ellipsoids.centre), camera.axes @ ellipsoids.shape @ camera.axes.T,
                          camera.source, rays)
    total = np.zeros_like(rays.stretch)

    def add(name: str, attenuation: float) -> None:
        crossing = crossings[INDEX[name]]
        total[crossing.box] += np.float32(attenuation) * crossing.length

    body: list[Crossing] = []
    for name in _BODY:
        part = crossings[INDEX[name]]
        total[part.box] += np.float32(SOFT) * remaining(part, body)
        body.append(part)

    sharp, soft = np.zeros_like(total), np.zeros_like(total)
    findings: list[tuple[int, int, Image]] = []
    for lung, side in ((RIGHT, "right"), (LEFT, "left")):
        cavity = crossings[INDEX[f"{side}_lung"]]
        box, stretch = cavity.box, rays.stretch[cavity.box]
        cutters = [crossings[INDEX[name]] for name in _CUTTERS[lung]]
        air = remaining(cavity, cutters)
        total[box] -= np.float32(SOFT - LUNG) * air
        patches, haze = np.zeros_like(air), np.zeros_like(air)
        changes: list[tuple[int, Image]] = []
        for opacity in (one for one in thorax.opacities if one.lung == lung):
            change = _opacity(opacity, crossings, cavity, cutters, stretch)
            if opacity.is_haze:
                haze += change
            else:
                patches += change
            changes.append((opacity.finding, change))
        for space in (one for one in thorax.spaces if one.lung == lung):
            change = _pleural_space(space, thorax, crossings, cavity, cutters, camera, rays)
            if space.is_air:
                total[box] += change
            else:
                patches += change * stretch
            changes.append((space.finding, change * stretch))
        # What fills the lung cannot be denser than soft tissue.
        room = np.float32(SOFT - LUNG) * air * stretch
        np.minimum(patches, room, out=patches)
        sharp[box] += patches
        soft[box] += np.minimum(haze, room - patches)
        for finding, change in changes:
            whole = np.zeros_like(total)
            whole[box] = change
            findings.append((finding, lung, whole))

    for name, attenuation in _INSIDE.items():
        add(name, attenuation)
    spine = crossings[INDEX["spine"]]
    total[spine.box] += _spine(spine, camera, rays)
    _add_ribs(total, thorax, crossings, camera, rays)
    for index, attenuation in thorax.solids:
        total[crossings[index].box] += np.float32(attenuation) * crossings[index].length
    total *= rays.stretch

    scale = camera.technique.source_distance / camera.source / camera.pitch
    layers = [(layer, blur * scale) for layer, blur in ((sharp, _RIM), (soft, _HAZE_RIM)) if layer.any()]
    layers += [(splat(points, camera), points.blur * scale) for points in thorax.points]
    return LineIntegrals(total, tuple(layers), tuple(findings))


def _opacity(opacity: Opacity, crossings: Sequence[Crossing], cavity: Crossing, cutters: Sequence[Crossing],
             stretch: Image) -> Image:
    """Change of the line integral on the rectangle of the lung."""
    length = np.zeros_like(stretch)
    for blob in crossings[opacity.first:opacity.last]:
        inside = meet(blob, cavity)
        if inside is not None:
            length[inside.box_within(cavity)] += remaining(inside, cutters)
    length *= stretch
    saturated = opacity.thickness * (1 - np.exp(-length / np.float32(opacity.thickness)))
    return np.asarray((SOFT - LUNG) * opacity.fill * saturated, dtype=np.float32)


def _pleural_space(space: PleuralSpace, thorax: Thorax, crossings: Sequence[Crossing], cavity: Crossing,
                   cutters: Sequence[Crossing], camera: Camera, rays: Rays) -> Image:
    """Change of attenuation along the beam; fluid adds, air takes, and the pleura draws a line."""
    region = cavity
    if space.plane is not None:
        normal, offset = camera.axes @ space.plane[0], space.plane[1] * float(np.abs(space.plane[0]) @ thorax.scale)
        # normal . p = in_view . (view - shift), and view = (0, 0, -source) + t d.
        region = half_space(cavity, normal, offset + float(normal @ camera.shift + normal[2] * camera.source), rays)
    length = remaining(region, [*cutters, crossings[space.inner]])
    if not space.is_air:
        return np.asarray((SOFT - LUNG) * length, dtype=np.float32)
    # The visceral pleura is the shell between the collapsed lung and a slightly smaller one.
    shell = np.zeros_like(length)
    for index, sign in ((space.inner, 1), (space.inner + 1, -1)):
        part = meet(crossings[index], region)
        if part is not None:
            shell[part.box_within(region)] += sign * part.length
    return np.asarray(_PLEURA * np.maximum(shell, 0) * (length > 0.3) - LUNG * length, dtype=np.float32)


def _spine(spine: Crossing, camera: Camera, rays: Rays) -> Image:
    """Vertebrae and discs: a column whose density alternates along its height."""
    height = rays.y[spine.box[0], None] * np.float32(camera.source) - np.float32(camera.shift[1])
    pattern = 0.78 + 0.22 * np.tanh(3 * np.cos(2 * np.pi * height / _VERTEBRA) + 1.5)
    return np.asarray(1.4 * BONE * spine.length * pattern, dtype=np.float32)


def _add_ribs(total: Image, thorax: Thorax, crossings: Sequence[Crossing], camera: Camera, rays: Rays) -> None:
    """Ribs: a thin shell round the lungs whose density is periodic in the height of the rib's plane."""
    outer, inner = crossings[INDEX["cage_outer"]], crossings[INDEX["cage_inner"]]
    middle = 0.5 * (outer.enter + outer.leave)
    inner_enter, inner_leave = middle.copy(), middle.copy()
    inner_enter[inner.box_within(outer)], inner_leave[inner.box_within(outer)] = inner.enter, inner.leave
    x, y = rays.x[None, outer.box[1]], rays.y[outer.box[0], None]
    # Point of the shell = axes^T (source + t d - shift), linear in x, y and t; in units of a body of size 1.
    turn = (camera.axes.T / thorax.scale[:, None]).astype(np.float32)
    origin = (camera.axes.T @ (np.array([0.0, 0.0, -camera.source]) - camera.shift) / thorax.scale).astype(np.float32)
    direction = [turn[axis, 0] * x + (turn[axis, 1] * y + turn[axis, 2]) for axis in range(3)]
    for first, last in ((outer.enter, inner_enter), (inner_leave, outer.leave)):
        at = 0.5 * (first + last)
        across, back, up = (origin[axis] + at * direction[axis] for axis in range(3))
        plane = up - np.float32(_RIB_SLOPE) * back + np.float32(thorax.rib_phase)
        density = np.clip(1.6 * np.cos(np.float32(2 * np.pi / _RIB_SPACING) * plane) + 0.1, 0, 1)
        # Twelve ribs, and cartilage instead of bone beside the sternum.
        density *= np.clip(plane + 17.5, 0, 1) * np.clip(15.5 - plane, 0, 1)
        density *= np.where(back < -2, np.clip(0.5 * (np.abs(across) - 5.0), 0.1, 1), 1)
        total[outer.box] += np.float32(RIB) * density * np.maximum(last - first, 0)


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


def _transfer(shape: tuple[int, ...], sigma: float) -> Image:
    """Fourier transform of a Gaussian of `sigma` pixels on an image of `shape`."""
    return np.asarray(np.exp(_frequencies(*shape) * np.float32(sigma**2)), dtype=np.float32)


def flatten(integrals: LineIntegrals) -> Image:
    """The sum of anatomy and layers, each layer with its own blur."""
    if not integrals.layers:
        return integrals.anatomy
    shape = integrals.anatomy.shape
    spectrum = np.zeros((shape[0], shape[1] // 2 + 1), dtype=np.complex128)
    for layer, sigma in integrals.layers:
        spectrum += np.fft.rfft2(layer) * _transfer(shape, sigma)
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
    smear = np.fft.irfft2(np.fft.rfft2(padded) * _transfer(padded.shape, size / 9), s=padded.shape)
    smear = smear[size // 4:size // 4 + shape[0], size // 4:size // 4 + shape[1]]
    signal = primary + np.float32(technique.scatter * 0.35) * smear.astype(np.float32)
    quanta = technique.photons * exposure
    noise = rng.standard_normal(shape, dtype=np.float32)
    signal = signal + np.sqrt(signal / quanta) * noise * np.float32(config.noise_strength)
    return -np.log(np.clip(signal, np.float32(2e-4), np.float32(_SATURATION)))


def to_bytes(image: Image, low: float, high: float) -> NDArray[np.uint8]:
    return (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255 + 0.5).astype(np.uint8)


_BOX_SHARE = 0.3
"""A box holds every pixel in which a finding changes the line integral by this share of its maximum."""
_VISIBLE = 0.045
"""Smallest change of the line integral that can be seen among noise and vessels."""


def find_box(finding: int, lung: int, change: Image, is_hidden: bool = False) -> Box:
    """The box of a finding's change of the line integral (R, C).

    Args:
        is_hidden: what lies behind heart or diaphragm changes the line integral and yet has no rim to see.
    """
    size = np.abs(change)
    side: Literal["left", "right"] = "left" if lung == LEFT else "right"
    largest = float(size.max())
    if is_hidden or largest < _VISIBLE:
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
    boxes = tuple(
        find_box(number, lung, change, is_hidden=study.findings[number].is_lateral_only and view in ("AP", "PA"))
        for number, lung, change in integrals.findings)
    if equalised:
        low, high = np.percentile(image, (0.5, 99.8))
        return Radiograph(equalise(to_bytes(image, float(low), float(high))), boxes)
    middle = float(np.median(image)) + rng.normal(0, 0.12) * config.exposure_strength
    window = 0.85 * float(np.exp(rng.normal(0, 0.1) * config.exposure_strength))
    return Radiograph(to_bytes(1 / (1 + np.exp(-(image - middle) / window)), 0.03, 0.97), boxes)
