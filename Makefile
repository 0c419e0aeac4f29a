# The one task runner. `make help` lists what it does.
#
# PYTHON   the interpreter to set up with (python3); 3.10 or newer
# VENV     where its environment lies (.venv); another PYTHON wants another VENV
# ARGS     handed to pytest, the demo or the benchmarks: make test ARGS="-k waiters"
# FAST     make test FAST=1 leaves out the tests marked slow
# BENCH_DIR  where make bench keeps its loaded stores (a directory of the user's cache)
# JOBS     how many processes the tests run in (3): most of the time they wait

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
FAST ?=
JOBS ?= 3

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

# An environment is ready when it was filled from this pyproject.toml in this place;
# a stamp that carries both makes the second time fast.
KEY := $(shell { pwd; cat pyproject.toml; } | cksum | cut -d' ' -f1)
READY_USER := $(VENV)/.ready-user-$(KEY)
READY_DEV := $(VENV)/.ready-dev-$(KEY)
# An environment with everything serves users too.
READY_ANY := $(firstword $(wildcard $(READY_DEV)) $(READY_USER))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

.PHONY: help demo test check lint format types proto proto-check imports bench coverage clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

demo: $(READY_ANY) ## real workers report, an app streams the group's results
	@$(BIN)/resultd demo $(ARGS)

test: $(READY_DEV) ## the tests; what the machine cannot run is skipped with its reason
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(if $(FAST),-m "not slow") $(ARGS)

check: lint types proto-check imports test ## all of what CI runs

lint: $(READY_DEV) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY_DEV) ## rewrites Python and protos in the common format
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/buf format --write

types: $(READY_DEV) ## mypy --strict over both packages and the tests
	$(BIN)/mypy

proto: $(READY_DEV) ## generates the committed stubs from the protos
	$(BIN)/python protos/generate.py

# Against the checked-in image, not a branch: a clone would be compared with itself.
# At a release: buf build -o protos/baseline.binpb
proto-check: $(READY_DEV) ## protos: lint, format, nothing broken since the baseline, stubs fresh
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against protos/baseline.binpb
	$(BIN)/python protos/generate.py --check

imports: $(READY_DEV) ## who may import whom
	$(BIN)/lint-imports --no-cache

bench: $(READY_DEV) ## the benchmarks beside their yardsticks, 15 min; ARGS="store iterate" for some
	@$(BIN)/python -m tests.benchmarks $(ARGS)

coverage: $(READY_DEV) ## the tests with branch coverage, the servers they start included
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

clean: ## removes everything that was made, environments too
	rm -rf .venv .cache build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "resultd needs Python 3.10 or newer and $(PYTHON) is not one." \
	       "Name one that is: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian install python3-venv." >&2; exit 1; }

$(READY_USER): $(BIN)/python
	@echo "Setting up $(VENV) (once) …"
	@$(PIP) install --editable '.[server]'
	@rm -f $(VENV)/.ready-*; touch $@

$(READY_DEV): $(BIN)/python
	@echo "Setting up $(VENV) for development (once) …"
	@$(PIP) install --editable '.[server,dev]'
	@rm -f $(VENV)/.ready-*; touch $@
