# make study      does each emotion's direction steer, and is that specific? An answer in minutes
# make sweep      a small sweep of a real model, end to end       make test       ruff, mypy and the tests, in a few minutes
# make ui         look at the results                            make test-slow  the longer tests: Ray, kills, a browser, fuzzing
# make dist       a wheel and an sdist in dist/                   make lint       ruff and mypy alone
# make docs       the documentation, in build/docs
# Everything is installed once into $(VENV), at the versions in constraints.txt.

VENV ?= .venv
PYTHON ?= python3
MODEL ?= smollm2-135m
PROFILE ?= smoke
WORKERS ?= 2
TAR ?= tar
MLFLOW_TRACKING_URI ?= sqlite:///mlflow.db

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10

.PHONY: setup sweep study test test-slow lint ui dist docs

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

study: $(STAMP)
	PATH="$(BIN):$$PATH" MLFLOW_TRACKING_URI="$(MLFLOW_TRACKING_URI)" \
		mlflow run . -e study --env-manager local -P model=$(MODEL)

sweep: $(STAMP)
	PATH="$(BIN):$$PATH" MLFLOW_TRACKING_URI="$(MLFLOW_TRACKING_URI)" \
		mlflow run . --env-manager local -P model=$(MODEL) -P profile=$(PROFILE)

test: lint
	$(PYTEST)

# A page in a browser needs Chromium, and is skipped where there is none.
test-slow: $(VENV)/.browser
	$(PYTEST) -rs -m "slow or browser"
	EMO_MLFLOW_FUZZ=300 $(PYTEST) --hypothesis-seed 0 tests/fuzz

$(VENV)/.browser: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser]"
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# Equal bytes for equal commits: built from what is committed, with the commit's time (SOURCE_DATE_EPOCH) on every file and the build tools
# of constraints.txt. The wheel takes that time by itself; the sdist does not, so it is packed again (with GNU tar).
dist: $(STAMP)
	rm -rf dist && mkdir dist
	set -e; umask 022; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct); \
	git -c tar.umask=0022 archive HEAD | $(TAR) -x -C "$$work"; \
	$(BIN)/python -m build --no-isolation --outdir "$$work/built" "$$work" >"$$work/log" || { cat "$$work/log"; exit 1; }; \
	cp "$$work"/built/*.whl dist/; \
	mkdir "$$work/sdist"; $(TAR) -xzf "$$work"/built/*.tar.gz -C "$$work/sdist"; \
	for name in $$(ls "$$work/sdist"); do \
		$(TAR) -C "$$work/sdist" --sort=name --mtime=@$$SOURCE_DATE_EPOCH --owner=0 --group=0 --numeric-owner --format=gnu -cf - $$name \
			| gzip -9n >dist/$$name.tar.gz; \
	done
	ls -l dist

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml

ui: $(STAMP)
	$(BIN)/mlflow ui --workers 1 --backend-store-uri "$(MLFLOW_TRACKING_URI)"
