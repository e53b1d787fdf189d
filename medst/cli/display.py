"""What the terminal shows on the way: progress bars, a trial's records, and errors in words.

What only one command prints stands with the command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from medst.cli.options import Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar

    from medst.config import Config
    from medst.data.store import Store
    from medst.records import Record

EXTRAS = {"ray": "sweep", "optuna": "sweep", "mlflow": "sweep", "matplotlib": "analysis", "statsmodels": "analysis",
          "nbclient": "analysis"}
"""Library -> the extra that installs it."""


def new_bar() -> ProgressBar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"),
        console=Console(stderr=True),
    )


@contextmanager
def progress_bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A function that takes the title of a step and returns what is told (done, in all).

    Each step gets a bar with the time left; the bars appear when there is something to report.
    """
    bars = new_bar()

    def step(title: str) -> Callable[[int, int], None]:
        task = bars.add_task(title, total=None, visible=False)

        def report(done: int, total: int) -> None:
            if not bars.live.is_started:
                bars.start()
            bars.update(task, completed=done, total=total, visible=True)

        return report

    try:
        yield step
    finally:
        if bars.live.is_started:
            bars.stop()


def prepared_store(config: Config, num_workers: int | None = None, *, check_files: bool = False) -> Store:
    """The store of a configuration; a missing one, and a missing phantom, are made behind progress bars.

    Args:
        num_workers: processes and threads that make them; default: the processors of this machine.
        check_files: look at every image and report, whether it is as it was.
    """
    from medst.data.provision import provide

    with progress_bars() as step:
        return provide(config.data, num_workers or os.cpu_count() or 1, step, check_files=check_files)


def show_records(records: Iterator[Record], title: str, protocol: Protocol = Protocol.both) -> dict[str, float]:
    """Follow records: a bar with the loss in training, then the test metrics and what was skipped.

    Returns:
        All test metrics, whatever the protocol.
    """
    from rich.console import Console
    from rich.table import Table

    from medst.records import Facts, Metrics, Progress

    tests: dict[str, float] = {}
    skipped: dict[str, str] = {}
    with new_bar() as bar:
        task = bar.add_task(title, total=None)
        for record in records:
            if isinstance(record, Progress):
                bar.update(task, completed=record.step, total=record.num_steps)
                if record.step == record.num_steps:
                    bar.update(task, description=f"{title}, evaluating")
            elif isinstance(record, Metrics):
                tests.update({name: value for name, value in record.values.items() if name.startswith("test/")})
                loss = next((f"{name} {record.values[name]:.3f}" for name in ("validation/loss", "train/loss")
                             if name in record.values), None)
                if loss is not None and not tests:
                    bar.update(task, description=f"{title}, {loss}")
            elif isinstance(record, Facts):
                skipped.update({name.removeprefix("skipped."): str(value) for name, value in record.values.items()
                                if name.startswith("skipped.")})
    table = Table("task", "metric", "value", box=None, header_style="bold", pad_edge=False)
    for name, value in tests.items():
        if is_shown(name, protocol):
            job, _, metric = name.removeprefix("test/").partition("/")
            table.add_row(job, metric, f"{value:.4f}")
    Console().print(table)
    for name, reason in skipped.items():
        typer.echo(f"skipped {name}: {reason}")
    return tests


def is_shown(metric: str, protocol: Protocol) -> bool:
    """True where a metric belongs to the protocol that was asked for."""
    return protocol is Protocol.both or metric.endswith("as_published") == (protocol is Protocol.as_published)


def extra_of(error: ModuleNotFoundError) -> str | None:
    """The extra whose absence an import error shows; None where something else is wrong."""
    return EXTRAS.get((error.name or "").split(".")[0])


def explain(error: Exception) -> str:
    """What the user needs to know of an error: what, where, remedy."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; install it with: pip install 'medst[{extra_of(error)}]'"
    if isinstance(error, OSError) and error.strerror:
        places = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{places}: {error.strerror}" if places else error.strerror
    return str(error) or type(error).__name__


def refuse(message: str) -> NoReturn:
    """Print an error to the terminal and end with exit code 2."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise SystemExit(2)
