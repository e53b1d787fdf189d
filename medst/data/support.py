"""What a store cannot support, said before anything runs.

What lives here: the limits of a store, for people and as a check of a config. What must not: the choice of another
config in its place.
"""

from __future__ import annotations

from medst.config import Config
from medst.data.readers.corpus import label_column
from medst.data.readers.ms_cxr_t import FINDINGS
from medst.data.store import MimicStore, Store

FEWEST_EXAMPLES = 3
"""Studies with a finding, and without it, below which it is not judged."""


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
    if not (mimic.studies["split"] == "test").any():
        found.append("no test split: no retrieval, no zero-shot findings")
    found += [f"no results of {task}: {reason}" for task, reason in missing_tasks(store).items()]
    return found


def missing_tasks(store: Store) -> dict[str, str]:
    """Tasks that will have no result on a store, with the reason; as the evaluators will find, but before any training.
    """
    found = {task: f"the data have no {name}" for task, name, part in (
        ("temporal_image", "MS-CXR-T", store.ms_cxr_t), ("sentence_similarity", "MS-CXR-T", store.ms_cxr_t),
        ("grounding", "MS-CXR", store.ms_cxr), ("rsna_zero_shot", "RSNA images", store.rsna),
        ("covidx_linear", "COVIDx images", store.covidx)) if part is None}
    if store.mimic is None:
        return found
    test = store.mimic.studies[store.mimic.studies["split"] == "test"]
    labels = test[[label_column(name) for name in FINDINGS]].fillna(0)
    if not ((labels == 1).sum().clip(upper=(labels == 0).sum()) >= FEWEST_EXAMPLES).any():
        found["finding_zero_shot"] = f"no finding is told of {FEWEST_EXAMPLES} test studies and absent from as many"
    if (test["lateral"] >= 0).sum() < 2:
        found["retrieval"] = "fewer than two test studies have a lateral view"
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
