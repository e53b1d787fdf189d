"""Asynchronous successive halving: a trial is judged at rungs, and the weak ones end early.

After Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), in the form that stops: no trial ever
waits for another. The values at the rungs are metrics of the trials in the tracking store, and the trial itself asks
there how the others did: no process holds a state that a kill could lose.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medst.config import Config
from medst.records import Facts, Metrics, Pruned, Record
from medst.tracking import names
from medst.tracking.connection import is_away
from medst.tracking.members import MemberTrial, member_trials
from sweeps.worker import TrialFunction

_PASSED = "rungs.json"
"""In the trial's checkpoint folder: rung -> the step at which it was judged."""


@dataclass(frozen=True)
class Rungs:
    """How the trials of one search are judged; travels to the workers."""

    search: str
    definition: str
    """Fingerprint of the search: trials that an earlier form of it asked for judge nobody."""
    metric: str
    is_maximised: bool
    first_pairs: int
    reduction: int
    uri: str
    experiment: str

    def of_budget(self, pairs: int) -> list[int]:
        """Rungs, in pairs seen, of a trial that will see `pairs`; the end of training is none."""
        rungs = []
        rung = self.first_pairs
        while rung < pairs:
            rungs.append(rung)
            rung *= self.reduction
        return rungs


def goes_on(value: float, others: Sequence[float], reduction: int, is_maximised: bool) -> bool:
    """Whether a trial with `value` at a rung is among the best of `reduction` of all that came so far.

    Fewer than `reduction` values are too few to judge; of n, itself included, floor(n / reduction) go on, and ties do.
    A value that is not a number never does.
    """
    if math.isnan(value):
        return False
    known = [other for other in others if not math.isnan(other)]
    count = len(known) + 1
    num_better = sum(other > value if is_maximised else other < value for other in known)
    return count < reduction or num_better < count // reduction


def rung_metric(pairs: int, metric: str) -> str:
    return f"{names.RUNG_METRIC_PREFIX}{pairs}/{metric}"


def watched(function: TrialFunction, key: str, rungs: Rungs) -> TrialFunction:
    """The same trial, judged at the rungs: its value there becomes a metric, and it ends where others did better."""

    def run(config: Config, folder: Path | None) -> Iterator[Record]:
        judge = _Judge(key, rungs, folder)
        for record in function(config, folder):
            yield record
            if isinstance(record, Facts):
                judge.learn_budget(record)
            elif isinstance(record, Metrics) and rungs.metric in record.values:
                crossed = judge.crossed(record.step)
                if not crossed:
                    continue
                value = float(record.values[rungs.metric])
                yield Metrics(record.step, {rung_metric(rung, rungs.metric): value for rung in crossed})
                reason = judge.against(crossed[-1], value)
                if reason is not None:
                    yield Pruned(record.step, reason)
                    return
                judge.pass_on(crossed, record.step)

    return run


class _Judge:
    """What one trial knows of its rungs, also after it was killed and went on from a checkpoint."""

    def __init__(self, key: str, rungs: Rungs, folder: Path | None) -> None:
        self._key = key
        self._rungs = rungs
        self._path = None if folder is None else folder / _PASSED
        self._passed: dict[int, int] = {}
        if self._path is not None and self._path.exists():
            self._passed = {int(rung): step for rung, step in json.loads(self._path.read_text("utf-8")).items()}
        self._pairs = self._steps = 0

    def learn_budget(self, facts: Facts) -> None:
        self._pairs = int(facts.values.get("pairs_seen", self._pairs))
        self._steps = int(facts.values.get("training_steps", self._steps))

    def crossed(self, step: int) -> list[int]:
        """Rungs to be judged at `step`. One that was passed at an earlier step stays passed."""
        if not self._steps or step >= self._steps:
            return []
        seen = step * self._pairs // self._steps
        return [rung for rung in self._rungs.of_budget(self._pairs)
                if rung <= seen and self._passed.get(rung, step) >= step]

    def pass_on(self, crossed: Sequence[int], step: int) -> None:
        self._passed |= dict.fromkeys(crossed, step)
        if self._path is not None:
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps(self._passed), encoding="utf-8")
            temporary.replace(self._path)

    def against(self, rung: int, value: float) -> str | None:
        """Why the trial should end; None where it goes on, also where the others cannot be asked."""
        metric = rung_metric(rung, self._rungs.metric)
        try:
            others = [member.metrics[metric]
                      for member in member_trials(self._rungs.uri, self._rungs.experiment, self._rungs.search)
                      if member.key != self._key and metric in member.metrics and self._is_of_this_search(member)]
        except Exception as error:
            if not is_away(error):
                raise
            logging.getLogger(__name__).warning("the tracking store is away: the trial goes on unjudged")
            return None
        if goes_on(value, others, self._rungs.reduction, self._rungs.is_maximised):
            return None
        better = sum(other > value if self._rungs.is_maximised else other < value for other in others)
        return (f"rung of {rung} pairs: {self._rungs.metric} = {value:.6g}; {better} of {len(others)} other trials "
                f"were better, and the best of {self._rungs.reduction} go on")

    def _is_of_this_search(self, member: MemberTrial) -> bool:
        proposals = json.loads(member.tags[f"{names.SEARCH_PREFIX}{self._rungs.search}"])
        return any(proposal["definition"] == self._rungs.definition for proposal in proposals)
