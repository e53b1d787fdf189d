"""A study file as YAML with the place of every entry, so that every problem can be pointed at.

What lives here: reading, lines and columns, and the schema's complaints in words, all of them at once. What must not:
what the entries mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from medst.config import nearest, parse_yaml
from sweeps.study_file import StudyFile, section_at

EntryPath = tuple[str, ...]
"""Keys and indices from the top of the file to an entry."""

_STAND_INS: dict[str, Any] = {"name": "study", "question": "", "base": ["-"], "reference": "", "primary_metric": "",
                              "seeds": [0]}
"""What stands for a required entry that is missing or wrong, while the rest of the file is checked."""


class StudyError(ValueError):
    """A study file that is refused; the message lists every problem with line, column and remedy."""


class Document:
    """A study file that remembers where its entries stand and what is wrong with them."""

    def __init__(self, path: Path) -> None:
        """Raises StudyError where the file cannot be read, or is no mapping in YAML."""
        self.path = path
        self.problems: list[str] = []
        self.broken: set[EntryPath] = set()
        """Entries that were refused: what depends on them cannot be judged."""
        self._places: dict[EntryPath, tuple[int, int]] = {}
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            content = parse_yaml(text)
        except OSError as error:
            raise StudyError(f"{path}: cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise StudyError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(content, dict):
            raise StudyError(f"{path}: a mapping with name, question, base, ... is expected")
        self._content: dict[str, Any] = json.loads(json.dumps(content, default=str))
        self._note(root, ())

    def _note(self, node: yaml.Node | None, path: EntryPath) -> None:
        """Remember the places of a node's entries; find keys that stand twice, of which YAML keeps the last."""
        for key, mark, child in _children(node):
            here = (*path, key)
            if here in self._places:
                self.problems.append(f"{self.path}:{mark.line + 1}:{mark.column + 1}: '{key}' stands twice, first in "
                                     f"line {self._places[here][0]}")
                self._places = {path: place for path, place in self._places.items() if path[:len(here)] != here}
            self._places[here] = mark.line + 1, mark.column + 1
            self._note(child, here)

    def add(self, path: EntryPath, problem: str) -> None:
        """Note a problem, with the file and the place of the deepest entry of `path` that the file has."""
        self.broken.add(path)
        while path and path not in self._places:
            path = path[:-1]
        line, column = self._places.get(path, (1, 1))
        told = f"{self.path}:{line}:{column}: {problem}"
        if told not in self.problems:
            self.problems.append(told)

    def is_broken(self, *path: str) -> bool:
        """True where the entry, or a part of it, was refused."""
        return any(broken[:len(path)] == path for broken in self.broken)

    def refuse_if_any(self) -> None:
        """Raises StudyError with all problems in the order of the file."""
        if self.problems:
            raise StudyError("\n".join(sorted(self.problems, key=_place_of)))

    def validate(self) -> StudyFile:
        """What of the file passes the schema; the rest is noted, taken out, and what it is needed for stands in."""
        content = self._content
        while True:
            try:
                return StudyFile.model_validate_json(json.dumps(content))
            except ValidationError as error:
                complaints = error.errors()
            for complaint in complaints:
                path = _path_of(complaint)
                # A list that is too short because its refused members were taken out is no further problem.
                if not any(broken[:len(path)] == path for broken in self.broken):
                    self.add(path, _explain(complaint, path))
            before = json.dumps(content)
            # Members of lists from the last to the first, so that indices stay true.
            for path in sorted({_path_of(complaint) for complaint in complaints}, key=_numeric, reverse=True):
                _take_out(content, path)
            self._stand_in(content)
            assert json.dumps(content) != before, f"no way round {complaints}"

    @staticmethod
    def _stand_in(content: dict[str, Any]) -> None:
        for name, value in _STAND_INS.items():
            if content.get(name) in (None, []):
                content[name] = value


def _children(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Mark, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), key.start_mark, value
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), value.start_mark, value


def _place_of(problem: str) -> tuple[int, int]:
    """Line and column of `<path>:<line>:<column>: ...`, whose path may hold colons."""
    head = problem.partition(": ")[0].rsplit(":", 2)
    return int(head[-2]), int(head[-1])


def _path_of(complaint: ErrorDetails) -> EntryPath:
    """The entry that a complaint is about, without the branches of a union that pydantic adds."""
    path = tuple(str(part) for part in complaint["loc"])
    if len(path) > 4 and path[2] == "when":
        return path[:4]
    return path


def _numeric(path: EntryPath) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in path)


def _take_out(content: dict[str, Any], path: EntryPath) -> None:
    node: Any = content
    for part in path[:-1]:
        node = node[int(part)] if isinstance(node, list) else node.get(part)
        if not isinstance(node, dict | list):
            return
    if isinstance(node, list):
        del node[int(path[-1])]
    elif path[-1] in node:
        del node[path[-1]]
    elif len(path) > 1:
        # Something is missing in a nested section: the section goes.
        _take_out(content, path[:-1])


def _explain(complaint: ErrorDetails, path: EntryPath) -> str:
    if complaint["type"] == "extra_forbidden":
        guess = nearest(path[-1], section_at(path).model_fields)
        return f"unknown key '{path[-1]}'" + (f"; the nearest is '{guess}'" if guess else "")
    if complaint["type"] == "missing":
        return f"'{path[-1]}' is missing"
    message = complaint["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path)}: {message} (got {complaint['input']!r})"
