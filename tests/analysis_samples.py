"""Synthetic studies for the tests of analysis/: known effects, known holes."""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd

from analysis import registry
from analysis.tidy import Plan, Study, assemble

SOURCE = "5ce0a11f0c0de000"
OVERVIEW_ARMS = (
    "full", "λ1 = 0.3", "λ1 = 3", "λ2 = 0.3", "λ2 = 3", "1 expert", "1 wide expert", "staged curriculum",
    "no lateral view", "no local alignment", "no FMC", "no RMR", "no temporal loss", "global only",
)
PRIMARY = "test/finding_zero_shot/mean/auroc"


def make_plan(arms: tuple[str, ...] = OVERVIEW_ARMS, num_seeds: int = 3, name: str = "overview",
              assignments: dict[str, dict[str, object]] | None = None) -> Plan:
    return Plan(name=name, arms=arms, reference=arms[0], primary=PRIMARY, seeds=tuple(range(num_seeds)),
                question="What does each part of Med-ST bring?", base=("experiments/phantom_tiny.yaml",),
                data="phantom tiny", assignments=assignments or {})


def make_frames(
    plan: Plan, noise: float = 0.015, effects: dict[str, float] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(runs, numbers) of a finished study: seeds share a shift, arms differ by `effects` (tracked units)."""
    rows, numbers = [], []
    for arm in plan.arms:
        for seed in plan.seeds:
            run = f"{zlib.crc32(f'{plan.name}{arm}{seed}'.encode()):08x}{seed:024x}"
            rows.append({"run_id": run, "arm": arm, "seed": seed, "state": "finished", "key": run[::-1],
                         "source_fingerprint": SOURCE, "data_fingerprint": "da7af1a9e7000000",
                         "data_name": "phantom tiny", "reason": None, "withheld": None,
                         "start_time": 1_700_000_000 + len(rows)})
            for metric in registry.METRICS.values():
                generator = np.random.default_rng(zlib.crc32(f"{metric.key}{seed}".encode()))
                shared = generator.normal(0, noise)
                own = np.random.default_rng(zlib.crc32(f"{metric.key}{seed}{arm}".encode())).normal(0, noise)
                if metric.task == "cost":
                    value = (2.1e6 if "param" in metric.key else 3.2e8) * (1 + 0.3 * ("expert" in arm))
                else:
                    value = 0.7 + shared + own + (effects or {}).get(arm, 0.0)
                numbers.append({"run_id": run, "metric": metric.key, "value": value})
            numbers += [{"run_id": run, "metric": "test/grounding/chance", "value": 0.09},
                        {"run_id": run, "metric": "facts/pairs_seen", "value": 19200.0}]
            if arm == plan.reference:
                numbers += [{"run_id": run, "metric": registry.floor_key(key, "pixel_baseline"), "value": 0.41}
                            for key in ("test/temporal_image/mean/balanced_accuracy",
                                        "test/temporal_image/edema/balanced_accuracy")]
    return pd.DataFrame(rows), pd.DataFrame(numbers)


def make_study(plan: Plan | None = None, noise: float = 0.015, effects: dict[str, float] | None = None) -> Study:
    plan = plan or make_plan()
    return assemble(plan, *make_frames(plan, noise, effects), current_source=SOURCE)
