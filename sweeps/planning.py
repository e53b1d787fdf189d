"""What a study would do: arms, trials, what is done, what is shared, how long the rest takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from rich.table import Table

from medst.tracking import TrialState
from sweeps.ledger import Ledger
from sweeps.live import duration
from sweeps.study import Study
from sweeps.trials import Trial


@dataclass(frozen=True)
class Plan:
    """A study against the ledger."""

    study: Study
    trials: Sequence[Trial]
    ledger: Ledger
    num_parallel: int

    @property
    def keys(self) -> list[str]:
        return [trial.key for trial in self.trials]

    def count(self, state: TrialState) -> int:
        return len(self.ledger.keys_in(state, self.keys))

    def num_shared(self) -> int:
        """Trials that are finished and serve another study too, or did before this one asked for them."""
        entries = (self.ledger[key] for key in self.keys)
        return sum(entry.state is TrialState.FINISHED and bool(set(entry.studies or ()) - {self.study.name})
                   for entry in entries)

    def seconds_per_trial(self) -> tuple[float, bool]:
        """Mean of the study's measured trials, else the guess of its file; whether it was measured."""
        measured = self.ledger.measured_seconds(self.keys)
        return (fmean(measured), True) if measured else (self.study.file.seconds_per_trial, False)

    def show(self, console: Console, num_to_run: int) -> None:
        """Print the plan. Takes what is to run from the caller, who knows whether failed trials are retried."""
        file = self.study.file
        console.print(f"[bold]{file.name}[/bold]: {file.question.strip()}", highlight=False)
        table = Table("arm", "finished", "failed", "to do", box=None, pad_edge=False, header_style="dim")
        by_arm: dict[str, list[TrialState]] = {}
        for trial in self.trials:
            by_arm.setdefault(trial.arm, []).append(self.ledger[trial.key].state)
        for arm, states in by_arm.items():
            finished, failed = states.count(TrialState.FINISHED), states.count(TrialState.FAILED)
            name = f"{arm} (reference)" if arm == file.reference else arm
            table.add_row(name, str(finished), str(failed or ""), str(len(states) - finished - failed or ""))
        console.print(table)
        seconds, is_measured = self.seconds_per_trial()
        source = "measured" if is_measured else "a guess"
        shared = self.num_shared()
        console.print(
            f"{len(by_arm)} arms x {len(file.seeds)} seeds = {len(self.trials)} trials; "
            f"{self.count(TrialState.FINISHED)} finished"
            + (f" ({shared} shared with other studies)" if shared else "")
            + (f", {failed} failed" if (failed := self.count(TrialState.FAILED)) else "")
            + f", {num_to_run} to run"
            + (f": about {duration(num_to_run * seconds / self.num_parallel)} on {self.num_parallel} "
               f"{'core' if self.num_parallel == 1 else 'cores'} ({seconds:.0f} s a trial, {source})."
               if num_to_run else "."),
            highlight=False)
