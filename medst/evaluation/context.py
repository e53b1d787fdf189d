"""What every evaluator gets, and the small things that all of them say. No scores are computed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from medst.config import Config
from medst.data.store import MimicStore, Store
from medst.data.tokenizer import Tokenizer
from medst.evaluation.embeddings import EmbeddingCache
from medst.evaluation.predictions import salted_groups
from medst.model.joint import JointModel
from medst.records import Facts, Metrics, Record


@dataclass(frozen=True)
class EvaluationContext:
    """One frozen model on one store, and the embeddings that the tasks share."""

    model: JointModel
    """In evaluation mode."""
    store: Store
    tokenizer: Tokenizer
    config: Config
    device: torch.device
    step: int
    """Training steps that the model has seen; the step of every metric."""
    cache: EmbeddingCache

    def metrics(self, values: Mapping[str, float]) -> Metrics:
        return Metrics(self.step, dict(values))

    def groups(self, patients: Iterable[object]) -> np.ndarray:
        """Salted group ids of patients, the same in every table of one store."""
        return salted_groups(patients, self.store.fingerprint)


Evaluator = Callable[[EvaluationContext], Iterator[Record]]


def skipped(task: str, reason: str) -> Facts:
    """The one record of a task, or of a part of it, that has nothing to work on."""
    return Facts({f"skipped.{task}": reason})


def held_out(mimic: MimicStore, patients: Iterable[object]) -> np.ndarray:
    """(n,) bool: patients none of whose studies is in the training split."""
    trained = set(mimic.studies.loc[mimic.studies["split"] == "train", "subject_id"].astype(str))
    return np.array([str(patient) not in trained for patient in patients], dtype=bool)
