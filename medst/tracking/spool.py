"""The append-only record of one trial on the local disk, from which the tracking store is filled.

Layout of `<folder>/spool/<key>/`:

    run.json        what identifies the run; written once, before everything else
    entries.jsonl   one entry a line, numbered from 1, each forced to the disk before the trial goes on
    files/...       the artifacts that entries name, under their artifact paths

An entry is complete or it is not there: a line that a kill cut short has no line feed and is taken off
when the spool is opened again, one that a full disk cut short at once. One process at a time holds a spool, by a
lock that dies with it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medst.tracking.connection import TrackingPlace

_RUN = "run.json"
_ENTRIES = "entries.jsonl"
_FILES = "files"


@dataclass(frozen=True)
class Entry:
    """One step of a trial's story. All parts are optional but the number and the time."""

    number: int
    time: int
    """Milliseconds since 1970: metrics keep it however late they reach the store."""
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()
    """Artifact paths; their content lies under the same path in `files/`."""
    seconds: float = 0.0
    """Seconds since this attempt began."""
    attempt: int = 1
    is_checkpoint: bool = False
    """The trial can go on from here: what was computed before is not lost with the process."""
    end: str | None = None
    """State with which the attempt ended; None while it goes on."""


def is_disk_full(error: BaseException) -> bool:
    """True for the errors of a disk, or a quota, that has no room left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def spool_lock(place: TrackingPlace, key: str) -> FileLock:
    """The lock that the process which computes or drains the trial `key` holds."""
    place.locks.mkdir(parents=True, exist_ok=True)
    return FileLock(place.locks / f"{key}.lock", thread_local=False)


def spool_path(folder: Path, key: str) -> Path:
    return folder / "spool" / key


def has_spool(folder: Path, key: str) -> bool:
    """True where a process on this machine began the trial and its end is not in the store yet."""
    return Spool.exists(spool_path(folder, key))


def is_held(place: TrackingPlace, key: str) -> bool:
    """True while a process that shares the locks of `place` computes or drains the trial."""
    if not (place.locks / f"{key}.lock").exists():
        return False
    lock = spool_lock(place, key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def spool_identity(folder: Path, key: str) -> str | None:
    """Identity of the spool that this disk holds of a trial, None where it holds none."""
    try:
        return str(json.loads((spool_path(folder, key) / _RUN).read_text(encoding="utf-8"))["spool"])
    except FileNotFoundError:
        return None


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, force it to the disk, then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: some writers append their own where it is missing.
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        write(temporary)
        _force_file(temporary)
        temporary.replace(path)
        _force_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _force_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _force_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Spool:
    """The spool of one trial; the caller holds its lock."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        """Open the spool at `path`, or make it with `run` as its description."""
        self.path = path
        if not self.exists(path):
            # What lies there belongs to a spool whose removal was cut short.
            shutil.rmtree(path, ignore_errors=True)
            described = {**run, "spool": uuid.uuid4().hex[:12]}
            write_atomically(path / _RUN, lambda file: _write_text(file, json.dumps(described, ensure_ascii=False)))
        self.run: dict[str, Any] = json.loads((path / _RUN).read_text(encoding="utf-8"))
        self.entries = _read_entries(path / _ENTRIES)
        # Unbuffered: what a full disk refused must not be written later, by the closing of the file.
        self._file = open(path / _ENTRIES, "ab", buffering=0)  # noqa: SIM115 - stays open as long as the spool
        self.attempt = 1 + max((entry.attempt for entry in self.entries), default=0)

    @staticmethod
    def exists(path: Path) -> bool:
        return (path / _RUN).exists()

    @property
    def identity(self) -> str:
        """Tells this spool from one that was lost with another machine."""
        return str(self.run["spool"])

    def append(self, *, time: int, **parts: Any) -> Entry:
        """Add one entry; it is on the disk when this returns.

        Raises:
            OSError: it could not be written, and nothing of it was.
        """
        number = self.entries[-1].number + 1 if self.entries else 1
        entry = Entry(number=number, time=time, attempt=self.attempt, **parts)
        line = json.dumps({name: value for name, value in asdict(entry).items() if value not in (None, False, {}, ())},
                          ensure_ascii=False)
        size = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(line.encode() + b"\n")
            while rest:
                rest = rest[self._file.write(rest):]
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise
        self.entries.append(entry)
        return entry

    def put(self, artifact: str, write: Callable[[Path], None]) -> None:
        """Write the content of an artifact; the entry that names it comes after."""
        write_atomically(self.file_of(artifact), write)

    def put_text(self, artifact: str, text: str) -> None:
        self.put(artifact, lambda file: _write_text(file, text))

    def put_folder(self, artifact: str, folder: Path) -> None:
        """Copy a folder; what an interrupted copy left there is replaced."""
        shutil.rmtree(self.file_of(artifact), ignore_errors=True)
        shutil.copytree(folder, self.file_of(artifact))
        for path in self.file_of(artifact).rglob("*"):
            if path.is_file():
                _force_file(path)

    def file_of(self, artifact: str) -> Path:
        return self.path / _FILES / artifact

    def seconds(self) -> float:
        """Seconds of computing over all attempts."""
        last: dict[int, float] = {}
        for entry in self.entries:
            last[entry.attempt] = entry.seconds
        return sum(last.values())

    def lost_seconds(self) -> float:
        """Seconds of earlier attempts that were computed in vain: after their last checkpoint."""
        last: dict[int, float] = {}
        kept: dict[int, float] = {}
        for entry in self.entries:
            if entry.attempt != self.attempt:
                last[entry.attempt] = entry.seconds
                if entry.is_checkpoint:
                    kept[entry.attempt] = entry.seconds
        return sum(seconds - kept.get(attempt, 0.0) for attempt, seconds in last.items())

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Everything is in the store: forget the spool. Without its description, the rest counts as rubbish."""
        self.close()
        (self.path / _RUN).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _read_entries(path: Path) -> list[Entry]:
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)
    entries = []
    for line in content[:complete].splitlines():
        parts = json.loads(line)
        parts["artifacts"] = tuple(parts.get("artifacts", ()))
        entries.append(Entry(**parts))
    return entries
