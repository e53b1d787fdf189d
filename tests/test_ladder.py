"""The proxy ladder: its rungs, its trials in the store, and its comparison of ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tracking_fixtures import fresh_place

from analysis import checking, results
from analysis.explorations import make_exploration
from analysis.ladder import HEADS, bootstrap_samples, compare, load_ladder, markdown, one_seed_tau, table_rows
from medst.config import Config
from medst.records import Facts, Metrics, Progress, Record
from medst.tracking import TrackingPlace, list_studies, load_runs
from sweeps import commands, ladder
from sweeps.ladder import LadderError, run_ladder, rung
from sweeps.study import load_study
from sweeps.trials import DataFacts, store_id

FACTS = DataFacts("phantom", "fingerprint", False)
METRIC = "test/finding_zero_shot/mean/auroc"
STUDY = """\
name: weights
question: Does λ1 matter?
base: [base.yaml]
reference: "1"
primary_metric: test/finding_zero_shot/mean/auroc
seeds: [0, 1, 2]
arms:
  "1": {}
  "0.1": {objective.lambda_local: 0.1}
  "3": {objective.lambda_local: 3.0}
  "9": {objective.lambda_local: 9.0}
  untrained: {training.epochs: 0}
"""


def synthetic_trial(config: Config, folder: Path | None) -> Iterator[Record]:
    """More λ1 is better, and shows only with the budget; small budgets prefer the reverse order."""
    yield Facts({"pairs_seen": 100, "training_steps": 1})
    yield Progress(1, 1)
    budget = config.training.epochs / 4 * config.data.train_fraction
    effect = np.log10(config.objective.lambda_local) * (0.1 if budget > 0.2 else -0.1)
    yield Metrics(1, {METRIC: 0.6 + effect * min(1.0, budget) + 0.001 * config.seed})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", fresh_place(folder).uri)
    (folder / "base.yaml").write_text("training: {epochs: 4.0}\n")
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "weights.yaml").write_text(STUDY)

    def data(study: Any, *arguments: Any) -> dict[Any, DataFacts]:
        return {store_id(arm.config.data): FACTS for arm in study.arms}

    for module in (commands, ladder):
        monkeypatch.setattr(module, "ensure_data", data)
    return folder


def climb(project: Path, **options: Any) -> tuple[int, str]:
    output = StringIO()
    code, name = run_ladder("weights", project=project, executor="inline", trial_function=synthetic_trial,
                            console=Console(file=output, width=200), **options)
    return code, name


def test_a_rung_is_the_study_at_a_share_of_its_budget_or_of_its_patients(project: Path) -> None:
    study = load_study(project / "sweeps" / "weights.yaml", project=project)
    budget, data = rung(study, "budget", 0.25), rung(study, "data", 0.1)
    assert [arm.config.training.epochs for arm in budget.arms] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert {arm.config.data.train_fraction for arm in data.arms} == {0.1}
    assert {arm.config.training.epochs for arm in data.arms} == {4.0, 0.0}
    assert (budget.name, data.name) == ("weights-budget-25", "weights-data-10")
    assert [arm.name for arm in budget.arms] == [arm.name for arm in study.arms]


def test_a_ladder_answers_from_the_store_and_runs_nothing_twice(project: Path) -> None:
    code, name = climb(project, fractions=(0.1, 0.25))
    assert (code, name) == (0, "weights-budget")
    place = TrackingPlace.of_project(project)
    runs = load_runs(place.uri, place.experiment)
    # The untrained arm is the same trial on every rung.
    assert len(runs) == 3 * (4 * 3 + 1) and runs["key"].is_unique
    assert climb(project, fractions=(0.1, 0.25))[0] == 0
    assert len(load_runs(place.uri, place.experiment)) == len(runs)
    assert list_studies(place.uri, place.experiment) == ["weights"]

    loaded = load_ladder(place.uri, place.experiment, name)
    assert loaded is not None and loaded.arms == ("1", "0.1", "3", "9")
    tenth, quarter, full = loaded.rungs
    assert [rung.fraction for rung in loaded.rungs] == [0.1, 0.25, 1.0]
    assert tenth.kendall == pytest.approx(-1) and tenth.spearman == pytest.approx(-1)
    assert not tenth.is_top_agreed and tenth.top == "0.1" and tenth.top_agreement == 0.0
    # Full scores: 0.6 + 0.1 log10(9) against 0.6 + 0.1 log10(0.1).
    assert tenth.regret == pytest.approx(0.1 * np.log10(90))
    assert quarter.kendall == pytest.approx(1) and quarter.is_top_agreed and quarter.regret == 0.0
    assert full.cost_share == 1.0 and full.one_seed == pytest.approx(1)

    out = project / "results"
    table = make_exploration(place.uri, place.experiment, out, "ladder", name)
    assert table == out / "ladders" / "weights-budget" / "ladder.md"
    assert {path.name for path in table.parent.iterdir()} == {
        "ladder.md", "ladder.csv", "ladder_weights-budget.pdf", "ladder_weights-budget.png", "ladder_weights-budget.md"}
    text = table.read_text()
    assert text.startswith(markdown(loaded)) and "untrained" in text and "3 seeds" in text
    stamp = pd.read_csv(table.with_suffix(".csv"))["fingerprint"].unique()
    assert f"<!-- fingerprint {stamp[0]} -->" in text and len(stamp) == 1

    def problems() -> list[str]:
        return [problem for problem in checking.check_results(place.uri, place.experiment, out) if "ladder" in problem]

    assert problems() == []
    before = table.stat().st_mtime_ns
    results.make_results(place.uri, place.experiment, out, only="tables", console=Console(file=StringIO()))
    assert table.stat().st_mtime_ns == before and problems() == []
    table.with_suffix(".csv").write_text("edited")
    assert problems() == ["EDITED ladders/weights-budget/ladder.csv: not as it was written",
                          "EDITED ladders/weights-budget/ladder.csv: differs from what the tracking store says"]
    make_exploration(place.uri, place.experiment, out, "ladder", name)
    (out / "manifest.json").unlink()
    results.make_results(place.uri, place.experiment, out, studies=["weights"], only="tables",
                         console=Console(file=StringIO()))
    assert [problem.partition(":")[0] for problem in problems()] == [
        "MISSING tables of ladder weights-budget", "MISSING figures of ladder weights-budget"]
    assert all(len(row) == len(HEADS) for row in table_rows(loaded))


def test_what_has_no_order_is_refused(project: Path) -> None:
    with pytest.raises(LadderError, match="between 0 and 1"):
        climb(project, fractions=(0.1, 1.0))
    path = project / "sweeps" / "weights.yaml"
    path.write_text(STUDY[:STUDY.index('  "3"')])
    with pytest.raises(LadderError, match="fewer than three"):
        climb(project)


def slow_tau(left: np.ndarray, right: np.ndarray) -> float:
    """Kendall's tau b by counting pairs."""
    agree = ties_left = ties_right = count = 0
    for first, second in itertools.combinations(range(len(left)), 2):
        here, there = np.sign(left[first] - left[second]), np.sign(right[first] - right[second])
        agree += here * there
        ties_left += here == 0
        ties_right += there == 0
        count += 1
    return float(agree / np.sqrt((count - ties_left) * (count - ties_right)))


def test_ranks_and_intervals_equal_counting_by_hand() -> None:
    random = np.random.default_rng(1)
    full = pd.DataFrame(random.normal(size=(3, 5)), index=[0, 1, 2], columns=list("abcde"))
    cheap = full + random.normal(size=(3, 5))
    found = compare(0.1, cheap, full, -1.0, 2.0, 20.0)
    left, right = -cheap.to_numpy(), -full.to_numpy()
    assert found.kendall == pytest.approx(slow_tau(left.mean(0), right.mean(0)))
    taus = [slow_tau(left[list(draw)].mean(0), right[list(draw)].mean(0))
            for draw in itertools.product(range(3), repeat=3)]
    assert (found.kendall_low, found.kendall_high) == pytest.approx(tuple(np.quantile(taus, [0.025, 0.975])))
    # Lower is better here: the arm with the lowest mean is chosen.
    assert found.top == cheap.mean().idxmin()
    assert found.regret == pytest.approx(full.mean()[found.top] - full.mean().min())
    assert found.cost_share == 0.1
    expected = np.mean([slow_tau(left[seed], np.delete(right, seed, axis=0).mean(0)) for seed in range(3)])
    assert one_seed_tau(left, right) == pytest.approx(expected)
    assert np.isnan(one_seed_tau(left[:1], right[:1]))


def test_few_seeds_are_enumerated_and_many_drawn_alike_every_time() -> None:
    assert sorted(map(tuple, bootstrap_samples(2))) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    many = bootstrap_samples(8)
    assert len(many) == 2000 and np.array_equal(many[17], bootstrap_samples(8)[17])
