"""Searches: the space, the file, the rungs, and that the tracking store alone remembers."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tracking_fixtures import fresh_place

from medst.config import Config
from medst.records import Checkpoint, Facts, Metrics, Progress, Record
from medst.tracking import TrackingPlace, TrialState, load_runs
from medst.tracking.members import load_group_plan, member_trials
from sweeps import search as searches
from sweeps.search import best_attempts, run_search, study_of_best, trials_frame
from sweeps.searching.history import Attempt, Proposal, definition_of, optuna_study, propose, read_attempts
from sweeps.searching.importance import importances
from sweeps.searching.rungs import Rungs, goes_on, watched
from sweeps.searching.search_file import LOSSES, SCORES, Search, find_search, load_search
from sweeps.searching.space import Parameter, Space
from sweeps.study import load_study
from sweeps.study_errors import StudyError
from sweeps.trials import DataFacts

FACTS = DataFacts("phantom", "fingerprint", False)
AUROC = "validation/finding_zero_shot/mean/auroc"
STEPS = 9
PAIRS = 900

SEARCH = """\
name: weights
question: Which weights of the losses?
base: [base.yaml]
objectives: [validation/finding_zero_shot/mean/auroc]
trials: 12
sampler: {kind: tpe, startup_trials: 4}
pruning: {first_pairs: 100, reduction: 3}
space:
  objective.lambda_local: {low: 0.01, high: 10.0, log: true, label: λ1}
  objective.curriculum.kind: {choices: [joint, staged, ramp]}
  objective.curriculum.ramp_fraction: {low: 0.1, high: 0.5, when: {objective.curriculum.kind: ramp}}
  training.pairs_per_batch: {low: 16, high: 64, log: true}
"""


def quality(config: Config) -> float:
    """Best at λ1 = 1 and a ramp of 0.3."""
    objective = config.objective
    bonus = 0.1 - (objective.curriculum.ramp_fraction - 0.3) ** 2 if objective.curriculum.kind == "ramp" else 0.0
    return 0.8 - 0.1 * math.log10(objective.lambda_local) ** 2 + bonus


def synthetic_trial(config: Config, folder: Path | None) -> Iterator[Record]:
    """Rises to its quality over STEPS validations; checkpoints every second step and goes on from there."""
    yield Facts({"pairs_seen": PAIRS, "training_steps": STEPS})
    state = None if folder is None else folder / "state.json"
    done = json.loads(state.read_text()) if state is not None and state.exists() else 0
    for step in range(done + 1, STEPS + 1):
        yield Progress(step, STEPS)
        if step < STEPS:
            yield Metrics(step, {"validation/loss": 1.0 / step, AUROC: quality(config) * step / STEPS})
            if state is not None and step % 2 == 0:
                state.write_text(json.dumps(step))
                yield Checkpoint(step, state.parent)
    yield Metrics(STEPS, {AUROC: quality(config), "validation/retrieval/r5": config.objective.lambda_local / 10})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path / "project", monkeypatch)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which the search has run; tests only read it."""
    patch = pytest.MonkeyPatch()
    folder = make_project(tmp_path_factory.mktemp("searched") / "project", patch)
    assert run(folder)[0] == 0
    patch.undo()
    yield folder


@pytest.fixture
def at_searched(searched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{searched / 'mlflow.db'}")
    monkeypatch.setattr(searches, "data_of", lambda *arguments: FACTS)
    return searched


def make_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = fresh_place(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    (folder / "base.yaml").write_text("training: {epochs: 2.0}\n")
    (folder / "sweeps" / "searches").mkdir(parents=True)
    (folder / "sweeps" / "searches" / "weights.yaml").write_text(SEARCH)
    monkeypatch.setattr(searches, "data_of", lambda *arguments: FACTS)
    return folder


def write(project: Path, text: str, name: str = "weights") -> Path:
    path = project / "sweeps" / "searches" / f"{name}.yaml"
    path.write_text(text)
    return path


def load(project: Path, text: str = SEARCH) -> Search:
    return load_search(write(project, text), project=project)


def run(project: Path, **options: Any) -> tuple[int, str]:
    output = StringIO()
    given_options = {"executor": "inline", "trial_function": synthetic_trial, **options}
    code = run_search("weights", project=project, console=Console(file=output, width=200), **given_options)
    return code, output.getvalue()


def attempts_of(project: Path, **options: Any) -> list[Attempt]:
    place = TrackingPlace.of_project(project)
    search = load_search(find_search("weights", project), project=project, **options)
    return read_attempts(place.uri, place.experiment, search, definition_of(search, FACTS.fingerprint))


def story(attempts: list[Attempt]) -> list[tuple[Any, ...]]:
    """What must not depend on kills: all but run ids and seconds."""
    return [(attempt.proposal, attempt.key, attempt.state, attempt.objectives, dict(attempt.rungs), attempt.reason)
            for attempt in attempts]


# ---- The space ---------------------------------------------------------------------------------------------------

KEYS = ("a", "b", "c", "d")


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Spaces of up to four parameters whose conditions look back at parameters with choices."""
    parameters: list[Parameter] = []
    for key in KEYS[: draw(st.integers(1, 4))]:
        earlier = [other for other in parameters if other.choices]
        when = {}
        for other in earlier:
            if draw(st.booleans()):
                when[other.key] = tuple(draw(st.lists(st.sampled_from(other.choices), min_size=1, unique=True)))
        if draw(st.booleans()):
            choices = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)))
            parameters.append(Parameter(key, choices=choices, when=when))
        else:
            parameters.append(Parameter(key, low=1.0, high=4.0, is_log=draw(st.booleans()),
                                        levels=(1.0, 2.0, 4.0), when=when))
    return Space(tuple(parameters))


def exists_slowly(space: Space, key: str, values: dict[str, Any]) -> bool:
    """By the words of the file: every condition's parameter exists, and has one of the values."""
    parameter = next(parameter for parameter in space.parameters if parameter.key == key)
    return all(exists_slowly(space, other, values) and values.get(other) in allowed
               for other, allowed in parameter.when.items())


@given(spaces(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_proposal_holds_the_parameters_that_exist_and_no_other(space: Space, seed: int) -> None:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    values = space.suggest(trial)
    for parameter in space.parameters:
        assert (parameter.key in values) == exists_slowly(space, parameter.key, values)
    assert dict(trial.params) == values
    # What was drawn can be given back to a study.
    optuna.trial.create_trial(value=0.0, params=values, distributions=space.distributions(values))


@given(spaces())
@settings(max_examples=60, deadline=None)
def test_a_grid_is_every_combination_that_exists_once(space: Space) -> None:
    found = list(space.grid())
    expected = set()
    for levels in itertools.product(*[parameter.choices or parameter.levels for parameter in space.parameters]):
        values = dict(zip([parameter.key for parameter in space.parameters], levels, strict=True))
        expected.add(tuple((key, value) for key, value in values.items() if exists_slowly(space, key, values)))
    assert len(found) == len(expected)
    assert {tuple(values.items()) for values in found} == expected


def test_ranges_become_the_distributions_that_they_say(project: Path) -> None:
    space = load(project).space
    kinds = {parameter.key: parameter.distribution for parameter in space.parameters}
    assert kinds["objective.lambda_local"] == optuna.distributions.FloatDistribution(0.01, 10.0, log=True)
    assert kinds["training.pairs_per_batch"] == optuna.distributions.IntDistribution(16, 64, log=True)
    assert kinds["objective.curriculum.kind"] == optuna.distributions.CategoricalDistribution(
        ("joint", "staged", "ramp"))


# ---- The file ----------------------------------------------------------------------------------------------------


def problems_of(project: Path, text: str) -> list[str]:
    with pytest.raises(StudyError) as error:
        load(project, text)
    return str(error.value).splitlines()


def test_a_test_metric_is_refused_with_the_validation_metric_meant(project: Path) -> None:
    (line,) = problems_of(project, SEARCH.replace("[validation/finding", "[test/finding"))
    assert ":4:" in line and "never sees test patients" in line and line.endswith(f"nearest is '{AUROC}'")
    (line,) = problems_of(project, SEARCH.replace(AUROC, "validation/retrieval/r6"))
    assert "no validation metric; the nearest is 'validation/retrieval/r" in line


def test_a_loss_whose_meaning_the_search_changes_is_no_objective(project: Path) -> None:
    (line,) = problems_of(project, SEARCH.replace(AUROC, "validation/loss"))
    assert "its meaning changes with objective.lambda_local" in line
    only_rate = SEARCH[:SEARCH.index("space:")] + "space:\n  training.learning_rate: {low: 1.0e-4, high: 1.0e-2}\n"
    assert load(project, only_rate.replace(AUROC, "validation/loss")).directions == ("minimize",)


def test_all_problems_of_a_file_are_told_at_once_with_their_lines(project: Path) -> None:
    lines = problems_of(project, """\
name: weights
question: q
base: [base.yaml]
settings: {evaluation.tasks: [retrieval]}
objectives: [validation/retrieval/r5, validation/acc1]
trials: 3
pruning: {first_pairs: 10}
scientific: [objective.lambda_locl]
space:
  objective.lambda_local: {low: 1.0, high: 0.1}
  objective.lambda_temporl: {choices: [0.1, 0.2]}
  objective.curriculum.ramp_fraction: {low: 0.1, high: 0.5, when: {objective.curriculum.kind: ramp}}
  data.views: {choices: [both, sideways]}
  data.lateral_fraction: {low: 0.1}
""")
    told = [(int(line.split(":")[1]), line) for line in lines]
    for number, part in ((4, "'evaluation.tasks' is set by the search"), (7, "several objectives"),
                         (8, "nearest is 'objective.lambda_local'"), (10, "low must lie below high"),
                         (11, "nearest key is 'objective.lambda_temporal'"), (12, "which is no earlier parameter"),
                         (13, "data.views"), (14, "either choices, or low and high")):
        assert any(line == number and part in text for line, text in told), (number, part, lines)

    lines = problems_of(project, SEARCH.replace("first_pairs", "first_pair").replace("label:", "lable:"))
    assert any("unknown key 'first_pair'; the nearest is 'first_pairs'" in line for line in lines)
    assert any("unknown key 'lable'; the nearest is 'label'" in line for line in lines)
    assert any("'first_pairs' is missing" in line for line in lines)


def test_trials_of_a_search_look_at_validation_patients_alone(project: Path) -> None:
    config = load(project).config({"objective.lambda_local": 0.5})
    assert config.evaluation.tasks == ("validation",) and config.evaluation.validation_scores == "every"
    assert config.objective.lambda_local == 0.5 and config.training.epochs == 2.0


def test_every_search_of_the_package_loads(repository: Path) -> None:
    paths = sorted((repository / "sweeps" / "searches").glob("*.yaml"))
    assert len(paths) >= 3
    for path in paths:
        search = load_search(path, project=repository)
        assert search.name == path.stem
        assert set(search.file.objectives) <= {*SCORES, *LOSSES}


# ---- Rungs -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), max_size=20), st.floats(-5, 5), st.integers(2, 5), st.booleans())
@settings(max_examples=300)
def test_the_judgement_equals_sorting_and_counting(others: list[float], value: float, reduction: int,
                                                   is_maximised: bool) -> None:
    ranked = sorted([other for other in others if not math.isnan(other)] + [value], reverse=is_maximised)
    if len(ranked) < reduction:
        expected = True
    else:
        # The worst value that is still among the best floor(n / reduction).
        worst_kept = ranked[len(ranked) // reduction - 1]
        expected = value >= worst_kept if is_maximised else value <= worst_kept
    assert goes_on(value, others, reduction, is_maximised) == expected
    assert not goes_on(math.nan, others, reduction, is_maximised)


def test_rungs_lie_before_the_end_of_training() -> None:
    rungs = Rungs("s", "d", AUROC, True, 100, 3, "", "")
    assert rungs.of_budget(900) == [100, 300]
    assert rungs.of_budget(901) == [100, 300, 900]
    assert rungs.of_budget(100) == []


def test_a_search_prunes_as_a_slow_reference_that_sees_everything(at_searched: Path) -> None:
    search = load(at_searched)
    seen: dict[int, list[float]] = {100: [], 300: []}
    found = attempts_of(at_searched)
    assert [attempt.number for attempt in found] == list(range(12))
    for attempt in found:
        final = quality(search.config(attempt.proposal.values))
        expected = TrialState.FINISHED
        for rung, step in ((100, 1), (300, 3)):
            value = final * step / STEPS
            seen[rung].append(value)
            assert attempt.rungs[rung] == pytest.approx(value, abs=1e-12)
            ranked = sorted(seen[rung], reverse=True)
            if len(ranked) >= 3 and value < ranked[len(ranked) // 3 - 1]:
                expected = TrialState.PRUNED
                break
        assert attempt.state is expected, attempt
        if expected is TrialState.PRUNED:
            assert attempt.reason is not None and attempt.reason.startswith(f"rung of {rung} pairs: {AUROC} = ")
            assert attempt.objectives is None and attempt.seconds is not None
        else:
            assert attempt.objectives == (pytest.approx(final, abs=1e-12),)
    states = {attempt.state for attempt in found}
    assert states == {TrialState.FINISHED, TrialState.PRUNED}


def test_a_rung_that_was_passed_stays_passed_and_one_that_was_not_is_judged_again(tmp_path: Path) -> None:
    place = fresh_place(tmp_path / "project")
    rungs = Rungs("weights", "d", AUROC, True, 100, 3, place.uri, place.experiment)
    config = Config()

    def rung_values(folder: Path) -> list[str]:
        return [name for record in watched(synthetic_trial, "key", rungs)(config, folder)
                if isinstance(record, Metrics) for name in record.values if name.startswith("rung/")]

    folder = tmp_path / "whole"
    folder.mkdir()
    assert rung_values(folder) == [f"rung/100/{AUROC}", f"rung/300/{AUROC}"]
    # Killed after the first checkpoint (step 2): rung 100 (step 1) is behind, rung 300 (step 3) ahead.
    cut = tmp_path / "cut"
    cut.mkdir()
    for record in watched(synthetic_trial, "key", rungs)(config, cut):
        if isinstance(record, Checkpoint):
            break
    assert rung_values(cut) == [f"rung/300/{AUROC}"]
    # Killed after rung 300 was passed, and before the next checkpoint: it is judged again at the same step.
    again = tmp_path / "again"
    again.mkdir()
    for record in watched(synthetic_trial, "key", rungs)(config, again):
        if isinstance(record, Progress) and record.step == 4:
            break
    assert rung_values(again) == [f"rung/300/{AUROC}"]


def test_a_pruned_trial_enters_no_ablation(project: Path) -> None:
    from analysis.tidy import load_study as tidy_study
    from sweeps import commands
    from sweeps.trials import store_id

    run(project)
    place = TrackingPlace.of_project(project)
    runs = load_runs(place.uri, place.experiment)
    pruned = runs[runs["state"] == "pruned"]
    assert len(pruned) > 0 and (pruned["status"] == "KILLED").all()
    search = load(project)
    loser = next(attempt for attempt in attempts_of(project) if attempt.state is TrialState.PRUNED)
    config = search.config(loser.proposal.values)
    # A study that asks for the pruned configuration, key for key.
    from medst.config import flatten

    names = ("objective.lambda_local", "objective.curriculum.kind", "objective.curriculum.ramp_fraction",
             "training.pairs_per_batch")
    arm = {name: flatten(config)[name] for name in names}
    (project / "sweeps" / "same.yaml").write_text(json.dumps({
        "name": "same", "question": "q", "base": ["base.yaml"], "reference": "full", "primary_metric": AUROC,
        "seeds": [0], "settings": {"evaluation.tasks": ["validation"]}, "arms": {"full": {}, "loser": arm}}))

    def data(study: Any, *arguments: Any) -> dict[Any, DataFacts]:
        return {store_id(arm.config.data): FACTS for arm in study.arms}

    patch = pytest.MonkeyPatch()
    patch.setattr(commands, "ensure_data", data)
    patch.setattr(commands, "existing_data", data)
    try:
        output = StringIO()
        commands.plan_sweep("same", project=project, console=Console(file=output, width=200), executor="inline")
        assert "2 to run" in output.getvalue()
        code = commands.run_sweep("same", executor="inline", project=project, trial_function=synthetic_trial,
                                  console=Console(file=output, width=200))
    finally:
        patch.undo()
    assert code == 0
    study = tidy_study(place.uri, place.experiment, "same")
    assert study.trials["state"].tolist() == ["finished", "finished"]
    runs = load_runs(place.uri, place.experiment)
    assert runs["key"].is_unique and (runs["status"] != "RUNNING").all()
    again = runs[runs["key"] == loser.key].iloc[0]
    assert again["state"] == "finished" and pd.isna(again["reason"])
    values = study.scores(AUROC).loc[0]
    assert values["loser"] == pytest.approx(quality(config))


def test_a_tracked_pruned_trial_keeps_reason_and_cost(at_searched: Path) -> None:
    place = TrackingPlace.of_project(at_searched)
    for member in member_trials(place.uri, place.experiment, "weights"):
        assert member.seconds is not None
        assert (member.reason is not None) == (member.state is TrialState.PRUNED)
    # Nothing is left on the disk of trials that do not go on.
    assert list((at_searched / "runs" / "spool").glob("*")) == []
    assert list((at_searched / "runs" / "checkpoints").glob("*")) == []


# ---- The store remembers ---------------------------------------------------------------------------------------


def test_a_study_rebuilt_from_the_store_equals_one_that_was_told_everything(at_searched: Path) -> None:
    search = load(at_searched)
    found = attempts_of(at_searched)
    rebuilt = optuna_study(search, found)

    # The obvious way: ask and tell in one process, with the objective computed in place.
    direct = optuna.create_study(direction="maximize")
    for attempt in found:
        values = attempt.proposal.values
        trial = direct.ask(search.space.distributions(values))
        direct.add_trial(optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if attempt.state is TrialState.FINISHED
            else optuna.trial.TrialState.PRUNED,
            params=values, distributions=search.space.distributions(values),
            value=quality(search.config(values)) if attempt.state is TrialState.FINISHED else None,
            intermediate_values=dict(attempt.rungs)))
        del trial
    told = [trial for trial in direct.trials if trial.state is not optuna.trial.TrialState.RUNNING]
    assert len(rebuilt.trials) == len(told) == 12
    for left, right in zip(rebuilt.trials, told, strict=True):
        assert left.params == right.params and left.distributions == right.distributions
        assert left.state == right.state and left.intermediate_values == right.intermediate_values
        assert left.state is not optuna.trial.TrialState.COMPLETE or left.value == pytest.approx(right.value, abs=1e-12)
    assert rebuilt.best_trial.user_attrs["number"] == best_attempts(search, found)[0].number


def test_each_proposal_follows_from_the_trials_before_it(at_searched: Path) -> None:
    search = load(at_searched)
    found = attempts_of(at_searched)
    definition = definition_of(search, FACTS.fingerprint)
    for attempt in found:
        proposal, _ = propose(search, attempt.number, found[:attempt.number], definition)
        assert proposal == attempt.proposal
    reseeded = replace(search, file=search.file.model_copy(update={"sampler_seed": 1}))
    other, _ = propose(reseeded, 0, [], definition)
    assert other.values != found[0].proposal.values


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random", "grid"])
def test_interrupted_again_and_again_a_search_ends_as_an_undisturbed_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    text = SEARCH.replace("kind: tpe, startup_trials: 4", f"kind: {sampler}, startup_trials: 3, population: 3")
    text = text.replace("trials: 12", "trials: 8")
    if sampler == "nsga2":
        text = text.replace(f"[{AUROC}]", f"[{AUROC}, validation/retrieval/r5]")
        text = text.replace("pruning: {first_pairs: 100, reduction: 3}\n", "")
    if sampler == "grid":
        text = text.replace("log: true, label: λ1", "levels: [0.01, 1.0, 10.0]").replace(
            "high: 0.5,", "high: 0.5, levels: [0.1, 0.3],").replace("high: 64, log: true", "high: 64, levels: [16, 64]")

    quiet = make_project(tmp_path / "quiet", monkeypatch)
    write(quiet, text)
    assert run(quiet)[0] == 0
    expected = story(attempts_of(quiet))
    assert len(expected) == 8

    disturbed = make_project(tmp_path / "disturbed", monkeypatch)
    write(disturbed, text)
    left = 0
    records_until_stop = iter([3, 11, 16, 40, 7, 29])

    def stopping(config: Config, folder: Path | None) -> Iterator[Record]:
        nonlocal left
        for record in synthetic_trial(config, folder):
            left -= 1
            if left <= 0:
                raise KeyboardInterrupt
            yield record

    for records in records_until_stop:
        left = records
        code, output = run(disturbed, trial_function=stopping)
        if code == 130:
            assert "goes on from here" in output
    assert run(disturbed)[0] == 0
    assert story(attempts_of(disturbed)) == expected
    place = TrackingPlace.of_project(disturbed)
    runs = load_runs(place.uri, place.experiment)
    assert runs["key"].is_unique and set(runs["status"]) <= {"FINISHED", "KILLED"}


KILLED = """\
import sys
from pathlib import Path
import pytest, os
sys.path.insert(0, {tests!r})
import test_search
from sweeps import search as searches
searches.data_of = lambda *arguments: test_search.FACTS
count = 0
def dying(config, folder):
    global count
    for record in test_search.synthetic_trial(config, folder):
        count += 1
        if count == {limit}:
            os.kill(os.getpid(), 9)
        yield record
test_search.run(Path({project!r}), trial_function=dying)
"""


def test_killed_a_search_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SEARCH.replace("trials: 12", "trials: 5")
    quiet = make_project(tmp_path / "quiet", monkeypatch)
    write(quiet, text)
    run(quiet)
    expected = story(attempts_of(quiet))
    killed = make_project(tmp_path / "killed", monkeypatch)
    write(killed, text)
    code = KILLED.format(tests=str(Path(__file__).parent), project=str(killed), limit=45)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=False,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(attempts_of(killed)) < 5
    assert run(killed)[0] == 0
    assert story(attempts_of(killed)) == expected


def test_more_trials_go_on_with_the_same_search(project: Path) -> None:
    run(project, num_trials=5)
    first = story(attempts_of(project))
    code, output = run(project)
    assert code == 0 and "5 done, 7 to run" in output
    assert story(attempts_of(project))[:5] == first
    code, output = run(project)
    assert code == 0 and "12 done, 0 to run" in output


def test_another_space_is_another_search_and_what_the_store_has_is_not_computed_again(project: Path) -> None:
    grid = SEARCH[:SEARCH.index("sampler")] + (
        "sampler: {kind: grid}\nspace:\n  objective.lambda_local: {low: 0.01, high: 10.0, levels: [0.1, 1.0]}\n")
    write(project, grid)
    assert run(project)[0] == 0
    assert [attempt.proposal.values for attempt in attempts_of(project)] == [
        {"objective.lambda_local": 0.1}, {"objective.lambda_local": 1.0}]
    write(project, grid.replace("[0.1, 1.0]", "[0.1, 1.0, 10.0]"))
    assert attempts_of(project) == []
    computed = []

    def counted(config: Config, folder: Path | None) -> Iterator[Record]:
        computed.append(config.objective.lambda_local)
        return synthetic_trial(config, folder)

    assert run(project, trial_function=counted)[0] == 0
    assert computed == [10.0] and len(attempts_of(project)) == 3


def test_trials_of_an_earlier_form_of_a_search_judge_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SEARCH.replace("trials: 12", "trials: 6")
    stories = []
    for name, forms in (("fresh", (1,)), ("used", (0, 1))):
        folder = make_project(tmp_path / name, monkeypatch)
        for form in forms:
            write(folder, f"{text}sampler_seed: {form}\n")
            assert run(folder)[0] == 0
        stories.append(story(attempts_of(folder)))
    assert stories[0] == stories[1]
    assert {attempt[2] for attempt in stories[0]} == {TrialState.FINISHED, TrialState.PRUNED}


def test_the_same_proposal_twice_is_one_trial(project: Path) -> None:
    text = SEARCH[:SEARCH.index("space:")].replace("pruning: {first_pairs: 100, reduction: 3}\n", "") + (
        "space:\n  objective.curriculum.kind: {choices: [joint, staged]}\n")
    write(project, text)
    assert run(project)[0] == 0
    found = attempts_of(project)
    assert len(found) == 12 and len({attempt.key for attempt in found}) == 2
    assert len(load_runs(TrackingPlace.of_project(project).uri)) == 2


def test_a_failed_trial_is_no_finished_one(project: Path) -> None:
    def failing(config: Config, folder: Path | None) -> Iterator[Record]:
        if config.objective.curriculum.kind == "staged":
            raise RuntimeError("no such luck")
        return synthetic_trial(config, folder)

    code, output = run(project, trial_function=failing)
    failed = [attempt for attempt in attempts_of(project) if attempt.state is TrialState.FAILED]
    assert code == 1 and failed and "no such luck" in output
    assert run(project)[0] == 1
    assert run(project, should_retry_failed=True)[0] == 0
    assert all(attempt.state is not TrialState.FAILED for attempt in attempts_of(project))


def test_an_impossible_combination_is_drawn_again(project: Path) -> None:
    text = SEARCH[:SEARCH.index("space:")] + (
        "space:\n  model.image.width: {low: 8, high: 64}\n  model.image.num_heads: {choices: [1, 2, 4, 8]}\n")
    search = load(project, text)
    definition = definition_of(search, "data")
    for number in range(6):
        proposal, config = propose(search, number, [], definition)
        assert config.model.image.width % config.model.image.num_heads == 0
        assert proposal == propose(search, number, [], definition)[0]


# ---- What comes out of it ----------------------------------------------------------------------------------------


def finished(search: Search, number: int, values: dict[str, Any], *objectives: float) -> Attempt:
    return Attempt(Proposal(number, values), f"key{number}", TrialState.FINISHED, f"run{number}", objectives)


def test_importance_finds_the_parameter_that_matters(project: Path) -> None:
    text = SEARCH[:SEARCH.index("space:")] + (
        "space:\n  objective.lambda_local: {low: 0.0, high: 1.0}\n  objective.lambda_temporal: {low: 0.0, high: 1.0}\n")
    search = load(project, text)
    grid = [(first / 7, second / 7) for first in range(8) for second in range(8)]
    attempts = [finished(search, number, {"objective.lambda_local": first, "objective.lambda_temporal": second},
                         first + 0.05 * second) for number, (first, second) in enumerate(grid)]
    table = importances(search, attempts).set_index("parameter")
    for measure in ("pedanova", "fanova"):
        assert table.loc["objective.lambda_local", measure] > 0.8, table
        assert table[measure].sum() == pytest.approx(1.0)
    assert len(importances(search, attempts[:5])) == 0
    # Where low values are wanted, the same trials say the same.
    pruned = [Attempt(Proposal(99, {}), "key", TrialState.PRUNED)]
    assert importances(search, [*attempts, *pruned]).equals(importances(search, attempts))


def test_the_front_holds_what_no_other_trial_beats(project: Path) -> None:
    text = SEARCH.replace(f"[{AUROC}]", f"[{AUROC}, validation/retrieval/r5]").replace("kind: tpe", "kind: nsga2")
    search = load(project, text.replace("pruning: {first_pairs: 100, reduction: 3}\n", ""))
    points = [(0.9, 0.1), (0.8, 0.5), (0.7, 0.4), (0.5, 0.9), (0.8, 0.2)]
    attempts = [finished(search, number, {}, *point) for number, point in enumerate(points)]
    assert [attempt.number for attempt in best_attempts(search, attempts)] == [0, 1, 3]


def test_the_best_becomes_a_study_on_fresh_seeds(at_searched: Path) -> None:
    search = load(at_searched)
    best = best_attempts(search, attempts_of(at_searched))
    path = at_searched / "sweeps" / "weights_best.yaml"
    path.write_text(study_of_best(search, best))
    study = load_study(path, project=at_searched)
    assert [arm.name for arm in study.arms] == ["base", f"trial {best[0].number}"]
    assert 0 not in study.file.seeds and len(study.file.seeds) == 6
    assert study.arms[1].config.objective.lambda_local == best[0].proposal.values["objective.lambda_local"]
    assert "retrieval" in study.arms[1].config.evaluation.tasks


def test_the_plan_and_the_table_hold_all_that_figures_need(at_searched: Path) -> None:
    plan = load_group_plan("search", "weights", TrackingPlace.of_project(at_searched).uri)
    assert plan["objectives"] == [AUROC] and plan["directions"] == ["maximize"]
    assert [parameter["key"] for parameter in plan["space"]][:1] == ["objective.lambda_local"]
    frame = trials_frame(load(at_searched), attempts_of(at_searched))
    assert len(frame) == 12 and frame["state"].isin(["finished", "pruned"]).all()
    assert frame[f"objectives.{AUROC}"].notna().equals(frame["state"] == "finished")


@pytest.mark.slow
def test_on_ray_the_workers_share_the_search(project: Path) -> None:
    import ray

    # Workers need not find the files of the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    code, output = run(project, executor="ray", jobs=2)
    assert code == 0, output
    found = attempts_of(project)
    assert [attempt.number for attempt in found] == list(range(12))
    assert {attempt.state for attempt in found} <= {TrialState.FINISHED, TrialState.PRUNED}
    assert load_runs(TrackingPlace.of_project(project).uri)["key"].is_unique
