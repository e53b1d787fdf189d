"""What a store cannot support, said before anything runs.

What lives here: the limits of a store, for people and as a check of a config. What must not: the choice of another
config in its place.
"""

from __future__ import annotations

from medst.config import Config
from medst.data.store import MimicStore, Store


class SupportError(ValueError):
    """A config that asks a store for what its data do not have; the message names the setting."""


def longest_sequence(mimic: MimicStore, split: str = "train") -> int:
    """Studies of the patient who has most in a split; 0 in an empty one."""
    counts = mimic.studies.loc[mimic.studies["split"] == split, "subject_id"].value_counts()
    return int(counts.max()) if len(counts) else 0


def has_laterals(mimic: MimicStore, split: str = "train") -> bool:
    studies = mimic.studies
    return bool(((studies["lateral"] >= 0) & (studies["split"] == split)).any())


def limits(store: Store) -> list[str]:
    """What cannot be learned or judged on a store, with the settings that follow; nothing for a store with all."""
    mimic = store.mimic
    if mimic is None:
        return ["no reports: no training, only the tasks of the data sets that are there (medst evaluate)"]
    found = []
    longest = longest_sequence(mimic)
    if longest < 2:
        found.append("no patient with two studies: no sequences, so no temporal loss (objective.lambda_temporal=0), no "
                     "direction probe")
    elif longest < 4:
        found.append(f"no patient has more than {longest} studies: data.sequence_length={longest} at most, or "
                     "objective.lambda_temporal=0")
    if not has_laterals(mimic):
        found.append("no lateral views: one expert for the frontal ones (data.views=frontal, or "
                     "model.experts.num_experts=1)")
    labels = [column for column in mimic.studies.columns if column.startswith("label_")]
    is_test = mimic.studies["split"] == "test"
    if not is_test.any():
        found.append("no test split: no retrieval, no zero-shot findings")
    elif mimic.studies.loc[is_test, labels].isna().all(axis=None):
        found.append("no labels: no zero-shot findings, retrieval remains")
    absent = [name for name, part in (
        ("MS-CXR-T (temporal classification, sentence similarity)", store.ms_cxr_t),
        ("MS-CXR (grounding)", store.ms_cxr),
        ("RSNA (zero-shot pneumonia)", store.rsna), ("COVIDx (linear classification)", store.covidx)) if part is None]
    if absent:
        found.append(f"tasks without data are skipped: {', '.join(absent)}")
    return found


def check_support(store: Store, config: Config) -> None:
    """Refuse to train a config on a store whose data cannot feed it.

    Raises:
        SupportError: a temporal loss without a single sequence, or experts for views that do not occur.
    """
    mimic = store.mimic
    if mimic is None or config.training.epochs == 0:
        return
    wanted, longest = config.data.sequence_length, longest_sequence(mimic)
    if config.objective.lambda_temporal > 0 and longest < wanted:
        remedy = "set objective.lambda_temporal=0" + (
            f", or data.sequence_length={longest}" if longest >= 2 else "")
        raise SupportError(f"{store.path}: no training patient has {wanted} studies (data.sequence_length; the most is "
                           f"{longest}), so there is nothing for the temporal loss; {remedy}")
    experts = config.model.experts
    has_lateral_expert = config.data.views == "both" and experts.routing == "view" and experts.num_experts > 1
    if has_lateral_expert and not has_laterals(mimic):
        raise SupportError(f"{store.path}: no training study has a lateral view, so model.experts.num_experts="
                           f"{experts.num_experts} would hold experts that are never trained; set "
                           "model.experts.num_experts=1, or data.views=frontal")
