"""Makes sure, before any worker starts, that the data of a study are there and prepared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medst.config import DataConfig
from medst.data.building import Step
from medst.data.provision import provide
from medst.data.splits import seen_by_trial
from medst.data.store import Store, StoreError, open_store
from medst.data.support import SupportError, check_support, missing_tasks
from sweeps.study import Study
from sweeps.trials import DataFacts, StoreId, needed_data, store_id


def ensure_data(study: Study, project: Path, num_workers: int, step: Step) -> dict[StoreId, DataFacts]:
    """Write phantom data that are absent and prepare every store that the study's trials read.

    Raises:
        ValueError: data are missing and cannot be made, are broken, or cannot support an arm.
    """
    return _checked(study, {identity: provide(_placed(data, project), num_workers, step)
                            for identity, data in needed_data(study).items()})


def existing_data(study: Study, project: Path) -> Mapping[StoreId, DataFacts] | None:
    """Facts of the study's stores where all of them are prepared, else None. Makes nothing.

    Raises:
        SupportError: the data cannot support an arm.
    """
    try:
        stores = {identity: open_store(_placed(data, project)) for identity, data in needed_data(study).items()}
    except StoreError:
        return None
    return _checked(study, stores)


def _checked(study: Study, stores: Mapping[StoreId, Store]) -> dict[StoreId, DataFacts]:
    """Facts of the stores, after every arm was held against what its data have."""
    for arm in study.arms:
        for replicate in study.replicates:
            config = replicate.config(arm.config)
            try:
                check_support(seen_by_trial(stores[store_id(config.data)], config.data), config)
            except SupportError as error:
                raise SupportError(f"arm '{arm.name}': {error}") from None
    return {identity: _facts(store) for identity, store in stores.items()}


def _placed(data: DataConfig, project: Path) -> DataConfig:
    return data.model_copy(update={"root": str((project / data.root).absolute()),
                                   "store": str((project / data.store).absolute()) if data.store else None})


def _facts(store: Store) -> DataFacts:
    return DataFacts(store.name, store.fingerprint, store.is_credentialed, missing_tasks(store))
