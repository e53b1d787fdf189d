"""Figures: what is drawn equals the statistics; each says its study and n; each appears only where it applies."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from analysis_samples import PRIMARY, make_curves, make_frames, make_grounding_arrays, make_plan, make_study
from matplotlib.image import imread

from analysis import figures, pictures, registry, statistics, style
from analysis.tidy import Study, assemble

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
    assert picture is not None and f"The first {len(style.COLOURS)} of 14 arms" in picture.caption


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
    picture = pictures.grounding_maps(study, {"full": arrays}, withheld=["no local alignment"])
    assert picture is not None
    grid = np.array(picture.figure.axes).reshape(3, pictures.NUM_EXAMPLES)
    box = grid[0, 1].patches[0]
    assert (box.get_x() + 0.5, box.get_y() + 0.5, box.get_width(), box.get_height()) == pytest.approx(
        tuple(arrays["boxes"][1, 0]))
    assert len(grid[0, 1].patches) == 1, "a box of NaN is no box"
    assert [text.get_text() for text in grid[2, 0].texts] == ["withheld"]
    nothing = pictures.grounding_maps(study, {}, withheld=["full"])
    assert nothing is not None and "withheld" in nothing.caption
    assert pictures.grounding_maps(study, {}) is None


def test_files_are_vector_raster_and_caption_and_repeat(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        paths = style.save(figures.forest(_with({"full": {}, "a": {}})), folder)
        assert [path.name for path in paths] == ["forest_sample.pdf", "forest_sample.png", "forest_sample.md"]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"%PDF") and b"/Subtype /Image" not in contents[0][0]
    pixels = imread(tmp_path / "first" / "forest_sample.png")
    assert pixels.shape[1] == pytest.approx(style.COLUMN_WIDTH * 220, abs=2)
    assert plt.get_fignums() == []
