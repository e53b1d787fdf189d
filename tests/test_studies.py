"""The language of study files, their extension, tuned parameters, and the adoption of old trials."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tracking_fixtures import fake_trial, fresh_place

from analysis import registry
from analysis.tidy import load_study as load_tracked
from medst import config as config_module
from medst.config import Config, flatten
from medst.records import Metrics, Record
from medst.tracking import TrackingPlace, TrialState, adopted_keys, load_plan, load_runs
from sweeps import adoption, commands
from sweeps.adoption import AdoptionError, adopt, choose_replays
from sweeps.commands import plan_sweep, run_sweep
from sweeps.extending import extend, parse_arms, parse_seeds
from sweeps.ledger import read_ledger
from sweeps.study import Replicate, Study, load_study
from sweeps.study_errors import StudyError
from sweeps.trials import DataFacts, expand, expand_tuning, needed_data, store_id

FACTS = DataFacts("phantom", "fingerprint", False)
HEAD = """\
name: tiny
question: Which?
base: [base.yaml]
primary_metric: test/score
seeds: [0, 1]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a base, a store and data that need no files."""
    folder = tmp_path / "project"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", fresh_place(folder).uri)
    (folder / "base.yaml").write_text("training: {epochs: 2.0}\n")
    (folder / "sweeps").mkdir()
    for name in ("ensure_data", "existing_data"):
        monkeypatch.setattr(commands, name, lambda study, *rest: dict.fromkeys(needed_data(study), FACTS))
    return folder


def write(project: Path, body: str, head: str = HEAD) -> Path:
    path = project / "sweeps" / "tiny.yaml"
    path.write_text(head + body)
    return path


def load(project: Path, body: str, head: str = HEAD, **options: Any) -> Study:
    return load_study(write(project, body, head), project=project, **options)


def arms(study: Study) -> list[str]:
    return [arm.name for arm in study.arms]


def problems(project: Path, body: str, head: str = HEAD, **options: Any) -> list[str]:
    """`line:column: problem` of a study that is refused."""
    with pytest.raises(StudyError) as error:
        load(project, body, head, **options)
    prefix = f"{project / 'sweeps' / 'tiny.yaml'}:"
    lines = str(error.value).splitlines()
    assert all(line.startswith(prefix) for line in lines), lines
    return [line.removeprefix(prefix) for line in lines]


# ---- What a file can say -----------------------------------------------------------------------------------------


def test_leaving_one_component_out_keeps_the_rest_of_the_reference(project: Path) -> None:
    study = load(project, """\
reference: full
arms:
  full: {objective.lambda_temporal: 0.5}
leave_one_out:
  lateral view: {data.views: frontal}
  local alignment: {objective.lambda_local: 0}
""")
    assert arms(study) == ["full", "no lateral view", "no local alignment"]
    assert [arm.config.objective.lambda_temporal for arm in study.arms] == [0.5] * 3
    assert [arm.config.data.views for arm in study.arms] == ["both", "frontal", "both"]


def test_a_conditional_factor_is_no_part_of_arms_without_it(project: Path) -> None:
    study = load(project, """\
reference: kind = joint
grid:
  objective.curriculum.kind: {levels: [joint, staged, ramp]}
  objective.curriculum.start_fraction:
    {label: start, levels: [0.25, 0.5], when: {objective.curriculum.kind: [staged, ramp]}}
  objective.curriculum.ramp_fraction: {label: ramp, levels: [0.1, 0.4], when: {objective.curriculum.kind: ramp}}
""")
    assert len(study.arms) == 1 + 2 + 4 and arms(study)[:2] == ["kind = joint", "kind = staged, start = 0.25"]
    assert "objective.curriculum.ramp_fraction" not in study.arms[1].settings
    assert len({arm.config for arm in study.arms}) == 7


def test_constraints_leave_combinations_out_and_refuse_named_arms(project: Path) -> None:
    grid = """\
reference: λ1 = 1.0, λ2 = 0.0
constraints: [objective.lambda_local > 0 or objective.lambda_temporal > 0]
grid:
  objective.lambda_local: {label: λ1, levels: [0.0, 1.0]}
  objective.lambda_temporal: {label: λ2, levels: [0.0, 1.0]}
"""
    study = load(project, grid)
    assert arms(study) == ["λ1 = 0.0, λ2 = 1.0", "λ1 = 1.0, λ2 = 0.0", "λ1 = 1.0, λ2 = 1.0"]
    assert study.left_out == ("λ1 = 0.0, λ2 = 0.0",)
    told = problems(project, grid + "arms:\n  none: {objective.lambda_local: 0, objective.lambda_temporal: 0}\n")
    assert told == ["12:3: arm 'none' breaks the constraint 'objective.lambda_local > 0 or objective.lambda_temporal "
                    "> 0'"]
    told = problems(project, grid.replace("reference: λ1 = 1.0, λ2 = 0.0", "reference: λ1 = 0.0, λ2 = 0.0"))
    assert told == ["6:1: reference: 'λ1 = 0.0, λ2 = 0.0' is not an arm; the constraints exclude 'λ1 = 0.0, λ2 = 0.0'"]


FRACTION = """\
reference: full
arms: {full: {}}
fractional:
  resolution: 4
  factors:
    data.views: {levels: [both, frontal]}
    objective.lambda_local: {label: λ1, levels: [1.0, 0.0]}
    objective.lambda_temporal: {label: λ2, levels: [1.0, 0.0]}
    model.experts.num_experts: {label: experts, levels: [2, 1]}
"""


def test_a_fraction_holds_the_reference_and_its_plan_tells_the_aliases(project: Path) -> None:
    study = load(project, FRACTION)
    assert len(study.arms) == 8 and study.fraction is not None and study.fraction.resolution() == 4
    assert arms(study)[0] == "full" and "views = both, λ1 = 1.0, λ2 = 1.0, experts = 2" not in arms(study)
    output = StringIO()
    plan_sweep("tiny", project=project, executor="inline", console=Console(file=output, width=200))
    for line in ("Fraction: 8 of 16 combinations, resolution 4; generators: experts = views x λ1 x λ2.",
                 "  views x λ1 = λ2 x experts",
                 "8 arms x 2 seeds = 16 trials; 0 finished, 16 to run"):
        assert line in output.getvalue()
    told = problems(project, FRACTION + "constraints: [objective.lambda_local > 0]\n")
    assert len(told) == 1 and "without which the fraction is no longer one" in told[0]


def test_seeds_are_crossed_with_draws_of_the_phantom(project: Path) -> None:
    body = "reference: full\nphantom_draws: [0, 2]\narms: {full: {}}\n"
    study = load(project, body)
    assert study.replicates == (Replicate(0, 0), Replicate(1, 0), Replicate(2000, 2), Replicate(2001, 2))
    other = DataFacts("phantom", "other", False)
    data = {identity: other if identity[0].endswith("-draw-2") else FACTS for identity in needed_data(study)}
    trials = expand(study, data)
    assert [(trial.seed, trial.config.data.root, trial.data.fingerprint) for trial in trials] == [
        (0, "data/phantom/tiny", "fingerprint"), (1, "data/phantom/tiny", "fingerprint"),
        (2000, "data/phantom/tiny-draw-2", "other"), (2001, "data/phantom/tiny-draw-2", "other")]
    alone = load(project, body.replace("phantom_draws: [0, 2]\n", ""))
    assert {trial.key for trial in expand(alone, data)} < {trial.key for trial in trials}, "the first draw is shared"
    told = problems(project, body + "settings: {data.root: /mimic}\n")
    assert told == ["7:1: draws are made of a phantom preset, and data.root=/mimic is none (data/phantom/<preset>)"]


def test_arms_may_need_other_resources(project: Path) -> None:
    study = load(project, "reference: full\narms: {full: {}, big: {training.device: 'cuda:0', "
                          "objective.lambda_local: 2.0}}\nresources: {cpus: 2}\narm_resources: {big: {gpus: 0.5}}\n")
    data = dict.fromkeys(needed_data(study), FACTS)
    assert [(trial.resources.cpus, trial.num_gpus) for trial in expand(study, data)[:2]] == [(2, 0.0), (1, 0.5)]
    told = problems(project, "reference: full\narms: {full: {}}\narm_resources: {ful: {}}\n")
    assert told == ["8:17: arm_resources: 'ful' is not an arm; the nearest is 'full'"]


# ---- What is refused ---------------------------------------------------------------------------------------------


def test_all_problems_of_all_kinds_are_told_at_once_where_they_stand(project: Path) -> None:
    told = problems(project, """\
qestion: twice
reference: ful
secondary_metrics: [test/scor, test/score]
seconds_per_trial: -1
arms:
  full: {}
  one: {objective.lambda_locl: 1}
  two: {objective.lambda_local: high}
  six: {data.crop_size: 1000}
one_at_a_time:
  seed: {levels: [1]}
grid:
  objective.curriculum.ramp_fraction: {levels: [0.1, 0.1, 2.0], when: {objective.curriculum.kind: rampe}}
  data.views: {levles: [both]}
constraints:
  - objective.lambda_locl > 0
  - objective.lambda_local >
tuning:
  factors:
    training.learning_rate: {range: [1.0, 0.1]}
  metric: validation/loss
  direction: lower
  seeds: [1]
expectations:
  - {arm: full, metric: test/scores, direction: up}
""", known_metrics=["test/score"])
    expected = [
        "6:1: unknown key 'qestion'; the nearest is 'question'",
        "8:21: unknown metric 'test/scor'; the nearest is 'test/score'",
        "9:1: seconds_per_trial: Input should be greater than 0",
        "12:9: arms: unknown key 'objective.lambda_locl'; the nearest key is 'objective.lambda_local'",
        "13:9: arms: objective.lambda_local: Input should be a valid number",
        "14:3: arm 'six': data.crop_size=1000 is larger than",
        "16:3: 'seed' is no factor",
        "18:54: 0.1 stands twice", "18:59: grid: objective.curriculum.ramp_fraction: Input should be less than",
        "18:72: grid: objective.curriculum.kind: Input should be 'joint'",
        "19:3: 'levels' is missing", "19:16: unknown key 'levles'; the nearest is 'levels'",
        "21:5: unknown key 'objective.lambda_locl'", "22:5: constraint 'objective.lambda_local >'",
        "25:5: 'training.learning_rate': a range needs tuning.draws",
        "25:30: 'training.learning_rate': the range rises",
        "28:11: seed 1 is one of the study's own", "30:38: expectations.0.direction: Input should be 'lower'",
    ]
    assert len(told) == len(expected), "\n".join(told)
    for line, start in zip(told, expected, strict=True):
        assert line.startswith(start), (line, start)


@pytest.mark.parametrize(("body", "message"), [
    ("reference: ful\narms: {full: {}}\n", "6:1: reference: 'ful' is not an arm; the nearest is 'full'"),
    ("reference: full\narms: {full: {}}\nflagged_arms: [full, full]\n", "8:22: 'full' stands twice"),
    ("reference: full\narms: {full: {}}\nseeds: [0, 3]\n", "8:1: 'seeds' stands twice, first in line 5"),
    ("reference: a\narms: {a: {}, b: {objective.lambda_local: 1.0}}\n", "7:15: arms 'a' and 'b' are the same trial"),
    ("reference: full\n", "1:1: no arms: at least one of arms, leave_one_out"),
    ("reference: full\narms: {full: {}}\nleave_one_out: {x: {}}\n", "8:17: component 'x': which settings"),
    ("reference: full\narms: {full: {}}\none_at_a_time:\n  objective.curriculum.ramp_fraction: {levels: [0.1], when: "
     "{objective.curriculum.kind: ramp}}\n", "9:55: 'objective.curriculum.ramp_fraction': its condition is never met"),
    ("reference: full\narms: {full: {evaluation.tasks: [retreival]}}\n", "unknown task 'retreival'; the nearest is "
                                                                       "'retrieval'"),
    ("reference: full\narms: {full: {}}\ngrid:\n  objective.lambda_local: {levels: [1.0, 2.0], when: {data.views: "
     "both}}\n  data.views: {levels: [both, frontal]}\n", "'data.views' must stand before 'objective.lambda_local'"),
    ("reference: full\narms: {full: {training.learning_rate: 0.1}}\ntuning: {factors: {training.learning_rate: "
     "{levels: [0.1, 0.2]}}, metric: validation/loss, direction: lower, seeds: [9]}\n",
     "is tuned for every arm; it cannot be set"),
    ("reference: full\narms: {full: {}}\ntuning: {factors: {training.learning_rate: {levels: [0.1, 0.2]}}, metric: "
     "test/score, direction: lower, seeds: [9]}\n", "tuning.metric: String should match pattern '^validation/'"),
])
def test_a_problem_alone(project: Path, body: str, message: str) -> None:
    told = problems(project, body)
    assert len(told) == 1 and message in told[0], told


def test_a_base_that_is_refused_is_told_with_the_rest(project: Path) -> None:
    (project / "bad.yaml").write_text("training: {epoch: 2.0}\n")
    told = problems(project, "reference: ful\narms: {full: {}}\n",
                    HEAD.replace("base: [base.yaml]", "base: [bad.yaml, none.yaml]"))
    assert [line.partition(" ")[0] for line in told] == ["3:8:", "3:18:", "6:1:"]
    assert "the nearest key is 'training.epochs'" in told[0] and "no such file" in told[1]


def test_the_metrics_of_the_projects_studies_are_all_checked(repository: Path) -> None:
    paths = sorted((repository / "sweeps").glob("*.yaml"))
    assert len(paths) >= 10
    for path in paths:
        try:
            load_study(path, project=repository, known_metrics=registry.METRICS)
        except StudyError as error:
            # A file of another kind, as a search.
            assert "unknown key" in str(error), error


# ---- Tuning ------------------------------------------------------------------------------------------------------

TUNED = """\
reference: full
arms:
  full: {}
  half: {objective.lambda_local: 0.5}
tuning:
  factors: {training.learning_rate: {label: rate, levels: [0.1, 0.2, 0.4]}}
  metric: validation/loss
  direction: lower
  seeds: [100, 101]
"""


def tuned_trial(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    """Best at the middle rate for `full`, at the largest for `half`; the smallest one diverges for `half`."""
    best = 0.2 if config.objective.lambda_local == 1.0 else 0.4
    if best == 0.4 and config.training.learning_rate == 0.1:
        raise FloatingPointError("diverged")
    yield Metrics(1, {"validation/loss": 9.0})
    yield Metrics(2, {"validation/loss": abs(config.training.learning_rate - best)})
    if config.evaluation.tasks != ("validation",):
        yield Metrics(2, {"test/score": config.training.learning_rate})


def run(project: Path, **options: Any) -> tuple[int, str]:
    output = StringIO()
    settings: dict[str, Any] = {"executor": "inline", "trial_function": fake_trial, **options}
    code = run_sweep("tiny", project=project, console=Console(file=output, width=200), **settings)
    return code, output.getvalue()


def test_nuisance_parameters_are_tuned_alike_on_validation_at_seeds_apart(project: Path) -> None:
    study = load(project, TUNED)
    trials = expand_tuning(study, dict.fromkeys(needed_data(study), FACTS))
    assert len(trials) == 2 * 3 * 2 and {trial.config.evaluation.tasks for trial in trials} == {("validation",)}
    code, output = run(project, trial_function=tuned_trial)
    assert code == 0 and "4 wait for their tuning, 12 to run" in output and "all 4 trials are finished" in output
    frame = load_runs(study="tiny")
    assert sorted(frame["metrics.test/score"]) == [0.2, 0.2, 0.4, 0.4]
    tuning = load_runs(study="tiny-tuning")
    assert len(tuning) == 12 and list(tuning["state"]).count("failed") == 2 and "metrics.test/score" not in tuning
    plan = load_plan("tiny")["tuning"]
    assert plan["chosen"] == {"full": {"training.learning_rate": 0.2}, "half": {"training.learning_rate": 0.4}}
    assert plan["edges"] == {"half": ["training.learning_rate"]} and len(load_plan("tiny")["trials"]) == 4
    code, output = run(project, trial_function=forbidden)
    assert code == 0 and "0 to run" in output and "half: rate = 0.4 (0, at the edge of what was tried" in output


def forbidden(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    raise AssertionError("computed twice")


# ---- Extension ---------------------------------------------------------------------------------------------------

COMMENTED = """\
# Question: which?
name: tiny
question: Which?
base: [base.yaml]
reference: full   # the published one
primary_metric: test/score
seeds:            # replicates
  - 0
  - 1
arms:
  full: {}
  # none of it
  none:
    objective.lambda_local: 0
# the end
"""


def test_a_study_is_extended_in_place_and_only_what_is_missing_runs(project: Path) -> None:
    path = write(project, "", COMMENTED)
    assert run(project)[0] == 0
    added = extend(path, parse_seeds(["1..2", "4"]), parse_arms(["half, of it: objective.lambda_local=0.5"]),
                   lambda changed: load_study(changed, project=project))
    assert added == ["seeds 2, 4", "arm 'half, of it'"]
    text = path.read_text()
    for comment in ("# Question: which?", "# the published one", "# none of it", "# the end"):
        assert comment in text
    assert yaml.safe_load(text)["seeds"] == [0, 1, 2, 4] and text.endswith("# the end\n")
    study = load_study(path, project=project)
    assert arms(study) == ["full", "none", "half, of it"] and study.arms[2].config.objective.lambda_local == 0.5
    code, output = run(project)
    assert code == 0 and "3 arms x 4 seeds = 12 trials; 4 finished, 8 to run" in output
    assert extend(path, [0, 4], {"none": {"objective.lambda_local": 0}}, lambda changed: None) == []


@pytest.mark.parametrize(("arm", "message"), [
    ("none: objective.lambda_local=1", "is there with other settings"),
    ("new: objective.lambda_locl=1", "nearest key is 'objective.lambda_local'"),
    ("same: objective.lambda_local=0.0", "are the same trial"),
])
def test_an_extension_that_is_refused_changes_nothing(project: Path, arm: str, message: str) -> None:
    path = write(project, "", COMMENTED)
    with pytest.raises(StudyError, match=message) as error:
        extend(path, [], parse_arms([arm]), lambda changed: load_study(changed, project=project))
    assert str(path) in str(error.value)
    assert path.read_text() == COMMENTED and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["6..", "8..6", "a", "-1"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(StudyError, match="expected seeds such as"):
        parse_seeds([text])


# ---- Keys and adoption -------------------------------------------------------------------------------------------


def test_the_key_sees_a_constant_of_a_loss_and_neither_words_nor_places(repository: Path, tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "medst"
    shutil.copytree(repository / "medst", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(config_module, "__file__", str(copy / "config.py"))

    def key(config: Config) -> str:
        config_module.source_fingerprint.cache_clear()
        return config_module.trial_key(config, "data", "2")

    try:
        base = key(Config())
        moved = Config.model_validate({"data": {"root": "/elsewhere", "store": "/other"}})
        assert key(moved) == base
        loss = copy / "objectives" / "temporal.py"
        text = loss.read_text()
        loss.write_text(text.replace('"""', '"""Other words. ', 1) + "\n# a comment\n")
        assert key(Config()) == base
        changed = text.replace("(2.0 * error.abs()", "(2.5 * error.abs()")
        assert changed != text
        loss.write_text(changed)
        assert key(Config()) != base
    finally:
        monkeypatch.undo()
        config_module.source_fingerprint.cache_clear()


@pytest.fixture
def old_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that was computed by code which has been refactored since."""
    write(project, "reference: full\narms: {full: {}, half: {objective.lambda_local: 0.5}}\n")
    pretend(monkeypatch, "a" * 16)
    assert run(project)[0] == 0
    pretend(monkeypatch, "b" * 16)
    monkeypatch.setattr(adoption, "check_golden", lambda project: "equal, 12 tests")
    monkeypatch.setattr("medst.data.store.open_store", lambda data: FACTS)
    return project


def pretend(monkeypatch: pytest.MonkeyPatch, fingerprint: str) -> None:
    """Let the present code have this fingerprint."""
    from analysis import tidy
    from medst.tracking import adoptions
    from sweeps import trials, worker

    for module in (config_module, adoptions, adoption, trials, worker, tidy):
        monkeypatch.setattr(module, "source_fingerprint", lambda: fingerprint)


def adopted(project: Path, **options: Any) -> str:
    output = StringIO()
    adopt(project=project, console=Console(file=output, width=200), **{"trial_function": fake_trial, **options})
    return output.getvalue()


def test_adopted_trials_are_done_and_no_longer_stale(old_code: Path) -> None:
    place = TrackingPlace.of_project(old_code)
    study = load_study(old_code / "sweeps" / "tiny.yaml", project=old_code)
    keys = [trial.key for trial in expand(study, {store_id(arm.config.data): FACTS for arm in study.arms})]
    assert read_ledger(place, keys).keys_in(TrialState.FINISHED, keys) == []
    stale = load_tracked(place.uri, place.experiment, "tiny")
    assert set(stale.trials["source_fingerprint"]) == {"a" * 16} and not stale.adopted

    output = adopted(old_code)
    assert "Golden numbers: equal, 12 tests." in output and "4 trials of code aaaaaaaaaaaaaaaa stand" in output
    assert "No replay had: objective.lambda_local=" in output
    assert read_ledger(place, keys).keys_in(TrialState.FINISHED, keys) == keys
    assert sorted(adopted_keys(place.uri, place.experiment).values()) == sorted(keys)
    fresh = load_tracked(place.uri, place.experiment, "tiny")
    assert set(fresh.trials["source_fingerprint"]) == {"b" * 16} and fresh.adopted == {"a" * 16: 4}
    assert len(fresh.values) == len(stale.values) > 0

    code, output = run(old_code, trial_function=forbidden)
    assert code == 0 and "4 finished, 0 to run" in output and len(load_runs()) == 4
    assert len(load_tracked(place.uri, place.experiment, "tiny").values) == len(stale.values)
    with pytest.raises(AdoptionError, match="nothing to adopt"):
        adopted(old_code)


def test_adoption_goes_on_over_several_refactors(old_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adopted(old_code)
    write(old_code, "reference: full\narms: {full: {}, half: {objective.lambda_local: 0.5}, more: "
                    "{objective.lambda_local: 3.0}}\n")
    assert run(old_code)[0] == 0
    pretend(monkeypatch, "c" * 16)
    output = adopted(old_code, earlier=["bbb"])
    assert "6 trials of code bbbbbbbbbbbbbbbb stand" in output
    assert run(old_code, trial_function=forbidden)[0] == 0


def other_numbers(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    for record in fake_trial(config, checkpoint_dir):
        if isinstance(record, Metrics) and record.step == 3:
            record = Metrics(3, {**record.values, "train/loss": record.values["train/loss"] * (1 + 2**-52)})
        yield record


def test_adoption_is_refused_where_the_last_bit_of_a_number_differs(old_code: Path) -> None:
    with pytest.raises(AdoptionError, match=r"train/loss at step 3: 0\.\d+ then, 0\.\d+ now"):
        adopted(old_code, earlier=["a"], num_replays=4, trial_function=other_numbers)
    place = TrackingPlace.of_project(old_code)
    assert adopted_keys(place.uri, place.experiment) == {}


def test_adoption_is_refused_where_the_data_differ_before_golden_numbers_are_computed(
    old_code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "check_golden", lambda project: pytest.fail("golden numbers were computed"))
    monkeypatch.setattr("medst.data.store.open_store", lambda data: DataFacts("phantom", "other", False))
    with pytest.raises(AdoptionError, match="are not those of run"):
        adopted(old_code)
    monkeypatch.undo()


GOLDEN_TEST = "import pytest\n\ndef test_one():\n    {}\n\ndef test_two():\n    pytest.skip('not here')\n"


@pytest.mark.parametrize(("body", "expected"), [
    ("pass", "equal within the tolerance of tests/test_golden.py, 1 tests"),
    ("pytest.skip('not here')", "not checked, they are not here"),
])
def test_golden_numbers_are_the_projects_tests(tmp_path: Path, body: str, expected: str) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_golden.py").write_text(GOLDEN_TEST.format(body))
    assert adoption.check_golden(tmp_path).startswith(expected)


def test_a_golden_number_that_differs_refuses(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_golden.py").write_text(GOLDEN_TEST.format("assert 1 == 2"))
    with pytest.raises(AdoptionError, match=r"golden numbers differ\n.*test_one"):
        adoption.check_golden(tmp_path)


def test_replays_are_cheap_first_then_as_different_as_can_be(old_code: Path) -> None:
    runs = load_runs().assign(seconds=[4.0, 3.0, 2.0, 1.0])
    runs["tags.medst.torch"] = adoption.torch_version()
    chosen = choose_replays(runs, 2)
    assert next(iter(chosen["seconds"])) == 1.0
    weights = list(chosen["params.objective.lambda_local"])
    assert len(set(weights)) == 2, "the second one has another weight"
    assert flatten(Config())["objective.lambda_local"] == 1.0
