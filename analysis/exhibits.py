"""What a notebook calls: make one table or figure of the paper again, and show it.

What lives here: `show`. What must not: content of any exhibit, and nothing that a script could not do as well.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from analysis import paper, report
from analysis.provenance import Manifest
from analysis.results import finished_studies, make_results
from analysis.units import Part
from medst.config import nearest
from medst.tracking import TrackingPlace

OUT = "MEDST_RESULTS"
"""Environment variable that names another results folder than `results/` of the project."""


@dataclass(frozen=True)
class Shown:
    """A table or a figure, as Jupyter displays it and as text elsewhere."""

    markdown: str
    picture: bytes | None = None

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        bundle: dict[str, object] = {"text/plain": self.markdown}
        return bundle | ({"text/markdown": self.markdown} if self.picture is None else {"image/png": self.picture})

    def __repr__(self) -> str:
        return self.markdown


def project_folder() -> Path:
    """The folder of the tracking store: the current one, or the one above where a notebook runs in `analysis/`."""
    here = Path.cwd()
    return here.parent if here == Path(__file__).parent else here


def show(name: str) -> Shown:
    """Make an exhibit of the paper from the tracking store, file it, and show it; or say what to run first.

    Raises:
        ValueError: the paper has no such exhibit; names the nearest.
    """
    if name not in paper.EXHIBITS:
        raise ValueError(f"the paper has no '{name}'; did you mean '{nearest(name, paper.EXHIBITS)}'? It has "
                         f"{', '.join(paper.EXHIBITS)}")
    exhibit = paper.EXHIBITS[name]
    project = project_folder()
    place = TrackingPlace.of_project(project)
    out = Path(os.environ.get(OUT) or project / "results")
    available = finished_studies(place.uri, place.experiment)
    study = exhibit.study(available)
    if study is None:
        return Shown(paper.placeholder(exhibit, available))
    part: Part = "tables" if exhibit.kind == "table" else "figures"
    # In a kernel a console would show itself instead of writing to its file.
    silent = Console(file=io.StringIO(), force_jupyter=False)
    make_results(place.uri, place.experiment, out, only=part, studies=[study], console=silent)
    text = out / part / f"{name}.md"
    if name in Manifest.read(out).missing:
        return Shown(paper.placeholder(exhibit, [study]))
    told = report.without_stamp(text.read_text(encoding="utf-8"))
    return Shown(told, None if part == "tables" else text.with_suffix(".png").read_bytes())
