"""The command line as a user meets it: help without waiting, errors in one line, the exit codes."""

from __future__ import annotations

import ast
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tracking_fixtures import fake_trial, fresh_place

from medst import trial
from medst.cli import main
from medst.cli.dashboard import is_free, require_free_port
from medst.cli.display import explain
from medst.cli.settings import field_documentation
from medst.cli.sweep import is_study
from medst.config import Config, flatten, known_keys, load_config
from medst.data import provision
from medst.data.phantom import PRESETS
from sweeps.commands import plan_sweep


def medst(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`, as from a wide terminal without colours."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "NO_COLOR": "1", **environment}
    command = [sys.executable, "-m", "medst", *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


ROOT = Path(__file__).resolve().parent.parent

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(repository)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medst", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capfd.readouterr()
        assert caught.value.code is None or isinstance(caught.value.code, int)
        return caught.value.code or 0, captured.out, captured.err

    return call


# ---- Help --------------------------------------------------------------------------------------------------------


def test_help_is_instant_and_names_every_command(repository: Path) -> None:
    def processor_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    # Processor time, since other tests may keep the machine busy.
    began = processor_seconds()
    done = medst(repository, "--help")
    assert processor_seconds() - began < 0.5
    assert done.returncode == 0
    for command in ("data", "train", "evaluate", "sweep", "results", "dashboard", "config"):
        assert re.search(rf"\b{command}\b", done.stdout), command


@pytest.mark.parametrize(
    "command",
    [
        ["data"], ["data", "phantom"], ["data", "prepare"], ["data", "inspect"], ["data", "contact-sheet"], ["train"],
        ["evaluate"], ["sweep"], ["sweep", "run"], ["sweep", "plan"], ["results"], ["dashboard"], ["config"],
        ["config", "keys"], ["config", "show"],
    ],
)
def test_every_command_has_help(run: Run, command: list[str]) -> None:
    code, output, _ = run(*command, "--help")
    assert code == 0
    assert "Usage" in output


def test_nothing_heavy_is_imported_before_a_command_runs(repository: Path) -> None:
    paths = sorted((repository / "medst" / "cli").glob("*.py"))
    assert len(paths) >= 9
    for path in paths:
        tree = ast.parse(path.read_text())
        top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
        foreign = {name for name in top if name.split(".")[0] not in sys.stdlib_module_names}
        assert {name for name in foreign if not f"{name}.".startswith("medst.cli.")} == {"typer"}, path


# ---- Settings ----------------------------------------------------------------------------------------------------


def test_every_setting_is_listed_with_its_default_and_almost_every_one_is_explained(repository: Path) -> None:
    done = medst(repository, "config")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert listed[1:] == list(known_keys())
    documentation = field_documentation(Config)
    assert set(documentation) <= set(known_keys())
    assert len(documentation) >= 45
    assert documentation["training.clip_norm"] == "Largest gradient norm; 0: no clipping, as published."


def test_shown_settings_load_as_the_same_config(repository: Path, tmp_path: Path) -> None:
    done = medst(repository, "config", "show", "experiments/phantom_tiny.yaml", "--set", "seed=3", "--set",
                 "training.learning_rate=3.0e-5")
    assert done.returncode == 0
    path = tmp_path / "shown.yaml"
    path.write_text(done.stdout)
    expected = load_config(repository / "experiments/phantom_tiny.yaml",
                           overrides={"seed": 3, "training.learning_rate": 3.0e-5})
    assert load_config(path) == expected
    assert yaml.safe_load(done.stdout)["objective"]["lambda_local"] == flatten(expected)["objective.lambda_local"]


# ---- Errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["config", "show", "--set", "objective.lamda_local=1.0"], ["objective.lamda_local", "objective.lambda_local"]),
        (["config", "show", "--set", "training.learning_rate=fast"], ["training.learning_rate", "fast"]),
        (["config", "show", "experiments/phantom_tniy.yaml"], ["phantom_tniy.yaml", "phantom_tiny.yaml"]),
        (["config", "keys", "tempratur"], ["tempratur", "temperature"]),
        (["data", "phantom", "--preset", "tny"], ["tny", "tiny"]),
        (["data", "phantom", "--set", "labeler_noise=0.1"], ["labeler_noise", "labeller_noise"]),
        (["data", "inspect", "nowhere"], ["nowhere"]),
        (["train", "experiments/phantom_tiny.yaml", "--set", "trainig.epochs=1.0"], ["training.epochs"]),
        (["train", "experiments/phantom_tiny.yaml", "--set", "data.root=nowhere/at/all"], ["nowhere/at/all"]),
        (["train", "experiments/phantom_tiny.yaml", "--set", "training.pairs_per_batch=1"], ["pairs_per_batch"]),
        (["evaluate", "--weights", "nowhere"], ["nowhere"]),
        (["sweep", "run", "overviw"], ["overviw", "overview"]),
        (["sweep", "overview", "--set", "training.epoch=1.0"], ["training.epochs"]),
        (["sweep", "plan", "overview", "--base", "experiments/none.yaml"], ["experiments/none.yaml"]),
    ],
)
def test_a_wrong_request_is_one_clear_error(run: Run, arguments: list[str], parts: list[str]) -> None:
    code, _, errors = run(*arguments)
    assert code == 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and all(part in lines[0] for part in parts), errors


def test_debug_shows_where_the_error_comes_from(repository: Path) -> None:
    done = medst(repository, "config", "show", "--set", "sed=1", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ConfigError" in done.stderr


def test_an_unknown_option_is_refused(run: Run) -> None:
    assert run("config", "show", "--sett", "seed=1")[0] == 2


# ---- A tracked trial ---------------------------------------------------------------------------------------------


def test_a_tracked_trial_is_the_one_that_a_sweep_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    """From nothing but an experiment file: the phantom is written, the trial tracked, the study finds it finished."""
    few = PRESETS["smoke"].model_copy(update={
        "num_train": 4, "num_validate": 2, "num_test": 2, "num_rsna": 2, "num_covidx_train": 3, "num_covidx_test": 3,
        "num_sentence_pairs": 4})
    monkeypatch.setattr(provision, "PRESETS", {"smoke": few})
    monkeypatch.setattr(trial, "run_trial", fake_trial)
    # One process writes the phantom: spawned ones would not see the small preset.
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", fresh_place(tmp_path).uri)
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("data: {root: data/phantom/smoke}\n")
    Path("alone.yaml").write_text("name: alone\nquestion: q\nbase: [base.yaml]\nreference: full\n"
                                  "primary_metric: test/score\nseeds: [0, 1]\narms: {full: {}}\n")
    monkeypatch.setattr(sys, "argv", ["medst", "train", "base.yaml", "--track"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code, capsys.readouterr().err
    assert plan_sweep("alone.yaml", executor="inline") == 0
    assert "2 trials; 1 finished, 1 to run" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main()
    assert "is computed once" in capsys.readouterr().err.replace("\n", " ")


# ---- Dashboard ---------------------------------------------------------------------------------------------------


def test_a_taken_port_is_refused_with_a_free_one(run: Run) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = server.getsockname()[1]
        code, _, errors = run("dashboard", "--port", str(taken))
    assert code == 2
    message = re.search(r"port (\d+) on 127\.0\.0\.1 is taken.*port (\d+) is free", errors)
    assert message and int(message[1]) == taken != int(message[2])
    assert is_free(int(message[2]))


def test_a_port_is_free_again_when_its_server_has_gone() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)
    require_free_port(port)


def test_a_tracking_server_needs_no_second_dashboard(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, output, _ = run("dashboard")
    assert code == 0
    assert "http://127.0.0.1:9" in output


# ---- Small things ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["overview"], True), (["run", "overview"], False), (["plan"], False), (["--help"], False), ([], False)],
)
def test_a_study_may_stand_directly_after_sweep(arguments: list[str], expected: bool) -> None:
    assert is_study(arguments) is expected


def test_errors_of_the_machine_name_the_place(tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    with pytest.raises(FileNotFoundError) as caught:
        missing.read_text()
    assert explain(caught.value) == f"{missing}: No such file or directory"
    assert explain(OSError("no space")) == "no space"


def test_a_missing_extra_names_the_extra() -> None:
    error = ModuleNotFoundError("No module named 'ray'", name="ray.tune")
    assert explain(error).endswith("pip install 'medst[sweep]'")


def test_telemetry_is_off_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["medst", "config", "keys", "seed"])
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
