"""A table as data: the JSON beside every table, which programs read instead of its text.

What lives here: the format of tables, `medst-table/2`, described in docs/results.md, the name of the audit's, and their
reading. What must not: anything that is not in the `ResultTable`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

from analysis import rendering
from analysis.registry import Metric
from analysis.statistics import PairedDifference
from analysis.tables import ResultTable, Row

FORMAT, AUDIT_FORMAT = "medst-table/2", "medst-audit/2"


class ForeignTableError(ValueError):
    """A table of another version of the program; says what to do."""


def read_document(path: Path) -> dict[str, Any]:
    """The JSON beside any file of a table or of the audit.

    Raises:
        ValueError: there is none.
        ForeignTableError: it is no table of this version.
    """
    beside = path.with_suffix(".json")
    if not beside.exists():
        raise ValueError(f"{beside} is not there; make the table first: make results")
    return checked(json.loads(beside.read_text(encoding="utf-8")), beside)


def checked(document: Any, path: Path) -> dict[str, Any]:
    """`document`, as read from `path`.

    Raises:
        ForeignTableError: it is no table of this version.
    """
    form = document.get("format") if isinstance(document, dict) else None
    if form not in (FORMAT, AUDIT_FORMAT):
        raise ForeignTableError(f"{path} has the format {form!r}, not {FORMAT!r} or {AUDIT_FORMAT!r}; make it again: "
                                "make results")
    return cast("dict[str, Any]", document)


def table_document(table: ResultTable) -> dict[str, Any]:
    """The table as plain values; unknown and infinite numbers are None."""
    panels = {metric.key: panel.title for panel in reversed(table.panels) for metric in panel.metrics}
    return {
        "format": FORMAT, "fingerprint": table.fingerprint, "name": table.name, "title": table.title,
        "study": table.study, "reference": table.reference, "primary": table.primary, "seeds": list(table.seeds),
        "warnings": list(table.warnings), "caption": list(table.caption),
        "counts": table.counts,
        "panels": [{"title": panel.title, "is_detailed": panel.is_detailed,
                    "feet": [{"name": name, "texts": texts} for name, texts in rendering.feet(table, panel)]}
                   for panel in table.panels],
        "metrics": [_metric(metric, panels[metric.key]) for metric in table.metrics],
        "arms": [{"name": row.arm, "kind": row.kind, "is_reference": row.is_reference, "finished": row.num_trials,
                  "unfinished": dict(row.unfinished)} for row in table.rows],
        "cells": [_cell(row, metric, table.primary) for row in table.rows for metric in table.metrics],
        "expectations": [{"arm": verdict.arm, "metric": verdict.metric.key, "expected": verdict.expected,
                          "difference": _difference(verdict.difference), "reading": verdict.reading}
                         for verdict in table.verdicts],
    }


def json_text(table: ResultTable) -> str:
    """`table_document` as the text of a file, an entry a line; the same table gives the same bytes."""
    parts = [f"{_compact(key)}: {_lines(value)}" for key, value in table_document(table).items()]
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _lines(value: Any) -> str:
    """A list of entries with one on each line; json's own indentation is slow and gives every number a line."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(map(_compact, value)) + "\n ]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _metric(metric: Metric, panel: str) -> dict[str, Any]:
    return {"key": metric.key, "name": metric.name, "short": metric.short, "task": metric.task, "panel": panel,
            "column": metric.column or metric.short, "protocol": metric.protocol, "unit": metric.unit,
            "scale": metric.scale, "digits": metric.digits, "is_higher_better": metric.is_higher_better,
            "chance": metric.chance}


def _cell(row: Row, metric: Metric, primary: str) -> dict[str, Any]:
    cell = row.cells[metric.key]
    interval = cell.interval
    by = "" if math.isnan(cell.detectable) else "max-T" if metric.key == primary else "t"
    return {
        "arm": row.arm, "metric": metric.key, "n": interval.n, "mean": _known(interval.mean),
        "low": _known(interval.low), "high": _known(interval.high), "deviation": _known(interval.deviation),
        "difference": None if cell.difference is None else _difference(cell.difference),
        "adjusted_p": _known(cell.adjusted_p), "detectable": _known(cell.detectable),
        "detectable_by": by, "mark": cell.mark,
        "values": {str(seed): value for seed, value in cell.values.items()},
        "run_ids": {str(seed): run for seed, run in cell.run_ids.items()},
    }


def _difference(paired: PairedDifference) -> dict[str, Any]:
    return {"n": paired.n, "mean": _known(paired.mean), "low": _known(paired.low), "high": _known(paired.high),
            "deviation": _known(paired.interval.deviation), "correlation": _known(paired.correlation),
            "effect_size": _known(paired.effect_size)}


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
