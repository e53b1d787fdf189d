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

    from medst.config import Config, DataConfig, Section
    from medst.data.store import Store
    from medst.records import Record

TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Nothing leaves the machine unless the user's own environment says so."""

EXTRAS = {"ray": "sweep", "optuna": "sweep", "mlflow": "sweep", "matplotlib": "analysis", "statsmodels": "analysis", "nbclient": "analysis"}
"""Library -> the extra that installs it."""

MODEL = "model"
"""Folder of the finished model inside a trial's folder; `run_trial` fills it."""
SETTINGS = "config.yaml"
"""The resolved settings beside a saved model."""
RESULTS = Path("results")

Experiments = Annotated[
    list[Path] | None, typer.Argument(metavar="EXPERIMENT.yaml", help="Settings; later files over earlier ones.")
]
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

app = typer.Typer(
    name="medst",
    help="Med-ST: pre-training on chest X-ray studies over views and time, and its ablation studies. "
    "Start with: medst sweep overview",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(no_args_is_help=True, help="Write the phantom data; prepare and look at phantom or real data.")
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


class Protocol(StrEnum):
    as_published = "as-published"
    corrected = "corrected"
    both = "both"


class Part(StrEnum):
    tables = "tables"
    figures = "figures"
    notebooks = "notebooks"


ExecutorOption = Annotated[
    Executor,
    typer.Option("--executor", help="ray: in parallel; inline: one after another in this process, for debuggers."),
]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Trials at a time.", show_default="one a core")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Run trials again that failed.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of all commands; `--debug` is read in `main`, where the errors arrive."""


# ---- Data --------------------------------------------------------------------------------------------------------


@data_app.command("phantom")
def data_phantom(
    preset: Annotated[str, typer.Option(help="tiny, small, paper or smoke.")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="data/phantom/<preset>")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="DIAL=VALUE", help="Turn a dial of the phantom; repeatable.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the bytes are the same whatever their number.")] = 1,
) -> None:
    """Write a phantom data set: chest radiographs and reports in the published layouts, with the exact truth."""
    from medst.config import parse_overrides
    from medst.data.phantom import generate, load_preset

    config = load_preset(preset, parse_overrides(assignments or []))
    folder = out or Path("data/phantom") / preset
    with progress_bars() as step:
        generate(config, folder, num_workers=workers, progress=step(f"phantom '{preset}'"))
    typer.echo(f"The phantom is in {folder}; look at it with: medst data inspect {folder}")


@data_app.command("prepare")
def data_prepare(
    experiments: Experiments = None,
    assignments: Assignments = None,
    data: DataRoot = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
) -> None:
    """Decode all images of a data root once, into the store that trials read. Other commands do it by themselves."""
    store = prepared_store(compose(experiments, assignments, data), workers)
    typer.echo(f"The store '{store.name}' is in {store.path}.")


@data_app.command("inspect")
def data_inspect(path: Annotated[Path, typer.Argument(help="A data root or a prepared store.")]) -> None:
    """Print counts, problems, and how hard the data are; for a phantom also its frequencies beside MIMIC-CXR's."""
    from medst.data.inspect import inspect

    typer.echo(inspect(path), nl=False)
    if (path / "truth").is_dir():
        from medst.data.phantom.marginals import marginals

        typer.echo("\nThe phantom beside MIMIC-CXR (verified: checked against a source; unverified: from memory)")
        typer.echo(marginals(path).to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    found = find_store(path)
    if found is None:
        typer.echo(f"\nHow hard the findings are shows once the images are decoded: medst data prepare --data {path}")
        return
    from medst.data.store import open_store
    from medst.evaluation.hardness import hardness_text

    store = open_store(found)
    if store.mimic is not None:
        typer.echo(hardness_text(store), nl=False)


def find_store(path: Path) -> DataConfig | None:
    """What opens the prepared store that `path` is, or that lies in the data root `path`; None without one."""
    import json

    from medst.config import DataConfig

    for manifest in (path / "manifest.json", *sorted(path.glob("store-*/manifest.json"))):
        if manifest.is_file():
            size = json.loads(manifest.read_text(encoding="utf-8"))["image_size"]
            return DataConfig(root=str(path), store=str(manifest.parent), image_size=size, crop_size=size)
    return None


@data_app.command("contact-sheet")
def data_contact_sheet(
    path: Annotated[Path, typer.Argument(help="A phantom data root.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("contact_sheet.png"),
    patients: Annotated[int, typer.Option(min=1, help="Test patients to draw.")] = 12,
) -> None:
    """Draw test patients over time: both views with the true boxes, and the words of the reports."""
    from medst.data.phantom.contact_sheet import contact_sheet

    contact_sheet(path, out, patients)
    typer.echo(f"The contact sheet is {out}.")


# ---- One trial ---------------------------------------------------------------------------------------------------


@app.command("train")
def train(
    experiments: Annotated[list[Path], typer.Argument(metavar="EXPERIMENT.yaml", help="Settings; later files win.")],
    assignments: Assignments = None,
    data: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints and model.", show_default="runs/train/<experiment>-<trial key>"),
    ] = None,
    track: Annotated[bool, typer.Option("--track", help="Track the trial in MLflow as sweeps do.")] = False,
    threads: Threads = 1,
) -> None:
    """Train one model, evaluate it and save it. After an interruption the same command goes on from its checkpoint."""
    config = compose(experiments, assignments, data)
    # After the settings are known to be right: these imports take seconds.
    import torch

    from medst.config import trial_key
    from medst.trial import run_trial

    store = prepared_store(config)
    torch.set_num_threads(threads)
    # As `medst.tracking.torch_version` reads it where torch is not imported.
    key = trial_key(config, store.fingerprint, str(torch.__version__))
    name = experiments[-1].stem
    folder = out or Path("runs/train") / f"{name}-{key[:8]}"
    claim_folder(folder, key, config)
    records = run_trial(config, folder)
    if track:
        records = tracked(records, config, store, key, name, folder / MODEL)
    show_records(records, name)
    typer.echo(f"The model is in {folder / MODEL}; judge it again with: medst evaluate --weights {folder / MODEL}")


def claim_folder(folder: Path, key: str, config: Config) -> None:
    """Record the resolved settings in the trial's folder, which must not hold another trial.

    Raises:
        ConfigError: the folder holds a trial of other settings, data or code.
    """
    import yaml

    from medst.config import ConfigError

    claim = folder / "trial_key.txt"
    if claim.exists() and claim.read_text() != key:
        raise ConfigError(f"--out {folder}: holds another trial (other settings, data or code); choose another folder")
    (folder / MODEL).mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    for path, text in ((folder / MODEL / SETTINGS, settings), (claim, key)):
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def tracked(records: Iterator[Record], config: Config, store: Store, key: str, name: str, model: Path
            ) -> Iterator[Record]:
    """The same records, written into the tracking store on their way.

    Raises:
        TrackingError: the store has this trial already, or cannot be reached.
    """
    from medst.config import source_fingerprint
    from medst.tracking import (
        TrackingPlace,
        TrialDescription,
        TrialState,
        describe_environment,
        is_private_tracking_allowed,
        load_runs,
        torch_version,
        track,
    )
    from medst.tracking.connection import TrackingError

    place = TrackingPlace.of_project()
    runs = load_runs(place.uri, place.experiment)
    finished = runs.loc[(runs["key"] == key) & (runs["state"] == TrialState.FINISHED.value), "run_id"]
    if len(finished):
        raise TrackingError(f"this trial is finished in the tracking store (run {finished.iloc[0]}) and is computed "
                            "once; train without --track to see it again")
    description = TrialDescription(
        config=config, key=key, arm=name, data_name=store.name, source_fingerprint=source_fingerprint(),
        data_fingerprint=store.fingerprint, is_credentialed=store.is_credentialed,
        torch_version=torch_version(), environment=describe_environment(),
        is_private_tracked=is_private_tracking_allowed(),
    )
    return track(records, description, place, model)


@app.command("evaluate")
def evaluate(
    weights: Annotated[Path, typer.Option(help="Folder of a saved model, as `medst train` leaves it.")],
    assignments: Assignments = None,
    data: DataRoot = None,
    protocol: Annotated[Protocol, typer.Option(help="Whose metrics to print.")] = Protocol.both,
    threads: Threads = 1,
) -> None:
    """Run the downstream tasks on a saved model and print the metrics."""
    import torch

    from medst import evaluation
    from medst.data.tokenizer import Tokenizer
    from medst.model import MedST

    torch.set_num_threads(threads)
    model = MedST.from_pretrained(weights)
    tokenizer = Tokenizer.load(weights)
    config = compose([weights / SETTINGS], assignments, data)
    store = prepared_store(config)
    model.to(config.training.device)
    show_records(evaluation.evaluate(model, store, tokenizer, config, step=0), weights.name, protocol)


# ---- Ablation studies --------------------------------------------------------------------------------------------


@sweep_app.command("run")
def sweep_run(
    study: StudyName = "overview",
    assignments: Assignments = None,
    base: Base = None,
    data: DataRoot = None,
    executor: ExecutorOption = Executor.ray,
    jobs: Jobs = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Run the trials of a study that are not finished yet, then print its tables. Stopped or killed: run it again."""
    from sweeps.commands import FINISHED_CODE, INTERRUPTED_CODE, run_sweep

    code = run_sweep(study, assignments or [], executor=executor.value, jobs=jobs, base=base, data_root=data,
                     should_retry_failed=retry_failed)
    if code != INTERRUPTED_CODE:
        report_study(study, base, is_complete=code == FINISHED_CODE)
    raise typer.Exit(code)


def report_study(study: str, base: Path | None, is_complete: bool) -> None:
    """Print the tables of a study, file its tables and figures, and say where everything is."""
    from analysis.results import make_results, print_tables
    from medst.tracking import TrackingPlace
    from sweeps.study import find_study, load_study

    place = TrackingPlace.of_project()
    name = load_study(find_study(study), base=[base] if base else []).name
    print_tables(place.uri, place.experiment, name)
    if is_complete:
        make_results(place.uri, place.experiment, RESULTS, studies=[name])
    else:
        typer.echo(f"Tables and figures of what is finished: make results, into {RESULTS}/.")
    typer.echo("Curves, parameters and trials: make dashboard.")


@sweep_app.command("plan")
def sweep_plan(
    study: StudyName = "overview",
    assignments: Assignments = None,
    base: Base = None,
    data: DataRoot = None,
    executor: ExecutorOption = Executor.ray,
    jobs: Jobs = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Print the arms of a study, what is done already and how long the rest takes. Runs nothing."""
    from sweeps.commands import plan_sweep

    raise typer.Exit(plan_sweep(study, assignments or [], executor=executor.value, jobs=jobs, base=base,
                                data_root=data, should_retry_failed=retry_failed))


# ---- Results -----------------------------------------------------------------------------------------------------


@app.command("results")
def results(
    part: Annotated[Part | None, typer.Argument(help="Only the tables or the figures; or run the notebooks.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = RESULTS,
    study: Annotated[list[str] | None, typer.Option(help="Only this study; repeatable.")] = None,
) -> None:
    """Make tables (Markdown, LaTeX, CSV, JSON), figures (PDF, PNG) and report.html from the tracking store alone.

    `notebooks` runs the notebooks of the paper's exhibits instead, and keeps what they show in OUT/notebooks.
    """
    from medst.tracking import TrackingPlace

    place = TrackingPlace.of_project()
    if part is Part.notebooks:
        from analysis.notebooks import run_notebooks

        run_notebooks(place.uri, out)
        return
    from analysis.results import make_results

    make_results(place.uri, place.experiment, out, only=part.value if part else None, studies=study)


@app.command("check-results")
def check_results(out: Annotated[Path, typer.Argument(help="Folder of results.")] = RESULTS) -> None:
    """Say what of the results is stale, incomplete or edited by hand; exit code 1 if anything is."""
    from analysis import checking
    from medst.tracking import TrackingPlace

    place = TrackingPlace.of_project()
    problems = checking.check_results(place.uri, place.experiment, out)
    for problem in problems:
        typer.echo(problem)
    if problems:
        typer.secho(f"{len(problems)} finding{'s' if len(problems) > 1 else ''} in {out}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1)
    typer.echo(f"The results in {out} are what the tracking store says.")


@app.command("trace")
def trace(
    table: Annotated[Path, typer.Argument(help="Any file of a table, as in results/tables/components.csv.")],
    cell: Annotated[str, typer.Option(help="Arm and metric, as in \"no local,AUROC\"; parts of names will do.")],
) -> None:
    """Print the runs behind one cell of a table: settings, code, data, and how to compute them again."""
    from analysis import trace as tracing
    from medst.tracking import TrackingPlace

    place = TrackingPlace.of_project()
    document = tracing.read_document(table)
    for line in tracing.trace(document, tracing.find_cell(document, cell), place.uri, place.experiment):
        typer.echo(line)


@app.command("dashboard")
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow on the tracking store, for this machine only."""
    from medst.tracking import default_uri
    from medst.tracking.connection import EXPERIMENT, find_experiment

    uri = default_uri()
    if uri.startswith(("http://", "https://")):
        typer.echo(f"The tracking server serves its own dashboard: {uri}")
        return
    require_free_port(port)
    experiment = find_experiment(uri, EXPERIMENT)
    # Without the parameter MLflow opens on traces and prompts, where no run is to be seen.
    page = f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning" if experiment else ""
    typer.echo(f"Dashboard in a few seconds on http://127.0.0.1:{port}{page}\nCtrl-C ends it. Store: {uri}")
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

    config = compose(experiments, assignments)
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


def compose(experiments: list[Path] | None, assignments: list[str] | None, data: Path | None = None) -> Config:
    """The configuration of some files, overrides and a data root."""
    from medst.config import load_config, parse_overrides

    overrides = parse_overrides(assignments or [])
    if data is not None:
        overrides["data.root"] = str(data)
    return load_config(*(experiments or []), overrides=overrides)


# ---- Printing ----------------------------------------------------------------------------------------------------


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


def prepared_store(config: Config, num_workers: int | None = None) -> Store:
    """The store of a configuration; a missing one, and a missing phantom, are made behind progress bars.

    Args:
        num_workers: processes and threads that make them; default: the processors of this machine.
    """
    from medst.data.provision import provide

    with progress_bars() as step:
        return provide(config.data, num_workers or os.cpu_count() or 1, step)


def show_records(records: Iterator[Record], title: str, protocol: Protocol = Protocol.both) -> None:
    """Follow records: a bar with the loss in training, then the test metrics and what was skipped."""
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
        is_as_published = name.endswith("as_published")
        if protocol is Protocol.both or is_as_published == (protocol is Protocol.as_published):
            job, _, metric = name.removeprefix("test/").partition("/")
            table.add_row(job, metric, f"{value:.4f}")
    Console().print(table)
    for name, reason in skipped.items():
        typer.echo(f"skipped {name}: {reason}")


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
        if is_debug or (isinstance(error, ModuleNotFoundError) and extra_of(error) is None):
            raise
        refuse(explain(error))
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. The same command goes on where this one stopped.", err=True)
        raise SystemExit(130) from None
