"""The analytic thorax of one study: ellipsoids in centimetres with attenuation coefficients, in the
spirit of the FORBILD thorax phantom, with a vessel tree, findings and devices inside.

What lives here: the shape of things in the patient's frame. What must not: rays, detectors, pixels
(`imaging`), words, files.

Frame: x to the patient's left, y to the back, z to the head; origin in the middle of the chest.
Legend: K ellipsoids, N points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medst.data.phantom.course import Finding, Patient, Study
from medst.data.phantom.presets import PhantomConfig

Floats = NDArray[np.float64]

# Linear attenuation in 1/cm near 70 keV; lung is about a quarter of soft tissue, air nothing.
SOFT = 0.19
LUNG = 0.048
RIB = 0.20
"""Rib over soft tissue, marrow and cortex averaged; likewise BONE for the massive bones."""
BONE = 0.11
METAL = 2.0

RIGHT, LEFT = 0, 1
SIGN = (-1.0, 1.0)
"""Direction of x towards the outside of the right and of the left lung."""

STRUCTURES = (
    "torso", "right_shoulder", "left_shoulder", "neck", "right_breast", "left_breast",
    "right_lung", "left_lung", "right_dome", "left_dome", "heart", "mediastinum", "aortic_knob",
    "descending_aorta", "pulmonary_trunk", "vena_cava", "spine", "trachea", "right_bronchus", "left_bronchus",
    "stomach_bubble", "right_hilum", "left_hilum", "sternum", "right_clavicle", "left_clavicle",
    "right_scapula", "left_scapula", "right_humerus", "left_humerus", "cage_outer", "cage_inner",
)
"""Every thorax has these ellipsoids, in this order; those of findings follow."""
INDEX = {name: number for number, name in enumerate(STRUCTURES)}

_LUNG_AXES = np.array([6.7, 9.0, 17.5])
_LUNG_CENTRE = np.array([7.0, 0.6, -5.0])
_TREE_AXES = np.array([6.3, 8.6, 10.8])
"""Half sides of the aerated lung in which the vessel tree is grown."""
INNER_WIDTH = 26.6
"""Inner width of the thorax: the heart's width is the cardiothoracic ratio times this."""


@dataclass(frozen=True)
class Ellipsoids:
    """The sets (p - centre)^T shape (p - centre) <= 1."""

    centre: Floats
    """(K, 3) in cm."""
    shape: Floats
    """(K, 3, 3) in 1/cm^2, symmetric positive definite."""


@dataclass(frozen=True)
class Opacity:
    """Airspace disease of one lung: blobs that fill part of the air on their way."""

    finding: int
    lung: int
    first: int
    last: int
    """Ellipsoids first..last-1 are its blobs."""
    fill: float
    """Share of the air of a blob that is replaced by fluid, in [0, 1]."""
    thickness: float
    """Length in cm at which overlapping blobs saturate."""
    is_haze: bool
    """Haze has no rim that one could draw."""


@dataclass(frozen=True)
class PleuralSpace:
    """Fluid or air between the chest wall and a lung that gives way."""

    finding: int
    lung: int
    inner: int
    """Ellipsoid of the lung that gives way."""
    plane: tuple[Floats, float] | None
    """Normal (3,) and offset of the level: fluid is where normal . p > offset. Air fills all of the space."""
    is_air: bool


@dataclass(frozen=True)
class Points:
    """Small things, drawn as points: pieces of vessel, of tube, of wire."""

    position: Floats
    """(N, 3) in cm."""
    weight: Floats
    """(N,) attenuation x volume in cm^2."""
    blur: float
    """Standard deviation in cm of a piece's profile."""


@dataclass(frozen=True)
class Thorax:
    """What the rays of every image of one study cross."""

    ellipsoids: Ellipsoids
    scale: Floats
    """(3,) body size times habitus."""
    opacities: tuple[Opacity, ...]
    spaces: tuple[PleuralSpace, ...]
    points: tuple[Points, ...]
    solids: tuple[tuple[int, float], ...]
    """Further ellipsoids (a pacemaker's can) with their attenuation over soft tissue."""
    rib_phase: float
    is_female: bool


@dataclass(frozen=True)
class Tree:
    """The vessels of one lung in units of the aerated lung, hence the same whatever the inspiration."""

    position: Floats
    """(N, 3); x is towards the outside."""
    weight: Floats
    """(N,) cross-section times length, in cm^3."""
    level: NDArray[np.int64]
    """(N,) branching order, 0 at the hilum."""


@dataclass(frozen=True)
class Body:
    """What stays of a patient between studies, apart from age and size."""

    trees: tuple[Tree, Tree]
    blobs: dict[str, Floats]
    """Finding -> (2, 12, 4): per lung, offsets and size factor of its blobs."""
    opacity_place: dict[str, Floats]
    """Finding -> (2, 3): per lung, where in its zone it sits, in [-1, 1]."""
    traits: Floats
    """(12,) standard normal differences between bodies."""


def draw_body(config: PhantomConfig, rng: np.random.Generator) -> Body:
    """Anatomy of one patient: a function of the stream alone, so that all studies share it."""
    samples = int(np.clip(round(config.image_size / 12), 6, 24))
    trees = (_grow_tree(rng, samples), _grow_tree(rng, samples))
    names = ("consolidation", "pneumonia", "covid")
    blobs = {}
    for name in names:
        direction = rng.normal(size=(2, 12, 3))
        direction /= np.linalg.norm(direction, axis=2, keepdims=True)
        radius = rng.random((2, 12, 1)) ** (1 / 3)
        blobs[name] = np.concatenate([direction * radius, rng.uniform(0.7, 1.25, (2, 12, 1))], axis=2)
    place = {name: rng.uniform(-1, 1, (2, 3)) for name in names}
    traits = np.clip(rng.normal(size=12), -2, 2) * config.body_strength
    return Body(trees, blobs, place, traits)


def _grow_tree(rng: np.random.Generator, samples: int) -> Tree:
    """Seven vessels fan out from the hilum and fork four times; all branches of one order at once."""
    hilum = np.array([-3.5, 0.3, -0.6])
    angles = np.radians(np.array([84, 56, 26, -4, -34, -62, -86]) + rng.normal(0, 7, 7))
    depth = rng.normal(0, 0.55, 7) + np.array([-0.2, 0.3, -0.5, 0.5, -0.4, 0.5, 0.2])
    direction = np.stack([np.cos(angles), depth, np.sin(angles)], axis=1)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    start = hilum + 0.6 * direction
    length = rng.uniform(2.6, 3.9, 7)
    radius = rng.uniform(0.30, 0.42, 7)
    positions, weights, levels = [], [], []
    for level in range(5):
        along = (np.arange(samples) + rng.random((len(start), samples))) / samples
        across = rng.normal(0, 0.5, (len(start), samples, 3)) * radius[:, None, None]
        point = start[:, None] + direction[:, None] * (along * length[:, None])[:, :, None] + across
        positions.append(point.reshape(-1, 3))
        weights.append(np.repeat(np.pi * radius**2 * length / samples, samples))
        levels.append(np.full(len(start) * samples, level))
        start = np.repeat(start + direction * length[:, None], 2, axis=0)
        direction = np.repeat(direction, 2, axis=0) + rng.normal(0, 0.42, (len(start), 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = np.repeat(length, 2) * rng.uniform(0.62, 0.9, len(start))
        radius = np.repeat(radius, 2) * rng.uniform(0.66, 0.84, len(start))
    position = np.concatenate(positions) / _TREE_AXES
    inside = (position**2).sum(axis=1) < 0.97
    return Tree(position[inside], np.concatenate(weights)[inside], np.concatenate(levels)[inside])


def _rotations(degrees: Floats) -> Floats:
    """(K, 3) angles about x, y, z -> (K, 3, 3), turning about x first."""
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.zeros((*angle.shape, 3, 3))
    for axis in range(3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[:, axis, axis, axis] = 1
        turn[:, axis, first, first] = turn[:, axis, second, second] = cos[:, axis]
        turn[:, axis, second, first] = sin[:, axis]
        turn[:, axis, first, second] = -sin[:, axis]
    return turn[:, 2] @ turn[:, 1] @ turn[:, 0]


def make_ellipsoids(centre: Floats, axes: Floats, degrees: Floats) -> Ellipsoids:
    """Ellipsoids with half axes `axes` (K, 3), turned by `degrees` (K, 3) about x, y, z."""
    turn = _rotations(degrees)
    return Ellipsoids(centre, np.einsum("kij,kj,klj->kil", turn, axes**-2.0, turn))


class _Builder:
    """Collects ellipsoids of the unscaled body."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []

    def add(self, centre: Sequence[float] | Floats, axes: Sequence[float] | Floats,
            degrees: Sequence[float] = (0.0, 0.0, 0.0)) -> int:
        self.rows.append((*centre, *axes, *degrees))
        return len(self.rows) - 1

    def build(self, scale: Floats) -> Ellipsoids:
        table = np.array(self.rows, dtype=np.float64)
        unscaled = make_ellipsoids(table[:, :3], table[:, 3:6], table[:, 6:])
        return Ellipsoids(unscaled.centre * scale, unscaled.shape / np.multiply.outer(scale, scale))


@dataclass(frozen=True)
class _Lungs:
    """Where the lungs of a study are, in the unscaled frame; index RIGHT, LEFT."""

    centre: Floats
    """(2, 3)."""
    axes: Floats
    """(2, 3)."""
    tilt: Floats
    """(2, 3) degrees."""
    dome_top: Floats
    """(2,) height of the diaphragm."""

    def place(self, lung: int, position: Floats) -> Floats:
        """Aerated coordinates (N, 3) in the unit ball, x outwards -> (N, 3) cm."""
        apex = self.centre[lung, 2] + self.axes[lung, 2]
        middle = (apex + self.dome_top[lung]) / 2
        half = np.array([0.94 * self.axes[lung, 0], 0.94 * self.axes[lung, 1], (apex - self.dome_top[lung]) / 2])
        placed = np.array([0.0, self.centre[lung, 1], middle]) + half * position
        # The apex leans to the middle, as the lung's ellipsoid does.
        lean = np.tan(np.radians(7.0)) * (placed[:, 2] - self.centre[lung, 2])
        placed[:, 0] = SIGN[lung] * (abs(self.centre[lung, 0]) + half[0] * position[:, 0] - lean)
        return placed


HABITUS = {"first": np.array([1.0, 1.0, 1.0]), "second": np.array([1.04, 1.14, 0.95])}


def build_thorax(patient: Patient, study: Study, body: Body, config: PhantomConfig,
                 has_arms_raised: bool = False, is_covid: bool = False) -> Thorax:
    """The thorax of `study`.

    Args:
        has_arms_raised: as on a lateral; nothing inside the chest changes.
        is_covid: pneumonia takes the pattern of COVID-19: bilateral, peripheral, lower patches.
    """
    builder = _Builder()
    traits = body.traits
    has_sulcus = [any(finding.name == "pneumothorax" and study.is_supine and lung in _lungs_of(finding)
                      for finding in study.findings) for lung in (RIGHT, LEFT)]
    lungs = _lungs(study, traits, has_sulcus)
    _add_structures(builder, study, lungs, traits, has_sulcus, patient.sex == "F", has_arms_raised)

    opacities: list[Opacity] = []
    spaces: list[PleuralSpace] = []
    for number, finding in enumerate(study.findings):
        if finding.name == "pleural_effusion":
            spaces += [_fluid(builder, number, finding, lung, lungs, study.is_supine) for lung in _lungs_of(finding)]
        elif finding.name == "pneumothorax":
            spaces += [_free_air(builder, number, finding, lung, lungs, study.is_supine)
                       for lung in _lungs_of(finding)]
        elif finding.name == "edema":
            opacities += [_haze(builder, number, finding, lung, lungs) for lung in (RIGHT, LEFT)]
        else:
            pattern = "covid" if is_covid else finding.name
            opacities += [_airspace(builder, number, finding, lung, lungs, body, pattern)
                          for lung in _lungs_of(finding)]

    scale = patient.body_size * HABITUS[config.geometry]
    points, solids = _devices(builder, study, lungs)
    ellipsoids = builder.build(scale)
    vessels = _vessels(study, body, lungs, ellipsoids, spaces, scale)
    devices = [Points(group.position * scale, group.weight, group.blur) for group in points]
    return Thorax(ellipsoids, scale, tuple(opacities), tuple(spaces), (*vessels, *devices), tuple(solids),
                  rib_phase=float(traits[4]) * 0.6, is_female=patient.sex == "F")


def _lungs_of(finding: Finding) -> tuple[int, ...]:
    return {"right": (RIGHT,), "left": (LEFT,), "bilateral": (RIGHT, LEFT)}[finding.side]


def _lungs(study: Study, traits: Floats, has_sulcus: Sequence[bool]) -> _Lungs:
    depth = study.inspiration
    dome = -8.4 - 2.3 * depth + (1.1 if study.is_supine else 0.0) + 0.5 * traits[0]
    axes = np.stack([_LUNG_AXES * (1 + 0.025 * depth, 1 + 0.03 * depth, 1.0)] * 2)
    centre = np.stack([_LUNG_CENTRE * (SIGN[lung], 1, 1) for lung in (RIGHT, LEFT)])
    for lung in (RIGHT, LEFT):
        if has_sulcus[lung]:
            # Air that rises to the front of a supine chest deepens the sulcus beside the dome.
            axes[lung, 2] += 1.6
            centre[lung, 2] -= 1.4
    tilt = np.array([[8.0, 7.0, 0.0], [8.0, -7.0, 0.0]])
    return _Lungs(centre, axes, tilt, np.array([dome, dome - 1.3 + 0.4 * traits[1]]))


def _add_structures(builder: _Builder, study: Study, lungs: _Lungs, traits: Floats, has_sulcus: Sequence[bool],
                    is_female: bool, has_arms_raised: bool) -> None:
    depth, dome = study.inspiration, lungs.dome_top
    wall = 1 + 0.035 * traits[2]
    builder.add((0, 0.6, -14), (17.2 * wall, 11.6 * wall, 41))
    for sign in SIGN:
        if has_arms_raised:
            builder.add((11.5 * sign, -1.0, 17.5), (4.6, 4.6, 6.5), (-28, 0, 0))
        else:
            builder.add((13.0 * sign, 1.5, 13.2), (8.2, 6.2, 5.6 + 0.4 * traits[3]), (0, 14 * sign, 0))
    builder.add((0, 1.5, 20), (6.2, 6.6, 11))
    bust = 1.0 + 0.18 * traits[3]
    for sign in SIGN:
        size = (6.4 * bust, 2.7 * bust, 6.0 * bust) if is_female else (5.5, 0.9, 4.5)
        builder.add((8.4 * sign, -9.9, -6.5), size, (0, 0, 18 * sign))
    for lung in (RIGHT, LEFT):
        builder.add(lungs.centre[lung], lungs.axes[lung], tuple(lungs.tilt[lung]))
    for lung in (RIGHT, LEFT):
        shift = 0.7 if has_sulcus[lung] else 0.0
        builder.add((SIGN[lung] * (6.5 - shift), -1.4, dome[lung] - 7.8 - 0.8 * shift), (7.8, 11.0, 7.8), (-14, 0, 0))

    width = study.heart_size * INNER_WIDTH * (1 - 0.045 * depth) * (1.03 if study.is_supine else 1.0)
    angle = 36 - 5 * depth + 3 * traits[5]
    ratio = 0.78
    long_axis = 0.5 * width / np.hypot(np.cos(np.radians(angle)), ratio * np.sin(np.radians(angle)))
    heart_height = dome.mean() + 0.60 * long_axis
    builder.add((0.135 * width, -3.2, heart_height), (long_axis, 0.72 * long_axis, ratio * long_axis), (0, angle, -12))
    builder.add((0, 0.2, 5), (2.5 + 0.15 * traits[6], 5.2, 15))
    builder.add((2.3, 1.6, 5.6 + 0.4 * traits[7]), (1.75 + 0.2 * traits[6], 2.9, 2.0))
    builder.add((1.9, 5.4, -5), (1.35, 1.4, 13))
    builder.add((2.9, -1.2, 1.9), (1.7, 2.2, 2.4))
    builder.add((-2.3, -0.8, 4.5), (1.25, 1.6, 7.5))
    builder.add((0, 7.4, -2), (1.85, 1.9, 42), (-3, 0, 0))
    builder.add((0.1, 2.2, 11.6), (0.95, 0.95, 8.2), (6, 0, 0))
    builder.add((-2.6, 2.6, 2.6), (2.7, 0.65, 0.65), (0, -38, 0))
    builder.add((2.9, 2.6, 2.3), (3.0, 0.6, 0.6), (0, 34, 0))
    builder.add((5.2 + 0.8 * traits[8], -2.0, dome[LEFT] - 2.6), (2.4, 2.2, 1.1 + 0.25 * abs(traits[8])))
    builder.add((-4.2, 1.2, 0.4), (1.5, 1.9, 2.4), (0, 20, 0))
    builder.add((4.4, 1.5, 1.3), (1.4, 1.8, 2.1), (0, -20, 0))
    builder.add((0, -9.0, 0), (1.9, 0.6, 9), (-9, 0, 0))
    for sign in SIGN:
        builder.add((8.6 * sign, -5.0, 11.7 + 0.4 * traits[9]), (7.2, 0.85, 0.8), (0, -8 * sign, 18 * sign))
    # Arms that hug the cassette turn the blades out of the lungs; at the bedside they stay in.
    blade = 12.6 if study.frontal_views[0] == "AP" else 14.8
    for sign in SIGN:
        builder.add((blade * sign, 7.6, 4.0), (3.6, 0.55, 7.5), (8, -12 * sign, 32 * sign))
    for sign in SIGN:
        builder.add((12.0 * sign, -5.0, 24.0) if has_arms_raised else (18.6 * sign, 1.0, 12.4), (2.5, 2.5, 2.7))
    cage = (15.0 * (1 + 0.025 * depth), 10.4, 24.0)
    builder.add((0, 0.6, -9), cage, (4, 0, 0))
    builder.add((0, 0.6, -9), (cage[0] - 0.62, cage[1] - 0.62, cage[2] - 0.62), (4, 0, 0))
    assert len(builder.rows) == len(STRUCTURES)


def _airspace(builder: _Builder, number: int, finding: Finding, lung: int, lungs: _Lungs, body: Body,
              pattern: str) -> Opacity:
    """Consolidation: one dense region. Pneumonia: patchier and fainter. COVID-19: patches along the wall."""
    severity = finding.severity
    blobs, place = body.blobs[pattern][lung], body.opacity_place[pattern][lung]
    if pattern == "covid":
        angle = np.radians(-115 + 55 * np.arange(6) + 22 * place[0])
        centre = np.stack([0.55 + 0.2 * np.cos(angle), 0.72 * np.sin(angle), -0.52 + 0.24 * np.cos(2.2 * angle)], 1)
        anchors = np.repeat(lungs.place(lung, centre), 2, axis=0)
        spread, size, fill, thickness = 1.2 + 0.7 * severity, 1.5 + 0.9 * severity, 0.14 + 0.55 * severity, 4.0
        flatten = np.ones(3)
    elif finding.zone == "retrocardiac":
        # Flat from front to back: 3 cm of heartbeat-wide haze on the frontal, 8 cm on the lateral.
        top = lungs.dome_top[LEFT]
        anchors = np.array([[4.3, 5.8, top + 0.6 + 1.2 * place[2]]])
        spread, size, fill, thickness = 2.2 + 0.9 * severity, 1.5 + 0.5 * severity, 0.25 + 0.7 * severity, 8.0
        flatten = np.array([1.5, 0.36, 0.95])
    else:
        height = {"upper": 0.46, "middle": 0.0, "lower": -0.46}[finding.zone] + 0.10 * place[2]
        back = {"upper": 0.0, "middle": -0.45, "lower": 0.35}[finding.zone] + 0.15 * place[1]
        anchors = lungs.place(lung, np.array([[0.08 + 0.22 * place[0], back, height]]))
        if pattern == "consolidation":
            spread, size, fill, thickness = 1.6 + 1.9 * severity, 1.6 + 1.2 * severity, 0.22 + 0.75 * severity, 9.0
        else:
            spread, size, fill, thickness = 2.5 + 1.9 * severity, 1.5 + 1.0 * severity, 0.42 + 0.58 * severity, 9.0
        flatten = np.ones(3)
    first = len(builder.rows)
    for offset, anchor in zip(blobs, np.resize(anchors, (len(blobs), 3)), strict=True):
        radius = size * offset[3]
        builder.add(anchor + spread * flatten * offset[:3], np.maximum(radius * flatten, 0.6))
    return Opacity(number, lung, first, len(builder.rows), fill, thickness, is_haze=False)


def _haze(builder: _Builder, number: int, finding: Finding, lung: int, lungs: _Lungs) -> Opacity:
    """Perihilar haze of edema, denser below."""
    first = len(builder.rows)
    centre = lungs.place(lung, np.array([[-0.45, 0.1, -0.12], [-0.15, 0.15, -0.3]]))
    builder.add(centre[0], (4.4, 5.5, 5.4))
    builder.add(centre[1], (6.4, 7.6, 8.2))
    return Opacity(number, lung, first, len(builder.rows), 0.02 + 0.26 * finding.severity, 30.0, is_haze=True)


def _fluid(builder: _Builder, number: int, finding: Finding, lung: int, lungs: _Lungs, is_supine: bool) -> PleuralSpace:
    """Free fluid. Upright it lies under a meniscus and fills the posterior sulcus first; supine it layers."""
    centre, axes = lungs.centre[lung].copy(), lungs.axes[lung].copy()
    if is_supine:
        depth = 0.7 + 4.2 * finding.severity
        inner = builder.add(centre + (0, -depth, 0), axes * (1.0, 1.0, 1.0), tuple(lungs.tilt[lung]))
        return PleuralSpace(number, lung, inner, (np.array([0.0, 1.0, 0.0]), 1.0), is_air=False)
    # Level of the meniscus at the wall, from the bottom of the posterior sulcus to the upper chest.
    sulcus = lungs.dome_top[lung] - 6.6
    level = sulcus + 23.0 * finding.severity ** 0.9
    # The lung floats: its rounded lower end dips a little below the level and leaves a wedge at the wall.
    apex, lower_end = centre[2] + axes[2], level - 2.0 - 2.5 * finding.severity
    shrunken = np.array([0.97 * axes[0], 0.95 * axes[1], (apex - lower_end) / 2])
    inner = builder.add((centre[0] - SIGN[lung] * 0.2, centre[1] - 0.4, (apex + lower_end) / 2), shrunken,
                        tuple(lungs.tilt[lung]))
    return PleuralSpace(number, lung, inner, (np.array([0.0, 0.0, -1.0]), -level), is_air=False)


def _free_air(builder: _Builder, number: int, finding: Finding, lung: int, lungs: _Lungs,
              is_supine: bool) -> PleuralSpace:
    """Pneumothorax: the lung falls towards hilum and base; supine the air lies in front and below."""
    centre, axes = lungs.centre[lung].copy(), lungs.axes[lung].copy()
    if is_supine:
        shrunken = axes * (1 - 0.04 - 0.32 * finding.severity, 1 - 0.04 - 0.34 * finding.severity,
                           1 - 0.02 - 0.22 * finding.severity)
        towards = np.array([-SIGN[lung], 1.0, 1.0])
    else:
        shrunken = axes * (1 - 0.02 - 0.36 * finding.severity, 1 - 0.02 - 0.22 * finding.severity,
                           1 - 0.02 - 0.34 * finding.severity)
        towards = np.array([-SIGN[lung], 0.3, -1.0])
    # Touching the chest wall where it falls to, off it everywhere else.
    collapsed = centre + towards * (axes - shrunken)
    inner = builder.add(collapsed, shrunken, tuple(lungs.tilt[lung]))
    builder.add(collapsed, shrunken - 0.16, tuple(lungs.tilt[lung]))
    return PleuralSpace(number, lung, inner, None, is_air=True)


def _vessels(study: Study, body: Body, lungs: _Lungs, ellipsoids: Ellipsoids, spaces: Sequence[PleuralSpace],
             scale: Floats) -> list[Points]:
    """The vessel trees, in three widths; edema swells and blurs them, cephalisation fills the upper ones."""
    edema = max((finding.severity for finding in study.findings if finding.name == "edema"), default=0.0)
    upper = 0.25 * study.is_supine + 1.3 * edema
    groups: list[tuple[Floats, Floats, NDArray[np.int64]]] = []
    for lung in (RIGHT, LEFT):
        tree = body.trees[lung]
        position = lungs.place(lung, tree.position) * scale
        weight = (SOFT - LUNG) * 2.2 * tree.weight * (1 + 0.35 * edema)
        weight = weight * (1 + upper * np.clip(tree.position[:, 2], 0, 1))
        for space in spaces:
            if space.lung == lung:
                offset = position - ellipsoids.centre[space.inner]
                gone = np.einsum("ni,ij,nj->n", offset, ellipsoids.shape[space.inner], offset) > 1
                if space.plane is not None:
                    gone &= position @ space.plane[0] > space.plane[1] * (np.abs(space.plane[0]) @ scale)
                weight = np.where(gone, 0.0, weight)
        groups.append((position, weight, tree.level))
    position, weight, level = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    blurring = 0.65 * edema
    thick, thin = level <= 1, level >= 2
    points = [Points(position[thick], weight[thick], float(np.hypot(0.16, 0.6 * blurring))),
              Points(position[thin], weight[thin], float(np.hypot(0.06, blurring)))]
    if edema > 0.3:
        points.append(_septal_lines(lungs, edema, scale))
    return points


def _septal_lines(lungs: _Lungs, edema: float, scale: Floats) -> Points:
    """Kerley B lines: short, horizontal, at the lateral bases."""
    lines = []
    for lung in (RIGHT, LEFT):
        for rung in range(7):
            start = np.array([0.62 + 0.02 * (rung % 3), 0.1 - 0.05 * rung, -0.82 + 0.09 * rung])
            along = np.linspace(0, 0.26, 8)[:, None] * np.array([1.0, 0.0, 0.03])
            lines.append(lungs.place(lung, start + along))
    position = np.concatenate(lines) * scale
    return Points(position, np.full(len(position), 0.006 * edema), 0.05)


def _polyline(knots: Sequence[Sequence[float]], strength: float, blur: float) -> Points:
    """A tube through `knots` (cm); `strength` is attenuation times cross-section, in cm."""
    corner = np.array(knots, dtype=np.float64)
    step = np.linalg.norm(np.diff(corner, axis=0), axis=1)
    distance = np.concatenate([[0.0], np.cumsum(step)])
    spacing = 0.12
    at = np.arange(0, distance[-1], spacing)
    position = np.stack([np.interp(at, distance, corner[:, axis]) for axis in range(3)], axis=1)
    return Points(position, np.full(len(at), strength * spacing), blur)


def _curve(knots: Sequence[Sequence[float]], num_points: int = 24) -> Floats:
    """(num_points, 3) points on a Catmull-Rom curve through `knots`."""
    corner = np.array(knots, dtype=np.float64)
    padded = np.concatenate([[2 * corner[0] - corner[1]], corner, [2 * corner[-1] - corner[-2]]])
    at = np.linspace(0, len(corner) - 1 - 1e-9, num_points)
    left = at.astype(np.int64)
    part = (at - left)[:, None]
    before, start, end, after = (padded[left + shift] for shift in range(4))
    return 0.5 * (2 * start + (end - before) * part + (2 * before - 5 * start + 4 * end - after) * part**2
                  + (3 * (start - end) + after - before) * part**3)


def _devices(builder: _Builder, study: Study, lungs: _Lungs) -> tuple[list[Points], list[tuple[int, float]]]:
    points: list[Points] = []
    solids: list[tuple[int, float]] = []
    base = lungs.dome_top[LEFT]
    for device in study.devices:
        sign = SIGN[LEFT] if device.side == "left" else SIGN[RIGHT]
        lung = LEFT if device.side == "left" else RIGHT
        if device.kind == "endotracheal_tube":
            points.append(_polyline(((0.1, 0.8, 21), (0.1, 1.5, 14), (0.1, 2.3, 8.2)), 0.14, 0.12))
        elif device.kind == "nasogastric_tube":
            knots = _curve(((0.3, 1.5, 21), (0.2, 3.2, 8), (0.4, 3.4, -4), (2.0, 1.0, base - 0.5),
                            (4.6, -1.5, base - 4), (6.4, -2.5, base - 6)))
            points.append(_polyline(knots.tolist(), 0.11, 0.10))
        elif device.kind == "central_line":
            knots = _curve(((6.5 * sign, -3, 16), (5.0 * sign, -2.5, 11.5), (2.4 * sign, -2.2, 9.5),
                            (-2.2, -1.2, 7.0), (-2.5, -1.0, 0.5)))
            points.append(_polyline(knots.tolist(), 0.085, 0.08))
        elif device.kind == "chest_tube":
            knots = _curve(((17.5 * sign, -1, -5), (13.2 * sign, 0.5, -3), (11.0 * sign, 2.5, 3),
                            (7.5 * sign, 2.0, 8.5)))
            points.append(_polyline(knots.tolist(), 0.15, 0.14))
        elif device.kind == "sternal_wires":
            for rung in range(5):
                turn = np.linspace(0, 2 * np.pi, 9)
                loop = np.stack([0.9 * np.cos(turn), np.full(9, -9.6 + 0.16 * rung), 7.5 - 2.9 * rung
                                 + 0.55 * np.sin(turn)], axis=1)
                points.append(_polyline(loop.tolist(), 0.10, 0.05))
        else:
            chest = SIGN[RIGHT] if lung == RIGHT else SIGN[LEFT]
            can = builder.add((9.5 * chest, -9.0, 8.6), (2.4, 0.45, 2.1), (0, 0, 22 * chest))
            solids.append((can, METAL))
            for tip in ((3.2, -5.0, base + 2.2), (-1.6, -4.5, base + 6.0)):
                knots = _curve(((9.0 * chest, -8.5, 9.8), (6.0 * chest, -6.0, 11.2), (-1.6, -1.8, 8.0),
                                (-2.4, -2.2, 2.0), tip))
                points.append(_polyline(knots.tolist(), 0.11, 0.06))
    return points, solids
