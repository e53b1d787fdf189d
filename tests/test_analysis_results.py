"""`make results` end to end, from a real MLflow store written the way a sweep writes it."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from analysis_samples import PRIMARY, fill_store, make_frames, make_plan
from nbclient.exceptions import CellExecutionError
from rich.console import Console

from analysis import checking, paper, report, results, trace
from analysis.document import read_document
from analysis.notebooks import FOLDER, run_notebooks
from analysis.provenance import Manifest
from analysis.tidy import load_study
from medst import tracking
from medst.config import hash_file
from medst.tracking.studies import study_run_id

ARMS = ("full", "no local alignment")
PLAN = make_plan(ARMS, 2, "overview", {"full": {}, "no local alignment": {"objective.lambda_local": 0.0}})
CREDENTIALED = make_plan(("full", "global only"), 1, "private")
MADE_FIGURES = ("data", "architecture", "view_expert_use", "attention", "tsne", "learning_curves")
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
    cached = out / results.CACHE
    found = [path for path in out.rglob("*") if path.is_file() and cached not in path.parents]
    assert sorted(found) == sorted(paths)
    names = {path.relative_to(out).as_posix() for path in paths}
    for name in ("tables/overview.md", "tables/overview.tex", "tables/overview.csv", "tables/overview.json",
                 "tables/private.csv", "tables/task_temporal_image.tex", "tables/subgroups.csv",
                 "figures/forest_overview.pdf", "figures/forest_overview.png", "figures/curves_private.pdf",
                 *(f"figures/{name}.pdf" for name in MADE_FIGURES), "README.md", "report.html", "manifest.json"):
        assert name in names
    assert all(path.stat().st_size > 0 for path in paths)
    assert f"tables in {out / 'tables'}" in told and f"figures in {out / 'figures'}" in told


def test_figures_of_credentialed_data_say_withheld(uri: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    private = f"sqlite:///{store / 'mlflow.db'}"
    fill_store(private, store / "runs", CREDENTIALED, is_credentialed=True, track_attention=True)
    results.make_results(private, EXPERIMENT, tmp_path / "out", console=Console(file=io.StringIO()))
    for name in ("data", "attention", "tsne"):
        assert "withheld" in (tmp_path / "out" / "figures" / f"{name}.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "tables" / "subgroups.md").exists()


def test_what_cannot_be_made_says_what_to_run(made: tuple[Path, list[Path], str]) -> None:
    out, _, told = made
    assert "lambda: Not made yet: no trial of lambda is finished. Run: make sweep SWEEP=lambda" in told
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "no trial of lambda is finished" in page and "no trial of lambda is finished" in (
        out / "README.md").read_text(encoding="utf-8")


def test_every_file_carries_the_fingerprint_of_what_it_was_made_from(made: tuple[Path, list[Path], str], uri: str
                                                                     ) -> None:
    out, _, _ = made
    fingerprint = load_study(uri, EXPERIMENT, "overview").fingerprint
    assert len(fingerprint) == 16
    for name in ("tables/overview.md", "tables/overview.tex", "tables/overview.csv", "tables/overview.json",
                 "figures/tsne.pdf", "figures/tsne.png", "figures/tsne.md", "report.html"):
        assert fingerprint.encode() in (out / name).read_bytes(), name


def test_the_json_is_the_table(made: tuple[Path, list[Path], str], uri: str) -> None:
    out, _, _ = made
    document = json.loads((out / "tables" / "overview.json").read_text(encoding="utf-8"))
    assert document["format"] == "medst-table/2" and document["seeds"] == [0, 1] and document["reference"] == "full"
    assert [arm["name"] for arm in document["arms"] if arm["kind"] == "arm"] == list(ARMS)
    runs = tracking.load_runs(uri, EXPERIMENT, "overview").set_index("run_id")
    cell = next(cell for cell in document["cells"] if cell["arm"] == ARMS[1] and cell["metric"] == PRIMARY)
    own = {seed: runs.loc[run, f"metrics.{PRIMARY}"] for seed, run in cell["run_ids"].items()}
    assert cell["values"] == own and cell["mean"] == pytest.approx(sum(own.values()) / 2)
    reference = next(cell for cell in document["cells"] if cell["arm"] == "full" and cell["metric"] == PRIMARY)
    assert reference["difference"] is None
    assert cell["difference"]["mean"] == pytest.approx(cell["mean"] - reference["mean"])


def test_a_second_call_makes_nothing_again_and_an_edit_is_repaired(uri: str, tmp_path: Path) -> None:
    def make() -> dict[str, int]:
        paths = results.make_results(uri, EXPERIMENT, tmp_path, only="tables", console=Console(file=io.StringIO()))
        return {path.name: path.stat().st_mtime_ns for path in paths if path.parent.name == "tables"}

    first = make()
    assert make() == first
    edited = tmp_path / "tables" / "overview.md"
    edited.write_text(edited.read_text(encoding="utf-8").replace("7", "9"), encoding="utf-8")
    repaired = make()
    assert repaired["overview.md"] != first["overview.md"] and repaired["private.md"] == first["private.md"]


def test_the_page_bears_tables_of_another_version(uri: str, tmp_path: Path) -> None:
    results.make_results(uri, EXPERIMENT, tmp_path, only="tables", console=Console(file=io.StringIO()))
    for name in ("private", "task_rsna_zero_shot"):
        (tmp_path / "tables" / f"{name}.json").write_text('{"format": "medst-table/0", "rows": []}', encoding="utf-8")
    page = report.report_html(tmp_path, Manifest.read(tmp_path), lambda run: run)
    assert page.count("Made by another version of the program. Run: make results") == 2


def test_check_results_finds_edits_stale_runs_and_gaps(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                       ) -> None:
    [nothing] = checking.check_results(uri, EXPERIMENT, tmp_path)
    assert nothing.startswith("MISSING") and "make results" in nothing
    results.make_results(uri, EXPERIMENT, tmp_path, console=Console(file=io.StringIO()))

    def kinds() -> set[str]:
        found = checking.check_results(uri, EXPERIMENT, tmp_path)
        return {" ".join(problem.split()[:2]).rstrip(":") for problem in found}

    missing = {f"INCOMPLETE {name}" for name in ("components", "baselines", "lambda", "experts", "curriculum",
                                                "sequence_length", "lateral_fraction", "fidelity", "lambda_surface")}
    assert kinds() == missing
    table = tmp_path / "tables" / "overview.csv"
    kept = table.read_text(encoding="utf-8")
    table.write_text(kept.replace("full", "best"), encoding="utf-8")
    (tmp_path / "figures" / "tsne.png").unlink()
    assert kinds() - missing == {"EDITED tables/overview.csv", "MISSING figures/tsne.png"}

    # Even with a manifest that was edited to match, a table must be what the store says.
    manifest = tmp_path / "manifest.json"
    told = json.loads(manifest.read_text(encoding="utf-8"))
    told["files"]["tables/overview.csv"]["sha256"] = hash_file(table)
    manifest.write_text(json.dumps(told), encoding="utf-8")
    assert "EDITED tables/overview.csv" in kinds()

    monkeypatch.setattr(results, "source_fingerprint", lambda: "0" * 16)
    assert {"STALE tables", "STALE figures"} <= kinds()


def test_a_study_without_a_finished_trial_is_incomplete(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    fill_store(uri, tmp_path / "runs", PLAN)
    planned = make_plan(("a", "b"), 2, "planned")
    tracking.ensure_study_run(uri, EXPERIMENT, "planned", "", {
        "name": "planned", "question": "", "base": [], "data": "", "reference": "a", "primary_metric": PRIMARY,
        "secondary_metrics": [], "seeds": list(planned.seeds), "settings": {}, "expectations": [], "trials": [],
        "arms": [{"name": arm, "settings": {}} for arm in planned.arms]}, is_running=False)
    out = tmp_path / "results"
    results.make_results(uri, EXPERIMENT, out, only="tables", console=Console(file=io.StringIO()))
    assert ("INCOMPLETE study planned: 0 of 4 planned trials finished; run: make sweep SWEEP=planned"
            in checking.check_results(uri, EXPERIMENT, out))


def test_trace_leads_from_a_cell_to_runs_and_commands(made: tuple[Path, list[Path], str], uri: str) -> None:
    out, _, _ = made
    document = read_document(out / "tables" / "overview.csv")
    cell = trace.find_cell(document, "no local,AUROC")
    assert cell["arm"] == "no local alignment" and cell["metric"] == PRIMARY
    told = "\n".join(trace.trace(document, cell, uri, EXPERIMENT))
    assert all(run in told for run in cell["run_ids"].values()) and len(cell["run_ids"]) == 2
    for part in ("objective.lambda_local = 0.0", "Code: ", "Data: da7af1a9e7000000",
                 "medst sweep run overview --base experiments/phantom_tiny.yaml",
                 "medst train experiments/phantom_tiny.yaml --set seed=1 ", " --set objective.lambda_local=0.0"):
        assert part in told
    chance = trace.find_cell(document, "chance,pointing")
    assert chance["n"] == 2 and chance["mean"] == pytest.approx(0.09)
    full = trace.find_cell(document, "full,pointing")
    assert chance["run_ids"] == full["run_ids"] and "value 0.09" in "\n".join(
        trace.trace(document, chance, uri, EXPERIMENT))
    assert trace.find_cell(document, "full,R@5")["metric"] == "test/retrieval/r5"
    assert trace.find_cell(document, "full,pointing")["metric"] == "test/grounding/pointing_accuracy"
    with pytest.raises(ValueError, match="no arm 'ful local'"):
        trace.find_cell(document, "ful local,AUROC")
    with pytest.raises(ValueError, match="may be metric"):
        trace.find_cell(document, "full,accuracy")
    with pytest.raises(ValueError, match="comma"):
        trace.find_cell(document, "full")
    with pytest.raises(ValueError, match="make results"):
        read_document(out / "tables" / "none.csv")


def test_all_notebooks_run_in_one_kernel(uri: str, tmp_path: Path) -> None:
    paths = run_notebooks(uri, tmp_path, Console(file=io.StringIO()))
    assert len(paths) == len(paper.EXHIBITS) == 19
    shown = {path.stem: nbformat.read(path, 4) for path in paths}
    assert "image/png" in shown["figure_tsne"].cells[2].outputs[0]["data"]
    assert "Temporal image classification" in shown["table_temporal_image"].cells[2].outputs[0]["data"]["text/markdown"]
    assert "make sweep SWEEP=lambda" in shown["table_lambda"].cells[2].outputs[0]["data"]["text/markdown"]
    assert (tmp_path / "figures" / "tsne.pdf").exists()


def test_notebooks_hold_no_functions_and_name_every_exhibit() -> None:
    shown = []
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        defined = (ast.FunctionDef, ast.Lambda, ast.ClassDef)
        assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(code)))
        assert all(not cell.get("outputs") for cell in notebook.cells)
        shown += [node.args[0].value for node in ast.walk(ast.parse(code))
                  if isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant)]
    assert sorted(shown) == sorted(paper.EXHIBITS)
    assert (len(paper.TABLES), len(paper.FIGURES)) == (12, 7)


def test_a_failing_cell_fails_the_run(uri: str, tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell('from analysis.exhibits import show\nshow("componets")')
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "broken.ipynb")
    with pytest.raises(CellExecutionError, match="did you mean 'components'"):
        run_notebooks(uri, tmp_path / "out", Console(file=io.StringIO()), folder=tmp_path)


def test_the_index_names_every_table_and_figure(made: tuple[Path, list[Path], str]) -> None:
    out, paths, _ = made
    index = (out / "README.md").read_text(encoding="utf-8")
    assert "report.html" in index
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
    assert "results/tables/overview.json" in artifacts


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
