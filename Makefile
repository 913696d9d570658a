# make sweep   a small sweep of a real model, end to end        make test   what CI runs
# make ui      look at the results                             make lint   ruff and mypy alone
# Everything is installed once into $(VENV), at the versions in constraints.txt.

VENV ?= .venv
PYTHON ?= python3
MODEL ?= smollm2-135m
PROFILE ?= smoke
WORKERS ?= 2
MLFLOW_TRACKING_URI ?= sqlite:///mlflow.db

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed

.PHONY: setup sweep test lint ui

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

sweep: $(STAMP)
	PATH="$(BIN):$$PATH" MLFLOW_TRACKING_URI="$(MLFLOW_TRACKING_URI)" \
		mlflow run . --env-manager local -P model=$(MODEL) -P profile=$(PROFILE)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

ui: $(STAMP)
	$(BIN)/mlflow ui --backend-store-uri "$(MLFLOW_TRACKING_URI)"
