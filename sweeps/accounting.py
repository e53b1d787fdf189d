"""What a study has cost: computed for it, wasted on the way, and saved because it was there already.

What lives here: sums over ledger entries, as core and GPU time that was kept for trials (wall-clock seconds times what
was reserved, as a cluster bills them). What must not: how seconds are measured (`medst.tracking.trials`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from medst.tracking import TrialState
from sweeps.ledger import Ledger, LedgerEntry
from sweeps.live import duration


@dataclass(frozen=True)
class Time:
    """Seconds of one core and of one GPU."""

    cpu: float = 0.0
    gpu: float = 0.0

    def __add__(self, other: Time) -> Time:
        return Time(self.cpu + other.cpu, self.gpu + other.gpu)

    def __str__(self) -> str:
        return f"{duration(self.cpu)} core time" + (f", {duration(self.gpu)} GPU time" if self.gpu else "")


@dataclass(frozen=True)
class Account:
    """Cost of a study. `failed`, `pruned` and `lost` are parts of `spent`; `shared` and `before` are not."""

    spent: Time
    """On trials that were computed for this study first, over all attempts."""
    failed: Time
    pruned: Time
    lost: Time
    """After the last checkpoint of attempts that a kill or an interruption ended, of trials that then went on."""
    shared: Time
    """On finished trials that another study had computed."""
    before: Time
    """On trials of this study that were finished when the command began; a part of `spent`."""

    def lines(self) -> list[str]:
        wasted = self.failed + self.pruned + self.lost
        parts = [f"{duration(time.cpu)} {name}" for name, time in
                 (("failed", self.failed), ("pruned", self.pruned), ("lost to interruptions", self.lost)) if time.cpu]
        lines = [f"Spent: {self.spent}" + (f", of which wasted: {wasted} ({', '.join(parts)})." if parts
                                           else ", nothing wasted.")]
        if self.shared.cpu or self.before.cpu:
            parts = [f"{duration(time.cpu)} {name}" for name, time in
                     (("shared with other studies", self.shared), ("done before", self.before)) if time.cpu]
            lines.append(f"Saved: {self.shared + self.before} ({', '.join(parts)}).")
        return lines

    def hours(self) -> dict[str, float]:
        """Name -> hours, as they are tracked on the study's run."""
        named = {"spent": self.spent, "failed": self.failed, "pruned": self.pruned, "lost": self.lost,
                 "shared": self.shared, "before": self.before}
        return {f"{kind}_hours_{name}": getattr(time, kind) / 3600 for name, time in named.items()
                for kind in ("cpu", "gpu")}


def account(ledger: Ledger, keys: Iterable[str], study_run_id: str | None, finished_before: Collection[str] = ()
            ) -> Account:
    """The account of the study whose run is `study_run_id` and whose trials have `keys`.

    Args:
        finished_before: keys that were finished when the command began.
    """
    sums = dict.fromkeys(("spent", "failed", "pruned", "lost", "shared", "before"), Time())
    for key in keys:
        entry = ledger[key]
        if entry.seconds is None:
            continue
        whole, lost = _time(entry, entry.seconds), _time(entry, entry.lost_seconds)
        if entry.parent_run_id != study_run_id:
            if entry.state is TrialState.FINISHED:
                sums["shared"] += whole
            continue
        sums["spent"] += whole
        if entry.state in (TrialState.FAILED, TrialState.PRUNED):
            sums[entry.state.value] += whole
        else:
            sums["lost"] += lost
        if key in finished_before:
            sums["before"] += whole
    return Account(**sums)


def _time(entry: LedgerEntry, seconds: float) -> Time:
    return Time(seconds * entry.cpus, seconds * entry.gpus)
