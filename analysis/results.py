"""`make results`: every table and figure from the tracking store alone, as files, as artifacts, in the terminal.

What lives here: reading what each study needs, writing it in one go, the index. What must not: the content of
any table or figure.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
from rich.console import Console

from analysis import registry, rendering, tables
from analysis.tables import ResultTable
from analysis.tidy import FINISHED, Study, load_study
from medst import tracking
from medst.config import nearest, source_fingerprint

if TYPE_CHECKING:
    from analysis.style import Picture

Part = Literal["tables", "figures"]
TASK_STUDIES = ("components", "overview")
"""The paper's task tables show the arms of the first of these that has results, else of the first study."""
MAX_ATTENTION_ARMS = 3
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

    Files: tables/<study>.{md,tex,csv}, tables/task_<task>.{md,tex,csv}, figures/<name>.{pdf,png,md}, README.md.
    Each file appears complete or not at all.

    Args:
        only: one of both parts; None makes both.
        studies: names; None takes all.

    Returns:
        The files written.

    Raises:
        ValueError: an unknown study, or nothing finished in any of them.
    """
    console = console or _console()
    found = [study for study in _load(uri, experiment, studies) if _has_results(study, console)]
    if not found:
        raise ValueError(f"no finished trial in the tracking store {uri}; run a study first: medst sweep run overview")
    written: list[Path] = []
    out.mkdir(parents=True, exist_ok=True)
    with _workplace(out) as place:
        owners: dict[Path, str] = {}
        if only != "figures":
            owners |= _write_tables(found, place / "tables")
        if only != "tables":
            owners |= _write_figures(found, place / "figures", uri)
        for study in found:
            own = [path for path, owner in owners.items() if owner == study.plan.name]
            _log(own, study.plan.name, place, uri, experiment)
        for path in owners:
            target = out / path.relative_to(place)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
            written.append(target)
        index = place / "README.md"
        index.write_text(_index(out), encoding="utf-8")
        os.replace(index, out / index.name)
    written.append(out / "README.md")
    for name in ("tables", "figures"):
        count = sum(path.parent.name == name and path.suffix in (".tex", ".pdf") for path in written)
        if count:
            console.print(f"{count} {name} in {out / name}", highlight=False)
    console.print(f"Index: {out / 'README.md'}", highlight=False)
    return written


def print_tables(uri: str, experiment: str, study: str, console: Console | None = None) -> None:
    """Print the study's own table to fit the terminal.

    Raises:
        ValueError: an unknown study.
    """
    console = console or _console()
    for loaded in _load(uri, experiment, [study]):
        if _has_results(loaded, console):
            rendering.print_terminal(tables.study_table(loaded, source_fingerprint()), console)


def _console() -> Console:
    """As wide as the terminal; into a file, wide enough for a table."""
    return Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)


def _load(uri: str, experiment: str, names: list[str] | None) -> Iterator[Study]:
    known = tracking.list_studies(uri, experiment)
    for name in names if names is not None else known:
        if name not in known:
            guess = nearest(name, known)
            hint = f"did you mean '{guess}'?" if guess else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"study '{name}' is not in the tracking store {uri}; {hint}")
        yield load_study(uri, experiment, name)


def _has_results(study: Study, console: Console) -> bool:
    if study.values.empty:
        console.print(f"Study {study.plan.name}: none of {len(study.trials)} trials is finished yet.", highlight=False)
    return not study.values.empty


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A folder beside the results, on the same disk, so that a rename publishes a file at once."""
    place = Path(tempfile.mkdtemp(prefix=".making-", dir=out))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write_tables(studies: list[Study], folder: Path) -> dict[Path, str]:
    """File -> its study."""
    folder.mkdir()
    source = source_fingerprint()
    made = [tables.study_table(study, source) for study in studies]
    by_name = {study.plan.name: study for study in studies}
    shown = next((by_name[name] for name in TASK_STUDIES if name in by_name), studies[0])
    made += tables.task_tables(shown, source)
    return {path: table.study for table in made for path in _write_table(table, folder)}


def _write_table(table: ResultTable, folder: Path) -> list[Path]:
    texts = {"md": rendering.markdown(table), "tex": rendering.latex(table),
             "csv": rendering.csv_frame(table).to_csv(index=False)}
    paths = []
    for ending, text in texts.items():
        path = folder / f"{table.name}.{ending}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def _write_figures(studies: list[Study], folder: Path, uri: str) -> dict[Path, str]:
    # matplotlib takes a second to import, which tables need not pay.
    from analysis import figures, style

    folder.mkdir()
    source = source_fingerprint()
    paths: dict[Path, str] = {}
    for study in studies:
        terms = [f"train/{term}" for term in registry.LOSS_TERMS]
        curves = _curves(study, figures.curve_arms(study.plan), terms, uri)
        schedules = _curves(study, study.plan.arms, figures.SCHEDULES, uri) if figures.has_schedules(study) else None
        use = [metric for metric in study.metrics if metric.startswith(figures.EXPERT_SHARE)]
        shares = _curves(study, study.plan.arms, use, uri) if figures.varies_experts(study) else None
        drawn = (
            figures.forest(study),
            figures.lambda_surface(study),
            figures.experts(study),
            figures.learning_curves(study, curves),
            None if schedules is None else figures.curriculum_weights(study, schedules),
            None if shares is None else figures.expert_use(study, shares),
            _grounding(study, uri),
        )
        warnings = tables.warnings_of(study, source)
        for picture in filter(None, drawn):
            told = replace(picture, caption=" ".join([picture.caption, *warnings]))
            paths |= dict.fromkeys(style.save(told, folder), study.plan.name)
    return paths


def _curves(study: Study, arms: Iterable[str], names: Iterable[str], uri: str) -> pd.DataFrame:
    """run_id, name, step, value of the finished trials of some arms."""
    trials = study.trials
    run_ids = trials.loc[(trials["state"] == FINISHED) & trials["arm"].isin(list(arms)), "run_id"].tolist()
    return tracking.metric_history(run_ids, [name for name in names if name in study.metrics], uri)


def _grounding(study: Study, uri: str) -> Picture | None:
    """Maps of the reference, then of arms without local alignment, then of others, at the first seed that all have."""
    from analysis import pictures

    reference = study.plan.reference
    asked = [arm for arm in study.plan.arms if study.params.get(arm, {}).get("evaluation.track_attention") == "true"]
    asked.sort(key=lambda arm: (arm != reference, study.level(arm, "objective.lambda_local") != 0))
    arms = asked[:MAX_ATTENTION_ARMS]
    trials = study.trials[(study.trials["state"] == FINISHED) & study.trials["arm"].isin(arms)]
    complete = [seed for seed in study.plan.seeds if (trials["seed"] == seed).sum() == len(arms)]
    if not arms or not complete:
        return None
    tracked, withheld = {}, []
    for arm, run_id, kept in trials.loc[trials["seed"] == complete[0], ["arm", "run_id", "withheld"]].itertuples(
            index=False):
        if pictures.ATTENTION in str(kept):
            withheld.append(arm)
        elif any(path.startswith(f"{pictures.ATTENTION}.") for path in tracking.list_artifacts(run_id, uri)):
            tracked[arm] = tracking.load_arrays(run_id, pictures.ATTENTION, uri)
    return pictures.grounding_maps(study, tracked, withheld, complete[0])


def _log(paths: list[Path], study: str, place: Path, uri: str, experiment: str) -> None:
    """Log files under `results/tables` and `results/figures` of the study's run."""
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            target = Path(folder) / path.relative_to(place)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        tracking.log_study_artifacts(study, Path(folder), uri, experiment)


def _index(out: Path) -> str:
    """What is in the folder, from its files: also what an earlier call made."""
    lines = ["# Results", "", "Made by `make results` from the tracking store; do not edit by hand. Each number's run "
             "ids stand in the CSV beside its table.", "", "## Tables", ""]
    for path in sorted((out / "tables").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        others = ", ".join(f"[{ending}](tables/{path.stem}.{ending})" for ending in ("tex", "csv"))
        lines.append(f"- [{path.stem}](tables/{path.name}) ({others}): {title}")
    lines += ["", "## Figures", ""]
    for path in sorted((out / "figures").glob("*.md")):
        caption = path.read_text(encoding="utf-8").strip()
        lines += [f"![{path.stem}](figures/{path.stem}.png)", "", f"{caption} ([pdf](figures/{path.stem}.pdf))", ""]
    return "\n".join(lines).rstrip() + "\n"
