"""The one page report: every table and figure of a results folder in one file that needs nothing else.

What lives here: from the JSON, captions and pictures in the folder to the values that `report.html.j2` sets out. What
must not: numbers that are not in those files.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis import audit, paper
from analysis.document import AUDIT_FORMAT, ForeignTableError, read_document
from analysis.provenance import Manifest
from analysis.rendering import VERDICT_TITLE, p_value
from analysis.statistics import MIN_SEEDS_FOR_TEST
from analysis.text import counted, in_unit, interval_text

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
    """`label:run id` of the runs behind it, a line each."""
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
    tables, missing = {}, dict(manifest.missing)
    for name in manifest.files:
        if name.startswith("tables/") and name.endswith(".json"):
            try:
                tables[Path(name).stem] = read_document(out / name)
            except ForeignTableError:
                # A call for one study leaves the tables of the others as an earlier version wrote them.
                missing[Path(name).stem] = "Made by another version of the program. Run: make results"
    captions = {Path(name).stem: without_stamp((out / name).read_text(encoding="utf-8"))
                for name in manifest.files if name.startswith("figures/") and name.endswith(".md")}
    sections = [*_exhibits(out, tables, captions, missing), *_others(out, tables, captions, missing)]
    # The address of run 'RUN' tells where any run is.
    return environment.get_template("report.html.j2").render(
        sections=sections, run_address=link("RUN"), verdict_title=VERDICT_TITLE)


def _exhibits(out: Path, tables: Mapping[str, Any], captions: Mapping[str, str], missing: Mapping[str, str]
              ) -> Iterator[dict[str, Any]]:
    for exhibits, heading in ((paper.TABLES, "Table"), (paper.FIGURES, "Figure")):
        for number, exhibit in enumerate(exhibits, start=1):
            head = {"id": exhibit.name, "heading": f"{heading} {number}", "title": exhibit.title}
            if exhibit.name in tables and exhibit.kind == "table":
                yield head | _table(tables[exhibit.name])
            elif exhibit.name in captions and exhibit.kind == "figure":
                yield head | _figure(out, exhibit.name, captions[exhibit.name])
            else:
                yield head | {"kind": "missing", "reason": missing.get(exhibit.name, "Not made yet.")}


def _others(out: Path, tables: Mapping[str, Any], captions: Mapping[str, str], missing: Mapping[str, str]
            ) -> Iterator[dict[str, Any]]:
    for name in sorted(set(missing) - set(paper.EXHIBITS)):
        yield {"id": f"table-{name}", "heading": "Further table", "title": name, "kind": "missing",
               "reason": missing[name]}
    for name, document in sorted(tables.items()):
        if name not in paper.EXHIBITS:
            is_audit = document["format"] == AUDIT_FORMAT
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
    return {"kind": "table", "question": document["title"], "warnings": document["warnings"],
            "panels": [_panel(panel, document) for panel in document["panels"]],
            "caption": " ".join(document["caption"]), "expectations": [
                _expectation(expectation, document) for expectation in document["expectations"]],
            "endings": ("md", "tex", "csv", "json"), "file": f"tables/{document['name']}",
            "fingerprint": document["fingerprint"]}


def _panel(panel: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Heads, rows and feet, in the columns of the other renderings."""
    metrics = [metric for metric in document["metrics"] if metric["panel"] == panel["title"]]
    cells = {(cell["arm"], cell["metric"]): cell for cell in document["cells"]}
    is_one_task = document["name"].startswith(("task_", "subgroups"))
    heads = [{"text": metric["column"] if is_one_task else metric["short"],
              "full": f"{metric['name']} ({metric['unit'] or 'no unit'}"
                      f"{', ' + metric['protocol'] if metric['protocol'] else ''})"} for metric in metrics]
    if panel["is_detailed"]:
        heads[1:1] = [{"text": text, "full": full} for text, full in _comparison_heads(document)]
    rows = []
    for arm in document["arms"]:
        own = [cells[arm["name"], metric["key"]] for metric in metrics]
        if arm["kind"] != "arm" and all(cell["mean"] is None for cell in own):
            continue
        entries = [entry(cell, metric, document, arm) for cell, metric in zip(own, metrics, strict=True)]
        n = own[0]["n"] if panel["is_detailed"] else arm["finished"]
        if panel["is_detailed"]:
            entries[:1] = [replace(entries[0], below=""), *_comparison(own[0], metrics[0], document, arm, entries[0])]
        trials = Entry(str(n or ""), "", str(n), f"{arm['name']}\n{counted(n, 'finished trial')}", "", "")
        rows.append({"arm": arm["name"], "kind": arm["kind"], "is_reference": arm["is_reference"],
                     "state": _unfinished(arm["unfinished"]), "cells": [trials, *entries]})
    feet = [{"name": foot["name"], "texts": ["", *(foot["texts"].get(metric["key"], "") for metric in metrics)]}
            for foot in panel["feet"]]
    first = {"text": "n", "full": "finished trials, one a seed"}
    return {"title": panel["title"], "heads": [first, *heads], "rows": rows, "feet": feet}


def _comparison_heads(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"Difference to {document['reference']}", "paired by seed, with its 95 % t interval"
    if len(document["seeds"]) >= MIN_SEEDS_FOR_TEST:
        yield "p", "two-sided, adjusted for all arms; * p ≤ 0.05"
        yield "g", "mean of the paired differences in units of their deviation"
    yield "MDD", "minimum detectable difference of the test"
    yield "r", "correlation of arm and reference over seeds"


def _comparison(cell: Mapping[str, Any], metric: Mapping[str, Any], document: Mapping[str, Any],
                arm: Mapping[str, Any], level: Entry) -> Iterator[Entry]:
    """What `_comparison_heads` announces; the details are those of the level beside it."""

    def told(text: str, value: float | None) -> Entry:
        return replace(level, text=text, below="", sort="" if value is None else repr(value), mark="")

    paired = cell["difference"] or dict.fromkeys(("mean", "effect_size", "correlation"))
    yield told("reference" if arm["is_reference"] else level.below, paired["mean"])
    if len(document["seeds"]) >= MIN_SEEDS_FOR_TEST:
        p = cell["adjusted_p"]
        yield told("" if p is None else p_value(p), p)
        yield told(_plain(paired["effect_size"], is_signed=True), paired["effect_size"])
    yield told(_detectable(cell, metric), cell["detectable"])
    yield told(_plain(paired["correlation"]), paired["correlation"])


def _detectable(cell: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Infinite where its test can find nothing; empty where there is no test."""
    if not cell["detectable_by"]:
        return ""
    return _number(math.inf if cell["detectable"] is None else cell["detectable"], metric)


def _plain(value: float | None, *, is_signed: bool = False) -> str:
    return "" if value is None else in_unit(value, 1.0, 2, is_signed=is_signed)


def _audit(document: Mapping[str, Any]) -> dict[str, Any]:
    """The audit's table, as the other tables are set out: a line is an arm, a column a score."""
    first, second, *others = [title for title, _ in audit.COLUMNS]
    rows = []
    for row in document["rows"]:
        told = f"{row['check']}: {row['what']}\nstudy {row['study']}, {len(row['runs'])} runs"
        runs = "\n".join(f"{label}:{run}" for label, run in row["runs"].items())
        cells = [Entry(row["shown"][title], "", repr(row["value"]) if title == "Value" and row["value"] is not None
                       else "", told, runs, "") for title in others]
        rows.append({"arm": f"{row['shown'][first]}: {row['shown'][second]}", "kind": "arm", "is_reference": False,
                     "state": "", "cells": cells})
    heads = [{"text": title, "full": title} for title in others]
    return {"kind": "table", "question": document["title"], "warnings": document["warnings"],
            "panels": [{"title": "", "heads": heads, "rows": rows, "feet": []}], "caption": document["note"],
            "expectations": [], "endings": ("md", "csv", "json"), "file": f"tables/{document['name']}",
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
    # Seeds are what n counts unless the table says otherwise.
    counted_as = "" if document["counts"] == "seeds" else f" {document['counts']}"
    lines = [arm["name"], metric["name"], f"mean {text} {metric['unit']}".rstrip() + f", n = {cell['n']}{counted_as}"]
    if cell["low"] is not None:
        half = (cell["high"] - cell["low"]) / 2
        text += "" if metric["task"] == "cost" else f" ± {_number(half, metric)}"
        lines.append(f"95 % interval {_number(cell['low'], metric)} to {_number(cell['high'], metric)}")
    if cell["deviation"] is not None:
        lines.append(f"standard deviation over seeds {_number(cell['deviation'], metric)}")
    paired = cell["difference"]
    if paired is not None and paired["mean"] is not None:
        lines.append(f"minus {document['reference']}: {_difference(paired, metric)}, "
                     f"{paired['n']}{counted_as or ' pairs'}")
        for name, key in (("effect size g", "effect_size"), ("correlation r", "correlation")):
            if paired[key] is not None:
                lines.append(f"{name} {_plain(paired[key])}")
    if cell["adjusted_p"] is not None:
        lines.append(f"p, adjusted for all arms: {cell['adjusted_p']:.3f}")
    if cell["detectable_by"]:
        test = "adjusted test" if cell["detectable_by"] == "max-T" else "unadjusted t test"
        lines.append(f"minimum detectable difference of the {test} {_detectable(cell, metric)}")
    if cell["values"]:
        lines.append("by seed: " + ", ".join(f"{seed}: {_number(value, metric)}"
                                             for seed, value in cell["values"].items()))
    if arm["unfinished"]:
        lines.append(f"not in it: {_unfinished(arm['unfinished'])}")
    below = "" if paired is None or paired["mean"] is None else _difference(paired, metric)
    return Entry(text, below, repr(cell["mean"]), "\n".join(lines),
                 "\n".join(f"seed {seed}:{run}" for seed, run in cell["run_ids"].items()),
                 {"best": "‡", "contender": "†", "": ""}[cell["mark"]])


def _unfinished(states: Mapping[str, int]) -> str:
    return ", ".join(f"{states[state]} {state}" for state in _STATES if state in states)


def _number(value: float, metric: Mapping[str, Any], signed: bool = False) -> str:
    return in_unit(value, metric["scale"], metric["digits"], is_signed=signed)


def _difference(paired: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    return interval_text(paired["mean"], paired["low"], paired["high"], metric["scale"], metric["digits"])
