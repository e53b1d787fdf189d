"""The model and the losses against the golden numbers of the published program, every array of every file.

`MEDST_GOLDEN` names the folder (default: golden/ in the folder `shared` beside the repository). All sizes come from
its config.json. Each file has one function that compares all its arrays and returns their names; one more test
proves that no array was left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from reference import Settings
from safetensors.torch import load_file

from medst.config import Config, load_config
from medst.data.batch import Batch
from medst.data.tokenizer import word_slots
from medst.model import MedST
from medst.model.foreign import load_checkpoint, released_name
from medst.model.routing import arrange
from medst.model.text import add_up_words, bert_config
from medst.objectives import medst_objective
from medst.objectives.alignment import LocalAlignment, local_alignment
from medst.objectives.contrast import global_contrast, retrieval_accuracy, similarity
from medst.objectives.temporal import cycle_logits, fmc, rmr, time_logits

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("MEDST_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
LATERAL, PA = 3, 1

pytestmark = pytest.mark.skipif(
    not (GOLDEN / "config.json").is_file(),
    reason=f"NO GOLDEN NUMBERS in {GOLDEN}: fidelity is checked against tests/reference.py alone; set MEDST_GOLDEN",
)

GROUPS: dict[str, Callable[[str], bool]] = {
    "bert": lambda name: name.startswith("text_encoder_q.model."),
    "img_heads": lambda name: name.startswith("img_encoder_q.") and "_embed." in name and ".model." not in name,
    "local_attention": lambda name: "multi_head" in name or "local_atten_layer" in name,
    "txt_heads": lambda name: name.startswith("text_encoder_q.") and ".model." not in name,
    "vit_frontal_mlp": lambda name: ".mlp." in name,
    "vit_lateral_mlp": lambda name: ".mlp_l." in name or ".norm2_l." in name,
    "vit_other": lambda name: name.startswith("img_encoder_q.model.") and not any(
        part in name for part in (".mlp.", ".mlp_l.", ".norm2_l.")),
}


@dataclass
class File:
    """One golden file, which notes what was compared and what was used as input."""

    name: str
    arrays: dict[str, np.ndarray]
    compared: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)

    def input(self, name: str) -> torch.Tensor:
        self.inputs.add(name)
        return torch.from_numpy(self.arrays[name])

    def _stored(self, name: str, got: Any) -> tuple[np.ndarray, np.ndarray]:
        self.compared.add(name)
        stored = self.arrays[name]
        value = got.detach().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
        assert value.shape == stored.shape or value.size == stored.size == 1, (
            f"{self.name}:{name} has shape {value.shape} instead of {stored.shape}")
        return stored.astype(np.float64), value.reshape(stored.shape).astype(np.float64)

    def close(self, name: str, got: Any, atol: float = 0.0, rtol: float = 0.0) -> None:
        stored, value = self._stored(name, got)
        excess = np.abs(value - stored) - (atol + rtol * np.abs(stored))
        assert np.all(excess <= 0), f"{self.name}:{name} is off by {excess.max():.3g} beyond the tolerance"

    def near(self, name: str, got: Any, share: float) -> None:
        """The difference's norm is at most `share` of the array's norm."""
        stored, value = self._stored(name, got)
        assert np.linalg.norm(value - stored) <= share * np.linalg.norm(stored), f"{self.name}:{name}"

    def equal(self, name: str, got: Any) -> None:
        self.compared.add(name)
        value = got.numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
        np.testing.assert_array_equal(value, self.arrays[name], err_msg=f"{self.name}:{name}")


def open_file(name: str) -> File:
    return File(name, dict(np.load(GOLDEN / name, allow_pickle=False)))


@cache
def description() -> dict[str, Any]:
    return json.loads((GOLDEN / "config.json").read_text())


@cache
def released_weights() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "weights.safetensors")


@cache
def vocabulary() -> tuple[str, ...]:
    return tuple((GOLDEN / "vocab.txt").read_text(encoding="utf-8").splitlines())


def config(**overrides: Any) -> Config:
    """experiments/released.yaml with the sizes of the golden set."""
    sizes = description()
    image, text = sizes["vit"], sizes["bert"]
    return load_config(REPOSITORY / "experiments" / "released.yaml", overrides={
        "data.image_size": image["img_size"],
        "data.crop_size": image["img_size"],
        "data.caption_tokens": sizes["T"],
        "data.sequence_length": sizes["temporal"]["num_steps"],
        "model.image.patch_size": image["patch_size"],
        "model.image.width": image["embed_dim"],
        "model.image.num_layers": image["depth"],
        "model.image.num_heads": image["num_heads"],
        "model.image.mlp_ratio": float(image.get("mlp_ratio", 4.0)),
        "model.image.num_channels": num_channels(),
        "model.text.width": text["hidden_size"],
        # The released depth is half of the chosen model's.
        "model.text.num_layers": 2 * text["num_hidden_layers"],
        "model.text.num_heads": text["num_attention_heads"],
        "model.text.hidden_width": text["intermediate_size"],
        "model.heads.hidden_width": sizes["head_hidden"],
        "model.heads.embedding_width": sizes["emb_dim"],
        "objective.global_temperature": sizes["softmax_temperature"],
        "objective.local.temperature": sizes["local_temperature"],
        "objective.temporal.temperature": sizes["temporal"]["temperature"],
        "objective.temporal.variance_weight": sizes["temporal"]["variance_lambda"],
        **overrides,
    })


def num_channels() -> int:
    return released_weights()["img_encoder_q.model.patch_embed.proj.weight"].shape[1]


def build(settings: Config) -> MedST:
    model = empty(settings)
    load_checkpoint(model, GOLDEN / "weights.safetensors")
    return model


def empty(settings: Config) -> MedST:
    """The model before loading, with as many text positions as the golden set has."""
    positions = released_weights()["text_encoder_q.model.embeddings.position_embeddings.weight"].shape[0]
    return MedST(
        settings.model, image_size=settings.data.crop_size, max_tokens=settings.data.caption_tokens,
        architecture=bert_config(settings.model.text, description()["bert"]["vocab_size"], positions),
        padding=settings.objective.local.padding,
    )


def to_pixels(stored: torch.Tensor) -> torch.Tensor:
    return (stored.float() / 255 - 0.5) / 0.5


def slots_of(ids: torch.Tensor) -> torch.Tensor:
    continuation = np.array([piece.startswith("##") for piece in vocabulary()])
    return torch.from_numpy(word_slots(ids.numpy(), continuation, vocabulary().index("[SEP]"), "released"))


def strings(ids: torch.Tensor, slots: torch.Tensor) -> np.ndarray:
    """Word strings per slot from the product's word slots."""
    rows = []
    for row_ids, row_slots in zip(ids.tolist(), slots.tolist(), strict=True):
        words = [""] * (max(row_slots) + 1)
        for token, slot in zip(row_ids, row_slots, strict=True):
            if slot >= 0:
                words[slot] += vocabulary()[token].removeprefix("##")
        rows.append(words + ["[PAD]"] * (len(row_ids) - len(words)))
    return np.array(rows)


# The files --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_move_vit() -> File:
    file = open_file("move_vit.npz")
    encoder = build(config()).eval().image_encoder
    frontal, lateral = to_pixels(file.input("frontal_u8")), to_pixels(file.input("lateral_u8"))
    missing, zeroed = file.input("lateral_missing").bool(), file.input("lateral_zeroed").bool()
    lateral[zeroed] = 0
    count, patches = len(frontal), encoder.num_patches

    # All laterals computed, the missing ones masked as keys: as the released behaviour does with mid-grey ones.
    layout = arrange([PA] * count, [LATERAL] * count, range(count), patches, 2)
    mask = torch.ones(count, 1, 1, 1 + 2 * patches, dtype=torch.bool)
    mask[missing, ..., 1 + patches:] = False
    tokens = encoder.encode_tokens(torch.cat([frontal, lateral]), layout, mask)
    split = count * (1 + patches)
    both = torch.cat([tokens[:split].view(count, 1 + patches, -1), tokens[split:].view(count, patches, -1)], dim=1)
    file.close("out_two_view", both, atol=1e-4, rtol=1e-4)

    # The same through the public path, which gives absent laterals no content.
    present = (~missing).nonzero()[:, 0]
    features = encoder(frontal, torch.full((count,), PA), lateral[present], torch.full_like(present, LATERAL), present)
    got = torch.cat([features.cls[:, None], features.frontal_patches, features.lateral_patches], dim=1)
    stored = torch.from_numpy(file.arrays["out_two_view"])
    hidden = missing & ~zeroed
    torch.testing.assert_close(got[~hidden], stored[~hidden], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[hidden, :1 + patches], stored[hidden, :1 + patches], atol=1e-4, rtol=1e-4)

    singles = len(file.arrays["out_single_frontal"])
    for name, images, view in (("out_single_frontal", frontal, PA), ("out_single_lateral", lateral, LATERAL)):
        alone = encoder(images[:singles], torch.full((singles,), view))
        file.close(name, torch.cat([alone.cls[:, None], alone.frontal_patches], dim=1), atol=1e-4, rtol=1e-4)
    return file


def check_aggregate() -> File:
    file = open_file("aggregate.npz")
    ids, mask = file.input("ids"), file.input("attention_mask")
    num_slots = ids.shape[1]
    slots = slots_of(ids)
    file.equal("token_type_ids", torch.zeros_like(ids))
    words = strings(ids, slots)
    file.equal("words", words)
    file.equal("word_is_pad", words == "[PAD]")

    vectors = file.input("agg_in").clone().requires_grad_()
    summed = add_up_words(vectors, slots, num_slots)
    file.close("agg_out", summed, atol=1e-5)
    (summed * file.input("agg_cotangent")).sum().backward()
    file.close("agg_in_grad", vectors.grad, atol=1e-5)
    # Entry t of the attention list belongs to the word that holds token t.
    attention = add_up_words(file.input("agg_attn_in")[..., None], slots[:, :-1], num_slots)[..., 0]
    file.close("agg_attn_out", attention, atol=1e-5)

    with torch.no_grad():
        model = build(config()).eval()
        file.close("bert_last_hidden_official", model.text_encoder.tokens(ids, mask), atol=1e-4, rtol=1e-4)
        features = model.encode_text(ids, mask, slots, with_attention=True)
        file.close("text_report_feat", features.report, atol=1e-4, rtol=1e-4)
        file.close("text_word_feat", features.words, atol=1e-4, rtol=1e-4)
        file.close("text_word_attn", features.attention, atol=1e-5)
        np.testing.assert_array_equal(features.word_mask.numpy(), words[:, 1:] != "[PAD]")
        corrected = build(config(**{"model.text.positions": "corrected"})).eval()
        file.close("bert_last_hidden_true_positions", corrected.text_encoder.tokens(ids, mask), atol=1e-4, rtol=1e-4)
    return file


def check_temporal() -> File:
    file = open_file("temporal.npz")
    temporal = config().objective.temporal
    kwargs = {"variance_weight": temporal.variance_weight, "variance_floor": 1e-7,
              "huber_threshold": description()["temporal"]["huber_delta"]}
    cases = sorted({name.split("__")[0] for name in file.arrays})
    assert cases
    for case in cases:
        def close(name: str, got: torch.Tensor, *, case: str = case, **tolerance: float) -> None:
            if case == "unnorm":
                file.near(f"{case}__{name}", got, 2e-3)
            else:
                file.close(f"{case}__{name}", got, **tolerance)

        image = file.input(f"{case}__img").clone().requires_grad_()
        report = file.input(f"{case}__txt").clone().requires_grad_()
        directions = {}
        for name, x, y in (("i2t", image, report), ("t2i", report, image)):
            forward = fmc(x, y, temporal.temperature)
            backward = rmr(x, y, temporal.temperature, **kwargs)
            directions[name] = (forward, backward)
            for part, value in (("fmc", forward), ("rmr", backward), ("dir", forward + backward)):
                close(f"{part}_{name}", value, rtol=2e-4, atol=2e-6)
            close(f"fmc_logits_{name}", time_logits(x, y, temporal.temperature).flatten(0, 1), atol=1e-4)
            close(f"rmr_logits_{name}", cycle_logits(x, y, temporal.temperature).flatten(0, 1), atol=1e-4)
        total = sum(sum(parts) for parts in directions.values())
        close("total", total, rtol=2e-4, atol=2e-6)
        for part, loss in (("total", total), ("fmc_i2t", directions["i2t"][0]), ("rmr_i2t", directions["i2t"][1])):
            gradients = torch.autograd.grad(loss, (image, report), retain_graph=True)
            for side, gradient in zip(("img", "txt"), gradients, strict=True):
                file.near(f"{case}__grad_{side}_{part}", gradient, 2e-3 if case == "unnorm" else 2e-4)
    return file


def check_losses() -> File:
    file = open_file("losses.npz")
    objective = config().objective
    cases = sorted({name.split("__")[0] for name in file.arrays})
    assert cases
    for case in cases:
        raw = {name: file.input(f"{case}__{name}_raw").clone().requires_grad_()
               for name in ("img", "report", "patch", "word")}
        embeddings = {name: torch.nn.functional.normalize(value, dim=-1) for name, value in raw.items()}
        file.inputs.add(f"{case}__words")
        word_mask = torch.from_numpy(file.arrays[f"{case}__words"][:, 1:] != "[PAD]")

        loss = global_contrast(embeddings["img"], embeddings["report"], None, objective.global_temperature)
        file.close(f"{case}__loss_global", loss, rtol=2e-5, atol=1e-6)
        for rank in (1, 5):
            scores = similarity(embeddings["img"], embeddings["report"], None, objective.global_temperature)
            file.close(f"{case}__acc{rank}", retrieval_accuracy(scores, rank), atol=1e-3)
        for name in ("img", "report"):
            for kind, leaf in (("raw", raw[name]), ("unit", embeddings[name])):
                gradient = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
                file.near(f"{case}__global_grad_{name}_{kind}", gradient, 2e-4)

        model = build(config())
        local = released_alignment(model, embeddings["word"], embeddings["patch"], word_mask)
        total = local.word + local.patch
        file.close(f"{case}__loss_local", total, rtol=2e-5, atol=1e-6)
        file.close(f"{case}__loss_local_word", local.word, rtol=2e-5, atol=1e-6)
        file.close(f"{case}__loss_local_patch", local.patch, rtol=5e-5, atol=1e-6)
        file.close(f"{case}__word_weights", local.word_weights, atol=1e-6)
        file.close(f"{case}__patch_weights", local.patch_weights, atol=1e-6)
        for name in ("patch", "word"):
            for kind, leaf in (("raw", raw[name]), ("unit", embeddings[name])):
                gradient = torch.autograd.grad(total, leaf, retain_graph=True)[0]
                file.near(f"{case}__local_grad_{name}_{kind}", gradient, 2e-4)
        for name, pooling in (("word", model.word_pooling), ("patch", model.patch_pooling)):
            for part, parameter in (("weight", pooling.weight), ("bias", pooling.bias)):
                gradient = torch.autograd.grad(total, parameter, retain_graph=True)[0]
                file.near(f"{case}__local_grad_{name}_mha_in_proj_{part}", with_values(gradient), 2e-4)
    return file


def released_alignment(
    model: MedST, words: torch.Tensor, patches: torch.Tensor, word_mask: torch.Tensor
) -> LocalAlignment:
    return local_alignment(
        words, patches, word_mask, torch.ones(patches.shape[:2], dtype=torch.bool), model.word_pooling,
        model.patch_pooling, temperature=description()["local_temperature"], padding_counts=True,
        normalise_patch_context=False,
    )


def with_values(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of query and key projections with the zeros of the value projection behind them."""
    return torch.cat([gradient, gradient.new_zeros(gradient.shape[0] // 2, *gradient.shape[1:])])


def check_full(name: str) -> File:
    file = open_file(name)
    ids, mask = file.input("caption_ids"), file.input("attention_mask")
    file.equal("token_type_ids", torch.zeros_like(ids))
    num_pairs, num_rows = len(ids), int(file.input("s_len"))
    frontal, lateral = (to_pixels(file.input(f"{view}_u8"))[:, None] for view in ("frontal", "lateral"))
    present = file.input("index_ce").bool()
    settings = config()
    slots = slots_of(ids)
    length = settings.data.sequence_length
    sequences = torch.arange(num_rows).view(-1, length)

    def batch(laterals: torch.Tensor, has_lateral: torch.Tensor) -> Batch:
        rows = has_lateral.nonzero()[:, 0]
        return Batch(frontal, torch.full((num_pairs,), PA), laterals[rows], torch.full_like(rows, LATERAL), rows, ids,
                     mask, slots, torch.arange(num_pairs), sequences)

    given = batch(lateral, present)
    file.equal("train__words", strings(ids, slots))
    for mode in ("train", "eval"):
        model = build(settings).train(mode == "train")
        compare_forward(file, mode, model, given, settings)
    if "collate_order" in file.arrays:
        # The corrected pairing: every row meets the lateral of its own study.
        order = file.input("collate_order")
        file.equal("aligned_index_ce", file.input("index_ce")[order])
        model = build(settings).train()
        compare_forward(file, "aligned_train", model, batch(lateral[order], present[order]), settings)
    return file


def compare_forward(file: File, mode: str, model: MedST, batch: Batch, settings: Config) -> None:
    """One forward and backward pass against every array of `mode` in the file."""
    pending = {name for name in file.arrays if name.startswith(f"{mode}__")} - {f"{mode}__words"}

    def check(kind: str, name: str, got: Any, *tolerance: float) -> None:
        if f"{mode}__{name}" in pending:
            getattr(file, kind)(f"{mode}__{name}", got, *tolerance)
            pending.remove(f"{mode}__{name}")

    statistics = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    embeddings = model(batch)
    after = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    objective = medst_objective(
        embeddings, batch.study, batch.sequences, model.word_pooling, model.patch_pooling, settings.objective,
        fmc_weight=1.0, rmr_weight=1.0,
    )
    terms = objective.terms
    check("close", "loss_ita", terms["global"], 1e-6, 2e-5)
    check("close", "loss_local", terms["local"], 1e-6, 2e-5)
    check("close", "loss_temporal", terms["temporal"], 0.0, 1e-4)
    check("close", "acc1", terms["acc1"], 1e-3)
    check("close", "acc5", terms["acc5"], 1e-3)
    check("close", "img_emb", embeddings.image, 5e-5)
    check("close", "report_emb", embeddings.report, 5e-5)
    check("close", "patch_emb", embeddings.patches, 5e-5)
    check("close", "word_emb", embeddings.words, 5e-5)
    objective.total.backward()
    for name in [name for name in pending if name.startswith(f"{mode}__after__")]:
        buffer = name.removeprefix(f"{mode}__after__")
        key = released_name(buffer)
        assert key is not None
        check("close", f"after__{buffer}", after[key], 1e-5, 1e-4)
    if not model.training:
        assert all(torch.equal(statistics[key], after[key]) for key in statistics)

    with torch.no_grad():
        images = model.encode_images(batch.frontal, batch.frontal_view, batch.lateral, batch.lateral_view,
                                     batch.lateral_row)
        texts = model.encode_text(batch.token_ids, batch.attention_mask, batch.word_of_token)
    check("close", "img_feat", images.cls, 1e-4, 1e-4)
    check("close", "report_feat", texts.report, 1e-4, 1e-4)

    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    released = [str(name) for name in file.arrays["train__grad_names"]]
    # Every parameter of the released checkpoint is named once, and nothing else.
    assert sorted(released) == sorted(name for name in released_weights()
                                      if not name.endswith(("running_mean", "running_var", "num_batches_tracked",
                                                            "position_ids")))
    check("equal", "grad_names", np.array(released))
    norms = []
    for name in released:
        key = released_name(name)
        gradient = None if key is None else gradients[key]
        norms.append(-1.0 if gradient is None else float(gradient.norm()))
    compare_norms(file, f"{mode}__grad_norms", released, norms)
    pending.remove(f"{mode}__grad_norms")
    check("equal", "group_names", np.array(list(GROUPS)))
    groups = [np.sqrt(sum(max(norm, 0.0) ** 2 for name, norm in zip(released, norms, strict=True) if belongs(name)))
              for belongs in GROUPS.values()]
    check("close", "group_grad_norms", groups, 0.0, 5e-4)
    check("near", "grad_cls_token", gradients["image_encoder.cls_token"], 2e-4)
    check("near", "grad_word_mha_in_proj_bias", with_values(gradients["word_pooling.bias"]), 2e-4)
    check("near", "grad_txt_global_bn_weight", gradients["report_head.hidden_norm.weight"], 2e-4)
    check("near", "grad_img_local_bn_weight", gradients["patch_head.hidden_norm.weight"], 2e-4)
    assert not pending, f"{file.name}: never compared: {sorted(pending)}"


def compare_norms(file: File, name: str, released: list[str], norms: list[float]) -> None:
    file.compared.add(name)
    stored = file.arrays[name]
    for parameter, got, expected in zip(released, norms, stored.tolist(), strict=True):
        if expected == -1.0:
            assert got in (-1.0, 0.0), f"{name}: {parameter} takes no part, and has gradient {got}"
        elif expected < 1e-3:
            assert 0.0 <= got < 5e-3, f"{name}: {parameter} has {got}, and should vanish"
        else:
            assert abs(got - expected) <= 5e-4 * expected, f"{name}: {parameter} has {got} instead of {expected}"


CHECKS: dict[str, Callable[[], File]] = {
    "move_vit.npz": cache(check_move_vit),
    "aggregate.npz": cache(check_aggregate),
    "temporal.npz": cache(check_temporal),
    "losses.npz": cache(check_losses),
    "full_two_sequences.npz": cache(lambda: check_full("full_two_sequences.npz")),
    "full_partial.npz": cache(lambda: check_full("full_partial.npz")),
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_array_of_the_file_is_matched(name: str) -> None:
    file = CHECKS[name]()
    left_out = set(file.arrays) - file.compared - file.inputs
    assert not left_out, f"{name}: never compared: {sorted(left_out)}"


def test_no_file_and_no_array_is_left_out(record_property: Callable[[str, object], None]) -> None:
    files = {path.name for path in GOLDEN.glob("*.npz")}
    assert files == set(CHECKS), "files that no check reads, or that are absent"
    done = [CHECKS[name]() for name in sorted(files)]
    num_compared = sum(len(file.compared) for file in done)
    num_inputs = sum(len(file.inputs - file.compared) for file in done)
    total = sum(len(file.arrays) for file in done)
    print(f"golden: {num_compared} arrays compared, {num_inputs} used as inputs, {total} in {len(done)} files")
    record_property("golden_arrays_compared", num_compared)
    assert num_compared + num_inputs == total
    assert num_compared > 0.75 * total


def test_the_released_checkpoint_is_accounted_for() -> None:
    model = empty(config())
    report = load_checkpoint(model, GOLDEN / "weights.safetensors")
    assert not report.missing and not report.unexpected
    assert set(report.loaded) | set(report.filled) == set(model.state_dict())
    whole = {name for name in report.ignored if not name.endswith("[values]")}
    assert whole == {name for name in released_weights() if released_name(name) is None}
    for name in whole:
        assert any(part in name for part in ("_la.", "crossattention", "pooler", "_local_atten_layer", "out_proj",
                                             "position_ids")), name
    assert report.filled == ("text_encoder.bert.embeddings.token_type_embeddings.weight",)


# The reference ----------------------------------------------------------------------------------------------------


def reference_settings() -> Settings:
    sizes = description()
    return Settings(
        image_heads=sizes["vit"]["num_heads"], text_heads=sizes["bert"]["num_attention_heads"],
        max_tokens=sizes["T"], sequence_length=sizes["temporal"]["num_steps"],
        global_temperature=sizes["softmax_temperature"], local_temperature=sizes["local_temperature"],
        temporal_temperature=sizes["temporal"]["temperature"], variance_weight=sizes["temporal"]["variance_lambda"],
        huber_threshold=sizes["temporal"]["huber_delta"],
    )


def test_the_reference_matches_the_full_model() -> None:
    file = open_file("full_partial.npz")
    weights = {name: value.double().requires_grad_() if "running" not in name and value.is_floating_point()
               else value for name, value in released_weights().items()}
    frontal, lateral = (to_pixels(file.input(f"{view}_u8")).double()[:, None].expand(-1, num_channels(), -1, -1)
                        for view in ("frontal", "lateral"))
    present = file.input("index_ce").tolist()
    captions = [[int(token) for token, is_token in zip(ids, mask, strict=True) if is_token]
                for ids, mask in zip(file.input("caption_ids"), file.input("attention_mask"), strict=True)]
    result = reference.medst(
        weights, vocabulary(), frontal, [image if has else None for image, has in zip(lateral, present, strict=True)],
        captions, int(file.input("s_len")), reference_settings(), training=True,
    )
    file.close("train__loss_ita", result.global_loss, 1e-6, 2e-5)
    file.close("train__loss_local", result.local_loss, 1e-6, 2e-5)
    file.close("train__loss_temporal", result.temporal_loss, 0.0, 1e-4)
    file.close("train__img_feat", result.image_features, 1e-4)
    file.close("train__report_feat", result.report_features, 1e-4)
    file.close("train__img_emb", result.image, 5e-5)
    file.close("train__report_emb", result.report, 5e-5)
    file.close("train__patch_emb", torch.stack(result.patches), 5e-5)
    file.close("train__word_emb", torch.stack(result.word_embeddings), 5e-5)
    for name, value in result.after.items():
        file.close(f"train__after__{name}", value, 1e-5, 1e-4)
    (result.global_loss + result.local_loss + result.temporal_loss).backward()
    released = [str(name) for name in file.arrays["train__grad_names"]]
    norms = [-1.0 if weights[name].grad is None else float(weights[name].grad.norm()) for name in released]
    compare_norms(file, "train__grad_norms", released, norms)


def test_the_reference_matches_the_losses() -> None:
    file = open_file("losses.npz")
    weights = {name: value.double() for name, value in released_weights().items()}
    pooling = [(weights[f"{name}_element_wise_multi_head.in_proj_weight"],
                weights[f"{name}_element_wise_multi_head.in_proj_bias"]) for name in ("word", "patch")]
    for case in sorted({name.split("__")[0] for name in file.arrays}):
        image, report, patches, words = (reference.unit(file.input(f"{case}__{name}_raw").double())
                                         for name in ("img", "report", "patch", "word"))
        counts = (file.arrays[f"{case}__words"][:, 1:] != "[PAD]").sum(axis=1).tolist()
        file.close(f"{case}__loss_global",
                   reference.global_loss(image, report, description()["softmax_temperature"]), 1e-6, 2e-5)
        word, patch, word_weights, patch_weights = reference.local_loss(
            list(words), list(patches), counts, *pooling, description()["local_temperature"],
            released_padding=True, released_context=True,
        )
        file.close(f"{case}__loss_local_word", word, 1e-6, 2e-5)
        file.close(f"{case}__loss_local_patch", patch, 1e-6, 5e-5)
        file.close(f"{case}__word_weights", torch.stack(word_weights), 1e-6)
        file.close(f"{case}__patch_weights", torch.stack(patch_weights), 1e-6)
        for rank in (1, 5):
            file.close(f"{case}__acc{rank}", reference.accuracy(image, report, rank), 1e-3)


def test_the_reference_matches_the_temporal_losses() -> None:
    file = open_file("temporal.npz")
    sizes = description()["temporal"]
    kwargs = {"variance_weight": sizes["variance_lambda"], "floor": 1e-7, "threshold": sizes["huber_delta"]}
    for case in sorted({name.split("__")[0] for name in file.arrays}):
        image, report = file.input(f"{case}__img").double(), file.input(f"{case}__txt").double()
        for direction, x, y in (("i2t", image, report), ("t2i", report, image)):
            for name, value in (("fmc", reference.fmc(x, y, sizes["temperature"])),
                                ("rmr", reference.rmr(x, y, sizes["temperature"], **kwargs))):
                file.close(f"{case}__{name}_{direction}", value, 2e-6, 2e-3 if case == "unnorm" else 2e-4)


def test_the_reference_matches_the_aggregation() -> None:
    file = open_file("aggregate.npz")
    weights = {name: value.double() if value.is_floating_point() else value
               for name, value in released_weights().items()}
    heads = description()["bert"]["num_attention_heads"]
    for row, (ids, mask) in enumerate(zip(file.input("ids").tolist(), file.input("attention_mask").tolist(),
                                          strict=True)):
        words, members = reference.words_of(ids, vocabulary(), released=True)
        assert words + ["[PAD]"] * (len(ids) - len(words)) == file.arrays["words"][row].tolist()
        vectors = reference.word_vectors(file.input("agg_in")[row].double(), members, len(ids))
        np.testing.assert_allclose(vectors.numpy(), file.arrays["agg_out"][row], atol=1e-5)
        for name, true_positions in (("official", False), ("true_positions", True)):
            tokens, _ = reference.text_tokens(weights, ids[: sum(mask)], heads, true_positions=true_positions)
            np.testing.assert_allclose(tokens.numpy(), file.arrays[f"bert_last_hidden_{name}"][row][: sum(mask)],
                                       atol=1e-4, rtol=1e-4)
