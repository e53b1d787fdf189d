"""`medst data`: write the phantom; prepare, verify and look at phantom or real data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medst.cli.display import prepared_store, progress_bars
from medst.cli.options import Assignments, DataRoot, compose

if TYPE_CHECKING:
    from medst.config import DataConfig
    from medst.data.store import Store

data_app = typer.Typer(no_args_is_help=True, help="Write the phantom data; prepare and look at phantom or real data.")


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
