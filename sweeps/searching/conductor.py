"""Which trial of a search comes next, and what became of the last one; used alike by both executors.

All that it knows it can read from the tracking store again: it may be killed at any moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medst.config import Config, trial_key
from medst.tracking import TrackingPlace, TrialState, drain_spools, torch_version
from medst.tracking.connection import TrackingError, is_away
from medst.tracking.members import MemberTrial, label_run, trial_of
from sweeps.searching.history import Attempt, Proposal, as_tag, attempt_of, propose, tag_of
from sweeps.searching.search_file import Search
from sweeps.trials import DataFacts, Trial, TrialSpec, specify
from sweeps.worker import Outcome

PATIENCE_SECONDS = 90.0
"""How long the end of a trial waits for an absent store."""
ENDED = (TrialState.FINISHED, TrialState.PRUNED, TrialState.FAILED)


@dataclass(frozen=True)
class Setting:
    """Where a search runs: what its specifications need besides the configuration."""

    place: TrackingPlace
    project: Path
    data: DataFacts
    parent_run_id: str
    environment: Mapping[str, str]
    is_private_tracked: bool


class Conductor:
    """Hands out specifications of trials and takes their outcomes, one thread at a time."""

    def __init__(self, search: Search, definition: str, setting: Setting, attempts: Sequence[Attempt],
                 should_retry_failed: bool = False) -> None:
        self._search = search
        self.definition = definition
        self._setting = setting
        self._attempts = {attempt.number: attempt for attempt in attempts}
        self._is_retried = {attempt.number for attempt in attempts
                            if should_retry_failed and attempt.state is TrialState.FAILED}
        # Computed by another machine at this moment: a later call will find them.
        self._given_up = {attempt.number for attempt in attempts if attempt.state is TrialState.RUNNING}
        self.num_computed = 0

    @property
    def attempts(self) -> list[Attempt]:
        return [self._attempts[number] for number in sorted(self._attempts)]

    @property
    def is_done(self) -> bool:
        """True where every number has ended or was given up."""
        return all(self._is_settled(number) for number in range(self._search.num_trials))

    @property
    def num_left(self) -> int:
        return sum(not self._is_settled(number) for number in range(self._search.num_trials))

    def _is_settled(self, number: int) -> bool:
        attempt = self._attempts.get(number)
        return number in self._given_up or (
            attempt is not None and attempt.state in ENDED and number not in self._is_retried)

    def next_spec(self) -> TrialSpec | None:
        """The next trial to compute; None where nothing can be started now: all are done, or in the hands of workers.

        Interrupted trials come first, as they were proposed. A proposal whose trial the store has is not computed.
        """
        for number in range(self._search.num_trials):
            attempt = self._attempts.get(number)
            if self._is_settled(number) or (attempt is not None and attempt.state is TrialState.RUNNING):
                continue
            if attempt is None:
                proposal, config = propose(self._search, number, self.attempts, self.definition)
            else:
                proposal, config = attempt.proposal, self._search.config(attempt.proposal.values)
            self._is_retried.discard(number)
            key = trial_key(config, self._setting.data.fingerprint, torch_version())
            is_asked_already = any(other.key == key and other.state is TrialState.RUNNING
                                   for other in self._attempts.values())
            known = self._known(key)
            self._attempts[number] = Attempt(proposal, key, TrialState.RUNNING)
            if is_asked_already:
                continue
            if attempt is None and known is not None and known.state in ENDED:
                self._settle(key, known)
                continue
            if known is not None:
                self._label(key, known)
            return self._specify(number, config, key)
        return None

    def _specify(self, number: int, config: Config, key: str) -> TrialSpec:
        setting = self._setting
        trial = Trial(f"{self._search.name} #{number}", config.seed, config, key, setting.data,
                      self._search.file.resources)
        (spec,) = specify([trial], study=self._search.name, place=setting.place, project=setting.project,
                          parent_run_id=setting.parent_run_id, environment=setting.environment,
                          is_private_tracked=setting.is_private_tracked)
        labels = {tag_of(self._search.name): as_tag(self._proposals(key))}
        return replace(spec, description={**spec.description, "studies": {}, "labels": labels})

    def _proposals(self, key: str) -> list[Proposal]:
        return [attempt.proposal for attempt in self.attempts if attempt.key == key]

    def ended(self, outcome: Outcome) -> None:
        """Read what a trial left in the store.

        Raises:
            TrackingError: the store stays away; the trial waits on this disk, and the same command goes on.
        """
        self.num_computed += outcome.state in ENDED
        numbers = [attempt.number for attempt in self.attempts if attempt.key == outcome.key]
        if outcome.state not in ENDED:
            self._given_up.update(numbers)
            for number in numbers:
                self._attempts[number] = replace(self._attempts[number], state=TrialState.MISSING)
            return
        place = self._setting.place
        known = self._known(outcome.key)
        if known is None or known.state not in ENDED:
            # The store was away when the trial ended, which lies on this disk.
            drain_spools(place, PATIENCE_SECONDS)
            known = self._known(outcome.key)
        if known is None or known.state not in ENDED:
            raise _away(place.uri)
        self._settle(outcome.key, known)

    def _known(self, key: str) -> MemberTrial | None:
        place = self._setting.place
        try:
            return trial_of(place.uri, place.experiment, key)
        except Exception as error:
            if is_away(error):
                raise _away(place.uri) from error
            raise

    def take_back(self) -> None:
        """Nobody computes what was handed out and has not ended: it is handed out again."""
        for number, attempt in self._attempts.items():
            if attempt.state is TrialState.RUNNING and number not in self._given_up:
                self._attempts[number] = replace(attempt, state=TrialState.MISSING)

    def _label(self, key: str, known: MemberTrial) -> None:
        """Let the run say which proposals it answers."""
        label_run(self._setting.place.uri, known.run_id, {tag_of(self._search.name): as_tag(self._proposals(key))})

    def _settle(self, key: str, known: MemberTrial) -> None:
        self._label(key, known)
        for proposal in self._proposals(key):
            self._attempts[proposal.number] = attempt_of(self._search, proposal, known)


def _away(uri: str) -> TrackingError:
    return TrackingError(f"tracking store {uri} is away, and a search cannot go on without it; start it and run the "
                         "same command again")
