"""Ranges (pyproject.toml), lock (requirements.lock) and conda environment (environment.yml) agree."""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

Pins = dict[str, Version]


def lock_lines(repository: Path) -> list[str]:
    lines = (repository / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def pins(repository: Path) -> Pins:
    """Distribution -> the one version of the lock file; every line must be a plain `name==version`."""
    found: Pins = {}
    for line in lock_lines(repository):
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        name = canonicalize_name(requirement.name)
        assert specifier.operator == "==" and "*" not in specifier.version, f"{line}: not pinned"
        assert requirement.url is None and requirement.marker is None, f"{line}: pinned for all, from any index"
        assert name not in found, f"{name}: pinned twice"
        found[name] = Version(specifier.version)
    return found


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def requirements(project: dict[str, Any]) -> list[Requirement]:
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [Requirement(text) for text in texts]


def closure(roots: list[Requirement]) -> set[str]:
    """Distributions that `roots` need, themselves included, by the metadata of what is installed."""
    needed: set[str] = set()
    seen: set[tuple[str, str]] = set()
    queue = [(requirement, extra) for requirement in roots for extra in ("", *requirement.extras)]
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        needed.add(name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in metadata.distribution(name).requires or []:
            child = Requirement(text)
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                queue.extend((child, part) for part in ("", *child.extras))
    return needed


def test_every_range_holds_its_pin(project: dict[str, Any], pins: Pins) -> None:
    ranges = requirements(project)
    assert len(ranges) >= 30
    for requirement in ranges:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is in pyproject.toml, not in requirements.lock: run `make lock`"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not allow the locked {pins[name]}"


def test_every_range_has_a_lower_bound(project: dict[str, Any]) -> None:
    for requirement in requirements(project):
        assert any(part.operator in (">=", "~=", "==") for part in requirement.specifier), requirement


def test_the_lock_is_closed_and_holds_nothing_else(project: dict[str, Any], pins: Pins) -> None:
    try:
        needed = closure(requirements(project))
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: this environment does not have all extras")
    assert needed - set(pins) == set(), "needed, but not pinned"
    # What only another Python needs (tzdata for zoneinfo and the like) may be pinned without being reached here.
    assert len(set(pins) - needed) <= 3, f"pinned, but not needed: {sorted(set(pins) - needed)}"


def test_the_environment_that_make_makes_is_the_locked_one(repository: Path, pins: Pins) -> None:
    if Path(sys.prefix).resolve() != (repository / ".venv").resolve():
        pytest.skip("not the environment that make makes")
    installed = {name: Version(metadata.version(name)) for name in pins}
    assert installed == pins


def test_conda_gets_the_same(repository: Path, project: dict[str, Any]) -> None:
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    python, pip, section = environment["dependencies"]
    assert python.startswith("python ") and pip == "pip"
    assert SpecifierSet(python.removeprefix("python ")) == SpecifierSet(project["requires-python"])
    assert section["pip"] == [*lock_lines(repository), "--editable ."]


def test_the_running_python_is_supported(project: dict[str, Any]) -> None:
    supported = SpecifierSet(project["requires-python"])
    assert supported.contains(".".join(map(str, sys.version_info[:3])))
    named = {text.rsplit(" ", 1)[-1] for text in project["classifiers"] if "Python :: 3." in text}
    assert named == {f"3.{minor}" for minor in range(30) if supported.contains(f"3.{minor}.0")}


def test_the_core_needs_no_tracker_and_no_cluster(project: dict[str, Any]) -> None:
    try:
        needed = closure([Requirement(text) for text in project["dependencies"]])
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    assert needed.isdisjoint({"ray", "mlflow", "mlflow-skinny", "optuna", "matplotlib", "statsmodels"})
