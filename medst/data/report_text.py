"""From a report file to the caption that a model reads: sections, sentences, cleaning.

What lives here: text alone. What must not: files, tables, tokenizers.

Cleaning has two behaviours. ``released`` is that of the published program: a sentence ends at every '.'
(so '2.5 cm' and 'Dr. Smith' are cut), words are runs of letters, digits and '_', what is not ASCII is
dropped, as are sentences of one word. ``corrected`` ends sentences where they end, keeps decimals with
their unit, and keeps sentences of one word ('Pneumothorax.'). Both are lower case and without punctuation,
and both demand three words of a caption. A report with neither impression nor findings is no caption to the
published program; in ``corrected`` its last paragraph is.

The mask '___' of de-identified text stays in released captions (it is a run of '_'). Corrected ones drop
it: no image shows what it hides, and WordPiece spends three tokens of a short caption on it.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence

from medst.config import Behaviour

FEWEST_WORDS = 3
"""Captions with fewer are no captions."""

_SECTION_OF_HEADING = {
    **dict.fromkeys(("exam", "examination", "study", "procedure", "type of examination"), "examination"),
    **dict.fromkeys(("indication", "indications", "history", "clinical history", "clinical information"), "indication"),
    **dict.fromkeys(("clinical indication", "reason for exam", "reason for examination"), "indication"),
    **dict.fromkeys(("technique", "techniques"), "technique"),
    **dict.fromkeys(("comparison", "comparisons", "comparison studies"), "comparison"),
    **dict.fromkeys(("finding", "findings"), "findings"),
    **dict.fromkeys(("findings and impression", "findings/impression", "impression and findings"), "findings"),
    **dict.fromkeys(("impression", "impressions", "conclusion", "conclusions"), "impression"),
    **dict.fromkeys(("wet read", "preliminary report"), "wet read"),
    **dict.fromkeys(("addendum", "addenda"), "addendum"),
}
_KNOWN_HEADINGS = "|".join(re.escape(name) for name in sorted(_SECTION_OF_HEADING, key=len, reverse=True))
_HEADING = re.compile(
    # Known headings in any case; unknown ones ('PORTABLE CHEST:') in capitals only.
    rf"^[ \t]*(?P<heading>(?i:{_KNOWN_HEADINGS})|[A-Z][A-Z0-9 ,/&()'-]{{2,60}}?)[ \t]*:",
    re.MULTILINE,
)
_TITLE = re.compile(
    r"^[ \t]*(?P<title>FINAL REPORT|FINAL ADDENDUM|ADDENDUM|WET READ|PRELIMINARY REPORT)[ \t]*$", re.MULTILINE
)
_RULE = re.compile(r"^[ \t]*_{6,}[ \t]*$", re.MULTILINE)
"""A line that parts a wet read or an addendum from the report."""
_BLANK_LINE = re.compile(r"\n[ \t]*\n")

_RELEASED_CUT = re.compile(r"[0-9]+\.|\.")
_RELEASED_WORD = re.compile(r"\w+")
_NEVER_LAST = ("dr", "mr", "mrs", "ms", "prof", "st", "vs", "e.g", "i.e", "cf", "approx", "fig")
_SELDOM_LAST = ("a.m", "p.m", "etc", "al", "jr", "sr")
"""Abbreviations that end a sentence only where a capital, a digit or a mask follows."""
_STOP = re.compile(r"[.?!]+[\"')\]]*(?=\s|$)|(?<=[a-z)])\.(?=[A-Z])")
_LAST_WORD = re.compile(r"(?:^|[\s(])([A-Za-z.]+)$")
_LIST_MARKER = re.compile(r"\(?\d{1,2}[.)](?:\s+|(?=[A-Za-z_])|$)")
_NUMBERED_LINE = re.compile(r"\s*\(?(\d{1,2})[.)](?=\s|[A-Za-z_])")
_CORRECTED_WORD = re.compile(r"(?<![\w.])\d*\.\d+|[^\W_]+")


def extract_sections(text: str) -> dict[str, str]:
    """The sections of a report file in MIMIC-CXR's layout.

    Returns:
        Content by section: examination, indication, technique, comparison, findings, impression (also
        'CONCLUSION'), wet read, addendum, and the lower-case heading of any other. FINDINGS AND IMPRESSION
        in one count as findings. Repeated sections are joined. Where neither findings nor impression is
        headed, the paragraphs after the first of the last section are the 'last paragraph', the rule of the
        MIMIC-CXR authors; text before any heading is the 'preamble'. Lines are stripped; empty sections are
        left out.
    """
    sections: dict[str, str] = {}
    text = _RULE.sub("", text.replace("\r\n", "\n"))
    titles = list(_TITLE.finditer(text))
    has_final_report = any(title["title"] == "FINAL REPORT" for title in titles)
    before = text[: titles[0].start()] if titles else text
    if not has_final_report:
        _add_headed(sections, before)
    elif before.strip():
        heading = _HEADING.match(before.lstrip("\n"))
        _add(sections, "wet read", before.lstrip("\n")[heading.end() :] if heading else before)
    for title, end in _with_ends(titles, text):
        content = text[title.end() : end]
        if title["title"] == "FINAL REPORT":
            _add_headed(sections, content)
        else:
            name = "addendum" if "ADDENDUM" in title["title"] else "wet read"
            heading = _HEADING.match(content.lstrip())
            is_same = heading is not None and _section(heading["heading"]) == name
            _add(sections, name, content.lstrip()[heading.end() :] if heading and is_same else content)
    return sections


def _add_headed(sections: dict[str, str], text: str) -> None:
    """Adds what follows each heading of `text`."""
    headings = list(_HEADING.finditer(text))
    blocks = [("preamble", text[: headings[0].start()] if headings else text)]
    for heading, end in _with_ends(headings, text):
        blocks.append((_section(heading["heading"]), text[heading.end() : end]))
    names = {name for name, block in blocks if block.strip()}
    if not names & {"findings", "impression"}:
        name, block = blocks.pop()
        first, *rest = _BLANK_LINE.split(block.strip(), maxsplit=1)
        if name == "preamble" and not rest:
            blocks.append(("last paragraph", first))
        else:
            blocks += [(name, first), ("last paragraph", "".join(rest))]
    for name, block in blocks:
        _add(sections, name, block)


def _with_ends(starts: Sequence[re.Match[str]], text: str) -> list[tuple[re.Match[str], int]]:
    """Each match with the place where the next one starts, or the text ends."""
    return [(match, following.start()) for match, following in itertools.pairwise(starts)] + [
        (match, len(text)) for match in starts[-1:]
    ]


def _section(heading: str) -> str:
    name = " ".join(heading.lower().split())
    return _SECTION_OF_HEADING.get(name, name)


def _add(sections: dict[str, str], name: str, block: str) -> None:
    content = "\n".join(line.strip() for line in block.split("\n")).strip()
    if content:
        sections[name] = f"{sections[name]}\n\n{content}" if name in sections else content


def caption(sections: Mapping[str, str], behaviour: Behaviour) -> str | None:
    """The text that a model reads: the cleaned impression, then the findings.

    Without both, it is the last paragraph (corrected only). None where fewer than three words are left.
    """
    parts = [sections[name] for name in ("impression", "findings") if name in sections]
    if not parts and behaviour == "corrected" and "last paragraph" in sections:
        parts = [sections["last paragraph"]]
    cleaned = " ".join(text for part in parts if (text := clean(part, behaviour)))
    return cleaned if len(cleaned.split()) >= FEWEST_WORDS else None


def clean(text: str, behaviour: Behaviour) -> str:
    """Lower-case ASCII words of a section or sentence, without punctuation; '' where none is left.

    Idempotent on ASCII text. Not for a whole report file, whose headings it would keep.
    """
    sentences = (_clean_sentence(sentence, behaviour) for sentence in split_sentences(text, behaviour))
    return " ".join(sentence for sentence in sentences if sentence)


def join_prompt(sentences: Sequence[str], behaviour: Behaviour) -> str:
    """One prompt from sentences: cleaned and joined, released without a space between them."""
    cleaned = [text for sentence in sentences if (text := clean(sentence, behaviour))]
    return ("" if behaviour == "released" else " ").join(cleaned)


def split_sentences(text: str, behaviour: Behaviour) -> list[str]:
    """The sentences of a section as they are written, none of them blank.

    Released ones lack their '.' and the number before it. Corrected ones lack nothing but list markers
    ('1.', '2)') and have single spaces; they also end at empty lines and before numbered lines.
    """
    if behaviour == "released":
        return [sentence for sentence in _RELEASED_CUT.split(text) if sentence.strip()]
    sentences = []
    for block in _blocks(text):
        start = 0
        for stop in _STOP.finditer(block):
            if _ends_sentence(block, start, stop):
                sentences.append(block[start : stop.end()])
                start = stop.end()
        sentences.append(block[start:])
    unmarked = (_without_marker(" ".join(sentence.split())) for sentence in sentences)
    return [sentence for sentence in unmarked if sentence]


def _blocks(text: str) -> list[str]:
    """Paragraphs and items of numbered lists. A wrapped line may begin with a number, so that a line starts
    an item only with the number that is next."""
    blocks: list[list[str]] = [[]]
    expected = 1
    for line in text.split("\n"):
        marker = _NUMBERED_LINE.match(line)
        if marker and int(marker[1]) in (1, expected):
            blocks.append([])
            expected = int(marker[1]) + 1
        if not line.strip():
            blocks.append([])
        blocks[-1].append(line)
    return [" ".join(lines) for lines in blocks]


def _ends_sentence(block: str, start: int, stop: re.Match[str]) -> bool:
    if block[stop.start()] != ".":
        return True
    word = _LAST_WORD.search(block[: stop.start()])
    abbreviation = word[1].lower() if word else ""
    following = block[stop.end() :].lstrip()[:1]
    if abbreviation in _NEVER_LAST:
        return not following
    if abbreviation in _SELDOM_LAST:
        return not following or not following.islower()
    # The stop of a list marker ends nothing: before it, the sentence holds the number alone.
    return _LIST_MARKER.fullmatch(block[start : stop.end()].strip()) is None


def _without_marker(sentence: str) -> str:
    marker = _LIST_MARKER.match(sentence)
    return sentence[marker.end() :] if marker else sentence


def _clean_sentence(sentence: str, behaviour: Behaviour) -> str:
    if behaviour == "released":
        words = _RELEASED_WORD.findall(sentence.lower())
        if len(words) < 2:
            return ""
        ascii_words = (word.encode("ascii", "ignore").decode("ascii") for word in words)
        return " ".join(word for word in ascii_words if word)
    # Accents go, letters stay; a sign without an ASCII form parts words rather than joining them.
    decomposed = (sign for sign in unicodedata.normalize("NFKD", sentence) if not unicodedata.combining(sign))
    ascii_text = "".join(sign if sign.isascii() else " " for sign in decomposed)
    return " ".join(_CORRECTED_WORD.findall(ascii_text.lower()))
