"""Where the files of studies and searches are found. What is in them is read by `study` and `searching.search_file`."""

from __future__ import annotations

from pathlib import Path

from medst.config import nearest
from sweeps.study_errors import StudyError


def find_file(kind: str, name_or_path: str | Path, folder: str, project: Path | None = None) -> Path:
    """Path of a YAML file by its path, or by its name in `sweeps/<folder>/` of the project, else of this package.

    Args:
        kind: what messages call it: study, search.
        project: default: the current folder.

    Raises:
        StudyError: there is none; names the nearest one.
    """
    project = project or Path.cwd()
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if (project / path).is_file():
            return project / path
        raise StudyError(f"{kind} {path}: no such file")
    folders = [project / "sweeps" / folder, Path(__file__).parent / folder]
    for place in folders:
        if (place / f"{name_or_path}.yaml").is_file():
            return place / f"{name_or_path}.yaml"
    known = sorted({file.stem for place in folders for file in place.glob("*.yaml")})
    guess = nearest(str(name_or_path), known)
    raise StudyError(f"{kind} '{name_or_path}': not found; " + (f"did you mean '{guess}'? " if guess else "")
                     + f"There are: {', '.join(known)}")
