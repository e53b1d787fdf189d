"""What several commands ask for: their options, the choices, and the settings that files and overrides make.

An option of one command stands with the command.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medst.config import Config

RESULTS = Path("results")


class Executor(StrEnum):
    ray = "ray"
    inline = "inline"


class Protocol(StrEnum):
    as_published = "as-published"
    corrected = "corrected"
    both = "both"


Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable. `medst config` lists them."),
]

DataRoot = Annotated[
    Path | None, typer.Option("--data", help="Folder of the data sets.", show_default="data.root of the settings")
]

Threads = Annotated[int, typer.Option(min=1, help="Processor threads. With one, a trial repeats bit for bit.")]

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study of sweeps/, or the path of a study file.")]

Base = Annotated[
    Path | None, typer.Option("--base", help="Experiment under all arms.", show_default="as the study says")
]

ExecutorOption = Annotated[
    Executor,
    typer.Option("--executor", help="ray: in parallel; inline: one after another in this process, for debuggers."),
]

Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Trials at a time.", show_default="one a core")]

RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Run trials again that failed.")]


def compose(experiments: list[Path] | None, assignments: list[str] | None, data: Path | None = None) -> Config:
    """The configuration of some files, overrides and a data root."""
    from medst.config import load_config, parse_overrides

    overrides = parse_overrides(assignments or [])
    if data is not None:
        overrides["data.root"] = str(data)
    return load_config(*(experiments or []), overrides=overrides)
