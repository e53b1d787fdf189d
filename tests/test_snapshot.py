"""The snapshot: by SQL, through MLflow's interface and from the cache the same; what changes is read again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from analysis_samples import fill_store, make_plan
from tracking_fixtures import fresh_place

from medst import tracking
from medst.tracking import snapshot, source

PLAN = make_plan(("full", "no FMC"), 2)
EXPERIMENT = tracking.TrackingPlace.of_project().experiment


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = fresh_place(tmp_path_factory.mktemp("store"))
    fill_store(place.uri, place.folder, PLAN)
    return place.uri


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    plain = frame.astype({name: str for name in ("run_id", "metric", "study", "arm") if name in frame})
    return plain.sort_values(list(plain.columns[:2])).reset_index(drop=True)


def test_sql_and_interface_say_the_same(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = snapshot.read_snapshot(uri, EXPERIMENT)
    monkeypatch.setattr(source, "database_source", lambda *arguments: None)
    slow = snapshot.read_snapshot(uri, EXPERIMENT)
    assert fast.studies == slow.studies and list(fast.studies) == [PLAN.name]
    assert len(fast.runs) == 4 and len(fast.metrics) > 4 * 100
    for name in ("runs", "arms", "metrics"):
        pd.testing.assert_frame_equal(ordered(getattr(fast, name)), ordered(getattr(slow, name)), check_dtype=False)
    run = fast.runs["run_id"].iloc[0]
    monkeypatch.undo()
    assert fast.params([run]) == slow.params([run]) and fast.params([run])[run]["seed"] == "0"


def test_it_agrees_with_load_runs(uri: str) -> None:
    found, runs = snapshot.read_snapshot(uri, EXPERIMENT), tracking.load_runs(uri, EXPERIMENT)
    for column in ("run_id", "key", "seed", "state", "source_fingerprint", "data_fingerprint", "data_name"):
        assert sorted(found.runs[column].astype(str)) == sorted(runs[column].astype(str))
    wide = found.metrics.astype({"run_id": str, "metric": str}).pivot(index="run_id", columns="metric", values="value")
    metric = "test/finding_zero_shot/mean/auroc"
    told = runs.set_index("run_id")[f"metrics.{metric}"]
    pd.testing.assert_series_equal(wide[metric].sort_index(), told.sort_index(), check_names=False)


def test_the_cache_keeps_finished_runs_and_reads_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = fresh_place(tmp_path / "store")
    fill_store(place.uri, place.folder, make_plan(("full",), 1, "first"))
    cache = tmp_path / "cache"
    first = snapshot.read_snapshot(place.uri, EXPERIMENT, cache)
    asked: list[list[str]] = []
    read = source.DatabaseSource.metrics

    def noted(tables: source.DatabaseSource, run_ids: list[str]) -> pd.DataFrame:
        asked.append(list(run_ids))
        return read(tables, run_ids)

    monkeypatch.setattr(source.DatabaseSource, "metrics", noted)
    pd.testing.assert_frame_equal(ordered(snapshot.read_snapshot(place.uri, EXPERIMENT, cache).metrics),
                                  ordered(first.metrics))
    assert asked == []
    fill_store(place.uri, place.folder, make_plan(("full",), 1, "second"))
    second = snapshot.read_snapshot(place.uri, EXPERIMENT, cache)
    assert asked == [[run for run in second.runs["run_id"] if run not in set(first.runs["run_id"])]]
    uncached = snapshot.read_snapshot(place.uri, EXPERIMENT)
    pd.testing.assert_frame_equal(ordered(second.metrics), ordered(uncached.metrics))


def test_an_absent_store_is_empty(tmp_path: Path) -> None:
    found = snapshot.read_snapshot(f"sqlite:///{tmp_path / 'mlflow.db'}", EXPERIMENT)
    assert found.runs.empty and found.metrics.empty and found.studies == {} and not (tmp_path / "mlflow.db").exists()
