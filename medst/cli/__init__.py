"""The command line: parses, composes and prints. Nothing is computed here.

Where is a command? The list below says in which module it lives; `options` and `display` hold what several
of them share. Every import of another room stands inside the command that needs it, so that help is
instant and a missing extra is missed only where it is used. Errors of the user (ValueError and its kind,
and what the operating system refuses) become one red line and exit code 2; `--debug` shows where they
come from.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from medst.cli import dashboard, data, results, settings, sweep, training
from medst.cli.display import explain, extra_of, refuse

TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Nothing leaves the machine unless the user's own environment says so."""

app = typer.Typer(
    name="medst",
    help="Med-ST: pre-training on chest X-ray studies over views and time, and its ablation studies. "
    "Start with: medst sweep overview",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(training.train)
app.command("evaluate")(training.evaluate)
app.command("search")(sweep.search)
app.command("audit")(sweep.audit)
app.command("results")(results.results)
app.command("check-results")(results.check_results)
app.command("diff")(results.diff)
app.command("trace")(results.trace)
app.command("dashboard")(dashboard.dashboard)
app.command("promote")(dashboard.promote)
app.command("pull")(dashboard.pull)
app.add_typer(data.data_app, name="data")
app.add_typer(sweep.sweep_app, name="sweep")
app.add_typer(settings.config_app, name="config")


@app.callback()
def global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of all commands; `--debug` is read in `main`, where the errors arrive."""


def main() -> None:
    """Run the command line of this process."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    arguments = sys.argv[1:]
    is_debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if arguments[:1] == ["sweep"] and sweep.is_study(arguments[1:]):
        arguments.insert(1, "run")
    try:
        app(args=arguments)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if is_debug or (isinstance(error, ModuleNotFoundError) and extra_of(error) is None):
            raise
        refuse(explain(error))
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. The same command goes on where this one stopped.", err=True)
        raise SystemExit(130) from None
