"""The typed config tree of one trial, its strict loader, its canonical form and the fingerprints.

What lives here: every knob of a trial with its one default; loading of YAML files and dotted
overrides; the canonical form; the trial key. What must not: anything that computes with tensors,
reads data or speaks to a tracking server.

Points in which the published program differs from the paper are switches of type `Behaviour`:
``released`` does what the published program does, ``corrected`` what the paper describes.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Behaviour = Literal["released", "corrected"]
Curriculum = Literal["joint", "staged", "ramp", "fmc_only", "rmr_only", "reversed", "length"]
Precision = Literal["float32", "bfloat16", "float16"]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys and wrong types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """What the trial reads. `root` and `store` are places: they are not part of the trial key."""

    root: str = "data/phantom/tiny"
    """Folder that holds mimic-cxr-jpg/, mimic-cxr/, ms-cxr-t/, ms-cxr/, rsna/, covidx/."""
    store: str | None = None
    """Folder of the prepared store; default: `<root>/store-<image_size>`."""
    image_size: Count = 72
    """Side in pixels of the square images in the store (longest side scaled, then zero-padded)."""
    crop_size: Count = 64
    """Side in pixels that the model sees: random crop in training, centre crop in evaluation."""
    caption_tokens: Count = 80
    """Longest caption in tokens, [CLS] and [SEP] included; 112 as published."""
    vocabulary: str | None = None
    """None: WordPiece vocabulary learned from the training reports; else a vocab.txt or a
    transformers folder or name."""
    vocabulary_size: Count = 1000
    """Largest size of a learned vocabulary; unused where `vocabulary` is given."""
    views: Literal["both", "frontal"] = "both"
    """`frontal` removes the lateral view from training and from evaluation."""
    lateral_fraction: Fraction = 1.0
    """Share of the training laterals that are kept, drawn by seed."""
    train_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training patients that are used, drawn by seed."""
    sequence_length: Annotated[int, Field(ge=2)] = 4
    """Studies in a complete sequence; shorter rests take part in the other losses as single pairs."""
    brightness_jitter: NonNegative = 0.0
    """Half width of the random gain and offset of a training image's grey values, 0 as published."""
    report_text: Behaviour = "corrected"
    """released: sentences cut at every '.', also in '2.5 cm'; lower case, ASCII words only."""
    sequences: Behaviour = "corrected"
    """released: windows of frontal images; corrected: windows of studies."""
    lateral_pairing: Behaviour = "corrected"
    """released: frontals and captions re-ordered in the batch (complete sequences first), laterals not."""
    evaluation_patients: Behaviour = "corrected"
    """released: the official split alone says who is trained on; corrected: patients of MS-CXR-T, of MS-CXR and of the
    official test split never are."""


class ImageEncoderConfig(Section):
    """Vision transformer with view experts."""

    name: str | None = None
    """timm name whose pretrained weights initialise the encoder; None: random initialisation."""
    patch_size: Count = 8
    stem: Literal["patch", "conv"] = "patch"
    """patch: one strided convolution; conv: a 4x4 stride-4 convolution, then 3x3 stride-2 ones down to `patch_size`."""
    width: Count = 64
    num_layers: Count = 3
    num_heads: Count = 4
    mlp_ratio: Positive = 4.0
    num_channels: Count = 1
    missing_lateral: Behaviour = "corrected"
    """released: an absent lateral is computed in full as mid-grey, masked only as attention key,
    and counted by the local head and the local loss; corrected: not computed, not counted."""


class ExpertsConfig(Section):
    """Mixture of View Experts: which feed-forward serves which token."""

    routing: Literal["view", "learned"] = "view"
    """view: by the image's view; learned: top-1 routing of every token by a linear gate."""
    num_experts: Count = 2
    """view routing: 1 shared, 2 frontal | lateral, 3 AP | PA | lateral, 4 AP | PA | LL | LATERAL."""
    hidden_scale: Positive = 1.0
    """Factor on the hidden width of every expert; 2 with one expert matches the parameters of two."""
    balance_weight: NonNegative = 0.01
    """Weight of the load-balance loss of learned routing."""


class TextEncoderConfig(Section):
    """BERT text encoder."""

    name: str | None = None
    """transformers name or folder with pretrained weights; None: random initialisation."""
    width: Count = 64
    num_layers: Count = 2
    num_heads: Count = 4
    hidden_width: Count = 128
    dropout: Fraction = 0.0
    positions: Behaviour = "corrected"
    """released: every token gets position 0 and no token type."""
    depth: Behaviour = "corrected"
    """released: only the first half of the chosen model's layers (6 of BERT-base's 12)."""
    word_aggregation: Behaviour = "corrected"
    """released: a caption that fills every position loses its last word and its [SEP]."""


class HeadsConfig(Section):
    """Projection heads: Linear, BatchNorm, ReLU, Linear, BatchNorm without affine, unit length."""

    hidden_width: Count = 256
    embedding_width: Count = 128
    num_prototypes: Annotated[int, Field(ge=0)] = 0
    """Cross-modal prototypes of MGCA (500 as published); 0: none, and objective.lambda_prototype must be 0."""


class ModelConfig(Section):
    image: ImageEncoderConfig = ImageEncoderConfig()
    experts: ExpertsConfig = ExpertsConfig()
    text: TextEncoderConfig = TextEncoderConfig()
    heads: HeadsConfig = HeadsConfig()
    weights: str | None = None
    """Local weights from which training starts: a model folder of medst, or a checkpoint of Med-ST, MGCA, a timm vision
    transformer or BERT (.ckpt, .pth, .bin, .safetensors). Laid over those that image.name and text.name give."""
    initialisation: Behaviour = "corrected"
    """released: pretrained weights are overwritten by the init pass (all but patch, class and
    position embeddings) and view experts start apart; corrected: weights survive, and every view
    expert starts as a copy of one feed-forward."""


class LocalConfig(Section):
    temperature: Positive = 0.1
    weighting: Literal["modality", "attention", "uniform"] = "modality"
    """modality: words and patches weighted by attention from the pooled pair; attention: as in MGCA by the encoders'
    last-layer attention from the class token, clipped at its 10th and 90th percentile; uniform: equally."""
    padding: Behaviour = "corrected"
    """released: padding words are queries, negatives and take part in pooling and BatchNorm."""
    context: Behaviour = "corrected"
    """released: only the word context is brought to unit length; corrected: both contexts."""


class TemporalConfig(Section):
    temperature: Positive = 0.1
    fmc_weight: NonNegative = 1.0
    rmr_weight: NonNegative = 1.0
    variance_weight: NonNegative = 0.001
    """Weight of the log variance in the regression term."""
    regression: Behaviour = "corrected"
    """released: variance + 1e-7 and a Huber threshold of 2 that cannot be reached."""
    variance_floor: Positive = 0.01
    """Smallest variance of the regressed time (times lie in [0, 1)); `corrected` only."""
    huber_threshold: Positive = 0.25
    """Error of the regressed time beyond which the loss is linear; `corrected` only."""


class CurriculumConfig(Section):
    kind: Curriculum = "joint"
    start_fraction: Fraction = 0.5
    """Fraction of training at which the second term (or its ramp) begins; staged, ramp, reversed."""
    ramp_fraction: Fraction = 0.25
    """Fraction of training over which the second term rises from 0 to its weight; ramp only."""


class PrototypesConfig(Section):
    """Swapped prediction of cross-modal prototypes, as in MGCA."""

    temperature: Positive = 0.2
    epsilon: Annotated[float, Field(ge=0.01)] = 0.05
    """Entropy of the Sinkhorn assignments; lower is harder."""
    sinkhorn_iterations: Count = 3
    frozen_fraction: Fraction = 0.02
    """Share of training at whose beginning the prototypes stay as they are; published: 1 of 50 epochs."""


class ObjectiveConfig(Section):
    """L = L_global + lambda_local * L_local + lambda_temporal * L_temporal + lambda_prototype * L_prototype."""

    lambda_local: NonNegative = 1.0
    """Weight of the local alignment of words and patches, λ1."""
    lambda_temporal: NonNegative = 1.0
    """Weight of the temporal losses, λ2."""
    lambda_prototype: NonNegative = 0.0
    """0.5 in MGCA, with lambda_local 0.7."""
    global_temperature: Positive = 0.07
    global_image_share: Fraction = 0.5
    """Share of the image-to-report direction in the global loss; 0.75 in ConVIRT."""
    global_negatives: Behaviour = "corrected"
    """released: pairs of one study are negatives of each other; corrected: they are not."""
    local: LocalConfig = LocalConfig()
    temporal: TemporalConfig = TemporalConfig()
    prototypes: PrototypesConfig = PrototypesConfig()
    curriculum: CurriculumConfig = CurriculumConfig()


class TrainingConfig(Section):
    epochs: NonNegative = 8.0
    """Budget: epochs x training pairs = pairs seen. May be fractional; 0 evaluates the untrained model."""
    mgca_epochs: NonNegative = 0.0
    """Epochs of MGCA, trained first, from whose weights this training then starts, as the published Med-ST did."""
    pairs_per_batch: Annotated[int, Field(ge=2)] = 32
    learning_rate: Positive = 1.0e-3
    min_learning_rate: NonNegative = 1.0e-8
    weight_decay: NonNegative = 0.05
    decay: Behaviour = "corrected"
    """released: weight decay on everything; corrected: not on biases, norms and embeddings."""
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    warmup_fraction: Fraction = 0.1
    clip_norm: NonNegative = 1.0
    """Largest gradient norm; 0: no clipping, as published."""
    precision: Precision = "float32"
    device: str = "cpu"
    """`cpu`, `cuda`; its type is part of the trial key."""
    checkpoint_epochs: Positive = 1.0
    """A checkpoint every so many epochs. Not part of the trial key."""
    world_size: Count = 1
    """Processes that share each batch of `pairs_per_batch` pairs; enters the trial key by itself."""
    small_batches: Behaviour = "corrected"
    """released: refuses batches below 5 pairs, on which the published program crashes."""
    micro_batch: Annotated[int, Field(ge=0)] = 0
    """Pairs whose encoders' activations are held at once; 0: those of the whole batch. The heads, every batch norm and
    all losses see the whole batch, so that the loss and its gradient stay those of the whole batch."""
    recompute: bool = False
    """Compute every transformer block again in the backward pass instead of keeping what is inside it."""
    pack_captions: bool = False
    """Compute nothing for the padding of captions that are shorter than the longest of their batch. Equal numbers but
    for rounding."""
    compile: bool = False
    """Fuse the operations of experts, text layers and heads by torch.compile (for accelerators)."""


class EvaluationConfig(Section):
    tasks: tuple[str, ...] = (
        "validation", "temporal_image", "sentence_similarity", "rsna_zero_shot", "covidx_linear",
        "finding_zero_shot", "retrieval", "grounding", "direction",
    )
    """Evaluators run after the last step; names of medst.evaluation.EVALUATORS."""
    validation_epochs: Positive = 1.0
    """Validation losses every so many epochs."""
    validation_scores: Literal["last", "every"] = "last"
    """every: the scores of the `validation` task with every validation loss, for searches that prune; last: after the
    last step. Not part of the trial key."""
    prompt_joining: Behaviour = "corrected"
    """released: the sentences of a prompt are joined without a space."""
    equalisation: Behaviour = "corrected"
    """released: RSNA and COVIDx images are judged as they are; corrected: with equalised histograms, as the images of
    MIMIC-CXR-JPG, on which the model was trained, have them."""
    track_embeddings: bool = False
    """Track image embeddings of the test sequences as an artifact (figures)."""
    track_attention: bool = False
    """Track attention maps with their true boxes as an artifact (figures)."""


class Config(Section):
    """Everything that defines one trial."""

    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        def refuse(condition: bool, message: str) -> None:
            if condition:
                raise ValueError(message)

        data, model, training = self.data, self.model, self.training
        refuse(data.crop_size > data.image_size,
               f"data.crop_size={data.crop_size} is larger than data.image_size={data.image_size}")
        refuse(data.crop_size % model.image.patch_size != 0,
               f"data.crop_size={data.crop_size} is not a multiple of model.image.patch_size={model.image.patch_size}")
        refuse(model.image.stem == "conv" and model.image.patch_size not in (4, 8, 16, 32, 64),
               f"model.image.patch_size={model.image.patch_size}: not a power of two from 4 to 64, as stem=conv needs")
        refuse(model.image.width % model.image.num_heads != 0,
               f"model.image.width={model.image.width} is not a multiple of num_heads={model.image.num_heads}")
        refuse(model.text.width % model.text.num_heads != 0,
               f"model.text.width={model.text.width} is not a multiple of num_heads={model.text.num_heads}")
        refuse(model.experts.routing == "view" and model.experts.num_experts > 4,
               "model.experts.num_experts above 4 needs model.experts.routing=learned: there are four views")
        refuse(self.objective.lambda_temporal > 0 and training.pairs_per_batch < data.sequence_length,
               f"temporal loss with no sequences: training.pairs_per_batch={training.pairs_per_batch} cannot hold one "
               f"sequence of data.sequence_length={data.sequence_length}; raise the former or set "
               "objective.lambda_temporal=0")
        refuse(self.objective.lambda_prototype > 0 and model.heads.num_prototypes == 0,
               f"objective.lambda_prototype={self.objective.lambda_prototype} needs prototypes; set "
               "model.heads.num_prototypes (500 as published), or objective.lambda_prototype=0")
        refuse(training.mgca_epochs > 0 and training.epochs == 0,
               f"training.mgca_epochs={training.mgca_epochs} comes before a training, and training.epochs is 0; raise "
               "the latter")
        refuse(training.pairs_per_batch % training.world_size != 0,
               f"training.pairs_per_batch={training.pairs_per_batch} cannot be shared evenly by "
               f"training.world_size={training.world_size} processes; make the former a multiple of the latter")
        refuse(training.world_size > 1 and model.image.missing_lateral == "released",
               "model.image.missing_lateral=released: whether an absent lateral is computed depends on the other pairs "
               "of the batch, which several processes do not see; set training.world_size=1")
        refuse(training.micro_batch > 0 and model.experts.routing == "learned",
               "training.micro_batch with model.experts.routing=learned: the balance loss needs all tokens of a batch "
               "at once; set training.micro_batch=0, and training.recompute=true to save memory")
        refuse(training.pack_captions and model.text.word_aggregation == "released",
               "training.pack_captions with model.text.word_aggregation=released: tokens that are cut off from words "
               "are still attended to, and packing knows the tokens of words alone; set "
               "model.text.word_aggregation=corrected")
        refuse(training.small_batches == "released" and training.pairs_per_batch < 5,
               "training.pairs_per_batch below 5 crashes the published program; set training.small_batches=corrected")
        return self


_PLACES = frozenset({
    "data.root", "data.store", "training.checkpoint_epochs", "training.device", "training.world_size",
    "evaluation.track_embeddings", "evaluation.track_attention", "evaluation.validation_scores"})
"""Keys that cannot change a trial's numbers (the device's type and the world size enter the key by themselves)."""

_LATER = frozenset({
    "training.micro_batch", "training.recompute", "training.pack_captions", "training.compile",
    "training.mgca_epochs",
    "model.heads.num_prototypes", "objective.lambda_prototype", "objective.global_image_share",
    *(f"objective.prototypes.{name}" for name in PrototypesConfig.model_fields)})
"""Keys that came after the first trials and at their default change nothing: there they are left out of the canonical
form, so that those trials stand."""


class ConfigError(ValueError):
    """A config that is refused; the message lists every problem with its path and remedy."""


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def add(branch: dict[str, Any], prefix: str) -> None:
        for key, value in branch.items():
            # Plain dicts only, for this is done for every trial of a study.
            if isinstance(value, dict):
                add(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    add(tree, "")
    return flat


@cache
def known_keys() -> tuple[str, ...]:
    """Every dotted leaf key of the tree, in declaration order."""
    return tuple(_flatten(Config().model_dump(mode="json")))


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, also when only the last part of a dotted name is right."""
    candidates = list(candidates)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if close:
        return close[0]
    tails = {candidate.rsplit(".", 1)[-1]: candidate for candidate in candidates}
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1, cutoff=0.6)
    return tails[close[0]] if close else None


def _explain(error: ValidationError, source: str) -> ConfigError:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            guess = nearest(path, known_keys())
            hint = f"; the nearest key is '{guess}'" if guess else "; `medst config` lists the keys"
            lines.append(f"{source}: unknown key '{path}'{hint}")
        else:
            value = problem.get("input")
            shown = "" if isinstance(value, Mapping) else f" (got {value!r}, a {type(value).__name__})"
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{source}: {path + ': ' if path else ''}{message}{shown}")
    return ConfigError("\n".join(lines))


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"'{path}': '{parent}' is a value, not a section")
        node[leaf] = value
    return tree


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but `3e-4` is a number: YAML 1.1 asks for a point, which nobody writes."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
                              list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """What a YAML text of a user says, in plain Python types.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [str(other) for other in path.parent.glob("*.yaml")]
        guess = nearest(str(path), siblings)
        raise ConfigError(f"{path}: no such file" + (f"; did you mean {guess}?" if guess else "")) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a mapping of sections is expected, not a {type(tree).__name__}")
    return tree


def build(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a nested mapping. Raises ConfigError naming each unknown key and wrong type."""
    try:
        # Strict JSON mode: lists serve as tuples, and nothing else is converted.
        return Config.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise _explain(error, source) from None
    except TypeError as error:
        raise ConfigError(f"{source}: {error}") from None


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `key=value` texts into a flat mapping; values are read as YAML."""
    flat: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected key=value")
        flat[key.strip()] = parse_yaml(text)
    return flat


def load_config(*paths: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Load YAML files, later ones over earlier ones, then dotted overrides, through one strict check.

    Raises:
        ConfigError: unknown key (with the nearest valid name), wrong type, impossible combination.
    """
    flat: dict[str, Any] = {}
    for path in paths:
        layer = _flatten(_read_yaml(Path(path)))
        build_partial(layer, source=str(path))
        flat.update(layer)
    if overrides:
        build_partial(overrides, source="override")
        flat.update(overrides)
    return build(_nest(flat), source=", ".join(str(path) for path in paths) or "config")


def build_partial(flat: Mapping[str, Any], source: str) -> None:
    """Refuse unknown keys and wrong types of some dotted settings before they meet the others."""
    known = set(known_keys())
    problems = []
    for key, value in flat.items():
        if key not in known:
            guess = nearest(key, known_keys())
            problems.append(f"{source}: unknown key '{key}'" + (f"; the nearest key is '{guess}'" if guess else ""))
            continue
        try:
            Config.model_validate_json(json.dumps(_nest({key: value})), strict=True)
        except ValidationError as error:
            # Whole-config rules have an empty location: they are judged once everything is merged.
            if any(problem["loc"] for problem in error.errors()):
                problems.append(str(_explain(error, source)))
        except TypeError as error:
            problems.append(f"{source}: {key}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))


def override(config: Config, flat: Mapping[str, Any], source: str = "override") -> Config:
    """A copy of `config` with dotted keys replaced, strictly checked."""
    build_partial(flat, source)
    return build(_nest({**flatten(config), **flat}), source)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> plain value (JSON types), in declaration order."""
    return _flatten(config.model_dump(mode="json"))


_FILES = ("data.vocabulary", "model.image.name", "model.text.name", "model.weights")
"""Keys that may name a local file or folder, whose content then decides, not its place."""


@cache
def _defaults() -> dict[str, Any]:
    return flatten(Config())


def canonical(config: Config) -> str:
    """JSON of all that can change the numbers: sorted keys, no places, the device's type only, no later key at its
    default."""
    defaults = _defaults()
    flat = {key: value for key, value in flatten(config).items()
            if key not in _PLACES and not (key in _LATER and value == defaults[key])}
    for key in _FILES:
        path = None if flat[key] is None else Path(flat[key].removeprefix("local-dir:"))
        if path is not None and path.exists():
            flat[key] = f"content {content_fingerprint(path)}"
    flat["training.device_type"] = config.training.device.split(":")[0]
    return json.dumps(flat, sort_keys=True, separators=(",", ":"))


def fingerprint(text: str | bytes) -> str:
    """First 16 hexadecimal digits of the SHA-256."""
    data = text.encode() if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()[:16]


def content_fingerprint(path: Path) -> str:
    """Fingerprint of a file, or of all files directly in a folder with their names."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    names = [file.name if path.is_dir() else "" for file in files]
    states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    hashes = (f"{name} {_hash_unchanged(*state)}" for name, state in zip(names, states, strict=True))
    return fingerprint("\n".join(hashes))


@cache
def _hash_unchanged(path: str, size: int, modified: int) -> str:
    """Hash of a file that is read once as long as its size and time stand."""
    return hash_file(path)


_NUMERIC_ROOMS = ("data", "model", "objectives", "training", "evaluation")


class _WithoutDocstrings(ast.NodeTransformer):
    def _strip(self, node: Any) -> Any:
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _strip


def syntax_fingerprint(paths: Iterable[Path]) -> str:
    """Fingerprint of the syntax trees of modules of this package, without comments and docstrings."""
    root = Path(__file__).parent
    dumps = []
    for path in paths:
        tree = _WithoutDocstrings().visit(ast.parse(path.read_text(encoding="utf-8")))
        dumps.append(f"{path.relative_to(root).as_posix()}\n{ast.dump(tree)}")
    return fingerprint("\n".join(dumps))


@cache
def source_fingerprint() -> str:
    """Fingerprint of the computing modules' syntax trees, without comments and docstrings.

    The phantom is left out: what it wrote is in the data fingerprint.
    """
    root = Path(__file__).parent
    paths = [path for room in _NUMERIC_ROOMS for path in sorted((root / room).rglob("*.py"))
             if "phantom" not in path.parts]
    return syntax_fingerprint([*paths, root / "trial.py"])


def trial_key(config: Config, data_fingerprint: str, torch_version: str) -> str:
    """Hash of everything that can change the trial's numbers (32 hexadecimal digits)."""
    world_size = str(config.training.world_size)
    parts = [canonical(config), data_fingerprint, torch_version, world_size, source_fingerprint()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def stream_seed(seed: int, name: str) -> int:
    """Seed of the named random stream of a trial, in [0, 2**63): equal in all arms of a study."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal digits, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
