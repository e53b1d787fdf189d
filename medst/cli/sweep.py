"""`medst sweep`, `medst search` and `medst audit`: many trials, and what to print when they are done.

What is made of finished trials alone is in `results`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medst.cli.options import (
    RESULTS,
    Assignments,
    Base,
    DataRoot,
    Executor,
    ExecutorOption,
    Jobs,
    RetryFailed,
    StudyName,
)

if TYPE_CHECKING:
    from medst.tracking.members import Kind
    from sweeps.study import Study

sweep_app = typer.Typer(no_args_is_help=True, help="Ablation studies. `medst sweep STUDY` is `medst sweep run STUDY`.")


class Share(StrEnum):
    budget = "budget"
    data = "data"


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


def _loaded(study: str, base: Path | None) -> Study:
    from sweeps.study import find_study, load_study

    return load_study(find_study(study), base=[base] if base else [])


def report_study(study: str, base: Path | None, is_complete: bool) -> None:
    """Print the tables of a study, file its tables and figures, and say where everything is."""
    from analysis.results import make_results, print_tables
    from medst.tracking import TrackingPlace

    place, name = TrackingPlace.of_project(), _loaded(study, base).name
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Also tell steps, memory, time and disk, from a few pairs of each arm.")
    ] = False,
) -> None:
    """Print arms, aliases, what is done already or shared, and how long the rest takes. Trains nothing."""
    from analysis.registry import METRICS
    from sweeps.commands import plan_sweep

    code = plan_sweep(study, assignments or [], executor=executor.value, jobs=jobs, base=base, data_root=data,
                      should_retry_failed=retry_failed, known_metrics=METRICS, is_dry_run=dry_run)
    if detect is not None:
        from analysis.power import print_seeds_needed
        from medst.tracking import TrackingPlace

        place, file = TrackingPlace.of_project(), _loaded(study, base).file
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
        report_exploration("ladder", name)
    raise typer.Exit(code)


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
        report_exploration("search", load_search(find_search(name), base=[base] if base else []).name)
    raise typer.Exit(code)


def report_exploration(kind: Kind, name: str) -> None:
    """File and print what there is to say of a search or a ladder."""
    from analysis.explorations import make_exploration, print_markdown
    from medst.tracking import TrackingPlace

    place = TrackingPlace.of_project()
    path = make_exploration(place.uri, place.experiment, RESULTS, kind, name)
    if path is not None:
        print_markdown(path)
        typer.echo(f"Table and figures: {path.parent}")


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

    from analysis.audit import NAME, STUDIES
    from analysis.registry import METRICS
    from analysis.results import finished_studies, make_results
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
    finished = [name for name in finished_studies(place.uri, place.experiment) if name in STUDIES]
    make_results(place.uri, place.experiment, RESULTS, studies=finished)
    table = RESULTS / "tables" / f"{NAME}.md"
    Console().print(Markdown(table.read_text(encoding="utf-8").partition("<!--")[0]))
    typer.echo(f"Table: {table}. Curves: {RESULTS / 'figures' / f'{NAME}.pdf'}.")
    raise typer.Exit(max(codes, default=FINISHED_CODE))


def is_study(arguments: list[str]) -> bool:
    """True where the words after `medst sweep` begin with a study instead of a subcommand or an option."""
    subcommands = {command.name for command in sweep_app.registered_commands}
    return bool(arguments) and not arguments[0].startswith("-") and arguments[0] not in subcommands
