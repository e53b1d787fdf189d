"""Every switch of the model and of the objective changes the numbers when it is flipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from model_samples import VOCABULARY_SIZE, objective_of, small_batch, small_config, small_model

from medst.config import Behaviour, Config, Section, flatten, known_keys, load_config
from medst.data.tokenizer import word_slots
from medst.model import MedST

REPOSITORY = Path(__file__).resolve().parents[1]
OVERLAY = REPOSITORY / "experiments" / "released.yaml"


def loss_under(**overrides: Any) -> torch.Tensor:
    """All terms of the objective in training mode, from the same weights and batch."""
    config = small_config(**overrides)
    terms = objective_of(small_model(config).train(), small_batch(), config).terms
    return torch.stack([terms[name] for name in ("global", "local_word", "local_patch", "temporal")])


def initial_experts(**overrides: Any) -> torch.Tensor:
    state = MedST.create(small_config(**overrides), VOCABULARY_SIZE).state_dict()
    return state["image_encoder.blocks.0.experts.experts.1.mlp.fc1.weight"]


def words_of_a_full_caption(**overrides: Any) -> torch.Tensor:
    """Report and words of a caption that fills all positions."""
    config = small_config(**overrides)
    ids = np.array([[2, 10, 12, 11, 14, 3]])
    continuation = np.arange(VOCABULARY_SIZE) % 2 == 1
    continuation[3] = False
    slots = torch.from_numpy(word_slots(ids, continuation, sep_id=3, behaviour=config.model.text.word_aggregation))
    tokens = torch.from_numpy(ids)
    features = small_model(config).eval().encode_text(tokens, torch.ones_like(tokens), slots)
    return features.words.sum(dim=1).detach()


# Switch -> what it must change. Terms that it must leave alone are named where that is sharper.
SWITCHES: dict[str, Callable[..., torch.Tensor]] = {
    "model.image.missing_lateral": loss_under,
    "model.text.positions": loss_under,
    "model.text.depth": loss_under,
    "model.text.word_aggregation": words_of_a_full_caption,
    "model.initialisation": initial_experts,
    "objective.global_negatives": loss_under,
    "objective.local.padding": loss_under,
    "objective.local.context": loss_under,
    "objective.temporal.regression": loss_under,
}


def behaviour_keys(section: type[Section], prefix: str) -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += behaviour_keys(field.annotation, f"{prefix}{name}.")
        elif get_args(field.annotation) == get_args(Behaviour):
            keys.append(f"{prefix}{name}")
    return keys


def test_every_switch_of_model_and_objective_is_listed() -> None:
    keys = [key for key in behaviour_keys(Config, "") if key.startswith(("model.", "objective."))]
    assert sorted(SWITCHES) == sorted(keys)
    assert len(SWITCHES) == 9


@pytest.mark.parametrize("key", SWITCHES)
def test_flipping_a_switch_changes_the_numbers(key: str) -> None:
    measure = SWITCHES[key]
    corrected, released = measure(**{key: "corrected"}), measure(**{key: "released"})
    assert torch.equal(measure(**{key: "corrected"}), corrected), "not a matter of chance"
    assert not torch.allclose(corrected, released, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("key", "value", "changed"), [
    ("objective.global_negatives", "released", [True, False, False, False]),
    ("objective.local.context", "released", [False, False, True, False]),
    ("objective.local.weighting", "uniform", [False, True, True, False]),
    ("objective.temporal.regression", "released", [False, False, False, True]),
    ("objective.local.padding", "released", [False, True, True, False]),
])
def test_a_switch_changes_its_own_terms_alone(key: str, value: str, changed: list[bool]) -> None:
    before, after = loss_under(), loss_under(**{key: value})
    assert [not same for same in torch.isclose(before, after, rtol=1e-5).tolist()] == changed


@pytest.mark.parametrize("key", [
    "objective.temporal.variance_floor", "objective.temporal.huber_threshold", "objective.temporal.variance_weight",
    "objective.temporal.temperature", "objective.local.temperature", "objective.global_temperature",
])
def test_every_dial_of_the_losses_changes_the_numbers(key: str) -> None:
    value = flatten(small_config())[key]
    assert not torch.allclose(loss_under(**{key: value * 0.5}), loss_under(), rtol=1e-6)


@pytest.mark.parametrize(("key", "value"), [
    ("model.image.stem", "conv"), ("model.image.num_heads", 4), ("model.image.mlp_ratio", 2.0),
    ("model.experts.num_experts", 1), ("model.experts.num_experts", 4), ("model.experts.hidden_scale", 2.0),
    ("model.experts.routing", "learned"), ("model.text.num_heads", 3), ("model.text.hidden_width", 24),
    ("model.heads.hidden_width", 16), ("model.text.dropout", 0.5),
])
def test_every_choice_of_architecture_changes_the_numbers(key: str, value: Any) -> None:
    assert not torch.allclose(loss_under(**{key: value}), loss_under(), rtol=1e-5)


def test_the_order_of_words_is_invisible_to_released_positions() -> None:
    batch = small_batch(words=(4, 4, 4, 4, 4, 4, 4))
    reversed_ids = batch.token_ids.clone()
    reversed_ids[:, 1:-1] = batch.token_ids[:, 1:-1].flip(1)
    for positions, is_visible in (("released", False), ("corrected", True)):
        model = small_model(small_config(**{"model.text.positions": positions})).eval()
        reports = [model.encode_text(ids, batch.attention_mask, batch.word_of_token).report
                   for ids in (batch.token_ids, reversed_ids)]
        assert torch.allclose(*reports, atol=1e-5) is not is_visible


def test_released_absent_laterals_are_counted() -> None:
    batch = small_batch()
    corrected = small_model(small_config()).eval()
    released = small_model(small_config(**{"model.image.missing_lateral": "released"})).eval()
    one, other = corrected(batch), released(batch)
    torch.testing.assert_close(one.image, other.image, atol=1e-5, rtol=1e-5)
    assert other.patch_mask.all() and not one.patch_mask.all()
    # With every lateral there, or none, the two behave alike.
    everyone = small_batch(laterals=tuple((row, 3) for row in range(7)))
    no_one = replace(batch, lateral=batch.lateral[:0], lateral_view=batch.lateral_view[:0],
                     lateral_row=batch.lateral_row[:0])
    for given in (everyone, no_one):
        torch.testing.assert_close(corrected(given).patches, released(given).patches)


def test_the_overlay_sets_switches_only_and_all_of_them() -> None:
    def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in tree.items():
            flat.update(leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
        return flat

    overlay = leaves(yaml.safe_load(OVERLAY.read_text()))
    assert set(overlay.values()) == {"released"}
    assert sorted(overlay) == sorted(behaviour_keys(Config, ""))
    assert set(overlay) <= set(known_keys())
    assert {flatten(load_config(OVERLAY))[key] for key in overlay} == {"released"}
