"""The live view of a running study: bars on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from medst.data.building import Step
from medst.tracking import TrialState
from sweeps.worker import Outcome

LINE_SECONDS = 30.0
"""Longest silence where there is no terminal."""
TRAINING_SHARE = 0.85
"""Share of a trial's time that training takes, for the estimate; evaluation takes the rest."""


def duration(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class LiveView(AbstractContextManager["LiveView"]):
    """Told of starts, progress and ends by trial name; shows them. Used from one thread."""

    def __init__(self, study: str, num_trials: int, seconds: float, num_parallel: int,
                 console: Console | None = None) -> None:
        self._study = study
        self._num_trials = num_trials
        self._guess = seconds / max(1, num_parallel)
        self._console = console or Console()
        self._began = time.monotonic()
        self._spoke = self._began
        self._finished = self._pruned = self._failed = self._elsewhere = self._lost = 0
        self._shares: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[status]}"),
            console=self._console, disable=not self._console.is_terminal, transient=True)
        self._total = self._bars.add_task(f"[bold]{study}", total=float(num_trials), status="")

    def __enter__(self) -> LiveView:
        self._bars.start()
        self._refresh()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._bars.stop()

    def started(self, name: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(f"  {name}", total=1.0, status="starting")
            self._shares[name] = 0.0

    def progressed(self, name: str, step: int, num_steps: int) -> None:
        self.started(name)
        share = step / max(1, num_steps)
        self._shares[name] = TRAINING_SHARE * share
        status = f"step {step}/{num_steps}" if step < num_steps else "evaluating"
        self._bars.update(self._tasks[name], completed=TRAINING_SHARE * share, status=status)
        self._refresh()

    def lost(self, name: str) -> None:
        """The trial's worker is gone; it starts again or is given up."""
        self._shares.pop(name, None)
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))

    def ended(self, outcome: Outcome) -> None:
        self.lost(outcome.name)
        if outcome.state is TrialState.FINISHED:
            self._finished += 1
        elif outcome.state is TrialState.PRUNED:
            self._pruned += 1
        elif outcome.state is TrialState.RUNNING:
            self._elsewhere += 1
        else:
            self._failed += outcome.state is TrialState.FAILED
            self._lost += outcome.state is not TrialState.FAILED
            self._console.print(f"{outcome.state.value}: {outcome.name}: {outcome.reason}", markup=False,
                                highlight=False, soft_wrap=True)
        self._refresh(is_news=True)

    def tick(self) -> None:
        """Called now and then while nothing happens."""
        self._refresh()

    def _done(self) -> float:
        return (self._finished + self._pruned + self._failed + self._elsewhere + self._lost
                + sum(self._shares.values()))

    def _time_left(self) -> str:
        elapsed, done = time.monotonic() - self._began, self._done()
        if done == self._num_trials:
            return ""
        if done > sum(self._shares.values()):
            # At least one trial has ended; before that, the start of the workers would weigh too much.
            return f", about {duration(elapsed / done * (self._num_trials - done))} left"
        return f", about {duration(self._guess - elapsed)} left" if elapsed < self._guess else ""

    def _summary(self) -> str:
        pruned = f", {self._pruned} pruned" if self._pruned else ""
        failed = f", {self._failed} failed" if self._failed else ""
        elsewhere = f", {self._elsewhere} with other drivers" if self._elsewhere else ""
        lost = f", {self._lost} not run" if self._lost else ""
        return (f"{self._finished} of {self._num_trials} done{pruned}{failed}{elsewhere}{lost}, "
                f"{len(self._shares)} running{self._time_left()}")

    def _refresh(self, is_news: bool = False) -> None:
        self._bars.update(self._total, completed=self._done(), status=self._summary())
        now = time.monotonic()
        if not self._console.is_terminal and (is_news or now - self._spoke > LINE_SECONDS):
            self._console.print(f"{self._study}: {self._summary()}", markup=False, highlight=False, soft_wrap=True)
            self._spoke = now


def progress_line(console: Console) -> Step:
    """A `medst.data.provision.Step` that prints a line at the begin and at the end of what takes long."""

    def step(title: str) -> Callable[[int, int], None]:
        began = time.monotonic()
        spoke = [began - LINE_SECONDS + 2.0]

        def report(done: int, total: int) -> None:
            now = time.monotonic()
            if now - spoke[0] > LINE_SECONDS or (done == total and now - began > 2.0):
                spoke[0] = now
                console.print(f"{title}: {done} of {total}, {duration(now - began)}", highlight=False)
        return report
    return step
