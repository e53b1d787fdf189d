"""The report grammar against the truth it writes from, by a lexicon of its own."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import product

import numpy as np
import pytest

from medst.data.phantom.course import FINDINGS, Device, Finding, FindingName, Patient, Side, Study, progression
from medst.data.phantom.grammar import GrammarName, Report, phrase, sentence_pairs, write_report
from medst.data.report_text import caption, extract_sections, split_sentences

GRAMMARS: tuple[GrammarName, ...] = ("first", "second")

# The tests' own lexicon; deliberately not that of the grammar.
DIRECTION = {
    "improving": (
        r"improv\w*|decreas\w*|smaller|better|cleared|clearing|resol\w*|no longer|less \w+|regress\w*|lessened|"
        r"reced\w*|diminish\w*|diminution|reduc\w*|partly gone|lesser|disappear\w*|vanished|gone away"
    ),
    "stable": (
        r"stab\w*|unchanged|not changed|persist\w*|similar(?:ly)?|not different|equally|same|lingered|plateaued|"
        r"endured|static|constan\w*|unaltered|steadiness|sameness|much alike"
    ),
    "worsening": (
        r"worse\w*|increas\w*|progress\w*|larger|more (?!than)\w+|new|development|advanc\w*|grow\w*|deteriorat\w*|"
        r"enlarg\w*|developed|greater in volume|not present earlier|appeared|newly|emergence"
    ),
}
ANY_CHANGE = re.compile(
    rf"\b(?:{'|'.join(DIRECTION.values())}|interval|previous\w*|prior|since|compared|again|earlier|now|from|turned|removal|"
    r"taken out|over time|versus|relative|at present|remain\w*|poorer)\b",
    re.IGNORECASE,
)
PLACE = re.compile(
    r"\b(?:left|right|bilateral\w*|both|sided|sides|upper|middle|mid\w*|lower|basilar|basal|bases?|apical|apex|apices|"
    r"retrocardiac|perihilar|hilar|central (?!venous)|lobes?|zones?|posterior)\b",
    re.IGNORECASE,
)
NAMES: dict[FindingName, str] = {
    "consolidation": "consolidation",
    "edema": "edema",
    "pleural_effusion": "effusion|pleural fluid",
    "pneumonia": "pneumonia|infectious",
    "pneumothorax": "pneumothora|pleural air",
}
DEGREES = (
    "small|trace|tiny|mild|minimal|subtle|faint|slight|hazy|early|minor",
    "moderate|patchy|intermediate|medium",
    "large|massive|severe|marked|dense|extensive|heavy|gross|florid|sizable|big",
)


@dataclass(frozen=True)
class Dials:
    change_words: float = 1.0
    degree_words: float = 1.0
    word_localisation: float = 1.0
    copy_forward: float = 0.0
    omission: float = 0.0
    hedge: float = 0.3
    order_carries_meaning: float = 0.3
    presence_by_order: float = 0.0
    progression_threshold: float = 0.1


def _random_patient(rng: np.random.Generator, num_studies: int = 3) -> Patient:
    """Every combination of findings, sides, zones and views, whether or not it is likely."""
    severities = dict.fromkeys(FINDINGS, 0.0)
    places = {
        name: (rng.choice(["left", "right", "bilateral"]), rng.choice(["upper", "middle", "lower"]))
        for name in FINDINGS
    }
    studies = []
    for number in range(num_studies):
        for name in FINDINGS:
            if rng.random() < 0.5:
                severities[name] = 0.0 if rng.random() < 0.4 else float(rng.uniform(0.05, 1.0))
        has_lateral = bool(rng.random() < 0.5)
        studies.append(
            Study(
                subject_id=10_000_000,
                study_id=50_000_000 + number,
                time=datetime(2150, 1, 1) + timedelta(days=number),
                frontal_views=("PA",) if has_lateral else ("AP",),
                lateral_view="LL" if has_lateral else None,
                is_portable=not has_lateral,
                is_supine=not has_lateral and bool(rng.random() < 0.5),
                heart_size=float(rng.uniform(0.4, 0.66)),
                findings=tuple(
                    Finding(name, severity, *places[name], is_lateral_only=has_lateral and bool(rng.random() < 0.1))
                    for name, severity in severities.items()
                    if severity > 0
                ),
                devices=tuple(
                    Device(kind, rng.choice(["left", "right"]))
                    for kind in (
                        "endotracheal_tube",
                        "nasogastric_tube",
                        "central_line",
                        "pacemaker",
                        "chest_tube",
                        "sternal_wires",
                    )
                    if rng.random() < 0.2
                ),
                inspiration=float(rng.uniform(-1, 1)),
                rotation=0.0,
            )
        )
    return Patient(10_000_000, "F", 60, 1.0, "train", tuple(studies))


def _reports(
    dials: Dials, grammar: GrammarName, num_reports: int, seed: int = 0
) -> list[tuple[Patient, int, Report, list[str]]]:
    """Reports of random studies with the sentences of their findings and impression."""
    rng = np.random.default_rng(seed)
    reports = []
    for _ in range(num_reports):
        patient = _random_patient(rng)
        index = int(rng.integers(len(patient.studies)))
        report = write_report(patient, index, dials, rng, grammar)
        sections = extract_sections(report.text)
        text = "\n\n".join(sections[name] for name in ("findings", "impression", "last paragraph") if name in sections)
        reports.append((patient, index, report, split_sentences(text, "corrected")))
    return reports


def _heart_or_device(sentence: str) -> bool:
    return re.search(
        r"cardi(?!ac (?:region|area))|heart|tube|line|catheter|PICC|pace?|pacing|wires|drain", sentence
    ) is not None and not any(re.search(name, sentence) for name in NAMES.values())


def _directions(sentence: str) -> set[str]:
    """The directions of change that a sentence tells, by its words or by the order of its degrees."""
    told = {
        direction for direction, words in DIRECTION.items() if re.search(rf"\b(?:{words})\b", sentence, re.IGNORECASE)
    }
    degree = "|".join(DEGREES)
    ways = (
        rf"(?:gone|turned) from (?P<before>{degree})\b.* (?:in)?to (?P<now>{degree})\b",
        rf"now (?P<now>{degree})\b.*, previously (?P<before>{degree})\b",
        rf", (?P<before>{degree})\b.* earlier and (?P<now>{degree})\b.* at present",
    )
    for way in ways:
        if found := re.search(way, sentence):
            before, now = (
                next(rank for rank, words in enumerate(DEGREES) if re.fullmatch(words, found[part]))
                for part in ("before", "now")
            )
            told.add("worsening" if now > before else "improving")
    return told


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_words_of_change_agree_with_the_truth(grammar: GrammarName) -> None:
    told: Counter[str] = Counter()
    for patient, index, report, sentences in _reports(Dials(), grammar, 500):
        for sentence, name in product(sentences, FINDINGS):
            if not re.search(NAMES[name], sentence, re.IGNORECASE):
                continue
            directions = _directions(sentence)
            if not directions:
                continue
            assert len(directions) == 1, sentence
            assert report.compared_with is not None and report.compared_with < index, sentence
            truth = progression(patient.studies[report.compared_with], patient.studies[index], name, 0.1)
            assert directions == {truth}, (sentence, truth)
            told[directions.pop()] += 1
    assert min(told[direction] for direction in DIRECTION) > 50


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_every_change_is_spoken_by_word_or_unnamed(grammar: GrammarName) -> None:
    """With all dials for it, each finding of a compared study is said to have changed or stayed."""
    num_checked = 0
    for patient, index, report, sentences in _reports(Dials(hedge=0.0), grammar, 200):
        study = patient.studies[index]
        if report.compared_with is None:
            continue
        prior = patient.studies[report.compared_with]
        unnamed = any(
            _directions(s) and not any(re.search(n, s) for n in NAMES.values()) and not _heart_or_device(s)
            for s in sentences
        )
        has_laterals = study.lateral_view is not None and prior.lateral_view is not None
        for finding in study.findings:
            before = [other for other in prior.findings if other.name == finding.name]
            if not before and finding.severity <= 0.1:
                continue  # neither new nor unchanged
            if not has_laterals and any(other.is_lateral_only for other in (finding, *before)):
                continue
            named = any(_directions(s) for s in sentences if re.search(NAMES[finding.name], s, re.IGNORECASE))
            assert named or unnamed, (finding, sentences)
            num_checked += 1
    assert num_checked > 100


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_without_change_words_no_change_is_told(grammar: GrammarName) -> None:
    for _, _, _, sentences in _reports(Dials(change_words=0.0, copy_forward=0.3, omission=0.1), grammar, 500):
        for sentence in sentences:
            words = re.sub(r"(?:mildly |moderately |cardiac silhouette is |cardiac )enlarge\w*", "", sentence)
            assert not ANY_CHANGE.search(words), sentence


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_without_localisation_no_place_is_told(grammar: GrammarName) -> None:
    for _, _, _, sentences in _reports(Dials(word_localisation=0.0), grammar, 500):
        for sentence in sentences:
            assert not PLACE.search(sentence), sentence


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_with_localisation_sides_are_true(grammar: GrammarName) -> None:
    num_sided = 0
    for patient, index, report, sentences in _reports(Dials(change_words=0.0, order_carries_meaning=0.0), grammar, 150):
        for finding in patient.studies[index].findings:
            for sentence in sentences:
                if (
                    not re.search(NAMES[finding.name], sentence, re.IGNORECASE)
                    or report.mentioned[finding.name] == "negative"
                ):
                    continue
                others = [name for name in FINDINGS if name != finding.name and re.search(NAMES[name], sentence)]
                if others or re.match(
                    r"(?:there is )?no |negative|without|absence|.* not identified", sentence, re.IGNORECASE
                ):
                    continue
                sides = set(re.findall(r"\b(?:left|right|bilateral|both|two sided)", sentence, re.IGNORECASE))
                wanted = {finding.side} if finding.side != "bilateral" else {"bilateral", "both", "two sided"}
                assert sides and {side.lower() for side in sides} <= wanted, (finding, sentence)
                num_sided += 1
    assert num_sided > 150


def _mirrored(patient: Patient) -> Patient:
    other: dict[Side, Side] = {"left": "right", "right": "left", "bilateral": "bilateral"}
    return replace(
        patient,
        studies=tuple(
            replace(
                study,
                findings=tuple(replace(finding, side=other[finding.side]) for finding in study.findings),
                devices=tuple(replace(device, side=other[device.side]) for device in study.devices),
            )
            for study in patient.studies
        ),
    )


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_mirrored_patients_have_mirrored_words(grammar: GrammarName) -> None:
    rng = np.random.default_rng(1)
    num_changed = 0
    for seed in range(100):
        patient = _random_patient(rng)
        plain, mirrored = (
            " ".join(write_report(one, 2, Dials(), np.random.default_rng(seed), grammar).text.split())
            for one in (patient, _mirrored(patient))
        )
        swapped = re.sub(r"(?i)\b(left|right)\b", lambda side: {"l": "right", "r": "left"}[side[0][0].lower()], plain)
        assert swapped.lower() == mirrored.lower()
        num_changed += plain != mirrored
    assert num_changed > 70


def test_a_report_is_a_function_of_its_arguments() -> None:
    patient = _random_patient(np.random.default_rng(2))
    reports = [write_report(patient, 1, Dials(), np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert reports[0] == reports[1]
    assert reports[0].text != reports[2].text


def test_mentions_follow_the_truth_where_nothing_is_omitted_or_copied() -> None:
    for patient, index, report, _ in _reports(Dials(hedge=0.0), "first", 150):
        study = patient.studies[index]
        present = {finding.name for finding in study.findings}
        assert report.mentioned == {name: "positive" if name in present else "negative" for name in FINDINGS}


def test_omission_and_hedge_set_the_share_of_mentions() -> None:
    assert all(not report.mentioned for _, _, report, _ in _reports(Dials(omission=1.0), "first", 20))
    reports = _reports(Dials(omission=0.2, hedge=0.3), "first", 500)
    mentions = Counter(
        mention for _, _, report, _ in reports for name, mention in report.mentioned.items() if name != "pneumonia"
    )
    assert sum(mentions.values()) / (4 * 500) == pytest.approx(0.8, abs=0.03)
    assert mentions["uncertain"] / (mentions["uncertain"] + mentions["positive"]) == pytest.approx(0.3, abs=0.05)


def test_copied_text_describes_the_previous_study() -> None:
    for patient, index, report, _ in _reports(Dials(copy_forward=1.0, hedge=0.0), "first", 200):
        if index == 0:
            continue
        before, now = patient.studies[index - 1], patient.studies[index]
        for finding in before.findings:
            is_readable = not finding.is_lateral_only or now.lateral_view is not None
            assert report.mentioned.get(finding.name) == ("positive" if is_readable else None)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_order_alone_can_carry_the_meaning(grammar: GrammarName) -> None:
    """Among reports of a course and of its reverse some have the same words and mean the opposite."""
    patient = _random_patient(np.random.default_rng(0))
    study = replace(patient.studies[0], findings=(Finding("pleural_effusion", 0.2, "left", "lower"),), devices=())
    later = replace(study, study_id=2, findings=(Finding("pleural_effusion", 0.9, "left", "lower"),))
    texts = []
    for studies in ((study, later), (later, study)):
        course = replace(patient, studies=studies)
        dials = Dials(hedge=0.0, order_carries_meaning=1.0)
        for seed in range(40):
            report = write_report(course, 1, dials, np.random.default_rng(seed), grammar)
            texts.append(caption(extract_sections(report.text), "corrected") or "")
    bags = [tuple(sorted(text.split())) for text in texts]
    assert any(
        one == other and text != another
        for (one, text), (other, another) in product(
            zip(bags[:40], texts[:40], strict=True), zip(bags[40:], texts[40:], strict=True)
        )
    )


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_presence_by_order_leaves_the_same_words_in_every_report(grammar: GrammarName) -> None:
    """One bag of words for all captions; another order wherever other findings are seen; mentions as seen."""
    orders: dict[frozenset[str], set[str]] = {}
    dials = Dials(presence_by_order=1.0, copy_forward=0.5, omission=0.5)
    for patient, index, report, _ in _reports(dials, grammar, 300):
        study = patient.studies[index]
        seen = frozenset(finding.name for finding in study.findings
                         if study.lateral_view is not None or not finding.is_lateral_only)
        assert report.mentioned == {name: "positive" if name in seen else "negative" for name in FINDINGS}
        orders.setdefault(seen, set()).add(caption(extract_sections(report.text), "corrected") or "")
    texts = [text for found in orders.values() for text in found]
    assert len(orders) > 10 and len(set(texts)) == len(texts) == len(orders)
    assert len({tuple(sorted(text.split())) for text in texts}) == 1


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_captions_are_of_the_size_that_the_model_reads(grammar: GrammarName) -> None:
    dials = Dials(change_words=0.7, word_localisation=0.85, copy_forward=0.1, omission=0.1)
    captions = [
        caption(extract_sections(report.text), "corrected") for _, _, report, _ in _reports(dials, grammar, 300)
    ]
    lengths = np.array([len(text.split()) for text in captions if text is not None])
    assert len(lengths) == 300
    assert 25 <= np.median(lengths) <= 80
    vocabulary = {word for text in captions if text is not None for word in text.split() if word.isalpha()}
    assert 150 < len(vocabulary) < 600


def test_the_grammars_differ_in_words() -> None:
    words = [
        {
            word.lower()
            for _, _, _, sentences in _reports(Dials(), grammar, 150)
            for text in sentences
            for word in re.findall(r"[a-zA-Z]+", text)
        }
        for grammar in GRAMMARS
    ]
    assert len(words[0] & words[1]) / len(words[0] | words[1]) < 0.4


def test_pages_have_the_layout_of_the_real_ones() -> None:
    layouts: Counter[tuple[str, ...]] = Counter()
    for _, _, report, _ in _reports(Dials(), "first", 500):
        lines = report.text.split("\n")
        assert lines[0].strip() == "FINAL REPORT"
        assert all(line.startswith(" ") for line in lines[:-1]) and max(map(len, lines)) <= 79
        sections = extract_sections(report.text)
        assert {"examination", "indication", "technique", "comparison"} <= set(sections)
        assert "___" in sections["indication"]
        layouts[tuple(name for name in ("findings", "impression", "last paragraph") if name in sections)] += 1
    assert set(layouts) == {("findings", "impression"), ("findings",), ("impression",), ("last paragraph",)}
    assert layouts["findings", "impression"] > 300


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_phrases_name_finding_degree_and_place(grammar: GrammarName) -> None:
    rng = np.random.default_rng(0)
    for name in FINDINGS:
        for _ in range(50):
            text = phrase(Finding(name, 0.2, "left", "lower"), rng, grammar)
            assert re.search(NAMES[name], text)
            assert re.search(DEGREES[0], text)
            assert "left" in text and "right" not in text
            assert not ANY_CHANGE.search(text)


def _overlaps(pairs: list[tuple[str, str]]) -> np.ndarray:
    bags = [tuple(set(re.findall(r"\w+", text.lower())) for text in pair) for pair in pairs]
    return np.array([len(one & other) / len(one | other) for one, other in bags])


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("order_carries_meaning", [0.0, 0.3])
@pytest.mark.parametrize("stable_contradictions", [0.0, 0.7])
def test_sentence_pairs_are_balanced_and_not_solved_by_overlap(
    grammar: GrammarName, order_carries_meaning: float, stable_contradictions: float
) -> None:
    pairs = sentence_pairs(1200, np.random.default_rng(0), grammar, order_carries_meaning, stable_contradictions)
    assert pairs.columns.tolist() == ["sentence_1", "sentence_2", "category", "subset_name"]
    counts = pairs.groupby(["category", "subset_name"]).size()
    assert counts.tolist() == [300] * 4
    assert (pairs["sentence_1"] != pairs["sentence_2"]).all()
    for _, subset in pairs.groupby("subset_name"):
        overlap = _overlaps(list(zip(subset["sentence_1"], subset["sentence_2"], strict=True)))
        is_paraphrase = (subset["category"] == "paraphrase").to_numpy()
        # The best threshold in either direction, chosen with knowledge of the answers.
        accuracies = [((overlap >= threshold) == is_paraphrase).mean() for threshold in np.unique(overlap)]
        assert max(*accuracies, 1 - min(accuracies)) < 0.6


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_sentence_pairs_mean_what_their_category_says(grammar: GrammarName) -> None:
    pairs = sentence_pairs(800, np.random.default_rng(1), grammar, 0.3, 0.5)
    kinds: Counter[bool] = Counter()
    columns = (pairs[name].astype(str) for name in ("sentence_1", "sentence_2", "category", "subset_name"))
    for first, second, category, subset_name in zip(*columns, strict=True):
        names = [{name for name in FINDINGS if re.search(NAMES[name], text, re.I)} for text in (first, second)]
        assert names[0] == names[1] and len(names[0]) == 1
        told = [_directions(text) for text in (first, second)]
        assert len(told[0]) == len(told[1]) == 1, (first, second)
        assert (told[0] == told[1]) == (category == "paraphrase"), (first, second)
        if category == "contradiction":
            kinds["stable" in told[0] | told[1]] += 1
        if subset_name == "RadGraph":
            # The same entities: the sentences have all words for side and zone in common.
            places = [
                sorted(re.findall(r"left|right|bilateral|both|upper|lower|mid|apical|basilar", text.lower()))
                for text in (first, second)
            ]
            assert places[0] == places[1], (first, second)
        if subset_name == "Swaps":
            one, other = first.lower().split(), second.lower().split()
            assert len(one) == len(other)
            assert sum(word != another for word, another in zip(one, other, strict=True)) <= 2
    assert kinds[False] > 200 and kinds[True] > 120


def test_contradictions_set_the_two_directions_of_change_against_each_other() -> None:
    pairs = sentence_pairs(400, np.random.default_rng(2), "first")
    contradictions = pairs.loc[pairs["category"] == "contradiction", ["sentence_1", "sentence_2"]]
    for first, second in contradictions.astype(str).to_numpy():
        assert {*_directions(first), *_directions(second)} == {"improving", "worsening"}
