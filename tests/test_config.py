"""The config tree: strictness, nearest names, canonical form, fingerprints; the records."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medst import config as config_module
from medst import records
from medst.config import (
    Config,
    ConfigError,
    Section,
    build,
    canonical,
    fingerprint,
    flatten,
    hash_file,
    known_keys,
    load_config,
    nearest,
    override,
    parse_overrides,
    source_fingerprint,
    stream_seed,
    trial_key,
)

PLACES = {
    "data.root": "elsewhere",
    "data.store": "another/store",
    "training.checkpoint_epochs": 0.5,
    "evaluation.track_embeddings": True,
    "evaluation.track_attention": True,
    "evaluation.validation_scores": "every",
}
"""Settings that cannot change a trial's numbers, each with a value that is not the default."""
LATER = {
    "training.micro_batch": 3,
    "training.recompute": True,
    "training.pack_captions": True,
    "training.compile": True,
    "training.mgca_epochs": 1.0,
    "model.heads.num_prototypes": 8,
    "objective.lambda_prototype": 0.5,
    "objective.global_image_share": 0.75,
    "objective.prototypes.temperature": 0.3,
    "objective.prototypes.epsilon": 0.1,
    "objective.prototypes.sinkhorn_iterations": 4,
    "objective.prototypes.frozen_fraction": 0.1,
}
"""Settings that are in the canonical form only where they are not at their default."""


def leaves(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields, read from the classes rather than from a dump."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def another_value(value: Any) -> Any:
    """A valid value other than `value` for most fields (switches are handled apart)."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 if value else 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    return None


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


# ---- The tree ----------------------------------------------------------------------------------------------------


def test_known_keys_are_the_leaves_of_the_tree() -> None:
    assert list(known_keys()) == list(leaves(Config))
    assert len(known_keys()) >= 70


def test_every_section_is_frozen_and_strict() -> None:
    def sections(section: type[Section]) -> Iterator[type[Section]]:
        yield section
        for field in section.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                yield from sections(field.annotation)

    found = list(sections(Config))
    assert len(found) >= 12
    for section in found:
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["strict"] and section.model_config["frozen"]
    with pytest.raises(ValidationError):
        Config().seed = 1  # type: ignore[misc]


def test_no_section_is_untyped() -> None:
    for key in known_keys():
        section: Any = Config
        *parents, leaf = key.split(".")
        for parent in parents:
            section = section.model_fields[parent].annotation
        assert section.model_fields[leaf].annotation is not Any, key


def test_every_default_is_valid_when_given_explicitly() -> None:
    assert build({}) == Config()
    assert override(Config(), flatten(Config())) == Config()


# ---- Loading -----------------------------------------------------------------------------------------------------


def test_later_files_win_and_overrides_win_over_files(write: Any) -> None:
    first = write("first.yaml", "seed: 1\nobjective:\n  lambda_local: 0.5\n  lambda_temporal: 0.25\n")
    second = write("second.yaml", "objective:\n  lambda_temporal: 2.0\n")
    config = load_config(first, second, overrides={"objective.local.temperature": 0.2})
    assert config.seed == 1
    assert config.objective.lambda_local == 0.5
    assert config.objective.lambda_temporal == 2.0
    assert config.objective.local.temperature == 0.2
    assert config.training == Config().training


def test_an_empty_file_is_the_default(write: Any) -> None:
    assert load_config(write("empty.yaml", "# nothing\n")) == Config()


def test_yaml_and_command_line_agree(write: Any) -> None:
    path = write("a.yaml", "objective:\n  curriculum:\n    kind: staged\ntraining:\n  learning_rate: 3.0e-5\n")
    texts = ["objective.curriculum.kind=staged", "training.learning_rate=3.0e-5"]
    assert load_config(path) == load_config(overrides=parse_overrides(texts))


def test_lists_serve_as_tuples() -> None:
    config = load_config(overrides=parse_overrides(["evaluation.tasks=[validation, retrieval]"]))
    assert config.evaluation.tasks == ("validation", "retrieval")


def test_an_assignment_may_hold_equals_signs() -> None:
    assert parse_overrides(["data.root=a=b", "data.store=null"]) == {"data.root": "a=b", "data.store": None}
    assert parse_overrides(["training.learning_rate=3e-4", "seed=12"]) == {"training.learning_rate": 3e-4, "seed": 12}
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_overrides(["data.root"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("objective:\n  lamda_local: 1.0\n", ["objective.lamda_local", "objective.lambda_local"]),
        ("lambda_temporal: 1.0\n", ["lambda_temporal", "objective.lambda_temporal"]),
        ("model:\n  expert:\n    num_experts: 3\n", ["model.expert.num_experts", "model.experts.num_experts"]),
        ("training:\n  learning_rate: fast\n", ["training.learning_rate", "fast"]),
        ("model:\n  image:\n    num_layers: 2.0\n", ["model.image.num_layers", "2.0"]),
        ("model:\n  image:\n    num_layers: true\n", ["model.image.num_layers", "True"]),
        ("evaluation:\n  track_attention: 1\n", ["evaluation.track_attention"]),
        ("training:\n  learning_rate: .nan\n", ["training.learning_rate"]),
        ("training:\n  learning_rate: .inf\n", ["training.learning_rate"]),
        ("objective:\n  curriculum:\n    kind: stagged\n", ["objective.curriculum.kind", "staged"]),
        ("objective:\n  lambda_local: -1.0\n", ["objective.lambda_local"]),
        ("objective: 3\n", ["objective"]),
        ("- seed\n", ["mapping"]),
        ("seed: [\n", ["YAML"]),
    ],
)
def test_a_wrong_file_is_refused_by_name(write: Any, text: str, parts: list[str]) -> None:
    path = write("wrong.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert all(part in str(caught.value) for part in [str(path), *parts]), caught.value


def test_all_problems_are_told_at_once(write: Any) -> None:
    path = write("wrong.yaml", "sed: 1\ntraining:\n  epoch: 2.0\n  clip_norm: -1.0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "'seed'" in lines[0] and "'training.epochs'" in lines[1] and "training.clip_norm" in lines[2]


def test_a_missing_file_names_its_neighbour(write: Any) -> None:
    path = write("phantom_tiny.yaml", "seed: 1\n")
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*phantom_tiny\.yaml\?"):
        load_config(path.with_name("phantom_tniy.yaml"))


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ({"training.pairs_per_batch": 2}, "objective.lambda_temporal=0"),
        ({"training.pairs_per_batch": 1}, "training.pairs_per_batch"),
        ({"data.crop_size": 80}, "data.image_size"),
        ({"data.crop_size": 60}, "patch_size"),
        ({"model.image.stem": "conv", "model.image.patch_size": 16, "data.crop_size": 64, "model.image.num_heads": 5},
         "num_heads"),
        ({"model.image.stem": "conv", "model.image.patch_size": 12, "data.crop_size": 60}, "power of two"),
        ({"model.text.num_heads": 5}, "model.text.width"),
        ({"model.experts.num_experts": 5}, "routing=learned"),
        ({"training.small_batches": "released", "training.pairs_per_batch": 4}, "small_batches=corrected"),
        ({"data.sequence_length": 1}, "data.sequence_length"),
        ({"training.micro_batch": 4, "model.experts.routing": "learned"}, "training.recompute=true"),
    ],
)
def test_impossible_combinations_are_refused_with_a_remedy(overrides: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides)
    assert remedy in str(caught.value)


def test_combinations_are_judged_when_everything_is_merged(write: Any) -> None:
    path = write("a.yaml", "training:\n  pairs_per_batch: 3\n")
    assert load_config(path, overrides={"objective.lambda_temporal": 0.0}).training.pairs_per_batch == 3


@given(st.sampled_from(known_keys()), st.data())
def test_a_misspelt_key_is_answered_with_the_one_meant(key: str, data: st.DataObject) -> None:
    *parents, leaf = key.split(".")
    position = data.draw(st.integers(0, len(leaf) - 1))
    letter = data.draw(st.sampled_from("qxz"))
    wrong = ".".join([*parents, leaf[:position] + letter + leaf[position:]])
    with pytest.raises(ConfigError) as caught:
        override(Config(), {wrong: 1})
    assert f"unknown key '{wrong}'" in str(caught.value)
    assert nearest(wrong, known_keys()) in known_keys()


def test_nearest_knows_when_nothing_is_near() -> None:
    assert nearest("zzzzzzzz", known_keys()) is None
    assert nearest("num_expert", known_keys()) == "model.experts.num_experts"


def test_every_shipped_experiment_loads(repository: Path) -> None:
    paths = sorted((repository / "experiments").glob("*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        load_config(path)
        assert path.read_text().startswith("# Question: "), f"{path.name}: the header says what it is for"


# ---- Canonical form and keys -------------------------------------------------------------------------------------


def test_canonical_is_sorted_json_without_places() -> None:
    tree = json.loads(canonical(Config()))
    assert list(tree) == sorted(tree)
    by_themselves = {"training.device", "training.world_size"}
    assert set(tree) == set(known_keys()) - set(PLACES) - set(LATER) - by_themselves | {"training.device_type"}


def test_canonical_holds_later_settings_only_where_they_were_changed() -> None:
    # A weight of prototypes is refused without prototypes.
    reference = override(Config(), {"model.heads.num_prototypes": 5})
    for key, value in LATER.items():
        changed = json.loads(canonical(override(reference, {key: value})))
        assert changed == {**json.loads(canonical(reference)), key: value}
    added = set(json.loads(canonical(reference))) - set(json.loads(canonical(Config())))
    assert added == {"model.heads.num_prototypes"}


def test_canonical_ignores_places_and_the_device_number() -> None:
    for key, value in PLACES.items():
        assert canonical(override(Config(), {key: value})) == canonical(Config()), key
    first = override(Config(), {"training.device": "cuda:0"})
    assert canonical(first) == canonical(override(Config(), {"training.device": "cuda:3"})) != canonical(Config())


def test_canonical_does_not_depend_on_how_the_config_was_written(write: Any) -> None:
    one = write("one.yaml", "seed: 3\ntraining: {epochs: 2.0, learning_rate: 1.0e-4}\n")
    two = write("two.yaml", "training: {learning_rate: 0.0001, epochs: 2.0, weight_decay: 0.05}\nseed: 3\n")
    assert canonical(load_config(one)) == canonical(load_config(two))


def test_whole_numbers_and_decimals_are_one_value(write: Any) -> None:
    """A `2` where a decimal is wanted is the same budget as `2.0`, and has the same key."""
    whole = load_config(write("whole.yaml", "training: {epochs: 2}\n"))
    assert canonical(whole) == canonical(load_config(write("decimal.yaml", "training: {epochs: 2.0}\n")))


def test_every_other_knob_is_in_the_trial_key() -> None:
    base = flatten(Config())
    keys = {trial_key_of(Config())}
    tried = 0
    for key, value in base.items():
        if key in PLACES or key in ("training.device", "training.world_size"):
            continue
        changed = another_value(value)
        for candidate in (changed, *switch_values(key)):
            if candidate is None or candidate == value:
                continue
            try:
                config = override(Config(), {key: candidate})
            except ConfigError:
                continue
            tried += 1
            keys.add(trial_key_of(config))
            break
    assert tried >= 60
    assert len(keys) == tried + 1, "two settings share a key"


def switch_values(key: str) -> tuple[Any, ...]:
    """The values of a Literal field, or a name for a text field."""
    section: Any = Config
    *parents, leaf = key.split(".")
    for parent in parents:
        section = section.model_fields[parent].annotation
    arguments = get_args(section.model_fields[leaf].annotation)
    texts = tuple(value for value in arguments if isinstance(value, str))
    return texts or (("some/name",) if str in arguments else ())


def trial_key_of(config: Config) -> str:
    return hashlib.sha256(canonical(config).encode()).hexdigest()


def test_the_trial_key_holds_all_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "source_fingerprint", lambda: "code")
    base = trial_key(Config(), "data", "2.0")
    assert len(base) == 32 and int(base, 16) >= 0
    others = [
        trial_key(override(Config(), {"seed": 1}), "data", "2.0"),
        trial_key(Config(), "other", "2.0"),
        trial_key(Config(), "data", "2.1"),
        trial_key(override(Config(), {"training.world_size": 2}), "data", "2.0"),
    ]
    monkeypatch.setattr(config_module, "source_fingerprint", lambda: "other code")
    others.append(trial_key(Config(), "data", "2.0"))
    assert len({base, *others}) == 6


# ---- Fingerprints ------------------------------------------------------------------------------------------------


def test_fingerprint_is_the_head_of_the_sha256() -> None:
    # The published digest of the empty message.
    assert fingerprint("") == fingerprint(b"") == "e3b0c44298fc1c14"
    assert fingerprint("λ") == hashlib.sha256("λ".encode()).hexdigest()[:16]


def test_hash_file_is_the_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    # The published digest of "abc" (FIPS 180-2).
    assert hash_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def fingerprint_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fingerprint of a package whose only modules are the ones given."""

    def compute(sources: Mapping[str, str]) -> str:
        root = tmp_path / "package"
        for name, text in {"trial.py": "", **sources}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(config_module, "__file__", str(root / "config.py"))
        return source_fingerprint.__wrapped__()

    return compute


def test_the_source_fingerprint_sees_code_only(fingerprint_of: Any) -> None:
    base = fingerprint_of({"model/a.py": "def f(x):\n    return x + 1\n"})
    words = '"""New words."""\n\n\ndef f(x):  # why\n    """More."""\n    return (x + 1)\n'
    assert fingerprint_of({"model/a.py": words}) == base
    assert fingerprint_of({"model/a.py": "def f(x):\n    return x + 2\n"}) != base


def test_the_source_fingerprint_sees_every_computing_room_and_no_other(fingerprint_of: Any) -> None:
    base = fingerprint_of({"model/a.py": "x = 1"})
    assert fingerprint_of({"tracking/a.py": "x = 1", "cli/a.py": "x = 1", "data/phantom/a.py": "x = 1"}) == base
    seen = {base}
    for room in ("data", "model", "objectives", "training", "evaluation"):
        seen.add(fingerprint_of({f"{room}/deep/er.py": "x = 1"}))
    seen.add(fingerprint_of({"trial.py": "x = 1"}))
    assert len(seen) == 7


def test_streams_differ_by_seed_and_by_name() -> None:
    seeds = {stream_seed(seed, name) for seed in range(20) for name in ("init.image", "init.text", "order")}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_keys_and_streams_are_equal_in_another_process(repository: Path) -> None:
    code = (
        "from medst.config import Config, canonical, stream_seed; import hashlib; "
        "print(hashlib.sha256(canonical(Config()).encode()).hexdigest(), stream_seed(7, 'order'))"
    )
    environment = {"PYTHONHASHSEED": "12345", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [trial_key_of(Config()), str(stream_seed(7, "order"))]


# ---- Records -----------------------------------------------------------------------------------------------------


def test_records_are_frozen() -> None:
    kinds = get_args(records.Record)
    assert len(kinds) == 7
    metrics = records.Metrics(3, {"train/loss": 1.0})
    with pytest.raises(FrozenInstanceError):
        metrics.step = 4  # type: ignore[misc]


def test_arrays_of_patients_are_private_unless_said_otherwise() -> None:
    assert records.Arrays("embeddings", {}).is_private
