"""Downstream tasks on embeddings computed once; evaluators yield records. No training of encoders here.

`evaluate` runs the tasks that the config names; each task is one file, whose head states its protocols and the names
of its metrics. `embeddings` computes, `metrics` and `probes` judge, `prompts` holds the words.
Nothing here selects on test data, and nothing knows how records are tracked.
"""

from medst.evaluation.context import EvaluationContext
from medst.evaluation.suite import EVALUATORS, check_tasks, evaluate
from medst.evaluation.temporal_image import evaluate_pixel_baseline

__all__ = ["EVALUATORS", "EvaluationContext", "check_tasks", "evaluate", "evaluate_pixel_baseline"]
