"""BioViL-T: its files as the hub holds them, its computation against slow references."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from transformers import BertConfig, BertModel

from medst.data.tokenizer import SPECIAL_TOKENS
from medst.evaluation.judged import judged_config
from medst.model.biovil_t import BioViLT, TemporalPooler, sine_positions
from medst.model.biovil_t_weights import IMAGE_WEIGHTS, is_biovil_t, load_biovil_t
from medst.model.checkpoints import CheckpointError
from medst.model.joint import PairModel

EMBEDDING = 128
WORDS = ("pleural", "effusion", "pneumonia", "edema", "no", "the", "there", "is", "left", "right", "improved", "worse")
VOCABULARY = (*SPECIAL_TOKENS, *WORDS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in
                                                                       "abcdefghijklmnopqrstuvwxyz"))
ARCHITECTURE = {
    "model_type": "cxr-bert", "architectures": ["CXRBertModel"], "projection_size": EMBEDDING, "vocab_size":
    len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.25,
    "auto_map": {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"}}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the image file: a whole ResNet-50, and what the authors' program puts behind it."""
    with torch.device("meta"):
        trunk = torchvision.models.resnet50(weights=None).state_dict()
    shapes = {f"encoder.encoder.{name}": tuple(tensor.shape) for name, tensor in trunk.items()}
    shapes |= {"encoder.backbone_to_vit.weight": (256, 2048, 1, 1), "encoder.missing_previous_emb": (1, 256, 1, 1),
               "encoder.vit_pooler.type_embed": (2, 1, 256), "encoder.vit_pooler.norm_post.weight": (256,),
               "encoder.vit_pooler.norm_post.bias": (256,)}
    for block in (f"encoder.vit_pooler.blocks.{index}." for index in range(3)):
        shapes |= {f"{block}{norm}.{kind}": (256,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {f"{block}attn.proj{name}.weight": (256, 256) for name in ("_q", "_k", "_v", "")}
        shapes |= {f"{block}attn.proj.bias": (256,)}
        shapes |= {f"{block}mlp.{layer}.{kind}": (256, 256)[:2 - (kind == "bias")] for layer in ("fc1", "fc2")
                   for kind in ("weight", "bias")}
    shapes |= {"projector.model.0.weight": (128, 512, 1, 1), "projector.model.3.weight": (128, 128, 1, 1),
               "projector.model.3.bias": (128,), "projector.model.1.num_batches_tracked": ()}
    return shapes | {f"projector.model.1.{kind}": (128,) for kind in ("weight", "bias", "running_mean", "running_var")}


def image_state(model: BioViLT) -> dict[str, Tensor]:
    """The image encoder under the names of the authors' program, with the head of the trunk that it carries along."""
    state = {}
    for key, tensor in model.state_dict().items():
        if not key.startswith("image_"):
            continue
        for ours, theirs in (
            ("image_encoder.trunk.", "encoder.encoder."), ("image_encoder.reduction.", "encoder.backbone_to_vit."),
            ("image_encoder.missing_previous", "encoder.missing_previous_emb"),
            ("image_encoder.pooler.types", "encoder.vit_pooler.type_embed"),
            ("image_encoder.pooler.norm.", "encoder.vit_pooler.norm_post."),
            ("image_encoder.pooler.", "encoder.vit_pooler."), (".query.", ".attn.proj_q."), (".key.", ".attn.proj_k."),
            (".value.", ".attn.proj_v."), (".output.", ".attn.proj."), ("image_projection.", "projector.model."),
        ):
            key = key.replace(ours, theirs)
        state[key] = tensor.clone()
    width = model.image_encoder.reduction.in_channels
    return {**state, "encoder.encoder.fc.weight": torch.zeros(1000, width),
            "encoder.encoder.fc.bias": torch.zeros(1000)}


def text_state(model: BioViLT) -> dict[str, Tensor]:
    """The text encoder under the names of transformers, with the head for masked words."""
    state = {}
    for key, tensor in model.state_dict().items():
        if key.startswith("text_encoder.bert."):
            state[key.removeprefix("text_encoder.")] = tensor.clone()
        elif key.startswith("text_projection."):
            _, index, kind = key.split(".")
            layer = {"0": "dense_to_hidden", "2": "LayerNorm", "3": "dense_to_output"}[index]
            state[f"cls_projection_head.{layer}.{kind}"] = tensor.clone()
    return {**state, "bert.embeddings.position_ids": torch.arange(64)[None], "cls.predictions.bias": torch.zeros(9),
            "cls.predictions.decoder.weight": torch.zeros(9, 16)}


def small_biovil_t() -> BioViLT:
    """Weights far from their initial values; the smaller of the two trunks that the authors' program knows."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BioViLT(BertConfig(**ARCHITECTURE), trunk="resnet18", embedding_width=EMBEDDING).eval()
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif "pooler" in name or "projection" in name or name.endswith("missing_previous"):
                tensor.add_(torch.randn_like(tensor) * 0.2 if tensor.is_floating_point() else 0)
    return model


def write_folder(model: BioViLT, place: Path) -> Path:
    """The folder of the hub."""
    place.mkdir()
    torch.save(image_state(model), place / IMAGE_WEIGHTS)
    torch.save(text_state(model), place / "pytorch_model.bin")
    (place / "config.json").write_text(json.dumps(ARCHITECTURE))
    (place / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (place / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return place


@pytest.fixture(scope="module")
def source() -> BioViLT:
    return small_biovil_t()


@pytest.fixture
def folder(source: BioViLT, tmp_path: Path) -> Path:
    return write_folder(source, tmp_path / "biovil-t")


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        state = image_state(BioViLT(BertConfig(**ARCHITECTURE), embedding_width=EMBEDDING))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published_shapes()
    # The hub gives the file's size as 110 MB.
    assert round(4 * sum(tensor.numel() for tensor in state.values()) / 1e6) == 110


def test_the_folder_is_loaded_with_an_account(folder: Path, source: BioViLT, capsys: pytest.CaptureFixture[str]
                                              ) -> None:
    assert is_biovil_t(folder) and not is_biovil_t(folder.parent)
    model = load_biovil_t(folder)
    assert not model.training and isinstance(model, PairModel)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key]), key
    printed = capsys.readouterr().err
    images, texts = (sum(key.startswith(part) for key in source.state_dict()) for part in ("image_", "text_"))
    assert f"{images} tensors loaded\n  ignored (2): encoder.encoder.fc.weight" in printed
    assert f"{texts} tensors loaded\n  ignored (3): bert.embeddings.position_ids" in printed
    settings = judged_config(folder, {}, is_as_published=True)
    assert (settings.data.crop_size, settings.data.views, settings.evaluation.equalisation) == (448, "frontal",
                                                                                                 "released")
    assert settings.model.weights == settings.data.vocabulary == str(folder)


def test_what_is_not_bio_vil_t_is_refused(folder: Path, source: BioViLT, tmp_path: Path) -> None:
    state = image_state(source)
    for change, message in (
        ({"encoder.surprise": torch.zeros(1)}, r"unexpected \(1\): encoder\.surprise"),
        ({"encoder.missing_previous_emb": torch.zeros(1, 9, 1, 1)}, r"missing_previous \(1, 9, 1, 1\) instead of"),
    ):
        torch.save({**state, **change}, folder / IMAGE_WEIGHTS)
        with pytest.raises(CheckpointError, match=message):
            load_biovil_t(folder)
    torch.save({name: tensor for name, tensor in state.items() if "norm_post" not in name}, folder / IMAGE_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"missing \(2\): image_encoder\.pooler\.norm"):
        load_biovil_t(folder)
    torch.save({name: tensor for name, tensor in state.items() if "vit_pooler" not in name}, folder / IMAGE_WEIGHTS)
    with pytest.raises(CheckpointError, match="without temporal part"):
        load_biovil_t(folder)
    torch.save(state, folder / IMAGE_WEIGHTS)
    with pytest.raises(CheckpointError, match="judged from the folder that holds both"):
        judged_config(folder / IMAGE_WEIGHTS, {}, True)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors or pytorch_model\.bin"):
        load_biovil_t(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no projection_size"):
        judged_config(folder, {}, True)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        judged_config(folder, {}, True)
    with pytest.raises(CheckpointError, match=rf"neither config\.yaml.*nor {IMAGE_WEIGHTS}"):
        judged_config(tmp_path, {}, True)


# ---- Against slow references -------------------------------------------------------------------------------------


def test_positions_by_their_formula() -> None:
    height, width, channels = 2, 3, 8
    found = sine_positions(height, width, channels)
    for row in range(height):
        for column in range(width):
            expected = []
            for place, count in ((row + 1, height), (column + 1, width)):
                for index in range(channels // 2):
                    angle = place / count * 2 * math.pi / 10000 ** (2 * (index // 2) / (channels // 2))
                    expected.append(math.cos(angle) if index % 2 else math.sin(angle))
            torch.testing.assert_close(found[row * width + column], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def norm_slowly(vector: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    deviation = vector - vector.mean()
    return deviation / (deviation.square().mean() + 1e-6).sqrt() * layer.weight + layer.bias


def pool_slowly(pooler: TemporalPooler, current: Tensor, previous: Tensor) -> Tensor:
    """One pair (C, h, w), (C, h, w), token by token and head by head."""
    channels, height, width = current.shape
    positions = sine_positions(height, width, channels)
    tokens, places = [], []
    for kind, image in enumerate((current, previous)):
        for row in range(height):
            for column in range(width):
                tokens.append(image[:, row, column])
                places.append(positions[row * width + column] + pooler.types[kind, 0])
    for block in pooler.blocks:
        placed = [norm_slowly(token, block.norm1) + place for token, place in zip(tokens, places, strict=True)]
        queries, keys, values = ([layer.weight @ vector for vector in placed]
                                 for layer in (block.query, block.key, block.value))
        size = channels // 8
        mixed = []
        for query in queries:
            heads = []
            for head in range(8):
                part = slice(head * size, (head + 1) * size)
                scores = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(size)
                weights = scores.exp() / scores.exp().sum()
                heads.append(sum(weight * value[part] for weight, value in zip(weights, values, strict=True)))
            mixed.append(block.output.weight @ torch.cat(heads) + block.output.bias)
        tokens = [token + change for token, change in zip(tokens, mixed, strict=True)]
        for index, token in enumerate(tokens):
            hidden = block.mlp.fc1.weight @ norm_slowly(token, block.norm2) + block.mlp.fc1.bias
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            tokens[index] = token + block.mlp.fc2.weight @ hidden + block.mlp.fc2.bias
    first = tokens[:height * width]
    return torch.stack([norm_slowly(token, pooler.norm) for token in first], dim=1).view(channels, height, width)


@torch.no_grad()
def test_the_pooler_token_by_token(source: BioViLT) -> None:
    pooler = source.image_encoder.pooler
    generator = torch.Generator().manual_seed(0)
    current, previous = torch.randn(2, 2, 256, 2, 2, generator=generator)
    expected = torch.stack([pool_slowly(pooler, *pair) for pair in zip(current, previous, strict=True)])
    torch.testing.assert_close(pooler(current, previous), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(pooler(previous, current), expected, atol=0.1)


def trunk_slowly(trunk: torchvision.models.ResNet, images: Tensor) -> Tensor:
    colours = torch.cat([(images + 1) / 2] * 3, dim=1)
    hidden = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(colours))))
    return trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(hidden))))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_images_and_pairs_as_the_authors_program_has_them(source: BioViLT, name: str) -> None:
    """The trunk is torchvision's; what comes behind it is written out."""
    model = source if name == "resnet18" else BioViLT(BertConfig(**ARCHITECTURE), trunk="resnet50").eval()
    state = image_state(model)
    trunk = getattr(torchvision.models, name)(weights=None).eval()
    trunk.load_state_dict({key.removeprefix("encoder.encoder."): tensor for key, tensor in state.items()
                           if key.startswith("encoder.encoder.")})
    images, earlier = torch.rand(2, 3, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    kernel = state["encoder.backbone_to_vit.weight"][:, :, 0, 0]
    static, before = (torch.einsum("cd,bdhw->bchw", kernel, trunk_slowly(trunk, part)) for part in (images, earlier))
    missing = state["encoder.missing_previous_emb"].repeat(3, 1, 2, 2)
    for change, features in ((missing, model.encode_images(images, torch.ones(3, dtype=torch.int64))),
                             (model.image_encoder.pooler(static, before), model.encode_pairs(images, earlier))):
        fused = torch.cat([static, change], dim=1)
        torch.testing.assert_close(features.cls, fused.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)
        hidden = torch.einsum("ed,bdhw->behw", state["projector.model.0.weight"][:, :, 0, 0], fused)
        mean, variance, scale, shift = (state[f"projector.model.1.{kind}"][:, None, None] for kind in (
            "running_mean", "running_var", "weight", "bias"))
        hidden = ((hidden - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)
        projected = (torch.einsum("fe,behw->bfhw", state["projector.model.3.weight"][:, :, 0, 0], hidden)
                     + state["projector.model.3.bias"][:, None, None])
        whole = projected.mean(dim=(2, 3))
        torch.testing.assert_close(model.embed_images(features), whole / whole.norm(dim=1, keepdim=True),
                                   rtol=1e-4, atol=1e-5)
        patches = (projected / projected.norm(dim=1, keepdim=True)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(model.embed_patches(features.frontal_patches), patches, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_text_is_its_projected_class_token(source: BioViLT) -> None:
    state = text_state(source)
    bert = BertModel(BertConfig(**ARCHITECTURE), add_pooling_layer=False).eval()
    bert.load_state_dict({key.removeprefix("bert."): tensor for key, tensor in state.items()
                          if key.startswith("bert.") and "position_ids" not in key})
    ids = torch.tensor([[2, 7, 9, 3], [2, 6, 3, 0]])
    mask = (ids > 0).long()
    vector = bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    head = "cls_projection_head."
    vector = torch.nn.functional.gelu(vector @ state[f"{head}dense_to_hidden.weight"].T
                                      + state[f"{head}dense_to_hidden.bias"])
    vector = torch.nn.functional.layer_norm(vector, (EMBEDDING,), state[f"{head}LayerNorm.weight"],
                                            state[f"{head}LayerNorm.bias"], 1e-12)
    vector = vector @ state[f"{head}dense_to_output.weight"].T + state[f"{head}dense_to_output.bias"]
    features = source.encode_text(ids, mask, torch.tensor([[0, 1, 2, 3], [0, 1, 2, -1]]))
    torch.testing.assert_close(source.project_reports(features), vector, rtol=1e-4, atol=1e-5)
    unit = vector / vector.norm(dim=1, keepdim=True)
    torch.testing.assert_close(source.embed_reports(features), unit, rtol=1e-4, atol=1e-5)
    words, is_word = source.embed_words(features)
    torch.testing.assert_close(words[:, 0], unit, rtol=1e-4, atol=1e-5)
    assert is_word.tolist() == [[True], [True]]
