"""The marginals of a phantom beside those published for MIMIC-CXR.

What lives here: counting, for the eye. What must not: anything that the generator depends on.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

# Johnson et al. 2019 (MIMIC-CXR, Scientific Data 6:317): 377110 images, 227835 studies, 65379 patients. Verified.
# View positions in mimic-cxr-2.0.0-metadata.csv.gz: AP 147173, PA 96161, LATERAL 82853, LL 35133. Verified to the
# digits shown: users of the file report 147169, 96155, 82852, 35129 and 21 of other views
# (github.com/StanfordMIMI/RoentGen-v2/issues/3) and 15769 without a view (github.com/MIT-LCP/mimic-cxr/issues/15);
# the four counts with those 21 and 15769 are exactly the 377110 images.
_PUBLISHED_IMAGES = 377_110
_PUBLISHED = {
    "studies per patient": 227_835 / 65_379,
    "images per study": 377_110 / 227_835,
    "share of images AP": 147_173 / _PUBLISHED_IMAGES,
    "share of images PA": 96_161 / _PUBLISHED_IMAGES,
    "share of images LATERAL": 82_853 / _PUBLISHED_IMAGES,
    "share of images LL": 35_133 / _PUBLISHED_IMAGES,
    "share of frontals AP": 147_173 / (147_173 + 96_161),
}
# Share of the 227827 labelled studies by the CheXpert labeller, as remembered from Johnson et al. 2019
# (MIMIC-CXR-JPG, arXiv:1901.07042). Not verified: neither the paper's table nor a count of the file was at hand.
_UNVERIFIED_POSITIVE = {
    "Atelectasis": 0.201, "Cardiomegaly": 0.197, "Consolidation": 0.047, "Edema": 0.119,
    "Enlarged Cardiomediastinum": 0.032, "Fracture": 0.019, "Lung Lesion": 0.028, "Lung Opacity": 0.226,
    "No Finding": 0.331, "Pleural Effusion": 0.238, "Pleural Other": 0.009, "Pneumonia": 0.073,
    "Pneumothorax": 0.045, "Support Devices": 0.292,
}
_WORDS = ("no", "unchanged", "stable", "increased", "improved", "worsening", "right", "left", "bilateral", "small",
          "may", "effusion", "edema", "pneumonia", "pneumothorax", "consolidation", "comparison")


def marginals(out: Path) -> pd.DataFrame:
    """Frequencies of a phantom's views, sequences, labels and words.

    Returns:
        Columns `quantity`, `phantom`, `published` (NaN where nothing is known) and `source`: "verified" where the
        number for MIMIC-CXR was found in a source besides memory, else "unverified", or "" where there is none.
    """
    mimic = out / "mimic-cxr-jpg"
    metadata = pd.read_csv(mimic / "mimic-cxr-2.0.0-metadata.csv.gz")
    labels = pd.read_csv(mimic / "mimic-cxr-2.0.0-chexpert.csv.gz")
    split = pd.read_csv(mimic / "mimic-cxr-2.0.0-split.csv.gz")
    train = split.loc[split["split"] == "train", "study_id"].unique()
    lengths = labels[labels["study_id"].isin(train)].groupby("subject_id").size()
    views = metadata["ViewPosition"].value_counts()
    has_lateral = metadata["ViewPosition"].isin(["LL", "LATERAL"]).groupby(metadata["study_id"]).any()
    values = {
        "studies per patient": float(lengths.mean()),
        "images per study": len(metadata) / len(labels),
        **{f"share of images {view}": float(views.get(view, 0)) / len(metadata)
           for view in ("AP", "PA", "LATERAL", "LL")},
        "share of frontals AP": float(views.get("AP", 0)) / float(views.get("AP", 0) + views.get("PA", 0)),
        "share of studies with a lateral": float(has_lateral.mean()),
        "share of patients with one study": float((lengths == 1).mean()),
        "longest sequence": float(lengths.max()),
        "share of training studies in windows of 4": float((lengths // 4 * 4).sum() / lengths.sum()),
    }
    unknown = float("nan")
    rows = [(name, value, _PUBLISHED.get(name, unknown), "verified" if name in _PUBLISHED else "")
            for name, value in values.items()]
    rows += [(f"positive: {label}", float((labels[label] == 1).mean()), share, "unverified")
             for label, share in _UNVERIFIED_POSITIVE.items()]
    rows += [(f"uncertain: {label}", float((labels[label] == -1).mean()), unknown, "")
             for label in _UNVERIFIED_POSITIVE if label != "No Finding"]
    rows += [(f"reports with the word '{word}'", share, unknown, "") for word, share in _word_shares(out).items()]
    return pd.DataFrame(rows, columns=["quantity", "phantom", "published", "source"])


def _word_shares(out: Path) -> dict[str, float]:
    counts = dict.fromkeys(_WORDS, 0)
    num_reports = 0
    for path in (out / "mimic-cxr" / "files").rglob("*.txt"):
        words = set(path.read_text(encoding="utf-8").lower().replace(".", " ").replace(",", " ").replace(":", " ")
                    .split())
        num_reports += 1
        for word in _WORDS:
            counts[word] += word in words
    return {word: count / max(num_reports, 1) for word, count in counts.items()}
