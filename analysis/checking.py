"""`make check-results`: are the results in a folder what the store and the code would make now?

What lives here: the comparison and its findings, a sentence each. What must not: writing into the folder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from analysis import explorations
from analysis.provenance import MANIFEST, Manifest, damages
from analysis.results import units_of
from analysis.text import counted
from analysis.tidy import study_source
from analysis.units import PARTS
from medst import tracking


def check_results(uri: str, experiment: str, out: Path) -> list[str]:
    """What is wrong with the results in `out`, a sentence each; empty where they are in order.

    Tables are made again in memory and compared byte by byte. Figures are compared by the runs and the code that they
    were made from and by the hashes of their files.
    """
    if not (out / MANIFEST).exists():
        return [f"MISSING {out / MANIFEST}: nothing was made here; run: make results"]
    manifest = Manifest.read(out)
    problems = list(damages(out, manifest.hashes))
    snapshot = tracking.read_snapshot(uri, experiment)
    sources = [study_source(snapshot, name) for name in snapshot.studies]
    units = [*units_of(snapshot, [source for source in sources if source.has_finished], experiment),
             *explorations.units_of(uri, experiment)]
    for made in manifest.units:
        if made.partition("/")[0] not in {unit.name for unit in units}:
            problems.append(f"STALE {made}: the tracking store {uri} has nothing finished of it")
    with tempfile.TemporaryDirectory() as folder:
        for unit in units:
            for part in PARTS:
                key = manifest.units.get(f"{unit.name}/{part}")
                if key is None:
                    problems.append(f"MISSING {part} of {unit.title}: not made yet; run: make results")
                elif key != unit.key:
                    problems.append(f"STALE {part} of {unit.title}: {_why_stale(key, unit.key)}; "
                                    "run: make results")
            if manifest.units.get(f"{unit.name}/tables") == unit.key:
                for path in unit.make("tables", Path(folder) / unit.name)[0]:
                    name = f"{unit.folder('tables')}/{path.name}"
                    if (out / name).exists() and (out / name).read_bytes() != path.read_bytes():
                        problems.append(f"EDITED {name}: differs from what the tracking store says")
    for source in sources:
        if source.num_finished < source.num_planned:
            problems.append(f"INCOMPLETE study {source.name}: {source.num_finished} of "
                            f"{counted(source.num_planned, 'planned trial')} finished; run: "
                            f"make sweep SWEEP={source.name}")
    problems += [f"INCOMPLETE {name}: {why}" for name, why in manifest.missing.items()]
    return list(dict.fromkeys(problems))


def _why_stale(made: str, key: str) -> str:
    reasons = ("its runs changed", "the computing code changed", "the code that makes results changed")
    found = [reason for reason, old, new in zip(reasons, made.split(" "), key.split(" "), strict=False) if old != new]
    return ", ".join(found) or "its place in the paper changed"
