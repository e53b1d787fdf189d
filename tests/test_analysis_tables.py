"""Tables: what stands in them, what their captions confess, and their four renderings."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from analysis_samples import PRIMARY, SOURCE, make_frames, make_plan, make_study
from rich.console import Console

from analysis import registry, rendering, statistics, tables, text
from analysis.detectable import detectable_differences
from analysis.tidy import Expectation, Plan, Study, assemble

ARMS = ("full", "no lateral view", "global only")


def _study(num_seeds: int = 6, **effects: float) -> Study:
    named = {name.replace("_", " "): effect for name, effect in effects.items()}
    return make_study(make_plan(ARMS, num_seeds), noise=0.01, effects=named)


def _terminal(table: tables.ResultTable, width: int) -> str:
    stream = io.StringIO()
    rendering.print_terminal(table, Console(file=stream, width=width))
    return stream.getvalue()


# Registry


def test_registry_is_consistent() -> None:
    assert len(registry.METRICS) > 70
    heads = [(metric.task, metric.panel, metric.protocol, metric.column or metric.short)
             for metric in registry.METRICS.values()]
    assert len(set(heads)) == len(heads), "two columns of one panel would have the same head"
    assert len({metric.name + metric.protocol for metric in registry.METRICS.values()}) == len(registry.METRICS)
    for key, metric in registry.METRICS.items():
        assert metric.key == key
        assert metric.protocol in ("", *registry.PROTOCOL_TEXT)
        assert metric.task == "cost" or metric.task in registry.TASK_TITLES
        assert metric.chance is None or 0 <= metric.chance < 1
    assert len({metric.short for metric in registry.COMPONENT_PRIMARIES}) == len(registry.COMPONENT_PRIMARIES)


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest is 'test/finding_zero_shot/mean/auroc'"):
        registry.describe("test/finding_zeroshot/mean/auroc")


# Tidy


def test_scores_are_seeds_by_arms_of_finished_trials() -> None:
    plan = make_plan(ARMS, 3)
    runs, numbers = make_frames(plan)
    runs.loc[(runs["arm"] == "global only") & (runs["seed"] == 1), "state"] = "pruned"
    study = assemble(plan, runs.sample(frac=1, random_state=0), numbers.sample(frac=1, random_state=1), SOURCE)
    scores = study.scores(PRIMARY)
    assert scores.columns.tolist() == list(ARMS) and scores.index.tolist() == [0, 1, 2]
    assert math.isnan(scores.loc[1, "global only"])
    run_id = runs.loc[(runs["arm"] == "full") & (runs["seed"] == 2), "run_id"].item()
    by_hand = numbers.loc[(numbers["metric"] == PRIMARY) & (numbers["run_id"] == run_id), "value"].item()
    assert scores.loc[2, "full"] == by_hand
    assert len(study.run_ids(PRIMARY)["global only"]) == 2
    assert study.trials["state"].tolist().count("pruned") == 1
    assert study.scores("test/none").isna().all(axis=None) and study.run_ids("test/none")["full"] == {}


def test_of_several_runs_the_finished_current_latest_one_stands() -> None:
    plan = make_plan(ARMS[:2], 1)
    runs, numbers = make_frames(plan)
    first = runs.iloc[0]
    others = pd.DataFrame([
        {**first, "run_id": "failed", "state": "failed", "start_time": 9e9},
        {**first, "run_id": "stale", "source_fingerprint": "old", "start_time": 8e9},
        {**first, "run_id": "later", "start_time": 7e9},
    ])
    study = assemble(plan, pd.concat([others, runs]), numbers, SOURCE)
    assert study.trials.set_index("arm").loc["full", "run_id"] == "later"
    only = assemble(plan, others[others["run_id"] != "later"], numbers, SOURCE)
    assert only.trials.set_index("arm").loc["full", "run_id"] == "stale"


def test_plan_refuses_a_reference_that_is_no_arm() -> None:
    with pytest.raises(ValueError, match="none of its arms"):
        Plan(name="x", arms=("a", "b"), reference="c", primary=PRIMARY, seeds=(0,))


# Content


def test_cells_hold_what_the_statistics_say() -> None:
    study = _study(global_only=-0.08)
    table = tables.study_table(study, SOURCE)
    assert [row.arm for row in table.rows] == [*ARMS, "pixel differences", "chance"]
    scores = study.scores(PRIMARY)
    cell = table.rows[2].cells[PRIMARY]
    assert cell.interval == statistics.mean_interval(scores["global only"].to_numpy())
    assert cell.difference == statistics.paired_difference(scores["global only"].to_numpy(), scores["full"].to_numpy())
    assert cell.adjusted_p == pytest.approx(2 / 64)
    assert cell.run_ids == study.run_ids(PRIMARY)["global only"] and len(cell.run_ids) == 6
    assert cell.mark == "" and [row.cells[PRIMARY].mark for row in table.rows].count("best") == 1
    assert table.rows[0].cells[PRIMARY].difference is None
    assert table.warnings == ()


def test_primary_comes_first_then_the_components() -> None:
    table = tables.study_table(_study(), SOURCE)
    assert table.panels[0].metrics[0].key == PRIMARY
    assert [metric.key for metric in table.panels[0].metrics[1:]] == list(registry.COST)
    assert [metric.key for metric in table.panels[1].metrics] == [
        metric.key for metric in registry.COMPONENT_PRIMARIES if metric.key != PRIMARY]


def test_the_plans_own_secondary_metrics_come_before_the_components() -> None:
    study = _study()
    study = replace(study, plan=replace(study.plan, secondary=("test/rsna_zero_shot/auroc",)))
    assert tables.study_table(study, SOURCE).panels[1].metrics[0].key == "test/rsna_zero_shot/auroc"


def test_below_six_seeds_no_p_and_no_marks() -> None:
    table = tables.study_table(_study(5, global_only=-0.3), SOURCE)
    cells = [cell for row in table.rows for cell in row.cells.values()]
    assert all(math.isnan(cell.adjusted_p) and cell.mark == "" for cell in cells)
    caption = " ".join(table.caption)
    assert "no exact paired test can reach 0.05, since its smallest p is 2/32" in caption
    assert "MDD, minimum detectable difference" in caption and "none (∞), however large" in caption
    assert all(math.isinf(row.cells[PRIMARY].detectable) for row in table.rows[1:3])
    # What the interval can see, it says beside it.
    unadjusted = sorted(statistics.minimum_detectable_difference(row.cells[PRIMARY].difference.interval.deviation, 5)
                        for row in table.rows[1:3])
    low, high = (f"{100 * value:.1f}" for value in unadjusted)
    assert re.search(rf"excludes 0 four times in five from a true difference of [\d.]+ \({low}–{high}\) po", caption)
    assert rendering.markdown(table).count(" ∞ |") == 2 and rendering.latex(table).count(r"$\infty$") == 3
    assert "*" not in rendering.markdown(table).replace("**", "").replace("\\*", "")
    assert "\np " not in _terminal(table, 120)


def test_floors_and_chance() -> None:
    table = tables.study_table(_study(), SOURCE)
    floor, chance = table.rows[-2:]
    temporal = "test/temporal_image/mean/balanced_accuracy"
    assert floor.cells[temporal].interval.mean == pytest.approx(0.41)
    assert floor.cells[temporal].difference is not None and floor.cells[PRIMARY].interval.n == 0
    assert floor.cells["facts/parameters"].interval.n == 0
    assert chance.cells[temporal].interval.mean == pytest.approx(1 / 3)
    assert chance.cells["test/grounding/pointing_accuracy"].interval.mean == pytest.approx(0.09)


def test_lower_is_better_where_the_registry_says_so() -> None:
    assert not registry.describe("facts/parameters").is_higher_better
    study = _study(global_only=-0.2)
    metric = replace(registry.describe(PRIMARY), is_higher_better=False)
    assert tables._marks(ARMS, study.scores(PRIMARY).to_numpy(), metric) == {"global only": "best"}


def test_task_tables_have_a_panel_for_each_protocol() -> None:
    by_name = {table.name: table for table in tables.task_tables(_study(), SOURCE)}
    assert list(by_name) == [f"task_{task}" for task in registry.TASK_TITLES]
    titles = [panel.title for panel in by_name["task_temporal_image"].panels]
    assert titles == ["Balanced accuracy, corrected", "AUROC, corrected", "Accuracy in 5 folds, as published",
                      "Accuracy in 10 folds, as published"]
    assert [len(panel.metrics) for panel in by_name["task_temporal_image"].panels] == [6, 6, 6, 6]
    assert "Protocols: as published" in " ".join(by_name["task_covidx_linear"].caption)


def test_tasks_without_results_have_no_table() -> None:
    study = _study()
    few = replace(study, values=study.values[study.values["metric"].str.contains("retrieval")])
    assert [table.name for table in tables.task_tables(few, SOURCE)] == ["task_retrieval"]


def test_the_primary_metric_states_what_its_own_test_detects_the_others_a_t_test() -> None:
    study = _study(global_only=-0.08)
    table = tables.study_table(study, SOURCE)
    scores = study.scores(PRIMARY)
    expected = detectable_differences(scores[list(ARMS[1:])].to_numpy() - scores[["full"]].to_numpy())
    assert [row.cells[PRIMARY].detectable for row in table.rows[1:3]] == expected.tolist()
    for row in table.rows[1:3]:
        for key, cell in row.cells.items():
            if key != PRIMARY and key not in registry.COST:
                assert cell.difference is not None
                deviation = cell.difference.interval.deviation
                assert cell.detectable == statistics.minimum_detectable_difference(deviation, 6)
    caption = " ".join(table.caption)
    assert "the adjusted test finds four times in five" in caption and "unadjusted paired t test at 0.05" in caption
    assert math.isnan(table.rows[0].cells[PRIMARY].detectable)


def test_every_panel_shows_n_and_what_could_be_detected() -> None:
    plan = make_plan(ARMS, 6)
    runs, numbers = make_frames(plan)
    runs.loc[1, "state"] = "failed"
    study = assemble(plan, runs, numbers, SOURCE)
    for table in (tables.study_table(study, SOURCE), *tables.task_tables(study, SOURCE)):
        for shown in (rendering.markdown(table), rendering.latex(table), _terminal(table, 150)):
            assert "5 (1 failed)" in shown and ("MDD" in shown or len(table.panels) == 0)
        for panel in table.panels:
            assert panel.is_detailed or [name for name, _ in rendering.feet(table, panel)] == ["MDD, median (range)"]
    table = next(table for table in tables.task_tables(study, SOURCE) if table.name == "task_retrieval")
    metric = table.metrics[0]
    low, high = (rendering.number(value, metric) for value in table.detectable(metric.key))
    [(_, texts)] = rendering.feet(table, table.panels[0])
    assert re.fullmatch(rf"[\d.]+ \({low}–{high}\)", texts[metric.key])


def test_a_caption_speaks_only_of_the_columns_that_its_table_has() -> None:
    for table in tables.task_tables(_study(), SOURCE):
        caption = " ".join(table.caption)
        assert "p:" not in caption and "g:" not in caption and "r:" not in caption and "* p" not in caption, table.name


# What the caption confesses


def test_missing_failed_and_pruned_are_counted_and_named() -> None:
    plan = make_plan(ARMS, 3)
    runs, numbers = make_frames(plan)
    runs.loc[1, ["state", "reason"]] = ["failed", "NonFiniteLossError: step 12: local\nmore"]
    runs.loc[5, "state"] = "pruned"
    study = assemble(plan, runs.drop(index=[8]), numbers, SOURCE)
    table = tables.study_table(study, SOURCE)
    warning = " ".join(table.warnings)
    assert warning.startswith("INCOMPLETE: 3 of 9 trials")
    assert "full seed 1 failed: NonFiniteLossError: step 12: local" in warning
    assert "no lateral view seed 2 pruned" in warning and "global only seed 2 missing" in warning
    assert "6 of 9 planned trials finished" in " ".join(table.caption)
    assert "(n=" not in rendering.markdown(table), "n stands in its own column where all metrics have it"
    assert table.rows[0].cells[PRIMARY].interval.n == 2


def test_stale_and_mixed_results_say_so() -> None:
    plan = make_plan(ARMS, 3)
    runs, numbers = make_frames(plan)
    runs.loc[0, "source_fingerprint"] = "0ther"
    runs.loc[4, "data_fingerprint"] = "0therdata"
    table = tables.study_table(assemble(plan, runs, numbers, SOURCE), SOURCE)
    assert any(text.startswith("STALE: 1 of 9") and "0ther" in text for text in table.warnings)
    [mixed] = [text for text in table.warnings if text.startswith("MIXED DATA")]
    assert "0therdata" in mixed and "no lateral view" in mixed


def test_arms_with_data_of_their_own_are_not_mixed_up() -> None:
    plan = replace(make_plan(ARMS, 3), assignments={arm: {"data.root": f"data/{arm}"} for arm in ARMS[1:]})
    runs, numbers = make_frames(plan)
    runs["data_fingerprint"] = runs["arm"]
    table = tables.study_table(assemble(plan, runs, numbers, SOURCE), SOURCE)
    assert table.warnings == () and "Arms have different data, as planned" in " ".join(table.caption)
    # Two data sets within one arm are averaged, and arms of the same plan should share theirs.
    runs.loc[4, "data_fingerprint"] = "0ther"
    assert "no lateral view: no lateral view, 0ther" in " ".join(
        tables.warnings_of(assemble(plan, runs, numbers, SOURCE), SOURCE))
    alike = assemble(replace(plan, assignments={}), *make_frames(plan), SOURCE)
    assert tables.warnings_of(alike, SOURCE) == []
    runs["data_fingerprint"] = runs["arm"]
    assert "MIXED DATA" in " ".join(tables.warnings_of(
        assemble(replace(plan, assignments={}), runs, numbers, SOURCE), SOURCE))


def test_caption_names_the_arms_whose_weights_may_have_seen_the_judged_patients() -> None:
    plan = make_plan(ARMS, 3)
    runs, numbers = make_frames(plan)
    assert "Contaminated" not in " ".join(tables.study_table(assemble(plan, runs, numbers, SOURCE), SOURCE).caption)
    # One run of an arm is enough: its mean holds it.
    marked = runs.loc[(runs["arm"] == "no lateral view") & (runs["seed"] == 1), "run_id"]
    numbers = pd.concat([numbers, pd.DataFrame({"run_id": marked, "metric": "facts/is_contaminated", "value": 1.0})])
    table = tables.study_table(assemble(plan, runs, numbers, SOURCE), SOURCE)
    assert "Contaminated: the weights of no lateral view may have seen patients" in " ".join(table.caption)
    for rendered in (rendering.markdown(table), rendering.latex(table)):
        assert "Contaminated: the weights of no lateral view" in " ".join(rendered.split())


def test_caption_states_data_code_budget_and_seeds() -> None:
    caption = " ".join(tables.study_table(_study(), SOURCE).caption)
    for fact in ("phantom tiny (da7af1a9e7000000)", "experiments/phantom_tiny.yaml", SOURCE, "seeds 0–5",
                 "19,200 pairs seen", "corrected: grouped by patient", "max-T"):
        assert fact in caption


@pytest.mark.parametrize(("mean", "expected", "reading"), [
    (-0.10, "lower", "as expected"), (-0.10, "higher", "lower, against expectation"),
    (0.10, "equal", "higher, against expectation"), (-0.01, "lower", "not shown"),
    (-0.01, "equal", "no difference shown"), (math.nan, "lower", "too few seeds"),
])
def test_the_interval_decides_how_an_expectation_reads(mean: float, expected: str, reading: str) -> None:
    paired = statistics.PairedDifference(statistics.Interval(mean, 0.05, 6, 0.05), 0.0)
    assert tables.Verdict("arm", registry.describe(PRIMARY), expected, paired).reading == reading


def test_expectations_stand_beside_what_was_found() -> None:
    plan = replace(make_plan(ARMS, 6), expectations=(Expectation("global only", PRIMARY, "higher"),))
    table = tables.study_table(make_study(plan, effects={"global only": -0.3}), SOURCE)
    assert table.verdicts[0].difference == table.rows[2].cells[PRIMARY].difference
    for shown in (rendering.markdown(table), rendering.latex(table), _terminal(table, 100)):
        assert "lower, against expectation" in shown


# Renderings


def test_numbers_as_people_read_them() -> None:
    metric = registry.describe(PRIMARY)
    assert rendering.number(0.7412, metric) == "74.1"
    assert rendering.number(-0.0123, metric, signed=True) == "−1.2"
    assert rendering.number(-0.0001, metric, signed=True) == "0.0"
    assert rendering.number(math.nan, metric) == "–"
    assert rendering.score(statistics.Interval(0.741, 0.021, 6, 0.02), metric) == "74.1 ± 2.1"
    assert rendering.score(statistics.Interval(0.741, math.nan, 1, math.nan), metric) == "74.1"
    paired = statistics.PairedDifference(statistics.Interval(0.012, 0.015, 6, 0.01), 0.5)
    assert rendering.difference(paired, metric) == "+1.2 [−0.3, +2.7]"
    assert rendering.p_value(2 / 64) == "0.031*" and rendering.p_value(0.2) == "0.200"
    assert text.seeds_text([5, 0, 1, 2]) == "0–2, 5"
    assert text.broken("one two three", 7) == "one two\nthree"
    assert text.broken("one two three", 5, lines=1) == "one …"


def test_markdown_is_a_table_a_panel() -> None:
    table = tables.study_table(_study(), SOURCE)
    shown = rendering.markdown(table)
    assert shown.startswith("# What does each part of Med-ST bring?\n")
    blocks = re.findall(r"(?:^\|.*\|\n)+", shown, flags=re.MULTILINE)
    assert [len(block.strip().splitlines()) - 2 for block in blocks] == [len(table.rows), len(table.rows) + 1, 1]
    assert blocks[1].splitlines()[-1].startswith("| MDD, median (range) |  | ")
    for block in blocks:
        lines = block.strip().splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


@pytest.mark.parametrize("arm", [r"50% & $x_1$ #{a}\b ~^", "λ1 ≤ 0.3 → <b>"])
def test_latex_survives_any_name(arm: str) -> None:
    study = make_study(make_plan(("full", arm), 6), effects={arm: -0.2})
    for table in (tables.study_table(study, SOURCE), *tables.task_tables(study, SOURCE)):
        source = rendering.latex(table)
        assert source.isascii(), sorted(set(re.findall(r"[^\x00-\x7f]", source)))
        _check_latex(source)
    assert rendering.latex_escape("a_b & 5% of \\x{}") == r"a\_b \& 5\% of \textbackslash{}x\{\}"


def _check_latex(stamped: str) -> None:
    """Braces and mathematics are balanced, environments nest, every row has the columns that its tabular declares."""
    stamp, _, source = stamped.partition("\n")
    assert re.fullmatch(r"% fingerprint \w*", stamp)
    bare = re.sub(r"\\[\\&%$#_{}]", "", source)
    assert "#" not in bare and "%" not in bare
    depth = 0
    for character in bare:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    outside = re.sub(r"\$[^$]*\$", "", bare)
    assert "_" not in outside and "^" not in outside
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", source):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", source, flags=re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 2
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1


def test_best_is_marked_only_where_something_is_told_from_it() -> None:
    told = tables.study_table(_study(6, global_only=-0.3), SOURCE)
    assert r"\textbf{" in rendering.latex(told) and "‡" in rendering.markdown(told)
    assert "optimistic" in " ".join(told.caption) and "sweep extend overview --seeds 6..11" in " ".join(told.caption)
    same = tables.study_table(make_study(make_plan(ARMS, 6), noise=0.0), SOURCE)
    assert r"\textbf{" not in rendering.latex(same) and "optimistic" not in " ".join(same.caption)


def test_csv_leads_to_the_runs() -> None:
    study = _study()
    table = tables.study_table(study, SOURCE)
    frame = pd.read_csv(io.StringIO(rendering.csv_frame(table).to_csv(index=False)))
    assert len(frame) == len(table.rows) * len(table.metrics)
    row = frame[(frame["arm"] == "no lateral view") & (frame["metric"] == PRIMARY)].iloc[0]
    assert row["run_ids"].split() == list(study.run_ids(PRIMARY)["no lateral view"].values())
    assert row["reference_run_ids"].split() == list(study.run_ids(PRIMARY)["full"].values())
    scores = study.scores(PRIMARY)
    assert row["mean"] == pytest.approx(scores["no lateral view"].mean())
    assert row["difference"] == pytest.approx((scores["no lateral view"] - scores["full"]).mean())
    assert row["n"] == 6 and row["n_pairs"] == 6


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_terminal_fits(width: int) -> None:
    shown = _terminal(tables.study_table(make_study(make_plan(num_seeds=6)), SOURCE), width)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "…" not in shown
    for arm in make_plan().arms:
        assert arm in shown


def test_the_caption_names_processors_and_what_two_kinds_mean() -> None:
    study = make_study(make_plan(ARMS, 6))
    told = " ".join(tables.study_table(study, SOURCE).caption)
    assert "; processor Processor 1." in told and "kinds of processor" not in told
    mixed = study.trials.assign(processor=["Processor 1", "Processor 2"] * (len(study.trials) // 2))
    told = " ".join(tables.study_table(replace(study, trials=mixed), SOURCE).caption)
    assert "; processor Processor 1, Processor 2." in told and "Computed on 2 kinds of processor" in told
    unknown = study.trials.assign(processor=None)
    assert "processor" not in " ".join(tables.study_table(replace(study, trials=unknown), SOURCE).caption)


def test_one_seed_and_one_arm_work() -> None:
    for arms, seeds in (((*ARMS,), 1), (("full",), 6)):
        table = tables.study_table(make_study(make_plan(arms, seeds)), SOURCE)
        for render in (rendering.markdown, rendering.latex, rendering.csv_frame):
            assert "nan" not in str(render(table)).lower() or render is rendering.csv_frame
        assert _terminal(table, 100)


def test_tables_of_a_thousand_runs() -> None:
    plan = make_plan(tuple(f"arm {number}" for number in range(100)), 10)
    arms, seeds = np.meshgrid(np.arange(100), np.arange(10), indexing="ij")
    runs = pd.DataFrame({"arm": np.array(plan.arms)[arms.ravel()], "seed": seeds.ravel()})
    runs = runs.assign(run_id=[f"{number:032x}" for number in range(1000)], state="finished", key="", reason=None,
                       withheld=None, source_fingerprint=SOURCE, data_fingerprint="d", data_name="n",
                       processor="p", start_time=0)
    keys = [metric.key for metric in registry.METRICS.values()]
    numbers = pd.DataFrame({"run_id": np.repeat(runs["run_id"].to_numpy(), len(keys)), "metric": keys * len(runs),
                            "value": np.random.default_rng(0).uniform(size=len(keys) * len(runs))})
    table = tables.study_table(assemble(plan, runs, numbers, SOURCE), SOURCE)
    assert [row.arm for row in table.rows] == [*plan.arms, "chance"]


def test_analysis_imports_neither_torch_nor_ray() -> None:
    code = ("import sys; import analysis.results, analysis.figures, analysis.pictures; "
            "print(sorted({'torch', 'ray', 'timm', 'transformers'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
