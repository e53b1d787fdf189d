"""The words and frames of the first report grammar. Data only; the meaning of the fields: `lexicon`."""

from __future__ import annotations

from collections.abc import Mapping

from medst.data.phantom.course import Progression, Zone
from medst.data.phantom.lexicon import DeviceWords, FindingWords, Lexicon, Noun

_SMALLER: Mapping[Progression, tuple[str, ...]] = {
    "improving": ("smaller", "decreased in size"),
    "stable": ("unchanged in size", "the same size as before"),
    "worsening": ("larger", "increased in size"),
}
_LESS_EXTENSIVE: Mapping[Progression, tuple[str, ...]] = {
    "improving": ("less extensive", "less conspicuous"),
    "stable": ("equally extensive", "similarly conspicuous"),
    "worsening": ("more extensive", "more conspicuous"),
}
_LUNG_ADJECTIVES: Mapping[Zone, tuple[str, ...]] = {
    "upper": ("upper lobe", "upper lung", "apical"),
    "middle": ("mid lung", "perihilar"),
    "lower": ("lower lobe", "basilar", "lung base"),
    "retrocardiac": ("retrocardiac",),
}
_LUNG_PLACES: Mapping[Zone, tuple[tuple[str, str], ...]] = {
    "upper": (("upper lobe", "upper lobes"), ("upper lung", "upper lungs")),
    "middle": (("mid lung", "mid lungs"), ("mid lung zone", "mid lung zones")),
    "lower": (("lower lobe", "lower lobes"), ("lung base", "lung bases")),
    "retrocardiac": (("retrocardiac region", "retrocardiac regions"),),
}
_NO_ADJECTIVES: Mapping[Zone, tuple[str, ...]] = {"upper": (), "middle": (), "lower": (), "retrocardiac": ()}
_NOWHERE: Mapping[Zone, tuple[tuple[str, str], ...]] = {"upper": (), "middle": (), "lower": (), "retrocardiac": ()}

LEXICON = Lexicon(
    findings={
        "consolidation": FindingWords(
            nouns=(
                Noun("consolidation", "consolidations", is_countable=False),
                Noun("airspace consolidation", "airspace consolidations", is_countable=False),
                Noun("focal consolidation", "focal consolidations"),
            ),
            degrees={
                "small": ("subtle", "mild", "faint"),
                "moderate": ("moderate", "patchy"),
                "large": ("dense", "large", "extensive"),
            },
            zone_adjectives=_LUNG_ADJECTIVES,
            zone_places=_LUNG_PLACES,
            negated=("focal consolidation", "consolidation"),
            sizes=_LESS_EXTENSIVE,
        ),
        "edema": FindingWords(
            nouns=(
                Noun("pulmonary edema", is_countable=False),
                Noun("interstitial edema", is_countable=False),
                Noun("edema", is_countable=False),
            ),
            degrees={"small": ("mild", "minimal"), "moderate": ("moderate",), "large": ("severe", "marked")},
            zone_adjectives={
                "upper": (),
                "middle": ("perihilar", "central"),
                "lower": ("basilar",),
                "retrocardiac": (),
            },
            zone_places=_NOWHERE,
            negated=("pulmonary edema", "overt edema"),
            sizes={
                "improving": ("less severe", "less pronounced"),
                "stable": ("equally severe", "similarly pronounced"),
                "worsening": ("more severe", "more pronounced"),
            },
        ),
        "pleural_effusion": FindingWords(
            nouns=(Noun("pleural effusion", "pleural effusions"), Noun("effusion", "effusions")),
            degrees={
                "small": ("small", "trace", "tiny"),
                "moderate": ("moderate", "moderate sized"),
                "large": ("large", "massive"),
            },
            zone_adjectives=_NO_ADJECTIVES,
            zone_places=_NOWHERE,
            negated=("pleural effusion", "effusion"),
            sizes=_SMALLER,
        ),
        "pneumonia": FindingWords(
            nouns=(
                Noun("opacity", "opacities"),
                Noun("airspace opacity", "airspace opacities"),
                Noun("infiltrate", "infiltrates"),
            ),
            degrees={
                "small": ("subtle", "mild", "faint"),
                "moderate": ("moderate", "patchy"),
                "large": ("dense", "large", "extensive"),
            },
            zone_adjectives=_LUNG_ADJECTIVES,
            zone_places=_LUNG_PLACES,
            negated=("pneumonia", "acute pneumonia"),
            sizes=_LESS_EXTENSIVE,
        ),
        "pneumothorax": FindingWords(
            nouns=(Noun("pneumothorax", "pneumothoraces"),),
            degrees={
                "small": ("small", "tiny"),
                "moderate": ("moderate", "moderate sized"),
                "large": ("large", "massive"),
            },
            zone_adjectives={"upper": ("apical",), "middle": (), "lower": ("basilar",), "retrocardiac": ()},
            zone_places=_NOWHERE,
            negated=("pneumothorax",),
            sizes=_SMALLER,
        ),
    },
    sides={"left": ("left", "left sided"), "right": ("right", "right sided"), "bilateral": ("bilateral",)},
    side_places={"left": ("on the left",), "right": ("on the right",), "bilateral": ("bilaterally", "on both sides")},
    contrasts=("on the {side} but not on the {other}",),
    asymmetries=("{side} greater than {other}", "{side} more than {other}"),
    uncertain_prefixes=("possible", "probable"),
    pneumonia_certain=("consistent with pneumonia", "compatible with pneumonia"),
    pneumonia_uncertain=("concerning for pneumonia", "which may represent pneumonia", "suspicious for pneumonia"),
    pneumonia_direct=Noun("pneumonia", is_countable=False),
    lateral_only=("visible on the lateral view", "best appreciated on the lateral view"),
    lateral_only_effusion=("blunting the posterior costophrenic angle on the lateral view",),
    supine_pneumothorax=("with a deep sulcus sign",),
    statements=("there {be} {a}{np}", "{a}{np} {be} present", "{a}{np} {be} seen", "{a}{np} {be} noted"),
    uncertain_statements=("{a}{np} cannot be excluded", "there may be {a}{np}"),
    negations=("there is no {list}", "no {list}", "no {list} is seen", "no evidence of {list}"),
    summary_statements=("{np}", "{a}{np} {be} seen"),
    terms={
        "improving": {
            "verb": ("improved", "decreased", "partially cleared", "become better"),
            "adjective": ("improved", "decreased", "improving"),
            "predicate": ("improved", "decreased", "better", "partially cleared"),
            "noun": ("improvement", "decrease", "interval improvement", "partial clearing"),
        },
        "stable": {
            "verb": ("persisted", "stabilized", "not changed", "remained stable"),
            "adjective": ("stable", "unchanged", "persistent"),
            "predicate": ("stable", "unchanged", "similar", "not different"),
            "noun": ("stability", "persistence", "stable appearance", "unchanged extent"),
        },
        "worsening": {
            "verb": ("worsened", "increased", "further progressed", "become worse"),
            "adjective": ("worsened", "increased", "worsening"),
            "predicate": ("worse", "increased", "worsened", "further progressed"),
            "noun": ("worsening", "increase", "interval worsening", "further progression"),
        },
    },
    change_frames=(
        "{np} {have} {verb}{since}",
        "the {np} {have} {verb}{since}",
        "{adjective} {np}{since}",
        "{np} {be} {predicate}{since}",
        "the {np} {be} {predicate}{since}",
        "there is {noun} of {np}{since}",
        "{noun} of the {np}{since}",
    ),
    order_frames=(
        "{np} {have} gone from {before} to {now}{since}",
        "{np} {be} now {now}, previously {before}",
    ),
    presence_by_order=("there is", "no", "other process or abnormality"),
    new_frames=(
        "new {np}{since}",
        "there {be} {a}new {np}{since}",
        "{np} {be} new{since}",
        "interval development of {a}{np}",
    ),
    resolved_frames=(
        "previously seen {np} {have} resolved",
        "the {np} {have} cleared{since}",
        "resolution of the {np}{since}",
        "the {np} {be} no longer seen",
    ),
    since=(
        "",
        "",
        "",
        " since the prior study",
        " compared to the prior radiograph",
        " since ___",
        " in the interval",
    ),
    unnamed_change={
        "improving": ("interval improvement", "improved appearance of the chest"),
        "stable": ("no significant interval change", "unchanged", "stable appearance of the chest"),
        "worsening": ("interval worsening", "worsened appearance of the chest"),
    },
    outside=(" compared to the outside study", " since the outside examination of ___"),
    heart_normal=("the heart is normal in size", "heart size is normal", "the cardiac silhouette is normal"),
    heart_mild=("the heart is mildly enlarged", "mild cardiomegaly"),
    heart_large=("the heart is moderately enlarged", "moderate cardiomegaly", "the cardiac silhouette is enlarged"),
    heart_stable=("cardiomegaly is unchanged", "stable cardiomegaly"),
    low_volumes=("lung volumes are low", "low lung volumes"),
    good_volumes=("the lungs are well expanded", "the lungs are well inflated"),
    lungs_clear=("the lungs are clear", "lungs are clear"),
    bones=("no acute osseous abnormality", "bony structures are intact", "mild degenerative disease of the spine"),
    nothing_acute=(
        "no acute cardiopulmonary process",
        "no acute cardiopulmonary abnormality",
        "no acute intrathoracic process",
    ),
    devices={
        "endotracheal_tube": DeviceWords(
            ("endotracheal tube", "ET tube"),
            ("{name} terminates {distance} cm above the carina", "{name} is in standard position"),
        ),
        "nasogastric_tube": DeviceWords(
            ("nasogastric tube", "NG tube"), ("{name} terminates in the stomach", "{name} courses below the diaphragm")
        ),
        "central_line": DeviceWords(
            ("{side}central venous catheter", "{side}internal jugular line"),
            ("{name} terminates in the SVC", "tip of the {name} is at the cavoatrial junction"),
        ),
        "pacemaker": DeviceWords(
            ("{side}pacemaker", "{side}pectoral pacemaker"),
            ("{name} leads are in standard position", "{name} is in place"),
        ),
        "chest_tube": DeviceWords(("{side}chest tube", "{side}pleural tube"), ("{name} is in place",)),
        "sternal_wires": DeviceWords(("median sternotomy wires",), ("{name} are intact", "{name} are noted")),
    },
    device_same=("{name} in unchanged position",),
    device_new=("new {name}",),
    device_removed=("interval removal of {name}",),
    order=("devices", "volumes", "lungs", "pleura", "heart", "bones"),
)
