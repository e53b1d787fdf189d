"""The chest phantom: rays against analytic chords, physics, truth in pixels, layouts, determinism, dials."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medst.data.images import equalise, equalise_squares
from medst.data.phantom import PRESETS, PhantomConfig, PhantomError, generate, load_preset, read_phantom_config
from medst.data.phantom import write as write_module
from medst.data.phantom.anatomy import INDEX, SOFT, Thorax, build_thorax, draw_body, make_ellipsoids
from medst.data.phantom.contact_sheet import contact_sheet
from medst.data.phantom.course import (
    FINDINGS,
    Device,
    Finding,
    Patient,
    Study,
    Zone,
    draw_patient,
    progression,
    stream,
    study_number,
    subject_number,
)
from medst.data.phantom.imaging import (
    Camera,
    ViewName,
    expose,
    find_box,
    flatten,
    integrate,
    place_camera,
    render,
    splat,
)
from medst.data.phantom.marginals import marginals
from medst.data.phantom.presets import mimic_sequence_lengths
from medst.data.phantom.rays import Crossing, Floats, half_space, intersect, make_rays, remaining

MINI = PhantomConfig(image_size=48, num_train=12, num_validate=2, num_test=6, num_rsna=8, num_covidx_train=6,
                     num_covidx_test=3, num_sentence_pairs=12)
STILL = PhantomConfig(image_size=96, rotation_strength=0.0, pose_strength=0.0, noise_strength=0.0,
                      exposure_strength=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(MINI, tmp_path_factory.mktemp("phantom") / "mini")


def study(findings: tuple[Finding, ...] = (), view: Literal["AP", "PA"] = "PA", heart: float = 0.48,
          is_supine: bool = False, devices: tuple[Device, ...] = ()) -> Study:
    return Study(subject_id=1, study_id=2, time=datetime(2120, 1, 1), frontal_views=(view,), lateral_view="LL",
                 is_portable=view == "AP", is_supine=is_supine, heart_size=heart, findings=findings, devices=devices,
                 inspiration=0.0, rotation=0.0)


def patient(one: Study) -> Patient:
    return Patient(subject_id=1, sex="M", age=60, body_size=1.0, split="train", studies=(one,))


def thorax_of(one: Study, is_lateral: bool = False) -> Thorax:
    return build_thorax(patient(one), one, draw_body(STILL, stream(0, 1, 0)), STILL, has_arms_raised=is_lateral)


def camera_of(one: Study, view: ViewName, config: PhantomConfig = STILL) -> Camera:
    return place_camera(one, view, config, 1.0, stream(0, 3))


def change_of(finding: Finding, view: ViewName, is_supine: bool = False) -> Floats:
    """Summed change of the line integral by one finding."""
    one = study((finding,), "AP" if view == "AP" else "PA", is_supine=is_supine)
    integrals = integrate(thorax_of(one, view in ("LL", "LATERAL")), camera_of(one, view))
    return np.sum([change for _, _, change in integrals.findings], axis=0).astype(np.float64)


# ------------------------------------------------------------------------------------------------ rays


@settings(max_examples=40, deadline=None)
@given(centre=st.tuples(*[st.floats(-12, 12)] * 3), axes=st.tuples(*[st.floats(0.5, 14)] * 3),
       degrees=st.tuples(*[st.floats(-80, 80)] * 3), source=st.floats(80, 170))
def test_chords_equal_a_double_precision_solution_of_the_quadratic(
        centre: tuple[float, ...], axes: tuple[float, ...], degrees: tuple[float, ...], source: float) -> None:
    ellipsoids = make_ellipsoids(np.array([centre]), np.array([axes]), np.array([degrees]))
    rays = make_rays(24, 20, 2.2, source + 15)
    crossing, = intersect(ellipsoids.centre, ellipsoids.shape, source, rays)
    found = np.zeros((24, 20))
    found[crossing.box] = crossing.length * rays.stretch[crossing.box]

    x, y = np.meshgrid(rays.x.astype(np.float64), rays.y.astype(np.float64))
    direction = np.stack([x, y, np.ones_like(x)], axis=-1)
    seen = ellipsoids.centre[0] + (0, 0, source)
    shape = ellipsoids.shape[0]
    a = np.einsum("rci,ij,rcj->rc", direction, shape, direction)
    b = np.einsum("rci,ij,j->rc", direction, shape, seen)
    c = seen @ shape @ seen - 1
    expected = 2 * np.sqrt(np.maximum(b**2 - a * c, 0)) / a * np.sqrt(1 + x**2 + y**2)
    np.testing.assert_allclose(found, expected, atol=0.06)
    np.testing.assert_allclose(found[expected > 1], expected[expected > 1], rtol=0.01, atol=0.01)


def test_central_ray_through_a_sphere_has_its_diameter() -> None:
    sphere = make_ellipsoids(np.zeros((1, 3)), np.full((1, 3), 3.0), np.zeros((1, 3)))
    rays = make_rays(3, 3, 1.0, 180)
    crossing, = intersect(sphere.centre, sphere.shape, 165, rays)
    assert crossing.length[1 - crossing.top, 1 - crossing.left] == pytest.approx(6.0, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 15), st.floats(0, 12)), min_size=0, max_size=6))
def test_what_remains_outside_several_intervals_is_exact(cutters: list[tuple[float, float]]) -> None:
    def crossing(start: float, end: float) -> Crossing:
        return Crossing(0, 0, np.full((1, 1), start, np.float32), np.full((1, 1), end, np.float32))

    found = remaining(crossing(0, 10), [crossing(start, start + length) for start, length in cutters])[0, 0]
    at = (np.arange(20_000) + 0.5) / 2000
    outside = np.ones_like(at, dtype=bool)
    for start, length in cutters:
        outside &= ~((at > start) & (at < start + length))
    assert found == pytest.approx(10 * outside.mean(), abs=0.01)


def test_half_space_keeps_the_far_half_of_a_sphere() -> None:
    sphere = make_ellipsoids(np.zeros((1, 3)), np.full((1, 3), 4.0), np.zeros((1, 3)))
    rays = make_rays(33, 33, 0.5, 180)
    crossing, = intersect(sphere.centre, sphere.shape, 165, rays)
    half = half_space(crossing, np.array([0.0, 0.0, 1.0]), 165.0, rays)
    np.testing.assert_allclose(half.length, crossing.length / 2, atol=0.1)


def test_points_keep_their_weight_times_the_magnification_of_their_depth() -> None:
    one = study()
    camera = camera_of(one, "PA")
    thorax = thorax_of(one)
    for points in thorax.points:
        _, _, magnification = camera.project(points.position)
        expected = (points.weight * magnification**2).sum() / camera.pitch**2
        assert splat(points, camera).sum() == pytest.approx(expected, rel=1e-4)


# --------------------------------------------------------------------------------------------- physics


def test_detector_obeys_beer_lambert_without_scatter_and_noise() -> None:
    one = study()
    camera = camera_of(one, "PA")
    camera = replace(camera, technique=replace(camera.technique, scatter=0.0))
    line_integral = np.linspace(0.7, 8, 96 * 90, dtype=np.float32).reshape(96, 90)
    np.testing.assert_allclose(expose(line_integral, camera, STILL, stream(0)), line_integral, rtol=1e-4)


def test_quantum_noise_has_the_variance_of_counting() -> None:
    one = study()
    camera = camera_of(one, "PA", STILL)
    camera = replace(camera, technique=replace(camera.technique, scatter=0.0, photons=10_000))
    config = PhantomConfig(image_size=96, exposure_strength=0.0)
    image = expose(np.full((96, 90), 2.0, np.float32), camera, config, stream(1))
    assert image.std() == pytest.approx(1 / np.sqrt(10_000 * np.exp(-2.0)), rel=0.05)


def test_heart_is_wider_on_ap_by_the_ratio_of_magnifications() -> None:
    one = study()
    thorax = thorax_of(one)
    widths = {}
    views: tuple[ViewName, ...] = ("AP", "PA")
    for view in views:
        camera = camera_of(one, view, STILL.model_copy(update={"image_size": 512}))
        rays = make_rays(camera.num_rows, camera.num_columns, camera.pitch, camera.technique.source_distance)
        index = INDEX["heart"]
        crossing, = intersect(camera.to_view(thorax.ellipsoids.centre[[index]]),
                              camera.axes @ thorax.ellipsoids.shape[[index]] @ camera.axes.T, camera.source, rays)
        widths[view] = crossing.length.shape[1] * camera.pitch
    # The heart lies 3.2 cm in front of the origin; the detector 15 cm from it, behind (AP) or in front (PA).
    expected = (100 / (100 - 15 - 3.2)) / (180 / (180 - 15 + 3.2))
    assert widths["AP"] / widths["PA"] == pytest.approx(expected, rel=0.02)
    true_width = 0.48 * 26.6
    assert widths["PA"] == pytest.approx(true_width * 180 / (180 - 15 + 3.2), rel=0.03)


def test_lungs_are_dark_and_the_heart_is_on_the_right_of_the_image() -> None:
    one = study()
    integrals = integrate(thorax_of(one), camera_of(one, "PA"))
    image = flatten(integrals)
    row = slice(50, 58)
    middle = image.shape[1] // 2
    left_lung, right_lung = image[row, middle + 18:middle + 26].mean(), image[row, middle - 26:middle - 18].mean()
    spine = image[row, middle - 2:middle + 2].mean()
    assert max(left_lung, right_lung) < spine - 1
    # Beside the spine, the patient's left (image right) holds more heart.
    assert image[56:64, middle + 8:middle + 16].mean() > image[56:64, middle - 16:middle - 8].mean() + 0.5


@pytest.mark.parametrize("zone", ["upper", "middle", "lower"])
def test_frontal_and_lateral_agree_on_the_height_of_a_finding(zone: Zone) -> None:
    finding = Finding("consolidation", 0.6, "right", zone)
    heights = []
    views: tuple[ViewName, ...] = ("PA", "LL")
    for view in views:
        change = change_of(finding, view)
        camera = camera_of(study((finding,)), view)
        row = (change.sum(axis=1) * np.arange(change.shape[0])).sum() / change.sum()
        on_detector = ((change.shape[0] - 1) / 2 - row) * camera.pitch
        heights.append(on_detector * camera.source / camera.technique.source_distance - camera.shift[1])
    assert heights[0] == pytest.approx(heights[1], abs=1.0)
    expected = {"upper": (0, 12), "middle": (-5, 6), "lower": (-12, 0)}[zone]
    assert expected[0] < heights[0] < expected[1]


def test_effusion_brightens_its_side_and_more_so_with_severity() -> None:
    none = flatten(integrate(thorax_of(study()), camera_of(study(), "PA")))
    gains = []
    for severity in (0.2, 0.5, 0.9):
        one = study((Finding("pleural_effusion", severity, "right", "lower"),))
        gain = flatten(integrate(thorax_of(one), camera_of(one, "PA"))) - none
        middle = gain.shape[1] // 2
        assert gain[:, :middle].sum() > 20 * abs(gain[:, middle + 4:].sum())
        gains.append(gain[:, :middle].sum())
    assert gains[0] > 0 and gains[1] > 2 * gains[0] and gains[2] > 1.5 * gains[1]


def test_small_effusion_lies_behind_on_the_lateral() -> None:
    change = change_of(Finding("pleural_effusion", 0.15, "right", "lower", is_lateral_only=True), "LL")
    column = (change.sum(axis=0) * np.arange(change.shape[1])).sum() / change.sum()
    assert column > 0.6 * change.shape[1]  # Posterior is right.


def test_pneumothorax_is_lucent_and_free_of_vessels_at_the_apex() -> None:
    one = study((Finding("pneumothorax", 0.7, "left", "upper"),))
    with_air, without = thorax_of(one), thorax_of(study())
    change = change_of(one.findings[0], "PA")
    assert change.sum() < -50 and change[:, :change.shape[1] // 2 - 4].sum() == pytest.approx(0, abs=1)

    def vessels(thorax: Thorax, is_left_apex: bool) -> float:
        position = np.concatenate([points.position for points in thorax.points])
        weight = np.concatenate([points.weight for points in thorax.points])
        chosen = (position[:, 0] > 0) & (position[:, 2] > 6) if is_left_apex else position[:, 0] < 0
        return float(weight[chosen].sum())

    assert vessels(with_air, True) < 0.3 * vessels(without, True)
    assert vessels(with_air, False) == vessels(without, False)


def test_supine_effusion_layers_over_the_whole_height() -> None:
    upright = change_of(Finding("pleural_effusion", 0.5, "right", "lower"), "AP")
    supine = change_of(Finding("pleural_effusion", 0.5, "right", "lower"), "AP", is_supine=True)

    def height(change: Floats) -> int:
        return int((change.max(axis=1) > 0.2 * change.max()).sum())

    assert height(supine) > 1.5 * height(upright)
    assert supine.max() < 0.6 * upright.max()


def test_edema_blurs_the_vessels() -> None:
    sharp, edematous = thorax_of(study()), thorax_of(study((Finding("edema", 0.8, "bilateral", "middle"),)))
    assert edematous.points[0].blur > 2 * sharp.points[0].blur


@pytest.mark.parametrize("finding", [
    Finding("consolidation", 0.5, "right", "lower"), Finding("pneumonia", 0.6, "left", "upper"),
    Finding("pleural_effusion", 0.5, "left", "lower"), Finding("pneumothorax", 0.6, "right", "upper"),
    Finding("edema", 0.7, "bilateral", "middle")])
@pytest.mark.parametrize("view", ["PA", "LL"])
def test_boxes_hold_the_difference_between_with_and_without(finding: Finding, view: ViewName) -> None:
    one = study((finding,))
    thorax = thorax_of(one, view == "LL")
    bare = replace(thorax, opacities=(), spaces=())
    camera = camera_of(one, view)
    difference = np.abs(flatten(integrate(thorax, camera)) - flatten(integrate(bare, camera)))
    boxes = [find_box(number, lung, change) for number, lung, change in integrate(thorax, camera).findings]
    mask = np.zeros_like(difference, dtype=bool)
    for box in boxes:
        mask[int(box.y):int(box.y + box.height), int(box.x):int(box.x + box.width)] = True
    assert difference[mask].sum() > 0.75 * difference.sum()
    assert (difference[mask].mean() > 4 * difference[~mask].mean()) and mask.mean() < 0.6


def test_lateral_only_opacity_shows_more_on_the_lateral_and_has_no_frontal_box() -> None:
    finding = Finding("consolidation", 0.7, "left", "retrocardiac", is_lateral_only=True)
    assert change_of(finding, "LL").max() > 1.4 * change_of(finding, "PA").max()
    one = study((finding,))
    frontal = render(thorax_of(one), one, "PA", STILL, 1.0, stream(0, 3))
    lateral = render(thorax_of(one, True), one, "LL", STILL, 1.0, stream(0, 3))
    assert np.isnan(frontal.boxes[0].x) and not np.isnan(lateral.boxes[0].x)


def test_devices_are_drawn() -> None:
    bare = flatten(integrate(thorax_of(study()), camera_of(study(), "AP")))
    devices = (Device("endotracheal_tube"), Device("nasogastric_tube"), Device("central_line", "left"),
               Device("pacemaker", "left"), Device("chest_tube", "left"), Device("sternal_wires"))
    for device in devices:
        one = study(devices=(device,))
        assert (flatten(integrate(thorax_of(one), camera_of(one, "AP"))) - bare).max() > 0.08, device.kind


def test_equalisation_flattens_the_histogram_and_keeps_the_order() -> None:
    pixels = np.clip(np.random.default_rng(0).normal(90, 20, (64, 64)), 0, 255).astype(np.uint8)
    flat = equalise(pixels)
    assert abs(flat.mean() - 127.5) < 6 and flat.min() == 0 and flat.max() == 255
    order = np.argsort(pixels, axis=None, kind="stable")
    assert (np.diff(flat.ravel()[order].astype(int)) >= 0).all()


def test_equalisation_of_squares_spares_the_padding() -> None:
    picture = np.random.default_rng(0).integers(60, 120, (64, 40)).astype(np.uint8)
    square = np.zeros((64, 64), dtype=np.uint8)
    square[:, 12:52] = picture
    equalised, empty = equalise_squares(np.stack([square, np.zeros_like(square)]))
    assert (equalised[:, 12:52] == equalise(picture)).all()
    assert equalised[:, :12].max() == 0 and equalised[:, 52:].max() == 0 and empty.max() == 0


def test_soft_tissue_is_not_counted_twice() -> None:
    """No ray gathers more soft tissue than its longest path through the body's outline."""
    one = study()
    bare = replace(thorax_of(one), points=(), solids=())
    image = flatten(integrate(bare, camera_of(one, "LL")))
    assert image.max() < SOFT * 48 + 3


# ---------------------------------------------------------------------------------------------- course


def test_progression_worked_by_hand() -> None:
    def visit(*severities: float) -> Study:
        return study(tuple(Finding("edema", severity, "bilateral", "middle") for severity in severities))

    assert progression(visit(0.5), visit(0.7), "edema", 0.1) == "worsening"
    assert progression(visit(0.5), visit(0.45), "edema", 0.1) == "stable"
    assert progression(visit(0.5), visit(), "edema", 0.1) == "improving"
    assert progression(visit(), visit(0.3), "edema", 0.1) == "worsening"
    assert progression(visit(), visit(), "edema", 0.1) is None


@pytest.fixture(scope="module")
def cohort() -> list[Patient]:
    return [draw_patient(PRESETS["tiny"], "train", index) for index in range(1500)]


def test_ids_are_unique_and_of_eight_digits() -> None:
    subjects = {subject_number(index) for index in range(20_000)}
    studies = {study_number(index, number) for index in range(2000) for number in range(12)}
    assert len(subjects) == 20_000 and len(studies) == 24_000
    assert all(10_000_000 <= subject < 20_000_000 for subject in subjects)
    assert all(50_000_000 <= one < 60_000_000 for one in studies)


def test_course_of_the_tiny_preset_has_what_the_trials_need(cohort: list[Patient]) -> None:
    lengths = np.array([len(one.studies) for one in cohort])
    assert 4500 < lengths.sum() < 5600
    assert (lengths // 4 * 4).sum() / lengths.sum() > 0.55
    studies = [one for patient in cohort for one in patient.studies]
    rates = PRESETS["tiny"].finding_rates
    for name in FINDINGS:
        rate = np.mean([any(finding.name == name for finding in one.findings) for one in studies])
        assert rate == pytest.approx(getattr(rates, name), abs=0.05), name
        changes = [progression(before, after, name, 0.1) for patient in cohort
                   for before, after in zip(patient.studies, patient.studies[1:], strict=False)]
        shares = [np.mean([change == kind for change in changes if change is not None])
                  for kind in ("improving", "stable", "worsening")]
        assert min(shares) > 0.2, (name, shares)


def test_the_world_of_effusions_has_no_other_finding_and_as_many_with_as_without() -> None:
    studies = [one for index in range(300) for one in draw_patient(PRESETS["effusions"], "train", index).studies]
    names = [{finding.name for finding in one.findings} for one in studies]
    assert set().union(*names) == {"pleural_effusion"}
    assert 0.35 < np.mean([bool(found) for found in names]) < 0.65


def test_times_increase_and_laterals_belong_to_the_ambulant(cohort: list[Patient]) -> None:
    studies = [one for patient in cohort for one in patient.studies]
    assert all(before.time < after.time for patient in cohort
               for before, after in zip(patient.studies, patient.studies[1:], strict=False))

    def lateral_rate(chosen: list[Study]) -> float:
        return float(np.mean([one.lateral_view is not None for one in chosen]))

    assert lateral_rate([one for one in studies if one.frontal_views[0] == "PA"]) > 0.85
    assert lateral_rate([one for one in studies if one.frontal_views[0] == "AP"]) < 0.25
    short = [one for patient in cohort if len(patient.studies) <= 2 for one in patient.studies]
    long = [one for patient in cohort if len(patient.studies) >= 8 for one in patient.studies]
    assert lateral_rate(short) > lateral_rate(long) + 0.1


def test_edema_effusion_and_a_large_heart_go_together(cohort: list[Patient]) -> None:
    studies = [one for patient in cohort for one in patient.studies]
    table = pd.DataFrame([{
        "edema": any(finding.name == "edema" for finding in one.findings),
        "effusion": any(finding.name == "pleural_effusion" for finding in one.findings), "heart": one.heart_size}
        for one in studies]).astype(float)
    correlation = np.corrcoef(table.to_numpy().T)
    assert correlation[0, 1] > 0.1 and correlation[0, 2] > 0.2


def test_device_dial_ties_devices_to_severity_or_not() -> None:
    def correlation(value: float) -> float:
        config = PRESETS["tiny"].model_copy(update={"device_correlation": value})
        # One study a patient: devices stay from study to study.
        studies = [draw_patient(config, "train", index).studies[0] for index in range(1500)]
        ill = [max((finding.severity for finding in one.findings), default=0.0) for one in studies]
        tubes = [sum(device.kind == "central_line" for device in one.devices) for one in studies]
        return float(np.corrcoef(ill, tubes)[0, 1])

    assert abs(correlation(0.0)) < 0.08 and correlation(1.0) > 0.2


def test_lateral_information_removes_or_plants_lateral_only_findings() -> None:
    def count(value: float) -> int:
        config = PRESETS["tiny"].model_copy(update={"lateral_information": value})
        return sum(finding.is_lateral_only for index in range(400)
                   for one in draw_patient(config, "train", index).studies for finding in one.findings)

    assert count(0.0) == 0 < count(0.3) < count(0.8)


def test_lateral_only_findings_exist_only_where_there_is_a_lateral(cohort: list[Patient]) -> None:
    assert all(one.lateral_view is not None for patient in cohort for one in patient.studies
               if any(finding.is_lateral_only for finding in one.findings))


def test_paper_preset_has_the_sequence_lengths_of_mimic() -> None:
    weights = np.array(mimic_sequence_lengths())
    assert (weights * np.arange(1, 41)).sum() / weights.sum() == pytest.approx(227_835 / 65_379, abs=0.01)


# ---------------------------------------------------------------------------------------------- config


def test_a_misspelt_dial_names_the_nearest() -> None:
    with pytest.raises(PhantomError, match="lateral_information"):
        load_preset("tiny", {"lateral_infomation": 0.5})
    with pytest.raises(PhantomError, match="tiny"):
        load_preset("tny")
    with pytest.raises(PhantomError, match="hedge"):
        load_preset("tiny", {"hedge": 2.0})
    with pytest.raises(PhantomError, match="no positive weight"):
        load_preset("tiny", {"sequence_lengths": (0.0,)})
    assert load_preset("tiny", {"finding_rates.edema": 0.5}).finding_rates.edema == 0.5


# --------------------------------------------------------------------------------------------- writing


def tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def test_bytes_do_not_depend_on_the_number_of_workers(root: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    again = generate(MINI, tmp_path / "again", num_workers=2, progress=lambda done, total: seen.append((done, total)))
    assert tree_hash(root) == tree_hash(again)
    assert seen[-1] == (37, 37)


def test_another_seed_is_another_phantom_and_words_do_not_change_pixels(tmp_path: Path) -> None:
    def images(config: PhantomConfig) -> bytes:
        rows = write_module.run_job(config, tmp_path / str(hash(config)), write_module.Job("mimic", 0, 3))
        return b"".join(path.read_bytes() for path in sorted((tmp_path / str(hash(config))).rglob("*.jpg"))) \
            if rows else b""

    base = images(MINI)
    assert base != images(MINI.model_copy(update={"seed": 1}))
    assert base == images(MINI.model_copy(update={"hedge": 0.9, "labeller_noise": 0.3, "grammar": "second"}))
    assert base != images(MINI.model_copy(update={"geometry": "second"}))


def test_mimic_layout_is_read_back(root: Path) -> None:
    mimic = root / "mimic-cxr-jpg"
    metadata = pd.read_csv(mimic / "mimic-cxr-2.0.0-metadata.csv.gz")
    split = pd.read_csv(mimic / "mimic-cxr-2.0.0-split.csv.gz")
    labels = pd.read_csv(mimic / "mimic-cxr-2.0.0-chexpert.csv.gz")
    assert tuple(metadata.columns) == write_module.METADATA_COLUMNS
    assert list(split.columns) == ["dicom_id", "study_id", "subject_id", "split"]
    assert list(labels.columns[:3]) == ["subject_id", "study_id", "Atelectasis"] and labels.shape[1] == 16
    assert set(np.unique(labels.iloc[:, 2:].to_numpy(float)[~labels.iloc[:, 2:].isna().to_numpy()])) <= {-1.0, 0.0, 1.0}
    assert metadata["dicom_id"].is_unique and set(metadata["dicom_id"]) == set(split["dicom_id"])
    assert metadata["dicom_id"].str.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}").all()
    assert set(metadata["ViewPosition"]) <= {"AP", "PA", "LL", "LATERAL"}
    assert set(split["split"]) == {"train", "validate", "test"}
    assert split.groupby("subject_id")["split"].nunique().max() == 1
    for row in metadata.to_dict("records"):
        folder = f"p{str(row['subject_id'])[:2]}/p{row['subject_id']}"
        image = Image.open(mimic / "files" / folder / f"s{row['study_id']}" / f"{row['dicom_id']}.jpg")
        assert image.mode == "L" and image.size == (row["Columns"], row["Rows"]) and max(image.size) == 48
        report = (root / "mimic-cxr" / "files" / folder / f"s{row['study_id']}.txt").read_text()
        assert "FINAL REPORT" in report
        datetime.strptime(f"{row['StudyDate']}", "%Y%m%d")
    raw = gzip.decompress((mimic / "mimic-cxr-2.0.0-metadata.csv.gz").read_bytes()).decode()
    times = pd.read_csv(io.StringIO(raw), dtype=str)["StudyTime"]
    assert times.str.fullmatch(r"\d{1,6}\.\d{3}").all()


def test_temporal_pairs_and_phrases_come_from_test_patients(root: Path) -> None:
    split = pd.read_csv(root / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-split.csv.gz")
    test = set(split.loc[split["split"] == "test", "dicom_id"])
    pairs = pd.read_csv(root / "ms-cxr-t" / "MS_CXR_T_temporal_image_classification_v1.0.0.csv")
    assert len(pairs) > 0
    studies = pd.read_parquet(root / "truth" / "studies.parquet").set_index("study_id")
    for row in pairs.to_dict("records"):
        assert (root / "mimic-cxr-jpg" / "files" / f"{row['dicom_id']}.jpg").exists()
        assert row["dicom_id"].split("/")[-1] in test and row["previous_dicom_id"].split("/")[-1] in test
        before, after = (studies.loc[row[key]].to_dict() for key in ("previous_study_id", "study_id"))
        assert before["time"] < after["time"]
        for name in FINDINGS:
            change = row[f"{name}_progression"]
            if isinstance(change, str):
                step = after[f"severity_{name}"] - before[f"severity_{name}"]
                assert change == ("worsening" if step > 0.1 else "improving" if step < -0.1 else "stable")
    sentences = pd.read_csv(root / "ms-cxr-t" / "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv")
    assert len(sentences) == 12 and set(sentences["category"]) <= {"paraphrase", "contradiction"}
    phrases = pd.read_csv(root / "ms-cxr" / "MS_CXR_Local_Alignment_v1.0.0.csv")
    assert tuple(phrases.columns) == write_module.MS_CXR_COLUMNS
    assert set(phrases["dicom_id"]) <= test and (phrases["split"] == "test").all()
    assert ((phrases["x"] + phrases["w"] <= phrases["image_width"]) & (phrases["w"] > 0)).all()


def test_rsna_and_covidx_layouts_are_read_back(root: Path) -> None:
    table = pd.read_csv(root / "rsna" / "stage_2_train_labels.csv")
    assert list(table.columns) == ["patientId", "x", "y", "width", "height", "Target"]
    assert table["patientId"].nunique() == 8
    assert (table["x"].notna() == (table["Target"] == 1)).all()
    files = {path.stem for path in (root / "rsna" / "stage_2_train_images").glob("*.dcm")}
    assert files == set(table["patientId"])
    dataset = pydicom.dcmread(root / "rsna" / "stage_2_train_images" / f"{table['patientId'][0]}.dcm")
    assert dataset.PhotometricInterpretation == "MONOCHROME2" and dataset.BitsStored == 8
    assert dataset.pixel_array.dtype == np.uint8 and max(dataset.pixel_array.shape) == 48
    for part, size in (("train", 6), ("test", 3)):
        rows = [line.split(" ") for line in (root / "covidx" / f"{part}_COVIDx9A.txt").read_text().splitlines()]
        assert len(rows) == size and all(len(row) == 4 for row in rows)
        assert {row[2] for row in rows} == {"normal", "pneumonia", "COVID-19"}
        assert all((root / "covidx" / part / row[1]).exists() for row in rows)


def test_one_percent_of_covidx_is_five_of_every_class() -> None:
    for name in ("tiny", "small", "paper"):
        assert PRESETS[name].num_covidx_train // 3 >= 500


def test_truth_matches_images_and_marker_is_complete(root: Path) -> None:
    marker = json.loads((root / "phantom.json").read_text())
    assert marker["complete"] is True and read_phantom_config(root) == MINI
    assert json.loads((root / "dataset.json").read_text())["credentialed"] is False
    findings = pd.read_parquet(root / "truth" / "findings.parquet")
    split = pd.read_csv(root / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-split.csv.gz")
    assert set(findings["dicom_id"]) <= set(split["dicom_id"])
    shown = findings.dropna(subset="x")
    assert len(shown) > 0.5 * len(findings)
    assert ((shown["x"] >= 0) & (shown["y"] >= 0) & (shown["x"] + shown["w"] <= 48)).all()
    assert findings["severity"].between(0, 1, inclusive="right").all()


def test_generating_again_changes_nothing_and_another_config_is_refused(root: Path) -> None:
    before = (root / "phantom.json").stat().st_mtime_ns
    assert generate(MINI, root) == root
    assert (root / "phantom.json").stat().st_mtime_ns == before
    with pytest.raises(PhantomError, match="seed=0 instead of 5"):
        generate(MINI.model_copy(update={"seed": 5}), root)


def test_half_written_folder_is_detected(tmp_path: Path) -> None:
    (tmp_path / "half" / "mimic-cxr-jpg").mkdir(parents=True)
    with pytest.raises(PhantomError, match="not a complete phantom"):
        generate(MINI, tmp_path / "half")
    (tmp_path / "half" / "phantom.json").write_text('{"complete": fal')
    with pytest.raises(PhantomError, match="not a complete phantom"):
        generate(MINI, tmp_path / "half")


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(write_module, "_write_rsna", fail)
    stale = tmp_path / ".out.writing-999999999"
    (stale / "truth").mkdir(parents=True)
    config = MINI.model_copy(update={"num_train": 1, "num_validate": 1, "num_test": 1})
    with pytest.raises(OSError, match="disk on fire"):
        generate(config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_before_anything_is_written(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(write_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PhantomError, match="GB are free"):
        generate(MINI, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_estimate_covers_what_is_written(root: Path) -> None:
    written = sum(-(-path.stat().st_size // 4096) * 4096 if path.is_file() else 4096 for path in root.rglob("*"))
    assert written < write_module.estimate_bytes(MINI) < written + 60e6


def test_marginals_stand_beside_the_published_ones(root: Path) -> None:
    table = marginals(root).set_index("quantity")
    assert table.loc["share of frontals AP", "published"] == pytest.approx(0.605, abs=0.001)
    assert float(table["phantom"]["studies per patient"]) > 1
    assert table["phantom"].notna().all()


def test_contact_sheet_is_drawn(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = contact_sheet(root, tmp_path / "sheet.png", num_patients=3)
    assert np.asarray(Image.open(path).convert("L")).std() > 10
