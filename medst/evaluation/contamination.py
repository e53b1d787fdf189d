"""May the judged model have seen the patients on whom it is judged? The mark that such results carry.

The fact `contamination` of a run, and with it the caption of every table that shows the run. What must not live here:
scores; the choice of training patients (data/splits.py).
"""

from __future__ import annotations

from medst.config import Config
from medst.data.splits import describe_splits, overlaps
from medst.data.store import Store
from medst.model.lineage import exposures

FACT = "contamination"
FLAG = "is_contaminated"


def contamination(store: Store, config: Config) -> str:
    """Why results of `config` on `store` may be contaminated, in one line; empty where they are not.

    Args:
        store: as the trial sees it (`data.splits.seen_by_trial`).
    """
    shared = overlaps(store)
    reasons = []
    if shared:
        counts = ", ".join(f"{count} of {name}" for name, count in shared.items())
        reasons.append(f"training patients are judged ({counts})")
    if store.corpus == "covid-chestxray" and store.covidx is not None:
        reasons.append("training images may be judged (COVIDx draws on covid-chestxray-dataset and Figure1)")
    reasons += exposures(config.model, store.fingerprint)
    return "; ".join(reasons)


def standing(store: Store, config: Config) -> dict[str, str | int]:
    """Facts about who was trained on and who is judged: the mark, where there is one, and the hash of every split.

    The mark comes as words and as the number 1 under FLAG, by which tables find it.
    """
    reason = contamination(store, config)
    facts: dict[str, str | int] = {f"split.{split.data_set}.{split.part}": split.fingerprint
                                   for split in describe_splits(store)}
    return {**facts, **({FACT: reason, FLAG: 1} if reason else {})}
