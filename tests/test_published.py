"""Published numbers as a data file, and what a dry run counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_samples import VOCABULARY_SIZE, small_batch, small_config
from torch import nn

from analysis import registry
from analysis.published import load_published, reproduction
from medst.config import load_config
from medst.model import MedST
from medst.training.estimate import _Kept, _step


def test_every_published_number_has_a_source_that_was_read() -> None:
    numbers = load_published()
    assert len(numbers) >= 9
    for number in numbers:
        assert number.source.startswith("https://") and number.metric in registry.METRICS, number
        assert number.comparable or number.why_not


@pytest.mark.parametrize(("change", "message"), [
    ("grade: memory", "grade"), ("value: high", "value"), ("why_not: ''", "why_not"), ("extra: 1", "extra"),
])
def test_numbers_without_grade_or_reason_are_refused(tmp_path: Path, change: str, message: str) -> None:
    key = change.split(":")[0]
    lines = ["model: A", "metric: m", "value: 0.5", "protocol: p", "source: s", "grade: primary", "comparable: false",
             "why_not: other data"]
    text = "\n  ".join([line for line in lines if not line.startswith(f"{key}:")] + [change])
    path = tmp_path / "published.yaml"
    path.write_text(f"- {text}\n")
    with pytest.raises(ValueError, match=message):
        load_published(path)
    path.write_text("- " + "\n  ".join(lines) + "\n- " + "\n  ".join(lines) + "\n")
    with pytest.raises(ValueError, match="twice"):
        load_published(path)


def test_the_reproduction_table_compares_only_what_is_alike() -> None:
    known = load_published()[0]
    alike = known.model_copy(update={"comparable": True, "why_not": "", "model": "B", "value": 0.5})
    rows = reproduction({known.metric: 0.75, "test/other": 0.1}, (known, alike))
    assert [row[3] for row in rows] == ["BioViL-T", "B", ""]
    assert rows[0][5].startswith("not comparable: ") and rows[1][5] == "+0.2500"
    assert rows[2][5] == "no published number on file"


def test_the_paper_s_configuration_is_the_paper_s(repository: Path) -> None:
    config = load_config(repository / "experiments" / "mimic_paper.yaml")
    image, text, training = config.model.image, config.model.text, config.training
    assert (image.width, image.num_layers, image.num_heads, image.patch_size, config.data.crop_size) == (
        768, 12, 12, 16, 224)
    assert config.model.experts.num_experts == 2 and config.data.evaluation_patients == "corrected"
    assert text.name == config.data.vocabulary == "emilyalsentzer/Bio_ClinicalBERT"
    assert (training.learning_rate, training.weight_decay, training.warmup_fraction, training.epochs) == (
        4e-5, 0.05, 0.4, 8.0)


def test_kept_bytes_are_those_of_the_activations() -> None:
    layer = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
    kept = _Kept(layer)
    inputs = torch.ones(5, 8)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        layer(inputs).sum().backward()
    # The input of each layer is kept for its weight's gradient; the weights themselves are no activations.
    assert kept.num_bytes == 4 * (5 * 8 + 5 * 16)


def test_kept_bytes_grow_with_the_pairs() -> None:
    config = small_config()
    model = MedST.create(config, VOCABULARY_SIZE).train()
    views, words = (1,) * 12, (5,) * 12
    few, _ = _step(model, small_batch(views[:3], (), words[:3]), config)
    many, _ = _step(model, small_batch(views, (), words), config)
    assert 3.5 < many / few < 5.0
    assert all(weight.grad is None for weight in model.parameters())
