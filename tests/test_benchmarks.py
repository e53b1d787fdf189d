"""The slow ways give the model's numbers, forward and gradient; each differs in what it computes."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from model_samples import small_batch, small_config, small_model
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published_way import FAST, PUBLISHED_WITH_ANOMALY, Way, executed, objective_of

WAYS = {field.name: replace(FAST, **{field.name: True}) for field in fields(Way)}


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("way", [*WAYS.values(), PUBLISHED_WITH_ANOMALY], ids=[*WAYS, "all"])
def test_a_slow_way_gives_the_models_loss_and_gradient(way: Way, stem: str) -> None:
    config = small_config(**{"model.image.stem": stem})
    model = small_model(config).double().train()
    batch = small_batch(words=(5, 2, 6, 1, 4, 7, 3))
    batch = replace(batch, frontal=batch.frontal.double(), lateral=batch.lateral.double())
    results = []
    for each in (FAST, way):
        model.zero_grad()
        with executed(each):
            objective = objective_of(model, batch, config, each)
            objective.total.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        results.append((objective.terms, gradients))
    (terms, gradients), (slow_terms, slow_gradients) = results
    assert set(terms) == set(slow_terms) and {"local", "fmc", "rmr"} <= set(terms)
    for name, value in terms.items():
        torch.testing.assert_close(slow_terms[name], value, atol=1e-8, rtol=1e-8, msg=name)
    for name, gradient in gradients.items():
        torch.testing.assert_close(slow_gradients[name], gradient, atol=1e-8, rtol=1e-7, msg=name)


def test_absent_laterals_and_full_captions_cost_operations() -> None:
    config = small_config()
    model = small_model(config).train()
    batch = small_batch(words=(1, 2, 1, 1, 2, 2, 1))
    counts = {}
    for name in ("fast", "absent_laterals", "full_captions"):
        way = WAYS.get(name, FAST)
        with FlopCounterMode(display=False) as counter, executed(way), torch.no_grad():
            objective_of(model, batch, config, way)
        counts[name] = counter.get_total_flops()
    assert counts["absent_laterals"] > 1.1 * counts["fast"]
    assert counts["full_captions"] > 1.1 * counts["fast"]
