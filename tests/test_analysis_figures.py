"""Figures: what is drawn equals the statistics; each says its study and n; each appears only where it applies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from analysis_samples import (
    PRIMARY,
    make_curves,
    make_frames,
    make_grounding_arrays,
    make_plan,
    make_sequences,
    make_study,
)
from matplotlib.image import imread
from PIL import Image
from scipy import stats

from analysis import architecture, drawing, figures, pictures, registry, statistics, style, trajectories
from analysis.tidy import Study, assemble
from medst.config import Config, flatten, override

EXPERTS = {"2 experts": {}, "1 expert": {"model.experts.num_experts": 1}, "4 experts": {"model.experts.num_experts": 4}}
LEVELS = (0.0, 0.3, 1.0)
LAMBDAS = {f"λ1 = {local:g}, λ2 = {temporal:g}": dict(zip(figures.LAMBDA_KEYS, (local, temporal), strict=True))
           for local in LEVELS for temporal in LEVELS}


@pytest.fixture(autouse=True)
def _close_all() -> object:
    yield
    plt.close("all")


def _with(assignments: dict[str, dict[str, object]], num_seeds: int = 6) -> Study:
    return make_study(make_plan(tuple(assignments), num_seeds, "sample", assignments), noise=0.01)


def test_palette_is_told_apart_by_all() -> None:
    """Every two colours differ for normal and for dichromatic sight (Viénot, Brettel and Mollon, 1999)."""
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    rgb = np.array([[int(colour[start:start + 2], 16) / 255 for start in (1, 3, 5)] for colour in style.COLOURS]) ** 2.2
    for sight in (np.eye(3), protan, deutan):
        seen = np.clip(rgb @ sight.T, 0, 1) ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(len(seen), dtype=bool)]
        assert distance.min() > 0.1


def test_forest_draws_the_paired_differences() -> None:
    study = _with({"full": {}, "a": {}, "b": {}})
    picture = figures.forest(study)
    axes = picture.figure.axes[0]
    scores = study.scores(PRIMARY)
    paired = statistics.paired_difference(scores["a"].to_numpy(), scores["full"].to_numpy())
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    bars = [line for line in axes.lines if line.get_marker() == "None" and len(line.get_xdata()) == 2][1:]
    assert dots[0].get_xdata()[0] == pytest.approx(100 * paired.mean)
    assert list(bars[0].get_xdata()) == pytest.approx([100 * paired.low, 100 * paired.high])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert "Study sample" in picture.caption and "n = 6 seeds" in picture.caption


def test_forest_of_an_arm_without_trials_says_so() -> None:
    plan = make_plan(("full", "a"), 3)
    runs, numbers = make_frames(plan)
    study = assemble(plan, runs[runs["arm"] == "full"], numbers, "source")
    picture = figures.forest(study)
    assert "no finished pair" in [text.get_text() for text in picture.figure.axes[0].texts]
    assert "n = 0 to 3 seeds" in picture.caption


def test_lambda_surface_places_every_arm() -> None:
    study = _with(LAMBDAS)
    picture = figures.lambda_surface(study)
    assert picture is not None
    shown = picture.figure.axes[0].images[0].get_array()
    means = study.scores(PRIMARY).mean() * 100
    for row, temporal in enumerate(LEVELS):
        for column, local in enumerate(LEVELS):
            assert shown[row, column] == pytest.approx(means[f"λ1 = {local:g}, λ2 = {temporal:g}"])
    assert figures.lambda_surface(_with(EXPERTS)) is None


def test_lambda_surface_tells_what_each_weight_does_over_the_other() -> None:
    study = _with(LAMBDAS)
    picture = figures.lambda_surface(study)
    assert picture is not None
    scores = 100 * study.scores(PRIMARY)

    def average(key: str, level: float) -> np.ndarray:
        return np.mean([scores[arm] for arm, values in LAMBDAS.items() if values[key] == level], axis=0)

    texts = [text.get_text() for text in picture.figure.axes[0].texts]
    base = LAMBDAS[study.plan.reference]
    assert texts.count("reference") == 2
    for key in figures.LAMBDA_KEYS:
        for level in LEVELS:
            if level != base[key]:
                tested = stats.ttest_rel(average(key, level), average(key, base[key]))
                interval = tested.confidence_interval(0.95)
                mean, half = (interval.low + interval.high) / 2, (interval.high - interval.low) / 2
                assert f"{mean:+.1f}\n±{half:.1f}".replace("-", "−") in texts
    # Without one cell nothing can be averaged.
    fewer = {arm: values for arm, values in LAMBDAS.items() if arm != list(LAMBDAS)[-1]}
    partial = figures.lambda_surface(_with(fewer))
    assert partial is not None and "averaged" in picture.caption and "averaged" not in partial.caption


def test_figures_of_two_studies_have_two_names_and_the_exhibit_has_its_own() -> None:
    studies = [_with(LAMBDAS), _with(EXPERTS)]
    others = [replace(study, plan=replace(study.plan, name="other")) for study in studies]
    names = [picture.name for make, study, other in zip((figures.lambda_surface, figures.experts), studies, others,
                                                        strict=True)
             for picture in (make(study), make(other)) if picture is not None]
    assert names == ["lambda_surface_sample", "lambda_surface_other", "experts_sample", "experts_other"]
    [exhibit] = drawing.draw(studies[0], ["lambda_surface"], "", only="lambda_surface")
    assert exhibit.name == "lambda_surface"


def test_captions_count_finished_trials() -> None:
    plan = make_plan(("full", "staged curriculum"), 3, "sample",
                     {"full": {}, "staged curriculum": {"objective.curriculum.kind": "staged"}})
    runs, numbers = make_frames(plan)
    study = assemble(plan, runs[runs["seed"] == 0], numbers, "source")
    params = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(Config()).items()}
    drawn = architecture.architecture(replace(study, params={"full": params}))
    assert drawn is not None and "n = 1 of 3 planned seeds" in drawn.caption
    curriculum = figures.curriculum_weights(study, make_curves(study).dropna(subset=["run_id"]))
    assert curriculum is not None and "n = 1 seeds an arm (0–2 planned)" in curriculum.caption


def test_lambda_surface_takes_levels_that_the_base_holds_from_the_trials() -> None:
    assignments = {**LAMBDAS, "λ1 = 1, λ2 = 1": {}}
    study = _with(assignments)
    assert figures.lambda_surface(study) is not None
    resolved = {"objective.lambda_local": "1.0", "objective.lambda_temporal": "1.0"}
    study = Study(study.plan, study.trials, study.values, params={"λ1 = 1, λ2 = 1": resolved})
    picture = figures.lambda_surface(study)
    assert picture is not None
    assert picture.figure.axes[0].images[0].get_array()[2, 2] == pytest.approx(
        100 * study.scores(PRIMARY)["λ1 = 1, λ2 = 1"].mean())


def test_experts_only_where_nothing_else_varies() -> None:
    picture = figures.experts(_with(EXPERTS))
    assert picture is not None and "parameters" in picture.caption
    assert figures.experts(_with({"full": {}, "a": {"data.views": "frontal"}})) is None
    assert figures.experts(_with({"full": {}, "a": {}})) is None


def test_learning_curves_show_every_tracked_term() -> None:
    study = _with({"full": {}, "no local alignment": {}}, 3)
    curves = make_curves(study)
    picture = figures.learning_curves(study, curves)
    assert picture is not None
    visible = [axes for axes in picture.figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in visible] == [
        name for term, name in registry.LOSS_TERMS.items() if term != "balance"]
    by_title = {axes.get_title(loc="left"): axes for axes in visible}
    assert len(by_title["Total"].lines) == 2 and len(by_title["Local alignment"].lines) == 1
    of_loss = curves[(curves["name"] == "train/loss") & curves["run_id"].isin(study.run_ids(PRIMARY)["full"].values())]
    assert by_title["Total"].lines[0].get_ydata() == pytest.approx(of_loss.groupby("step")["value"].mean().to_numpy())
    assert figures.learning_curves(study, curves[curves["name"] == "train/none"]) is None


def test_curves_show_no_more_arms_than_colours() -> None:
    study = make_study(make_plan(num_seeds=2))
    picture = figures.learning_curves(study, make_curves(study))
    assert picture is not None and f"{len(style.COLOURS)} of 14 arms" in picture.caption


def test_curriculum_only_where_schedules_differ() -> None:
    study = _with({name: {} for name in ("joint", "staged", "ramp", "length")}, 2)
    picture = figures.curriculum_weights(study, make_curves(study))
    assert picture is not None and len(picture.figure.axes) == 12
    same = _with({"joint": {}, "joint too": {}}, 2)
    assert figures.curriculum_weights(same, make_curves(same)) is None


def test_expert_use_of_arms_with_several_experts() -> None:
    study = _with(EXPERTS, 2)
    picture = figures.expert_use(study, make_curves(study))
    assert picture is not None
    visible = [axes for axes in picture.figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in visible] == ["2 experts", "4 experts"]
    legends = [{text.get_text() for text in axes.get_legend().get_texts()} for axes in visible]
    assert legends == [{"frontal", "lateral"}, {"AP", "PA", "LL", "LATERAL"}]


def test_grounding_maps_with_true_boxes_and_withheld() -> None:
    study = _with({"full": {}, "no local alignment": {}}, 2)
    arrays = make_grounding_arrays()
    picture = pictures.grounding_maps(study, {"full": arrays, "no local alignment": arrays})
    assert picture is not None and picture.name == "attention"
    # A row of images, then phrases and patches for each of two arms.
    grid = np.array(picture.figure.axes).reshape(5, pictures.NUM_EXAMPLES)
    box = grid[0, 1].patches[0]
    assert (box.get_x() + 0.5, box.get_y() + 0.5, box.get_width(), box.get_height()) == pytest.approx(
        tuple(arrays["boxes"][1, 0]))
    assert len(grid[0, 1].patches) == 1, "a box of NaN is no box"
    assert [axes.get_ylabel() for axes in grid[:, 0]] == [
        "Image and\ntrue box", "full\n(phrase)", "no local alignment\n(phrase)", "full\n(patch)",
        "no local alignment\n(patch)"]
    peak = np.unravel_index(int(arrays["similarity"][2].argmax()), (64, 64))
    assert grid[1, 2].lines[0].get_xydata().tolist() == [[peak[1], peak[0]]]
    assert grid[3, 2].lines[0].get_xydata()[0] + 0.5 == pytest.approx(arrays["reference"][2])
    nothing = pictures.grounding_maps(study, {}, withheld=["full"])
    assert nothing is not None and "withheld" in nothing.caption
    assert pictures.grounding_maps(study, {}) is None


def test_data_shows_every_study_and_says_where_a_lateral_is_absent() -> None:
    study = _with({"full": {}}, 1)
    samples = make_sequences()[1].arrays
    picture = pictures.patients(study, samples, False)
    assert picture is not None and picture.name == "data"
    texts = [text.get_text() for axes in picture.figure.axes for text in axes.texts]
    assert texts.count("no lateral") == 2 and sum(text.startswith("the heart is large") for text in texts) == 6
    # Two patients of three studies: frontal, lateral, report.
    assert len(picture.figure.axes) == 2 * 3 * 3
    withheld = pictures.patients(study, None, True)
    assert withheld is not None and "withheld" in withheld.caption
    assert pictures.patients(study, None, False) is None


def test_neighbour_share_by_hand() -> None:
    # Two patients of two studies on a line: 0, 1 and 10, 11; the nearest other point is the patient's own.
    embeddings = np.array([[[0.0], [1.0]], [[10.0], [11.0]]])
    assert trajectories.neighbour_share(embeddings, 1) == (1.0, pytest.approx(1 / 3))
    # 0, 10 and 1, 11: the nearest is always the other patient's.
    assert trajectories.neighbour_share(np.array([[[0.0], [10.0]], [[1.0], [11.0]]]), 1)[0] == 0.0


def test_tsne_draws_a_panel_an_arm_and_repeats() -> None:
    study = _with({"full": {}, "global only": {}}, 1)
    arrays = make_sequences()[0].arrays
    picture = trajectories.tsne_over_time(study, {"global only": arrays, "full": arrays}, False)
    assert picture is not None
    first, second = picture.figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["global only", "full"]
    points = [axes.collections[1].get_offsets() for axes in (first, second)]
    assert points[0].shape == (36, 2)
    np.testing.assert_array_equal(*points)
    assert trajectories.tsne_over_time(study, {}, False) is None


@pytest.mark.parametrize(("settings", "box", "expected"), [
    ({}, "experts", "2 experts by view"),
    ({"model.experts.num_experts": 1, "model.experts.hidden_scale": 2.0}, "experts",
     "1 expert by view, hidden width × 2"),
    ({"model.experts.routing": "learned", "model.experts.num_experts": 4}, "experts",
     "4 experts, learned top-1 routing"),
    ({"objective.lambda_local": 0.0}, "local", "Local alignment\nnot used (λ1 = 0)"),
    ({"data.views": "frontal"}, "images", "Frontal alone\n64 × 64 pixels"),
    ({"model.image.patch_size": 16}, "patches", "Patch embedding\n16 patches a view\nof 16 pixels"),
])
def test_architecture_follows_the_config(settings: dict[str, object], box: str, expected: str) -> None:
    config = flatten(override(Config(), settings))
    assert architecture.texts_of(config)[box] == expected
    params = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
    study = replace(_with({"full": {}}, 1), params={"full": params})
    picture = architecture.architecture(study)
    assert picture is not None
    assert expected in [text.get_text() for text in picture.figure.axes[0].texts]
    assert architecture.architecture(replace(study, params={})) is None


def test_files_are_vector_raster_and_caption_and_repeat(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        paths = style.save(figures.forest(_with({"full": {}, "a": {}})), folder, "f1f2f3f4")
        assert [path.name for path in paths] == ["forest_sample.pdf", "forest_sample.png", "forest_sample.md"]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert b"fingerprint f1f2f3f4" in contents[0][0] and b"<!-- fingerprint f1f2f3f4 -->" in contents[0][2]
    with Image.open(tmp_path / "first" / "forest_sample.png") as image:
        assert image.info["Fingerprint"] == "f1f2f3f4"
    assert contents[0][0].startswith(b"%PDF") and b"/Subtype /Image" not in contents[0][0]
    pixels = imread(tmp_path / "first" / "forest_sample.png")
    assert pixels.shape[1] == pytest.approx(style.COLUMN_WIDTH * 220, abs=2)
    assert plt.get_fignums() == []
