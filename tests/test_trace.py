"""`medst trace`: the commands that it prints compute the very runs that they stand for."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from analysis_samples import PRIMARY
from tracking_fixtures import fresh_place

from analysis import trace
from analysis.document import table_document
from analysis.tables import study_table
from analysis.tidy import load_study as load_tracked
from medst import tracking
from medst.cli.options import compose
from medst.config import parse_overrides, source_fingerprint, trial_key
from medst.records import Metrics
from medst.tracking import TrackingPlace, torch_version
from sweeps.study import Study, find_study, load_study, plan_document
from sweeps.trials import DataFacts, StoreId, Trial, expand, needed_data, specify, store_id
from sweeps.tuning import Choice, candidates, report

HEAD = f"question: Does it matter?\nbase: [base.yaml]\nreference: full\nprimary_metric: {PRIMARY}\n"
ARMS = "arms:\n  full: {}\n  no local: {objective.lambda_local: 0.0}\n"
BASE = "training.epochs: 2.0\ndata.root: data/phantom/tiny\n"
CASES = {
    "a data root of its own": (
        "seeds: [0, 1]\nsettings: {data.root: \"data/phantom/smoke-with-num_train=30,change_words=0.4\", "
        "evaluation.tasks: [retrieval]}\n" + ARMS, {}, None),
    "arms with their own data": (
        "seeds: [0, 1]\narms:\n  full: {data.root: \"data/phantom/smoke-with-change_words=1.0\"}\n"
        "  no local: {data.root: \"data/phantom/smoke-with-change_words=0.0\", objective.lambda_local: 0.0}\n",
        {}, None),
    "draws": ("seeds: [0, 1]\nphantom_draws: [0, 3]\n" + ARMS, {}, None),
    "tuned": ("seeds: [0, 1]\ntuning:\n  factors: {training.learning_rate: {levels: [3.0e-4, 1.0e-3]}}\n"
              "  metric: validation/loss\n  direction: lower\n  seeds: [100]\n" + ARMS, {}, None),
    "overridden": ("seeds: [0, 1]\n" + ARMS, {"training.epochs": 1.5, "data.root": "data/phantom/smoke",
                                              "data.vocabulary": None, "training.device": "cpu"}, "other.yaml"),
}
OPTIONS = ("--set", "--base")


def facts_of(study: Study) -> dict[StoreId, DataFacts]:
    """Every store has a fingerprint of its own, so that a wrong root makes a wrong key."""
    return {place: DataFacts(place[0], f"data of {place}", False) for place in needed_data(study)}


def tracked(study: Study, project: Path) -> tuple[TrackingPlace, list[Trial]]:
    """The study in a store, each trial with one number."""
    tuning, chosen, told = study.file.tuning, {}, None
    if tuning is not None:
        tried = candidates(tuning)
        picks = {arm.name: tried[number % 2] for number, arm in enumerate(study.arms)}
        chosen = {arm: pick.settings for arm, pick in picks.items()}
        told = report(tuning, tried, {arm: Choice(pick, 1.0, ()) for arm, pick in picks.items()})
    trials = expand(study, facts_of(study), chosen)
    place = fresh_place(project / "store")
    plan = plan_document(study, [{"key": trial.key, "arm": trial.arm, "seed": trial.seed} for trial in trials],
                         "phantom", told)
    run_id = tracking.ensure_study_run(place.uri, place.experiment, study.name, "", plan, is_running=False)
    environment = {"commit": "0123abcd", "uncommitted_changes": "true", "python": "3.11"}
    for spec in specify(trials, study=study.name, place=place, project=project, parent_run_id=run_id,
                        environment=environment, is_private_tracked=False):
        for _ in tracking.track(iter([Metrics(1, {PRIMARY: 0.7})]), spec.trial_description(), place):
            pass
    return place, trials


def options(command: str) -> tuple[list[str], dict[str, list[str]]]:
    """Words and values of options of a printed command, without what follows '#'."""
    words: list[str] = []
    given: dict[str, list[str]] = {option: [] for option in OPTIONS}
    parts = iter(shlex.split(command, comments=True))
    for part in parts:
        if part in OPTIONS:
            given[part].append(next(parts))
        else:
            words.append(part)
    return words, given


@pytest.mark.parametrize("case", CASES)
def test_printed_commands_have_the_keys_of_the_runs(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, overrides, base = CASES[case]
    monkeypatch.chdir(tmp_path)
    Path("sweeps").mkdir()
    Path("sweeps/asked.yaml").write_text(f"name: asked\n{HEAD}{body}")
    Path("base.yaml").write_text(BASE)
    Path("other.yaml").write_text(BASE + "training.learning_rate: 2.0e-3\n")
    study = load_study(find_study("asked"), overrides=overrides, base=[Path(base)] if base else [])
    place, trials = tracked(study, tmp_path)
    facts = facts_of(study)
    document = table_document(study_table(load_tracked(place.uri, place.experiment, "asked"), source_fingerprint()))
    for arm in ("full", "no local"):
        told = list(trace.trace(document, trace.find_cell(document, f"{arm},AUROC"), place.uri, place.experiment))
        assert "  git checkout 0123abcd" in told
        assert any("Warning" in line and "uncommitted changes" in line for line in told)
        keys = []
        for line in told:
            if line.startswith("  medst train"):
                (_, _, *files), given = options(line)
                config = compose([Path(file) for file in files], given["--set"])
                keys.append(trial_key(config, facts[store_id(config.data)].fingerprint, torch_version()))
        assert keys == [trial.key for trial in sorted(trials, key=lambda trial: trial.seed) if trial.arm == arm]
        assert len(keys) == len(study.replicates)
        [command] = [line for line in told if line.startswith("  medst sweep run")]
        (*_, name), given = options(command)
        again = load_study(find_study(name), overrides=parse_overrides(given["--set"]),
                           base=[Path(file) for file in given["--base"]])
        chosen = None if study.file.tuning is None else {
            trial.arm: {"training.learning_rate": trial.config.training.learning_rate} for trial in trials}
        assert {trial.key for trial in expand(again, facts_of(again), chosen)} == {trial.key for trial in trials}


def test_without_the_base_everything_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweeps").mkdir()
    Path("sweeps/asked.yaml").write_text(f"name: asked\n{HEAD}seeds: [0]\n{ARMS}")
    Path("base.yaml").write_text(BASE)
    study = load_study(find_study("asked"))
    place, trials = tracked(study, tmp_path)
    document = table_document(study_table(load_tracked(place.uri, place.experiment, "asked"), source_fingerprint()))
    Path("base.yaml").unlink()
    told = list(trace.trace(document, trace.find_cell(document, "full,AUROC"), place.uri, place.experiment))
    _, given = options(next(line for line in told if line.startswith("  medst train base.yaml")))
    config = compose([], given["--set"])
    assert trial_key(config, facts_of(study)[store_id(config.data)].fingerprint, torch_version()) == trials[0].key
