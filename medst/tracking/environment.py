"""What a run says about the machine and the source on which it ran. No hostname, no user, no path."""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "timm", "transformers", "numpy", "pandas", "scikit-learn", "ray", "mlflow", "optuna")


@cache
def installed_version(package: str) -> str:
    """Version of an installed package, without importing it; `absent` where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


@cache
def torch_version() -> str:
    """`torch.__version__` with the build that follows the plus sign, without importing torch.

    Builds of one version (CPU, CUDA) compute different bits, and the distribution's metadata do not tell them apart.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return "absent"
    for statement in ast.parse(Path(found.origin).with_name("version.py").read_text(encoding="utf-8")).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and target.id == "__version__" and isinstance(value, ast.Constant):
            return str(value.value)
    return installed_version("torch")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # Not Linux.
    return platform.processor() or platform.machine()


def _git(project: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, timeout=10,
                                check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def describe_environment(project: Path | None = None) -> dict[str, str]:
    """Python, libraries, processor, and the commit of the source where it lies in a git checkout."""
    project = project or Path.cwd()
    facts = {"python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}",
             "cpu": _processor(), "cpus": str(os.cpu_count())}
    facts.update({package: installed_version(package) for package in _PACKAGES}, torch=torch_version())
    commit = _git(project, "rev-parse", "HEAD")
    if commit:
        facts["commit"] = commit
        facts["uncommitted_changes"] = str(bool(_git(project, "status", "--porcelain", "--untracked-files=no"))).lower()
    return facts
