"""Promotion of a trial's model, and its way back; who may reach the dashboard."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from tracking_fixtures import describe, fake_trial, fresh_place

from medst.records import Metrics
from medst.tracking import TrackingPlace, load_runs, track
from medst.tracking.connection import TrackingError, client
from medst.tracking.dashboard import is_this_machine_only, protection, server_command
from medst.tracking.registry import best_run, promote, pull


@pytest.fixture
def place(tmp_path: Path) -> TrackingPlace:
    return fresh_place(tmp_path / "store")


def finished(place: TrackingPlace, key: str, loss: float, model: str | None, **changes: object) -> str:
    """Id of the run of a finished trial with this validation loss, which kept this text as its model."""
    folder = place.folder / f"model of {key}"
    if model is not None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(model)
    description = describe(key, **changes)

    def records():  # type: ignore[no-untyped-def]
        yield from fake_trial(description.config, None)
        yield Metrics(6, {"validation/loss": loss})

    assert list(track(records(), description, place, folder))
    runs = load_runs(place.uri, place.experiment)
    return str(runs.loc[runs["key"] == key, "run_id"].item())


def test_the_lowest_validation_loss_that_kept_a_model_is_promoted_and_comes_back(
    place: TrackingPlace, tmp_path: Path
) -> None:
    name = f"medst-{uuid.uuid4().hex[:8]}"
    worse = finished(place, "a", 2.0, "worse")
    better = finished(place, "b", 1.0, "better")
    finished(place, "c", 0.5, None)
    assert best_run("overview", uri=place.uri, experiment=place.experiment) == better
    first = promote(better, "candidate", name, place.uri)
    again = promote(better, "candidate", name, place.uri)
    assert (first.version, again.version) == ("1", "1"), "a run is registered once"
    folder = pull(f"{name}@candidate", tmp_path / "fetched", place.uri)
    assert (folder / "config.json").read_text() == "better"
    second = promote(worse, "candidate", name, place.uri)
    assert second.version == "2"
    assert (pull(f"{name}@candidate", tmp_path / "moved", place.uri) / "config.json").read_text() == "worse"
    assert (pull(f"{name}/1", tmp_path / "old", place.uri) / "config.json").read_text() == "better"
    version = client(place.uri).get_model_version(name, "1")
    assert version.run_id == better and version.tags["medst.arm"] == "full" and "Arm **full**" in version.description


def test_what_cannot_be_promoted_is_refused_with_a_remedy(place: TrackingPlace, tmp_path: Path) -> None:
    without = finished(place, "a", 1.0, None)
    private = finished(place, "b", 1.0, "secret", is_credentialed=True)
    with pytest.raises(TrackingError, match=r"kept no model.*flagged_arms"):
        promote(without, "candidate", uri=place.uri)
    with pytest.raises(TrackingError, match="stayed home, since its data are credentialed"):
        promote(private, "candidate", uri=place.uri)
    with pytest.raises(TrackingError, match=r"no run 'f{32}'"):
        promote("f" * 32, "candidate", uri=place.uri)
    with pytest.raises(TrackingError, match="none of 2 finished runs of study 'overview', arm 'full'"):
        best_run("overview", "full", place.uri, place.experiment)
    with pytest.raises(TrackingError, match=r"no finished run of .*, arm 'ful'; finished runs are of: full"):
        best_run("overview", "ful", place.uri, place.experiment)
    with pytest.raises(TrackingError, match=r"of study 'lambda'; studies with finished runs: overview\."):
        best_run("lambda", None, place.uri, place.experiment)
    with pytest.raises(TrackingError, match=r"runs: none\. Run it, `medst sweep run overview`, or set MLFL"):
        best_run("overview", None, place.uri, "an experiment that is not there")
    with pytest.raises(TrackingError, match="no model 'nothing@here'"):
        pull("nothing@here", tmp_path / "out", place.uri)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(TrackingError, match="holds files already"):
        pull("nothing@here", tmp_path / "full", place.uri)


# ---- The dashboard's door ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host, is_closed", [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True),
                                             ("localhost", True), ("0.0.0.0", False), ("::", False),
                                             ("10.0.0.5", False), ("myhost", False)])
def test_loopback_alone_is_this_machine_only(host: str, is_closed: bool) -> None:
    assert is_this_machine_only(host) is is_closed


def test_an_open_door_needs_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    assert protection("127.0.0.1", 5000, tmp_path) is None
    command = server_command("sqlite:///x", "127.0.0.1", 5000, None)
    assert "basic-auth" not in command and command[command.index("--host") + 1] == "127.0.0.1"
    for password in ("", "short"):
        monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", password)
        with pytest.raises(TrackingError, match=r"--host 0\.0\.0\.0 lets other machines in: set MLFLOW_AUTH_ADMIN_PA"):
            protection("0.0.0.0", 5000, tmp_path)


def test_an_open_door_has_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a long password")
    protected = protection("0.0.0.0", 5000, tmp_path / "runs")
    assert protected is not None and "localhost:5000" in protected.hosts and "*" not in "".join(protected.hosts)
    command = server_command("sqlite:///x", "0.0.0.0", 5000, protected)
    assert command[command.index("--app-name") + 1] == "basic-auth"
    settings = Path(protected.environment["MLFLOW_AUTH_CONFIG_PATH"]).read_text()
    assert str(tmp_path / "runs" / "dashboard-users.db") in settings and "a long password" not in settings
    assert len(protected.environment["MLFLOW_FLASK_SERVER_SECRET_KEY"]) == 64
