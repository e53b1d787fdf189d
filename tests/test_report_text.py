"""Sections, sentences and cleaning of report texts, against hand-made pages and real prose."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medst.config import Behaviour
from medst.data.report_text import caption, clean, extract_sections, join_prompt, split_sentences

SHARED = Path(os.environ.get("MEDST_SHARED", Path(__file__).parents[2] / "shared"))
REAL_REPORTS = SHARED / "real" / "reports_sample"
BEHAVIOURS: tuple[Behaviour, ...] = ("released", "corrected")
PAGE = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with cough  // evaluate: pneumonia?
 
 TECHNIQUE:  PA and lateral views of the chest.
 
 COMPARISON:  ___.
 
 FINDINGS: 
 
 A nodule of 2.5 cm is unchanged.  The findings were told to Dr. ___
 at 5:15 p.m. on ___ by phone.  No effusion.
 
 IMPRESSION: 
 
 1.  Stable nodule.
 2.  No pneumonia.
"""  # noqa: W291, W293  (the files of MIMIC-CXR have these spaces)


def test_sections_of_a_page() -> None:
    assert extract_sections(PAGE) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___F with cough  // evaluate: pneumonia?",
        "technique": "PA and lateral views of the chest.",
        "comparison": "___.",
        "findings": "A nodule of 2.5 cm is unchanged.  The findings were told to Dr. ___\n"
        "at 5:15 p.m. on ___ by phone.  No effusion.",
        "impression": "1.  Stable nodule.\n2.  No pneumonia.",
    }


def test_captions_of_a_page() -> None:
    sections = extract_sections(PAGE)
    assert caption(sections, "released") == (
        "stable nodule no pneumonia a nodule of 5 cm is unchanged the findings were told to dr ___ at 5 15 p "
        "on ___ by phone no effusion"
    )
    assert caption(sections, "corrected") == (
        "stable nodule no pneumonia a nodule of 2.5 cm is unchanged the findings were told to dr at 5 15 p m "
        "on by phone no effusion"
    )


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("FINDINGS AND IMPRESSION: \n \n Clear lungs.", {"findings": "Clear lungs."}),
        ("HISTORY: Fever.\n\nConclusion: Clear.", {"indication": "Fever.", "impression": "Clear."}),
        ("FINDINGS: A.\n\nPORTABLE CHEST: B.", {"findings": "A.", "portable chest": "B."}),
        ("FINDINGS: A.\n Note: B.", {"findings": "A.\nNote: B."}),
        ("FINDINGS: A.\n\nFINDINGS: B.", {"findings": "A.\n\nB."}),
        (
            "COMPARISON: None.\n \n Lungs are clear.\n \n No effusion.",
            {"comparison": "None.", "last paragraph": "Lungs are clear.\n\nNo effusion."},
        ),
        (
            "COMPARISON: \n \n None.\n \n Lungs are clear.",
            {"comparison": "None.", "last paragraph": "Lungs are clear."},
        ),
        ("Lungs are clear.", {"last paragraph": "Lungs are clear."}),
        (
            "WET READ: ___ 9:10 PM\n No ptx.\n ______________\n         FINAL REPORT\n IMPRESSION: Clear.",
            {"wet read": "___ 9:10 PM\nNo ptx.", "impression": "Clear."},
        ),
        (
            "       FINAL ADDENDUM\n ADDENDUM:  Wrong side.\n ________\n       FINAL REPORT\n IMPRESSION: Clear.",
            {"addendum": "Wrong side.", "impression": "Clear."},
        ),
        ("FINDINGS: \n \n IMPRESSION: Clear.", {"impression": "Clear."}),
        ("", {}),
        ("  \n \n", {}),
    ],
)
def test_sections_of_other_layouts(page: str, expected: dict[str, str]) -> None:
    assert extract_sections(page) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nodule of 2.5 cm. No change.", ["Nodule of 2.5 cm.", "No change."]),
        ("Told to Dr. Smith at 5 p.m. by phone. Clear.", ["Told to Dr. Smith at 5 p.m. by phone.", "Clear."]),
        ("Told at 5 p.m. The lungs are clear.", ["Told at 5 p.m.", "The lungs are clear."]),
        ("Scar vs. nodule.", ["Scar vs. nodule."]),
        ("1. Scar. 2. Nodule of 2.5 cm. 3) Clear.", ["Scar.", "Nodule of 2.5 cm.", "Clear."]),
        ("1.Scar\n2.Nodule", ["Scar", "Nodule"]),
        ("Fracture of rib\n7. Clear.", ["Fracture of rib 7.", "Clear."]),
        ("No effusion.No pneumothorax.", ["No effusion.", "No pneumothorax."]),
        ("Pneumonia? Effusion.", ["Pneumonia?", "Effusion."]),
        ("Clear lungs\n \nNo effusion", ["Clear lungs", "No effusion"]),
        ("", []),
    ],
)
def test_corrected_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text, "corrected") == expected


def test_released_sentences() -> None:
    assert split_sentences("1. Nodule of 2.5 cm. 12. Dr. Smith", "released") == [" Nodule of ", "5 cm", " Dr", " Smith"]


def test_released_drops_sentences_of_one_word_and_corrected_keeps_them() -> None:
    assert clean("Pneumothorax. No effusion.", "released") == "no effusion"
    assert clean("Pneumothorax. No effusion.", "corrected") == "pneumothorax no effusion"


def test_what_is_not_ascii() -> None:
    assert clean("Mild œdème–like café", "released") == "mild dme like caf"
    assert clean("Mild œdème–like café", "corrected") == "mild deme like cafe"


def test_captions_that_are_none() -> None:
    for behaviour in BEHAVIOURS:
        assert caption({"impression": "Normal chest."}, behaviour) is None
        assert caption({"comparison": "None of the earlier films."}, behaviour) is None
        assert caption({"impression": "Normal chest film."}, behaviour) == "normal chest film"
    # The published program drops reports with neither section.
    assert caption({"last paragraph": "Normal chest film."}, "corrected") == "normal chest film"
    assert caption({"last paragraph": "Normal chest film."}, "released") is None


def test_joining_of_prompts() -> None:
    prompt = ("Findings suggest pneumonia.", "There is an opacity.")
    assert join_prompt(prompt, "released") == "findings suggest pneumoniathere is an opacity"
    assert join_prompt(prompt, "corrected") == "findings suggest pneumonia there is an opacity"


PROSE = st.lists(
    st.sampled_from(
        [
            "No",
            "effusion",
            "2.5",
            "cm",
            "Dr.",
            "Smith.",
            "p.m.",
            "1.",
            "2)",
            "The",
            "heart",
            "___",
            "vs.",
            "?",
            ".",
            "é",
            "\n",
            "\n\n",
            ".5",
            "(rib",
            "7.)",
            "a.B",
            "12.",
            "'ok'.",
        ]
    ),
    max_size=30,
).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(PROSE)
def test_corrected_splitting_loses_nothing_but_list_markers(text: str) -> None:
    markers = r"(\(?\d{1,2}[.)])?"
    sentences = (re.escape("".join(sentence.split())) for sentence in split_sentences(text, "corrected"))
    assert re.fullmatch(markers + markers.join(sentences) + markers, "".join(text.split()))


@settings(max_examples=300, deadline=None)
@given(st.one_of(PROSE, st.text(max_size=60)))
def test_corrected_cleaning_is_idempotent(text: str) -> None:
    cleaned = clean(text, "corrected")
    assert clean(cleaned, "corrected") == cleaned
    assert re.fullmatch(r"[a-z0-9. ]*", cleaned)


@settings(max_examples=300, deadline=None)
@given(st.one_of(PROSE, st.text(st.characters(max_codepoint=127), max_size=60)))
def test_released_cleaning_is_idempotent_on_ascii(text: str) -> None:
    text = text.replace("é", "e")
    cleaned = clean(text, "released")
    assert clean(cleaned, "released") == cleaned
    assert re.fullmatch(r"[a-z0-9_ ]*", cleaned)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_sections_that_are_its_parts(text: str) -> None:
    for content in extract_sections(text).values():
        assert content.strip()
        assert set(content.split()) <= set(text.split()) | {word for token in text.split() for word in token.split(":")}


def _real_reports() -> list[dict[str, str]]:
    """The labelled sections of the real reports; an empty section is absent."""
    if not REAL_REPORTS.is_dir():
        pytest.skip(f"NOT CHECKED against real prose: no folder {REAL_REPORTS} (MEDST_SHARED names another place)")
    reports = []
    for path in sorted(REAL_REPORTS.glob("*.xml")):
        texts = ElementTree.parse(path).iter("AbstractText")
        reports.append({text.attrib["Label"]: text.text.strip() for text in texts if text.text})
    return reports


def test_real_sections_are_found() -> None:
    reports = _real_reports()
    assert len(reports) == 300
    for report in reports:
        labels = ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")
        page = "\n".join(f"{label}: {report.get(label, '')}" for label in labels)
        expected = {label.lower(): text for label, text in report.items()}
        assert extract_sections(page) == expected


def test_real_sentences() -> None:
    """In the real prose each stop that ends a word ends a sentence, but for those of lists and 'p.m.'."""
    num_sentences = num_stops = 0
    for report in _real_reports():
        for label in ("FINDINGS", "IMPRESSION"):
            text = re.sub(r"(^|(?<=\.) )\d\. ", " ", report.get(label, ""))
            # The slow and obvious count: words that end in a stop, and a rest without one.
            words = text.split()
            num_stops += sum(word[-1] in ".?" and word != "p.m." for word in words)
            num_stops += bool(words and words[-1][-1] not in ".?")
            num_sentences += len(split_sentences(report.get(label, ""), "corrected"))
            decimals = re.findall(r"\d\.\d", text)
            cleaned = clean(report.get(label, ""), "corrected")
            assert all(decimal in cleaned for decimal in decimals)
    # Twice the space after a stop is missing ('pneumothoraces.Cardiomediastinal').
    assert num_sentences == num_stops + 2
    assert num_stops > 1500


def test_real_captions_differ_only_where_the_published_cleaning_errs() -> None:
    reports = _real_reports()
    captions = {
        behaviour: [caption({label.lower(): text for label, text in report.items()}, behaviour) for report in reports]
        for behaviour in BEHAVIOURS
    }
    assert [text is None for text in captions["released"]] == [text is None for text in captions["corrected"]]
    num_different = sum(one != other for one, other in zip(captions["released"], captions["corrected"], strict=True))
    assert 0 < num_different < 30
