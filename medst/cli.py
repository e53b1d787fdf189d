"""The command line: parses, composes and prints. Nothing is computed here.

The front door opens last: every heavy import stands inside the command that needs it, so that help is
instant and a missing extra is missed only where it is used. Errors of the user (ValueError and its kind,
and what the operating system refuses) become one red line and exit code 2; `--debug` shows where they
come from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

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

EXTRAS = {"ray": "sweep", "optuna": "sweep", "mlflow": "sweep", "matplotlib": "analysis", "statsmodels": "analysis",
          "nbclient": "analysis"}
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


class Share(StrEnum):
    budget = "budget"
    data = "data"


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
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATA_SET | EXPERIMENT.yaml]", help="A data set that lies apart: mimic-cxr, ms-cxr-t, "
                       "ms-cxr, rsna, covidx, open-i, covid-chestxray, chexpert-plus. Or settings of a data root."),
    ] = None,
    assignments: Assignments = None,
    data: DataRoot = None,
    images: Annotated[Path | None, typer.Option(help="Data set: folder of its images and tables.")] = None,
    reports: Annotated[
        Path | None, typer.Option(help="mimic-cxr, open-i: folder of the reports, archive or sectioned CSV.")
    ] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Data set: folder of its tables.", show_default="beside the images")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Data set: store to make, or to add to.")] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Data set: side of the stored squares in pixels.")] = 256,
    partial: Annotated[
        bool, typer.Option("--partial", help="mimic-cxr: leave out, and count, images that are not downloaded.")
    ] = False,
    version: Annotated[str, typer.Option(help="covidx: number of the split files.")] = "9A",
    credentialed: Annotated[
        bool | None,
        typer.Option("--credentialed/--open", help="Data set: whether text, images and ids must stay at home.",
                     show_default="as its licence says"),
    ] = None,
    largest_unreadable: Annotated[
        float, typer.Option(min=0, max=1, help="Data set: share of unreadable images above which the work stops.")
    ] = 0.02,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
) -> None:
    """Decode all images and clean all reports once, into the store that trials read.

    For a data root, --data ROOT; other commands do it by themselves. For a data set that lies apart, its name with
    --images and --out; a second data set with the same --out is added. Killed: the same command goes on.
    """
    places = {"--images": images, "--reports": reports, "--tables": tables, "--out": out}
    name = what[0] if what and len(what) == 1 and not what[0].endswith((".yaml", ".yml")) else None
    if name is None:
        given = [option for option, value in places.items() if value is not None]
        if given:
            raise ValueError(f"{', '.join(given)}: name the data set first, as in: medst data prepare mimic-cxr "
                             "--images ROOT --reports ROOT --out STORE")
        store = prepared_store(compose([Path(path) for path in what or []], assignments, data), workers)
    else:
        store = prepare_named(name, places, image_size, partial, version, credentialed, largest_unreadable, workers)
    describe_store(store)


def prepare_named(name: str, places: dict[str, Path | None], image_size: int, is_partial: bool, version: str,
                  is_credentialed: bool | None, largest_unreadable: float, workers: int | None) -> Store:
    """Put a data set that lies apart into a store."""
    from medst.config import nearest
    from medst.data.sources import DATA_SETS, IS_CREDENTIALED, Source
    from medst.data.store import prepare_set

    known = {data_set.removesuffix("-jpg"): data_set for data_set in DATA_SETS}
    if name not in known:
        guess = nearest(name, known)
        raise ValueError(f"{name}: no data set" + (f"; did you mean {guess}?" if guess else "")
                         + f" Known are: {', '.join(known)}")
    needed = {"mimic-cxr": ("--images", "--reports", "--out")}.get(name, ("--images", "--out"))
    if name in ("ms-cxr-t", "ms-cxr"):
        places["--images"] = places["--images"] or places["--tables"]
        needed = ("--tables", "--out")
    missing = [option for option in needed if places[option] is None]
    if missing:
        raise ValueError(f"medst data prepare {name} needs {' and '.join(missing)}; docs/data.md shows the commands")
    absent = [f"{option} {path}" for option, path in places.items()
              if option != "--out" and path is not None and not path.exists()]
    if absent:
        raise ValueError(f"{', '.join(absent)}: no such file or folder")
    place = {option: str(path.absolute()) if path is not None else "" for option, path in places.items()}
    source = Source(place["--images"], place["--reports"], place["--tables"], is_partial,
                    version if name == "covidx" else "")
    data_set = known[name]
    with progress_bars() as step:
        return prepare_set(
            Path(place["--out"]), data_set, source, image_size=image_size, step=step,
            num_workers=workers or os.cpu_count() or 1, largest_unreadable=largest_unreadable,
            is_credentialed=IS_CREDENTIALED[data_set] if is_credentialed is None else is_credentialed)


def describe_store(store: Store) -> None:
    """Say where a store is, what selection leaves of it, and what it cannot support."""
    from medst.data.inspect import describe_limits, describe_selection

    lines = [f"The store '{store.name}' is in {store.path}.", *describe_selection(store.selection),
             *describe_limits(store)]
    if len(store.problems):
        lines += ["", f"{len(store.problems)} problems; they are listed by: medst data inspect {store.path}"]
    typer.echo("\n".join(lines))


@data_app.command("verify")
def data_verify(path: Annotated[Path, typer.Argument(help="A prepared store.")]) -> None:
    """Compare every file of a store with the hash that it had when it was made."""
    from medst.data.store import verify

    wrong = verify(path)
    if wrong:
        raise ValueError(f"{path}: the store is damaged: {'; '.join(wrong)}. Remove the folder and prepare it again")
    typer.echo(f"{path}: every file is as it was made.")


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
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share every batch, one GPU each.", show_default="training.world_size"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell steps, memory, time and disk; nothing is trained.")
    ] = False,
) -> None:
    """Train one model, evaluate it and save it. After an interruption the same command goes on from its checkpoint."""
    # Under torchrun every process comes here; the first speaks for all.
    started = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    num_ranks = ranks or (int(started) if started else None)
    sizes = [] if num_ranks is None else [f"training.world_size={num_ranks}"]
    config = compose(experiments, [*(assignments or []), *sizes], data)
    # After the settings are known to be right: these imports take seconds.
    import torch

    from medst.config import trial_key
    from medst.trial import run_trial

    store = prepared_store(config)
    torch.set_num_threads(threads)
    if dry_run:
        show_estimate(config, store)
        return
    # As `medst.tracking.torch_version` reads it where torch is not imported.
    key = trial_key(config, store.fingerprint, str(torch.__version__))
    name = experiments[-1].stem
    folder = out or Path("runs/train") / f"{name}-{key[:8]}"
    if started and os.environ["RANK"] != "0":
        for _ in run_trial(config, folder):
            pass
        return
    claim_folder(folder, key, config)
    records = run_trial(config, folder)
    if track:
        records = tracked(records, config, store, key, name, folder / MODEL)
    show_records(records, name)
    typer.echo(f"The model is in {folder / MODEL}; judge it again with: medst evaluate --weights {folder / MODEL}")


def show_estimate(config: Config, store: Store) -> None:
    """Print what a trial of `config` will take; a few pairs are computed for it."""
    from rich.console import Console
    from rich.table import Table

    from medst.data.splits import with_held_out_patients
    from medst.data.tokenizer import build_tokenizer
    from medst.training.estimate import estimate

    store = with_held_out_patients(store, config.data)
    tokenizer = build_tokenizer(store, config.data, config.model.text.word_aggregation)
    table = Table(box=None, show_header=False, pad_edge=False)
    for title, value in estimate(config, store, tokenizer, Path.cwd()).rows():
        table.add_row(title, value)
    Console().print(table)


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
        PRIVATE_NOTICE,
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
    if description.is_private_tracked and description.is_credentialed:
        typer.echo(PRIVATE_NOTICE)
    return track(records, description, place, model)


@app.command("evaluate")
def evaluate(
    weights: Annotated[Path, typer.Option(
        help="Folder of a saved model, as `medst train` leaves it, or a checkpoint file of Med-ST or MGCA.")],
    assignments: Assignments = None,
    data: DataRoot = None,
    protocol: Annotated[Protocol, typer.Option(help="Whose metrics to print.")] = Protocol.both,
    out: Annotated[Path | None, typer.Option(help="CSV of the metrics beside published numbers.")] = None,
    threads: Threads = 1,
) -> None:
    """Run the downstream tasks on saved weights and print the metrics, beside published numbers where there are any."""
    import torch

    from medst import evaluation
    from medst.config import parse_overrides
    from medst.data.splits import with_held_out_patients
    from medst.evaluation.contamination import contamination
    from medst.evaluation.judged import judged_config, open_judged

    torch.set_num_threads(threads)
    overrides = parse_overrides(assignments or [])
    if data is not None:
        overrides["data.root"] = str(data)
    config = judged_config(weights, overrides, protocol is Protocol.as_published)
    store = prepared_store(config)
    model, tokenizer = open_judged(weights, store, config)
    model.to(config.training.device)
    tests = show_records(evaluation.evaluate(model, store, tokenizer, config, step=0), weights.name, protocol)
    show_reproduction(tests, protocol, out)
    mark = contamination(with_held_out_patients(store, config.data), config)
    if mark:
        typer.echo(f"contaminated: {mark}")


def show_reproduction(tests: Mapping[str, float], protocol: Protocol, out: Path | None) -> None:
    """Print our metrics beside what others published for them; with `out`, all metrics into a CSV file."""
    import csv

    from rich.console import Console
    from rich.table import Table

    from analysis.published import load_published, reproduction

    head = ("metric", "ours", "published", "model", "grade", "difference")
    rows = reproduction({name: value for name, value in tests.items() if is_shown(name, protocol)}, load_published())
    table = Table(*head, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        if row[2]:
            table.add_row(*row)
    if table.row_count:
        Console().print(table)
    if out is not None:
        temporary = out.with_name(f".{out.name}.new")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *rows])
        temporary.replace(out)
        typer.echo(f"All metrics beside published numbers: {out}")


def is_shown(metric: str, protocol: Protocol) -> bool:
    """True where a metric belongs to the protocol that was asked for."""
    return protocol is Protocol.both or metric.endswith("as_published") == (protocol is Protocol.as_published)


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
    from analysis.registry import METRICS
    from sweeps.commands import FINISHED_CODE, INTERRUPTED_CODE, run_sweep

    code = run_sweep(study, assignments or [], executor=executor.value, jobs=jobs, base=base, data_root=data,
                     should_retry_failed=retry_failed, known_metrics=METRICS)
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
    detect: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Also tell how many seeds find this difference in the primary metric, as tracked: "
                                    "0.02 is 2 points."),
    ] = None,
) -> None:
    """Print arms, aliases, what is done already or shared, and how long the rest takes. Runs nothing."""
    from analysis.registry import METRICS
    from sweeps.commands import plan_sweep

    code = plan_sweep(study, assignments or [], executor=executor.value, jobs=jobs, base=base, data_root=data,
                      should_retry_failed=retry_failed, known_metrics=METRICS)
    if detect is not None:
        from analysis.power import print_seeds_needed
        from medst.tracking import TrackingPlace
        from sweeps.study import find_study, load_study

        place, file = TrackingPlace.of_project(), load_study(find_study(study), base=[base] if base else []).file
        print_seeds_needed(place.uri, place.experiment, file.name, file.primary_metric, detect)
    raise typer.Exit(code)


@sweep_app.command("extend")
def sweep_extend(
    study: StudyName,
    seeds: Annotated[list[str] | None, typer.Option(help="Seeds to add: 6..8 or 6,7,8; repeatable.")] = None,
    arm: Annotated[
        list[str] | None, typer.Option(metavar="'NAME: KEY=VALUE ...'", help="A named arm to add; repeatable.")
    ] = None,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Run what is missing, or only change the file.")] = True,
    executor: ExecutorOption = Executor.ray,
    jobs: Jobs = None,
) -> None:
    """Add arms or seeds to a study file, which keeps its comments, and run only what is missing."""
    from analysis.registry import METRICS
    from sweeps.extending import extend, parse_arms, parse_seeds
    from sweeps.study import find_study, load_study

    path = find_study(study)
    load_study(path, known_metrics=METRICS)
    added = extend(path, parse_seeds(seeds or []), parse_arms(arm or []),
                   lambda changed: load_study(changed, known_metrics=METRICS))
    typer.echo(f"{path}: {'; '.join(added) + ' added' if added else 'nothing to add, everything is there'}.")
    if run:
        sweep_run(study, executor=executor, jobs=jobs)


@sweep_app.command("adopt")
def sweep_adopt(
    earlier: Annotated[
        list[str] | None,
        typer.Argument(metavar="CODE", help="Fingerprints of the code that computed the old trials, or their "
                                                 "beginnings; default: every other code in the store."),
    ] = None,
    replays: Annotated[int, typer.Option(min=1, help="Stored trials to compute again for each code.")] = 1,
) -> None:
    """After a refactor: let old trials stand, if golden numbers hold and a replayed trial is equal bit for bit."""
    from sweeps.adoption import adopt

    adopt(earlier or [], num_replays=replays)


@sweep_app.command("status")
def sweep_status(
    study: StudyName = "overview", assignments: Assignments = None, base: Base = None, data: DataRoot = None,
) -> None:
    """Tell how a study stands: arms, what runs, why trials failed, core and GPU time spent, wasted and saved."""
    from sweeps.commands import show_status

    raise typer.Exit(show_status(study, assignments or [], base=base, data_root=data))


@sweep_app.command("ladder")
def sweep_ladder(
    study: StudyName = "overview",
    of: Annotated[Share, typer.Option(help="Of what a rung has a share: pairs seen, or training patients.")] = (
        Share.budget
    ),
    fractions: Annotated[str, typer.Option(help="Rungs below the full study.")] = "0.05,0.1,0.25",
    assignments: Assignments = None,
    base: Base = None,
    data: DataRoot = None,
    executor: ExecutorOption = Executor.ray,
    jobs: Jobs = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Would a cheaper study rank the arms as the full one does? Runs what is missing of both, and prints the answer."""
    from sweeps.commands import INTERRUPTED_CODE
    from sweeps.ladder import LadderError, run_ladder

    try:
        shares = [float(text) for text in fractions.split(",")]
    except ValueError:
        raise LadderError(f"--fractions {fractions}: numbers with commas between them, such as 0.05,0.1") from None
    code, name = run_ladder(study, of.value, shares, assignments=assignments or [], executor=executor.value, jobs=jobs,
                            base=base, data_root=data, should_retry_failed=retry_failed)
    if code != INTERRUPTED_CODE:
        report_explorations(ladder=name)
    raise typer.Exit(code)


@app.command("search")
def search(
    name: Annotated[str, typer.Argument(metavar="SEARCH", help="A search of sweeps/searches/, or the path of a file.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all; more than before go on.", show_default="as the file says")
    ] = None,
    assignments: Assignments = None,
    base: Base = None,
    data: DataRoot = None,
    executor: ExecutorOption = Executor.ray,
    jobs: Jobs = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Look for good settings on validation patients, then print what was found. Stopped or killed: run it again."""
    from sweeps.commands import INTERRUPTED_CODE
    from sweeps.search import run_search
    from sweeps.searching.search_file import find_search, load_search

    code = run_search(name, assignments or [], executor=executor.value, jobs=jobs, base=base, data_root=data,
                      num_trials=trials, should_retry_failed=retry_failed)
    if code != INTERRUPTED_CODE:
        report_explorations(search=load_search(find_search(name), base=[base] if base else []).name)
    raise typer.Exit(code)


def report_explorations(search: str | None = None, ladder: str | None = None) -> None:
    """File and print what there is to say of a search or a ladder."""
    from analysis.explorations import make_explorations, print_markdown
    from medst.tracking import TrackingPlace

    place = TrackingPlace.of_project()
    files = make_explorations(place.uri, place.experiment, RESULTS, search=search, ladder=ladder)
    for path in files[:1]:
        print_markdown(path)
        typer.echo(f"Table and figures: {path.parent}")


# ---- Results -----------------------------------------------------------------------------------------------------


@app.command("audit")
def audit(
    assignments: Assignments = None,
    study: Annotated[list[str] | None, typer.Option("--study", help="One of its studies; repeatable.")] = None,
    executor: ExecutorOption = Executor.ray,
    jobs: Jobs = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Test the instrument: run the audit's studies, then tell what they can see. Stopped or killed: run it again."""
    from rich.console import Console
    from rich.markdown import Markdown

    from analysis.audit import STUDIES, make_audit, markdown
    from analysis.registry import METRICS
    from medst.tracking import TrackingPlace
    from sweeps.commands import FINISHED_CODE, INTERRUPTED_CODE, run_sweep

    for name in study or ():
        if name not in STUDIES:
            raise ValueError(f"'{name}' is no study of the audit; there are {', '.join(STUDIES)}")
    codes = []
    for name in study or STUDIES:
        codes.append(run_sweep(name, assignments or [], executor=executor.value, jobs=jobs,
                               should_retry_failed=retry_failed, known_metrics=METRICS))
        if codes[-1] == INTERRUPTED_CODE:
            raise typer.Exit(INTERRUPTED_CODE)
    place = TrackingPlace.of_project()
    found = make_audit(place.uri, place.experiment, RESULTS)
    Console().print(Markdown(markdown(found).partition("<!--")[0]))
    typer.echo(f"Table: {RESULTS}/tables/audit.md. Curves: {RESULTS}/figures/audit.pdf.")
    raise typer.Exit(max(codes, default=FINISHED_CODE))


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
    from analysis.explorations import make_explorations
    from analysis.results import make_results
    from medst.tracking import list_studies

    if part is None and study is None:
        explored = make_explorations(place.uri, place.experiment, out)
        if explored and not list_studies(place.uri, place.experiment):
            return
    only: Literal["tables", "figures"] | None = None
    if part is not None:
        only = "tables" if part is Part.tables else "figures"
    make_results(place.uri, place.experiment, out, only=only, studies=study)


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
        plural = "s" if len(problems) > 1 else ""
        typer.secho(f"{len(problems)} finding{plural} in {out}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1)
    typer.echo(f"The results in {out} are what the tracking store says.")


@app.command("diff")
def diff(
    before: Annotated[Path, typer.Argument(metavar="RESULTS_A", help="Folder of results, as it was.")],
    after: Annotated[Path, typer.Argument(metavar="RESULTS_B", help="Folder of results, as it is.")] = RESULTS,
) -> None:
    """Show which cells of the tables changed, and why: seeds, code, data, settings. Exit code 1 where any did."""
    from analysis.difference import print_difference
    from medst.tracking import TrackingPlace

    place = TrackingPlace.of_project()
    raise typer.Exit(1 if print_difference(before, after, place.uri, place.experiment) else 0)


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
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own asks for a password.")
    ] = "127.0.0.1",
) -> None:
    """Open MLflow on the tracking store: for this machine only, or with --host behind a password."""
    from medst.tracking import default_uri
    from medst.tracking.connection import EXPERIMENT, find_experiment
    from medst.tracking.dashboard import protection, server_command

    uri = default_uri()
    if uri.startswith(("http://", "https://")):
        typer.echo(f"The tracking server serves its own dashboard: {uri}")
        return
    protected = protection(host, port, Path.cwd() / "runs")
    require_free_port(port)
    experiment = find_experiment(uri, EXPERIMENT)
    # Without the parameter MLflow opens on traces and prompts, where no run is to be seen.
    page = f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning" if experiment else ""
    shown = "127.0.0.1" if protected is None else protected.hosts[0].split(":")[0]
    typer.echo(f"Dashboard in a few seconds on http://{shown}:{port}{page}\nCtrl-C ends it. Store: {uri}")
    if protected is not None:
        typer.echo("Reachable from other machines: sign in as admin, with MLFLOW_AUTH_ADMIN_PASSWORD as it was at the "
                   "first start. The connection is not encrypted; put a TLS proxy before it outside a trusted network.")
        os.environ.update(protected.environment)
    # One worker and no job queue: a reviewer needs no more.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = server_command(uri, host, port, protected)
    sys.stdout.flush()
    os.execv(command[0], command)


@app.command("promote")
def promote(
    alias: Annotated[str, typer.Option(help="Name under which the model is to be found, as `candidate`.")],
    run: Annotated[
        str | None, typer.Option(help="Run whose model it is; its id stands in the address of its page.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Instead: the study's run with the lowest validation loss.")] = None,
    arm: Annotated[str | None, typer.Option(help="Only runs of this arm of the study.")] = None,
    name: Annotated[str, typer.Option(help="Of the registered model.")] = "medst",
) -> None:
    """Put the saved model of a finished trial into the model registry, under an alias."""
    from medst.tracking.connection import TrackingError
    from medst.tracking.registry import best_run
    from medst.tracking.registry import promote as register

    if (run is None) == (study is None) or (arm is not None and study is None):
        raise TrackingError("name either --run, or --study (and perhaps --arm)")
    promoted = register(run or best_run(study or "", arm), alias, name)
    typer.echo(f"{promoted.name}@{promoted.alias} is version {promoted.version}, of run {promoted.run_id}. Fetch it: "
               f"medst pull {promoted.name}@{promoted.alias} --out FOLDER")


@app.command("pull")
def pull(
    reference: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="Or NAME/VERSION.")],
    out: Annotated[Path, typer.Option(help="Folder to write; absent or empty.")],
) -> None:
    """Fetch a model from the registry, for MedST.from_pretrained and medst evaluate."""
    from medst.tracking.registry import pull as fetch

    folder = fetch(reference, out)
    typer.echo(f"The model is in {folder}; judge it with: medst evaluate --weights {folder}")


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
