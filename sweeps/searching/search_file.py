"""Search files: a question, a space of settings and how it is searched; and their strict loader.

What lives here: the schema of `sweeps/searches/*.yaml`, which metrics may be an objective, and all checks of a file
before anything runs. What must not: the sampler, stores, how trials are run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from medst.config import Config, ConfigError, build_partial, flatten, load_config, nearest, override, parse_yaml
from sweeps.files import find_file
from sweeps.searching.space import Choice, Parameter, Space, Values
from sweeps.study_errors import Document
from sweeps.study_file import Resources, Section, Settings

FINDINGS = ("consolidation", "edema", "pleural_effusion", "pneumonia", "pneumothorax")
SCORES = (
    "validation/finding_zero_shot/mean/auroc",
    *(f"validation/finding_zero_shot/{finding}/auroc" for finding in FINDINGS),
    "validation/retrieval/r1", "validation/retrieval/r5", "validation/retrieval/r10",
    "validation/direction/reports/accuracy", "validation/change/mean/auroc", "validation/acc1", "validation/acc5",
)
"""Scores of validation patients, in [0, 1]: they are maximised."""
LOSSES = tuple(f"validation/{term}" for term in (
    "loss", "global", "local", "local_word", "local_patch", "temporal", "fmc", "fmc_i2t", "fmc_t2i", "rmr", "rmr_i2t",
    "rmr_t2i"))
"""Losses of validation patients: they are minimised."""
TASK = "validation"
"""The one evaluator that the trials of a search run: test patients are not looked at."""

_IN_BATCH = ("validation/acc1", "validation/acc5")
"""Scores against the other pairs of a batch."""
_CHANGES_LOSSES = ("objective.", "training.pairs_per_batch", "data.sequence_length")
_CHANGES_BATCHES = ("training.pairs_per_batch",)
_FORCED = ("seed", "evaluation.tasks", "evaluation.validation_scores")


class ParameterEntry(Section):
    """What one setting may be."""

    choices: tuple[Choice, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    """Drawn evenly in the logarithm."""
    step: Annotated[float, Field(gt=0)] | None = None
    levels: tuple[float, ...] = ()
    """What of a range the `grid` sampler takes."""
    when: dict[str, Choice | list[Choice]] = Field(default_factory=dict)
    """The parameter exists only where each of these earlier ones has the value, or one of the values."""
    label: str | None = None


class SamplerEntry(Section):
    kind: Literal["tpe", "gp", "nsga2", "random", "grid"] = "tpe"
    """tpe: tree of Parzen estimators over all parameters together, by groups where there are conditions; gp: Gaussian
    process; nsga2: genetic, for several objectives; random; grid: every combination, in order."""
    startup_trials: Annotated[int, Field(ge=1)] = 10
    """Random trials before the sampler learns; tpe and gp."""
    population: Annotated[int, Field(ge=2)] = 16
    """Trials of one generation; nsga2."""


class PruningEntry(Section):
    """Asynchronous successive halving on the objective."""

    first_pairs: Annotated[int, Field(ge=1)]
    """Pairs seen at the first rung; a trial is judged at its first validation at or after a rung."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """The best of so many go on, and the next rung lies so many times later."""


class SearchFile(Section):
    """The schema of a search file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]
    question: str
    base: Annotated[tuple[str, ...], Field(min_length=1)]
    """Experiment files, later ones over earlier ones; relative to the project."""
    settings: Settings = Field(default_factory=dict)
    """Overrides of the base that hold for all trials."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every trial's model and data order."""
    sampler_seed: Annotated[int, Field(ge=0)] = 0
    objectives: Annotated[tuple[str, ...], Field(min_length=1)]
    """Validation metrics; losses are minimised, scores maximised."""
    trials: Annotated[int, Field(ge=1)]
    """How many are asked for, pruned and failed ones included."""
    sampler: SamplerEntry = SamplerEntry()
    pruning: PruningEntry | None = None
    space: Annotated[dict[str, ParameterEntry], Field(min_length=1)]
    scientific: tuple[str, ...] = ()
    """Parameters that the question is about, drawn first; all others are nuisance. Default: each in turn."""
    compare_with: tuple[str, ...] = ()
    """Searches or studies, a grid above all: how many trials and seconds until this search had found their best?"""
    resources: Resources = Resources()
    """What one trial takes."""
    seconds_per_trial: Annotated[float, Field(gt=0)] = 60.0
    """First guess, until trials have been measured."""


@dataclass(frozen=True)
class Search:
    """A loaded search: its file's content, its space, and the settings under all trials."""

    file: SearchFile
    space: Space
    base_config: Config
    base: tuple[str, ...]
    settings: Mapping[str, Any]
    """Dotted overrides of the base: the file's, the command line's, and what a search does to every trial."""

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def num_trials(self) -> int:
        """How many trials there will be; a grid ends earlier than its file says where it is exhausted."""
        if self.file.sampler.kind == "grid":
            return min(self.file.trials, sum(1 for _ in self.space.grid()))
        return self.file.trials

    @property
    def directions(self) -> tuple[str, ...]:
        """`maximize` or `minimize`, for each objective."""
        return tuple("minimize" if metric in LOSSES else "maximize" for metric in self.file.objectives)

    def config(self, values: Values) -> Config:
        """Raises ConfigError where the values cannot stand together."""
        return override(self.base_config, {**self.settings, **values}, source=f"search '{self.name}'")

    def document(self) -> dict[str, Any]:
        """The search as it is tracked, without the number of trials, which may grow."""
        file = self.file
        return {
            "name": file.name, "question": file.question.strip(), "base": list(self.base), "seed": file.seed,
            "settings": {key: value for key, value in self.settings.items() if key not in ("data.root", "data.store")},
            "sampler_seed": file.sampler_seed, "objectives": list(file.objectives),
            "directions": list(self.directions), "sampler": file.sampler.model_dump(mode="json"),
            "pruning": file.pruning.model_dump(mode="json") if file.pruning else None, "space": self.space.document(),
        }


def find_search(name_or_path: str | Path, project: Path | None = None) -> Path:
    """Path of a search by its file or by its name: `sweeps/searches/<name>.yaml` of the project, else of this package.

    Raises:
        StudyError: there is none; names the nearest one.
    """
    return find_file("search", name_or_path, "searches", project)


def load_search(path: Path, *, overrides: Mapping[str, Any] | None = None, base: Sequence[Path] = (),
                num_trials: int | None = None, project: Path | None = None) -> Search:
    """Read a search file and check all of it.

    Args:
        overrides: dotted settings over those of all trials, from the command line.
        base: experiment files instead of the search's own.
        num_trials: instead of the file's.
        project: folder that relative paths of experiment files start from; default: the current folder.

    Raises:
        StudyError: with all problems of the file at once, each with its line and the nearest valid name.
        ConfigError: an override or a base file that is refused.
    """
    document = Document(path)
    try:
        file = SearchFile.model_validate_json(json.dumps(parse_yaml(path.read_text("utf-8")), default=str))
    except ValidationError as error:
        for complaint in error.errors():
            document.add(*_explained(complaint["type"], tuple(map(str, complaint["loc"])), complaint["msg"]))
        document.refuse_if_any()
        raise
    if num_trials is not None:
        file = file.model_copy(update={"trials": num_trials})
    for key in overrides or {}:
        if key in _FORCED or key in file.space:
            raise ConfigError(f"override: '{key}' is set by the search")
    build_partial(overrides or {}, source="override")
    used_base = tuple(str(path) for path in base) or file.base
    base_config = load_config(*((project or Path.cwd()) / path for path in used_base))

    for key, value in file.settings.items():
        if key in _FORCED or key in file.space:
            document.add(("settings", key), f"'{key}' is set by the search")
        else:
            _check_value(document, ("settings", key), key, value)
    _check_objectives(file, document)
    _check_space(file, document)
    document.refuse_if_any()
    parameters = tuple(_parameter(key, entry) for key, entry in file.space.items())
    settings = {**file.settings, **(overrides or {}), "seed": file.seed, "evaluation.tasks": [TASK],
                "evaluation.validation_scores": "every" if file.pruning else "last"}
    search = Search(file, Space(parameters), base_config, used_base, settings)
    override(base_config, settings, source=f"search '{file.name}'")
    return search


def _explained(kind: str, path: tuple[str, ...], message: str) -> tuple[tuple[str, ...], str]:
    if kind == "extra_forbidden":
        sections: dict[str, type[Section]] = {
            "sampler": SamplerEntry, "pruning": PruningEntry, "space": ParameterEntry}
        section = sections.get(path[0], SearchFile) if len(path) > 1 else SearchFile
        guess = nearest(path[-1], section.model_fields)
        return path, f"unknown key '{path[-1]}'" + (f"; the nearest is '{guess}'" if guess else "")
    if kind == "missing":
        return path, f"'{path[-1]}' is missing"
    return path, f"{'.'.join(path)}: {message.removeprefix('Value error, ')}"


def _check_value(document: Document, path: tuple[str, ...], key: str, value: Any) -> None:
    try:
        build_partial({key: value}, source=path[0])
    except ConfigError as error:
        for line in str(error).splitlines():
            document.add(path, line)


def _check_objectives(file: SearchFile, document: Document) -> None:
    for index, metric in enumerate(file.objectives):
        place = ("objectives", str(index))
        if metric not in (*SCORES, *LOSSES):
            guess = nearest(metric.replace("test/", "validation/", 1), (*SCORES, *LOSSES))
            why = "a search never sees test patients" if metric.startswith("test/") else "no validation metric"
            document.add(place, f"objective '{metric}': {why}; the nearest is '{guess or SCORES[0]}'")
            continue
        changing = _CHANGES_LOSSES if metric in LOSSES else _CHANGES_BATCHES if metric in _IN_BATCH else ()
        varied = next((key for key in file.space if key.startswith(changing)), None) if changing else None
        if varied is not None:
            document.add(place, f"objective '{metric}': its meaning changes with {varied}, which this search varies, "
                                f"so that its values cannot be compared; take '{SCORES[0]}'")
    if len(set(file.objectives)) < len(file.objectives):
        document.add(("objectives",), "an objective stands twice")
    if len(file.objectives) > 1 and file.pruning is not None:
        document.add(("pruning",), "trials with several objectives have no order in which they could be pruned")
    if len(file.objectives) == 1 and file.sampler.kind == "nsga2":
        document.add(("sampler",), "nsga2 is for several objectives; take tpe or gp")


def _check_space(file: SearchFile, document: Document) -> None:
    earlier: dict[str, ParameterEntry] = {}
    for key, entry in file.space.items():
        path = ("space", key)
        if key in _FORCED:
            document.add(path, f"'{key}' is set by the search")
        is_range = entry.low is not None and entry.high is not None
        if bool(entry.choices) == is_range or (entry.low is None) != (entry.high is None):
            document.add(path, f"'{key}': either choices, or low and high are needed")
        elif is_range:
            _check_range(document, path, key, entry, is_grid=file.sampler.kind == "grid")
        elif entry.log or entry.step is not None or entry.levels:
            document.add(path, f"'{key}': log, step and levels belong to a range, not to choices")
        for index, value in enumerate(entry.choices):
            _check_value(document, (*path, "choices", str(index)), key, value)
        for other, allowed in entry.when.items():
            if other not in earlier:
                document.add((*path, "when", other), f"'{key}' depends on '{other}', which is no earlier parameter")
                continue
            if not earlier[other].choices:
                document.add((*path, "when", other), f"'{key}' depends on '{other}', which has no choices")
                continue
            for value in allowed if isinstance(allowed, list) else [allowed]:
                if value not in earlier[other].choices:
                    document.add((*path, "when", other), f"'{other}' is never {value!r}")
        earlier[key] = entry
    for index, key in enumerate(file.scientific):
        if key not in file.space:
            guess = nearest(key, file.space)
            document.add(("scientific", str(index)), f"'{key}' is no parameter of the space"
                         + (f"; the nearest is '{guess}'" if guess else ""))


def _check_range(document: Document, path: tuple[str, ...], key: str, entry: ParameterEntry, is_grid: bool) -> None:
    assert entry.low is not None and entry.high is not None
    if not entry.low < entry.high:
        document.add(path, f"'{key}': low must lie below high")
    elif entry.log and entry.low <= 0:
        document.add(path, f"'{key}': low must be above 0 where log is true")
    if entry.log and entry.step is not None:
        document.add(path, f"'{key}': log and step exclude each other")
    if any(not entry.low <= level <= entry.high for level in entry.levels):
        document.add((*path, "levels"), f"'{key}': a level lies outside of its range")
    if is_grid and not entry.levels:
        document.add(path, f"'{key}': a grid needs levels of a range")
    for name, value in (("low", entry.low), ("high", entry.high), *(("levels", level) for level in entry.levels)):
        _check_value(document, (*path, name), key, _as_setting(key, value))


def _is_integer(key: str) -> bool:
    value = flatten(Config()).get(key)
    return isinstance(value, int) and not isinstance(value, bool)


def _as_setting(key: str, value: float) -> float:
    """Whole numbers for integer settings; others stay, and are refused by the strict check where they must be whole."""
    return int(value) if _is_integer(key) and value == int(value) else value


def _parameter(key: str, entry: ParameterEntry) -> Parameter:
    return Parameter(
        key=key, choices=entry.choices, low=entry.low or 0.0, high=entry.high or 0.0, is_integer=_is_integer(key),
        is_log=entry.log, step=entry.step, levels=tuple(_as_setting(key, level) for level in entry.levels),
        when={other: tuple(allowed) if isinstance(allowed, list) else (allowed,)
              for other, allowed in entry.when.items()},
        label=entry.label or key.rsplit(".", 1)[-1])
