"""`medst data`: write the phantom; prepare, verify and look at phantom or real data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medst.cli.display import prepared_store, progress_bars
from medst.cli.options import Assignments, DataRoot, compose

if TYPE_CHECKING:
    from medst.config import DataConfig
    from medst.data.store import Store

data_app = typer.Typer(no_args_is_help=True, help="Write the phantom data; prepare and look at phantom or real data.")


TAKEN_BY = {"--reports": ("mimic-cxr", "open-i"), "--partial": ("mimic-cxr",), "--version": ("covidx",)}
"""Options of `medst data prepare` that not every data set takes."""


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
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Data set: side of the stored squares in pixels.", show_default="256"),
    ] = None,
    partial: Annotated[
        bool | None, typer.Option("--partial", help="mimic-cxr: leave out, and count, images that are not downloaded.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="covidx: number of the split files.", show_default="9A")
    ] = None,
    credentialed: Annotated[
        bool | None,
        typer.Option("--credentialed/--open", help="Data set: whether text, images and ids must stay at home.",
                     show_default="as its licence says"),
    ] = None,
    largest_unreadable: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Data set: share of unreadable images above which the work stops.",
                     show_default="0.02"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
) -> None:
    """Decode all images and clean all reports once, into the store that trials read.

    For a data root, --data ROOT; other commands do it by themselves. For a data set that lies apart, its name with
    --images and --out; a second data set with the same --out is added. Killed: the same command goes on. Images and
    reports that were added, changed or mended since are read by the same command.
    """
    options = {"--images": images, "--reports": reports, "--tables": tables, "--out": out, "--image-size": image_size,
               "--partial": partial, "--version": version, "--largest-unreadable": largest_unreadable,
               "--open, --credentialed": credentialed}
    given = {option: value for option, value in options.items() if value is not None}
    name = what[0] if what and len(what) == 1 and not what[0].endswith((".yaml", ".yml")) else None
    if name is None:
        if given:
            raise ValueError(f"{', '.join(given)}: for data sets that lie apart; name the data set first, as in: medst "
                             "data prepare mimic-cxr --images ROOT --reports ROOT --out STORE. The settings of a data "
                             "root are data.image_size (--set) and its dataset.json; docs/data.md tells both ways")
        store = prepared_store(compose([Path(path) for path in what or []], assignments, data), workers,
                               check_files=True)
    else:
        if assignments or data is not None:
            raise ValueError(f"{'--set' if assignments else '--data'}: for a data root; {name} that lies apart takes "
                             "--images, --out and the options of docs/data.md")
        store = prepare_named(name, given, workers or os.cpu_count() or 1)
    describe_store(store)


def prepare_named(name: str, given: dict[str, Any], workers: int) -> Store:
    """Put a data set that lies apart into a store, with the options that the user wrote."""
    from medst.config import nearest
    from medst.data.sources import DATA_SETS, IS_CREDENTIALED, LARGEST_UNREADABLE_SHARE, Source
    from medst.data.store import prepare_set

    known = {data_set.removesuffix("-jpg"): data_set for data_set in DATA_SETS}
    if name not in known:
        guess = nearest(name, known)
        raise ValueError(f"{name}: no data set" + (f"; did you mean {guess}?" if guess else "")
                         + f" Known are: {', '.join(known)}")
    is_table = name in ("ms-cxr-t", "ms-cxr")
    foreign = [option for option in given if name not in TAKEN_BY.get(option, known)
               or (is_table and option in ("--images", "--largest-unreadable"))]
    if foreign:
        raise ValueError(f"{', '.join(foreign)}: {name} has no such option; docs/data.md shows the commands")
    needed = ("--tables" if is_table else "--images", *(("--reports",) if name == "mimic-cxr" else ()), "--out")
    missing = [option for option in needed if option not in given]
    if missing:
        raise ValueError(f"medst data prepare {name} needs {' and '.join(missing)}; docs/data.md shows the commands")
    places = {option: str(given[option].absolute()) for option in ("--images", "--reports", "--tables")
              if option in given}
    absent = [f"{option} {place}" for option, place in places.items() if not Path(place).exists()]
    if absent:
        raise ValueError(f"{', '.join(absent)}: no such file or folder")
    source = Source(places.get("--images", ""), places.get("--reports", ""), places.get("--tables", ""),
                    given.get("--partial", False), given.get("--version", "9A" if name == "covidx" else ""),
                    given.get("--largest-unreadable", LARGEST_UNREADABLE_SHARE))
    data_set = known[name]
    with progress_bars() as step:
        return prepare_set(
            given["--out"].absolute(), data_set, source, image_size=given.get("--image-size", 256), step=step,
            num_workers=workers, is_credentialed=given.get("--open, --credentialed", IS_CREDENTIALED[data_set]))


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
