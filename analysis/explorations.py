"""Tables and figures of searches and ladders, from the tracking store alone: files, artifacts, and the terminal.

Apart from those of the ablation studies (analysis/results.py): what a search found is no ablation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from analysis import searches
from analysis.provenance import MANIFEST, Manifest, unit_key, write_texts
from analysis.units import PARTS, Made, Part, Unit, make_units, publish, workplace
from medst.config import fingerprint
from medst.tracking.members import Kind, list_groups, log_group_artifacts

if TYPE_CHECKING:
    # It imports matplotlib, which takes a second and which tables do not need.
    from analysis.style import Picture

FOLDERS: dict[Kind, str] = {"search": "searches", "ladder": "ladders"}
"""Kind -> folder inside the results."""
NUMBERS: dict[Kind, str] = {"search": "trials", "ladder": "ladder"}
"""Kind -> name of its CSV; the Markdown is named by the kind."""


def units_of(uri: str, experiment: str, kind: Kind | None = None, name: str | None = None) -> Iterator[Unit]:
    """Every search and ladder that has results, or one of them.

    Files: searches/<name>/{search.md, trials.csv, <figure>.{pdf,png,md}}, ladders/<name>/{ladder.md, ladder.csv, ...}.
    """
    makers: dict[Kind, Callable[[str, str, str], Unit | None]] = {"search": _search_unit, "ladder": _ladder_unit}
    for one, make in makers.items():
        if kind in (None, one):
            names = list_groups(one, uri, experiment) if name is None else [name]
            yield from filter(None, (make(uri, experiment, entry) for entry in names))


def make_exploration(uri: str, experiment: str, out: Path, kind: Kind, name: str) -> Path | None:
    """Write what there is to say of one search or ladder under `out`; log it in its run.

    Returns:
        Its Markdown; None where it has no results yet.
    """
    units = list(units_of(uri, experiment, kind, name))
    if not units:
        return None
    out.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.read(out)
    with workplace(out) as place:
        new, _ = make_units(units, PARTS, out, place, manifest)
        if new != manifest:
            (place / MANIFEST).write_text(new.text(), encoding="utf-8")
        publish(place, out, set(manifest.files) - set(new.files))
    return out / units[0].root / f"{kind}.md"


def print_markdown(path: Path, console: Console | None = None) -> None:
    """A Markdown file in the terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.print(path.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        return
    console.print(Markdown(path.read_text(encoding="utf-8")))


def _unit(kind: Kind, name: str, text: str, numbers: pd.DataFrame, draw: Callable[[], Iterable[Picture | None]],
          besides: object, uri: str, experiment: str) -> Unit:
    """A search or ladder as a unit.

    Args:
        besides: what the figures show and neither `text` nor `numbers` holds.
    """
    made_from = fingerprint("\0".join([text, numbers.to_csv(index=False), repr(besides)]))

    def make(part: Part, folder: Path) -> Made:
        folder.mkdir(parents=True, exist_ok=True)
        if part == "tables":
            stamped = f"{text}\n<!-- fingerprint {made_from} -->\n"
            return [*write_texts(folder, kind, {"md": stamped}), *write_texts(
                folder, NUMBERS[kind], {"csv": numbers.assign(fingerprint=made_from).to_csv(index=False)})], {}
        from analysis import style

        return [path for picture in draw() if picture is not None for path in style.save(picture, folder, made_from)
                ], {}

    # Neither says anything of the code that computed its trials.
    return Unit(f"{kind} {name}", f"{FOLDERS[kind]}/{name}", made_from, unit_key(made_from, "any", ()), (), make,
                lambda folder: log_group_artifacts(kind, name, folder, "results", uri, experiment))


def _search_unit(uri: str, experiment: str, name: str) -> Unit | None:
    result = searches.load_search(uri, experiment, name)
    if result is None:
        return None
    rivals = {other: found for other in result.plan["compare_with"]
              if (found := searches.load_rival(uri, experiment, other, result)) is not None}
    contests = [] if len(result.objectives) > 1 else [
        entry for other, (scores, seconds) in rivals.items()
        if (entry := searches.contest(result.scores(), result.seconds(), result.signs[0], other, scores, seconds))]

    def draw() -> Iterator[Picture | None]:
        from analysis import isolation

        yield from (isolation.isolation(result, index) for index in range(len(result.objectives)))
        yield isolation.course(result, contests, rivals)
        yield isolation.importance_bars(result)
        yield isolation.pareto(result)

    shown = {other: [values.tolist() for values in found] for other, found in rivals.items()}
    besides = (shown, result.plan, result.rungs)
    return _unit("search", name, searches.table_text(result, contests), result.trials, draw, besides, uri, experiment)


def _ladder_unit(uri: str, experiment: str, name: str) -> Unit | None:
    # Draws itself, and so imports matplotlib.
    from analysis import ladder as ladders

    loaded = ladders.load_ladder(uri, experiment, name)
    if loaded is None:
        return None
    scores = {fraction: table.to_csv() for fraction, table in loaded.scores.items()}
    return _unit("ladder", name, ladders.markdown(loaded), ladders.frame(loaded),
                 partial(lambda drawn: [ladders.figure(drawn)], loaded), scores, uri, experiment)
