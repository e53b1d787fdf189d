"""The losses: values worked by hand, the slow reference, finite differences, invariances; the curriculum."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medst.config import Config, ObjectiveConfig, override
from medst.model.outputs import Embeddings
from medst.objectives import curriculum, medst_objective
from medst.objectives.alignment import local_alignment
from medst.objectives.contrast import global_contrast, retrieval_accuracy, similarity
from medst.objectives.temporal import cycle_logits, fmc, rmr, time_logits

RMR = {"variance_weight": 0.001, "variance_floor": 0.01, "huber_threshold": 0.25}
RELEASED_RMR = {"variance_weight": 0.001, "variance_floor": 1e-7, "huber_threshold": 2.0}


def unit_vectors(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1)


def pooling(width: int, seed: int) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(weight=torch.randn(2 * width, width, generator=generator, dtype=torch.float64),
                           bias=torch.randn(2 * width, generator=generator, dtype=torch.float64))


def masks(num_pairs: int, num_words: int, num_patches: int) -> tuple[Tensor, Tensor]:
    """Word masks that grow with the row; the second half of the patches absent in odd rows."""
    counts = torch.tensor([1 + (3 * row) % num_words for row in range(num_pairs)])
    word_mask = torch.arange(num_words) < counts[:, None]
    patch_mask = torch.ones(num_pairs, num_patches, dtype=torch.bool)
    patch_mask[1::2, num_patches // 2:] = False
    return word_mask, patch_mask


# Global -----------------------------------------------------------------------------------------------------------


def test_global_contrast_of_two_orthogonal_pairs_by_hand() -> None:
    image = torch.eye(2, dtype=torch.float64)
    # Every row and column is (1 / t, 0): cross-entropy log(1 + exp(-1 / t)), and both directions are added.
    expected = 2 * math.log(1 + math.exp(-1 / 0.5))
    assert global_contrast(image, image, None, 0.5).item() == pytest.approx(expected, rel=1e-12)


@given(num_pairs=st.integers(1, 7), width=st.integers(2, 6), seed=st.integers(0, 99), grouped=st.booleans())
def test_global_contrast_equals_the_reference(num_pairs: int, width: int, seed: int, grouped: bool) -> None:
    image, report = unit_vectors(num_pairs, width, seed=seed), unit_vectors(num_pairs, width, seed=seed + 1)
    study = torch.arange(num_pairs) // 2
    got = global_contrast(image, report, study if grouped else None, 0.07)
    expected = reference.global_loss(image, report, 0.07, study.tolist() if grouped else None)
    torch.testing.assert_close(got, expected)
    order = torch.randperm(num_pairs, generator=torch.Generator().manual_seed(seed))
    permuted = global_contrast(image[order], report[order], study[order] if grouped else None, 0.07)
    torch.testing.assert_close(permuted, got)


def test_pairs_of_one_study_are_no_negatives() -> None:
    image, report = unit_vectors(3, 4), unit_vectors(3, 4, seed=1)
    scores = similarity(image, report, torch.tensor([5, 5, 6]), 0.1)
    assert scores[0, 1] == scores[1, 0] == -torch.inf
    assert torch.isfinite(scores[[0, 0, 1, 2, 2], [0, 2, 2, 0, 2]]).all()


@given(num_pairs=st.integers(1, 9), rank=st.sampled_from([1, 5]), seed=st.integers(0, 99))
def test_retrieval_accuracy_equals_the_reference(num_pairs: int, rank: int, seed: int) -> None:
    image, report = unit_vectors(num_pairs, 3, seed=seed), unit_vectors(num_pairs, 3, seed=seed + 1)
    got = retrieval_accuracy(similarity(image, report, None, 0.07), rank)
    assert got.item() == pytest.approx(reference.accuracy(image, report, rank))


# Local ------------------------------------------------------------------------------------------------------------


def align(words: Tensor, patches: Tensor, word_mask: Tensor, patch_mask: Tensor, word_pooling: Any = None,
          patch_pooling: Any = None, **switches: bool) -> Any:
    return local_alignment(words, patches, word_mask, patch_mask, word_pooling, patch_pooling, temperature=0.1,
                           **{"padding_counts": False, "normalise_patch_context": True, **switches})


def test_local_alignment_by_hand() -> None:
    # Two words, two patches, the same orthogonal axes: the attention of word j on patch j is s = 1 / (1 + exp(-1 / t)),
    # its context (s, 1 - s) / |..|, and both its cross-entropies are log(1 + exp((b - a) / t)).
    axes = torch.eye(2, dtype=torch.float64)[None]
    everything = torch.ones(1, 2, dtype=torch.bool)
    share = 1 / (1 + math.exp(-1 / 0.1))
    length = math.hypot(share, 1 - share)
    expected = math.log(1 + math.exp((1 - 2 * share) / length / 0.1))
    got = align(axes, axes, everything, everything)
    assert got.word.item() == pytest.approx(expected, rel=1e-9)
    assert got.patch.item() == pytest.approx(expected, rel=1e-9)
    assert got.word_weights.tolist() == [[0.5, 0.5]]
    unnormalised = align(axes, axes, everything, everything, normalise_patch_context=False)
    assert unnormalised.patch.item() == pytest.approx(math.log(1 + math.exp((1 - 2 * share) / 0.1)), rel=1e-9)


@given(num_pairs=st.integers(1, 4), num_words=st.integers(1, 6), num_patches=st.integers(2, 7),
       is_weighted=st.booleans(), released_padding=st.booleans(), released_context=st.booleans(),
       seed=st.integers(0, 99))
@settings(max_examples=40)
def test_local_alignment_equals_the_reference_with_gradients(
    num_pairs: int, num_words: int, num_patches: int, is_weighted: bool, released_padding: bool,
    released_context: bool, seed: int,
) -> None:
    width = 5
    word_mask, patch_mask = masks(num_pairs, num_words, num_patches)
    words = unit_vectors(num_pairs, num_words, width, seed=seed).requires_grad_()
    patches = unit_vectors(num_pairs, num_patches, width, seed=seed + 1).requires_grad_()
    by_word, by_patch = (pooling(width, seed + 2), pooling(width, seed + 3)) if is_weighted else (None, None)
    got = align(words, patches, word_mask, patch_mask, by_word, by_patch, padding_counts=released_padding,
                normalise_patch_context=not released_context)
    existing = [pair[mask] for pair, mask in zip(patches, patch_mask, strict=True)]
    word, patch, word_weights, patch_weights = reference.local_loss(
        list(words), existing, word_mask.sum(dim=1).tolist(), by_word and (by_word.weight, by_word.bias),
        by_patch and (by_patch.weight, by_patch.bias), 0.1, released_padding=released_padding,
        released_context=released_context,
    )
    torch.testing.assert_close(got.word, word)
    torch.testing.assert_close(got.patch, patch)
    for row in range(num_pairs):
        counted = torch.ones_like(word_mask[row]) if released_padding else word_mask[row]
        torch.testing.assert_close(got.word_weights[row][counted], word_weights[row])
        torch.testing.assert_close(got.patch_weights[row][patch_mask[row]], patch_weights[row])
        assert (got.word_weights[row][~counted] == 0).all() and (got.patch_weights[row][~patch_mask[row]] == 0).all()
    gradients = torch.autograd.grad(got.word + got.patch, (words, patches))
    expected = torch.autograd.grad(word + patch, (words, patches), allow_unused=True)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs)


def test_padding_columns_and_absent_patches_change_nothing() -> None:
    words, patches = unit_vectors(3, 4, 5), unit_vectors(3, 6, 5, seed=1)
    word_mask, patch_mask = masks(3, 4, 6)
    by_word, by_patch = pooling(5, 2), pooling(5, 3)
    before = align(words, patches, word_mask, patch_mask, by_word, by_patch)
    more_words = torch.cat([words, unit_vectors(3, 2, 5, seed=4)], dim=1)
    more_patches = torch.cat([patches, unit_vectors(3, 3, 5, seed=5)], dim=1)
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    after = align(more_words, more_patches, torch.cat([word_mask, nothing[:, :2]], dim=1),
                  torch.cat([patch_mask, nothing], dim=1), by_word, by_patch)
    torch.testing.assert_close(after.word, before.word)
    torch.testing.assert_close(after.patch, before.patch)
    # What stands in a place that does not exist cannot matter either.
    other = torch.where(word_mask[..., None], words, unit_vectors(3, 4, 5, seed=6))
    torch.testing.assert_close(align(other, patches, word_mask, patch_mask, by_word, by_patch).word, before.word)


def test_a_temperature_that_overflows_is_refused() -> None:
    words, patches = unit_vectors(1, 2, 3), unit_vectors(1, 2, 3)
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"0\.0125"):
        local_alignment(words, patches, mask, mask, None, None, temperature=0.001, padding_counts=False,
                        normalise_patch_context=True)
    lowest = local_alignment(words.float(), words.float(), mask, mask, None, None, temperature=0.0125,
                             padding_counts=False, normalise_patch_context=True)
    assert torch.isfinite(lowest.word + lowest.patch)


# Temporal ---------------------------------------------------------------------------------------------------------


def test_temporal_losses_by_hand() -> None:
    # T = 2, x = y = (0, 1) on a line, temperature 1: F = [[0, -1], [-1, 0]].
    x = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    assert time_logits(x, x, 1.0).tolist() == [[[0.0, -1.0], [-1.0, 0.0]]]
    assert fmc(x, x, 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))
    # n_0 = p with p = exp(-1) / (1 + exp(-1)); R_0 = (-p^2, -(1 - p)^2); times 0 and 1/2, both j alike by symmetry.
    p = math.exp(-1) / (1 + math.exp(-1))
    beta = math.exp(-((1 - p) ** 2)) / (math.exp(-(p**2)) + math.exp(-((1 - p) ** 2)))
    mean = beta / 2
    variance = beta * (0.5 - mean) ** 2 + (1 - beta) * mean**2 + 0.01
    expected = mean**2 / variance + 0.001 * math.log(variance)
    got = rmr(x, x, 1.0, variance_weight=0.001, variance_floor=0.01, huber_threshold=2.0)
    assert got.item() == pytest.approx(expected, rel=1e-12)
    # With the threshold below the error the loss continues along the tangent.
    linear = (2 * 0.1 * mean - 0.1**2) / variance + 0.001 * math.log(variance)
    got = rmr(x, x, 1.0, variance_weight=0.001, variance_floor=0.01, huber_threshold=0.1)
    assert mean > 0.1 and got.item() == pytest.approx(linear, rel=1e-12)


@given(num_sequences=st.integers(1, 3), length=st.integers(2, 6), seed=st.integers(0, 99), released=st.booleans())
@settings(max_examples=30)
def test_temporal_losses_equal_the_reference(num_sequences: int, length: int, seed: int, released: bool) -> None:
    x = unit_vectors(num_sequences, length, 4, seed=seed)
    y = unit_vectors(num_sequences, length, 4, seed=seed + 1)
    options = RELEASED_RMR if released else RMR
    torch.testing.assert_close(fmc(x, y, 0.1), reference.fmc(x, y, 0.1))
    expected = reference.rmr(x, y, 0.1, variance_weight=options["variance_weight"], floor=options["variance_floor"],
                             threshold=options["huber_threshold"])
    torch.testing.assert_close(rmr(x, y, 0.1, **options), expected)
    torch.testing.assert_close(cycle_logits(x, y, 0.1)[0], reference.cycle_logits(x[0], y[0], 0.1))


def test_fmc_has_no_arrow_of_time() -> None:
    x, y = unit_vectors(3, 4, 5), unit_vectors(3, 4, 5, seed=1)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(fmc(x[:, order], y[:, order], 0.1), fmc(x, y, 0.1))
    assert not torch.allclose(fmc(x[:, order], y, 0.1), fmc(x, y, 0.1))
    # Read backwards, RMR is the same up to the shift of the times by 1 / T, which no term sees.
    torch.testing.assert_close(rmr(x.flip(1), y.flip(1), 0.1, **RMR), rmr(x, y, 0.1, **RMR))


def test_the_floor_and_the_threshold_bound_the_regression() -> None:
    # All reports alike and at the third image: every study comes back to time 1/2, certain and mostly wrong.
    x = torch.tensor([[[0.0], [5.0], [10.0], [15.0]]], dtype=torch.float64)
    y = torch.full_like(x, 10.0)
    # Squared errors 1/4, 1/16, 0, 1/16 over a variance of 1e-7; then 2 h e - h^2 with h = 1/4 over 0.01.
    assert rmr(x, y, 0.1, **RELEASED_RMR).item() == pytest.approx((1 / 4 + 2 / 16) / 4 * 1e7, rel=1e-3)
    expected = (2 / 4 * 0.5 - 1 / 16 + 2 / 16) / 4 / 0.01 + 0.001 * math.log(0.01)
    assert rmr(x, y, 0.1, **RMR).item() == pytest.approx(expected, rel=1e-6)


# Gradients --------------------------------------------------------------------------------------------------------


def test_gradients_by_finite_differences() -> None:
    image, report = unit_vectors(4, 3).requires_grad_(), unit_vectors(4, 3, seed=1).requires_grad_()
    study = torch.tensor([0, 0, 1, 2])
    assert torch.autograd.gradcheck(lambda a, b: global_contrast(a, b, study, 0.3), (image, report))
    x, y = unit_vectors(2, 3, 3).requires_grad_(), unit_vectors(2, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: fmc(a, b, 0.5), (x, y))
    for options in (RMR, RELEASED_RMR):
        assert torch.autograd.gradcheck(lambda a, b, options=options: rmr(a, b, 0.5, **options), (x, y))
    words, patches = unit_vectors(2, 3, 4).requires_grad_(), unit_vectors(2, 4, 4, seed=1).requires_grad_()
    word_mask, patch_mask = masks(2, 3, 4)
    parameters = [tensor.requires_grad_() for seed in (2, 3) for tensor in vars(pooling(4, seed)).values()]
    for released in (False, True):
        def loss(w: Tensor, p: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, released: bool = released) -> Tensor:
            got = align(w, p, word_mask, patch_mask, SimpleNamespace(weight=a, bias=b),
                        SimpleNamespace(weight=c, bias=d), padding_counts=released,
                        normalise_patch_context=not released)
            return got.word + 2 * got.patch

        assert torch.autograd.gradcheck(loss, (words, patches, *parameters))


# The sum ----------------------------------------------------------------------------------------------------------


def embeddings(num_pairs: int = 6, width: int = 5) -> Embeddings:
    word_mask, patch_mask = masks(num_pairs, 4, 6)
    return Embeddings(
        image=unit_vectors(num_pairs, width).float(), report=unit_vectors(num_pairs, width, seed=1).float(),
        patches=unit_vectors(num_pairs, 6, width, seed=2).float(), patch_mask=patch_mask,
        words=unit_vectors(num_pairs, 4, width, seed=3).float(), word_mask=word_mask,
        balance_loss=torch.tensor(1.5), expert_share=torch.ones(1, 1),
    )


def objective(config: ObjectiveConfig, given: Embeddings | None = None, *, num_sequences: int = 2,
              **weights: float) -> Any:
    given = embeddings() if given is None else given
    poolings = [SimpleNamespace(**{name: value.float() for name, value in vars(pooling(5, seed)).items()})
                for seed in (4, 5)]
    sequences = torch.arange(3 * num_sequences).view(num_sequences, 3)
    return medst_objective(given, torch.arange(6), sequences, *poolings, config,
                           **{"fmc_weight": 1.0, "rmr_weight": 1.0, **weights})


def set_objective(**overrides: Any) -> ObjectiveConfig:
    return override(Config(), {f"objective.{key}": value for key, value in overrides.items()}).objective


def test_the_objective_is_the_weighted_sum_of_its_terms() -> None:
    config = set_objective(lambda_local=0.3, lambda_temporal=0.7)
    result = objective(config, fmc_weight=0.5, rmr_weight=2.0, balance_weight=0.01)
    terms = {name: value.item() for name, value in result.terms.items()}
    assert set(terms) == {"loss", "global", "local", "local_word", "local_patch", "temporal", "fmc", "fmc_i2t",
                          "fmc_t2i", "rmr", "rmr_i2t", "rmr_t2i", "balance", "acc1", "acc5"}
    assert terms["local"] == pytest.approx(terms["local_word"] + terms["local_patch"])
    assert terms["fmc"] == pytest.approx(terms["fmc_i2t"] + terms["fmc_t2i"])
    assert terms["temporal"] == pytest.approx(0.5 * terms["fmc"] + 2.0 * terms["rmr"])
    expected = terms["global"] + 0.3 * terms["local"] + 0.7 * terms["temporal"] + 0.01 * terms["balance"]
    assert terms["loss"] == pytest.approx(expected) == pytest.approx(result.total.item())
    assert not any(value.requires_grad for value in result.terms.values())


def test_a_term_of_weight_zero_is_absent_and_gives_no_gradient() -> None:
    result = objective(set_objective(lambda_local=0.0, lambda_temporal=0.0))
    assert set(result.terms) == {"loss", "global", "acc1", "acc5"}
    half = objective(set_objective(), fmc_weight=0.0)
    assert "rmr" in half.terms and "fmc" not in half.terms
    assert objective(set_objective(), fmc_weight=0.0, rmr_weight=0.0).terms.keys().isdisjoint({"temporal"})
    given = embeddings()
    given = replace(given, patches=given.patches.clone().requires_grad_(), image=given.image.clone().requires_grad_())
    objective(set_objective(lambda_local=0.0), given).total.backward()
    assert given.patches.grad is None and given.image.grad is not None


def test_a_batch_without_sequences_has_no_temporal_term() -> None:
    result = objective(set_objective(), num_sequences=0)
    assert "temporal" not in result.terms and torch.isfinite(result.total)


def test_losses_are_in_float32_under_autocast() -> None:
    plain = objective(set_objective()).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective(set_objective()).total, plain)


# The curriculum ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "at_start", "before", "at_half", "after", "at_end"), [
    ("joint", (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)),
    ("staged", (1, 0), (1, 0), (1, 1), (1, 1), (1, 1)),
    ("ramp", (1, 0), (1, 0), (1, 0), (1, 0.5), (1, 1)),
    ("fmc_only", (1, 0), (1, 0), (1, 0), (1, 0), (1, 0)),
    ("rmr_only", (0, 1), (0, 1), (0, 1), (0, 1), (0, 1)),
    ("reversed", (0, 1), (0, 1), (1, 1), (1, 1), (1, 1)),
    ("length", (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)),
])
def test_weights_of_the_curriculum(kind: Any, at_start: tuple, before: tuple, at_half: tuple, after: tuple,
                                   at_end: tuple) -> None:
    for progress, expected in ((0.0, at_start), (0.49, before), (0.5, at_half), (0.625, after), (1.0, at_end)):
        assert curriculum.weights(kind, progress, 0.5, 0.25) == pytest.approx(expected), progress


def test_a_ramp_of_no_width_is_a_step() -> None:
    assert [curriculum.weights("ramp", progress, 0.5, 0.0)[1] for progress in (0.4, 0.5)] == [0.0, 1.0]


def test_sequence_lengths_of_the_curriculum() -> None:
    lengths = [curriculum.sequence_length("length", step / 12, 4) for step in range(13)]
    assert lengths == [2] * 4 + [3] * 4 + [4] * 5
    assert curriculum.sequence_length("joint", 0.0, 4) == 4
    assert curriculum.sequence_length("length", 0.0, 2) == 2
