"""Ablation tables: which arms, which metrics, which comparison, and the caption that makes them honest.

What lives here: the content of tables as plain frozen carriers. What must not: how they look
(analysis/rendering.py), how their numbers are computed (analysis/statistics.py) or what a metric means
(analysis/registry.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis import registry, statistics
from analysis.detectable import detectable_differences
from analysis.registry import Metric
from analysis.text import counted, distinct, median_and_range, seeds_text
from analysis.tidy import FINISHED, Plan, Study

Mark = Literal["", "best", "contender"]
Counts = Literal["seeds", "patients"]
Kind = Literal["arm", "floor", "chance"]
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Cell:
    """One arm on one metric, in the tracked unit."""

    interval: statistics.Interval
    difference: statistics.PairedDifference | None
    """To the reference arm; None for the reference itself, for costs and for chance."""
    adjusted_p: float
    """Of the primary metric, from 6 seeds on; else NaN."""
    detectable: float
    """Smallest true difference found with power 0.8: on the primary metric by its adjusted test (inf: none is, however
    large), on others by an unadjusted paired t test at 0.05; NaN where unknown."""
    mark: Mark
    values: Mapping[int, float]
    """Seed -> tracked value."""
    run_ids: Mapping[int, str]
    """Seed -> the run behind it."""


@dataclass(frozen=True)
class Row:
    arm: str
    kind: Kind
    is_reference: bool
    num_trials: int
    """Finished trials of the arm."""
    cells: dict[str, Cell]
    """Metric key -> cell."""
    unfinished: Mapping[str, int] = field(default_factory=dict)
    """State (missing, running, failed, pruned) -> planned trials of the arm in it."""


@dataclass(frozen=True)
class Panel:
    """Columns that are shown side by side."""

    title: str
    metrics: tuple[Metric, ...]
    is_detailed: bool = False
    """One outcome with everything known about its comparison, and the cost of the arms."""


@dataclass(frozen=True)
class Verdict:
    """A registered expectation beside what was found."""

    arm: str
    metric: Metric
    expected: str
    difference: statistics.PairedDifference

    @property
    def reading(self) -> str:
        """What the 95 % interval of the difference says, unadjusted."""
        if math.isnan(self.difference.low):
            return "too few seeds"
        found = "lower" if self.difference.high < 0 else "higher" if self.difference.low > 0 else ""
        if not found:
            return "no difference shown" if self.expected == "equal" else "not shown"
        return "as expected" if found == self.expected else f"{found}, against expectation"


@dataclass(frozen=True)
class ResultTable:
    name: str
    """File name without its ending."""
    title: str
    study: str
    reference: str
    primary: str
    """Key of the registered primary metric, whether or not it is in this table."""
    seeds: tuple[int, ...]
    fingerprint: str
    """Of what the table was made from: `Study.fingerprint`."""
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...]
    caption: tuple[str, ...]
    """Sentences."""
    warnings: tuple[str, ...]
    """What makes the table incomplete or stale; sentences, shown before the caption."""

    verdicts: tuple[Verdict, ...] = ()
    is_one_task: bool = False
    """All columns belong to one task, which the title names."""
    counts: Counts = "seeds"
    """What the n of a cell counts."""

    @property
    def num_seeds(self) -> int:
        return len(self.seeds)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric once, in display order."""
        return tuple({metric.key: metric for panel in self.panels for metric in panel.metrics}.values())

    def detectable(self, key: str) -> list[float]:
        """Minimum detectable differences of the arms on a metric, in rising order."""
        return _detectable(self.rows, key)


def study_table(study: Study, current_source: str) -> ResultTable:
    """The study's own table: primary metric in detail, then the other components' primary tasks.

    Raises:
        ValueError: a metric of the plan is not in the registry.
    """
    primary = registry.describe(study.plan.primary)
    cost = tuple(registry.METRICS[key] for key in registry.COST if key in study.metrics)
    own = [registry.describe(key) for key in study.plan.secondary]
    secondary = dict.fromkeys([*own, *registry.COMPONENT_PRIMARIES])
    others = tuple(metric for metric in secondary if metric.key in study.metrics and metric.key != primary.key)
    panels = [Panel(f"Primary outcome: {primary.name}", (primary, *cost), is_detailed=True)]
    if others:
        panels.append(Panel("Secondary outcomes", others))
    title = study.plan.question or f"Study {study.plan.name}"
    table = _build(study, study.plan.name, title, tuple(panels), current_source)
    return replace(table, verdicts=tuple(_verdicts(study)))


def task_tables(study: Study, current_source: str) -> list[ResultTable]:
    """The paper's task tables, with the arms of `study`; one panel per protocol. Tasks without results are left out."""
    tables = []
    for task, title in registry.TASK_TITLES.items():
        panels = []
        for (panel, protocol), metrics in registry.task_panels(task).items():
            present = tuple(metric for metric in metrics if metric.key in study.metrics)
            if present:
                panels.append(Panel(", ".join(filter(None, (panel, protocol))), present))
        if panels:
            headline = f"{title}, arms of study {study.plan.name}"
            tables.append(_build(study, f"task_{task}", headline, tuple(panels), current_source, is_one_task=True))
    return tables


_EMPTY = Cell(statistics.mean_interval([]), None, math.nan, math.nan, "", {}, {})


def _build(study: Study, name: str, title: str, panels: tuple[Panel, ...], current_source: str,
           is_one_task: bool = False) -> ResultTable:
    plan = study.plan
    metrics = tuple({metric.key: metric for panel in panels for metric in panel.metrics}.values())
    floors = [floor for floor in registry.FLOORS
              if any(registry.floor_key(metric.key, floor) in study.metrics for metric in metrics
                     if metric.task != "cost")]
    columns = {metric.key: _column(study, metric, floors) for metric in metrics}
    finished = study.trials[study.trials["state"] == FINISHED].groupby("arm").size()
    for column in columns.values():
        column.update(dict.fromkeys(set(floors) - set(column), _EMPTY))
    rows = [
        Row(registry.FLOORS.get(arm, arm), "floor" if arm in floors else "arm", arm == plan.reference,
            int(finished.get(arm, max(column[arm].interval.n for column in columns.values()))),
            {key: column[arm] for key, column in columns.items()},
            {state: number for state, number in study.states(arm).items() if state != FINISHED})
        for arm in (*plan.arms, *floors)]
    chances = {metric.key: _chance_cell(study, metric) for metric in metrics}
    if not all(math.isnan(cell.interval.mean) for cell in chances.values()):
        num_trials = max(cell.interval.n for cell in chances.values())
        rows.append(Row("chance", "chance", False, num_trials, chances))
    return ResultTable(
        name, title, plan.name, plan.reference, plan.primary, plan.seeds, study.fingerprint, panels, tuple(rows),
        caption=tuple(_caption(study, metrics, rows, any(panel.is_detailed for panel in panels))),
        warnings=tuple(warnings_of(study, current_source)), is_one_task=is_one_task,
    )


def _column(study: Study, metric: Metric, floors: Sequence[str]) -> dict[str, Cell]:
    """Cells of the arms, then of the floors."""
    plan = study.plan
    scores = study.scores(metric.key)
    run_ids = study.run_ids(metric.key)
    reference = scores[plan.reference].to_numpy()
    is_cost = metric.task == "cost"
    others = [arm for arm in plan.arms if arm != plan.reference]
    adjusted: dict[str, float] = {}
    detectable: dict[str, float] = {}
    if metric.key == plan.primary:
        differences = scores[others].to_numpy() - reference[:, None]
        adjusted = dict(zip(others, statistics.max_t_adjusted_p(differences).tolist(), strict=True))
        detectable = dict(zip(others, detectable_differences(differences).tolist(), strict=True))
    marks = {} if is_cost else _marks(plan.arms, scores.to_numpy(), metric)
    for floor in () if is_cost else floors:
        values, run_ids[floor] = _shared(study, registry.floor_key(metric.key, floor))
        scores[floor] = pd.Series(values, dtype=np.float64)
    cells = {}
    for arm in scores.columns:
        difference = None
        if arm != plan.reference and not is_cost:
            difference = statistics.paired_difference(scores[arm].to_numpy(), reference)
            if arm in others and metric.key != plan.primary:
                detectable[arm] = _by_interval(difference)
        values = {seed: value for seed, value in zip(plan.seeds, scores[arm].tolist(), strict=True)
                  if not math.isnan(value)}
        cells[arm] = Cell(statistics.mean_interval(scores[arm].to_numpy()), difference, adjusted.get(arm, math.nan),
                          detectable.get(arm, math.nan), marks.get(arm, ""), values, run_ids[arm])
    return cells


def _by_interval(difference: statistics.PairedDifference) -> float:
    """True difference from which on the unadjusted interval, which is the paired t test, excludes 0 with power 0.8."""
    return statistics.minimum_detectable_difference(difference.interval.deviation, difference.n)


def _detectable(rows: Sequence[Row], key: str) -> list[float]:
    return sorted(row.cells[key].detectable for row in rows if not math.isnan(row.cells[key].detectable))


def _chance_cell(study: Study, metric: Metric) -> Cell:
    level = math.nan if metric.chance is None else metric.chance
    values, run_ids = _shared(study, metric.chance_key) if metric.chance_key else ({}, {})
    if metric.chance_key:
        level = statistics.mean_interval(list(values.values())).mean
    # It follows from the task and the test data: no interval.
    return Cell(statistics.Interval(level, math.nan, len(values), math.nan), None, math.nan, math.nan, "", values,
                run_ids)


def _shared(study: Study, key: str) -> tuple[dict[int, float], dict[int, str]]:
    """Seed -> value and run, of what is no arm's but tracked by some trial of each seed: the reference's if it can."""
    plan = study.plan
    order = [plan.reference, *(arm for arm in plan.arms if arm != plan.reference)]
    scores = study.scores(key)[order].bfill(axis=1).iloc[:, 0].tolist()
    found = study.run_ids(key)
    runs = {seed: run for arm in reversed(order) for seed, run in found[arm].items()}
    values = {seed: value for seed, value in zip(plan.seeds, scores, strict=True) if not math.isnan(value)}
    return values, {seed: runs[seed] for seed in values}


def _verdicts(study: Study) -> Iterator[Verdict]:
    plan = study.plan
    for expectation in plan.expectations:
        scores = study.scores(expectation.metric)
        paired = statistics.paired_difference(scores[expectation.arm].to_numpy(), scores[plan.reference].to_numpy())
        yield Verdict(expectation.arm, registry.describe(expectation.metric), expectation.direction, paired)


def _marks(arms: Sequence[str], table: statistics.Floats, metric: Metric) -> dict[str, Mark]:
    """Best and contenders, from 6 seeds on, and only where at least one arm is told from the best."""
    counts = (~np.isnan(table)).sum(axis=0)
    eligible = counts >= statistics.MIN_SEEDS_FOR_TEST
    if eligible.sum() < 2:
        return {}
    kept = np.where(eligible[None, :], table, np.nan)
    is_contender = statistics.contenders(kept, metric.is_higher_better)
    if is_contender.sum() == eligible.sum():
        return {}
    means = np.array([statistics.mean_interval(kept[:, column]).mean for column in range(kept.shape[1])])
    best = int(np.nanargmax(means if metric.is_higher_better else -means))
    marks: dict[str, Mark] = {arm: "contender" for arm, is_in in zip(arms, is_contender, strict=True) if is_in}
    marks[arms[best]] = "best"
    return marks


def _caption(study: Study, metrics: Sequence[Metric], rows: Sequence[Row], is_detailed: bool) -> list[str]:
    plan = study.plan
    done = study.trials[study.trials["state"] == FINISHED]
    seeds = f"seed{'s' if len(plan.seeds) > 1 else ''} {seeds_text(plan.seeds)}"
    sentences = [
        f"Mean ± half width of the 95 % t interval over {seeds}; below or beside it the difference to "
        f"'{plan.reference}', paired by seed, with its 95 % t interval. Scores are times 100; n counts seeds.",
    ]
    data = distinct(done["data_name"], done["data_fingerprint"])
    if data:
        settings = "".join(f", {key}={value}" for key, value in plan.common.items())
        budget = distinct(study.scores("facts/pairs_seen").stack().dropna().map("{:,.0f}".format))
        processors = distinct(done["processor"])
        sentences.append(f"Data: {data}; configuration {', '.join(plan.base) or 'default'}{settings}; "
                         f"{f'budget {budget} pairs seen; ' if budget else ''}"
                         f"code {distinct(done['source_fingerprint'])}"
                         f"{f'; processor {processors}' if processors else ''}.")
    if done["processor"].nunique() > 1:
        sentences.append(f"Computed on {done['processor'].nunique()} kinds of processor, which round differently: a "
                         "seed repeats on one kind only, and pairing by seed gains less between them.")
    roots = {_data_of(plan, arm) for arm in plan.arms}
    if len(roots) > 1 and done["data_fingerprint"].nunique() > plan.num_draws:
        sentences.append("Arms have different data, as planned: a difference holds that of their test sets, too.")
    used = {metric.protocol for metric in metrics}
    protocols = [protocol for protocol in registry.PROTOCOL_TEXT if protocol in used]
    if protocols:
        sentences.append("Protocols: " + "; ".join(registry.PROTOCOL_TEXT[protocol] for protocol in protocols) + ".")
    if plan.num_draws > 1:
        sentences.append(f"Replicates cross the seeds with {plan.num_draws} draws of the phantom; those of one draw "
                         "share its patients, so that the intervals speak of these draws.")
    if plan.tuning is not None:
        sentences.append(_tuning_sentence(plan.tuning))
    if study.adopted:
        codes = ", ".join(f"{number} by {code}" for code, number in study.adopted.items())
        sentences.append(f"Computed by earlier code and adopted, after golden numbers and a replayed trial came out "
                         f"equal: {codes}.")
    marked = study.scores("facts/is_contaminated")
    contaminated = [arm for arm in plan.arms if arm in marked and marked[arm].notna().any()]
    if contaminated:
        sentences.append(f"Contaminated: the weights of {', '.join(contaminated)} may have seen patients on whom they "
                         "are judged; each run says why (tag fact.contamination).")
    sentences += _test_sentences(plan, metrics, rows, is_detailed)
    sentences.append(_count_sentence(study))
    return sentences


def _tuning_sentence(tuning: Mapping[str, Any]) -> str:
    """How the nuisance parameters were chosen."""
    keys = ", ".join(tuning["candidates"][0])
    chosen = "; ".join(f"{arm} {', '.join(map(str, settings.values()))}" for arm, settings in tuning["chosen"].items())
    edges = ", ".join(tuning["edges"])
    return (f"Tuned for every arm alike: {keys}, the best of {len(tuning['candidates'])} candidates by "
            f"{tuning['metric']} (validation patients, seeds {seeds_text(tuning['seeds'])}, not among those shown): "
            f"{chosen}." + (f" At the edge of what was tried: {edges}." if edges else ""))


def _test_sentences(plan: Plan, metrics: Sequence[Metric], rows: Sequence[Row], is_detailed: bool) -> list[str]:
    sentences = []
    num_seeds = len(plan.seeds)
    is_tested = num_seeds >= statistics.MIN_SEEDS_FOR_TEST
    if is_tested:
        sentences.append("‡ best mean; † cannot be told from the best (comparison with the best, 95 %); "
                         "a column without marks tells no arm from its best.")
        if any(cell.mark == "best" for row in rows for cell in row.cells.values()):
            first = max(plan.seeds) + 1
            sentences.append("A best mean is chosen on the seeds that show it and so is optimistic; new seeds, read "
                             "alone (the JSON of this table has every seed), measure it without that: medst sweep "
                             f"extend {plan.name} --seeds {first}..{first + num_seeds - 1}.")
    else:
        sentences.append(f"With {counted(num_seeds, 'seed')} no exact paired test can reach {SIGNIFICANCE:.2f}, since "
                         f"its smallest p is 2/{2**num_seeds}: intervals only, no p, nothing marked.")
    if is_detailed and is_tested:
        sentences.append("p: two-sided, of the primary metric only, adjusted for all arms by step-down max-T "
                         f"over joint sign flips of the seeds; * p ≤ {SIGNIFICANCE}. Arms with fewer than "
                         f"{statistics.MIN_SEEDS_FOR_TEST} pairs are neither tested nor marked.")
    sentences += _detectable_sentences(plan, metrics, rows)
    if is_detailed:
        sentences.append("g: mean of the paired differences in units of their deviation (Hedges' correction for few "
                         "seeds); r: correlation of arm and reference over seeds, which is what pairing gains.")
    return sentences


def _detectable_sentences(plan: Plan, metrics: Sequence[Metric], rows: Sequence[Row]) -> list[str]:
    """What the numbers under MDD are, and what they were for the primary metric."""
    sentences = []
    primary = next((metric for metric in metrics if metric.key == plan.primary), None)
    found = _detectable(rows, plan.primary) if primary else []

    def told(values: list[float]) -> str:
        assert primary is not None
        return f"{median_and_range(values, primary.scale, primary.digits)} {primary.unit}"

    if primary and found:
        head = ("MDD, minimum detectable difference: the smallest true difference that the adjusted test finds four "
                f"times in five, where the other arms differ by nothing and all vary as measured; in {primary.name}")
        if math.isinf(found[0]):
            sentences.append(f"{head}: none (∞), however large, below {statistics.MIN_SEEDS_FOR_TEST} pairs.")
            differences = [row.cells[primary.key].difference for row in rows if row.kind == "arm"]
            found = sorted(_by_interval(paired) for paired in differences if paired is not None and paired.n > 1)
            head = "The unadjusted interval excludes 0 four times in five from a true difference"
            if found:
                sentences.append(f"{head} of {told(found)} on (median over arms and range).")
        else:
            sentences.append(f"{head}: {told(found)} (median over arms and range). Smaller ones are missed more often; "
                             "what is not found is not shown to be absent.")
    others = [metric for metric in metrics if metric.key != plan.primary and _detectable(rows, metric.key)]
    if others:
        which = "MDD of the other outcomes" if primary and found else "MDD, minimum detectable difference"
        sentences.append(f"{which}: the smallest true difference that an unadjusted paired t test at "
                         f"{SIGNIFICANCE:.2f} finds four times in five, median over arms and range.")
    return sentences


def _count_sentence(study: Study) -> str:
    counts = study.trials["state"].value_counts()
    parts = [f"{int(counts.get(FINISHED, 0))} of {counted(len(study.trials), 'planned trial')} finished"]
    parts += [f"{int(number)} {state}" for state, number in counts.items() if state != FINISHED]
    return ", ".join(parts) + "."


def warnings_of(study: Study, current_source: str) -> list[str]:
    """Sentences on incomplete, stale and mixed results; empty for a table in order."""
    trials = study.trials
    sentences = []
    unfinished = trials[trials["state"] != FINISHED]
    if len(unfinished):
        named = []
        for (state, arm), group in unfinished.groupby(["state", "arm"], sort=False):
            reasons = [str(reason).strip() for reason in group["reason"].dropna()]
            reason = f": {reasons[0].splitlines()[0]}" if reasons and reasons[0] else ""
            named.append(f"{arm} seed{'s' if len(group) > 1 else ''} {seeds_text(group['seed'])} {state}{reason}")
        sentences.append(f"INCOMPLETE: {len(unfinished)} of {counted(len(trials), 'trial')} "
                         f"{'is' if len(unfinished) == 1 else 'are'} not in it ({'; '.join(named)}).")
    done = trials[trials["state"] == FINISHED]
    stale = done[done["source_fingerprint"] != current_source]
    if len(stale):
        sentences.append(f"STALE: {len(stale)} of {counted(len(done), 'trial')} "
                         f"{'was' if len(stale) == 1 else 'were'} computed by other code "
                         f"({distinct(stale['source_fingerprint'])}) than the present ({current_source}).")
    mixed = _mixed_data(study.plan, done)
    if mixed:
        sentences.append(f"MIXED DATA: trials that should share their data were computed on different ones ({mixed}).")
    return sentences


def _data_of(plan: Plan, arm: str) -> tuple[tuple[str, str], ...]:
    """The settings of data in which an arm differs from the base."""
    assigned = plan.assignments.get(arm, {})
    return tuple((key, str(value)) for key, value in sorted(assigned.items()) if key.startswith("data."))


def _mixed_data(plan: Plan, done: pd.DataFrame) -> str:
    """Arms of the same planned data whose trials have more data sets than the plan has draws, with these."""
    planned = done["arm"].map({arm: _data_of(plan, arm) for arm in plan.arms})
    parts = []
    for _, group in done.groupby(planned, sort=False):
        if group["data_fingerprint"].nunique() > plan.num_draws:
            arms = list(dict.fromkeys(group["arm"]))
            parts.append(f"{', '.join(arms)}: {distinct(group['data_fingerprint'])}")
    return "; ".join(parts)
