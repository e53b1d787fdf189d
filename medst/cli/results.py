"""`medst results`, `check-results`, `diff` and `trace`: what the tracking store says. Nothing is trained."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from medst.cli.options import RESULTS


class Part(StrEnum):
    tables = "tables"
    figures = "figures"
    notebooks = "notebooks"


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

    only: Literal["tables", "figures"] | None = None
    if part is not None:
        only = "tables" if part is Part.tables else "figures"
    make_results(place.uri, place.experiment, out, only=only, studies=study)


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


def diff(
    before: Annotated[Path, typer.Argument(metavar="RESULTS_A", help="Folder of results, as it was.")],
    after: Annotated[Path, typer.Argument(metavar="RESULTS_B", help="Folder of results, as it is.")] = RESULTS,
) -> None:
    """Show which cells of the tables changed, and why: seeds, code, data, settings. Exit code 1 where any did."""
    from analysis.difference import print_difference
    from medst.tracking import TrackingPlace

    place = TrackingPlace.of_project()
    raise typer.Exit(1 if print_difference(before, after, place.uri, place.experiment) else 0)


def trace(
    table: Annotated[Path, typer.Argument(help="Any file of a table, as in results/tables/components.csv.")],
    cell: Annotated[str, typer.Option(help="Arm and metric, as in \"no local,AUROC\", or a line of the audit, as in "
                                           "\"A/A, test,Zero-shot\"; parts of names will do.")],
) -> None:
    """Print the runs behind a cell of a table or a line of the audit: settings, code, data, and how to repeat them."""
    from analysis import trace as tracing
    from analysis.document import read_document
    from medst.tracking import TrackingPlace

    place = TrackingPlace.of_project()
    document = read_document(table)
    for line in tracing.trace(document, tracing.find_cell(document, cell), place.uri, place.experiment):
        typer.echo(line)
