"""The one page report: every table and figure of a results folder in one file that needs nothing else.

What lives here: from the JSON, captions and pictures in the folder to the values that `report.html.j2` sets out. What
must not: numbers that are not in those files.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis import audit, paper
from analysis.provenance import Manifest
from analysis.text import MINUS, in_unit, interval_text

_STAMP = re.compile(r"\s*<!-- fingerprint \w* -->\s*")
_STATES = ("missing", "running", "failed", "pruned")


@dataclass(frozen=True)
class Entry:
    """A cell as the page shows it."""

    text: str
    below: str
    """Second line: the paired difference, where it has no column of its own."""
    sort: str
    """Number by which its column is sorted; '' goes last."""
    details: str
    """Everything known about it, one thing a line."""
    runs: str
    """`seed:run id` of the runs behind it, separated by spaces."""
    mark: str


def without_stamp(text: str) -> str:
    """A caption without the comment that holds its fingerprint."""
    return _STAMP.sub("", text).strip()


def report_html(out: Path, manifest: Manifest, link: Callable[[str], str]) -> str:
    """The page.

    Args:
        out: the results folder whose files `manifest` lists.
        link: run id -> address of the run.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    tables = {Path(name).stem: json.loads((out / name).read_text(encoding="utf-8"))
              for name in manifest.files if name.startswith("tables/") and name.endswith(".json")}
    captions = {Path(name).stem: without_stamp((out / name).read_text(encoding="utf-8"))
                for name in manifest.files if name.startswith("figures/") and name.endswith(".md")}
    sections = [*_exhibits(out, tables, captions, manifest), *_others(out, tables, captions)]
    # The address of run 'RUN' tells where any run is.
    return environment.get_template("report.html.j2").render(sections=sections, run_address=link("RUN"))


def _exhibits(out: Path, tables: Mapping[str, Any], captions: Mapping[str, str], manifest: Manifest
              ) -> Iterator[dict[str, Any]]:
    for exhibits, heading in ((paper.TABLES, "Table"), (paper.FIGURES, "Figure")):
        for number, exhibit in enumerate(exhibits, start=1):
            head = {"id": exhibit.name, "heading": f"{heading} {number}", "title": exhibit.title}
            if exhibit.name in tables and exhibit.kind == "table":
                yield head | _table(tables[exhibit.name])
            elif exhibit.name in captions and exhibit.kind == "figure":
                yield head | _figure(out, exhibit.name, captions[exhibit.name])
            else:
                yield head | {"kind": "missing", "reason": manifest.missing.get(exhibit.name, "Not made yet.")}


def _others(out: Path, tables: Mapping[str, Any], captions: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, document in sorted(tables.items()):
        if name not in paper.EXHIBITS:
            is_audit = document["format"] == audit.FORMAT
            yield {"id": f"table-{name}", "heading": "Audit" if is_audit else "Further table",
                   "title": document["title"]} | (_audit(document) if is_audit else _table(document))
    for name, caption in sorted(captions.items()):
        if name not in paper.EXHIBITS:
            title = name.replace("_", " ").capitalize()
            yield {"id": f"figure-{name}", "heading": "Further figure", "title": title} | _figure(out, name, caption)


def _figure(out: Path, name: str, caption: str) -> dict[str, Any]:
    picture = base64.b64encode((out / "figures" / f"{name}.png").read_bytes()).decode()
    return {"kind": "figure", "picture": picture, "caption": caption, "file": f"figures/{name}.pdf"}


def _table(document: Mapping[str, Any]) -> dict[str, Any]:
    cells = {(cell["arm"], cell["metric"]): cell for cell in document["cells"]}
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for metric in document["metrics"]:
        panels.setdefault(metric["panel"], []).append(metric)
    shown = []
    for title, metrics in panels.items():
        rows = [{"arm": arm["name"], "kind": arm["kind"], "is_reference": arm["is_reference"],
                 "state": _unfinished(arm["unfinished"]),
                 "cells": [entry(cells[arm["name"], metric["key"]], metric, document, arm) for metric in metrics]}
                for arm in document["arms"] if arm["kind"] == "arm" or any(
                    cells[arm["name"], metric["key"]]["mean"] is not None for metric in metrics)]
        heads = [{"text": metric["column"] if document["name"].startswith(("task_", "subgroups")) else metric["short"],
                  "full": f"{metric['name']} ({metric['unit'] or 'no unit'}"
                          f"{', ' + metric['protocol'] if metric['protocol'] else ''})"} for metric in metrics]
        shown.append({"title": title, "heads": heads, "rows": rows})
    return {"kind": "table", "question": document["title"], "warnings": document["warnings"], "panels": shown,
            "caption": " ".join(document["caption"]), "expectations": [
                _expectation(expectation, document) for expectation in document["expectations"]],
            "endings": ("md", "tex", "csv", "json"), "file": f"tables/{document['name']}",
            "fingerprint": document["fingerprint"]}


def _audit(document: Mapping[str, Any]) -> dict[str, Any]:
    """The audit's table, as the other tables are set out: a line is an arm, a column a score."""
    first, second, *others = [title for title, _ in audit.COLUMNS]
    rows = []
    for row in document["rows"]:
        told = f"{row['check']}: {row['what']}\nstudy {row['study']}, {len(row['runs'])} runs"
        runs = " ".join(f"{number}:{run}" for number, run in enumerate(row["runs"], start=1))
        cells = [Entry(row["shown"][title], "", repr(row["value"]) if title == "Value" and row["value"] is not None
                       else "", told, runs, "") for title in others]
        rows.append({"arm": f"{row['shown'][first]}: {row['shown'][second]}", "kind": "arm", "is_reference": False,
                     "state": "", "cells": cells})
    heads = [{"text": title, "full": title} for title in others]
    return {"kind": "table", "question": document["title"], "warnings": [f"INCOMPLETE: {gap}" for gap in
                                                                          document["missing"]],
            "panels": [{"title": "", "heads": heads, "rows": rows}], "caption": document["note"], "expectations": [],
            "endings": ("md", "csv", "json"), "file": f"tables/{document['name']}",
            "fingerprint": document["fingerprint"]}


def _expectation(expectation: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """As it is shown: the outcome by its short name, the difference in its unit."""
    # An expectation may speak of an outcome that has no column here.
    metric: Mapping[str, Any] = next(
        (metric for metric in document["metrics"] if metric["key"] == expectation["metric"]),
        {"scale": 1.0, "digits": 3, "short": expectation["metric"]})
    return {**expectation, "metric": metric["short"], "difference": _difference(expectation["difference"], metric)}


def entry(cell: Mapping[str, Any], metric: Mapping[str, Any], document: Mapping[str, Any], arm: Mapping[str, Any]
          ) -> Entry:
    """What a cell shows, and what it says on hover."""
    if cell["mean"] is None:
        why = _unfinished(arm["unfinished"]) or "not measured"
        return Entry("–", "", "", f"{arm['name']}\n{metric['name']}\nno number: {why}", "", "")
    text = _number(cell["mean"], metric)
    lines = [arm["name"], metric["name"], f"mean {text} {metric['unit']}, n = {cell['n']}".rstrip()]
    if cell["low"] is not None:
        half = (cell["high"] - cell["low"]) / 2
        text += f" ± {_number(half, metric)}"
        lines.append(f"95 % interval {_number(cell['low'], metric)} to {_number(cell['high'], metric)}")
    if cell["deviation"] is not None and metric["task"] != "subgroups":
        lines.append(f"standard deviation over seeds {_number(cell['deviation'], metric)}")
    paired = cell["difference"]
    if paired is not None and paired["mean"] is not None:
        lines.append(f"minus {document['reference']}: {_difference(paired, metric)}, {paired['n']} pairs")
        for name, key in (("effect size g", "effect_size"), ("correlation r", "correlation")):
            if paired[key] is not None:
                lines.append(f"{name} {paired[key]:.2f}".replace("-", MINUS))
    if cell["adjusted_p"] is not None:
        lines.append(f"p, adjusted for all arms: {cell['adjusted_p']:.3f}")
    if cell["detectable"] is not None:
        lines.append(f"minimum detectable difference {_number(cell['detectable'], metric)}")
    if cell["values"]:
        lines.append("by seed: " + ", ".join(f"{seed}: {_number(value, metric)}"
                                             for seed, value in cell["values"].items()))
    if arm["unfinished"]:
        lines.append(f"not in it: {_unfinished(arm['unfinished'])}")
    below = "" if paired is None or paired["mean"] is None else _difference(paired, metric)
    return Entry(text, below, repr(cell["mean"]), "\n".join(lines),
                 " ".join(f"{seed}:{run}" for seed, run in cell["run_ids"].items()),
                 {"best": "‡", "contender": "†", "": ""}[cell["mark"]])


def _unfinished(states: Mapping[str, int]) -> str:
    return ", ".join(f"{states[state]} {state}" for state in _STATES if state in states)


def _number(value: float, metric: Mapping[str, Any], signed: bool = False) -> str:
    return in_unit(value, metric["scale"], metric["digits"], is_signed=signed)


def _difference(paired: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    return interval_text(paired["mean"], paired["low"], paired["high"], metric["scale"], metric["digits"])
