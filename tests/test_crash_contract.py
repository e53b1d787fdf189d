"""The crash contract: whatever is killed whenever, the same command in the end leaves what an undisturbed one does."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from crash_driver import NUM_TRIALS, drive, write_project
from tracking_fixtures import NUM_STEPS, fake_trial, fresh_place

from medst.config import Config, override
from medst.records import Metrics
from medst.tracking import TrackingPlace, list_artifacts, load_runs
from medst.tracking.connection import client, find_experiment

HARNESS = Path(__file__).parent


def expected() -> dict[tuple[float, int], list[tuple[str, int, str]]]:
    """(λ1, seed) -> every point of every metric of the trial, computed here."""
    points = {}
    for weight in (0.25, 0.5, 1.0, 2.0):
        for seed in (0, 1, 2):
            records = fake_trial(override(Config(), {"seed": seed, "objective.lambda_local": weight}), None)
            points[weight, seed] = sorted((name, record.step, repr(float(value))) for record in records
                                          if isinstance(record, Metrics) for name, value in record.values.items())
    return points


def check_whole(place: TrackingPlace) -> None:
    """The store holds what an undisturbed run of the study leaves there, and the disk nothing."""
    experiment = find_experiment(place.uri, place.experiment)
    assert experiment is not None
    runs = client(place.uri).search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * (NUM_TRIALS + 1), "one run a trial, and the study's"
    frame = load_runs(place.uri, study="crash")
    assert len(frame) == NUM_TRIALS and set(frame["state"]) == {"finished"}
    found = {}
    for _, row in frame.iterrows():
        names = [column.removeprefix("metrics.") for column in frame.columns if column.startswith("metrics.")
                 and not column.startswith(("metrics.cost/", "metrics.facts/"))]
        points = [(name, point.step, repr(point.value)) for name in names
                  for point in client(place.uri).get_metric_history(row["run_id"], name)]
        found[float(row["params.objective.lambda_local"]), int(row["seed"])] = sorted(points)
        artifacts = {"config.yaml", "environment.json", "maps.npz", "predictions/scores.parquet"}
        assert set(list_artifacts(row["run_id"], place.uri)) == artifacts
    assert found == expected(), "bit for bit, each step once"
    assert not list((place.folder / "spool").iterdir()) and not list((place.folder / "checkpoints").iterdir())


def _child(project: str, uri: str) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    raise SystemExit(drive(Path(project), "inline"))


def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    project = tmp_path / "project"
    place = fresh_place(project)
    write_project(project)
    # Processes that have imported everything already: a start costs a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_driver", "sweeps.inline", "torch"])
    moments = random.Random(7)
    num_killed = 0
    for number in range(40):
        process = context.Process(target=_child, args=(str(project), place.uri))
        process.start()
        if num_killed < 3:
            began = time.monotonic()
            while not list((place.folder / "spool").glob("*/entries.jsonl")) and time.monotonic() - began < 60:
                time.sleep(0.01)
            process.join(moments.uniform(0.05, 1.5))
            if process.is_alive():
                os.kill(int(process.pid or 0), signal.SIGKILL)
                num_killed += 1
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, f"start {number}"
    assert num_killed == 3 and process.exitcode == 0
    check_whole(place)


# ---- The long one ------------------------------------------------------------------------------------------------


class Server:
    """An MLflow server that can be killed and started again on the same store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        # As `medst dashboard` does: its queue of jobs is a dozen processes that nobody asked for.
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--backend-store-uri",
                 f"sqlite:///{self._folder / 'mlflow.db'}", "--artifacts-destination", str(self._folder / "artifacts"),
                 "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"],
                env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(f"no server: {(self._folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        if self._process is not None:
            kill_all([self._process.pid])
            self._process.wait()
            self._process = None


def kill_all(pids: list[int]) -> None:
    """Kill processes with all their descendants, at once."""
    family: list[psutil.Process] = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            family += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def descendants(pid: int, *words: str) -> list[int]:
    """Descendants of a process whose command line has one of the words."""
    found = []
    try:
        for child in psutil.Process(pid).children(recursive=True):
            try:
                line = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if any(word in line for word in words):
                found.append(child.pid)
    except psutil.NoSuchProcess:
        pass
    return found


def start_driver(project: Path, uri: str, executor: str, step_seconds: float) -> subprocess.Popen[bytes]:
    """The study in a process of its own, which writes into `driver.log` of the project."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "CRASH_STEP_SECONDS": str(step_seconds),
                   "PYTHONPATH": os.pathsep.join([str(HARNESS.parent), str(HARNESS)])}
    with open(project / "driver.log", "ab") as log:
        return subprocess.Popen([sys.executable, str(HARNESS / "crash_driver.py"), str(project), executor],
                                env=environment, stdout=log, stderr=log, start_new_session=True)


WORKER, RAY = ("ray::ImplicitFunc", "ray::_train"), ("gcs_server", "raylet/raylet")
HANGING_SECONDS = 120.0
"""How long a driver may take to notice that its Ray is gone before the user would stop it."""
SILENT_SECONDS = 400.0
"""How long no trial may write anything before the driver counts as hanging."""


class Saboteur:
    """Runs the same command until it ends well, and kills on the way."""

    def __init__(self, project: Path, uri: str, server: Server | None, executor: str, moments: random.Random) -> None:
        self._project, self._server, self._executor, self._moments = project, server, executor, moments
        self._victims = ["driver", "everything", *(["worker", "ray"] if executor == "ray" else []),
                         *(["server"] if server is not None else [])]
        self._uri = uri
        self.killed: list[str] = []
        self.num_starts = 0

    def run(self, num_kills: int, max_starts: int) -> int:
        """Exit code of the last start."""
        code = -1
        while self.num_starts < max_starts and (code != 0 or len(self.killed) < num_kills):
            self.num_starts += 1
            driver = start_driver(self._project, self._uri, self._executor, step_seconds=0.3)
            while driver.poll() is None and len(self.killed) < num_kills:
                self._wait_for_trials(driver)
                time.sleep(self._moments.uniform(0.0, 2.5))
                if driver.poll() is None:
                    self._kill(driver)
            code = self._wait_for_end(driver)
            if code == 0 and len(self.killed) < num_kills:
                # Too fast for the saboteur: everything is there, and nothing is left to be killed.
                return code
        return code

    def _wait_for_end(self, driver: subprocess.Popen[bytes]) -> int:
        """Exit code of a driver that is left alone; it hangs where none of its trials writes anything for long."""
        began = time.time()
        while driver.poll() is None:
            if time.time() - max(began, self._last_sign()) > SILENT_SECONDS:
                kill_all([driver.pid])
                log = (self._project / "driver.log").read_text()[-3000:]
                raise AssertionError(f"silent after {', '.join(self.killed)} had been killed:\n{log}")
            time.sleep(0.2)
        return int(driver.returncode)

    def _wait_for_trials(self, driver: subprocess.Popen[bytes]) -> None:
        """Till a trial has written something since now."""
        began = time.time()
        while driver.poll() is None and self._last_sign() < began:
            time.sleep(0.05)

    def _last_sign(self) -> float:
        """When a trial has last written something."""
        times = [0.0]
        for path in (self._project / "runs" / "spool").glob("*/entries.jsonl"):
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
        return max(times)

    def _kill(self, driver: subprocess.Popen[bytes]) -> None:
        victim = self._moments.choice(self._victims)
        match victim:
            case "driver":
                driver.kill()
            case "everything":
                kill_all([driver.pid])
                if self._server is not None:
                    self._server.kill()
                    self._server.start()
            case "worker":
                workers = descendants(driver.pid, *WORKER)
                if not workers:
                    return
                os.kill(self._moments.choice(workers), signal.SIGKILL)
            case "ray":
                parts = descendants(driver.pid, *RAY)
                if not parts:
                    return
                os.kill(self._moments.choice(parts), signal.SIGKILL)
                try:
                    driver.wait(HANGING_SECONDS)
                except subprocess.TimeoutExpired:
                    kill_all([driver.pid])
            case "server":
                assert self._server is not None
                self._server.kill()
                time.sleep(self._moments.uniform(0.0, 20.0))
                self._server.start()
        self.killed.append(victim)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    fresh_place(folder)
    started = Server(folder)
    try:
        started.start()
        yield started
    finally:
        started.kill()


def sabotage(project: Path, place: TrackingPlace, server: Server | None, executor: str, seed: int, num_kills: int
             ) -> None:
    saboteur = Saboteur(project, place.uri, server, executor, random.Random(seed))
    code = saboteur.run(num_kills, max_starts=4 * num_kills)
    print(f"{len(saboteur.killed)} kills ({', '.join(saboteur.killed)}), {saboteur.num_starts} starts")
    assert code == 0, (project / "driver.log").read_text()[-3000:]
    check_whole(place)


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "seed"), [("inline", 1), ("ray", 2), ("ray", 3)])
def test_random_kills_beside_a_file(tmp_path: Path, executor: str, seed: int) -> None:
    project = tmp_path / "project"
    place = fresh_place(project)
    write_project(project)
    sabotage(project, place, None, executor, seed, num_kills=6)


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "seed"), [("inline", 4), ("ray", 5)])
def test_random_kills_beside_a_server_that_is_killed_too(tmp_path: Path, server: Server, executor: str, seed: int
                                                         ) -> None:
    project = tmp_path / "project"
    write_project(project)
    sabotage(project, TrackingPlace(server.uri, project / "runs"), server, executor, seed, num_kills=6)


AWAY_SECONDS = 60.0


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_trials_go_on_while_the_server_alone_is_away(tmp_path: Path, server: Server, executor: str) -> None:
    project = tmp_path / "project"
    write_project(project)
    place = TrackingPlace(server.uri, project / "runs")
    driver = start_driver(project, server.uri, executor, step_seconds=0.5)
    try:
        deadline = time.monotonic() + 240
        while not is_one_finished(place):
            assert driver.poll() is None and time.monotonic() < deadline, (project / "driver.log").read_text()[-3000:]
            time.sleep(0.2)
        server.kill()
        away_since = time.time()
        time.sleep(AWAY_SECONDS)
        away_until = time.time()
        ended = keys_ended(place)
        assert driver.poll() is None
        server.start()
        code = driver.wait(600)
    finally:
        kill_all([driver.pid])
    log = (project / "driver.log").read_text()
    assert code == 0, log[-3000:]
    assert "all 12 trials are finished" in log and "View run" not in log
    check_whole(place)
    print(f"{len(ended)} trials ended while the server was away")
    assert len(ended) > 1
    # What was said meanwhile has kept its own time, and its order.
    said_meanwhile = 0
    for run_id in load_runs(place.uri, study="crash")["run_id"]:
        points = sorted(client(place.uri).get_metric_history(run_id, "train/loss"), key=lambda point: point.step)
        times = [point.timestamp / 1000 for point in points]
        assert len(times) == NUM_STEPS and times == sorted(times)
        said_meanwhile += sum(away_since < moment < away_until for moment in times)
    assert said_meanwhile >= (len(ended) - 1) * NUM_STEPS


def is_one_finished(place: TrackingPlace) -> bool:
    experiment = find_experiment(place.uri, place.experiment)
    return experiment is not None and bool(
        client(place.uri).search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=1))


def keys_ended(place: TrackingPlace) -> set[str]:
    """Keys of trials that have ended and are not wholly in the store yet."""
    keys = set()
    for path in (place.folder / "spool").glob("*/entries.jsonl"):
        with suppress(FileNotFoundError):
            if '"end": "finished"' in path.read_text():
                keys.add(path.parent.name)
    return keys
