"""Tables and figures of searches and ladders, from the tracking store alone: files, artifacts, and the terminal.

Apart from those of the ablation studies (analysis/results.py): what a search found is no ablation.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from analysis import ladder as ladders
from analysis import searches
from medst.config import fingerprint
from medst.tracking.members import Kind, list_groups, log_group_artifacts

_Maker = Callable[[str, str, str, Path], Iterable[Path]]
"""(uri, experiment, name, folder to fill) -> the files."""


def make_explorations(uri: str, experiment: str, out: Path, *, search: str | None = None, ladder: str | None = None
                      ) -> list[Path]:
    """Write what there is to say of searches and ladders under `out`; log it in their runs.

    Files: searches/<name>/{search.md, trials.csv, <figure>.{pdf,png,md}}, ladders/<name>/{ladder.md, ladder.csv, ...}.

    Args:
        search, ladder: only this one; with both None, all that the store has.

    Returns:
        The files written.
    """
    is_all = search is None and ladder is None
    written: list[Path] = []
    for name in list_groups("search", uri, experiment) if is_all else [search] if search else []:
        written += _publish("search", name, out / "searches" / name, _make_search, uri, experiment)
    for name in list_groups("ladder", uri, experiment) if is_all else [ladder] if ladder else []:
        written += _publish("ladder", name, out / "ladders" / name, _make_ladder, uri, experiment)
    return written


def print_markdown(path: Path, console: Console | None = None) -> None:
    """A Markdown file in the terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.print(path.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        return
    console.print(Markdown(path.read_text(encoding="utf-8")))


def _publish(kind: Kind, name: str, target: Path, make: _Maker, uri: str, experiment: str) -> list[Path]:
    """Make the files beside their place, log them, then give them their names."""
    target.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".making-", dir=target))
    try:
        files = list(make(uri, experiment, name, place))
        if files:
            log_group_artifacts(kind, name, place, "results", uri, experiment)
        published = []
        for path in files:
            os.replace(path, target / path.name)
            published.append(target / path.name)
        return published
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _make_search(uri: str, experiment: str, name: str, place: Path) -> Iterable[Path]:
    # matplotlib takes a second to import.
    from analysis import isolation, style

    result = searches.load_search(uri, experiment, name)
    if result is None:
        return
    rivals = {other: found for other in result.plan["compare_with"]
              if (found := searches.load_rival(uri, experiment, other, result)) is not None}
    contests: Sequence[searches.Contest] = [] if len(result.objectives) > 1 else [
        entry for other, (scores, seconds) in rivals.items()
        if (entry := searches.contest(result.scores(), result.seconds(), result.signs[0], other, scores, seconds))]
    table = place / "search.md"
    table.write_text(searches.table_text(result, contests), encoding="utf-8")
    trials = place / "trials.csv"
    result.trials.to_csv(trials, index=False)
    yield table
    yield trials
    made_from = fingerprint(trials.read_bytes())
    pictures = [*(isolation.isolation(result, index) for index in range(len(result.objectives))),
                isolation.course(result, contests, rivals), isolation.importance_bars(result), isolation.pareto(result)]
    for picture in pictures:
        if picture is not None:
            yield from style.save(picture, place, made_from)


def _make_ladder(uri: str, experiment: str, name: str, place: Path) -> Iterable[Path]:
    from analysis import style

    loaded = ladders.load_ladder(uri, experiment, name)
    if loaded is None:
        return
    table = place / "ladder.md"
    table.write_text(ladders.markdown(loaded), encoding="utf-8")
    numbers = place / "ladder.csv"
    numbers_frame: pd.DataFrame = ladders.frame(loaded)
    numbers_frame.to_csv(numbers, index=False)
    yield table
    yield numbers
    yield from style.save(ladders.figure(loaded), place, fingerprint(numbers.read_bytes()))
