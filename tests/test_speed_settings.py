"""The memory and speed settings give the numbers of the plain step; no step waits for the device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_samples import VOCABULARY_SIZE, objective_of, small_batch, small_config, small_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from medst.config import Config
from medst.data.batch import Batch
from medst.model import MedST
from medst.model.initialisation import stream
from medst.objectives.alignment import local_alignment

PLAIN: dict[str, Any] = {"model.text.dropout": 0.2, "model.image.stem": "conv"}


def as_double(batch: Batch) -> Batch:
    return replace(batch, frontal=batch.frontal.double(), lateral=batch.lateral.double())


def gradients_of(config: Config, batch: Batch, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Loss, statistics and gradients of one step, dropout drawn from one seed."""
    model = small_model(config).to(dtype).train()
    with stream(0, "dropout"):
        objective = objective_of(model, batch, config)
        objective.total.backward()
    return {"loss": objective.total.detach(),
            **{name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()},
            **{name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}}


@pytest.mark.parametrize("settings", [{"training.micro_batch": 3}, {"training.micro_batch": 1},
                                      {"training.recompute": True},
                                      {"training.micro_batch": 2, "training.recompute": True},
                                      {"training.pack_captions": True},
                                      {"training.pack_captions": True, "training.micro_batch": 2,
                                       "training.recompute": True}])
@pytest.mark.parametrize("model_settings", [
    {"model.image.stem": "conv"}, {"model.experts.num_experts": 4},
    {"model.image.missing_lateral": "released", "objective.local.padding": "released"},
])
def test_memory_and_speed_settings_give_the_gradient_of_the_plain_step(
    settings: dict[str, Any], model_settings: dict[str, Any]
) -> None:
    """No laterals in the first piece but in others, so that pieces differ in kind."""
    batch = as_double(small_batch(laterals=((3, 3), (5, 2)), words=(5, 2, 6, 1, 4, 7, 3)))
    whole = gradients_of(small_config(**model_settings), batch)
    parts = gradients_of(small_config(**model_settings, **settings), batch)
    assert set(parts) == set(whole) and len(whole) > 60
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, atol=1e-9, rtol=1e-9, msg=name)


def test_recomputed_blocks_change_no_bit_and_draw_the_same_dropout() -> None:
    batch = small_batch()
    whole = gradients_of(small_config(**PLAIN), batch, torch.float32)
    again = gradients_of(small_config(**PLAIN, **{"training.recompute": True}), batch, torch.float32)
    assert set(again) == set(whole)
    assert [name for name in whole if not torch.equal(again[name], whole[name])] == []


def test_learned_routing_can_be_recomputed() -> None:
    learned = {"model.experts.routing": "learned", "model.experts.num_experts": 3}
    batch = small_batch()
    whole = gradients_of(small_config(**learned), batch, torch.float32)
    again = gradients_of(small_config(**learned, **{"training.recompute": True}), batch, torch.float32)
    assert [name for name in whole if not torch.equal(again[name], whole[name])] == []


def test_packed_captions_compute_nothing_for_padding() -> None:
    """Linear layers see the real tokens alone, and a caption knows nothing of the others of its batch."""
    batch = small_batch(words=(5, 2, 6, 1, 4, 7, 3))
    config = small_config(**{"training.pack_captions": True})
    model = small_model(config).eval()
    rows: list[int] = []
    dense = model.text_encoder.bert.encoder.layer[0].intermediate.dense
    dense.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    with torch.no_grad():
        words = model.encode_text(batch.token_ids, batch.attention_mask, batch.word_of_token).words
        alone = model.encode_text(batch.token_ids[5:6], batch.attention_mask[5:6], batch.word_of_token[5:6]).words
    assert rows == [int(batch.attention_mask.sum()), int(batch.attention_mask[5].sum())]
    assert rows[0] < batch.token_ids.numel()
    torch.testing.assert_close(words[5:6, :alone.shape[1]], alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"set model\.text\.word_aggregation=corrected"):
        small_config(**{"training.pack_captions": True, "model.text.word_aggregation": "released"})


def saved_bytes(config: Config, batch: Batch) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters left out."""
    model = small_model(config).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = objective_of(model, batch, config).total
    total.backward()
    return sum(kept.values())


def test_pieces_and_recomputed_blocks_keep_less() -> None:
    batch = small_batch()
    deep = {"model.image.num_layers": 6, "model.text.num_layers": 4}
    whole = saved_bytes(small_config(**deep), batch)
    assert saved_bytes(small_config(**deep, **{"training.recompute": True}), batch) < 0.6 * whole
    assert saved_bytes(small_config(**deep, **{"training.micro_batch": 2}), batch) < 0.6 * whole


@pytest.mark.parametrize("padding_counts", [False, True])
def test_chunks_of_the_local_alignment_give_the_whole(padding_counts: bool) -> None:
    model = small_model(small_config()).double()
    generator = torch.Generator().manual_seed(3)
    num_pairs, num_words, num_patches = 7, 5, 8
    vectors = [torch.nn.functional.normalize(torch.randn(num_pairs, length, 10, generator=generator,
                                                         dtype=torch.float64), dim=-1)
               for length in (num_words, num_patches)]
    word_mask = torch.arange(num_words) < torch.tensor([5, 1, 3, 2, 4, 5, 2])[:, None]
    patch_mask = torch.arange(num_patches) < torch.tensor([8, 4, 4, 8, 8, 4, 8])[:, None]
    results = []
    largest = []
    # 64 entries a pair: everything at once, three pairs at once, one pair at once.
    for max_entries in (2**24, 3 * 64 + 63, 1):
        words, patches = (vector.clone().requires_grad_() for vector in vectors)
        model.zero_grad()
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            local = local_alignment(words, patches, word_mask, patch_mask, model.word_pooling, model.patch_pooling,
                                    temperature=0.1, padding_counts=padding_counts, normalise_patch_context=True,
                                    max_entries=max_entries)
        (local.word + 2.0 * local.patch).backward()
        pooling = [parameter.grad for part in (model.word_pooling, model.patch_pooling)
                   for parameter in part.parameters()]
        results.append([local.word, local.patch, local.word_weights, local.patch_weights, words.grad, patches.grad,
                        *pooling])
        largest.append(max(kept, default=0))
    for chunked in results[1:]:
        for value, expected in zip(chunked, results[0], strict=True):
            torch.testing.assert_close(value, expected, atol=1e-12, rtol=1e-12)
    assert largest[0] >= num_pairs * num_patches**2, "the whole batch keeps its largest array"
    assert max(largest[1:]) < num_pairs * num_patches**2, "chunks keep none of that size"


@pytest.mark.parametrize("packs", [False, True])
def test_a_step_never_reads_from_the_device(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device `meta` there are no values: whatever reads one fails. Forward, losses, backward, clipping."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # `meta` has none.
    config = small_config(**{"model.image.stem": "conv", "model.experts.num_experts": 4, "training.micro_batch": 3,
                             "training.pack_captions": packs})
    model = MedST.create(config, VOCABULARY_SIZE).to("meta").train()
    total = objective_of(model, small_batch().to("meta"), config).total
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert total.device.type == norm.device.type == "meta"


def test_host_reads_of_a_step_are_few_and_do_not_grow() -> None:
    """Counted by the profiler: what remains plans with host tensors (the longest caption, where words lie).

    The update is left out: on a CPU torch's fused AdamW reads the step counter of every parameter.
    """
    counts = []
    config = small_config()
    model = small_model(config).train()
    for copies in (1, 3):
        batch = small_batch((0, 1, 1) * copies, ((0, 3), (2, 2)), (5, 2, 6) * copies)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            objective_of(model, batch, config).total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        calls = {event.key: event.count for event in profiler.key_averages()}
        counts.append([calls.get(name, 0) for name in ("aten::_local_scalar_dense", "aten::nonzero")])
    assert calls["aten::mm"] > 10
    assert counts == [[1, 1], [1, 1]]
