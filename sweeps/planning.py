"""What a study would do: arms, trials, what is done, what is shared, what it aliases, how long the rest takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from medst.tracking import TrialState
from sweeps.designs import Fraction
from sweeps.ledger import Ledger
from sweeps.live import duration
from sweeps.study import Study
from sweeps.trials import Trial
from sweeps.tuning import Choice, candidates

MAX_LINES = 12
"""Lines of a list that a plan prints before it only counts the rest."""


@dataclass(frozen=True)
class Plan:
    """A study against the ledger."""

    study: Study
    trials: Sequence[Trial]
    """Those that the study is evaluated by, as far as their arms are decided."""
    ledger: Ledger
    num_parallel: int
    tuning: Sequence[Trial] = ()
    """Those that choose the nuisance parameters."""
    chosen: Mapping[str, Choice] = field(default_factory=dict)
    """Arm -> its nuisance parameters, where the study tunes some."""

    @property
    def keys(self) -> list[str]:
        return [trial.key for trial in self.trials]

    @property
    def all_keys(self) -> list[str]:
        """Of the trials that choose nuisance parameters, too."""
        return [trial.key for trial in (*self.tuning, *self.trials)]

    @property
    def num_undecided(self) -> int:
        """Trials whose arm waits for its tuning."""
        return len(self.study.arms) * len(self.study.replicates) - len(self.trials)

    @property
    def is_complete(self) -> bool:
        """True where every arm is decided and every trial finished."""
        return self.num_undecided == 0 and self.count(TrialState.FINISHED) == len(self.trials)

    @property
    def has_failed(self) -> bool:
        """True where every trial has ended and some have failed."""
        num_failed = self.count(TrialState.FAILED)
        return num_failed > 0 and self.num_undecided == 0 and (
            self.count(TrialState.FINISHED) + num_failed == len(self.trials))

    def count(self, state: TrialState) -> int:
        return len(self.ledger.keys_in(state, self.keys))

    def shared_with(self) -> Counter[str]:
        """Other study -> how many finished trials it has in common with this one."""
        entries = (self.ledger[key] for key in self.keys)
        return Counter(other for entry in entries if entry.state is TrialState.FINISHED
                       for other in (entry.studies or ()) if other != self.study.name)

    def num_shared(self) -> int:
        """Trials that are finished and serve another study too, or did before this one asked for them."""
        entries = (self.ledger[key] for key in self.keys)
        return sum(entry.state is TrialState.FINISHED and bool(set(entry.studies or ()) - {self.study.name})
                   for entry in entries)

    @property
    def _has_own_base(self) -> bool:
        """Whether the experiments under all arms are those of the file, by their names: folders may differ."""
        return [Path(base).name for base in self.study.base] == [Path(base).name for base in self.study.file.base]

    @cached_property
    def _measured(self) -> Mapping[Hashable, float]:
        """Arm, and length of training -> mean seconds of their finished trials."""
        found: dict[Hashable, list[float]] = {}
        for trial in (*self.trials, *self.tuning):
            for seconds in self.ledger.measured_seconds([trial.key]):
                found.setdefault(trial.arm, []).append(seconds)
                found.setdefault(_length(trial), []).append(seconds)
        return {key: fmean(seconds) for key, seconds in found.items()}

    def is_measured(self, trial: Trial) -> bool:
        """Whether a trial of its arm, or one that trains for as long, has been measured."""
        return trial.arm in self._measured or _length(trial) in self._measured

    def seconds(self, trials: Iterable[Trial]) -> Iterator[float]:
        """What each will take: as its arm did, else as trials that train as long, else the guess of the file."""
        guess = self.study.file.seconds_per_trial
        for trial in trials:
            yield self._measured.get(trial.arm, self._measured.get(_length(trial), guess))

    def show(self, console: Console, to_run: Sequence[Trial]) -> None:
        """Print the plan. Takes what is to run from the caller, who knows whether failed trials are retried."""
        file = self.study.file
        console.print(f"[bold]{file.name}[/bold]: {file.question.strip()}", highlight=False)
        console.print(self._arms())
        for line in self._remarks():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        draws = f" x {len(file.phantom_draws)} draws" if len(file.phantom_draws) > 1 else ""
        shared, num_failed = self.num_shared(), self.count(TrialState.FAILED)
        console.print(
            f"{len(self.study.arms)} arms x {len(file.seeds)} seeds{draws} = "
            f"{len(self.study.arms) * len(self.study.replicates)} trials; {self.count(TrialState.FINISHED)} finished"
            + (f" ({shared} shared with other studies)" if shared else "")
            + (f", {num_failed} failed" if num_failed else "")
            + (f", {self.num_undecided} wait for their tuning" if self.num_undecided else "")
            + f", {len(to_run)} to run" + self._estimate(to_run), highlight=False)

    def _arms(self) -> Table:
        table = Table("arm", "finished", "failed", "to do", box=None, pad_edge=False, header_style="dim")
        by_arm: dict[str, list[TrialState]] = {arm.name: [] for arm in self.study.arms}
        for trial in self.trials:
            by_arm[trial.arm].append(self.ledger[trial.key].state)
        for arm, states in by_arm.items():
            finished, failed = states.count(TrialState.FINISHED), states.count(TrialState.FAILED)
            name = f"{arm} (reference)" if arm == self.study.file.reference else arm
            table.add_row(name, str(finished), str(failed or ""),
                          str(len(self.study.replicates) - finished - failed or ""))
        return table

    def _remarks(self) -> Iterator[str]:
        shared = self.shared_with()
        if shared:
            yield "Shared with " + ", ".join(f"{study} ({number})" for study, number in shared.most_common()) + "."
        left_out = self.study.left_out
        if left_out:
            yield (f"{len(left_out)} combinations left out by the constraints: "
                   + "; ".join(_head(left_out)) + ".")
        if self.study.fraction is not None:
            yield from alias_lines(self.study.fraction, self._fraction_labels())
        if self.study.file.tuning is not None:
            yield from self._tuning_lines()
        yield from self._outcome_lines()

    def _outcome_lines(self) -> Iterator[str]:
        """Outcomes that the data cannot give."""
        data = next((trial.data for trial in (*self.trials, *self.tuning)), None)
        missing = {} if data is None else data.missing_tasks
        file = self.study.file
        lacking = [metric for metric in (file.primary_metric, *file.secondary_metrics)
                   if metric.split("/")[1:2] and metric.split("/")[1] in missing]
        if lacking:
            told = "; ".join(f"{metric} ({missing[metric.split('/')[1]]})" for metric in lacking)
            yield f"Without result on these data: {told}."
        if file.primary_metric in lacking:
            yield "The primary outcome is one of them: choose a study with another one, or change it in the study file."

    def _fraction_labels(self) -> list[str]:
        section = self.study.file.fractional
        assert section is not None
        return [factor.label or key.rsplit(".", 1)[-1] for key, factor in section.factors.items()]

    def _tuning_lines(self) -> Iterator[str]:
        tuning = self.study.file.tuning
        assert tuning is not None
        tried = candidates(tuning)
        done = sum(self.ledger[trial.key].state in (TrialState.FINISHED, TrialState.FAILED) for trial in self.tuning)
        yield (f"Tuning of {', '.join(tuning.factors)}: {len(tried)} candidates x {len(self.study.arms)} arms x "
               f"{len(tuning.seeds)} seeds = {len(self.tuning)} trials on validation patients, {done} done; the "
               f"{'lowest' if tuning.direction == 'lower' else 'highest'} {tuning.metric} is chosen for each arm.")
        for arm, choice in self.chosen.items():
            edge = f", at the edge of what was tried: {', '.join(choice.edges)}" if choice.edges else ""
            yield f"  {arm}: {choice.candidate.name} ({choice.score:.4g}{edge})"

    def _estimate(self, to_run: Sequence[Trial]) -> str:
        if not to_run:
            return "."
        is_measured = all(map(self.is_measured, to_run))
        if not is_measured and not self._has_own_base:
            return (": their time is not known before one is finished, since the study's guess is for its own base; "
                    "`medst sweep plan --dry-run` estimates it from a few pairs.")
        seconds = list(self.seconds(to_run))
        cpu = sum(time * trial.resources.cpus for time, trial in zip(seconds, to_run, strict=True))
        gpu = sum(time * trial.num_gpus for time, trial in zip(seconds, to_run, strict=True))
        mean = fmean(seconds)
        undecided = self.num_undecided * mean
        cost = f"{(cpu + undecided) / 3600:.1f} core hours" + (f", {gpu / 3600:.1f} GPU hours" if gpu else "")
        later = " with what waits" if undecided else ""
        return (f": about {duration((cpu + undecided) / self.num_parallel)}{later} on {self.num_parallel} "
                f"{'core' if self.num_parallel == 1 else 'cores'} ({mean:.0f} s a trial, "
                f"{'measured' if is_measured else 'a guess'}), {cost}.")


def _length(trial: Trial) -> Hashable:
    training = trial.config.training
    return training.epochs, training.mgca_epochs


def alias_lines(fraction: Fraction, labels: Sequence[str]) -> Iterator[str]:
    """What a fraction is and what it cannot tell apart."""
    def product(effect: Iterable[int]) -> str:
        return " x ".join(labels[factor] for factor in sorted(effect))

    resolution = fraction.resolution()
    if resolution is None:
        yield f"Fraction: {fraction.num_runs} runs, all combinations: nothing is aliased."
        return
    generators = "; ".join(f"{labels[factor]} = {product(base)}" for factor, base in fraction.generators())
    yield (f"Fraction: {fraction.num_runs} of {2 ** len(labels)} combinations, resolution {resolution}; "
           f"generators: {generators}.")
    groups = fraction.aliases()
    if groups:
        yield "Aliased (of main effects and interactions of two):"
        yield from (f"  {line}" for line in _head([" = ".join(map(product, group)) for group in groups]))
    else:
        yield "No main effect and no interaction of two is aliased with another."


def _head(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], *([f"and {rest} more"] if rest > 0 else [])]
