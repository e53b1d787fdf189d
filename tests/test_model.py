"""The model against the slow reference; experts, laterals, padding; initialisation, weights in and out, costs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_samples import (
    AP,
    LATERAL,
    LL,
    PA,
    SIZES,
    VOCABULARY_SIZE,
    objective_of,
    small_batch,
    small_config,
    small_model,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from medst.config import Config, load_config
from medst.data.batch import Batch
from medst.model import MedST
from medst.model.accounting import count
from medst.model.experts import LearnedExperts
from medst.model.routing import EXPERT_OF_VIEW, arrange, expert_share
from medst.model.text import add_up_words
from medst.objectives.alignment import local_alignment
from medst.objectives.contrast import global_contrast
from medst.objectives.temporal import fmc, rmr

REPOSITORY = Path(__file__).resolve().parents[1]
VIEW_NAMES = st.sampled_from([AP, PA])


# The reference ----------------------------------------------------------------------------------------------------


def as_released(model: MedST) -> dict[str, Tensor]:
    """The model's parameters and buffers under the released names, for the reference; the parameters are shared."""
    named: dict[str, Tensor] = {}
    replacements = (
        ("image_encoder.stem.", "img_encoder_q.model.patch_embed."),
        ("image_encoder.", "img_encoder_q.model."),
        (".attention.qkv.", ".attn.qkv."),
        (".attention.proj.", ".attn.proj."),
        (".experts.experts.0.norm.", ".norm2."),
        (".experts.experts.0.mlp.", ".mlp."),
        (".experts.experts.1.norm.", ".norm2_l."),
        (".experts.experts.1.mlp.", ".mlp_l."),
        ("text_encoder.bert.", "text_encoder_q.model."),
        ("image_head.", "img_encoder_q.global_embed.head."),
        ("patch_head.", "img_encoder_q.local_embed.head."),
        ("report_head.", "text_encoder_q.global_embed.head."),
        ("word_head.", "text_encoder_q.local_embed.head."),
        ("head.hidden_norm.", "head.1."), ("head.hidden.", "head.0."),
        ("head.output_norm.", "head.4."), ("head.output.", "head.3."),
        ("word_pooling.", "word_element_wise_multi_head.in_proj_"),
        ("patch_pooling.", "patch_element_wise_multi_head.in_proj_"),
    )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        for old, new in replacements:
            name = name.replace(old, new)
        named[name] = tensor
    return named


def vocabulary() -> list[str]:
    """Ids 0, 2, 3 are [PAD], [CLS], [SEP]; from 5 on, odd ids are continuations."""
    pieces = [f"##p{index}" if index % 2 else f"w{index}" for index in range(VOCABULARY_SIZE)]
    pieces[0], pieces[2], pieces[3] = "[PAD]", "[CLS]", "[SEP]"
    return pieces


def double_batch(config: Config, seed: int = 3) -> Batch:
    """A float64 batch whose word slots follow from its token ids; the last caption fills all positions."""
    batch = small_batch(seed=seed)
    width = config.data.caption_tokens
    generator = torch.Generator().manual_seed(seed)
    ids, mask, slots = (torch.zeros(batch.num_pairs, width, dtype=torch.int64) for _ in range(3))
    slots.fill_(-1)
    for row, length in enumerate((4, 7, 3, 9, 5, 8, width)):
        tokens = torch.randint(5, VOCABULARY_SIZE, (length,), generator=generator)
        tokens[0], tokens[1], tokens[-1] = 2, tokens[1] // 2 * 2 + 2, 3
        ids[row, :length], mask[row, :length] = tokens, 1
        _, members = reference.words_of(ids[row].tolist(), vocabulary(),
                                        released=config.model.text.word_aggregation == "released")
        for slot, positions in enumerate(members):
            slots[row, positions] = slot
    return replace(batch, frontal=batch.frontal.double(), lateral=batch.lateral.double(), token_ids=ids,
                   attention_mask=mask, word_of_token=slots, study=torch.arange(batch.num_pairs))


@pytest.mark.parametrize("is_released", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_equals_the_reference_with_gradients(is_released: bool, training: bool) -> None:
    released = [REPOSITORY / "experiments" / "released.yaml"] if is_released else []
    config = load_config(*released, overrides={
        **SIZES, "objective.global_negatives": "released", "model.image.missing_lateral":
        "released" if is_released else "corrected", "objective.temporal.variance_floor": 0.02,
    })
    model = small_model(config).double().train(training)
    weights = as_released(model)
    batch = double_batch(config)
    before = {name: value.clone() for name, value in weights.items() if "running" in name}
    result = objective_of(model, batch, config)
    result.total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    row_of = dict(zip(batch.lateral_row.tolist(), batch.lateral, strict=True))
    expected = reference.medst(
        {**weights, **before}, vocabulary(), batch.frontal, [row_of.get(row) for row in range(batch.num_pairs)],
        [ids[mask.bool()].tolist() for ids, mask in zip(batch.token_ids, batch.attention_mask, strict=True)],
        batch.sequences.numel(),
        reference.Settings(
            image_heads=config.model.image.num_heads, text_heads=config.model.text.num_heads,
            max_tokens=config.data.caption_tokens, sequence_length=config.data.sequence_length,
            variance_floor=1e-7 if is_released else 0.02, huber_threshold=2.0 if is_released else 0.25,
            released=is_released,
        ), training=training,
    )
    torch.testing.assert_close(result.terms["global"], expected.global_loss.detach())
    torch.testing.assert_close(result.terms["local"], expected.local_loss.detach())
    torch.testing.assert_close(result.terms["temporal"], expected.temporal_loss.detach(), rtol=1e-6, atol=1e-9)
    for name, value in expected.after.items():
        torch.testing.assert_close(weights[name], value)
    (expected.global_loss + expected.local_loss + expected.temporal_loss).backward()
    scale = max(float(gradient.norm()) for gradient in gradients.values() if gradient is not None)
    for name, parameter in model.named_parameters():
        mine, theirs = gradients[name], parameter.grad
        assert (mine is None) == (theirs is None), name
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9 * scale, msg=lambda text, name=name:
                                       f"{name}: {text}")


# Experts and views ------------------------------------------------------------------------------------------------


@given(views=st.lists(VIEW_NAMES, min_size=1, max_size=8), laterals=st.lists(st.sampled_from([None, LL, LATERAL]),
                                                                           min_size=8, max_size=8),
       num_experts=st.integers(1, 4))
def test_the_layout_sends_every_token_to_the_expert_of_its_view(
    views: list[int], laterals: list[int | None], num_experts: int
) -> None:
    rows = [row for row, lateral in enumerate(laterals[:len(views)]) if lateral is not None]
    lateral_views = [laterals[row] for row in rows]
    layout = arrange(views, lateral_views, rows, 4, num_experts)  # type: ignore[arg-type]
    assert sorted(layout.frontal_order) == list(range(len(views)))
    assert [rows[lateral] for lateral in layout.lateral_order] == list(layout.frontal_order[:len(rows)])
    experts = [expert for expert, size in layout.segments for _ in range(size)]
    expected = [EXPERT_OF_VIEW[num_experts][views[row]] for row in layout.frontal_order for _ in range(5)]
    expected += [EXPERT_OF_VIEW[num_experts][lateral_views[lateral]]  # type: ignore[index]
                 for lateral in layout.lateral_order for _ in range(4)]
    assert experts == expected
    assert len(layout.segments) <= {1: 1, 2: 2, 3: 4, 4: 6}[num_experts]
    assert sum(expert_share([layout], num_experts)) == pytest.approx(1.0)


@pytest.mark.parametrize("num_experts", [1, 2, 3, 4])
@torch.no_grad()
def test_a_pair_in_a_batch_is_encoded_as_with_the_two_experts_of_its_views(num_experts: int) -> None:
    model = small_model(small_config(**{"model.experts.num_experts": num_experts})).eval()
    batch = small_batch()
    features = model.encode_images(batch.frontal, batch.frontal_view, batch.lateral, batch.lateral_view,
                                   batch.lateral_row)
    experts = EXPERT_OF_VIEW[num_experts]
    places = batch.lateral_row.tolist()
    for row, view in enumerate(batch.frontal_view.tolist()):
        lateral = batch.lateral[places.index(row)] if row in places else None
        lateral_view = int(batch.lateral_view[places.index(row)]) if row in places else LATERAL
        weights = as_released(model)
        for name, tensor in model.named_parameters():
            for suffix, expert in (("", experts[view]), ("_l", experts[lateral_view])):
                block, found, rest = name.partition(f".experts.experts.{expert}.")
                if found:
                    released = block.replace("image_encoder", "img_encoder_q.model")
                    weights[f"{released}.{rest.replace('norm.', f'norm2{suffix}.').replace('mlp.', f'mlp{suffix}.')}"] \
                        = tensor
        tokens = reference.vision_tokens(weights, batch.frontal[row], lateral, 2)
        torch.testing.assert_close(features.cls[row], tokens[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features.frontal_patches[row], tokens[1:5], atol=1e-5, rtol=1e-5)
        if lateral is not None:
            torch.testing.assert_close(features.lateral_patches[places.index(row)], tokens[5:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_lateral_alone_passes_through_the_lateral_expert() -> None:
    model = small_model(small_config()).eval()
    images = small_batch().frontal[:3]
    alone = model.encode_images(images, torch.tensor([LATERAL, PA, LL]))
    for row, view in enumerate(("lateral", "frontal", "lateral")):
        tokens = reference.vision_tokens(as_released(model), images[row], None, 2, view=view)
        torch.testing.assert_close(alone.cls[row], tokens[0], atol=1e-5, rtol=1e-5)
    assert alone.lateral_patches.shape == (0, 4, 16)
    assert alone.expert_share.tolist() == [pytest.approx([1 / 3, 2 / 3])] * 2


@torch.no_grad()
def test_an_absent_lateral_has_no_content_and_no_cost() -> None:
    model = small_model(small_config()).eval()
    batch = small_batch()
    features = model.encode_images(batch.frontal, batch.frontal_view, batch.lateral, batch.lateral_view,
                                   batch.lateral_row)
    assert features.lateral_patches.shape[0] == len(batch.lateral_row)
    embeddings = model(batch)
    absent = torch.tensor([row not in batch.lateral_row.tolist() for row in range(batch.num_pairs)])
    assert not embeddings.patch_mask[absent, 4:].any() and embeddings.patch_mask[~absent].all()
    assert (embeddings.patches[absent, 4:] == 0).all()
    # A frontal image alone is encoded the same whether or not the others of its batch have laterals.
    alone = model.encode_images(batch.frontal[absent], batch.frontal_view[absent])
    torch.testing.assert_close(features.cls[absent], alone.cls, atol=1e-5, rtol=1e-5)


def test_the_order_of_pairs_does_not_matter() -> None:
    config = small_config(**{"model.experts.num_experts": 4})
    model = small_model(config).train()
    batch = replace(small_batch(), sequences=torch.zeros(0, 3, dtype=torch.int64))
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    place = order.argsort()
    moved = place[batch.lateral_row].argsort()
    permuted = replace(
        batch, frontal=batch.frontal[order], frontal_view=batch.frontal_view[order], lateral=batch.lateral[moved],
        lateral_view=batch.lateral_view[moved], lateral_row=place[batch.lateral_row][moved],
        token_ids=batch.token_ids[order], attention_mask=batch.attention_mask[order],
        word_of_token=batch.word_of_token[order], study=batch.study[order],
    )
    torch.testing.assert_close(model(permuted).image, model(batch).image[order], atol=1e-4, rtol=1e-4)
    losses = [objective_of(model, one, config).total for one in (batch, permuted)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def test_learned_routing_serves_each_token_by_its_best_expert() -> None:
    config = small_config(**{"model.experts.routing": "learned", "model.experts.num_experts": 3})
    experts = small_model(config, spread=4.0).image_encoder.blocks[0].experts
    assert isinstance(experts, LearnedExperts)
    tokens = torch.randn(23, 16, generator=torch.Generator().manual_seed(2))
    served, balance, share = experts(tokens)
    counts, probability_sums = [0, 0, 0], torch.zeros(3)
    for token, got in zip(tokens, served, strict=True):
        normed = experts.norm(token)
        probabilities = torch.softmax(experts.gate.weight @ normed, dim=0)
        best = int(probabilities.argmax())
        torch.testing.assert_close(got, probabilities[best] * experts.experts[best](normed), atol=1e-5, rtol=1e-5)
        counts[best] += 1
        probability_sums = probability_sums + probabilities
    assert share.tolist() == pytest.approx([number / 23 for number in counts]) and max(counts) < 23
    expected = 3 * sum(number / 23 * total / 23 for number, total in zip(counts, probability_sums, strict=True))
    torch.testing.assert_close(balance, expected)
    (served.sum() + balance).backward()
    assert experts.gate.weight.grad is not None and experts.gate.weight.grad.norm() > 0


def test_learned_routing_trains_and_reports_its_balance() -> None:
    config = small_config(**{"model.experts.routing": "learned", "model.experts.num_experts": 6})
    model = MedST.create(config, VOCABULARY_SIZE).train()
    result = objective_of(model, small_batch(), config, balance_weight=0.01)
    result.total.backward()
    assert result.terms["balance"] >= 1.0 - 1e-5
    assert all(parameter.grad is not None for parameter in model.image_encoder.parameters())
    share = model(small_batch()).expert_share
    assert share.shape == (2, 6) and share.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_both_stems_give_one_token_per_patch_and_depend_on_their_image_alone() -> None:
    for stem in ("patch", "conv"):
        model = small_model(small_config(**{"model.image.stem": stem})).eval()
        images = small_batch().frontal
        tokens = model.image_encoder.stem(images)
        assert tokens.shape == (7, 4, 16)
        torch.testing.assert_close(model.image_encoder.stem(images[2:3]), tokens[2:3], atol=1e-5, rtol=1e-5)


# Text and padding -------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(-1, 4), min_size=5, max_size=5), min_size=1, max_size=4))
def test_words_are_the_sums_of_their_tokens(slots: list[list[int]]) -> None:
    vectors = torch.arange(len(slots) * 5 * 2, dtype=torch.float64).view(len(slots), 5, 2)
    got = add_up_words(vectors, torch.tensor(slots), 6)
    for row, places in enumerate(slots):
        for word in range(6):
            members = [vectors[row, position] for position, slot in enumerate(places) if slot == word]
            assert torch.equal(got[row, word], sum(members) if members else torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("training", [False, True])
def test_padding_columns_change_nothing(training: bool) -> None:
    config = small_config()
    model = small_model(config).train(training)
    batch = small_batch()
    padded = replace(
        batch, token_ids=torch.nn.functional.pad(batch.token_ids, (0, 2)),
        attention_mask=torch.nn.functional.pad(batch.attention_mask, (0, 2)),
        word_of_token=torch.nn.functional.pad(batch.word_of_token, (0, 2), value=-1),
    )
    before, after = (objective_of(model, one, config) for one in (batch, padded))
    torch.testing.assert_close(after.total, before.total, rtol=1e-5, atol=1e-5)
    assert model(padded).words.shape == model(batch).words.shape


def test_the_attention_of_the_report_token_is_shared_out_to_the_words() -> None:
    model = small_model(small_config()).eval()
    batch = small_batch()
    features = model.encode_text(batch.token_ids, batch.attention_mask, batch.word_of_token, with_attention=True)
    assert features.attention is not None and (features.attention[~features.word_mask] == 0).all()
    for row in range(batch.num_pairs):
        ids = batch.token_ids[row][batch.attention_mask[row].bool()].tolist()
        _, attention = reference.text_tokens(as_released(model), ids, 2, true_positions=True)
        slots = batch.word_of_token[row, :len(ids)]
        expected = torch.stack([attention[slots == word].sum() for word in range(1, int(slots.max()) + 1)])
        torch.testing.assert_close(features.attention[row, :len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_one_pair_trains() -> None:
    config = small_config()
    model = small_model(config).train()
    before = model.image_head.hidden_norm.running_mean.clone()
    batch = small_batch((PA,), (), (3,))
    result = objective_of(model, replace(batch, sequences=torch.zeros(0, 3, dtype=torch.int64)), config)
    result.total.backward()
    assert torch.isfinite(result.total)
    # One vector has no variance: the running statistics serve, and stay.
    assert torch.equal(model.image_head.hidden_norm.running_mean, before)
    torch.testing.assert_close(model(batch).image, model.eval()(batch).image)


def test_a_caption_longer_than_the_positions_is_refused() -> None:
    model = MedST.create(small_config(), VOCABULARY_SIZE)
    ids = torch.full((1, 600), 5)
    with pytest.raises(ValueError, match=r"data\.caption_tokens"):
        model.encode_text(ids, torch.ones_like(ids), torch.zeros_like(ids))


def test_half_precision_stays_near_and_losses_stay_in_float32() -> None:
    config = small_config()
    model = small_model(config).train()
    plain = objective_of(model, small_batch(), config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model(small_batch())
        result = objective_of(model, small_batch(), config)
    result.total.backward()
    assert embeddings.image.dtype == embeddings.words.dtype == result.total.dtype == torch.float32
    assert result.total.item() == pytest.approx(plain.total.item(), rel=0.1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


# Initialisation ---------------------------------------------------------------------------------------------------


def states(**overrides: Any) -> dict[str, Tensor]:
    config = small_config(**{key: value for key, value in overrides.items() if key != "seed"})
    return MedST.create(config.model_copy(update={"seed": overrides.get("seed", 0)}), VOCABULARY_SIZE).state_dict()


def test_arms_share_the_initial_weights_of_what_they_have_in_common() -> None:
    base = states()
    for overrides in ({"model.experts.num_experts": 1}, {"model.experts.num_experts": 4},
                      {"model.initialisation": "released"}, {"model.image.num_layers": 3},
                      {"model.experts.num_experts": 2, "model.experts.hidden_scale": 2.0},
                      {"model.text.positions": "released"},
                      {"model.experts.routing": "learned", "model.experts.num_experts": 3}):
        arm = states(**overrides)
        differing = [name for name in base.keys() & arm.keys()
                     if arm[name].shape == base[name].shape and not torch.equal(arm[name], base[name])]
        allowed = {"model.initialisation": ".experts.1.", "model.text.positions": "token_type"}
        assert all(any(key in overrides and part in name for key, part in allowed.items()) for name in differing), \
            (overrides, differing)
        assert len(base.keys() & arm.keys()) > 60
    other = states(seed=1)
    assert not any(torch.equal(other[name], base[name]) for name in base
                   if name.endswith(("qkv.weight", "fc1.weight", "hidden.weight", "pooling.weight", "query.weight")))


def test_making_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    states()
    assert torch.equal(torch.rand(3), expected)


def test_view_experts_start_as_copies_or_apart() -> None:
    for behaviour, alike in (("corrected", True), ("released", False)):
        state = states(**{"model.experts.num_experts": 3, "model.initialisation": behaviour})
        name = "image_encoder.blocks.1.experts.experts.{}.mlp.fc1.weight"
        assert torch.equal(state[name.format(0)], state[name.format(2)]) is alike


# Weights in and out -----------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model(small_config(**{"model.experts.num_experts": 3, "objective.local.padding": "released"})).eval()
    folder = model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = MedST.from_pretrained(folder)
    assert not loaded.training and loaded.padding == "released" and loaded.vocabulary_size == VOCABULARY_SIZE
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(model(small_batch()).words, loaded(small_batch()).words)
    assert "tensors loaded" in capsys.readouterr().err


def test_loading_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        MedST.from_pretrained(tmp_path)
    folder = small_model(small_config()).save_pretrained(tmp_path / "model")
    description = json.loads((folder / "config.json").read_text())
    description["model"]["experts"]["num_experts"] = 3
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"missing \(12\)"):
        MedST.from_pretrained(folder)
    description["model"]["experts"]["num_experts"] = 1
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"unexpected \(12\)"):
        MedST.from_pretrained(folder)
    description["model"]["experts"]["num_experts"] = 2
    description["image_size"] = 32
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="pos_embed"):
        MedST.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="not a safetensors file"):
        MedST.from_pretrained(folder)


def timm_folder(folder: Path) -> dict[str, Tensor]:
    """A small vision transformer of timm for 32-pixel images, saved as timm does."""
    arguments = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    timm.models.save_for_hf(model, str(folder), model_args=arguments)
    return model.state_dict()


def test_timm_weights_initialise_the_image_encoder(tmp_path: Path) -> None:
    source = timm_folder(tmp_path)
    overrides = {"model.image.name": f"local-dir:{tmp_path}", "model.image.num_channels": 3,
                 "model.experts.num_experts": 3}
    state = states(**overrides)
    fresh = states(**{**overrides, "model.image.name": None})
    for expert in range(3):
        name = f"image_encoder.blocks.1.experts.experts.{expert}"
        assert torch.equal(state[f"{name}.mlp.fc2.weight"], source["blocks.1.mlp.fc2.weight"])
        assert torch.equal(state[f"{name}.norm.weight"], source["blocks.1.norm2.weight"])
    assert torch.equal(state["image_encoder.blocks.0.attention.qkv.weight"], source["blocks.0.attn.qkv.weight"])
    assert torch.equal(state["image_encoder.stem.proj.weight"], source["patch_embed.proj.weight"])
    # 4 x 4 positions resampled to 2 x 2; the class token's is kept.
    assert state["image_encoder.pos_embed"].shape == (1, 5, 16)
    assert torch.equal(state["image_encoder.pos_embed"][:, 0], source["pos_embed"][:, 0])
    overwritten = states(**overrides, **{"model.initialisation": "released"})
    assert torch.equal(overwritten["image_encoder.stem.proj.weight"], source["patch_embed.proj.weight"])
    name = "image_encoder.blocks.0.attention.qkv.weight"
    assert torch.equal(overwritten[name], fresh[name]) and not torch.equal(state[name], fresh[name])


def test_timm_weights_fill_wider_experts(tmp_path: Path) -> None:
    source = timm_folder(tmp_path)
    state = states(**{"model.image.name": f"local-dir:{tmp_path}", "model.image.num_channels": 3,
                      "model.experts.hidden_scale": 2.0, "model.experts.num_experts": 2})
    first, second = (f"image_encoder.blocks.1.experts.experts.{expert}.mlp" for expert in (0, 1))
    halves = state[f"{first}.fc2.weight"].chunk(2, dim=1)
    torch.testing.assert_close(halves[0] + halves[1], source["blocks.1.mlp.fc2.weight"])
    assert torch.equal(state[f"{first}.fc1.bias"], source["blocks.1.mlp.fc1.bias"].repeat(2))
    assert torch.equal(state[f"{first}.fc2.weight"], state[f"{second}.fc2.weight"])


def test_pretrained_weights_that_do_not_fit_or_are_not_there_are_refused(tmp_path: Path) -> None:
    timm_folder(tmp_path)
    with pytest.raises(ValueError, match=r"model\.image"):
        states(**{"model.image.name": f"local-dir:{tmp_path}", "model.image.num_channels": 3,
                  "model.image.width": 32})
    with pytest.raises(ValueError, match="local-dir"):
        states(**{"model.image.name": "vit_tiny_patch16_224"})
    with pytest.raises(ValueError, match=r"model\.text\.name.*cannot be had"):
        states(**{"model.text.name": str(tmp_path / "nowhere")})


def test_transformers_weights_initialise_the_text_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = BertModel(BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=4, num_attention_heads=2,
                                  intermediate_size=30, max_position_embeddings=64))
    source.save_pretrained(tmp_path)
    pretrained = source.state_dict()
    state = states(**{"model.text.name": str(tmp_path)})
    name = "encoder.layer.3.attention.self.query.weight"
    assert torch.equal(state[f"text_encoder.bert.{name}"], pretrained[name])
    released = states(**{"model.text.name": str(tmp_path), "model.text.depth": "released",
                         "model.text.positions": "released", "model.initialisation": "released"})
    assert not any(".layer.2." in key for key in released)
    name = "embeddings.position_embeddings.weight"
    assert torch.equal(released[f"text_encoder.bert.{name}"], pretrained[name])
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(released[f"text_encoder.bert.{name}"], pretrained[name])
    with pytest.raises(ValueError, match=r"data\.vocabulary"):
        MedST.create(small_config(**{"model.text.name": str(tmp_path)}), vocabulary_size=51)
    # What was saved comes back without the pretrained files.
    model = MedST.create(small_config(**{"model.text.name": str(tmp_path)}), VOCABULARY_SIZE)
    folder = model.save_pretrained(tmp_path / "model")
    (tmp_path / "config.json").unlink()
    assert torch.equal(MedST.from_pretrained(folder).state_dict()["word_head.hidden.weight"],
                       model.state_dict()["word_head.hidden.weight"])


# Costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [
    {}, {"model.experts.num_experts": 1, "model.experts.hidden_scale": 2.0}, {"model.experts.num_experts": 4},
    {"model.image.stem": "conv"}, {"model.experts.routing": "learned", "model.experts.num_experts": 3},
    {"model.image.missing_lateral": "released", "objective.local.padding": "released"},
])
@torch.no_grad()
def test_costs_equal_what_is_counted_while_running(overrides: dict[str, Any]) -> None:
    model = MedST.create(small_config(**overrides), VOCABULARY_SIZE).eval()
    batch = small_batch((PA,), ((0, LATERAL),), (2,))
    costs = count(model, caption_tokens=batch.token_ids.shape[1])
    if model.image_encoder.missing_lateral == "corrected":
        alone = replace(batch, lateral=batch.lateral[:0], lateral_view=batch.lateral_view[:0],
                        lateral_row=batch.lateral_row[:0])
        assert costs["flops_frontal"] == flops(model, alone)
    else:
        assert costs["flops_frontal"] == costs["flops_two_view"]
    assert costs["flops_two_view"] == flops(model, batch)
    assert costs["parameters"] == sum(parameter.numel() for parameter in model.parameters()
                                      if parameter.requires_grad)


def flops(model: MedST, batch: Batch) -> float:
    # The plain attention, whose two products the counter sees.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)
    return counter.get_total_flops()


def test_active_parameters_and_the_single_expert_of_the_same_size() -> None:
    def costs(**overrides: Any) -> dict[str, float]:
        config = small_config(**{f"model.experts.{key}": value for key, value in overrides.items()})
        return count(MedST.create(config, VOCABULARY_SIZE), 12)

    shared, two, four = costs(num_experts=1), costs(num_experts=2), costs(num_experts=4)
    wide, learned = costs(num_experts=1, hidden_scale=2.0), costs(num_experts=4, routing="learned")
    assert shared["active_parameters_frontal"] == shared["parameters"] == two["active_parameters_frontal"]
    assert two["active_parameters_two_view"] == two["parameters"] == four["active_parameters_two_view"]
    assert four["active_parameters_frontal"] == two["active_parameters_frontal"]
    assert learned["active_parameters_frontal"] == learned["active_parameters_two_view"] < learned["parameters"]
    # Two experts of width h against one of 2 h: alike but for one norm and one output bias a layer.
    assert two["parameters"] - wide["parameters"] == 2 * 3 * 16
    assert math.isclose(two["flops_frontal"], shared["flops_frontal"])


def test_what_routes_stays_on_the_host() -> None:
    batch = small_batch().to("meta")
    assert batch.frontal.device.type == batch.token_ids.device.type == batch.sequences.device.type == "meta"
    for tensor in (batch.frontal_view, batch.lateral_view, batch.lateral_row, batch.word_of_token):
        assert tensor.device.type == "cpu"
    # Neither the forward pass nor a loss reads a value on the device: on `meta` there are none.
    model = MedST.create(small_config(**{"model.experts.num_experts": 4}), VOCABULARY_SIZE).to("meta").train()
    embeddings = model(batch)
    local = local_alignment(embeddings.words, embeddings.patches, embeddings.word_mask, embeddings.patch_mask,
                            model.word_pooling, model.patch_pooling, temperature=0.1, padding_counts=False,
                            normalise_patch_context=True)
    image, report = embeddings.image[batch.sequences], embeddings.report[batch.sequences]
    temporal = fmc(image, report, 0.1) + rmr(image, report, 0.1, variance_weight=0.1, variance_floor=0.1,
                                             huber_threshold=0.1)
    total = local.word + local.patch + temporal
    total = total + global_contrast(embeddings.image, embeddings.report, batch.study, 0.07)
    total.backward()
    assert total.device.type == "meta"
