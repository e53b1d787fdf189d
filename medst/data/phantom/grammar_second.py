"""The words and frames of the second report grammar, for transfer tests. Data only; the meaning of the
fields: `lexicon`. Says what the first grammar says with other synonyms, frames and another order."""

from __future__ import annotations

from collections.abc import Mapping

from medst.data.phantom.course import Progression, Zone
from medst.data.phantom.lexicon import DeviceWords, FindingWords, Lexicon, Noun

_SIZE: Mapping[Progression, tuple[str, ...]] = {
    "improving": ("lesser in volume", "reduced in volume"),
    "stable": ("constant in volume", "the same volume as earlier"),
    "worsening": ("greater in volume", "enlarged in volume"),
}
_EXTENT: Mapping[Progression, tuple[str, ...]] = {
    "improving": ("less widespread", "less prominent"),
    "stable": ("equally widespread", "similarly prominent"),
    "worsening": ("more widespread", "more prominent"),
}
_LUNG_ADJECTIVES: Mapping[Zone, tuple[str, ...]] = {
    "upper": ("upper zone", "apical"),
    "middle": ("middle zone", "midlung"),
    "lower": ("lower zone", "basal"),
    "retrocardiac": ("retrocardiac",),
}
_LUNG_PLACES: Mapping[Zone, tuple[tuple[str, str], ...]] = {
    "upper": (("upper zone", "upper zones"), ("apex", "apices")),
    "middle": (("middle zone", "middle zones"),),
    "lower": (("lower zone", "lower zones"), ("base", "bases")),
    "retrocardiac": (("retrocardiac area", "retrocardiac areas"),),
}
_NO_ADJECTIVES: Mapping[Zone, tuple[str, ...]] = {"upper": (), "middle": (), "lower": (), "retrocardiac": ()}
_NOWHERE: Mapping[Zone, tuple[tuple[str, str], ...]] = {"upper": (), "middle": (), "lower": (), "retrocardiac": ()}

LEXICON = Lexicon(
    findings={
        "consolidation": FindingWords(
            nouns=(
                Noun("consolidation", "consolidations", is_countable=False),
                Noun("lobar consolidation", "lobar consolidations", is_countable=False),
                Noun("alveolar consolidation", "alveolar consolidations", is_countable=False),
            ),
            degrees={
                "small": ("slight", "hazy"),
                "moderate": ("intermediate", "medium"),
                "large": ("heavy", "gross"),
            },
            zone_adjectives=_LUNG_ADJECTIVES,
            zone_places=_LUNG_PLACES,
            negated=("lobar consolidation", "consolidation"),
            sizes=_EXTENT,
        ),
        "edema": FindingWords(
            nouns=(
                Noun("fluid overload with edema", is_countable=False),
                Noun("vascular congestion with edema", is_countable=False),
                Noun("alveolar edema", is_countable=False),
            ),
            degrees={
                "small": ("slight", "early"),
                "moderate": ("intermediate", "medium"),
                "large": ("gross", "florid"),
            },
            zone_adjectives={"upper": (), "middle": ("hilar",), "lower": ("basal",), "retrocardiac": ()},
            zone_places=_NOWHERE,
            negated=("edema", "alveolar edema"),
            sizes={
                "improving": ("less intense", "less prominent"),
                "stable": ("equally intense", "similarly prominent"),
                "worsening": ("more intense", "more prominent"),
            },
        ),
        "pleural_effusion": FindingWords(
            nouns=(
                Noun("pleural fluid collection", "pleural fluid collections"),
                Noun("layering effusion", "layering effusions"),
            ),
            degrees={
                "small": ("minor", "slight"),
                "moderate": ("medium", "intermediate"),
                "large": ("sizable", "big"),
            },
            zone_adjectives=_NO_ADJECTIVES,
            zone_places=_NOWHERE,
            negated=("pleural fluid", "effusion"),
            sizes=_SIZE,
        ),
        "pneumonia": FindingWords(
            nouns=(
                Noun("density", "densities"),
                Noun("parenchymal opacity", "parenchymal opacities"),
                Noun("infection", is_countable=False),
            ),
            degrees={
                "small": ("slight", "hazy"),
                "moderate": ("intermediate", "medium"),
                "large": ("heavy", "gross"),
            },
            zone_adjectives=_LUNG_ADJECTIVES,
            zone_places=_LUNG_PLACES,
            negated=("pneumonia", "infectious process"),
            sizes=_EXTENT,
        ),
        "pneumothorax": FindingWords(
            nouns=(Noun("pneumothorax", "pneumothoraces"), Noun("pleural air collection", "pleural air collections")),
            degrees={
                "small": ("minor", "slight"),
                "moderate": ("medium", "intermediate"),
                "large": ("sizable", "big"),
            },
            zone_adjectives={"upper": ("apical",), "middle": (), "lower": ("basal",), "retrocardiac": ()},
            zone_places=_NOWHERE,
            negated=("pneumothorax", "pleural air"),
            sizes=_SIZE,
        ),
    },
    sides={"left": ("left",), "right": ("right",), "bilateral": ("bilateral", "two sided")},
    side_places={"left": ("at left",), "right": ("at right",), "bilateral": ("at both sides",)},
    contrasts=("at {side} with none at {other}",),
    asymmetries=("{side} over {other}",),
    uncertain_prefixes=("questionable", "suspected"),
    pneumonia_certain=("in keeping with pneumonia", "representing pneumonia"),
    pneumonia_uncertain=("worrisome for pneumonia", "that could be pneumonia", "raising the question of pneumonia"),
    pneumonia_direct=Noun("pneumonia", is_countable=False),
    lateral_only=("on the lateral film only", "visible on the lateral film"),
    lateral_only_effusion=("filling the posterior sulcus on the lateral film",),
    supine_pneumothorax=("with a deepened sulcus",),
    statements=("{a}{np} {be} identified", "we see {a}{np}", "{a}{np} {be} demonstrated", "evident {be} {a}{np}"),
    uncertain_statements=("{a}{np} {be} not excluded", "{a}{np} might be present"),
    negations=("negative for {list}", "{list} is not identified", "without {list}", "absence of {list}"),
    summary_statements=("{np}", "{a}{np} {be} evident"),
    terms={
        "improving": {
            "verb": ("regressed", "lessened", "receded"),
            "adjective": ("regressing", "receding", "diminished"),
            "predicate": ("diminished", "reduced", "lessened", "partly gone"),
            "noun": ("regression", "reduction", "diminution"),
        },
        "stable": {
            "verb": ("lingered", "plateaued", "endured"),
            "adjective": ("static", "constant", "unaltered"),
            "predicate": ("unaltered", "static", "constant", "much alike"),
            "noun": ("constancy", "steadiness", "sameness"),
        },
        "worsening": {
            "verb": ("advanced", "grown", "deteriorated"),
            "adjective": ("advancing", "growing", "enlarging"),
            "predicate": ("enlarged", "advanced", "deteriorated", "further developed"),
            "noun": ("growth", "advancement", "deterioration"),
        },
    },
    change_frames=(
        "{np} {have} {verb}{since}",
        "the {np} {have} {verb}{since}",
        "{adjective} {np}{since}",
        "again {np}, {predicate}",
        "{np} {be} {predicate}{since}",
        "we see {noun} of {np}{since}",
        "{noun} of the {np}{since}",
    ),
    order_frames=(
        "{np} turned from {before} into {now}{since}",
        "{np}, {before} earlier and {now} at present",
    ),
    presence_by_order=("we see", "nothing of", "other process or disease"),
    new_frames=(
        "{np} not present earlier",
        "{a}{np} {have} appeared{since}",
        "newly arisen {np}{since}",
        "emergence of {a}{np}{since}",
    ),
    resolved_frames=(
        "{np} seen earlier {have} disappeared",
        "the {np} {have} vanished{since}",
        "disappearance of the {np}{since}",
        "the {np} {have} gone away",
    ),
    since=("", "", "", " versus the earlier film", " relative to ___", " over time"),
    unnamed_change={
        "improving": ("overall regression of disease", "the chest looks better than earlier"),
        "stable": ("overall static chest", "constant appearances"),
        "worsening": ("overall deterioration", "the chest looks poorer than earlier"),
    },
    outside=(" relative to the outside film", " versus the outside film of ___"),
    heart_normal=("normal cardiac size", "heart within normal limits", "cardiac contour is normal"),
    heart_mild=("borderline cardiac enlargement", "heart is slightly big"),
    heart_large=("definite cardiac enlargement", "heart is definitely big"),
    heart_stable=("cardiac enlargement is static", "constant cardiac enlargement"),
    low_volumes=("shallow inspiration", "poor inspiratory effort"),
    good_volumes=("deep inspiration", "good inspiratory effort"),
    lungs_clear=("clear lungs", "lung fields are clear"),
    bones=("skeleton is unremarkable", "no fracture", "spondylosis of the spine"),
    nothing_acute=("no active disease", "normal chest film", "no active chest disease"),
    devices={
        "endotracheal_tube": DeviceWords(
            ("breathing tube", "tracheal tube"),
            ("{name} lies {distance} cm above the carina", "{name} is well positioned"),
        ),
        "nasogastric_tube": DeviceWords(
            ("feeding tube", "enteric tube"), ("{name} reaches the stomach", "{name} passes under the diaphragm")
        ),
        "central_line": DeviceWords(
            ("{side}venous catheter", "{side}PICC"),
            ("{name} reaches the SVC", "{name} tip projects over the SVC"),
        ),
        "pacemaker": DeviceWords(
            ("{side}pacer", "{side}pacing device"), ("{name} leads are well positioned", "{name} is visible")
        ),
        "chest_tube": DeviceWords(("{side}thoracostomy tube", "{side}pleural drain"), ("{name} is visible",)),
        "sternal_wires": DeviceWords(("sternal wires",), ("{name} are intact", "{name} are visible")),
    },
    device_same=("{name} as earlier",),
    device_new=("newly placed {name}",),
    device_removed=("{name} taken out",),
    order=("heart", "pleura", "lungs", "volumes", "bones", "devices"),
)
