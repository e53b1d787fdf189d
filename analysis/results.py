"""`make results`: every table and figure from the tracking store alone, as files, as artifacts, in the terminal.

What lives here: reading what each study needs, writing it in one go, the index. What must not: the content of any
table or figure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis import audit, document, explorations, paper, rendering, report, subgroups, tables
from analysis.provenance import MANIFEST, MadeFile, Manifest, damages, unit_key, write_texts
from analysis.tables import ResultTable
from analysis.tidy import FINISHED, Study, StudySource, study_source
from analysis.units import PARTS, Made, Part, Unit, make_units, publish, workplace
from medst import tracking
from medst.config import hash_file, source_fingerprint

CACHE = ".cache"
"""Folder inside the results that keeps what was read from the store."""
REPORT = "report.html"
FILE_WIDTH = 110


def make_results(
    uri: str,
    experiment: str,
    out: Path,
    only: Part | None = None,
    studies: list[str] | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Write tables and figures of the studies in the store into `out`; log them in the runs of the studies.

    Files: tables/<name>.{md,tex,csv,json}, figures/<name>.{pdf,png,md}, searches/ and ladders/
    (analysis/explorations.py), README.md, report.html, manifest.json. Each file appears complete or not at all. A part
    of a study that was made from the same runs by the same code, and whose files are as they were written, is not made
    again.

    Args:
        only: one of both parts; None makes both.
        studies: names; None takes all, and all searches and ladders.

    Returns:
        The files that are in order now: written or found unchanged.

    Raises:
        ValueError: an unknown study, or nothing finished in any of them.
    """
    console = console or _console()
    snapshot = tracking.read_snapshot(uri, experiment, (out / CACHE) if out.exists() else None)
    sources = [source for source in (study_source(snapshot, name) for name in (
        studies if studies is not None else snapshot.studies)) if _has_results(source, console)]
    units = list(units_of(snapshot, sources, experiment))
    if studies is None:
        units += explorations.units_of(uri, experiment)
    if not units:
        raise ValueError(f"no finished trial in the tracking store {uri}; run a study first: medst sweep run overview")
    out.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.read(out)
    with workplace(out) as place:
        new, kept = make_units(units, [part for part in PARTS if only in (None, part)], out, place, manifest)
        written = publish(place, out, set(manifest.files) - set(new.files))
        available = {name.partition("/")[0] for name in new.units} & set(snapshot.studies)
        missing = new.missing | {exhibit.name: paper.placeholder(exhibit, available)
                                 for exhibit in paper.EXHIBITS.values() if exhibit.study(available) is None}
        new = replace(new, missing={name: why for name, why in missing.items() if not _is_made(name, new.files)})
        if new == manifest and new.pages and not list(damages(out, new.pages)):
            kept += [out / name for name in (*new.pages, MANIFEST)]
        else:
            written += _write_pages(new, place, out, _links(snapshot))
    for name in PARTS:
        count = sum(path.parent.name == name and path.suffix in (".tex", ".pdf") for path in [*written, *kept])
        if count:
            console.print(f"{count} {name} in {out / name}", highlight=False)
    for exhibit in paper.EXHIBITS.values():
        if studies is None and sources and exhibit.name in new.missing:
            console.print(f"{exhibit.name}: {new.missing[exhibit.name]}", highlight=False)
    console.print(f"Everything on one page: {out / REPORT}", highlight=False)
    return [*written, *kept]


def print_tables(uri: str, experiment: str, study: str, console: Console | None = None) -> None:
    """Print the study's own table to fit the terminal.

    Raises:
        ValueError: an unknown study.
    """
    console = console or _console()
    source = study_source(tracking.read_snapshot(uri, experiment), study)
    if _has_results(source, console):
        rendering.print_terminal(tables.study_table(source.load(), source_fingerprint()), console)


def _console() -> Console:
    """As wide as the terminal; into a file, wide enough for a table."""
    return Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)


def _has_results(source: StudySource, console: Console) -> bool:
    if not source.has_finished:
        console.print(f"Study {source.name}: none of {source.num_planned} trials is finished yet.", highlight=False)
    return source.has_finished


def units_of(snapshot: tracking.Snapshot, sources: Iterable[StudySource], experiment: str) -> Iterator[Unit]:
    """The units of some studies with results, and the audit where one of them belongs to it."""
    sources = list(sources)
    # Where a part of the studies was asked for, an exhibit stays with the study that has it in a full call.
    available = _finished(snapshot)
    exhibits: dict[str, list[paper.Exhibit]] = {source.name: [] for source in sources}
    for exhibit in paper.EXHIBITS.values():
        study = exhibit.study(available)
        if study in exhibits:
            exhibits[study].append(exhibit)
    code = source_fingerprint()
    for source in sources:
        yield _study_unit(source, tuple(exhibits[source.name]), code, snapshot.uri, experiment)
    if {source.name for source in sources} & set(audit.STUDIES):
        yield _audit_unit(audit.audit_sources(snapshot), code, snapshot.uri, experiment)


def _study_unit(source: StudySource, exhibits: tuple[paper.Exhibit, ...], code: str, uri: str, experiment: str) -> Unit:
    load = cache(source.load)

    def make(part: Part, folder: Path) -> Made:
        write = write_tables if part == "tables" else _write_figures
        return write(load(), exhibits, folder, uri)

    key = unit_key(source.fingerprint, code, (exhibit.name for exhibit in exhibits))
    return Unit(source.name, "", source.fingerprint, key, exhibits, make, _logger(source.name, uri, experiment))


def _audit_unit(sources: Sequence[StudySource], code: str, uri: str, experiment: str) -> Unit:
    find = cache(lambda: audit.audit({source.name: source.load() for source in sources}, code))

    def make(part: Part, folder: Path) -> Made:
        if part == "tables":
            return audit.write_tables(find(), folder), {}
        from analysis import audit_figure, style

        folder.mkdir(parents=True, exist_ok=True)
        return style.save(audit_figure.draw(find()), folder, fingerprint), {}

    fingerprint = audit.fingerprint_of(sources)
    return Unit(audit.NAME, "", fingerprint, unit_key(fingerprint, code, ()), (), make,
                _logger(sources[0].name, uri, experiment))


def _logger(study: str, uri: str, experiment: str) -> Callable[[Path], object]:
    """Tracks files under `results/tables` and `results/figures` of the study's run."""
    return lambda folder: tracking.log_study_artifacts(study, folder, uri, experiment)


def finished_studies(uri: str, experiment: str) -> list[str]:
    """Names of the studies with a finished trial, oldest first."""
    return _finished(tracking.read_snapshot(uri, experiment))


def _finished(snapshot: tracking.Snapshot) -> list[str]:
    done = set(snapshot.runs.loc[snapshot.runs["state"] == FINISHED, "run_id"])
    served = set(snapshot.arms.loc[snapshot.arms["run_id"].isin(done), "study"])
    return [name for name in snapshot.studies if name in served]


def _write_pages(manifest: Manifest, place: Path, out: Path, link: Callable[[str], str]) -> list[Path]:
    """The pages that show everything, and last of all the manifest."""
    texts = {"README.md": _index(out, manifest), REPORT: report.report_html(out, manifest, link)}
    for name, text in texts.items():
        (place / name).write_text(text, encoding="utf-8")
    pages = {name: hash_file(place / name) for name in texts}
    (place / MANIFEST).write_text(replace(manifest, pages=pages).text(), encoding="utf-8")
    for name in (*texts, MANIFEST):
        os.replace(place / name, out / name)
    return [out / name for name in (*texts, MANIFEST)]


def _links(snapshot: tracking.Snapshot) -> Callable[[str], str]:
    """Run -> its page in the dashboard."""
    server = snapshot.uri if snapshot.uri.startswith("http") else "http://127.0.0.1:5000"
    return lambda run_id: f"{server.rstrip('/')}/#/experiments/{snapshot.experiment_id}/runs/{run_id}"


def _is_made(name: str, files: Mapping[str, MadeFile]) -> bool:
    return f"tables/{name}.json" in files or f"figures/{name}.pdf" in files


def write_tables(study: Study, exhibits: Iterable[paper.Exhibit], folder: Path, uri: str) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    source = source_fingerprint()
    made = {table.name: table for table in (tables.study_table(study, source),)}
    asked = [exhibit for exhibit in exhibits if exhibit.kind == "table"]
    if any(exhibit.name.startswith("task_") for exhibit in asked):
        made |= {table.name: table for table in tables.task_tables(study, source)}
        table = subgroups.subgroup_table(study, _predictions(study, uri), source)
        made |= {table.name: table} if table is not None else {}
    paths = [path for table in made.values() for path in write_table(table, folder)]
    available = [study.plan.name]
    return paths, {exhibit.name: paper.placeholder(exhibit, available) for exhibit in asked
                   if exhibit.name not in made}


def write_table(table: ResultTable, folder: Path) -> list[Path]:
    """`<name>.md`, `.tex`, `.csv` and `.json`."""
    texts = {"md": rendering.markdown(table), "tex": rendering.latex(table),
             "csv": rendering.csv_frame(table).to_csv(index=False), "json": document.json_text(table)}
    return write_texts(folder, table.name, texts)


def _predictions(study: Study, uri: str) -> dict[str, dict[str, pd.DataFrame]]:
    """Name of a table -> run -> per-example predictions of the finished trials that tracked them."""
    done = study.trials[study.trials["state"] == FINISHED]
    found: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in subgroups.PREDICTIONS}
    for run, withheld in zip(done["run_id"], done["withheld"].fillna(""), strict=True):
        kept = [name for name in subgroups.PREDICTIONS if name not in withheld]
        for name, frame in tracking.find_tables(run, kept, uri).items():
            found[name][run] = frame
    return found


def _write_figures(study: Study, exhibits: Iterable[paper.Exhibit], folder: Path, uri: str) -> Made:
    # matplotlib takes a second to import, which tables need not pay.
    from analysis import drawing, style

    folder.mkdir(parents=True, exist_ok=True)
    asked = [exhibit for exhibit in exhibits if exhibit.kind == "figure"]
    warnings = tables.warnings_of(study, source_fingerprint())
    paths: list[Path] = []
    made: set[str] = set()
    for picture in drawing.draw(study, [exhibit.name for exhibit in asked], uri):
        told = replace(picture, caption=" ".join([picture.caption, *warnings]))
        paths += style.save(told, folder, study.fingerprint)
        made.add(picture.name)
    return paths, {exhibit.name: paper.placeholder(exhibit, [study.plan.name]) for exhibit in asked
                   if exhibit.name not in made}


def _index(out: Path, manifest: Manifest) -> str:
    """What is in the folder, also what an earlier call made."""
    lines = ["# Results", "", "Made by `make results` from the tracking store; do not edit by hand: `make "
             "check-results` sees it. Each number's run ids stand in the CSV and JSON beside its table. All on one "
             f"page: [{REPORT}]({REPORT}).", "", "## Tables", ""]
    for name in sorted(name for name in manifest.files if name.startswith("tables/") and name.endswith(".md")):
        stem = Path(name).stem
        title = (out / name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        others = ", ".join(f"[{ending}](tables/{stem}.{ending})" for ending in ("tex", "csv", "json")
                           if f"tables/{stem}.{ending}" in manifest.files)
        lines.append(f"- [{stem}]({name}) ({others}): {title}")
    lines += ["", "## Figures", ""]
    for name in sorted(name for name in manifest.files if name.startswith("figures/") and name.endswith(".md")):
        stem = Path(name).stem
        caption = report.without_stamp((out / name).read_text(encoding="utf-8"))
        lines += [f"![{stem}](figures/{stem}.png)", "", f"{caption} ([pdf](figures/{stem}.pdf))", ""]
    if manifest.missing:
        lines += ["## Not made", "", *(f"- {name}: {why}" for name, why in manifest.missing.items())]
    return "\n".join(lines).rstrip() + "\n"
