"""The tasks by name, and one pass over those that the config asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from medst.config import Config, nearest
from medst.data.splits import seen_by_trial
from medst.data.store import Store
from medst.data.tokenizer import Tokenizer
from medst.evaluation.context import EvaluationContext, Evaluator, skipped
from medst.evaluation.covidx_linear import covidx_linear
from medst.evaluation.direction import direction
from medst.evaluation.embeddings import EmbeddingCache
from medst.evaluation.finding_zero_shot import finding_zero_shot
from medst.evaluation.grounding import grounding
from medst.evaluation.retrieval import retrieval
from medst.evaluation.rsna_zero_shot import rsna_zero_shot
from medst.evaluation.sentence_similarity import sentence_similarity
from medst.evaluation.sequences import sample_sequences, sequence_embeddings
from medst.evaluation.sides import sides
from medst.evaluation.temporal_image import temporal_image
from medst.evaluation.validation import validation
from medst.model.joint import JointModel
from medst.records import Record

EVALUATORS: Mapping[str, Evaluator] = {
    "validation": validation,
    "temporal_image": temporal_image,
    "sentence_similarity": sentence_similarity,
    "rsna_zero_shot": rsna_zero_shot,
    "covidx_linear": covidx_linear,
    "finding_zero_shot": finding_zero_shot,
    "retrieval": retrieval,
    "grounding": grounding,
    "direction": direction,
    "sides": sides,
}


def check_tasks(tasks: Iterable[str]) -> None:
    """Refuse unknown names of tasks.

    Raises:
        ValueError: naming the unknown task and the nearest known one.
    """
    for task in tasks:
        if task not in EVALUATORS:
            guess = nearest(task, EVALUATORS)
            raise ValueError(f"evaluation.tasks: unknown task '{task}'; " + (
                f"the nearest is '{guess}'" if guess else f"known are {', '.join(EVALUATORS)}"))


def evaluate(model: JointModel, store: Store, tokenizer: Tokenizer, config: Config, step: int) -> Iterator[Record]:
    """Run the tasks of `config.evaluation.tasks` on a model after `step` steps, on `config.training.device`.

    The model is put into evaluation mode, and back once the records are exhausted.

    Raises:
        ValueError: an unknown task, before anything is computed.
    """
    check_tasks(config.evaluation.tasks)
    return _records(model, store, tokenizer, config, step)


def _records(model: JointModel, store: Store, tokenizer: Tokenizer, config: Config, step: int) -> Iterator[Record]:
    device = torch.device(config.training.device)
    store = seen_by_trial(store, config.data)
    was_training = model.training
    model.eval()
    context = EvaluationContext(model, store, tokenizer, config, device, step,
                                EmbeddingCache(model, store, tokenizer, config, device))
    try:
        for task in config.evaluation.tasks:
            yield from EVALUATORS[task](context)
        if config.evaluation.track_embeddings:
            arrays = sequence_embeddings(context)
            yield arrays or skipped(
                "embeddings", f"no held-out patient has data.sequence_length={config.data.sequence_length} studies")
            samples = sample_sequences(context)
            if samples is not None:
                yield samples
    finally:
        model.train(was_training)
