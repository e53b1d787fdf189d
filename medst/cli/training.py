"""`medst train` and `medst evaluate`: one trial, and saved weights judged again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medst.cli.display import is_shown, prepared_store, show_records
from medst.cli.options import Assignments, DataRoot, Protocol, Threads, compose

if TYPE_CHECKING:
    from medst.config import Config
    from medst.data.store import Store
    from medst.records import Record

MODEL = "model"
"""Folder of the finished model inside a trial's folder; `run_trial` fills it."""

SETTINGS = "config.yaml"
"""The resolved settings beside a saved model."""


def train(
    experiments: Annotated[list[Path], typer.Argument(metavar="EXPERIMENT.yaml", help="Settings; later files win.")],
    assignments: Assignments = None,
    data: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints and model.", show_default="runs/train/<experiment>-<trial key>"),
    ] = None,
    track: Annotated[bool, typer.Option("--track", help="Track the trial in MLflow as sweeps do.")] = False,
    threads: Threads = 1,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share every batch, one GPU each.", show_default="training.world_size"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell steps, memory, time and disk; nothing is trained.")
    ] = False,
) -> None:
    """Train one model, evaluate it and save it. After an interruption the same command goes on from its checkpoint."""
    # Under torchrun every process comes here; the first speaks for all.
    started = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    num_ranks = ranks or (int(started) if started else None)
    sizes = [] if num_ranks is None else [f"training.world_size={num_ranks}"]
    config = compose(experiments, [*(assignments or []), *sizes], data)
    # After the settings are known to be right: these imports take seconds.
    import torch

    from medst.config import trial_key
    from medst.trial import run_trial

    store = prepared_store(config)
    torch.set_num_threads(threads)
    if dry_run:
        show_estimate(config, store)
        return
    # As `medst.tracking.torch_version` reads it where torch is not imported.
    key = trial_key(config, store.fingerprint, str(torch.__version__))
    name = experiments[-1].stem
    folder = out or Path("runs/train") / f"{name}-{key[:8]}"
    if started and os.environ["RANK"] != "0":
        for _ in run_trial(config, folder):
            pass
        return
    claim_folder(folder, key, config)
    records = run_trial(config, folder)
    if track:
        records = tracked(records, config, store, key, name, folder / MODEL)
    show_records(records, name)
    typer.echo(f"The model is in {folder / MODEL}; judge it again with: medst evaluate --weights {folder / MODEL}")


def show_estimate(config: Config, store: Store) -> None:
    """Print what a trial of `config` will take; a few pairs are computed for it."""
    from rich.console import Console
    from rich.table import Table

    from medst.data.splits import seen_by_trial
    from medst.data.tokenizer import build_tokenizer
    from medst.training.estimate import estimate

    store = seen_by_trial(store, config.data)
    tokenizer = build_tokenizer(store, config.data, config.model.text.word_aggregation)
    table = Table(box=None, show_header=False, pad_edge=False)
    for title, value in estimate(config, store, tokenizer, Path.cwd()).rows():
        table.add_row(title, value)
    Console().print(table)


def claim_folder(folder: Path, key: str, config: Config) -> None:
    """Record the resolved settings in the trial's folder, which must not hold another trial.

    Raises:
        ConfigError: the folder holds a trial of other settings, data or code.
    """
    import yaml

    from medst.config import ConfigError

    claim = folder / "trial_key.txt"
    if claim.exists() and claim.read_text() != key:
        raise ConfigError(f"--out {folder}: holds another trial (other settings, data or code); choose another folder")
    (folder / MODEL).mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    for path, text in ((folder / MODEL / SETTINGS, settings), (claim, key)):
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def tracked(records: Iterator[Record], config: Config, store: Store, key: str, name: str, model: Path
            ) -> Iterator[Record]:
    """The same records, written into the tracking store on their way.

    Raises:
        TrackingError: the store has this trial already, or cannot be reached.
    """
    from medst.config import source_fingerprint
    from medst.tracking import (
        PRIVATE_NOTICE,
        TrackingPlace,
        TrialDescription,
        TrialState,
        describe_environment,
        is_private_tracking_allowed,
        load_runs,
        torch_version,
        track,
    )
    from medst.tracking.connection import TrackingError

    place = TrackingPlace.of_project()
    runs = load_runs(place.uri, place.experiment)
    finished = runs.loc[(runs["key"] == key) & (runs["state"] == TrialState.FINISHED.value), "run_id"]
    if len(finished):
        raise TrackingError(f"this trial is finished in the tracking store (run {finished.iloc[0]}) and is computed "
                            "once; train without --track to see it again")
    description = TrialDescription(
        config=config, key=key, arm=name, data_name=store.name, source_fingerprint=source_fingerprint(),
        data_fingerprint=store.fingerprint, is_credentialed=store.is_credentialed,
        torch_version=torch_version(), environment=describe_environment(),
        is_private_tracked=is_private_tracking_allowed(),
    )
    if description.is_private_tracked and description.is_credentialed:
        typer.echo(PRIVATE_NOTICE)
    return track(records, description, place, model)


def evaluate(
    weights: Annotated[Path, typer.Option(
        help="Folder of a saved model, as `medst train` leaves it, a checkpoint file of Med-ST or MGCA, or BioViL-T's "
             "folder.")],
    assignments: Assignments = None,
    data: DataRoot = None,
    protocol: Annotated[Protocol, typer.Option(help="Whose metrics to print.")] = Protocol.both,
    out: Annotated[Path | None, typer.Option(help="CSV of the metrics beside published numbers.")] = None,
    threads: Threads = 1,
) -> None:
    """Run the downstream tasks on saved weights and print the metrics, beside published numbers where there are any."""
    import torch

    from medst import evaluation
    from medst.config import parse_overrides
    from medst.data.splits import seen_by_trial
    from medst.evaluation.contamination import contamination
    from medst.evaluation.judged import judged_config, open_judged
    from medst.training.device import require_device

    torch.set_num_threads(threads)
    if out is not None:
        # What cannot be written is told now, and not after the tasks.
        out.parent.mkdir(parents=True, exist_ok=True)
    overrides = parse_overrides(assignments or [])
    if data is not None:
        overrides["data.root"] = str(data)
    config = judged_config(weights, overrides, protocol is Protocol.as_published)
    require_device(config.training.device)
    store = prepared_store(config)
    model, tokenizer = open_judged(weights, store, config)
    model.to(config.training.device)
    tests = show_records(evaluation.evaluate(model, store, tokenizer, config, step=0), weights.name, protocol)
    show_reproduction(tests, protocol, out)
    mark = contamination(seen_by_trial(store, config.data), config)
    if mark:
        typer.echo(f"contaminated: {mark}")


def show_reproduction(tests: Mapping[str, float], protocol: Protocol, out: Path | None) -> None:
    """Print our metrics beside what others published for them; with `out`, all metrics into a CSV file."""
    import csv

    from rich.console import Console
    from rich.table import Table

    from analysis.published import load_published, reproduction

    head = ("metric", "ours", "published", "model", "grade", "difference")
    published = load_published()
    # What others published under another name of protocol (an AUROC, grounding) belongs to the table, too.
    compared = {number.metric for number in published} if protocol is Protocol.as_published else set()
    rows = reproduction({name: value for name, value in tests.items() if is_shown(name, protocol) or name in compared},
                        published)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in head:
        # In a narrow terminal a name goes on in the next line; cut short it would name no metric.
        table.add_column(title, overflow="fold")
    for row in rows:
        if row[2]:
            table.add_row(*row)
    if table.row_count:
        Console().print(table)
    if out is not None:
        temporary = out.with_name(f".{out.name}.new")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *rows])
        temporary.replace(out)
        typer.echo(f"All metrics beside published numbers: {out}")
