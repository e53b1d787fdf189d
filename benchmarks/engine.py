"""What the ablation engine costs beside the trials: `make bench-engine`, or `python -m benchmarks.engine [NAME ...]`.

    overhead    seconds of a trial beyond its own computing, on warm workers, and where they go
    parallel    64 short trials on 2 workers: share of the ideal time
    tracking    seconds of tracking an epoch, beside an epoch of 5 s
    planning    a study of 10 000 trials: read, resolved, planned
    ledger      reading the states of 10 000 runs, cold and warm

What lives here: measurements on trials that compute nothing or sleep, on stores in a temporary folder. What must not:
the cost of training itself (see the other files here).

Other work on the machine lengthens wall-clock time, so processor time of all processes of ours stands beside it. The
`overhead` and `parallel` parts start a Ray of their own.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table as Shown

from medst.config import Config
from medst.records import Facts, Metrics, Progress, Record
from medst.tracking import TrackingPlace, TrialDescription, load_runs, track, trials
from medst.tracking.connection import client, ensure_experiment
from sweeps.ledger import read_ledger
from sweeps.live import LiveView
from sweeps.planning import Plan
from sweeps.study import load_study
from sweeps.trials import DataFacts, Trial, expand, needed_data, specify
from sweeps.worker import _give_memory_back

OUT = Path("build/benchmarks/engine.json")
EPOCHS = 4
CURVES = 24
"""Metrics of one epoch, as the real trial has them."""
EPOCH_SECONDS = 5.0
NUM_WORKERS = 2
FACTS = DataFacts("none", "none", is_credentialed=False)


@dataclass(frozen=True)
class Result:
    """One measured number against what was promised."""

    name: str
    value: float
    unit: str
    target: str = ""
    is_met: bool | None = None
    remark: str = ""


def processor_seconds() -> float:
    """Of this process and all its descendants that live."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def resting_trial(seconds: float) -> Callable[[Config, Path | None], Iterator[Record]]:
    """A trial that sleeps instead of computing, and tracks when it began and ended and how long it slept."""
    def run(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
        began = time.time()
        slept = 0.0
        yield Facts({"parameters": 1})
        for epoch in range(1, EPOCHS + 1):
            entered = time.perf_counter()
            time.sleep(seconds / EPOCHS)
            slept += time.perf_counter() - entered
            yield Progress(epoch, EPOCHS)
            yield Metrics(epoch, {f"train/{number}": float(number) for number in range(CURVES)})
        yield Metrics(EPOCHS, {"bench/began": began, "bench/ended": time.time(), "bench/own": slept})
    return run


STUDY = """\
name: bench
question: What does the engine cost?
base: [base.yaml]
reference: λ1 = 0.0
primary_metric: test/score
seeds: [{seeds}]
grid:
  objective.lambda_local: {{label: λ1, levels: [{levels}]}}
"""


def write_project(folder: Path, num_arms: int, num_seeds: int) -> Path:
    (folder / "sweeps").mkdir(parents=True)
    (folder / "base.yaml").write_text("training: {epochs: 1.0}\n")
    path = folder / "sweeps" / "bench.yaml"
    path.write_text(STUDY.format(seeds=", ".join(map(str, range(num_seeds))),
                                 levels=", ".join(f"{arm / 10:.1f}" for arm in range(num_arms))))
    return path


def trials_of(folder: Path, place: TrackingPlace) -> list[Trial]:
    study = load_study(folder / "sweeps" / "bench.yaml", project=folder)
    return expand(study, dict.fromkeys(needed_data(study), FACTS))


def run_on_ray(folder: Path, place: TrackingPlace, seconds: float, num_workers: int) -> tuple[float, float]:
    """Run the study of `folder`; wall-clock and processor seconds, without the start and the end of Ray.

    Raises:
        RuntimeError: trials failed, so that the time says nothing.
    """
    from sweeps.cluster import ray_session
    from sweeps.cluster import run_on_ray as run

    # As a sweep does: workers that begin at once must not all create the store.
    ensure_experiment(place.uri, place.experiment)
    specs = specify(trials_of(folder, place), study="bench", place=place, project=folder, parent_run_id="none",
                    environment={}, is_private_tracked=False)
    with ray_session(num_workers):
        cpu, began = processor_seconds(), time.perf_counter()
        with LiveView("bench", len(specs), len(specs) * seconds, num_workers, Console(file=StringIO())) as view:
            run(specs, view, folder / "runs" / "ray", num_workers, resting_trial(seconds))
        wall, cpu = time.perf_counter() - began, processor_seconds() - cpu
    num_tracked = len(load_runs(place.uri))
    if num_tracked < len(specs):
        raise RuntimeError(f"{len(specs) - num_tracked} of {len(specs)} trials were not tracked")
    return wall, cpu


def bench_overhead(folder: Path) -> Iterator[Result]:
    """One worker, trials that do nothing: what stands between the begin of one and the begin of the next."""
    write_project(folder, 10, 3)
    place = TrackingPlace.of_project(folder)
    _, cpu = run_on_ray(folder, place, 0.0, 1)
    frame = load_runs(place.uri).sort_values("metrics.bench/began")
    gaps = frame["metrics.bench/began"].diff().iloc[3:].to_numpy() - frame["metrics.bench/own"].iloc[2:-1].to_numpy()
    value = float(median(gaps))
    yield Result("a trial beyond its own computing", value, "s", "< 0.3", value < 0.3,
                 f"median of {len(gaps)} gaps on a warm worker; {cpu / len(frame):.3f} s of processor time in all "
                 "processes, starting the worker included")
    tracking, cpu = _measure(lambda: _track_one(folder), 20)
    yield Result("  of which tracking", tracking, "s", remark=f"a run, {EPOCHS} batches, two files, the end; "
                 f"{cpu:.3f} s of processor time")
    memory, cpu = _measure(_give_memory_back, 10)
    yield Result("  of which giving memory back", memory, "s", remark=f"{cpu:.3f} s of processor time here; more in a "
                 "worker that has computed")
    yield Result("  the rest: Ray Tune, two reports", max(0.0, value - tracking - memory), "s",
                 remark="the first line less the two above")


def _measure(act: Callable[[], object], times: int) -> tuple[float, float]:
    """Median wall-clock and mean processor seconds of one call, after one that does not count."""
    act()
    walls = []
    cpu = time.process_time()
    for _ in range(times):
        began = time.perf_counter()
        act()
        walls.append(time.perf_counter() - began)
    return median(walls), (time.process_time() - cpu) / times


def _description(key: str) -> TrialDescription:
    return TrialDescription(config=Config(), key=key, arm="arm", source_fingerprint="source", data_name="none",
                            data_fingerprint="none", is_credentialed=False, torch_version="none",
                            studies={"bench": "arm"})


def _track_one(folder: Path) -> None:
    key = f"tracked{time.monotonic_ns()}"
    for _ in track(resting_trial(0.0)(Config(), None), _description(key), TrackingPlace.of_project(folder)):
        pass


def bench_parallel(folder: Path, seconds: float = 3.0) -> Iterator[Result]:
    """64 trials of 3 s on 2 workers against 32 trials one after the other without anything between."""
    write_project(folder, 16, 4)
    place = TrackingPlace.of_project(folder)
    wall, cpu = run_on_ray(folder, place, seconds, NUM_WORKERS)
    frame = load_runs(place.uri)
    own = float(frame["metrics.bench/own"].sum())
    span = float(frame["metrics.bench/ended"].max() - frame["metrics.bench/began"].min())
    efficiency = own / NUM_WORKERS / span
    yield Result("64 trials of 3 s on 2 workers", efficiency, "of ideal", "> 0.9", efficiency > 0.9,
                 f"{span:.1f} s from the first begin to the last end, {wall:.1f} s with the start of the workers; "
                 f"{cpu / len(frame):.3f} s of processor time a trial")


def bench_tracking(folder: Path, num_epochs: int = 40, seconds: float = 0.25) -> Iterator[Result]:
    """Epochs with a batch to the store after each: how long the trial is held up, and what runs beside it."""
    folder.mkdir(parents=True)
    place = TrackingPlace.of_project(folder)
    curves = {f"train/{number}": float(number) for number in range(CURVES)}
    own: list[float] = []

    def epochs() -> Iterator[Record]:
        for epoch in range(1, num_epochs + 1):
            began = time.perf_counter()
            # Long enough that the batch before is in the store.
            time.sleep(seconds)
            own.append(time.perf_counter() - began)
            yield Progress(epoch, num_epochs)
            yield Metrics(epoch, curves)

    patient, trials.FLUSH_SECONDS = trials.FLUSH_SECONDS, 0.0
    try:
        walls = []
        stream = track(epochs(), _description("tracked"), place)
        # The run is made and its parameters are written before the first epoch.
        next(stream)
        next(stream)
        cpu = time.process_time()
        for epoch in range(1, num_epochs):
            began = time.perf_counter()
            next(stream)
            next(stream)
            walls.append(time.perf_counter() - began - own[epoch])
        cpu = (time.process_time() - cpu) / len(walls)
    finally:
        trials.FLUSH_SECONDS = patient
    share = median(walls) / EPOCH_SECONDS
    yield Result("tracking an epoch of 5 s on SQLite", 100 * share, "%", "< 2", share < 0.02,
                 f"median {1000 * median(walls):.1f} ms that the trial waits (the slowest {1000 * max(walls):.0f} ms) "
                 f"for {CURVES} metrics")
    yield Result("  processor time for it", 100 * cpu / EPOCH_SECONDS, "%", "< 2", cpu / EPOCH_SECONDS < 0.02,
                 f"{1000 * cpu:.0f} ms, most of it beside the trial")


def bench_planning(folder: Path) -> Iterator[Result]:
    path = write_project(folder, 1000, 10)
    place = TrackingPlace.of_project(folder)

    def plan() -> None:
        study = load_study(path, project=folder)
        made = expand(study, dict.fromkeys(needed_data(study), FACTS))
        assert len(made) == 10_000
        Plan(study, made, read_ledger(place, [trial.key for trial in made]), 2).show(Console(file=StringIO()), made)

    wall, cpu = _measure(plan, 1)
    yield Result("planning 10 000 trials", wall, "s", "< 2", wall < 2.0, f"{cpu:.2f} s of processor time")


def bench_ledger(folder: Path, num_runs: int = 10_000) -> Iterator[Result]:
    folder.mkdir(parents=True)
    place = TrackingPlace.of_project(folder)
    for _ in track(resting_trial(0.0)(Config(), None), _description("original"), place):
        pass
    multiply(folder / "mlflow.db", num_runs)
    client.cache_clear()
    keys = [f"copy{number}" for number in range(num_runs)]
    beside_server = BesideServer(place.uri, place.folder)
    for at, name, limit, how in (
            (place, "reading the ledger of 10 000 runs, cold", 20.0, "from the tables of a SQLite store"),
            (place, "  the same, warm", 3.0, "as the first time"),
            (beside_server, "  through MLflow's public interface, cold", 20.0, "as beside a server, without the way "
             "there"),
            (beside_server, "  the same, warm", 3.0, "what can have changed")):
        cpu, began = time.process_time(), time.perf_counter()
        ledger = read_ledger(at, keys)
        wall = time.perf_counter() - began
        assert len(ledger.entries) == num_runs
        yield Result(name, wall, "s", f"< {limit:g}", wall < limit,
                     f"{time.process_time() - cpu:.2f} s of processor time; {how}")


class BesideServer(TrackingPlace):
    """A store that is read as one whose tables cannot be reached."""

    is_local = False


def multiply(database: Path, num_runs: int) -> None:
    """Fill a store with copies of its only trial, by SQL: through the interface it would take an hour."""
    with closing(sqlite3.connect(database)) as store, store:
        original = store.execute("SELECT run_uuid FROM tags WHERE key = 'medst.key'").fetchone()[0]
        copies = [(f"{number:032x}", number) for number in range(num_runs)]
        for table in ("runs", "params", "tags", "latest_metrics", "metrics"):
            columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
            rows = [dict(zip(columns, row, strict=True)) for row in
                    store.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (original,))]
            for row in rows:
                made = []
                for run_id, number in copies:
                    copy = {**row, "run_uuid": run_id}
                    if table == "tags" and row["key"] == "medst.key":
                        copy["value"] = f"copy{number}"
                    if table == "runs":
                        # An hour in which clocks may differ is read again each time; these are older.
                        copy["start_time"] = row["start_time"] - 86_400_000 + number
                        copy["end_time"] = row["end_time"] - 86_400_000 + number
                    made.append(tuple(copy[column] for column in columns))
                store.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES "
                                  f"({', '.join('?' * len(columns))})", made)


BENCHMARKS: dict[str, Callable[[Path], Iterator[Result]]] = {
    "overhead": bench_overhead, "parallel": bench_parallel, "tracking": bench_tracking, "planning": bench_planning,
    "ledger": bench_ledger,
}


def measure_overhead() -> dict[str, Any]:
    """The engine's cost beside its trials, for the common table."""
    results: list[Result] = []
    for bench in (bench_overhead, bench_tracking, bench_planning):
        with tempfile.TemporaryDirectory(prefix="medst-bench-") as scratch:
            results += bench(Path(scratch) / "project")
    return {"results": [asdict(result) for result in results]}


def main(chosen: Sequence[str]) -> None:
    unknown = [name for name in chosen if name not in BENCHMARKS]
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results: list[Result] = []
    load = os.getloadavg()[0]
    for name in chosen or BENCHMARKS:
        with tempfile.TemporaryDirectory(prefix="medst-bench-") as scratch:
            results += BENCHMARKS[name](Path(scratch) / "project")
    table = Shown("what", "value", "target", "met", "how", title=f"load of the machine at the start {load:.1f}, "
                  f"at the end {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for result in results:
        table.add_row(result.name, f"{result.value:.3g} {result.unit}", result.target,
                      {True: "yes", False: "no", None: ""}[result.is_met], result.remark)
    Console().print(table)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps([asdict(result) for result in results], indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
