"""The proxy ladder: would a cheaper study have ranked the arms as the full one does?

A rung is the same study at a share of the budget (pairs seen) or of the data (training patients); its trials are
platform trials like all others, computed once. What lives here: the rungs, running them, the ladder's table. What must
not: how scores are compared (analysis/ladder.py, from the tracking store alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from medst.config import Config, parse_overrides
from medst.tracking import TrackingPlace
from medst.tracking.members import ensure_group_run
from medst.tracking.studies import end_study_run
from sweeps.commands import FINISHED_CODE, INTERRUPTED_CODE, ExecutorName, run_study
from sweeps.data import ensure_data
from sweeps.live import progress_line
from sweeps.study import Study, find_study, load_study
from sweeps.trials import expand
from sweeps.worker import TrialFunction

Share = Literal["budget", "data"]

FRACTIONS = (0.05, 0.1, 0.25)
"""Rungs below the full study."""


class LadderError(ValueError):
    """A ladder that cannot be made of a study."""


def ladder_name(study: str, of: Share) -> str:
    return f"{study}-{of}"


def rung_name(study: str, of: Share, fraction: float) -> str:
    """`overview-budget-5`: 5 % of the budget of `overview`."""
    return f"{ladder_name(study, of)}-{100 * fraction:g}".replace(".", "_")


def rung(study: Study, of: Share, fraction: float) -> Study:
    """The study with every arm at `fraction` of its budget or of its training patients.

    Of the data: as many epochs over fewer patients, so that the cost falls with them.
    """
    def scaled(config: Config) -> Config:
        if of == "budget":
            training = config.training.model_copy(update={"epochs": config.training.epochs * fraction})
            return config.model_copy(update={"training": training})
        data = config.data.model_copy(update={"train_fraction": config.data.train_fraction * fraction})
        return config.model_copy(update={"data": data})

    what = "budget" if of == "budget" else "training patients"
    file = study.file.model_copy(update={
        "name": rung_name(study.name, of, fraction),
        "question": f"Do the arms of {study.name} rank as in the full study at {100 * fraction:g} % of the {what}?",
        # Pictures of a proxy are of no use.
        "flagged_arms": (), "expectations": (),
        "seconds_per_trial": study.file.seconds_per_trial * fraction})
    return replace(study, file=file, arms=tuple(replace(arm, config=scaled(arm.config)) for arm in study.arms))


def run_ladder(study: str, of: Share = "budget", fractions: Sequence[float] = FRACTIONS, *,
               assignments: Sequence[str] = (), executor: ExecutorName = "ray", jobs: int | None = None,
               base: Path | None = None, data_root: Path | None = None, project: Path | None = None,
               should_retry_failed: bool = False, trial_function: TrialFunction | None = None,
               console: Console | None = None) -> tuple[int, str]:
    """Run what is missing of every rung, cheap ones first, and of the full study.

    Args:
        of: share of the `budget` in pairs, or of the `data` in training patients.
        fractions: rungs in (0, 1); the full study always stands on top.

    Returns:
        The worst exit code of the rungs, and the ladder's name.

    Raises:
        LadderError: fractions outside (0, 1), or a study that tunes nuisance parameters for every arm.
        ValueError: a study, override, data folder or store that cannot be used.
    """
    console = console or Console()
    project = (project or Path.cwd()).absolute()
    place = TrackingPlace.of_project(project)
    wrong = [fraction for fraction in fractions if not 0 < fraction < 1]
    if wrong or not fractions:
        raise LadderError(f"rungs are shares between 0 and 1, such as 0.05, 0.1 and 0.25 (got {wrong or 'none'})")
    overrides = parse_overrides(assignments)
    if data_root is not None:
        overrides["data.root"] = str(data_root)
    loaded = load_study(find_study(study, project), overrides=overrides, base=[base] if base else [], project=project)
    if loaded.file.tuning is not None:
        raise LadderError(f"study '{loaded.name}' tunes nuisance parameters for every arm: its rungs would compare "
                          "what was chosen as well; take a study without `tuning`")
    if len(loaded.arms) < 3:
        raise LadderError(f"study '{loaded.name}' has {len(loaded.arms)} arms: fewer than three have no order to "
                          "speak of")
    steps = sorted(set(fractions))
    rungs = [(fraction, rung(loaded, of, fraction)) for fraction in steps] + [(1.0, loaded)]

    name = ladder_name(loaded.name, of)
    run_id = ensure_group_run(place.uri, place.experiment, "ladder", name, describe_ladder(loaded, of, steps),
                              _plan(loaded, of, rungs, project, console), is_running=True)
    codes = []
    for fraction, study_of_rung in rungs:
        codes.append(run_study(study_of_rung, executor, jobs, project=project, console=console,
                               kind="rung" if fraction < 1 else "study", should_retry_failed=should_retry_failed,
                               trial_function=trial_function))
        if codes[-1] == INTERRUPTED_CODE:
            break
    end_study_run(place.uri, run_id, all(code == FINISHED_CODE for code in codes))
    return max(codes), name


def _plan(study: Study, of: Share, rungs: Sequence[tuple[float, Study]], project: Path, console: Console
          ) -> dict[str, Any]:
    """All that the ladder's table and figure need beside the trials."""
    facts = ensure_data(study, project, 1, progress_line(console))
    trials = [{"fraction": fraction, "arm": trial.arm, "seed": trial.seed, "key": trial.key}
              for fraction, study_of_rung in rungs for trial in expand(study_of_rung, facts)]
    return {
        "name": ladder_name(study.name, of), "study": study.name, "question": study.file.question.strip(), "of": of,
        "metric": study.file.primary_metric, "reference": study.file.reference,
        "arms": [arm.name for arm in study.arms],
        # Without training there is nothing of which a share could be taken: the floor would only flatter the ranks.
        "untrained": [arm.name for arm in study.arms if arm.config.training.epochs == 0],
        "fractions": [fraction for fraction, _ in rungs], "trials": trials,
    }


def describe_ladder(study: Study, of: Share, fractions: Sequence[float]) -> str:
    """The description of the ladder's run, in Markdown."""
    what = "the budget (pairs seen)" if of == "budget" else "the training patients"
    shares = ", ".join(f"{100 * fraction:g} %" for fraction in fractions)
    return (f"## {study.name}, cheaper\n\nDo {shares} of {what} rank the arms of `{study.name}` as the full study "
            f"does?\n\nTable and figure are under Artifacts, `results/`. The trials of a rung carry the tag "
            f"`study.{rung_name(study.name, of, fractions[0])}` and the like.")
