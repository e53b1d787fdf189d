"""Makes sure that the data of a config are there: writes an absent phantom, prepares an absent store.

What lives here: the order of those two steps, the same for one trial and for a sweep. What must not: how
either is done.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from medst.config import DataConfig, parse_overrides
from medst.data.building import Step
from medst.data.phantom import PRESETS, PhantomConfig, generate, read_phantom_config
from medst.data.phantom.presets import PhantomError, load_preset
from medst.data.store import Store, prepare, store_path


def phantom_of(root: Path) -> PhantomConfig | None:
    """The phantom that a data root means; None for any other folder.

    data/phantom/<preset>; with some dials turned, <preset>-with-<dial>=<value>,<dial>=<value>; another draw of either,
    ...-draw-<number>.

    Raises:
        PhantomError: a dial that does not exist (with the nearest one), or an impossible value.
    """
    name, drawn, draw = root.name.partition("-draw-")
    preset, turned, dials = name.partition("-with-")
    if root.parts[-3:-1] != ("data", "phantom") or preset not in PRESETS:
        return None
    if (drawn and not draw.isdecimal()) or (turned and not dials):
        return None
    overrides: dict[str, object] = {}
    for item in dials.split(",") if turned else ():
        if "=" not in item:
            raise PhantomError(f"{root}: '{item}' turns no dial; write <preset>-with-<dial>=<value>,<dial>=<value>")
        overrides |= parse_overrides([item])
    phantom = load_preset(preset, overrides) if turned else PRESETS[preset]
    return phantom.model_copy(update={"seed": int(draw)}) if drawn else phantom


def provide(data: DataConfig, num_workers: int, step: Step, *, check_files: bool = False) -> Store:
    """Open the store of `data`, making first what is absent: the phantom that `data.root` means, then the store.

    A store without its raw files is taken as it is. A second process that wants the same data waits.

    Args:
        num_workers: processes that write a phantom, decode images and clean reports.
        step: told of each step that may take long.
        check_files: see `prepare`.

    Raises:
        PhantomError: the phantom's folder holds something else, or the disk is full.
        DataError, StoreError: data are missing and cannot be made, or are broken.
    """
    root = Path(data.root)
    phantom = phantom_of(root)
    if phantom is not None and not store_path(data).is_dir() and read_phantom_config(root) is None:
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{root}.lock"):
            generate(phantom, root, num_workers=num_workers, progress=step(f"phantom '{root.name}'"))
    return prepare(data, num_workers, step, check_files=check_files)
