# The commands of this repository. They make a virtual environment in .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Touched when an installation has ended well, so that a second run installs nothing.
MADE := $(VENV)/made
RUN := $(VENV)/installed
DEV := $(VENV)/installed-dev
BENCH := $(VENV)/installed-bench
CODE := geounet tests benchmarks docsite

.PHONY: help demo test test-all bench docs picture lint format clean

help:
	@echo "make demo      a synthetic scene through the main job, into demo/"
	@echo "make test      format, lint, types, then every test that is not slow"
	@echo "make test-all  the slow tests too"
	@echo "make bench     time and memory of the main job (SCENE=scene.tif) and of vectors"
	@echo "make docs      the pages of docs/ as a site, into site/; warnings are errors"
	@echo "make picture   the picture of the README, drawn anew"
	@echo "make lint      format, lint and types alone"
	@echo "make format    rewrite the code in the project's format"
	@echo "make clean     remove what these commands made"

demo: $(RUN)
	$(BIN)/geounet demo -o demo

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-all: lint
	$(BIN)/python -m pytest

bench: $(BENCH)
	$(BIN)/python -m benchmarks.limit $(SCENE)
	$(BIN)/python -m benchmarks.limit $(SCENE) --own-pixels
	$(BIN)/python -m benchmarks.scale $(SCENE)
	$(BIN)/python -m benchmarks.backends $(SCENE)
	$(BIN)/python -m benchmarks.peers $(SCENE)
	$(BIN)/python -m benchmarks.vectors
	$(BIN)/python -m benchmarks.footprints

docs: $(DEV)
	$(BIN)/python -m docsite.commands
	$(BIN)/mkdocs build --strict

picture: $(RUN)
	$(BIN)/python -m docsite.picture

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUN): $(MADE) pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(DEV): $(MADE) pyproject.toml constraints.txt
	$(PIP) -e '.[dev,docs]'
	@touch $(RUN) $@

$(BENCH): $(DEV)
	$(PIP) -e '.[dev,docs,bench]'
	@touch $@
