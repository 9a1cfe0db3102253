# `make` lists the targets. Each makes .venv and installs requirements.txt where that has not been done.
PROFILE ?= paper
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Threads that wait for work must not burn the cores that others need: with a second busy process on two cores a
# training step took ten times as long without this.
export OMP_WAIT_POLICY ?= PASSIVE
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@echo 'PROFILE=embedded or kinship (no GPU, no hub: minutes), minilm_glue (with GLUE_DATA=folder), single_gpu, or paper (default)'
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: install
install: $(INSTALLED) ## make .venv and install the pinned requirements

$(INSTALLED): requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...' >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@touch $@

# Before an installation that takes minutes: a profile for a GPU on a machine without one.
.PHONY: machine
machine:
	@if [ ! -e $(INSTALLED) ] && [ -n '$(filter paper single_gpu,$(PROFILE))' ] && ! command -v nvidia-smi >/dev/null; then \
	  echo 'error: PROFILE=$(PROFILE) needs a CUDA GPU, not found here: use PROFILE=embedded, which needs none.' >&2; exit 2; fi

.PHONY: reproduce-glue
reproduce-glue: machine $(INSTALLED) ## fine-tune what is missing of a PROFILE, then make its tables, figures and report
	@$(BIN)/python scripts/train.py profile=$(PROFILE) || failed=$$?; \
	  if [ "$${failed:-0}" -ge 2 ]; then exit $$failed; fi; \
	  $(BIN)/python analysis/report.py profile=$(PROFILE) && exit $${failed:-0}

.PHONY: report
report: $(INSTALLED) ## tables, figures and report of a PROFILE's finished runs, or of its committed records
	@$(BIN)/python analysis/report.py profile=$(PROFILE)

.PHONY: reference
reference: ## for maintainers: write the report of a PROFILE and its runs' records to results/reference, to be committed
	@$(BIN)/python analysis/records.py profile=$(PROFILE) $(ARGS)
	@rm -rf results/reference/$(PROFILE)/tables results/reference/$(PROFILE)/figures
	@$(BIN)/python analysis/report.py profile=$(PROFILE) results=results/reference $(ARGS)
	@if [ -e results/$(PROFILE)/search.csv ]; then cp results/$(PROFILE)/search.csv results/reference/$(PROFILE)/; fi
	$(BIN)/python scripts/update_docs.py

.PHONY: list
list: $(INSTALLED) ## the runs of a PROFILE: done, stale, failed or missing, and the time that remains
	@$(BIN)/python scripts/list.py profile=$(PROFILE)

.PHONY: watch
watch: $(INSTALLED) ## the same while it runs: step, loss, score and speed of each running run (Ctrl-C ends it)
	@$(BIN)/python scripts/list.py profile=$(PROFILE) --watch

.PHONY: submit
submit: $(INSTALLED) ## submit workers for a PROFILE to SLURM or Ray: make submit CLUSTER=slurm PROFILE=paper ARGS='cluster.partition=gpu'
	@$(BIN)/python scripts/submit.py $(or $(CLUSTER),slurm) profile=$(PROFILE) $(ARGS)

# Each worker takes a half of the tests in their order, so that most modules make what their tests share once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --durations=20
SLOW := slow or gpu or cluster

.PHONY: test
test: $(INSTALLED) ## run the fast tests: about five minutes on two cores
	$(PYTEST) -m 'not ($(SLOW))'

.PHONY: test-slow
test-slow: $(INSTALLED) ## run the tests that `make test` and `make test-cluster` leave out; those for a GPU are skipped without one
	$(PYTEST) -m '(slow or gpu) and not cluster'

.PHONY: test-all
test-all: $(INSTALLED) ## run all tests but those of `make test-cluster`, which wait for time limits and dead nodes
	$(PYTEST) -m 'not cluster'

.PHONY: test-cluster
test-cluster: $(INSTALLED) ## test the workers on SLURM (apt install slurm-wlm munge, as root) and Ray (pip install -e '.[ray]') on this machine
	$(BIN)/python -m pytest -rs --durations=20 tests/cluster

.PHONY: test-versions
test-versions: $(INSTALLED) ## test the PEFT method with the oldest and the newest dependencies allowed (downloads them)
	$(BIN)/python -m tests.versions

.PHONY: test-peft
test-peft: $(INSTALLED) ## run PEFT's own tests with rows for CondLoRA (downloads them): about ten minutes
	$(BIN)/python -m tests.peft_suite -n 2

.PHONY: benchmark
benchmark: $(INSTALLED) ## time the analysis and a training step beside the stated measures
	$(BIN)/python scripts/benchmark.py

# With python3 as it is where `make install` was not run: a machine with a GPU may have torch and no network.
.PHONY: gpu-check
gpu-check: ## test and time training on this machine's GPU, ten minutes at most: make gpu-check ARGS='parts.mpnet=0'
	@PYTHONPATH=$(CURDIR):$$PYTHONPATH $(or $(wildcard $(BIN)/python),$(PYTHON)) scripts/gpu_check.py $(ARGS)

.PHONY: soak
soak: $(INSTALLED) ## kill runs, disks and launchers at random for half an hour; nothing may be lost or differ
	$(BIN)/python -m tests.faults.soak

.PHONY: docs
docs: $(INSTALLED) ## build the documentation as a site into site/, strictly; needs the extra `docs`, no network
	@$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || \
	  { echo "error: mkdocs is not installed: run $(BIN)/python -m pip install -e '.[docs]', then make docs." >&2; exit 2; }
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.PHONY: lint
lint: $(INSTALLED) ## check style and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.PHONY: types
types: $(INSTALLED) ## check types; strict on condlora/tuner
	$(BIN)/mypy
