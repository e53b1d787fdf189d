"""A dry run of a study, and what is refused before its first trial: absent GPUs, weights that cannot be had."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
import yaml
from model_samples import SIZES
from raw_files import write_root
from rich.console import Console
from tracking_fixtures import fresh_place

from medst.config import Config, load_config, override
from medst.data.loader import TrainLoader
from medst.data.splits import seen_by_trial
from medst.data.store import prepare
from medst.data.support import SupportError
from medst.data.tokenizer import build_tokenizer
from medst.tracking import load_runs
from medst.training import device
from medst.training.device import DeviceError
from medst.training.estimate import estimate
from sweeps.commands import plan_sweep, run_sweep
from sweeps.preflight import PreflightError

STUDY = """\
name: costs
question: What does it cost?
base: [base.yaml]
reference: full
primary_metric: test/finding_zero_shot/mean/auroc
seeds: [0, 1]
arms:
  full: {}
  λ1 = 3: {objective.lambda_local: 3.0}
  no RMR: {objective.curriculum.kind: fmc_only}
  no local alignment: {objective.lambda_local: 0}
  1 expert: {model.experts.num_experts: 1}
  half as long: {training.epochs: 1.0}
"""
SETTINGS = {**SIZES, "data.evaluation_patients": "released", "data.sequence_length": 2,
            "data.root": "data", "training.pairs_per_batch": 8, "training.epochs": 2.0}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", fresh_place(tmp_path).uri)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(override(Config(), SETTINGS).model_dump(mode="json")))
    (tmp_path / "costs.yaml").write_text(STUDY)
    write_root(tmp_path / "data")
    return tmp_path


def plan(project: Path, *assignments: str, is_dry_run: bool = True) -> str:
    output = StringIO()
    plan_sweep("costs.yaml", assignments, project=project, is_dry_run=is_dry_run,
               console=Console(file=output, width=240))
    return output.getvalue()


def test_a_dry_run_tells_each_kind_of_arm_once(project: Path) -> None:
    with pytest.raises(ValueError, match="medst data prepare --data data"):
        plan(project)
    prepare(load_config(project / "base.yaml").data)
    printed = plan(project)
    rows = [re.split(r"\s{2,}", line.strip()) for line in printed.split("checkpoints\n")[1].splitlines()]
    kinds = {row[0]: row for row in rows if len(row) == 7}
    assert "2 of 4 kinds of trials estimated: no local alignment" in printed
    # What only weighs a loss or orders it costs the same; a loss without weight is not computed.
    assert list(kinds) == ["full, λ1 = 3, no RMR", "no local alignment", "1 expert", "half as long"]
    assert [row[1] for row in kinds.values()] == ["6", "2", "2", "2"]
    config = load_config(project / "base.yaml")
    store = seen_by_trial(prepare(config.data), config.data)
    loader = TrainLoader(store, build_tokenizer(store, config.data, "corrected"), config)
    steps = {name: int(row[2].replace(",", "")) for name, row in kinds.items()}
    assert steps["full, λ1 = 3, no RMR"] == steps["1 expert"] == 2 * len(loader)
    assert steps["half as long"] == len(loader)
    assert f"{loader.num_pairs} pairs" in printed
    for word in ("one after another", "at a time", "this machine has", "GiB are free", "timed on cpu"):
        assert word in printed, word
    assert "an epoch" not in plan(project, is_dry_run=False)


def test_data_are_judged_as_a_trial_sees_them(project: Path) -> None:
    """Held-out patients take the sequences with them: said before the run, not by every trial."""
    prepare(load_config(project / "base.yaml").data)
    for is_dry_run in (False, True):
        with pytest.raises(SupportError, match=r"arm 'full'.*the most is 1"):
            plan(project, "data.evaluation_patients=corrected", is_dry_run=is_dry_run)


def test_an_estimate_of_several_ranks_is_that_of_one_with_its_share(project: Path) -> None:
    alone = load_config(project / "base.yaml", overrides={"training.pairs_per_batch": 4})
    store = prepare(alone.data)
    tokenizer = build_tokenizer(store, alone.data, "corrected")
    both = load_config(project / "base.yaml", overrides={"training.pairs_per_batch": 8, "training.world_size": 2})
    one, two = (estimate(config, store, tokenizer, project) for config in (alone, both))
    assert one.pairs_held == two.pairs_held == 4 and one.activation_bytes == two.activation_bytes > 0


def test_a_gpu_that_is_not_there_is_told_and_estimated_on_the_cpu(project: Path, monkeypatch: pytest.MonkeyPatch
                                                                  ) -> None:
    monkeypatch.setattr(device, "num_gpus", lambda: 0)
    prepare(load_config(project / "base.yaml").data)
    assert "the CPU, since there is no cuda here" in plan(project, "training.device=cuda")
    for executor in ("ray", "inline"):
        with pytest.raises(DeviceError, match=r"training\.device=cpu"):
            run_sweep("costs.yaml", ["training.device=cuda"], executor, project=project)
    with pytest.raises(DeviceError, match="cpu, cuda"):
        device.require_device("gpu")
    monkeypatch.setattr(device, "num_gpus", lambda: 1)
    with pytest.raises(PreflightError, match=r"takes 2 GPUs, and this machine has 1"):
        run_sweep("costs.yaml", ["training.device=cuda", "training.world_size=2"], project=project)
    assert not len(load_runs())


def test_weights_that_no_trial_could_have_stop_the_study_before_it_starts(project: Path) -> None:
    prepare(load_config(project / "base.yaml").data)
    (project / "bert").mkdir()
    (project / "bert" / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 3}))
    with pytest.raises(PreflightError, match=r"arm 'full'.*model\.text\.name(.|\n)*docs/weights\.md"):
        run_sweep("costs.yaml", ["model.text.name=bert", "model.image.name=local-dir:nowhere"], project=project)
    assert not len(load_runs())
