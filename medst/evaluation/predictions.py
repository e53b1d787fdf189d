"""Per-example predictions under salted group ids. No scores are computed here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from medst.evaluation.traits import TRAITS
from medst.records import Table

COLUMNS = ("example", "group", "label", "score", "fold", "finding", "protocol", *TRAITS)
"""example: row of the task's table in the store. group: salted hash of the patient, so that a bootstrap can
draw patients. label: truth. score: larger for label 1; where there are several classes, the margin of the true
class over the best other one, positive where the prediction is right. fold: test fold, -1 where there are none.
finding: what was asked of the example (finding, subset, label fraction, direction). protocol: which one.
Then what subgroups are made of, `traits.TRAITS`."""


def salted_groups(patients: Iterable[object], salt: str) -> np.ndarray:
    """16 hexadecimal digits a patient: equal ids give equal digits within one store, other ones in another."""
    names = [str(patient) for patient in patients]
    digits = {name: hashlib.blake2b(name.encode(), key=salt.encode()[:64], digest_size=8).hexdigest()
              for name in set(names)}
    return np.array([digits[name] for name in names], dtype=object)


def prediction_frame(
    *,
    example: Sequence[int] | np.ndarray,
    group: Sequence[str] | np.ndarray,
    label: Sequence[int] | Sequence[str] | np.ndarray,
    score: Sequence[float] | np.ndarray,
    finding: str,
    protocol: str = "corrected",
    fold: Sequence[int] | np.ndarray | int = -1,
    traits: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A frame with `COLUMNS`; `group` is salted already; of `traits`, row by row, what is not there is empty."""
    return pd.DataFrame({
        "example": np.asarray(example, dtype=np.int64),
        "group": group,
        "label": label,
        "score": np.asarray(score, dtype=float),
        "fold": np.broadcast_to(np.asarray(fold, dtype=np.int64), (len(example),)),
        "finding": finding,
        "protocol": protocol,
        **{trait: "" if traits is None or trait not in traits else traits[trait].to_numpy(dtype=object)
           for trait in TRAITS},
    })


def prediction_table(task: str, frames: Sequence[pd.DataFrame]) -> Table:
    """The private table `predictions/<task>` of a task."""
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
    return Table(f"predictions/{task}", frame, is_private=True)
