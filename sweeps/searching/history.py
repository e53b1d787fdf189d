"""From the tracking store to an Optuna study, and from there to the next proposal.

What lives here: the trials that a search has had, read from the store alone, and the pure function that proposes the
next one. What must not: running anything.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from medst.config import Config, ConfigError, fingerprint, source_fingerprint, stream_seed
from medst.tracking import TrialState, names, torch_version
from medst.tracking.members import MemberTrial, member_trials
from sweeps.searching.search_file import Search
from sweeps.searching.space import Values

optuna.logging.set_verbosity(optuna.logging.WARNING)

MAX_IMPOSSIBLE = 200
"""How many proposals in a row may be impossible configurations before the search gives up."""
_SAMPLER_SEEDS = 2**31
_STATES = {
    TrialState.FINISHED: optuna.trial.TrialState.COMPLETE, TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
    TrialState.FAILED: optuna.trial.TrialState.FAIL,
}


@dataclass(frozen=True)
class Proposal:
    """What the sampler asked for; the tag of the trial's run holds it."""

    number: int
    values: Values
    attrs: dict[str, Any] = field(default_factory=dict)
    """What the sampler remembers of it (the generation of a genetic one)."""
    definition: str = ""
    """Fingerprint of the search that proposed it: another space or another source is another search."""


@dataclass(frozen=True)
class Attempt:
    """A proposal and what became of it."""

    proposal: Proposal
    key: str
    state: TrialState
    """MISSING: interrupted, to go on; RUNNING: in the hands of a worker."""
    run_id: str | None = None
    objectives: tuple[float, ...] | None = None
    rungs: Mapping[int, float] = field(default_factory=dict)
    """Pairs seen -> value at that rung."""
    seconds: float | None = None
    reason: str | None = None

    @property
    def number(self) -> int:
        return self.proposal.number


def definition_of(search: Search, data_fingerprint: str) -> str:
    """What must be equal for the trials of an earlier call to belong to this search."""
    parts = [json.dumps(search.document(), sort_keys=True), data_fingerprint, source_fingerprint(), torch_version()]
    return fingerprint("\0".join(parts))


def tag_of(search: str) -> str:
    return f"{names.SEARCH_PREFIX}{search}"


def as_tag(proposals: Iterable[Proposal]) -> str:
    """The proposals that one run answers, as text: more than one where the sampler proposed the same again."""
    return json.dumps([asdict(proposal) for proposal in proposals], ensure_ascii=False)


def read_attempts(uri: str, experiment: str, search: Search, definition: str) -> list[Attempt]:
    """Every trial of the search that the store has, by number."""
    attempts = []
    for member in member_trials(uri, experiment, search.name):
        for entry in json.loads(member.tags[tag_of(search.name)]):
            proposal = Proposal(**entry)
            if proposal.definition == definition:
                attempts.append(attempt_of(search, proposal, member))
    return sorted(attempts, key=lambda attempt: attempt.number)


def attempt_of(search: Search, proposal: Proposal, member: MemberTrial) -> Attempt:
    """A proposal with what its run says. A finished trial without an objective counts as failed."""
    state, reason = member.state, member.reason
    objectives = tuple(member.metrics.get(metric, math.nan) for metric in search.file.objectives)
    missing = [metric for metric, value in zip(search.file.objectives, objectives, strict=True) if math.isnan(value)]
    if state is TrialState.FINISHED and missing:
        state, reason = TrialState.FAILED, f"no value of {', '.join(missing)}"
    head = names.RUNG_METRIC_PREFIX
    rungs = {int(name.removeprefix(head).partition("/")[0]): value for name, value in member.metrics.items()
             if name.startswith(head) and name.partition("/")[2].partition("/")[2] == search.file.objectives[0]}
    return Attempt(proposal, member.key, state, member.run_id, objectives if state is TrialState.FINISHED else None,
                   dict(sorted(rungs.items())), member.seconds, reason)


def optuna_study(search: Search, attempts: Sequence[Attempt]) -> optuna.Study:
    """An in-memory study that holds the attempts in the order of their numbers."""
    study = optuna.create_study(directions=[optuna.study.StudyDirection[direction.upper()]
                                            for direction in search.directions])
    for attempt in sorted(attempts, key=lambda attempt: attempt.number):
        values = attempt.proposal.values
        # Pruned where nothing was measured: the sampler can learn nothing from it.
        state = _STATES.get(attempt.state, optuna.trial.TrialState.RUNNING)
        study.add_trial(optuna.trial.create_trial(
            state=state, params=values, distributions=search.space.distributions(values),
            values=attempt.objectives if state is optuna.trial.TrialState.COMPLETE else None,
            intermediate_values=dict(attempt.rungs) if len(search.directions) == 1 else None,
            system_attrs=attempt.proposal.attrs, user_attrs={"number": attempt.number, "key": attempt.key}))
    return study


def propose(search: Search, number: int, attempts: Sequence[Attempt], definition: str) -> tuple[Proposal, Config]:
    """The proposal of that number: a function of the search, the number, and the attempts, and of nothing else.

    Raises:
        ConfigError: the sampler found no combination that is a possible configuration.
    """
    if search.file.sampler.kind == "grid":
        points = list(search.space.grid())
        return Proposal(number, points[number], {}, definition), search.config(points[number])
    for redraw in range(MAX_IMPOSSIBLE):
        study = optuna_study(search, attempts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            seed = stream_seed(search.file.sampler_seed, f"search.{number}.{redraw}") % _SAMPLER_SEEDS
            study.sampler = _sampler(search, seed)
            trial = study.ask()
            values = search.space.suggest(trial)
        try:
            config = search.config(values)
        except ConfigError as error:
            refusal = error
            continue
        return Proposal(number, values, dict(study.trials[-1].system_attrs), definition), config
    raise ConfigError(f"search '{search.name}': {MAX_IMPOSSIBLE} proposals in a row were impossible, the last one as "
                      f"{refusal}; narrow the space")


def _sampler(search: Search, seed: int) -> BaseSampler:
    entry = search.file.sampler
    match entry.kind:
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=entry.startup_trials, multivariate=True, group=True)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=entry.startup_trials, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=seed, population_size=entry.population)
    return RandomSampler(seed=seed)
