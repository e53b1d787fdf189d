# The front door. `make` alone prints what there is to do; every target makes the environment that it needs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# ---- What can be set on the command line -------------------------------------------------------------------------

SWEEP ?= overview
SEARCH ?= tiny
BASE ?=
DATA ?=
ARGS ?=
EXECUTOR ?=
PRESET ?= tiny
PORT ?= 5000
TEST_WORKERS ?= 2
PAPER ?= components baselines lambda experts curriculum sequence_length lateral_fraction fidelity

# ---- The environment ---------------------------------------------------------------------------------------------

VENV := .venv
STAMP := $(VENV)/.installed

ifdef MEDST_PYTHON
# Someone else's environment (a container, conda): used as it is, nothing is installed.
PYTHON := $(MEDST_PYTHON)
ENVIRONMENT :=
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PYTHON := "$(CURDIR)/$(VENV)/bin/python"
ENVIRONMENT := $(STAMP)
# The stamp holds the folder for which the environment was made. An environment that was moved or copied along with
# the folder, or whose Python is gone, is made anew.
ifeq ($(shell test -f $(STAMP) && test "$$(cat $(STAMP))" = "$(CURDIR)" && $(PYTHON) -c '' 2>/dev/null && echo usable),)
.PHONY: $(STAMP)
endif
endif

# Nothing leaves the machine unasked.
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

MEDST := $(PYTHON) -m medst
SWEEP_OPTIONS = $(if $(BASE),--base "$(BASE)") $(if $(DATA),--data "$(DATA)") $(if $(EXECUTOR),--executor $(EXECUTOR)) $(ARGS)

define FIND_PYTHON
python=""; \
for candidate in python3 python3.13 python3.12 python3.11 python; do \
    if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
        >/dev/null 2>&1; then python="$$candidate"; break; fi; \
done; \
if [ -z "$$python" ]; then \
    echo "medst needs Python 3.11, 3.12 or 3.13 with its venv module, and none was found on the PATH." >&2; \
    echo "Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv; conda: environment.yml)," >&2; \
    echo "or name an environment that has everything installed: make MEDST_PYTHON=/path/to/python" >&2; \
    exit 1; \
fi
endef

# The stamp is removed first and written last: an interrupted installation starts from an empty environment next time.
$(STAMP): requirements.lock pyproject.toml
	@$(FIND_PYTHON); \
	if [ "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" ] && $(PYTHON) -c '' 2>/dev/null; then \
	    echo "Updating the environment in $(VENV) ..."; rm -f $(STAMP); \
	else \
	    echo "Making the environment in $(VENV) with $$("$$python" --version): 3 to 10 minutes, 7 GB ..."; \
	    rm -f $(STAMP); "$$python" -m venv --clear $(VENV); \
	fi; \
	quiet=$$([ -t 1 ] || echo --quiet); \
	$(PYTHON) -m pip install $$quiet --requirement requirements.lock; \
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .; \
	printf '%s' "$(CURDIR)" > $(STAMP); \
	echo "The environment is ready."

# ---- Experiments -------------------------------------------------------------------------------------------------

.PHONY: sweep plan search ladder paper audit smoke
sweep: $(ENVIRONMENT)  ## Run an ablation study (SWEEP=overview) and print its tables; run again to go on
	@$(MEDST) sweep run $(SWEEP) $(SWEEP_OPTIONS)

plan: $(ENVIRONMENT)  ## Print what `make sweep` would run, what is done already and how long it takes
	@$(MEDST) sweep plan $(SWEEP) $(SWEEP_OPTIONS)

search: $(ENVIRONMENT)  ## Search settings on validation patients (SEARCH=tiny); run again to go on
	@$(MEDST) search $(SEARCH) $(SWEEP_OPTIONS)

ladder: $(ENVIRONMENT)  ## Would a cheaper study rank the arms alike? (SWEEP=overview ARGS="--of data")
	@$(MEDST) sweep ladder $(SWEEP) $(SWEEP_OPTIONS)

paper: $(ENVIRONMENT)  ## Run all full studies, then make every table and figure (hours; interrupt and go on at will)
	@for study in $(PAPER); do $(MEDST) sweep run "$$study" $(SWEEP_OPTIONS); done
	@$(MEDST) results

audit: $(ENVIRONMENT)  ## Test the instrument: false positives, planted effects, coverage, transfer (an hour; go on at will)
	@$(MEDST) audit $(if $(EXECUTOR),--executor $(EXECUTOR)) $(ARGS)

# In a project folder of its own, so that its numbers never stand among real ones.
smoke: $(ENVIRONMENT)  ## A miniature of the whole path in 90 s, in build/smoke: data, sweep, tables, figures
	@rm -rf build/smoke; mkdir -p build/smoke; cd build/smoke; unset MLFLOW_TRACKING_URI; \
	$(MEDST) sweep run smoke --base ../../experiments/phantom_smoke.yaml $(if $(EXECUTOR),--executor $(EXECUTOR)) $(ARGS); \
	echo "All of this lies in build/smoke; begin there: cd build/smoke"

# ---- Results -----------------------------------------------------------------------------------------------------

.PHONY: results tables figures notebooks check-results dashboard
results: $(ENVIRONMENT)  ## Make all tables, figures and report.html in results/ from the tracking store alone
	@$(MEDST) results $(ARGS)

tables: $(ENVIRONMENT)  ## Make the tables only: Markdown, LaTeX, CSV, JSON
	@$(MEDST) results tables $(ARGS)

figures: $(ENVIRONMENT)  ## Make the figures only: PDF, PNG
	@$(MEDST) results figures $(ARGS)

notebooks: $(ENVIRONMENT)  ## Run the notebooks in analysis/, one for each table and figure of the paper
	@$(MEDST) results notebooks $(ARGS)

check-results: $(ENVIRONMENT)  ## Fail if results/ is stale, incomplete or edited by hand
	@$(MEDST) check-results $(ARGS)

dashboard: $(ENVIRONMENT)  ## Open MLflow on 127.0.0.1 (PORT=5000) on the tracking store
	@$(MEDST) dashboard --port $(PORT)

# ---- Data --------------------------------------------------------------------------------------------------------

.PHONY: phantom
phantom: $(ENVIRONMENT)  ## Write the phantom data. PRESET=tiny|small|paper|smoke DATA=data/phantom/<preset>
	@$(MEDST) data phantom --preset $(PRESET) --out "$(or $(DATA),data/phantom/$(PRESET))" $(ARGS)

# ---- Speed -------------------------------------------------------------------------------------------------------

.PHONY: bench
bench: $(ENVIRONMENT)  ## Measure speed and memory against the published way (28 minutes). ARGS="--minutes 4"
	@$(PYTHON) -m benchmarks $(ARGS)

.PHONY: bench-engine
bench-engine: $(ENVIRONMENT)  ## Measure what the ablation engine costs beside the trials (5 minutes). ARGS="ledger"
	@$(PYTHON) -m benchmarks.engine $(ARGS)

# ---- Checks ------------------------------------------------------------------------------------------------------

.PHONY: test test-slow check
test: export OMP_NUM_THREADS = 1
test: $(ENVIRONMENT)  ## Run the tests (under 10 minutes on 2 cores). TEST_WORKERS=2 ARGS="-k name"
	@$(PYTHON) -m pytest -n $(TEST_WORKERS) --dist loadfile $(ARGS)

test-slow: export OMP_NUM_THREADS = 1
test-slow: $(ENVIRONMENT)  ## Run the tests that take minutes each
	@$(PYTHON) -m pytest -m slow $(ARGS)

.PHONY: test-postgres review
test-postgres: $(ENVIRONMENT)  ## Run the tracking tests and a study against MLflow on PostgreSQL (Debian packages)
	@$(PYTHON) tests/postgres_server.py $(ARGS)

review: $(ENVIRONMENT)  ## Walk the dashboard in a browser as a reviewer does; pictures in build/review
	@$(PYTHON) tests/review_dashboard.py $(ARGS)

check: $(ENVIRONMENT)  ## Lint and check the types
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy

# ---- The environment itself --------------------------------------------------------------------------------------

.PHONY: setup lock clean help
setup: $(ENVIRONMENT)  ## Make the environment only

# One version of everything for all Pythons; versions already locked stay unless ARGS=--upgrade. The markers that uv
# adds only repeat the platform.
lock: $(ENVIRONMENT)  ## Renew requirements.lock and environment.yml after a change of pyproject.toml. ARGS=--upgrade
	@sed -n '/^#/p' requirements.lock > requirements.lock.new
	@cp requirements.lock requirements.lock.uv
	@$(PYTHON) -m uv pip compile --quiet pyproject.toml --all-extras --universal --fork-strategy fewest \
	    --python-version 3.11 --no-header --no-annotate --no-emit-index-url --output-file requirements.lock.uv $(ARGS)
	@sed 's/ ;.*//' requirements.lock.uv >> requirements.lock.new
	@{ sed '/- pip:/q' environment.yml; sed -n '/^[^#]/s/^/    - /p' requirements.lock.new; echo "    - --editable ."; } \
	    > environment.yml.new
	@rm requirements.lock.uv; mv environment.yml.new environment.yml; mv requirements.lock.new requirements.lock

clean:  ## Remove the environment, caches and build/; data, results and the tracking store stay
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find medst sweeps analysis tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## Print this
	@echo "Med-ST and its ablation studies. Start with: make sweep"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "Studies, for SWEEP=: $(basename $(notdir $(wildcard sweeps/*.yaml)))"
	@echo "Also for sweep, plan, paper: DATA=folder of the data sets, BASE=experiment under all arms,"
	@echo "  EXECUTOR=ray|inline, ARGS=\"--set training.epochs=2\" (any option of: medst sweep run --help)"
	@echo "An own environment instead of $(VENV): make MEDST_PYTHON=/path/to/python <target>"
