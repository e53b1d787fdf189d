"""Walks the dashboard in a real browser as a reviewer does, and takes a picture at every stop: `make review`.

A small study with a failing arm is run in `build/review/project` (once); then Chromium opens the runs, filters by
study, groups by arm, compares, reads curves, opens the failed trial, and after a promotion the registered model, which
is fetched and loaded. Every stop states what must be on the page; what is missing ends the walk with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 120_000
TRAINING = "workflowType=machine_learning"
"""Part of an address: the pages for training; without it MLflow shows those for chat applications."""
STUDY = """\
name: review
question: Which loss terms carry zero-shot classification? A small study for the reviewer's path; one arm fails.
base: [{base}]
reference: full
primary_metric: test/finding_zero_shot/mean/auroc
seeds: [0, 1]
seconds_per_trial: 10
arms:
  full: {{}}
  no local alignment: {{objective.lambda_local: 0}}
  a rate too high: {{training.learning_rate: 1.0e+30, training.warmup_fraction: 0.0, training.clip_norm: 0.0}}
"""


def medst(project: Path, *arguments: str, check: bool = True) -> str:
    """What `medst` prints in a project folder."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run([sys.executable, "-m", "medst", *arguments], cwd=project, env=environment, text=True,
                          stdout=subprocess.PIPE, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"medst {' '.join(arguments)} ended with code {done.returncode}:\n{done.stdout}")
    return done.stdout


@contextmanager
def dashboard(project: Path, port: int) -> Iterator[str]:
    """The address of `medst dashboard` on the project's store."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.Popen([sys.executable, "-m", "medst", "dashboard", "--port", str(port)], cwd=project,
                               env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    raise SystemExit("the dashboard did not start") from None
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def main() -> None:
    from playwright.sync_api import Page, sync_playwright

    from medst.tracking import load_runs
    from medst.tracking.connection import EXPERIMENT, find_experiment
    from medst.tracking.studies import study_run_id

    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--project", type=Path, default=REPOSITORY / "build" / "review" / "project")
    options.add_argument("--pictures", type=Path, default=REPOSITORY / "build" / "review")
    options.add_argument("--port", type=int, default=5057)
    chosen = options.parse_args()
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        raise SystemExit("no browser: install Chromium (Debian: apt-get install chromium)")
    project, pictures = chosen.project.absolute(), chosen.pictures.absolute()
    project.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    if not (project / "mlflow.db").exists():
        (project / "review.yaml").write_text(STUDY.format(base=REPOSITORY / "experiments" / "phantom_smoke.yaml"))
        medst(project, "sweep", "run", "./review.yaml", check=False)

    uri = f"sqlite:///{project / 'mlflow.db'}"
    runs = load_runs(uri, study="review")
    finished = list(runs.loc[runs["state"] == "finished", "run_id"])
    failed = str(runs.loc[runs["state"] == "failed", "run_id"].iloc[0])
    found = find_experiment(uri, EXPERIMENT)
    assert found is not None
    experiment = f"/#/experiments/{found.experiment_id}"
    print(medst(project, "promote", "--study", "review", "--alias", "candidate"), end="")

    stops = 0

    def stop(page: Page, name: str, *texts: str) -> None:
        """Wait until all `texts` are on the page, and take a picture of it."""
        nonlocal stops
        stops += 1
        try:
            for text in texts:
                page.get_by_text(text, exact=False).first.wait_for(timeout=PATIENCE_MS)
            page.wait_for_timeout(1500)
        finally:
            # The picture shows what is there, also where something is missing.
            page.screenshot(path=pictures / f"{stops:02d}-{name}.png")
        print(f"{stops:02d} {name}: {', '.join(texts)}", flush=True)

    with dashboard(project, chosen.port) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{address}{experiment}/runs?{TRAINING}", timeout=PATIENCE_MS)
        # MLflow opens its assistant once in every new browser; closed, it stays closed.
        stop(page, "first-sight", "study: review", "MLflow Assistant")
        page.get_by_role("button", name="Close").first.click()
        page.get_by_placeholder("Ask a question").first.wait_for(state="hidden")
        # The trials lie folded below the run of their study, also after a search.
        stop(page, "runs", "study: review")
        query = urllib.parse.quote("tags.`study.review` LIKE '%'")
        page.goto(f"{address}{experiment}/runs?{TRAINING}&searchFilter={query}")
        page.get_by_text("study: review").first.wait_for()
        page.locator(".ag-row").first.get_by_role("button").first.click()
        stop(page, "trials-of-the-study", "full · seed 0")
        page.get_by_role("button", name="Group by").first.click()
        menu = page.get_by_role("menu").or_(page.get_by_role("dialog")).last
        menu.get_by_role("textbox").first.fill("medst.arm")
        menu.get_by_text("medst.arm", exact=True).first.click()
        page.keyboard.press("Escape")
        stop(page, "grouped-by-arm", "Group by: medst.arm", "Group: full")
        pair = urllib.parse.quote(json.dumps(finished[:2]))
        page.goto(f"{address}/#/compare-runs?runs={pair}&experiments={urllib.parse.quote(json.dumps([found.experiment_id]))}"
                  f"&{TRAINING}")
        stop(page, "compared", "Comparing 2 Runs", "objective.lambda_local")
        page.goto(f"{address}{experiment}/runs/{finished[0]}?{TRAINING}")
        stop(page, "a-trial", "seed 0")
        # Charts below the fold are not drawn, so the search names the one that is looked at.
        page.goto(f"{address}{experiment}/runs/{finished[0]}/model-metrics?{TRAINING}")
        page.get_by_placeholder("Search metric charts").fill("train/loss")
        stop(page, "its-curves", "(train/loss)")
        page.goto(f"{address}{experiment}/runs/{failed}?{TRAINING}")
        stop(page, "a-failed-trial", "NonFiniteLossError")
        page.goto(f"{address}{experiment}/runs/{failed}/artifacts/failure/traceback.txt?{TRAINING}")
        stop(page, "its-traceback", "Traceback (most recent call last)")
        page.goto(f"{address}{experiment}/runs/{study_run_id('review', uri, EXPERIMENT)}?{TRAINING}")
        stop(page, "the-study", "Which loss terms carry zero-shot classification?")
        page.goto(f"{address}/#/models/medst?{TRAINING}")
        stop(page, "the-registered-model", "candidate")
        page.goto(f"{address}/#/models/medst/versions/1?{TRAINING}")
        stop(page, "its-version", "Trial key")
        browser.close()

    fetched = pictures / "fetched"
    shutil.rmtree(fetched, ignore_errors=True)
    print(medst(project, "pull", "medst@candidate", "--out", str(fetched)), end="")
    from medst.model import MedST

    model = MedST.from_pretrained(fetched)
    print(f"from_pretrained: {sum(parameter.numel() for parameter in model.parameters())} parameters. "
          f"Pictures: {pictures}")


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    main()
