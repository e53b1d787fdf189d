"""The space of a search: parameters, the conditions under which they exist, and grids over them.

What lives here: pure values and their translation into Optuna's distributions. What must not: files, stores, configs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

Choice = bool | int | float | str | None
Values = dict[str, Any]
"""Dotted key -> value, of the parameters that exist, in the order of the space."""


@dataclass(frozen=True)
class Parameter:
    """One dotted setting and what it may be: one of `choices`, or a number from `low` to `high`."""

    key: str
    choices: tuple[Choice, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_integer: bool = False
    is_log: bool = False
    step: float | None = None
    levels: tuple[float, ...] = ()
    """The values of a range that a grid takes."""
    when: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)
    """Earlier key -> the values of which it must have one for this parameter to exist."""
    label: str = ""

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether the parameter exists beside the values of the earlier ones."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())

    @cached_property
    def distribution(self) -> BaseDistribution:
        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.is_integer:
            step = 1 if self.step is None else int(self.step)
            return IntDistribution(int(self.low), int(self.high), log=self.is_log, step=step)
        return FloatDistribution(float(self.low), float(self.high), log=self.is_log, step=self.step)

    def suggest(self, trial: Trial) -> Any:
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if self.is_integer:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.is_log, step=step)
        return trial.suggest_float(self.key, float(self.low), float(self.high), log=self.is_log, step=self.step)


@dataclass(frozen=True)
class Space:
    """Parameters in the order in which they are asked for: conditions look back only."""

    parameters: tuple[Parameter, ...]

    def suggest(self, trial: Trial) -> Values:
        """Ask an Optuna trial for every parameter that exists, one after the other."""
        values: Values = {}
        for parameter in self.parameters:
            if parameter.exists(values):
                values[parameter.key] = parameter.suggest(trial)
        return values

    def distributions(self, values: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """The distributions from which `values` were drawn."""
        return {parameter.key: parameter.distribution for parameter in self.parameters if parameter.key in values}

    def grid(self) -> Iterator[Values]:
        """Every combination of choices and levels that exists, once, the last parameter turning fastest."""
        yield from self._grid(0, {})

    def _grid(self, position: int, values: Values) -> Iterator[Values]:
        if position == len(self.parameters):
            yield values
            return
        parameter = self.parameters[position]
        if not parameter.exists(values):
            yield from self._grid(position + 1, values)
            return
        for level in parameter.choices or parameter.levels:
            yield from self._grid(position + 1, {**values, parameter.key: level})

    def document(self) -> list[dict[str, Any]]:
        """The space as it is tracked."""
        return [{"key": parameter.key, "label": parameter.label, "choices": list(parameter.choices),
                 "low": parameter.low, "high": parameter.high, "is_integer": parameter.is_integer,
                 "is_log": parameter.is_log, "step": parameter.step, "levels": list(parameter.levels),
                 "when": {key: list(allowed) for key, allowed in parameter.when.items()}}
                for parameter in self.parameters]
