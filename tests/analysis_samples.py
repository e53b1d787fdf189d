"""Synthetic studies for the tests of analysis/: known effects, known holes."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import registry
from analysis.tidy import Expectation, Plan, Study, assemble
from medst import tracking
from medst.config import Config, override, source_fingerprint
from medst.records import Arrays, Facts, Metrics, Record, Table

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
                data="phantom tiny", assignments=assignments or {},
                expectations=(Expectation(arms[-1], PRIMARY, "lower"),))


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
                         "data_name": "phantom tiny", "processor": "Processor 1", "reason": None, "withheld": None,
                         "start_time": 1_700_000_000 + len(rows)})
            for metric in registry.METRICS.values():
                generator = np.random.default_rng(zlib.crc32(f"{metric.key}{seed}".encode()))
                shared = generator.normal(0, noise)
                own = np.random.default_rng(zlib.crc32(f"{metric.key}{seed}{arm}".encode())).normal(0, noise)
                if metric.task == "cost":
                    value = (2.1e6 if "param" in metric.key else 3.2e7) * (1 + 0.3 * ("expert" in arm))
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


def make_curves(study: Study) -> pd.DataFrame:
    """Falling losses and the schedules that the arms' names speak of, for every run of a study."""
    rows = []
    for trial in study.trials.itertuples():
        rows += [(trial.run_id, name, step, value) for step, values in curve_points(str(trial.arm), int(trial.seed))
                 for name, value in values.items()]
    return pd.DataFrame(rows, columns=["run_id", "name", "step", "value"])


def curve_points(arm: str, seed: int, num_points: int = 30, num_steps: int = 600) -> list[tuple[int, dict[str, float]]]:
    generator = np.random.default_rng(seed)
    points = []
    for step in np.linspace(num_steps / num_points, num_steps, num_points).astype(int).tolist():
        progress = step / num_steps
        values = {f"train/{term}": (2 + 0.3 * index) * float(np.exp(-3 * progress)) + 0.5 + generator.normal(0, 0.03)
                  for index, term in enumerate(registry.LOSS_TERMS)
                  if term != "balance" and not ("local" in term and "no local" in arm)}
        values["train/fmc_weight"] = float(progress > 0.5) if "reversed" in arm else 1.0
        values["train/rmr_weight"] = float(progress > 0.5) if "staged" in arm else (
            float(np.clip((progress - 0.5) / 0.25, 0, 1)) if "ramp" in arm else 1.0)
        values["train/sequence_length"] = min(4.0, 2.0 + int(progress * 3)) if "length" in arm else 4.0
        num_experts = 1 if "1" in arm else 3 if "3" in arm else 4 if "4" in arm else 2
        shares = generator.dirichlet(np.full(num_experts, 40.0))
        values |= {f"train/expert_share/{expert}": float(share) for expert, share in enumerate(shares)}
        points.append((step, values))
    return points


def make_grounding_arrays(num_examples: int = 8, side: int = 64, blur: float = 8.0) -> dict[str, np.ndarray]:
    """Dark lungs with one bright spot, a box round it and a map that peaks near it."""
    y, x = np.mgrid[:side, :side].astype(float)
    generator = np.random.default_rng(0)
    lungs = sum(np.exp(-((x - centre) / 9) ** 2 - ((y - 32) / 18) ** 2) for centre in (20, 44))
    images, maps, boxes = [], [], []
    for _ in range(num_examples):
        column, row = generator.choice([20, 44]), generator.uniform(20, 48)
        spot = np.exp(-((x - column) ** 2 + (y - row) ** 2) / 18)
        images.append(np.clip(170 - 120 * lungs + 110 * spot + generator.normal(0, 5, (side, side)), 0, 255))
        near = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * blur**2))
        maps.append(near + generator.normal(0, 0.02, (side, side)))
        boxes.append([[column - 6, row - 6, 12, 12], [np.nan] * 4])
    findings = np.array([registry.FINDINGS[index % 5] for index in range(num_examples)])
    points = np.array(boxes)[:, 0, :2] + 6
    return {"images": np.array(images).astype(np.uint8), "patch_similarity": np.array(maps, dtype=np.float32),
            "reference": points.astype(np.float32), "similarity": np.array(maps, dtype=np.float32),
            "attention": np.array(maps, dtype=np.float32), "boxes": np.array(boxes, dtype=np.float32),
            "phrases": np.array(["patchy opacity in the left lower lobe has increased"] * num_examples),
            "findings": findings}


def make_sequences(num_patients: int = 12, length: int = 3, side: int = 16) -> tuple[Arrays, Arrays]:
    """(embeddings, samples): a patient's studies lie close together; every second study has a lateral."""
    generator = np.random.default_rng(0)
    embeddings = generator.normal(0, 1, (num_patients, 1, 8)) + generator.normal(0, 0.1, (num_patients, length, 8))
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    days = np.tile(np.arange(length) * 10.0, (num_patients, 1)).astype(np.float32)
    shape = (2, length)
    has_lateral = np.tile(np.arange(length) % 2 == 0, (2, 1))
    images = generator.integers(0, 255, (*shape, side, side)).astype(np.uint8)
    return (Arrays("embeddings/temporal", {"embeddings": embeddings.astype(np.float32), "days": days}),
            Arrays("samples/sequences", {
                "frontal": images, "lateral": images, "has_lateral": has_lateral, "days": days[:2],
                "frontal_view": np.full(shape, "AP"), "lateral_view": np.where(has_lateral, "LL", ""),
                "reports": np.full(shape, "the heart is large and there is a small left effusion")}))


def make_predictions(seed: int, shift: float = 1.0, num_patients: int = 30) -> pd.DataFrame:
    """Three studies a patient; positives score `shift` higher."""
    generator = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), 3)
    frames = []
    for finding in registry.FINDINGS:
        label = (np.arange(len(patients)) % 2).astype(int)
        frames.append(pd.DataFrame({
            "example": np.arange(len(patients)), "group": [f"{patient:016x}" for patient in patients], "label": label,
            "score": shift * label + generator.normal(0, 1, len(patients)), "finding": finding, "protocol": "corrected",
            "view": np.where(patients % 2 == 0, "AP", "PA"), "sex": np.where(patients % 3 == 0, "F", "M"),
            "age": "40-59", "prior": np.where(np.arange(len(patients)) % 3 == 0, "no", "yes")}))
    return pd.concat(frames, ignore_index=True)


def fill_store(uri: str, folder: Path, plan: Plan, *, is_credentialed: bool = False, track_attention: bool = False,
               effects: dict[str, float] | None = None) -> None:
    """Track a finished study the way a sweep does."""
    runs, numbers = make_frames(plan, effects=effects)
    place = tracking.TrackingPlace(uri, folder)
    trials = [{"key": key, "arm": arm, "seed": seed} for key, arm, seed in
              runs[["key", "arm", "seed"]].itertuples(index=False)]
    tracking.ensure_study_run(uri, place.experiment, plan.name, plan.question, {
        "name": plan.name, "question": plan.question, "base": list(plan.base), "data": plan.data,
        "reference": plan.reference, "primary_metric": plan.primary, "secondary_metrics": list(plan.secondary),
        "seeds": list(plan.seeds), "settings": {},
        "expectations": [vars(entry) for entry in plan.expectations], "trials": trials,
        "arms": [{"name": arm, "settings": dict(plan.assignments.get(arm, {}))} for arm in plan.arms],
    }, is_running=False)
    for run in runs.itertuples():
        assigned = plan.assignments.get(str(run.arm), {})
        config = override(Config(), {**assigned, "seed": run.seed, "evaluation.track_attention": track_attention,
                                     "evaluation.track_embeddings": track_attention})
        values = numbers[numbers["run_id"] == run.run_id].set_index("metric")["value"]
        is_fact = values.index.str.startswith("facts/")
        records: list[Record] = [
            Facts({name.removeprefix("facts/"): value for name, value in values[is_fact].items()}),
            *[Metrics(step, point) for step, point in curve_points(str(run.arm), int(run.seed), num_points=5)],
            Metrics(600, values[~is_fact].to_dict()),
        ]
        if track_attention:
            records += [Arrays("attention/grounding", make_grounding_arrays(6, 16)), *make_sequences(),
                        Table("predictions/finding_zero_shot", make_predictions(int(run.seed)), is_private=True)]
        description = tracking.TrialDescription(
            config=config, key=str(run.key), arm=str(run.arm), data_name=plan.data,
            source_fingerprint=source_fingerprint(), data_fingerprint="da7af1a9e7000000",
            is_credentialed=is_credentialed, torch_version="2.15", studies={plan.name: str(run.arm)})
        for _ in tracking.track(iter(records), description, place):
            pass
