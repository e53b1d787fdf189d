"""What every tracked number means: name, unit, direction, protocol, chance level, component, place in a table.

What lives here: the one registry that tables and figures ask. What must not: numbers of any trial.

Adding a metric is adding an entry below; its place in the list is its place in every table.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.text import finding_name
from medst.config import nearest

FINDINGS = ("consolidation", "edema", "pleural_effusion", "pneumonia", "pneumothorax")
"""In the order of MS-CXR-T's tables."""
SCORE_SCALE = 100.0
"""Scores in [0, 1] are shown times 100, so that one digit after the point is a tenth of a point."""


@dataclass(frozen=True)
class Metric:
    """One tracked scalar."""

    key: str
    """Name under which it is tracked."""
    name: str
    """Full name for captions and axes."""
    short: str
    """Name for a column head among other tasks' metrics."""
    task: str
    """Group of metrics that a table of the paper shows together."""
    panel: str = ""
    """Part of the task's own table in which it stands; '' where only the task's name is needed."""
    column: str = ""
    """Column head in that part; '' takes `short`."""
    unit: str = "points"
    """`points` is a score times 100; otherwise the unit of the value shown, '' for none."""
    scale: float = SCORE_SCALE
    """Shown value = tracked value * scale."""
    digits: int = 1
    is_higher_better: bool = True
    protocol: str = ""
    """`corrected`, `as published`, or '' where there is only one way."""
    chance: float | None = None
    """Tracked value that guessing reaches."""
    chance_key: str = ""
    """Metric under which every trial tracks what guessing reaches, where it depends on the data."""
    component: str = ""
    """Component whose primary task this is, by design and before any result."""

    @property
    def label(self) -> str:
        """Axis label with its unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


PROTOCOL_TEXT = {
    "as published": "as published: folds not grouped by patient, thresholds and hard decisions as in the released "
                    "program",
    "corrected": "corrected: grouped by patient, no choice made on test data",
}


def _zero_shot() -> list[Metric]:
    task = "finding_zero_shot"
    metrics = []
    for prefix, head, panel in (("", "Two-view zero-shot AUROC", "Frontal with lateral, AUROC"),
                                ("frontal/", "Frontal-only zero-shot AUROC", "Frontal alone, AUROC")):
        has_both = not prefix
        short = "" if has_both else "Frontal "
        metrics += [
            Metric(f"test/{task}/{prefix}mean/auroc", f"{head}, mean of five findings", f"{short}Zero-shot", task,
                   panel, "mean", chance=0.5, component="MoVE and views" if has_both else ""),
            Metric(f"test/{task}/{prefix}lateral_only/auroc", f"{head}, findings visible on the lateral only",
                   f"{short}Lateral-only", task, panel, "lateral only", chance=0.5,
                   component="lateral view" if has_both else ""),
        ]
        metrics += [Metric(f"test/{task}/{prefix}{finding}/auroc", f"{head}, {finding_name(finding)}",
                           f"{short}{finding_name(finding).capitalize()}", task, panel, finding_name(finding),
                           chance=0.5) for finding in FINDINGS]
    metrics += [Metric(f"test/{task}/lateral_only/{finding}/auroc",
                       f"Two-view zero-shot AUROC, {finding_name(finding)} visible on the lateral only",
                       f"Lateral-only {finding_name(finding)}", task, "Findings visible on the lateral only, AUROC",
                       finding_name(finding), chance=0.5) for finding in FINDINGS]
    return metrics


def _temporal_image() -> list[Metric]:
    task = "temporal_image"
    kinds = (
        ("balanced_accuracy", "balanced accuracy", "Temporal", "corrected", 1 / 3),
        ("auroc", "AUROC", "Temporal AUROC", "corrected", 0.5),
        ("accuracy_5fold_as_published", "accuracy in 5 folds", "Temporal 5-fold", "as published", None),
        ("accuracy_10fold_as_published", "accuracy in 10 folds", "Temporal 10-fold", "as published", None),
    )
    metrics = []
    for kind, name, short, protocol, chance in kinds:
        for part in (*FINDINGS, "mean"):
            label = "mean of five findings" if part == "mean" else finding_name(part)
            is_primary = part == "mean" and kind == "balanced_accuracy"
            metrics.append(Metric(
                f"test/{task}/{part}/{kind}", f"Temporal image classification, {name}, {label}",
                short if part == "mean" else f"{short} {label}", task, panel=name[0].upper() + name[1:],
                column=finding_name(part), protocol=protocol, chance=chance,
                component="FMC, RMR, curriculum" if is_primary else ""))
    return metrics


def _sentence_similarity() -> list[Metric]:
    task = "sentence_similarity"
    measures = (("accuracy", "accuracy", "corrected", 0.5), ("accuracy_as_published", "accuracy", "as published", None),
                ("auroc", "AUROC", "", 0.5))
    metrics = []
    for measure, name, protocol, chance in measures:
        for part, label in (("all", "all pairs"), ("radgraph", "RadGraph"), ("swaps", "swaps")):
            is_primary = part == "all" and measure == "accuracy"
            metrics.append(Metric(
                f"test/{task}/{part}/{measure}", f"Temporal sentence similarity, {name}, {label}",
                "Sentences" if is_primary else f"Sentences {label} {name}", task, panel=name[0].upper() + name[1:],
                column=label, protocol=protocol, chance=chance, component="text positions" if is_primary else ""))
    return metrics


def _rsna() -> list[Metric]:
    task = "rsna_zero_shot"
    head = "RSNA pneumonia, zero-shot"
    return [
        Metric(f"test/{task}/auroc", f"{head} AUROC", "RSNA", task, column="AUROC", protocol="corrected", chance=0.5),
        Metric(f"test/{task}/balanced_accuracy", f"{head} balanced accuracy", "RSNA bal. acc.", task,
               column="balanced accuracy", protocol="corrected", chance=0.5),
        Metric(f"test/{task}/f1", f"{head} F1", "RSNA F1", task, column="F1", protocol="corrected"),
        Metric(f"test/{task}/auroc_as_published", f"{head} AUROC of hard decisions", "RSNA as published", task,
               column="AUROC of hard decisions", protocol="as published", chance=0.5),
    ]


def _covidx() -> list[Metric]:
    task = "covidx_linear"
    measures = (("balanced_accuracy", "balanced accuracy", "corrected", 1 / 3),
                ("auroc", "AUROC, mean of the classes", "corrected", 0.5),
                ("accuracy_as_published", "accuracy", "as published", None))
    return [
        Metric(f"test/{task}/{share}/{measure}", f"COVIDx, linear probe, {name}, {share} % of the labels",
               f"COVIDx {share} %", task, panel=name[0].upper() + name[1:], column=f"{share} %", protocol=protocol,
               chance=chance)
        for measure, name, protocol, chance in measures for share in ("1", "10", "100")
    ]


def _retrieval() -> list[Metric]:
    task = "retrieval"
    metrics = []
    two_views = "Two-view image-report retrieval"
    for prefix, head, short, panel in (
            ("", two_views, "", "Frontal with lateral"),
            ("image_to_report/", f"{two_views}, report by image", "Report ", "Frontal with lateral, report by image"),
            ("report_to_image/", f"{two_views}, image by report", "Image ", "Frontal with lateral, image by report"),
            ("frontal/", "Frontal-only image-report retrieval", "Frontal ", "Frontal alone")):
        for rank in (1, 5, 10):
            metrics.append(Metric(f"test/{task}/{prefix}r{rank}", f"{head}, recall at {rank}", f"{short}R@{rank}", task,
                                  panel, f"R@{rank}", component="MoVE and views" if rank == 5 and not prefix else ""))
    return metrics


def _grounding() -> list[Metric]:
    task = "grounding"
    metrics = []
    for prefix, head, panel in (("", "Phrase grounding", "Similarity map"),
                                ("attention/", "Phrase grounding by attention", "Attention map")):
        short = "" if not prefix else "Attention "
        metrics += [
            Metric(f"test/{task}/{prefix}pointing_accuracy", f"{head}, pointing accuracy", f"{short}Pointing", task,
                   panel, "pointing", chance_key=f"test/{task}/chance", component="" if prefix else "local alignment"),
            Metric(f"test/{task}/{prefix}contrast_to_noise", f"{head}, contrast-to-noise ratio", f"{short}CNR", task,
                   panel, "CNR", unit="", scale=1.0, digits=2),
            Metric(f"test/{task}/{prefix}contrast_to_noise_signed", f"{head}, signed contrast-to-noise ratio",
                   f"{short}signed CNR", task, panel, "signed CNR", unit="", scale=1.0, digits=2, chance=0.0),
        ]
    return metrics


def _direction() -> list[Metric]:
    task = "direction"
    metrics = []
    kinds = (("change", "change in the images", "Direction"), ("words", "words of change", "Direction words"))
    for kind, name, short in kinds:
        for part in ("mean", *FINDINGS):
            is_mean = part == "mean"
            metrics.append(Metric(
                f"test/{task}/{kind}/{part}/auroc",
                f"Direction of time, {name}, AUROC, {'mean of five findings' if is_mean else finding_name(part)}",
                short if is_mean else f"{short} {finding_name(part)}", task, f"{name[0].upper()}{name[1:]}, AUROC",
                finding_name(part), protocol="corrected", chance=0.5,
                component="FMC, RMR, curriculum" if is_mean and kind == "change" else ""))
    return [
        *metrics,
        Metric(f"test/{task}/reports/accuracy", "Direction of time, images follow their reports, accuracy",
               "Direction reports", task, "Whole sequences", "reports, accuracy", protocol="corrected", chance=0.5),
        Metric(f"test/{task}/order/auroc", "Direction of time, common drift of the images, AUROC", "Direction drift",
               task, "Whole sequences", "drift, AUROC", protocol="corrected", chance=0.5),
    ]


def _sides() -> list[Metric]:
    one_sided = tuple(finding for finding in FINDINGS if finding != "edema")
    return [Metric(f"test/sides/{part}/auroc",
                   f"Side of a finding, AUROC, {'mean of four findings' if part == 'mean' else finding_name(part)}",
                   "Sides" if part == "mean" else f"Sides {finding_name(part)}", "sides",
                   column=part if part == "mean" else finding_name(part), chance=0.5) for part in ("mean", *one_sided)]


def _cost() -> list[Metric]:
    return [
        Metric("facts/parameters", "Parameters", "Params", "cost", unit="millions", scale=1e-6, digits=2,
               is_higher_better=False),
        Metric("facts/flops_two_view", "Floating point operations of a two-view pair, forward", "GFLOPs", "cost",
               unit="GFLOPs", scale=1e-9, digits=3, is_higher_better=False),
    ]


METRICS: dict[str, Metric] = {
    metric.key: metric
    for group in (_zero_shot(), _temporal_image(), _sentence_similarity(), _rsna(), _covidx(), _retrieval(),
                  _grounding(), _direction(), _sides(), _cost())
    for metric in group
}
"""Every metric a table may show, in display order."""

TASK_TITLES = {
    "temporal_image": "Temporal image classification (MS-CXR-T)",
    "sentence_similarity": "Temporal sentence similarity (MS-CXR-T)",
    "rsna_zero_shot": "Zero-shot pneumonia detection (RSNA)",
    "covidx_linear": "Linear classification (COVIDx)",
    "finding_zero_shot": "Two-view zero-shot classification by finding",
    "retrieval": "Two-view image-report retrieval",
    "grounding": "Phrase grounding in the true boxes",
    "direction": "Forward or backward in time",
    "sides": "Side of findings, by words",
}
"""Task -> title of its table: the paper's four tasks, then those that can see single components."""

COMPONENT_PRIMARIES: tuple[Metric, ...] = tuple(METRICS[key] for key in (
    "test/finding_zero_shot/mean/auroc",
    "test/finding_zero_shot/pneumonia/auroc",
    "test/temporal_image/mean/balanced_accuracy",
    "test/sentence_similarity/all/accuracy",
    "test/finding_zero_shot/lateral_only/auroc",
    "test/retrieval/r5",
    "test/grounding/pointing_accuracy",
    "test/direction/change/mean/auroc",
))
"""The columns of a study's table: every component's primary task, so that an arm is judged by all of them."""

FLOORS = {"pixel_baseline": "pixel differences"}
"""Floor, tracked under `test/<floor>/<task>/...` -> name of its row: what a trained model must beat."""

COST = ("facts/parameters", "facts/flops_two_view")


def describe(key: str) -> Metric:
    """The registered metric.

    Raises:
        ValueError: unknown key; names the nearest one.
    """
    if key not in METRICS:
        guess = nearest(key, METRICS)
        hint = f"; the nearest is '{guess}'" if guess else ""
        raise ValueError(f"metric '{key}' is not in analysis/registry.py{hint}")
    return METRICS[key]


def floor_key(key: str, floor: str) -> str:
    """The key under which a floor is tracked on the metric `key`."""
    return key.replace("test/", f"test/{floor}/", 1)


def task_panels(task: str) -> dict[tuple[str, str], tuple[Metric, ...]]:
    """(panel, protocol) -> its metrics, of one task, in display order."""
    panels: dict[tuple[str, str], tuple[Metric, ...]] = {}
    for metric in METRICS.values():
        if metric.task == task:
            place = (metric.panel, metric.protocol)
            panels[place] = (*panels.get(place, ()), metric)
    return panels


LOSS_TERMS = {
    "loss": "Total",
    "global": "Global contrast",
    "local": "Local alignment",
    "local_word": "Local, word to patches",
    "local_patch": "Local, patch to words",
    "temporal": "Temporal",
    "fmc": "Forward mapping (FMC)",
    "fmc_i2t": "FMC, image to report",
    "fmc_t2i": "FMC, report to image",
    "rmr": "Reverse regression (RMR)",
    "rmr_i2t": "RMR, image to report",
    "rmr_t2i": "RMR, report to image",
    "prototype": "Prototypes",
    "balance": "Expert balance",
}
"""Term, tracked as `train/<term>` and `validation/<term>` -> name, in the order of figures."""
