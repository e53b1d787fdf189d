"""Claims, locks, signs of life, the incremental reading of the ledger, full disks, cost."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tracking_fixtures import describe, fake_trial, fresh_place

from medst.config import Config
from medst.records import Checkpoint, Metrics, Progress, Record
from medst.tracking import TrackingPlace, TrialState, drain, drain_spools, ensure_study_run, index, load_runs, track
from medst.tracking.connection import TrackingError, client, reaching
from medst.tracking.drain import TrialBusyError
from medst.tracking.index import trial_runs
from medst.tracking.spool import Spool, spool_lock, spool_path
from medst.tracking.studies import tag_trials
from medst.training import checkpoint
from medst.training.checkpoint import load_checkpoint, save_checkpoint
from medst.training.memory import is_out_of_memory, largest_that_fits
from sweeps.accounting import Time, account
from sweeps.ledger import Ledger, LedgerEntry, read_ledger, reap_lost


@pytest.fixture
def place(tmp_path: Path) -> TrackingPlace:
    return fresh_place(tmp_path / "project")


def begin(place: TrackingPlace, key: str = "key", num_records: int = 4) -> Iterator[Record]:
    """A trial that has yielded some records and holds what it holds."""
    stream = track(fake_trial(Config(), None), describe(key), place)
    assert len(list(itertools.islice(stream, num_records))) == num_records
    return stream


# ---- Locks and claims --------------------------------------------------------------------------------------------


def test_two_projects_beside_one_file_share_its_locks(place: TrackingPlace, tmp_path: Path) -> None:
    other = TrackingPlace(place.uri, tmp_path / "other" / "runs")
    third = TrackingPlace(place.uri, tmp_path / "third" / "runs")
    assert other.locks == third.locks and place.locks == place.folder / "locks"
    stream = begin(other)
    assert read_ledger(third, ["key"])["key"].state is TrialState.RUNNING
    with pytest.raises(TrialBusyError, match="computes it"):
        begin(third)
    stream.close()
    assert read_ledger(third, ["key"])["key"].state is TrialState.MISSING


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, place: TrackingPlace) -> tuple[TrackingPlace, TrackingPlace]:
    """Two machines without a common disk, on one store that has no locks."""
    monkeypatch.setattr(TrackingPlace, "is_local", False)
    monkeypatch.setattr(TrackingPlace, "locks", property(lambda self: self.folder / "locks"))
    monkeypatch.setattr(drain, "SETTLE_SECONDS", 0.0)
    return replace(place, folder=place.folder / "one"), replace(place, folder=place.folder / "two")


def test_beside_a_server_the_run_is_the_claim(server: tuple[TrackingPlace, TrackingPlace],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = server
    stream = begin(one)
    assert read_ledger(two, ["key"])["key"].state is TrialState.RUNNING
    with pytest.raises(TrialBusyError, match="computes it"):
        begin(two)
    # The other machine is lost; its sign of life grows old.
    monkeypatch.setattr(drain, "STALE_SECONDS", -1.0)
    monkeypatch.setattr("medst.tracking.reading.STALE_SECONDS", -1.0)
    ledger = read_ledger(two, ["key"])
    assert ledger["key"].state is TrialState.MISSING and reap_lost(two, ledger) == 1
    for _ in track(fake_trial(Config(), None), describe(), two):
        pass
    # It was not lost but slow: a heartbeat later it finds its run finished by another, and adds nothing.
    monkeypatch.setattr(drain, "HEARTBEAT_SECONDS", -1.0)
    with pytest.raises(TrialBusyError):
        list(stream)
    frame = load_runs(one.uri)
    assert list(frame["status"]) == ["FINISHED"]
    assert [point.step for point in client(one.uri).get_metric_history(frame["run_id"][0], "train/loss")] == [
        1, 2, 3, 4, 5, 6]


def test_of_two_claims_in_one_moment_the_older_run_stands(server: tuple[TrackingPlace, TrackingPlace],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = server
    monkeypatch.setattr(drain, "SETTLE_SECONDS", 1000.0)
    real = drain.find_run
    with monkeypatch.context() as moment:
        # Each looks before the other's run is there.
        moment.setattr(drain, "find_run", lambda *arguments: None)
        moment.setattr("medst.tracking.trials.find_run", lambda *arguments: None)
        first, second = begin(one), begin(two)
    assert len(load_runs(one.uri)) == 2 and drain.find_run is real
    monkeypatch.setattr(drain, "SETTLE_SECONDS", 0.0)
    with pytest.raises(TrialBusyError):
        list(second)
    list(first)
    assert list(load_runs(one.uri)["status"]) == ["FINISHED"]
    assert drain_spools(two).waiting == () and not list((two.folder / "spool").iterdir())


def test_a_sign_of_life_is_given_while_the_trial_is_silent(place: TrackingPlace,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    stream = begin(place)
    run_id = load_runs(place.uri)["run_id"][0]
    client(place.uri).set_tag(run_id, "medst.heartbeat", "1")
    writer = drain.Drain(Spool(spool_path(place.folder, "key"), {}), place)
    assert writer.attempt()
    client(place.uri).set_tag(run_id, "medst.heartbeat", "1")
    writer.beat()
    assert client(place.uri).get_run(run_id).data.tags["medst.heartbeat"] == "1", "not more often than needed"
    monkeypatch.setattr(drain, "HEARTBEAT_SECONDS", -1.0)
    writer.beat()
    assert float(client(place.uri).get_run(run_id).data.tags["medst.heartbeat"]) > 1e9
    stream.close()


def test_a_held_lock_is_not_waited_for_long(place: TrackingPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medst.tracking.trials.LOCK_SECONDS", 0.0)
    with spool_lock(place, "key"), pytest.raises(TrialBusyError):
        begin(place)


def test_an_absent_store_is_told_with_what_to_do() -> None:
    with pytest.raises(TrackingError, match=r"is away .* run the same command again"), reaching("http://127.0.0.1:9"):
        client("http://127.0.0.1:9").get_experiment_by_name("medst")


# ---- Incremental reading -----------------------------------------------------------------------------------------


def test_the_kept_reading_follows_every_change(server: tuple[TrackingPlace, TrackingPlace],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    place, _ = server

    def finish(key: str, **changes: Any) -> None:
        for _ in track(iter([]), describe(key, **changes), place):
            pass

    def whole() -> list[index.TrialRun]:
        """From the tables of the store."""
        with monkeypatch.context() as beside:
            beside.setattr(TrackingPlace, "is_local", True)
            beside.setattr(index, "search_all_runs", None)
            return trial_runs(place)

    monkeypatch.setattr(index, "_WORTH_KEEPING", 1)
    monkeypatch.setattr(index, "_OVERLAP_MILLISECONDS", 0)
    reads: list[str] = []
    real = index.search_all_runs

    def counted(uri: str, experiment: str, filter_string: str, *rest: Any) -> Any:
        reads.append(filter_string)
        return real(uri, experiment, filter_string, *rest)

    monkeypatch.setattr(index, "search_all_runs", counted)
    ensure_study_run(place.uri, place.experiment, "other", "", {}, is_running=False)
    for key in ("a", "b", "c"):
        finish(key)
    assert [run.key for run in trial_runs(place)] == ["a", "b", "c"]
    reads.clear()
    kept = trial_runs(place)
    assert len(reads) == 4 and reads.count(index._IS_TRIAL) == 1, "of all trials only the deleted ones were asked for"
    assert kept == whole()
    ids = {run.key: run.run_id for run in trial_runs(place)}

    finish("d")
    client(place.uri).update_run(ids["a"], status="RUNNING")
    assert trial_runs(place) == whole() and [run.key for run in trial_runs(place)] == ["a", "b", "c", "d"]
    client(place.uri).set_terminated(ids["a"], "FAILED")
    assert trial_runs(place) == whole() and trial_runs(place)[0].state is TrialState.FAILED
    tag_trials(place.uri, place.experiment, "other", [(ids["b"], "half")])
    assert trial_runs(place) == whole() and trial_runs(place)[1].studies["other"] == "half"
    client(place.uri).delete_run(ids["c"])
    assert trial_runs(place) == whole() and [run.key for run in trial_runs(place)] == ["a", "b", "d"]
    client(place.uri).restore_run(ids["c"])
    assert trial_runs(place) == whole() and len(trial_runs(place)) == 4
    index._file(place).write_text("{")
    assert trial_runs(place) == whole()


# ---- Failures ----------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_no_half_entry_and_the_trial_goes_on(place: TrackingPlace,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(spool_path(place.folder, "key"), {"key": "key"})
    spool.append(time=1, metrics={"loss": 1.0})
    path = spool.path / "entries.jsonl"
    whole = path.read_bytes()

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, content: bytes) -> int:
            if len(content) < 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self._file.write(content[:10]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    with monkeypatch.context() as disk:
        disk.setattr(spool, "_file", Full(spool._file))
        with pytest.raises(OSError, match="No space"):
            spool.append(time=2, metrics={"loss": 2.0})
    assert path.read_bytes() == whole
    assert spool.append(time=3).number == 2
    spool.close()


def test_a_trial_on_a_full_disk_is_missing_not_failed(place: TrackingPlace) -> None:
    def full() -> Iterator[Record]:
        yield Metrics(1, {"train/loss": 1.0})
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        list(track(full(), describe(), place))
    assert read_ledger(place, ["key"])["key"].state is TrialState.MISSING


def test_a_checkpoint_that_does_not_fit_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1, "weight": torch.ones(3)})
    written = checkpoint._Hashed.write
    with monkeypatch.context() as disk:
        def full(hashed: Any, content: bytes) -> int:
            hashed.error = OSError(errno.ENOSPC, "No space left on device")
            raise hashed.error

        disk.setattr(checkpoint._Hashed, "write", full)
        with pytest.raises(OSError, match="No space"):
            save_checkpoint(tmp_path, 2, {"step": 2, "weight": torch.ones(3)})
    assert checkpoint._Hashed.write is written
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1


def test_one_flipped_bit_of_a_checkpoint_is_seen(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step, "weight": torch.full((1000,), float(step))})
    path = tmp_path / "step-2" / "state.pt"
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 2.0).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(content)
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1


def test_the_largest_micro_batch_that_fits_is_found() -> None:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > 6:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    assert largest_that_fits(attempt, 32) == 4 and tried == [16, 8, 4]
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


# ---- Cost --------------------------------------------------------------------------------------------------------


def test_what_a_kill_costs_is_the_time_after_the_last_checkpoint(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", {"key": "key"})
    for seconds, is_checkpoint in ((1.0, False), (4.0, True), (6.5, False)):
        spool.append(time=1, seconds=seconds, is_checkpoint=is_checkpoint)
    spool.close()
    again = Spool(tmp_path / "spool", {"key": "key"})
    again.append(time=2, seconds=3.0)
    assert (again.seconds(), again.lost_seconds()) == (9.5, 2.5)
    again.close()


def test_every_end_tells_its_cost(place: TrackingPlace) -> None:
    def failing() -> Iterator[Record]:
        yield Progress(1, 2)
        yield Checkpoint(1, Path())
        raise FloatingPointError("not finite")

    with pytest.raises(FloatingPointError):
        list(track(failing(), describe(num_cpus=2.0), place))
    entry = read_ledger(place, ["key"])["key"]
    assert entry.state is TrialState.FAILED and entry.seconds is not None and entry.cpus == 2.0
    list(track(iter([]), describe(num_cpus=2.0), place))
    after = read_ledger(place, ["key"])["key"]
    assert after.seconds is not None and after.seconds >= entry.seconds
    assert [point.step for point in client(place.uri).get_metric_history(str(after.run_id), "cost/seconds")] == [1, 2]


def test_the_account_by_hand() -> None:
    def entry(state: TrialState, seconds: float | None, parent: str = "own", lost: float = 0.0, gpus: float = 0.0
              ) -> LedgerEntry:
        return LedgerEntry(state, "run", seconds, lost, 2.0, gpus, parent)

    ledger = Ledger({
        "finished": entry(TrialState.FINISHED, 100.0, lost=10.0, gpus=0.5), "before": entry(TrialState.FINISHED, 50.0),
        "failed": entry(TrialState.FAILED, 7.0, lost=3.0), "pruned": entry(TrialState.PRUNED, 5.0),
        "shared": entry(TrialState.FINISHED, 30.0, parent="other"), "running": entry(TrialState.RUNNING, None),
        "theirs": entry(TrialState.FAILED, 9.0, parent="other")})
    cost = account(ledger, [*ledger.entries, "missing"], "own", {"before"})
    assert cost.spent == Time(2 * 162.0, 50.0) and cost.lost == Time(20.0, 5.0)
    assert cost.failed == Time(14.0) and cost.pruned == Time(10.0)
    assert cost.shared == Time(60.0) and cost.before == Time(100.0)
    assert cost.lines() == [
        "Spent: 5 min 24 s core time, 50 s GPU time, of which wasted: 44 s core time, 5 s GPU time (14 s failed, 10 s "
        "pruned, 20 s lost to interruptions).",
        "Saved: 2 min 40 s core time (1 min 00 s shared with other studies, 1 min 40 s done before)."]
    assert cost.hours()["cpu_hours_spent"] == pytest.approx(0.09)
