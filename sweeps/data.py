"""Makes sure, before any worker starts, that the data of a study are there and prepared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from medst.config import DataConfig
from medst.data.store import Store, prepare, store_path
from sweeps.study import Study
from sweeps.trials import DataFacts, StoreId, store_id

Step = Callable[[str], Callable[[int, int], None]]
"""Told what begins; returns what is told (done, in all)."""


def phantom_preset(data: DataConfig) -> str | None:
    """Name of the phantom preset that a data root means: data/phantom/<preset>; None for any other folder."""
    from medst.data.phantom import PRESETS

    root = Path(data.root)
    return root.name if root.parts[-3:-1] == ("data", "phantom") and root.name in PRESETS else None


def is_phantom_complete(root: Path) -> bool:
    try:
        return bool(json.loads((root / "phantom.json").read_text(encoding="utf-8")).get("complete"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def needed_stores(study: Study) -> dict[StoreId, DataConfig]:
    """The distinct stores that a study's arms read."""
    return {store_id(arm.config.data): arm.config.data for arm in study.arms}


def ensure_data(study: Study, project: Path, num_workers: int, step: Step) -> dict[StoreId, DataFacts]:
    """Write phantom data that are absent and prepare every store that the study's arms read.

    Raises:
        ValueError: data are missing and cannot be made, or are broken.
    """
    facts = {}
    for identity, data in needed_stores(study).items():
        placed = _placed(data, project)
        preset = phantom_preset(data)
        if preset is not None and not is_phantom_complete(Path(placed.root)) and not store_path(placed).is_dir():
            from medst.data.phantom import PRESETS, generate

            generate(PRESETS[preset], Path(placed.root), num_workers=num_workers, progress=step(f"phantom '{preset}'"))
        facts[identity] = _facts(prepare(placed, num_workers, step(f"store of {data.root}")))
    return facts


def existing_data(study: Study, project: Path) -> Mapping[StoreId, DataFacts] | None:
    """Facts of the study's stores where all of them are prepared, else None. Makes nothing."""
    from medst.data.store import StoreError, open_store

    try:
        return {identity: _facts(open_store(_placed(data, project)))
                for identity, data in needed_stores(study).items()}
    except StoreError:
        return None


def _placed(data: DataConfig, project: Path) -> DataConfig:
    return data.model_copy(update={"root": str((project / data.root).absolute()),
                                   "store": str((project / data.store).absolute()) if data.store else None})


def _facts(store: Store) -> DataFacts:
    return DataFacts(store.name, store.fingerprint, store.is_credentialed)
