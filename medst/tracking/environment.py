"""What a run says about the machine and the source on which it ran. No hostname, no user, no path."""

from __future__ import annotations

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
    facts.update({package: installed_version(package) for package in _PACKAGES})
    commit = _git(project, "rev-parse", "HEAD")
    if commit:
        facts["commit"] = commit
        facts["uncommitted_changes"] = str(bool(_git(project, "status", "--porcelain", "--untracked-files=no"))).lower()
    return facts
