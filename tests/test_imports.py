"""Every import of every module, held against the table of rooms; and what must import without the extras."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOMS = (
    "config", "records", "data", "model", "objectives", "training", "evaluation", "trial", "tracking",
    "sweeps", "analysis", "cli",
)
"""In the only order in which they may import each other: a room sees itself and the rooms before it."""

FEW_ROOMS = {
    "tracking": {"config", "records", "tracking"},
    "analysis": {"config", "records", "tracking", "analysis"},
}
"""Rooms that see less than all before them, so that they stay free of torch."""

THIRD_PARTY = {
    "config": {"pydantic", "yaml"},
    "records": {"numpy", "pandas"},
    "data": {
        "filelock", "matplotlib", "numpy", "pandas", "PIL", "pyarrow", "pydantic", "pydicom", "tokenizers", "torch",
    },
    "model": {"numpy", "pydantic", "safetensors", "timm", "torch", "transformers"},
    "objectives": {"torch"},
    "training": {"numpy", "torch"},
    "evaluation": {"numpy", "pandas", "scipy", "sklearn", "torch"},
    "trial": {"numpy", "pandas", "torch"},
    "tracking": {"filelock", "mlflow", "numpy", "pandas", "pyarrow", "yaml"},
    "sweeps": {
        "filelock", "numpy", "optuna", "pandas", "psutil", "pydantic", "pydantic_core", "ray", "rich", "torch", "yaml",
    },
    "analysis": {
        "jinja2", "jupyter_client", "matplotlib", "nbclient", "nbformat", "numpy", "pandas", "PIL", "pyarrow",
        "pydantic", "rich", "scipy", "sklearn", "statsmodels", "yaml",
    },
    "cli": {"rich", "torch", "typer", "yaml"},
}

OPTIONAL = ("ray", "mlflow", "optuna", "matplotlib", "statsmodels", "jinja2")
"""What only the extras install, as far as the core could miss it (jinja2 comes with torch, too)."""

OWN = ("medst", "sweeps", "analysis")


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        return room_of(self.name)


@dataclass(frozen=True)
class Import:
    module: Module
    line: int
    target: str
    """Absolute name of the imported module."""
    names: tuple[str, ...]
    """Names taken from it; empty for `import x`."""

    def __str__(self) -> str:
        return f"{self.module.name}:{self.line} imports {self.target}"


def room_of(name: str) -> str:
    """Room of a dotted module name; "" for the package `medst` itself."""
    top, _, rest = name.partition(".")
    if top != "medst":
        return top
    room = rest.split(".")[0]
    return "cli" if room == "__main__" else room


def find_modules(repository: Path) -> list[Module]:
    modules = []
    for package in OWN:
        for path in sorted((repository / package).rglob("*.py")):
            parts = path.relative_to(repository).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return modules


def imports_of(module: Module) -> Iterator[Import]:
    """All imports, those inside functions and under TYPE_CHECKING too; `from medst import model` names medst.model."""
    package = module.name.split(".") if module.path.name == "__init__.py" else module.name.split(".")[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name, ())
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            names = tuple(alias.name for alias in node.names)
            if target == "medst":
                for name in names:
                    yield Import(module, node.lineno, f"medst.{name}", ())
            else:
                yield Import(module, node.lineno, target, names)


@pytest.fixture(scope="module")
def modules(repository: Path) -> list[Module]:
    found = find_modules(repository)
    assert len(found) >= 45, f"only {len(found)} modules found: does the walk see all of them?"
    return found


def test_the_table_covers_every_room(modules: list[Module]) -> None:
    assert set(THIRD_PARTY) == set(ROOMS)
    assert {module.room for module in modules} - {""} == set(ROOMS)


def test_nothing_points_back(modules: list[Module]) -> None:
    wrong = []
    for module in modules:
        if not module.room:
            allowed: set[str] = set()
        else:
            allowed = FEW_ROOMS.get(module.room, set(ROOMS[: ROOMS.index(module.room) + 1]))
        for found in imports_of(module):
            if found.target.split(".")[0] in OWN and found.target != "medst.__version__":
                room = room_of(found.target)
                if room not in allowed:
                    wrong.append(str(found))
    assert wrong == []


def test_every_room_keeps_to_its_libraries(modules: list[Module]) -> None:
    wrong = []
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module in modules:
        for found in imports_of(module):
            library = found.target.split(".")[0]
            if library in OWN or library in sys.stdlib_module_names:
                continue
            used.get(module.room, set()).add(library)
            if library not in THIRD_PARTY.get(module.room, set()):
                wrong.append(str(found))
    assert wrong == []
    assert {"torch", "timm", "transformers"} <= used["model"]
    assert "mlflow" in used["tracking"] and "ray" in used["sweeps"]


def test_no_private_name_is_reached_across_modules(modules: list[Module]) -> None:
    def is_private(name: str) -> bool:
        return name.startswith("_") and not name.endswith("__")

    def is_own(node: ast.ImportFrom) -> bool:
        return node.level > 0 or (node.module or "").split(".")[0] in OWN

    wrong = []
    for module in modules:
        bound = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and is_own(node)):
                bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        for found in imports_of(module):
            if found.target.split(".")[0] in OWN and any(map(is_private, [*found.target.split("."), *found.names])):
                wrong.append(str(found))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                value = node.value
                while isinstance(value, ast.Attribute):
                    value = value.value
                if isinstance(value, ast.Name) and value.id in bound:
                    wrong.append(f"{module.name}:{node.lineno} reaches {ast.unparse(node)}")
    assert wrong == []


def test_every_module_says_what_lives_there(modules: list[Module]) -> None:
    assert [module.name for module in modules if not ast.get_docstring(module.tree)] == []


def run_with_blocked(repository: Path, blocked: tuple[str, ...], body: str) -> None:
    """Run `body` in a fresh interpreter in which importing any of `blocked` fails."""
    code = f"""
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
{body}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def import_lines(modules: list[Module], rooms: tuple[str, ...]) -> str:
    return "\n".join(f"import {module.name}" for module in modules if module.room in rooms)


def test_a_trial_imports_without_the_extras(repository: Path, modules: list[Module]) -> None:
    rooms = ROOMS[: ROOMS.index("tracking")]
    blocked = tuple(name for name in OPTIONAL if name != "jinja2")
    run_with_blocked(repository, blocked, import_lines(modules, rooms) + "\nfrom medst.model import MedST")


def test_the_command_line_imports_without_the_extras(repository: Path) -> None:
    body = f"""
import medst.cli
own = [name for name in sys.modules if name.split(".")[0] in {OWN!r} and name != "medst"]
assert all(f"{{name}}.".startswith("medst.cli.") for name in own), own
"""
    run_with_blocked(repository, (*OPTIONAL, "torch", "pandas", "numpy"), body)


def test_analysis_and_tracking_import_without_torch_and_ray(repository: Path, modules: list[Module]) -> None:
    body = import_lines(modules, ("tracking", "analysis"))
    run_with_blocked(repository, ("torch", "ray", "timm", "transformers"), body)
