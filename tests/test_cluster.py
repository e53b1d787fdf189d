"""A simulated cluster of three nodes: one of them goes away in mid-run, and the results are as if it had not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tracking_fixtures
from rich.console import Console
from tracking_fixtures import fake_trial

from medst.config import Config
from medst.records import Metrics, Record
from medst.tracking import load_runs, metric_history
from sweeps import commands
from sweeps.commands import run_sweep
from sweeps.trials import DataFacts, store_id

STUDY = """
name: tiny
question: Does a lost node change anything?
base: [base.yaml]
reference: λ1 = 1.0
primary_metric: test/score
seeds: [0, 1]
grid:
  objective.lambda_local: {label: λ1, levels: [1.0, 0.5]}
"""


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials of these tests read no data."""
    monkeypatch.setattr(commands, "ensure_data", lambda study, *arguments: {
        store_id(arm.config.data): DataFacts("phantom", "fingerprint", False) for arm in study.arms})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes of one processor each, named by RAY_ADDRESS as a real cluster is."""
    import ray
    from ray.cluster_utils import Cluster

    # Workers need not find the files of the tests.
    ray.cloudpickle.register_pickle_by_value(tracking_fixtures)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[int, pd.DataFrame, str]:
    """Exit code, all metric points by arm, seed, name and step, and what was printed."""
    folder.mkdir()
    (folder / "base.yaml").write_text("training: {epochs: 2.0}\n")
    (folder / "tiny.yaml").write_text(STUDY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_fixtures.fresh_place(folder).uri)
    console = Console(file=StringIO(), width=200)
    code = run_sweep(str(folder / "tiny.yaml"), project=folder, console=console, **options)
    runs = load_runs(study="tiny")
    assert len(runs) == 4 and runs["key"].nunique() == 4
    names = ["train/loss", "train/rate", "test/score"]
    points = metric_history(list(runs["run_id"]), names).merge(runs[["run_id", "arm", "seed"]], on="run_id")
    points = points.drop(columns="run_id").sort_values(["arm", "seed", "name", "step"]).reset_index(drop=True)
    return code, points, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_lost_node_changes_no_result(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = tmp_path / "signs"
    signs.mkdir()

    def slow_trial(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
        import ray

        for record in fake_trial(config, checkpoint_dir):
            yield record
            if isinstance(record, Metrics):
                (signs / f"{ray.get_runtime_context().get_node_id()} {config.seed} {config.objective.lambda_local}"
                 ).write_text(str(record.step))
                time.sleep(0.5)

    removed = []

    def remove() -> None:
        """Take away the first node besides the head whose trial is past its first checkpoint."""
        head = cluster.head_node.node_id
        while not removed:
            for sign in signs.iterdir():
                node_id = sign.name.split()[0]
                if node_id != head and sign.read_text() in ("3", "4"):
                    (node,) = (node for node in cluster.worker_nodes if node.node_id == node_id)
                    removed.append(sign.name)
                    cluster.remove_node(node, allow_graceful=False)
                    return
            time.sleep(0.05)

    watch = threading.Thread(target=remove, daemon=True)
    watch.start()
    code, points, output = run(tmp_path / "disturbed", monkeypatch, trial_function=slow_trial)
    assert code == 0, output
    assert len(removed) == 1
    monkeypatch.delenv("RAY_ADDRESS")
    code, undisturbed, output = run(tmp_path / "undisturbed", monkeypatch, executor="inline",
                                    trial_function=fake_trial)
    assert code == 0, output
    pd.testing.assert_frame_equal(points, undisturbed, check_exact=True)
    elsewhere = {sign.name.split(maxsplit=1)[1] for sign in signs.iterdir() if sign.name != removed[0]}
    assert removed[0].split(maxsplit=1)[1] in elsewhere, "the lost trial went on on another node"


@pytest.mark.slow
def test_a_trial_of_two_ranks_lies_on_two_nodes_and_survives_the_loss_of_one(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from sweeps.ranks import on_bundles

    signs = tmp_path / "signs"
    signs.mkdir()

    def on_each(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
        """The same numbers as one process has, each checked by a sum over the ranks."""
        import torch

        from medst.training.distributed import Ranks

        ranks = Ranks.current()
        (signs / f"{ranks.rank} {ray.get_runtime_context().get_node_id()}").touch()
        folder = checkpoint_dir / str(ranks.rank) if checkpoint_dir else None
        if folder is not None:
            folder.mkdir(exist_ok=True)
        for record in fake_trial(config, folder):
            if isinstance(record, Metrics):
                assert float(ranks.sum(torch.ones(1))) == 2
                if record.step == 3 and ranks.rank == 1 and not (signs / "killed").exists():
                    (signs / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            yield record

    def both(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
        return on_bundles(config, checkpoint_dir, on_each)

    code, points, output = run(tmp_path / "two", monkeypatch, trial_function=both,
                               assignments=["training.world_size=2"])
    assert code == 0, output
    nodes = {tuple(sign.name.split()) for sign in signs.iterdir() if sign.name != "killed"}
    assert {rank for rank, _ in nodes} == {"0", "1"} and (signs / "killed").exists()
    monkeypatch.delenv("RAY_ADDRESS")
    code, undisturbed, output = run(tmp_path / "one", monkeypatch, executor="inline", trial_function=fake_trial)
    assert code == 0, output
    pd.testing.assert_frame_equal(points, undisturbed, check_exact=True)
