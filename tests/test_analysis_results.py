"""`make results` end to end, from a real MLflow store written the way a sweep writes it."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from analysis_samples import PRIMARY, fill_store, make_frames, make_plan
from rich.console import Console

from analysis import results
from analysis.tidy import load_study
from medst import tracking
from medst.tracking.studies import study_run_id

ARMS = ("full", "no local alignment")
PLAN = make_plan(ARMS, 2, "overview", {"full": {}, "no local alignment": {"objective.lambda_local": 0.0}})
CREDENTIALED = make_plan(("full", "global only"), 1, "private")
EXPERIMENT = tracking.TrackingPlace.of_project().experiment


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    fill_store(uri, folder / "runs", PLAN, track_attention=True)
    fill_store(uri, folder / "runs", CREDENTIALED, is_credentialed=True, track_attention=True)
    return uri


@pytest.fixture(scope="module")
def made(uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], str]:
    out = tmp_path_factory.mktemp("made") / "results"
    stream = io.StringIO()
    paths = results.make_results(uri, EXPERIMENT, out, console=Console(file=stream, width=200))
    return out, paths, stream.getvalue()


def test_a_study_comes_back_as_it_was_tracked(uri: str) -> None:
    study = load_study(uri, EXPERIMENT, "overview")
    assert study.plan.arms == ARMS and study.plan.seeds == (0, 1) and study.plan.primary == PRIMARY
    assert study.trials["state"].tolist() == ["finished"] * 4
    runs, numbers = make_frames(PLAN)
    key = runs.set_index("run_id")["key"]
    told = numbers[numbers["metric"] == PRIMARY].assign(key=numbers["run_id"].map(key)).set_index("key")["value"]
    found = study.values[study.values["metric"] == PRIMARY].set_index("key")["value"]
    pd.testing.assert_series_equal(found.sort_index(), told.sort_index(), check_names=False)
    assert study.scores("facts/parameters").notna().all(axis=None)
    assert study.level("no local alignment", "objective.lambda_local") == 0.0
    assert study.level("full", "objective.lambda_local") == 1.0


def test_all_files_are_there_and_nothing_else(made: tuple[Path, list[Path], str]) -> None:
    out, paths, told = made
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(paths)
    names = {path.relative_to(out).as_posix() for path in paths}
    for name in ("tables/overview.md", "tables/overview.tex", "tables/overview.csv", "tables/private.csv",
                 "tables/task_temporal_image.tex", "figures/forest_overview.pdf", "figures/forest_overview.png",
                 "figures/curves_overview.pdf", "figures/grounding_overview.png", "README.md"):
        assert name in names
    assert all(path.stat().st_size > 0 for path in paths)
    assert f"tables in {out / 'tables'}" in told and f"figures in {out / 'figures'}" in told


def test_figures_of_credentialed_data_say_withheld(made: tuple[Path, list[Path], str]) -> None:
    out, _, _ = made
    assert "withheld" in (out / "figures" / "grounding_private.md").read_text(encoding="utf-8")
    assert "withheld" not in (out / "figures" / "grounding_overview.md").read_text(encoding="utf-8")


def test_the_index_names_every_table_and_figure(made: tuple[Path, list[Path], str]) -> None:
    out, paths, _ = made
    index = (out / "README.md").read_text(encoding="utf-8")
    for path in paths:
        if path.parent != out and not (path.parent.name == "figures" and path.suffix == ".md"):
            assert path.relative_to(out).as_posix() in index


def test_the_csv_leads_to_runs_of_the_store(made: tuple[Path, list[Path], str], uri: str) -> None:
    out, _, _ = made
    frame = pd.read_csv(out / "tables" / "overview.csv").dropna(subset=["run_ids"])
    runs = tracking.load_runs(uri, EXPERIMENT).set_index("run_id")
    row = frame[(frame["metric"] == PRIMARY) & (frame["arm"] == "full")].iloc[0]
    values = [runs.loc[run_id, f"metrics.{PRIMARY}"] for run_id in row["run_ids"].split()]
    assert sum(values) / len(values) == pytest.approx(row["mean"])


def test_tables_and_figures_are_artifacts_of_the_study(made: tuple[Path, list[Path], str], uri: str) -> None:
    artifacts = tracking.list_artifacts(study_run_id("overview", uri, EXPERIMENT), uri)
    assert {"results/tables/overview.md", "results/tables/task_retrieval.csv",
            "results/figures/forest_overview.png"} <= set(artifacts)
    assert not any("private" in artifact for artifact in artifacts)


def test_only_tables_leaves_the_figures_alone(made: tuple[Path, list[Path], str], uri: str) -> None:
    out, _, _ = made
    before = (out / "figures" / "forest_overview.png").stat().st_mtime_ns
    paths = results.make_results(uri, EXPERIMENT, out, only="tables", studies=["overview"],
                                 console=Console(file=io.StringIO()))
    assert {path.parent.name for path in paths} == {"tables", "results"}
    assert (out / "figures" / "forest_overview.png").stat().st_mtime_ns == before
    assert "figures/forest_overview.png" in (out / "README.md").read_text(encoding="utf-8")


def test_the_terminal_shows_the_study(uri: str) -> None:
    stream = io.StringIO()
    results.print_tables(uri, EXPERIMENT, "overview", Console(file=stream, width=110))
    shown = stream.getvalue()
    assert "no local alignment" in shown and "4 of 4 planned trials finished" in shown and "STALE" not in shown


def test_an_unknown_study_names_the_nearest(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'overview'"):
        results.make_results(uri, EXPERIMENT, tmp_path, studies=["overveiw"])


def test_an_empty_store_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(ValueError, match="no finished trial"):
        results.make_results(uri, EXPERIMENT, tmp_path / "results", console=Console(file=io.StringIO()))
    assert not (tmp_path / "results").exists()


def test_a_failure_in_between_leaves_no_half_written_file(
        uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(results.tracking, "log_study_artifacts", fail)
    with pytest.raises(OSError, match="no space"):
        results.make_results(uri, EXPERIMENT, tmp_path / "results", only="tables", console=Console(file=io.StringIO()))
    assert list((tmp_path / "results").iterdir()) == []
