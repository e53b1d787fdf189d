"""Studies: a question, resolved from its file to arms and replicates, with every check.

What lives here: the naming of arms, their resolution to configs, the checks that need more than the schema, the study
as it is tracked. What must not: the schema (sweeps/study_file.py), designs (sweeps/designs.py), anything about data,
stores of results, or how trials are run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from medst.config import (
    Config,
    ConfigError,
    build_partial,
    canonical,
    flatten,
    known_keys,
    load_config,
    nearest,
    override,
)
from sweeps.constraints import Constraint, ConstraintError
from sweeps.designs import Assignment, Crossed, Fraction, arm_name, cross, fraction, one_at_a_time
from sweeps.files import find_file
from sweeps.study_errors import Document, EntryPath
from sweeps.study_file import Factor, Resources, Settings, StudyFile, Tuning, TwoLevels
from sweeps.tuning import candidates, tuning_name

DRAW_STRIDE = 1000
"""A replicate's number is its phantom draw times this, plus its seed."""


@dataclass(frozen=True)
class Arm:
    """One assignment of all factors, with a human name."""

    name: str
    settings: Mapping[str, Any]
    """Dotted keys that differ from the study's base, without the study's common settings."""
    config: Config
    """Resolved; its seed is that of the base, its data those of the first draw."""


@dataclass(frozen=True)
class Replicate:
    """A seed on a draw of the phantom; all arms share it, so that they are compared in pairs."""

    seed: int
    """The seed of its trials, other in every replicate."""
    draw: int

    def config(self, config: Config) -> Config:
        """`config` at this replicate."""
        data = config.data
        if self.draw:
            data = data.model_copy(update={"root": f"{data.root.rstrip('/')}-draw-{self.draw}"})
        return config.model_copy(update={"seed": self.seed, "data": data})


@dataclass(frozen=True)
class Study:
    """A loaded study: its file's content and its arms, resolved and checked."""

    file: StudyFile
    arms: tuple[Arm, ...]
    base: tuple[str, ...]
    """Experiment files under all arms: the study's own, or those that stood in for them."""
    settings: Mapping[str, Any]
    """Dotted overrides of the base that hold for all arms: the study's own, and those of the command line."""
    left_out: tuple[str, ...] = ()
    """Names of combinations that the constraints exclude."""
    fraction: Fraction | None = None
    """The design of the section `fractional`."""

    @property
    def name(self) -> str:
        return self.file.name

    @cached_property
    def reference(self) -> Arm:
        return next(arm for arm in self.arms if arm.name == self.file.reference)

    @cached_property
    def replicates(self) -> tuple[Replicate, ...]:
        """Draws outside, seeds inside."""
        return tuple(Replicate(draw * DRAW_STRIDE + seed, draw) for draw in self.file.phantom_draws
                     for seed in self.file.seeds)

    @property
    def flagged_arms(self) -> tuple[str, ...]:
        return self.file.flagged_arms or (self.file.reference,)

    def resources(self, arm: str) -> Resources:
        """What a trial of `arm` takes."""
        return self.file.arm_resources.get(arm, self.file.resources)


def find_study(name_or_path: str | Path, project: Path | None = None) -> Path:
    """Path of a study by its file or by its name: `sweeps/<name>.yaml` of the project, else of this package.

    Raises:
        StudyError: there is none; names the nearest one.
    """
    return find_file("study", name_or_path, "", project)


def load_study(path: Path, *, overrides: Mapping[str, Any] | None = None, base: Sequence[Path] = (),
               project: Path | None = None, known_metrics: Iterable[str] | None = None) -> Study:
    """Read a study file and resolve its arms.

    Args:
        overrides: dotted settings for all arms, from the command line; what an arm sets itself stands.
        base: experiment files instead of the study's own.
        project: folder that relative paths of experiment files start from; default: the current folder.
        known_metrics: what the metrics of a study may be; None takes any.

    Raises:
        StudyError: with all problems of the file at once, each with line, column and the nearest valid name.
        ConfigError: an override or a base file of the command line that is refused.
    """
    project = project or Path.cwd()
    common = dict(overrides or {})
    if "seed" in common:
        raise ConfigError("override: 'seed' is set by the study's seeds; change them in the study file")
    build_partial(common, source="override")
    given = load_config(*(project / entry for entry in base)) if base else None
    document = Document(path)
    file = document.validate()
    _check_names(file, document, None if known_metrics is None else frozenset(known_metrics))
    _check_settings(file, document)
    base_config = given or _load_base(file, document, project)
    found = _Resolver(file, document, base_config, common).resolve()
    document.refuse_if_any()
    return Study(file, tuple(found.arms), tuple(str(entry) for entry in base) or file.base,
                 {**file.settings, **common}, tuple(found.left_out), found.fraction)


def _load_base(file: StudyFile, document: Document, project: Path) -> Config | None:
    """The config that the study's experiment files make together; None where a file is refused."""
    if document.is_broken("base"):
        return None
    for index, entry in enumerate(file.base):
        try:
            load_config(project / entry)
        except ConfigError as error:
            for line in str(error).splitlines():
                document.add(("base", str(index)), line)
    if document.is_broken("base"):
        return None
    try:
        return load_config(*(project / entry for entry in file.base))
    except ConfigError as error:
        document.add(("base",), str(error))
        return None


# ---- Checks that need neither base nor arms ----------------------------------------------------------------------


def _check_names(file: StudyFile, document: Document, known_metrics: frozenset[str] | None) -> None:
    """Metrics that exist, and numbers that stand only once."""
    metrics: list[tuple[EntryPath, str]] = [(("primary_metric",), file.primary_metric)]
    metrics += [(("secondary_metrics", str(index)), metric) for index, metric in enumerate(file.secondary_metrics)]
    metrics += [(("expectations", str(index), "metric"), item.metric) for index, item in enumerate(file.expectations)]
    for where, metric in metrics:
        if known_metrics is not None and metric not in known_metrics and not document.is_broken(where[0]):
            guess = nearest(metric, known_metrics)
            document.add(where, f"unknown metric '{metric}'" + (f"; the nearest is '{guess}'" if guess else ""))
    for section in ("seeds", "phantom_draws", "secondary_metrics", "flagged_arms", "constraints"):
        _check_repeats(getattr(file, section), (section,), document)
    if file.phantom_draws != (0,):
        for index, seed in enumerate(file.seeds):
            if seed >= DRAW_STRIDE:
                document.add(("seeds", str(index)), f"seed {seed}: with phantom_draws seeds are below {DRAW_STRIDE}")
    tuning = file.tuning
    if tuning is not None:
        _check_repeats(tuning.seeds, ("tuning", "seeds"), document)
        own = {draw * DRAW_STRIDE + seed for draw in file.phantom_draws for seed in file.seeds}
        for index, seed in enumerate(tuning.seeds):
            if seed in own:
                document.add(("tuning", "seeds", str(index)), f"seed {seed} is one of the study's own: tuning needs "
                                                              "seeds set apart")


def _check_repeats(values: Sequence[Any], path: EntryPath, document: Document) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            document.add((*path, str(index)), f"{value!r} stands twice")


def _check_settings(file: StudyFile, document: Document) -> None:
    """Every key and value that is written anywhere in the file."""
    _check_assignment(file.settings, ("settings",), document)
    for section in ("arms", "leave_one_out"):
        for name, settings in getattr(file, section).items():
            _check_assignment(settings, (section, name), document)
            if section == "leave_one_out" and not settings:
                document.add((section, name), f"component '{name}': which settings take it away?")
    for path, key, factor in _factors(file):
        _check_levels(key, factor.levels, path, document)
    for section in ("one_at_a_time", "grid"):
        factors: dict[str, Factor] = getattr(file, section)
        for key, factor in factors.items():
            for condition, allowed in factor.when.items():
                where = (section, key, "when", condition)
                for value in allowed if isinstance(allowed, list) else [allowed]:
                    _check_assignment({condition: value}, where, document, where)
                if condition in factors and list(factors).index(condition) >= list(factors).index(key):
                    document.add(where, f"'{condition}' must stand before '{key}', which depends on it")
    if file.tuning is not None:
        _check_tuning(file, file.tuning, document)


def _factors(file: StudyFile) -> Iterator[tuple[EntryPath, str, Factor | TwoLevels]]:
    for section in ("one_at_a_time", "grid"):
        for key, factor in getattr(file, section).items():
            yield (section, key), key, factor
    if file.fractional is not None:
        for key, two in file.fractional.factors.items():
            yield ("fractional", "factors", key), key, two


def _check_tuning(file: StudyFile, tuning: Tuning, document: Document) -> None:
    for key, factor in tuning.factors.items():
        path: tuple[str, ...] = ("tuning", "factors", key)
        if (factor.levels is None) == (factor.range is None):
            if not document.is_broken(*path):
                document.add(path, f"'{key}': either levels or a range")
        elif factor.levels is not None:
            _check_levels(key, factor.levels, path, document)
        else:
            assert factor.range is not None
            low, high = factor.range
            _check_levels(key, factor.range, path, document, "range")
            if low >= high or (factor.scale == "log" and low <= 0):
                document.add((*path, "range"), f"'{key}': the range rises from low to high, above 0 on a log scale")
            if tuning.draws is None and not document.is_broken("tuning", "draws"):
                document.add(path, f"'{key}': a range needs tuning.draws, the number of candidates")
    for path, settings in _assigned(file):
        for key in tuning.factors.keys() & set(settings):
            document.add((*path, key), f"'{key}' is tuned for every arm; it cannot be set here")


def _assigned(file: StudyFile) -> Iterator[tuple[EntryPath, Iterable[str]]]:
    """Every place where settings are assigned to arms."""
    yield ("settings",), file.settings
    for section in ("arms", "leave_one_out"):
        for name, settings in getattr(file, section).items():
            yield (section, name), settings
    for path, key, _ in _factors(file):
        yield path[:-1], (key,)


def _check_levels(key: str, levels: Sequence[Any], path: EntryPath, document: Document, entry: str = "levels") -> None:
    if key not in known_keys() or key == "seed":
        _check_assignment({key: None}, path[:-1], document)
        return
    for index, level in enumerate(levels):
        _check_assignment({key: level}, path, document, (*path, entry, str(index)))
    _check_repeats(levels, (*path, entry), document)


def _check_assignment(settings: Settings, path: EntryPath, document: Document, where: EntryPath | None = None) -> None:
    for key, value in settings.items():
        place = where or (*path, key)
        if key == "seed":
            document.add(place, "'seed' is no factor: replicates are listed under `seeds`")
            continue
        try:
            build_partial({key: value}, source=".".join(path[:1]))
        except ConfigError as error:
            for line in str(error).splitlines():
                document.add(place, line)
            continue
        if key == "evaluation.tasks":
            # Only here: the names of the tasks come with everything that computes them.
            from medst.evaluation import check_tasks

            try:
                check_tasks(value)
            except ValueError as error:
                document.add(place, str(error))


def _check_draws(file: StudyFile, document: Document, base: Config, settings: Mapping[str, Any]) -> None:
    if file.phantom_draws == (0,) or document.is_broken("phantom_draws"):
        return
    # Only here: the rooms of the data come with much that computes.
    from medst.data.provision import phantom_of

    root = override(base, settings).data.root
    if phantom_of(Path(root)) is None:
        document.add(("phantom_draws",), f"draws are made of a phantom preset, and data.root={root} is none "
                                         "(data/phantom/<preset>)")


# ---- Arms --------------------------------------------------------------------------------------------------------


_GENERATED = ("leave_one_out", "one_at_a_time", "grid", "fractional")
"""Sections that make arms besides those that are named one by one."""


@dataclass
class _Resolution:
    arms: list[Arm] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    fraction: Fraction | None = None


class _Resolver:
    """From the sections of a file, in their order, to arms with configs."""

    def __init__(self, file: StudyFile, document: Document, base: Config | None, common: Mapping[str, Any]) -> None:
        self._file = file
        self._document = document
        self._base = base
        self._common = common
        self._constraints = self._parsed_constraints()
        self._reference = dict(file.arms.get(file.reference, {}))
        self._by_config: dict[str, str] = {}
        self._found = _Resolution()

    def resolve(self) -> _Resolution:
        if self._base is not None and not self._document.is_broken("settings"):
            _check_draws(self._file, self._document, self._base, {**self._file.settings, **self._common})
            self._make_arms()
        self._check_references()
        return self._found

    def _make_arms(self) -> None:
        file = self._file
        for name, settings in file.arms.items():
            if not self._document.is_broken("arms", name):
                self._add(name, settings, ("arms", name), is_named=True)
        values = self._reference_values()
        if values is not None:
            for component, settings in file.leave_one_out.items():
                self._generate(f"no {component}", settings, ("leave_one_out", component))
            self._design("one_at_a_time", one_at_a_time, values)
            self._design("grid", cross, values)
            self._fractional()
        if not (self._found.arms or self._found.left_out or self._document.problems):
            self._document.add((), f"no arms: at least one of arms, {', '.join(_GENERATED)} is needed")
        if file.tuning is not None and not self._document.problems:
            self._check_candidates(file.tuning)

    def _parsed_constraints(self) -> list[tuple[EntryPath, Constraint]]:
        found: list[tuple[EntryPath, Constraint]] = []
        for index, text in enumerate(self._file.constraints):
            where = ("constraints", str(index))
            try:
                constraint = Constraint.parse(text)
            except ConstraintError as error:
                self._document.add(where, str(error))
                continue
            unknown = sorted(constraint.keys - set(known_keys()))
            for key in unknown:
                guess = nearest(key, known_keys())
                self._document.add(where, f"unknown key '{key}'" + (f"; the nearest key is '{guess}'" if guess else ""))
            if not unknown:
                found.append((where, constraint))
        return found

    def _reference_values(self) -> dict[str, Any] | None:
        """Every setting of the reference, on which conditions depend; None where it is refused, which is told there."""
        if self._document.is_broken("arms", self._file.reference):
            return None
        try:
            return flatten(self._config(self._reference, "reference"))
        except ConfigError:
            return None

    def _config(self, settings: Mapping[str, Any], source: str) -> Config:
        assert self._base is not None
        # What an arm sets is what the study is about: it stands, whatever the command line sets for all arms.
        return override(self._base, {**self._file.settings, **self._common, **settings}, source)

    def _design(self, section: str, combine: Callable[[Sequence[Crossed], Mapping[str, Any]], Iterator[Assignment]],
                values: Mapping[str, Any]) -> None:
        """Arms of a section of factors."""
        factors: dict[str, Factor] = getattr(self._file, section)
        if not factors or self._document.is_broken(section):
            return
        crossed = [Crossed(key, factor.levels, {condition: tuple(allowed) if isinstance(allowed, list) else (allowed,)
                                                for condition, allowed in factor.when.items()})
                   for key, factor in factors.items()]
        labels = {key: factor.label for key, factor in factors.items()}
        used: set[str] = set()
        for assignment in combine(crossed, values):
            used |= assignment.keys()
            self._generate(arm_name(assignment, labels), assignment, (section,))
        for key in factors.keys() - used:
            self._document.add((section, key, "when"), f"'{key}': its condition is never met")

    def _fractional(self) -> None:
        section = self._file.fractional
        if section is None or self._document.is_broken("fractional"):
            return
        design = fraction(len(section.factors), section.resolution)
        labels = {key: factor.label for key, factor in section.factors.items()}
        num_left_out = len(self._found.left_out)
        for run in design.runs():
            assignment = {key: factor.levels[level] for (key, factor), level
                          in zip(section.factors.items(), run, strict=True)}
            self._generate(arm_name(assignment, labels), assignment, ("fractional",))
        if len(self._found.left_out) > num_left_out:
            self._document.add(("fractional",), "the constraints exclude "
                               f"'{self._found.left_out[num_left_out]}', without which the fraction is no longer one; "
                               "use a grid")
        self._found.fraction = design

    def _generate(self, name: str, assignment: Mapping[str, Any], where: EntryPath) -> None:
        if not self._document.is_broken(*where):
            self._add(name, {**self._reference, **assignment}, where, is_named=False)

    def _add(self, name: str, settings: Mapping[str, Any], where: EntryPath, is_named: bool) -> None:
        """Add an arm; a generated one that equals an arm that is there is that arm."""
        try:
            config = self._config(settings, f"arm '{name}'")
        except ConfigError as error:
            for line in str(error).splitlines():
                self._document.add(where, line)
            return
        try:
            broken = [constraint for _, constraint in self._constraints if not constraint.holds(flatten(config))]
        except ConstraintError as error:
            self._document.add(where if is_named else ("constraints",), f"arm '{name}': {error}")
            return
        if broken and not is_named:
            self._found.left_out.append(name)
            return
        if broken:
            self._document.add(where, f"arm '{name}' breaks the constraint '{broken[0].text}'")
        # Arms may differ by their data, whose place is not part of the canonical form.
        same = self._by_config.setdefault(f"{config.data.root}\0{config.data.store}\0{canonical(config)}", name)
        if same != name and not is_named:
            return
        if same != name:
            self._document.add(where, f"arms '{same}' and '{name}' are the same trial: a setting of one of them "
                                      "changes nothing")
        elif any(arm.name == name for arm in self._found.arms):
            self._document.add(where, f"two arms are named '{name}'")
        self._found.arms.append(Arm(name, dict(settings), config))

    def _check_candidates(self, tuning: Tuning) -> None:
        """Every arm must be possible with every candidate."""
        for arm in self._found.arms:
            for candidate in candidates(tuning):
                try:
                    override(arm.config, candidate.settings, f"arm '{arm.name}', {candidate.name}")
                except ConfigError as error:
                    self._document.add(("tuning", "factors"), str(error))

    def _check_references(self) -> None:
        """Names of arms that stand elsewhere in the file."""
        file, document = self._file, self._document
        known = list(dict.fromkeys([*file.arms, *(arm.name for arm in self._found.arms)]))
        is_generating = any(getattr(file, section) for section in _GENERATED)
        # Arms that could not be made cannot be missed.
        is_doubtful = (
            not (known or self._found.left_out)
            or any(map(document.is_broken, (*_GENERATED, "constraints")))
            or document.is_broken("arms", file.reference)
            or (is_generating and (self._base is None or document.is_broken("settings"))))
        named: list[tuple[EntryPath, str]] = [(("reference",), file.reference)]
        named += [(("flagged_arms", str(index)), arm) for index, arm in enumerate(file.flagged_arms)]
        named += [(("expectations", str(index), "arm"), item.arm) for index, item in enumerate(file.expectations)]
        named += [(("arm_resources", arm), arm) for arm in file.arm_resources]
        for where, name in named:
            if name in known or is_doubtful or document.is_broken(*where):
                continue
            guess = nearest(name, known)
            hint = (f"the constraints exclude '{name}'" if name in self._found.left_out else
                    f"the nearest is '{guess}'" if guess else f"there are {', '.join(known)}")
            document.add(where, f"{where[0]}: '{name}' is not an arm; {hint}")


def plan_document(study: Study, trials: Sequence[Mapping[str, Any]], data_name: str,
                  tuning: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The study as it is tracked: enough to make every table of it without the file.

    Args:
        trials: key, arm and seed of every trial whose arm is decided.
        tuning: what became of the nuisance parameters, as `sweeps.tuning.report` gives it.
    """
    file = study.file
    return {
        "name": file.name, "question": file.question, "base": list(study.base), "data": data_name,
        "reference": file.reference, "primary_metric": file.primary_metric,
        "secondary_metrics": list(file.secondary_metrics),
        "seeds": [replicate.seed for replicate in study.replicates], "phantom_draws": list(file.phantom_draws),
        # The data root is a place on one machine; the name of the data stands above.
        "settings": {key: value for key, value in study.settings.items() if key not in ("data.root", "data.store")},
        "arms": [{"name": arm.name, "settings": dict(arm.settings)} for arm in study.arms],
        "expectations": [expectation.model_dump() for expectation in file.expectations],
        "tuning": tuning,
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
    draws = f" on phantom draws {', '.join(map(str, file.phantom_draws))}" if len(file.phantom_draws) > 1 else ""
    lines += ["", f"**Seeds** {', '.join(str(seed) for seed in file.seeds)}{draws}; **base** "
              + ", ".join(f"`{entry}`" for entry in study.base), "",
              f"**Primary metric** `{file.primary_metric}`"]
    if file.secondary_metrics:
        lines += ["", "**Secondary metrics** " + ", ".join(f"`{metric}`" for metric in file.secondary_metrics)]
    if file.tuning is not None:
        lines += ["", f"**Tuned for every arm** {', '.join(f'`{key}`' for key in file.tuning.factors)}, on "
                      f"`{file.tuning.metric}`; those trials carry the tag `study.{tuning_name(file.name)}`."]
    lines += ["", f"**How to read it.** Tables and figures are under Artifacts, `results/tables/{file.name}.md` first; "
              "`plan.json` is the whole plan. Every trial is a run of this experiment with the tag "
              f"`study.{file.name}` = its arm. To list them all, filter with ``tags.`study.{file.name}` LIKE '%'``; "
              "add that tag and `medst.seed`, the replicate, as columns to sort by, or group by the tag. A trial that "
              "serves several studies is computed once, and stands below the study that first needed it."]
    return "\n".join(lines)
