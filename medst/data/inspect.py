"""What is in a data root or in a store: counts, shares and problems as printable text.

What lives here: counting and printing. What must not: report text, ids or paths in the output (only the problems of
data that are not credentialed name files), models, scores.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medst.config import DataConfig
from medst.data.building import caption_steps, read_corpus
from medst.data.captions import write_captions
from medst.data.readers import DataError, read_covidx, read_ms_cxr, read_ms_cxr_t, read_rsna
from medst.data.readers.corpus import LABELS, SPLITS, label_column
from medst.data.readers.mimic_cxr import group_views
from medst.data.readers.ms_cxr_t import FINDINGS, PROGRESSIONS
from medst.data.selection import Step
from medst.data.sources import DATA_SETS, sources_of_root
from medst.data.store import Store, is_store, open_store
from medst.data.support import limits
from medst.data.views import VIEWS
from medst.data.workers import Workers

_PUBLISHED_VIEWS = {"AP": 0.390, "PA": 0.255, "LL": 0.093, "LATERAL": 0.220}
"""Shares of the 377 110 images of MIMIC-CXR-JPG 2.0.0 (its metadata file)."""
_PUBLISHED_LABELS = {
    "Atelectasis": 0.201, "Cardiomegaly": 0.197, "Consolidation": 0.047, "Edema": 0.119,
    "Enlarged Cardiomediastinum": 0.032, "Fracture": 0.019, "Lung Lesion": 0.028, "Lung Opacity": 0.226,
    "No Finding": 0.331, "Pleural Effusion": 0.238, "Pleural Other": 0.009, "Pneumonia": 0.073, "Pneumothorax": 0.045,
    "Support Devices": 0.292,
}
"""Positive share of the 227 827 labelled studies by CheXpert (Johnson et al., arXiv:1901.07042, table 4)."""


def inspect(path: str | Path) -> str:
    """Counts and problems of a data root or of a prepared store.

    Raises:
        DataError: the folder is neither, or a table in it is broken.
    """
    path = Path(path)
    if is_store(path):
        return _inspect_store(path)
    if any((path / name).is_dir() for name in DATA_SETS):
        return _inspect_root(path)
    raise DataError(f"{path}: neither a data root (with any of {', '.join(DATA_SETS)}) nor a prepared store")


def _inspect_store(path: Path) -> str:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    # The root is not looked at: a store may be inspected where its raw files are not.
    store = open_store(DataConfig(root=str(path / "no-root"), store=str(path), image_size=manifest["image_size"],
                                  crop_size=manifest["image_size"]))
    lines = [_title(store.name, store.is_credentialed),
             f"prepared store, {store.image_size} x {store.image_size} pixels, fingerprint {store.fingerprint}"]
    lines += describe_limits(store)
    if store.mimic is not None:
        studies = store.mimic.studies
        lines += _steps(store.corpus, store.steps)
        lines += describe_selection(store.selection)
        lines += _describe_studies(studies.assign(has_lateral=studies["lateral"] >= 0), store.mimic.views["view"])
    if store.ms_cxr_t is not None:
        lines += _describe_pairs(store.ms_cxr_t.pairs, store.ms_cxr_t.sentences)
    if store.ms_cxr is not None:
        lines += _describe_boxes(store.ms_cxr.table)
    if store.rsna is not None:
        lines += _describe_rsna(store.rsna.table)
    if store.covidx is not None:
        lines += _describe_covidx(store.covidx.table)
    return "\n".join([*lines, *_describe_problems(store.problems, store.is_credentialed)]) + "\n"


def _inspect_root(root: Path) -> str:
    sources = sources_of_root(root)
    lines = [_title(sources.name, sources.is_credentialed),
             "raw files (images are not decoded; a prepared store knows more)"]
    places = {data_set: source.folder for data_set, source in sources.sets.items()}
    problems: list[tuple[str, str, str]] = []
    corpus = read_corpus(sources)
    if corpus is not None:
        with tempfile.TemporaryDirectory() as folder:
            captions = write_captions(Path(folder), corpus.studies, corpus.reports, Workers(1), None)
            rows = np.flatnonzero(captions.is_usable)
            studies = pd.concat([corpus.studies.iloc[rows].reset_index(drop=True), captions.read(rows)], axis=1)
        lines += _steps(str(sources.corpus), [*corpus.steps, *caption_steps(captions)])
        images = corpus.images.assign(image=np.arange(len(corpus.images)))
        studies = studies.merge(group_views(images), on="study_id", how="inner")
        lines += _describe_studies(studies.assign(has_lateral=studies["lateral"] >= 0), corpus.images["view"])
        lines += _describe_notes(corpus.notes)
        problems += [(str(sources.corpus), "table", problem) for problem in corpus.problems]
    if "ms-cxr-t" in places:
        ms_cxr_t = read_ms_cxr_t(places["ms-cxr-t"])
        lines += _describe_pairs(ms_cxr_t.pairs, ms_cxr_t.sentences)
        problems += [("ms-cxr-t", "table", problem) for problem in ms_cxr_t.problems]
    if "ms-cxr" in places:
        lines += _describe_boxes(read_ms_cxr(places["ms-cxr"]).boxes)
    if "rsna" in places:
        lines += _describe_rsna(read_rsna(places["rsna"]).images)
    if "covidx" in places:
        covidx = read_covidx(places["covidx"])
        lines += _describe_covidx(covidx.images)
        problems += [("covidx", "table", problem) for problem in covidx.problems]
    table = pd.DataFrame(problems, columns=["data_set", "item", "reason"], dtype="str")
    return "\n".join([*lines, *_describe_problems(table, sources.is_credentialed)]) + "\n"


def _title(name: str, is_credentialed: bool) -> str:
    return f"{name}{' (credentialed: text, images and ids stay at home)' if is_credentialed else ''}"


def _steps(corpus: str, steps: Sequence[tuple[str, int]]) -> list[str]:
    return _section(f"{corpus}, what remains after each step", [(step, f"{count:,}") for step, count in steps])


def describe_selection(selection: Mapping[str, Sequence[Step]]) -> list[str]:
    """What enters training under each rule, step by step."""
    lines = []
    for rule, steps in selection.items():
        lines += _section(f"Selection {rule}: patients, studies, images that are left", [
            (step, f"{patients:>8,} {studies:>8,} {images:>8,}") for step, patients, studies, images in steps])
    return lines


def describe_limits(store: Store) -> list[str]:
    """What the store cannot support, and what must be known of its corpus."""
    found = limits(store)
    lines = _section("What this store cannot support", [(limit, "") for limit in found]) if found else []
    return lines + _describe_notes(store.notes)


def _describe_notes(notes: Sequence[str]) -> list[str]:
    return _section("To be known", [(note, "") for note in notes]) if notes else []


def _describe_studies(studies: pd.DataFrame, views: pd.Series) -> list[str]:
    lines = _section("Splits: patients, studies, studies a patient, share without a lateral", [
        (split, f"{part['subject_id'].nunique():>7,} {len(part):>8,} {len(part) / part['subject_id'].nunique():>6.2f} "
                f"{1 - part['has_lateral'].mean():>6.1%}")
        for split in SPLITS if len(part := studies[studies["split"] == split])])
    lines += _section("Views of the images (share; in MIMIC-CXR-JPG)", [
        (view, f"{(views == view).sum():>8,} {(views == view).mean():>6.1%} {_PUBLISHED_VIEWS[view]:>6.1%}")
        for view in VIEWS])
    lengths = studies.groupby("subject_id").size()
    bins = [("1", 1, 1), ("2", 2, 2), ("3", 3, 3), ("4 or 5", 4, 5), ("6 to 9", 6, 9), ("10 and more", 10, 10**9)]
    lines += _section("Studies a patient: patients, share, share of their studies without a lateral", [
        (label, f"{is_in.sum():>7,} {is_in.mean():>6.1%} "
                f"{1 - studies.loc[studies['subject_id'].isin(lengths.index[is_in]), 'has_lateral'].mean():>6.1%}")
        for label, low, high in bins if (is_in := lengths.between(low, high)).any()])
    lines += _section("Caption length in words: 5 %, median, mean, 95 %, longest", [
        (behaviour, " ".join(f"{value:>6.1f}" for value in (
            *np.quantile(words, [0.05, 0.5]), words.mean(), np.quantile(words, 0.95), words.max())))
        for behaviour in ("released", "corrected")
        for words in [np.array([len(text.split()) for text in studies[f"report_{behaviour}"] if text])] if len(words)])
    lines += _section("Labels: positive, uncertain, negative, not mentioned (positive in MIMIC-CXR-JPG)", [
        (name, " ".join(f"{share:>6.1%}" for share in (
            (label == 1).mean(), (label == -1).mean(), (label == 0).mean(), label.isna().mean()))
            + f"  ({_PUBLISHED_LABELS[name]:.1%})")
        for name in LABELS for label in [studies[label_column(name)]]])
    return lines


def _describe_pairs(pairs: pd.DataFrame, sentences: pd.DataFrame) -> list[str]:
    lines = _section(f"MS-CXR-T: {len(pairs):,} pairs of {pairs['subject_id'].nunique():,} patients; "
                     f"{', '.join(PROGRESSIONS)}, not judged", [
        (finding, " ".join(f"{(pairs[finding] == value).sum():>7,}" for value in PROGRESSIONS)
         + f" {pairs[finding].isna().sum():>7,}") for finding in FINDINGS])
    kinds = sentences["subset_name"] + ", " + sentences["category"]
    return lines + _section("MS-CXR-T sentence pairs", _counts(kinds))


def _describe_boxes(boxes: pd.DataFrame) -> list[str]:
    return _section("MS-CXR boxes", _counts(boxes["finding"]))


def _describe_rsna(table: pd.DataFrame) -> list[str]:
    return _section("RSNA", [("images", f"{len(table):>7,}"),
                             ("pneumonia", f"{table['target'].sum():>7,} {table['target'].mean():>6.1%}"),
                             ("boxes", f"{table['boxes'].map(len).sum():>7,}")])


def _describe_covidx(table: pd.DataFrame) -> list[str]:
    return _section("COVIDx", _counts(table["split"] + ", " + table["label"]))


def _describe_problems(problems: pd.DataFrame, is_credentialed: bool) -> list[str]:
    if len(problems) == 0:
        return _section("Problems", [("none", "")])
    rows = [(f"{data_set}: {reason}", f"{len(part):>7,}" + ("" if is_credentialed else f"  {part['item'].iloc[0]}"))
            for (data_set, reason), part in problems.groupby(["data_set", "reason"], sort=False)]
    return _section("Problems", rows)


def _counts(words: pd.Series) -> list[tuple[str, str]]:
    return [(str(word), f"{count:>7,}") for word, count in words.value_counts(sort=False).items()]


def _section(title: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(label) for label, _ in rows), default=0)
    return ["", title, *(f"  {label:<{width}}  {value}".rstrip() for label, value in rows)]
