"""The random splits of RSNA and COVIDx that the published program draws, rebuilt.

They are drawn over all rows of a table, before the first image is read: an image that cannot be read leaves its row
out and moves no other. What lives here: the draws. What must not: patients, which the published program ignores.

The draws are those of scikit-learn's train_test_split with random_state 0, and of pandas' sample with random_state 42;
both come from numpy's old generator, a fixed sequence.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

PUBLISHED_PERCENTS = (1, 10, 100)
"""Shares of the COVIDx training labels that the published evaluation uses."""


def published_rsna_split(patients: pd.Series) -> np.ndarray:
    """(n,) train | validate | test of RSNA's images, 70/15/15.

    The published program sorts the images by id, sets 30 % aside, and halves them: the first half is the test set.

    Args:
        patients: (n,) Kaggle's patientId of every image of the table, each once, in any order.
    """
    order = np.argsort(patients.to_numpy(dtype=object), kind="stable")
    num_rest = math.ceil(0.15 * 2 * len(order))
    train, rest = _drawn(order, num_rest)
    test, validate = _drawn(rest, math.ceil(0.5 * num_rest))
    split = np.empty(len(order), dtype=object)
    for name, rows in (("train", train), ("validate", validate), ("test", test)):
        split[rows] = name
    return split


def published_covidx_split(num_train: int) -> pd.DataFrame:
    """How the published program splits and samples the rows of COVIDx's training file, 80/20.

    Returns:
        A row each of the file: published_split (train | validate), published_order (place within that part as drawn),
        published_percent (the smallest of PUBLISHED_PERCENTS whose sample holds the row, which all larger ones hold
        too; 0 for validation).
    """
    train, validate = _drawn(np.arange(num_train), num_train - math.floor(0.8 * num_train))
    found = pd.DataFrame({"published_split": "train", "published_order": np.zeros(num_train, dtype=np.int64),
                          "published_percent": np.zeros(num_train, dtype=np.int64)})
    found.loc[validate, "published_split"] = "validate"
    for part in (train, validate):
        found.loc[part, "published_order"] = np.arange(len(part))
    sampled = train[np.random.RandomState(42).permutation(len(train))]
    for percent in reversed(PUBLISHED_PERCENTS):
        # A sample of nothing has no result; of real files one per cent is hundreds of images.
        size = max(1, round(percent / 100 * len(train)))
        found.loc[sampled[:size], "published_percent"] = percent
    return found


def _drawn(rows: np.ndarray, num_aside: int) -> tuple[np.ndarray, np.ndarray]:
    """What stays and what is set aside by scikit-learn's train_test_split with random_state 0, in the order drawn."""
    order = rows[np.random.RandomState(0).permutation(len(rows))]
    return order[num_aside:], order[:num_aside]
