"""Weights of other programs, from files made in their very formats: Lightning, DataParallel, half precision, malice."""

from __future__ import annotations

import os
import pickle
import sys
import types
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_samples import SIZES, VOCABULARY_SIZE, small_batch, small_config, small_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from medst.config import Config, canonical, override
from medst.evaluation.judged import judged_config
from medst.model import MedST
from medst.model.checkpoints import CheckpointError, read_checkpoint
from medst.model.foreign import BERT, MED_ST, MGCA, VISION_TRANSFORMER, kind_of, load_checkpoint, settings_of

FEED_FORWARD = "image_encoder.blocks.0.experts.experts.{}.mlp.fc1.weight"


def medst_state(model: MedST) -> dict[str, Tensor]:
    """A model's tensors under the names of the released program, with what that program has besides."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        for old, new in (
            ("image_encoder.stem.", "img_encoder_q.model.patch_embed."), ("image_encoder.", "img_encoder_q.model."),
            (".attention.qkv.", ".attn.qkv."), (".attention.proj.", ".attn.proj."),
            (".experts.experts.0.norm.", ".norm2."), (".experts.experts.0.mlp.", ".mlp."),
            (".experts.experts.1.norm.", ".norm2_l."), (".experts.experts.1.mlp.", ".mlp_l."),
            ("text_encoder.bert.", "text_encoder_q.model."), ("image_head.", "img_encoder_q.global_embed.head."),
            ("patch_head.", "img_encoder_q.local_embed.head."), ("report_head.", "text_encoder_q.global_embed.head."),
            ("word_head.", "text_encoder_q.local_embed.head."), ("head.hidden_norm.", "head.1."),
            ("head.hidden.", "head.0."), ("head.output_norm.", "head.4."), ("head.output.", "head.3."),
            ("word_pooling.", "word_element_wise_multi_head.in_proj_"),
            ("patch_pooling.", "patch_element_wise_multi_head.in_proj_"),
        ):
            key = key.replace(old, new)
        if key.endswith("token_type_embeddings.weight"):
            continue
        if "in_proj_" in key:
            tensor = torch.cat([tensor, torch.ones_like(tensor[: tensor.shape[0] // 2])])
        if "local_embed.head." in key and tensor.ndim == 2:
            tensor = tensor[:, :, None]
        renamed[key] = tensor.clone()
    return {**renamed, "patch_local_atten_layer.out_proj.bias": torch.zeros(3),
            "text_encoder_q.model.embeddings.position_ids": torch.arange(5)[None]}


def mgca_state(model: MedST) -> dict[str, Tensor]:
    """The same for MGCA: no lateral expert, no pooling, but prototypes."""
    kept = {key: tensor for key, tensor in medst_state(model).items()
            if "_l." not in key and "element_wise" not in key}
    return {**kept, "prototype_layer.weight": torch.zeros(7, 3)}


def deit_state(model: MedST) -> dict[str, Tensor]:
    prefix = "img_encoder_q.model."
    kept = {key.removeprefix(prefix): tensor for key, tensor in mgca_state(model).items() if key.startswith(prefix)}
    return {**kept, "head.weight": torch.zeros(1000, 16), "head.bias": torch.zeros(1000)}


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Makes the dictionary that a Lightning trainer writes, with objects of classes that are gone when it is read."""
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    stopping = type("EarlyStopping", (), {"__module__": "pytorch_lightning.callbacks"})
    attributes = type("AttributeDict", (dict,), {"__module__": "pytorch_lightning"})
    monkeypatch.setattr(sys.modules["pytorch_lightning.callbacks"], "EarlyStopping", stopping, raising=False)
    monkeypatch.setattr(sys.modules["pytorch_lightning"], "AttributeDict", attributes, raising=False)

    def make(state: dict[str, Tensor], **more: object) -> dict[str, Any]:
        return {"epoch": 7, "global_step": 99, "pytorch-lightning_version": "1.5.8", "state_dict": OrderedDict(state),
                "callbacks": {stopping: {"best_score": torch.tensor(1.0)}, "last": stopping()},
                "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}], "lr_schedulers": [],
                "hyper_parameters": attributes(emb_dim=128, args=Namespace(gpus=2)), **more}

    return make


def other_model(**settings: Any) -> MedST:
    """A model with other weights than those of the checkpoints."""
    return small_model(small_config(seed=5, **settings))


def test_a_lightning_checkpoint_of_med_st(tmp_path: Path, lightning: Callable[..., dict[str, Any]],
                                          capsys: pytest.CaptureFixture[str]) -> None:
    source = small_model(small_config(**{"model.text.positions": "released"}))
    path = tmp_path / "medst.ckpt"
    torch.save(lightning({f"module.{key}": tensor for key, tensor in medst_state(source).items()}), path)
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        del sys.modules[name]
    model = other_model(**{"model.text.positions": "released"})
    report = load_checkpoint(model, path)
    assert kind_of(read_checkpoint(path)) is MED_ST
    assert not report.missing and not report.unexpected and not report.reshaped
    batch = small_batch()
    for one, two in zip(model.eval()(batch).patches, source.eval()(batch).patches, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    printed = capsys.readouterr().err
    assert "EarlyStopping" in printed and "prefix 'module.'" in printed and "position_ids" in printed


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state},
                                  lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()}])
def test_names_are_found_in_every_wrapping(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    state = deit_state(small_model(small_config()))
    torch.save(wrap(state), tmp_path / "vit.pth")
    checkpoint = read_checkpoint(tmp_path / "vit.pth")
    assert checkpoint.tensors.keys() == state.keys() and kind_of(checkpoint) is VISION_TRANSFORMER
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pth").tensors.keys() == state.keys()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "vit.safetensors")
    assert read_checkpoint(tmp_path / "vit.safetensors").tensors.keys() == state.keys()


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    source = small_model(small_config())
    torch.save({key: tensor.half() if tensor.is_floating_point() else tensor
                for key, tensor in mgca_state(source).items()}, tmp_path / "half.ckpt")
    model = other_model()
    report = load_checkpoint(model, tmp_path / "half.ckpt")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(model.image_encoder.pos_embed, source.image_encoder.pos_embed, rtol=1e-3, atol=1e-4)
    assert any("float16 brought to float32" in note for note in report.adapted)


@pytest.mark.parametrize("num_experts", [1, 2, 3, 4])
def test_every_view_expert_starts_from_the_pretrained_feed_forward(tmp_path: Path, num_experts: int) -> None:
    source = small_model(small_config())
    torch.save({"state_dict": mgca_state(source)}, tmp_path / "mgca.ckpt")
    model = other_model(**{"model.experts.num_experts": num_experts})
    report = load_checkpoint(model, tmp_path / "mgca.ckpt")
    state, wanted = model.state_dict(), source.state_dict()[FEED_FORWARD.format(0)]
    assert all(torch.equal(state[FEED_FORWARD.format(index)], wanted) for index in range(num_experts))
    # MGCA brings no pooling attention: it stays as it was, and the account says so.
    assert set(report.missing) == {"word_pooling.weight", "word_pooling.bias", "patch_pooling.weight",
                                   "patch_pooling.bias"}
    assert "prototypes" in report.ignored


def test_a_wider_expert_computes_what_the_pretrained_one_does(tmp_path: Path) -> None:
    source = small_model(small_config(**{"model.experts.num_experts": 1}))
    torch.save({"state_dict": mgca_state(source)}, tmp_path / "mgca.ckpt")
    model = other_model(**{"model.experts.num_experts": 1, "model.experts.hidden_scale": 3.0})
    report = load_checkpoint(model, tmp_path / "mgca.ckpt")
    batch = small_batch()
    for one, two in zip(model.eval()(batch).patches, source.eval()(batch).patches, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert sum("fc1.weight" in note for note in report.reshaped) == SIZES["model.image.num_layers"]
    # The copies of a hidden unit have other outgoing weights: training can tell them apart.
    outgoing = model.state_dict()[FEED_FORWARD.format(0).replace("fc1", "fc2")].chunk(3, dim=1)
    assert not any(torch.allclose(one, two) for one, two in ((outgoing[0], outgoing[1]), (outgoing[1], outgoing[2])))
    other = other_model(**{"model.experts.num_experts": 1, "model.experts.hidden_scale": 1.5})
    with pytest.raises(CheckpointError, match="other shape"):
        load_checkpoint(other, tmp_path / "mgca.ckpt")


def test_med_st_experts_go_to_their_views(tmp_path: Path) -> None:
    source = small_model(small_config())
    torch.save(medst_state(source), tmp_path / "medst.ckpt")
    frontal, lateral = (source.state_dict()[FEED_FORWARD.format(index)] for index in (0, 1))
    assert not torch.equal(frontal, lateral)
    model = other_model(**{"model.experts.num_experts": 4})
    load_checkpoint(model, tmp_path / "medst.ckpt")
    for index, wanted in enumerate((frontal, frontal, lateral, lateral)):
        assert torch.equal(model.state_dict()[FEED_FORWARD.format(index)], wanted), index
    single = other_model(**{"model.experts.num_experts": 1})
    report = load_checkpoint(single, tmp_path / "medst.ckpt")
    assert torch.equal(single.state_dict()[FEED_FORWARD.format(0)], frontal)
    assert any(".experts.experts.1.mlp." in key for key in report.ignored)


def test_as_released_the_lateral_expert_is_not_copied(tmp_path: Path) -> None:
    torch.save({"state_dict": mgca_state(small_model(small_config()))}, tmp_path / "mgca.ckpt")
    model = other_model(**{"model.initialisation": "released"})
    before = model.state_dict()[FEED_FORWARD.format(1)].clone()
    report = load_checkpoint(model, tmp_path / "mgca.ckpt")
    assert torch.equal(model.state_dict()[FEED_FORWARD.format(1)], before)
    assert FEED_FORWARD.format(1) in report.missing


def test_positions_are_resampled_to_another_image_size(tmp_path: Path) -> None:
    source = small_model(small_config(**{"data.image_size": 40, "data.crop_size": 32}))
    with torch.no_grad():
        # Positions that say where they are: a resampled corner stays that corner.
        rows = torch.arange(4.0)
        source.image_encoder.pos_embed[0, 1:, 0] = rows.repeat_interleave(4)
        source.image_encoder.pos_embed[0, 1:, 1] = rows.repeat(4)
    torch.save(deit_state(source), tmp_path / "vit.pth")
    model = other_model()
    report = load_checkpoint(model, tmp_path / "vit.pth")
    positions = model.image_encoder.pos_embed[0]
    assert positions.shape[0] == 5 and any("pos_embed" in note for note in report.reshaped)
    torch.testing.assert_close(positions[0], source.image_encoder.pos_embed[0, 0])
    # Halving by an antialiasing filter keeps the order and the symmetry around the middle, 1.5.
    torch.testing.assert_close(positions[1:, 0].view(2, 2), positions[1:, 1].view(2, 2).T)
    assert positions[1, 0] < 1.5 < positions[3, 0]
    torch.testing.assert_close(positions[1, 0] + positions[3, 0], torch.tensor(3.0), rtol=1e-4, atol=1e-4)


def test_colour_kernels_see_grey_as_equal_channels(tmp_path: Path) -> None:
    source = small_model(small_config(**{"model.image.num_channels": 3}))
    torch.save(deit_state(source), tmp_path / "vit.pth")
    model = other_model()
    load_checkpoint(model, tmp_path / "vit.pth")
    image = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(model.image_encoder.stem(image),
                               source.image_encoder.stem(image.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-6)


def bert_state(tmp_path: Path, model_type: str = "bert") -> BertForMaskedLM:
    """A folder as the hub holds BioClinicalBERT or CXR-BERT: config.json, pytorch_model.bin with old names."""
    import json

    config = BertConfig(vocab_size=VOCABULARY_SIZE, hidden_size=12, num_hidden_layers=4, num_attention_heads=2,
                        intermediate_size=20, max_position_embeddings=512)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        bert = BertForMaskedLM(config)
    old = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for key, tensor in bert.state_dict().items()}
    torch.save(old, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": model_type}))
    return bert


@pytest.mark.parametrize(("model_type", "depth", "num_layers"), [("bert", "corrected", 4), ("cxr-bert", "released", 2)])
def test_a_text_encoder_from_a_local_folder(tmp_path: Path, model_type: str, depth: str, num_layers: int) -> None:
    bert = bert_state(tmp_path, model_type)
    model = MedST.create(small_config(**{"model.text.name": str(tmp_path), "model.text.depth": depth}), VOCABULARY_SIZE)
    assert len(model.text_encoder.bert.encoder.layer) == num_layers
    for key, tensor in model.text_encoder.bert.state_dict().items():
        torch.testing.assert_close(tensor, bert.bert.state_dict()[key], rtol=0, atol=0)


def test_a_bert_file_fills_the_text_encoder_alone(tmp_path: Path) -> None:
    bert = bert_state(tmp_path)
    model = other_model(**{"model.text.num_layers": 4})
    before = model.image_encoder.pos_embed.clone()
    report = load_checkpoint(model, tmp_path / "pytorch_model.bin")
    assert kind_of(read_checkpoint(tmp_path / "pytorch_model.bin")) is BERT
    torch.testing.assert_close(model.text_encoder.bert.embeddings.LayerNorm.weight,
                               bert.bert.embeddings.LayerNorm.weight)
    assert torch.equal(model.image_encoder.pos_embed, before)
    assert all("text_encoder" not in key for key in report.missing)


def test_training_starts_from_a_checkpoint_and_its_content_is_in_the_key(tmp_path: Path) -> None:
    source = small_model(small_config())
    path = tmp_path / "mgca.ckpt"
    torch.save({"state_dict": mgca_state(source)}, path)
    config = small_config(**{"model.weights": str(path)})
    model = MedST.create(config, VOCABULARY_SIZE)
    torch.testing.assert_close(model.image_encoder.pos_embed, source.image_encoder.pos_embed)
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(path.read_bytes())
    assert canonical(config) == canonical(override(config, {"model.weights": str(copy)})) != canonical(small_config())
    torch.save({"state_dict": mgca_state(other_model())}, copy)
    assert canonical(config) != canonical(override(config, {"model.weights": str(copy)}))
    folder = source.save_pretrained(tmp_path / "own")
    again = MedST.create(small_config(**{"model.weights": str(folder)}), VOCABULARY_SIZE)
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_sizes_are_read_from_the_tensors(tmp_path: Path) -> None:
    torch.save(medst_state(small_model(small_config())), tmp_path / "medst.ckpt")
    found = settings_of(read_checkpoint(tmp_path / "medst.ckpt"))
    for key, value in SIZES.items():
        if key in found and not key.endswith("num_heads"):
            assert found[key] == value, key
    assert found["data.crop_size"] == 16 and found["model.experts.num_experts"] == 2
    config = judged_config(tmp_path / "medst.ckpt", {"model.image.num_heads": 2, "model.text.num_heads": 2}, True)
    assert config.evaluation.equalisation == "released" and config.model.text.positions == "released"
    assert config.data.image_size == 256 and config.model.image.width == 16


class Malice:
    """Runs a program when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("is_zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, exec, pickle.loads, torch.hub.load])
def test_a_malicious_checkpoint_does_not_run(tmp_path: Path, function: Callable[..., Any], is_zipped: bool) -> None:
    trap = tmp_path / "ran"
    argument: object = f"open({str(trap)!r}, 'w')" if function in (eval, exec) else f"touch {trap}"
    path = tmp_path / "bad.ckpt"
    torch.save({"state_dict": deit_state(small_model(small_config())), "extra": Malice(function, argument)}, path,
               _use_new_zipfile_serialization=is_zipped)
    if function is torch.hub.load and is_zipped:
        # A name of a library that trainers use: it is read as nothing, and never called.
        assert any("torch.hub.load" in note for note in read_checkpoint(path).adapted)
    else:
        with pytest.raises(CheckpointError, match="refused"):
            read_checkpoint(path)
    assert not trap.exists()


def test_a_malicious_file_is_what_it_claims(tmp_path: Path) -> None:
    """The trap of the test above does spring where a file is read without care."""
    trap = tmp_path / "ran"
    path = tmp_path / "bad.ckpt"
    torch.save({"extra": Malice(os.system, f"touch {trap}")}, path)
    torch.load(path, weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not a readable|refused"), (b"PK\x03\x04 broken", "not a readable|refused"), (b"\x80\x02}.", "."),
])
def test_damaged_files_say_so(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "damaged.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "damaged.ckpt")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    source = small_model(small_config())
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "absent.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="list instead of named tensors"):
        read_checkpoint(tmp_path / "list.ckpt")
    torch.save({**deit_state(source), "norm.weight": torch.full((16,), torch.nan)}, tmp_path / "nan.ckpt")
    with pytest.raises(CheckpointError, match=r"not finite, first norm\.weight"):
        read_checkpoint(tmp_path / "nan.ckpt")
    torch.save({"encoder.encoder.conv1.weight": torch.zeros(1)}, tmp_path / "biovil.pt")
    with pytest.raises(CheckpointError, match="BioViL"):
        kind_of(read_checkpoint(tmp_path / "biovil.pt"))
    torch.save({"img_encoder_q.model.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.ckpt")
    with pytest.raises(CheckpointError, match="vit_base"):
        kind_of(read_checkpoint(tmp_path / "resnet.ckpt"))
    torch.save({**mgca_state(source), "img_encoder_q.surprise": torch.zeros(1)}, tmp_path / "more.ckpt")
    with pytest.raises(CheckpointError, match=r"unknown \(1\): img_encoder_q\.surprise"):
        load_checkpoint(other_model(), tmp_path / "more.ckpt")
    less = {key: tensor for key, tensor in mgca_state(source).items() if "norm1" not in key}
    torch.save(less, tmp_path / "less.ckpt")
    with pytest.raises(CheckpointError, match="not in the file"):
        load_checkpoint(other_model(), tmp_path / "less.ckpt")
    torch.save(mgca_state(source), tmp_path / "mgca.ckpt")
    with pytest.raises(CheckpointError, match=r"other shape.*\n.*model\.image\.width=16"):
        load_checkpoint(other_model(**{"model.image.width": 20}), tmp_path / "mgca.ckpt")
    assert kind_of(read_checkpoint(tmp_path / "mgca.ckpt")) is MGCA


@pytest.mark.parametrize(("key", "name"), [("model.image.name", "deit_base_patch16_224.fb_in1k"),
                                           ("model.text.name", "emilyalsentzer/Bio_ClinicalBERT")])
def test_without_a_network_the_message_says_how_to_bring_the_files(key: str, name: str, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config: Config = small_config(**{key: name})
    with pytest.raises(ValueError, match=rf"{key}=.*cannot be had.*another machine and name the folder"):
        MedST.create(config, VOCABULARY_SIZE)
