# `make demo` and `make test` need only Python 3.11 or newer: the first call makes .venv, later calls start at once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# One thread per process, or two test processes of two threads each would stand in each other's way on two cores.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg WANDB_MODE=offline
PYTEST_ARGS ?= --numprocesses 2 --dist worksteal --cov --cov-report term:skip-covered

.PHONY: demo test lint clean help
.DELETE_ON_ERROR:

help:
	@echo "make demo    install stexpr into $(VENV) and run 'stexpr demo' (a few minutes, most of it the installation)"
	@echo "make test    install it with its test tools, then lint, check types and run all tests with coverage"
	@echo "make lint    ruff and mypy alone"
	@echo "make clean   remove what builds, tests and the demo left; $(VENV) stays"

demo: $(VENV)/.installed
	$(BIN)/stexpr demo

test: lint
	$(TEST_ENV) $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.* stexpr-demo
	find stexpr tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stexpr needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# torch and torchvision come in one resolve: installed one after the other they may not fit (operator torchvision::nms).
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing stexpr into $(VENV), some minutes the first time"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	@echo "installing stexpr and its test tools into $(VENV), some minutes the first time"
	$(PIP) --editable '.[test,dev]'
	@touch $(VENV)/.installed $@
