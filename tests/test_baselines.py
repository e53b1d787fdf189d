"""The baselines: MGCA's weights, prototypes and first phase, ConVIRT's loss, against slow references."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_samples import VOCABULARY_SIZE, objective_of, small_batch, small_config, small_model
from raw_files import write_root
from scipy import optimize
from torch import Tensor

from medst.config import Config, ConfigError, DataConfig, canonical, flatten, override
from medst.data.store import prepare
from medst.model import MedST
from medst.model.weights import continue_from
from medst.objectives.alignment import attention_weights, local_alignment
from medst.objectives.contrast import global_contrast
from medst.objectives.prototypes import sinkhorn, swapped_prediction
from medst.records import Checkpoint, Facts, Metrics, Progress, Record
from medst.training.first_phase import MGCA, LaterEpochs, first_phase
from medst.trial import run_trial
from sweeps.study import load_study

CONSTANTS = {"temperature": 0.2, "epsilon": 0.05, "num_iterations": 3}


def unit_vectors(count: int, width: int, seed: int) -> Tensor:
    values = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1)


# Prototypes -------------------------------------------------------------------------------------------------------


def scaled_by_turns(scores: np.ndarray, epsilon: float, num_iterations: int) -> np.ndarray:
    """Sinkhorn's iterations as the textbook has them: scaling vectors for both margins, (B, K)."""
    kernel = np.exp(scores / epsilon)
    num_pairs, num_prototypes = kernel.shape
    pairs = np.ones(num_pairs)
    for _ in range(num_iterations):
        prototypes = (1 / num_prototypes) / (pairs @ kernel)
        pairs = (1 / num_pairs) / (kernel @ prototypes)
    plan = pairs[:, None] * kernel * prototypes[None, :]
    return plan * num_pairs


@given(num_pairs=st.integers(1, 9), num_prototypes=st.integers(1, 9), seed=st.integers(0, 99),
       iterations=st.integers(1, 5))
def test_sinkhorn_equals_scaling_by_turns(num_pairs: int, num_prototypes: int, seed: int, iterations: int) -> None:
    scores = unit_vectors(num_pairs, 5, seed) @ unit_vectors(num_prototypes, 5, seed + 1).T
    got = sinkhorn(scores, 0.05, iterations).numpy()
    np.testing.assert_allclose(got, scaled_by_turns(scores.numpy(), 0.05, iterations), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.sum(axis=1), 1.0)


def test_sinkhorn_approaches_the_optimal_transport_plan() -> None:
    # As many pairs as prototypes: without entropy the best plan that uses all prototypes alike is an assignment.
    scores = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = optimize.linear_sum_assignment(scores.numpy(), maximize=True)
    plan = sinkhorn(scores, 0.01, 2000)
    assert plan.argmax(dim=1).tolist() == columns.tolist()
    # The entropy of a plan is at most log 6 a pair.
    assert (plan * scores).sum() >= scores[rows, columns].sum() - 6 * 0.01 * np.log(6)
    torch.testing.assert_close(plan.sum(dim=0), torch.ones(6, dtype=torch.float64), atol=1e-2, rtol=0)


def test_a_low_epsilon_does_not_overflow() -> None:
    scores = unit_vectors(4, 3, 0).float() @ unit_vectors(5, 3, 1).float().T
    assert torch.isfinite(sinkhorn(scores, 0.01, 3)).all()


def swapped_in_loops(image: np.ndarray, report: np.ndarray, prototypes: np.ndarray) -> float:
    directions = prototypes / np.sqrt((prototypes**2).sum(axis=1, keepdims=True))
    total = 0.0
    for assigned, predicted in ((image, report), (report, image)):
        targets = scaled_by_turns(assigned @ directions.T, CONSTANTS["epsilon"], 3)
        for row, target in zip(predicted, targets, strict=True):
            scores = directions @ row / CONSTANTS["temperature"]
            log_probabilities = scores - np.log(np.exp(scores).sum())
            total -= float(target @ log_probabilities) / len(image)
    return total / 2


@given(num_pairs=st.integers(1, 6), num_prototypes=st.integers(2, 7), seed=st.integers(0, 99))
def test_swapped_prediction_equals_loops(num_pairs: int, num_prototypes: int, seed: int) -> None:
    image, report = unit_vectors(num_pairs, 4, seed), unit_vectors(num_pairs, 4, seed + 1)
    prototypes = 2.5 * unit_vectors(num_prototypes, 4, seed + 2)
    got = swapped_prediction(image, report, prototypes, **CONSTANTS)
    assert got.item() == pytest.approx(swapped_in_loops(image.numpy(), report.numpy(), prototypes.numpy()), rel=1e-9)
    # Neither the modality's name nor the length of a prototype counts.
    torch.testing.assert_close(swapped_prediction(report, image, 0.1 * prototypes, **CONSTANTS), got)


def test_the_gradient_of_the_prototypes_is_that_of_differences() -> None:
    vectors = [unit_vectors(4, 3, seed).requires_grad_() for seed in range(3)]
    assignments = [sinkhorn(side @ vectors[2].T, 0.05, 3).detach() for side in vectors[:2]]

    def with_fixed_targets(image: Tensor, report: Tensor, prototypes: Tensor) -> Tensor:
        directions = prototypes / prototypes.norm(dim=1, keepdim=True)
        terms = [-(targets * (side @ directions.T / 0.2).log_softmax(dim=1)).sum(dim=1).mean()
                 for targets, side in ((assignments[0], report), (assignments[1], image))]
        return sum(terms, torch.zeros(())) / 2

    assert torch.autograd.gradcheck(with_fixed_targets, vectors)
    expected = torch.autograd.grad(with_fixed_targets(*vectors), vectors)
    # Assignments are targets: no gradient passes through them.
    got = torch.autograd.grad(swapped_prediction(*vectors, **CONSTANTS), vectors)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right)


# Attention weights ------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 200), num_entries=st.integers(1, 12))
def test_attention_weights_equal_numpy_quantiles(seed: int, num_entries: int) -> None:
    rng = np.random.default_rng(seed)
    attention = rng.dirichlet(np.ones(num_entries), size=5)
    counts = rng.integers(1, num_entries + 1, size=5)
    mask = np.arange(num_entries) < counts[:, None]
    got = attention_weights(torch.from_numpy(attention), torch.from_numpy(mask)).numpy()
    for row, count, weights in zip(attention, counts, got, strict=True):
        own = np.clip(row[:count], np.quantile(row[:count], 0.1), np.quantile(row[:count], 0.9))
        np.testing.assert_allclose(weights[:count], own / own.sum(), rtol=1e-12)
        assert (weights[count:] == 0).all()


def test_alignment_with_given_weights_equals_loops_also_in_chunks() -> None:
    words, patches = unit_vectors(15, 4, 0).view(3, 5, 4), unit_vectors(18, 4, 1).view(3, 6, 4)
    word_mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    patch_mask = torch.ones(3, 6, dtype=torch.bool)
    patch_mask[1, 3:] = False
    generator = torch.Generator().manual_seed(2)
    weights = (attention_weights(torch.rand(3, 5, generator=generator, dtype=torch.float64), word_mask),
               attention_weights(torch.rand(3, 6, generator=generator, dtype=torch.float64), patch_mask))
    totals = [torch.zeros((), dtype=torch.float64)] * 2
    for pair in range(3):
        kept = (words[pair][word_mask[pair]], patches[pair][patch_mask[pair]])
        for side, (queries, keys) in enumerate((kept, kept[::-1])):
            contexts = reference.unit(torch.stack([reference.softmax(keys @ query / 0.1) @ keys for query in queries]))
            scores = queries @ contexts.T / 0.1
            for index in range(len(queries)):
                both = reference.cross_entropy(scores[index], index) + reference.cross_entropy(scores[:, index], index)
                totals[side] = totals[side] + weights[side][pair, index] * both / 2 / 3
    for max_entries in (2**24, 36):
        got = local_alignment(words, patches, word_mask, patch_mask, None, None, temperature=0.1, padding_counts=False,
                              normalise_patch_context=True, given_weights=weights, max_entries=max_entries)
        torch.testing.assert_close(torch.stack([got.word, got.patch]), torch.stack(totals))
        assert torch.equal(got.patch_weights, weights[1])




def class_attention_of_pair(model: MedST, image: Tensor, lateral: Tensor | None, view: int,
                            lateral_view: int) -> Tensor:
    """Attention of the last block from the class token of one pair alone, head by head."""
    encoder = model.image_encoder
    caught: list[Tensor] = []
    last = encoder.blocks[-1]
    handle = last.norm1.register_forward_hook(lambda module, given, normed: caught.append(normed))
    gives, encoder.gives_attention = encoder.gives_attention, False
    encoder(image[None], torch.tensor([view]), None if lateral is None else lateral[None],
            torch.tensor([lateral_view]), torch.tensor([0]))
    encoder.gives_attention = gives
    handle.remove()
    (tokens,) = caught
    projected = last.attention.qkv(tokens)
    width = tokens.shape[1]
    _, weights = reference.attend(projected[:1, :width], projected[:, width:2 * width], projected[:, 2 * width:],
                                  last.attention.num_heads)
    return weights[0, 1:]


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_the_image_encoder_gives_the_attention_of_its_last_layer(micro_batch: int) -> None:
    config = small_config(**{"objective.local.weighting": "attention", "training.micro_batch": micro_batch})
    model, batch = small_model(config).eval(), small_batch()
    with torch.no_grad():
        found = model(batch).patch_attention
        assert found is not None and found.shape == (7, 8)
        laterals = dict(zip(batch.lateral_row.tolist(), range(4), strict=True))
        for row in range(7):
            index = laterals.get(row)
            expected = class_attention_of_pair(
                model, batch.frontal[row], None if index is None else batch.lateral[index],
                int(batch.frontal_view[row]), 3 if index is None else int(batch.lateral_view[index]))
            torch.testing.assert_close(found[row, :len(expected)], expected)
            assert (found[row, len(expected):] == 0).all()


# The objective ----------------------------------------------------------------------------------------------------


def mgca_config(**settings: object) -> Config:
    return small_config(**{**MGCA, "model.heads.num_prototypes": 6, **settings})


def test_mgca_is_the_weighted_sum_of_its_terms_with_finite_gradients() -> None:
    config = mgca_config()
    model = small_model(config).train()
    objective = objective_of(model, small_batch(laterals=()), config)
    terms = objective.terms
    assert not {"temporal", "balance"} & terms.keys()
    torch.testing.assert_close(terms["loss"], terms["global"] + 0.7 * terms["local"] + 0.5 * terms["prototype"])
    objective.total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert gradients["prototypes"].abs().max() > 0
    # The learned pooling is Med-ST's own.
    assert not any("pooling" in name for name in gradients)


def test_other_arms_have_neither_prototypes_nor_attention() -> None:
    config = small_config()
    model = small_model(config)
    assert not any("prototype" in name for name in model.state_dict())
    assert model(small_batch()).patch_attention is None
    with pytest.raises(ConfigError, match=r"num_prototypes \(500 as published\)"):
        small_config(**{"objective.lambda_prototype": 0.5})


def test_prototypes_change_no_other_initial_weight() -> None:
    plain, with_prototypes = (MedST.create(small_config(**{"model.heads.num_prototypes": count}), VOCABULARY_SIZE)
                              .state_dict() for count in (0, 5))
    assert set(with_prototypes) - set(plain) == {"prototypes"}
    assert all(torch.equal(plain[name], with_prototypes[name]) for name in plain)
    torch.testing.assert_close(with_prototypes["prototypes"].norm(dim=1), torch.ones(5))


def test_the_global_loss_of_convirt_by_hand() -> None:
    image, report = unit_vectors(4, 3, 0), unit_vectors(4, 3, 1)
    scores = (image @ report.T / 0.1).numpy()
    by_image = np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diag(scores))
    by_report = np.mean(np.log(np.exp(scores).sum(axis=0)) - np.diag(scores))
    # lambda * image-to-report + (1 - lambda) * report-to-image, here doubled.
    got = global_contrast(image, report, None, 0.1, image_share=0.75)
    assert got.item() == pytest.approx(2 * (0.75 * by_image + 0.25 * by_report), rel=1e-12)
    assert torch.equal(global_contrast(image, report, None, 0.1, 0.5), global_contrast(image, report, None, 0.1))


def test_settings_of_the_baselines_leave_older_keys_alone() -> None:
    assert "prototype" not in canonical(Config()) and "mgca" not in canonical(Config())
    assert "mgca" in canonical(override(Config(), {"training.mgca_epochs": 1.0}))


# The first phase --------------------------------------------------------------------------------------------------


def test_one_expert_serves_every_view_of_the_model_that_goes_on() -> None:
    source = small_model(mgca_config())
    for experts, routing in ((2, "view"), (4, "view"), (3, "learned")):
        config = small_config(**{"model.experts.num_experts": experts, "model.experts.routing": routing})
        model = MedST.create(config, VOCABULARY_SIZE)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        report = continue_from(model, source)
        state, trained = model.state_dict(), source.state_dict()
        assert report.ignored == ("prototypes",)
        assert all(".gate." in name for name in report.missing)
        assert all(torch.equal(state[name], before[name]) for name in report.missing)
        name = "image_encoder.blocks.1.experts.experts.{}.mlp.fc1.weight"
        for index in range(experts):
            own = name.format(index).replace(".mlp", "") if routing == "learned" else name.format(index)
            assert torch.equal(state[own], trained[name.format(0)])
        assert torch.equal(state["text_encoder.bert.encoder.layer.0.output.dense.weight"],
                           trained["text_encoder.bert.encoder.layer.0.output.dense.weight"])


def test_mgca_goes_on_unchanged() -> None:
    source, model = small_model(mgca_config()), MedST.create(mgca_config(), VOCABULARY_SIZE)
    report = continue_from(model, source)
    assert not report.missing and not report.ignored
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_first_phase_sees_later_epochs() -> None:
    class Loader:
        def __len__(self) -> int:
            return 7

        def batches(self, epoch: int, start: int = 0, sequence_length: int | None = None) -> Iterator[tuple[int, int]]:
            yield epoch, start

    later = LaterEpochs(Loader(), override(Config(), {"training.epochs": 1.5}))  # type: ignore[arg-type]
    assert len(later) == 7
    assert list(later.batches(0, 3)) == [(2, 3)]


SIZES = {"data.image_size": 24, "data.crop_size": 16, "data.sequence_length": 3, "training.pairs_per_batch": 12,
         "training.epochs": 2.0, "training.checkpoint_epochs": 0.5, "training.mgca_epochs": 1.0,
         "model.image.width": 16, "model.image.num_layers": 1, "model.image.stem": "conv", "model.text.num_layers": 1,
         "model.text.dropout": 0.1, "evaluation.tasks": ["validation"],
         "data.evaluation_patients": "released"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "root"
    write_root(root, num_patients=24, seed=3)
    prepare(DataConfig(root=str(root), image_size=24, crop_size=16))
    return root


def metrics_of(records: list[Record]) -> dict[tuple[int, str], float]:
    return {(record.step, name): value for record in records if isinstance(record, Metrics)
            for name, value in record.values.items()}


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return list(run_trial(override(Config(), {**SIZES, "data.root": str(root)}), tmp_path_factory.mktemp("whole")))


def test_a_trial_with_a_first_phase_tells_of_both(root: Path, undisturbed: list[Record]) -> None:
    facts = undisturbed[0]
    assert isinstance(facts, Facts)
    steps = facts.values["training_steps"]
    assert facts.values["mgca_pairs_seen"] == facts.values["pairs_seen"] // 2 == 12 * steps // 2
    progress = [record for record in undisturbed if isinstance(record, Progress)]
    assert [record.step for record in progress] == list(range(1, steps + steps // 2 + 1))
    assert {record.num_steps for record in progress} == {steps + steps // 2}
    told = metrics_of(undisturbed)
    assert {name for _, name in told if name.startswith("mgca/train/")} >= {"mgca/train/prototype", "mgca/train/local"}
    assert not any("prototype" in name for _, name in told if not name.startswith("mgca/"))
    # The main training starts elsewhere than it does without a first phase.
    config = override(Config(), {**SIZES, "data.root": str(root), "training.mgca_epochs": 0.0})
    plain = metrics_of(list(run_trial(config)))
    assert told[(1, "train/global")] != plain[(1, "train/global")]


@pytest.mark.parametrize("phase", ["first", "main"])
def test_a_resumed_trial_with_a_first_phase_is_exact(
    root: Path, tmp_path: Path, undisturbed: list[Record], phase: str
) -> None:
    config = override(Config(), {**SIZES, "data.root": str(root)})
    records = run_trial(config, tmp_path)
    first: list[Record] = []
    for record in records:
        first.append(record)
        if isinstance(record, Checkpoint) and ("first-phase" in str(record.path)) == (phase == "first"):
            break
    records.close()  # type: ignore[attr-defined]
    rest = list(run_trial(config, tmp_path))
    resumed = metrics_of(rest)
    assert any(name.startswith("mgca/") for _, name in resumed) == (phase == "first")
    assert {**metrics_of(first), **resumed} == metrics_of(undisturbed)


def test_frozen_prototypes_stay_and_then_learn(root: Path, tmp_path: Path) -> None:
    kept = []
    for share in (1.0, 0.0):
        config = override(Config(), {**SIZES, **MGCA, "model.heads.num_prototypes": 5, "data.root": str(root),
                                     "training.mgca_epochs": 0.0, "objective.prototypes.frozen_fraction": share})
        folder = tmp_path / str(share)
        list(run_trial(config, folder))
        kept.append(MedST.from_pretrained(folder / "model").prototypes)
    initial = MedST.create(config, 100).prototypes
    assert initial is not None and torch.equal(kept[0], initial)
    assert not torch.equal(kept[1], initial)


def test_the_study_compares_the_published_baselines(repository: Path) -> None:
    study = load_study(repository / "sweeps" / "baselines.yaml", project=repository)
    arms = {arm.name: flatten(arm.config) for arm in study.arms}
    assert {key: arms["MGCA"][key] for key in MGCA} == dict(MGCA)
    # What is trained first is what the arm MGCA is, for every arm that goes on from it.
    for name in ("Med-ST from MGCA", "MGCA continued"):
        arm = next(arm.config for arm in study.arms if arm.name == name)
        assert arm.training.mgca_epochs == arm.training.epochs
        assert flatten(first_phase(arm)) == arms["MGCA"]
    convirt = arms["ConVIRT"]
    assert (convirt["objective.global_temperature"], convirt["objective.global_image_share"]) == (0.1, 0.75)
    assert convirt["data.views"] == "frontal" and convirt["model.experts.num_experts"] == 1
