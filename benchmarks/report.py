"""From measurements to `results/bench.json`, a table in Markdown and figures.

What must not live here: measuring.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.training import ANOMALY_NAME, FAST_NAME, PUBLISHED_NAME, REDUCED_NAME

matplotlib.use("Agg")

_GROWTH = {"growth": "a training step at tiny", "rooms": "sweep, preparation and analysis"}
"""Parts whose results are one growth for each factor -> of what."""


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write `bench.json`, `bench.md` and the figures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "bench.json", folder / "bench.md"]
    for path, text in zip(paths, (json.dumps(results, indent=1), markdown(results)), strict=True):
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    for name in _GROWTH:
        if name in results:
            paths.append(_growth_figure(_factors(results[name]), folder / f"bench-{name}.png"))
    if "curves" in results:
        paths.append(_curves_figure(results["curves"], folder / "bench-curves.png"))
    if "memory" in results:
        paths.append(_memory_figure(results["memory"], folder / "bench-memory.png"))
    return paths


def markdown(results: dict[str, Any]) -> str:
    """All tables."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: dict[str, Any]) -> Iterator[str]:
    yield ("Median (quartiles) of interleaved rounds; a ratio is the median of the ratios within a round.")
    for name, measured in results.get("training", {}).items():
        yield from _training_lines(name, measured)
    if "memory" in results:
        yield from _memory_lines(results["memory"])
    if "input" in results:
        yield from _table("Input, one core", ["setting", "ours, images/s", "published, images/s", "ratio", "step takes",
                                              "ours against the step"],
                          [[name, _number(item["images_per_second"]["ours"]),
                            _number(item["images_per_second"]["published"]), _number(item["ratio"]),
                            f"{item['step_images_per_second']:.3g}", _number(item["times_what_the_step_takes"])]
                           for name, item in results["input"].items()])
        if "paper" in results["input"]:
            paper = results["input"]["paper"]
            yield ""
            rate = f"{paper['accelerator_operations_per_second'] / 1e12:.0f} TFLOP/s"
            yield (f"An accelerator that reached {rate} (45 % of an H100's peak in bfloat16) would take "
                   f"{_number(paper['cores_for_an_accelerator'])} such cores at paper.")
        yield from _conditions(list(results["input"].values())[-1])
    if "shares" in results:
        shares = results["shares"]
        yield from _table("Where the time of a tiny training step goes", ["part", "share of wall time"],
                          [[name.replace("_", " "), f"{100 * shares[name]:.0f} %"]
                           for name in ("matrix_work", "loading", "other_kernels")]
                          + [[f"`{name}`", f"{100 * share:.1f} %"] for name, share in shares["largest"].items()])
        yield from _conditions(shares)
    if "sharing" in results:
        yield from _table("Small trials that share the device", ["trials", "steps/s in all"],
                          [[str(number), f"{rate:.2f}"] for number, rate in
                           results["sharing"]["steps_per_second"].items()])
        yield from _conditions(results["sharing"])
    for name, title in _GROWTH.items():
        if name in results:
            yield from _table(f"Growth of {title}", ["factor", "sizes", "seconds", "exponent", "expected"],
                              [[factor, ", ".join(map(str, item["sizes"])),
                                ", ".join(f"{item['seconds'][str(size)]['median']:.3g}" for size in item["sizes"]),
                                f"{item['exponent']:.2f}", f"{item['expected']:.0f}"]
                               for factor, item in _factors(results[name]).items()])
            yield from _conditions(results[name])
    if "sweep" in results:
        yield from _table("What the sweep costs beside its trials", ["what", "value", "target", "how"],
                          [[item["name"].strip(), f"{item['value']:.3g} {item['unit']}", item["target"], item["remark"]]
                           for item in results["sweep"]["results"]])
        yield from _conditions(results["sweep"])
    if "curves" in results:
        curves = results["curves"]
        yield ""
        largest, last = 100 * curves["largest_relative_distance"], 100 * curves["last_relative_distance"]
        yield (f"Loss curves of float32 and bfloat16 over {curves['steps']} steps at tiny ({curves['data']}), smoothed "
               f"over {curves['smoothed_over']} steps, are apart by at most {largest:.2f} %, by {last:.2f} % at the "
               "end.")
        yield from _conditions(curves)


def _training_lines(name: str, measured: dict[str, Any]) -> Iterator[str]:
    seconds, ratios = measured["seconds"], measured["faster_than"]
    rows = []
    for label, time in seconds.items():
        against = "1" if label == FAST_NAME else _number(ratios[label])
        rows.append([label, _number(time), against, str(time["rounds"])])
    size = f"{measured['parameters'] / 1e6:.1f} M parameters"
    yield from _table(f"Training step, {name}: {measured['pairs']} pairs, {measured['laterals']} laterals, {size}",
                      ["way", "seconds", "times as long as ours", "rounds"], rows)
    share, rate = measured["share_of_product_rate"], measured["products_per_second"]
    reduced = measured["reduced_faster_than"]
    yield ""
    yield (f"The losses of `{PUBLISHED_NAME}` and `{FAST_NAME}` differ by {measured['largest_difference']:.1e} at "
           f"most. `{FAST_NAME}` runs at {_percent(share[FAST_NAME])} of the rate of the bare matrix products of its "
           f"layers ({rate['float32'] / 1e9:.4g} GFLOP/s in the same rounds), `{REDUCED_NAME}` at "
           f"{_percent(share[REDUCED_NAME])} of {rate['bfloat16'] / 1e9:.4g} GFLOP/s in bfloat16; it is "
           f"{_number(reduced[PUBLISHED_NAME])} times as fast as `{PUBLISHED_NAME}` and "
           f"{_number(reduced[ANOMALY_NAME])} times as fast as `{ANOMALY_NAME}`.")
    if "parts" in measured:
        yield from _table(f"Parts of our step, {name}", ["part", "seconds"],
                          [[part, _number(time)] for part, time in measured["parts"].items()])
    if "evaluation_pairs_per_second" in measured:
        yield from _table(f"Evaluation, {name}", ["way", "pairs/s"],
                          [[way, _number(rate)] for way, rate in measured["evaluation_pairs_per_second"].items()])
    yield from _conditions(measured)


def _conditions(measured: dict[str, Any]) -> Iterator[str]:
    """On what a part was measured."""
    machine = measured["measured_on"]
    threads = f"{machine['threads']} thread" + ("s" if machine["threads"] > 1 else "")
    yield ""
    yield (f"{machine['device']}, {machine['cores']} cores, {threads}, torch {machine['torch']}; {machine['clock']} "
           f"time; load at the start {machine['load']:.1f}; took {machine['minutes']:.1f} minutes.")


def _memory_lines(memory: dict[str, Any]) -> Iterator[str]:
    rows = []
    for label, peaks in memory["peak_bytes"].items():
        rows.append([label, *(f"{peak / 1e9:.2f}" for peak in peaks),
                     f"{memory['line'][label]['bytes_a_pair'] / 1e6:.0f}",
                     f"{memory['bytes_at_144_sequences_of_4'][label] / 1e9:.0f}"])
    states = f"{memory['states_bytes'] / 1e9:.1f} GB"
    head = ["setting", *(f"{pairs} pairs" for pairs in memory["pairs"]), "MB a pair",
            "576 pairs, extrapolated, with states"]
    yield from _table(f"Peak memory of a step at paper, GB beyond weights and moments ({states}), "
                      f"{memory['precision']}", head, rows)
    local = memory["local"]
    yield from _table(f"Peak memory of the local alignment alone, GB; {local['words']} words, {local['patches']} "
                      "patches a pair", ["arrays", *(f"{pairs} pairs" for pairs in local["pairs"])],
                      [[f"at most {local['max_entries']:,} entries" if label == "bounded" else "of the whole batch",
                        *(f"{peak / 1e9:.2f}" for peak in peaks)] for label, peaks in local["peak_bytes"].items()])
    yield from _conditions(memory)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield f"### {title}"
    yield ""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join([" :-- "] + [" --: "] * (len(head) - 1)) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _number(value: dict[str, float]) -> str:
    return f"{value['median']:.3g} ({value['low']:.3g} to {value['high']:.3g})"


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['median']:.0f} % ({100 * value['low']:.0f} to {100 * value['high']:.0f})"


def _factors(growth: dict[str, Any]) -> dict[str, Any]:
    return {factor: item for factor, item in growth.items() if factor != "measured_on"}


def _growth_figure(factors: dict[str, Any], path: Path) -> Path:
    """Each factor on logarithmic axes, its fitted line and, thin, the expected slope."""
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    for axes, (factor, item) in zip(np.atleast_1d(figure.subplots(1, len(factors))), factors.items(), strict=True):
        sizes = np.array(item["sizes"], dtype=float)
        seconds = np.array([item["seconds"][str(size)]["median"] for size in item["sizes"]])
        centre, middle = np.exp(np.log(sizes).mean()), np.exp(np.log(seconds).mean())
        axes.loglog(sizes, middle * (sizes / centre) ** item["expected"], ":", color="grey", label="expected slope")
        axes.loglog(sizes, middle * (sizes / centre) ** item["exponent"], "-", color="C0", label="fitted")
        axes.loglog(sizes, seconds, "o", color="C0")
        axes.set_xlabel(factor)
        axes.set_title(f"exponent {item['exponent']:.2f}, expected {item['expected']:.0f}", fontsize=9)
        axes.set_xticks(item["sizes"], [f"{size:,}" for size in item["sizes"]])
        axes.minorticks_off()
        # A flat growth would otherwise fill the panel with its noise.
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, middle / 2), max(high, 2 * middle))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    figure.axes[0].set_ylabel("seconds")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    return path


def _curves_figure(curves: dict[str, Any], path: Path) -> Path:
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for precision, style in (("float32", "-"), ("bfloat16", "--")):
        axes.plot(curves["loss"][precision], style, linewidth=0.9, label=precision)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    figure.savefig(path, dpi=150)
    return path


def _memory_figure(memory: dict[str, Any], path: Path) -> Path:
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    step, alignment = figure.subplots(1, 2)
    for axes, measured in ((step, memory), (alignment, memory["local"])):
        for label, peaks in measured["peak_bytes"].items():
            axes.plot(measured["pairs"], [peak / 1e9 for peak in peaks], "o-", label=label)
        axes.set_xlabel("pairs in a batch")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    step.set_ylabel("peak memory in GB")
    step.set_title("step at paper", fontsize=9)
    alignment.set_title("local alignment alone", fontsize=9)
    figure.savefig(path, dpi=150)
    return path
