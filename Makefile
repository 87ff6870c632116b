# Everything runs in .venv, made from python3 (>= 3.11) and a package registry: nothing else is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: help setup check test test-browser quickstart benchmark-step benchmark-loss reproduce assets
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## the virtual environment .venv; does nothing when it is current

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
		"Tutelage needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make setup PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

check: setup  ## linter, formatter, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

test: check  ## check, then all tests
	$(BIN)/python -m pytest -n 2

test-browser: setup  ## the report in a real Chromium (apt install chromium, or CHROMIUM=path)
	NEEDS_BROWSER=1 $(BIN)/python -m pytest -m browser tests/browser

quickstart: setup  ## distil the carried teacher: supervised KD and on-policy GKD side by side
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/tutelage quickstart

benchmark-step: setup  ## seconds a step and peak memory
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python benchmarks/step.py

benchmark-loss: setup  ## seconds and memory of the loss beside its peers: long
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python benchmarks/loss.py

reproduce: setup  ## the paper's claims on two cores: PARTS="methods rl", MULTI30K=FOLDER; long
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python recipes/reproduce/reproduce.py $(if $(PARTS),--parts $(PARTS)) $(if $(MULTI30K),--multi30k $(MULTI30K))

assets: setup  ## retrain the models the package carries
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python recipes/arithmetic/train_assets.py
