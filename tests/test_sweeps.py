"""Studies, keys, ledger and executors, with a trial whose records are known."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console
from tracking_fixtures import describe, fake_trial, fresh_place

from analysis import registry
from medst.config import Config, ConfigError, flatten, override
from medst.records import Metrics, Record
from medst.tracking import TrackingPlace, TrialState, list_artifacts, load_plan, load_runs, metric_history, track
from medst.tracking.connection import client
from medst.tracking.studies import study_run_id
from sweeps import commands
from sweeps.commands import StudyBusyError, plan_sweep, run_sweep
from sweeps.ledger import Ledger, LedgerEntry, read_ledger
from sweeps.live import LiveView, duration
from sweeps.planning import Plan
from sweeps.study import find_study, load_study, plan_document
from sweeps.study_errors import StudyError
from sweeps.trials import DataFacts, absolute_places, expand, specify, store_id

FACTS = DataFacts("phantom", "fingerprint", False)

STUDY = """\
name: tiny
question: Does λ1 matter?
base: [base.yaml]
reference: full
primary_metric: test/score
seeds: [0, 1]
arms:
  full: {}
one_at_a_time:
  objective.lambda_local: {label: λ1, levels: [0.5, 1.0]}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a base, a study, a store and data that need no files."""
    folder = tmp_path / "project"
    place = fresh_place(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    (folder / "base.yaml").write_text("training: {epochs: 2.0}\n")
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "tiny.yaml").write_text(STUDY)

    def data(study: Any, *arguments: Any) -> dict[Any, DataFacts]:
        return {store_id(arm.config.data): FACTS for arm in study.arms}

    monkeypatch.setattr(commands, "ensure_data", data)
    monkeypatch.setattr(commands, "existing_data", data)
    return folder


def write_study(project: Path, text: str, name: str = "tiny") -> Path:
    path = project / "sweeps" / f"{name}.yaml"
    path.write_text(text)
    return path


def run(project: Path, study: str = "tiny", **options: Any) -> tuple[int, str]:
    output = StringIO()
    settings = {"executor": "inline", "trial_function": fake_trial, **options}
    code = run_sweep(study, project=project, console=Console(file=output, width=200), **settings)
    return code, output.getvalue()


def keys(project: Path, study: str = "tiny") -> dict[tuple[str, int], str]:
    loaded = load_study(find_study(study, project), project=project)
    return {(trial.arm, trial.seed): trial.key for trial in
            expand(loaded, {store_id(arm.config.data): FACTS for arm in loaded.arms})}


# ---- Studies -----------------------------------------------------------------------------------------------------


def test_one_factor_at_a_time_names_its_arms_and_knows_the_reference_among_them(project: Path) -> None:
    write_study(project, STUDY.replace("[0.5, 1.0]", "[0.5, 1.0, 2.0]"))
    study = load_study(project / "sweeps" / "tiny.yaml", project=project)
    assert [arm.name for arm in study.arms] == ["full", "λ1 = 0.5", "λ1 = 2.0"]
    assert [arm.config.objective.lambda_local for arm in study.arms] == [1.0, 0.5, 2.0]
    assert {arm.config.training.epochs for arm in study.arms} == {2.0}


def test_a_grid_crosses_its_factors_in_order(project: Path) -> None:
    head = STUDY[:STUDY.index("arms:")].replace("reference: full", "reference: λ1 = 0.0, kind = staged")
    path = write_study(project, head
                       + "grid:\n  objective.lambda_local: {label: λ1, levels: [0.0, 1.0]}\n"
                         "  objective.curriculum.kind: {levels: [joint, staged]}\n")
    study = load_study(path, project=project)
    assert [arm.name for arm in study.arms] == [
        "λ1 = 0.0, kind = joint", "λ1 = 0.0, kind = staged", "λ1 = 1.0, kind = joint", "λ1 = 1.0, kind = staged"]
    assert study.reference.config.objective.curriculum.kind == "staged"


@pytest.mark.parametrize(("change", "message"), [
    (("reference: full", "reference: ful"), "'ful' is not an arm; the nearest is 'full'"),
    (("arms:", "flagged_arms: [other]\narms:"), "flagged_arms: 'other' is not an arm"),
    (("full: {}", "full: {data.crop_size: 1000}"), "larger than data"),
    (("levels: [0.5, 1.0]", "levels: []"), "levels"),
])
def test_a_study_that_cannot_be_run_is_refused(project: Path, change: tuple[str, str], message: str) -> None:
    path = write_study(project, STUDY.replace(*change))
    with pytest.raises(StudyError, match=message):
        load_study(path, project=project)


def test_overrides_reach_every_arm_and_misspelt_ones_are_refused(project: Path) -> None:
    path = write_study(project, STUDY.replace("[0.5, 1.0]", "[0.5]"))
    study = load_study(path, overrides={"training.epochs": 3.0}, project=project)
    assert {arm.config.training.epochs for arm in study.arms} == {3.0}
    with pytest.raises(ConfigError, match=r"nearest key is 'training\.epochs'"):
        load_study(path, overrides={"training.epoch": 3.0}, project=project)
    with pytest.raises(ConfigError, match="set by the study's seeds"):
        load_study(path, overrides={"seed": 3}, project=project)
    with pytest.raises(StudyError, match="did you mean 'tiny'"):
        find_study("tinny", project)


def test_the_plan_tells_what_the_command_line_changed(project: Path) -> None:
    path = write_study(project, STUDY.replace("[0.5, 1.0]", "[0.5]") + "settings: {training.warmup_fraction: 0.5}\n")
    (project / "other.yaml").write_text("training: {epochs: 4.0}\n")
    study = load_study(path, base=[Path("other.yaml")], project=project,
                       overrides={"objective.lambda_temporal": 0.5, "data.root": str(project / "phantom")})
    plan = plan_document(study, [], "phantom")
    assert plan["base"] == ["other.yaml"]
    assert plan["settings"] == {"training.warmup_fraction": 0.5, "objective.lambda_temporal": 0.5}
    assert {arm.config.data.root for arm in study.arms} == {str(project / "phantom")}


def test_every_metric_that_a_study_names_is_known_to_the_analysis(repository: Path) -> None:
    paths = sorted((repository / "sweeps").glob("*.yaml"))
    assert len(paths) == 18
    unknown = []
    for path in paths:
        file = load_study(path, project=repository).file
        named = {file.primary_metric, *file.secondary_metrics, *(expected.metric for expected in file.expectations)}
        unknown += [f"{path.name}: {metric}" for metric in sorted(named) if metric not in registry.METRICS]
    assert unknown == []


def test_every_study_of_the_project_loads(repository: Path) -> None:
    paths = sorted((repository / "sweeps").glob("*.yaml"))
    names = [load_study(path, project=repository).name for path in paths]
    assert names == [path.stem for path in paths]
    assert set(names) == {"audit_change", "audit_lateral", "audit_order", "audit_seeds", "audit_sides",
                          "audit_transfer", "baselines", "components", "curriculum", "experts", "fidelity", "lambda",
                          "lateral_fraction", "learning", "overview", "sequence_length", "single_visit",
                          "smoke"}


def test_the_fidelity_study_turns_every_switch(repository: Path) -> None:
    study = load_study(repository / "sweeps" / "fidelity.yaml", project=repository)
    switches = {key for key, value in flatten(Config()).items() if value == "corrected"}
    everything = next(arm for arm in study.arms if arm.name == "all released")
    assert set(everything.settings) == switches
    alone = {next(iter(arm.settings)) for arm in study.arms if len(arm.settings) == 1}
    # Turned alone this one only refuses small batches, which changes no number.
    assert alone == switches - {"training.small_batches"}


# ---- Keys --------------------------------------------------------------------------------------------------------


def test_arms_that_mean_the_same_share_their_key_across_studies(project: Path) -> None:
    write_study(project, STUDY.replace("[0.5, 1.0]", "[0.5]"))
    other = STUDY[:STUDY.index("arms:")].replace("name: tiny", "name: other").replace("full", "half")
    write_study(project, other + "arms:\n  half: {objective.lambda_local: 0.5}\n"
                                 "  whole: {objective.lambda_local: 1.0}\n", "other")
    first, second = keys(project), keys(project, "other")
    assert len(set(first.values())) == 4
    for seed in (0, 1):
        assert first["λ1 = 0.5", seed] == second["half", seed]
        assert first["full", seed] == second["whole", seed]


def test_what_is_tracked_besides_does_not_change_the_key(project: Path) -> None:
    write_study(project, STUDY.replace("[0.5, 1.0]", "[0.5]"))
    study = load_study(find_study("tiny", project), project=project)
    trials = expand(study, {store_id(arm.config.data): FACTS for arm in study.arms})
    assert [trial.config.evaluation.track_embeddings for trial in trials] == [True, False, False, False]
    assert [(trial.arm, trial.seed) for trial in trials] == [("full", 0), ("λ1 = 0.5", 0), ("full", 1), ("λ1 = 0.5", 1)]


def test_workers_get_absolute_paths_and_the_store_the_paths_as_written(project: Path) -> None:
    write_study(project, STUDY.replace("[0.5, 1.0]", "[0.5]"))
    study = load_study(find_study("tiny", project), project=project)
    trials = expand(study, {store_id(arm.config.data): FACTS for arm in study.arms})
    spec = specify(trials, study="tiny", place=TrackingPlace.of_project(project), project=project, parent_run_id="p",
                   environment={}, is_private_tracked=False)[1]
    assert spec.run_config().data.root == str(project / "data/phantom/tiny")
    assert spec.tracked_config() == trials[1].config
    assert absolute_places(Config.model_validate({"data": {"root": "/data", "vocabulary": "bert"}}), project) == {
        "data.root": "/data"}
    # Local weights, in the folder from which the sweep was started.
    (project / "deit").mkdir()
    (project / "medst.ckpt").touch()
    local = override(Config(), {"data.root": "/data", "model.image.name": "local-dir:deit",
                                "model.weights": "medst.ckpt", "model.text.name": "emilyalsentzer/Bio_ClinicalBERT"})
    assert absolute_places(local, project) == {
        "data.root": "/data", "model.image.name": f"local-dir:{project / 'deit'}",
        "model.weights": str(project / "medst.ckpt")}


def test_the_command_line_sets_what_no_arm_is_about(project: Path) -> None:
    """Otherwise `--set training.epochs=1` would train the untrained arm, and make it the full one."""
    write_study(project, STUDY.replace("  full: {}", "  full: {}\n  untrained: {training.epochs: 0.0}"))
    study = load_study(find_study("tiny", project), project=project,
                       overrides={"training.epochs": 1.0, "objective.lambda_local": 3.0})
    assert {arm.name: (arm.config.training.epochs, arm.config.objective.lambda_local) for arm in study.arms} == {
        "full": (1.0, 3.0), "untrained": (0.0, 3.0), "λ1 = 0.5": (1.0, 0.5), "λ1 = 1.0": (1.0, 1.0)}


def test_outcomes_that_the_data_cannot_give_are_told_before_the_run(project: Path, monkeypatch: pytest.MonkeyPatch
                                                                    ) -> None:
    lacking = DataFacts("open", "fingerprint", False, {"score": "the data have no scores"})
    monkeypatch.setattr(commands, "existing_data", lambda study, folder: {
        store_id(arm.config.data): lacking for arm in study.arms})
    output = StringIO()
    plan_sweep("tiny", project=project, console=Console(file=output, width=200))
    assert "Without result on these data: test/score (the data have no scores)." in output.getvalue()
    assert "The primary outcome is one of them" in output.getvalue()


def test_a_foreign_base_has_no_guess_of_time(project: Path) -> None:
    (project / "other.yaml").write_text("training: {epochs: 9.0}\n")
    output = StringIO()
    for base in (None, Path("other.yaml")):
        plan_sweep("tiny", base=base, project=project, console=Console(file=output, width=200))
    own, other = output.getvalue().split("4 to run")[1:]
    assert "a guess" in own and "a guess" not in other and "--dry-run" in other


def test_short_trials_say_nothing_of_the_time_of_long_ones(project: Path) -> None:
    write_study(project, STUDY.replace("  full: {}\n", "  full: {}\n  untrained: {training.epochs: 0.0}\n"))
    study = load_study(find_study("tiny", project), project=project)
    trials = expand(study, {store_id(arm.config.data): FACTS for arm in study.arms})
    untrained = [trial for trial in trials if trial.arm == "untrained"]
    assert 0 < len(untrained) < len(trials)
    ledger = Ledger({untrained[0].key: LedgerEntry(TrialState.FINISHED, seconds=2.0)})
    guess = study.file.seconds_per_trial
    assert list(Plan(study, trials, ledger, 1).seconds(trials)) == [
        2.0 if trial.arm == "untrained" else guess for trial in trials]
    # One that trains for as long tells of all that do.
    longer = next(trial for trial in trials if trial.arm != "untrained")
    ledger = Ledger({**ledger.entries, longer.key: LedgerEntry(TrialState.FINISHED, seconds=70.0)})
    assert list(Plan(study, trials, ledger, 1).seconds(trials)) == [
        2.0 if trial.arm == "untrained" else 70.0 for trial in trials]


# ---- Running -----------------------------------------------------------------------------------------------------


@pytest.fixture
def study(project: Path) -> Path:
    write_study(project, STUDY.replace("[0.5, 1.0]", "[0.5]"))
    return project


def test_a_study_runs_once(study: Path) -> None:
    code, output = run(study)
    assert code == 0
    assert "2 arms x 2 seeds = 4 trials; 0 finished, 4 to run: about 4 min 00 s on 1 core" in output
    assert "all 4 trials are finished" in output
    frame = load_runs(study="tiny")
    assert sorted(zip(frame["arm"], frame["seed"], strict=True)) == [
        ("full", 0), ("full", 1), ("λ1 = 0.5", 0), ("λ1 = 0.5", 1)]
    assert set(frame["state"]) == {"finished"}
    plan = load_plan("tiny")
    assert {trial["key"] for trial in plan["trials"]} == set(frame["key"]) == set(keys(study).values())
    assert [arm["name"] for arm in plan["arms"]] == ["full", "λ1 = 0.5"]
    parents = set(frame["tags.mlflow.parentRunId"])
    assert len(parents) == 1
    assert client(TrackingPlace.of_project(study).uri).get_run(parents.pop()).info.status == "FINISHED"
    assert not list((study / "runs" / "checkpoints").iterdir())

    code, output = run(study, trial_function=forbidden)
    assert code == 0 and "4 finished, 0 to run." in output and len(load_runs()) == 4


def forbidden(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    raise AssertionError("computed twice")


def test_shared_trials_are_computed_once_and_carry_both_studies(study: Path) -> None:
    run(study)
    write_study(study, STUDY[:STUDY.index("arms:")].replace("name: tiny", "name: other").replace("full", "half")
                + "arms:\n  half: {objective.lambda_local: 0.5}\n", "other")
    code, output = run(study, "other", trial_function=forbidden)
    assert code == 0 and "2 finished (2 shared with other studies), 0 to run." in output
    assert set(load_runs(study="other")["arm"]) == {"half"} and len(load_runs()) == 4


def failing(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    if config.objective.lambda_local == 0.5 and config.seed == 1:
        yield Metrics(1, {"train/loss": 1.0})
        raise FloatingPointError("step 2: loss/local is not finite")
    yield from fake_trial(config, checkpoint_dir)


def test_a_failed_trial_stays_failed_until_asked(study: Path) -> None:
    code, output = run(study, trial_function=failing)
    assert code == 1
    assert "failed: λ1 = 0.5 · seed 1: FloatingPointError: step 2: loss/local is not finite" in output
    assert "1 of 4 trials failed" in output
    place = TrackingPlace.of_project(study)

    def status() -> str:
        return str(client(place.uri).get_run(study_run_id("tiny", place.uri, place.experiment)).info.status)

    assert status() == "FAILED"
    ledger = read_ledger(TrackingPlace.of_project(study), keys(study).values())
    entry = ledger[keys(study)["λ1 = 0.5", 1]]
    assert entry.state is TrialState.FAILED and "not finite" in str(entry.reason)
    assert "failure/traceback.txt" in list_artifacts(str(entry.run_id))

    code, output = run(study, trial_function=forbidden)
    assert code == 1 and "3 finished, 1 failed, 0 to run." in output
    code, _ = run(study, should_retry_failed=True)
    assert code == 0 and len(load_runs()) == 4 and status() == "FINISHED"


def test_an_interrupted_study_goes_on(study: Path) -> None:
    def interrupted(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
        for record in fake_trial(config, checkpoint_dir):
            yield record
            if config.seed == 1 and isinstance(record, Metrics) and record.step == 5:
                raise KeyboardInterrupt

    code, output = run(study, trial_function=interrupted)
    assert code == commands.INTERRUPTED_CODE
    assert "Stopped: 2 of 4 trials are finished. The same command goes on from here." in output
    assert set(load_runs()["status"]) == {"FINISHED", "KILLED"}
    code, _ = run(study)
    frame = load_runs()
    assert code == 0 and len(frame) == 4 and set(frame["state"]) == {"finished"}
    resumed = frame[frame["tags.medst.attempts"] == "2"]
    assert len(resumed) == 1
    steps = metric_history(list(resumed["run_id"]), ["train/loss"])["step"]
    assert list(steps) == [1, 2, 3, 4, 5, 6], "it went on from its checkpoint and doubled nothing"


def test_the_ledger_tells_dead_from_alive_by_the_lock(study: Path) -> None:
    place, key = TrackingPlace.of_project(study), keys(study)["full", 0]
    assert read_ledger(place, [key])[key].state is TrialState.MISSING
    stream = track(fake_trial(Config(), None), describe(key), place)
    next(stream)
    assert read_ledger(place, [key])[key].state is TrialState.RUNNING
    stream.close()
    client(place.uri).update_run(load_runs()["run_id"].iloc[0], status="RUNNING")
    entry = read_ledger(place, [key])[key]
    assert entry.state is TrialState.MISSING and entry.is_marked_running, "its process is gone"


KILLED_SWEEP = """
import os, signal, sys
from pathlib import Path
from medst.records import Metrics
from sweeps import commands
from tracking_fixtures import fake_trial
from test_sweeps import FACTS, store_id

commands.ensure_data = lambda study, *rest: {store_id(arm.config.data): FACTS for arm in study.arms}

def deadly(config, checkpoint_dir):
    for record in fake_trial(config, checkpoint_dir):
        yield record
        if config.seed == 1 and isinstance(record, Metrics) and record.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

commands.run_sweep("tiny", executor="inline", project=Path(sys.argv[1]), trial_function=deadly)
"""


def test_a_study_goes_on_after_a_kill_of_everything(study: Path, repository: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{repository}:{repository / 'tests'}"}
    killed = subprocess.run([sys.executable, "-c", KILLED_SWEEP, str(study)], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    ledger = read_ledger(TrackingPlace.of_project(study), keys(study).values())
    assert sorted(ledger[key].state.value for key in keys(study).values()) == ["finished"] * 2 + ["missing"] * 2
    assert list(load_runs()["status"]).count("RUNNING") == 1

    code, output = run(study)
    frame = load_runs()
    assert code == 0 and "2 finished, 2 to run" in output
    assert len(frame) == 4 and set(frame["status"]) == {"FINISHED"}
    assert list(metric_history(list(frame["run_id"]), ["train/loss"])["step"]) == [1, 2, 3, 4, 5, 6] * 4
    undisturbed = [last_values(override(Config(), {"seed": seed, "objective.lambda_local": weight}))["test/score"]
                   for seed in (0, 1) for weight in (1.0, 0.5)]
    assert sorted(frame["metrics.test/score"]) == sorted(undisturbed), "bit for bit"


def last_values(config: Config) -> dict[str, float]:
    """The last value of every metric of an undisturbed trial."""
    return {name: value for record in fake_trial(config, None) if isinstance(record, Metrics)
            for name, value in record.values.items()}


def test_two_drivers_of_one_study_are_refused(study: Path) -> None:
    locks = study / "runs" / "locks"
    locks.mkdir(parents=True)
    with FileLock(locks / "study-tiny.lock"), pytest.raises(StudyBusyError, match="is being run by another process"):
        run(study)


def test_a_source_that_changed_meanwhile_computes_nothing(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps import worker

    monkeypatch.setattr(worker, "source_fingerprint", lambda: "other")
    code, output = run(study, trial_function=forbidden)
    assert code == 1 and "the source changed after the sweep had begun" in output and load_runs().empty


def test_planning_an_untouched_project_writes_nothing(repository: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    output = StringIO()
    console = Console(file=output, width=200)
    base = repository / "experiments" / "phantom_smoke.yaml"
    assert plan_sweep("smoke", base=base, project=tmp_path, executor="inline", console=console) == 0
    assert "3 trials; 0 finished, 3 to run: about 30 s on 1 core (10 s a trial, a guess)" in output.getvalue()
    assert "The data are not prepared yet" in output.getvalue() and not list(tmp_path.iterdir())


def test_planning_runs_and_writes_nothing(study: Path) -> None:
    output = StringIO()
    console = Console(file=output, width=200)
    assert plan_sweep("tiny", ["training.epochs=3.0"], project=study, jobs=2, console=console) == 0
    assert "4 trials; 0 finished, 4 to run: about 2 min 00 s on 2 cores" in output.getvalue()
    assert load_runs().empty and not (study / "runs").exists()


def test_durations_read_well() -> None:
    assert [duration(seconds) for seconds in (12.4, 200, 1500, 7500)] == ["12 s", "3 min 20 s", "25 min", "2 h 05 min"]


@pytest.mark.parametrize(("failures", "starts", "ends_with"), [
    ([Exception("timed out during startup")], 2, None),
    ([Exception("timed out during startup")] * 4, 4, "Ray did not start within 30 s, 4 times.* --executor inline"),
    ([ValueError("wrong setting")], 1, "wrong setting")])
def test_a_slow_start_of_ray_is_tried_again(failures: list[Exception], starts: int, ends_with: str | None,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from sweeps import cluster

    calls, left = [], []

    def init(**settings: Any) -> None:
        # What earlier starts left behind is gone, and nothing else.
        assert own.poll() is None and all(process.poll() is not None for process in left)
        calls.append(settings["num_cpus"])
        if len(calls) <= len(failures):
            left.append(subprocess.Popen(["sleep", "60"]))
            raise failures[len(calls) - 1]

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    own = subprocess.Popen(["sleep", "60"])

    def start() -> None:
        assert cluster.run_on_ray([], LiveView("tiny", 0, 1.0, 1, Console(file=StringIO())), Path("none"), 2) == []

    try:
        if ends_with is None:
            start()
        else:
            with pytest.raises(ValueError, match=ends_with):
                start()
    finally:
        for process in (own, *left):
            process.kill()
            process.wait()
    assert calls == [2] * starts


def test_ray_runs_a_study_and_survives_a_lost_worker(study: Path) -> None:
    import ray
    import tracking_fixtures

    flag = str(study / "killed")
    # Workers need not find the files of the tests.
    ray.cloudpickle.register_pickle_by_value(tracking_fixtures)

    def deadly(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
        for record in fake_trial(config, checkpoint_dir):
            yield record
            if config.seed == 0 and isinstance(record, Metrics) and record.step == 3 and not Path(flag).exists():
                Path(flag).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if config.seed == 1 and config.objective.lambda_local == 0.5:
            raise FloatingPointError("not finite")

    code, output = run(study, executor="ray", jobs=1, trial_function=deadly)
    frame = load_runs(study="tiny").set_index(["arm", "seed"])
    assert code == 1 and "failed: λ1 = 0.5 · seed 1: FloatingPointError: not finite" in output
    assert len(frame) == 4 and list(frame["state"]).count("finished") == 3
    assert frame.loc[("λ1 = 0.5", 1), "state"] == "failed"
    assert Path(flag).exists() and list(frame["tags.medst.attempts"]).count("2") == 1
    steps = metric_history(list(frame["run_id"]), ["train/loss"]).groupby("run_id")["step"].apply(list)
    assert all(list(found) == [1, 2, 3, 4, 5, 6] for found in steps)
    assert not list((study / "runs" / "ray").iterdir()), "no state of Tune outlives the sweep"

    code, output = run(study, trial_function=fake_trial, should_retry_failed=True)
    assert code == 0 and "3 finished, 1 failed, 1 to run" in output and len(load_runs()) == 4


# ---- In one's own Tuner ------------------------------------------------------------------------------------------


class FakeTune:
    """What the public trainable asks of Ray Tune, without Ray."""

    def __init__(self, restored: Path | None = None) -> None:
        self.reports: list[tuple[dict[str, float], str | None]] = []
        self.restored = restored
        self.Checkpoint = self

    def report(self, metrics: dict[str, float], checkpoint: str | None = None) -> None:
        self.reports.append((metrics, checkpoint))

    def from_directory(self, folder: str) -> str:
        return (Path(folder) / "state.json").read_text()

    def get_checkpoint(self) -> FakeTune | None:
        return self if self.restored else None

    def to_directory(self, folder: str) -> None:
        assert self.restored is not None
        shutil.copytree(self.restored, folder)

    def get_context(self) -> FakeTune:
        return self

    def get_trial_resources(self) -> FakeTune:
        return self

    required_resources = {"CPU": 1.0}  # noqa: RUF012 - as Ray has it


def test_the_public_trainable_reports_and_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps import trainable

    monkeypatch.setenv("TUNE_ORIG_WORKING_DIR", str(project))
    tuned = FakeTune()
    monkeypatch.setattr(trainable, "tune", tuned)
    trainable.medst_trainable({"base": "base.yaml", "objective.lambda_local": 0.25}, fake_trial)
    metrics, _ = tuned.reports[-1]
    assert metrics["step"] == 6 and metrics["test/score"] == last_values(
        override(Config(), {"objective.lambda_local": 0.25}))["test/score"]
    checkpoints = [checkpoint for _, checkpoint in tuned.reports if checkpoint]
    assert len(checkpoints) == 2

    saved = project / "restored"
    saved.mkdir()
    (saved / "state.json").write_text(checkpoints[-1])
    again = FakeTune(saved)
    monkeypatch.setattr(trainable, "tune", again)
    trainable.medst_trainable({"base": ["base.yaml"], "objective.lambda_local": 0.25}, fake_trial)
    assert [metrics["step"] for metrics, _ in again.reports] == [5, 6, 6]
    assert again.reports[-1][0]["test/score"] == metrics["test/score"]
    with pytest.raises(ConfigError, match=r"nearest key is 'objective\.lambda_local'"):
        trainable.medst_trainable({"objective.lambda_locl": 0.25}, fake_trial)
