"""`medst sweep extend`: more arms or seeds in a study file, whose comments and layout stay as they are.

What lives here: the change of the file's text. What must not: what the entries mean (the changed text is loaded like
any other study before it takes the file's place), nor how trials are run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medst.config import ConfigError, parse_overrides, parse_yaml
from sweeps.study_errors import StudyError


def parse_seeds(texts: Iterable[str]) -> list[int]:
    """`6..8` or `6,7,8` or `6` -> the seeds.

    Raises:
        StudyError: something else.
    """
    seeds: list[int] = []
    for text in texts:
        for part in text.split(","):
            first, dots, last = (piece.strip() for piece in part.partition(".."))
            if not first.isdecimal() or (dots and not last.isdecimal()) or (dots and int(last) < int(first)):
                raise StudyError(f"--seeds {text}: expected seeds such as 6..8 or 6,7,8")
            seeds += range(int(first), int(last if dots else first) + 1)
    return seeds


def parse_arms(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`name: key=value key=value` -> name -> settings.

    Raises:
        StudyError: something else.
    """
    arms: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, colon, settings = text.partition(":")
        if not colon or not name.strip():
            raise StudyError(f"--arm {text}: expected 'name: key=value key=value'")
        try:
            arms[name.strip()] = parse_overrides(settings.split())
        except ConfigError:
            raise StudyError(f"--arm {text}: expected 'name: key=value key=value'") from None
    return arms


def extend(path: Path, seeds: Sequence[int], arms: Mapping[str, Mapping[str, Any]], check: Callable[[Path], object]
           ) -> list[str]:
    """Add seeds and arms to a study file, which changes all at once or not at all.

    Args:
        check: loads the changed file from a path beside the study and raises where it is refused.

    Returns:
        What was added, as phrases; empty where everything was there.

    Raises:
        StudyError: an arm of that name has other settings, or the changed study is refused.
    """
    text = path.read_text(encoding="utf-8")
    content = parse_yaml(text)
    there = content.get("arms") or {}
    for name in arms:
        if name in there and dict(there[name] or {}) != dict(arms[name]):
            raise StudyError(f"{path}: arm '{name}' is there with other settings; give the new one another name")
    new_seeds = [seed for seed in dict.fromkeys(seeds) if seed not in content["seeds"]]
    new_arms = {name: settings for name, settings in arms.items() if name not in there}
    if new_seeds:
        text = _with_seeds(text, [*content["seeds"], *new_seeds])
    for name, settings in new_arms.items():
        text = _with_arm(text, name, settings)
    if not (new_seeds or new_arms):
        return []
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".yaml")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode)
        try:
            check(Path(temporary))
        except StudyError as error:
            raise StudyError(f"not changed: {error}".replace(temporary, str(path))) from None
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return [*([f"seeds {', '.join(map(str, new_seeds))}"] if new_seeds else []),
            *(f"arm '{name}'" for name in new_arms)]


def _section(text: str, key: str) -> yaml.Node | None:
    """The value of a key at the top of a document."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return next((value for name, value in root.value if name.value == key), None)


def _with_seeds(text: str, seeds: Sequence[int]) -> str:
    node = _section(text, "seeds")
    assert node is not None
    return text[:node.start_mark.index] + json.dumps(list(seeds)) + _rest(text, node)


def _rest(text: str, node: yaml.Node) -> str:
    """What follows a value; a block's own end lies behind the comments that follow it."""
    end = _end(node)
    return text[end:]


def _end(node: yaml.Node) -> int:
    """Where the last character of a value stands, plus one."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _with_arm(text: str, name: str, settings: Mapping[str, Any]) -> str:
    entry = f"{_quoted(name)}: {{{', '.join(f'{key}: {_quoted(value)}' for key, value in settings.items())}}}"
    node = _section(text, "arms")
    if node is None:
        return f"{text.rstrip()}\n\narms:\n  {entry}\n"
    if isinstance(node, yaml.MappingNode) and node.value and not node.flow_style:
        column = node.value[0][0].start_mark.column
        line_end = text.find("\n", _end(node))
        line_end = len(text) if line_end < 0 else line_end
        return f"{text[:line_end]}\n{' ' * column}{entry}{text[line_end:]}"
    if isinstance(node, yaml.MappingNode) and node.value:
        end = node.end_mark.index - 1
        return f"{text[:end].rstrip().rstrip(',')}, {entry}{text[end:]}"
    return f"{text[:node.start_mark.index].rstrip()}\n  {entry}{text[node.end_mark.index:]}"


def _quoted(value: Any) -> str:
    """A plain value as YAML reads it back, on one line."""
    # As in a list, where a text that means something else is quoted.
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9).strip()[1:-1]
