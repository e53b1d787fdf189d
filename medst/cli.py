"""The command line: parses, composes and prints. Nothing is computed here.

The front door opens last: every heavy import stands inside the command that needs it, so that help is
instant and a missing extra is missed only where it is used. Errors of the user (ValueError and its kind,
and what the operating system refuses) become one red line and exit code 2; `--debug` shows where they
come from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar

    from medst.config import Config, Section

TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Nothing leaves the machine unless the user's own environment says so."""

EXTRAS = {"ray": "sweep", "optuna": "sweep", "mlflow": "sweep", "matplotlib": "analysis", "statsmodels": "analysis"}
"""Library -> the extra that installs it."""

Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable. `medst config` lists them."),
]

app = typer.Typer(
    name="medst",
    help="Med-ST: pre-training on chest X-ray studies over views and time, and its ablation studies.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(no_args_is_help=True, help="Write phantom data; look at phantom or real data.")
sweep_app = typer.Typer(no_args_is_help=True, help="Ablation studies. `medst sweep STUDY` is `medst sweep run STUDY`.")
config_app = typer.Typer(help="Settings: all of them with default and meaning, or those of one experiment.")
app.add_typer(data_app, name="data")
app.add_typer(sweep_app, name="sweep")
app.add_typer(config_app, name="config")


class PortTakenError(ValueError):
    """Another program listens on the port."""


class Executor(StrEnum):
    ray = "ray"
    inline = "inline"


class Part(StrEnum):
    tables = "tables"
    figures = "figures"


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of all commands; `--debug` is read in `main`, where the errors arrive."""


# ---- Data --------------------------------------------------------------------------------------------------------


@data_app.command("phantom")
def data_phantom(
    out: Annotated[Path | None, typer.Option(help="Folder to write; data/phantom/<preset> if not given.")] = None,
    preset: Annotated[str, typer.Option(help="tiny, small, paper or smoke.")] = "tiny",
    assignments: Assignments = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the data are the same whatever their number.")] = 1,
) -> None:
    """Write a phantom data set: chest radiographs and reports in the published layouts, with the exact truth."""
    from medst.config import nearest
    from medst.data.phantom import PRESETS, generate

    if preset not in PRESETS:
        guess = nearest(preset, PRESETS)
        hint = f"; did you mean {guess}?" if guess else ""
        raise ValueError(f"--preset {preset}: there are {', '.join(PRESETS)}{hint}")
    config = PRESETS[preset]
    folder = out or Path("data/phantom") / preset
    with progress_bar("Phantom") as report:
        generate(config, folder, num_workers=workers, progress=report)
    typer.echo(f"The phantom '{preset}' is in {folder}.")


@data_app.command("inspect")
def data_inspect(path: Annotated[Path, typer.Argument(help="A data root or a prepared store.")]) -> None:
    """Print counts, marginals, problems, and how hard the data are for a linear probe on pixels."""
    from medst.data.inspect import inspect

    typer.echo(inspect(path))


# ---- Results -----------------------------------------------------------------------------------------------------


@app.command("dashboard")
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow on the tracking store, for this machine only."""
    from medst.tracking import default_uri

    uri = default_uri()
    if uri.startswith(("http://", "https://")):
        typer.echo(f"The tracking server serves its own dashboard: {uri}")
        return
    require_free_port(port)
    typer.echo(f"Dashboard on http://127.0.0.1:{port} in a few seconds; Ctrl-C ends it. Store: {uri}")
    # One worker and no job queue: a reviewer on this machine needs no more.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1",
               "--port", str(port), "--workers", "1"]
    sys.stdout.flush()
    os.execv(command[0], command)


def is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_free_port(port: int) -> None:
    """Raise PortTakenError, naming a free port, if another program listens on 127.0.0.1:`port`."""
    if is_free(port):
        return
    free = next((other for other in range(port + 1, min(port + 100, 65536)) if is_free(other)), None)
    remedy = f"; port {free} is free: make dashboard PORT={free}, or medst dashboard --port {free}" if free else ""
    raise PortTakenError(f"port {port} on 127.0.0.1 is taken, perhaps by another dashboard{remedy}")


# ---- Config ------------------------------------------------------------------------------------------------------


@config_app.callback(invoke_without_command=True)
def config_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        config_keys("")


@config_app.command("keys")
def config_keys(
    part: Annotated[str, typer.Argument(help="Only keys that contain this, as in `objective` or `temperature`.")] = "",
) -> None:
    """List every setting with its default and its meaning."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from medst.config import Config, ConfigError, flatten, known_keys, nearest

    documentation = field_documentation(Config)
    found = {key: value for key, value in flatten(Config()).items() if part in key}
    if not found:
        guess = nearest(part, known_keys())
        raise ConfigError(f"no key contains '{part}'" + (f"; the nearest key is '{guess}'" if guess else ""))
    table = Table("key", "default", "meaning", box=None, header_style="bold", pad_edge=False)
    for key, value in found.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(Text(key, style="cyan"), Text(shown), Text(documentation.get(key, "")))
    Console().print(table)


@config_app.command("show")
def config_show(
    experiments: Annotated[list[Path] | None, typer.Argument(help="YAML files, later ones over earlier ones.")] = None,
    assignments: Assignments = None,
) -> None:
    """Print the whole configuration that files and overrides make, as YAML."""
    import yaml

    config = compose(experiments or [], assignments)
    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)


def field_documentation(section: type[Section], prefix: str = "") -> dict[str, str]:
    """Dotted key -> the text that stands below the field in the source, as one line."""
    import ast
    import inspect
    import textwrap

    from medst.config import Section

    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        key = f"{prefix}{field.target.id}"
        kind = section.model_fields[field.target.id].annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found.update(field_documentation(kind, f"{key}."))
        elif isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[key] = " ".join(str(after.value.value).split())
    return found


def compose(experiments: list[Path], assignments: list[str] | None) -> Config:
    """The configuration of some files and overrides."""
    from medst.config import load_config, parse_overrides

    return load_config(*experiments, overrides=parse_overrides(assignments or []))


# ---- Printing ----------------------------------------------------------------------------------------------------


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with time left on the terminal, as a function of (done, total)."""
    with new_bar() as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def new_bar() -> ProgressBar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"),
        console=Console(stderr=True),
    )


def is_study(arguments: list[str]) -> bool:
    """True where the words after `medst sweep` begin with a study instead of a subcommand or an option."""
    subcommands = {command.name for command in sweep_app.registered_commands}
    return bool(arguments) and not arguments[0].startswith("-") and arguments[0] not in subcommands


def explain(error: Exception) -> str:
    """What the user needs to know of an error: what, where, remedy."""
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").split(".")[0])
        return f"{error}" + (f"; install it with: pip install 'medst[{extra}]'" if extra else "")
    if isinstance(error, OSError) and error.strerror:
        places = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{places}: {error.strerror}" if places else error.strerror
    return str(error) or type(error).__name__


def refuse(message: str) -> NoReturn:
    """Print an error to the terminal and end with exit code 2."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise SystemExit(2)


def main() -> None:
    """Run the command line of this process."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    arguments = sys.argv[1:]
    is_debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if arguments[:1] == ["sweep"] and is_study(arguments[1:]):
        arguments.insert(1, "run")
    try:
        app(args=arguments)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if is_debug:
            raise
        refuse(explain(error))
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. The same command goes on where this one stopped.", err=True)
        raise SystemExit(130) from None
