"""What would make every trial of an arm fail, found before the first one starts: absent GPUs, initial weights.

What must not live here: the data (data.py), what a trial costs (dry_run.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from medst.config import Config, override
from sweeps.trials import Trial, absolute_places

_HUB_KEYS = ("data.vocabulary", "model.text.name", "model.image.name")


class PreflightError(ValueError):
    """What no trial of an arm could have; names the arm and the remedy."""


def check_trials(trials: Iterable[Trial], project: Path) -> None:
    """Refuse trials that cannot begin. Weights are opened only where a config names some, once for all that share them.

    Raises:
        PreflightError, DeviceError: GPUs that this machine lacks, or initial weights or a vocabulary that cannot be
            had or do not fit the model.
    """
    seen: set[str] = set()
    for trial in trials:
        require_gpus(trial.config, trial.num_gpus)
        config = override(trial.config, absolute_places(trial.config, project))
        data, model = config.data, config.model
        named = (data.vocabulary, model.image.name, model.text.name, model.weights)
        shape = f"{data.vocabulary} {data.crop_size} {data.caption_tokens} {model.model_dump_json()}"
        if any(named) and shape not in seen:
            seen.add(shape)
            try:
                _open_weights(config)
            except ValueError as error:
                raise PreflightError(f"arm '{trial.arm}': {error}{_told_hub_names(config)}") from None


def require_gpus(config: Config, num_wanted: float) -> None:
    """Refuse a trial that asks for more GPUs than there are: Ray would wait for them for ever.

    Where RAY_ADDRESS names a cluster, its machines may have them, and nothing is asked.

    Args:
        num_wanted: of each of the trial's processes.
    """
    if os.environ.get("RAY_ADDRESS") or (num_wanted == 0 and not config.training.device.startswith("cuda")):
        return
    # Only here: importing torch takes seconds.
    from medst.training.device import num_gpus, require_device

    require_device(config.training.device)
    wanted = num_wanted * config.training.world_size
    if wanted > num_gpus():
        raise PreflightError(f"a trial takes {wanted:g} GPUs, and this machine has {num_gpus()}; change resources.gpus "
                             "in the study file or training.world_size, or name a cluster with RAY_ADDRESS")


def _open_weights(config: Config) -> None:
    from medst.data.splits import seen_by_trial
    from medst.data.store import open_store
    from medst.data.tokenizer import build_tokenizer
    from medst.model import MedST

    store = seen_by_trial(open_store(config.data), config.data)
    tokenizer = build_tokenizer(store, config.data, config.model.text.word_aggregation)
    MedST.create(config, tokenizer.vocabulary_size)


def _told_hub_names(config: Config) -> str:
    """All names that the hub would have to give: who brings files for one brings them for all."""
    values = (config.data.vocabulary, config.model.text.name, config.model.image.name)
    named = [f"{key}={value}" for key, value in zip(_HUB_KEYS, values, strict=True)
             if value is not None and not Path(value.removeprefix("local-dir:")).exists()]
    return f"\nFiles to bring: {', '.join(named)}; docs/weights.md says how" if named else ""
