"""`medst diff`: which cells changed between two results folders, and why.

What lives here: the comparison of the tables' JSON (docs/results.md), and the reasons that the tracking store knows of
the runs behind them. What must not: making tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.document import checked
from analysis.text import counted, in_unit, interval_text
from medst import tracking

WHOLE_TABLES = ("new table",), ("gone table",)
"""Reasons of cells whose table is in one of both folders only."""
COMPARISONS = {"difference": "difference", "adjusted_p": "p", "detectable": "MDD", "mark": "mark"}
"""What a cell shows besides its level: key in the JSON -> in words. All of it hangs on other arms, too."""
MAX_SETTINGS = 4
"""Changed settings that a reason names before it only counts the rest."""


@dataclass(frozen=True)
class RunOrigin:
    """What decided the numbers of a run."""

    code: str
    data: str
    settings: Mapping[str, str]
    """Dotted config key -> text."""


@dataclass(frozen=True)
class CellChange:
    """One cell that differs."""

    table: str
    arm: str
    metric: str
    before: str
    """As shown: `71.2 (n=3)`, followed by what changed of its comparison; empty where there was no cell."""
    after: str
    reasons: tuple[str, ...]
    short: str
    """The metric as the tables head its column."""


@dataclass(frozen=True)
class FolderDifference:
    """What lies between two results folders."""

    changes: tuple[CellChange, ...]
    num_equal: int
    """Cells with the same number and the same comparison."""
    num_recomputed: int
    """Of these, with other runs behind it."""


def compare(before: Path, after: Path, origins: Mapping[str, RunOrigin]) -> FolderDifference:
    """Compare the tables of two results folders, cell by cell.

    Args:
        origins: run id -> what decided its numbers, of the runs that are known.

    Raises:
        ValueError: a folder has no tables, or tables of another format.
    """
    old, new = _tables(before), _tables(after)
    changes: list[CellChange] = []
    num_equal = num_recomputed = 0
    for name in [*old, *(name for name in new if name not in old)]:
        cells, others = _cells(old.get(name)), _cells(new.get(name))
        for place in [*cells, *(place for place in others if place not in cells)]:
            then, now = cells.get(place), others.get(place)
            compared: list[str] = []
            if then is None or now is None:
                reasons = tuple(_presence_reasons(name, place, then, now, old, new))
            else:
                compared = [key for key in COMPARISONS if then[key] != now[key]]
                if (then["mean"], then["n"]) != (now["mean"], now["n"]):
                    reasons = tuple(_reasons(then, now, origins))
                elif compared:
                    reasons = (_why_compared(place, compared, old[name], new[name]),)
                else:
                    num_equal += 1
                    num_recomputed += then["run_ids"] != now["run_ids"]
                    continue
            changes.append(CellChange(name, *place, _shown(then, old.get(name), compared),
                                      _shown(now, new.get(name), compared), reasons,
                                      _short(place[1], old.get(name) if now is None else new[name])))
    return FolderDifference(tuple(changes), num_equal, num_recomputed)


def run_ids(*folders: Path) -> list[str]:
    """Every run that the tables of the folders name."""
    return sorted({run for folder in folders for table in _tables(folder).values() for cell in table["cells"]
                   for run in cell["run_ids"].values()})


def load_origins(uri: str, experiment: str, runs: Sequence[str]) -> dict[str, RunOrigin]:
    """What decided the numbers of those of `runs` that the tracking store has."""
    snapshot = tracking.read_snapshot(uri, experiment)
    known = snapshot.runs[snapshot.runs["run_id"].isin(list(runs))]
    params = snapshot.params(known["run_id"].tolist())
    columns = known[["run_id", "source_fingerprint", "data_fingerprint"]]
    return {run: RunOrigin(str(code), str(data), params.get(run, {}))
            for run, code, data in columns.itertuples(index=False)}


def print_difference(before: Path, after: Path, uri: str, experiment: str, console: Console | None = None) -> int:
    """Print what changed; returns the number of changed cells.

    Raises:
        ValueError: a folder has no tables, or tables of another format.
    """
    console = console or Console()
    found = compare(before, after, load_origins(uri, experiment, run_ids(before, after)))
    groups: dict[tuple[str, tuple[str, ...]], list[CellChange]] = {}
    for change in found.changes:
        groups.setdefault((change.table, change.reasons), []).append(change)
    for (name, reasons), changes in groups.items():
        cells = counted(len(changes), "cell")
        console.print(f"[bold]{name}[/bold]: {'; '.join(reasons)} ({cells})", highlight=False, soft_wrap=True)
        # Of a table that only one folder has, its files say all.
        if reasons not in WHOLE_TABLES:
            table = Table("arm", "outcome", "before", "after", box=None, pad_edge=False, header_style="dim")
            for change in changes:
                table.add_row(change.arm, change.short, change.before or "–", change.after or "–")
            console.print(table)
    again = f", {found.num_recomputed} of them from other runs" if found.num_recomputed else ""
    console.print(f"{len(found.changes)} cells changed, {found.num_equal} did not{again}.", highlight=False)
    return len(found.changes)


def _tables(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> table, of a results folder or of its folder `tables`."""
    place = folder / "tables" if (folder / "tables").is_dir() else folder
    found = {}
    for path in sorted(place.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        # What holds no cells is no table, of whatever version: an audit, another program's file.
        if isinstance(document, dict) and "cells" in document:
            found[document["name"]] = checked(document, path)
    if not found:
        raise ValueError(f"{folder}: no tables with their JSON here; they are made by: make results")
    return found


def _cells(table: Mapping[str, Any] | None) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(arm, metric) -> cell, of cells that hold a number."""
    cells = [] if table is None else table["cells"]
    return {(cell["arm"], cell["metric"]): cell for cell in cells if cell["mean"] is not None}


def _short(key: str, table: Mapping[str, Any] | None) -> str:
    assert table is not None
    return str(next(metric["short"] for metric in table["metrics"] if metric["key"] == key))


def _shown(cell: Mapping[str, Any] | None, table: Mapping[str, Any] | None, compared: Sequence[str]) -> str:
    """The level, and those parts of the comparison that are asked for."""
    if cell is None or table is None:
        return ""
    metric = next(metric for metric in table["metrics"] if metric["key"] == cell["metric"])

    def number(value: float) -> str:
        return in_unit(value, metric["scale"], metric["digits"])

    parts = [f"{number(cell['mean'])} (n={cell['n']})" if cell["n"] else number(cell["mean"])]
    for key in compared:
        value = cell[key]
        if key == "difference":
            paired = value or dict.fromkeys(("mean", "low", "high"))
            parts.append("Δ " + interval_text(paired["mean"], paired["low"], paired["high"], metric["scale"],
                                              metric["digits"]))
        elif key == "mark":
            parts.append(f"mark {value or 'none'}")
        else:
            told = "none" if value is None else f"{value:.3f}" if key == "adjusted_p" else number(value)
            parts.append(f"{COMPARISONS[key]} {told}")
    return ", ".join(parts)


def _why_compared(place: tuple[str, str], compared: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any]
                  ) -> str:
    """Why a cell with the same number is compared otherwise."""
    arm, metric = place

    def values(table: Mapping[str, Any]) -> dict[str, Any]:
        return {cell["arm"]: cell["values"] for cell in table["cells"]
                if cell["metric"] == metric and cell["arm"] != arm}

    before, after = values(old), values(new)
    is_same_reference = (old["reference"] == new["reference"]
                         and before.get(old["reference"]) == after.get(new["reference"]))
    told = ", ".join(COMPARISONS[key] for key in compared)
    if not is_same_reference:
        return f"{told}: the reference changed"
    return f"{told}: " + ("the analysis changed" if before == after else "other arms changed")


def _presence_reasons(name: str, place: tuple[str, str], then: Mapping[str, Any] | None, now: Mapping[str, Any] | None,
                      old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Why a number is in one of both folders only."""
    word, tables, there = ("new", old, now) if then is None else ("gone", new, then)
    arm, metric = place
    if name not in tables:
        yield f"{word} table"
    elif all(arm != row["name"] for row in tables[name]["arms"]):
        yield f"{word} arm"
    elif all(metric != column["key"] for column in tables[name]["metrics"]):
        yield f"{word} outcome"
    else:
        assert there is not None
        yield f"{word} number, from seeds {', '.join(there['run_ids']) or 'of other arms'}"


def _reasons(then: Mapping[str, Any], now: Mapping[str, Any], origins: Mapping[str, RunOrigin]) -> Iterator[str]:
    """Why a number is another one."""
    for word, seeds in (("added", now["values"].keys() - then["values"].keys()),
                        ("removed", then["values"].keys() - now["values"].keys())):
        if seeds:
            yield f"seeds {word}: {', '.join(sorted(seeds, key=int))}"
    pairs = {(then["run_ids"][seed], run) for seed, run in now["run_ids"].items()
             if then["run_ids"].get(seed) not in (None, run)}
    if pairs:
        yield from _why_other_runs(pairs, origins)
    shared = then["values"].keys() & now["values"].keys()
    same_runs = [seed for seed in shared if then["run_ids"].get(seed) == now["run_ids"].get(seed)]
    if any(then["values"][seed] != now["values"][seed] for seed in same_runs):
        yield "same runs, other numbers: a table was edited, or the analysis changed"


def _why_other_runs(pairs: set[tuple[str, str]], origins: Mapping[str, RunOrigin]) -> Iterator[str]:
    """What distinguishes the runs of the same seeds then and now."""
    known = [(origins[before], origins[after]) for before, after in sorted(pairs)
             if before in origins and after in origins]
    if len(known) < len(pairs):
        yield f"{len(pairs) - len(known)} seeds from other runs, which the tracking store does not have"
    for word, changed in (("code", {(a.code, b.code) for a, b in known if a.code != b.code}),
                          ("data", {(a.data, b.data) for a, b in known if a.data != b.data})):
        yield from (f"other {word}: {before} → {after}" for before, after in sorted(changed))
    settings = sorted({f"{key}: {a.settings.get(key, 'unset')} → {b.settings.get(key, 'unset')}" for a, b in known
                       for key in a.settings.keys() | b.settings.keys()
                       if a.settings.get(key) != b.settings.get(key)})
    if settings:
        rest = len(settings) - MAX_SETTINGS
        yield "other settings: " + ", ".join(settings[:MAX_SETTINGS]) + (f" and {rest} more" if rest > 0 else "")
    if known and not settings and all(a.code == b.code and a.data == b.data for a, b in known):
        yield "computed again from the same code, data and settings"
