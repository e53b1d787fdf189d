"""The account of one load of weights: every key is in one place. What must not live here: the loading."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadReport:
    """Which tensors came from where; printed after every load."""

    source: str
    loaded: tuple[str, ...]
    """Keys of the model that were set from the file."""
    filled: tuple[str, ...] = ()
    """Keys of the model that the file does not have and that were set to a known value."""
    ignored: tuple[str, ...] = ()
    """Keys of the file that take no part in the model, by a stated rule."""
    missing: tuple[str, ...] = ()
    """Keys of the model that were left as they were."""
    unexpected: tuple[str, ...] = ()
    """Keys of the file that nobody knows."""
    reshaped: tuple[str, ...] = ()
    """Keys of the model whose tensor was brought to another size, with both shapes."""
    adapted: tuple[str, ...] = ()
    """What else was done to the file's content."""

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        for title in ("filled", "reshaped", "ignored", "missing", "unexpected"):
            keys = getattr(self, title)
            if keys:
                shown = ", ".join(keys[:8]) + (f", and {len(keys) - 8} more" if len(keys) > 8 else "")
                lines.append(f"  {title} ({len(keys)}): {shown}")
        return "\n".join([*lines, *(f"  {note}" for note in self.adapted)])
