"""Study files: a question, written as factors, arms and seeds, and their strict loader.

What lives here: the schema of `sweeps/*.yaml`, the naming of arms, and their resolution to configs. What
must not: anything about data, stores of results, or how trials are run.

Three sections make arms, in this order; at least one must be there:

    arms            named assignments of dotted config keys
    one_at_a_time   factors; each of their levels alone is changed from the reference
    grid            factors; every combination of their levels
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medst.config import (
    Config,
    ConfigError,
    build_partial,
    canonical,
    load_config,
    nearest,
    override,
)

Scalar = bool | int | float | str | list[str] | None
Settings = dict[str, Scalar]


class StudyError(ValueError):
    """A study file that is refused; the message lists every problem with line and remedy."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Factor(_Section):
    """A dotted config key and its levels."""

    levels: Annotated[tuple[Scalar, ...], Field(min_length=1)]
    label: str | None = None
    """Name in the arms' names; the last part of the key if not given."""


class Expectation(_Section):
    """Registered before any result: what an arm should do to its primary metric against the reference."""

    arm: str
    metric: str
    direction: Literal["lower", "higher", "equal"]


class StudyFile(_Section):
    """The schema of a study file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]
    question: str
    base: Annotated[tuple[str, ...], Field(min_length=1)]
    """Experiment files, later ones over earlier ones; relative to the project."""
    reference: str
    """Name of the arm against which all others are compared."""
    primary_metric: str
    secondary_metrics: tuple[str, ...] = ()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    settings: Settings = {}
    """Overrides of the base that hold for all arms."""
    flagged_arms: tuple[str, ...] = ()
    """Arms whose first seed also tracks embeddings, attention maps and the model; default: the reference."""
    seconds_per_trial: Annotated[float, Field(gt=0)] = 60.0
    """First guess, until trials have been measured."""
    arms: dict[str, Settings] = {}
    one_at_a_time: dict[str, Factor] = {}
    grid: dict[str, Factor] = {}
    expectations: tuple[Expectation, ...] = ()


@dataclass(frozen=True)
class Arm:
    """One assignment of all factors, with a human name."""

    name: str
    settings: Mapping[str, Any]
    """Dotted keys that differ from the study's base, without the study's common settings."""
    config: Config
    """Resolved; its seed is that of the base."""


@dataclass(frozen=True)
class Study:
    """A loaded study: its file's content and its arms, resolved and checked."""

    file: StudyFile
    arms: tuple[Arm, ...]
    base: tuple[str, ...]
    """Experiment files under all arms: the study's own, or those that stood in for them."""
    settings: Mapping[str, Any]
    """Dotted overrides of the base that hold for all arms: the study's own, and those of the command line."""

    @property
    def name(self) -> str:
        return self.file.name

    @cached_property
    def reference(self) -> Arm:
        return next(arm for arm in self.arms if arm.name == self.file.reference)


def find_study(name_or_path: str | Path, project: Path | None = None) -> Path:
    """Path of a study by its file or by its name: `sweeps/<name>.yaml` of the project, else of this package.

    Raises:
        StudyError: there is none; names the nearest one.
    """
    project = project or Path.cwd()
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if (project / path).is_file():
            return project / path
        raise StudyError(f"study {path}: no such file")
    folders = [project / "sweeps", Path(__file__).parent]
    for folder in folders:
        if (folder / f"{name_or_path}.yaml").is_file():
            return folder / f"{name_or_path}.yaml"
    names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    guess = nearest(str(name_or_path), names)
    raise StudyError(f"study '{name_or_path}': not found; " + (f"did you mean '{guess}'? " if guess else "")
                     + f"There are: {', '.join(names)}")


def load_study(path: Path, *, overrides: Mapping[str, Any] | None = None, base: Sequence[Path] = (),
               project: Path | None = None) -> Study:
    """Read a study file and resolve its arms.

    Args:
        overrides: dotted settings over those of all arms, from the command line.
        base: experiment files instead of the study's own.
        project: folder that relative paths of experiment files start from; default: the current folder.

    Raises:
        StudyError: with all problems of the file at once, each with its line and the nearest valid name.
        ConfigError: an override or a base file that is refused.
    """
    project = project or Path.cwd()
    document = _Document(path)
    file = document.validate()
    common = dict(overrides or {})
    if "seed" in common:
        raise ConfigError("override: 'seed' is set by the study's seeds; change them in the study file")
    build_partial(common, source="override")
    used_base = tuple(str(path) for path in base) or file.base
    base_config = load_config(*(project / path for path in used_base))

    problems: list[str] = []
    _check_settings(file.settings, ("settings",), document, problems)
    for name, settings in file.arms.items():
        _check_settings(settings, ("arms", name), document, problems)
    for section in ("one_at_a_time", "grid"):
        for key, factor in getattr(file, section).items():
            for index, level in enumerate(factor.levels):
                _check_settings({key: level}, (section, key), document, problems,
                                where=(section, key, "levels", str(index)))
    assignments: dict[str, Settings] = {}
    if not problems:
        assignments = _assignments(file, document, problems)
    if not problems:
        problems += _check_arm_names(file, assignments, document)
    if problems:
        raise StudyError("\n".join(problems))

    arms: list[Arm] = []
    seen: dict[str, str] = {}
    for name, settings in assignments.items():
        try:
            config = override(base_config, {**file.settings, **settings, **common}, source=f"arm '{name}'")
        except ConfigError as error:
            problems.extend(document.at(("arms", name), line) for line in str(error).splitlines())
            continue
        same = seen.setdefault(canonical(config), name)
        if same != name:
            problems.append(document.at(("arms", name), f"arms '{same}' and '{name}' are the same trial: "
                                        "a setting of one of them changes nothing"))
        arms.append(Arm(name, settings, config))
    if problems:
        raise StudyError("\n".join(problems))
    return Study(file, tuple(arms), used_base, {**file.settings, **common})


def _check_arm_names(file: StudyFile, assignments: Mapping[str, Settings], document: _Document) -> list[str]:
    named: list[tuple[tuple[str, ...], str]] = [(("reference",), file.reference)]
    named += [(("flagged_arms", str(index)), arm) for index, arm in enumerate(file.flagged_arms)]
    named += [(("expectations", str(index)), expected.arm) for index, expected in enumerate(file.expectations)]
    problems = []
    for path, name in named:
        if name not in assignments:
            guess = nearest(name, assignments)
            problems.append(document.at(path, f"{path[0]}: '{name}' is not an arm; " + (
                f"the nearest is '{guess}'" if guess else f"there are {', '.join(assignments)}")))
    return problems


def _assignments(file: StudyFile, document: _Document, problems: list[str]) -> dict[str, Settings]:
    """Arm name -> assignment, in the order of the file; equal assignments are one arm."""
    found: dict[str, Settings] = dict(file.arms)
    reference = file.arms.get(file.reference, {})

    def add(name: str, settings: Settings) -> None:
        if settings in found.values():
            return
        if name in found:
            problems.append(document.at(("arms", name), f"two arms are named '{name}'"))
        found[name] = settings

    for key, factor in file.one_at_a_time.items():
        for level in factor.levels:
            add(_level_name(key, factor, level), {**reference, key: level})
    if file.grid:
        keys = list(file.grid)
        for levels in itertools.product(*(file.grid[key].levels for key in keys)):
            add(", ".join(_level_name(key, file.grid[key], level) for key, level in zip(keys, levels, strict=True)),
                {**reference, **dict(zip(keys, levels, strict=True))})
    if not found:
        problems.append(document.at((), "no arms: at least one of arms, one_at_a_time and grid is needed"))
    return found


def _level_name(key: str, factor: Factor, level: Scalar) -> str:
    text = level if isinstance(level, str) else json.dumps(level)
    return f"{factor.label or key.rsplit('.', 1)[-1]} = {text}"


def _check_settings(settings: Settings, path: tuple[str, ...], document: _Document, problems: list[str],
                    where: tuple[str, ...] | None = None) -> None:
    for key, value in settings.items():
        if key == "seed":
            problems.append(document.at((*path, key), "'seed' is no factor: replicates are listed under `seeds`"))
            continue
        try:
            build_partial({key: value}, source=".".join(path[:1]))
        except ConfigError as error:
            problems.extend(document.at(where or (*path, key), line) for line in str(error).splitlines())


class _Document:
    """A YAML file with the line of every entry, so that problems can be pointed at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[tuple[str, ...], int] = {}
        self._problems: list[str] = []
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            self._content = yaml.safe_load(text)
        except OSError as error:
            raise StudyError(f"{path}: cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise StudyError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(self._content, dict):
            raise StudyError(f"{path}: a mapping with name, question, base, ... is expected")
        self._note(root, ())

    def _note(self, node: yaml.Node | None, path: tuple[str, ...]) -> None:
        """Remember the lines of a node's entries; find keys that stand twice, of which YAML keeps the last."""
        for key, line, child in _children(node):
            here = (*path, key)
            if here in self._lines:
                self._problems.append(f"{self.path}:{line}: '{key}' stands twice, first in line {self._lines[here]}")
            self._lines[here] = line
            self._note(child, here)

    def at(self, path: tuple[str, ...], problem: str) -> str:
        """`problem` with the file and the line of the deepest entry of `path` that the file has."""
        while path and path not in self._lines:
            path = path[:-1]
        line = f":{self._lines[path]}" if path else ""
        return f"{self.path}{line}: {problem}"

    def validate(self) -> StudyFile:
        problems = list(self._problems)
        try:
            file = StudyFile.model_validate_json(json.dumps(self._content, default=str))
        except ValidationError as error:
            problems += self._explain(error)
        if problems:
            raise StudyError("\n".join(problems))
        return file

    def _explain(self, error: ValidationError) -> list[str]:
        explained: dict[str, None] = {}
        for problem in error.errors():
            path = tuple(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                section = Factor if len(path) == 3 else Expectation if path[0] == "expectations" else StudyFile
                guess = nearest(path[-1], section.model_fields)
                message = f"unknown key '{path[-1]}'" + (f"; the nearest is '{guess}'" if guess else "")
            elif problem["type"] == "missing":
                message = f"'{path[-1]}' is missing"
            elif path[0] in ("settings", "arms", "one_at_a_time", "grid") and len(path) > 3:
                # One complaint for each member of the union of allowed values: one is enough.
                path = path[:-1] if path[0] != "settings" else path[:2]
                message = f"'{path[-1]}': a plain value or a list of texts is expected"
            else:
                message = f"{'.'.join(path)}: {problem['msg']} (got {problem['input']!r})"
            explained[self.at(path, message)] = None
        return list(explained)


def _children(node: yaml.Node | None) -> Iterator[tuple[str, int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), value.start_mark.line + 1, value


def plan_document(study: Study, trials: Sequence[Mapping[str, Any]], data_name: str) -> dict[str, Any]:
    """The study as it is tracked: enough to make every table of it without the file."""
    file = study.file
    return {
        "name": file.name, "question": file.question, "base": list(study.base), "data": data_name,
        "reference": file.reference, "primary_metric": file.primary_metric,
        "secondary_metrics": list(file.secondary_metrics), "seeds": list(file.seeds),
        # The data root is a place on one machine; the name of the data stands above.
        "settings": {key: value for key, value in study.settings.items() if key not in ("data.root", "data.store")},
        "arms": [{"name": arm.name, "settings": dict(arm.settings)} for arm in study.arms],
        "expectations": [expectation.model_dump() for expectation in file.expectations],
        "trials": list(trials),
    }


def describe_study(study: Study) -> str:
    """The description of the study's run, in Markdown."""
    file = study.file
    lines = [f"## {file.name}", "", file.question.strip(), "",
             f"**Arms** ({len(study.arms)}), compared in pairs by seed against the reference **{file.reference}**:", ""]
    for arm in study.arms:
        settings = ", ".join(f"`{key}={json.dumps(value)}`" for key, value in arm.settings.items())
        lines.append(f"- {arm.name}: {settings or 'as the base'}")
    lines += ["", f"**Seeds** {', '.join(str(seed) for seed in file.seeds)}; **base** "
              + ", ".join(f"`{entry}`" for entry in study.base), "",
              f"**Primary metric** `{file.primary_metric}`"]
    if file.secondary_metrics:
        lines += ["", "**Secondary metrics** " + ", ".join(f"`{metric}`" for metric in file.secondary_metrics)]
    lines += ["", f"**How to read it.** Tables and figures are under Artifacts, `results/tables/{file.name}.md` first; "
              "`plan.json` is the whole plan. Every trial is a run of this experiment with the tag "
              f"`study.{file.name}` = its arm. To list them all, filter with ``tags.`study.{file.name}` LIKE '%'``; "
              "add that tag and `medst.seed`, the replicate, as columns to sort by, or group by the tag. A trial that "
              "serves several studies is computed once, and stands below the study that first needed it."]
    return "\n".join(lines)

