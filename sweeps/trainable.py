"""Med-ST as a trainable for a `tune.Tuner` of one's own.

    from ray import tune
    from sweeps.trainable import medst_trainable

    tuner = tune.Tuner(medst_trainable, param_space={
        "base": "/absolute/path/experiments/phantom_tiny.yaml",
        "objective.lambda_local": tune.loguniform(0.01, 10.0),
    }, tune_config=tune.TuneConfig(metric="validation/loss", mode="min"))

Nothing is tracked but what Tune is told; choose by `validation/...` metrics, never by `test/...`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from medst.config import load_config, override
from medst.records import Checkpoint, Metrics
from sweeps.trials import absolute_places
from sweeps.worker import TrialFunction, default_trial_function

BASE = "base"


def medst_trainable(config: Mapping[str, Any], trial_function: TrialFunction | None = None) -> None:
    """One trial whose dotted keys override a base; reports every metric and hands checkpoints to Tune.

    Args:
        config: dotted config keys -> values, and `base`: an experiment file or a list of them. Paths are
            absolute, or relative to the folder in which the driver was started.

    Raises:
        ConfigError: unknown key (with the nearest valid name), wrong type, impossible combination.
    """
    import torch

    settings = dict(config)
    base = settings.pop(BASE, ())
    # Tune gives every trial a folder of its own and remembers where the driver was started.
    origin = Path(os.environ.get("TUNE_ORIG_WORKING_DIR", os.getcwd()))
    resolved = load_config(*(origin / path for path in ([base] if isinstance(base, str) else base)), overrides=settings)
    resolved = override(resolved, absolute_places(resolved, origin))
    resources = tune.get_context().get_trial_resources().required_resources
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoints"
        restored = tune.get_checkpoint()
        if restored is not None:
            restored.to_directory(str(folder))
        folder.mkdir(exist_ok=True)
        latest: dict[str, float] = {}
        for record in (trial_function or default_trial_function())(resolved, folder):
            if isinstance(record, Metrics):
                latest.update({name: float(value) for name, value in record.values.items()})
                tune.report({**latest, "step": record.step})
            elif isinstance(record, Checkpoint) and latest:
                tune.report({**latest, "step": record.step}, checkpoint=tune.Checkpoint.from_directory(str(folder)))
        shutil.rmtree(folder)
