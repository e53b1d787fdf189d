"""The notebooks beside this file, run without a screen in one kernel, one after the other.

What lives here: their execution. What must not: anything that they show.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from rich.console import Console

from analysis.exhibits import OUT

FOLDER = Path(__file__).parent
SECONDS_A_CELL = 1800


def run_notebooks(uri: str, out: Path, console: Console | None = None, folder: Path = FOLDER) -> list[Path]:
    """Run every notebook of `folder`; keep what they show in `<out>/notebooks`.

    Args:
        uri: tracking store that they read.
        out: results folder that they write.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message holds its traceback.
    """
    console = console or Console()
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    search = os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, OUT: str(out.absolute()), "PYTHONPATH": search}
    # Named by what is imported, not by a kernel that someone registered: this Python runs them.
    manager = AsyncKernelManager(kernel_name="python3")
    channels: Any = None
    written = []
    try:
        for path in sorted(folder.glob("*.ipynb")):
            notebook = nbformat.read(path, as_version=4)
            client = NotebookClient(notebook, km=manager, timeout=SECONDS_A_CELL,
                                    resources={"metadata": {"path": str(Path.cwd())}})
            client.kc = channels
            client.execute(env=environment)
            channels = client.kc
            target = out / "notebooks" / path.name
            temporary = target.with_suffix(".new")
            nbformat.write(notebook, temporary)
            temporary.replace(target)
            written.append(target)
            console.print(f"{path.name}: ran", highlight=False)
    finally:
        if channels is not None:
            channels.stop_channels()
        if manager.has_kernel:
            asyncio.run(_stop(manager))
    return written


async def _stop(manager: AsyncKernelManager) -> None:
    await manager.shutdown_kernel(now=True)
