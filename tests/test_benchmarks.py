"""The slow ways give the model's numbers, forward and gradient; each differs in what it computes."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_samples import small_batch, small_config, small_model
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.measuring import Times, growth_exponent, interleave, machine, matrix_products, peak_memory, spread
from benchmarks.published_way import FAST, PUBLISHED_WITH_ANOMALY, Way, executed, objective_of
from benchmarks.training import (
    ANOMALY_NAME,
    FAST_NAME,
    PUBLISHED_NAME,
    REDUCED_NAME,
    measure_local_memory,
    measure_memory,
    measure_training,
)

WAYS = {field.name: replace(FAST, **{field.name: True}) for field in fields(Way)}


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("way", [*WAYS.values(), PUBLISHED_WITH_ANOMALY], ids=[*WAYS, "all"])
def test_a_slow_way_gives_the_models_loss_and_gradient(way: Way, stem: str) -> None:
    config = small_config(**{"model.image.stem": stem, "training.pack_captions": True})
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
    config = small_config(**{"training.pack_captions": True})
    model = small_model(config).train()
    batch = small_batch(words=(1, 2, 1, 1, 2, 2, 1))
    counts = {}
    for name in ("fast", "absent_laterals", "padded_captions", "full_captions"):
        way = WAYS.get(name, FAST)
        with FlopCounterMode(display=False) as counter, executed(way), torch.no_grad():
            objective_of(model, batch, config, way)
        counts[name] = counter.get_total_flops()
    assert counts["absent_laterals"] > 1.1 * counts["fast"]
    assert counts["full_captions"] > 1.1 * counts["padded_captions"] > 1.1 * counts["fast"]


def test_steps_take_turns_and_ratios_are_of_one_round() -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in ("one", "two", "three")}
    times = interleave(steps, "cpu", seconds=0.0, least_rounds=3)
    assert order[:3] == ["one", "two", "three"], "each runs once before the clock starts"
    assert order[3:] == ["one", "two", "three", "two", "three", "one", "three", "one", "two"]
    assert times.seconds.shape == (3, 3)
    known: list[int] = []
    order.clear()
    interleave(steps, "cpu", seconds=0.0, least_rounds=2, keep=lambda times: known.append(len(times.seconds)),
               is_warm=True)
    assert len(order) == 6 and known == [1, 2], "what is known is handed on after every round"
    by_hand = Times(("slow", "fast"), np.array([[2.0, 1.0], [30.0, 10.0], [8.0, 2.0]]))
    assert by_hand.ratio("slow", "fast") == {"median": 3.0, "low": 2.5, "high": 3.5, "rounds": 3}


def test_the_exponent_of_a_power_is_its_power() -> None:
    assert growth_exponent([1, 2, 4, 8], [3.0 * size**1.5 for size in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_peak_memory_sees_what_a_step_holds_at_its_worst() -> None:
    def step() -> None:
        first = torch.zeros(2**23)  # 32 MiB
        del first
        kept = torch.zeros(2**24), torch.zeros(2**23)
        assert len(kept) == 2

    assert 90 * 2**20 < peak_memory(step, "cpu") < 140 * 2**20


def test_operations_of_matrix_products() -> None:
    step, operations = matrix_products([(2, 3, 5), (4, 1, 1)], "cpu", torch.float32)
    with FlopCounterMode(display=False) as counter:
        step()
    assert operations == counter.get_total_flops() == 3 * 2 * (30 + 4)


def test_a_setting_is_measured_from_end_to_end(tmp_path: Path) -> None:
    config = small_config(**{"data.sequence_length": 4})
    known: list[set[str]] = []
    measured = measure_training("tiny", config, 8, seconds=0.0,
                                keep=lambda so_far: known.append(set(so_far["seconds"])))
    assert known[0] == {ANOMALY_NAME, PUBLISHED_NAME, FAST_NAME, REDUCED_NAME}, "the main comparison comes first"
    assert known[-1] == set(measured["seconds"]) > known[0]
    assert measured["largest_difference"] < 1e-4
    assert set(measured["parts"]) >= {"image encoder", "text encoder", "heads", "local alignment", "optimiser"}
    assert all(item["rounds"] >= 3 for item in measured["seconds"].values())
    conditions = {"measured_on": {**machine("cpu"), "clock": "wall", "minutes": 0.1}}
    results = {"training": {"tiny": {**measured, **conditions}},
               "memory": {**measure_memory("tiny", config, (4, 8), (8,)), **conditions}}
    paths = report.write(results, tmp_path)
    assert [path.name for path in paths] == ["bench.json", "bench.md", "bench-memory.png"]
    table = paths[1].read_text(encoding="utf-8")
    for label in (*measured["seconds"], "pieces of 4 pairs", "576 pairs, extrapolated"):
        assert label in table


def test_bounded_arrays_of_the_local_alignment_take_less_memory() -> None:
    config = small_config(**{"data.image_size": 64, "data.crop_size": 64})
    measured = measure_local_memory(config, (256,), bound=2**18)
    (bounded,), (whole,) = measured["peak_bytes"].values()
    assert measured["patches"] == 128 and bounded < 0.75 * whole


def test_growth_is_reported_with_its_exponents(tmp_path: Path) -> None:
    sizes = [10, 100, 1000]
    seconds = {str(size): spread(np.array([0.02 * size])) for size in sizes}
    growth = {"images prepared": {"sizes": sizes, "seconds": seconds, "exponent": 1.0, "expected": 1.0},
              "measured_on": {**machine("cpu"), "clock": "wall", "minutes": 0.1}}
    paths = report.write({"rooms": growth}, tmp_path)
    assert [path.name for path in paths] == ["bench.json", "bench.md", "bench-rooms.png"]
    assert "| images prepared | 10, 100, 1000 | 0.2, 2, 20 | 1.00 | 1 |" in paths[1].read_text(encoding="utf-8")


def test_the_document_shows_the_numbers_that_were_measured() -> None:
    docs = Path(__file__).resolve().parent.parent / "docs"
    results = json.loads((docs / "bench.json").read_text(encoding="utf-8"))
    assert report.markdown(results) in (docs / "performance.md").read_text(encoding="utf-8")
