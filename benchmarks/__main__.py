"""`make bench`: every measurement in one run, into `results/bench.json`, `results/bench.md` and figures.

    python -m benchmarks                          # everything
    python -m benchmarks --only training memory   # some parts
    python -m benchmarks --minutes 8              # the time that the timed parts share

The engine's and the preparation's own measurements (`make bench-engine`, `benchmarks/preparation.py`) run as programs
of their own. What must not live here: measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import report
from benchmarks.curves import measure_curves, measure_shares
from benchmarks.engine import measure_overhead
from benchmarks.growth import measure_growth, measure_rooms
from benchmarks.input import measure_input
from benchmarks.measuring import CLOCKS, machine, use_clock
from benchmarks.settings import configuration
from benchmarks.sharing import measure_sharing
from benchmarks.training import FAST_NAME, measure_memory, measure_training

PARTS = ("training", "memory", "input", "shares", "sharing", "growth", "curves", "sweep", "rooms")
CPU_ONLY = ("sweep", "rooms")
"""Parts that do not touch the device and start Ray; with an accelerator only on request."""
CPU_PAIRS = {"tiny": 32, "small": 32, "paper": 8}
GPU_PAIRS = {"tiny": 32, "small": 32, "paper": 64}
CPU_MEMORY_PAIRS, GPU_MEMORY_PAIRS = (4, 8, 16), (16, 32, 64, 128)
TIME_SHARE = {"paper": 0.5, "tiny": 0.08, "small": 0.08, "input": 0.08, "sharing": 0.1, "growth": 0.16}
"""Shares of the whole time; what has no share here takes a fixed number of steps."""
CURVE_STEPS, PROFILED_STEPS = 300, 40


def main() -> None:
    """Read the options, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what training costs.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=None,
                        help=f"parts to measure; default: all, on an accelerator without {', '.join(CPU_ONLY)}")
    parser.add_argument("--settings", nargs="+", choices=tuple(CPU_PAIRS), default=list(CPU_PAIRS))
    parser.add_argument("--minutes", type=float, default=8.0, help="time that the timed parts share")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of one process; small trials have one")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="processor: for a busy CPU, one thread")
    parser.add_argument("--pairs", type=int, default=None, help="pairs in a batch of the paper setting")
    parser.add_argument("--memory-pairs", type=int, nargs="+", default=None, help="batches whose memory is measured")
    parser.add_argument("--data", default="data/phantom/tiny", help="prepared phantom for curves and profile")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    chosen = options.only or [part for part in PARTS if options.device == "cpu" or part not in CPU_ONLY]
    torch.set_num_threads(options.threads)
    console = Console()
    results = _kept(options.out / "bench.json")
    use_clock(options.clock)
    def part(name: str, measure: Callable[..., Any], key: str | None = None) -> None:
        start = time.perf_counter()
        conditions = {**machine(options.device), "clock": options.clock}

        def keep(measured: dict[str, Any]) -> None:
            # Written as soon as it is known: an interrupted run keeps what it has.
            measured["measured_on"] = {**conditions, "minutes": (time.perf_counter() - start) / 60}
            if key is None:
                results[name] = measured
            else:
                results.setdefault(name, {})[key] = measured
            report.write(results, options.out)

        keep(measure(keep=keep) if name in ("training", "rooms") else measure())
        console.print(f"{name}{' ' + key if key else ''}: {time.perf_counter() - start:.0f} s")

    seconds = {name: 60.0 * options.minutes * share for name, share in TIME_SHARE.items()}
    pairs = dict(CPU_PAIRS if options.device == "cpu" else GPU_PAIRS)
    pairs["paper"] = options.pairs or pairs["paper"]
    configs = {name: configuration(name, options.device) for name in options.settings}
    tiny = configuration("tiny", options.device, **{"data.root": options.data, "training.learning_rate": 2.0e-3})
    if "training" in chosen:
        for name, config in configs.items():
            part("training", partial(measure_training, name, config, pairs[name], seconds=seconds[name]), name)
    if "memory" in chosen:
        sizes = options.memory_pairs or (CPU_MEMORY_PAIRS if options.device == "cpu" else GPU_MEMORY_PAIRS)
        part("memory", lambda: measure_memory("paper", configuration("paper", options.device), sizes))
    if "input" in chosen:
        for name in ("tiny", "paper"):
            if name in results.get("training", {}):
                step = results["training"][name]
                rate = step["pairs"] / step["seconds"][FAST_NAME]["median"]
                config = configuration(name, "cpu", **{"training.pairs_per_batch": 32})
                part("input", partial(measure_input, config, rate, step["operations"] / step["pairs"],
                                      seconds=seconds["input"] / 2, num_studies=512), name)
    if "shares" in chosen:
        # A small trial of a sweep has one thread, so that as many run as there are cores.
        torch.set_num_threads(1)
        part("shares", lambda: measure_shares(tiny, PROFILED_STEPS))
        torch.set_num_threads(options.threads)
    if "sharing" in chosen:
        part("sharing", lambda: measure_sharing(options.device, seconds=seconds["sharing"]))
    if "growth" in chosen:
        part("growth", lambda: measure_growth(options.device, seconds=seconds["growth"]))
    if "curves" in chosen:
        part("curves", lambda: measure_curves(tiny, CURVE_STEPS))
    if "sweep" in chosen:
        part("sweep", measure_overhead)
    if "rooms" in chosen:
        part("rooms", measure_rooms)
    console.print(report.markdown(results), markup=False)
    console.print(f"written: {options.out}/bench.json, bench.md and figures")


def _kept(path: Path) -> dict[str, Any]:
    """What an earlier run measured; parts that are measured again replace theirs."""
    if not path.exists():
        return {}
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept


if __name__ == "__main__":
    main()
