"""`track`: writes a trial's stream of records down and passes it on.

The order of things is the crash contract. A record is on the disk before the trial is asked for the
next one, so that a checkpoint never knows more than the spool; the spool is drained from time to time,
beside the trial, and completely at its end; the run is terminated when everything else of it is in the store. A store
that is slow or away holds nobody up: what it misses waits in the spool.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time as clock
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import Timeout

from medst.config import Config, flatten
from medst.records import Arrays, Checkpoint, Facts, Metrics, Progress, Pruned, Record, Table
from medst.tracking import names
from medst.tracking.connection import TrackingPlace, find_experiment, is_away
from medst.tracking.drain import (
    BATCH_METRICS,
    BATCH_OTHERS,
    HEARTBEAT_SECONDS,
    Drain,
    TrialBusyError,
    batches_of,
    find_run,
    is_alive,
)
from medst.tracking.privacy import without_identifiers
from medst.tracking.spool import Spool, is_disk_full, spool_identity, spool_lock, spool_path

FLUSH_SECONDS = 2.0
"""Least time between two batches of a trial; the spool is written without delay."""
PATIENCE_SECONDS = 10.0
"""How long the end of a trial waits for an absent store; then the spool waits for the driver's end or next start."""
LOCK_SECONDS = 2.0
"""How long a trial waits for its lock, which another driver may hold for a moment to drain what lies there."""

_SHOWN_ENVIRONMENT = ("python", "cpu", "commit", "uncommitted_changes")
"""What of the environment is a tag, to filter by; the whole is the artifact `environment.json`."""

_NAME = re.compile(r"[\w\-. :/]{1,250}")
_LONGEST_TAG = 5000
_LONGEST_REASON = 2000
_LONGEST_PARAM = 6000


@dataclass(frozen=True)
class TrialDescription:
    """What identifies a trial and what its run says about it."""

    config: Config
    """As the user wrote it: paths relative to the project."""
    key: str
    arm: str
    data_name: str
    source_fingerprint: str
    data_fingerprint: str
    is_credentialed: bool
    torch_version: str
    studies: Mapping[str, str] = field(default_factory=dict)
    """Study -> the trial's arm in it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Further tags of the run: what a search or another caller has to find again."""
    environment: Mapping[str, str] = field(default_factory=dict)
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    """What is kept for the trial while it runs, for the account of its cost."""
    parent_run_id: str | None = None
    is_private_tracked: bool = False
    """The user's explicit switch: private artifacts of a credentialed data set are tracked too."""

    @property
    def name(self) -> str:
        return f"{self.arm} · seed {self.config.seed}"

    def tags(self) -> dict[str, str]:
        tags = {names.ARM: self.arm, names.SEED: str(self.config.seed), names.SOURCE: self.source_fingerprint,
                names.DATA: self.data_fingerprint, names.DATA_NAME: self.data_name, names.TORCH: self.torch_version}
        tags.update({f"{names.STUDY_PREFIX}{study}": arm for study, arm in self.studies.items()})
        tags.update({names.CPUS: f"{self.num_cpus:g}", names.GPUS: f"{self.num_gpus:g}"})
        tags.update(self.labels)
        tags.update({f"{names.ENVIRONMENT_PREFIX}{name}": self.environment[name] for name in _SHOWN_ENVIRONMENT
                     if name in self.environment})
        if self.parent_run_id is not None:
            tags[names.PARENT] = self.parent_run_id
        return tags

    def note(self, failure: str | None = None) -> str:
        """The description of the run in Markdown, headed by why it failed if it did."""
        roles = "; ".join(f"arm **{arm}** of study **{study}**" for study, arm in self.studies.items())
        parts = [f"{roles or f'Trial **{self.arm}**'}, seed {self.config.seed}, on {self.data_name}."]
        if failure is not None:
            parts = [f"**Failed.** `{failure}`",
                     f"The traceback is under Artifacts, `{names.TRACEBACK_ARTIFACT}`.", *parts]
        parts.append("Under Model metrics, search `train/` for the loss terms over steps and `validation/` for "
                     "held-out patients; `test/` are the downstream tasks at the last step (shares, 0 to 1), "
                     f"`{names.FACT_METRIC_PREFIX}` sizes and counts, `cost/` seconds of computing. Under Artifacts, "
                     f"`{names.CONFIG_ARTIFACT}` holds every setting, `{names.ENVIRONMENT_ARTIFACT}` the versions, "
                     "`predictions/` the results for every example.")
        return "\n\n".join(parts)


def track(records: Iterator[Record], description: TrialDescription, place: TrackingPlace,
          model_folder: Path | None = None) -> Iterator[Record]:
    """Write every record of a trial down, then pass it on.

    The run ends as FINISHED when the stream ends, as pruned when its last record says so, as FAILED with
    traceback and config when it raises (the exception is passed on), and as interrupted when the consumer
    stops early or the disk is full. A trial that is finished yields nothing.

    Args:
        model_folder: saved model that is tracked as the artifact `model` if it is there at the end.

    Raises:
        TrialBusyError: another process computes the same trial, or was faster.
        ValueError: a metric name that a tracking store cannot hold.
        OSError: no space on the disk. What was written before is whole, and the trial goes on from there when it is
            run again.
    """
    try:
        lock = spool_lock(place, description.key).acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise TrialBusyError(description.name, place.uri, is_finished=False) from None
    # Held until the process ends or the stream is done: two processes never write one spool.
    with lock:
        if _is_finished(description, place):
            return
        writer = _Writer(description, place)
        try:
            for record in records:
                writer.write(record)
                yield record
            writer.finish(model_folder)
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            writer.interrupt()
            raise
        except TrialBusyError:
            raise
        except Exception as error:
            if is_disk_full(error):
                # The disk that has no room for the trial may have none for this line.
                with suppress(OSError):
                    writer.interrupt()
            else:
                writer.fail(error)
            raise
        finally:
            writer.close()


def _is_finished(description: TrialDescription, place: TrackingPlace) -> bool:
    """True where the store says so; False also while it is away: doubled work is lost, results are not.

    Raises:
        TrialBusyError: beside a server, which has no locks: another process computes the trial.
    """
    try:
        experiment = find_experiment(place.uri, place.experiment)
        run = find_run(place.uri, experiment.experiment_id, names.KEY, description.key) if experiment else None
    except Exception as error:
        if is_away(error):
            return False
        raise
    if run is None or run.info.status == "FINISHED":
        return run is not None
    is_own = run.data.tags.get(names.OWNER) == spool_identity(place.folder, description.key)
    if is_alive(run) and not is_own and not place.is_local:
        raise TrialBusyError(description.name, place.uri, is_finished=False)
    return False


class _Writer:
    """Turns records into spool entries and flushes them."""

    def __init__(self, description: TrialDescription, place: TrackingPlace) -> None:
        self._description = description
        self._began = self._noted = clock.monotonic()
        self._spool = Spool(spool_path(place.folder, description.key), {
            "key": description.key, "name": description.name, "time": _now(), "tags": description.tags()})
        self._drain = Drain(self._spool, place)
        self._withheld: list[str] = []
        self._flushed = -math.inf
        self._pruned_because: str | None = None
        self._write_head()
        # One of the two speaks to the store at a time.
        self._turn = threading.Lock()
        self._is_asked = threading.Event()
        self._has_ended = False
        self._refusal: Exception | None = None
        """Why the store does not take what the thread brings."""
        threading.Thread(target=self._carry, name="tracking", daemon=True).start()

    def _carry(self) -> None:
        """Bring to the store what waits, while the trial goes on, and signs of life while it is long silent; ends with
        the trial or its process."""
        while True:
            is_asked = self._is_asked.wait(HEARTBEAT_SECONDS / 4)
            self._is_asked.clear()
            with self._turn:
                if self._has_ended:
                    return
                if not is_asked:
                    self._drain.beat()
                    continue
                try:
                    self._drain.attempt()
                except Exception as error:
                    self._refusal = error
                    return

    def _append(self, **parts: Any) -> None:
        self._noted = clock.monotonic()
        self._spool.append(time=_now(), seconds=round(self._noted - self._began, 3), **parts)

    def _write_head(self) -> None:
        """What stands before step 1: the resolved config, the environment, the fingerprints."""
        flat = flatten(self._description.config)
        self._spool.put_text(names.CONFIG_ARTIFACT, yaml.safe_dump(
            self._description.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        self._spool.put_text(names.ENVIRONMENT_ARTIFACT,
                             json.dumps(dict(self._description.environment), indent=1, ensure_ascii=False))
        self._append(tags={names.STATE: names.TrialState.RUNNING.value, names.ATTEMPTS: str(self._spool.attempt),
                           names.NOTE: self._description.note()},
                     artifacts=(names.CONFIG_ARTIFACT, names.ENVIRONMENT_ARTIFACT))
        texts = {key: names.tracked_text(value)[:_LONGEST_PARAM] for key, value in flat.items()}
        for params in batches_of(texts, BATCH_OTHERS):
            self._append(params=params)

    def write(self, record: Record) -> None:
        if self._refusal is not None:
            raise self._refusal
        match record:
            case Metrics(step, values):
                self._write_metrics(step, values)
            case Facts(values):
                self._write_facts(values)
            case Table():
                self._write_file(f"{record.name}{names.TABLE_SUFFIX}", record.is_private,
                                 lambda path: record.frame.to_parquet(path, index=False))
            case Arrays():
                self._write_file(f"{record.name}{names.ARRAYS_SUFFIX}", record.is_private,
                                 lambda path: _write_arrays(path, record.arrays))
            case Progress():
                if clock.monotonic() - self._flushed > HEARTBEAT_SECONDS:
                    self._append()
                    self._flush()
                return
            case Pruned(_, reason):
                self._pruned_because = reason
            case Checkpoint():
                self._append(is_checkpoint=True)
        if clock.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def _write_metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name in values:
            if not _NAME.fullmatch(name):
                raise ValueError(f"metric name {name!r} cannot be tracked: letters, digits and _-. :/ only")
        for part in batches_of({name: float(value) for name, value in values.items()}, BATCH_METRICS):
            self._append(step=step, metrics=part)

    def _write_facts(self, values: Mapping[str, Any]) -> None:
        numbers = {f"{names.FACT_METRIC_PREFIX}{name}": float(value) for name, value in values.items()
                   if isinstance(value, int | float | np.number) and not isinstance(value, bool)}
        texts = {f"{names.FACT_TAG_PREFIX}{name}": names.tracked_text(value)[:_LONGEST_TAG]
                 for name, value in values.items()
                 if f"{names.FACT_METRIC_PREFIX}{name}" not in numbers}
        if numbers:
            self._write_metrics(0, numbers)
        for part in batches_of(texts, BATCH_OTHERS) if texts else ():
            self._append(tags=part)

    def _write_file(self, artifact: str, is_private: bool, write: Any) -> None:
        described = self._description
        if is_private and described.is_credentialed and not described.is_private_tracked:
            self._withheld.append(artifact)
            self._append(tags={names.WITHHELD: ", ".join(self._withheld)[:_LONGEST_TAG]})
            return
        self._spool.put(artifact, write)
        self._append(artifacts=(artifact,))

    def _flush(self) -> None:
        """Have what waits brought to the store. The first time, which claims the trial, it is waited for."""
        if self._flushed == -math.inf:
            with self._turn:
                self._drain.attempt()
        else:
            self._is_asked.set()
        self._flushed = clock.monotonic()

    def finish(self, model_folder: Path | None) -> None:
        if self._pruned_because is not None:
            self._append(tags={names.FAILURE: self._pruned_because[:_LONGEST_TAG]})
            self._end(names.TrialState.PRUNED.value)
            return
        if model_folder is not None and model_folder.is_dir():
            described = self._description
            if described.is_credentialed and not described.is_private_tracked:
                self._withheld.append(names.MODEL_FOLDER)
                self._append(tags={names.WITHHELD: ", ".join(self._withheld)[:_LONGEST_TAG]})
            else:
                self._spool.put_folder(names.MODEL_FOLDER, model_folder)
                self._append(artifacts=(names.MODEL_FOLDER,))
        self._end(names.TrialState.FINISHED.value)

    def fail(self, error: Exception) -> None:
        """Keep the reason and the traceback; credentialed data lose the identifiers in them."""
        reason = "".join(traceback.format_exception_only(error)).strip()
        story = "".join(traceback.format_exception(error))
        if self._description.is_credentialed:
            reason, story = without_identifiers(reason), without_identifiers(story)
        self._spool.put_text(names.TRACEBACK_ARTIFACT, story)
        self._append(tags={names.FAILURE: reason[:_LONGEST_TAG],
                           names.NOTE: self._description.note(reason[:_LONGEST_REASON])},
                     artifacts=(names.TRACEBACK_ARTIFACT,))
        self._end(names.TrialState.FAILED.value)

    def interrupt(self) -> None:
        """End the attempt: the trial goes on when it is run again."""
        self._end(names.INTERRUPTED)

    def _end(self, state: str) -> None:
        """End with the cost so far, which a trial has however it ends."""
        self._append(end=state, tags={names.STATE: state}, step=self._spool.attempt, metrics={
            names.SECONDS_METRIC: round(self._spool.seconds() + clock.monotonic() - self._noted, 3),
            names.LOST_SECONDS_METRIC: round(self._spool.lost_seconds(), 3),
            names.ATTEMPTS_METRIC: float(self._spool.attempt)})
        with self._turn:
            self._drain.insist(0.0 if state == names.INTERRUPTED else PATIENCE_SECONDS)

    def close(self) -> None:
        with self._turn:
            self._has_ended = True
        self._is_asked.set()
        if self._drain.is_complete and self._spool.entries[-1].end in names.SETTLED:
            self._spool.remove()
        else:
            self._spool.close()


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    for name in arrays:
        assert name not in ("file", "allow_pickle"), f"array name {name!r} is taken by numpy's writer"
    np.savez_compressed(path, allow_pickle=False, **dict(arrays))


def _now() -> int:
    return int(clock.time() * 1000)
